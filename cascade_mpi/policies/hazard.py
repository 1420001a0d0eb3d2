"""When is a block used again? Estimates by class and age, and the order of leaving that follows from them.

Covers the classes, the hazard of each (the rate of next uses in each interval of age), how observations and
the prior become hazards, and the rank of every class and age. Does not cover who is observed (`watch`), the
numbers of the prior (`prior`) nor the queues of blocks (`prefix`).

A miss always brings its block in, so each stay between two uses is a purchase of its own: it costs space
times time and yields one hit or none. What earns most for its space is worth keeping (hit density: Beckmann,
Chen, Cidon, "LHD: Improving cache hit rate by maximizing hit density", NSDI 2018). As a block may also be
given up later, it is worth what it earns until the best moment to give it up (an index of Gittins, 1979):

    max over T of  P(next use within T | age) / E[min(time to the next use, T) | age]

The hazard of a class begins as its factor times a curve over age that all classes share. Both are corrected
by observations: the curve, then the class, then each age of the class, each with pseudo-observations in favour
of the coarser estimate, so that a class that is seldom seen stays like the others. A block that is not used
again counts for the time for which it was watched (its exposure): eviction does not bias what is learned.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.policies.compiled import shared
from cascade_mpi.policies.state import OWN, Numbers, Reals

LEVELS, WIDTHS, GAPS = 8, 4, 4
"""Kinds by uses so far, by how much of the request was new, by the pause of the session."""
CLASSES = 1 + LEVELS * WIDTHS * GAPS  # class 0: the last, partly filled block of a request
AGES = 20
QUEUES = CLASSES * AGES  # one for each class and age: class * AGES + age
WORDS = (QUEUES + 63) // 64

LEVEL_STARTS = (0, 1, 2, 3, 4, 6, 9, 15)
NEW_FEW, NEW_MANY = 4, 64  # blocks of a request that were not known
NO_WIDTH = 3  # nothing is known about the request
SHORT_GAP, LONG_GAP = 4096, 32768

# Accesses at which an age begins, and the end, for a cache of 1,000 to 32,768 blocks; others scale them.
_EARLY = (0, 64, 512, 1024, 2048, 3072, 4096, 5120, 6144, 8192, 10240)
_LATE = (12288, 16384, 20480, 24576, 28672, 32768, 40960, 49152, 65536, 131072)
EDGES = _EARLY + _LATE

# The policy's numbers: counters, then arrays.
TICK, UNIT, STEP, EVERY, RATE, CURSOR, GHOSTS, GHOST_SHARE, AS_LRU, WATCHED = range(OWN, OWN + 10)
# WATCHED: the first id of those that are watched; below 0: a hash of the id says it.
SHADOW_RATE, SHADOW_WIDTH, SHADOW_OLDEST, SHADOW_COUNT, FULL, SWITCH, SINCE, TAKEOVERS = range(WATCHED + 1, WATCHED + 9)
MISSING, MISSING_SHARE = TAKEOVERS + 1, TAKEOVERS + 2  # blocks that LRU would have: how many, and at most
EDGE = MISSING_SHARE + 1
ORDER = EDGE + AGES + 1  # queues by rank: what is worth least first
RANK = ORDER + QUEUES  # and the other way round
BITS = RANK + QUEUES  # by rank: may this queue have blocks?
SAMPLE = BITS + WORDS
SAMPLES = 8192
SHADOW = SAMPLE + SAMPLES  # by the time of last use: how many blocks LRU would have
SHADOWS = 8192
NUMBERS = SHADOW + SHADOWS - OWN

# Its reals. Uses and exposures are those of sampled blocks; an exposure of 1 is one block through one age.
USES, EXPOSURE, PRIOR_USES, PRIOR_EXPOSURE = 0, QUEUES, 2 * QUEUES, 3 * QUEUES
FACTOR = 4 * QUEUES
CURVE = FACTOR + CLASSES
TRUST = CURVE + AGES  # what an observation of the prior counts
BALANCE, AHEAD = TRUST + 1, TRUST + 2  # hits more than LRU's; log-likelihood of the prior above the plain model's
MAY_LOSE, TRY_AGAIN, AT_LEAST, MOST_SAVED, REST, WIDE, CONFIRM, FIRST = range(AHEAD + 1, AHEAD + 9)
REALS = FIRST + 1

CURVE_WEIGHT = 10.0  # uses for which the prior's curve stands, at each age
CLASS_WEIGHT = 10.0  # uses for which "like the others" stands, for a class
CELL_WEIGHT = 5.0  # the same for a class at an age
PRIOR_WEIGHT = 2.0  # and for the prior's own estimate of it
MEMORY = 0.98  # what an observation counts after the next ranking; half after 34 of them
DOUBT = 20.0  # log-likelihood by which the prior may fall behind the plain model before it is dropped


def class_number(last: int, uses: int, width: int, gap: int) -> int:
    """Local. The class: last block of its request, uses before this one, and kinds by request and by session."""
    if last:
        return 0
    level = 0
    while level + 1 < LEVELS and uses >= LEVEL_STARTS[level + 1]:
        level += 1
    return 1 + (level * WIDTHS + width) * GAPS + gap


class_of = shared(class_number)
"""`class_number` for compiled code."""


@shared
def observe(numbers: Numbers, reals: Reals, kind: int, age: int, used: bool) -> None:
    """Local. A block of class `kind` was watched from its use to this age, and then used again or lost sight of."""
    for b in range(AGES):
        start, end = numbers[EDGE + b], numbers[EDGE + b + 1]
        if age < end:
            reals[EXPOSURE + kind * AGES + b] += (age - start) / (end - start)
            if used:
                reals[USES + kind * AGES + b] += 1.0
            return
        reals[EXPOSURE + kind * AGES + b] += 1.0


@shared
def doubt_prior(numbers: Numbers, reals: Reals, watched: Reals) -> None:
    """Local. Drop the prior if its factors with a curve fitted here explain better what has been seen here.

    Compares the log-likelihoods of Poisson rates: sum of uses * log(rate) - exposure * rate.
    """
    ahead = 0.0
    for b in range(AGES):
        used, expected = CURVE_WEIGHT, CURVE_WEIGHT / reals[CURVE + b]
        for c in range(CLASSES):
            used += reals[USES + c * AGES + b]
            expected += reals[FACTOR + c] * (reals[EXPOSURE + c * AGES + b] + watched[c * AGES + b])
        for c in range(CLASSES):
            cell = c * AGES + b
            plain = reals[FACTOR + c] * used / expected
            weight = PRIOR_WEIGHT / (reals[FACTOR + c] * reals[CURVE + b])
            rate = (reals[PRIOR_USES + cell] + PRIOR_WEIGHT) / (reals[PRIOR_EXPOSURE + cell] + weight)
            exposure = reals[EXPOSURE + cell] + watched[cell]
            ahead += reals[USES + cell] * np.log(rate / plain) - exposure * (rate - plain)
    reals[AHEAD] = ahead
    if ahead < -DOUBT and numbers[TICK] >= numbers[EVERY]:  # the first few requests may be unlike all others
        reals[TRUST] = 0.0


@shared
def rank(numbers: Numbers, reals: Reals, watched: Reals) -> None:
    """Local. Order all queues by what their blocks are worth; `watched`: exposures that have not ended yet."""
    uses, exposure = np.empty(QUEUES), np.empty(QUEUES)
    for cell in range(QUEUES):
        uses[cell] = reals[USES + cell] + reals[TRUST] * reals[PRIOR_USES + cell]
        exposure[cell] = reals[EXPOSURE + cell] + watched[cell] + reals[TRUST] * reals[PRIOR_EXPOSURE + cell]
        reals[USES + cell] *= MEMORY
        reals[EXPOSURE + cell] *= MEMORY
    reals[TRUST] *= MEMORY
    curve = np.empty(AGES)
    for b in range(AGES):
        used, expected = CURVE_WEIGHT, CURVE_WEIGHT / reals[CURVE + b]
        for c in range(CLASSES):
            used += uses[c * AGES + b]
            expected += reals[FACTOR + c] * exposure[c * AGES + b]
        curve[b] = used / expected
    worth, chance = np.empty(QUEUES), np.empty(AGES)
    for c in range(CLASSES):
        used, expected = CLASS_WEIGHT, CLASS_WEIGHT
        for b in range(AGES):
            used += uses[c * AGES + b]
            expected += reals[FACTOR + c] * curve[b] * exposure[c * AGES + b]
        factor = reals[FACTOR + c] * used / expected
        for b in range(AGES):
            rate = factor * curve[b]
            rate *= (uses[c * AGES + b] + CELL_WEIGHT) / (rate * exposure[c * AGES + b] + CELL_WEIGHT)
            chance[b] = 1.0 - np.exp(-rate)
        for b in range(AGES):
            left, hit, cost, best = 1.0, 0.0, 0.0, 0.0
            for t in range(b, AGES):
                cost += left * (numbers[EDGE + t + 1] - numbers[EDGE + t]) * (1.0 - chance[t] / 2.0)
                hit += left * chance[t]
                left *= 1.0 - chance[t]
                best = max(best, hit / cost)
            # As LRU: by age, and by worth only within an age.
            worth[c * AGES + b] = AGES - b + best / (1.0 + best) if numbers[AS_LRU] else best
    for k in range(QUEUES):
        numbers[ORDER + k] = k
    step = 1
    while 3 * step < QUEUES:
        step = 3 * step + 1
    while step:  # Shell's sort: np.argsort would take most of the time to compile this
        for k in range(step, QUEUES):
            queue, place = numbers[ORDER + k], k
            while place >= step and worth[numbers[ORDER + place - step]] > worth[queue]:
                numbers[ORDER + place] = numbers[ORDER + place - step]
                place -= step
            numbers[ORDER + place] = queue
        step //= 3
    for k in range(QUEUES):
        numbers[RANK + numbers[ORDER + k]] = k
