"""The exceptions of Cascade: one base, texts that say what happened, with numbers, and what to do.

A miss is never an exception: it is ``None`` or ``False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade_mpi.writer import PutResult


class CascadeError(Exception):
    """Base of everything that Cascade raises on purpose."""


class ConfigError(CascadeError, ValueError):
    """A setting is unknown, malformed, or contradicts another one or this machine."""


class SeparateWorldsError(ConfigError):
    """A launcher started several processes and each of them is an MPI world of its own."""


class NotConfiguredError(CascadeError, RuntimeError):
    """The call needs a tier or feature that this store was opened without."""


class MemoryLimitError(CascadeError, MemoryError):
    """The requested arenas do not fit the memory that this node may use."""


class StoreFullError(CascadeError):
    """A block cannot be stored or protected, and nothing was changed.

    `results` has the `PutResult` of every block of the call if it was a put, in their order; else it is empty.
    """

    def __init__(self, text: str = "", *, results: Sequence[PutResult] = ()) -> None:
        super().__init__(text)
        self.results = list(results)


class KeyExistsError(CascadeError, KeyError):
    """``put(..., exists="error")`` found the key."""

    def __str__(self) -> str:
        """The text as it is: KeyError would print its repr."""
        return str(self.args[0]) if self.args else ""


class BufferSizeError(CascadeError, ValueError):
    """The caller's buffer and the block differ in size; the text has both."""


class NoPinSlotError(CascadeError):
    """All hazard slots of this rank at one manager are taken."""


class NotOnNodeError(CascadeError):
    """A zero-copy view was asked of a block in another node's memory."""


class StoreClosedError(CascadeError, RuntimeError):
    """The store was closed, or this process is a forked child of the one that opened it."""


class ProtocolError(CascadeError):
    """`check()` found a broken invariant, or the self-test found an MPI that breaks a rule the store needs."""


class DiskError(CascadeError, OSError):
    """The disk tier's directory refused something; `errno` and `filename` are the system's.

    The text says what was being done, where, with which numbers, and what to do about it.
    """

    def __str__(self) -> str:
        """The text as it is: OSError would put the number before it."""
        return str(self.strerror) if self.strerror else super().__str__()


class DiskFullError(DiskError):
    """The file system has no bytes or no inodes left."""


class DiskQuotaError(DiskError):
    """The file system has room, but not for this user, group or project."""


class DirectoryQuotaError(DiskQuotaError):
    """The store's own quota for its directory is used up; the file system may have room."""


class DiskPermissionError(DiskError, PermissionError):
    """This user may not do that there."""


class ReadOnlyDiskError(DiskError):
    """The file system is mounted read-only, or the store's directory was opened for reading."""


class DiskGoneError(DiskError):
    """The store's directory, or a file that is being written, was removed or replaced, or its server is away."""


class NoSuchFileError(DiskError, FileNotFoundError):
    """A file of the directory is not there; the directory itself is."""


class FileThereError(DiskError, FileExistsError):
    """A file that was to be created is there already."""


class DroppedError(DiskError):
    """Blocks of this call had to leave memory before they were written, and the disk refused them: they are nowhere.

    `keys` has the two 64-bit words of the key of each, and `results`, if it was a put, the `PutResult` of every block
    of the call, in their order; those of the lost ones are refused. The others are stored and durable, unless the text
    says that these are not either.
    """

    def __init__(self, number: int | None, text: str, keys: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(number, text)
        self.keys = list(keys)
        self.results: list[PutResult] = []


class StoreInUseError(CascadeError):
    """Another job writes to this directory; the text has its name."""


class LocksUnsupportedError(DiskError):
    """The file system does not keep file locks, so two jobs could write to one directory."""


class StoreIdentityError(CascadeError, ValueError):
    """A directory's STORE file is missing, damaged, or of another format version."""


class TraceError(CascadeError, ValueError):
    """A trace file is malformed; the text names file, line and field."""


class Hdf5FileError(CascadeError, ValueError):
    """An HDF5 file is none that Cascade has exported, or is damaged, or blocks in it are; these were not used."""


class DamagedError(CascadeError):
    """Bytes of a file are not what was written there, or stand where they do not belong; none of them was used.

    `path`, `offset` (bytes) and `what` are the parts of its text.
    """

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(path, offset, what)
        self.path, self.offset, self.what = path, offset, what

    def __str__(self) -> str:
        """File, byte and what is wrong there."""
        return f"{self.path} at byte {self.offset}: {self.what}"


class NotDurableError(DiskError):
    """Records that were written may not be on the disk, and never will be known to be: write them again.

    `lost` names them, as `segments.log.Lost`.
    """

    def __init__(self, number: int | None, text: str, lost: Sequence[Any] = ()) -> None:
        super().__init__(number, text)
        self.lost = lost
