"""S3-FIFO: a small queue for what is new, a main queue for what was used, and the ids of what left the small one.

Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023. The form and the
parameters are those of libCacheSim 0.3: a tenth of the capacity for the small queue, ghosts worth nine
tenths, two uses in the small queue to move on, counts up to 3 in the main queue; until the first eviction
what no longer fits the small queue goes to the main one.
"""

from __future__ import annotations

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.links import back, empty, push_back, push_front, take_out, to_front
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Policy, expect
from cascade_mpi.policies.state import BLOCKS, CAPACITY, CODE, MARK, OWN, ROW, State, size_of

SMALL, MAIN, GHOST = 1, 2, -1
GHOST_RING = 3

SMALL_SIZE, MAIN_SIZE, GHOST_SIZE, AWAITED_SIZE, SMALL_SHARE, GHOST_SHARE, HAS_EVICTED = range(OWN, OWN + 7)

TO_MAIN = 2  # uses in the small queue after which a block is worth keeping
MAX_USES = 3  # two bits in the main queue


@device
def touch(state: State, i: int) -> None:
    """Local. Count it; the queues do not move."""
    nodes = state[0]
    nodes[ROW * i + MARK] = min(nodes[ROW * i + MARK] + 1, MAX_USES)


@device
def miss(state: State, i: int) -> None:
    """Local. A ghost that is asked for is awaited: it does not count, and is the last to be forgotten."""
    nodes, numbers = state[0], state[1]
    if nodes[ROW * i + CODE] == GHOST and not nodes[ROW * i + MARK]:
        nodes[ROW * i + MARK] = 1
        numbers[AWAITED_SIZE] += size_of(state, i)
        to_front(nodes, numbers[BLOCKS] + GHOST_RING, i)


@device
def insert(state: State, i: int) -> None:
    """Local. Into the main queue if it was given up too early, else into the small one."""
    nodes, numbers = state[0], state[1]
    queue = SMALL
    if nodes[ROW * i + CODE] == GHOST:
        drop(state, i)
        queue = MAIN
    elif not numbers[HAS_EVICTED] and numbers[SMALL_SIZE] >= numbers[SMALL_SHARE]:
        queue = MAIN
    nodes[ROW * i + MARK] = 0
    nodes[ROW * i + CODE] = queue
    push_front(nodes, numbers[BLOCKS] + queue, i)
    numbers[SMALL_SIZE if queue == SMALL else MAIN_SIZE] += size_of(state, i)


@device
def take(state: State) -> int:
    """Local. From the main queue if it is over its share, else from the small one; used blocks move on."""
    nodes, numbers = state[0], state[1]
    small, main = numbers[BLOCKS] + SMALL, numbers[BLOCKS] + MAIN
    numbers[HAS_EVICTED] = 1
    while True:
        over = numbers[MAIN_SIZE] > numbers[CAPACITY] - numbers[SMALL_SHARE]
        if (over and not empty(nodes, main)) or empty(nodes, small):
            i = back(nodes, main)
            while nodes[ROW * i + MARK]:
                nodes[ROW * i + MARK] -= 1
                to_front(nodes, main, i)
                i = back(nodes, main)
            unlink(state, i)
            return i
        while not empty(nodes, small):
            i = back(nodes, small)
            unlink(state, i)
            if nodes[ROW * i + MARK] < TO_MAIN:
                return i
            nodes[ROW * i + CODE] = MAIN
            nodes[ROW * i + MARK] = 0
            push_front(nodes, main, i)
            numbers[MAIN_SIZE] += size_of(state, i)


@device
def unlink(state: State, i: int) -> None:
    """Local. Out of its queue."""
    nodes, numbers = state[0], state[1]
    take_out(nodes, i)
    numbers[SMALL_SIZE if nodes[ROW * i + CODE] == SMALL else MAIN_SIZE] -= size_of(state, i)


@device
def relink(state: State, i: int) -> None:
    """Local. To the back of its queue: what was behind it has moved on."""
    nodes, numbers = state[0], state[1]
    queue = nodes[ROW * i + CODE]
    push_back(nodes, numbers[BLOCKS] + queue, i)
    numbers[SMALL_SIZE if queue == SMALL else MAIN_SIZE] += size_of(state, i)


@device
def gone(state: State, i: int) -> None:
    """Local. Out of the small queue a ghost is left, out of the main queue nothing."""
    nodes, numbers = state[0], state[1]
    if nodes[ROW * i + CODE] == MAIN or size_of(state, i) > numbers[GHOST_SHARE]:
        forget(state, i)
        return
    nodes[ROW * i + CODE] = GHOST
    nodes[ROW * i + MARK] = 0
    push_front(nodes, numbers[BLOCKS] + GHOST_RING, i)
    numbers[GHOST_SIZE] += size_of(state, i)
    trim(state)


@device
def drop(state: State, i: int) -> None:
    """Local. A ghost that is no longer one."""
    nodes, numbers = state[0], state[1]
    take_out(nodes, i)
    numbers[GHOST_SIZE] -= size_of(state, i)
    if nodes[ROW * i + MARK]:
        numbers[AWAITED_SIZE] -= size_of(state, i)


@shared
def trim(state: State) -> None:
    """Local. Forget the oldest ghosts until they are worth no more than their share."""
    nodes, numbers = state[0], state[1]
    while numbers[GHOST_SIZE] - numbers[AWAITED_SIZE] > numbers[GHOST_SHARE]:
        i = back(nodes, numbers[BLOCKS] + GHOST_RING)
        drop(state, i)
        forget(state, i)


class S3Fifo(Policy):
    """Small queue, main queue and ghosts; a ghost that comes back goes to the main queue."""

    name = "s3fifo"
    has_ghosts = True
    operations = Operations(touch, miss, insert, take, unlink, relink, gone, drop, trim)
    lists = ((SMALL, SMALL), (MAIN, MAIN), (GHOST, GHOST_RING))

    def _number_count(self, capacity: int, blocks: int) -> int:
        return 7

    def _share(self, capacity: int) -> None:
        self._numbers[SMALL_SHARE] = max(1, capacity // 10)
        self._numbers[GHOST_SHARE] = capacity * 9 // 10

    def check(self) -> None:
        """Local. The queues, their sizes, and that ghosts keep to their share."""
        super().check()
        nodes, numbers = self._nodes, self._numbers
        for ring, number in ((SMALL, SMALL_SIZE), (MAIN, MAIN_SIZE), (GHOST_RING, GHOST_SIZE)):
            expect(f"size of ring {ring}", self._size_of(list(self.ring(ring))), numbers[number])
        awaited = [i for i in self.ring(GHOST_RING) if nodes[ROW * i + MARK]]
        expect("size of awaited ghosts", self._size_of(awaited), numbers[AWAITED_SIZE])
        expect("ghosts within their share", numbers[GHOST_SIZE] - numbers[AWAITED_SIZE] <= numbers[GHOST_SHARE], True)
