"""Which blocks of other nodes are to be copied, and by whom: `onesided.claims` in Python.

Does not cover the copies themselves (`copies`).
"""

from __future__ import annotations

import ctypes
from typing import Any

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.layout import BUCKET_BYTES, HARD_SHIFT, unpack_word
from cascade_mpi.onesided.claims import CLAIM_TICKS
from cascade_mpi.onesided.mpi import DATA, INDEX
from cascade_mpi.onesided.words import FETCH, WHOLE
from cascade_mpi.onesided_python.records import DUE, MASK64, MIX, Scratch
from cascade_mpi.onesided_python.words import IndexWords

_HALVED = int.from_bytes(b"\x7f" * c.READ_COUNT_BYTES)


class Claims(IndexWords):
    """Counts of remote reads, and claims on blocks that are about to be copied."""

    def _counters_of(self, hi: int, lo: int) -> tuple[Any, Any]:
        """The two counters of a key; the smaller one counts."""
        mixed, first = _key_mix(hi, lo), self._field(c.READ_COUNTS) + 8
        last = c.READ_COUNT_BYTES - 1
        one, other = (ctypes.c_uint8.from_address(first + (mixed >> shift & last)) for shift in (48, 24))
        return one, other

    def _is_next(self, s: Scratch, hi: int, lo: int, word: int) -> bool:
        if word >> HARD_SHIFT & 1 or s.signed[c.KEEP_ALL]:
            return True
        one, other = self._counters_of(hi, lo)
        return bool(min(one.value, other.value) + 1 >= self._field(c.COPY_AFTER))

    def _is_due(self, s: Scratch, hi: int, lo: int, word: int) -> bool:
        """Count a remote read of a block; is it to be copied now?"""
        counts = self._field(c.READ_COUNTS)
        reads = ctypes.c_uint64.from_address(counts)
        reads.value += 1
        if reads.value >= c.READ_COUNT_BYTES:
            reads.value = 0
            counters = (ctypes.c_uint8 * c.READ_COUNT_BYTES).from_address(counts + 8)
            halved = int.from_bytes(counters) >> 1 & _HALVED
            counters[:] = list(halved.to_bytes(c.READ_COUNT_BYTES))
        due = self._is_next(s, hi, lo, word)
        one, other = self._counters_of(hi, lo)
        smaller = min(one.value, other.value)
        for counter in (one, other):
            if due:
                counter.value = 0
            elif counter.value == smaller:
                counter.value = smaller + 1
        return due

    def _claim_word(self, hi: int, lo: int) -> Any:
        rank, bucket, _ = self._place_copy(hi, lo)
        first = (self._field(c.BUCKETS) + 2 * self._field(c.COPY_BUCKETS)) * BUCKET_BYTES
        at = self._base(INDEX, rank) + first + (bucket - self._field(c.BUCKETS)) * 8
        return ctypes.c_uint64.from_address(at)

    def _claim(self, s: Scratch, hi: int, lo: int, word: int) -> bool:
        """False if another rank of this node is about to fetch and copy the block. See the kernel."""
        s.signed[c.CLAIMING] = 0
        if not self._is_next(s, hi, lo, word):
            return True
        claim, tag, rank, tick = self._claim_word(hi, lo), _claim_tag(hi, lo), self._field(c.RANK), self._ticks(s)
        for look in range(2):
            seen = claim.value
            others = seen >> 32 == tag and seen >> 20 & 0xFFF != rank
            if others and (tick - seen) & 0xFFFFF <= CLAIM_TICKS:
                return False
            if look == 0:
                claim.value = tag << 32 | rank << 20 | tick & 0xFFFFF
                probe.full_fence()
        s.signed[c.CLAIMING] = 1
        return True

    def _drop_claim(self, hi: int, lo: int) -> None:
        claim = self._claim_word(hi, lo)
        if claim.value >> 20 == _claim_tag(hi, lo) << 12 | self._field(c.RANK):
            claim.value = 0

    def _then_copy(self, s: Scratch, hi: int, lo: int, outcome: int, what: int) -> int:
        """DUE in the place of bytes that were read from another node and are to be copied; else the claim ends."""
        if not self._field(c.COPY_BUCKETS):
            return outcome
        if outcome >= 0 and what in (WHOLE, FETCH):
            word = s.unsigned[c.WORD]
            if not self._base(DATA, unpack_word(word).rank) and self._is_due(s, hi, lo, word):
                return DUE
        if s.signed[c.CLAIMING]:
            self._drop_claim(hi, lo)
        return outcome

    def end_claim(self, ctx: int, s: int, hi: int, lo: int) -> None:
        """Local. The block that this rank was about to copy is copied, or will not be."""
        self._drop_claim(hi, lo)


def _key_mix(hi: int, lo: int) -> int:
    return (lo ^ hi * MIX & MASK64) * MIX & MASK64


def _claim_tag(hi: int, lo: int) -> int:
    return _key_mix(hi, lo) >> 32 | 1  # no claim is 0
