"""Reading and writing past the page cache: O_DIRECT where the file system takes it.

Covers finding out by trying, memory that is aligned for it, and the transfer of the whole 4 KiB pages of a range. Does
not cover the rest of the range: `files` moves that through the page cache. No page is touched both ways by one write,
which is what keeps the two coherent.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

ALIGNMENT = 4096
LEAST_BYTES = 64 << 10  # below, the page cache is faster than a transfer of its own
_BOUNCE_BYTES = 1 << 20
_PARTS = 1000  # of one pwritev; the kernel takes 1024 (IOV_MAX)
_log = logging.getLogger("cascade.segments.direct")


def clip(views: Sequence[memoryview], start: int, stop: int | None = None) -> list[memoryview]:
    """Local. The bytes from `start` to before `stop` of all views together, as views that are not empty."""
    found = []
    for view in views:
        nbytes = view.nbytes
        piece = view[max(start, 0) : nbytes if stop is None else max(stop, 0)]
        if piece.nbytes:
            found.append(piece)
        start -= nbytes
        if stop is not None:
            stop -= nbytes
    return found


class DirectSupport(NamedTuple):
    """Whether a directory's files take O_DIRECT. `reason` is for people: what was tried, or what refused."""

    possible: bool
    reason: str


def aligned_buffer(nbytes: int) -> memoryview:
    """Local. `nbytes` of zeroed memory that begins at a page boundary, as O_DIRECT wants it; at least one byte."""
    return memoryview(mmap.mmap(-1, nbytes))


def is_aligned(view: memoryview) -> bool:
    """Local. Does this memory begin at a boundary of `ALIGNMENT`?"""
    return bool(np.frombuffer(view, dtype=np.uint8).ctypes.data % ALIGNMENT == 0)


def support(folder: int, read_only: bool = False) -> DirectSupport:
    """Local. Write a page past the cache in the folder of this descriptor, read it back, and remove the file again.

    1 file, which is gone when it returns. Never raises: what refuses is the reason.
    """
    if read_only:
        return DirectSupport(False, "not tried: the directory was opened read-only")
    name = f".direct-{secrets.token_hex(8)}"  # ranks try at the same time
    page = aligned_buffer(ALIGNMENT)
    page[:] = secrets.token_bytes(16) * (ALIGNMENT // 16)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECT
    try:
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)  # some file systems refuse the flag when the file is there already
        return DirectSupport(False, f"opening a file with O_DIRECT failed: {error.strerror}")
    try:
        back = aligned_buffer(ALIGNMENT)
        if os.pwrite(descriptor, page, 0) != ALIGNMENT or os.preadv(descriptor, [back], 0) != ALIGNMENT:
            return DirectSupport(False, f"a transfer of {ALIGNMENT} bytes with O_DIRECT was cut short")
        if back != page:
            return DirectSupport(False, f"{ALIGNMENT} bytes written with O_DIRECT were read back as others")
    except OSError as error:
        return DirectSupport(False, f"a transfer of {ALIGNMENT} bytes with O_DIRECT failed: {error.strerror}")
    finally:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
    return DirectSupport(True, f"{ALIGNMENT} bytes were written and read with O_DIRECT")


