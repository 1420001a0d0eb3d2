"""Many keys looked up at once: `onesided.lookup_many` through mpi4py.

Does not cover payloads (`read_many`).
"""

from __future__ import annotations

import ctypes
from typing import Any

from cascade_mpi.kernels import context as c
from cascade_mpi.layout import DESCRIPTOR_BYTES, unpack_word
from cascade_mpi.onesided.mpi import DATA
from cascade_mpi.onesided.words import DESCRIBE
from cascade_mpi.onesided_python.batch import Batches
from cascade_mpi.onesided_python.mpi import reporting
from cascade_mpi.onesided_python.read import Reads
from cascade_mpi.onesided_python.records import MISS, Cell, Item, Scratch, Words
from cascade_mpi.onesided_python.words import matches


class ManyLookUps(Batches, Reads):
    """Many keys looked up at once."""

    def _describe_chunk(self, s: Scratch, items: list[Item], descriptors: int, results: Any) -> None:
        flags, candidates = set(), self._choose_candidates(items)
        for item in candidates:
            _, _, _, _, rank, page = unpack_word(item.word)
            base = self._base(DATA, rank)
            if base:
                self._copy_descriptor(base, page, item.descriptor)
            else:
                self._get(item.descriptor, DESCRIPTOR_BYTES, rank, self._descriptor_at(page), DATA)
                flags.add(rank)
        self._flush_all(flags, DATA)
        for item in items:
            outcome, descriptor = MISS, item.descriptor
            if item in candidates:
                cell = Cell.read(descriptor)
                fits = self._fits(item.word, cell.length)
                item.doubt = not (fits and cell.holds(item.word, item.hi, item.lo)) or self._expired(s, cell)
                outcome = cell.length
            if item.doubt:
                descriptor = s.at(c.DESCRIPTOR_COPY)
                outcome, _, _ = self._get_named(s, item.hi, item.lo, 0, 0, 0, DESCRIBE)
            if descriptors and outcome >= 0:
                ctypes.memmove(descriptors + item.number * DESCRIPTOR_BYTES, descriptor, DESCRIPTOR_BYTES)
            results[item.number] = outcome

    @reporting
    def describe_many(
        self, ctx: int, s: int, keys: int, n: int, descriptors: int, results: int, work: int, flags: int
    ) -> int:
        """Local. Look n keys up exactly: results[i] = length of the block, MISS or CHANGED; its descriptor if asked."""
        if n:
            area = Words(results, n).signed
            for items in self._items(keys, n, work):
                self._describe_chunk(Scratch(s), items, descriptors, area)
        self._end()
        return 0

    @reporting
    def probe_many(self, ctx: int, s: int, keys: int, n: int, results: int, work: int, flags: int) -> int:
        """Local. Look n keys up by fingerprint only: results[i] = 1 or 0 (uint8)."""
        for items in self._items(keys, n, work):
            for item, words in zip(items, self._read_buckets(items), strict=True):
                found = any(True for _ in matches(words, item.fp))
                ctypes.c_uint8.from_address(results + item.number).value = found
        self._end()
        return 0
