"""Timing two or more ways to do one thing so that their ratio means something on a noisy machine.

Covers interleaved samples in alternating order, and the waiting of ranks that must not disturb. Does not
cover what is timed nor what the samples are compared with (see `micro`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

POLL_S = 1e-3  # of a rank that waits: it enters MPI this often, and leaves its core alone in between


class Operation(NamedTuple):
    """One way to do it: `prepare()` and `check(prepared)` are outside the timed part, `run(prepared)` is timed."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]
    check: Callable[[Any], None] = lambda prepared: None


def _nothing() -> None:
    """No meeting before a sample."""


def interleave(
    operations: Sequence[Operation], pairs: int, meet: Callable[[], object] = _nothing
) -> npt.NDArray[np.float64]:
    """Local. Seconds of `pairs` samples of every operation, float64[pairs, operations], after one untimed sample each.

    The operations take turns, in reversed order every other time: what drifts, or is left in a cache by
    the one before, meets all of them. `meet` is called before each sample (a barrier, when ranks measure
    at once).
    """
    seconds = np.empty((pairs, len(operations)))
    collecting = gc.isenabled()
    gc.disable()
    try:
        for pair in range(-1, pairs):
            order = range(len(operations))
            for at in order if pair % 2 else reversed(order):
                prepare, run, check = operations[at]
                prepared = prepare()
                meet()
                began = time.perf_counter()
                run(prepared)
                ended = time.perf_counter()
                check(prepared)
                if pair >= 0:
                    seconds[pair, at] = ended - began
    finally:
        if collecting:
            gc.enable()
    return seconds


def alone(comm: MPI.Intracomm, measures: Callable[[], Any], rank: int = 0) -> Any:
    """Collective. What `measures()` gives on one rank while the others sleep; the same on all ranks."""
    comm.Barrier()
    result = measures() if comm.rank == rank else None
    meeting = comm.Ibarrier()
    while not meeting.Test():
        time.sleep(0.0 if comm.rank == rank else POLL_S)
    return comm.bcast(result, rank)
