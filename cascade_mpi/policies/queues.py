"""The queues of the learned policy: one for each class and age, and the ghosts.

Covers their operations, growing older, and which queue is the next to give a block. Does not cover what a
queue is worth (`hazard`) nor what a request tells (`prefix`).

A set of bits, in the order of rank, tells which queues may have blocks: it is set at once and cleared when
one is found empty, so a victim is found by looking at a few words.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.guard import enter, is_compared, lru_has
from cascade_mpi.policies.hazard import (
    AGES,
    AS_LRU,
    BITS,
    EDGE,
    EVERY,
    FULL,
    GHOST_SHARE,
    GHOSTS,
    MISSING,
    MISSING_SHARE,
    NO_WIDTH,
    ORDER,
    QUEUES,
    RANK,
    STEP,
    SWITCH,
    TICK,
    WORDS,
    observe,
)
from cascade_mpi.policies.links import back, empty, push_front, put_again, take_out
from cascade_mpi.policies.loops import forget
from cascade_mpi.policies.marks import ASKED, END, MAX_USES, USES_AT, WIDTH_AT, age_of, is_sampled, kind_of
from cascade_mpi.policies.state import BLOCKS, CODE, MARK, ROW, Numbers, State
from cascade_mpi.policies.watch import learn, sample, use

GHOST, LRU_ONLY = -1, -2
GHOST_RING, LRU_ONLY_RING = QUEUES + 1, QUEUES + 2
FIRST_LEARNT = 256  # accesses; then at each power of two, until it is time by `EVERY`


@device
def _may_have_blocks(numbers: Numbers, queue: int) -> None:
    k = numbers[RANK + queue]
    numbers[BITS + (k >> 6)] |= np.int64(1) << (k & 63)


@device
def _has_none(numbers: Numbers, k: int) -> None:
    numbers[BITS + (k >> 6)] &= ~(np.int64(1) << (k & 63))


@device
def _next_rank(numbers: Numbers, k: int) -> int:
    """The lowest rank from k on whose queue may have blocks; QUEUES if there is none."""
    while k < QUEUES:
        bits = numbers[BITS + (k >> 6)] >> (k & 63)
        if not bits:
            k = (k | 63) + 1
            continue
        while not bits & 0xFF:
            bits >>= 8
            k += 8
        while not bits & 1:
            bits >>= 1
            k += 1
        return k
    return QUEUES


@shared
def _grow_older(state: State) -> None:
    """Move on what has outgrown its queue."""
    nodes, numbers = state[0], state[1]
    k = _next_rank(numbers, 0)
    while k < QUEUES:
        queue = numbers[ORDER + k]
        head = numbers[BLOCKS] + 1 + queue
        if queue % AGES < AGES - 1:
            end = numbers[EDGE + queue % AGES + 1]
            i = back(nodes, head)
            while i != head and age_of(numbers, nodes[ROW * i + MARK]) >= end:
                take_out(nodes, i)
                nodes[ROW * i + CODE] += 1
                push_front(nodes, head + 1, i)
                _may_have_blocks(numbers, queue + 1)
                i = back(nodes, head)
        if empty(nodes, head):
            _has_none(numbers, k)
        k = _next_rank(numbers, k + 1)


@shared
def learn_and_rank(state: State) -> None:
    """Learn, and note anew which ranks have blocks."""
    nodes, numbers = state[0], state[1]
    learn(state)
    numbers[BITS : BITS + WORDS] = 0
    for queue in range(QUEUES):
        if not empty(nodes, numbers[BLOCKS] + 1 + queue):
            _may_have_blocks(numbers, queue)


@device
def _tick(state: State) -> None:
    numbers = state[1]
    numbers[TICK] += 1
    tick = numbers[TICK]
    if tick % numbers[STEP] == 0:
        _grow_older(state)
    early = FIRST_LEARNT <= tick < numbers[EVERY] and not tick & (tick - 1)
    if tick % numbers[EVERY] == 0 or early or numbers[SWITCH]:
        numbers[SWITCH] = 0
        learn_and_rank(state)


@device
def enqueue(state: State, i: int) -> None:
    """Local. Into the youngest queue of its class."""
    nodes, numbers = state[0], state[1]
    queue = kind_of(nodes[ROW * i + MARK]) * AGES
    nodes[ROW * i + CODE] = queue + 1
    push_front(nodes, numbers[BLOCKS] + 1 + queue, i)
    _may_have_blocks(numbers, queue)


@device
def _once_more(mark: int) -> int:
    """The features of a block that is used again and of whose request nothing is known."""
    uses = min(((mark >> USES_AT) & MAX_USES) + 1, MAX_USES)
    return (mark & ((1 << USES_AT) - 1) & ~ASKED) | (uses << USES_AT)


@device
def touch(state: State, i: int) -> None:
    """Local. Young again, unless `request` has done all that: a late touch says nothing new."""
    nodes = state[0]
    _tick(state)
    mark = nodes[ROW * i + MARK]
    if mark & ASKED:
        nodes[ROW * i + MARK] = mark & ~ASKED
    else:
        take_out(nodes, i)
        use(state, i, True, _once_more(mark))
        enqueue(state, i)


@device
def insert(state: State, i: int) -> None:
    """Local. Into the youngest queue; of a ghost it is known how often it was used."""
    nodes, numbers = state[0], state[1]
    _tick(state)
    was_ghost = nodes[ROW * i + CODE] in (GHOST, LRU_ONLY)
    if was_ghost:
        drop(state, i)
    mark = nodes[ROW * i + MARK]
    if mark & ASKED:
        nodes[ROW * i + MARK] = mark & ~ASKED
        if not was_ghost:
            if is_compared(numbers, i):
                enter(state, i)
            if is_sampled(numbers, i):
                sample(state, i)
    else:
        use(state, i, was_ghost, _once_more(mark) if was_ghost else END | NO_WIDTH << WIDTH_AT)
    enqueue(state, i)


@device
def _next_block(state: State, k: int) -> int:
    """The lowest rank from k on whose queue has blocks; QUEUES if there is none."""
    nodes, numbers = state[0], state[1]
    k = _next_rank(numbers, k)
    while k < QUEUES and empty(nodes, numbers[BLOCKS] + 1 + numbers[ORDER + k]):
        _has_none(numbers, k)
        k = _next_rank(numbers, k + 1)
    return k


@shared
def _longest_unused(state: State, k: int) -> int:
    """The rank, from k on, of the queue with the block whose last use is longest ago.

    Ranks go by age now, and a block moves to its next age at most `STEP` accesses late: so two ages have it.
    """
    nodes, numbers = state[0], state[1]
    last = max(numbers[ORDER + k] % AGES - 1, 0)
    best, oldest = k, -1
    while k < QUEUES and numbers[ORDER + k] % AGES >= last:
        age = age_of(numbers, nodes[ROW * back(nodes, numbers[BLOCKS] + 1 + numbers[ORDER + k]) + MARK])
        if age > oldest:
            best, oldest = k, age
        k = _next_block(state, k + 1)
    return best


@device
def take(state: State) -> int:
    """Local. The longest unused of the queue that is worth least, or of all while LRU ranks."""
    nodes, numbers = state[0], state[1]
    k = _next_block(state, 0)
    if numbers[AS_LRU]:
        k = _longest_unused(state, k)
    i = back(nodes, numbers[BLOCKS] + 1 + numbers[ORDER + k])
    take_out(nodes, i)
    return i


@device
def unlink(state: State, i: int) -> None:
    """Local. Out of its queue."""
    take_out(state[0], i)


@device
def relink(state: State, i: int) -> None:
    """Local. Back to where it was: `take` moves nothing else."""
    put_again(state[0], i)
    _may_have_blocks(state[1], state[0][ROW * i + CODE] - 1)


@device
def gone(state: State, i: int) -> None:
    """Local. Ghosts are left of ends of requests, which tell sessions, of what is watched and of what LRU has."""
    nodes, numbers = state[0], state[1]
    numbers[FULL] = 1
    mark = nodes[ROW * i + MARK]
    if mark & END or is_sampled(numbers, i):
        nodes[ROW * i + CODE] = GHOST
        push_front(nodes, numbers[BLOCKS] + GHOST_RING, i)
        numbers[GHOSTS] += 1
        trim(state)
    elif is_compared(numbers, i) and lru_has(numbers, mark):
        nodes[ROW * i + CODE] = LRU_ONLY
        push_front(nodes, numbers[BLOCKS] + LRU_ONLY_RING, i)
        numbers[MISSING] += 1
        trim(state)
    else:
        nodes[ROW * i + MARK] = 0
        forget(state, i)


@device
def drop(state: State, i: int) -> None:
    """Local. A ghost that is no longer one."""
    take_out(state[0], i)
    state[1][GHOSTS if state[0][ROW * i + CODE] == GHOST else MISSING] -= 1


@shared
def trim(state: State) -> None:
    """Local. Forget the oldest ghosts above their share, and those that LRU would not have any more."""
    nodes, numbers, reals = state[0], state[1], state[3]
    while numbers[GHOSTS] > numbers[GHOST_SHARE]:
        i = back(nodes, numbers[BLOCKS] + GHOST_RING)
        mark = nodes[ROW * i + MARK]
        if is_sampled(numbers, i):
            observe(numbers, reals, kind_of(mark), age_of(numbers, mark), False)
        drop(state, i)
        nodes[ROW * i + MARK] = 0
        forget(state, i)
    while numbers[MISSING] > 0:
        i = back(nodes, numbers[BLOCKS] + LRU_ONLY_RING)
        if numbers[MISSING] <= numbers[MISSING_SHARE] and lru_has(numbers, nodes[ROW * i + MARK]):
            break
        drop(state, i)
        nodes[ROW * i + MARK] = 0
        forget(state, i)
