"""A directory whose new files are written with MPI's non-blocking writes, behind the contract of `segments.files`.

Covers creating with hints, writes that go on while the caller does, and their late errors. Reads, names and folders are
those of `PosixFiles`: MPI has none of the last two, and nothing better for the first. Does not cover files that several
ranks write (see `shared`).

What differs from the contract's other files: `write_at` may return before anything was written, so an error may come
late, from a later write, `size` or `sync` of that file. It comes from each of them, for ever: nothing that was
written since the last good sync counts then. A log learns of it at its next sync, as of a failed sync.

MPI's own sync is not enough: ROMIO leaves its fsync out when it thinks that nothing was written, and it does not know
of non-blocking writes (MPICH 5.0: none is made). So a file is synced through a descriptor of its own too, opened before
the first write, as the system tells errors of writing back only to those who had it open.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from mpi4py import MPI

from cascade_mpi.errors import DiskError
from cascade_mpi.mpiio.hints import info_of, own_hints, taken_of
from cascade_mpi.mpiio.in_flight import InFlight
from cascade_mpi.mpiio.refusals import as_os_error
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.posix_file import PosixFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

LIMIT_BYTES = 64 << 20
PATIENCE_S = 2.0
PIECE_BYTES = 16 << 20  # of one write: how much is waited for, and kept in memory, at once
LEAST_BORROWED = 64 << 10  # below, a copy is cheaper than a write of its own


class MpiFiles(PosixFiles):
    """A directory of a mounted file system, written through MPI. Thread-safe, where MPI's thread level allows it.

    limit_bytes
        What may be under way at a time, of all files; more waits for the oldest.
    borrow
        False: what is written was copied when `write_at` returns. True: parts of 64 KiB and more are not copied, and
        must not change before the write has ended: when `ended` is no less than `started` was after it, or the file was
        synced.
    lock
        What to hold while MPI is called, if its thread level is below MPI_THREAD_MULTIPLE.
    patience_s
        When a write that does not end is given up and made again without MPI; see `in_flight`.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, make: bool = False, hints: Mapping[str, str] | None = None,
        limit_bytes: int = LIMIT_BYTES, borrow: bool = False, lock: threading.RLock | None = None,
        patience_s: float = PATIENCE_S, direct_reads: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(root, make=make, direct_reads=direct_reads)
        self.hints = own_hints() if hints is None else dict(hints)
        self.taken: dict[str, str] = {}  # by the file that was created last
        self.borrow = borrow
        self.in_flight = InFlight(limit_bytes, patience_s, lock)

    @property
    def started(self) -> int:
        """Local. The ticket of the write that was started last."""
        return self.in_flight.started

    @property
    def ended(self) -> int:
        """Local. The ticket up to which all writes have ended, well or not: their memory is free. Does not wait."""
        return self.in_flight.poll()

    def drain(self) -> None:
        """Local. Wait until all writes have ended. Their errors come from the files' next call."""
        self.in_flight.drain()

    def create(self, path: str, *, direct: bool | None = None) -> MpiFile:  # type: ignore[override]
        """Local. A new file, for writing and reading, mode 0600; `FileThereError` if the name is taken.

        `direct` is taken and not heeded: MPI has no way past the page cache.
        """
        del direct
        with self.in_flight.lock:
            file = open_new(self, path, self.hints)
            try:
                self.taken = taken_of(file)
                return MpiFile(self, path, file, self.join(path, direct=False))
            except BaseException:
                file.Close()
                raise


