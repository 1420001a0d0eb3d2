"""Index words and descriptors, read wherever they lie, and the clock: `onesided.words` through mpi4py.

Memory of the own node is read by small kernels of `probe`, which hold the fences.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.layout import (
    BUCKET_BYTES,
    BUCKET_WORDS,
    DESCRIPTOR_BYTES,
    FP_SHIFT,
    TIER_DISK,
    TIER_DRAM,
    is_disk,
    place,
    unpack_word,
)
from cascade_mpi.onesided.mpi import DATA, INDEX
from cascade_mpi.onesided.words import REALTIME_COARSE, TICKS
from cascade_mpi.onesided_python.mpi import Mpi
from cascade_mpi.onesided_python.records import Cell, Scratch


class IndexWords(Mpi):
    """One look at a bucket, a word or a descriptor."""

    def _ticks(self, s: Scratch) -> int:
        """Ticks since the store was opened."""
        self._clock(REALTIME_COARSE, s.at(c.TIMESPEC))
        seconds, nanoseconds = s.signed[c.TIMESPEC : c.TIMESPEC + 2].tolist()
        return int((seconds - self._field(c.EPOCH)) * TICKS + nanoseconds // (1_000_000_000 // TICKS))

    def _too_late(self, s: Scratch, began: int) -> bool:
        """True for an attempt that took so long that a cell may have passed through all its generations."""
        return not 0 <= self._ticks(s) - began <= self._field(c.ATTEMPT)

    def _place(self, s: Scratch, hi: int, lo: int) -> tuple[int, int, int]:
        home, bucket, fp = place(hi, lo, self._field(c.RANKS), self._field(c.BUCKETS))
        s.signed[c.HOME], s.signed[c.BUCKET] = home, bucket
        return home, bucket, fp

    def _place_copy(self, hi: int, lo: int) -> tuple[int, int, int]:
        """(rank, bucket in its index window, fingerprint) of a key in the copy table of this node."""
        at, bucket, fp = place(hi, lo, self._field(c.COPY_RANKS), self._field(c.COPY_BUCKETS))
        rank = ctypes.c_int64.from_address(self._field(c.COPY_RANKS_AT) + 8 * at).value
        return rank, self._field(c.BUCKETS) + bucket, fp

    def _in_bounds(self, word: int) -> bool:
        """True if the word names a cell of this store: only then may its address be used. Aliases lie in arenas too."""
        named, pages = unpack_word(word), self._field(c.PAGES)
        if named.rank >= self._field(c.RANKS):
            return False
        if named.tier <= TIER_DRAM:
            return named.page < pages
        return named.tier == TIER_DISK and pages <= named.page < self._field(c.CELLS)

    def _expired(self, s: Scratch, cell: Cell) -> bool:
        return cell.expiry != 0 and self._ticks(s) >= cell.expiry * TICKS

    def _fits(self, word: int, length: int) -> bool:
        """Does a payload of this length end inside the arena? On disk there is no end."""
        if is_disk(word):
            return length < 1 << 63
        return length <= self._arena_bytes - unpack_word(word).page * self._field(c.PAGE_BYTES)

    def _read_bucket(self, s: Scratch, home: int, bucket: int) -> list[int]:
        base, copy_to = self._base(INDEX, home), s.at(c.BUCKET_COPY)
        if base:
            probe.copy_bucket(base, bucket, copy_to)
        else:
            self._get(copy_to, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
            self._flush(home, INDEX)
        return s.unsigned[c.BUCKET_COPY : c.BUCKET_COPY + BUCKET_WORDS].tolist()

    def _reload(self, s: Scratch, home: int, bucket: int, slot: int) -> int:
        """The word as it is now, after everything that was read before."""
        at, base = bucket * BUCKET_BYTES + slot * 8, self._base(INDEX, home)
        if base:
            return int(probe.reload(base + at))
        self._get(s.at(c.RELOADED), 8, home, at, INDEX)
        self._flush(home, INDEX)
        return int(s.unsigned[c.RELOADED])

    def _copy_descriptor(self, base: int, page: int, copy_to: int) -> None:
        """From mapped memory: the word was loaded by a kernel with acquire, so this is not read before it."""
        ctypes.memmove(copy_to, base + self._descriptor_at(page), DESCRIPTOR_BYTES)

    def _read_cell(self, s: Scratch, word: int) -> Cell:
        """What the descriptor of a word that is in bounds says."""
        _, _, _, _, rank, page = unpack_word(word)
        base, copy_to = self._base(DATA, rank), s.at(c.DESCRIPTOR_COPY)
        if base:
            self._copy_descriptor(base, page, copy_to)
        else:
            self._get(copy_to, DESCRIPTOR_BYTES, rank, self._descriptor_at(page), DATA)
            self._flush(rank, DATA)
        return Cell.read(copy_to)


def matches(words: list[int], fp: int) -> Iterator[tuple[int, int]]:
    """The (slot, word) pairs of a bucket with this fingerprint, lowest slot first."""
    return ((slot, word) for slot, word in enumerate(words) if word and word >> FP_SHIFT == fp)
