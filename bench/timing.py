"""Timing two or more ways to do one thing so that their ratio means something on a noisy machine.

Covers interleaved samples in alternating order, and the waiting of ranks that must not disturb. Does not
cover what is timed nor what the samples are compared with (see `micro`).
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

POLL_S = 1e-3  # of a rank that waits: it enters MPI this often, and leaves its core alone in between
_ATTEMPTS = 4  # pairs that are measured at most, over pairs that count


class Operation(NamedTuple):
    """One way to do it: `prepare()` and `check(prepared)` are outside the timed part, `run(prepared)` is timed."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]
    check: Callable[[Any], None] = lambda prepared: None


class Samples(NamedTuple):
    """`seconds` is float64[pairs, operations]; in `disturbed` of the pairs the kernel took the core away."""

    seconds: npt.NDArray[np.float64]
    disturbed: int

    def medians(self) -> npt.NDArray[np.float64]:
        """Local. Seconds of each operation."""
        return np.asarray(np.median(self.seconds, axis=0))

    def ratio(self, above: int, below: int) -> float:
        """Local. The median of the pairs' own ratios: what drifts from pair to pair drops out of it."""
        return float(np.median(self.seconds[:, above] / self.seconds[:, below]))

    def only(self, *operations: int) -> Samples:
        """Local. The samples of these operations alone."""
        return Samples(self.seconds[:, operations], self.disturbed)


def interleave(operations: Sequence[Operation], pairs: int, meet: Callable[[], object] | None = None) -> Samples:
    """Local. `pairs` samples of every operation, after one untimed sample each.

    The operations take turns, in reversed order every other time: what drifts, or is left in a cache by
    the one before, meets all of them. When another process was given this core during a pair (an
    involuntary context switch), one more pair is measured, up to four times as many, and the least
    disturbed ones count; on an idle machine every pair counts. With `meet` (a barrier before each
    sample, when ranks measure at once) all ranks take exactly `pairs`.
    """
    seconds, switches = [], []
    attempts = pairs * (_ATTEMPTS if meet is None else 1)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(seconds) <= attempts and switches[1:].count(0) < pairs:
            seconds.append([0.0] * len(operations))
            switches.append(0)
            order = range(len(operations))
            for at in order if len(seconds) % 2 else reversed(order):
                prepare, run, check = operations[at]
                prepared = prepare()
                if meet is not None:
                    meet()
                before = _switches()
                began = time.perf_counter()
                run(prepared)
                seconds[-1][at] = time.perf_counter() - began
                switches[-1] += _switches() - before
                check(prepared)
    finally:
        if collecting:
            gc.enable()
    calm = np.argsort(switches[1:], kind="stable")[:pairs]  # without the first, which warmed up
    return Samples(np.array(seconds[1:])[calm], int(np.count_nonzero(np.array(switches[1:])[calm])))


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def alone(comm: MPI.Intracomm, measures: Callable[[], Any], rank: int = 0) -> Any:
    """Collective. What `measures()` gives on one rank while the others sleep; the same on all ranks."""
    comm.Barrier()
    result = measures() if comm.rank == rank else None
    meeting = comm.Ibarrier()
    while not meeting.Test():
        time.sleep(0.0 if comm.rank == rank else POLL_S)
    return comm.bcast(result, rank)
