"""The blocks of a file as HDF5 has them: a contiguous dataset each, with attributes, in groups by their last digits.

Covers their creation by one rank or by all (where every rank makes the same calls) and the facts at the root. Does not
cover the payloads, nor reading (see `reading`). HDF5's own calls are used: for small blocks h5py's cost twice as much.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.hdf5.origin import Origin
from cascade_mpi.hdf5.rows import BLOCKS, FORMAT, VERSION, Row, group_of, name_of
from cascade_mpi.values import dtype_name, file_dtype

# Any h5py can read it: neither formats nor types that came after HDF5 1.10, and the oldest where they will do.
LIBVER = ("earliest", "v110")


class Datasets:
    """The datasets of a file that is being written, an `h5py.File`."""

    def __init__(self, h5: Any, file: Any) -> None:
        self._h5 = h5
        create = h5.h5p.create(h5.h5p.DATASET_CREATE)
        create.set_layout(h5.h5d.CONTIGUOUS)
        create.set_alloc_time(h5.h5d.ALLOC_TIME_EARLY)  # so that its place in the file is known
        create.set_fill_time(h5.h5d.FILL_TIME_NEVER)  # all of it is written anyhow
        create.set_obj_track_times(False)
        self._create = create
        self._scalar = h5.h5s.create(h5.h5s.SCALAR)
        self._texts: dict[int, tuple[np.dtype[Any], Any]] = {}  # by length
        self._types: dict[np.dtype[Any], Any] = {}
        self._spaces: dict[tuple[int, ...], Any] = {}
        self._file = file
        self._blocks = file.create_group(BLOCKS)
        self._groups: dict[str, Any] = {}

    def create(self, row: Row) -> Any:
        """Local. A new dataset for a block, without attributes. ValueError: there is one of that name."""
        name = name_of(row.key)
        kind = self._type(file_dtype(row.dtype))
        return self._h5.h5d.create(self._group(name), name.encode(), kind, self._space(row.shape), self._create)

    def open(self, key: int) -> Any | None:
        """Local. The dataset of a key, None if there is none."""
        name = name_of(key).encode()
        group = self._group(name_of(key))
        return self._h5.h5d.open(group, name) if name in group else None

    def remove(self, key: int) -> None:
        """Local. Take the dataset of a key away; its place in the file stays empty."""
        name = name_of(key)
        self._group(name).unlink(name.encode())

    def describe(self, dataset: Any, row: Row) -> None:
        """Local. Write the attributes of a block."""
        self._put_text(dataset, "key", name_of(row.key))
        self._put_text(dataset, "dtype", dtype_name(row.dtype))
        self._put(dataset, "shape", np.array(row.shape, np.uint64))
        self._put(dataset, "nbytes", np.array(row.nbytes, np.uint64))
        self._put(dataset, "checksum", np.array(row.checksum, np.uint64))
        self._put(dataset, "sequence", np.array(row.sequence, np.uint64))
        self._put(dataset, "protected", np.array(row.protected, np.bool_))
        if row.depth is not None:
            self._put(dataset, "depth", np.array(row.depth, np.uint64))
        if row.expiry:
            self._put(dataset, "expiry", np.array(row.expiry, np.uint64))

    def describe_file(self, origin: Origin, blocks: int, nbytes: int) -> None:
        """Local. Write the facts at the root."""
        root = self._file.id
        texts = {
            "format": FORMAT, "keys": origin.keys, "file": origin.file,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(origin.created // 10**9)),
            "namespace": origin.text.replace("\0", "\\0"),  # a zero would end a text of HDF5
            "namespace_id": f"{origin.namespace_id:016x}",
            "namespace_parts": json.dumps(None if origin.known is None else origin.known._asdict()),
        }  # fmt: skip
        numbers = {
            "version": VERSION, "created_ns": origin.created, "blocks": blocks, "bytes": nbytes, "epoch": origin.epoch,
        }  # fmt: skip
        for name, text in texts.items():
            self._put_text(root, name, text)
        for name, number in numbers.items():
            self._put(root, name, np.array(number, np.uint64))

    def _group(self, name: str) -> Any:
        digits = group_of(name)
        if digits not in self._groups:
            self._groups[digits] = self._blocks.create_group(digits).id
        return self._groups[digits]

    def _space(self, shape: tuple[int, ...]) -> Any:
        found = self._spaces.get(shape)
        if found is None:
            found = self._h5.h5s.create_simple(shape) if shape else self._scalar
            if len(self._spaces) < 1024:
                self._spaces[shape] = found
        return found

    def _type(self, dtype: np.dtype[Any]) -> Any:
        if dtype.kind == "S":
            return self._h5.h5t.py_create(dtype, logical=True)  # two that are equal to NumPy may differ in encoding
        found = self._types.get(dtype)
        if found is None:
            found = self._types[dtype] = self._h5.h5t.py_create(dtype, logical=True)
        return found

    def _put(self, dataset: Any, name: str, value: npt.NDArray[Any]) -> None:
        kind = self._type(value.dtype)
        self._h5.h5a.create(dataset, name.encode(), kind, self._space(value.shape)).write(value)

    def _put_text(self, dataset: Any, name: str, text: str) -> None:
        # Of fixed length: HDF5 2.0 may search a damaged heap of others for ever.
        data = text.encode()
        if len(data) not in self._texts:
            dtype = self._h5.string_dtype("utf-8", max(len(data), 1))
            self._texts[len(data)] = dtype, self._type(dtype)
        dtype, kind = self._texts[len(data)]
        self._h5.h5a.create(dataset, name.encode(), kind, self._scalar).write(np.array(data, dtype))
