"""The file system under the disk tier: what the store asks of it, and POSIX as the one that answers.

Covers the contract (`File`, `Files`), its implementation on a directory (`PosixFiles`), and errors for people. Does
not cover what is in the files (see `record`, `footer`), O_DIRECT (see `direct`) nor MPI-IO. What holds after a power
loss, and so what a caller may acknowledge, is the contract's part; `tests/unit/power_loss.py` models the worst disk
that keeps it:

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

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cascade_mpi.config import format_size
from cascade_mpi.errors import DiskError, DiskGoneError, NoSuchFileError, ReadOnlyDiskError
from cascade_mpi.segments import faults
from cascade_mpi.segments.direct import DirectPath, DirectSupport, support

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

FILE_MODE, FOLDER_MODE = 0o600, 0o700
_PARTS = 1000  # of one pwritev; the kernel takes 1024 (IOV_MAX)
_TRIES = 8  # of writes that take nothing and say nothing


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
        return PosixFile(self, path, descriptor, past)

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


class PosixFile:
    """An open file of `PosixFiles`. Writes and reads of several threads may overlap; sync and close may not."""

    def __init__(self, files: PosixFiles, path: str, descriptor: int, past: DirectPath | None) -> None:
        self._files, self._path, self._past = files, path, past
        self._file: int | None = descriptor
        self._synced_size = -1  # a new file's size is not on the disk, not even 0
        self._lost: str | None = None

    def __enter__(self) -> PosixFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def direct(self) -> DirectPath | None:
        """Local. What goes past the page cache, how much so far, and why no more; None: not asked or not possible."""
        return self._past

    def write_at(self, offset: int, *parts: ReadableBuffer) -> None:
        """Local. Write the parts one after the other from `offset`: all of them, or an error and any part of them.

        One pwritev as a rule; more where the kernel takes a part only.
        """
        views = [view for view in map(_bytes, parts) if view.nbytes]
        nbytes = sum(view.nbytes for view in views)
        with self._explained(f"writing {format_size(nbytes)} at offset {offset:,}"):
            if self._past is None:
                self._write_cached(offset, views)
                return
            for view in views:  # each has its own alignment
                start, stop = self._past.write(offset, view)
                self._write_cached(offset, [view[:start]])
                self._write_cached(offset + stop, [view[stop:]])
                offset += view.nbytes

    def read_at(self, offset: int, out: WriteableBuffer) -> int:
        """Local. Fill `out` from `offset`; the bytes read, fewer than asked for only at the end of the file."""
        view = _bytes(out)
        done = 0
        with self._explained(f"reading {format_size(view.nbytes)} at offset {offset:,}"):
            if self._past is not None:
                done = self._past.read(offset, view)
            while done < view.nbytes:
                taken = os.preadv(self._descriptor(), [view[done:]], offset + done)
                if not taken:
                    break
                done += taken
        return done

    def size(self) -> int:
        """Local. Bytes in the file now. 1 fstat."""
        with self._explained("asking for its size"):
            return os.fstat(self._descriptor()).st_size

    def sync(self) -> None:
        """Local. Bytes and size of everything written so far survive a power loss when it returns.

        fdatasync when the size is what it was at the last sync, else fsync: the inode has to be written anyhow, and
        fsync does not leave it to the file system to know that a size is data. 2 fstat more; one sees a file that has
        lost its name meanwhile: its bytes would be durable, and gone. After a failure it fails for ever.
        """
        with self._explained("syncing it"):
            if self._lost is not None:
                raise OSError(errno.EIO, f"an earlier sync failed ({self._lost}), so its bytes may be lost")
            descriptor = self._descriptor()
            size = os.fstat(descriptor).st_size
            try:
                if size == self._synced_size:
                    os.fdatasync(descriptor)
                else:
                    os.fsync(descriptor)
            except OSError as error:
                self._lost = error.strerror or str(error)
                with suppress(OSError):
                    # What is not on the disk may still be in the page cache, and look written to a later job of this
                    # node: it is to read the disk.
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                raise
            self._synced_size = size
            if os.fstat(descriptor).st_nlink == 0:
                where = str(self._files.root / self._path)
                raise DiskGoneError(
                    errno.ENOENT,
                    f"{where}: it was removed while this job wrote to it, {format_size(size)} are lost; "
                    "did somebody purge the directory, or does another job use it?",
                    where,
                )

    def close(self) -> None:
        """Local. Promises nothing about what was not synced. A second close does nothing."""
        descriptor, self._file = self._file, None
        if descriptor is None:
            return
        with self._explained("closing it"):
            try:
                os.close(descriptor)  # closed even if it raises
            finally:
                if self._past is not None:
                    self._past.close()

    def _write_cached(self, offset: int, views: list[memoryview]) -> None:
        idle = 0
        views = [view for view in views if view.nbytes]
        while views:
            taken = os.pwritev(self._descriptor(), views[:_PARTS], offset)
            idle = 0 if taken else idle + 1
            if idle == _TRIES:
                raise OSError(errno.EIO, f"{_TRIES} writes took nothing and reported no error")
            offset += taken
            while views and taken >= views[0].nbytes:
                taken -= views.pop(0).nbytes
            if taken:
                views[0] = views[0][taken:]

    def _descriptor(self) -> int:
        if self._file is None:
            raise ValueError(f"{self._files.root / self._path}: this file is closed")
        return self._file

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._files.explain(error, doing, self._path) from error


def resident_bytes(descriptor: int) -> int:
    """Local. How many bytes of an open file the page cache has now. Maps the file; reads nothing. 1 mincore."""
    size = os.fstat(descriptor).st_size
    if not size:
        return 0  # cannot be mapped
    seen = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
        pages = np.frombuffer(mapped, np.uint8)
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        mincore.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
        failed = mincore(pages.ctypes.data, size, seen.ctypes.data)
        del pages  # a mapping that is looked at cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return min(int((seen & 1).sum()) * mmap.PAGESIZE, size)


def _bytes(buffer: ReadableBuffer) -> memoryview:
    view = memoryview(buffer)
    # cast() refuses a shape with a zero in it, and what is not contiguous: a copy there would be silent
    return view.cast("B") if view.nbytes else memoryview(b"")


def _checked(path: str) -> str:
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is not a path inside the store's directory")
    return path
