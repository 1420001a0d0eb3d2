"""Sequences of blocks and deletes: which of two with one key is the newer one, whatever the ranks' clocks say.

Covers this rank's clock and the floors of all homes. Does not cover where sequences are compared (`writer`, `restart`).

A sequence is time in units of 4096 ns of Unix time, above what is replaced, with the rank in the low 12 bits: no two
are the same. The floor of a home is the highest sequence of a delete among its keys. Who takes a word out raises it
before; a put that finds its own sequence not above it, after it was published, puts again (rules 6 and 7 of
`docs/disk.md`): its look-up has taught it nothing, as the block that was deleted had gone.
"""

from __future__ import annotations

import threading
import time

from cascade_mpi.layout import RANK_BITS
from cascade_mpi.shared_words import FLOOR, SharedWords


class Sequences:
    """The clock of one rank, and the floors of all."""

    def __init__(self, rank: int, shared: SharedWords, highest: int) -> None:
        """`highest` is above all that the directory holds, the same on all ranks."""
        self._rank, self._shared = rank, shared
        self._last = highest >> RANK_BITS
        self._lock = threading.Lock()

    def next(self, above: int = 0) -> int:
        """Local. A sequence above all that this rank has given, and above `above`."""
        with self._lock:
            self._last = max(self._last, time.time_ns() >> RANK_BITS, above >> RANK_BITS) + 1
            return self._last << RANK_BITS | self._rank

    def floor(self, home: int) -> int:
        """Local. The highest sequence of a delete among the keys of a home; 0: none. 1 Get, a load on the own node."""
        return self._shared.read(home, FLOOR)

    def for_delete(self, home: int, found: int) -> int:
        """Local. The sequence of a delete of what was found with that sequence, raised to be the home's floor.

        The look-up was before. Above the floor by one unit, not by the clock: puts under way would be below it, and put
        again for nothing. 1 Get + 1 Accumulate.
        """
        sequence = (max(found, self.floor(home)) >> RANK_BITS) + 1 << RANK_BITS | self._rank
        self._shared.lift(home, FLOOR, sequence)
        return sequence
