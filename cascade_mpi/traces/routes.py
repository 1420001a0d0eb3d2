"""Rules that choose the rank of a request: in turn, by session, or by prefix.

Covers the rules, as functions of the requests seen so far: deterministic, the same on every rank, one
pass, nothing random and no hash. Does not cover what follows from a choice (see `deal`).

A rank's load is the input and output tokens of the requests that it was given so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cascade_mpi.errors import ConfigError, TraceError
from cascade_mpi.traces.request import Request

MAX_LOAD = 1.25  # times the mean load: a rank above it gets no request for the sake of its prefix


class Route(Protocol):
    """One rule, with what it remembers."""

    def choose(self, request: Request) -> int:
        """Local. The rank of the next request of the trace."""


class RoundRobin:
    """Request i goes to rank ``i % ranks``."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def choose(self, request: Request) -> int:
        """Local. The next one in turn."""
        return request.index % self._ranks


class BySession:
    """All requests of a session go to one rank.

    A session gets the rank with the least load when its first request comes, the lowest of several. A
    request that names no session, in a trace whose others do, is a session of its own.
    """

    def __init__(self, ranks: int, session_of: Callable[[Request], object | None]) -> None:
        self._session_of = session_of
        self._ranks: dict[object, int] = {}
        self._load = [0] * ranks

    def choose(self, request: Request) -> int:
        """Local. The session's rank."""
        session = self._session_of(request)
        rank = None if session is None else self._ranks.get(session)
        if rank is None:
            rank = self._load.index(min(self._load))
            if session is not None:
                self._ranks[session] = rank
        self._load[rank] += request.input_tokens + request.output_tokens
        return rank


class Continuations:
    """Sessions of a trace that names none, from its prefixes.

    A request continues an earlier one, and belongs to its session, when it holds the last whole block of
    that request's input and

    - that block came new with that request. So it lies behind all that was shared until then: a system
      prompt alone never makes a session;
    - no request before has continued it with whole blocks of its own. So a block that turns out to be
      shared after all (the first request of a system prompt that asked next to nothing) misleads once,
      and what branches off (a second answer, a sub-agent) is a session of its own.

    Of several such requests the one with the longest input counts. All others begin a session. Whole
    blocks are those that the input fills; the last id of an input that ends within a block stands for
    that request alone.
    """

    def __init__(self, block_tokens: int | None = None) -> None:
        """`block_tokens`: of the trace; None: as many as make the number of ids fit."""
        self._block_tokens = block_tokens
        self._ends: dict[int, int] = {}  # last whole block of requests that may be continued, and their session
        self._seen: set[int] = set()
        self._sessions = 0

    def session_of(self, request: Request) -> int:
        """Local. The number of its session, counted from 0 in the order of first requests."""
        whole = self._whole(request)
        known = next((k for k, block in enumerate(whole) if block not in self._seen), len(whole))
        end = next((block for block in reversed(whole[:known]) if block in self._ends), None)
        if end is None:
            session, self._sessions = self._sessions, self._sessions + 1
        else:
            session = self._ends[end]
            if whole[-1] != end:
                del self._ends[end]
        if known < len(whole):
            self._ends[whole[-1]] = session
            self._seen.update(whole[known:])
        return session

    def _whole(self, request: Request) -> tuple[int, ...] | range:
        ids = request.block_ids
        filled = request.input_tokens == len(ids) * self._block_tokens if self._block_tokens else False
        return ids if filled else ids[:-1]


class ByPrefix:
    """A request goes to the rank that served the longest part of its prefix, if that is not too busy.

    Of the ranks whose load is at most `MAX_LOAD` times the mean (of all ranks, this request counted in),
    the one that was given a request with the longest common prefix, in whole ids; of several, and where
    none has any, the one with the least load; of several, the lowest. The least loaded rank is never
    above the mean, so there always is one, and no rank's load ever exceeds `MAX_LOAD` times the mean by
    more than one request.
    """

    def __init__(self, ranks: int) -> None:
        self._load = [0] * ranks
        self._served: dict[int, int] = {}  # of each block id, the ranks that served it as bits

    def choose(self, request: Request) -> int:
        """Local. The rank for it."""
        load, served, ids = self._load, self._served, request.block_ids
        tokens = request.input_tokens + request.output_tokens
        limit = MAX_LOAD * (sum(load) + tokens) / len(load)
        allowed = sum(1 << rank for rank, given in enumerate(load) if given <= limit)
        known = next((k for k, block in enumerate(ids) if block not in served), len(ids))
        fitting = next((bits for block in reversed(ids[:known]) if (bits := served[block] & allowed)), allowed)
        chosen = min((given, rank) for rank, given in enumerate(load) if fitting >> rank & 1)[1]
        load[chosen] += tokens
        for block in ids:
            served[block] = served.get(block, 0) | 1 << chosen
        return chosen


ROUTES = ("round-robin", "session", "prefix")


def route_named(
    name: str, ranks: int, *, has_blocks: bool, has_sessions: bool, block_tokens: int | None = None
) -> Route:
    """Local. The rule of this name for a trace that knows what is said.

    TraceError when it needs what the trace does not know; ConfigError when there is no such rule.
    """
    if name not in ROUTES:
        raise ConfigError(f"route {name!r}: it must be one of {', '.join(ROUTES)}")
    if name == "round-robin":
        return RoundRobin(ranks)
    if name == "session" and has_sessions:
        return BySession(ranks, lambda request: request.session)
    if not has_blocks:
        needs = "sessions or which blocks inputs share" if name == "session" else "which blocks inputs share"
        raise TraceError(f"the route {name} needs to know {needs}, which this trace does not tell: use round-robin")
    if name == "session":
        return BySession(ranks, Continuations(block_tokens).session_of)
    return ByPrefix(ranks)
