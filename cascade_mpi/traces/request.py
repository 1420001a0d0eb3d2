"""A request of a trace: what an LLM server was asked, as far as its KV cache is concerned.

Covers the record only. Does not cover where requests come from (see `mooncake`, `synthetic`) nor who
serves them (see `deal`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One request; traces yield them in the order of time."""

    index: int
    """Its number in the trace, from 0."""
    timestamp_s: float
    """Its arrival, seconds after the trace began."""
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...]
    """The blocks of its input in order; two requests share an id exactly when they share the prefix up to its end."""
