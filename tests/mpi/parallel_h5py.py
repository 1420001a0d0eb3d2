"""h5py with MPI, played by one without: the same module, whose `File(driver="mpio")` keeps the contract of HDF5.

Covers what `cascade_mpi.hdf5.parallel` relies on. The contract: whatever changes the structure of the file is done by
all ranks alike, in the same order (this is compared when the file is closed); bytes of a dataset may be written by one
rank alone; opening and closing are steps of all. It is no proof of HDF5's own MPI code, nor of MPI-IO.

Every rank has a file of its own, with the same structure; what the others write into it is brought to rank 0 when all
close it.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, ClassVar

import h5py
from h5py import *  # noqa: F403
from h5py import h5d as _h5d
from h5py import h5g, h5p, h5s, h5t  # noqa: F401
from mpi4py import MPI


class _Log:
    """What this rank has done to the structure of the file that is open."""

    steps: ClassVar[list[tuple[Any, ...]]] = []
    written: ClassVar[list[tuple[str, bytes]]] = []


def get_config() -> Any:
    return SimpleNamespace(mpi=True)


class _Dataset:
    """A dataset that was made here; what is written to it is noted."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def write(self, memory: Any, there: Any, data: Any, kind: Any) -> None:
        self.inner.write(memory, there, data, kind)
        _Log.written.append((h5py.h5i.get_name(self.inner).decode(), data.tobytes()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _create_dataset(group: Any, name: bytes, kind: Any, space: Any, create: Any) -> _Dataset:
    assert create.get_alloc_time() == _h5d.ALLOC_TIME_EARLY, "or ranks would allocate when they write"
    _Log.steps.append(("dataset", name, str(kind.dtype), space.shape))
    return _Dataset(_h5d.create(group, name, kind, space, create))


def _open_dataset(group: Any, name: bytes) -> _Dataset:
    return _Dataset(_h5d.open(group, name))


class _Attribute:
    def __init__(self, inner: Any, name: bytes) -> None:
        self.inner, self.name = inner, name

    def write(self, value: Any) -> None:
        _Log.steps.append(("attribute", self.name, value.tobytes() if value.dtype != object else str(value)))
        self.inner.write(value)


def _create_attribute(where: Any, name: bytes, kind: Any, space: Any) -> _Attribute:
    inner = where.inner if isinstance(where, _Dataset) else where
    return _Attribute(h5py.h5a.create(inner, name, kind, space), name)


h5d = SimpleNamespace(**{name: getattr(_h5d, name) for name in dir(_h5d)})
h5d.create, h5d.open = _create_dataset, _open_dataset
h5a = SimpleNamespace(**{name: getattr(h5py.h5a, name) for name in dir(h5py.h5a)})
h5a.create = _create_attribute


def File(path: str, mode: str, driver: str = "", comm: MPI.Intracomm | None = None, **options: Any) -> Any:
    if not driver:
        return h5py.File(path, mode, **options)
    assert (driver, mode) == ("mpio", "w")
    assert comm is not None
    comm.Barrier()
    _Log.steps, _Log.written = [], []
    return _File(path, comm, options)


class _File:
    def __init__(self, path: str, comm: MPI.Intracomm, options: dict[str, Any]) -> None:
        self.path, self.comm = path, comm
        self.own = path if comm.rank == 0 else f"{path}.{comm.rank}"
        self.inner = h5py.File(self.own, "w", locking=False, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def close(self) -> None:
        if self.inner is None:
            return
        links: list[str] = []
        self.inner.visit(links.append)
        everyone = self.comm.gather((_Log.steps, links, _Log.written))
        if everyone is not None:
            for rank, (steps, theirs, written) in enumerate(everyone):
                assert (steps, theirs) == everyone[0][:2], f"rank {rank} has made another structure"
                for name, data in written if rank else ():
                    if name is not None and name in self.inner:
                        dataset = self.inner[name]
                        found = h5py.h5t.py_create(dataset.dtype, logical=True)
                        values = __import__("numpy").frombuffer(data, dataset.dtype).reshape(dataset.shape).copy()
                        dataset.id.write(h5s.ALL, h5s.ALL, values, found)
        self.inner.close()
        self.inner = None
        if self.comm.rank:
            os.unlink(self.own)
        self.comm.Barrier()
