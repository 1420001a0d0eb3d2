"""What a replay keeps for the next job: blocks on disk, and how far it has come.

Covers flushing from time to time, draining when the time is up, and the file of the state. Does not cover the calls of
the store that do it (`Store.flush`, `Store.drain`), when a signal ends the replay (see `interrupt`), nor how long there
is time (see `walltime`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade_mpi.errors import DiskError
from cascade_mpi.job import print_error
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.state import State
from cascade_mpi.workload.tally import DISK, Counts
from cascade_mpi.workload.walltime import Grace, grace

if TYPE_CHECKING:
    from mpi4py import MPI

    from cascade_mpi.store import Store


class Keeper:
    """One rank's part; the same on all ranks."""

    def __init__(
        self, comm: MPI.Intracomm, store: Store, *, every: float | None = None, grace_s: float | None = None,
        state: State | None = None, path: Path | None = None, failed: Callable[[str], None] = print_error,
    ) -> None:  # fmt: skip
        """`every`: seconds between two flushes, 0: at the end only. `state` and `path` are of the file, where there is.

        `failed` is told by rank 0 what could not be done.
        """
        self._comm, self._store = comm, store
        self.writes = store.config.disk is not None and store.config.disk_mode == "write"
        self._every, self._grace_s = every, grace_s
        self.state, self._before, self._path, self.failed = state, state, path, failed
        self._flushed_at = 0.0

    @property
    def counts(self) -> bool:
        """Local. Whether `save` wants a tally."""
        return self._before is not None

    def begin(self, start: float) -> None:
        """Local. The replay begins at this time of `perf_counter`."""
        self._flushed_at = start

    def due(self) -> bool:
        """Local. Whether rank 0 wants a flush when this round has ended; False on other ranks."""
        return bool(
            self._comm.rank == 0 and self.writes and self._every and perf_counter() - self._flushed_at >= self._every
        )

    def flush(self) -> None:
        """Collective. Make everything durable; what is refused is said, and the replay goes on."""
        self._flushed_at = perf_counter()
        try:
            self._store.flush()
        except DiskError as error:  # on all ranks
            if self._comm.rank == 0:
                self.failed(f"flush: {error}")

    def save(self, position: int, mine: Counts, seconds: float) -> None:
        """Collective with a file of the state: note how far this run has come, with this rank's tally. 1 gather."""
        if self._before is None:
            return
        tallies = self._comm.gather(mine)
        if tallies is None:
            return
        self.state = self._before.after(position, np.stack(tallies), seconds)
        try:
            if self._path is not None:
                self.state.write(self._path)
        except OSError as error:
            self.failed(f"--state {self._path}: {error.strerror}")

    def end(self, signal: int, interruption: Interruption) -> dict[str, float] | None:
        """Collective. The replay is over: flush if that was asked for, drain after a signal: what that did."""
        if not self.writes:
            return None
        if signal:
            return self._drain(signal, interruption)
        if self._every is not None:
            self.flush()
        return None

    def on_disk(self) -> dict[str, int] | None:
        """Collective. What all ranks have on disk, and what went there and came back; None without a disk tier."""
        if self._store.config.disk is None:
            return None
        found = self._store.stats()["disk"]
        totals = self._comm.allreduce(np.array([int(found.get(theirs, 0)) for theirs in DISK.values()], np.int64))
        return dict(zip(DISK, totals.tolist(), strict=True))

    def _drain(self, signal: int, interruption: Interruption) -> dict[str, float] | None:
        """Rank 0 asks how much time there is; ranks that no signal has reached count from now."""
        spent = self._comm.allreduce(interruption.since(), max_of())
        found = self._comm.bcast(self._grace(signal) if self._comm.rank == 0 else None)
        left = max(found.seconds - spent, 0.0) if self._grace_s is not None else found.seconds
        interruption.draining(
            left, f"writing what is in memory to {self._store.config.disk}, for {left:.1f} s at most ({found.reason})"
        )
        try:
            done = self._store.drain(left)
        except DiskError as error:  # on all ranks
            if self._comm.rank == 0:
                self.failed(f"drain: {error} ({'; '.join(error.__notes__)})")
            return None
        return done._asdict()

    def _grace(self, signal: int) -> Grace:
        if self._grace_s is not None:
            return Grace(self._grace_s, "--grace")
        return grace(signal, os.environ)


def max_of() -> Any:
    """Local. MPI's maximum: importing this module does not start MPI."""
    from mpi4py import MPI

    return MPI.MAX


def shown(state: State | None) -> dict[str, float] | None:
    """Local. The sums over all runs as the result has them; None if this is the only one."""
    if state is None or state.runs < 2:
        return None
    record = asdict(state)
    return {"runs": state.runs, "position": state.position, "seconds": state.seconds, **record["counts"]}
