"""How far a replay has come, in a file: for the next run of the same trace, which goes on there.

Covers the file: what is in it, whether it is of this trace, and the sums over the runs so far. Does not cover when it
is written (see `keeping`).

All requests before its position are served. They are those of the trace, whatever the number of ranks was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces import Deal
from cascade_mpi.workload.outputs import replacing
from cascade_mpi.workload.tally import NAMES, Counts

SCHEMA = 1
SUMMED = (
    "requests", "accesses", "hits", "computes", "corrupt", "kept", "refused", "get_bytes", "put_bytes", "disk_gets",
    "disk_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """Where to go on, and what the runs so far came to: `SUMMED`, and their seconds."""

    trace: str
    position: int
    runs: int
    counts: dict[str, int]
    seconds: float = 0.0
    schema: int = SCHEMA

    def after(self, position: int, tallies: Counts, seconds: float) -> State:
        """Local. The state when one more run has come to a position, with these tallies [ranks, NAMES]."""
        total = dict(zip(NAMES, tallies.sum(axis=0).tolist(), strict=True))
        counts = {name: self.counts.get(name, 0) + total[name] for name in SUMMED}
        return replace(self, position=position, runs=self.runs + 1, counts=counts, seconds=self.seconds + seconds)

    def write(self, path: Path) -> None:
        """Local. In the place of what is there; OSError leaves that."""
        with replacing(path) as out:
            out.write(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def trace_digest(dealt: Deal, name: str, block_bytes: int) -> str:
    """Local. What tells traces apart, the same on any number of ranks; the keys of the blocks follow from it too."""
    counts = (name, block_bytes, dealt.requests, dealt.accesses, dealt.unique, dealt.prefix_hits, dealt.longest)
    return hashlib.blake2b(repr(counts).encode(), digest_size=16).hexdigest()


def read(path: Path, trace: str, requests: int) -> State:
    """Local. The state in a file, that of a beginning if there is none. ConfigError: it is no state of this trace."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return State(trace, 0, 0, {})
    except OSError as error:
        raise ConfigError(f"--state {path}: {error.strerror}") from None
    try:
        found = msgspec.json.decode(text, type=State)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--state {path}: it is no state of a workload ({error})") from None
    if found.schema != SCHEMA or not 0 <= found.position <= requests:
        raise ConfigError(
            f"--state {path}: schema {found.schema}, position {found.position:,} of {requests:,} requests"
        )
    if found.trace != trace:
        raise ConfigError(f"--state {path}: it is of another trace, or of blocks of another size: name another file")
    return found
