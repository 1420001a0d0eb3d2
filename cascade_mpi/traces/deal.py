"""Who replays what: a trace dealt to ranks, and what can be said about it beforehand.

Covers one pass over the requests: a rank's share of them, the totals of the trace, and how many new
blocks each rank will meet. Does not cover the rules that choose a rank (see `routes`), the store, nor
what happens when ranks race.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import TraceError
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.routes import Route, route_named
from cascade_mpi.traces.trace import Trace

_BEGINNING = -1  # what an id stands behind that begins a prompt


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
    """Local. Deal the requests to ranks by a rule of `routes`; every rank goes through all of them.

    requests
        A `Trace`, which says whether it knows blocks and sessions; of anything else it is taken that ids
        are those of prefixes, and that sessions are known if the first request has one.

    TraceError when a block id stands behind two others: then it does not name a prefix; or when the route
    needs sessions or blocks and the trace knows none. ConfigError when there is no such route.
    """
    requests, chosen_by = _with_route(requests, ranks, route)
    behind: dict[int, int] = {}  # the id before each one; as that one has a place of its own, so does the whole prefix
    fresh = 0  # ids that are in no other request, and so need not be remembered
    computes, assigned = [0] * ranks, [0] * ranks
    mine: list[npt.NDArray[np.uint64]] = []
    indices: list[int] = []
    arrivals: list[float] = []
    total = accesses = hits = longest = 0
    for request in requests:
        ids = request.block_ids
        if isinstance(ids, range):
            new = len(ids)
            fresh += new
        else:
            known = len(behind)
            before = _BEGINNING
            for block in ids:
                if behind.setdefault(block, before) != before:
                    _refuse(request.index, block, before, behind[block])
                before = block
            new = len(behind) - known
            hits += len(ids) - new  # behind a new id stands no known one, so these are the first
        chosen = chosen_by.choose(request)
        computes[chosen] += new
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
        unique=len(behind) + fresh,
        prefix_hits=hits,
        computes=tuple(computes),
        assigned=tuple(assigned),
        longest=longest,
        mine=tuple(mine),
        indices=np.array(indices, dtype=np.int64),
        arrivals=np.array(arrivals, dtype=np.float64),
    )


def _refuse(index: int, block: int, before: int, earlier: int) -> NoReturn:
    now = f"begins with block id {block}" if before == _BEGINNING else f"has block id {block} behind id {before}"
    then = "begins with it" if earlier == _BEGINNING else f"has it behind id {earlier}"
    raise TraceError(f"request {index} {now}, an earlier one {then}: an id must stand for one prefix")


def _with_route(requests: Iterable[Request], ranks: int, name: str) -> tuple[Iterator[Request], Route]:
    stream = iter(requests)
    if isinstance(requests, Trace):
        has_blocks, has_sessions = requests.has_blocks, requests.has_sessions
        # A recording does not say how full the last block of a lookup is.
        tokens = None if requests.format == "cascade" else requests.block_tokens
    else:
        first = next(stream, None)
        has_blocks, tokens = True, None
        has_sessions = first is not None and first.session is not None
        stream = chain(() if first is None else (first,), stream)
    return stream, route_named(name, ranks, has_blocks=has_blocks, has_sessions=has_sessions, block_tokens=tokens)
