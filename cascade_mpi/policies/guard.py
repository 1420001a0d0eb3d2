"""Never much behind LRU: what LRU would have is known, and it takes over when it is ahead.

Covers the shadow of LRU, the balance of hits, and who ranks. Does not cover ranks (`hazard`) nor queues (`queues`).

LRU has the blocks whose last uses are the latest. How many were used last in each short interval of time is counted,
for one block in `SHADOW_RATE` (all, in caches of up to 4,096 blocks), and the oldest intervals leave when the younger
ones alone fill the cache: so at each use it is known whether LRU would have hit, up to the width of an interval (1/512
of the cache). Intervals reach back 16 times the cache.

A policy begins as LRU, until its prior explains what is seen, or else until its own model had time to learn.
The balance is what it hits more than LRU. When that falls below what may be lost, blocks leave by age from then
on, until it is well within bounds again: what may be lost is a share of all accesses, so that each trial comes
later than the one before if all fail. Gains are kept to `MOST_SAVED`: they do not pay for long losses.
"""

from __future__ import annotations

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.hazard import (
    AHEAD,
    AS_LRU,
    AT_LEAST,
    BALANCE,
    CONFIRM,
    FIRST,
    FULL,
    MAY_LOSE,
    MOST_SAVED,
    RATE,
    REST,
    SHADOW,
    SHADOW_COUNT,
    SHADOW_OLDEST,
    SHADOW_RATE,
    SHADOW_WIDTH,
    SHADOWS,
    SINCE,
    SWITCH,
    TAKEOVERS,
    TICK,
    TRUST,
    TRY_AGAIN,
    UNIT,
    WATCHED,
    WIDE,
)
from cascade_mpi.policies.marks import TIME_AT, TIMES
from cascade_mpi.policies.state import COUNT, MARK, ROW, Numbers, Reals, State, is_resident


@device
def is_compared(numbers: Numbers, i: int) -> bool:
    """Local. Is block i one of those by which LRU is compared?"""
    if numbers[WATCHED] >= 0:
        return bool(i >= numbers[WATCHED])
    return bool(((i * 0x9E3779B1) >> 12) % numbers[SHADOW_RATE] == 0)


@device
def _interval(numbers: Numbers, mark: int) -> int:
    now = numbers[TICK] // numbers[UNIT]
    return int((now - (now - (mark >> TIME_AT)) % TIMES) // numbers[SHADOW_WIDTH])


@device
def lru_has(numbers: Numbers, mark: int) -> bool:
    """Local. Would LRU have a block with this mark?"""
    return bool(_interval(numbers, mark) >= numbers[SHADOW_OLDEST])


@shared
def enter(state: State, i: int) -> None:
    """Local. Block i, whose mark is new, comes into LRU, and what is too old for it leaves."""
    nodes, numbers = state[0], state[1]
    interval = _interval(numbers, nodes[ROW * i + MARK])
    if interval < numbers[SHADOW_OLDEST]:
        return
    rate = numbers[RATE] if numbers[WATCHED] >= 0 else numbers[SHADOW_RATE]
    while True:
        oldest = SHADOW + numbers[SHADOW_OLDEST] % SHADOWS
        full = numbers[FULL] and (numbers[SHADOW_COUNT] - numbers[oldest] + 1) * rate > numbers[COUNT]
        if interval - numbers[SHADOW_OLDEST] < SHADOWS and (not full or numbers[SHADOW_OLDEST] >= interval):
            break
        numbers[SHADOW_COUNT] -= numbers[oldest]
        numbers[oldest] = 0
        numbers[SHADOW_OLDEST] += 1
    numbers[SHADOW + interval % SHADOWS] += 1
    numbers[SHADOW_COUNT] += 1


@shared
def compare(state: State, i: int, known: bool) -> None:
    """Local. Block i, still with the mark of its last use, is used: who hits?"""
    nodes, numbers, reals = state[0], state[1], state[3]
    rate = numbers[RATE] if numbers[WATCHED] >= 0 else numbers[SHADOW_RATE]
    mark = nodes[ROW * i + MARK]
    hit, lru = is_resident(state, i), known and lru_has(numbers, mark)
    if lru:
        interval = SHADOW + _interval(numbers, mark) % SHADOWS
        if numbers[interval] > 0:
            numbers[interval] -= 1
            numbers[SHADOW_COUNT] -= 1
    if not numbers[FULL]:
        return
    if hit and not lru:
        reals[BALANCE] = min(reals[BALANCE] + rate, reals[MOST_SAVED] * numbers[COUNT])
    elif lru and not hit:
        reals[BALANCE] -= rate
        share = reals[WIDE] if reals[TRUST] > 0.0 and reals[AHEAD] > 0.0 else reals[MAY_LOSE]
        if not numbers[AS_LRU] and reals[BALANCE] < -share * numbers[TICK] - reals[AT_LEAST] * rate:
            numbers[AS_LRU] = numbers[SWITCH] = 1
            numbers[SINCE] = numbers[TICK]
            numbers[TAKEOVERS] += 1
            reals[TRUST] = 0.0


@shared
def who_ranks(numbers: Numbers, reals: Reals) -> None:
    """Local. End LRU's turn if the prior fits, or else if the model had time to learn, and may lose something."""
    if not numbers[AS_LRU]:
        if reals[TRUST] == 0.0 and not numbers[SINCE] and reals[BALANCE] <= 0.0:  # dropped, and nothing gained by it
            numbers[AS_LRU] = 1
            numbers[SINCE] = numbers[TICK]
        return
    if reals[TRUST] > 0.0:
        if reals[AHEAD] > reals[CONFIRM]:
            numbers[AS_LRU] = 0
        return
    rested = numbers[TICK] - numbers[SINCE] > reals[REST] * numbers[COUNT]
    rested = rested and numbers[FULL] and numbers[TICK] > reals[FIRST] * numbers[COUNT]
    if rested and reals[BALANCE] > -reals[TRY_AGAIN] * numbers[TICK]:
        numbers[AS_LRU] = 0
        numbers[SINCE] = numbers[TICK]
