"""One job at a time writes to a directory: the file LOCK, and who holds it.

Covers taking it, refusing a second job with the name of the first, and file systems without locks. Does not cover what
a job that is refused may still do: open the directory read-only, which needs no lock.

The lock is the kernel's (fcntl): it ends with the process that holds it, however that ends, so a dead job's file blocks
nobody. The text in the file is only for people. The first process of a job takes it, the others join it, and each keeps
its part until it has ended its writing: no other job begins while one of them lives, the first one or not.

The first process locks the file's first byte alone, and what is behind it together with all who join. To take the lock
is to have both alone for a moment, the first byte first. Nobody waits for the first byte, and no process of a job needs
it but its first, so nothing can wait in a circle.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from cascade_mpi.errors import LocksUnsupportedError, StoreInUseError
from cascade_mpi.segments import faults

NAME = "LOCK"
_MODE = 0o600
_MAX_BYTES = 4096
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_ONE_NODE = {
    "lustre": ("localflock",),
    "nfs": ("nolock", "local_lock=all", "local_lock=posix"),
    "nfs4": ("nolock", "local_lock=all", "local_lock=posix"),
}
_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})
_FIELDS = 200  # characters of a field that are shown
_FIRST, _ALL = (1, 0), (0, 1)  # lengths and beginnings of what is locked: one byte, and all that is behind it
_END_S = 5.0  # how long the processes of a job may take to end after its first one
_POLL_S = 0.02

Locks = Literal["required", "none"]

# A process's own locks do not stop it, and closing any descriptor of the file would end them: so it must know them.
_held: set[tuple[int, int]] = set()
_guard = threading.Lock()


class Owner(NamedTuple):
    """Who writes to a directory."""

    host: str
    pid: int
    job: str  # the batch system's number, or ""
    since: int  # s of Unix time

    @classmethod
    def here(cls, since: int, environ: Mapping[str, str]) -> Owner:
        """Local. This process."""
        return cls(os.uname().nodename, os.getpid(), environ.get("SLURM_JOB_ID", ""), since)

    def __str__(self) -> str:
        with suppress(ValueError, OverflowError, OSError):  # a time that no calendar has
            when = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            job = f"job {self.job}, " if self.job else ""
            return f"{job}process {self.pid} on {self.host}, since {when}"
        return f"process {self.pid} on {self.host}"


class DirectoryLock:
    """The right to write to a directory, held until `release` or the end of the process."""

    def __init__(self, root: Path, descriptor: int, identity: tuple[int, int], note: str, *, first: bool) -> None:
        self.root = root
        self._first = first  # whose name the file has
        self.note = note  # for the report: what the lock does not keep out, or ""
        self._descriptor: int | None = descriptor
        self._identity = identity
        self._pid = os.getpid()

    @classmethod
    def take(cls, root: str | os.PathLike[str], owner: Owner, *, locks: Locks = "required") -> DirectoryLock:
        """Local. Take the lock of an existing directory, for the first process of a job. 1 open, 3 locks, 1 write.

        Waits at most 5 s, for processes of a job whose first one has ended already. `locks="none"`:
        where the file system has no locks, go on without; the user answers for there being one job. The lock's `note`
        says it.

        Raises
        ------
        StoreInUseError
            Another job has it, or this process itself; the text has its name.
        LocksUnsupportedError
            The file system keeps no locks, or none that reach other nodes, and `locks` is "required".
        DiskError
            The file cannot be made: permission, read-only, full.
        """
        return cls._open(root, owner, locks)

    @classmethod
    def join(cls, root: str | os.PathLike[str], *, locks: Locks = "required") -> DirectoryLock:
        """Local. The same for another process of the job that has the lock, without waiting. 1 open, 1 lock.

        StoreInUseError: that job's first process has ended meanwhile, and another job has taken its place.
        """
        return cls._open(root, None, locks)

    @classmethod
    def _open(cls, root: str | os.PathLike[str], owner: Owner | None, locks: Locks) -> DirectoryLock:
        root = Path(root).absolute()
        path = root / NAME
        with _guard:
            _refuse_own(path)
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(path, flags, _MODE)
            except OSError as error:
                raise faults.explain(error, "opening the lock", str(path)) from error
            try:
                status = os.fstat(descriptor)
                identity = status.st_dev, status.st_ino
                note = _lock(descriptor, path, locks, _one_node(status.st_dev), first=owner is not None)
                if owner is not None:
                    note = "; ".join(filter(None, (note, _write(descriptor, path, owner))))
            except BaseException:
                os.close(descriptor)
                raise
            _held.add(identity)
        return cls(root, descriptor, identity, note, first=owner is not None)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Local. Let others write. The file stays, empty. A second release does nothing, nor does a forked child's."""
        with _guard:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is None:
                return
            if self._pid == os.getpid():
                with suppress(OSError):  # the text is for people, a full disk must not keep the lock
                    if self._first:
                        os.ftruncate(descriptor, 0)
                _held.discard(self._identity)
            os.close(descriptor)


def _refuse_own(path: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in _held:
            raise StoreInUseError(
                f"{path.parent}: this process ({os.getpid()}) has it open for writing already: close that store first, "
                "or open it read-only"
            )


def _one_node(device: int, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The mount option by which a network's file system keeps locks on this node alone, or ""."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            fields, words = before.split(), after.split()
            if len(fields) > 2 and fields[2] == number and words:
                known = _ONE_NODE.get(words[0], ())
                return next((each for each in words[-1].split(",") if each in known), "")
    return ""


def _lock(descriptor: int, path: Path, locks: Locks, one_node: str, *, first: bool) -> str:
    """The note of a lock that was taken, or of one that cannot be."""
    if one_node and locks != "none":
        raise LocksUnsupportedError(
            errno.ENOLCK,
            f"{path.parent}: this file system is mounted with {one_node}, so its locks do not reach other nodes, and a "
            f"second job there would not be noticed: mount it with locks for all (Lustre: -o flock), choose another "
            'directory, or set disk_locks="none" and see to it that there is only one job',
            str(path),
        )
    try:
        if first:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, *_FIRST)
            _wait_for_the_others(descriptor)
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, *_ALL)
    except OSError as error:
        if error.errno in _TAKEN:
            named = _read(descriptor)
            who = str(named) if named is not None else "a process that has not written its name"
            raise StoreInUseError(
                f"{path.parent} is in use by {who}, or by others of its job: wait for it to end, use another "
                "directory, or open it read-only"
            ) from error
        if error.errno not in _UNSUPPORTED:
            raise faults.explain(error, "locking it", str(path)) from error
        if locks != "none":
            raise LocksUnsupportedError(
                error.errno or errno.ENOLCK,
                f"{path.parent}: this file system keeps no file locks ({error.strerror}), so a second job on this "
                "directory would not be noticed, and two would destroy it: mount it with them (Lustre: -o flock), "
                'choose another directory, or set disk_locks="none" and see to it that there is only one job',
                str(path),
            ) from error
        return f"no lock: the file system keeps none ({error.strerror}), and disk_locks is none"
    return f"the lock keeps out jobs of this node only: the file system is mounted with {one_node}" if one_node else ""


def _wait_for_the_others(descriptor: int) -> None:
    """Have what is behind the first byte alone: nobody of an earlier job is there then. OSError: somebody is."""
    deadline = time.monotonic() + _END_S
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, *_ALL)
        except OSError as error:
            if error.errno not in _TAKEN or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return


def _write(descriptor: int, path: Path, owner: Owner) -> str:
    """The note of a name that could not be written: a full disk must not keep out who wants to make room."""
    text = (json.dumps(owner._asdict()) + "\n").encode()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
        os.fsync(descriptor)  # so that a node without our page cache can read the name
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"a second job is refused without our name, it could not be written: {error.strerror}"
        raise faults.explain(error, "writing the owner's name", str(path)) from error
    return ""


def _read(descriptor: int) -> Owner | None:
    """Whoever is writing it may be in the middle, and anybody may have edited it."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        fields = json.loads(os.pread(descriptor, _MAX_BYTES, 0))
        host, job = (str(fields[name])[:_FIELDS] for name in ("host", "job"))
        if host.isprintable() and job.isprintable():  # it is shown on a terminal
            return Owner(host, int(fields["pid"]), job, int(fields["since"]))
    return None
