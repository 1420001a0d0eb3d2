"""The replay itself: rounds of requests on every rank, with a meeting of all ranks after each.

Covers the order of requests, the drift bound, and the end, also an early one. Does not cover what is done for a
request (see `server`), who serves it (see `traces.deal`), what has to be agreed before (see `plan`), nor what is kept
for the next job (see `keeping`).

Ranks may not drift apart: a rank that runs ahead asks for blocks that nobody has computed yet. So a round is a run
of requests of the trace, `window` for each rank on average, and nobody begins one of the next round before all have
ended this one. On the Mooncake conversation trace the worst order within a round (nobody sees what another rank put
since the last meeting) costs at most 0.02 % of the hits with 32 requests in a round (2 to 16 ranks), 0.2 % with 64,
1 % with 128, so the default window is 32 / ranks.

Ranks also meet when a round takes long, so that Ctrl-C is answered and the view stays up to date.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from cascade_mpi.traces import Deal
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.keeping import Keeper
from cascade_mpi.workload.pacing import Pace
from cascade_mpi.workload.result import Result, Setting, distinct, gather, summarise
from cascade_mpi.workload.sampling import FLUSH, Meeting, Sampler
from cascade_mpi.workload.server import BlockStore, Ids, Server
from cascade_mpi.workload.tally import Counts

if TYPE_CHECKING:
    from mpi4py import MPI

ROUND_S = 0.5  # a meeting is held after so long at the latest, or after the request that is being served


@dataclass(slots=True)
class Progress:
    """How far this rank is in its share."""

    begun: int = 0
    """Requests of it that an earlier run has served."""
    served: int = 0
    """Requests that are done, those included."""
    partly: int = 0
    """Blocks of the next one that are done: 0 unless it was stopped."""

    def ids(self, dealt: Deal) -> Ids:
        """Local. The block ids that were accessed."""
        parts = [
            *dealt.mine[self.begun : self.served],
            *(ids[: self.partly] for ids in dealt.mine[self.served : self.served + 1]),
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


class Replay:
    """One rank's part of a replay; the same on all ranks."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        store: BlockStore,
        dealt: Deal,
        setting: Setting,
        interruption: Interruption | None = None,
        keeper: Keeper | None = None,
        known: Ids | None = None,
    ) -> None:
        """`known`: the block ids of this rank's share that are on disk already."""
        self._comm, self._dealt, self._setting = comm, dealt, setting
        self._interruption = interruption or Interruption(speaks=False)  # one that is not entered catches nothing
        self.server = Server(store, setting, dealt.longest, self._interruption.stopped)
        self._pace = None if setting.timed is None else Pace(setting.timed, store.progress)
        self._keeper, self._known = keeper, known
        begun = int(np.searchsorted(dealt.indices, setting.first))
        self._at = Progress(begun, begun)
        self.accesses = dealt.accesses
        """Of what was replayed, as the trace tells them: fewer after a signal."""
        self.signal = 0
        """The signal that ended the replay, also behind the last request; 0: none."""

    def run(self, sampler: Sampler, begin: Callable[[float], None] | None = None) -> Result:
        """Collective. Serve this rank's requests and sum up; `begin` is told the start. 1 Allreduce a round."""
        comm, setting, keeper, tally, at = self._comm, self._setting, self._keeper, self.server.tally, self._at
        meeting = Meeting(comm)
        a_round = setting.window * comm.size
        limit = setting.first + a_round  # requests of the trace before it belong to this round or an earlier one
        marked: tuple[int, Counts] = setting.first, tally.vector()  # where the last round ended, and what was done then
        flush = False
        self._interruption.replaying()
        comm.Barrier()
        start = perf_counter()
        sampler.begin(start)
        if self._pace is not None:
            self._pace.begin(start - self._passed())
        if keeper is not None:
            keeper.begin(start)
        if begin is not None:
            begin(start)
        while True:
            behind = self._serve_until(limit)
            came = perf_counter_ns()
            due = sampler.due() | (FLUSH if keeper is not None and keeper.due() else 0)
            verdict = meeting.meet(self._interruption.signal, due, behind, self._interruption.stopped())
            tally.stall_ns += perf_counter_ns() - came
            sampler.take(verdict.due & ~FLUSH)
            flush |= bool(verdict.due & FLUSH)
            if not verdict.behind:
                if keeper is not None:
                    marked = min(limit, self._dealt.requests), sampler.own()[0] if keeper.counts else tally.vector()
                if limit >= self._dealt.requests:
                    break
                if flush and keeper is not None and not verdict.signal:
                    flush = False
                    keeper.flush()
                    keeper.save(*marked, perf_counter() - start)
                limit += a_round
            if verdict.signal and (verdict.urgent or not verdict.behind):
                break
        seconds = perf_counter() - start
        self._interruption.ending()
        tallies, bins, seconds = gather(comm, *sampler.own(), seconds)
        if keeper is not None:
            keeper.save(*marked, seconds)
        unique, signal, ids = None, 0, at.ids(self._dealt)
        done = int(tallies[:, 0].sum())
        if done < self._dealt.requests:
            self.accesses, unique = comm.allreduce(ids.size), distinct(comm, ids)
        if setting.first + done < self._dealt.requests:  # a signal behind the last request changes nothing
            signal = verdict.signal
        self.signal = verdict.signal
        warm = 0 if self._known is None else distinct(comm, np.intersect1d(self._known, ids))
        sampler.finish(tallies, bins, seconds)
        return summarise(setting, tallies, bins, seconds, unique=unique, warm=warm, signal=signal)

    def _passed(self) -> float:
        """Collective. Seconds of the clock until the first request that is left, if there is one. 1 allreduce."""
        from mpi4py import MPI

        dealt, at, factor = self._dealt, self._at.begun, self._setting.timed
        if not self._setting.first or factor is None:
            return 0.0
        mine = float(dealt.arrivals[at]) / factor if at < len(dealt.arrivals) else math.inf
        first = self._comm.allreduce(mine, MPI.MIN)
        return first if first < math.inf else 0.0

    def _serve_until(self, limit: int) -> bool:
        """Serve the requests of this round; true when some are left because the round took long or was stopped."""
        dealt, at, stopped, pace = self._dealt, self._at, self._interruption.stopped, self._pace
        until = perf_counter() + ROUND_S
        while at.served < len(dealt.mine) and dealt.indices[at.served] < limit:
            if stopped():
                return True
            if pace is not None and not pace.wait(dealt.arrivals[at.served], until, stopped, self.server.tally):
                return True
            ids = dealt.mine[at.served]
            done = self.server.serve(ids)
            if done < len(ids):
                at.partly = done
                return True
            at.served += 1
            if perf_counter() >= until:  # asked behind a request, so that every round gets somewhere
                break
        return at.served < len(dealt.mine) and bool(dealt.indices[at.served] < limit)
