"""Reading many blocks at once: their contents, their descriptions, whether they are there.

Covers one compiled call for a batch and what is settled one by one afterwards. Does not cover the steps
(`onesided`) nor single blocks (`reader`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.copies import Copies
from cascade_mpi.errors import BufferSizeError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import DESCRIPTOR_BYTES
from cascade_mpi.onesided import BATCH
from cascade_mpi.reader import Reader, decode, wrong_size
from cascade_mpi.values import empty, result_dtype, target

Keys = npt.NDArray[np.uint64]
_PLANNED = 2  # so many blocks on disk are read in the order of the files


class BatchReader:
    """The batched read path of one rank."""

    def __init__(self, fabric: Fabric, reader: Reader, copies: Copies) -> None:
        self._fabric, self._reader, self._copies = fabric, reader, copies

    def get(self, keys: Keys, outs: Sequence[Any] | None) -> list[Any]:
        """Local. Each block's new array, or the bytes read into its buffer; None for a miss. See `Store.get_many`."""
        n = len(keys)
        s, fabric = self._fabric.scratch, self._fabric
        results = np.empty(n, np.int64)
        made: list[npt.NDArray[Any] | None] = []
        if outs is None:
            lengths, described = self._describe(keys, want=True)
            made = [
                None if length < 0 else _empty_as(described[i], length) for i, length in enumerate(lengths.tolist())
            ]
            targets = np.array([0 if each is None else each.ctypes.data for each in made], np.int64)
            rooms = np.array([0 if each is None else each.nbytes for each in made], np.int64)
        else:
            pairs = np.array([target(out) for out in outs], np.int64).reshape(n, 2)
            targets, rooms = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        step = BATCH if self._copies.on else max(n, 1)  # what is to be copied lies in the work area until the next call
        for at in range(0, n, step):
            outcome = fabric.get_many(
                fabric.ctx, s.address, keys.ctypes.data + 16 * at, min(step, n - at), targets.ctypes.data + 8 * at,
                rooms.ctypes.data + 8 * at, results.ctypes.data + 8 * at, s.work_address, s.flags_address,
            )  # fmt: skip
            if outcome == c.MPI_FAILED:
                fabric.raise_mpi_error(s)
            if self._copies.on:
                self._keep_due(keys, results, targets, rooms, at, min(step, n - at))
        if outs is None and n:
            # A block that was replaced meanwhile by one of the same size may have another type or shape.
            lengths, again = self._describe(keys, want=True)
            results[(lengths < 0) | (again != described).any(axis=1)] = c.CHANGED
        if results.size and results.min() >= 0:
            return results.tolist() if outs is not None else made
        return self._settle(keys, results, targets, rooms, None if outs is not None else made)

    def _keep_due(
        self, keys: Keys, results: npt.NDArray[np.int64], targets: npt.NDArray[np.int64],
        rooms: npt.NDArray[np.int64], begin: int, count: int,
    ) -> None:  # fmt: skip
        """Copy what a call has found due. Before waiting for other ranks' copies: they may wait for these."""
        for number in np.flatnonzero(results[begin : begin + count] == c.DUE).tolist():
            at = begin + number
            self._copies.keep_batched(number, int(keys[at, 0]), int(keys[at, 1]), int(targets[at]))
            results[at] = rooms[at]

    def _settle(
        self, keys: Keys, results: npt.NDArray[np.int64], targets: npt.NDArray[np.int64],
        rooms: npt.NDArray[np.int64], made: list[npt.NDArray[Any] | None] | None,
    ) -> list[Any]:  # fmt: skip
        """What the outcomes of a batch mean, one by one; a wrong buffer is said when all others have been read."""
        got: list[Any] = results.tolist() if made is None else list(made)
        wrong: BufferSizeError | None = None
        for i in np.flatnonzero((results < 0) & (results != c.ON_DISK)).tolist():
            result, hi, lo = int(results[i]), int(keys[i, 0]), int(keys[i, 1])
            if made is not None:  # a miss when sized or read, or changed in between: once more, alone
                got[i] = self._reader.new(hi, lo)
            elif result <= c.WRONG_FROM:
                wrong = wrong or wrong_size(int(rooms[i]), c.WRONG_FROM - result)
                wrong.add_note(f"key number {i}")
                got[i] = None
            else:
                got[i] = self._reader.settle(result, hi, lo, int(targets[i]), int(rooms[i]))
        for i in self._on_disk(keys, np.flatnonzero(results == c.ON_DISK)):
            hi, lo = int(keys[i, 0]), int(keys[i, 1])
            if made is not None:
                got[i] = self._reader.new(hi, lo)
            else:  # which one is not in the scratch any more: look again, then read
                got[i] = self._reader.into(hi, lo, int(targets[i]), int(rooms[i]))
        if wrong is not None:
            raise wrong
        return got

    def _on_disk(self, keys: Keys, numbers: npt.NDArray[np.intp]) -> Iterator[int]:
        """The numbers of blocks on disk in the order in which they are read best, each when it is to be read."""
        if len(numbers) < _PLANNED or self._reader.on_disk is None:
            yield from numbers.tolist()
            return
        lengths, described = self._describe(np.ascontiguousarray(keys[numbers]), want=True)
        described[lengths < 0] = 0
        plan = self._reader.on_disk.plan(described)
        for at, number in enumerate(plan.order):
            plan.before(at)
            yield int(numbers[number])

    def contains(self, keys: Keys, exact: bool) -> npt.NDArray[np.bool_]:
        """Local. Which keys are there, bool[n]; without `exact` by fingerprint."""
        if exact:
            lengths, _ = self._describe(keys, want=False)
            return lengths >= 0
        s, n = self._fabric.scratch, len(keys)
        results = np.empty(n, np.bool_)
        outcome = self._fabric.probe_many(
            self._fabric.ctx, s.address, keys.ctypes.data, n, results.ctypes.data, s.work_address, s.flags_address
        )
        if outcome == c.MPI_FAILED:
            self._fabric.raise_mpi_error(s)
        return results

    def _describe(self, keys: Keys, *, want: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """The length of each block (negative: a miss), and with `want` its descriptor."""
        s, n = self._fabric.scratch, len(keys)
        lengths = np.empty(n, np.int64)
        descriptors = np.empty((n if want else 0, DESCRIPTOR_BYTES), np.uint8)
        outcome = self._fabric.describe_many(
            self._fabric.ctx, s.address, keys.ctypes.data, n, descriptors.ctypes.data if want else 0,
            lengths.ctypes.data, s.work_address, s.flags_address,
        )  # fmt: skip
        if outcome == c.MPI_FAILED:
            self._fabric.raise_mpi_error(s)
        for i in np.flatnonzero(lengths == c.CHANGED).tolist():
            found = self._reader.find(int(keys[i, 0]), int(keys[i, 1]))
            lengths[i] = c.MISS if found is None else found.nbytes
            if want and found is not None:
                descriptors[i] = s.descriptor
        return lengths, descriptors


def _empty_as(descriptor: npt.NDArray[np.uint8], nbytes: int) -> npt.NDArray[Any] | None:
    """An array for a block of this description; None if that cannot be: it was torn by a write, look again."""
    try:
        dtype, shape, _ = decode(descriptor)
        if math.prod(shape) * result_dtype(dtype).itemsize == nbytes:
            return empty(dtype, shape)
    except ValueError:
        pass
    return None
