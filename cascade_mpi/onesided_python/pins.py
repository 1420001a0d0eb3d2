"""Hazard slots: `onesided.pins` through mpi4py.

Does not cover who owns a slot (`cascade_mpi.pins`).
"""

from __future__ import annotations

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.layout import is_disk, unpack_word
from cascade_mpi.onesided.mpi import PINS
from cascade_mpi.onesided.pins import SLOTS_PER_PEER
from cascade_mpi.onesided_python.mpi import reporting
from cascade_mpi.onesided_python.records import ON_DISK, Scratch
from cascade_mpi.onesided_python.words import IndexWords


class Pins(IndexWords):
    """Hazard slots."""

    def _write_pin(self, s: Scratch, manager: int, pin_slot: int, word: int) -> None:
        """After everything before, and seen before anything after."""
        at = (self._field(c.RANK) * SLOTS_PER_PEER + pin_slot) * 8
        base = self._base(PINS, manager)
        if base:
            probe.store_word(base + at, word)
            return
        probe.full_fence()
        s.unsigned[c.ORIGIN] = word
        self._put(s.at(c.ORIGIN), 8, manager, at, PINS)
        self._flush(manager, PINS)
        probe.full_fence()

    @reporting
    def pin(self, ctx: int, s: int, word: int, pin_slot: int, home: int, bucket: int, slot: int) -> int:
        """Local. Write the word into a hazard slot of its manager, then read it again: 1 if pinned, else 0.

        ON_DISK, and nothing written, for the word of a disk cell.
        """
        if is_disk(word):
            return ON_DISK
        scratch, manager = Scratch(s), unpack_word(word).rank
        self._write_pin(scratch, manager, pin_slot, word)
        if self._reload(scratch, home, bucket, slot) == word:
            return 1
        self._write_pin(scratch, manager, pin_slot, 0)
        return 0

    @reporting
    def unpin(self, ctx: int, s: int, manager: int, pin_slot: int) -> int:
        """Local. Clear a hazard slot, after everything that was read under it."""
        self._write_pin(Scratch(s), manager, pin_slot, 0)
        return 0
