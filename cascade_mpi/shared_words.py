"""Words of all ranks that MPI atomics alone change: namespaces, epochs, quotas, protected bytes, leases.

Covers how one is read and changed: a window of its own, a Get or a load, a compare-and-swap. Does not cover what stands
in them (`registry`, `quotas`, `protected_bytes`, `leases`). Each kind of word is changed by one operation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.fabric import Fabric

CHANGES = 0  # counts the bumps that have reached this rank
PROTECTED = 1  # payload bytes in this rank's arena that hard words name (see `protected_bytes`)
FLOOR = 2  # the highest sequence of a delete among the keys of this home (see `disk.sequences`)
HEADER = 8  # words, a cache line
Words = npt.NDArray[np.uint64]


def table_bytes(slots: int) -> int:
    """Local. Bytes of the array on each rank."""
    return 8 * (HEADER + 4 * slots)


class SharedWords:
    """The words as one rank sees and changes them."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._get, self._cas, self._add, self._spread, self._lift = (
            fabric.guarded(call)
            for call in (self._mpi_get, self._mpi_cas, self._mpi_add, self._mpi_spread, self._mpi_lift)
        )

    def read(self, rank: int, word: int) -> int:
        """Local. A word of a rank's table. 1 Get."""
        return int(self._get(rank, word, 1)[0])

    def read_many(self, rank: int, word: int, count: int) -> Words:
        """Local. Words of a rank's table, one after the other. 1 Get."""
        found: Words = self._get(rank, word, count)
        return found

    def swap(self, rank: int, word: int, old: int, new: int) -> bool:
        """Local. Change a word of a rank's table from `old` to `new`; False if it is not `old`. 1 CAS."""
        return int(self._cas(rank, word, old, new)) == old

    def change(self, rank: int, word: int, update: Callable[[int], int]) -> None:
        """Local. Change a word of a rank's table by compare-and-swap, unless `update` leaves it. 1 Get + 1 CAS."""
        old = self.read(rank, word)
        while (new := update(old)) != old:
            seen = int(self._cas(rank, word, old, new))
            if seen == old:
                return
            old = seen

    def lift(self, rank: int, word: int, value: int) -> None:
        """Local. Raise a word of a rank's table to a value, unless it is above. 1 Accumulate + 1 Flush."""
        self._lift(rank, word, value)

    def _at(self, rank: int, word: int) -> int:
        return int(self._fabric.spaces.table[rank, 1]) + 8 * word

    def _mpi_get(self, rank: int, word: int, count: int) -> Words:
        if base := int(self._fabric.spaces.table[rank, 0]):  # a load does not wait for a rank that computes
            return np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(base + 8 * word)).copy()
        window, found = self._fabric.spaces.world, np.empty(count, np.uint64)
        window.Get([found, MPI.UINT64_T], rank, [self._at(rank, word), count, MPI.UINT64_T])
        window.Flush(rank)
        return found

    def _mpi_cas(self, rank: int, word: int, old: int, new: int) -> int:
        window = self._fabric.spaces.world
        values, seen = np.array([new, old], np.uint64), np.empty(1, np.uint64)
        window.Compare_and_swap(
            [values[:1], MPI.UINT64_T], [values[1:], MPI.UINT64_T], [seen, MPI.UINT64_T], rank, self._at(rank, word)
        )
        window.Flush(rank)
        return int(seen[0])

    def _mpi_add(self, rank: int, word: int) -> int:
        window, one, before = self._fabric.spaces.world, np.ones(1, np.uint64), np.empty(1, np.uint64)
        window.Fetch_and_op([one, MPI.UINT64_T], [before, MPI.UINT64_T], rank, self._at(rank, word), MPI.SUM)
        window.Flush(rank)
        return int(before[0])

    def _mpi_spread(self, word: int, value: int, operation: MPI.Op) -> None:
        window, buffer = self._fabric.spaces.world, np.array([value], np.uint64)
        for rank in range(self._fabric.comm.size):
            target = [self._at(rank, word), 1, MPI.UINT64_T]
            window.Accumulate([buffer, MPI.UINT64_T], rank, target, operation)
        window.Flush_all()

    def _mpi_lift(self, rank: int, word: int, value: int) -> None:
        window, buffer = self._fabric.spaces.world, np.array([value], np.uint64)
        window.Accumulate([buffer, MPI.UINT64_T], rank, [self._at(rank, word), 1, MPI.UINT64_T], MPI.MAX)
        window.Flush(rank)
