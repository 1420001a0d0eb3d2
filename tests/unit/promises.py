"""What a later job may find of keys and values, given what was tried and what was acknowledged.

Covers the two notes that a recorded job takes, and the comparison. Does not cover how a job is recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple


class Attempt(NamedTuple):
    """Note: somebody begins to write this version of a key. `value` None: a delete."""

    key: Hashable
    version: int  # higher is newer, over all writers
    value: bytes | None

    def __str__(self) -> str:
        return f"{self.key} version {self.version}: {'delete' if self.value is None else f'{len(self.value)} bytes'}"


class Acknowledged(NamedTuple):
    """Note: these versions were promised to be durable."""

    versions: tuple[tuple[Hashable, int], ...]


def acknowledged(found: Mapping[Hashable, bytes], notes: Iterable[Any]) -> list[str]:
    """What is wrong with the values that were found. A key that is absent, or damaged, is not in `found`.

    Right is the newest promised version of a key, or any newer one that was attempted.
    """
    attempts: dict[Hashable, dict[int, bytes | None]] = defaultdict(dict)
    promised: dict[Hashable, int] = {}
    for note in notes:
        if isinstance(note, Attempt):
            attempts[note.key][note.version] = note.value
        elif isinstance(note, Acknowledged):
            for key, version in note.versions:
                promised[key] = max(promised.get(key, -1), version)
    complaints = [f"foreign: {key!r} was never written" for key in found if key not in attempts]
    for key, versions in attempts.items():
        least = promised.get(key, -1)
        new = {version: value for version, value in versions.items() if version >= least}
        value = found.get(key)
        if value is None:
            if least >= 0 and None not in new.values():
                complaints.append(f"lost: {key!r} version {least} was acknowledged")
        elif value not in new.values():
            if value not in versions.values():
                complaints.append(f"wrong bytes: {key!r} has {value[:16]!r}...")
            elif versions[least] is None:
                complaints.append(f"resurrected: {key!r}, whose delete {least} was acknowledged")
            else:
                complaints.append(f"stale: {key!r}, whose version {least} was acknowledged")
    return complaints
