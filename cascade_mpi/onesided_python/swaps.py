"""Compare-and-swaps of index words: `onesided.swaps` through mpi4py.

Does not cover the order of a put, a delete and a reclaim (`writer`, `cells`).
"""

from __future__ import annotations

from mpi4py import MPI

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.layout import BUCKET_BYTES, FP_SHIFT
from cascade_mpi.onesided.mpi import INDEX
from cascade_mpi.onesided_python.mpi import reporting
from cascade_mpi.onesided_python.records import CHANGED, Scratch
from cascade_mpi.onesided_python.words import IndexWords, matches


class Swaps(IndexWords):
    """Compare-and-swaps of index words."""

    def _swap(self, s: Scratch, home: int, offset: int, old: int, new: int) -> int:
        """The word that was there."""
        s.unsigned[c.COMPARE], s.unsigned[c.ORIGIN] = old, new
        origin, compare, result = (
            [MPI.buffer.fromaddress(s.at(field), 8), 1, MPI.UINT64_T] for field in (c.ORIGIN, c.COMPARE, c.RESULT)
        )
        self._windows[INDEX].world.Compare_and_swap(origin, compare, result, home, self._at(INDEX, home, offset))
        self._flush(home, INDEX)
        return int(s.unsigned[c.RESULT])

    @reporting
    def publish(self, ctx: int, s: int, home: int, bucket: int, slot: int, old: int, new: int) -> int:
        """Local. CAS `old` to `new`: CHANGED if it lost, else the number of other words of its fingerprint."""
        scratch = Scratch(s)
        probe.full_fence()  # all of the cell before its word
        if self._swap(scratch, home, bucket * BUCKET_BYTES + slot * 8, old, new) != old:
            return CHANGED
        probe.full_fence()  # the own word before the look at the others'
        words = self._read_bucket(scratch, home, bucket)
        return sum(1 for _, word in matches(words, new >> FP_SHIFT) if word != new)

    @reporting
    def remove(self, ctx: int, s: int, home: int, bucket: int, slot: int, word: int) -> int:
        """Local. CAS a word away: 1 if this call did it, 0 if it had changed."""
        seen = self._swap(Scratch(s), home, bucket * BUCKET_BYTES + slot * 8, word, 0)
        probe.full_fence()  # the removal before the look at the pins
        return int(seen == word)

    @reporting
    def swap(self, ctx: int, s: int, home: int, bucket: int, slot: int, old: int, new: int) -> int:
        """Local. CAS `old` to `new`: 1 if this call did it, 0 if it had changed."""
        seen = self._swap(Scratch(s), home, bucket * BUCKET_BYTES + slot * 8, old, new)
        probe.full_fence()  # the word before the hint that it has changed
        return int(seen == old)
