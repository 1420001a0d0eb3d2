"""Keys: what callers name blocks with, and the 128 bits that the store works with.

Covers digests of str and bytes, integers taken as digests, and arrays of keys. Does not cover the digest
of a namespace (see `namespaces`), where a key lives (see `layout.place`) nor keys of token sequences.

The digests are part of every stored block: they are the same in every process, on every machine and
in every Python version, and are never changed without a new `person`.
"""

from __future__ import annotations

import hashlib
import operator
import struct
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from cascade_mpi.namespaces import DEFAULT_DIGEST

Key = str | bytes | SupportsIndex
Words = tuple[int, int]  # high and low 64 bits

CACHED_KEYS = 1 << 16
CACHED_LENGTH = 256  # longer ones are hashed every time: the cache is to hold names, not prompts

_MASK64, _MASK128 = (1 << 64) - 1, (1 << 128) - 1
_ACCEPTED = "a key is a str, bytes, or an integer in 0..2**128-1"
_digest_words = struct.Struct(">QQ").unpack


def key_words(key: Key, space: bytes = DEFAULT_DIGEST) -> Words:
    """Local. The high and low 64 bits of a key in a namespace, of which `space` is the digest.

    A str or bytes gives its keyed blake2b digest; "a" and b"a" differ. An integer is taken as a
    digest: its halves are combined with the namespace's by exclusive or, so that in the default
    namespace they stay as they are. TypeError and ValueError say what is accepted.
    """
    if type(key) is str and len(key) <= CACHED_LENGTH:
        return _cached_words(key, space)
    if isinstance(key, str):
        return _text_words(key, space)
    if isinstance(key, bytes):
        hasher = _hasher(b"cascade bytes 1", space).copy()
        hasher.update(key)
        return _digest_words(hasher.digest())
    number = _integer(key)
    high, low = _digest_words(space)
    return number >> 64 ^ high, number & _MASK64 ^ low


def shown(hi: int, lo: int) -> str:
    """Local. The words of a key for people: the same for the same key, but no way back to it.

    The words themselves would tell the digest of a salted namespace to whoever asks for key 0 in it.
    """
    return hashlib.blake2b(struct.pack(">QQ", hi, lo), digest_size=6, person=b"cascade shown 1").hexdigest()


def key_array(keys: Iterable[Key] | npt.NDArray[Any], space: bytes = DEFAULT_DIGEST) -> npt.NDArray[np.uint64]:
    """Local. Keys as uint64[n, 2], C-contiguous: column 0 the high, column 1 the low 64 bits.

    An array uint64[n, 2] holds 128-bit integers, a one-dimensional integer array small ones. The result
    shares memory with `keys` where that already is what is asked for: treat it as read-only.
    """
    if isinstance(keys, np.ndarray) and keys.dtype.kind in "iu":
        return _integer_array(keys, _digest_words(space))
    check_keys(keys)
    words = [key_words(key, space) for key in keys]
    return np.fromiter(chain.from_iterable(words), np.uint64, 2 * len(words)).reshape(-1, 2)


def check_keys(keys: object, or_else: str = "") -> None:
    """Local. TypeError unless `keys` is something with many keys; `or_else` says what else the call takes."""
    given = f"one key, {keys!r}" if isinstance(keys, (str, bytes)) else repr(keys)
    try:
        if isinstance(keys, (str, bytes)):
            raise TypeError
        iter(keys)  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"keys is {given}: give {or_else}a sequence of keys or an array uint64[n, 2]") from None


def _text_words(key: str, space: bytes) -> Words:
    hasher = _hasher(b"cascade str 1", space).copy()
    hasher.update(str.encode(key, "utf-8", "surrogatepass"))  # every str is a key, lone surrogates too
    return _digest_words(hasher.digest())


_cached_words = lru_cache(maxsize=CACHED_KEYS)(_text_words)


@lru_cache(maxsize=512)
def _hasher(person: bytes, space: bytes) -> hashlib.blake2b:
    # a copy of a prepared state costs less than to hash the key block again
    return hashlib.blake2b(digest_size=16, key=space, person=person)


def _integer(key: object) -> int:
    if isinstance(key, bool):
        raise TypeError(f"{_ACCEPTED}, not bool")
    try:
        number = operator.index(key)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{_ACCEPTED}, not {type(key).__name__}") from None
    if not 0 <= number <= _MASK128:
        raise ValueError(f"{_ACCEPTED}, not {number}")
    return number


def _integer_array(keys: npt.NDArray[Any], space: Words) -> npt.NDArray[np.uint64]:
    if keys.ndim == 1:
        if keys.dtype.kind == "i" and keys.size and keys.min() < 0:
            raise ValueError(f"{_ACCEPTED}, not {keys.min()}")
        words = np.empty((len(keys), 2), np.uint64)
        words[:, 0] = space[0]
        np.bitwise_xor(keys.astype(np.uint64, copy=False), np.uint64(space[1]), out=words[:, 1])
        return words
    if keys.ndim != 2 or keys.shape[1] != 2 or keys.dtype.kind != "u" or keys.dtype.itemsize != 8:
        shape = ", ".join(map(str, keys.shape))
        raise TypeError(f"an array of keys is uint64[n, 2] or one-dimensional, not {keys.dtype}[{shape}]")
    if space == (0, 0):
        return np.ascontiguousarray(keys, np.uint64)
    words = np.empty(keys.shape, np.uint64)
    np.bitwise_xor(keys, np.array(space, np.uint64), out=words)
    return words
