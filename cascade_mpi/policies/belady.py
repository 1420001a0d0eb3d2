"""Belady's MIN: what is used again last goes first. The bound for all others, since it knows the future.

Belady: "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5 (1966);
optimal for blocks of one size that have to come in when they are missed. Among blocks that are never used
again the least recently used goes first. With sizes it evicts by the same rule, which is then no bound.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade_mpi.policies import heap
from cascade_mpi.policies.compiled import device, loop
from cascade_mpi.policies.heap import TIME, moved, pull, push, set_priority, take_lowest
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Ids, Mask, Policy, expect
from cascade_mpi.policies.state import CODE, MARK, OWN, ROW, ROW_BYTES, State, nothing, nothing_to_trim

RESIDENT = 1  # CODE; MARK of a block that is not resident: its next use is known, it was missed just now
FUTURE = OWN + heap.HEAP_NUMBERS  # from here on: the next use of what each access is to
NEVER = 2**62


def _next_uses(ids: Ids, last: Ids, out: Ids) -> None:
    """For each access the place of the next one to the same block; `last` is scratch, NEVER for each block."""
    for k in range(ids.size - 1, -1, -1):
        out[k] = last[ids[k]]
        last[ids[k]] = k


@cache
def _next_uses_loop() -> Any:
    return loop(_next_uses, "belady", "none(int64[::1], int64[::1], int64[::1])")


@device
def _advance(state: State, i: int) -> None:
    """This access is to block i: it will be used next when the trace says."""
    numbers = state[1]
    set_priority(state, i, -float(numbers[FUTURE + numbers[TIME]]))


@device
def touch(state: State, i: int) -> None:
    """Local. Look up its next use."""
    _advance(state, i)
    moved(state, i)


@device
def miss(state: State, i: int) -> None:
    """Local. The access happens here, whether or not the block comes in."""
    _advance(state, i)
    state[0][ROW * i + MARK] = 1


@device
def insert(state: State, i: int) -> None:
    """Local. By its next use."""
    nodes = state[0]
    if not nodes[ROW * i + MARK]:
        _advance(state, i)
    nodes[ROW * i + MARK] = 0
    nodes[ROW * i + CODE] = RESIDENT
    push(state, i)


class Belady(Policy):
    """MIN for one trace, `future`: accesses have to come in its order, each exactly once.

    A manager says `touched` for a hit, and for a miss `missed` or `inserted` (or first one, then the other).
    """

    name = "belady"
    operations = Operations(touch, miss, insert, take_lowest, pull, push, forget, nothing, nothing_to_trim)
    lists = ((RESIDENT, None),)
    offline = True
    state_bytes_per_block = ROW_BYTES + heap.BYTES_PER_BLOCK

    def __init__(self, capacity: int, blocks: int, *, future: ArrayLike, **options: Any) -> None:
        self._future = np.ascontiguousarray(future, np.int64)
        super().__init__(capacity, blocks, **options)

    def _number_count(self, capacity: int, blocks: int) -> int:
        return heap.HEAP_NUMBERS + self._future.size

    def _row_count(self, capacity: int, blocks: int) -> int:
        return heap.slot_rows(blocks)

    def _real_count(self, blocks: int) -> int:
        return heap.REALS_PER_BLOCK * blocks

    def _start(self, capacity: int, blocks: int) -> None:
        heap.start(self._numbers, blocks)
        self._ids(self._future)
        _next_uses_loop()(self._future, np.full(blocks, NEVER, np.int64), self._numbers[FUTURE:])

    @property
    def position(self) -> int:
        """Local. How many accesses of the trace have been made."""
        return int(self._numbers[TIME])

    def replay(self, ids: ArrayLike) -> Mask:
        """Local. As `Policy.replay`; ValueError unless these are the next accesses of the trace."""
        return super().replay(self._expect(self._ids(ids)))

    def missed(self, ids: ArrayLike) -> None:
        """Local. As `Policy.missed`; these are the next accesses of the trace."""
        wanted = self._ids(ids)
        self._refuse_resident(wanted, bool(self.resident(wanted).any()))
        super().missed(self._expect(wanted))

    def touched(self, ids: ArrayLike) -> None:
        """Local. As `Policy.touched`; these are the next accesses of the trace, all to residents."""
        wanted = self._ids(ids)
        absent = np.flatnonzero(~self.resident(wanted))
        if absent.size:
            raise ValueError(f"block {wanted[absent[0]]:,} is not resident: MIN needs every access in order")
        super().touched(self._expect(wanted))

    def inserted(self, ids: ArrayLike, sizes: ArrayLike | None = None, costs: ArrayLike | None = None) -> None:
        """Local. As `Policy.inserted`; those that were not `missed` before are the next accesses."""
        wanted = self._ids(ids)
        self._refuse_resident(wanted, bool(self.resident(wanted).any()))
        self._expect(wanted[self._marks()[wanted] == 0])
        super().inserted(wanted, sizes, costs)

    def removed(self, ids: ArrayLike) -> None:
        """Local. As `Policy.removed`: no access."""
        super().removed(ids)
        self._marks()[self._ids(ids)] = 0

    def _marks(self) -> NDArray[np.int32]:
        return self._nodes[MARK : ROW * self.blocks : ROW]

    def _expect(self, ids: Ids) -> Ids:
        at = self.position
        following = self._future[at : at + ids.size]
        if not np.array_equal(following, ids):
            same = min(following.size, ids.size)
            place = next((k for k in range(same) if following[k] != ids[k]), same)
            there = f"block {following[place]:,}" if place < same else "its end"
            raise ValueError(
                f"access {at + place:,} is to block {ids[place]:,}, and the trace has {there} there: MIN plays one "
                "trace, in order; give it all accesses, or make it with another future="
            )
        return ids

    def check(self) -> None:
        """Local. The heap."""
        super().check()
        found = heap.members(self._nodes, self._numbers, self._reals)
        expect("blocks in the heap", sorted(found), np.flatnonzero(self.resident()).tolist())
