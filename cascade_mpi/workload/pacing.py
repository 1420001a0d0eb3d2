"""The pace of a timed replay: when a request is due, waiting for it, and how late it was begun.

Covers one rank's clock. Does not cover the arrivals themselves (see `traces`) nor barriers (see `replay`): a
wait ends early at a time that the replay gives, so that a rank never sleeps through a meeting of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cascade_mpi.workload.tally import Tally

STEP_S = 0.5e-3  # of a sleep: between two steps MPI is entered, peers' compare-and-swaps wait for that
LATE_S = 10e-3  # a request begun up to so much after its arrival counts as in time: sleeps and schedulers are coarse


class Pace:
    """Requests are due at ``start + arrival / factor`` seconds."""

    def __init__(
        self,
        factor: float,
        progress: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._factor, self._progress, self._clock, self._sleep = factor, progress, clock, sleep
        self._start = 0.0

    def begin(self, start: float) -> None:
        """Local. The time (of the clock) at which the trace begins."""
        self._start = start

    def wait(self, arrival_s: float, until: float, stopped: Callable[[], bool], tally: Tally) -> bool:
        """Local. Sleep until a request is due: True, and its lateness is counted. 1 Iprobe for each 0.5 ms.

        False when it is not due by `until` (of the clock), or when `stopped()`.
        """
        due = self._start + arrival_s / self._factor
        began = now = self._clock()
        while now < due:
            if now >= until or stopped():
                tally.slept_ns += int((now - began) * 1e9)
                return False
            self._progress()
            self._sleep(min(STEP_S, due - now))
            now = self._clock()
        tally.slept_ns += int((now - began) * 1e9)
        if now - due > LATE_S:
            tally.add_late(int((now - due) * 1e9))
        return True
