"""LFU: the block that was used least often since it came in goes first, among equals the least recently used.

Covers the constant-time form: one ring of blocks for each count that occurs, and the rings in order of
their counts (Shah, Mitra, Matani: "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010).
A count ends with the block's stay: what comes back starts at 1.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.links import back, push_back, push_front, take_out, to_front
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Policy, expect
from cascade_mpi.policies.state import (
    BLOCKS,
    CODE,
    MARK,
    NEXT,
    OWN,
    PREVIOUS,
    ROW,
    Numbers,
    Rows,
    State,
    nothing,
    nothing_to_trim,
)

RESIDENT = 1  # CODE; MARK is the block's ring, or its count while it is unlinked

# Ring r has three numbers from TABLE + 3 * r on. Ring 0 holds no blocks: it stands below the lowest count.
FREE, TABLE = OWN, OWN + 1
TIMES, ABOVE, BELOW = range(3)

# k different counts need 1 + ... + k uses, so this many need 2^31. A block that would need one more ring then
# stays in the one it is in.
MAX_RINGS = 2**16


@device
def _at(ring: int, field: int) -> int:
    return TABLE + 3 * ring + field


@device
def _head(numbers: Numbers, ring: int) -> int:
    return int(numbers[BLOCKS] + ring + 1)


@shared
def _open(state: State, below: int, times: int) -> int:
    """A ring for `times` above the ring `below`; 0 if all are in use."""
    nodes, numbers = state[0], state[1]
    ring = int(numbers[FREE])
    if ring == 0:
        return ring
    above = numbers[_at(below, ABOVE)]
    numbers[FREE] = numbers[_at(ring, ABOVE)]
    numbers[_at(ring, TIMES)] = times
    numbers[_at(ring, BELOW)], numbers[_at(ring, ABOVE)] = below, above
    numbers[_at(below, ABOVE)] = numbers[_at(above, BELOW)] = ring
    head = _head(numbers, ring)
    nodes[ROW * head + PREVIOUS] = nodes[ROW * head + NEXT] = head
    return ring


@device
def _close(numbers: Numbers, ring: int) -> None:
    below, above = numbers[_at(ring, BELOW)], numbers[_at(ring, ABOVE)]
    numbers[_at(below, ABOVE)], numbers[_at(above, BELOW)] = above, below
    numbers[_at(ring, ABOVE)] = numbers[FREE]
    numbers[FREE] = ring


@device
def _is_alone(nodes: Rows, i: int) -> bool:
    return bool(nodes[ROW * i + NEXT] == nodes[ROW * i + PREVIOUS])


@device
def touch(state: State, i: int) -> None:
    """Local. One more: to the front of the ring of the next count."""
    nodes, numbers = state[0], state[1]
    ring = nodes[ROW * i + MARK]
    times = numbers[_at(ring, TIMES)] + 1
    above = numbers[_at(ring, ABOVE)]
    alone = _is_alone(nodes, i)
    if above == 0 or numbers[_at(above, TIMES)] != times:
        if alone:  # the ring moves up with its only block
            numbers[_at(ring, TIMES)] = times
            return
        above = _open(state, ring, times)
        if above == 0:
            to_front(nodes, _head(numbers, ring), i)
            return
    take_out(nodes, i)
    push_front(nodes, _head(numbers, above), i)
    nodes[ROW * i + MARK] = above
    if alone:
        _close(numbers, ring)


@device
def insert(state: State, i: int) -> None:
    """Local. Into the front of the ring of 1."""
    nodes, numbers = state[0], state[1]
    lowest = numbers[_at(0, ABOVE)]
    if lowest == 0 or numbers[_at(lowest, TIMES)] != 1:
        opened = _open(state, 0, 1)
        lowest = opened if opened else lowest
    nodes[ROW * i + CODE] = RESIDENT
    nodes[ROW * i + MARK] = lowest
    push_front(nodes, _head(numbers, lowest), i)


@device
def take(state: State) -> int:
    """Local. The back of the ring with the lowest count."""
    nodes, numbers = state[0], state[1]
    i = back(nodes, _head(numbers, numbers[_at(0, ABOVE)]))
    unlink(state, i)
    return i


@device
def unlink(state: State, i: int) -> None:
    """Local. Out of its ring, which closes if it was the last; the block carries its count meanwhile."""
    nodes, numbers = state[0], state[1]
    ring = nodes[ROW * i + MARK]
    alone = _is_alone(nodes, i)
    take_out(nodes, i)
    nodes[ROW * i + MARK] = min(numbers[_at(ring, TIMES)], 2**31 - 1)
    if alone:
        _close(numbers, ring)


@device
def relink(state: State, i: int) -> None:
    """Local. To the back of the ring of its count, which is the lowest or becomes it."""
    nodes, numbers = state[0], state[1]
    times = nodes[ROW * i + MARK]
    lowest = numbers[_at(0, ABOVE)]
    if lowest == 0 or numbers[_at(lowest, TIMES)] != times:
        lowest = _open(state, 0, times)
    nodes[ROW * i + MARK] = lowest
    push_back(nodes, _head(numbers, lowest), i)


class Lfu(Policy):
    """Least frequently used, counted during the stay; ties go by recency. 40 bytes more for each count in use."""

    name = "lfu"
    operations = Operations(touch, nothing, insert, take, unlink, relink, forget, nothing, nothing_to_trim)
    lists = ((RESIDENT, None),)

    @staticmethod
    def _rings(blocks: int) -> int:
        return 2 + min(blocks, MAX_RINGS)  # ring 0, and one for a block on its way between two

    def _number_count(self, capacity: int, blocks: int) -> int:
        return 1 + 3 * self._rings(blocks)

    def _row_count(self, capacity: int, blocks: int) -> int:
        return self._rings(blocks)

    def _start(self, capacity: int, blocks: int) -> None:
        last = self._rings(blocks) - 1
        self._numbers[FREE] = 1
        self._numbers[TABLE + 3 + ABOVE :: 3][:last] = [*range(2, last + 1), 0]

    def counts(self) -> dict[int, list[int]]:
        """Local. The resident blocks of each count, the next to go last; counts ascend."""
        found: dict[int, list[int]] = {}
        ring = int(self._numbers[TABLE + ABOVE])
        while ring and len(found) <= self.blocks:
            found[int(self._numbers[TABLE + 3 * ring + TIMES])] = list(self.ring(ring + 1))
            ring = int(self._numbers[TABLE + 3 * ring + ABOVE])
        return found

    def check(self) -> None:
        """Local. That counts ascend, no ring is empty, and each resident is in the ring that it names."""
        super().check()
        counts = self.counts()
        expect("counts ascend", list(counts), sorted(counts))
        expect("empty rings", [times for times, members in counts.items() if not members], [])
        members = sorted(i for ring in counts.values() for i in ring)
        expect("blocks in rings", members, np.flatnonzero(self.resident()).tolist())
        for times, ring in counts.items():
            marks = {int(self._numbers[TABLE + 3 * int(self._nodes[ROW * i + MARK]) + TIMES]) for i in ring}
            expect(f"counts of the rings that blocks in ring {times} name", marks, {times})
