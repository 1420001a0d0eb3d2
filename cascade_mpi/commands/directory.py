"""The directory that a command was given: opened for reading, with the store's identity.

Covers what is a store's directory and what is not. Does not cover what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cascade_mpi.errors import CascadeError, StoreIdentityError
from cascade_mpi.job import print_error
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import FOLDER
from cascade_mpi.segments.fsck import most_common_store
from cascade_mpi.segments.identity import NAME, read
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
        problems = []
        identity = None
        try:
            identity = read(files)
        except StoreIdentityError as error:
            problems.append(str(error))
        except CascadeError as error:  # it cannot be read: that says nothing about what it holds
            print_error(str(error))
            yield None
            return
        if identity is not None:
            yield Opened(files, identity.uuid)
            return
        numbers = numbers_in(files)
        if not numbers and not problems:
            print_error(
                f"{directory} is no store's directory: there is neither a file {NAME} nor a segment in {FOLDER}/"
            )
            yield None
            return
        if not problems:
            problems.append(f"{NAME} is not there: no job opens this directory; put it back from a copy")
        yield Opened(files, most_common_store(files, numbers), problems)
