"""The memory of one arena and of the arrays beside it, as the rank that has cells there reaches it.

Covers hints, touches, descriptors, pins and payloads: of the own arena and those of the node's ranks they are mapped
here, of others there is a mirror (`far_area`). Does not cover which pages are whose (`leases`), nor what is done with
them (`cells`).
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.fabric import Fabric
from cascade_mpi.far_area import FarMemory
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import DESCRIPTOR, DESCRIPTOR_BYTES


class Area(NamedTuple):
    """One rank's arena. `context` is what `write_cell` goes by."""

    rank: int
    gone: npt.NDArray[np.uint8]  # by page, as the touches and descriptors; those of disk cells are not among them
    touched: npt.NDArray[np.uint32]
    records: npt.NDArray[np.void]
    pin_words: npt.NDArray[np.uint64]
    descriptors_address: int
    arena_address: int
    context: npt.NDArray[np.int64]  # kept alive
    ctx: int  # its address
    far: FarMemory | None = None  # of another node: the arrays are a mirror, and payloads are reached through it

    @classmethod
    def own(cls, fabric: Fabric) -> Area:
        """Local. The arena of this rank."""
        pages = fabric.pages
        records = fabric.descriptors[:pages].view(DESCRIPTOR)[:, 0]
        return cls(
            fabric.comm.rank, fabric.gone[:pages], fabric.touched[:pages], records, fabric.pin_words,
            fabric.descriptors_address, fabric.arena_address, fabric.context, fabric.ctx,
        )  # fmt: skip

    @classmethod
    def of(cls, fabric: Fabric, rank: int) -> Area:
        """Local. The arena of another rank, mapped here or not."""
        return cls.peer(fabric, rank) if fabric.mapped[rank] else cls.mirrored(fabric, rank)

    @classmethod
    def mirrored(cls, fabric: Fabric, rank: int) -> Area:
        """Local. The arena of a rank of another node. `write_cell` writes descriptors to the mirror, and no payload."""
        far = FarMemory(fabric, rank)
        base, pages = far.mirror.ctypes.data, fabric.pages
        context, table = fabric.context.copy(), fabric.data.table.copy()
        table[rank, 0] = base
        context[c.RANK], context[c.DATA_BASES] = rank, table.ctypes.data
        far.table = table  # kept alive for the context
        described = far.mirror[fabric.descriptor_at : fabric.descriptor_at + DESCRIPTOR_BYTES * pages]
        return cls(
            rank, far.mirror[fabric.gone_at : fabric.gone_at + pages],
            far.mirror[fabric.touch_at : fabric.touch_at + 4 * pages].view(np.uint32), described.view(DESCRIPTOR),
            far.pins, base + fabric.descriptor_at, 0, context, int(context.ctypes.data), far,
        )  # fmt: skip

    @classmethod
    def peer(cls, fabric: Fabric, rank: int) -> Area:
        """Local. The arena of another rank of this node: its memory is mapped here."""
        base, pins = int(fabric.data.table[rank, 0]), int(fabric.pins.table[rank, 0])
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
