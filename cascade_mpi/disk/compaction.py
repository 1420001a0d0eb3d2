"""Giving back what is dead in the directory, by all ranks together.

Covers which records of all segments are needed, who rewrites which segment, and the new places of what has moved. Does
not cover the rewriting of one segment (`segments.compaction`), nor which are worth it (`segments.planning`).

It comes right after a flush, so the newest durable record of each key is what the store has of it (or a tombstone), and
nothing older can still come: rule 13 of `docs/disk.md` holds for everything else. A tombstone goes one compaction after
the last record below it has gone: then no power loss brings that one back. Every rank reads the footers of its share of
the segments; the home of each key says which of its records are needed; whoever has read a segment rewrites it. The old
file goes when all ranks have entered the new places (rule 15), so that a read in another thread finds one or the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.disk.cells import DiskCells
from cascade_mpi.disk.directory import Directory
from cascade_mpi.disk.exchange import Exchange
from cascade_mpi.disk.open_segments import OpenSegments
from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import pack_location, place_many
from cascade_mpi.mpiio.agreement import agreed
from cascade_mpi.segments.compaction import Compactor
from cascade_mpi.segments.format import TOMBSTONE, Location
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.planning import plan
from cascade_mpi.segments.recovery import locate, numbers_in, recover
from cascade_mpi.segments.source import Item
from cascade_mpi.segments.space import Space

_log = logging.getLogger("cascade.disk")
_STEP_BYTES = 64 << 20


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
    segment_bytes: int, epochs: Mapping[int, int],
) -> Compacted:  # fmt: skip
    """Collective. Rewrite what is worth it, right after a flush, in which every rank was.

    `numbers` are those of this rank's new segments; `epochs` by namespace id: blocks of earlier ones are dead.

    Raises
    ------
    DiskError
        On all ranks: there is no room for a copy, or the like. Nothing is lost, some files were not removed.
    """
    comm = directory.comm
    assert tier.log is not None
    agreed(comm, lambda: tier.sync([], seal=True))  # what is open is not looked at: nothing old may be there
    numbers_there = directory.segments()
    with tier.lock:  # whoever begins a segment holds it: what is listed is open here, or whole
        busy = tier.log.open_segments
    for number in (each for some in comm.allgather(busy) for each in some):  # of other threads' writes
        numbers_there.pop(number, None)
    share = comm.rank, comm.size
    mine = agreed(comm, lambda: recover(directory.files, directory.store, share=share, numbers=numbers_there))
    problems = [each for some in comm.allgather(mine.problems) for each in some]
    if problems:
        return Compacted(problem=f"{len(problems)} problems in the directory, the first: {problems[0]}")
    indexes = mine.indexes
    located = locate(indexes)
    exchange = Exchange(comm, place_many(located["key_hi"], located["key_lo"], comm.size, 1).homes)
    unsure = comm.allreduce(bool(tier.log.unsure), MPI.LOR)
    flags = exchange.back(needed(exchange.there(located), int(time.time()), epochs, keep_tombstones=unsure))
    rows = located[flags]
    space = Space.rebuilt(indexes, rows[rows["kind"] != TOMBSTONE], rows[rows["kind"] == TOMBSTONE])
    chosen = plan(space, segment_bytes=segment_bytes, first=[each.segment for each in indexes if not each.sealed])
    ledger = _Ledger(rows)
    before = comm.allreduce(np.array([space.size, space.files]))
    if not comm.allreduce(len(chosen)):
        return Compacted(int(before[0]), int(before[0]), int(before[1]), int(before[1]))
    log = SegmentLog(
        directory.files, directory.store, numbers, directory.run, segment_bytes, writer=comm.rank, now=time.time_ns
    )  # fmt: skip
    compactor = Compactor(directory.files, directory.store, log, ledger, space)
    compactor.may_remove = False
    try:
        agreed(comm, lambda: _copy(compactor, log, chosen))
        _relocate(comm, tier, cells, ledger.moves)
        compactor.may_remove = True
        agreed(comm, lambda: _remove(compactor))
    finally:
        compactor.give_up()
        log.close()
    for number in (each for some in comm.allgather(ledger.gone) for each in some):
        segments.forget(number)
        directory.gone.add(number)
    freed, copied = comm.allreduce(np.array([compactor.done.freed, compactor.done.nbytes])).tolist()
    files = int(comm.bcast(len(numbers_in(directory.files)) if comm.rank == 0 else 0))
    size = int(before[0])
    return Compacted(size, size - freed + copied, int(before[1]), files, copied)


def needed(
    rows: npt.NDArray[np.void], now: int, epochs: Mapping[int, int], *, keep_tombstones: bool
) -> npt.NDArray[np.bool_]:
    """Local. Which of these records (`LOCATED`, all that the directory has of some keys) a later job needs, bool[n].

    The newest block of each key, unless its epoch has passed, or it has expired and nothing older is there; and the
    newest tombstone of a key that has older records, as long as these are in any file. With `keep_tombstones` every
    newest one.
    """
    n = len(rows)
    tombstone = rows["kind"] == TOMBSTONE
    order = np.lexsort((rows["unit"], rows["segment"], tombstone, rows["sequence"], rows["key_lo"], rows["key_hi"]))
    hi, lo = rows["key_hi"][order], rows["key_lo"][order]
    same = (hi[1:] == hi[:-1]) & (lo[1:] == lo[:-1])
    newest, alone = np.ones(n, np.bool_), np.ones(n, np.bool_)
    newest[:-1] = ~same
    alone[1:] = ~same
    keeps, lonely = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    keeps[order], lonely[order] = newest, alone & newest
    passed = np.zeros(n, np.bool_)
    for namespace, epoch in epochs.items():
        passed |= (rows["namespace"] == np.uint64(namespace)) & (rows["epoch"] < epoch) & ~tombstone
    expired = (rows["expiry"] > 0) & (rows["expiry"].astype(np.int64) <= now)
    found: npt.NDArray[np.bool_] = keeps & ~passed & ~(expired & lonely)
    found &= ~(tombstone & lonely & (not keep_tombstones))
    return found


def _copy(compactor: Compactor, log: SegmentLog, chosen: list[int]) -> None:
    compactor.add(chosen)
    while compactor.step(_STEP_BYTES) and not compactor.waits:
        pass
    log.seal()


def _remove(compactor: Compactor) -> None:
    while compactor.step(_STEP_BYTES):
        pass


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
