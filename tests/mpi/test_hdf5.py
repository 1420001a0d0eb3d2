"""Export to HDF5 and import: what any reader of HDF5 finds in the file, what comes back, and errors on all ranks.

Covers the file that rank 0 writes, and the one that all ranks write: by h5py itself where it has MPI, else by a
stand-in that keeps its contract (`parallel_h5py`).
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import parallel_h5py
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import (
    CascadeError,
    ConfigError,
    DiskFullError,
    FileThereError,
    Hdf5FileError,
    NoSuchFileError,
    NotConfiguredError,
)
from cascade_mpi.hdf5 import gathering, library
from cascade_mpi.hdf5.rows import path_of
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store
from cascade_mpi.values import result_dtype, source

pytestmark = pytest.mark.alone

Open = Callable[..., Store]
ALICE, MALLORY = Namespace("t", salt=b"alice's secret"), Namespace("t", salt=b"a guess")
BY_CONTENT = Namespace("c", identity="content", hash="sha256")
BFLOAT16 = 15
SIZES = [0, 1, 100, 4096, 70_000, 1 << 20]


@pytest.fixture
def folder(comm: MPI.Intracomm) -> Iterator[Path]:
    """A folder that all ranks share."""
    made = tempfile.TemporaryDirectory(prefix="cascade-test-") if comm.rank == 0 else None
    yield Path(comm.bcast(None if made is None else made.name))
    comm.Barrier()
    if made is not None:
        made.cleanup()


@pytest.fixture(params=["gathered", "parallel"])
def how(request: pytest.FixtureRequest, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who writes the file."""
    if request.param == "gathered":
        monkeypatch.setattr(library, "is_parallel", lambda h5: False)
        return "gathered"
    if not h5py.get_config().mpi:
        monkeypatch.setattr(library, "load", lambda: parallel_h5py)
        monkeypatch.setattr(library, "is_parallel", lambda h5: h5 is parallel_h5py)
    return "parallel" if comm.size > 1 else "gathered"


def bfloat16(patterns: np.ndarray) -> Any:
    """A value of bfloat16, of its 16-bit patterns; NumPy has it by `ml_dtypes`."""
    return patterns.view(result_dtype(BFLOAT16))


def contents(comm: MPI.Intracomm) -> dict[Any, tuple[Any, dict[str, Any]]]:
    """Blocks of this rank, with options of their puts."""
    base = 1000 * comm.rank
    made: dict[Any, tuple[Any, dict[str, Any]]] = {
        base + number: (block(base + number, size), {"is_prefix": number == 2}) for number, size in enumerate(SIZES)
    }
    made[f"text {comm.rank}"] = (np.arange(6, dtype=np.float32).reshape(2, 3) + base, {"depth": 5, "ttl": 1000})
    made[b"bytes %d" % comm.rank] = (np.array([[[True, False]]] * 3), {"depth": 0})
    made[(1 << 127) + base] = (np.full((1, 2) * 4, 1 + 2j, np.complex64), {})
    made[base + 500] = (np.array(2.5), {})
    made[base + 501] = (bfloat16(np.arange(24, dtype=np.uint16).reshape(2, 3, 4)), {"ttl": 50.5})
    return made


def fill(store: Store, comm: MPI.Intracomm, namespace: Any) -> dict[Any, tuple[Any, dict[str, Any]]]:
    mine = contents(comm)
    for key, (data, options) in mine.items():
        assert store.put(key, data, namespace=namespace, **options)
    comm.Barrier()
    return mine


