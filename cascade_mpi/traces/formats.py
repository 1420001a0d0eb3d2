"""The formats of trace files: which ones there are, and how a file is opened as one of them.

Covers `open_trace`. Does not cover what the lines of a format hold (see `mooncake`).
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces.mooncake import BLOCK_TOKENS, read_mooncake
from cascade_mpi.traces.trace import Trace

FORMATS = ("mooncake",)
TIME_UNITS = ("auto", "s", "ms", "us", "ns", "iso")


def open_trace(
    path: str | PathLike[str],
    format: str = "auto",
    *,
    block_tokens: int | None = None,
    time_unit: str = "auto",
    fields: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Trace:
    """Local. A trace file, checked while it is read."""
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"trace format {format!r}: it must be auto or one of {', '.join(FORMATS)}")
    tokens = block_tokens or BLOCK_TOKENS
    return Trace(
        Path(fspath(path)).name,
        "mooncake",
        tokens,
        lambda: read_mooncake(path, tokens),
        has_blocks=True,
        has_sessions=False,
    )
