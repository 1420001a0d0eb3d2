"""Values: the memory of what is put, and of where a get puts it.

Covers which objects hold a value (NumPy arrays, the buffer protocol, torch CPU tensors, DLPack on the
CPU), the codes of element types and the dimensions in a descriptor, and the arrays that come back.
Does not copy a value into the store (see `kernels.copy`) and knows neither MPI nor GPU memory.

What comes back is a NumPy array of the same shape and element type; bytes come back as uint8. NumPy has
no bfloat16 and no float8 of its own: with `ml_dtypes` installed such a value has its types, without it
uint16 and uint8 of the same shape (`torch.from_numpy(a).view(torch.bfloat16)` gives the tensor back).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import NotConfiguredError
from cascade_mpi.layout import MAX_DIMS

# Stored in descriptors: only ever append. Code 0 is none, so that a zeroed descriptor has no type.
_NAMES = (
    "", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_STAND_INS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
_CODES = {name: code for code, name in enumerate(_NAMES) if name}
_CODE_OF = {np.dtype(name): code for name, code in _CODES.items() if name not in _STAND_INS}

_DIM_LIMIT = 1 << 32
_DLPACK_HOST = (1, 3, 11, 13)  # kDLCPU, kDLCUDAHost, kDLROCMHost, kDLCUDAManaged
_ACCEPTED = "a NumPy array, an object with the buffer protocol (bytes, memoryview, ...) or a torch CPU tensor"


class Source(NamedTuple):
    """Where the bytes of a value are, and what they mean."""

    address: int  # 0 if there are no bytes
    nbytes: int
    dtype: int  # a code of this module
    shape: tuple[int, ...]
    owner: object  # keeps the memory alive


_new = tuple.__new__  # half the time of `Source(...)`, which unpacks its arguments in Python first


def source(data: object) -> Source:
    """Local. The C-contiguous bytes of a value, copied only where they are not contiguous.

    TypeError: no such object, or an element type that has no code. ValueError: more than 8 dimensions, or
    one after the first of 2^32 and more. NotConfiguredError: the memory is a GPU's.
    """
    if type(data) is np.ndarray and data.flags.c_contiguous:
        code, nbytes, shape = _CODE_OF.get(data.dtype), data.nbytes, data.shape
        if code is not None and 0 < nbytes < _DIM_LIMIT and len(shape) <= MAX_DIMS:
            return _new(Source, (_address(data), nbytes, code, shape, data))
    if _is_tensor(data):
        return _tensor_source(data)
    return _array_source(_as_array(data, "data"))


def target(out: object) -> tuple[int, int]:
    """Local. The address and the bytes of a caller's buffer. The caller keeps it alive and of its size.

    TypeError: no such object, or elements that are references. ValueError: read-only or not C-contiguous.
    NotConfiguredError: the memory is a GPU's.
    """
    if type(out) is np.ndarray and out.flags.carray and out.dtype in _CODE_OF:
        return _address(out), out.nbytes
    if _is_tensor(out):
        return _tensor_target(out)
    array = _as_array(out, "out", copy=False)
    if array.dtype.hasobject:
        _refuse_references("out", array.dtype)
    if not array.flags.writeable:
        raise ValueError(f"out is read-only ({type(out).__name__}): give a writable buffer")
    if not array.flags.c_contiguous:
        _refuse_layout(array.shape, array.strides)
    return _address(array), array.nbytes


def dtype_name(code: int) -> str:
    """Local. The name of an element type, "float16" or "bfloat16"; ValueError for an unknown code."""
    if not 0 < code < len(_NAMES):
        raise ValueError(f"dtype code {code} is outside 1..{len(_NAMES) - 1}")
    return _NAMES[code]


def dtype_code(name: str) -> int | None:
    """Local. The code of an element type's name; None if there is none. The inverse of `dtype_name`."""
    return _CODES.get(name)


@functools.cache
def file_dtype(code: int) -> np.dtype[Any]:
    """Local. The NumPy type of its own in which values of this code are written to files of others' formats.

    uint16 or uint8 for those that NumPy does not have. ValueError for an unknown code.
    """
    name = dtype_name(code)
    return np.dtype(_STAND_INS.get(name, name))


@functools.cache
def result_dtype(code: int) -> np.dtype[Any]:
    """Local. The NumPy type that values of this code come back in; ValueError for an unknown code."""
    name = dtype_name(code)
    if name not in _STAND_INS:
        return np.dtype(name)
    try:
        extension = importlib.import_module("ml_dtypes")
    except ImportError:
        return np.dtype(_STAND_INS[name])
    dtype: np.dtype[Any] = np.dtype(getattr(extension, name))
    return dtype


