"""The files that a run writes: found to be writable and different before it, opened, and replaced whole.

Covers the files of rank 0, and the temporary ones in which each rank records. Does not cover what is written (see
`metrics`, `recording` and `commands.workload`), nor textfiles, which are opened anew for each write.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from cascade_mpi.errors import ConfigError
from cascade_mpi.workload.options import WorkloadOptions

WHOLE = ("json", "record")  # written at the end, in the place of an older file


def check(options: WorkloadOptions, textfile: Path | None, *, writes: bool) -> None:
    """Local. ConfigError when two of the files are the same one, or when this rank `writes` and one cannot be written.

    textfile
        The Prometheus textfile of this rank, if there is one.
    """
    if writes:
        for option in ("json", "metrics", "record", "state"):
            path = getattr(options, option)
            if path is not None:
                _check_writable(option, path)
    _check_different(options, textfile)


def _check_writable(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"--{option} {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--{option} {path}: it is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--{option} {path}: it may not be written")
    folder = _target(path).parent
    if option in WHOLE and _is_replaced(path) and not os.access(folder, os.W_OK):
        raise ConfigError(f"--{option} {path}: no file may be made in {folder}, where it is written before it replaces")


def _check_different(options: WorkloadOptions, textfile: Path | None) -> None:
    named = {
        "--trace": options.trace,
        "--json": options.json,
        "--metrics": options.metrics,
        "--record": options.record,
        "--prom-file": textfile,
    }
    before: dict[Path, str] = {}
    files: dict[tuple[int, int], str] = {}  # by device and inode: two names may be links to one file
    for option, path in named.items():
        if path is None or not _is_replaced(path):  # any number may write to a terminal or /dev/null
            continue
        same = before.setdefault(_target(path), option)
        with suppress(OSError):
            status = path.stat()
            same = files.setdefault((status.st_dev, status.st_ino), option) if same == option else same
        if same != option:
            raise ConfigError(f"{same} and {option} are the same file, {path}: name different ones")


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_replaced(path: Path) -> bool:
    """A file, or nothing yet; not a device or a pipe, which are written to."""
    return path.is_file() or not path.exists()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Local. A file to write `path` into, which takes its place when all is written; OSError leaves the old one."""
    if not _is_replaced(path):
        with path.open("wb") as out:
            yield out
        return
    target = _target(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            yield out
        with suppress(FileNotFoundError):
            shutil.copymode(target, part)
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


class Opened:
    """What is open from before the run to its end: the file of metrics (rank 0), and this rank's record."""

    def __init__(self, options: WorkloadOptions, rank: int) -> None:
        """Local. ConfigError when one of them cannot be opened."""
        self.metrics: TextIO | None = None
        self.record: BinaryIO | None = None
        try:
            if options.record is not None:
                self.record = _temporary(rank)
            if options.metrics is not None and rank == 0:
                self.metrics = options.metrics.open("w", encoding="utf-8")
        except OSError as error:
            self.close()
            raise ConfigError(f"--metrics {options.metrics}: {error.strerror}") from None

    def close(self, failed: Callable[[str], None] | None = None) -> None:
        """Local. Idempotent. An error of the file of metrics is told to `failed`; the record is not needed any more."""
        if self.metrics is not None:
            try:
                self.metrics.close()
            except OSError as error:
                if failed is not None:
                    failed(f"--metrics {self.metrics.name}: {error.strerror}")
        if self.record is not None:
            with suppress(OSError):  # what could not be written is still in its buffer, and has been told
                self.record.close()


def _temporary(rank: int) -> BinaryIO:
    try:
        return tempfile.TemporaryFile(prefix="cascade-record-")
    except OSError as error:
        raise ConfigError(
            f"--record: rank {rank} can make no temporary file ({error.strerror}): set TMPDIR to a directory with room"
        ) from None
