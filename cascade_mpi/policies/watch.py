"""Who is watched to learn when blocks are used again, and whether LRU would do better.

Covers a block's mark, the hash sample of blocks, and the duel with LRU. Does not cover what is made of the
observations (`hazard`) nor the queues (`prefix`).

One id in `RATE` is watched (spatial sampling: Waldspurger and others, "SHARDS", FAST 2015), also after it has
left the cache. The blocks of a request share its fate, so few of them tell as much as all. The number of
sampled blocks used within an age, times the rate, is the number of distinct blocks, and the age at which it
reaches the size of the cache is that at which LRU would evict. So each use of a sampled block tells whether
LRU would have had it, and whether this policy did. If LRU is ahead by more than chance explains, ranks go by
age for a while; then the policy is tried again, each time after twice the while.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.hazard import (
    AGES,
    AS_LRU,
    CURSOR,
    EDGE,
    LRU_AGE,
    LRU_ONLY,
    MEMORY,
    OWN_ONLY,
    QUEUES,
    RATE,
    REST,
    SAMPLE,
    SAMPLES,
    TICK,
    TRUST,
    UNIT,
    WAIT,
    WATCHED,
    class_of,
    doubt_prior,
    observe,
    rank,
)
from cascade_mpi.policies.state import (
    CODE,
    COUNT,
    FORGOTTEN,
    MARK,
    ROW,
    UNKNOWN,
    Numbers,
    Reals,
    Rows,
    State,
    is_resident,
)

# The mark of a block, from the lowest bit.
LAST, END, ASKED = 1, 2, 4
"""Last and partly filled; a request has ended here; counted by `request` and not yet touched or inserted."""
WIDTH_AT, GAP_AT, USES_AT, TIME_AT = 3, 5, 7, 11
MAX_USES = 15
TIMES = 1 << 20  # times, in units of accesses, are kept modulo this
MARK_BITS = 31

FOREVER = 1 << 60
DEVIATIONS = 2.0  # by which LRU must be ahead


@device
def age_of(numbers: Numbers, mark: int) -> int:
    """Local. Accesses since the time in this mark."""
    return int((numbers[TICK] // numbers[UNIT] - (mark >> TIME_AT)) % TIMES * numbers[UNIT])


@device
def stamped(numbers: Numbers, features: int) -> int:
    """Local. The mark with these features and the time that it is now."""
    return int(features | (numbers[TICK] // numbers[UNIT] % TIMES << TIME_AT))


@device
def kind_of(mark: int) -> int:
    """Local. The class of a block with this mark."""
    return class_of(mark & LAST, (mark >> USES_AT) & MAX_USES, (mark >> WIDTH_AT) & 3, (mark >> GAP_AT) & 3)


@device
def is_sampled(numbers: Numbers, i: int) -> bool:
    """Local. Is block i one of those that are watched?"""
    if numbers[WATCHED] >= 0:
        return bool(i >= numbers[WATCHED])
    return bool(((i * 0x9E3779B1) >> 12) % numbers[RATE] == 0)


@device
def _is_watched(nodes: Rows, i: int, mark: int) -> bool:
    """Has block i, known and not used since, still the mark with which it was sampled?"""
    code = nodes[ROW * i + CODE]
    known = code not in (UNKNOWN, FORGOTTEN)
    return bool(known and nodes[ROW * i + MARK] & ~ASKED == mark)


@shared
def sample(state: State, i: int) -> None:
    """Local. Watch block i, whose mark has just been set; the oldest sample gives way."""
    nodes, numbers, reals = state[0], state[1], state[3]
    place = SAMPLE + numbers[CURSOR]
    j, mark = numbers[place] >> MARK_BITS, numbers[place] & ((1 << MARK_BITS) - 1)
    if numbers[place] >= 0 and _is_watched(nodes, j, mark):
        observe(numbers, reals, kind_of(mark), age_of(numbers, mark), False)
    numbers[place] = (np.int64(i) << MARK_BITS) | (nodes[ROW * i + MARK] & ~ASKED)
    numbers[CURSOR] = (numbers[CURSOR] + 1) % SAMPLES


@shared
def use(state: State, i: int, known: bool, features: int) -> None:
    """Local. Block i is used: learn how long it took if the policy knew it, and set its mark."""
    nodes, numbers, reals = state[0], state[1], state[3]
    if is_sampled(numbers, i):
        mark = nodes[ROW * i + MARK]
        if known:
            age = age_of(numbers, mark)
            observe(numbers, reals, kind_of(mark), age, True)
            if is_resident(state, i) and age >= numbers[LRU_AGE]:
                reals[OWN_ONLY] += 1.0
            elif not is_resident(state, i) and age < numbers[LRU_AGE]:
                reals[LRU_ONLY] += 1.0
        nodes[ROW * i + MARK] = stamped(numbers, features)
        sample(state, i)
    else:
        nodes[ROW * i + MARK] = stamped(numbers, features)


@shared
def _duel(numbers: Numbers, reals: Reals) -> None:
    ahead, both = reals[LRU_ONLY] - reals[OWN_ONLY], reals[LRU_ONLY] + reals[OWN_ONLY]
    if numbers[AS_LRU]:
        numbers[REST] -= 1
        if numbers[REST] <= 0:
            numbers[AS_LRU] = 0
            reals[LRU_ONLY] = reals[OWN_ONLY] = 0.0
    elif ahead > DEVIATIONS * np.sqrt(both + 1.0):
        numbers[AS_LRU] = 1
        numbers[REST] = numbers[WAIT]
        numbers[WAIT] *= 2
        reals[TRUST] = 0.0
    reals[LRU_ONLY] *= MEMORY
    reals[OWN_ONLY] *= MEMORY


@shared
def learn(state: State) -> None:
    """Local. Rank all queues anew by what has been seen, and let the duel decide how."""
    nodes, numbers, reals = state[0], state[1], state[3]
    watched = np.zeros(QUEUES)
    alive = 0
    numbers[LRU_AGE] = FOREVER
    for step in range(1, SAMPLES + 1):  # from the newest
        sampled = numbers[SAMPLE + (numbers[CURSOR] - step) % SAMPLES]
        if sampled < 0:
            break
        i, mark = sampled >> MARK_BITS, sampled & ((1 << MARK_BITS) - 1)
        if not _is_watched(nodes, i, mark):
            continue
        age = age_of(numbers, mark)
        alive += 1
        if alive * numbers[RATE] > numbers[COUNT] and numbers[LRU_AGE] == FOREVER:
            numbers[LRU_AGE] = max(age, 1)
        cell = kind_of(mark) * AGES
        for b in range(AGES):
            start, end = numbers[EDGE + b], numbers[EDGE + b + 1]
            watched[cell + b] += min(1.0, (age - start) / (end - start))
            if age < end:
                break
    _duel(numbers, reals)
    doubt_prior(reals, watched)
    rank(numbers, reals, watched)