@pytest.mark.parametrize("namespace", [None, "n", ALICE, BY_CONTENT], ids=["default", "named", "salted", "by content"])
def test_what_was_exported_comes_back_and_any_reader_finds_it(
    store: Store, comm: MPI.Intracomm, folder: Path, how: str, namespace: Any, assert_all: Callable[..., None]
) -> None:
    mine = fill(store, comm, namespace)
    store.put(7, b"another's", namespace="another")
    path = folder / "a.h5"
    before = sorted(each[:6] for each in store.scan_all(namespace))
    began = time.time()
    done = store.export_hdf5(path, namespace)
    assert (done.how, done.path, done.gone, done.damaged) == (how, str(path), 0, 0)
    assert (done.blocks, done.bytes) == (len(mine) * comm.size, sum(each[2] for each in before))
    with h5py.File(path) as file:  # plain h5py: nothing of this package
        assert file.attrs["format"] == b"cascade-hdf5"
        assert (file.attrs["blocks"], file.attrs["bytes"]) == (done.blocks, done.bytes)
        found = [file[f"blocks/{group}/{name}"] for group in file["blocks"] for name in file["blocks"][group]]
        assert len(found) == done.blocks
        for key, (data, options) in mine.items():
            if isinstance(key, int):
                dataset = file[path_of(key)]
                attributes = dataset.attrs
                assert attributes["key"].decode() == f"{key:032x}"
                assert dataset.shape == tuple(attributes["shape"]) == data.shape
                assert dataset[...].tobytes() == data.tobytes()
                assert attributes["protected"] == options.get("is_prefix", False)
                assert ("expiry" in attributes) == ("ttl" in options)
        assert file[path_of(1000 * comm.rank + 501)].attrs["dtype"] == b"bfloat16"
        assert file[path_of(1000 * comm.rank + 501)].dtype == np.uint16
        assert file[path_of(1000 * comm.rank + 501)].attrs["expiry"] in range(int(began) + 40, int(began) + 60)
        [texts] = [each for each in found if each.dtype == np.float32 and each[0, 0] == 1000 * comm.rank]
        assert texts.attrs["depth"] == 5
    comm.Barrier()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in folder.iterdir()] == ["a.h5"], "nothing else is left"
    comm.Barrier()
    store.delete_all(namespace)
    came = store.import_hdf5(path, namespace)
    assert (came.blocks, came.bytes) == (done.blocks, done.bytes)
    assert (came.kept, came.refused, came.expired, came.reason) == (0, 0, 0, "")
    wrong = []
    for key, (data, _) in mine.items():
        got = store.get(key, namespace=namespace)
        if got is None or (got.dtype, got.shape, got.tobytes()) != (data.dtype, data.shape, data.tobytes()):
            wrong.append(f"{key!r}: {got!r}")
    assert_all(comm, not wrong, "; ".join(wrong))
    after = store.scan_all(namespace)
    assert sorted((each.key, *each[2:6]) for each in after) == sorted((each[0], *each[2:6]) for each in before)
    assert {each.depth for each in after} == {None, 0, 5}
    left = sorted(each.ttl for each in after if each.ttl is not None)
    assert len(left) == 2 * comm.size
    assert 0 < left[0] <= 52 < left[-1] <= 1001
    assert len(list(store.scan(namespace))) > 0, "every rank has taken a share"
    comm.Barrier()


def test_large_blocks_come_in_pieces_and_small_ones_together(
    open_store: Open, comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "is_parallel", lambda h5: False)
    monkeypatch.setattr(gathering.batches, "__defaults__", (1 << 16,))
    store = open_store(comm, dram_bytes="32MiB")
    sizes = [1 << 16, (1 << 16) + 1, 5, 3 << 19, 0, *[1000] * 100, 200_001]
    for number, size in enumerate(sizes):
        store.put(1000 * comm.rank + number, block(1000 * comm.rank + number, size))
    done = store.export_hdf5(folder / "a.h5")
    assert done.blocks == len(sizes) * comm.size
    store.clear()
    assert store.import_hdf5(folder / "a.h5").blocks == done.blocks
    for number, size in enumerate(sizes):
        assert np.array_equal(store.get(1000 * comm.rank + number), block(1000 * comm.rank + number, size))


