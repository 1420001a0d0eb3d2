"""Values: which memory is accepted, its address, element type and shape, and what comes back."""

from __future__ import annotations

import array
import ctypes
import gc
import io
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi import values
from cascade_mpi.errors import NotConfiguredError
from cascade_mpi.values import Source, decode_dims, dtype_name, empty, encode_dims, result_dtype, source, target

NUMPY_TYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128",
)  # fmt: skip
EXTENSION_TYPES = (("bfloat16", "uint16"), ("float8_e4m3fn", "uint8"), ("float8_e5m2", "uint8"))


def held(found: Source) -> bytes:
    """The bytes that a source points to, read through its address alone."""
    return ctypes.string_at(found.address, found.nbytes) if found.nbytes else b""


def sample(dtype: str, shape: tuple[int, ...] = (2, 3, 4)) -> np.ndarray:
    return np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)


def test_codes_are_fixed() -> None:
    names = [dtype_name(code) for code in range(1, 18)]
    assert names == [*NUMPY_TYPES, "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("code", [0, 18, 255, -1])
def test_an_unknown_code_is_named(code: int) -> None:
    for call in (dtype_name, result_dtype, lambda code: empty(code, (2,))):
        with pytest.raises(ValueError, match=rf"dtype code {code} is outside 1\.\.17"):
            call(code)


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4), (), (0,), (0, 5), (1,) * 8, (7,)])
def test_an_array_comes_back_as_it_is(dtype: str, shape: tuple[int, ...]) -> None:
    data = sample(dtype, shape)
    found = source(data)
    assert (held(found), found.nbytes, found.shape) == (data.tobytes(), data.nbytes, shape)
    result = empty(found.dtype, found.shape)
    address, nbytes = target(result)
    assert nbytes == data.nbytes
    ctypes.memmove(address, held(found), nbytes)
    assert result.dtype == data.dtype
    np.testing.assert_array_equal(result, data)


def test_a_contiguous_array_is_not_copied() -> None:
    for data in (sample("float32"), sample("float32")[1:], np.zeros(()), sample("int8")[:, :, :]):
        found = source(data)
        assert (found.address, found.owner) == (data.ctypes.data, data)


def test_addresses_follow_the_interface() -> None:
    data = sample("uint8", (64,))
    for view in (data, data[3:], data[::2], data.view(np.recarray), data[5:5]):
        assert values._address(view) == values._slow_address(view) == view.ctypes.data


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::2], lambda a: a.T, lambda a: a[:, ::-1], np.asfortranarray, lambda a: a[..., :1],
     lambda a: np.broadcast_to(a[0], (5, 3, 4))],
)  # fmt: skip
def test_another_layout_is_copied(view: Callable[[np.ndarray], np.ndarray]) -> None:
    data = view(sample("int32", (4, 3, 4)))
    found = source(data)
    assert held(found) == data.tobytes()
    assert found.shape == data.shape
    assert found.owner is not data


def test_a_source_keeps_its_memory_alive() -> None:
    found = source(np.arange(100_000, dtype=np.uint32)[::2])
    gc.collect()
    assert held(found) == np.arange(0, 100_000, 2, dtype=np.uint32).tobytes()


def test_read_only_and_unaligned_arrays_can_be_put() -> None:
    data = sample("float64")
    data.flags.writeable = False
    unaligned = np.frombuffer(bytes(range(33)), np.uint8)[1:].view(np.float64)
    assert held(source(data)) == data.tobytes()
    assert held(source(unaligned)) == bytes(range(1, 33))


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda b: io.BytesIO(b).getbuffer()])
@pytest.mark.parametrize("content", [b"", b"a", bytes(range(256))])
def test_bytes_come_back_as_uint8(make: Callable[[bytes], Any], content: bytes) -> None:
    found = source(make(content))
    assert (held(found), found.nbytes, found.shape) == (content, len(content), (len(content),))
    assert dtype_name(found.dtype) == "uint8"


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (memoryview(sample("float16")), "float16", (2, 3, 4)),
        (memoryview(sample("int32"))[::1], "int32", (2, 3, 4)),
        (memoryview(b"abcdef")[::2], "uint8", (3,)),
        (memoryview(b"abcd").cast("c"), "uint8", (4,)),
        (memoryview(bytes(16)).cast("Q"), "uint64", (2,)),
        (memoryview(b"\1\0").cast("?"), "bool", (2,)),
        (array.array("d", [1.5, 2.5]), "float64", (2,)),
        ((ctypes.c_int16 * 3)(1, 2, 3), "int16", (3,)),
        (np.float32(1.5), "float32", ()),
    ],
)
def test_anything_with_a_buffer(data: Any, dtype: str, shape: tuple[int, ...]) -> None:
    found = source(data)
    assert (dtype_name(found.dtype), found.shape, held(found)) == (dtype, shape, memoryview(data).tobytes())


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">c16"])
def test_other_byte_orders_are_refused(dtype: str) -> None:
    native = np.dtype(dtype).newbyteorder("=").name
    with pytest.raises(TypeError, match=rf"{dtype}, .*\.view\(np\.uint8\) .* \.astype\('{native}'\)"):
        source(np.zeros(3, dtype))