class DirectPath:
    """One file's way past the page cache. Thread-safe. Counts what it moved and says why it moved no more."""

    def __init__(self, descriptor: int | None, refusal: str = "") -> None:
        self._descriptor = descriptor
        self._bounce: memoryview | None = None
        self._lock = threading.Lock()  # of the bounce buffer
        self.bytes_written = 0  # past the page cache; the rest went through it
        self.bytes_read = 0
        self.refusal = refusal  # why the file system takes no more, or ""

    @classmethod
    def open(cls, path: str, flags: int, folder: int) -> DirectPath:
        """Local. The way of an existing file; a file system that refuses it for this one is a refusal, not an error."""
        try:
            return cls(os.open(path, flags | os.O_DIRECT, dir_fd=folder))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            way = cls(None)
            way._refused(f"opening {path}: {error.strerror}")
            return way

    def write(self, offset: int, *views: memoryview) -> tuple[int, int]:
        """Local. Write the whole pages of a range; the part [start, stop) of all views together that was written.

        Empty for less than `LEAST_BYTES`, and after a refusal. Views of so many bytes in aligned memory that come to a
        page's boundary are not copied, the rest is put together in a buffer. OSError as write(2) has it.
        """
        nbytes = sum(view.nbytes for view in views)
        start = -offset % ALIGNMENT
        stop = start + max(nbytes - start, 0) // ALIGNMENT * ALIGNMENT
        if self._descriptor is None or self.refusal or stop - start < LEAST_BYTES:
            return 0, 0
        done = 0
        try:
            with self._lock:
                for pages in self._gathered(clip(views, start, stop)):
                    left = pages
                    while left:  # what was taken of a page that is not whole is written again
                        taken = self._write(left, offset + start + done) // ALIGNMENT * ALIGNMENT
                        done += taken
                        left = clip(left, taken) if taken else []
                    if not taken:
                        break
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._refused(f"writing {stop - start - done} bytes at {offset + start + done}: {error.strerror}")
        self.bytes_written += done
        return (start, start + done) if done else (0, 0)

    def _gathered(self, views: list[memoryview]) -> Iterator[list[memoryview]]:
        """The same bytes in aligned memory, lists of whole pages for one write each. Each uses the buffer again."""
        bounce, pages = self._buffer(), list[memoryview]()
        begin = used = 0  # of the buffer, what is not in `pages` yet
        for view in views:
            while view.nbytes:
                if used % ALIGNMENT == 0 and view.nbytes >= LEAST_BYTES and is_aligned(view):
                    nbytes = view.nbytes // ALIGNMENT * ALIGNMENT
                    pages += [bounce[begin:used], view[:nbytes]] if used > begin else [view[:nbytes]]
                    begin = used
                else:
                    # Of what may be aligned behind the next boundary only so much is copied as leads there.
                    nbytes = min(view.nbytes, -used % ALIGNMENT or bounce.nbytes - used)
                    bounce[used : used + nbytes] = view[:nbytes]
                    used += nbytes
                view = view[nbytes:]  # noqa: PLW2901
                if used == bounce.nbytes or (used % ALIGNMENT == 0 and len(pages) >= _PARTS):
                    yield [*pages, bounce[begin:used]] if used > begin else pages
                    pages, begin, used = [], 0, 0
        if used > begin:
            pages.append(bounce[begin:used])
        if pages:
            yield pages

    def read(self, offset: int, view: memoryview) -> int:
        """Local. Fill the beginning of `view` from a file; the bytes read, the rest is for the page cache to find out.

        Moves whole pages, so up to two more than were asked for. 0 for less than `LEAST_BYTES`, and after a refusal.
        """
        if self._descriptor is None or self.refusal or view.nbytes < LEAST_BYTES:
            return 0
        done = 0
        try:
            if offset % ALIGNMENT == 0 and is_aligned(view):
                whole = view.nbytes // ALIGNMENT * ALIGNMENT
                while taken := os.preadv(self._descriptor, [view[done:whole]], offset + done) if done < whole else 0:
                    done += taken
                    if taken % ALIGNMENT:
                        break  # the end of the file
                if done < whole:
                    return self._read(done)
            with self._lock:
                bounce = self._buffer()
                while done < view.nbytes:
                    skip = (offset + done) % ALIGNMENT
                    wanted = min(-(-(skip + view.nbytes - done) // ALIGNMENT) * ALIGNMENT, bounce.nbytes)
                    taken = os.preadv(self._descriptor, [bounce[:wanted]], offset + done - skip)
                    useful = min(max(taken - skip, 0), view.nbytes - done)
                    view[done : done + useful] = bounce[skip : skip + useful]
                    done += useful
                    if taken < wanted:
                        break
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._refused(f"reading at {offset + done}: {error.strerror}")
        return self._read(done)

    def close(self) -> None:
        """Local. A second close does nothing."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _write(self, pages: list[memoryview], offset: int) -> int:
        """Whole pages that were taken. A page that was taken in part is written again, through the page cache."""
        assert self._descriptor is not None
        if len(pages) == 1:
            return os.pwrite(self._descriptor, pages[0], offset) // ALIGNMENT * ALIGNMENT
        return os.pwritev(self._descriptor, pages, offset) // ALIGNMENT * ALIGNMENT

    def _read(self, nbytes: int) -> int:
        self.bytes_read += nbytes
        return nbytes

    def _refused(self, reason: str) -> None:
        self.refusal = reason
        _log.warning("O_DIRECT was refused, the page cache is used from here on: %s", reason)

    def _buffer(self) -> memoryview:
        if self._bounce is None:
            self._bounce = aligned_buffer(_BOUNCE_BYTES)
        return self._bounce
