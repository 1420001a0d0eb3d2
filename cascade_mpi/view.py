"""Views: a block of the own node as a read-only array over the store's memory, pinned while it is used.

Covers the array's lifetime: the pin is held until `release`, or until the view and all arrays made from it
are gone. Does not cover how a pin works (`pins`). Reading an array after `release` or after the store was
closed is an error that cannot be caught: the memory belongs to somebody else then.
"""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.pins import Pin
from cascade_mpi.values import result_dtype


class _Memory:
    """What NumPy keeps alive as the base of a view's arrays."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (address, True)}


class View:
    """A pinned block. Use it as a context manager, or call `release`.

    Attributes: `array` (read-only, dtype and shape of the block), `nbytes`, `rank` whose memory it is.
    """

    def __init__(self, pin: Pin, address: int, nbytes: int, dtype: int, shape: tuple[int, ...]) -> None:
        self.nbytes, self.rank = nbytes, pin.manager
        memory = _Memory(address, nbytes)
        # Released with the last array that looks at the memory, should nobody do it before.
        self._release = weakref.finalize(memory, pin.release)
        self._release.atexit = False
        flat = np.asarray(memory) if nbytes else np.empty(0, np.uint8)
        self._memory = memory
        self.array: npt.NDArray[Any] = flat.view(result_dtype(dtype)).reshape(shape)
        self.array.flags.writeable = False

    @uninterrupted
    def release(self) -> None:
        """Local. Give the pin back; nothing the second time. The array must not be read any more."""
        self._release()

    def __enter__(self) -> npt.NDArray[Any]:
        return self.array

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
