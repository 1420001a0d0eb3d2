"""A new file that one rank writes: blocks come one after the other, each in as many pieces as it likes.

Covers the order of HDF5's calls and of the bytes beside them. Does not cover where blocks come from (see `gathering`,
`directory`), nor files that all ranks write (see `parallel`).

HDF5 makes each dataset and says where its bytes belong; these are written there by the operating system's own calls,
so a block can come in pieces of any size, and nothing is copied.
"""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np

from cascade_mpi.hdf5.datasets import LIBVER, Datasets
from cascade_mpi.hdf5.library import load
from cascade_mpi.hdf5.origin import Origin
from cascade_mpi.hdf5.part_file import PartFile
from cascade_mpi.hdf5.rows import Row


class NewFile:
    """A file that is being written. As a context: an exception discards it, `commit` gives it its name."""

    def __init__(
        self, path: str | os.PathLike[str], origin: Origin, *, overwrite: bool = False, remedy: str = "overwrite=True"
    ) -> None:  # fmt: skip
        """Begin it under another name; NotConfiguredError without h5py, DiskError as for `PartFile`."""
        h5 = load()
        self.blocks = self.bytes = 0
        self._origin = origin
        self._part = PartFile(path, overwrite=overwrite, remedy=remedy)
        self._at, self._left = 0, 0  # of the present block
        self._drop = False
        self._file: Any = None
        try:
            # No lock: nobody else knows the name, and on Lustre without -o flock HDF5's lock is refused.
            self._file = h5.File(self._part.part, "w", libver=LIBVER, locking=False)
            self._datasets = Datasets(h5, self._file)
        except Exception as error:
            self.discard()
            raise self._part.explained(error, "beginning an HDF5 file") from error

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def begin(self, row: Row) -> None:
        """Local. A block, of which `write` brings the bytes. Of two with one key that of the higher sequence stays.

        DiskError: HDF5 could not make its dataset.
        """
        if self._left:
            raise ValueError(f"{self._left} bytes of the block before have not come")
        try:
            before = self._datasets.open(row.key)
            self._drop = before is not None and self._sequence(before) >= row.sequence
            if not self._drop:
                if before is not None:
                    self._datasets.remove(row.key)
                    self.blocks, self.bytes = self.blocks - 1, self.bytes - before.get_storage_size()
                dataset = self._datasets.create(row)
                self._datasets.describe(dataset, row)
                self._at = dataset.get_offset() if row.nbytes else 0
                self.blocks, self.bytes = self.blocks + 1, self.bytes + row.nbytes
        except Exception as error:
            raise self._part.explained(error, f"making the dataset of block {row}") from error
        self._left = row.nbytes

    def write(self, data: memoryview) -> None:
        """Local. The next bytes of the present block; ValueError if there are more than it has."""
        if data.nbytes > self._left:
            raise ValueError(f"{data.nbytes} bytes for a block of which {self._left} are missing")
        if not self._drop:
            self._part.write(self._at, data)
        self._at, self._left = self._at + data.nbytes, self._left - data.nbytes

    def commit(self) -> None:
        """Local. Finish the file: its bytes are on the disk, then it has its name. DiskError: it is not there."""
        if self._left:
            raise ValueError(f"{self._left} bytes of the last block have not come")
        try:
            self._datasets.describe_file(self._origin, self.blocks, self.bytes)
            self._file.close()
            self._file = None
        except Exception as error:
            raise self._part.explained(error, "closing the HDF5 file") from error
        self._part.commit()

    def discard(self) -> None:
        """Local. Give it up; nothing after `commit`."""
        file, self._file = self._file, None
        if file is not None:
            self._part.empty()
            with suppress(Exception):  # it is removed anyhow
                file.close()
        self._part.discard()

    def _sequence(self, dataset: Any) -> int:
        found = np.zeros((), np.uint64)
        load().h5a.open(dataset, b"sequence").read(found)
        return int(found)
