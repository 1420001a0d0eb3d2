"""Keys that are made of contents: the digest of a value, of its element type and its shape.

Covers the hash functions and what goes into a digest. Does not cover who is stored under such a key (see `dedup`).

Two values have the same key if they have the same bytes, element type and shape, in namespaces that share contents,
and with the same hash function. That no others have is trusted to 128 bits of the digest: of 2^40 contents two
different ones would meet with a probability of 2^-49. Digests begin with that of the namespace, of which its salt is a
part, so who does not have a tenant's salt cannot make the key of a content that he guesses.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cascade_mpi.errors import NotConfiguredError
from cascade_mpi.namespaces import Hash
from cascade_mpi.values import Source

_PERSON = b"cascade content 1"


def content_key(value: Source, space: bytes, name: Hash) -> tuple[int, int]:
    """Local. The high and low 64 bits of the key of a content; `space` is the digest of the namespace that holds it.

    Raises
    ------
    NotConfiguredError
        The package that has this hash function is not installed.
    """
    head = struct.pack(f"<17s16s8sBQ{len(value.shape)}Q", _PERSON, space, name.encode(), value.dtype, value.nbytes,
                       *value.shape)  # fmt: skip
    hasher = hasher_of(name)(len(head).to_bytes(1, "little") + head)
    if value.nbytes:
        hasher.update(memoryview((ctypes.c_uint8 * value.nbytes).from_address(value.address)).cast("B"))
    digest: bytes = hasher.digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def is_installed(name: Hash) -> bool:
    """Local. Is the hash function there on this rank?"""
    try:
        hasher_of(name)
    except NotConfiguredError:
        return False
    return True


@lru_cache
def hasher_of(name: Hash) -> Callable[[bytes], Any]:
    """Local. What makes a hash object of the first bytes; NotConfiguredError if its package is missing."""
    if name == "sha256":
        return hashlib.sha256
    try:
        made: Callable[[bytes], Any] = importlib.import_module("blake3").blake3
    except ImportError:
        raise NotConfiguredError(
            'identity="content" with hash="blake3" needs the package blake3: pip install "cascade-mpi[dedup]", or give '
            'the namespace hash="sha256"'
        ) from None
    return made
