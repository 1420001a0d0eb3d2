"""Named moments of a store: what was durable when a checkpoint was made, for people and for `cascade ls`.

Covers writing, reading and listing them. Does not cover making anything durable: that is done before. A checkpoint is
one small JSON file, whole or not there; it names a moment, and does not keep older blocks from being replaced.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, NamedTuple

from cascade_mpi.errors import ConfigError

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

FOLDER = "checkpoints"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_BYTES = 4096


class Checkpoint(NamedTuple):
    """A moment at which everything was durable."""

    tag: str
    time: int  # ns of Unix time
    blocks: int
    bytes: int
    ranks: int


def checked_tag(tag: object) -> str:
    """Local. A tag as the name of a file; ConfigError for one that cannot be."""
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise ConfigError(
            f"tag is {tag!r}: it must be 1 to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return tag


def write(files: Files, checkpoint: Checkpoint) -> None:
    """Local. Note a checkpoint, in place of one with the same tag. Survives a power loss when it returns."""
    name = f"{FOLDER}/{checked_tag(checkpoint.tag)}"
    files.make_folder(FOLDER)
    files.sync_folder("")
    with contextlib.suppress(FileNotFoundError):
        files.remove(f"{FOLDER}/.new")  # of a job that was killed here
    file = files.create(f"{FOLDER}/.new")
    try:
        file.write_at(0, json.dumps(checkpoint._asdict()).encode())
        file.sync()
    finally:
        file.close()
    files.rename(f"{FOLDER}/.new", name)
    files.sync_folder(FOLDER)


def checkpoints(files: Files) -> list[Checkpoint]:
    """Local. The checkpoints of a directory, in the order of their times; what is none is passed over."""
    found = []
    try:
        names = files.names(FOLDER)
    except FileNotFoundError:
        return []
    for name in names:
        if _TAG.fullmatch(name):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                found.append(_read(files, name))
    return sorted(found, key=lambda each: each.time)


def _read(files: Files, name: str) -> Checkpoint:
    file = files.open(f"{FOLDER}/{name}")
    try:
        data = bytearray(_MAX_BYTES)
        fields = json.loads(bytes(data[: file.read_at(0, data)]))
    finally:
        file.close()
    numbers = [int(fields[each]) for each in ("time", "blocks", "bytes", "ranks")]
    return Checkpoint(name, *numbers)
