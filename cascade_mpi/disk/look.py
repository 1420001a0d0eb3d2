"""One descriptor of any rank: a look at it, and the wish of a disk cell that is met.

Covers the copy of its 128 bytes, which may be torn: the caller compares its word afterwards. And the flag by which a
disk cell says that its block was protected when it was written: it counts once, then the word has the bit.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from mpi4py import MPI

from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import DESCRIPTOR, DESCRIPTOR_BYTES, FLAG_HELD, unpack_word

assert DESCRIPTOR.fields is not None
_FLAGS_AT = DESCRIPTOR.fields["flags"][1]


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


def no_longer_held(fabric: Fabric, word: int, flags: int) -> None:
    """Local. Take FLAG_HELD off the disk cell that a word names, which has these flags. 1 Put where it is far away.

    Its manager does not change them while the cell lives, and it lives as long as the index has this word, or that of a
    block in memory which it backs: the caller sees to that.
    """
    named = unpack_word(word)
    at = fabric.descriptor_at + named.page * DESCRIPTOR_BYTES + _FLAGS_AT
    without = flags & ~FLAG_HELD
    if base := int(fabric.data.table[named.rank, 0]):
        ctypes.c_uint16.from_address(base + at).value = without
        full_fence()
    else:
        fabric.guarded(_put)(fabric, named.rank, at, np.array([without], np.uint16))


def _fetch(fabric: Fabric, rank: int, at: int, copy: Any) -> None:
    window = fabric.data.world
    window.Get([copy, MPI.BYTE], rank, [int(fabric.data.table[rank, 1]) + at, DESCRIPTOR_BYTES, MPI.BYTE])
    window.Flush(rank)


def _put(fabric: Fabric, rank: int, at: int, value: Any) -> None:
    window = fabric.data.world
    window.Put([value, MPI.BYTE], rank, [int(fabric.data.table[rank, 1]) + at, value.nbytes, MPI.BYTE])
    window.Flush(rank)
