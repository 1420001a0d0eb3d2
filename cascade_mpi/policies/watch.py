"""Who is watched to learn when blocks are used again.

Covers the hash sample of blocks. Does not cover marks (`marks`), what is made of the observations (`hazard`), the
comparison with LRU (`guard`) nor the queues (`queues`).

One id in `RATE` is watched (spatial sampling: Waldspurger and others, "SHARDS", FAST 2015), also after it has
left the cache. The blocks of a request share its fate, so few of them tell as much as all.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.guard import compare, enter, is_compared, who_ranks
from cascade_mpi.policies.hazard import (
    AGES,
    CURSOR,
    EDGE,
    QUEUES,
    SAMPLE,
    SAMPLES,
    doubt_prior,
    observe,
    rank,
)
from cascade_mpi.policies.marks import ASKED, MARK_BITS, age_of, is_sampled, kind_of, stamped
from cascade_mpi.policies.state import CODE, FORGOTTEN, MARK, ROW, UNKNOWN, Rows, State


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
    compared = is_compared(numbers, i)
    if compared:
        compare(state, i, known)
    if is_sampled(numbers, i):
        mark = nodes[ROW * i + MARK]
        if known:
            observe(numbers, reals, kind_of(mark), age_of(numbers, mark), True)
        nodes[ROW * i + MARK] = stamped(numbers, features)
        sample(state, i)
    else:
        nodes[ROW * i + MARK] = stamped(numbers, features)
    if compared:
        enter(state, i)


@shared
def learn(state: State) -> None:
    """Local. Rank all queues anew by what has been seen."""
    nodes, numbers, reals = state[0], state[1], state[3]
    watched = np.zeros(QUEUES)
    for step in range(1, SAMPLES + 1):  # from the newest
        sampled = numbers[SAMPLE + (numbers[CURSOR] - step) % SAMPLES]
        if sampled < 0:
            break
        i, mark = sampled >> MARK_BITS, sampled & ((1 << MARK_BITS) - 1)
        if not _is_watched(nodes, i, mark):
            continue
        age = age_of(numbers, mark)
        cell = kind_of(mark) * AGES
        for b in range(AGES):
            start, end = numbers[EDGE + b], numbers[EDGE + b + 1]
            watched[cell + b] += min(1.0, (age - start) / (end - start))
            if age < end:
                break
    doubt_prior(numbers, reals, watched)
    who_ranks(numbers, reals)
    rank(numbers, reals, watched)
