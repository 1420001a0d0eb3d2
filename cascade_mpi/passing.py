"""Blocks that nobody finds any more, of epochs that have passed or expired: out of memory, a few at a time.

Covers protected ones and copies too, and `clear`. Does not cover blocks that make room for others (`evictions`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping

import numpy as np

from cascade_mpi.cell_table import PAGE_MASK
from cascade_mpi.cells import Cells


class Passing(Cells):
    """What is to go whatever room there is."""

    def let_pass(self, epochs: Mapping[int, int]) -> None:
        """Local. Blocks of these namespaces (ids) whose epoch is not the given one are to go: nobody can find them."""
        with self.lock:
            live = np.flatnonzero(self.words)
            spaces, at = self.records["namespace"][live], self.records["epoch"][live]
            known = np.array(sorted(epochs), np.uint64)
            place = np.minimum(np.searchsorted(known, spaces), known.size - 1)
            begun = np.array([epochs[namespace_id] for namespace_id in known.tolist()], np.uint32)
            old = (known[place] == spaces) & (at < begun[place])
            self._passed = deque(self.words[live[old]].tolist())

    def let_one_pass(self, word: int) -> None:
        """Local. The block of this word is to go: its epoch passed before it was published."""
        self._passed.append(word)

    @property
    def any_passed(self) -> bool:
        """Whether blocks of passed epochs wait to be taken out."""
        return bool(self._passed)

    def drop_passed(self, limit: int | None = None) -> int:
        """Local. Take blocks and copies of passed epochs out, protected ones too, at most `limit`: how many."""
        dropped = 0
        with self.lock:
            while self._passed and (limit is None or dropped < limit):
                word = self._passed[0]
                if self._is_live(word):
                    self.remove(word & PAGE_MASK, passed=True)
                    dropped += 1
                    self.passed += 1
                self._passed.popleft()  # last: what MPI fails to remove is tried again
        return dropped

    @property
    def any_expiring(self) -> bool:
        """Whether any block has an expiry, past or not."""
        return bool(self._expiring)

    def drop_expired(self, limit: int | None = None) -> int:
        """Local. Take expired blocks and copies out, protected ones too, after at most `limit` looks: how many."""
        dropped = looks = 0
        with self.lock:
            now = self.fabric.now()
            while self._expiring and self._expiring[0][0] <= now and (limit is None or looks < limit):
                looks += 1
                word = self._expiring[0][1]
                if self.below is not None and not self.below.may_drop():
                    break  # it leaves a tombstone, as what it replaced may be durable
                if self._is_live(word):
                    copied = bool(self.copies[word & PAGE_MASK])
                    self.remove(word & PAGE_MASK)
                    self.expired += not copied
                    dropped += 1
                heapq.heappop(self._expiring)  # last: what MPI fails to remove is tried again
        return dropped

    def clear(self) -> None:
        """Local. Take every block of this rank out, hard ones too."""
        with self.lock:
            for first in np.flatnonzero(self.words).tolist():
                self.remove(first)
