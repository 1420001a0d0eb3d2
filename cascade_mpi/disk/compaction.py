"""Giving back what is dead in the directory, by all ranks together.

Covers which records of all segments are needed, who rewrites which segment, and the new places of what has moved. Does
not cover the rewriting of one segment (`segments.compaction`), nor which are worth it (`segments.planning`).

It comes right after a flush, so the newest durable record of each key is what the store has of it (or a tombstone), and
nothing older can still come: rule 13 of `docs/disk.md` holds for everything else. A tombstone goes one compaction after
the last record below it has gone: then no power loss brings that one back. Every rank reads the footers of its share of
the segments; the home of each key says which of its records are needed; whoever has read a segment rewrites it. The old
file goes when all ranks have entered the new places (rule 15), so that a read in another thread finds one or the other.

Two things keep all tombstones, and expired blocks, where they are: a flush that has failed, as memory may have an older
record that a later one writes; and a segment of which somebody is unsure, as it may have one that nobody counts.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.disk.cells import DiskCells
from cascade_mpi.disk.directory import Directory
from cascade_mpi.disk.exchange import Exchange
from cascade_mpi.disk.open_segments import OpenSegments
from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.errors import DiskError, DiskFullError, DiskQuotaError
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import UNIT_BITS, pack_location, place_many
from cascade_mpi.mpiio.agreement import agreed, settle
from cascade_mpi.segments.compaction import SETTLE_BYTES, Compactor
from cascade_mpi.segments.format import TOMBSTONE, Location
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.planning import plan
from cascade_mpi.segments.recovery import locate, recover
from cascade_mpi.segments.source import Item
from cascade_mpi.segments.space import Space

_log = logging.getLogger("cascade.disk")


class Compacted(NamedTuple):
    """What a compaction did, over all ranks: bytes and files of the directory before and after, and what was copied.

    `problem` says why nothing was done, or "".
    """

    bytes_before: int = 0
    bytes_after: int = 0
    files_before: int = 0
    files_after: int = 0
    copied: int = 0
    problem: str = ""


class _Ledger:
    """What is needed of the segments that this rank rewrites."""

    def __init__(self, needed: npt.NDArray[np.void]) -> None:
        self._needed = {pack_location(int(s), int(u)) for s, u in zip(needed["segment"], needed["unit"], strict=True)}
        self.moves: list[tuple[int, int]] = []  # packed locations, old and new
        self.gone: list[int] = []

    def live(self, item: Item) -> bool:
        return pack_location(*item.location) in self._needed

    def may_go(self, item: Item) -> bool:
        return True

    def moved(self, item: Item, new: Location) -> bool:
        self.moves.append((pack_location(*item.location), pack_location(*new)))
        return not item.tombstone

    def removed(self, segment: int) -> None:
        self.gone.append(segment)


def compact(
    directory: Directory, tier: DiskTier, cells: DiskCells, segments: OpenSegments, numbers: Iterator[int],
    segment_bytes: int, epochs: Mapping[int, int], doubtful: set[int], *, flushed: bool = True,
) -> Compacted:  # fmt: skip
    """Collective. Rewrite what is worth it, right after a flush, in which every rank was.

    `numbers` are those of this rank's new segments; `epochs` by namespace id: blocks of earlier ones are dead.
    `doubtful`: segments that this rank has removed and whose names may be back after a power loss; more are added.
    `flushed` False: that flush has failed. What is durable is compacted all the same.

    What nothing needs goes first; then copies are made and their sources removed in rounds of a segment's bytes on each
    rank, so that a full disk is left if there is a way out. A round: 1 allgather, 4 Allreduce, 1 Barrier.

    Raises
    ------
    DiskError
        On all ranks: there is no room for a copy, or the like. Nothing is lost, some files were not removed.
    """
    comm = directory.comm
    assert tier.log is not None
    # What is open is not looked at: nothing old may be there, or everything is kept that keeps it away.
    error = _error_of(lambda: tier.sync([], seal=True))
    settle(comm, error if flushed or not isinstance(error, DiskError) else None)
    with tier.lock:
        known = frozenset(tier.log.unsure)
    there = directory.segments()
    listed = frozenset(there)
    with tier.lock:  # whoever begins a segment holds it: what is listed is open here, or whole
        busy = tier.log.open_segments
    for number in (each for some in comm.allgather(busy) for each in some):  # of other threads' writes
        there.pop(number, None)
    share = comm.rank, comm.size
    mine = agreed(comm, lambda: recover(directory.files, directory.store, share=share, numbers=there))
    problems = [each for some in comm.allgather(mine.problems) for each in some]
    if problems:
        return Compacted(problem=f"{len(problems)} problems in the directory, the first: {problems[0]}")
    _sure(tier, known - listed - doubtful)  # their names were gone before the folder was synced just now
    with tier.lock:
        told = comm.allgather((frozenset(tier.log.unsure), dict(tier.log.lost_from)))
    unsure = frozenset().union(*(some for some, _ in told))
    keep = comm.allreduce(bool(unsure or doubtful or not flushed), MPI.LOR)
    located = _counted(locate(mine.indexes), {number: unit for _, lost in told for number, unit in lost.items()})
    exchange = Exchange(comm, place_many(located["key_hi"], located["key_lo"], comm.size, 1).homes)
    kept = exchange.back(kept_places(exchange.there(located), int(time.time()), epochs, keep=keep))
    own = _places(located)
    rows = located[kept == own]
    space = Space.rebuilt(mine.indexes, rows[rows["kind"] != TOMBSTONE], rows[rows["kind"] == TOMBSTONE])
    first = [each.segment for each in mine.indexes if not each.sealed or each.segment in unsure]
    chosen = plan(space, segment_bytes=segment_bytes, first=first)
    before = comm.allreduce(np.array([space.size, space.files]))
    if not comm.allreduce(len(chosen)):
        return Compacted(int(before[0]), int(before[0]), int(before[1]), int(before[1]))
    # A compaction that ended early has left two of one record: who names the one that goes is to name the other.
    twice = (kept != 0) & (kept != own)
    _relocate(comm, tier, cells, list(zip(own[twice].tolist(), kept[twice].tolist(), strict=True)))
    ledger = _Ledger(rows)
    log = SegmentLog(
        directory.files, directory.store, numbers, directory.run, segment_bytes, writer=comm.rank, now=time.time_ns
    )  # fmt: skip
    compactor = Compactor(
        directory.files, directory.store, log, ledger, space, settle_bytes=min(SETTLE_BYTES, segment_bytes)
    )  # fmt: skip
    compactor.may_remove = False  # but by `remove`, when all ranks have been told
    free = {number: None for number in chosen if not space.segments[number].needed}
    ended = False
    try:
        compactor.add(free)
        _in_rounds(comm, tier, cells, compactor, ledger, log, segment_bytes, [n for n in chosen if n not in free])
        agreed(comm, log.close)
        ended = True
    finally:
        compactor.give_up()
        with contextlib.suppress(DiskError):  # a second time it does nothing
            log.close()
        doubtful |= compactor.doubtful
        with tier.lock:  # what these two are not sure of is not to be forgotten with them
            tier.log.unsure |= log.unsure
            tier.log.lost_from.update(log.lost_from)
            if not ended:
                tier.file_bytes += compactor.done.nbytes - compactor.done.freed
        _sure(tier, ledger.gone)
    for number in (each for some in comm.allgather(ledger.gone) for each in some):
        segments.forget(number)
        directory.gone.add(number)
        _sure(tier, (number,))
    freed, copied = comm.allreduce(np.array([compactor.done.freed, compactor.done.nbytes])).tolist()
    size = int(before[0])
    return Compacted(size, size - freed + copied, int(before[1]), directory.files_there(), copied)


def _in_rounds(
    comm: MPI.Intracomm, tier: DiskTier, cells: DiskCells, compactor: Compactor, ledger: _Ledger, log: SegmentLog,
    segment_bytes: int, others: list[int],
) -> None:  # fmt: skip
    """Collective. Rewrite what was added, then the others: copy, tell, remove, as long as something comes of it."""
    while True:
        before = compactor.done
        full = agreed(comm, lambda: _copy(compactor, segment_bytes))
        moves, ledger.moves = ledger.moves, []
        _relocate(comm, tier, cells, moves)
        agreed(comm, lambda: _remove(compactor, log))
        done, after = compactor.done, compactor.done._replace(dropped=before.dropped)
        more, came = comm.allreduce(
            np.array([bool(others) or not compactor.waits, bool(others) or after != before], np.int64)
        ).tolist()
        compactor.add(others)
        others = []
        if not more:
            return
        if not came:
            settle(comm, full)
            raise DiskError(None, f"{len(compactor.busy)} segments are left, and nothing comes of it: {done}")


def _copy(compactor: Compactor, most: int) -> DiskError | None:
    """Copy about so many bytes, and make them durable; the error, if there is no room for more."""
    begun, full = compactor.done.nbytes, None
    try:
        while not compactor.waits and compactor.done.nbytes - begun < most:
            compactor.step(most)
    except (DiskFullError, DiskQuotaError) as error:  # there may be room when something was removed
        full = error
    compactor.settle()
    return full


def _remove(compactor: Compactor, log: SegmentLog) -> None:
    compactor.remove()
    log.seal()  # behind the removals: a footer needs room, too


def _error_of(act: Callable[[], object]) -> BaseException | None:
    try:
        act()
    except BaseException as error:
        return error
    return None


def _sure(tier: DiskTier, segments: Iterable[int]) -> None:
    """These are gone for good, with whatever was in them."""
    assert tier.log is not None
    with tier.lock:
        for number in segments:
            tier.log.unsure.discard(number)
            tier.log.lost_from.pop(number, None)


def _counted(located: npt.NDArray[np.void], lost_from: Mapping[int, int]) -> npt.NDArray[np.void]:
    """Without the records whose sync has failed: they may be there and not be durable, and nothing names them."""
    lost = np.zeros(len(located), np.bool_)
    for number, unit in lost_from.items():
        lost |= (located["segment"] == np.uint64(number)) & (located["unit"] >= unit)
    return located[~lost]


def _places(located: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """`pack_location` of many."""
    packed: npt.NDArray[np.uint64] = located["segment"] << np.uint64(UNIT_BITS) | located["unit"].astype(np.uint64)
    return packed


def kept_places(
    rows: npt.NDArray[np.void], now: int, epochs: Mapping[int, int], *, keep: bool
) -> npt.NDArray[np.uint64]:
    """Local. Which of these records (`LOCATED`, all that the directory has of some keys) a later job needs: where, [n].

    The packed location of a needed record itself; for others the one of the same record that is needed, or 0.

    Needed is the newest block of each key, unless its epoch has passed, or it has expired and nothing older is there;
    and the newest tombstone of a key that has older records, as long as these are in any file. With `keep` every newest
    tombstone and expired block: something older may still come.
    """
    n = len(rows)
    tombstone = rows["kind"] == TOMBSTONE
    order = np.lexsort((rows["unit"], rows["segment"], tombstone, rows["sequence"], rows["key_lo"], rows["key_hi"]))
    hi, lo = rows["key_hi"][order], rows["key_lo"][order]
    same = (hi[1:] == hi[:-1]) & (lo[1:] == lo[:-1])
    newest, alone = np.ones(n, np.bool_), np.ones(n, np.bool_)
    newest[:-1] = ~same
    alone[1:] = ~same
    last = order[np.flatnonzero(newest)[np.cumsum(newest) - newest]]  # of the key of each, in this order
    top = np.empty(n, np.intp)
    top[order] = last
    lonely = np.zeros(n, np.bool_)
    lonely[order] = alone & newest
    passed = np.zeros(n, np.bool_)
    for namespace, epoch in epochs.items():
        passed |= (rows["namespace"] == np.uint64(namespace)) & (rows["epoch"] < epoch) & ~tombstone
    expired = (rows["expiry"] > 0) & (rows["expiry"].astype(np.int64) <= now)
    stays = ~passed & (keep | ~((expired | tombstone) & lonely))
    same_record = (rows["sequence"] == rows["sequence"][top]) & (tombstone == tombstone[top])
    return np.where(stays[top] & same_record, _places(rows)[top], np.uint64(0))


def needed(rows: npt.NDArray[np.void], now: int, epochs: Mapping[int, int], *, keep: bool) -> npt.NDArray[np.bool_]:
    """Local. Which of these records a later job needs, bool[n]: see `kept_places`."""
    found: npt.NDArray[np.bool_] = kept_places(rows, now, epochs, keep=keep) == _places(rows)
    return found


def _relocate(comm: MPI.Intracomm, tier: DiskTier, cells: DiskCells, moves: list[tuple[int, int]]) -> None:
    """Collective. Enter the new places of records; all ranks have done so when it returns."""
    everyone = np.concatenate([np.array(each, np.uint64).reshape(-1, 2) for each in comm.allgather(moves)])
    with tier.lock:
        if len(everyone):
            everyone = everyone[np.argsort(everyone[:, 0])]
            live = np.flatnonzero(cells.words)
            places = cells.records["content_hi"][live]
            at = np.minimum(np.searchsorted(everyone[:, 0], places), len(everyone) - 1)
            moved = everyone[at, 0] == places
            for cell, new in zip(live[moved].tolist(), everyone[at[moved], 1].tolist(), strict=True):
                cells.records["content_hi"][cell] = new  # one aligned word: a reader sees the old place or the new one
            full_fence()
    comm.Barrier()
