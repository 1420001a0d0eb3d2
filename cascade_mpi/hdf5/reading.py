"""A file that was exported: its facts, the names of its blocks, and one block after the other, each of them verified.

Covers what is refused, and that nothing comes back that is not what was put. Does not cover who reads which block, nor
where it goes.

Anybody may have written the file, or changed it. So types, shapes and sizes are compared before memory is taken for
them, no link or reference to another file is followed, and the checksum of every payload is compared.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import Hdf5FileError, NoSuchFileError
from cascade_mpi.hdf5.library import load
from cascade_mpi.hdf5.origin import INTEGER, STORED, Origin
from cascade_mpi.hdf5.rows import BLOCKS, FORMAT, VERSION, Row, is_type_of, key_of
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.layout import MAX_DEPTH, MAX_DIMS
from cascade_mpi.namespaces import MAX_EPOCH
from cascade_mpi.public_namespace import from_json
from cascade_mpi.segments import faults
from cascade_mpi.values import dtype_code, file_dtype

MAX_EXPIRY = 1 << 40  # s of Unix time, in 35,000 years: what is larger is no time
_MAX_TEXT = 64 << 10  # bytes of an attribute: HDF5 itself has no larger ones
_MASK64 = (1 << 64) - 1


class Block(NamedTuple):
    """A block of a file. `data` has the type that files have for it: uint16 for bfloat16, say."""

    row: Row
    data: npt.NDArray[Any]


class ExportFile:
    """An exported file, open for reading. Use it as a context manager, or call `close`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open it.

        Raises
        ------
        NotConfiguredError
            There is no h5py.
        DiskError
            The file is not there, or cannot be read.
        Hdf5FileError
            It is no HDF5 file, is damaged, was not exported by Cascade, or by a newer one.
        """
        self._h5 = h5 = load()
        self.path = Path(path).absolute()
        try:
            with self.path.open("rb"):  # the system says why it cannot be read, HDF5 only that it cannot
                pass
        except FileNotFoundError as error:
            text = f"{self.path} is not there: is the path right?"
            raise NoSuchFileError(errno.ENOENT, text, str(self.path)) from error
        except OSError as error:
            raise faults.explain(error, "opening it", str(self.path)) from error
        try:
            self._file = h5.File(self.path, "r", locking=False)
        except Exception as error:
            raise Hdf5FileError(f"{self.path} is no HDF5 file, or is damaged: {error}") from error
        try:
            with self._explained("its root"):
                self.origin = self._read_origin()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ExportFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Local. Close the file."""
        self._file.close()

    def keys(self) -> Iterator[int]:
        """Local. The keys of all blocks, group by group.

        Hdf5FileError: something stands among them that is no block.
        """
        with self._explained(f"the group {BLOCKS}"):
            if BLOCKS not in self._file:
                raise Hdf5FileError(f"{self.path} has no group {BLOCKS}: it is damaged")
            groups = [*self._hard(self._file[BLOCKS])]
        for group in groups:
            with self._explained(f"the group {BLOCKS}/{group}"):
                names = [*self._hard(self._file[BLOCKS][group])]
            for name in names:
                key = key_of(group, name)
                if key is None:
                    raise Hdf5FileError(f"{self.path}: {BLOCKS}/{group}/{name} is not the name of a block")
                yield key

    def read(self, key: int, path: str, most: int) -> Block:
        """Local. The block of a key at its path (`rows.path_of`), verified. A new array of its size.

        most
            Bytes that a block may have: what is larger is refused before memory is taken.

        Raises
        ------
        Hdf5FileError
            It is not there, not of a type that blocks have, too large, or not what was exported.
        """
        with self._explained(path):
            data = self._file[path]
            if not isinstance(data, self._h5.Dataset):
                raise self._wrong(path, "it is no dataset")
            row = self._row(key, path, data.id)
            if not is_type_of(data.dtype, row.dtype):
                raise self._wrong(path, f"its elements are {data.dtype}, its attribute dtype says otherwise")
            if data.shape != row.shape:
                raise self._wrong(path, f"its shape is {data.shape}, its attribute shape says {row.shape}")
            if row.nbytes > most:
                raise self._wrong(path, f"a block of {row.nbytes} bytes, at most {most} can be taken")
            self._check_storage(path, data.id, row)
            found = np.empty(row.shape, file_dtype(row.dtype))
            if row.nbytes:
                kind = self._h5.h5t.py_create(found.dtype, logical=True)
                data.id.read(self._h5.h5s.ALL, self._h5.h5s.ALL, found, kind)
        checksum = int(checksum_bytes(found.ctypes.data if row.nbytes else 0, row.nbytes))
        if checksum != row.checksum:
            raise self._wrong(
                path, f"its bytes have the checksum {checksum:016x}, not {row.checksum:016x}: not what was exported"
            )
        return Block(row, found)

    # ---------------------------------------------------------------------------------------------- parts

    def _read_origin(self) -> Origin:
        root = self._file.id
        if not self._h5.h5a.exists(root, b"format") or self._text(root, "format") != FORMAT:
            raise Hdf5FileError(f"{self.path} is an HDF5 file, but none that Cascade has exported")
        version = self._number(root, "version", _MASK64)
        if version != VERSION:
            raise Hdf5FileError(
                f"{self.path} has format version {version}, this program knows {VERSION}: use a newer Cascade"
            )
        keys, parts = self._text(root, "keys"), json.loads(self._text(root, "namespace_parts"))
        known, number = from_json(parts), int(self._text(root, "namespace_id"), 16)
        if keys not in (INTEGER, STORED):
            raise self._wrong("/", f"its attribute keys is {keys!r}")
        if (known is None and parts is not None) or not 0 <= number <= _MASK64:
            raise self._wrong("/", "its attribute namespace_parts or namespace_id is not what was exported")
        return Origin(
            number, self._number(root, "epoch", MAX_EPOCH), keys, self._number(root, "created_ns", _MASK64),
            self._text(root, "file"), known,
        )  # fmt: skip

    def _row(self, key: int, path: str, dataset: Any) -> Row:
        name = self._text(dataset, "key")
        if name != path.rpartition("/")[2]:
            raise self._wrong(path, f"its attribute key is {name!r}")
        text = self._text(dataset, "dtype")
        code = dtype_code(text)
        if code is None:
            raise self._wrong(path, f"its attribute dtype is {text!r}, which no block has")
        shape = tuple(np.atleast_1d(self._value(dataset, "shape")).tolist())
        if len(shape) > MAX_DIMS or not all(isinstance(each, int) for each in shape):
            raise self._wrong(path, f"its attribute shape is {shape}")
        exists = self._h5.h5a.exists
        return Row(
            key, code, shape, self._number(dataset, "checksum", _MASK64),
            self._number(dataset, "expiry", MAX_EXPIRY) if exists(dataset, b"expiry") else 0,
            self._number(dataset, "depth", MAX_DEPTH - 1) if exists(dataset, b"depth") else None,
            bool(self._number(dataset, "protected", 1)), self._number(dataset, "sequence", _MASK64),
        )  # fmt: skip

    def _check_storage(self, path: str, dataset: Any, row: Row) -> None:
        """They must be in this file, and enough of them: no memory is taken for what is not there."""
        create, h5d = dataset.get_create_plist(), self._h5.h5d
        layout = create.get_layout()
        if layout not in (h5d.CONTIGUOUS, h5d.COMPACT, h5d.CHUNKED) or create.get_external_count():
            raise self._wrong(path, "its bytes stand in another file: that is not followed")
        size = dataset.get_storage_size()
        if (layout != h5d.CHUNKED and size != row.nbytes) or (row.nbytes and not size):
            raise self._wrong(path, f"{size} bytes are stored for a block of {row.nbytes}")

    def _hard(self, group: Any) -> Iterator[str]:
        """The names in a group that stand for something in this file."""
        if not isinstance(group, self._h5.Group):
            raise self._wrong(group.name, "it is no group")
        for name in group:
            if not isinstance(group.get(name, getlink=True), self._h5.HardLink):
                raise self._wrong(f"{group.name}/{name}", "it is a link to somewhere else: that is not followed")
            yield name

    def _number(self, where: Any, name: str, most: int) -> int:
        value = self._value(where, name)
        if value.shape or value.dtype.kind not in "iub" or not 0 <= int(value) <= most:
            raise Hdf5FileError(f"its attribute {name} is {value!r}: it must be an integer in 0..{most}")
        return int(value)

    def _text(self, where: Any, name: str) -> str:
        value = self._value(where, name)
        if value.shape or value.dtype.kind != "S":
            raise Hdf5FileError(f"its attribute {name} is {value!r}: it must be a text of fixed length")
        text: str = value.item().decode()
        return text

    def _value(self, where: Any, name: str) -> npt.NDArray[Any]:
        try:
            attribute = self._h5.h5a.open(where, name.encode())
        except KeyError:
            raise Hdf5FileError(f"it has no attribute {name}") from None
        shape, dtype = attribute.shape, attribute.dtype
        # Of references and texts of variable length nothing is read: HDF5 may search a damaged heap for ever.
        if shape is None or dtype.kind not in "Sbiuf" or math.prod(shape) > MAX_DIMS or dtype.itemsize > _MAX_TEXT:
            raise Hdf5FileError(f"its attribute {name} has the shape {shape} of {dtype}")
        found = np.zeros(shape, dtype)
        if found.size:
            attribute.read(found)
        return found

    def _wrong(self, path: str, what: str) -> Hdf5FileError:
        return Hdf5FileError(f"{self.path}: {path}: {what}")

    @contextmanager
    def _explained(self, where: str) -> Iterator[None]:
        """Whatever HDF5 finds wrong in a file, and whatever a changed one makes of our own steps, is its damage."""
        try:
            yield
        except MemoryError:
            raise
        except Hdf5FileError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise self._wrong(where, str(error)) from None
        except Exception as error:
            raise self._wrong(where, f"it cannot be read, the file is damaged: {error}") from error
