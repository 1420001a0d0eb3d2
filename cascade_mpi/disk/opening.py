"""The disk tier of a store, put together when the store is opened.

Covers what is made of the settings and of what the directory holds, and which parts of the memory tiers are told of it.
Does not cover what they do (`tier`, `reading`, `promotion`, `order`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.config import Config
from cascade_mpi.disk import restart
from cascade_mpi.disk.ahead import Plan
from cascade_mpi.disk.cells import DiskCells
from cascade_mpi.disk.compaction import Compacted, compact
from cascade_mpi.disk.directory import Directory
from cascade_mpi.disk.left_out import LeftOut
from cascade_mpi.disk.open_segments import OpenSegments
from cascade_mpi.disk.order import WriteOrder
from cascade_mpi.disk.passing import DiskPassing
from cascade_mpi.disk.promotion import Promotion
from cascade_mpi.disk.reading import DiskReads
from cascade_mpi.disk.sequences import Sequences
from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.errors import ConfigError
from cascade_mpi.fabric import Fabric
from cascade_mpi.layout import MAX_DISK_CELLS, RANK_BITS, page_bytes_for
from cascade_mpi.mover import Mover
from cascade_mpi.mpiio.agreement import agreed
from cascade_mpi.mpiio.shared import SharedSegments
from cascade_mpi.pool import Pool
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.reader import Reader
from cascade_mpi.registry import Registry
from cascade_mpi.segments.checkpoints import checkpoints
from cascade_mpi.segments.format import ENTRY_BYTES
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.planning import DEAD_SHARE
from cascade_mpi.segments.space import footprints
from cascade_mpi.shared_words import FLOOR
from cascade_mpi.writer import Writer

_FILES_A_RANK, _FILES = 8, 32  # so many more segments than full ones would be are left alone
_LEAST_BLOCKS, _MOST_BLOCKS = 4096, 1 << 20  # disk cells of a rank, unless `disk_blocks` says how many


class Disk(NamedTuple):
    """The parts of the tier that a store calls."""

    directory: Directory
    found: restart.Found
    tier: DiskTier
    cells: DiskCells
    segments: OpenSegments
    reads: DiskReads
    promotion: Promotion
    passing: DiskPassing
    order: WriteOrder
    shared: SharedSegments | None
    numbers: Iterator[int]  # of this rank's new segments
    adopted: int  # blocks that were found at open
    unindexed: int  # that had no slot in the index
    left_out: LeftOut  # those of them that nobody has deleted since
    doubtful: set[int]  # segments that this rank has removed, and whose names may be back after a power loss

    def compact(self, epochs: Mapping[int, int], segment_bytes: int, *, flushed: bool = True) -> Compacted:
        """Collective. Give back what is dead, right after a flush. See `disk.compaction`."""
        done = compact(
            self.directory, self.tier, self.cells, self.segments, self.numbers, segment_bytes, epochs, self.doubtful,
            flushed=flushed,
        )  # fmt: skip
        self.tier.compacted(done)
        return done

    def wastes(self, segment_bytes: int) -> bool:
        """Collective. Whether half as many bytes are dead as live, or more, as counted; or there are too many files.

        Counted as records are counted in files. DiskError on all ranks: the files cannot be listed.
        """
        comm = self.directory.comm
        with self.tier.lock:
            lengths = self.cells.records["length"][np.flatnonzero(self.cells.words)]
        mine = int(footprints(lengths).sum()) + ENTRY_BYTES * len(lengths)
        total, live = comm.allreduce(np.array([self.tier.file_bytes, mine])).tolist()
        files = self.directory.files_there()
        most = 2 * total // segment_bytes + _FILES_A_RANK * comm.size + _FILES
        return bool(total - live > live * DEAD_SHARE + segment_bytes // 4 or files > most)

    def flush(self) -> int:
        """Collective. Write what is in memory and not on disk, all ranks together, and make everything durable.

        How many blocks this rank had. DiskError on all ranks.
        """
        assert self.shared is not None
        tier, comm = self.tier, self.directory.comm
        with tier.lock:  # no cell is reused while its bytes are written
            self.cells.sweep_hinted()  # what is dead is neither counted as live, nor in the way of what is written
            gathered = agreed(comm, tier.gather)
            try:
                locations = self.shared.write([(each.record, each.payload) for each in gathered])
            finally:
                assert tier.log is not None
                tier.log.unsure |= self.shared.unsure.keys()
                tier.log.lost_from.update(self.shared.unsure)
                self.shared.unsure.clear()
                self.doubtful.update(self.shared.doubtful)
            tier.take_over(gathered, locations)
            agreed(comm, lambda: tier.sync([]))
        return len(gathered)

    def free(self) -> None:
        """Collective. Let go of what the ranks share."""
        if self.shared is not None:
            self.shared.free()

    def clear(self) -> None:
        """Local. Take every block of this rank's disk cells out, and those that the index had no slot for."""
        self.left_out.clear()
        self.tier.remove_all(np.flatnonzero(self.cells.words).tolist())

    def check(self, words: list[int]) -> list[str]:
        """Local. What is wrong, given the words in the index that name own disk cells, while nobody writes."""
        with self.tier.lock:
            self.cells.sweep(everything=True)
            return self.tier.check(words)

    def warm(self, keys: npt.NDArray[np.uint64] | None, budget: int | None) -> tuple[int, int, int]:
        """Local. Bring own blocks into free memory: blocks and bytes that came, blocks left. See `Store.warm`."""
        cells = np.flatnonzero(self.cells.words)
        if keys is not None:
            mine = {(hi, lo) for hi, lo in keys.tolist()}
            records = self.cells.records
            cells = np.array(
                [each for each in cells.tolist()
                 if (int(records["key_hi"][each]), int(records["key_lo"][each])) in mine], np.int64,
            )  # fmt: skip
        cells = cells[[self._where(cell) is not None for cell in cells.tolist()]]  # the others are in memory already
        described = self.cells.records[cells]
        plan, room = Plan(self.segments, described), np.empty(int(described["length"].max(initial=0)), np.uint8)
        blocks = nbytes = left = 0
        for at, number in enumerate(plan.order):
            length = int(described["length"][number])
            if (budget is None or nbytes + length <= budget) and self.promotion.has_room(length):
                plan.before(at)
                if self.reads.warm(self.cells, int(cells[number]), room):
                    blocks, nbytes = blocks + 1, nbytes + length
                    continue
            left += 1
        return blocks, nbytes, left

    def _where(self, cell: int) -> tuple[int, int, int, int] | None:
        with self.tier.lock:
            return self.cells.standing(cell)

    def close(self) -> None:
        """Local. Seal what was written and close the files; the directory's lock stays.

        With "writeback" and "writethrough" all that is in memory is written before, unless a drain has just left it.
        """
        try:
            if self.tier.writes_at_close:
                self.tier.sync(seal=True)
        finally:  # what was written before is sealed all the same
            try:
                self.tier.close()
            finally:
                self.segments.close()

    def stats(self) -> dict[str, Any]:
        """Local. Counters of this rank since the store was opened."""
        tier, reads = self.tier, self.reads
        return {
            "blocks": self.cells.live, "bytes": self.cells.live_bytes, "gets": reads.reads,
            "bytes_got": reads.bytes_read, "bytes_read": self.segments.bytes_read,
            "damaged": reads.damaged, "not_visible": reads.not_visible, "read_again": reads.again,
            "promoted": self.promotion.promoted, "promoted_bytes": self.promotion.promoted_bytes,
            "demoted": tier.demoted, "demoted_bytes": tier.demoted_bytes, "cleaned": tier.cleaned,
            "written": tier.written, "written_bytes": tier.written_bytes, "tombstones": tier.tombstones,
            "passed": self.passing.passed, "expired": self.passing.expired,
            "errors": tier.errors, "lost": tier.lost, "put_again": self.order.put_again,
            "unsealed": 0 if tier.log is None else tier.log.unsealed,
        }  # fmt: skip

    def report(self, config: Config) -> dict[str, Any]:
        """Local. What was chosen and found at open."""
        found, directory = self.found, self.directory
        return {
            "on": True, "directory": directory.path, "store": directory.store.hex(), "mode": config.disk_mode,
            "durability": config.durability if self.tier.log is not None else "none (read-only)",
            "cells": int(self.cells.words.size), "segment_bytes": config.segment_bytes,
            "direct": directory.files.direct.reason, "lock": "" if directory.lock is None else directory.lock.note,
            "found": {"blocks": self.adopted, "segments": found.segments, "superseded": found.superseded,
                      "seconds": found.seconds, "took": found.took, "unindexed": self.unindexed},
            "checkpoints": [each._asdict() for each in checkpoints(directory.files)],
            "flush": {} if self.shared is None else self.shared.report(), "last_error": self.tier.last_error,
        }  # fmt: skip


