"""What may be told of a namespace: all that it is made of, but its salt. For files that outlive the job.

Covers the way to JSON and back. Does not cover what the parts mean (see `namespaces`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cascade_mpi.namespaces import Namespace


class PublicNamespace(NamedTuple):
    """The parts of a namespace; `salted` says whether it has a salt."""

    name: str = ""
    model: str = ""
    dtype: str = ""
    layout: str = ""
    salted: bool = False
    content_keys: bool = False
    identity: str = "key"
    hash: str = "blake3"
    share_content: bool = False

    def with_salt(self, salt: bytes = b"") -> Namespace | None:
        """Local. The namespace with this salt; None if there can be none, or it needs a salt, or none."""
        if bool(salt) is not self.salted:
            return None
        try:
            return Namespace(
                self.name, self.model, self.dtype, self.layout, salt=salt, content_keys=self.content_keys,
                identity=self.identity, hash=self.hash, share_content=self.share_content,  # type: ignore[arg-type]
            )  # fmt: skip
        except (TypeError, ValueError):
            return None

    def __str__(self) -> str:
        """For people, as `Namespace` shows itself."""
        made = self._replace(salted=False).with_salt()
        return f"{made}{' (salted)' if self.salted else ''}" if made is not None else "(of no kind that is known)"


_KINDS = {field: type(value) for field, value in PublicNamespace()._asdict().items()}


def public(namespace: Namespace) -> PublicNamespace:
    """Local. What may be told of a namespace."""
    n = namespace
    return PublicNamespace(
        n.name, n.model, n.dtype, n.layout, bool(n.salt), n.content_keys, n.identity, n.hash, n.share_content
    )


def from_json(value: Any) -> PublicNamespace | None:
    """Local. Of what `_asdict()` has given to JSON; None if it is something else."""
    if not isinstance(value, dict) or value.keys() != _KINDS.keys():
        return None
    if any(type(value[field]) is not kind for field, kind in _KINDS.items()):
        return None
    return PublicNamespace(**value)
