"""What a refusal of the file system means to people: one error class a cause, with numbers and a remedy.

Covers the way from an `OSError` of any call to a `DiskError`. Does not cover what the store does then.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cascade_mpi.config import format_size
from cascade_mpi.errors import (
    DiskError,
    DiskFullError,
    DiskGoneError,
    DiskPermissionError,
    DiskQuotaError,
    FileThereError,
    NoSuchFileError,
    ReadOnlyDiskError,
)


class Room(NamedTuple):
    """What is free in a file system. `inodes` is None where they are not counted (btrfs, some of Lustre's)."""

    bytes: int
    inodes: int | None

    def __str__(self) -> str:
        inodes = "" if self.inodes is None else f", {self.inodes:,} inodes free"
        return f"{format_size(self.bytes)} free{inodes}"


def room(where: int | str) -> Room:
    """Local. What an ordinary user may still take, by descriptor or path; OSError if it cannot be asked."""
    status = os.statvfs(where)
    return Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def explain(
    error: OSError, doing: str, where: str, *, free: Callable[[], Room] | None = None, gone: bool = False
) -> DiskError:
    """Local. The error to raise `from error`.

    `doing`: what failed, as in "writing 4.0 MiB at offset 8192". `where`: the path, for people. `free` is asked
    only when it matters. `gone`: the directory itself is no longer there, whatever the number says.
    """
    if isinstance(error, DiskError):
        return error  # explained already, where more was known
    number = error.errno or errno.EIO
    what = f"{where}: {doing} failed: "
    if gone or number in _GONE:
        why = "the directory is gone" if gone else os.strerror(number).lower()
        remedy = "was it moved or purged, or the file system unmounted? Put it back and start the job again"
        return DiskGoneError(number, f"{what}{why}; {remedy}", where)
    found = _KNOWN.get(number)
    if found is None:
        why = error.strerror or os.strerror(number)
        remedy = "look at the kernel's log (dmesg) and the file system's state; what was acknowledged is kept"
        return DiskError(number, f"{what}{why} ({errno.errorcode.get(number, number)}); {remedy}", where)
    kind, why, remedy = found
    numbers = _numbers(free) if kind in (DiskFullError, DiskQuotaError) else ""
    return kind(number, f"{what}{why}{numbers}; {remedy}", where)


def not_yours(error: OSError, doing: str, where: str) -> DiskError:
    """Local. As `explain`, for a directory that may not be opened: with its owner and mode, as far as they can be seen.

    1 stat, for it or the first folder above it that can be seen.
    """
    path = Path(where)
    for each in (path, *path.parents):
        try:
            status = each.stat()
        except OSError:
            continue
        try:
            owner = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            owner = f"user {status.st_uid}"
        whose = f"{'it' if each == path else each} belongs to {owner}, mode {stat.S_IMODE(status.st_mode):04o}"
        text = (
            f"{where}: {doing} failed: not permitted; {whose}: a store is read by its owner alone, as which to run this"
        )
        return DiskPermissionError(error.errno or errno.EACCES, text, where)
    return explain(error, doing, where)


def _numbers(free: Callable[[], Room] | None) -> str:
    if free is None:
        return ""
    try:
        return f" ({free()})"
    except OSError:
        return " (how much is free cannot be asked)"


_GONE = frozenset({errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.ENOTCONN, errno.ENOTDIR})
_KNOWN: dict[int, tuple[type[DiskError], str, str]] = {
    errno.ENOSPC: (
        DiskFullError,
        "the file system is full",
        "make room there or choose another directory; what was acknowledged is kept",
    ),
    errno.EDQUOT: (
        DiskQuotaError,
        "the quota is exceeded",
        "free some of it (quota -s, lfs quota) or choose another directory; what was acknowledged is kept",
    ),
    errno.EACCES: (DiskPermissionError, "not permitted", "check the owner and the mode: it must be yours, 0700"),
    errno.EPERM: (
        DiskPermissionError,
        "not permitted",
        "check the owner, and that it is not immutable or append-only (lsattr)",
    ),
    errno.EROFS: (
        ReadOnlyDiskError,
        "the file system is read-only",
        "was it mounted so, or remounted after an error (dmesg)? Choose another directory or open the store read-only",
    ),
    errno.ENOENT: (NoSuchFileError, "it is not there", "see `cascade ls` for what is"),
    errno.EEXIST: (
        FileThereError,
        "it is there already",
        "does another job write here? If not, look at the file with `cascade fsck`",
    ),
    errno.EFBIG: (
        DiskFullError,
        "the file would become too large",
        "raise the limit (ulimit -f) or lower segment_bytes",
    ),
    errno.EMFILE: (DiskError, "this process has too many files open", "raise the limit (ulimit -n)"),
    errno.ENFILE: (DiskError, "this node has too many files open", "end other programs, or ask the site (fs.file-max)"),
    errno.ELOOP: (
        DiskPermissionError,
        "it is a symbolic link",
        "the store follows none inside its directory: put the file itself there",
    ),
    errno.EOPNOTSUPP: (
        DiskError,
        "this file system cannot do that",
        "choose a directory on another one (see `cascade doctor --disk DIR`)",
    ),
}
