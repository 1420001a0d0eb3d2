"""Random pauses at the steps of the protocol where a race would show.

Covers readers between the copy and the re-check, managers between the removal of a word and the look at
the pins, putters between the look at the bucket and the compare-and-swap. Does not cover pauses at a
chosen moment (tests install their own hooks).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.store import Store

_READER_SPINS = (0, 30, 300, 3_000, 30_000, 300_000)  # loops, of about 1 ns each, at most
_READER_WEIGHTS = (15, 25, 20, 15, 15, 10)
_SLEEP_SHARE, _SLEEP_S = 1 / 64, 300e-6  # of the putter's and the manager's passes; longest sleep


class Pauses:
    """The pauses of one rank's store, from construction until `remove`."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store, self._random = store, random.Random(seed)
        self._area = np.zeros(c.HOOK_WORDS, np.int64)
        self._area[c.H_RANDOM] = seed | 1
        self.slept = {"manager": 0, "putter": 0, "mover": 0}
        store._fabric.context[c.HOOKS] = self._area.ctypes.data
        self._set(self._sleep)
        self.vary()

    def vary(self) -> None:
        """Local. Choose how long readers spin from now on: mostly shortly, at times for longer than a put takes."""
        self._area[c.H_READER] = self._random.choices(_READER_SPINS, _READER_WEIGHTS)[0]

    @property
    def spun(self) -> int:
        """Times that a reader was held between its copy and its re-check."""
        return int(self._area[c.H_PASSED])

    def remove(self) -> None:
        """Local. No more pauses."""
        self._store._fabric.context[c.HOOKS] = 0
        self._set(None)

    def _set(self, pause: Callable[[str], None] | None) -> None:
        store = self._store
        with store._pool.lock:  # tiers of memory that is leased later take it from the own one
            for tier in store._pool.tiers.values():
                tier.pause = pause
        store._writer.pause = store._mover.pause = pause

    def _sleep(self, who: str) -> None:
        """A share of the passes, and the first of each kind: a short run has each pause too."""
        if not self.slept[who] or self._random.random() < _SLEEP_SHARE:
            self.slept[who] += 1
            time.sleep(self._random.random() * _SLEEP_S)
