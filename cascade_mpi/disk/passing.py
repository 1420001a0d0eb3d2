"""Blocks on disk that nobody finds any more, of epochs that have passed or expired: their cells are given back.

Covers which they are and taking them out of the index, a few at a time. Does not cover their bytes in the files
(`compaction`), nor blocks in memory (`cascade_mpi.passing`): a block that is in memory too goes with that.

They leave no tombstone: a restart knows epochs and expiries. But the floor of their home rises as with a delete, or the
next block of an expired one's key could be put under a lower sequence and be older to a restart.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping

import numpy as np

from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.fabric import Fabric


class DiskPassing:
    """What is to go of one rank's disk cells."""

    def __init__(self, fabric: Fabric, tier: DiskTier) -> None:
        self._fabric, self._tier, self._cells = fabric, tier, tier.cells
        self._passed: deque[int] = deque()  # words
        cells = np.flatnonzero((self._cells.words != 0) & (self._cells.records["expiry"] != 0))
        expiries, words = self._cells.records["expiry"][cells].tolist(), self._cells.words[cells].tolist()
        self._expiring = list(zip(expiries, words, strict=True))  # a heap of (expiry, word)
        heapq.heapify(self._expiring)
        self.passed = self.expired = 0
        self._cells.entered = self._entered

    def _entered(self, word: int, expiry: int) -> None:
        heapq.heappush(self._expiring, (expiry, word))
        if len(self._expiring) > 2 * self._cells.live + 1024:
            self._expiring = [each for each in self._expiring if self._cells.is_live(each[1])]
            heapq.heapify(self._expiring)

    def let_pass(self, epochs: Mapping[int, int]) -> None:
        """Local. Blocks of these namespaces (ids) at an earlier epoch are to go, and no more come here."""
        tier, cells = self._tier, self._cells
        with tier.lock:
            tier.epochs = epochs
            live = np.flatnonzero(cells.words)
            records = cells.records[live]
            old = np.zeros(live.size, np.bool_)
            for namespace, epoch in epochs.items():
                old |= (records["namespace"] == np.uint64(namespace)) & (records["epoch"] < epoch)
            self._passed = deque(cells.words[live[old]].tolist())

    def drop_some(self, limit: int) -> None:
        """Local. Take at most so many of each kind out. 1 Get + 1 CAS + 1 Accumulate each."""
        if not self._passed and not self._expiring:
            return
        tier, cells, left = self._tier, self._cells, limit
        with tier.lock:
            while self._passed and left:
                word, left = self._passed[0], left - 1
                if cells.is_live(word):
                    self.passed += tier.remove(cells.cell_of(word), tombstone=False)
                self._passed.popleft()  # last: what MPI fails to remove is tried again
            now = self._fabric.now()
            while self._expiring and self._expiring[0][0] <= now and limit:
                word, limit = self._expiring[0][1], limit - 1
                if cells.is_live(word):
                    self.expired += tier.remove(cells.cell_of(word), tombstone=False)
                heapq.heappop(self._expiring)
