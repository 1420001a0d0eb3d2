"""The machine operations, and the code that the copy becomes on x86-64 and on AArch64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from cascade_mpi.kernels import intrinsics
from cascade_mpi.kernels.copy import copy, copy_bytes

sys.path.insert(0, str(Path(__file__).parent))
from assembly import TRIPLES, assembly, for_target, numbers

STREAMING = {"x86_64": r"^v?movnt", "aarch64": r"^stnp"}
BARRIER = {"x86_64": r"^(mfence|lock\s|xchg)", "aarch64": r"^dmb\s+ish$"}
MEMCPY = {"x86_64": r"^call", "aarch64": r"^blr?\s"}


@njit
def _copy_without_fence(target, source, nbytes):
    copy(target, source, nbytes)


@njit
def _copy_then_reload(target, source, nbytes, word):
    before = intrinsics.load_acquire(word)
    copy(target, source, nbytes)
    intrinsics.fence_acquire()
    return before == intrinsics.load_acquire(word)


@njit
def _pass(address, value):
    intrinsics.store64(address, value)
    intrinsics.store32(address + 9, value)
    intrinsics.store16(address + 15, value)
    intrinsics.store8(address + 19, value)
    intrinsics.prefetch(address)
    intrinsics.fence_seq_cst()
    return (
        intrinsics.load64(address),
        intrinsics.load32(address + 9),
        intrinsics.load16(address + 15),
        intrinsics.load8(address + 19),
        intrinsics.load_relaxed(address),
        intrinsics.load_acquire(address),
    )


@njit
def _stack_lines():
    return intrinsics.stack_line(), intrinsics.stack_line()


@njit
def _stream(target, source):
    intrinsics.stream_line(target, source)
    intrinsics.fence_seq_cst()


def test_loads_and_stores_have_their_width():
    memory = np.full(32, 0xEE, np.uint8)
    value = 0x8877665544332211
    assert _pass(memory.ctypes.data, np.uint64(value)) == (value, 0x44332211, 0x2211, 0x11, value, value)
    gaps = memory[[8, 13, 14, 17, 18, *range(20, 32)]]
    assert np.all(gaps == 0xEE)


def test_a_streamed_line_is_whole_and_alone():
    source = np.arange(200, dtype=np.uint8)
    memory = np.zeros(320, np.uint8)
    begin = -memory.ctypes.data % 64 + 64
    _stream(memory.ctypes.data + begin, source.ctypes.data + 3)
    np.testing.assert_array_equal(memory[begin : begin + 64], source[3:67])
    assert memory.sum() == source[3:67].sum()


def test_stack_lines_are_aligned_and_apart():
    first, second = _stack_lines()
    assert first % 64 == second % 64 == 0
    assert abs(first - second) >= 64


@pytest.mark.parametrize("target", TRIPLES)
def test_copy_streams_and_then_has_a_barrier(target):
    code = assembly(copy_bytes, target)
    streamed, barriers, copies = (numbers(each[target], code) for each in (STREAMING, BARRIER, MEMCPY))
    assert len(streamed) >= 17, "16 lines from four pages in turn, and one at a time for the rest"
    assert len(barriers) == 1
    assert barriers[0] > max(streamed + copies), "the barrier comes after every store of the copy"


@pytest.mark.parametrize("target", TRIPLES)
def test_copy_alone_has_no_barrier(target):
    code = assembly(_copy_without_fence, target, "void(int64, int64, int64)", whole=True)
    assert numbers(STREAMING[target], code)
    assert not numbers(BARRIER[target], code)


def test_on_arm_a_load_barrier_stands_between_copy_and_second_load():
    code = assembly(_copy_then_reload, "aarch64", "boolean(int64, int64, int64, int64)")
    loads, copies, barriers = (numbers(each, code) for each in (r"^lda", MEMCPY["aarch64"], r"^dmb\s+ishld"))
    assert len(loads) == 2 and len(barriers) == 1
    assert loads[0] < min(copies) and max(copies) < barriers[0] < loads[1]


def test_code_that_only_x86_has_is_named():
    text = "declare void @llvm.x86.sse.sfence()"
    with pytest.raises(RuntimeError, match=r"llvm\.x86\.sse\.sfence"):
        for_target(text, "aarch64")
    assert "sfence" in for_target(text, "x86_64")
