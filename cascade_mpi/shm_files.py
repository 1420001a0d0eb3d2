"""Shared-memory files that MPI libraries leave in /dev/shm when a job is killed: which ones nobody uses any more.

Covers the files' names, who uses them (every process's mappings and open files are looked at), and their removal.
Does not cover what is shown to people (see `commands.cleanup` and `doctor`). Knows no MPI.

A file is given up only when it certainly has no user. It is kept when it is another user's, younger than
a minute (a job may be about to map it), used by a process, or when its users cannot be known: a process of
the same user that cannot be looked into, or a PID namespace from which not all processes can be seen.
"""

from __future__ import annotations

import os
import pwd
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

FOLDER = "dev/shm"
MIN_AGE_S = 60.0
# Names as the libraries' sources have them; anything else in /dev/shm is none of our business.
PATTERNS = (
    ("MPICH", "mpich_shm_*"),
    ("MPICH", "mpich_shar_tmp*"),  # 3.x
    ("Open MPI", "vader_segment.*"),  # 4.x
    ("Open MPI", "sm_segment.*"),
    ("Open MPI", "osc_rdma.*"),
    ("Open MPI", "osc_sm.*"),
    ("UCX", "ucx_shm_posix_*"),
    ("PSM2", "psm2_shm.*"),
    ("PSM3", "psm3_shm.*"),
    ("MVAPICH2", "ib_shmem-*"),
    ("MVAPICH2", "ib_shmem_coll-*"),
    ("MVAPICH2", "ib_pool-*"),
)
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # the kernel's own number (PROC_PID_INIT_INO), the same on every machine
# A log-in leaves these behind, and nobody but root may look into them. None of them is or becomes a rank.
_HELPERS = {"(sd-pam)", "sd-pam", "sshd", "sshd-session", "ssh-agent", "gpg-agent", "sudo", "su", "fusermount3"}

State = Literal["leftover", "used", "young", "other user", "unknown"]


class SharedFile(NamedTuple):
    """A file of a known pattern, and what is to be said about it."""

    path: Path
    library: str
    bytes: int  # that it holds in memory
    age_s: float
    owner: str
    inode: tuple[int, int]  # device and number
    state: State
    reason: str


class Users(NamedTuple):
    """Which files the living processes use."""

    inodes: dict[tuple[int, int], int]  # device and number: a process that maps the file or has it open
    names: dict[str, int]  # the same by the file's last name, for a /dev/shm whose devices do not agree
    doubt: str  # why there may be more users than these, or ""

    def of(self, path: Path, inode: tuple[int, int]) -> int | None:
        """A process that uses the file, or None."""
        return self.inodes.get(inode, self.names.get(path.name))


def survey(
    root: str | Path = "/",
    *,
    uid: int | None = None,
    now: float | None = None,
    min_age: float = MIN_AGE_S,
    alone: bool = False,
) -> list[SharedFile]:
    """Local. Every file of a known pattern in `root`/dev/shm, by name, and whether it is a leftover.

    `alone`: trust that no process outside of this PID namespace uses this /dev/shm. `uid`: whose files may be
    leftovers; None: this process's effective user.
    """
    root = Path(root)
    uid = os.geteuid() if uid is None else uid
    files = list(_files(root / FOLDER))  # before the processes: a user of a file that was there is seen then
    users = users_of_files(root, uid, alone=alone) if files else None
    now = time.time() if now is None else now
    found = []
    for path, library, status in files:
        assert users is not None
        inode, age = (status.st_dev, status.st_ino), max(now - status.st_mtime, 0.0)
        state, reason = _judge(path, status, age, uid=uid, min_age=min_age, users=users)
        held = status.st_blocks * 512
        found.append(SharedFile(path, library, held, age, user_name(status.st_uid), inode, state, reason))
    return found


def remove(
    file: SharedFile,
    root: str | Path = "/",
    *,
    uid: int | None = None,
    now: float | None = None,
    min_age: float = MIN_AGE_S,
    alone: bool = False,
) -> str:
    """Local. Unlink a leftover after looking at all processes once more; "" or why the file was kept.

    The other arguments are those of `survey`.
    """
    again = survey(root, uid=uid, now=now, min_age=min_age, alone=alone)
    match = next((each for each in again if each.path == file.path), None)
    if match is None:
        return "it is gone already"
    if match.inode != file.inode:
        return "another file has taken its place"
    if match.state != "leftover" or file.state != "leftover":
        return match.reason
    try:
        match.path.unlink()
    except OSError as error:
        return f"it cannot be removed: {error.strerror}"
    return ""


