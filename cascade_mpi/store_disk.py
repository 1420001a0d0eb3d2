"""The calls of a store on its disk tier: make durable, read ahead, warm up.

Covers what is written and read on purpose, and what all ranks must agree on. Does not cover what happens by itself
(`disk.tier`, `disk.promotion`), nor the files (`segments`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.config import parse_size
from cascade_mpi.disk.compaction import Compacted
from cascade_mpi.disk.directory import together
from cascade_mpi.disk.drain import Drained, drain
from cascade_mpi.disk.opening import Disk
from cascade_mpi.errors import (
    CascadeError,
    ConfigError,
    DiskError,
    DiskFullError,
    DiskQuotaError,
    NotConfiguredError,
    NotDurableError,
    StoreFullError,
)
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.keys import Key, key_array
from cascade_mpi.layout import is_disk
from cascade_mpi.namespaces import AnyNamespace
from cascade_mpi.public_namespace import PublicNamespace, public
from cascade_mpi.segments import names
from cascade_mpi.segments.checkpoints import Checkpoint, checked_tag, write
from cascade_mpi.store_life import OpenStore
from cascade_mpi.writer import PutResult

_log = logging.getLogger("cascade.disk")


class Warmed(NamedTuple):
    """What `warm` did, over all ranks: blocks and bytes that are in memory now and were not; `left` are still on disk.

    Each block was read from the file system by one rank, once.
    """

    blocks: int
    bytes: int
    left: int


class Durable(OpenStore):
    """Calls that need the disk tier. Each raises NotConfiguredError without one."""

    @uninterrupted
    def sync(
        self, keys: Iterable[Key] | npt.NDArray[Any] | None = None, *, namespace: AnyNamespace | None = None
    ) -> int:
        """Local. Make durable what this rank has put and deleted: how many blocks were written for it.

        Promised for blocks that this rank's puts have stored, and for its deletes, as far as no other rank had replaced
        them before the call. With `keys` only these blocks are written; deletes, and what was written before, are made
        durable all the same. 1 write a block that is not on disk yet, 1 sync of each open segment. Deferred puts of
        this rank are published before.

        Raises
        ------
        StoreFullError
            A deferred put could not be published: its bucket is full. All else was made durable.
        DiskError
            The file system refused something, such as DiskFullError; the promise is not kept. What was durable stays
            so, and memory is as it was.
        NotDurableError
            A sync of the file system failed. `lost` names the blocks that had left memory before: put them again.
        """
        disk = self._writable_disk("sync")
        if keys is None:
            refused = _refused(self._deferred.publish())
            wrote = disk.tier.sync()
            if refused:
                raise StoreFullError(refused)
            return wrote
        array = key_array(keys, self._space(namespace).digest)
        self._publish_waiting(array)
        wanted = {(hi, lo) for hi, lo in array.tolist()}
        with self._pool.lock:
            chosen = [
                (tier, first) for tier, first in disk.tier.dirty()
                if (int(tier.records["key_hi"][first]), int(tier.records["key_lo"][first])) in wanted
            ]  # fmt: skip
            return disk.tier.sync(chosen)

    @uninterrupted
    def flush(self) -> int:
        """Collective. Make durable what all ranks have put and deleted before the call: how many blocks were written.

        Deferred puts are published before.

        Raises
        ------
        StoreFullError
            On all ranks, after all else was made durable: a deferred put could not be published.
        DiskError
            On all ranks, if the file system refused something on one of them.
        NotDurableError
            The same: `lost` names the blocks of all ranks that had left memory before a sync failed.
        """
        disk = self._writable_disk("flush")
        refused = _refused(self._deferred.publish())
        written = self._write_all(disk)
        if disk.wastes(self.config.segment_bytes):
            self._compact(disk)
        self._raise_refused(refused)
        return written

    def _write_all(self, disk: Disk) -> int:
        """Collective. Make durable what all ranks have: how many blocks were written. DiskError on all ranks."""
        self._pool.sweep_hinted()
        self._comm.Barrier()  # what was put before the call on any rank is in its tables
        written = int(self._comm.allreduce(disk.flush()))
        self._note_names(disk)
        return written

    def _raise_refused(self, refused: str) -> None:
        """Collective. StoreFullError on all ranks, if a deferred put of one of them was not published."""
        for rank, text in enumerate(self._comm.allgather(refused)):
            if text:
                raise StoreFullError(f"rank {rank}: {text}")

    def _note_names(self, disk: Disk) -> None:
        """Collective. Let the directory say which namespace has which number, for those who read it without a job."""
        told = {number: public(namespace) for number, namespace in self._registry.used_here().items() if number}
        everyone: list[dict[int, PublicNamespace]] = self._comm.gather(told) or []
        known = {number: each for some in everyone for number, each in some.items()}
        if known:
            try:
                names.add(disk.directory.files, known)
            except DiskError as error:  # no record depends on it
                _log.warning("the names of %d namespaces could not be noted: %s", len(known), error)

    @uninterrupted
    def compact(self) -> Compacted:
        """Collective. As `flush`, and give back what is dead in the directory: replaced, deleted and expired blocks.

        `flush()` and `checkpoint()` do so by themselves when more than half as many bytes are dead as live. Reads the
        footers of all segments, rewrites what is live in some of them, and removes those. No block is missed meanwhile.
        Where there is no room for the flush, what is durable is compacted first, and then all is flushed.

        Raises
        ------
        DiskError
            On all ranks, as `flush`; or there is no room for the copies: nothing is lost.
        """
        disk = self._writable_disk("compact")
        lost = self._comm.allreduce(disk.tier.lost)
        refused = _refused(self._deferred.publish())
        try:
            self._write_all(disk)
        except (DiskFullError, DiskQuotaError):  # on all ranks
            done = self._compact(disk, flushed=False)
            self._write_all(disk)
            if gone := self._comm.allreduce(disk.tier.lost) - lost:  # told once, by an error that was not raised
                text = f"{gone} blocks that had left memory could not be made durable: put them again"
                raise NotDurableError(None, text) from None
        else:
            done = self._compact(disk)
        self._raise_refused(refused)
        return done

    def _compact(self, disk: Disk, *, flushed: bool = True) -> Compacted:
        done = disk.compact(self._registry.all_epochs(), self.config.segment_bytes, flushed=flushed)
        if done.problem and self._comm.rank == 0:
            _log.warning("nothing was compacted: %s", done.problem)
        return done

    @uninterrupted
    def checkpoint(self, tag: str) -> Checkpoint:
        """Collective. As `flush`, and note under a tag that it was done: `cascade ls` and `report()` list checkpoints.

        A tag names a moment. Blocks that are replaced or deleted afterwards are so after a restart, too.

        Raises
        ------
        ConfigError
            A tag that cannot be, or the ranks were given different ones (on all ranks).
        DiskError
            As `flush`.
        """
        disk = self._writable_disk("checkpoint")
        tags = self._comm.allgather(tag if isinstance(tag, str) else repr(tag))
        checked_tag(tags[0])
        for rank, other in enumerate(tags):
            if other != tags[0]:
                raise ConfigError(f"rank {rank} was given tag {other!r}, rank 0 {tags[0]!r}")
        self.flush()
        self._pool.sweep_hinted()
        with disk.tier.lock:
            disk.cells.sweep_hinted()  # fsck compares the number: what was replaced or deleted is not there any more
        totals = self._comm.allreduce(np.array([disk.cells.live, disk.cells.live_bytes])).tolist()
        made = Checkpoint(tags[0], self._comm.bcast(time.time_ns()), totals[0], totals[1], self._comm.size)
        together(self._comm, lambda: write(disk.directory.files, made) if self._comm.rank == 0 else None)
        return made

    @uninterrupted
    def drain(self, seconds: float) -> Drained:
        """Collective. Make durable as much as fits into so many seconds, the most valuable first: how much it was.

        For the end of a job whose time is up. First tombstones and what was written already, then protected blocks,
        then the others, those that were used last first; each rank its own, in pieces that it makes durable one by one,
        as many as it expects to finish in time. The smallest `seconds` of all ranks counts, from when all have called.
        No rank waits for another before its own end: a slow one keeps the others for a piece and its sync, but not from
        writing. What was left can be drained, or flushed, by another call; a `close()` that follows leaves it.

        Raises
        ------
        ConfigError
            A rank gave something else than a number of seconds, 0 or more (on all ranks).
        DiskError
            On all ranks, if the file system refused something on one of them; a note says what is durable all the same.
        """
        disk = self._writable_disk("drain")
        given = self._comm.allgather(seconds)
        for rank, each in enumerate(given):
            if isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 <= each < math.inf:
                raise ConfigError(f"rank {rank} gave {each!r} seconds to drain: it must be 0 or more")
        began = time.monotonic()  # all have called: the next line has no rank that is late
        self._deferred.publish()
        self._pool.sweep_hinted()
        fabric = self._fabric
        mine = drain(
            disk.tier, min(given) - (time.monotonic() - began), fabric.ticks(),
            lambda: fabric.poll(fabric.ctx, self._scratch.address),
        )  # fmt: skip
        everyone = self._comm.allgather((*mine, time.monotonic() - began))
        blocks, nbytes, left, left_bytes = (sum(each[k] for each in everyone) for k in range(4))
        done = Drained(blocks, nbytes, left, left_bytes, max(each[-1] for each in everyone))
        lost = [each for *_, problem, _ in everyone if isinstance(problem, NotDurableError) for each in problem.lost]
        for rank, (*_, problem, _) in enumerate(everyone):
            if problem is not None:
                text = f"{problem} ({len(lost)} blocks to be put again)"
                told = NotDurableError(problem.errno, text, lost) if lost else problem
                told.add_note(f"on rank {rank}; {done.blocks} blocks were made durable, {done.left} were not")
                raise told
        return done

    def prefetch(self, keys: Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None) -> Future[int]:
        """Local. Bring blocks from disk into this rank's memory in another thread: how many came, when it is done.

        A block that is in memory already, or stored nowhere, is passed over; so is one for which there is no room.
        """
        self._disk_tier("prefetch")
        array = key_array(keys, self._space(namespace).digest)
        return self._submit(self._prefetch, array)

    @uninterrupted
    def _prefetch(self, array: npt.NDArray[np.uint64]) -> int:
        disk = self._disk_tier("prefetch")
        came = 0
        for hi, lo in array.tolist():
            found = self._reader.find(hi, lo)
            if found is None or not is_disk(found.word):
                continue
            try:
                came += disk.reads.fetch(found)
            except StoreFullError:
                break
        return came

    @uninterrupted
    def warm(
        self, keys: Iterable[Key] | npt.NDArray[Any] | None = None, *, budget: int | str | None = None,
        namespace: AnyNamespace | None = None,
    ) -> Warmed:  # fmt: skip
        """Collective. Bring blocks from disk into memory, each by one rank: all of them, or these keys.

        `budget` is how many bytes each rank brings at most; never more than it has free. Each rank reads what it
        manages, in the order of the files; the others read it from there (see `replicate`). All ranks give the same
        keys and budget.

        Raises
        ------
        ConfigError
            The ranks were given different keys or budgets (on all ranks).
        """
        disk = self._disk_tier("warm")
        problem, limit, wanted = "", -1, None
        try:
            limit = -1 if budget is None else parse_size(budget)
            if keys is not None:
                wanted = key_array(keys, self._space(namespace).digest)
        except (TypeError, ValueError, CascadeError) as error:  # whatever it is, the others are told
            problem = str(error)
        given = self._comm.allgather((problem, limit, None if wanted is None else wanted.tobytes()))
        for rank, other in enumerate(given):
            if other[0]:
                raise ConfigError(f"rank {rank}: {other[0]}")
            if other != given[0]:
                raise ConfigError(f"rank {rank} was given other keys or another budget than rank 0")
        blocks, nbytes, left = together(self._comm, lambda: disk.warm(wanted, None if limit < 0 else limit))[
            self._comm.rank
        ]
        totals = self._comm.allreduce(np.array([blocks, nbytes, left]))
        return Warmed(*totals.tolist())

    def _disk_tier(self, name: str) -> Disk:
        self._check_open()
        if self._disk is None:
            raise NotConfiguredError(f"the disk tier is off, {name}() needs it: give `disk`, a directory")
        return self._disk

    def _writable_disk(self, name: str) -> Disk:
        disk = self._disk_tier(name)
        if disk.tier.log is None:
            raise NotConfiguredError(f'{name}() writes, and this store was opened with disk_mode="read"')
        return disk


def _refused(results: Sequence[PutResult]) -> str:
    """What is to be said of deferred puts that could not be published; "": all were."""
    refused = [each for each in results if each.refused]
    return f"{len(refused)} of {len(results)} blocks were not published: {refused[0].reason}" if refused else ""
