"""W-TinyLFU: a small LRU window, and a main cache that only takes what was asked for more often than what it loses.

Einziger, Friedman, Manes: "TinyLFU: A highly efficient cache admission policy", ACM ToS 13 (2017). The form
and the parameters are those of libCacheSim 0.3: a window of one hundredth, a segmented LRU of a fifth on
probation and four fifths protected, counts (`sketch`) halved after 32 hits for each block of the main cache.
What comes in and what leaves the window is counted, and hits in the main cache; hits in the window are not.
One thing differs: there a hit may evict when the segments' shares do not add up, here it never does.
"""

from __future__ import annotations

from cascade_mpi.policies import sketch
from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.links import back, empty, push_back, push_front, take_out, to_front
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Policy, expect
from cascade_mpi.policies.state import BLOCKS, CODE, OWN, RECYCLE, ROW, State, nothing, size_of

WINDOW, PROBATION, PROTECTED, GHOST = 1, 2, 3, -1
GHOST_RING = 4

SIZE = OWN - 1  # of each list, by its ring
(MAIN_SHARE, PROBATION_SHARE, PROTECTED_SHARE, TABLE, COUNTERS, HITS, PERIOD, HALVINGS) = range(OWN + 4, OWN + 12)
_PERIOD_PER_BLOCK = 32


@device
def _count(state: State, i: int) -> None:
    numbers = state[1]
    sketch.add(state[0], numbers[TABLE], numbers[COUNTERS], i)


@device
def _estimate(state: State, i: int) -> int:
    numbers = state[1]
    return sketch.estimate(state[0], numbers[TABLE], numbers[COUNTERS], i)


@shared
def _put(state: State, code: int, i: int) -> None:
    nodes, numbers = state[0], state[1]
    nodes[ROW * i + CODE] = code
    push_front(nodes, numbers[BLOCKS] + code, i)
    numbers[SIZE + code] += size_of(state, i)


@device
def touch(state: State, i: int) -> None:
    """Local. To the front of its list, from probation to the protected, which send their last back."""
    nodes, numbers = state[0], state[1]
    code = nodes[ROW * i + CODE]
    if code != PROBATION:
        to_front(nodes, numbers[BLOCKS] + code, i)
    else:
        unlink(state, i)
        _put(state, PROTECTED, i)
        while numbers[SIZE + PROTECTED] > numbers[PROTECTED_SHARE]:
            last = back(nodes, numbers[BLOCKS] + PROTECTED)
            unlink(state, last)
            _put(state, PROBATION, last)
    if code == WINDOW:
        return
    _count(state, i)
    numbers[HITS] += 1
    if numbers[HITS] >= numbers[PERIOD]:
        numbers[HITS] = 0
        numbers[HALVINGS] += 1
        sketch.halve(nodes, numbers[TABLE], numbers[COUNTERS])


@device
def insert(state: State, i: int) -> None:
    """Local. Into the window."""
    if state[0][ROW * i + CODE] == GHOST:
        drop(state, i)
    _put(state, WINDOW, i)
    _count(state, i)


@shared
def _admit(state: State, i: int) -> None:
    """From the window into the main cache: on probation, while there is room, else with the protected."""
    numbers = state[1]
    size = size_of(state, i)
    fits_probation = numbers[SIZE + PROBATION] + size <= numbers[PROBATION_SHARE]
    fits_protected = numbers[SIZE + PROTECTED] + size <= numbers[PROTECTED_SHARE]
    _put(state, PROTECTED if fits_protected and not fits_probation else PROBATION, i)
    _count(state, i)


@device
def take(state: State) -> int:
    """Local. Move the window's last into the main cache while it has room; then the less asked for of two goes."""
    nodes, numbers = state[0], state[1]
    window = numbers[BLOCKS] + WINDOW
    while True:
        main = numbers[BLOCKS] + (PROTECTED if empty(nodes, numbers[BLOCKS] + PROBATION) else PROBATION)
        victim = back(nodes, main)
        if empty(nodes, window):
            unlink(state, victim)
            return victim
        candidate = back(nodes, window)
        in_main = numbers[SIZE + PROBATION] + numbers[SIZE + PROTECTED]
        if in_main + size_of(state, candidate) <= numbers[MAIN_SHARE]:
            unlink(state, candidate)
            _admit(state, candidate)
        elif victim != main and _estimate(state, candidate) > _estimate(state, victim):
            unlink(state, victim)
            unlink(state, candidate)
            _admit(state, candidate)
            return victim
        else:
            unlink(state, candidate)
            _count(state, candidate)
            return candidate


