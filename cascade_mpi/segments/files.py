"""The file system under the disk tier: what the store asks of it, and POSIX as the one that answers.

Covers the contract (`File`, `Files`) and its implementation on a directory (`PosixFiles`; `posix_file` has its files).
Does not cover what is in the files (see `format`), O_DIRECT (see `direct`) nor MPI-IO. What holds after a power loss,
and so what a caller may acknowledge, is the contract's part; `tests/unit/power_loss.py` models the worst disk that
keeps it:

- Nothing is promised about a write until `File.sync` has returned. Before, any part of it may be on the disk, in any
  order, and the size may be there without the bytes: a file of zeros.
- `File.sync` promises bytes and size, not the name. A created, renamed or removed name is promised when `sync_folder`
  of its folder has returned (of both folders when it moved, and of the parent for a new folder).
- A rename is atomic for those who look, and never loses a file whose old name was promised. Until the folder is
  synced the file may have the old name, the new one, or both.
- After a failed `File.sync` nothing is known about what was written since the last good one, and it will never be: the
  kernel may have dropped those pages and forgotten the error, so that the next sync would succeed. `PosixFiles`
  therefore fails every later sync of that handle too. Write the bytes again, into another file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from cascade_mpi.errors import DiskError, DiskGoneError, NoSuchFileError, ReadOnlyDiskError
from cascade_mpi.segments import faults
from cascade_mpi.segments.direct import DirectPath, DirectSupport, support
from cascade_mpi.segments.posix_file import PosixFile, resident_bytes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

FILE_MODE, FOLDER_MODE = 0o600, 0o700


class File(Protocol):
    """An open file. Every method may raise `DiskError`."""

    def write_at(self, offset: int, *parts: ReadableBuffer) -> None:
        """Local. Write the parts one after the other from `offset`: all of them, or an error and any part of them."""
        ...

    def read_at(self, offset: int, out: WriteableBuffer) -> int:
        """Local. Fill `out` from `offset`; the bytes read, fewer than asked for only at the end of the file."""
        ...

    def size(self) -> int:
        """Local. Bytes in the file now."""
        ...

    def sync(self) -> None:
        """Local. Bytes and size of everything written to this file so far survive a power loss when it returns."""
        ...

    def close(self) -> None:
        """Local. Promises nothing about what was not synced. A second close does nothing."""
        ...


class Files(Protocol):
    """A directory of files. Paths are relative to it, "a" or "a/b"; "" is the directory itself."""

    def create(self, path: str) -> File:
        """Local. A new file, for writing and reading, mode 0600; `FileThereError` if the name is taken."""
        ...

    def open(self, path: str) -> File:
        """Local. An existing file, for reading (it can be synced all the same); `NoSuchFileError` without one."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Local. Give a file another name, in place of a file that has it already."""
        ...

    def remove(self, path: str) -> None:
        """Local. Take a file's name away; `NoSuchFileError` if there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """Local. The names in a folder, sorted."""
        ...

    def make_folder(self, path: str) -> None:
        """Local. A new folder, mode 0700; one that is there already is right too."""
        ...

    def sync_folder(self, path: str) -> None:
        """Local. What was created, renamed and removed in the folder so far survives a power loss when it returns."""
        ...


class PosixFiles:
    """A directory of a mounted file system.

    All calls go through one descriptor of the directory, so a directory that was moved or replaced meanwhile is
    noticed (`DiskGoneError`) instead of written to. No symbolic link inside of it is followed. Thread-safe.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        make: bool = False,
        read_only: bool = False,
        direct_writes: bool = False,
        direct_reads: bool = False,
    ) -> None:
        """Open the directory; with `make`, create its last component and make that durable.

        Not its parents: a mistyped mount point would fill the disk below it. `read_only`: refuse whatever changes it.
        `direct_writes`, `direct_reads`: what `create` and `open` do unless they are told (see `direct`): large reads
        of what was read before are faster through the page cache, large writes are not.
        """
        self.root = Path(root).absolute()
        self.read_only, self.direct_writes, self.direct_reads = read_only, direct_writes, direct_reads
        self._support: DirectSupport | None = None
        if make and not read_only and not self.root.is_dir():
            self._make_root()
        self._identity = (0, 0)  # of no file
        self._root: int | None = None
        try:
            self._root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            status = os.fstat(self._root)
        except FileNotFoundError as error:
            text = f"{self.root} is not there; is the path right, and its file system mounted on this node?"
            raise NoSuchFileError(errno.ENOENT, text, str(self.root)) from error
        except NotADirectoryError as error:
            text = f"{self.root}: this is a file, or something in it is: name the directory of the store"
            raise DiskError(errno.ENOTDIR, text, str(self.root)) from error
        except PermissionError as error:
            raise faults.not_yours(error, "opening the directory", str(self.root)) from error
        except OSError as error:
            raise faults.explain(error, "opening the directory", str(self.root)) from error
        self._identity = status.st_dev, status.st_ino

    def __enter__(self) -> PosixFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Local. Let go of the directory; open files stay usable."""
        if self._root is not None:
            os.close(self._root)
            self._root = None

    @property
    def direct(self) -> DirectSupport:
        """Local. Whether files here can be read and written past the page cache, and why not. Tried once."""
        if self._support is None:
            self._support = support(self._descriptor(), self.read_only)
        return self._support

    def room(self) -> faults.Room:
        """Local. What is free in this file system. 1 statvfs."""
        with self._explained("asking for free space", ""):
            return faults.room(self._descriptor())

    def create(self, path: str, *, direct: bool | None = None) -> PosixFile:
        """Local. A new file, for writing and reading, mode 0600; `FileThereError` if the name is taken.

        `direct`: whole 4 KiB pages go past the page cache where this directory can (see `PosixFile.direct`).
        """
        self._writing("creating it", path)
        direct = self.direct_writes if direct is None else direct
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, "creating it", direct)

    def open(self, path: str, *, direct: bool | None = None) -> PosixFile:
        """Local. An existing file, for reading; `NoSuchFileError` without one. `direct`: see `create`."""
        return self._open(path, os.O_RDONLY, "opening it", self.direct_reads if direct is None else direct)

    def join(self, path: str, *, direct: bool | None = None) -> PosixFile:
        """Local. An existing file, for writing too: one that several ranks write, each its own pages. Else as `open`.

        `direct`: see `create`.
        """
        self._writing("opening it for writing", path)
        direct = self.direct_writes if direct is None else direct
        return self._open(path, os.O_RDWR, "opening it for writing", direct)

    def rename(self, old: str, new: str) -> None:
        """Local. Give a file another name, in place of a file that has it already. Durable after `sync_folder`."""
        self._writing("renaming it", old)
        with self._explained(f"renaming it to {_checked(new)}", old):
            os.rename(_checked(old), new, src_dir_fd=self._descriptor(), dst_dir_fd=self._descriptor())

    def remove(self, path: str) -> None:
        """Local. Take a file's name away; `NoSuchFileError` if there is none. Durable after `sync_folder`."""
        self._writing("removing it", path)
        with self._explained("removing it", path):
            os.unlink(_checked(path), dir_fd=self._descriptor())

    def names(self, folder: str) -> list[str]:
        """Local. The names in a folder, sorted."""
        with self._explained("listing it", folder), self._folder(folder) as descriptor:
            return sorted(os.listdir(descriptor))

    def make_folder(self, path: str) -> None:
        """Local. A new folder, mode 0700; one that is there already is right too. Durable after its parent's sync."""
        self._writing("making the folder", path)
        with self._explained("making the folder", path):
            try:
                os.mkdir(_checked(path), FOLDER_MODE, dir_fd=self._descriptor())
            except FileExistsError:
                with self._folder(path):  # a file of that name is an error
                    pass

    def sync_folder(self, path: str) -> None:
        """Local. The names in the folder survive a power loss when it returns. 1 fsync, 2 stat."""
        with self._explained("syncing the folder", path):
            with self._folder(path) as descriptor:
                os.fsync(descriptor)
            if not self._is_there():  # the names are durable, but where no later job looks
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def drop_cache(self, path: str) -> int:
        """Local. Write the file's dirty pages out and ask the kernel to forget it; the bytes it still has in memory.

        For benchmarks of cold reads. Others' mappings, and a file system's own cache, are out of reach.
        """
        with self._explained("dropping it from the page cache", path):
            descriptor = os.open(_checked(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._descriptor())
            try:
                os.fsync(descriptor)  # dirty pages would stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                return resident_bytes(descriptor)
            finally:
                os.close(descriptor)

    def _open(self, path: str, flags: int, doing: str, direct: bool) -> PosixFile:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        with self._explained(doing, path):
            descriptor = os.open(_checked(path), flags, FILE_MODE, dir_fd=self._descriptor())
        past: DirectPath | None = None
        try:
            if direct and self.direct.possible:
                with self._explained("opening it with O_DIRECT", path):
                    past = DirectPath.open(path, flags & ~(os.O_CREAT | os.O_EXCL), self._descriptor())
        except BaseException:
            os.close(descriptor)
            raise
        return PosixFile(str(self.root / path), descriptor, past, partial(self.explain, path=path))

    def _make_root(self) -> None:
        with self._explained("making the directory", ""):
            try:
                os.mkdir(self.root, FOLDER_MODE)
            except FileExistsError:
                return  # another rank was first, and syncs it; a file of that name is found when it is opened
            except FileNotFoundError as error:
                parent = self.root.parent
                raise DiskGoneError(
                    errno.ENOENT,
                    f"{self.root}: making the directory failed: {parent} is not there; is the file system mounted? "
                    f"If it is, mkdir -p {parent}",
                    str(self.root),
                ) from error
            parent_descriptor = os.open(self.root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent_descriptor)  # or a power loss takes the directory with everything in it
            finally:
                os.close(parent_descriptor)

    @contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(_checked(path) if path else ".", flags, dir_fd=self._descriptor())
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _descriptor(self) -> int:
        if self._root is None:
            raise ValueError(f"{self.root}: these files are closed")
        return self._root

    def _is_there(self) -> bool:
        """Is what we have open still what the path names? A removed directory is not."""
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.stat(self.root)
            return (status.st_dev, status.st_ino) == self._identity
        return False

    def _writing(self, doing: str, path: str) -> None:
        if self.read_only:
            where = str(self.root / path)
            remedy = "open the store for writing, which needs the directory for this job alone"
            raise ReadOnlyDiskError(errno.EROFS, f"{where}: {doing} failed: it was opened read-only; {remedy}", where)

    @contextmanager
    def _explained(self, doing: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.explain(error, doing, path) from error

    def explain(self, error: OSError, doing: str, path: str) -> DiskError:
        """Local. The error for people; whether the directory itself is gone is found out now."""
        gone = False
        if error.errno == errno.ENOENT:
            with suppress(OSError):
                gone = not self._is_there()
        where = str(self.root / path) if path else str(self.root)
        return faults.explain(error, doing, where, free=lambda: faults.room(str(self.root)), gone=gone)


def _checked(path: str) -> str:
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is not a path inside the store's directory")
    return path
