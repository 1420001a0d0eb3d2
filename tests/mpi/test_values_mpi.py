"""Element types and shapes on their way through the store, and between ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI

from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

SHAPES: list[tuple[int, ...]] = [
    (), (0,), (1,), (7,), (0, 5), (5, 0), (3, 4), (2, 3, 4), (1, 1, 1, 1), (2, 1, 3, 1, 2), (2,) * 8, (1, 0, 1, 1, 1),
]  # fmt: skip
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128",
)  # fmt: skip


def sample(dtype: object, shape: tuple[int, ...], seed: int) -> np.ndarray:
    count = int(np.prod(shape))
    return ((np.arange(count) * 37 + seed) % 101).astype(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_shapes_come_back(store: Store, comm: MPI.Intracomm, dtype: str) -> None:
    for number, shape in enumerate(SHAPES):
        assert store.put(f"{comm.rank} {number}", sample(dtype, shape, comm.rank))
    comm.Barrier()
    rank = (comm.rank + 1) % comm.size
    singles = [store.get(f"{rank} {number}") for number in range(len(SHAPES))]
    batch = store.get_many([f"{rank} {number}" for number in range(len(SHAPES))])
    for number, shape in enumerate(SHAPES):
        expected = sample(dtype, shape, rank)
        for found in (singles[number], batch[number]):
            assert (found.dtype, found.shape) == (expected.dtype, shape)
            np.testing.assert_array_equal(found, expected)
            assert found.flags.writeable
        where = store.locate(f"{rank} {number}")
        assert (where.dtype, where.shape, where.nbytes) == (dtype, shape, expected.nbytes)


@pytest.mark.core
def test_in_each_variant(any_store: Store, comm: MPI.Intracomm) -> None:
    for number, shape in enumerate(SHAPES):
        any_store.put(f"{comm.rank} {number}", sample("float32", shape, comm.rank))
    comm.Barrier()
    for rank in range(comm.size):
        for number, shape in enumerate(SHAPES):
            found = any_store.get(f"{rank} {number}")
            assert found.shape == shape
            np.testing.assert_array_equal(found, sample("float32", shape, rank))


def test_what_is_not_contiguous_is_stored_in_order(store: Store, comm: MPI.Intracomm) -> None:
    whole = sample("int32", (8, 9, 10), comm.rank)
    parts = {"transposed": whole.T, "strided": whole[::2, 1:, ::-3], "fortran": np.asfortranarray(whole)}
    for name, part in parts.items():
        store.put(f"{comm.rank} {name}", part)
        found = store.get(f"{comm.rank} {name}")
        assert found.shape == part.shape
        np.testing.assert_array_equal(found, part)


def test_bytes_and_buffers(store: Store, comm: MPI.Intracomm) -> None:
    for number, data in enumerate(
        (b"bytes", bytearray(b"bytes"), memoryview(b"xbytes")[1:], np.frombuffer(b"bytes", "u1"))
    ):
        store.put(f"{comm.rank} {number}", data)
        found = store.get(f"{comm.rank} {number}")
        assert found.dtype == np.uint8
        assert found.tobytes() == b"bytes"


def test_bfloat16_and_float8(store: Store, comm: MPI.Intracomm) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        dtype = np.dtype(getattr(ml_dtypes, name))
        value = np.arange(12, dtype=np.float32).astype(dtype).reshape(3, 4)
        store.put(f"{comm.rank} {name}", value)
        comm.Barrier()
        found = store.get(f"{(comm.rank + 1) % comm.size} {name}")
        assert (found.dtype, found.shape) == (dtype, (3, 4))
        assert found.tobytes() == value.tobytes()
        assert store.locate(f"{comm.rank} {name}").dtype == name


def test_torch_tensors(store: Store, comm: MPI.Intracomm) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for number, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)):
        value = torch.arange(24).reshape(2, 3, 4).to(dtype)
        store.put(f"{comm.rank} {number}", value)
        comm.Barrier()
        out = torch.zeros_like(value)
        assert store.get(f"{(comm.rank + 1) % comm.size} {number}", out) == value.numel() * value.element_size()
        assert torch.equal(out, value)
        assert store.locate(f"{comm.rank} {number}").shape == (2, 3, 4)


@pytest.mark.parametrize(
    "bad", [[1, 2], "text", 5, None, np.array(["a"], object), np.array(["ab"]), np.zeros(1, "datetime64[s]")]
)
def test_what_is_no_value_is_refused_and_nothing_is_stored(store: Store, bad: object) -> None:
    store.put("bad", b"before")
    with pytest.raises(TypeError):
        store.put("bad", bad)
    assert store.get("bad").tobytes() == b"before"


def test_a_value_put_is_a_copy(any_store: Store, comm: MPI.Intracomm) -> None:
    value = np.zeros(5000, np.uint8)
    any_store.put(f"{comm.rank}", value)
    value[:] = 1
    first = any_store.get(f"{comm.rank}")
    assert not first.any()
    first[:] = 2
    assert not any_store.get(f"{comm.rank}").any()


@pytest.mark.parametrize("settings", [{"checksum": "inline"}, {"checksum": "off"}, {"checksum": "later"}])
def test_every_checksum_mode(open_store: Callable[..., Store], comm: MPI.Intracomm, settings: dict[str, str]) -> None:
    store = open_store(comm, **settings)
    for nbytes in (0, 1, 4096, 70_001):
        store.put(f"{comm.rank} {nbytes}", sample("uint8", (nbytes,), comm.rank))
    comm.Barrier()
    for rank in range(comm.size):
        for nbytes in (0, 1, 4096, 70_001):
            np.testing.assert_array_equal(store.get(f"{rank} {nbytes}"), sample("uint8", (nbytes,), rank))
    counts = store.check()
    assert counts["checksums"] == (0 if settings["checksum"] == "off" else 4 * comm.size)


def test_verified_reads_see_damage(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    """A flipped bit is a miss that is counted, never a wrong value; blocks beside it are read, empty ones too."""
    store = open_store(comm, checksum="inline", verify_reads=True)
    for nbytes in (0, 1, 4096, 70_001):
        store.put(f"{comm.rank} {nbytes}", sample("uint8", (nbytes,), comm.rank))
    comm.Barrier()
    for rank in range(comm.size):
        for nbytes in (0, 1, 4096, 70_001):
            np.testing.assert_array_equal(store.get(f"{rank} {nbytes}"), sample("uint8", (nbytes,), rank))
    comm.Barrier()
    page = store._reader.find(*store._words(f"{comm.rank} 70001", None)).page
    fabric = store._fabric
    arena = fabric.data.memory[fabric.arena_at :]
    arena[page * fabric.page_bytes + 35_000] ^= 4
    comm.Barrier()
    corrupt = store.stats()["corrupt"]
    for rank in range(comm.size):
        assert store.get(f"{rank} 70001") is None
        assert store.get(f"{rank} 70001", bytearray(70_001)) is None
        np.testing.assert_array_equal(store.get(f"{rank} 4096"), sample("uint8", (4096,), rank))
    assert store.stats()["corrupt"] >= corrupt + 2 * comm.size
    comm.Barrier()
    arena[page * fabric.page_bytes + 35_000] ^= 4
    comm.Barrier()
    assert store.get(f"{(comm.rank + 1) % comm.size} 70001").nbytes == 70_001


def test_large_copies_by_several_threads(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes="16MiB", copy_threads=2)
    assert store.report()["copy_threads"]["threads"] == 2
    nbytes = (5 << 20) + 4321
    expected = [np.resize(sample("uint8", (9973,), rank), nbytes) for rank in range(comm.size)]
    assert store.put(f"{comm.rank}", expected[comm.rank])
    comm.Barrier()
    for rank in range(comm.size):
        out = np.zeros(nbytes + 1, np.uint8)[1:]  # unaligned
        assert store.get(f"{rank}", out) == nbytes
        np.testing.assert_array_equal(out, expected[rank])
    store.check()
