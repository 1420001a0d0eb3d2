"""MPI's one-sided calls through mpi4py, and where a rank's memory is: the base of the calls beside this module.

Covers Get, Put, Flush, progress, addresses, and how MPI's exceptions are reported. Does not cover what is read or
written. `onesided.mpi` is the same for kernels.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mpi4py import MPI

from cascade_mpi.kernels import context as c
from cascade_mpi.layout import DESCRIPTOR_BYTES
from cascade_mpi.onesided_python.records import MPI_FAILED, Scratch, Words

if TYPE_CHECKING:
    from cascade_mpi.fabric import Fabric

LARGEST_PIECE = 1 << 30  # an MPI count is an int; larger payloads are fetched in pieces


def reporting(call: Callable[..., int]) -> Callable[..., int]:
    """Turn MPI's exceptions into the result and the scratch field by which kernels report them."""

    @functools.wraps(call)
    def reported(self: Mpi, ctx: int, s: int, *args: int) -> int:
        try:
            return call(self, ctx, s, *args)
        except MPI.Exception as error:
            Scratch(s).signed[c.MPI_ERROR] = error.Get_error_code()
            return MPI_FAILED

    return reported


class Mpi:
    """The windows and the context of one store; what MPI raises is turned into results by `reporting`."""

    def __init__(self, fabric: Fabric) -> None:
        self._windows = (fabric.index, fabric.data, fabric.pins)
        self._probe_comm = fabric.probe_comm
        self._ctx = fabric.context.ctypes.data
        self._context = Words(self._ctx, c.CONTEXT_WORDS).signed
        self._clock = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(self._field(c.CLOCK))
        self._arena_bytes = self._field(c.PAGES) * self._field(c.PAGE_BYTES)

    def _field(self, index: int) -> int:
        return self._context[index]

    def _base(self, what: int, rank: int) -> int:
        """Where a rank's memory is mapped here, 0 if it is not."""
        return int(self._windows[what].table[rank, 0])

    def _at(self, what: int, rank: int, offset: int) -> int:
        """The displacement in a rank's window of an offset in its memory."""
        return int(self._windows[what].table[rank, 1]) + offset

    def _get(self, origin: int, nbytes: int, rank: int, offset: int, what: int) -> None:
        at = self._at(what, rank, offset)
        for done in range(0, nbytes, LARGEST_PIECE):
            step = min(nbytes - done, LARGEST_PIECE)
            buffer = MPI.buffer.fromaddress(origin + done, step)
            self._windows[what].world.Get([buffer, step, MPI.BYTE], rank, [at + done, step, MPI.BYTE])

    def _put(self, origin: int, nbytes: int, rank: int, offset: int, what: int) -> None:
        buffer = MPI.buffer.fromaddress(origin, nbytes)
        target = [self._at(what, rank, offset), nbytes, MPI.BYTE]
        self._windows[what].world.Put([buffer, nbytes, MPI.BYTE], rank, target)

    def _flush(self, rank: int, what: int) -> None:
        self._windows[what].world.Flush(rank)

    def _flush_all(self, ranks: Iterable[int], what: int) -> None:
        """One Flush for each target that has something under way."""
        for rank in sorted(set(ranks)):
            self._flush(rank, what)

    def _descriptor_at(self, page: int) -> int:
        return self._field(c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES

    def _payload_at(self, page: int) -> int:
        return self._field(c.ARENA_AT) + page * self._field(c.PAGE_BYTES)

    def _enter_mpi(self) -> None:
        self._probe_comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)

    def _end(self) -> None:
        """What public calls end with, so that peers' CASes on this rank's words proceed."""
        if self._field(c.POLL):
            self._enter_mpi()
