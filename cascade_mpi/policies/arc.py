"""ARC: two LRU lists, used once and used again, whose shares follow the ghosts that come back.

Megiddo, Modha: "ARC: A self-tuning, low overhead replacement cache", FAST 2003; the names are the paper's:
T1 and T2 hold blocks, B1 and B2 their ghosts, `p` is the target for T1. The paper forgets ghosts before it
makes room, here they go afterwards, which leaves the same ghosts (tests compare every access with
libCacheSim) and lets evictions come in batches. With sizes, lengths are sums of sizes and `p` moves by
multiples of the block's.
"""

from __future__ import annotations

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.links import back, empty, push_back, push_front, take_out, to_front
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Policy, expect
from cascade_mpi.policies.state import BLOCKS, CAPACITY, CODE, MARK, OWN, ROW, State, size_of

T1, T2, B1, B2 = 1, 2, -1, -2
RINGS = {T1: 1, T2: 2, B1: 3, B2: 4}
B1_RING, B2_RING = RINGS[B1], RINGS[B2]

# The length of each list, by its ring; of those the awaited ghosts; was the last miss a ghost of B2?
LENGTH, AWAITED, FROM_B2 = OWN - 1, OWN + 1, OWN + 6
_T1, _T2, _B1, _B2 = (LENGTH + ring for ring in RINGS.values())
_AWAITED_B1, _AWAITED_B2 = AWAITED + B1_RING, AWAITED + B2_RING
P = 0  # among the reals


@device
def _ring(code: int) -> int:
    return code if code > 0 else 2 - code


@device
def touch(state: State, i: int) -> None:
    """Local. Used again: to the front of T2."""
    nodes, numbers = state[0], state[1]
    if nodes[ROW * i + CODE] == T1:
        size = size_of(state, i)
        numbers[_T1] -= size
        numbers[_T2] += size
        nodes[ROW * i + CODE] = T2
    to_front(nodes, numbers[BLOCKS] + T2, i)


@device
def miss(state: State, i: int) -> None:
    """Local. A ghost that is asked for moves the target towards the list that gave it up; it is awaited."""
    nodes, numbers, reals = state[0], state[1], state[3]
    code = nodes[ROW * i + CODE]
    numbers[FROM_B2] = code == B2
    if code not in (B1, B2) or nodes[ROW * i + MARK]:
        return
    size = size_of(state, i)
    if code == B1:
        reals[P] = min(reals[P] + max(numbers[_B2] / numbers[_B1], 1.0) * size, float(numbers[CAPACITY]))
        numbers[_AWAITED_B1] += size
    else:
        reals[P] = max(reals[P] - max(numbers[_B1] / numbers[_B2], 1.0) * size, 0.0)
        numbers[_AWAITED_B2] += size
    nodes[ROW * i + MARK] = 1
    to_front(nodes, numbers[BLOCKS] + _ring(code), i)


@device
def insert(state: State, i: int) -> None:
    """Local. A ghost into T2, anything else into T1."""
    nodes, numbers = state[0], state[1]
    code = nodes[ROW * i + CODE]
    target = T1
    if code in (B1, B2):
        miss(state, i)
        drop(state, i)
        target = T2
    nodes[ROW * i + CODE] = target
    nodes[ROW * i + MARK] = 0
    push_front(nodes, numbers[BLOCKS] + target, i)
    numbers[LENGTH + target] += size_of(state, i)
    numbers[FROM_B2] = 0
    trim(state)


@device
def take(state: State) -> int:
    """Local. The paper's REPLACE: the back of T1 if it is above its target, else that of T2."""
    nodes, numbers, reals = state[0], state[1], state[3]
    length = float(numbers[_T1])
    above = length > reals[P] or (length == reals[P] and numbers[FROM_B2] == 1)
    source = T1 if (length > 0.0 and above) or empty(nodes, numbers[BLOCKS] + T2) else T2
    i = back(nodes, numbers[BLOCKS] + source)
    unlink(state, i)
    return i


