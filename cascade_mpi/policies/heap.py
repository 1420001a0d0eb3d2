"""A heap of blocks by priority: the lowest goes next, among equals the least recently used.

Covers putting in, taking out from anywhere, and a changed priority, each O(log n). Does not cover what a
priority is. Slot k of the heap is in row k, a block's slot in the block's own row; a block's priority is two
reals, the second being the time of its last use, so that no two are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascade_mpi.policies.compiled import device
from cascade_mpi.policies.state import OWN, PREVIOUS, ROW, Reals, Rows, State

SLOT, CONTENT = PREVIOUS, PREVIOUS + 1  # of block i: its slot; of row k: the block in slot k
LENGTH, TIME = OWN, OWN + 1
HEAP_NUMBERS = 2
REALS_PER_BLOCK = 2


@device
def _before(reals: Reals, i: int, j: int) -> bool:
    a, b = reals[2 * i], reals[2 * j]
    return bool(a < b or (a == b and reals[2 * i + 1] < reals[2 * j + 1]))


@device
def _up(nodes: Rows, reals: Reals, i: int, slot: int) -> None:
    while slot > 0:
        parent = (slot - 1) >> 1
        above = nodes[ROW * parent + CONTENT]
        if not _before(reals, i, above):
            break
        nodes[ROW * slot + CONTENT] = above
        nodes[ROW * above + SLOT] = slot
        slot = parent
    nodes[ROW * slot + CONTENT] = i
    nodes[ROW * i + SLOT] = slot


@device
def _down(nodes: Rows, reals: Reals, i: int, slot: int, length: int) -> None:
    while True:
        child = 2 * slot + 1
        if child >= length:
            break
        below = nodes[ROW * child + CONTENT]
        if child + 1 < length and _before(reals, nodes[ROW * (child + 1) + CONTENT], below):
            child += 1
            below = nodes[ROW * child + CONTENT]
        if not _before(reals, below, i):
            break
        nodes[ROW * slot + CONTENT] = below
        nodes[ROW * below + SLOT] = slot
        slot = child
    nodes[ROW * slot + CONTENT] = i
    nodes[ROW * i + SLOT] = slot


@device
def set_priority(state: State, i: int, priority: float) -> None:
    """Local. Give block i, which need not be in the heap, a priority and the next moment of time."""
    numbers, reals = state[1], state[3]
    reals[2 * i] = priority
    reals[2 * i + 1] = numbers[TIME]
    numbers[TIME] += 1


@device
def push(state: State, i: int) -> None:
    """Local. Put block i in by its priority."""
    nodes, numbers = state[0], state[1]
    numbers[LENGTH] += 1
    _up(nodes, state[3], i, numbers[LENGTH] - 1)


@device
def moved(state: State, i: int) -> None:
    """Local. Find block i its place after its priority was changed."""
    nodes, numbers, reals = state[0], state[1], state[3]
    slot = nodes[ROW * i + SLOT]
    if slot > 0 and _before(reals, i, nodes[ROW * ((slot - 1) >> 1) + CONTENT]):
        _up(nodes, reals, i, slot)
    else:
        _down(nodes, reals, i, slot, numbers[LENGTH])


@device
def pull(state: State, i: int) -> None:
    """Local. Take block i out, wherever it is."""
    nodes, numbers = state[0], state[1]
    numbers[LENGTH] -= 1
    last = nodes[ROW * numbers[LENGTH] + CONTENT]
    if last != i:
        slot = nodes[ROW * i + SLOT]
        nodes[ROW * last + SLOT] = slot
        nodes[ROW * slot + CONTENT] = last
        moved(state, last)


@device
def take_lowest(state: State) -> int:
    """Local. Take out the block that goes next."""
    i = int(state[0][CONTENT])
    pull(state, i)
    return i


def members(nodes: NDArray[np.int32], numbers: NDArray[np.int64], reals: NDArray[np.float64]) -> list[int]:
    """Local. The blocks in the heap by slot; AssertionError where slots or order are wrong."""
    found: list[int] = nodes[CONTENT::ROW][: numbers[LENGTH]].tolist()
    order: Sequence[tuple[float, float]] = [(reals[2 * i], reals[2 * i + 1]) for i in found]
    for slot, i in enumerate(found):
        assert nodes[ROW * i + SLOT] == slot, f"block {i} is in slot {slot} and names slot {nodes[ROW * i + SLOT]}"
        parent = (slot - 1) >> 1 if slot else 0
        assert order[parent] <= order[slot], f"slot {parent} {order[parent]} is above slot {slot} {order[slot]}"
    return found