@shared
def unlink(state: State, i: int) -> None:
    """Local. Out of its list."""
    nodes, numbers = state[0], state[1]
    take_out(nodes, i)
    numbers[SIZE + nodes[ROW * i + CODE]] -= size_of(state, i)


@device
def relink(state: State, i: int) -> None:
    """Local. To the back of its list."""
    nodes, numbers = state[0], state[1]
    code = nodes[ROW * i + CODE]
    push_back(nodes, numbers[BLOCKS] + code, i)
    numbers[SIZE + code] += size_of(state, i)


@device
def gone(state: State, i: int) -> None:
    """Local. The counts know a block by its id: where ids are recycled it has to keep its id for a while."""
    nodes, numbers = state[0], state[1]
    if not numbers[RECYCLE]:
        forget(state, i)
        return
    nodes[ROW * i + CODE] = GHOST
    push_front(nodes, numbers[BLOCKS] + GHOST_RING, i)
    numbers[SIZE + GHOST_RING] += size_of(state, i)
    trim(state)


@device
def drop(state: State, i: int) -> None:
    """Local. A ghost that is no longer one."""
    take_out(state[0], i)
    state[1][SIZE + GHOST_RING] -= size_of(state, i)


@shared
def trim(state: State) -> None:
    """Local. Forget the oldest ghosts until they are worth no more than the main cache."""
    nodes, numbers = state[0], state[1]
    while numbers[SIZE + GHOST_RING] > numbers[MAIN_SHARE]:
        i = back(nodes, numbers[BLOCKS] + GHOST_RING)
        drop(state, i)
        forget(state, i)


class TinyLfu(Policy):
    """W-TinyLFU. Beside the state of each block 57.5 bytes for each block that the main cache held at the start."""

    name = "wtinylfu"
    operations = Operations(touch, nothing, insert, take, unlink, relink, gone, drop, trim)
    lists = ((WINDOW, WINDOW), (PROBATION, PROBATION), (PROTECTED, PROTECTED), (GHOST, GHOST_RING))

    @staticmethod
    def _main_share(capacity: int) -> int:
        return capacity - max(1, capacity // 100) if capacity else 0

    def _counters(self, capacity: int, blocks: int) -> int:
        return sketch.counters(min(self._main_share(capacity), blocks))

    def _number_count(self, capacity: int, blocks: int) -> int:
        return 12

    def _row_count(self, capacity: int, blocks: int) -> int:
        return -(-self._counters(capacity, blocks) // ROW)

    def _start(self, capacity: int, blocks: int) -> None:
        self._numbers[TABLE] = ROW * (blocks + GHOST_RING + 1)
        self._numbers[COUNTERS] = self._counters(capacity, blocks)

    def _share(self, capacity: int) -> None:
        main, numbers = self._main_share(capacity), self._numbers
        numbers[MAIN_SHARE], numbers[PERIOD] = main, max(1, _PERIOD_PER_BLOCK * main)
        numbers[PROBATION_SHARE], numbers[PROTECTED_SHARE] = main // 5, main * 4 // 5

    @property
    def halvings(self) -> int:
        """Local. How often the counts were aged."""
        return int(self._numbers[HALVINGS])

    def check(self) -> None:
        """Local. The lists and their sizes; no count is negative."""
        super().check()
        for ring in (WINDOW, PROBATION, PROTECTED, GHOST_RING):
            expect(f"size of ring {ring}", self._size_of(list(self.ring(ring))), self._numbers[SIZE + ring])
        table = self._nodes[self._numbers[TABLE] :][: self._numbers[COUNTERS]]
        expect("least count", bool(table.min() >= 0), True)
