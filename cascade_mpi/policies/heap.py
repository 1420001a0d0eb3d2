"""A heap of blocks by priority: the lowest goes next, among equals the least recently used.

Covers putting in, taking out from anywhere, and a changed priority, each O(log n). Does not cover what a
priority is. The slots are a table of ids in the rows behind the heads, and a block's row names its slot; a
block's priority is two reals, the second being the time of its last use, so that no two are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.state import OWN, PREVIOUS, ROW, Reals, Rows, State

SLOT = PREVIOUS  # a resident block is in no ring
LENGTH, TIME, SLOTS = OWN, OWN + 1, OWN + 2  # SLOTS: where the table begins, among the rows' fields
HEAP_NUMBERS = 3
REALS_PER_BLOCK = 2
BYTES_PER_BLOCK = 4 + 8 * REALS_PER_BLOCK


@device
def _before(reals: Reals, i: int, j: int) -> bool:
    a, b = reals[2 * i], reals[2 * j]
    return bool(a < b or (a == b and reals[2 * i + 1] < reals[2 * j + 1]))


@shared
def _up(nodes: Rows, reals: Reals, slots: int, i: int, slot: int) -> None:
    while slot > 0:
        parent = (slot - 1) >> 1
        above = nodes[slots + parent]
        if not _before(reals, i, above):
            break
        nodes[slots + slot] = above
        nodes[ROW * above + SLOT] = slot
        slot = parent
    nodes[slots + slot] = i
    nodes[ROW * i + SLOT] = slot


@shared
def _down(nodes: Rows, reals: Reals, slots: int, i: int, slot: int, length: int) -> None:
    while True:
        child = 2 * slot + 1
        if child >= length:
            break
        below = nodes[slots + child]
        if child + 1 < length and _before(reals, nodes[slots + child + 1], below):
            child += 1
            below = nodes[slots + child]
        if not _before(reals, below, i):
            break
        nodes[slots + slot] = below
        nodes[ROW * below + SLOT] = slot
        slot = child
    nodes[slots + slot] = i
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
    _up(nodes, state[3], numbers[SLOTS], i, numbers[LENGTH] - 1)


@device
def moved(state: State, i: int) -> None:
    """Local. Find block i its place after its priority was changed."""
    nodes, numbers, reals = state[0], state[1], state[3]
    slots, slot = numbers[SLOTS], nodes[ROW * i + SLOT]
    if slot > 0 and _before(reals, i, nodes[slots + ((slot - 1) >> 1)]):
        _up(nodes, reals, slots, i, slot)
    else:
        _down(nodes, reals, slots, i, slot, numbers[LENGTH])


@device
def pull(state: State, i: int) -> None:
    """Local. Take block i out, wherever it is."""
    nodes, numbers = state[0], state[1]
    numbers[LENGTH] -= 1
    slots = numbers[SLOTS]
    last = nodes[slots + numbers[LENGTH]]
    if last != i:
        slot = nodes[ROW * i + SLOT]
        nodes[ROW * last + SLOT] = slot
        nodes[slots + slot] = last
        moved(state, last)


@device
def take_lowest(state: State) -> int:
    """Local. Take out the block that goes next."""
    i = int(state[0][state[1][SLOTS]])
    pull(state, i)
    return i


def slot_rows(blocks: int) -> int:
    """Local. How many rows the table of slots takes."""
    return -(-blocks // ROW)


def start(numbers: NDArray[np.int64], blocks: int) -> None:
    """Local. Say where the table is: behind the one head."""
    numbers[SLOTS] = ROW * (blocks + 1)


def members(nodes: NDArray[np.int32], numbers: NDArray[np.int64], reals: NDArray[np.float64]) -> list[int]:
    """Local. The blocks in the heap by slot; AssertionError where slots or order are wrong."""
    found: list[int] = nodes[numbers[SLOTS] :][: numbers[LENGTH]].tolist()
    order: Sequence[tuple[float, float]] = [(reals[2 * i], reals[2 * i + 1]) for i in found]
    for slot, i in enumerate(found):
        assert nodes[ROW * i + SLOT] == slot, f"block {i} is in slot {slot} and names slot {nodes[ROW * i + SLOT]}"
        parent = (slot - 1) >> 1 if slot else 0
        assert order[parent] <= order[slot], f"slot {parent} {order[parent]} is above slot {slot} {order[slot]}"
    return found
