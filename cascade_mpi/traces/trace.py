"""A trace: requests that can be gone through as often as needed, and what they can tell.

Covers the properties that a user has to know before trusting a result, and cutting a trace short. Does
not cover files (see `formats`) nor what makes requests up (see `generate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from cascade_mpi.traces.request import Request

NO_BLOCKS = (
    "the trace has token counts only, no block identity: every block is taken as unique, so that no hit is possible"
)


class Trace:
    """Requests in the order of time, streamed anew by each `iter`: the memory needed is that of one line.

    name
        What a report calls it: the file's name, or the generator and its seed.
    format
        The format that was given or detected, or the kind of generator.
    block_tokens
        Tokens that a block stands for; the last one of a request may be partly filled.
    has_blocks
        Whether block ids are known. Where not, each id is fresh: reuse is never invented.
    has_sessions
        Whether requests name their sessions. A single request may still have None.
    """

    def __init__(
        self,
        name: str,
        format: str,
        block_tokens: int,
        requests: Callable[[], Iterator[Request]],
        *,
        has_blocks: bool,
        has_sessions: bool,
        notes: Callable[[], tuple[str, ...]] = tuple,
        limit: int | None = None,
    ) -> None:
        self.name = name
        self.format = format
        self.block_tokens = block_tokens
        self.has_blocks = has_blocks
        self.has_sessions = has_sessions
        self._requests = requests
        self._notes = notes
        self._limit = limit

    @property
    def notes(self) -> tuple[str, ...]:
        """Local. Sentences for the user: what was assumed, and once it has been read also what was skipped."""
        return (() if self.has_blocks else (NO_BLOCKS,)) + self._notes()

    def first(self, count: int | None) -> Trace:
        """Local. The same trace, cut after `count` requests; None: all of them."""
        if count is None:
            return self
        return Trace(
            self.name,
            self.format,
            self.block_tokens,
            self._requests,
            has_blocks=self.has_blocks,
            has_sessions=self.has_sessions,
            notes=self._notes,
            limit=count if self._limit is None else min(count, self._limit),
        )

    def __iter__(self) -> Iterator[Request]:
        return islice(self._requests(), self._limit)

    def __repr__(self) -> str:
        known = [word for word, has in (("blocks", self.has_blocks), ("sessions", self.has_sessions)) if has]
        return f"<Trace {self.name} ({self.format}), knows {' and '.join(known) or 'token counts only'}>"
