"""Who replays what: a trace dealt to ranks, and what can be said about it beforehand.

Covers one pass over the requests: a rank's share of them, the totals of the trace, and how many new
blocks each rank will meet. Does not cover the store, nor what happens when ranks race.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import TraceError
from cascade_mpi.traces.request import Request


@dataclass(frozen=True, slots=True)
class Deal:
    """A trace as one rank sees it: its own requests, and the totals that are the same on every rank."""

    requests: int
    accesses: int
    unique: int
    """Distinct block ids."""
    prefix_hits: int
    """Hits of an endless cache when requests come one after another: the most that a replay can have."""
    computes: tuple[int, ...]
    """For each rank, how many blocks it is the first to need when requests come one after another."""
    longest: int
    """The most blocks of one request."""
    mine: tuple[npt.NDArray[np.uint64], ...]
    """The block ids of this rank's requests, in order."""

    @property
    def totals(self) -> tuple[int, ...]:
        """What must be equal on all ranks."""
        return (self.requests, self.accesses, self.unique, self.prefix_hits, self.longest, *self.computes)


def deal(requests: Iterable[Request], rank: int, ranks: int) -> Deal:
    """Local. Deal request i to rank ``i % ranks``; every rank goes through all of them.

    TraceError when a block id stands at two positions: then it does not name a prefix.
    """
    positions: dict[int, int] = {}
    computes = [0] * ranks
    mine: list[npt.NDArray[np.uint64]] = []
    total = accesses = hits = longest = 0
    for request in requests:
        ids = request.block_ids
        before = len(positions)
        hits += next((k for k, block in enumerate(ids) if block not in positions), len(ids))
        for position, block in enumerate(ids):
            if positions.setdefault(block, position) != position:
                raise TraceError(
                    f"request {request.index} has block id {block} at position {position}, an earlier one has it at"
                    f" position {positions[block]}: an id must stand for one prefix"
                )
        computes[request.index % ranks] += len(positions) - before
        if request.index % ranks == rank:
            mine.append(np.array(ids, dtype=np.uint64))
        total += 1
        accesses += len(ids)
        longest = max(longest, len(ids))
    return Deal(total, accesses, len(positions), hits, tuple(computes), longest, tuple(mine))
