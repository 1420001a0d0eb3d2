"""A file that has its name only when it is whole: written under another one, synced, renamed.

Covers the temporary name, what is refused before a byte is written, and the order of syncs and names. Does not cover
contents. A job that is killed leaves a file `NAME.<host>-<pid>.part`, which nothing reads and anybody may remove.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from cascade_mpi.errors import CascadeError, DiskError, FileThereError, NoSuchFileError
from cascade_mpi.segments import faults

FILE_MODE = 0o600  # blocks may be a tenant's, as in the store's own files
_ERRNO = re.compile(r"errno ?= ?(\d+)")
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES})


class PartFile:
    """The new file under its temporary name, made and empty, with a descriptor for its bytes."""

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool, remedy: str = "overwrite=True") -> None:
        """Make it, mode 0600. `remedy`: how the caller's user allows `overwrite`, for the error.

        Raises
        ------
        FileThereError
            There is a file of that name, and `overwrite` is False.
        DiskError
            The folder is not there, or no file can be made in it.
        """
        self.path, self.overwrite, self._remedy = Path(path).absolute(), overwrite, remedy
        if self.path.is_dir():
            raise DiskError(errno.EISDIR, f"{self.path} is a directory: name the file to be made in it", str(self.path))
        if self.path.is_symlink():  # the file that it points to would be replaced by a rename of the link
            self.path = Path(os.path.realpath(self.path))
        if not overwrite and self.path.exists():
            raise _there(self.path, self._remedy)
        if not self.path.parent.is_dir():
            text = f"{self.path}: there is no folder {self.path.parent}; mkdir -p {self.path.parent}"
            raise NoSuchFileError(errno.ENOENT, text, str(self.path.parent))
        self.part = self.path.with_name(f"{self.path.name}.{os.uname().nodename}-{os.getpid()}.part")
        with suppress(FileNotFoundError):
            self.part.unlink()  # of a process that had this number before
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor: int | None = os.open(self.part, flags, FILE_MODE)
        except OSError as error:
            raise self.explained(error, "making it") from error

    def write(self, offset: int, data: memoryview) -> None:
        """Local. Write bytes at an offset: all of them, or DiskError."""
        assert self._descriptor is not None
        try:
            while data.nbytes:
                taken = os.pwrite(self._descriptor, data, offset)
                data, offset = data[taken:], offset + taken
        except OSError as error:
            raise self.explained(error, f"writing {data.nbytes:,} bytes at offset {offset:,}") from error

    def commit(self) -> None:
        """Local. Give the file its name, after its bytes are on the disk; DiskError if they are not sure to be."""
        assert self._descriptor is not None
        try:
            os.fsync(self._descriptor)
            self._name()
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self.explained(error, "making it durable") from error
        self._close()

    def _name(self) -> None:
        if self.overwrite:
            self.part.replace(self.path)
            return
        try:
            os.link(self.part, self.path)  # a rename would replace a file that came meanwhile
        except FileExistsError:
            raise _there(self.path, self._remedy) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if self.path.exists():
                raise _there(self.path, self._remedy) from None
            self.part.rename(self.path)
        else:
            self.part.unlink()

    def empty(self) -> None:
        """Local. Give its room back, while it is still open; nothing after `commit`.

        A library that cannot write out what it holds cannot close the file either, and HDF5 1.10 is never the same
        again after that: on a full disk it has room now.
        """
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)

    def discard(self) -> None:
        """Local. Remove it; nothing after `commit`, nor the second time."""
        if self._descriptor is not None:
            self._close()
            with suppress(OSError):
                self.part.unlink()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):  # of a file that was synced, or is given up
                os.close(descriptor)

    def explained(self, error: Exception, doing: str) -> CascadeError:
        """Local. The error for people; of one of HDF5, which has the system's number in its text, that number's."""
        if isinstance(error, CascadeError):
            return error
        number = getattr(error, "errno", None)
        if number is None and (found := _ERRNO.search(str(error))):
            number = int(found[1])
        if number is None:
            try:
                free = f"{faults.room(str(self.path.parent))} there"
            except OSError:
                free = "how much is free there cannot be asked"
            return DiskError(errno.EIO, f"{self.path}: {doing} failed: {error} ({free})", str(self.path))
        found_errno = OSError(number, os.strerror(number))
        return faults.explain(found_errno, doing, str(self.path), free=lambda: faults.room(str(self.path.parent)))


def _there(path: Path, remedy: str) -> FileThereError:
    text = f"{path} is there already: choose another name, or allow it to be replaced ({remedy})"
    return FileThereError(errno.EEXIST, text, str(path))