@pytest.mark.parametrize("dtype", [[("a", "i4"), ("b", "f8")], "S7", "U3", "M8[s]", "V5", np.longdouble])
def test_other_element_types_are_refused(dtype: Any) -> None:
    data = np.zeros(3, dtype)
    with pytest.raises(TypeError, match=r"data has the element type .*\.view\(np\.uint8\)"):
        source(data)
    assert held(source(data.view(np.uint8))) == data.tobytes()


@pytest.mark.parametrize("dtype", ["O", [("a", "O")]])
def test_references_are_refused(dtype: Any) -> None:
    data = np.zeros(3, dtype)
    with pytest.raises(TypeError, match=r"data has the element type .* references.*\.view\(np\.uint8\)"):
        source(data)
    with pytest.raises(TypeError, match=r"out has the element type .* references"):
        target(data)


def test_masked_arrays_are_refused() -> None:
    masked = np.ma.masked_array([1, 2], [True, False])
    for call in (source, target):
        with pytest.raises(TypeError, match="is a masked array, masks are not stored"):
            call(masked)


@pytest.mark.parametrize("data", [None, 3, "text", [1, 2], (1, 2), {}, object()])
def test_other_objects_are_refused(data: object) -> None:
    for call, what in ((source, "data"), (target, "out")):
        with pytest.raises(TypeError, match=f"{what} is a {type(data).__name__}: it must be a NumPy array, "):
            call(data)


def test_a_format_that_numpy_does_not_know_is_refused() -> None:
    class Bits(ctypes.Structure):
        _fields_ = (("f", ctypes.c_void_p),)

    pointers = (ctypes.POINTER(Bits) * 2)()
    with pytest.raises(TypeError, match=r"data has the buffer format '&.*\.cast\('B'\)"):
        source(pointers)


def test_at_most_eight_dimensions() -> None:
    data = np.zeros((1,) * 9, np.uint8)
    for call in (lambda: source(data), lambda: source(data[::2]), lambda: encode_dims(data.shape)):
        with pytest.raises(ValueError, match=r"9 dimensions, .* at most 8 are stored, reshape it"):
            call()


def test_only_the_first_dimension_may_be_large() -> None:
    row = np.broadcast_to(np.uint8(1), (1 << 33,))  # one byte of memory
    for shape in ((1, 1 << 32), (2, 3, 1 << 33)):
        for call in (
            lambda shape=shape: encode_dims(shape),
            lambda shape=shape: source(np.broadcast_to(row[0], shape)),
        ):
            with pytest.raises(ValueError, match="only the first dimension may be 2\\^32 or more, reshape it"):
                call()
    with pytest.raises(ValueError, match="only the first dimension"):
        source(np.empty((0, 1 << 32), np.uint8))
    assert encode_dims((1 << 40, (1 << 32) - 1)) == (1 << 40, ((1 << 32) - 1, 0, 0, 0, 0, 0, 0))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=7), st.none() | st.integers(0, (1 << 64) - 1))
def test_dimensions_survive_the_descriptor(rest: list[int], first: int | None) -> None:
    shape = () if first is None else (first, *rest)
    dim0, dims = encode_dims(shape)
    assert len(dims) == 7
    assert decode_dims(len(shape), dim0, dims) == shape


@pytest.mark.parametrize("ndim", [-1, 9, 255])
def test_a_number_of_dimensions_that_cannot_be(ndim: int) -> None:
    with pytest.raises(ValueError, match=rf"{ndim} dimensions are outside 0\.\.8"):
        decode_dims(ndim, 1, (0,) * 7)


