"""The first phase of a batch, the buckets and who may be followed: `onesided.batch` through mpi4py.

Does not cover descriptors and payloads (`read_many`, `lookup_many`).
"""

from __future__ import annotations

from collections.abc import Iterator

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.layout import BUCKET_BYTES, BUCKET_WORDS, is_alias, place
from cascade_mpi.onesided.batch import BATCH, W_BUCKET_COPY, W_SLOT, W_WORD, WORK_WORDS
from cascade_mpi.onesided.mpi import INDEX
from cascade_mpi.onesided_python.records import Item, Words
from cascade_mpi.onesided_python.words import IndexWords, matches


class Batches(IndexWords):
    """The buckets of many keys, and who may be followed."""

    def _items(self, keys: int, n: int, work: int) -> Iterator[list[Item]]:
        """The keys, BATCH at a time, with their places."""
        for start in range(0, n, BATCH):
            step = min(n - start, BATCH)
            words = Words(keys + 16 * start, 2 * step).unsigned.tolist()
            pairs = zip(words[::2], words[1::2], strict=True)
            ranks, buckets = self._field(c.RANKS), self._field(c.BUCKETS)
            yield [Item(start + i, hi, lo, *place(hi, lo, ranks, buckets), work) for i, (hi, lo) in enumerate(pairs)]

    def _read_buckets(self, items: list[Item]) -> list[list[int]]:
        """Every bucket, one Flush per home."""
        items = [item for item in items if not item.done]
        remote = [item for item in items if not self._base(INDEX, item.home)]
        for item in remote:
            self._get(item.bucket_copy, BUCKET_BYTES, item.home, item.bucket * BUCKET_BYTES, INDEX)
        self._flush_all((item.home for item in remote), INDEX)
        buckets = []
        for item in items:
            base = self._base(INDEX, item.home)
            if base:
                probe.copy_bucket(base, item.bucket, item.bucket_copy)
            buckets.append(Words(item.bucket_copy, BUCKET_WORDS).unsigned.tolist())
        return buckets

    def _choose_candidates(self, items: list[Item]) -> list[Item]:
        """Give each key its first candidate; the items that have one that may be followed."""
        items = [item for item in items if not item.done]
        for item, words in zip(items, self._read_buckets(items), strict=True):
            item.slot, item.word = next(matches(words, item.fp), (-1, 0))
            # An alias is two look-ups: one by one.
            item.doubt = bool(item.word) and (is_alias(item.word) or not self._in_bounds(item.word))
            work = Words(item.bucket_copy - W_BUCKET_COPY * 8, WORK_WORDS)
            work.signed[W_SLOT], work.unsigned[W_WORD] = item.slot, item.word  # who copies blocks needs them
        return [item for item in items if item.word and not item.doubt]
