"""How often a block was asked for, counted in little memory: a counting Bloom filter that halves from time to time.

Covers adding, estimating and halving. Does not cover what is counted. An id has ten counters, at a + k * b of
its two hashes; the estimate is the least of them, so that it is never too low. The form and the parameters
are those of libCacheSim 0.3 (14.4 counters for each block of the main cache, ten hashes: an error of 0.1 %;
XXH64 of the id, as https://github.com/Cyan4973/xxHash defines it), so that results can be compared access by
access. Einziger, Friedman, Manes: "TinyLFU: A highly efficient cache admission policy", ACM ToS 13 (2017).
"""

from __future__ import annotations

import math

import numpy as np

from cascade_mpi.policies.compiled import device, shared
from cascade_mpi.policies.state import Rows

_ERROR = 0.001
COUNTERS_PER_BLOCK = -math.log(_ERROR) / 0.480453013918201  # ln(2) squared, to the digits used there
HASHES = math.ceil(0.693147180559945 * COUNTERS_PER_BLOCK)

_U = np.uint64
_PRIME1, _PRIME2, _PRIME3, _PRIME4, _PRIME5 = map(
    _U, (11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261)
)
_SEED_A, _SEED_B = _U(0x12345678), _U(0x12344321)
_27, _29, _31, _32, _33, _37 = map(_U, (27, 29, 31, 32, 33, 37))
_EIGHT, _LOW = _U(8), _U(2**32 - 1)


def counters(blocks: int) -> int:
    """Local. How many counters a main cache of so many blocks gets."""
    wanted = math.ceil(COUNTERS_PER_BLOCK * blocks)
    return wanted if wanted >= HASHES else 2 * HASHES


@device
def _xxh64(value: np.uint64, seed: np.uint64) -> np.uint64:
    """XXH64 of the eight bytes of `value`, its lower half."""
    h = seed + _PRIME5 + _EIGHT
    k = value * _PRIME2
    k = ((k << _31) | (k >> _33)) * _PRIME1
    h ^= k
    h = ((h << _27) | (h >> _37)) * _PRIME1 + _PRIME4
    h = (h ^ (h >> _33)) * _PRIME2
    h = (h ^ (h >> _29)) * _PRIME3
    return (h ^ (h >> _32)) & _LOW


@shared
def estimate(table: Rows, first: int, length: int, i: int) -> int:
    """Local. At least as often as i was added since the last halvings."""
    key = _U(i + 1)
    a, b, n = _xxh64(key, _SEED_A), _xxh64(key, _SEED_B), _U(length)
    least = 2**31 - 1
    for _ in range(HASHES):
        least = min(least, table[first + np.int64(a % n)])
        a = (a + b) & _LOW
    return least


@shared
def add(table: Rows, first: int, length: int, i: int) -> None:
    """Local. Count i once."""
    key = _U(i + 1)
    a, b, n = _xxh64(key, _SEED_A), _xxh64(key, _SEED_B), _U(length)
    for _ in range(HASHES):
        table[first + np.int64(a % n)] += 1
        a = (a + b) & _LOW


@shared
def halve(table: Rows, first: int, length: int) -> None:
    """Local. Age all counts."""
    for k in range(first, first + length):
        table[k] >>= 1
