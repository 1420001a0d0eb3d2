"""Made-up traces: which kinds there are.

Covers `generate`. Does not cover the kinds themselves (see `synthetic`).
"""

from __future__ import annotations

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces.synthetic import BLOCK_TOKENS, synthetic
from cascade_mpi.traces.trace import Trace

KINDS = ("chat",)


def generate(kind: str, seed: int = 0) -> Trace:
    """Local. The endless trace of this kind and seed: cut it with `Trace.first`."""
    if kind not in KINDS:
        raise ConfigError(f"generator {kind!r}: it must be one of {', '.join(KINDS)}")
    return Trace(
        f"{kind} (seed {seed})", kind, BLOCK_TOKENS, lambda: synthetic(seed), has_blocks=True, has_sessions=True
    )
