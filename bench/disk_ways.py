"""The ways to keep blocks in files that `bench disk` compares with the store: what each writes and reads.

Covers one large file written and read in order, through the page cache and past it; one file for each block; one HDF5
file with a dataset for each block. Every way makes what it wrote durable, and every file is of one rank alone. Does not
cover the store, nor what is timed (`disk`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cascade_mpi.kernels import fill as contents
from cascade_mpi.segments.direct import aligned_buffer
from cascade_mpi.segments.files import PosixFiles

PIECE_BYTES = 16 << 20  # of large sequential transfers
_FULL = (1 << 64) - 1


class Blocks:
    """`count` blocks of one size in one stretch of memory that begins at a page; every word says which block it is."""

    def __init__(self, block_bytes: int, count: int, seed: int) -> None:
        self.block_bytes, self.count, self.seed = block_bytes, count, seed
        self.memory = aligned_buffer(block_bytes * count)
        self.words = np.frombuffer(self.memory, np.uint64).reshape(count, block_bytes // 8)
        self.rows = list(self.words.view(np.uint8))
        self._wrong = np.zeros(count, np.bool_)

    @property
    def nbytes(self) -> int:
        return self.block_bytes * self.count

    def fill(self, version: int) -> None:
        """Local. Write the contents that the blocks have in this version."""
        contents.fill(self.words, self._ids(version), 0)

    def poison(self) -> None:
        """Local. Spoil every page, so that a read which writes nothing is seen."""
        self.words[:, ::512] = 0xDEADBEEF_DEADBEEF
        self.words[:, -1] = 0xDEADBEEF_DEADBEEF

    def hold(self, version: int) -> bool:
        """Local. Whether every byte is what `fill(version)` writes."""
        contents.differs(self.words, self._ids(version), 0, _FULL, 1, self._wrong)
        return not self._wrong.any()

    def _ids(self, version: int) -> npt.NDArray[np.uint64]:
        return np.arange(self.count, dtype=np.uint64) + np.uint64((self.seed << 40) + (version << 24))


class Way(Protocol):
    """One way; its files are below `root`, and nobody else's are."""

    name: str

    @property
    def root(self) -> Path: ...

    def write(self, blocks: Blocks) -> None:
        """Local. Write all blocks into new files and make them durable."""

    def read(self, blocks: Blocks) -> None:
        """Local. Read all blocks as they were written last, in order."""


class _Folder:
    """A folder of one way, with one more folder for each write: removing what is old would disturb the next write."""

    def __init__(self, root: Path, written: int = 0) -> None:
        """`written`: how often somebody else has written here, for who only reads."""
        self.root, self._written = root, written
        root.mkdir(parents=True, exist_ok=written > 0)

    @property
    def latest(self) -> Path:
        """Local. The folder of the latest write."""
        return self.root / f"{self._written}"

    def _begin(self) -> Path:
        self._written += 1
        self.latest.mkdir()
        return self.latest

    def _end(self) -> None:
        for folder in (self.latest, self.root):
            _sync(folder)


class LargeFile(_Folder):
    """One file for all blocks, in pieces of 16 MiB: what the device gives to who asks for nothing else."""

    def __init__(self, root: Path, *, direct: bool, written: int = 0) -> None:
        super().__init__(root, written)
        self.name = "large O_DIRECT transfers" if direct else "large plain transfers"
        self._flags = os.O_DIRECT if direct else 0

    def write(self, blocks: Blocks) -> None:
        descriptor = os.open(self._begin() / "all", os.O_WRONLY | os.O_CREAT | os.O_EXCL | self._flags, 0o600)
        for at, piece in _pieces(blocks):
            _whole(os.pwrite(descriptor, piece, at), piece.nbytes)
        os.fsync(descriptor)
        os.close(descriptor)
        self._end()

    def read(self, blocks: Blocks) -> None:
        descriptor = os.open(self.latest / "all", os.O_RDONLY | self._flags)
        for at, piece in _pieces(blocks):
            _whole(os.preadv(descriptor, [piece], at), piece.nbytes)
        os.close(descriptor)

    def read_each(self, blocks: Blocks) -> None:
        """Local. Read all blocks by one pread for each."""
        descriptor = os.open(self.latest / "all", os.O_RDONLY | self._flags)
        for number, row in enumerate(blocks.rows):
            _whole(os.preadv(descriptor, [row], number * blocks.block_bytes), blocks.block_bytes)
        os.close(descriptor)


class FilePerBlock(_Folder):
    """A file for each block; all are written, then all synced, then the folder."""

    name = "one file per block"

    def write(self, blocks: Blocks) -> None:
        made, folder = [], self._begin()
        for number, row in enumerate(blocks.rows):
            made.append(os.open(folder / f"{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            _whole(os.pwrite(made[-1], row, 0), row.nbytes)
        for descriptor in made:
            os.fsync(descriptor)
            os.close(descriptor)
        self._end()

    def read(self, blocks: Blocks) -> None:
        for number, row in enumerate(blocks.rows):
            descriptor = os.open(self.latest / f"{number}", os.O_RDONLY)
            _whole(os.preadv(descriptor, [row], 0), row.nbytes)
            os.close(descriptor)


class Hdf5(_Folder):
    """One HDF5 file of this rank, a contiguous dataset for each block, aligned to pages."""

    name = "one HDF5 file per rank"

    def __init__(self, root: Path, h5py: Any) -> None:
        super().__init__(root)
        self._h5py = h5py

    def write(self, blocks: Blocks) -> None:
        aligned = {"alignment_threshold": 4096, "alignment_interval": 4096}
        path = self._begin() / "all"
        with self._h5py.File(path, "w", libver="latest", **aligned) as file:
            for number, row in enumerate(blocks.rows):
                file.create_dataset(f"{number}", data=row)
        _sync(path)  # with what its closing wrote
        self._end()

    def read(self, blocks: Blocks) -> None:
        with self._h5py.File(self.latest / "all", "r") as file:
            for number, row in enumerate(blocks.rows):
                file[f"{number}"].read_direct(row)


def hdf5(root: Path) -> Hdf5 | None:
    """Local. The HDF5 way, None where h5py is not installed (pip install h5py)."""
    try:
        return Hdf5(root, importlib.import_module("h5py"))
    except ModuleNotFoundError:
        return None


def forget(root: Path) -> int:
    """Local. Drop everything below a folder from the page cache: the bytes that it has all the same."""
    left = 0
    with PosixFiles(root) as files:
        for folder, _, names in os.walk(root):
            left += sum(files.drop_cache(str(Path(folder, name).relative_to(root))) for name in names)
    return left


def file_system(path: Path) -> str:
    """Local. The type, device and options of the file system that a path is on."""
    best = ("", "?")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where, kind, options = line.split()[:4]
        where = where.replace("\\040", " ")
        if path.resolve().is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, f"{kind} on {device} ({options})")
    return best[1]


def device_bytes() -> tuple[int, int]:
    """Local. Bytes that this process has caused to be read from and written to devices (/proc/self/io)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"]), int(fields["write_bytes"])


def _pieces(blocks: Blocks) -> Iterator[tuple[int, memoryview]]:
    for at in range(0, blocks.nbytes, PIECE_BYTES):
        yield at, blocks.memory[at : at + PIECE_BYTES]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _whole(done: int, wanted: int) -> None:
    if done != wanted:
        raise OSError(f"a transfer of {wanted} bytes moved {done}")
