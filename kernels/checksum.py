"""A 64-bit checksum of a block's bytes, alone or computed while they are copied.

Covers the value, the two ways to get it and its parts for threads. Does not cover where it is kept (a
descriptor's field) nor who compares it when. It finds corruption, not malice: there is no key, and who
knows the constants can make two blocks with one value. The value is stored in files: it never changes.

The value, all arithmetic modulo 2^64 and words little-endian:

- The bytes are cut into chunks of 4 MiB (`CHUNK`), a chunk into lines of 64 bytes, the last one filled up
  with zeros, a line into 8 words x[0..7].
- Line number j of a chunk uses the 8 words s[k] = SECRETS[k] + j * STEP, added in 32-bit halves without a
  carry between them, so that both halves differ from line to line. With y = x[k] ^ s[k] the line adds
  ``low32(y) * high32(y) + x[k ^ 1]`` to sum k (the accumulation of XXH3, Y. Collet; the neighbour's word
  stands in for a product with a zero factor). Sums commute: lines may be taken in any order.
- The 8 sums are folded in order to one word, the chunk's; the chunks' words are folded in order, starting
  from the length; the result is avalanched.

Every change of one word is seen, but for 1 in 2^64 in the folds; so is an exchange of lines, words or
bytes, but for about 1 in 2^32 in the worst case, bits exchanged between the same words of two lines.

Threads share a block by whole chunks: each computes its chunks' words with `copy_chunks_bytes`, into one
array in the order of the chunks, and `fold_chunks_bytes` makes the same value of them as one thread gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from cascade_mpi.kernels.copy import PAGE
from cascade_mpi.kernels.intrinsics import (
    LINE_BYTES,
    emit_prefetch,
    emit_streaming_store,
    fence_seq_cst,
    memcpy,
    stack_line,
    store64,
)
from cascade_mpi.kernels.jit import device, kernel

CHUNK = 4 << 20
LANES = 8
# From this size on the lines of the copy are streamed. Lower than in `copy`, because here the sums hide little of what
# plain stores wait for: blocks from 1 GiB 3.8 against 5.9 GB/s at 16 KiB and 4.2 against 8.7 at 64 KiB; in the cache
# 14.9 against 13.0 and 17.4 against 16.4. The value does not depend on it.
STREAM_BYTES = 16 << 10
_MASK64 = (1 << 64) - 1


def _splitmix(state: int) -> Iterator[int]:
    """The words of SplitMix64 (Steele et al., OOPSLA 2014): constants that nobody chose."""
    while True:
        state = state + 0x9E3779B97F4A7C15 & _MASK64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK64
        yield z ^ z >> 31


_words = _splitmix(int.from_bytes(b"cascade"))
SECRETS = [next(_words) for _ in range(LANES)]
STEP = next(_words) | 1 << 32 | 1  # odd halves: 2^32 lines before one comes again
_MUL1, _MUL2, _ADD = next(_words) | 1, next(_words) | 1, next(_words)

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LINE = ir.VectorType(_I64, LANES)
_HALVES = ir.VectorType(_I32, 2 * LANES)
_SWAPPED = ir.Constant(ir.VectorType(_I32, LANES), [k ^ 1 for k in range(LANES)])
_ROUND = 4  # pages that are read in turn, and lines of each page in one step: as in `copy`


def _halves(words: list[int]) -> ir.Constant:
    return ir.Constant(_HALVES, [word >> shift & 0xFFFFFFFF for word in words for shift in (0, 32)])


def _steps(lines: int) -> ir.Constant:
    """What the secret of a line has more than that of the line `lines` before it."""
    low, high = STEP * lines & 0xFFFFFFFF, (STEP >> 32) * lines & 0xFFFFFFFF
    return _halves([high << 32 | low] * LANES)


def _emit_line(builder: Any, words: Any, secret: Any) -> Any:
    """What a line adds to the sums."""
    every = ir.Constant(_LINE, [32] * LANES)
    y = builder.xor(words, builder.bitcast(secret, _LINE))
    low = builder.and_(y, ir.Constant(_LINE, [0xFFFFFFFF] * LANES))
    product = builder.mul(low, builder.lshr(y, every))  # of two 32-bit halves: one vpmuludq
    return builder.add(product, builder.shuffle_vector(words, words, _SWAPPED))


def _summing(store: str) -> Any:
    """An intrinsic that adds whole lines up, and on its way stores lines by "plain" or "stream" stores, or none.

    Its arguments: address and number of the first line, how many, and where lines are stored and read
    for that: with streaming stores the lines of the target are shifted against those of the sum, so
    they are loaded again (from the first-level cache).
    """

    def typed(typingctx: Any, source: Any, first: Any, lines: Any, target: Any, stored: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, first, lines, target, stored = args
            sums = [cgutils.alloca_once_value(builder, ir.Constant(_LINE, [0] * LANES)) for _ in range(_ROUND)]
            at = cgutils.alloca_once_value(builder, _I64(0))
            many = builder.insert_element(ir.Constant(_HALVES, ir.Undefined), builder.trunc(first, _I32), _I32(0))
            many = builder.shuffle_vector(many, many, ir.Constant(_HALVES, [0] * (2 * LANES)))
            begin = builder.add(builder.mul(many, _steps(1)), _halves(SECRETS))
            secret = cgutils.alloca_once_value(builder, begin)

            def line(number: int, sum_: Any, ahead: Any = None) -> None:
                offset = builder.add(builder.load(at), _I64(number * LINE_BYTES))
                if ahead is not None:
                    emit_prefetch(builder, builder.add(source, builder.add(offset, ahead)))
                words = builder.load(_line_at(builder, source, offset), align=1)
                own = builder.add(builder.load(secret), _steps(number))
                builder.store(builder.add(builder.load(sum_), _emit_line(builder, words, own)), sum_)
                if store == "stream":
                    words = builder.load(_line_at(builder, stored, offset), align=1)
                    emit_streaming_store(builder, words, _line_at(builder, target, offset), LINE_BYTES)
                elif store == "plain":
                    builder.store(words, _line_at(builder, target, offset), align=1)

            def advance(number: int) -> None:
                builder.store(builder.add(builder.load(at), _I64(number * LINE_BYTES)), at)
                builder.store(builder.add(builder.load(secret), _steps(number)), secret)

            page = PAGE // LINE_BYTES
            groups = builder.sdiv(lines, _I64(_ROUND * page))
            with cgutils.for_range(builder, groups) as group:
                # The next pages are asked for now: the sum alone 12.8 -> 15.5 GB/s, with the copy 11.1 -> 11.6
                # (copying alone gains nothing). The last pages ask for themselves, not for somebody else's.
                last = builder.icmp_signed("==", builder.add(group.index, _I64(1)), groups)
                ahead = builder.select(last, _I64(0), _I64(_ROUND * PAGE))
                with cgutils.for_range(builder, _I64(page // _ROUND)):
                    for number, sum_ in enumerate(sums):
                        for k in range(_ROUND):
                            line(number * page + k, sum_, ahead)
                    advance(_ROUND)
                advance((_ROUND - 1) * page)
            with cgutils.for_range(builder, builder.srem(lines, _I64(_ROUND * page))):
                line(0, sums[0])
                advance(1)
            total = builder.load(sums[0])
            for sum_ in sums[1:]:
                total = builder.add(total, builder.load(sum_))
            lanes = [builder.extract_element(total, _I32(k)) for k in range(LANES)]
            return context.make_tuple(builder, signature.return_type, lanes)

        integer = types.int64
        return types.UniTuple(types.uint64, LANES)(integer, integer, integer, integer, integer), codegen

    typed.__name__ = f"sum_{store}"
    return intrinsic(typed)


def _line_at(builder: Any, address: Any, offset: Any) -> Any:
    return builder.inttoptr(builder.add(address, offset), _LINE.as_pointer())


_sum_only, _sum_plain, _sum_stream = _summing("none"), _summing("plain"), _summing("stream")


@device
def _fold(state, word):  # type: ignore[no-untyped-def]
    state ^= word * uint64(_MUL1)
    state = state << uint64(29) | state >> uint64(35)
    return state * uint64(_MUL2) + uint64(_ADD)


@device
def _begin(nbytes):  # type: ignore[no-untyped-def]
    return _fold(uint64(_ADD), uint64(nbytes))


@device
def _end(state):  # type: ignore[no-untyped-def]
    state = (state ^ state >> uint64(32)) * uint64(_MUL1)
    state = (state ^ state >> uint64(29)) * uint64(_MUL2)
    return state ^ state >> uint64(32)


@device
def _tail(source, line, nbytes):  # type: ignore[no-untyped-def]
    """The sums of a last line that is not full."""
    full = stack_line()
    for k in range(LANES):
        store64(full + 8 * k, 0)
    memcpy(full, source, nbytes)
    return _sum_only(full, line, 1, 0, 0)


@device
def _chunk_word(sums, source, nbytes):  # type: ignore[no-untyped-def]
    """The word of a chunk from the sums of its full lines."""
    state = uint64(_ADD)
    lines = nbytes // LINE_BYTES
    rest = nbytes % LINE_BYTES
    if rest:
        last = _tail(source + lines * LINE_BYTES, lines, rest)
        for k in range(LANES):
            state = _fold(state, sums[k] + last[k])
    else:
        for k in range(LANES):
            state = _fold(state, sums[k])
    return state


@device
def _sum_chunk(source, nbytes):  # type: ignore[no-untyped-def]
    return _chunk_word(_sum_only(source, 0, nbytes // LINE_BYTES, 0, 0), source, nbytes)


@device
def _copy_chunk(target, source, nbytes):  # type: ignore[no-untyped-def]
    lines = nbytes // LINE_BYTES
    if nbytes < STREAM_BYTES:
        sums = _sum_plain(source, 0, lines, target, source)
        done = lines * LINE_BYTES
    else:
        head = -target & (LINE_BYTES - 1)
        memcpy(target, source, head)
        streamed = (nbytes - head) // LINE_BYTES
        sums = _sum_stream(source, 0, streamed, target + head, source + head)
        if streamed < lines:  # the head made the target's last full line one of the tail
            last = _sum_only(source + streamed * LINE_BYTES, streamed, lines - streamed, 0, 0)
            sums = (
                sums[0] + last[0], sums[1] + last[1], sums[2] + last[2], sums[3] + last[3],
                sums[4] + last[4], sums[5] + last[5], sums[6] + last[6], sums[7] + last[7],
            )  # fmt: skip
        done = head + streamed * LINE_BYTES
    memcpy(target + done, source + done, nbytes - done)
    return _chunk_word(sums, source, nbytes)


@device
def copy_checksum(target, source, nbytes):  # type: ignore[no-untyped-def]
    """Copy `nbytes` from address to address (int64) in one pass with their checksum (uint64).

    No fence, as `copy`. If somebody writes to the source meanwhile, copy and checksum may differ.
    """
    state = _begin(nbytes)
    for offset in range(0, nbytes, CHUNK):
        state = _fold(state, _copy_chunk(target + offset, source + offset, min(CHUNK, nbytes - offset)))
    return _end(state)


@device
def checksum(source, nbytes):  # type: ignore[no-untyped-def]
    """The checksum (uint64) of `nbytes` at an address (int64)."""
    state = _begin(nbytes)
    for offset in range(0, nbytes, CHUNK):
        state = _fold(state, _sum_chunk(source + offset, min(CHUNK, nbytes - offset)))
    return _end(state)


@kernel("uint64(int64, int64, int64)")
def copy_checksum_bytes(target, source, nbytes):  # type: ignore[no-untyped-def]
    """Copy `nbytes` between two addresses, make the copy visible to every core, return the checksum."""
    value = copy_checksum(target, source, nbytes)
    fence_seq_cst()
    return value


@kernel("uint64(int64, int64)")
def checksum_bytes(source, nbytes):  # type: ignore[no-untyped-def]
    """The checksum of `nbytes` at an address."""
    return checksum(source, nbytes)


@kernel("void(int64, int64, int64, int64)")
def copy_chunks_bytes(target, source, nbytes, words):  # type: ignore[no-untyped-def]
    """A thread's share of `copy_checksum_bytes`: copy, and write the chunks' words (u64) to the address `words`.

    Shares start at multiples of `CHUNK`; only the last may end at none.
    """
    for offset in range(0, nbytes, CHUNK):
        word = _copy_chunk(target + offset, source + offset, min(CHUNK, nbytes - offset))
        store64(words + offset // CHUNK * 8, word)
    fence_seq_cst()


@kernel("uint64(uint64[::1], int64)")
def fold_chunks_bytes(words, nbytes):  # type: ignore[no-untyped-def]
    """The checksum of a block of `nbytes` from the words of all its chunks, in order."""
    state = _begin(nbytes)
    for word in words:
        state = _fold(state, word)
    return _end(state)


def checksum_twin(data: npt.NDArray[np.uint8]) -> int:
    """Local. The checksum of an array of bytes: the NumPy twin of `checksum`."""

    def fold(state: int, word: int) -> int:
        state ^= word * _MUL1 & _MASK64
        state = state << 29 & _MASK64 | state >> 35
        return state * _MUL2 + _ADD & _MASK64

    state = fold(_ADD, data.size)
    for offset in range(0, data.size, CHUNK):
        word = _ADD
        for lane in _twin_sums(data[offset : offset + CHUNK]):
            word = fold(word, int(lane))
        state = fold(state, word)
    state = (state ^ state >> 32) * _MUL1 & _MASK64
    state = (state ^ state >> 29) * _MUL2 & _MASK64
    return state ^ state >> 32


def _twin_sums(chunk: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    lines = -(-chunk.size // LINE_BYTES)
    words = np.zeros((lines, LANES), "<u8")
    words.reshape(-1).view(np.uint8)[: chunk.size] = chunk
    halves = np.array([[word & 0xFFFFFFFF, word >> 32] for word in (*SECRETS, STEP)], "<u4")
    numbers = np.arange(lines, dtype="<u4")
    secrets = halves[:LANES] + numbers[:, None, None] * halves[LANES]
    mixed = words ^ secrets.view("<u8")[:, :, 0]
    products = (mixed & np.uint64(0xFFFFFFFF)) * (mixed >> np.uint64(32))
    sums: npt.NDArray[np.uint64] = (products + words[:, np.arange(LANES) ^ 1]).sum(axis=0, dtype=np.uint64)
    return sums