@pytest.mark.parametrize(
    "out",
    [sample("float32"), sample("float32")[1:], np.zeros((), np.int8), bytearray(8), memoryview(bytearray(8)),
     (ctypes.c_int32 * 4)(), array.array("i", [1, 2]), np.zeros(2, ">f4"), np.zeros(2, "i4,f8"),
     np.zeros(17, np.uint8)[1:].view(np.float64)],
)  # fmt: skip
def test_targets_are_written_in_place(out: Any) -> None:
    address, nbytes = target(out)
    assert nbytes == memoryview(out).nbytes
    ctypes.memset(address, 1, nbytes)
    assert memoryview(out).tobytes() == b"\1" * nbytes


@pytest.mark.parametrize("out", [np.zeros((0, 3)), bytearray()])
def test_empty_targets(out: Any) -> None:
    assert target(out)[1] == 0


def frozen(data: np.ndarray) -> np.ndarray:
    data.flags.writeable = False
    return data


@pytest.mark.parametrize("out", [b"bytes", memoryview(b"abc"), frozen(np.zeros(3)), np.broadcast_to(np.zeros(1), (3,))])
def test_read_only_targets_are_refused(out: Any) -> None:
    with pytest.raises(ValueError, match=rf"out is read-only \({type(out).__name__}\): give a writable buffer"):
        target(out)


@pytest.mark.parametrize("out", [sample("int8")[:, ::2], sample("int8").T, memoryview(bytearray(8))[::2]])
def test_targets_of_another_layout_are_refused(out: Any) -> None:
    with pytest.raises(ValueError, match=r"out is not C-contiguous \(shape .*, strides .*\)"):
        target(out)


class Dlpack:
    """An object that can only be read by DLPack, on a device of the test's choice."""

    def __init__(self, held: np.ndarray, device: int = 1) -> None:
        self.held, self.device = held, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.held.__dlpack__(**options)


def test_dlpack_on_the_host() -> None:
    data = sample("float32")
    found = source(Dlpack(data))
    assert (found.address, found.shape, dtype_name(found.dtype)) == (data.ctypes.data, (2, 3, 4), "float32")
    assert target(Dlpack(data)) == (data.ctypes.data, data.nbytes)
    with pytest.raises(ValueError, match="not C-contiguous"):
        target(Dlpack(data.T))


def test_dlpack_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(TypeError, match="is a Dlpack that NumPy cannot read by DLPack"):
        source(Dlpack(np.zeros(2, ">f4")))


class CudaArray:
    """What a CuPy array looks like from outside."""

    __cuda_array_interface__ = types.MappingProxyType(
        {"shape": (1,), "typestr": "|u1", "data": (64, False), "version": 3}
    )


@pytest.mark.parametrize("data", [CudaArray(), Dlpack(sample("int8"), device=2), Dlpack(sample("int8"), device=10)])
def test_gpu_memory_names_the_tier(data: object) -> None:
    for call in (source, target):
        with pytest.raises(
            NotConfiguredError, match=f"is a {type(data).__name__} in GPU memory and the GPU tier is off"
        ):
            call(data)


class FakeTensor:
    """A tensor as far as this package looks at one: for where torch is not installed."""

    def __init__(self, held: np.ndarray, dtype: str, device: str = "cpu", layout: str = "torch.strided") -> None:
        self.held, self.dtype, self.layout = held, f"torch.{dtype}", layout
        self.device = types.SimpleNamespace(type=device)
        self.shape = held.shape

    def contiguous(self) -> FakeTensor:
        return FakeTensor(np.ascontiguousarray(self.held), self.dtype.removeprefix("torch."))

    def detach(self) -> FakeTensor:
        return self

    resolve_conj = resolve_neg = detach

    def is_contiguous(self) -> bool:
        return self.held.flags.c_contiguous

    def is_conj(self) -> bool:
        return False

    is_neg = is_conj

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.held.itemsize for step in self.held.strides)

    def element_size(self) -> int:
        return self.held.itemsize

    def numel(self) -> int:
        return self.held.size

    def data_ptr(self) -> int:
        return self.held.ctypes.data


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=FakeTensor))  # type: ignore[arg-type]


