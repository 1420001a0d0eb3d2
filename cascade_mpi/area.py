"""The memory of one arena and of the arrays beside it, as the rank that has cells there reaches it.

Covers hints, touches, descriptors, pins and payloads of an arena that is mapped here: the own one, and those of the
ranks of the node. Does not cover which pages are whose (`leases`) nor what is done with them (`dram`).
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import DESCRIPTOR, DESCRIPTOR_BYTES


class Area(NamedTuple):
    """One rank's arena. `context` is what `write_cell` goes by."""

    rank: int
    gone: npt.NDArray[np.uint8]  # by page, as the touches and descriptors
    touched: npt.NDArray[np.uint32]
    records: npt.NDArray[np.void]
    pin_words: npt.NDArray[np.uint64]
    descriptors_address: int
    arena_address: int
    context: npt.NDArray[np.int64]  # kept alive
    ctx: int  # its address

    @classmethod
    def own(cls, fabric: Fabric) -> Area:
        """Local. The arena of this rank."""
        records = fabric.descriptors.view(DESCRIPTOR)[:, 0]
        return cls(
            fabric.comm.rank, fabric.gone, fabric.touched, records, fabric.pin_words, fabric.descriptors_address,
            fabric.arena_address, fabric.context, fabric.ctx,
        )  # fmt: skip

    @classmethod
    def peer(cls, fabric: Fabric, rank: int) -> Area:
        """Local. The arena of another rank of this node: its memory is mapped here."""
        base, pins = int(fabric.data.table[rank, 0]), int(fabric.pins.table[rank, 0])
        if not base or not pins:
            raise ValueError(f"the memory of rank {rank} is not mapped here")
        described = _bytes(base + fabric.descriptor_at, DESCRIPTOR_BYTES * fabric.pages)
        context = fabric.context.copy()
        context[c.RANK] = rank  # `write_cell` writes to the arena of the context's rank, and names it in the word
        return cls(
            rank, _bytes(base + fabric.gone_at, fabric.pages),
            _bytes(base + fabric.touch_at, 4 * fabric.pages).view(np.uint32), described.view(DESCRIPTOR),
            _bytes(pins, fabric.pin_words.nbytes).view(np.uint64), base + fabric.descriptor_at,
            base + fabric.arena_at, context, int(context.ctypes.data),
        )  # fmt: skip


def _bytes(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
