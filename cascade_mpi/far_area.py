"""The memory of an arena on another node: what a lessee writes there and looks at, by MPI.

Covers the mirror of descriptors, hints, touches and pins in this rank's memory, and how each part gets to the arena or
from it. Does not cover who may write what (`leases`), nor the order in which it happens (`cells`, `writer`, `mover`).

Only the holder of an extent writes descriptors there, so that the mirror is right about them; hints, touches and pins
are written by others, and are looked at anew whenever that matters. Every call flushes before it returns: what was
written stands in the arena when the index is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.fabric import Fabric
from cascade_mpi.layout import DESCRIPTOR_BYTES

_LARGEST_PIECE = 1 << 30  # an MPI count is an int
_Bytes = npt.NDArray[np.uint8]


class FarMemory:
    """The data memory of a rank of another node, mirrored up to its arena."""

    def __init__(self, fabric: Fabric, rank: int) -> None:
        self._fabric, self.rank = fabric, rank
        self.mirror = np.zeros(fabric.arena_at, np.uint8)  # pages of it that are never used take no memory
        self.pins = np.zeros_like(fabric.pin_words)
        self.table: npt.NDArray[np.int64] | None = None  # where a kernel's context finds the mirror
        world = fabric.data.world
        self._get, self._put = (fabric.guarded(partial(self._mpi_move, move)) for move in (world.Get, world.Put))

    def _mpi_move(self, move: Callable[..., None], runs: Iterable[tuple[int, _Bytes]]) -> None:
        """Get or Put (offset, bytes) runs of the data memory."""
        window, start = self._fabric.data, int(self._fabric.data.table[self.rank, 1])
        for offset, run in runs:
            for done in range(0, run.nbytes, _LARGEST_PIECE):
                piece = run[done : done + _LARGEST_PIECE]
                move([piece, MPI.BYTE], self.rank, [start + offset + done, piece.nbytes, MPI.BYTE])
        window.world.Flush(self.rank)

    def _mirrored(self, at: int, nbytes: int) -> tuple[int, _Bytes]:
        return at, self.mirror[at : at + nbytes]

    # ------------------------------------------------------------------------------------ what others write

    def look_at_hints(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Local. The hints of these (first page, pages). 1 Get each, 1 Flush."""
        self._get([self._mirrored(self._fabric.gone_at + first, pages) for first, pages in ranges])

    def look_at_touches(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Local. The touches of these (first page, pages). 1 Get each, 1 Flush."""
        self._get([self._mirrored(self._fabric.touch_at + 4 * first, 4 * pages) for first, pages in ranges])

    def look_at_pins(self) -> None:
        """Local. The pins at that rank. 1 Get, 1 Flush."""
        self._fabric.guarded(self._mpi_look_at_pins)()

    def _mpi_look_at_pins(self) -> None:
        window, room = self._fabric.pins, self.pins
        target = [int(window.table[self.rank, 1]), room.nbytes, MPI.BYTE]
        window.world.Get([room, room.nbytes, MPI.BYTE], self.rank, target)
        window.world.Flush(self.rank)

    # --------------------------------------------------------------------------- what the holder alone writes

    def look_at_descriptors(self, first: int, pages: int) -> None:
        """Local. What earlier holders have left there. 1 Get."""
        self._get([self._mirrored(self._fabric.descriptor_at + DESCRIPTOR_BYTES * first, DESCRIPTOR_BYTES * pages)])

    def send_descriptors(self, firsts: Iterable[int]) -> None:
        """Local. Write descriptors of cells as the mirror has them. 1 Put each, 1 Flush."""
        at = self._fabric.descriptor_at
        self._put([self._mirrored(at + DESCRIPTOR_BYTES * first, DESCRIPTOR_BYTES) for first in firsts])

    def send_hints(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Local. Write the hints of these (first page, pages), cleared, as the mirror has them."""
        self._put([self._mirrored(self._fabric.gone_at + first, pages) for first, pages in ranges])

    def send_touch(self, first: int) -> None:
        """Local. Write a cell's touch."""
        self._put([self._mirrored(self._fabric.touch_at + 4 * first, 4)])

    def send_payload(self, first: int, source: _Bytes) -> None:
        """Local. Write the payload of a cell. 1 Put, 1 Flush."""
        self._put([(self._fabric.arena_at + first * self._fabric.page_bytes, source)])

    def fetch_payload(self, first: int, nbytes: int) -> _Bytes:
        """Local. A copy of the payload of a cell. 1 Get, 1 Flush."""
        found = np.empty(nbytes, np.uint8)
        self._get([(self._fabric.arena_at + first * self._fabric.page_bytes, found)])
        return found
