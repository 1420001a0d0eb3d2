"""The exceptions of Cascade: one base, texts that say what happened, with numbers, and what to do.

A miss is never an exception: it is ``None`` or ``False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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


class TraceError(CascadeError, ValueError):
    """A trace file is malformed; the text names file, line and field."""
