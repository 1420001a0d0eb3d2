"""The directory that a command was given: opened for reading, with the store's identity.

Covers what is a store's directory and what is not. Does not cover what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cascade_mpi.errors import CascadeError
from cascade_mpi.job import print_error
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import FOLDER
from cascade_mpi.segments.fsck import most_common_store
from cascade_mpi.segments.recovery import numbers_in


@dataclass
class Opened:
    """A store's directory. `problems`: what is wrong with the directory itself, for people."""

    files: PosixFiles
    identity: bytes
    problems: list[str] = field(default_factory=list)


@contextmanager
def opened(directory: Path) -> Iterator[Opened | None]:
    """Local. The directory, read-only; None, after a message, if it is none or nobody's store."""
    try:
        files = PosixFiles(directory, read_only=True)
    except CascadeError as error:
        print_error(str(error))
        yield None
        return
    with files:
        numbers = numbers_in(files)
        if not numbers and FOLDER not in files.names(""):
            print_error(f"{directory}: no store's directory: it has no folder {FOLDER!r}")
            yield None
            return
        yield Opened(files, most_common_store(files, numbers))
