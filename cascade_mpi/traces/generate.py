"""Made-up traces: which kinds there are.

Covers `generate`. Does not cover the kinds themselves (see `chat`, `retrieval`, `agents`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces.agents import agents
from cascade_mpi.traces.chat import synthetic
from cascade_mpi.traces.prefixes import BLOCK_TOKENS
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.retrieval import retrieval
from cascade_mpi.traces.trace import Trace

_GENERATORS: dict[str, Callable[[int], Iterator[Request]]] = {"chat": synthetic, "rag": retrieval, "agents": agents}
KINDS = tuple(_GENERATORS)


def generate(kind: str, seed: int = 0) -> Trace:
    """Local. The endless trace of this kind and seed, in the order of time: cut it with `Trace.first`.

    kind
        "chat": sessions of several turns that share a few system prompts; "rag": questions with popular
        documents in front; "agents": tool loops and sub-agents.
    """
    if kind not in _GENERATORS:
        raise ConfigError(f"generator {kind!r}: it must be one of {', '.join(KINDS)}")
    if seed < 0:
        raise ConfigError(f"seed {seed}: it must be 0 or more")
    name = f"{'synthetic ' if kind == 'chat' else ''}{kind} (seed {seed})"
    return Trace(name, kind, BLOCK_TOKENS, lambda: _GENERATORS[kind](seed), has_blocks=True, has_sessions=True)
