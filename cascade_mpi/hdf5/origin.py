"""What a file is of: the namespace and its epoch, and how the keys of its blocks are to be read.

Covers the facts that stand at the root of a file, and the way from its keys to those of a store and back. Does not
cover how they are written (see `datasets`), nor the salt of a tenant, which is never in a file.

A file names a block by a number of 128 bits. Of keys "integer" it is the number that names the block in its namespace:
the integer that it was put under, or the digest of its text. Of keys "stored" it is what the store itself uses, in
which the digest of the namespace is mixed in: so are the keys of a directory whose namespace is known by its id alone.
"""

from __future__ import annotations

from typing import NamedTuple

from cascade_mpi.errors import ConfigError
from cascade_mpi.namespaces import Namespace
from cascade_mpi.public_namespace import PublicNamespace, public

INTEGER, STORED = "integer", "stored"


class Origin(NamedTuple):
    """Where the blocks of a file come from. `created` in ns of Unix time; `file` 32 random hexadecimal digits."""

    namespace_id: int
    epoch: int
    keys: str  # INTEGER or STORED
    created: int
    file: str
    known: PublicNamespace | None  # None: the namespace is known by its id alone

    def namespace(self, salt: bytes = b"") -> Namespace | None:
        """Local. The namespace; None if it is known by its id alone, or needs another salt than this one."""
        made = None if self.known is None else self.known.with_salt(salt)
        return made if made is not None and made.id == self.namespace_id else None

    @property
    def text(self) -> str:
        """For people: the namespace."""
        return "known by its number alone" if self.known is None else str(self.known)

    def __str__(self) -> str:
        """For people: the namespace and its epoch."""
        return f"namespace {self.text} ({self.namespace_id:016x}) at epoch {self.epoch}"


def origin_of(namespace: Namespace, epoch: int, *, created: int, file: str) -> Origin:
    """Local. The origin of a file of this namespace at this epoch."""
    return Origin(namespace.id, epoch, INTEGER, created, file, public(namespace))


def mixed_in(origin: Origin, namespace: Namespace, epoch: int, *, rekey: bool, remedy: str) -> int:
    """Local. What to exclusive-or a key of the file with, to get that of a store's namespace at an epoch.

    `remedy`: how the caller's user allows `rekey`, for the error.

    Raises
    ------
    ConfigError
        The file is of another namespace or epoch, and `rekey` is False; or its keys cannot be taken out of their own
        namespace at all.
    """
    same = (origin.namespace_id, origin.epoch) == (namespace.id, epoch)
    if origin.keys == STORED:
        if not same:
            raise stored_keys(origin, f"{namespace} ({namespace.id:016x})", epoch)
        return 0
    if not same and not rekey:
        raise ConfigError(
            f"the file is of {origin}, it was to be imported into namespace {namespace} ({namespace.id:016x}) at epoch "
            f"{epoch}: name that of the file, with its salt if it has one, at its epoch (bump_epoch() raises a "
            f"store's). {remedy} imports it all the same: then blocks that were put under a str or bytes are found "
            "under their integer only"
        )
    return int.from_bytes(namespace.digest(epoch), "big")


def stored_keys(origin: Origin, namespace: object, epoch: int) -> ConfigError:
    """Local. The error that the keys of a file, which are as they were stored, mean nothing in another place."""
    return ConfigError(
        f"the file is of {origin}, with the keys as they were stored: they mean nothing in namespace {namespace} at "
        f"epoch {epoch}; export it anew with the name of its namespace, and its salt if it has one"
    )
