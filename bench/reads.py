"""Ways to read the same blocks: the store, copies from mapped memory, raw MPI calls.

Covers the timed operations and the comparison of what they read. Does not cover which of them are
compared, nor the goals (see `micro`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench.job import Outcome
from bench.stock import Indexes, Stock, bytes_at, names
from bench.timing import Operation, Samples
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.layout import BUCKET_BYTES, DESCRIPTOR_BYTES
from cascade_mpi.store import Store

SMALL = 4096  # blocks up to this size are compared whole after each sample
Bytes = npt.NDArray[np.uint8]


class Reads:
    """Blocks of one rank, `inner` reads in a sample, drawn in turn or `fixed`.

    `right` turns False when contents are wrong.
    """

    def __init__(self, store: Store, stock: Stock, owner: int, inner: int, fixed: Indexes | None = None) -> None:
        self.store, self.stock, self.owner, self.inner, self._fixed = store, stock, owner, inner, fixed
        self.right = True
        stock.visit(store, owner)
        self._before = store.stats()
        self._data, self._index = store._fabric.data.world, store._fabric.index.world

    def _take(self, count: int) -> Indexes:
        return self.stock.take(count) if self._fixed is None else np.repeat(self._fixed, count)

    def outcome(self, samples: Samples) -> Outcome:
        """Local. The samples, and, after a read of every block that is not `fixed`, whether all was right."""
        now = self.store.stats()
        gets, hits = (now[name] - self._before[name] for name in ("gets", "hits"))
        right = self.right and (self._fixed is not None or self.stock.verify(self.store, self.owner))
        return Outcome(samples, right, hits / gets if gets else None)

    def compare(self, out: Bytes) -> Callable[[Any], None]:
        """Check the last block of a sample; `prepared` begins with the blocks."""

        def check(prepared: tuple[Any, ...]) -> None:
            self.right &= self.stock.holds(out, self.owner, int(prepared[0][-1]), everything=len(out) <= SMALL)

        return check

    def _compare_all(self, outs: list[Bytes]) -> Callable[[Any], None]:
        def check(prepared: tuple[Any, ...]) -> None:
            for out, block in zip(outs, prepared[0][-len(outs) :], strict=True):
                self.right &= self.stock.holds(out, self.owner, int(block), everything=len(out) <= SMALL)

        return check

    def get(self, out: Bytes) -> Operation:
        """`Store.get` with integer keys."""

        def prepare() -> tuple[Indexes, list[int]]:
            blocks = self._take(self.inner)
            return blocks, names(self.stock.keys[self.owner][blocks])

        def run(prepared: tuple[Any, ...]) -> None:
            get = self.store.get
            for key in prepared[1]:
                get(key, out)

        return Operation(prepare, run, self.compare(out))

    def numpy_copy(self, out: Bytes) -> Operation:
        """`np.copyto` from the mapped payloads."""

        def prepare() -> tuple[Indexes, list[Bytes]]:
            blocks = self._take(self.inner)
            return blocks, [bytes_at(at, len(out)) for at in self.stock.addresses(self.owner, blocks)]

        def run(prepared: tuple[Any, ...]) -> None:
            for source in prepared[1]:
                np.copyto(out, source)

        return Operation(prepare, run, self.compare(out))

    def kernel_copy(self, out: Bytes) -> Operation:
        """The copy kernel from the mapped payloads."""
        copy, to, nbytes = copy_bytes.compile(), out.ctypes.data, len(out)

        def prepare() -> tuple[Indexes, list[int]]:
            blocks = self._take(self.inner)
            return blocks, self.stock.addresses(self.owner, blocks)

        def run(prepared: tuple[Any, ...]) -> None:
            for source in prepared[1]:
                copy(to, source, nbytes)

        return Operation(prepare, run, self.compare(out))

    def raw_get(self, out: Bytes) -> Operation:
        """One Get + one Flush of the payload, the specifications made beforehand."""
        window, rank, origin = self._data, self.owner, [out, len(out), MPI.BYTE]

        def prepare() -> tuple[Indexes, list[list[object]]]:
            blocks = self._take(self.inner)
            return blocks, self.stock.payload_targets(rank, blocks)

        def run(prepared: tuple[Any, ...]) -> None:
            get, flush = window.Get, window.Flush
            for target in prepared[1]:
                get(origin, rank, target)
                flush(rank)

        return Operation(prepare, run, self.compare(out))

    def raw_sequence(self, out: Bytes) -> Operation:
        """The MPI calls of a remote get: bucket, then descriptor and payload, then the word again."""
        data, index, rank, stock = self._data, self._index, self.owner, self.stock
        payload = [out, len(out), MPI.BYTE]
        bucket, descriptor, word = (
            [np.zeros(nbytes, np.uint8), nbytes, MPI.BYTE] for nbytes in (BUCKET_BYTES, DESCRIPTOR_BYTES, 8)
        )

        def prepare() -> tuple[Indexes, Any]:
            blocks = self._take(self.inner)
            steps = (
                stock.bucket_targets(rank, stock.buckets[rank][blocks]), stock.descriptor_targets(rank, blocks),
                stock.payload_targets(rank, blocks), stock.word_targets(rank, blocks),
            )  # fmt: skip
            return blocks, list(zip(*steps, strict=True))

        def run(prepared: tuple[Any, ...]) -> None:
            get_index, flush_index, get_data, flush_data = index.Get, index.Flush, data.Get, data.Flush
            for bucket_at, descriptor_at, payload_at, word_at in prepared[1]:
                get_index(bucket, rank, bucket_at)
                flush_index(rank)
                get_data(descriptor, rank, descriptor_at)
                get_data(payload, rank, payload_at)
                flush_data(rank)
                get_index(word, rank, word_at)
                flush_index(rank)

        return Operation(prepare, run, self.compare(out))

    def get_many(self, outs: list[Bytes]) -> Operation:
        """`Store.get_many` with array keys."""

        def prepare() -> tuple[Indexes, list[npt.NDArray[np.uint64]]]:
            blocks = self._take(self.inner * len(outs))
            return blocks, list(self.stock.keys[self.owner][blocks].reshape(self.inner, len(outs), 2))

        def run(prepared: tuple[Any, ...]) -> None:
            get_many = self.store.get_many
            for keys in prepared[1]:
                get_many(keys, outs)

        return Operation(prepare, run, self._compare_all(outs))

    def raw_gets(self, outs: list[Bytes]) -> Operation:
        """As many Gets + one Flush."""
        window, rank = self._data, self.owner
        origins = [[out, len(out), MPI.BYTE] for out in outs]

        def prepare() -> tuple[Indexes, Any]:
            blocks = self._take(self.inner * len(outs))
            targets = self.stock.payload_targets(rank, blocks)
            return blocks, [targets[at : at + len(outs)] for at in range(0, len(targets), len(outs))]

        def run(prepared: tuple[Any, ...]) -> None:
            get, flush = window.Get, window.Flush
            for targets in prepared[1]:
                for origin, target in zip(origins, targets, strict=True):
                    get(origin, rank, target)
                flush(rank)

        return Operation(prepare, run, self._compare_all(outs))