@pytest.mark.usefixtures("fake_torch")
def test_a_tensor_as_a_source() -> None:
    data = sample("uint16")
    found = source(FakeTensor(data, "bfloat16"))
    assert (found.address, found.nbytes, found.shape) == (data.ctypes.data, 48, (2, 3, 4))
    assert dtype_name(found.dtype) == "bfloat16"
    assert held(source(FakeTensor(data.T, "bfloat16"))) == data.T.tobytes()
    assert source(FakeTensor(data[:0], "bfloat16"))[:2] == (0, 0)


@pytest.mark.usefixtures("fake_torch")
def test_a_tensor_as_a_target() -> None:
    data = sample("uint16")
    assert target(FakeTensor(data, "float8_e8m0fnu")) == (data.ctypes.data, 48)
    with pytest.raises(ValueError, match="not C-contiguous"):
        target(FakeTensor(data.T, "bfloat16"))


@pytest.mark.usefixtures("fake_torch")
def test_tensors_that_are_refused() -> None:
    data = sample("uint8")
    for call in (source, target):
        with pytest.raises(NotConfiguredError, match="is a FakeTensor in GPU memory and the GPU tier is off"):
            call(FakeTensor(data, "float16", device="cuda"))
        with pytest.raises(NotConfiguredError, match="the GPU tier is off"):
            call(FakeTensor(data, "float16", device="xpu"))
        with pytest.raises(TypeError, match="it must be a dense CPU tensor"):
            call(FakeTensor(data, "float16", layout="torch.sparse_coo"))
        with pytest.raises(TypeError, match="it must be a dense CPU tensor"):
            call(FakeTensor(data, "float16", device="meta"))
    with pytest.raises(TypeError, match=r"torch\.qint8, which is not stored: \.view\(torch\.uint8\)"):
        source(FakeTensor(data, "qint8"))


@pytest.mark.parametrize(("name", "stand_in"), EXTENSION_TYPES)
def test_stand_ins_for_types_that_numpy_lacks(name: str, stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # as if it were not installed
    code = values._CODES[name]
    assert result_dtype.__wrapped__(code) == np.dtype(stand_in)


@pytest.mark.parametrize(("name", "stand_in"), EXTENSION_TYPES)
def test_ml_dtypes(name: str, stand_in: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    data = sample(stand_in).view(getattr(ml_dtypes, name))
    found = source(data)
    assert (dtype_name(found.dtype), held(found)) == (name, data.tobytes())
    assert source(data).address == target(data)[0] == data.ctypes.data
    assert empty(found.dtype, found.shape).dtype == data.dtype
    with pytest.raises(TypeError, match="which is not stored"):
        source(np.zeros(3, ml_dtypes.int4))


@pytest.mark.parametrize("name", [*NUMPY_TYPES, "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_tensors(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    dtype = getattr(torch, name)
    nbytes = 24 * dtype.itemsize
    content = bytes(i % 2 for i in range(nbytes))
    data = torch.frombuffer(bytearray(content), dtype=dtype).reshape(2, 3, 4)
    found = source(data)
    assert (held(found), found.shape, dtype_name(found.dtype)) == (content, (2, 3, 4), name)
    assert found.address == data.data_ptr()
    assert held(source(data.transpose(0, 2))) == held(source(data.transpose(0, 2).contiguous()))
    out = torch.empty_like(data)
    ctypes.memmove(*(target(out)[0], found.address, nbytes))
    assert held(source(out)) == content


def test_torch_tensors_of_other_kinds() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weights = torch.nn.Parameter(torch.ones(3))
    assert source(weights).address == weights.data_ptr() == target(weights)[0]
    assert held(source(torch.tensor([1 + 2j]).conj())) == np.array([1 - 2j], np.complex64).tobytes()
    assert source(torch.empty(0, 3))[:4] == (0, 0, values._CODES["float32"], (0, 3))
    assert source(torch.tensor(2.0)).shape == ()
    for bad in (torch.empty(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match="it must be a dense CPU tensor"):
            source(bad)
    with pytest.raises(ValueError, match="lazy conjugate"):
        target(torch.tensor([1 + 2j]).conj())
    with pytest.raises(ValueError, match="not C-contiguous"):
        target(torch.zeros(1).expand(4))


def test_neither_mpi_nor_torch_is_imported() -> None:
    script = (
        "import sys; from cascade_mpi import values; values.source(b'a'); values.target(bytearray(2))\n"
        "print(*({'mpi4py', 'torch', 'numba', 'ml_dtypes'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []
