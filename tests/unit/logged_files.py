"""A real directory whose calls are written down, those of all ranks in one order, to be played on a recorded disk.

Covers what goes through `PosixFiles`, and files that MPI has created. Does not cover what MPI writes (use
`disk_collective="off"`), nor the lock of a directory.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from recorded_disk import Disk, RecordingFiles

from cascade_mpi.disk import directory
from cascade_mpi.mpiio import shared
from cascade_mpi.segments.files import PosixFiles


class Call(NamedTuple):
    """A call that has succeeded. `time` orders those of all ranks of this machine."""

    time: int
    rank: int
    what: str
    arguments: tuple[Any, ...] = ()
    handle: int = 0
    caller: str = ""


class CallLog:
    """What one rank has called. No other rank's call comes between the begin and the end of one that is logged."""

    def __init__(self, rank: int, lock: Path) -> None:
        self.calls: list[Call] = []
        self._rank, self._guard, self._depth, self._handles = rank, threading.RLock(), 0, 0
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT)

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._guard:
            if not self._depth:
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    fcntl.flock(self._lock, fcntl.LOCK_UN)

    def add(self, what: str, *arguments: Any, handle: int = 0, caller: str = "") -> None:
        with self.alone():
            self.calls.append(Call(time.monotonic_ns(), self._rank, what, arguments, handle, caller))

    def number(self) -> int:
        self._handles += 1
        return self._handles

    def close(self) -> None:
        os.close(self._lock)


class _LoggedFile:
    def __init__(self, file: Any, log: CallLog, handle: int) -> None:
        self._file, self._log, self._handle = file, log, handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _LoggedFile:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._file.close()

    def write_at(self, offset: int, *parts: Any) -> None:
        data = b"".join(memoryview(part).tobytes() for part in parts)
        with self._log.alone():
            self._log.add("write_at", offset, data, handle=self._handle)  # also of a write that fails in the middle
            self._file.write_at(offset, *parts)

    def sync(self) -> None:
        with self._log.alone():
            self._file.sync()
            self._log.add("sync", handle=self._handle, caller=sys._getframe(1).f_code.co_name)


def logged(monkeypatch: pytest.MonkeyPatch, log: CallLog) -> None:
    """Let the disk tier of this process write its calls down."""

    class LoggedFiles(PosixFiles):
        def create(self, path: str, **options: Any) -> Any:
            return self._opened("create", path, super().create, options)

        def open(self, path: str, **options: Any) -> Any:
            return self._opened("open", path, super().open, options)

        def join(self, path: str, **options: Any) -> Any:
            return self._opened("join", path, super().join, options)

        def rename(self, old: str, new: str) -> None:
            with log.alone():
                super().rename(old, new)
                log.add("rename", old, new)

        def remove(self, path: str) -> None:
            with log.alone():
                super().remove(path)
                log.add("remove", path)

        def make_folder(self, path: str) -> None:
            with log.alone():
                super().make_folder(path)
                log.add("make_folder", path)

        def sync_folder(self, path: str) -> None:
            with log.alone():
                super().sync_folder(path)
                log.add("sync_folder", path, caller=sys._getframe(1).f_code.co_name)

        def _opened(self, what: str, path: str, act: Any, options: dict[str, Any]) -> _LoggedFile:
            with log.alone():
                file, handle = act(path, **options), log.number()
                log.add(what, path, handle=handle)
                return _LoggedFile(file, log, handle)

    create = shared.open_new

    def open_new(files: Any, path: str, hints: Any) -> Any:
        with log.alone():
            log.add("create", path, handle=log.number())
            return create(files, path, hints)

    monkeypatch.setattr(directory, "PosixFiles", LoggedFiles)
    monkeypatch.setattr(shared, "open_new", open_new)


def played(calls: Iterable[Call]) -> Disk:
    """The calls of all ranks, each of which is a node, on a recorded disk."""
    disk = Disk()
    files: dict[int, RecordingFiles] = {}
    handles: dict[tuple[int, int], Any] = {}
    for call in sorted(calls):
        mine = files.setdefault(call.rank, RecordingFiles(disk, call.rank))
        if call.what == "note":
            disk.note(*call.arguments)
        elif call.what in ("create", "open", "join"):
            opened = mine.create if call.what == "create" else mine.join if call.what == "join" else mine.open
            handles[call.rank, call.handle] = opened(*call.arguments)
        elif call.what in ("write_at", "sync"):
            getattr(handles[call.rank, call.handle], call.what)(*call.arguments)
        else:
            getattr(mine, call.what)(*call.arguments)
        if call.caller:
            disk.trace[-1] = disk.trace[-1]._replace(note=call.caller)
    return disk
