"""What a file is of: the namespace and its epoch, and how the keys of its blocks are to be read.

Covers the facts that stand at the root of a file, and the way from its keys to those of a store and back. Does not
cover how they are written (see `writing`), nor the salt of a tenant, which is never in a file.

A file names a block by a number of 128 bits. Of keys "integer" it is the number that names the block in its namespace:
the integer that it was put under, or the digest of its text. Of keys "stored" it is what the store itself uses, in
which the digest of the namespace is mixed in: so are the keys of a directory whose namespace is known by its id alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cascade_mpi.errors import ConfigError
from cascade_mpi.namespaces import Namespace

INTEGER, STORED = "integer", "stored"


_PARTS: dict[str, type] = {
    "name": str, "model": str, "dtype": str, "layout": str, "salted": bool, "content_keys": bool, "identity": str,
    "hash": str, "share_content": bool,
}  # fmt: skip


class Origin(NamedTuple):
    """Where the blocks of a file come from. `created` in ns of Unix time; `file` 32 random hexadecimal digits."""

    namespace_id: int
    epoch: int
    keys: str  # INTEGER or STORED
    created: int
    file: str
    text: str  # for people
    named: bool = True  # False: the namespace is known by its id alone, and the fields below are empty
    name: str = ""
    model: str = ""
    dtype: str = ""
    layout: str = ""
    salted: bool = False
    content_keys: bool = False
    identity: str = "key"
    hash: str = "blake3"
    share_content: bool = False

    def namespace(self, salt: bytes = b"") -> Namespace | None:
        """Local. The namespace; None if it is known by its id alone, or needs another salt than this one."""
        if not self.named:
            return None
        try:
            made = Namespace(
                self.name, self.model, self.dtype, self.layout, salt=salt, content_keys=self.content_keys,
                identity=self.identity, hash=self.hash, share_content=self.share_content,  # type: ignore[arg-type]
            )  # fmt: skip
        except (TypeError, ValueError):  # what no namespace can be: the file says its id all the same
            return None
        return made if made.id == self.namespace_id else None

    def __str__(self) -> str:
        """For people: the namespace and its epoch."""
        return f"namespace {self.text} ({self.namespace_id:016x}) at epoch {self.epoch}"


def origin_of(namespace: Namespace, epoch: int, *, keys: str, created: int, file: str) -> Origin:
    """Local. The origin of a file of this namespace at this epoch."""
    n = namespace
    return Origin(
        n.id, epoch, keys, created, file, str(n), True, n.name, n.model, n.dtype, n.layout, bool(n.salt),
        n.content_keys, n.identity, n.hash, n.share_content,
    )  # fmt: skip


def parts_of(origin: Origin) -> dict[str, Any] | None:
    """Local. The fields that make up the namespace, for JSON; None if it is known by its id alone."""
    return {field: getattr(origin, field) for field in _PARTS} if origin.named else None


def with_parts(origin: Origin, parts: object) -> Origin | None:
    """Local. The origin with what `parts_of` gave; None if this is nothing that it gives."""
    if parts is None:
        return origin._replace(named=False)
    if not isinstance(parts, dict) or parts.keys() != _PARTS.keys():
        return None
    if any(type(parts[field]) is not kind for field, kind in _PARTS.items()):
        return None
    return origin._replace(named=True, **parts)


def of_id(namespace_id: int, epoch: int, *, created: int, file: str) -> Origin:
    """Local. The origin of a file of a namespace that is known by its id alone."""
    return Origin(namespace_id, epoch, STORED, created, file, "(known by its id)", named=False)


def space_digest(origin: Origin, namespace: Namespace, epoch: int, *, rekey: bool, remedy: str) -> int:
    """Local. What to exclusive-or a key of the file with, to get that of a store's namespace at an epoch.

    `remedy`: how the caller's user allows `rekey`, for the error.

    Raises
    ------
    ConfigError
        The file is of another namespace or epoch, and `rekey` is False; or its keys cannot be taken out of their own
        namespace at all.
    """
    same = (origin.namespace_id, origin.epoch) == (namespace.id, epoch)
    digest = int.from_bytes(namespace.digest(epoch), "big")
    if origin.keys == STORED:
        if not same:
            raise ConfigError(
                f"the file is of {origin}, with the keys as they were stored: they mean nothing in namespace "
                f"{namespace} at epoch {epoch}; export it anew with the name of its namespace (and its salt)"
            )
        return 0
    if not same and not rekey:
        raise ConfigError(
            f"the file is of {origin}, it was to be imported into namespace {namespace} ({namespace.id:016x}) at epoch "
            f"{epoch}: give the namespace of the file (its salt too), or bump_epoch() up to its epoch. {remedy} "
            "imports it all the same: then blocks that were put under a str or bytes are found under their integer only"
        )
    return digest
