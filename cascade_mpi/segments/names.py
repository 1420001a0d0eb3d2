"""The names of the namespaces in a store's directory: its file NAMES.

Covers reading it and adding to it. Does not cover who adds when (whoever first writes a record of a namespace), nor
what a namespace is. Records have only its number, a digest of its parts and its salt. The file says what the parts are,
for people and for an export by name; never the salt. No record depends on it: where it is lost, namespaces are known
by their numbers, and their blocks are found by whoever knows the name.

The file is text, a line of JSON for each namespace, each with its own checksum as its last field: a damaged line is
left out, and the others count. Names are only ever added. The file is written anew under another name, synced and
renamed, so it is whole or as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cascade_mpi.public_namespace import PublicNamespace, from_json

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

NAME = "NAMES"
_NEW = "NAMES.new"
_MAX_BYTES = 64 << 20  # a namespace takes some 300 bytes
_MARK = ', "checksum": "'


class Names(NamedTuple):
    """What is known. `problems`: for people, what could not be read."""

    namespaces: dict[int, PublicNamespace]
    problems: list[str]


def read(files: Files) -> Names:
    """Local. The namespaces by their numbers; nothing without the file. 1 open, 1 read."""
    try:
        file = files.open(NAME)
    except FileNotFoundError:
        return Names({}, [])
    try:
        data = bytearray(min(file.size(), _MAX_BYTES))
        text = bytes(data[: file.read_at(0, data)])
    finally:
        file.close()
    found: dict[int, PublicNamespace] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        if (entry := _decode(line)) is None:
            problems.append(f"{NAME}, line {number}: damaged, or of a newer version; that namespace has no name here")
        else:
            found[entry[0]] = entry[1]
    return Names(found, problems)


def add(files: Files, namespaces: Mapping[int, PublicNamespace]) -> bool:
    """Local. Add namespaces by their numbers; whether there was anything new.

    Call it with the directory's lock held, before the first record of a namespace is acknowledged. Survives a power
    loss when it returns. 1 open and 1 read where all are known; 1 create, 1 write, 1 rename and 2 syncs more else.
    Lines that cannot be read are given up then.
    """
    known = read(files).namespaces
    if all(known.get(number) == each for number, each in namespaces.items()):
        return False
    with suppress(FileNotFoundError):
        files.remove(_NEW)  # of a job that was killed here
    file = files.create(_NEW)
    try:
        file.write_at(0, b"".join(_encode(*entry) for entry in sorted((known | dict(namespaces)).items())))
        file.sync()
    finally:
        file.close()
    files.rename(_NEW, NAME)
    files.sync_folder("")
    return True


def _encode(number: int, namespace: PublicNamespace) -> bytes:
    text = json.dumps({"id": f"{number:016x}", "namespace": namespace._asdict()})[:-1]
    return f'{text}{_MARK}{_checksum(text)}"}}\n'.encode()


def _decode(line: bytes) -> tuple[int, PublicNamespace] | None:
    text, mark, rest = line.decode("ascii", "replace").rpartition(_MARK)
    if not mark or rest != f'{_checksum(text)}"}}':
        return None
    fields = json.loads(text + "}")  # with a checksum that fits it is what some version of this program wrote
    namespace = from_json(fields.get("namespace"))
    return None if namespace is None else (int(fields["id"], 16), namespace)


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
