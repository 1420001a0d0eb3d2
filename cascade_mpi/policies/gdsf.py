"""GreedyDual-Size-Frequency: what is cheap to make again, large and little used goes first.

Cherkasova: "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", HP Labs
HPL-98-69R1. A block's priority is L + uses * cost / size, set when it is used; L is the priority of the last
block that left, so that old popularity fades. For KV blocks the cost is the time to compute the block again,
which grows with its position in the prompt.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cascade_mpi.policies import heap
from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.heap import moved, pull, push, set_priority, take_lowest
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Ids, Policy, expect
from cascade_mpi.policies.state import BLOCKS, CODE, MARK, ROW, ROW_BYTES, State, nothing, nothing_to_trim, size_of

RESIDENT = 1  # CODE; MARK is the number of uses
_MAX_USES = 2**31 - 1


@shared
def _renew(state: State, i: int) -> None:
    nodes, numbers, reals = state[0], state[1], state[3]
    blocks = numbers[BLOCKS]
    value = nodes[ROW * i + MARK] * reals[2 * blocks + i] / size_of(state, i)
    set_priority(state, i, reals[3 * blocks] + value)


@device
def touch(state: State, i: int) -> None:
    """Local. One more use, a new priority."""
    nodes = state[0]
    if nodes[ROW * i + MARK] < _MAX_USES:
        nodes[ROW * i + MARK] += 1
    _renew(state, i)
    moved(state, i)


@device
def insert(state: State, i: int) -> None:
    """Local. With one use."""
    nodes = state[0]
    nodes[ROW * i + CODE] = RESIDENT
    nodes[ROW * i + MARK] = 1
    _renew(state, i)
    push(state, i)


@device
def gone(state: State, i: int) -> None:
    """Local. L rises to its priority."""
    numbers, reals = state[1], state[3]
    blocks = numbers[BLOCKS]
    reals[3 * blocks] = max(reals[3 * blocks], reals[2 * i])
    forget(state, i)


class Gdsf(Policy):
    """GreedyDual-Size-Frequency; without sizes and costs, LFU with ageing."""

    name = "gdsf"
    operations = Operations(touch, nothing, insert, take_lowest, pull, push, gone, nothing, nothing_to_trim)
    lists = ((RESIDENT, None),)
    state_bytes_per_block = ROW_BYTES + heap.BYTES_PER_BLOCK + 8

    def _number_count(self, capacity: int, blocks: int) -> int:
        return heap.HEAP_NUMBERS

    def _row_count(self, capacity: int, blocks: int) -> int:
        return heap.slot_rows(blocks)

    def _real_count(self, blocks: int) -> int:
        return (heap.REALS_PER_BLOCK + 1) * blocks + 1  # priority and time, then costs, then L

    def _start(self, capacity: int, blocks: int) -> None:
        heap.start(self._numbers, blocks)
        self._reals[2 * blocks : 3 * blocks] = 1.0

    def _learn(self, ids: Ids, sizes: ArrayLike | None, costs: ArrayLike | None) -> None:
        super()._learn(ids, sizes, costs)
        if costs is not None:
            given = np.broadcast_to(np.asarray(costs, np.float64), ids.shape)
            if not (np.isfinite(given) & (given > 0)).all():
                wrong = given[~(np.isfinite(given) & (given > 0))][0]
                raise ValueError(f"a cost of {wrong}: costs are finite and above 0, in any one unit")
            self._reals[2 * self.blocks + ids] = given

    @property
    def inflation(self) -> float:
        """Local. L, the priority of the last block that left."""
        return float(self._reals[3 * self.blocks])

    def check(self) -> None:
        """Local. The heap, and that nothing in it ranks below what has left."""
        super().check()
        found = heap.members(self._nodes, self._numbers, self._reals)
        expect("blocks in the heap", sorted(found), np.flatnonzero(self.resident()).tolist())
