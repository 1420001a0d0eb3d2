"""A request of a trace: what an LLM server was asked, as far as its KV cache is concerned.

Covers the record only. Does not cover where requests come from (see `formats`, `generate`) nor who
serves them (see `deal`).
"""

from __future__ import annotations

import msgspec


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request; traces yield them in the order of time.

    A Struct, because a reader makes hundreds of thousands of them in a second and a frozen dataclass
    alone would take most of that time.
    """

    index: int
    """Its number in the trace, from 0."""
    timestamp_s: float
    """Its arrival, seconds after the trace began."""
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] | range
    """The blocks of its input in order, each below 2^64.

    Where blocks have an identity (`Trace.has_blocks`) two requests share an id exactly when they share the
    prefix up to its end; where a trace has none, every id is a fresh one, and they are a range.
    """
    session: str | int | None = None
    """Which conversation it belongs to; None where the trace cannot tell."""
