"""Who replays what: a trace dealt to ranks, and what can be said about it beforehand.

Covers one pass over the requests: a rank's share of them, the totals of the trace, and how many new
blocks each rank will meet. Does not cover the rules that choose a rank (see `routes`), the store, nor
what happens when ranks race.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import ConfigError, TraceError
from cascade_mpi.traces.request import Request

ROUTES = ("round-robin", "session", "prefix")


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
    assigned: tuple[int, ...]
    """For each rank, how many requests it serves."""
    longest: int
    """The most blocks of one request."""
    mine: tuple[npt.NDArray[np.uint64], ...]
    """The block ids of this rank's requests, in order."""
    indices: npt.NDArray[np.int64]
    """The numbers in the trace of this rank's requests."""
    arrivals: npt.NDArray[np.float64]
    """When they arrive, seconds after the trace began."""

    @property
    def totals(self) -> tuple[int, ...]:
        """What must be equal on all ranks."""
        counts = (self.requests, self.accesses, self.unique, self.prefix_hits, self.longest)
        return (*counts, *self.computes, *self.assigned)


def deal(requests: Iterable[Request], rank: int, ranks: int, route: str = "round-robin") -> Deal:
    """Local. Deal the requests to ranks, request i to rank ``i % ranks``; every rank goes through all of them.

    TraceError when a block id stands at two positions: then it does not name a prefix.
    """
    if route not in ROUTES:
        raise ConfigError(f"route {route!r}: it must be one of {', '.join(ROUTES)}")
    if route != "round-robin":
        raise ConfigError(f"route {route!r} is not there yet")
    positions: dict[int, int] = {}
    computes, assigned = [0] * ranks, [0] * ranks
    mine: list[npt.NDArray[np.uint64]] = []
    indices: list[int] = []
    arrivals: list[float] = []
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
        chosen = request.index % ranks
        computes[chosen] += len(positions) - before
        assigned[chosen] += 1
        if chosen == rank:
            mine.append(np.array(ids, dtype=np.uint64))
            indices.append(request.index)
            arrivals.append(request.timestamp_s)
        total += 1
        accesses += len(ids)
        longest = max(longest, len(ids))
    return Deal(
        requests=total,
        accesses=accesses,
        unique=len(positions),
        prefix_hits=hits,
        computes=tuple(computes),
        assigned=tuple(assigned),
        longest=longest,
        mine=tuple(mine),
        indices=np.array(indices, dtype=np.int64),
        arrivals=np.array(arrivals, dtype=np.float64),
    )
