"""MPI's one-sided calls as kernels make them: by address (`intrinsics.call_int`), from the handles in the context.

Covers Get, Put, Flush, progress, and where a rank's memory is: mapped here, or at which displacement of its window.
Does not cover what is read or written (the modules beside this one). `mpi` of `onesided_python` does the same steps
with mpi4py.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import call_int
from cascade_mpi.kernels.jit import device
from cascade_mpi.kernels.probe import field, set_field

INDEX, DATA, PINS = 0, 1, 2  # the windows, as offsets from the INDEX_* fields of the context
_LARGEST_GET = 1 << 30  # an MPI count is an int; larger payloads are fetched in pieces


@device
def get(ctx, origin, nbytes, rank, offset, what):  # type: ignore[no-untyped-def]
    """Get from a rank's memory in the window `what` (INDEX, DATA, PINS)."""
    kind = field(ctx, c.BYTE)
    win = field(ctx, c.INDEX_WIN + what)
    at = displacement(ctx, c.INDEX_BASES + what, rank, offset)
    done = np.int64(0)
    while True:
        step = min(nbytes - done, _LARGEST_GET)
        rc = call_int(field(ctx, c.GET), (origin + done, step, kind, rank, at + done, step, kind, win))
        done += step
        if rc != 0 or done >= nbytes:
            return np.int64(rc)


@device
def put(ctx, origin, nbytes, rank, offset, what):  # type: ignore[no-untyped-def]
    """Put into a rank's memory in the window `what`."""
    kind = field(ctx, c.BYTE)
    win = field(ctx, c.INDEX_WIN + what)
    at = displacement(ctx, c.INDEX_BASES + what, rank, offset)
    return np.int64(call_int(field(ctx, c.PUT), (origin, nbytes, kind, rank, at, nbytes, kind, win)))


@device
def flush(ctx, rank, what):  # type: ignore[no-untyped-def]
    """Wait until everything under way to a rank in the window `what` is done."""
    return np.int64(call_int(field(ctx, c.FLUSH), (rank, field(ctx, c.INDEX_WIN + what))))


@device
def poll(ctx, s):  # type: ignore[no-untyped-def]
    """Enter MPI, so that peers' CASes on this rank's words proceed."""
    if field(ctx, c.POLL):
        call_int(
            field(ctx, c.IPROBE),
            (
                field(ctx, c.ANY_SOURCE),
                field(ctx, c.ANY_TAG),
                field(ctx, c.PROBE_COMM),
                s + c.FLAG * 8,
                s + c.STATUS * 8,
            ),
        )


@device
def failed(s, rc):  # type: ignore[no-untyped-def]
    """The outcome of a call in which MPI returned `rc`."""
    set_field(s, c.MPI_ERROR, rc)
    return np.int64(c.MPI_FAILED)


@device
def base(ctx, table, rank):  # type: ignore[no-untyped-def]
    """Where a rank's memory is mapped here, 0 if it is not."""
    return field(field(ctx, table), 2 * rank)


@device
def displacement(ctx, table, rank, offset):  # type: ignore[no-untyped-def]
    """The displacement in a rank's window of an offset in its memory."""
    return field(field(ctx, table), 2 * rank + 1) + offset