def users_of_files(root: Path, uid: int, *, alone: bool = False) -> Users:
    """Local. The files that the processes of `root`/proc use. About 0.1 ms a process."""
    inodes: dict[tuple[int, int], int] = {}
    names: dict[str, int] = {}
    doubts = [] if alone else _namespace_doubt(root)
    pids = sorted(int(entry.name) for entry in _entries(root / "proc") if entry.name.isdecimal())
    if _link(root / "proc/self") not in map(str, pids):
        doubts.append("/proc does not show this process, so it shows no others either")
    closed: list[str] = []
    for pid in pids:
        folder = root / "proc" / str(pid)
        try:
            for inode, name in _used(folder):
                inodes.setdefault(inode, pid)
                names.setdefault(name, pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        except PermissionError:
            name = _text(folder / "comm").strip()
            init = pid == 1 and _link(root / "proc/self/ns/pid") == _FIRST_PID_NAMESPACE  # the machine's, never a rank
            if _owned(folder, uid) and name not in _HELPERS and not init:
                closed.append(f"{pid} ({name or 'unnamed'})")
    if closed:
        shown = ", ".join(closed[:4]) + (f" and {len(closed) - 4} more" if len(closed) > 4 else "")
        doubts.append(f"this user's process {shown} cannot be looked into")
    return Users(inodes, names, "; ".join(doubts))


def user_name(uid: int) -> str:
    """Local. The name of a user, or the number as text."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _judge(
    path: Path, status: os.stat_result, age: float, *, uid: int, min_age: float, users: Users
) -> tuple[State, str]:
    user = users.of(path, (status.st_dev, status.st_ino))
    if user is not None:
        return "used", f"process {user} uses it"
    if status.st_uid != uid:
        return "other user", "another user's"
    if age < min_age:
        return "young", f"younger than {min_age:g} s: a job may be about to map it"
    if users.doubt:
        return "unknown", users.doubt
    return "leftover", "no living process maps it or has it open"


def _files(folder: Path) -> Iterator[tuple[Path, str, os.stat_result]]:
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        library = next((library for library, pattern in PATTERNS if fnmatchcase(entry.name, pattern)), None)
        if library is None:
            continue
        with suppress(OSError):  # gone meanwhile
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                yield folder / entry.name, library, status


def _used(process: Path) -> Iterator[tuple[tuple[int, int], str]]:
    """Device, number and name of what a process maps or has open; PermissionError if one cannot know."""
    yield from _mapped(process / "maps")
    if _state(process) in ("Z", "X"):
        # It has ended, but threads of it may live on when only its first one has: they have the memory still.
        for task in _entries(process / "task"):
            if task.name != process.name:
                yield from _mapped(Path(task.path) / "maps")
                yield from _open_files(Path(task.path) / "fd")
        return
    yield from _open_files(process / "fd")


def _mapped(maps: Path) -> Iterator[tuple[tuple[int, int], str]]:
    # Bytes: a file's name may be anything.
    for line in maps.read_bytes().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[4] != b"0":
            major, _, minor = words[3].partition(b":")
            name = words[5].removesuffix(b" (deleted)").rpartition(b"/")[2]
            yield (os.makedev(int(major, 16), int(minor, 16)), int(words[4])), os.fsdecode(name)


def _open_files(folder: Path) -> Iterator[tuple[tuple[int, int], str]]:
    for entry in os.listdir(folder):
        try:
            status = (folder / entry).stat()
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            continue
        if stat.S_ISREG(status.st_mode):
            yield (status.st_dev, status.st_ino), os.path.basename(_link(folder / entry))


def _namespace_doubt(root: Path) -> list[str]:
    found = _link(root / "proc/self/ns/pid")
    if found == _FIRST_PID_NAMESPACE:
        return []
    if not found:
        return ["the PID namespace of this process cannot be read"]
    return [
        "this is a container with processes of its own, and others that it cannot see may share its /dev/shm "
        "(--alone: they do not)"
    ]


def _owned(process: Path, uid: int) -> bool:
    """Does the process run as this user? /proc gives unreadable processes to root, but its status says."""
    for line in _text(process / "status").splitlines():
        if line.startswith("Uid:"):
            return str(uid) in line.split()[1:]
    return False


def _state(process: Path) -> str:
    return _text(process / "stat").rpartition(")")[2].strip()[:1]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
