"""Hazard-slot pins: keep a cell from being reused while somebody looks at it.

Covers this rank's slots at every manager and the order in which they are written. Does not cover what is
pinned (`view`) nor the manager's look at the slots (`cells`). Each slot is written by one rank only.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from cascade_mpi.errors import NoPinSlotError, ProtocolError, StoreClosedError
from cascade_mpi.fabric import Fabric
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.onesided import SLOTS_PER_PEER


@dataclass(eq=False)
class Pin:
    """A pinned cell; `release` it once it is not looked at any more."""

    table: PinTable
    word: int
    manager: int
    slot: int
    since: float
    releasing: bool = False

    def release(self) -> None:
        """Local. Give the slot back; nothing the second time. 1 Put + 1 Flush."""
        self.table.release(self)


class PinTable:
    """The pins that this rank holds."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._lock = threading.RLock()  # the collector may release a view while this thread holds it
        self._held: dict[int, list[Pin | None]] = {}

    def pin(self, word: int, manager: int, home: int, bucket: int, slot: int) -> Pin | None:
        """Local. Pin the cell that `word` names, or None if the word has left its slot meanwhile.

        1 Put + 1 Get + 2 Flushes; on the own node two stores, a fence and a load.

        Raises
        ------
        NoPinSlotError
            All slots of this rank at that manager are taken; the text says since when.
        """
        made = self._take(word, manager)
        fabric, s = self._fabric, self._fabric.scratch
        done = fabric.pin(fabric.ctx, s.address, word, made.slot, home, bucket, slot)
        if done == 1:
            return made
        self._forget(made)
        if done == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        if done == c.ON_DISK:
            raise ProtocolError(f"word {word:016x} of rank {manager} names a block on disk: there is no memory to pin")
        return None

    @uninterrupted
    def release(self, pin: Pin) -> None:
        """Local. Clear the slot of a pin."""
        with self._lock:  # one of two releases at once: the slot may have another holder after the first
            if pin.releasing or self._held.get(pin.manager, [None] * SLOTS_PER_PEER)[pin.slot] is not pin:
                return
            pin.releasing = True
        fabric, s = self._fabric, self._fabric.scratch
        try:
            if fabric.unpin(fabric.ctx, s.address, pin.manager, pin.slot) < 0:
                fabric.raise_mpi_error(s)
        except StoreClosedError:
            pass  # a view that was let go late: the slot went with the store
        self._forget(pin)

    def held(self) -> list[Pin]:
        """Local. The pins that are held now."""
        with self._lock:
            return [pin for slots in self._held.values() for pin in slots if pin is not None]

    def by_manager(self) -> dict[int, list[int]]:
        """Local. The words of the pins that are held now, by the rank whose slots they are in."""
        words: dict[int, list[int]] = {}
        for pin in self.held():
            words.setdefault(pin.manager, []).append(pin.word)
        return words

    def _take(self, word: int, manager: int) -> Pin:
        with self._lock:
            slots = self._held.setdefault(manager, [None] * SLOTS_PER_PEER)
            for number, holder in enumerate(slots):
                if holder is None:
                    slots[number] = made = Pin(self, word, manager, number, time.monotonic())
                    return made
            ages = ", ".join(f"{time.monotonic() - pin.since:.1f} s" for pin in slots if pin is not None)
        raise NoPinSlotError(
            f"rank {self._fabric.comm.rank} holds all {SLOTS_PER_PEER} pins that it may hold at rank {manager} "
            f"(ages: {ages}): release a view or pin first"
        )

    def _forget(self, pin: Pin) -> None:
        with self._lock:
            self._held[pin.manager][pin.slot] = None
