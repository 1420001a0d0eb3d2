"""The mark of a block: what is known of its last use, in 31 bits.

Covers its fields, ages, and which blocks are watched. Does not cover what is learned of those (`watch`).
"""

from __future__ import annotations

from cascade_mpi.policies.compiled import device
from cascade_mpi.policies.hazard import RATE, TICK, UNIT, WATCHED, class_of
from cascade_mpi.policies.state import Numbers

# The mark of a block, from the lowest bit.
LAST, END, ASKED = 1, 2, 4
"""Last and partly filled; a request has ended here; counted by `request` and not yet touched or inserted."""
WIDTH_AT, GAP_AT, USES_AT, TIME_AT = 3, 5, 7, 11
MAX_USES = 15
TIMES = 1 << 20  # times, in units of accesses, are kept modulo this
MARK_BITS = 31


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