class MpiFile:
    """An open file of `MpiFiles`. For one thread at a time. A `segments.files.File`."""

    def __init__(self, files: MpiFiles, path: str, file: MPI.File, posix: PosixFile) -> None:
        self._files, self._path, self._file, self._posix = files, path, file, posix
        self._failed: OSError | None = None
        self._closed = False

    def __enter__(self) -> MpiFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write_at(self, offset: int, *parts: ReadableBuffer) -> None:
        """Local. Start writing the parts one after the other from `offset`; DiskError if this or an earlier one failed.

        1 Iwrite_at for each 16 MiB, one more where a part of 64 KiB or more begins. Waits where too much is under way.
        """
        self._check()
        small: list[memoryview] = []
        for part in parts:
            view = memoryview(part)
            if not view.nbytes:
                continue
            view = view.cast("B")
            if view.nbytes < LEAST_BORROWED:
                small.append(view)
                continue
            offset = self._start(offset, b"".join(small))
            small.clear()
            for at in range(0, view.nbytes, PIECE_BYTES):
                piece = view[at : at + PIECE_BYTES]
                offset = self._start(offset, piece if self._files.borrow else bytes(piece))
        self._start(offset, b"".join(small))
        self._check()

    def read_at(self, offset: int, out: WriteableBuffer) -> int:
        """Local. Fill `out` from `offset`, when all writes have ended; the bytes read."""
        self._settle()
        return self._posix.read_at(offset, out)

    def size(self) -> int:
        """Local. Bytes in the file, when all writes have ended."""
        self._settle()
        return self._posix.size()

    def sync(self) -> None:
        """Local. All writes have ended, and their bytes and the size survive a power loss, when it returns.

        MPI's sync and an fsync. DiskError for a write that failed since the last good one; it fails for ever then.
        """
        self._files.in_flight.drain()  # of all files: Open MPI syncs none while a write of another is under way
        self._check()
        try:
            with self._files.in_flight.lock:
                self._file.Sync()
        except MPI.Exception as error:
            self.note(as_os_error(error))
            self._check()
        try:
            self._posix.sync()
        except OSError as error:
            self.note(error)
            raise

    def close(self) -> None:
        """Local. Promises nothing about what was not synced. A second close does nothing."""
        if self._closed:
            return
        self._closed = True
        flight = self._files.in_flight
        flight.drain(self)
        try:
            if not flight.holds(self):  # else a write that was given up could end in another file with its descriptor
                with flight.lock:
                    self._file.Close()
        except MPI.Exception as error:
            raise self._files.explain(as_os_error(error), "closing it", self._path) from error
        finally:
            self._posix.close()

    # ------------------------------------------------------------------------ for `in_flight`, with its lock held

    def begin(self, offset: int, buffer: memoryview) -> _Request:
        """Local. Start one write."""
        try:
            return _Request(self._file.Iwrite_at(offset, buffer))
        except MPI.Exception as error:
            raise self._files.explain(as_os_error(error), f"writing at offset {offset:,}", self._path) from error

    def repair(self, offset: int, buffer: memoryview) -> None:
        """Local. Write without MPI what MPI has not written."""
        self._posix.write_at(offset, buffer)

    def note(self, error: OSError) -> None:
        """Local. Remember why this file is lost."""
        self._failed = self._failed or error

    def _start(self, offset: int, buffer: bytes | memoryview) -> int:
        if buffer:
            self._files.in_flight.start(self, offset, memoryview(buffer))
        return offset + len(buffer)

    def _settle(self) -> None:
        self._files.in_flight.drain(self)
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise ValueError(f"{self._path}: this file is closed")
        if self._failed is None:
            return
        if isinstance(self._failed, DiskError):  # a new one each time: an exception carries its traceback
            raise type(self._failed)(self._failed.errno, str(self._failed), self._failed.filename) from self._failed
        raise self._files.explain(self._failed, "writing or syncing it", self._path) from self._failed


class _Request:
    """A non-blocking write of MPI."""

    def __init__(self, request: MPI.Request) -> None:
        self._request = request
        self._status = MPI.Status()
        self._nbytes: int | None = None

    def done(self) -> int | None:
        """Local. The bytes written, None while it is under way, -1 if it has failed."""
        if self._nbytes is None:
            try:
                # Not Test: Open MPI 5.0 crashes when it has to report the error of a file's request.
                if not self._request.Get_status(self._status):
                    return None
                self._nbytes = -1 if self._status.Get_error() else int(self._status.Get_count(MPI.BYTE))
            except MPI.Exception:
                self._nbytes = -1
        return self._nbytes

    def free(self) -> None:
        """Local. Let MPI forget it, once it has ended: Open MPI syncs no file while it knows of any write."""
        with suppress(MPI.Exception):  # of a write whose error is known
            self._request.Free()  # not Wait, for the same reason as above


def open_new(files: PosixFiles, path: str, hints: Mapping[str, str]) -> MPI.File:
    """Local. Create a file, mode 0600, with MPI: a file system stripes by hints only what MPI has created.

    `FileThereError` if the name is taken. 1 File.Open, 1 open and close.
    """
    where = str(files.root / path)
    old = os.umask(0o077)  # of the process: MPI takes no mode. For a moment, and never wider than it was meant
    try:
        with info_of(hints) as info:
            mode = MPI.MODE_CREATE | MPI.MODE_EXCL | MPI.MODE_WRONLY
            file = MPI.File.Open(MPI.COMM_SELF, where, mode, info)
    except MPI.Exception as error:
        reason = as_os_error(error)
        if reason.errno == errno.EIO:  # ask the system, which knows why
            files.create(path).close()
            files.remove(path)
        raise files.explain(reason, "creating it", path) from error
    finally:
        os.umask(old)
    try:
        files.open(path, direct=False).close()  # by the directory's descriptor: no other one has taken its place
    except BaseException:
        file.Close()
        raise
    return file
