"""A disk that records what every writer does: the contract of `cascade_mpi.segments.files` in memory.

Covers what the living see, and the trace of how it came to be. Does not cover what is there after a power loss (see
`power_loss`) nor calls that fail (see `disk_faults`).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cascade_mpi.segments import faults

ROOT = 0


class Event(NamedTuple):
    """One operation as it happened. `inode`: the file, or the folder whose names changed."""

    kind: str  # write, sync, sync failed, link, unlink, rename, folder, sync folder, note
    node: int = 0
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    name: str = ""
    child: int = 0
    other: int = 0
    new: str = ""
    note: Any = None  # of a sync: the function that called it, for mutations

    def __str__(self) -> str:
        detail = {
            "write": f"{len(self.data)} bytes at {self.offset} of file {self.inode}",
            "note": f"{self.note}",
            "sync": f"file {self.inode} in {self.note}",
            "sync folder": f"{self.inode} in {self.note}",
            "link": f"{self.name} in {self.inode} is file {self.child}",
            "folder": f"{self.name} in {self.inode} is folder {self.child}",
            "unlink": f"{self.name} in {self.inode}",
            "rename": f"{self.name} in {self.inode} to {self.new} in {self.other}",
        }.get(self.kind, f"{self.inode}")
        return f"node {self.node}: {self.kind} {detail}"


class Disk:
    """What the living see: folders, names, bytes; and the record of how it came to be."""

    def __init__(self, contents: Mapping[str, bytes] | None = None, folders: Iterable[str] = ()) -> None:
        self.trace: list[Event] = []
        self.files: dict[int, bytearray] = {}
        self.folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._next = ROOT
        for path in folders:
            self._place(path.split("/"), folder=True)
        for path, data in (contents or {}).items():
            self.files[self._place(path.split("/"), folder=False)] = bytearray(data)
        self.first_files = {number: bytes(data) for number, data in self.files.items()}  # sure when the trace begins
        self.first_folders = {number: dict(names) for number, names in self.folders.items()}

    def note(self, note: Any) -> None:
        """Something that the property wants to know the moment of: an attempt, an acknowledgement."""
        self.trace.append(Event("note", note=note))

    def number(self) -> int:
        self._next += 1
        return self._next

    def find(self, path: str) -> tuple[int, str]:
        """The folder of a path, and the name in it."""
        *above, name = path.split("/")
        if not all(part not in ("", ".", "..") for part in (*above, name)):
            raise ValueError(f"{path!r} is not a path inside the store's directory")
        folder = ROOT
        for part in above:
            folder = self.folders[folder].get(part, -1)
            if folder not in self.folders:
                raise OSError(errno.ENOTDIR if folder in self.files else errno.ENOENT, "no such folder")
        return folder, name

    def contents(self) -> dict[str, bytes]:
        """Every file that has a name now."""
        return {path: bytes(self.files[inode]) for path, inode in walk(self.folders)}

    def _place(self, parts: list[str], folder: bool) -> int:
        at = ROOT
        for position, part in enumerate(parts):
            is_folder = folder or position < len(parts) - 1
            if part not in self.folders[at]:
                self.folders[at][part] = self.number()
                if is_folder:
                    self.folders[self._next] = {}
            at = self.folders[at][part]
        return at


def walk(folders: Mapping[int, Mapping[str, int]], at: int = ROOT, above: str = "") -> Iterator[tuple[str, int]]:
    for name, inode in folders[at].items():
        if inode in folders:
            yield from walk(folders, inode, f"{above}{name}/")
        else:
            yield f"{above}{name}", inode


class RecordingFiles:
    """`Files` of one writer on a disk that others write to as well. Writers of one `node` share its page cache."""

    def __init__(self, disk: Disk, node: int = 0) -> None:
        self.disk, self.node = disk, node

    def create(self, path: str) -> RecordingFile:
        with _errors("creating it", path):
            folder, name = self.disk.find(path)
            if name in self.disk.folders[folder]:
                raise OSError(errno.EEXIST, "exists")
        inode = self.disk.number()
        self.disk.files[inode] = bytearray()
        self.disk.folders[folder][name] = inode
        self._record("link", inode=folder, name=name, child=inode)
        return RecordingFile(self, path, inode, True)

    def open(self, path: str) -> RecordingFile:
        with _errors("opening it", path):
            return RecordingFile(self, path, self._file(path), False)

    def join(self, path: str) -> RecordingFile:
        with _errors("opening it for writing", path):
            return RecordingFile(self, path, self._file(path), True)

    def rename(self, old: str, new: str) -> None:
        with _errors("renaming it", old):
            inode = self._file(old)
            (folder, name), (target, fresh) = self.disk.find(old), self.disk.find(new)
            if self.disk.folders[target].get(fresh) in self.disk.folders:
                raise OSError(errno.EISDIR, "a folder has that name")
        if (folder, name) == (target, fresh):
            return
        del self.disk.folders[folder][name]
        self.disk.folders[target][fresh] = inode
        self._record("rename", inode=folder, name=name, child=inode, other=target, new=fresh)

    def remove(self, path: str) -> None:
        with _errors("removing it", path):
            inode = self._file(path)
            folder, name = self.disk.find(path)
        del self.disk.folders[folder][name]
        self._record("unlink", inode=folder, name=name, child=inode)

    def names(self, folder: str) -> list[str]:
        with _errors("listing it", folder):
            return sorted(self.disk.folders[self._folder(folder)])

    def make_folder(self, path: str) -> None:
        with _errors("making the folder", path):
            folder, name = self.disk.find(path)
            found = self.disk.folders[folder].get(name)
            if found is not None and found not in self.disk.folders:
                raise OSError(errno.ENOTDIR, "a file has that name")
        if found is None:
            number = self.disk.number()
            self.disk.folders[number] = {}
            self.disk.folders[folder][name] = number
            self._record("folder", inode=folder, name=name, child=number)

    def sync_folder(self, path: str) -> None:
        with _errors("syncing the folder", path):
            folder = self._folder(path)
        self._record("sync folder", inode=folder, note=sys._getframe(1).f_code.co_name)

    def _folder(self, path: str) -> int:
        if not path:
            return ROOT
        folder, name = self.disk.find(path)
        number = self.disk.folders[folder].get(name, -1)
        if number not in self.disk.folders:
            raise OSError(errno.ENOTDIR if number in self.disk.files else errno.ENOENT, "no such folder")
        return number

    def _file(self, path: str) -> int:
        folder, name = self.disk.find(path)
        number = self.disk.folders[folder].get(name, -1)
        if number not in self.disk.files:
            raise OSError(errno.EISDIR if number in self.disk.folders else errno.ENOENT, "no such file")
        return number

    def _record(self, kind: str, **fields: Any) -> None:
        self.disk.trace.append(Event(kind, self.node, **fields))


class RecordingFile:
    """An open file of `RecordingFiles`."""

    def __init__(self, files: RecordingFiles, path: str, inode: int, writable: bool) -> None:
        self._files, self.path, self.inode, self._writable = files, path, inode, writable
        self._closed = False

    def __enter__(self) -> RecordingFile:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()

    def write_at(self, offset: int, *parts: Any) -> None:
        if not self._writable:
            with _errors("writing", self.path):
                raise OSError(errno.EBADF, "opened for reading")
        data = b"".join(bytes(memoryview(part).cast("B")) if memoryview(part).nbytes else b"" for part in parts)
        bytes_now = self._bytes()
        if not data:
            return
        if offset > len(bytes_now):
            bytes_now.extend(bytes(offset - len(bytes_now)))
        bytes_now[offset : offset + len(data)] = data
        self._files._record("write", inode=self.inode, offset=offset, data=data)

    def read_at(self, offset: int, out: Any) -> int:
        view, bytes_now = memoryview(out), self._bytes()
        if not view.nbytes or offset >= len(bytes_now):
            return 0
        view = view.cast("B")
        taken = min(view.nbytes, len(bytes_now) - offset)
        view[:taken] = bytes_now[offset : offset + taken]
        return taken

    def size(self) -> int:
        return len(self._bytes())

    def sync(self) -> None:
        self._bytes()
        self._files._record("sync", inode=self.inode, note=sys._getframe(1).f_code.co_name)

    def sync_fails(self) -> None:
        """What a failed sync leaves: the living still read the bytes, and nobody knows what the disk has."""
        self._files._record("sync failed", inode=self.inode)

    def close(self) -> None:
        self._closed = True

    def _bytes(self) -> bytearray:
        if self._closed:
            raise ValueError(f"{self.path}: this file is closed")
        return self._files.disk.files[self.inode]


class _errors:
    """Errors as `PosixFiles` raises them."""

    def __init__(self, doing: str, path: str) -> None:
        self.doing, self.path = doing, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise faults.explain(error, self.doing, self.path) from error
