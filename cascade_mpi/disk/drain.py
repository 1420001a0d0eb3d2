"""Making durable as much of a rank's memory as fits into the time that is left, the most valuable first.

Covers the order, the pieces, and when to stop. Does not cover how a block is written or made durable (`tier`), nor what
the ranks agree on (`store_disk`).

A piece is written and made durable before the next one begins, so what counts as written is on the disk whatever
becomes of the job. How large a piece may be follows from what the one before took, its sync included; no rank waits for
another before it has stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.dram import DramTier
from cascade_mpi.errors import DiskError
from cascade_mpi.layout import HARD
from cascade_mpi.onesided import TICKS

FIRST_BYTES = 4 << 20  # of the first piece, before anything is known
PIECE_S = 1.0  # a piece takes so long at most, as far as can be foreseen, ...
PIECE_SHARE = 3  # ... and at most a third of the time that is left, so that one that takes longer does no harm
SYNC_SHARE = 4  # where syncs are slow a piece takes four times as long as one

Cell = tuple[DramTier, int]  # a tier and a first page of it


class Drained(NamedTuple):
    """What `drain` did, over all ranks: blocks and bytes made durable, and those that are not; seconds it took."""

    blocks: int
    bytes: int
    left: int
    left_bytes: int
    seconds: float


class Wrote(NamedTuple):
    """What one rank did, and the error that stopped it."""

    blocks: int
    bytes: int
    left: int
    left_bytes: int
    problem: DiskError | None


class Pieces:
    """How large the next piece may be. Knows no clock: times are given, in seconds from the same beginning."""

    def __init__(self, end: float) -> None:
        self._end = end
        self._rate = 0.0  # bytes a second of the last piece, without what a sync costs at least; 0: nothing is known
        self._quickest = self._slowest = 0.0  # of the syncs: the slowest is kept free, for the last one

    def left(self, now: float) -> float:
        """Local. Seconds until the last sync has to begin."""
        return self._end - self._slowest - now

    def seconds(self, now: float) -> float:
        """Local. How long the writes of the next piece may take."""
        return min(max(PIECE_S, SYNC_SHARE * self._quickest), self.left(now) / PIECE_SHARE)

    def room(self, now: float, smallest: int) -> int:
        """Local. Bytes of the next piece; 0: there is no time for one of `smallest` bytes."""
        left = self.left(now)
        if left <= 0:
            return 0
        if not self._rate:
            return max(FIRST_BYTES, smallest)
        if smallest > self._rate * left:
            return 0
        return max(int(self._rate * self.seconds(now)), smallest)

    def made(self, nbytes: int, wrote_s: float, sync_s: float) -> None:
        """Local. A piece was written and made durable in so many seconds."""
        self._slowest = max(self._slowest, sync_s)
        if nbytes:
            self._quickest = min(self._quickest, sync_s) if self._rate else sync_s
            self._rate = nbytes / max(wrote_s + sync_s - self._quickest, 1e-6)


def by_value(cells: list[Cell], tick: int) -> list[Cell]:
    """Local. In the order of their worth: protected blocks, then those that were used last, to the second.

    Of those of one second the one that was put first goes first: the front of a prefix before what is behind it, and
    without it is never asked for. `tick` is the time of touches.
    """
    if not cells:
        return []
    parts = []
    for tier, group in groupby(cells, key=itemgetter(0)):
        at = np.array([first for _, first in group])
        age = (np.uint32(tick & 0xFFFFFFFF) - tier.area.touched[at]).view(np.int32)  # a touch may be ahead of this rank
        parts.append((tier.words[at] & np.uint64(HARD) == 0, age // TICKS, tier.records["sequence"][at]))
    soft, age, sequence = (np.concatenate(each) for each in zip(*parts, strict=True))
    return [cells[k] for k in np.lexsort((sequence, age, soft)).tolist()]


def drain(
    tier: DiskTier, seconds: float, tick: int, between: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> Wrote:  # fmt: skip
    """Local. Write this rank's blocks for at most so many seconds, and say what could be done.

    What was appended before, and tombstones, are made durable first, whatever that takes. `between` is called after
    each block.
    """
    began = clock()
    pieces = Pieces(seconds)
    blocks = nbytes = 0
    problem: DiskError | None = None
    try:
        tier.sync(())
        pieces.made(0, 0.0, clock() - began)
        with tier.lock:
            waiting = by_value(tier.dirty(), tick)
        at = 0
        while at < len(waiting) and (room := pieces.room(clock() - began, _bytes(waiting[at]))):
            start = clock()
            until = start + max(pieces.seconds(start - began), 0.0)
            done, written, count = at, 0, 0
            while done < len(waiting) and (done == at or written + _bytes(waiting[done]) <= room):
                size = _bytes(waiting[done])
                wrote = tier.write(waiting[done])
                count, written, done = count + wrote, written + size * wrote, done + 1
                between()
                if clock() >= until:
                    break
            middle = clock()
            tier.sync(())
            pieces.made(written, middle - start, clock() - middle)
            at, blocks, nbytes = done, blocks + count, nbytes + written
        if pieces.left(clock() - began) > 0:
            tier.sync((), seal=True)  # a restart reads footers, and all of a segment that has none
    except DiskError as error:
        problem = error
    with tier.lock:
        left = tier.dirty()
        tier.out_of_time = bool(left)
    return Wrote(blocks, nbytes, len(left), sum(_bytes(each) for each in left), problem)


def _bytes(cell: Cell) -> int:
    tier, first = cell
    return int(tier.records["length"][first])