def empty(code: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Local. A new array, its contents undefined, for a value of this code and shape."""
    return np.empty(shape, result_dtype(code))


def encode_dims(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Local. A shape as the dim0 and the 7 dims of a descriptor, 0 where there is none. ValueError as for `source`."""
    if len(shape) > MAX_DIMS:
        raise ValueError(
            f"a value of {len(shape)} dimensions, shape {shape}: at most {MAX_DIMS} are stored, reshape it"
        )
    if not shape:
        return 0, (0,) * (MAX_DIMS - 1)
    if max(shape[1:], default=0) >= _DIM_LIMIT:
        raise ValueError(f"a value of shape {shape}: only the first dimension may be 2^32 or more, reshape it")
    return shape[0], shape[1:] + (0,) * (MAX_DIMS - len(shape))


def decode_dims(ndim: int, dim0: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Local. The shape of a descriptor's fields; the inverse of `encode_dims`. ValueError if ndim cannot be."""
    if not 0 <= ndim <= MAX_DIMS:
        raise ValueError(f"{ndim} dimensions are outside 0..{MAX_DIMS}")
    return (dim0, *dims[: ndim - 1]) if ndim else ()


def _slow_address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _quick_address() -> Callable[[npt.NDArray[Any]], int]:
    # NumPy's ABI puts the data pointer right behind the object's head: reading it there takes a tenth of
    # the time of `__array_interface__` or `ctypes.data`. Where that is not so, the interface is asked.
    head, pointer_at = object.__basicsize__, ctypes.c_size_t.from_address

    def address(array: npt.NDArray[Any]) -> int:
        return pointer_at(id(array) + head).value

    probe = np.zeros(3, np.uint8)[1:]
    return address if sys.implementation.name == "cpython" and address(probe) == _slow_address(probe) else _slow_address


_address = _quick_address()


def _as_array(data: object, what: str, copy: bool | None = None) -> npt.NDArray[Any]:
    """An array over the memory of `data`; NumPy's own conversion is not asked: it would take lists."""
    if isinstance(data, np.ndarray):
        if isinstance(data, np.ma.MaskedArray):
            raise TypeError(f"{what} is a masked array, masks are not stored: give .filled() or .data")
        return data
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except (TypeError, BufferError):
        return _from_dlpack(data, what, copy)
    try:
        array = np.asarray(view)
    except Exception as error:  # NumPy raises several kinds for formats that it cannot read
        raise TypeError(f"{what} has the buffer format {view.format!r}: give memoryview(...).cast('B')") from error
    return array.view(np.uint8) if array.dtype == np.dtype("S1") else array  # format "c"


def _from_dlpack(data: object, what: str, copy: bool | None) -> npt.NDArray[Any]:
    if hasattr(data, "__cuda_array_interface__"):
        _refuse_device(what, data)
    if not hasattr(data, "__dlpack_device__"):
        raise TypeError(f"{what} is a {type(data).__name__}: it must be {_ACCEPTED}")
    if data.__dlpack_device__()[0] not in _DLPACK_HOST:
        _refuse_device(what, data)
    try:
        return np.from_dlpack(data, copy=copy)  # type: ignore[arg-type]
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{what} is a {type(data).__name__} that NumPy cannot read by DLPack: {error}") from error


def _array_source(array: npt.NDArray[Any]) -> Source:
    code = _array_code(array.dtype)
    if array.ndim > 1:
        encode_dims(array.shape)  # for its errors
    if not array.flags.c_contiguous:
        array = np.array(array, order="C", copy=True)
    return Source(_address(array) if array.nbytes else 0, array.nbytes, code, array.shape, array)


def _array_code(dtype: np.dtype[Any]) -> int:
    code = _CODE_OF.get(dtype)
    if code is None and dtype.type.__module__.partition(".")[0] == "ml_dtypes":
        code = _CODES.get(dtype.name)
        if code is not None:
            _CODE_OF[dtype] = code
    if code is not None:
        return code
    if dtype.hasobject:
        _refuse_references("data", dtype)
    remedy = ".view(np.uint8) stores its bytes as they are"
    if not dtype.isnative and dtype.newbyteorder("=") in _CODE_OF:
        remedy += f", .astype({dtype.newbyteorder('=').name!r}) its values"
    raise TypeError(f"data has the element type {dtype}, which is not stored: {remedy}")


def _is_tensor(data: object) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported torch; this package never does
    return torch is not None and isinstance(data, getattr(torch, "Tensor", ()))


def _check_tensor(tensor: Any, what: str) -> int:
    """The code of a tensor whose memory can be addressed; 0 for an element type that has none."""
    if tensor.device.type in ("cuda", "xpu"):
        _refuse_device(what, tensor)
    if tensor.device.type != "cpu" or str(tensor.layout) != "torch.strided":
        raise TypeError(f"{what} is a {tensor.layout} tensor on {tensor.device}: it must be a dense CPU tensor")
    return _CODES.get(str(tensor.dtype).removeprefix("torch."), 0)


def _tensor_source(tensor: Any) -> Source:
    code = _check_tensor(tensor, "data")
    if not code:
        raise TypeError(f"data has the element type {tensor.dtype}, which is not stored: .view(torch.uint8) is")
    shape = tuple(tensor.shape)
    encode_dims(shape)  # for its errors
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    nbytes = math.prod(shape) * tensor.element_size()
    return Source(tensor.data_ptr() if nbytes else 0, nbytes, code, shape, tensor)


def _tensor_target(tensor: Any) -> tuple[int, int]:
    _check_tensor(tensor, "out")
    if not tensor.is_contiguous():
        _refuse_layout(tuple(tensor.shape), tuple(tensor.stride()))
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError("out is a lazy conjugate or negative: give a tensor of its own memory")
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _refuse_device(what: str, data: object) -> NoReturn:
    raise NotConfiguredError(
        f"{what} is a {type(data).__name__} in GPU memory and the GPU tier is off: copy it to the host first"
    )


def _refuse_references(what: str, dtype: np.dtype[Any]) -> NoReturn:
    raise TypeError(
        f"{what} has the element type {dtype}, whose elements are references: encode it into bytes or a numeric"
        " array, of which .view(np.uint8) can always be stored"
    )


def _refuse_layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> NoReturn:
    raise ValueError(f"out is not C-contiguous (shape {shape}, strides {strides}): give a contiguous buffer")
