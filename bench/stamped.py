"""Values that say who they are in every line: what `torture` puts, and how it knows a mixture.

Each 64-byte line of a value holds its key's number, the stamp of its writer and version, the number of
the line and the length of the value, and four words that depend on all of them; so a line of another
key, version, place or size is seen, and so is a line that is mixed from two. The element type and the
shape follow from the stamp too. Does not cover the store.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

LINE = 64
_WORDS = LINE // 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_S29, _S32 = np.uint64(29), np.uint64(32)
_VERSION_BITS = 40

Words = npt.NDArray[np.uint64]


def stamp(writer: int, version: int) -> int:
    """Local. The number of a version (from 1) of a writer: never 0, and different for all of them."""
    return writer << _VERSION_BITS | version


def unstamp(number: int) -> tuple[int, int]:
    """Local. (writer, version) of a stamp."""
    return number >> _VERSION_BITS, number & (1 << _VERSION_BITS) - 1


@numba.njit(nogil=True, cache=True)
def _fill(words: Words, key: int, number: int, nbytes: int) -> None:
    for line in range(words.size // _WORDS):
        at = line * _WORDS
        words[at] = np.uint64(key)
        words[at + 1] = np.uint64(number)
        words[at + 2] = np.uint64(line)
        words[at + 3] = np.uint64(nbytes)
        x = (np.uint64(number) * _GOLDEN) ^ (np.uint64(line) << _S32) ^ np.uint64(nbytes) ^ (np.uint64(key) * _GOLDEN)
        for i in range(4, _WORDS):
            x = (x ^ (x >> _S29)) * _GOLDEN
            words[at + i] = x


@numba.njit(nogil=True, cache=True)
def _stamp_of(words: Words, key: int, nbytes: int, first: int) -> Any:
    """The stamp of all lines, the first of which has the number `first`; -1 if a line is not as it must be."""
    number = words[1]
    for line in range(words.size // _WORDS):
        at = line * _WORDS
        x = (number * _GOLDEN) ^ (np.uint64(first + line) << _S32) ^ np.uint64(nbytes) ^ (np.uint64(key) * _GOLDEN)
        bad = (
            (words[at] ^ np.uint64(key))
            | (words[at + 1] ^ number)
            | (words[at + 2] ^ np.uint64(first + line))
            | (words[at + 3] ^ np.uint64(nbytes))
        )
        for i in range(4, _WORDS):
            x = (x ^ (x >> _S29)) * _GOLDEN
            bad |= words[at + i] ^ x
        if bad != np.uint64(0):
            return -1
    return np.int64(number)


def shape_of(number: int, nbytes: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Local. The element type and the shape in which the value of a stamp is put."""
    variants: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("uint8", (nbytes,)), ("uint64", (nbytes // 8,)), ("float16", (nbytes // LINE, LINE // 2)),
        ("int32", (nbytes // LINE, 4, 4)),
    )  # fmt: skip
    name, shape = variants[number % len(variants)]
    return np.dtype(name), shape


def value(room: Words, key: int, number: int, nbytes: int) -> npt.NDArray[Any]:
    """Local. Make a value of `nbytes` (a multiple of 64) in the caller's `room`."""
    words = room[: nbytes // 8]
    _fill(words, key, number, nbytes)
    dtype, shape = shape_of(number, nbytes)
    return words.view(dtype).reshape(shape)


def warm() -> None:
    """Local. Compile what is called in a race, for the arrays of views too, which are read-only."""
    words = value(np.empty(_WORDS, np.uint64), 1, 1, LINE)
    words.flags.writeable = False
    stamp_of(words, 1)
    stamp_of(words.copy(), 1)


def stamp_of_lines(data: Words, key: int, nbytes: int, first: int = 0) -> int:
    """Local. The stamp of whole lines of a value of `nbytes` bytes, from the line `first`; -1 for anything else."""
    return int(_stamp_of(data, key, nbytes, first))


def stamp_of(array: npt.NDArray[Any], key: int) -> int:
    """Local. The stamp of a whole value as a get returns it; -1 if it is not one, -2 in another type or shape."""
    if not array.nbytes or array.nbytes % LINE:
        return -1
    number = stamp_of_lines(array.reshape(-1).view(np.uint64), key, array.nbytes)
    return number if number < 0 or (array.dtype, array.shape) == shape_of(number, array.nbytes) else -2
