"""One open file of a POSIX directory: writes, reads, and the sync that a promise may rest on.

Covers short transfers, what a sync has to write, and what is known after one failed. Does not cover names and folders
(see `files`, which has the contract) nor alignment (see `direct`).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from cascade_mpi.config import format_size
from cascade_mpi.errors import DiskError, DiskGoneError
from cascade_mpi.kernels.file_reads import read_summed_bytes
from cascade_mpi.segments.direct import DirectPath, clip

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

Explain = Callable[[OSError, str], DiskError]  # of what was being done
_PARTS = 1000  # of one pwritev; the kernel takes 1024 (IOV_MAX)
_TRIES = 8  # of writes that take nothing and say nothing


class PosixFile:
    """An open file of `PosixFiles`. Writes and reads of several threads may overlap; sync and close may not."""

    def __init__(self, where: str, descriptor: int, past: DirectPath | None, explain: Explain) -> None:
        self._where, self._past, self._explain = where, past, explain
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

        One pwritev as a rule; more where the kernel takes a part only. Past the page cache one for the whole pages, or
        one for each MiB that must be copied for it, and one for what is before and behind them.
        """
        views = [view for view in map(_bytes, parts) if view.nbytes]
        nbytes = sum(view.nbytes for view in views)
        with self._explained(f"writing {format_size(nbytes)} at offset {offset:,}"):
            if self._past is None:
                self._write_cached(offset, views)
                return
            start, stop = self._past.write(offset, *views)
            if not stop:
                self._write_cached(offset, views)
                return
            self._write_cached(offset, clip(views, 0, start))
            self._write_cached(offset + stop, clip(views, stop))

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

    def read_summed(
        self, head_at: int, head: int, head_bytes: int, offset: int, address: int, nbytes: int, value: int
    ) -> bool:
        """Local. Read `head_bytes` from `head_at` to the address `head` and `nbytes` from `offset` to `address`.

        The checksum of the latter, which is computed on the way, goes to the address `value` (uint64). False: not all
        of it was read, or it has to go past the page cache; `read_at` says what was wrong. 2 pread for 256 KiB.
        """
        if self._past is not None or self._file is None:
            return False
        done: int = read_summed_bytes(self._file, head_at, head, head_bytes, offset, address, nbytes, value)
        return done == head_bytes + nbytes

    def read_on(self) -> None:
        """Local. Let the system read further ahead than it would of a file that nobody speaks of. Never raises."""
        if self._past is None and self._file is not None:
            with suppress(OSError):
                os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def will_need(self, offset: int, nbytes: int) -> None:
        """Local. Let the system read a range into its page cache meanwhile, if it likes. Never raises."""
        if self._past is None and self._file is not None:
            with suppress(OSError):
                os.posix_fadvise(self._file, offset, nbytes, os.POSIX_FADV_WILLNEED)

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
                raise DiskGoneError(
                    errno.ENOENT,
                    f"{self._where}: it was removed while this job wrote to it, {format_size(size)} are lost; "
                    "did somebody purge the directory, or does another job use it?",
                    self._where,
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
        views = [view for view in views if view.nbytes]  # a list of its own
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
            raise ValueError(f"{self._where}: this file is closed")
        return self._file

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explain(error, doing) from error


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