@device
def unlink(state: State, i: int) -> None:
    """Local. Out of its list."""
    nodes, numbers = state[0], state[1]
    take_out(nodes, i)
    numbers[LENGTH + nodes[ROW * i + CODE]] -= size_of(state, i)


@device
def relink(state: State, i: int) -> None:
    """Local. To the back of its list."""
    nodes, numbers = state[0], state[1]
    code = nodes[ROW * i + CODE]
    push_back(nodes, numbers[BLOCKS] + code, i)
    numbers[LENGTH + code] += size_of(state, i)


@device
def gone(state: State, i: int) -> None:
    """Local. A ghost of the list that it was in."""
    nodes, numbers = state[0], state[1]
    ghost = -nodes[ROW * i + CODE]
    nodes[ROW * i + CODE] = ghost
    nodes[ROW * i + MARK] = 0
    push_front(nodes, numbers[BLOCKS] + _ring(ghost), i)
    numbers[LENGTH + _ring(ghost)] += size_of(state, i)
    trim(state)


@device
def drop(state: State, i: int) -> None:
    """Local. A ghost that is no longer one."""
    nodes, numbers = state[0], state[1]
    ring = _ring(nodes[ROW * i + CODE])
    take_out(nodes, i)
    numbers[LENGTH + ring] -= size_of(state, i)
    if nodes[ROW * i + MARK]:
        numbers[AWAITED + ring] -= size_of(state, i)


@shared
def trim(state: State) -> None:
    """Local. Forget the oldest ghosts: T1 and B1 have the capacity together, all four lists twice that."""
    nodes, numbers = state[0], state[1]
    b1, b2 = numbers[BLOCKS] + B1_RING, numbers[BLOCKS] + B2_RING
    while numbers[_T1] + numbers[_B1] - numbers[_AWAITED_B1] > numbers[CAPACITY] and not empty(nodes, b1):
        i = back(nodes, b1)
        drop(state, i)
        forget(state, i)
    while not empty(nodes, b2):
        ghosts = numbers[_B1] + numbers[_B2] - numbers[_AWAITED_B1] - numbers[_AWAITED_B2]
        if numbers[_T1] + numbers[_T2] + ghosts <= 2 * numbers[CAPACITY]:
            break
        i = back(nodes, b2)
        drop(state, i)
        forget(state, i)


class Arc(Policy):
    """Adaptive replacement cache."""

    name = "arc"
    has_ghosts = True
    operations = Operations(touch, miss, insert, take, unlink, relink, gone, drop, trim)
    lists = tuple(RINGS.items())

    def _number_count(self, capacity: int, blocks: int) -> int:
        return 7

    def _real_count(self, blocks: int) -> int:
        return 1

    def _share(self, capacity: int) -> None:
        self._reals[P] = min(self._reals[P], capacity)

    @property
    def target(self) -> float:
        """Local. The target for T1, in units of the capacity."""
        return float(self._reals[P])

    def check(self) -> None:
        """Local. The lists, their lengths, and the bounds of target and ghosts."""
        super().check()
        numbers = self._numbers
        for ring in RINGS.values():
            expect(f"length of ring {ring}", self._size_of(list(self.ring(ring))), numbers[LENGTH + ring])
        for ring in (B1_RING, B2_RING):
            awaited = [i for i in self.ring(ring) if self._nodes[ROW * i + MARK]]
            expect(f"length of awaited ghosts in ring {ring}", self._size_of(awaited), numbers[AWAITED + ring])
        expect(f"target {self.target} within 0 and {self.capacity}", 0 <= self.target <= self.capacity, True)
        once = numbers[_T1] + numbers[_B1] - numbers[_AWAITED_B1]
        ghosts = numbers[_B1] + numbers[_B2] - numbers[_AWAITED_B1] - numbers[_AWAITED_B2]
        expect("T1 + B1 within the capacity", numbers[_B1] == 0 or once <= self.capacity, True)
        expect("all lists within twice that", numbers[_B2] == 0 or self.used + ghosts <= 2 * self.capacity, True)
