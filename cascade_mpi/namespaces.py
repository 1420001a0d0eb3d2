"""Namespaces: what else than its own key must be equal for two blocks to be the same.

Covers the parts of a namespace and the digests that make it part of every key. Does not cover which
epoch a namespace is at, nor its quota (see `registry`, `quotas`). Knows no MPI.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral, Real
from typing import Literal, get_args

from cascade_mpi.layout import MAX_DEPTH, MAX_EXPIRY

DEFAULT_DIGEST = bytes(16)
MAX_SALT_BYTES = 64  # a key of blake2b
MAX_EPOCH = (1 << 32) - 1  # its field in a descriptor

Identity = Literal["key", "content"]
Hash = Literal["blake3", "sha256"]


@dataclass(frozen=True, slots=True)
class Namespace:
    """The world that a key belongs to; blocks of different namespaces never meet.

    name, model, dtype, layout
        Free text: what the blocks are of, such as ``Namespace(model="llama-3-70b", dtype="bf16", layout="tp4")``.
        A plain str stands for a namespace of that name; "" is the default one.
    salt
        A secret of the tenant, at most 64 bytes (a str is taken as UTF-8): without it neither a key of the tenant
        nor whether one is stored can be found. Give 16 random bytes or more. It is never shown.
    content_keys
        The key of a block determines its content, as keys made of token sequences do: whatever is put under a key of
        an epoch has the same bytes. Then a copy needs no look at what it was made from, and is still read after a
        delete until it is dropped or the epoch ends.
    identity
        "key": what is put is stored under its key. "content": it is hashed, and stored once however many keys of this
        namespace and epoch name the same bytes of the same dtype and shape (see `dedup`).
    hash
        What contents are hashed with, "blake3" (needs the package of that name) or "sha256".
    share_content
        With identity "content": share contents with other namespaces that ask for it too. Who may put into one of them
        can then find out whether a content is stored in another.
    protect_depth, ttl
        Rules of the puts that are given this object: blocks with a `depth` below the one are protected (None: the
        store's setting says), and expire after the other, in seconds, if the put names no `ttl` (None: never). Rules
        are no part of the keys: with others, or none, it is still the same namespace.
    """

    name: str = ""
    model: str = ""
    dtype: str = ""
    layout: str = ""
    salt: bytes = field(default=b"", repr=False)
    content_keys: bool = False
    identity: Identity = "key"
    hash: Hash = "blake3"
    share_content: bool = False
    protect_depth: int | None = None
    ttl: float | None = None

    def __post_init__(self) -> None:
        """Check the parts; TypeError and ValueError name the one that is wrong."""
        for each in ("name", "model", "dtype", "layout"):
            value = getattr(self, each)
            if not isinstance(value, str):
                raise TypeError(f"{each} of a namespace is a str, not {type(value).__name__}")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{each} of a namespace is {value!r}: it must be text that UTF-8 can encode") from None
        try:
            salt = self.salt.encode() if isinstance(self.salt, str) else self.salt
        except UnicodeEncodeError:
            raise ValueError("salt of a namespace is text that UTF-8 cannot encode: give bytes") from None
        if not isinstance(salt, bytes):
            raise TypeError(f"salt of a namespace is bytes or a str, not {type(salt).__name__}")
        if len(salt) > MAX_SALT_BYTES:
            raise ValueError(f"salt of a namespace has {len(salt)} bytes: at most {MAX_SALT_BYTES}")
        object.__setattr__(self, "salt", salt)
        if not isinstance(self.content_keys, bool):
            raise TypeError(f"content_keys of a namespace is True or False, not {type(self.content_keys).__name__}")
        self._check_identity()
        self._check_rules()

    def _check_identity(self) -> None:
        for name, allowed in (("identity", get_args(Identity)), ("hash", get_args(Hash))):
            if getattr(self, name) not in allowed:
                choice = " or ".join(f'"{each}"' for each in allowed)
                raise ValueError(f"{name} of a namespace is {getattr(self, name)!r}: it must be {choice}")
        if not isinstance(self.share_content, bool):
            raise TypeError(f"share_content of a namespace is True or False, not {type(self.share_content).__name__}")
        if self.identity == "content" and self.content_keys:
            raise ValueError('a namespace with content_keys needs no identity "content": equal blocks have equal keys')
        if self.identity == "key" and (self.share_content or self.hash != "blake3"):
            raise ValueError('hash and share_content of a namespace are for identity="content"')

    def _check_rules(self) -> None:
        depth, ttl = self.protect_depth, self.ttl
        if depth is not None:
            if not isinstance(depth, Integral) or isinstance(depth, bool) or not 0 <= depth <= MAX_DEPTH:
                raise ValueError(
                    f"protect_depth of a namespace is {depth!r}: it must be an integer in 0..{MAX_DEPTH}, or None"
                )
            object.__setattr__(self, "protect_depth", int(depth))  # NumPy's too
        if ttl is not None:
            if not isinstance(ttl, Real) or isinstance(ttl, bool) or not 0 < ttl <= MAX_EXPIRY:
                raise ValueError(
                    f"ttl of a namespace is {ttl!r}: it must be seconds above 0, at most {MAX_EXPIRY}, or None"
                )
            object.__setattr__(self, "ttl", int(ttl) if isinstance(ttl, Integral) else float(ttl))

    def __str__(self) -> str:
        """For people: the parts that are set, never the salt."""
        parts = (self.name, self.model, self.dtype, self.layout)
        text = "/".join(part for part in parts if part) or "default"
        text += " (content keys)" if self.content_keys else " (by content)" if self.identity == "content" else ""
        return text + (" (salted)" if self.salt else "")

    @property
    def is_default(self) -> bool:
        """Whether all parts are empty, whatever its rules."""
        parts = (self.name, self.model, self.dtype, self.layout, self.salt, self.content_keys, self.by_content)
        return not any(parts)

    @property
    def by_content(self) -> bool:
        """Whether its blocks are stored once for each content."""
        return self.identity == "content"

    @property
    def id(self) -> int:
        """The 64 bits that stand for it in a descriptor; 0 for the default one. Says nothing about its keys."""
        if self.is_default:
            return 0
        digest = hashlib.blake2b(self._parts(), digest_size=8, key=self.salt, person=b"cascade nsid 2").digest()
        return int.from_bytes(digest, "big") or 1

    def digest(self, epoch: int = 0) -> bytes:
        """Local. The 16 bytes that make the namespace part of its keys at an epoch.

        All zero for the default namespace at epoch 0. Keyed blake2b of the parts, each with its length before
        it, and of the epoch; the same in every process, on every machine.
        """
        if self.is_default and not epoch:
            return DEFAULT_DIGEST
        text = self._parts() + struct.pack(">Q", epoch)
        return hashlib.blake2b(text, digest_size=16, key=self.salt, person=b"cascade space 2").digest()

    def _parts(self) -> bytes:
        encoded = [part.encode() for part in (self.name, self.model, self.dtype, self.layout)]
        text = b"".join(struct.pack(">I", len(each)) + each for each in encoded)
        if self.by_content:
            return text + f"by content {self.hash}{' shared' if self.share_content else ''}".encode()
        return text + b"content keys" if self.content_keys else text  # names with and without never meet


AnyNamespace = str | Namespace
DEFAULT = Namespace()


@lru_cache(maxsize=1024)
def named(name: str) -> Namespace:
    """Local. The namespace that a plain str stands for."""
    return Namespace(name)


def as_namespace(value: str | Namespace) -> Namespace:
    """Local. A namespace from what callers write; TypeError for anything else."""
    if isinstance(value, Namespace):
        return value
    if isinstance(value, str):
        return named(value)
    raise TypeError(f"a namespace is a str or a Namespace, not {type(value).__name__}")
