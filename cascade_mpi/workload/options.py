"""What a workload run is asked to do: the options, and whether they make sense together.

Covers the values that the command line, or a program, gives. Does not cover the words of the command line (see
`commands.workload`), nor what needs MPI or the trace to be known (see `plan`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cascade_mpi.blocks import Verify
from cascade_mpi.config import MAX_SIZE, Config, format_size, parse_size
from cascade_mpi.errors import ConfigError
from cascade_mpi.layout import MIN_PAGE_BYTES
from cascade_mpi.traces import FORMATS, KINDS, ROUTES, TIME_UNITS, Trace, generate, open_trace

DEFAULT_BLOCK_BYTES = 64 << 10
DEFAULT_MADE_UP_REQUESTS = 1000  # generators have no end

PromPer = Literal["rank", "node"]
_FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What to replay and on what; equal on all ranks.

    trace, kind
        A trace file; without one, the generator: "chat", "rag" or "agents", with `seed`.
    trace_format, time_unit, fields, trace_block_tokens, lenient
        How the file is read (see `traces.open_trace`); lenient: bad records are skipped and counted.
    block_bytes
        Size of every block.
    requests
        Replay only the first so many; None: the whole file, or 1,000 of a generator.
    route
        Which rank serves a request: "round-robin", "session" or "prefix" (see `traces.deal`).
    timed
        Requests wait for their arrival, which is that of the trace divided by this factor; None: no waiting.
    dram, dram_total
        Bytes of the arena of each rank, or of all ranks together; neither: what the trace needs, but at
        most half of the memory that a node may use.
    verify
        Compare every byte that comes back ("full"), some words of each block ("sample"), or nothing ("off").
    window
        Requests of each rank between two barriers, on average; None: 32 / ranks, at least 1.
    json, metrics, record
        Files that rank 0 writes: the result, the metrics every few seconds, and the store's accesses as a trace.
    prom_file, prom_per
        Prometheus textfile of every rank or node; its name has {rank} or {node} in it unless there is only one.
    state
        File that says where an earlier run of this trace has ended: this one goes on there, and notes how far it comes.
    warm
        Before the replay bring blocks from disk into memory: so many bytes of each rank, as a size, or "all".
    flush_every
        Seconds after which all ranks make durable what they have, and once at the end; 0: at the end only.
    grace
        Seconds for making durable what a signal finds in memory; None: what Slurm leaves (see `walltime`).
    live
        Show the live view; None: when rank 0 writes to a terminal.
    config, store
        File of settings for the store (None: see `Config.make`), and settings over it, as ``{"windows": "shared"}``.
    """

    trace: Path | None = None
    kind: str = "chat"
    trace_format: str = "auto"
    time_unit: str = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)
    trace_block_tokens: int | None = None
    lenient: bool = False
    block_bytes: int = DEFAULT_BLOCK_BYTES
    requests: int | None = None
    route: str = "round-robin"
    timed: float | None = None
    dram: int | None = None
    dram_total: int | None = None
    verify: Verify = "full"
    seed: int = 0
    window: int | None = None
    json: Path | None = None
    metrics: Path | None = None
    record: Path | None = None
    prom_file: str | None = None
    prom_per: PromPer = "rank"
    state: Path | None = None
    warm: str | None = None
    flush_every: float | None = None
    grace: float | None = None
    live: bool | None = None
    config: Path | None = None
    store: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without MPI and files; ConfigError names the option and its value."""
        if not 1 <= self.block_bytes <= MAX_SIZE:
            raise ConfigError(f"--block-bytes {self.block_bytes}: it must be 1 byte or more")
        for name in ("requests", "window", "trace_block_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: it must be 1 or more")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: it must be 0 or more")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"--{_WORDS.get(name, name)} {getattr(self, name)!r}: it must be one of {', '.join(allowed)}"
                )
        if self.timed is not None and not 0 < self.timed < math.inf:
            raise ConfigError(
                f"--timed {self.timed}: the speed-up must be a finite number above 0, 1 for the trace's own pace"
            )
        self._check_trace_options()
        if self.dram is not None and self.dram_total is not None:
            raise ConfigError("--dram (per rank) and --dram-total (of all ranks) are both given: give one of them")
        if self.dram is not None:
            check_dram(self.dram, self.block_bytes)
        if "dram_bytes" in self.store and (self.dram is not None or self.dram_total is not None):
            other = "--dram" if self.dram is not None else "--dram-total"
            raise ConfigError(f"{other} and the setting dram_bytes are both given: give one of them")
        self._check_textfile()
        self._check_disk(Config.make(self.config, **self.store))

    def _check_disk(self, config: Config) -> None:
        for name in ("flush_every", "grace"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: it must be a number of seconds, 0 or more")
        if self.warm is not None and self.warm != "all":
            parse_size(self.warm)
        for name in ("warm", "flush_every", "grace"):
            if getattr(self, name) is not None and config.disk is None:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is about blocks on disk: give a directory with --disk DIR"
                )
        for name in ("flush_every", "grace"):
            if getattr(self, name) is not None and config.disk_mode == "read":
                raise ConfigError(f'--{name.replace("_", "-")} writes to disk, and disk_mode is "read"')

    def _check_textfile(self) -> None:
        if self.prom_file is None:
            if self.prom_per != "rank":
                raise ConfigError(f"--prom-per {self.prom_per} is about a textfile: give one with --prom-file FILE")
            return
        unknown = [name for name in _FIELD.findall(self.prom_file) if name not in get_args(PromPer)]
        if unknown:
            raise ConfigError(
                f"--prom-file {self.prom_file}: {{{unknown[0]}}} is unknown, there are {{rank}} and {{node}}"
            )
        if self.prom_per == "node" and "{rank}" in self.prom_file:
            raise ConfigError(f"--prom-file {self.prom_file} has {{rank}} in it, but --prom-per is node: use {{node}}")

    def _check_trace_options(self) -> None:
        """Options of a file are wrong, not ignored, where there is none, and so is a generator's where there is one."""
        if self.trace is not None:
            if self.seed:
                raise ConfigError(f"--seed {self.seed} is about a generator, and --trace {self.trace} is a file")
            return
        given = {
            "format": self.trace_format != "auto",
            "time-unit": self.time_unit != "auto",
            "field": bool(self.fields),
            "trace-block-tokens": self.trace_block_tokens is not None,
            "lenient": self.lenient,
        }
        for name, is_given in given.items():
            if is_given:
                raise ConfigError(f"--{name} is about a trace file: give one with --trace FILE")

    def open_trace(self) -> Trace:
        """Local. The requests to replay; what is wrong with a file is raised while they are read."""
        if self.trace is None:
            return generate(self.kind, self.seed).first(self.requests or DEFAULT_MADE_UP_REQUESTS)
        trace = open_trace(
            self.trace,
            self.trace_format,
            block_tokens=self.trace_block_tokens,
            time_unit=self.time_unit,
            fields=self.fields or None,
            strict=not self.lenient,
        )
        return trace.first(self.requests)


_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "trace_format": ("auto", *FORMATS),
    "time_unit": TIME_UNITS,
    "route": ROUTES,
    "verify": get_args(Verify),
    "prom_per": get_args(PromPer),
}
_WORDS = {"kind": "trace", "trace_format": "format", "time_unit": "time-unit", "prom_per": "prom-per"}


def check_dram(dram: int, block_bytes: int) -> None:
    """Local. ConfigError when an arena (bytes per rank) does not hold one block."""
    if dram < max(block_bytes, MIN_PAGE_BYTES):
        raise ConfigError(
            f"a DRAM arena of {format_size(dram)} per rank does not hold one block of {format_size(block_bytes)}:"
            " give more with --dram (per rank) or --dram-total"
        )
