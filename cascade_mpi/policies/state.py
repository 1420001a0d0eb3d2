"""What a policy keeps: four flat arrays that its compiled operations share.

Covers the fields of a block's row, the common numbers and small helpers on them. Does not cover any order
between blocks (`links`, `heap`) nor a policy's own numbers, which follow the common ones.

    nodes    int32[4 * rows]   a row of 16 bytes a block; list heads and small tables come after the blocks
    numbers  int64[...]        capacity and sums, then what the policy needs
    sizes    int64[n] or [0]   bytes of each block; empty when every block counts 1
    reals    float64[...]      priorities, of the policies that have some
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_mpi.policies.compiled import device

Rows = NDArray[np.int32]
Numbers = NDArray[np.int64]
Reals = NDArray[np.float64]
State = tuple[Rows, Numbers, Numbers, Reals]

ROW = 4  # a row has four fields, so that a block is one quarter of a cache line
PREVIOUS, NEXT, CODE, MARK = range(ROW)
ROW_BYTES = 4 * ROW

# CODE: where a block is. Positive: resident, in which list. Negative: a ghost, in which list.
UNKNOWN = 0
FORGOTTEN = -100  # no longer remembered, and the owner of the ids has not been told
SEEN = 1 << 30  # twice in one batch; set and cleared within a call

CAPACITY, USED, COUNT, BLOCKS, RECYCLE, OWN = range(6)


@device
def size_of(state: State, i: int) -> int:
    """Local. What block i takes of the capacity."""
    sizes = state[2]
    return sizes[i] if sizes.size else 1


@device
def is_resident(state: State, i: int) -> bool:
    """Local. Is block i in the cache?"""
    return bool(state[0][ROW * i + CODE] > 0)


@device
def nothing(state: State, i: int) -> None:
    """Local. For the operations that a policy has no use for."""


@device
def nothing_to_trim(state: State) -> None:
    """Local. For policies without ghosts and without shares of the capacity."""