def test_an_error_of_one_rank_is_raised_on_all(
    store: Store, comm: MPI.Intracomm, folder: Path, how: str, raises_all: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for number in range(40):
        store.put(100 * comm.rank + number, block(number, 50_000))
    monkeypatch.setattr(gathering.batches, "__defaults__", (120_000,))
    last = comm.size - 1
    path = folder / "a.h5"

    raises_all(comm, NoSuchFileError, lambda: store.export_hdf5(folder / "absent" / "a.h5"))
    if comm.size > 1:
        assert "rank 1 was given another" in raises_all(
            comm, ConfigError, lambda: store.export_hdf5(folder / f"{min(comm.rank, 1)}.h5")
        )
    assert raises_all(comm, ConfigError, lambda: store.export_hdf5(5 if comm.rank == last else path))  # type: ignore[arg-type]

    reads = iter(range(1000))
    new = store._reader.new

    def fails(hi: int, lo: int) -> Any:
        if comm.rank == last and next(reads) == 20:
            raise RuntimeError("planted")
        return new(hi, lo)

    monkeypatch.setattr(store._reader, "new", fails)
    assert "planted" in raises_all(comm, Exception, lambda: store.export_hdf5(path))
    monkeypatch.setattr(store._reader, "new", new)
    comm.Barrier()
    assert list(folder.iterdir()) == []

    comm.Barrier()
    write = os.pwrite
    for full in (700_000, 3_000_000):  # among its own blocks, and among those that it receives
        if how == "parallel" or (full > 2_000_000 and comm.size == 1):
            continue

        def fills(descriptor: int, data: Any, offset: int, full: int = full) -> int:
            if offset + len(data) > full:
                raise OSError(errno.ENOSPC, "full")
            return write(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", fills)
        raises_all(comm, DiskFullError, lambda: store.export_hdf5(path))
        monkeypatch.setattr(os, "pwrite", write)
        comm.Barrier()
        assert list(folder.iterdir()) == []
        comm.Barrier()

    done = store.export_hdf5(path)  # and nothing of all that is left
    assert done.blocks == 40 * comm.size
    before = path.read_bytes()
    comm.Barrier()
    assert "overwrite=True" in raises_all(comm, FileThereError, lambda: store.export_hdf5(path))
    assert path.read_bytes() == before
    comm.Barrier()
    store.put(10**6 + comm.rank, b"one more")
    assert store.export_hdf5(path, overwrite=True).blocks == 41 * comm.size
    assert store.import_hdf5(path, exists="keep").kept == 41 * comm.size


def test_without_h5py(
    store: Store, comm: MPI.Intracomm, folder: Path, raises_all: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(comm.rank, b"x")
    path = folder / "a.h5"
    done = store.export_hdf5(path)
    assert done.blocks == comm.size
    if comm.rank == 0:
        monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    for call in (lambda: store.export_hdf5(folder / "b.h5"), lambda: store.import_hdf5(path)):
        assert 'pip install "cascade-mpi[hdf5]"' in raises_all(comm, NotConfiguredError, call)
    comm.Barrier()
    assert [each.name for each in folder.iterdir()] == ["a.h5"]


def test_a_file_of_another_namespace_or_epoch(
    store: Store, comm: MPI.Intracomm, folder: Path, raises_all: Callable[..., str]
) -> None:
    store.put(100 + comm.rank, b"mine", namespace=ALICE)
    store.put(f"text {comm.rank}", b"text", namespace=ALICE)
    comm.Barrier()
    path = folder / "a.h5"
    store.export_hdf5(path, ALICE)
    for wrong in (None, "t", MALLORY):
        text = raises_all(comm, ConfigError, lambda wrong=wrong: store.import_hdf5(path, wrong))
        assert "the file is of namespace t (salted)" in text
    assert store.import_hdf5(path, "copy", rekey=True).blocks == 2 * comm.size
    assert bytes(store.get(100 + comm.rank, namespace="copy")) == b"mine"
    assert store.get(f"text {comm.rank}", namespace="copy") is None, "as it is said"
    comm.Barrier()
    if comm.rank == 0:
        store.bump_epoch(ALICE)
    comm.Barrier()
    assert "bump_epoch()" in raises_all(comm, ConfigError, lambda: store.import_hdf5(path, ALICE))
    store.export_hdf5(folder / "empty.h5", ALICE)
    assert store.import_hdf5(folder / "empty.h5", ALICE) == (0,) * 6 + ("",)
    assert b"alice's secret" not in path.read_bytes()
    assert ALICE.digest(0) not in path.read_bytes()
    comm.Barrier()


def test_an_epoch_that_begins_meanwhile(
    store: Store, comm: MPI.Intracomm, folder: Path, how: str, raises_all: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for number in range(3):
        store.put(10 * comm.rank + number, b"old", namespace="w")
    comm.Barrier()
    store.export_hdf5(folder / "a.h5", "w")
    new = store._reader.new
    bumped = []

    def read(hi: int, lo: int) -> Any:
        if comm.rank == 0 and not bumped:
            bumped.append(store.bump_epoch("w"))
        return new(hi, lo)

    monkeypatch.setattr(store._reader, "new", read)
    assert "a new epoch" in raises_all(comm, CascadeError, lambda: store.export_hdf5(folder / "b.h5", "w"))
    comm.Barrier()
    assert [each.name for each in folder.iterdir()] == ["a.h5"]
    comm.Barrier()


def test_what_goes_meanwhile_is_counted(
    store: Store, comm: MPI.Intracomm, folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        store.put(10 * comm.rank + number, block(number, 300))
    comm.Barrier()
    new = store._reader.new
    calls = iter(range(100))

    def read(hi: int, lo: int) -> Any:
        call = next(calls)
        if call == 1:
            store.delete(lo)
        if call == 2:  # replaced by one of another shape: a file of all ranks has no place for it
            store.put(lo, np.zeros((3, 4), np.int16), ttl=500)
        return new(hi, lo)

    monkeypatch.setattr(store._reader, "new", read)
    done = store.export_hdf5(folder / "a.h5")
    gone = 1 if how == "gathered" else 2
    assert (done.blocks, done.gone) == ((5 - gone) * comm.size, gone * comm.size)
    with h5py.File(folder / "a.h5") as file:
        found = [file[f"blocks/{group}/{name}"] for group in file["blocks"] for name in file["blocks"][group]]
        assert len(found) == done.blocks
        assert sum("expiry" in each.attrs for each in found) == (2 - gone) * comm.size, "what belongs to the bytes"
    comm.Barrier()


def test_damaged_memory_is_not_exported(store: Store, comm: MPI.Intracomm, folder: Path, how: str) -> None:
    for number in range(3):
        store.put(10 * comm.rank + number, block(number, 300))
    comm.Barrier()
    tier = store._dram
    first = int(np.flatnonzero(tier.words)[0])
    tier.payload(first)[5] ^= 1
    done = store.export_hdf5(folder / "a.h5")
    tier.payload(first)[5] ^= 1  # for the check after the test
    assert (done.blocks, done.gone, done.damaged) == (2 * comm.size, 0, comm.size)


def test_damaged_blocks_are_left_out_and_told_of(
    store: Store, comm: MPI.Intracomm, folder: Path, raises_all: Callable[..., str]
) -> None:
    for number in range(6):
        store.put(10 * comm.rank + number, block(number, 300))
    comm.Barrier()
    path = folder / "a.h5"
    store.export_hdf5(path)
    if comm.rank == 0:
        with h5py.File(path, "r+") as file:
            file[path_of(1)][7] ^= 1
            file[path_of(2)].attrs["dtype"] = np.bytes_(b"int8")
            del file[path_of(3)].attrs["checksum"]
            file["blocks/04"].move(f"{4:032x}", f"{0x104:032x}")
    store.clear()
    text = raises_all(comm, Hdf5FileError, lambda: store.import_hdf5(path))
    assert f"4 blocks of {path} are damaged and were left out, {6 * comm.size - 4} were imported" in text
    assert f"{path_of(1)}: its bytes have the checksum" in text
    assert [store.contains(key) for key in range(6)] == [True, False, False, False, False, True]
    comm.Barrier()
    if comm.rank == 0:
        path.write_bytes(path.read_bytes()[:-100])
    comm.Barrier()
    assert "is no HDF5 file, or is damaged" in raises_all(comm, Hdf5FileError, lambda: store.import_hdf5(path))
    assert "absent" in raises_all(comm, NoSuchFileError, lambda: store.import_hdf5(folder / "absent"))
    raises_all(comm, ConfigError, lambda: store.import_hdf5(path, exists="error"))  # type: ignore[arg-type]


def test_the_ranks_must_see_the_same_file(
    store: Store, comm: MPI.Intracomm, tmp_path: Path, folder: Path, raises_all: Callable[..., str]
) -> None:
    other = folder / "other.h5"
    store.export_hdf5(folder / "a.h5")
    store.export_hdf5(other)
    link = tmp_path.parent / f"cascade-test-link-{comm.bcast(tmp_path.name)}"
    paths = comm.allgather(str(folder / "a.h5") if comm.rank else str(other))
    if comm.size > 1:  # as a node-local folder: one name, two files
        from cascade_mpi import store_hdf5

        opened = store_hdf5.ExportFile
        try:
            store_hdf5.ExportFile = lambda path: opened(paths[comm.rank])  # type: ignore[misc, assignment]
            assert "not the same file on all ranks" in raises_all(comm, ConfigError, lambda: store.import_hdf5(link))
        finally:
            store_hdf5.ExportFile = opened  # type: ignore[misc]
    assert store.import_hdf5(other).blocks == 0


def test_what_finds_no_room_is_counted(open_store: Open, comm: MPI.Intracomm, folder: Path) -> None:
    large = open_store(comm, dram_bytes="8MiB")
    for number in range(6):
        large.put(10 * comm.rank + number, block(number, 1 << 20), is_prefix=number < 2)
    comm.Barrier()
    large.put(99, b"passes", ttl=1)
    comm.Barrier()
    path = folder / "a.h5"
    done = large.export_hdf5(path)
    assert done.blocks in (6 * comm.size, 6 * comm.size + 1)
    small = open_store(comm, dram_bytes="3MiB", when_full="refuse")
    with h5py.File(path, "r") as file:
        passes = path_of(99) in file
    comm.Barrier()
    if comm.rank == 0 and passes:
        with h5py.File(path, "r+") as file:
            file[path_of(99)].attrs.modify("expiry", np.uint64(time.time() - 5))
    comm.Barrier()
    came = small.import_hdf5(path)
    assert came.expired == passes
    assert came.blocks + came.refused == 6 * comm.size
    assert came.refused > 0
    assert "raise dram_bytes" in came.reason
    assert came.blocks == len(small.scan_all())
    evicting = open_store(comm, dram_bytes="3MiB")
    came = evicting.import_hdf5(path)
    assert came.evicted > 0
    assert len(evicting.scan_all()) == came.blocks - came.evicted


def test_waiting_puts(open_store: Open, comm: MPI.Intracomm, folder: Path) -> None:
    store = open_store(comm, publish="deferred")
    store.put(10 * comm.rank, b"published")
    store.publish()
    store.put(10 * comm.rank + 1, b"waits")
    assert store.export_hdf5(folder / "a.h5").blocks == comm.size
    store.put(10 * comm.rank, b"newer, and waits")
    comm.Barrier()
    assert store.import_hdf5(folder / "a.h5").blocks == comm.size
    assert [bytes(store.get(10 * rank)) for rank in range(comm.size)] == [b"published"] * comm.size
    comm.Barrier()
    store.publish()
    assert [bytes(store.get(10 * rank)) for rank in range(comm.size)] == [b"published"] * comm.size


def test_types_that_numpy_lacks_keep_theirs_without_their_package(
    store: Store, comm: MPI.Intracomm, folder: Path
) -> None:
    value = source(np.arange(6, dtype=np.uint16))._replace(dtype=BFLOAT16)
    space = store._writable(None)
    store._writer.put(0, comm.rank, space, value, prefix=False, exists="replace")
    comm.Barrier()
    store.export_hdf5(folder / "a.h5")
    store.clear()
    store.import_hdf5(folder / "a.h5")
    assert [each.dtype for each in store.scan_all()] == ["bfloat16"] * comm.size
