"""Which namespace of a store's directory is meant by what somebody has typed.

Covers names, numbers and salts. Does not cover what is in a namespace.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from cascade_mpi.errors import ConfigError
from cascade_mpi.namespaces import Namespace
from cascade_mpi.public_namespace import PublicNamespace, public

DEFAULT = "default"
_NUMBER = re.compile(r"id:([0-9a-fA-F]{1,16})")


class Wanted(NamedTuple):
    """A namespace of a directory. `namespace` None: its parts or its salt are not known, its number is."""

    id: int
    namespace: Namespace | None
    known: PublicNamespace | None

    def __str__(self) -> str:
        """For people."""
        name = f"{self.known} " if self.known is not None else ""
        return f"{name}({self.id:016x})"


def find(text: str, salt: bytes, names: Mapping[int, PublicNamespace], there: Collection[int] = ()) -> Wanted:
    """Local. The namespace that a text means: "" or "default", ``id:`` and its number, or its name.

    names
        What the directory knows (`segments.names`). A name is that of one of these, as `cascade ls` shows it or its
        field `name`; else that of a namespace that has nothing but a name.
    there
        Numbers of namespaces that have blocks.

    Raises
    ------
    ConfigError
        Several have that name; what follows "id:" is no number; or the salt is not that of the namespace.
    """
    if by_number := _NUMBER.fullmatch(text):
        wanted = int(by_number[1], 16)
        return _of(wanted, names.get(wanted), salt)
    if text.startswith("id:"):
        raise ConfigError(
            f"{text!r} is no number of a namespace: id: and 1 to 16 hexadecimal digits, as cascade ls shows"
        )
    plain = PublicNamespace("" if text == DEFAULT else text, salted=bool(salt))
    made = plain.with_salt(salt)
    if made is None:
        raise ConfigError(f"{text!r} cannot be the name of a namespace, or the salt has more than 64 bytes")
    if made.id in names or made.id in there:
        return Wanted(made.id, made, plain)
    matching = {number: each for number, each in names.items() if text and text in (str(each), each.name)}
    if len(matching) > 1:
        several = ", ".join(f"id:{number:016x} ({each})" for number, each in sorted(matching.items()))
        raise ConfigError(f"several namespaces are called {text!r}: {several}; give one of these numbers")
    for number, each in matching.items():
        return _of(number, each, salt)
    return Wanted(made.id, made, plain)


def _of(number: int, known: PublicNamespace | None, salt: bytes) -> Wanted:
    if known is None and number == 0:
        known = public(Namespace())
    made = known.with_salt(salt) if known is not None else None
    if made is not None and made.id != number:
        made = None
    if made is None and salt:
        raise ConfigError(f"the salt is not that of namespace {Wanted(number, None, known)}")
    return Wanted(number, made, known)
