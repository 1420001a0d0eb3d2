"""The machine operations that Numba has no words for: fences, atomic loads, streaming stores, calls by address.

Covers only the operations; the order in which the protocol needs them is in `probe`, `copy` and
`cascade_mpi.onesided`. Addresses are int64 or uint64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_LINE = ir.VectorType(_I64, 8)
LINE_BYTES = 64


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def load_acquire(typingctx: Any, address: Any) -> Any:
    """The u64 at `address`; no later load is done before it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0], _I64), "acquire", 8)

    return types.uint64(address), codegen


@intrinsic
def load_relaxed(typingctx: Any, address: Any) -> Any:
    """The u64 at `address`, read once and whole, without any order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0], _I64), "monotonic", 8)

    return types.uint64(address), codegen


@intrinsic
def store_relaxed(typingctx: Any, address: Any, value: Any) -> Any:
    """Write a u64 whole, without any order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = context.cast(builder, args[1], signature.args[1], types.uint64)
        builder.store_atomic(value, _pointer(builder, args[0], _I64), "monotonic", 8)
        return context.get_dummy_value()

    return types.none(address, value), codegen


def _plain_load(bits: int, result: Any) -> Any:
    def typed(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            loaded = builder.load(_pointer(builder, args[0], ir.IntType(bits)), align=1)
            return loaded if bits == 64 else builder.zext(loaded, _I64)

        return result(address), codegen

    return typed


def _plain_store(bits: int) -> Any:
    def typed(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = context.cast(builder, args[1], signature.args[1], types.uint64)
            if bits != 64:
                value = builder.trunc(value, ir.IntType(bits))
            builder.store(value, _pointer(builder, args[0], ir.IntType(bits)), align=1)
            return context.get_dummy_value()

        return types.none(address, value), codegen

    return typed


load8 = intrinsic(_plain_load(8, types.uint64))
load16 = intrinsic(_plain_load(16, types.uint64))
load32 = intrinsic(_plain_load(32, types.uint64))
load64 = intrinsic(_plain_load(64, types.uint64))
store8 = intrinsic(_plain_store(8))
store16 = intrinsic(_plain_store(16))
store32 = intrinsic(_plain_store(32))
store64 = intrinsic(_plain_store(64))


def _fence(ordering: str) -> Any:
    def typed(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.fence(ordering)
            return context.get_dummy_value()

        return types.none(), codegen

    return typed


fence_acquire = intrinsic(_fence("acquire"))
"""No load or store after it is done before a load that stands before it."""
fence_seq_cst = intrinsic(_fence("seq_cst"))
"""A full barrier; on x86 it also drains streaming stores, which a release fence does not."""


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at `address`; any address is allowed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit_prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.none(address), codegen


def emit_prefetch(builder: Any, address: Any) -> None:
    """Local. Emit `prefetch` of an address, for code generators."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [_pointer(builder, address, _I8), _I32(0), _I32(3), _I32(1)])


@intrinsic
def memcpy(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """libc's memcpy of `count` bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(
            builder,
            _pointer(builder, args[0], _I8),
            _pointer(builder, args[1], _I8),
            context.cast(builder, args[2], signature.args[2], types.int64),
            1,
        )
        return context.get_dummy_value()

    return types.none(target, source, count), codegen


@intrinsic
def stream_line(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy 64 bytes past the cache: `target` must be a multiple of 64, `source` may be any address.

    Streaming stores of x86 are ordered by `fence_seq_cst` only.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = builder.load(_pointer(builder, args[1], _LINE), align=1)
        emit_streaming_store(builder, line, _pointer(builder, args[0], _LINE), LINE_BYTES)
        return context.get_dummy_value()

    return types.none(target, source), codegen


def emit_streaming_store(builder: Any, value: Any, pointer: Any, align: int) -> None:
    """Local. Emit a store that asks for no place in the cache, for code generators."""
    store = builder.store(value, pointer, align=align)
    store.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))


@intrinsic
def stack_line(typingctx: Any) -> Any:
    """The int64 address of 64 bytes on the caller's stack, aligned to 64, with undefined contents."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = cgutils.alloca_once(builder, _LINE)
        line.align = LINE_BYTES
        return builder.ptrtoint(line, _I64)

    return types.int64(), codegen


@intrinsic
def call_int(typingctx: Any, function: Any, arguments: Any) -> Any:
    """Call a C function that returns int by its address; every argument is passed as a 64-bit word.

    The callee may declare any of them as int: on x86-64 and AArch64 (little-endian Linux) an int
    argument is the low half of its register or stack slot, the upper half is undefined. So one call
    serves MPICH's 4-byte handles and Open MPI's pointers.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(
                cgutils.unpack_tuple(builder, args[1], len(signature.args[1])), signature.args[1], strict=True
            )
        ]
        kind = ir.FunctionType(_I32, [_I64] * len(values))
        return builder.call(_pointer(builder, args[0], kind), values)

    return types.int32(function, arguments), codegen
