"""What the ranks have done so far, seen by rank 0 while the replay goes on.

Covers the meeting that stands in the place of a barrier, who decides that a sample is taken, and handing it to those
who show or write it. Does not cover them (see `live`, `metrics`).

The request path pays nothing: counters are read at meetings only, at most every half second. Rank 0's clock decides,
and the decision travels with the meeting, so that all ranks take part in the same sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from cascade_mpi.job import print_error
from cascade_mpi.workload.result import Setting
from cascade_mpi.workload.server import BlockStore, Server
from cascade_mpi.workload.tally import OPERATIONS, Counts

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, slots=True)
class Sample:
    """All ranks so far: tallies [ranks, NAMES], latency bins [OPERATIONS, bins], seconds since the start."""

    setting: Setting
    tallies: Counts
    bins: Counts
    seconds: float
    final: bool = False


class Observer(Protocol):
    """Somebody on rank 0 who wants a sample from time to time."""

    name: str
    period_s: float

    def see(self, sample: Sample) -> None:
        """Local. Show or write it; OSError: it gets no more."""


class Textfile(Protocol):
    """What every rank writes by itself from time to time."""

    period_s: float

    def write(self, mine: Counts, bins: Counts) -> None:
        """Collective on whom it concerns. OSError: it is not written again."""


class Verdict(NamedTuple):
    """What a meeting decided, the same on all ranks."""

    signal: int
    """The signal that ends the replay, 0: none."""
    due: int
    """What is to be done now: `SAMPLE`, `TEXTFILE` and `FLUSH`, some of them or nothing."""
    behind: bool
    """A rank has still requests of this round."""
    urgent: bool
    """The signal does not leave time for the rest of this round."""


SAMPLE, TEXTFILE, FLUSH = 1, 2, 4


class Meeting:
    """A barrier that tells every rank what the others know."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._mine = np.zeros(4, dtype=np.int64)
        self._all = np.zeros(4, dtype=np.int64)

    def meet(self, signal: int, due: int, behind: bool, urgent: bool = False) -> Verdict:
        """Collective. 1 Allreduce of 32 bytes: no rank leaves it before all have come."""
        from mpi4py import MPI

        self._mine[:] = signal, due, behind, urgent
        self._comm.Allreduce(self._mine, self._all, MPI.MAX)
        signal, due, late, hurries = self._all.tolist()
        return Verdict(signal, due, bool(late), bool(hurries))


class Sampler:
    """Takes samples for the observers of rank 0 and lets every rank write its textfile."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        setting: Setting,
        store: BlockStore,
        server: Server,
        observers: Sequence[Observer] = (),
        textfile: Textfile | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._comm, self._setting, self._store, self._server, self._clock = comm, setting, store, server, clock
        self._observers = list(observers) if comm.rank == 0 else []
        self._textfile, self._speaks = textfile, comm.rank == 0
        self._start = clock()
        self._next = {id(observer): 0.0 for observer in self._observers}
        self._next_textfile = 0.0
        self.failures: list[str] = []
        """What could not be written, in words."""

    def begin(self, start: float) -> None:
        """Local. The time (of the clock) at which the replay started."""
        self._start = start

    def due(self) -> int:
        """Local. What rank 0 wants at this meeting; nothing on other ranks."""
        if not self._speaks:
            return 0
        now = self._clock() - self._start
        wanted = SAMPLE if any(now >= when for when in self._next.values()) else 0
        if self._textfile is not None and now >= self._next_textfile:
            self._next_textfile = now + self._textfile.period_s
            wanted |= TEXTFILE
        return wanted

    def take(self, due: int) -> None:
        """Collective. Do what a meeting decided. A sample: 1 Gather, 1 Reduce."""
        if not due:
            return
        mine, bins = self.own()
        if due & SAMPLE:
            root = self._speaks
            tallies = np.empty((self._comm.size, mine.size), dtype=np.int64) if root else None
            summed = np.empty_like(bins) if root else None
            self._comm.Gather(mine, tallies)
            self._comm.Reduce(bins, summed)
            if tallies is not None and summed is not None:
                self._show(Sample(self._setting, tallies, summed, self._clock() - self._start))
        if due & TEXTFILE:
            self._write_textfile(mine, bins)

    def finish(self, tallies: Counts, bins: Counts, seconds: float) -> None:
        """Collective when there is a textfile, else local: show the last sample, write the last textfile."""
        self._next = dict.fromkeys(self._next, 0.0)
        self._show(Sample(self._setting, tallies, bins, seconds, final=True))
        if self._textfile is not None:
            self._write_textfile(*self.own())

    def own(self) -> tuple[Counts, Counts]:
        """Local. This rank's tally and latency bins as they are now."""
        server = self._server
        server.tally.take(self._store.stats())
        return server.tally.vector(), np.stack([server.latencies[name].counts() for name in OPERATIONS])

    def _show(self, sample: Sample) -> None:
        for observer in list(self._observers):
            if sample.seconds < self._next[id(observer)]:
                continue
            self._next[id(observer)] = sample.seconds + observer.period_s
            try:
                observer.see(sample)
            except OSError as error:
                self._observers.remove(observer)
                del self._next[id(observer)]
                self.failed(f"{observer.name}: {error.strerror}: nothing more is written there")

    def _write_textfile(self, mine: Counts, bins: Counts) -> None:
        if self._textfile is None:
            return
        try:
            self._textfile.write(mine, bins)
        except OSError as error:
            self.failed(f"--prom-file {error.filename}: {error.strerror}", here=True)

    def failed(self, text: str, here: bool = False) -> None:
        """Local. Something cannot be written: said once, by rank 0 or `here`, and kept in `failures`."""
        if text not in self.failures:  # a textfile is tried again, but not complained about again
            self.failures.append(text)
            if self._speaks or here:
                print_error(text)
