"""Blocks with known contents: filling them, and finding the blocks that differ.

Covers the words of a block as a function of (block id, position in the prefix, word index), so that a
swapped, shifted, truncated or stale block differs in every word that is wrong. Does not cover buffers
and tails in bytes (see `cascade_mpi.blocks`).

The word at index i is ``x ^ x >> 29`` with ``x = seed + i * GOLDEN``: one addition, a shift and a XOR,
which vectorise, so that filling and comparing go at the speed of the memory. The constants are those
of SplitMix64; they may be module constants because `jit` stamps its cache with this file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import uint64

from cascade_mpi.kernels.jit import device, kernel

GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB

Words = npt.NDArray[np.uint64]


@device
def _seed(block_id, position):  # type: ignore[no-untyped-def]
    x = uint64(block_id) * uint64(GOLDEN) + uint64(position)
    x = (x ^ (x >> uint64(30))) * uint64(_MIX1)
    x = (x ^ (x >> uint64(27))) * uint64(_MIX2)
    return x ^ (x >> uint64(31))


@kernel("void(uint64[:,::1], uint64[::1], int64)")
def fill(words, ids, first):  # type: ignore[no-untyped-def]
    """Row k of `words` becomes the contents of block `ids[k]` at position `first + k` of its prefix."""
    for k in range(ids.size):
        seed = _seed(ids[k], first + k)
        row = words[k]
        for i in range(row.size):
            x = seed + uint64(i) * uint64(GOLDEN)
            row[i] = x ^ (x >> uint64(29))


@kernel("void(uint64[:,::1], uint64[::1], int64, uint64, int64, boolean[::1])")
def differs(words, ids, first, last_mask, step, wrong):  # type: ignore[no-untyped-def]
    """`wrong[k]`: whether row k is not what `fill` wrote, looking at every `step`-th word and the last one.

    Only the bits of `last_mask` count in the last word.
    """
    for k in range(ids.size):
        seed = _seed(ids[k], first + k)
        row = words[k]
        last = row.size - 1
        difference = uint64(0)
        if step == 1:  # a loop of its own: with a constant step it vectorises
            for i in range(last):
                x = seed + uint64(i) * uint64(GOLDEN)
                difference |= row[i] ^ x ^ (x >> uint64(29))
        else:
            for i in range(0, last, step):
                x = seed + uint64(i) * uint64(GOLDEN)
                difference |= row[i] ^ x ^ (x >> uint64(29))
        x = seed + uint64(last) * uint64(GOLDEN)
        difference |= (row[last] ^ x ^ (x >> uint64(29))) & last_mask
        wrong[k] = difference != uint64(0)


def block_words(block_id: int, position: int, count: int) -> Words:
    """Local. The first `count` words of a block: the NumPy twin of `fill`, in plain arithmetic."""
    mask = (1 << 64) - 1
    seed = block_id * GOLDEN + position & mask
    seed = (seed ^ seed >> 30) * _MIX1 & mask
    seed = (seed ^ seed >> 27) * _MIX2 & mask
    seed ^= seed >> 31
    x = np.uint64(seed) + np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN)
    words: Words = x ^ x >> np.uint64(29)
    return words
