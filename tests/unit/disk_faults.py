"""Files whose calls fail, and files that forget a sync.

Covers which call fails, and what a failed call leaves behind. Does not cover what a power loss makes of that (see
`power_loss`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from recorded_disk import RecordingFile, RecordingFiles

from cascade_mpi.segments import faults


class Plan:
    """Which call fails: the `at`-th (from 0) of the `kinds`, once, or it and all that follow."""

    READS = frozenset({"open", "read_at", "names", "size"})
    WRITES = frozenset({"create", "write_at", "sync", "close", "rename", "remove", "make_folder", "sync_folder"})

    def __init__(
        self, number: int, at: int, *, for_ever: bool = False, kinds: frozenset[str] = READS | WRITES, part: float = 0.5
    ) -> None:
        self.number, self.at, self.for_ever, self.kinds, self.part = number, at, for_ever, kinds, part
        self.calls: list[str] = []
        self.failed = 0

    def fails(self, kind: str) -> bool:
        if kind not in self.kinds:
            return False
        self.calls.append(kind)
        failing = len(self.calls) - 1 >= self.at if self.for_ever else len(self.calls) - 1 == self.at
        self.failed += failing
        return failing


class FailingFiles:
    """Files that fail by a plan, as a disk does: a write leaves `part` of its bytes, a sync leaves doubt.

    A failed close has closed. Of a failed create, rename or remove nothing has happened for a `part` below 1, else all.
    """

    def __init__(self, files: RecordingFiles, plan: Plan) -> None:
        self.files, self.plan = files, plan

    def create(self, path: str) -> FailingFile:
        return FailingFile(self._call("create", path, lambda: self.files.create(path)), path, self.plan)

    def open(self, path: str) -> FailingFile:
        return FailingFile(self._call("open", path, lambda: self.files.open(path)), path, self.plan)

    def rename(self, old: str, new: str) -> None:
        self._call("rename", old, lambda: self.files.rename(old, new))

    def remove(self, path: str) -> None:
        self._call("remove", path, lambda: self.files.remove(path))

    def names(self, folder: str) -> list[str]:
        return self._call("names", folder, lambda: self.files.names(folder))

    def make_folder(self, path: str) -> None:
        self._call("make_folder", path, lambda: self.files.make_folder(path))

    def sync_folder(self, path: str) -> None:
        if self.plan.fails("sync_folder"):
            raise fault(self.plan.number, "sync_folder", path)
        self.files.sync_folder(path)

    def _call(self, kind: str, path: str, act: Callable[[], Any]) -> Any:
        if self.plan.fails(kind):
            if self.plan.part >= 1:
                act()
            raise fault(self.plan.number, kind, path)
        return act()


class FailingFile:
    def __init__(self, file: RecordingFile, path: str, plan: Plan) -> None:
        self.file, self.path, self.plan = file, path, plan

    def write_at(self, offset: int, *parts: Any) -> None:
        if self.plan.fails("write_at"):
            data = b"".join(bytes(memoryview(part).cast("B")) for part in parts if memoryview(part).nbytes)
            self.file.write_at(offset, data[: int(len(data) * self.plan.part)])
            raise fault(self.plan.number, "writing", self.path)
        self.file.write_at(offset, *parts)

    def read_at(self, offset: int, out: Any) -> int:
        if self.plan.fails("read_at"):
            raise fault(self.plan.number, "reading", self.path)
        return self.file.read_at(offset, out)

    def size(self) -> int:
        if self.plan.fails("size"):
            raise fault(self.plan.number, "asking for its size", self.path)
        return self.file.size()

    def sync(self) -> None:
        if self.plan.fails("sync"):
            self.file.sync_fails()
            raise fault(self.plan.number, "syncing it", self.path)
        self.file.sync()

    def close(self) -> None:
        failing = self.plan.fails("close")
        self.file.close()
        if failing:
            raise fault(self.plan.number, "closing it", self.path)


def fault(number: int, doing: str, path: str) -> OSError:
    return faults.explain(OSError(number, os.strerror(number)), doing, path)


class MutantFiles:
    """Files that forget a sync: `keep(kind, path)` says which are done, for "sync" of a file and "sync_folder"."""

    def __init__(self, files: Any, keep: Callable[[str, str], bool]) -> None:
        self._inner, self._keep = files, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, path: str) -> Any:
        return _MutantFile(self._inner.create(path), path, self._keep)

    def open(self, path: str) -> Any:
        return _MutantFile(self._inner.open(path), path, self._keep)

    def sync_folder(self, path: str) -> None:
        if self._keep("sync_folder", path):
            self._inner.sync_folder(path)


class _MutantFile:
    def __init__(self, file: Any, path: str, keep: Callable[[str, str], bool]) -> None:
        self._inner, self._path, self._keep = file, path, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sync(self) -> None:
        if self._keep("sync", self._path):
            self._inner.sync()
