"""The disk tier of one rank: blocks leave memory for it, are written for good, and are known to be gone.

Covers demotion, clean eviction, writing what is in memory, `sync`, tombstones, and what becomes of an error. Does not
cover reading (`reading`, `promotion`), the start (`restart`), nor files (`segments.log`).

All of it happens under the lock of the rank's pool, with the pool's scratch. The order of each step is that of
`docs/disk.md`, whose rules are named where they are kept.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cascade_mpi.cell_table import DROP, STAYS, CellTable
from cascade_mpi.config import Durability, format_size
from cascade_mpi.disk.cells import DiskCells
from cascade_mpi.disk.descriptors import record_of
from cascade_mpi.disk.sequences import Sequences
from cascade_mpi.disk.tombstones import COST, Tombstones
from cascade_mpi.disk.under_way import UnderWay
from cascade_mpi.dram import DramTier
from cascade_mpi.errors import DirectoryQuotaError, DiskError, DroppedError, NotDurableError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.keys import shown
from cascade_mpi.layout import (
    FLAG_ALIAS,
    FLAG_BACKED,
    FLAG_CHECKSUM,
    FLAG_CONTENT,
    FLAG_COPY,
    HARD,
    MAX_PAGES,
    MAX_RANKS,
    RANK_SHIFT,
    is_alias,
    place,
    same_cell,
)
from cascade_mpi.pool import Pool
from cascade_mpi.segments.format import ENTRY_BYTES, Location
from cascade_mpi.segments.log import Lost, SegmentLog
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.space import footprint

if TYPE_CHECKING:
    from cascade_mpi.disk.compaction import Compacted

_log = logging.getLogger("cascade.disk")
_OF_MEMORY = FLAG_ALIAS | FLAG_CONTENT | FLAG_COPY  # never on disk
_SWEEP_S = 0.05
_WRITE_BACK_BYTES = 4 << 20  # with "writeback" a put writes so much of what was put before, and one block more
_AGAIN_S = 1.0  # after an error of the file system nothing is demoted for so long
_RESERVE_SHARE, _RESERVE_BYTES = 64, 64 << 10  # of a quota, for tombstones: so much of it, at least so many bytes
_NOTHING = np.zeros(1, np.uint8)[:0]


class Gathered(NamedTuple):
    """A block in memory that is to be written."""

    tier: DramTier
    first: int
    record: Record
    payload: memoryview


class DiskTier:
    """What one rank writes to disk, and the disk cells that it manages."""

    def __init__(
        self, fabric: Fabric, pool: Pool, cells: DiskCells, log: SegmentLog | None, sequences: Sequences, *,
        level: Durability, memory_only: Callable[[int], bool], held: int = 0, quota: int | None = None,
    ) -> None:  # fmt: skip
        """`log` None: nothing is written, another job may have the directory. `level`: what is, without being asked.

        `memory_only` says of a namespace's id whether its blocks are never written: some of them have names in memory.
        `held` is this rank's share of the bytes that the directory has, `quota` what all ranks may have there.
        """
        self._fabric, self._pool, self.cells, self.log, self.sequences = fabric, pool, cells, log, sequences
        self._scratch = pool.own.shared[1]
        self._level: Durability = "none" if log is None else level
        self._memory_only = memory_only
        self.epochs: Mapping[int, int] = {}  # by namespace id: blocks of earlier ones are not written
        self._fresh: deque[tuple[DramTier, int]] = deque()  # published, and still to be written: tier and word
        self._puts = UnderWay()  # with "writethrough"
        self._gone: list[Lost] = []  # had left memory when a sync failed, and nobody was told yet
        self._to_sync = False  # something was appended since the last sync
        self._swept_at = 0.0
        self._opened = int(fabric.context[c.EPOCH])
        self._owed = Tombstones()
        self._broken_until = 0.0
        self.step: Callable[[str], None] | None = None  # told where a write has got to (crash tests)
        self.demoted = self.demoted_bytes = self.cleaned = self.written = self.written_bytes = self.tombstones = 0
        self.dropped = self.errors = self.lost = 0
        self.file_bytes, self._quota = held, quota
        self.last_error = ""
        self.out_of_time = False  # a drain has left blocks, and nothing was put since

    @property
    def writes_at_close(self) -> bool:
        """Whether a close writes what is in memory: not when a drain has found no time for it."""
        return self.writes_all and not self.out_of_time

    @property
    def writes_all(self) -> bool:
        """Whether every block is written without being asked for."""
        return self._level in ("writeback", "writethrough")

    @property
    def writes_through(self) -> bool:
        """Whether puts and deletes are durable when they return."""
        return self._level == "writethrough"

    @property
    def lock(self) -> threading.RLock:
        """The lock of the rank's pool."""
        return self._pool.lock

    # -------------------------------------------------------------------------------------------- blocks leave memory

    def demote(self, tier: DramTier, first: int) -> int:
        """Local. Let a block leave memory and stay on disk: its bytes, STAYS if it is protected, DROP if it cannot.

        STAYS also if it could only be dropped, and there is no room for its tombstone, see `holds_back`.

        One that is backed leaves its word to the disk cell, and nothing is written. The lock is held.
        """
        flags = int(tier.records["flags"][first])
        expiry = int(tier.records["expiry"][first])
        key = int(tier.records["key_hi"][first]), int(tier.records["key_lo"][first])
        if not self._may_leave(tier, first) or (expiry and expiry <= self._fabric.now()):
            self._puts.void(key)
            return DROP
        if flags & FLAG_BACKED:
            return self._leave(tier, first, int(tier.records["content_hi"][first]))
        if self._level == "none" or (time.monotonic() < self._broken_until and key not in self._puts):
            return self._drop()  # what a call is about to acknowledge is tried all the same
        try:
            word = self._store(tier, first)
        except DiskError as error:
            self._failed(str(error))
            return self._drop()
        left = self._leave(tier, first, word)
        if left >= 0:
            self.demoted += 1
            self.demoted_bytes += left
        return left

    def _drop(self) -> int:
        """DROP, or STAYS if there is no room for one more tombstone: in memory, or in the quota."""
        return DROP if self.may_drop() else STAYS

    def may_drop(self) -> bool:
        """Local. Whether a block may be dropped from memory: whether its tombstone has room, here and in the quota."""
        if self.log is None:
            return True
        if self._owed.full and time.monotonic() >= self._broken_until:
            try:
                self._pay()
            except DiskError as error:
                self._failed(str(error))
        if self._has_room():
            return True
        if time.monotonic() >= self._broken_until:  # a disk that works, and the quota is used up
            self._failed(self.why_held_back())
        return False

    def _has_room(self) -> bool:
        used = self.file_bytes + self._owed.nbytes + COST
        return not self._owed.full and (self._quota is None or used <= self._share)

    @property
    def holds_back(self) -> bool:
        """Whether what is not on disk must stay in memory for the moment: it could only be dropped, and may not."""
        return time.monotonic() < self._broken_until and self.log is not None and not self._has_room()

    def why_held_back(self) -> str:
        """Local. For people: why nothing can be dropped, and what to do."""
        owed = f"{len(self._owed)} deletes and drops wait for the disk"
        if self._owed.full or self._quota is None:
            return f"{owed}, at most {self._owed.most} may: free space there, or call sync() to hear what is wrong"
        return (
            f"{owed}, and disk_quota has no room for the tombstone of one more: rank {self._fabric.comm.rank} holds "
            f"{format_size(self.file_bytes)} of its share, {format_size(self._share)}; delete blocks and call "
            "compact(), or raise disk_quota"
        )

    def _may_leave(self, tier: CellTable, first: int) -> bool:
        """Is the block in this cell one that may be on disk?"""
        if int(tier.records["flags"][first]) & _OF_MEMORY or is_alias(int(tier.words[first])):
            return False
        namespace = int(tier.records["namespace"][first])
        passed = self.epochs and self.epochs.get(namespace, 0) > int(tier.records["epoch"][first])
        return not passed and not self._memory_only(namespace)

    def _leave(self, tier: DramTier, first: int, word: int) -> int:
        """Swap the word of a cell in memory for that of the disk cell that has the same block."""
        fabric, s = self._fabric, self._scratch
        nbytes, old = int(tier.records["length"][first]), int(tier.words[first])
        while (found := tier.standing(first)) is not None:
            home, bucket, slot, there = found
            if there & HARD:
                tier.spared += 1
                return STAYS
            self._step("demote-swap")
            done = fabric.swap(fabric.ctx, s.address, home, bucket, slot, there, word)
            if done < 0:
                fabric.raise_mpi_error(s)
            if done:
                self._pool.has_left(tier, first, word)
                tier.retire(old, evicted=True, leaves_to=word)  # rule 4: no hint, the word stands there now
                self.cleaned += 1
                return nbytes
            # Rule 2: it has left, or its hard bit was toggled: only the index can tell.
        tier.retire(old, evicted=True)
        return nbytes

    def _store(self, tier: CellTable, first: int) -> int:
        """Append a block in memory to the log and let a disk cell back it: that cell's word.

        DiskError: it could not be, and nothing has changed.
        """
        cell = self.cells.reserve()
        if cell is None and self.cells.sweep():
            cell = self.cells.reserve()
        if cell is None:
            text = f"all {self.cells.words.size} disk cells of rank {self._fabric.comm.rank} are in use"
            raise DiskError(None, f"{text}: raise disk_blocks, or delete blocks")
        try:
            location, checksum = self._append(tier, first)
        except BaseException:
            self.cells.give_up(cell)
            raise
        return self._entered(tier, first, cell, location, checksum)

    def _entered(self, tier: CellTable, first: int, cell: int, location: Location, checksum: int) -> int:
        """Let a reserved disk cell back a block in memory whose record is there: that cell's word."""
        word = self.cells.write(cell, tier.records[first], location, checksum)
        self.cells.enter(word)
        self._back(tier, first, word)
        return word

    def _append(self, tier: CellTable, first: int) -> tuple[Location, int]:
        """Write the record of a block in memory: where it is, and its payload's checksum."""
        assert self.log is not None
        record, payload = self._record(tier, first)
        self._admit(footprint(record.length))
        self._step("append")
        self._to_sync = True
        location = self.log.append(record, payload)
        self._step("appended")
        self.written += 1
        self.written_bytes += record.length
        self.file_bytes += footprint(record.length) + ENTRY_BYTES
        return location, record.checksum

    def _admit(self, nbytes: int) -> None:
        """DirectoryQuotaError if so many bytes more would exceed this rank's share of the quota."""
        if self._quota is None or not nbytes:
            return
        share = self._share
        reserve = min(max(share // _RESERVE_SHARE, _RESERVE_BYTES), share // 4)
        if self.file_bytes + self._owed.nbytes + nbytes > share - reserve:
            raise DirectoryQuotaError(
                errno.EDQUOT,
                f"rank {self._fabric.comm.rank} holds {format_size(self.file_bytes)} of its share of disk_quota, "
                f"{format_size(share)}, {format_size(self.cells.live_bytes)} of it live: {format_size(nbytes)} more do "
                f"not fit ({format_size(reserve)} are for tombstones); delete blocks and call compact(), or raise "
                "disk_quota",
            )

    @property
    def _share(self) -> int:
        """This rank's part of the quota, in bytes."""
        return 0 if self._quota is None else self._quota // self._fabric.comm.size

    def _record(self, tier: CellTable, first: int) -> tuple[Record, memoryview]:
        """The record of a block in memory, and its payload where it lies (a copy, if that is on another node)."""
        described = tier.records[first]
        payload = tier.payload(first)
        if not payload.size:
            payload = _NOTHING
        checksum = int(described["checksum"])
        if not int(described["flags"]) & FLAG_CHECKSUM:
            checksum = int(checksum_bytes(payload.ctypes.data, payload.nbytes))
        record = record_of(described, checksum, hard=bool(int(tier.words[first]) & HARD), opened=self._opened)
        return record, payload.data if payload.size else memoryview(b"")

    def _back(self, tier: CellTable, first: int, word: int) -> None:
        """Note in the descriptor of a live cell which disk cell has the same block: the word first, then the flag."""
        tier.records["content_hi"][first] = word
        tier.records["flags"][first] |= FLAG_BACKED
        tier.wrote_descriptor(first)

    def unbacked(self, word: int) -> None:
        """Local. A block in memory that was backed has left, and not to this disk cell: its manager is to look."""
        if word >> RANK_SHIFT & MAX_RANKS - 1 == self._fabric.comm.rank:
            self.cells.hint(word)
        elif self._fabric.hint_gone(self._fabric.ctx, self._scratch.address, word) < 0:
            self._fabric.raise_mpi_error(self._scratch)

    # ------------------------------------------------------------------------------------------- beside every write

    def entered(self, tier: DramTier, word: int) -> None:
        """Local. A block was published: what the level says is done with it by `after_write`. The lock is held."""
        self.out_of_time = False
        if self.writes_all:
            first = word & MAX_PAGES - 1
            if self.writes_through and self._is_dirty(tier, first):
                self._puts.put((int(tier.records["key_hi"][first]), int(tier.records["key_lo"][first])))
            self._fresh.append((tier, word))
            if len(self._fresh) > 2 * self._pool.live_pages + 1024:  # the disk refuses: most have gone by now
                self._fresh = deque(each for each in self._fresh if each[0].is_live(each[1]))

    def after_write(self) -> None:
        """Local. What a put or a delete owes to the level of durability, when it has been made.

        Writeback: write as much as was put, a little more. Writethrough: write it all, and sync.

        Raises
        ------
        DiskError
            With "writethrough" alone: what was put is in memory, and may not be durable.
        DroppedError
            Some of it is not even there: it had to leave, and could not be written.
        """
        now = time.monotonic()
        if now - self._swept_at > _SWEEP_S:
            self._swept_at = now
            self.attend()
        if self.writes_through and (self._fresh or self._to_sync or self._owed or self._puts.here):
            self._write_through()
        elif self._fresh:
            self._write_back()

    def _write_through(self) -> None:
        problem: DiskError | None = None
        with self._pool.lock:
            fresh = [(tier, word & MAX_PAGES - 1) for tier, word in self._fresh if tier.is_live(word)]
            try:
                self.sync(fresh)
                self._fresh.clear()
            except DiskError as error:
                problem = error
            lost = self._puts.ended()  # after the sync, so that the others are durable
        if lost:
            names = ", ".join(shown(*key) for key in lost[:5]) + (", ..." if len(lost) > 5 else "")
            text = (
                f"{len(lost)} blocks of this call had to leave memory, the disk refused them, and they are lost "
                f"({names}): {self.last_error or problem}; make room on the disk and put them again, fewer at a time"
            )
            if problem is not None:
                text += f"; the others are in memory, and not durable: {problem}"
            raise DroppedError(None if problem is None else problem.errno, text, lost) from problem
        if problem is not None:
            raise problem

    def _write_back(self) -> None:
        left = _WRITE_BACK_BYTES
        with self._pool.lock:
            while self._fresh and left > 0 and time.monotonic() >= self._broken_until:
                tier, word = self._fresh[0]
                first = word & MAX_PAGES - 1
                if tier.is_live(word) and self._is_dirty(tier, first):
                    try:
                        self._store(tier, first)
                    except DiskError as error:
                        self._failed(str(error))
                        return
                    left -= int(tier.records["length"][first])
                self._fresh.popleft()
                left -= 1

    # ------------------------------------------------------------------------------------------------- tombstones

    def before_removal(self, hi: int, lo: int, sequence: int) -> int:
        """Local. The sequence of the delete or drop that is about to take out what was found with `sequence`."""
        if self.log is None:
            return 0
        home = place(hi, lo, self._fabric.comm.size, 1).home
        return self.sequences.for_delete(home, sequence)

    def removed(self, hi: int, lo: int, sequence: int, *, dropped: bool = False) -> None:
        """Local. The word was taken out: the tombstone is written, or owed until it can be (rules 8 and 9)."""
        if self.log is None:
            return
        with self._pool.lock:
            if dropped:
                self._puts.dropped((hi, lo))
            self._owed.owe(hi, lo, sequence)
            if time.monotonic() >= self._broken_until:
                try:
                    self._pay()
                except DiskError as error:
                    self._failed(str(error))

    def admit_delete(self) -> None:
        """Local. DiskError if so many tombstones wait for the disk that nothing more may be deleted."""
        if self._owed.overfull:
            with self._pool.lock:
                self._pay()  # or what is wrong
        # A quota refuses no delete: there is no other way below it.

    def _pay(self) -> None:
        """Append what is owed. Drops have reserved their part of the quota; deletes may exceed it."""
        self._owed.pay(self._append_tombstone)

    def _append_tombstone(self, hi: int, lo: int, sequence: int) -> None:
        assert self.log is not None
        self._step("tombstone")
        self._to_sync = True
        self.log.tombstone(hi, lo, sequence)
        self.tombstones += 1
        self.file_bytes += COST

    # ------------------------------------------------------------------------------------------------ made durable

    def sync(self, chosen: Iterable[tuple[DramTier, int]] | None = None, *, seal: bool = False) -> int:
        """Local. Write these cells (default: all) that are not on disk yet, and make everything durable: how many.

        Raises
        ------
        DiskError
            The promise cannot be kept: disk full, and the like. What was durable stays so, memory is as it was.
        NotDurableError
            A sync failed: twice, or once, and its `lost` had left memory by then. These are to be put again, and are
            named once; what else is not durable is in memory, and written by the next sync.
        """
        if self.log is None:
            return 0
        with self._pool.lock:
            problem: DiskError | None = None
            wrote = 0
            try:
                wrote = self._write_out(self.dirty() if chosen is None else chosen)
                self._make_durable(self.log.seal if seal else self.log.sync)
                self._to_sync = False
                self._step("synced")
            except DiskError as error:
                problem = error
            if not self._gone and not isinstance(problem, NotDurableError):
                if problem is not None:
                    raise problem
                return wrote
            # Of what a failed sync names memory may have all: only the others are lost.
            gone, self._gone = self._gone, []
            texts = [f"{len(gone)} blocks that had left memory could not be made durable: put them again"] * bool(gone)
            if problem is not None:
                texts.append(f"what else is not durable is in memory: {problem}")
            raise NotDurableError(None if problem is None else problem.errno, "; ".join(texts), gone) from problem

    def _make_durable(self, settle: Callable[[], int]) -> None:
        """Sync, and if that fails write again what memory has of it, and sync once more. `_gone` gets the others."""
        again: list[tuple[DramTier, int]] = []
        for last in (False, True):
            self._step("sync")
            try:
                settle()
            except NotDurableError as error:
                self._gone += self._give_back(error, again)
                if last:
                    raise
                self._write_out(again)  # in new segments; not what nobody has asked for
            else:
                return

    def gather(self) -> list[Gathered]:
        """Local. The records of all that is in this rank's memory and not on disk, for `take_over`. The lock is held.

        DiskError: there are not enough disk cells for them.
        """
        dirty = self.dirty()
        if len(dirty) > self.cells.spare:
            self.cells.sweep()
        if len(dirty) > self.cells.spare:
            raise DiskError(
                None,
                f"{len(dirty)} blocks of rank {self._fabric.comm.rank} are not on disk yet, and {self.cells.spare} of "
                f"its {self.cells.words.size} disk cells are free: raise disk_blocks, or delete blocks",
            )
        found = [Gathered(tier, first, *self._record(tier, first)) for tier, first in dirty]
        self._admit(sum(footprint(each.record.length) for each in found))
        return found

    def take_over(self, gathered: list[Gathered], locations: list[Location]) -> None:
        """Local. These records are durable at these places. The lock was held since `gather`."""
        for (tier, first, record, _), location in zip(gathered, locations, strict=True):
            cell = self.cells.reserve()
            assert cell is not None, "they were counted"
            self._entered(tier, first, cell, location, record.checksum)
            self.written += 1
            self.written_bytes += record.length
            self.file_bytes += footprint(record.length) + ENTRY_BYTES

    def write(self, cell: tuple[DramTier, int]) -> bool:
        """Local. Write one of `dirty`, durable after the next `sync`; False: it needs that no more. DiskError."""
        with self._pool.lock:
            return bool(self._write_out((cell,)))

    def dirty(self) -> list[tuple[DramTier, int]]:
        """Local. (tier, first page) of the blocks in this rank's memory that are not on disk."""
        found: list[tuple[DramTier, int]] = []
        for tier in list(self._pool.tiers.values()):
            firsts = np.flatnonzero(tier.words * ~tier.copies)
            flags = tier.records["flags"][firsts]
            firsts = firsts[flags & (FLAG_BACKED | _OF_MEMORY) == 0]
            found += [(tier, first) for first in firsts.tolist() if self._may_leave(tier, first)]
        return found

    def _is_dirty(self, tier: CellTable, first: int) -> bool:
        return not int(tier.records["flags"][first]) & FLAG_BACKED and self._may_leave(tier, first)

    def _write_out(self, chosen: Iterable[tuple[DramTier, int]]) -> int:
        """Rule 16: whether or not its word still stands, what the table has is written."""
        self._pay()
        wrote = 0
        for tier, first in chosen:
            if tier.words[first] and self._is_dirty(tier, first):
                self._store(tier, first)
                wrote += 1
        return wrote

    def _give_back(self, error: NotDurableError, again: list[tuple[DramTier, int]]) -> list[Lost]:
        """A sync failed: what it names counts as not written, where memory has it (`again`); the others."""
        gone: list[Lost] = []
        for lost in error.lost:
            word = self.cells.word_at(lost.location)
            if not word:  # a tombstone, or a block that was replaced: nothing older may come back
                self._owed.owe(lost.key_hi, lost.key_lo, lost.sequence)
            elif (cell := self._unback(word)) is not None:
                again.append(cell)
            else:
                self.lost += 1
                gone.append(lost)
                _log.error("block %s is in a file that could not be synced: %s", shown(lost.key_hi, lost.key_lo), error)
        return gone

    def _unback(self, word: int) -> tuple[DramTier, int] | None:
        """Let the block in memory that an own disk cell backs count as not written; None: it is in memory no more."""
        for tier in list(self._pool.tiers.values()):
            for first in np.flatnonzero((tier.records["content_hi"] == np.uint64(word)) & (tier.words != 0)).tolist():
                flags = int(tier.records["flags"][first])
                if flags & FLAG_BACKED:
                    tier.records["flags"][first] = flags & ~FLAG_BACKED
                    tier.records["content_hi"][first] = 0
                    tier.wrote_descriptor(first)
                    self.cells.hint(word)
                    return tier, first
        return None

    # --------------------------------------------------------------------------------------------- blocks on disk go

    def retire(self, word: int) -> bool:
        """Local. The word of an own disk cell was taken out of the index by this rank: the next sweep frees it."""
        if word >> RANK_SHIFT & MAX_RANKS - 1 != self._fabric.comm.rank:
            return False
        self.cells.hint(word)  # not at once: a block in memory may bring the word back
        return True

    def remove(self, cell: int, *, tombstone: bool = True) -> bool:
        """Local. Take the block of an own disk cell out of the index, if its own word stands there: whether it did.

        Without a tombstone what no restart finds.
        """
        fabric, s = self._fabric, self._scratch
        with self._pool.lock:
            record = self.cells.records[cell]
            hi, lo, before = int(record["key_hi"]), int(record["key_lo"]), int(record["sequence"])
            while (found := self.cells.standing(cell)) is not None:
                sequence = self.before_removal(hi, lo, before)
                home, bucket, slot, there = found
                done = fabric.remove(fabric.ctx, s.address, home, bucket, slot, there)
                if done < 0:
                    fabric.raise_mpi_error(s)
                if done:
                    self.cells.hint(there)
                    if tombstone:
                        self.removed(hi, lo, sequence)
                    return True
        return False

    def held_in(self, namespace_id: int, epoch: int) -> tuple[int, int]:
        """Local. The blocks of a namespace at an epoch on this rank's disk cells alone, and their bytes. 1 Get each."""
        with self._pool.lock:
            cells = [each for each in self.cells.cells_of(namespace_id, epoch).tolist() if self.cells.standing(each)]
            return len(cells), int(self.cells.records["length"][cells].sum())

    def remove_all(self, cells: Iterable[int]) -> int:
        """Local. The same of many: how many."""
        removed = sum(self.remove(cell) for cell in cells)
        with self._pool.lock:
            self.cells.sweep_hinted()
        return removed

    def attend(self) -> None:
        """Local. What a public call does beside its own work: cells that others have hinted at."""
        with self._pool.lock:
            self.cells.sweep_hinted()

    # ----------------------------------------------------------------------------------------------------- the rest

    def compacted(self, done: Compacted) -> None:
        """Local. Count what a compaction has left."""
        if not done.problem:
            self.file_bytes = done.bytes_after // self._fabric.comm.size

    def close(self) -> None:
        """Local. Make durable what was written, seal and close the segments."""
        if self.log is not None:
            with self._pool.lock:
                try:
                    self._pay()
                finally:
                    self.log.close()

    def _failed(self, text: str) -> None:
        self.errors += 1
        self._broken_until = time.monotonic() + _AGAIN_S
        if text != self.last_error:
            _log.error("rank %d: %s", self._fabric.comm.rank, text)
        self.last_error = text

    def _step(self, name: str) -> None:
        if self.step is not None:
            self.step(name)

    def check(self, words: list[int]) -> list[str]:
        """Local. What is wrong with the disk cells, given the words of the index that name them."""
        problems = self.cells.check(words)
        for tier in list(self._pool.tiers.values()):
            for first in np.flatnonzero(tier.words).tolist():
                if int(tier.records["flags"][first]) & FLAG_BACKED:
                    behind = int(tier.records["content_hi"][first])
                    if behind >> RANK_SHIFT & MAX_RANKS - 1 != self._fabric.comm.rank:
                        continue
                    if not self.cells.is_live(behind):
                        problems.append(f"cell {first} is backed by {behind:016x}, which is no live disk cell")
                    elif same_cell(behind, int(tier.words[first])) or (behind & MAX_PAGES - 1) < self._fabric.pages:
                        problems.append(f"cell {first} is backed by {behind:016x}, which is no disk cell")
        return problems
