"""One descriptor of any rank, as its manager or a sweep looks at it.

Covers the copy of its 128 bytes, which may be torn: the caller compares its word afterwards.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from mpi4py import MPI

from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import DESCRIPTOR, DESCRIPTOR_BYTES, unpack_word


def descriptor_of(fabric: Fabric, word: int) -> Any:
    """Local. A copy of the descriptor that a word names, as a record of `DESCRIPTOR`. 1 Get where it is far away."""
    named = unpack_word(word)
    at = fabric.descriptor_at + named.page * DESCRIPTOR_BYTES
    copy = np.empty(DESCRIPTOR_BYTES, np.uint8)
    if base := int(fabric.data.table[named.rank, 0]):
        full_fence()
        ctypes.memmove(copy.ctypes.data, base + at, DESCRIPTOR_BYTES)
        full_fence()
    else:
        fabric.guarded(_fetch)(fabric, named.rank, at, copy)
    return copy.view(DESCRIPTOR)[0]


def _fetch(fabric: Fabric, rank: int, at: int, copy: Any) -> None:
    window = fabric.data.world
    window.Get([copy, MPI.BYTE], rank, [int(fabric.data.table[rank, 1]) + at, DESCRIPTOR_BYTES, MPI.BYTE])
    window.Flush(rank)