def disk_blocks(config: Config, found: restart.Found, ranks: int) -> int:
    """Local. Disk cells of each rank: what was asked for, and room for what the directory has.

    ConfigError, on all ranks as `found` is the same there: one home has more blocks than a rank can have cells.
    """
    if found.most > MAX_DISK_CELLS:
        raise ConfigError(
            f"disk {config.disk}: one of {ranks} ranks would have {found.most:,} blocks of it, and a rank has at most "
            f"{MAX_DISK_CELLS:,}: use {-(-found.most * ranks // MAX_DISK_CELLS)} ranks or more; if many of them have "
            "expired or are of weight epochs that have passed, `cascade compact` removes these without a job"
        )
    pages = config.dram_bytes // page_bytes_for(config.dram_bytes)
    wanted = config.disk_blocks or min(max(pages, _LEAST_BLOCKS), _MOST_BLOCKS)
    return min(max(wanted, found.most + found.most // 4), MAX_DISK_CELLS)


def open_disk(
    directory: Directory, found: restart.Found, config: Config, fabric: Fabric, pool: Pool, registry: Registry,
    protected: ProtectedBytes, reader: Reader, writer: Writer, mover: Mover,
) -> Disk:  # fmt: skip
    """Collective. The tier, known to those above it; before any other rank uses the store."""
    cells = DiskCells(fabric, pool.own.shared[1])
    began = time.monotonic()
    unindexed = restart.adopt(fabric, cells, found.blocks, found.epochs)
    above = (found.highest >> RANK_BITS) + 1 << RANK_BITS | fabric.comm.rank  # all that was found, below all to come
    found.took["index"] = time.monotonic() - began
    if len(unindexed) and directory.writable:  # a delete does not find them, and must leave a tombstone above them
        registry.lift(fabric.comm.rank, FLOOR, above)
    registry.restore(found.epochs)
    log = shared = None
    numbers = directory.numbers(found.next_segment)
    if directory.writable:
        where = (directory.files, directory.store, numbers, directory.run, config.segment_bytes)
        log = SegmentLog(*where, writer=fabric.comm.rank, now=time.time_ns)
        shared = SharedSegments(
            fabric.comm, *where, collective=config.disk_collective, writer=fabric.comm.rank, now=time.time_ns
        )  # fmt: skip
    tier = DiskTier(
        fabric, pool, cells, log, Sequences(fabric.comm.rank, registry, above), level=config.durability,
        held=found.bytes // fabric.comm.size, quota=config.disk_quota,
        memory_only=partial(_by_content, registry),
    )  # fmt: skip
    pool.own.below = tier
    segments = OpenSegments(directory.files, directory.store, run=directory.run if directory.writable else None)
    promotion = Promotion(fabric, pool, registry, protected)
    reads = DiskReads(fabric, reader, segments, promotion)
    reader.on_disk = reads
    writer.order = order = WriteOrder(fabric, pool, writer, mover, protected, tier)
    return Disk(directory, found._replace(blocks=found.blocks[:0]), tier, cells, segments, reads, promotion,
                DiskPassing(fabric, tier), order, shared, numbers, cells.live, len(unindexed),
                LeftOut(tier, unindexed, above), set())  # fmt: skip


def _by_content(registry: Registry, namespace_id: int) -> bool:
    """Local. Whether a namespace that this rank has put into has identity "content"."""
    space = registry.by_id(namespace_id)
    return space is not None and space.by_content
