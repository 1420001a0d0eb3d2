"""What a replay counts, how the counts of all ranks become one result, and how it is shown.

Covers the tally and the latency histograms of a rank, their sum over the ranks, the table and the JSON
record. Does not cover what is replayed (see `workload`). Nothing here calls MPI except `gather`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from cascade_mpi.blocks import Verify
from cascade_mpi.config import format_size

if TYPE_CHECKING:
    from mpi4py import MPI

TIERS = {"local": "self", "node": "node", "remote": "remote"}  # by the path's name in `Store.stats()` and `locate`
OPERATIONS = ("lookup", "get", "put")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
Counts = npt.NDArray[np.int64]


class Latencies:
    """A histogram of durations: 32 bins an octave from 1 ns to 18 minutes, so 1.1 % wide to either side."""

    BINS_PER_OCTAVE = 32
    BINS = 40 * BINS_PER_OCTAVE
    _PENDING = 1024

    def __init__(self) -> None:
        self._counts = np.zeros(self.BINS, dtype=np.int64)
        self._pending = np.empty(self._PENDING, dtype=np.int64)
        self._waiting = 0

    def add(self, nanoseconds: int) -> None:
        """Local. Count one duration."""
        self._pending[self._waiting] = nanoseconds  # binned in bulk: one by one it would cost more than a small get
        self._waiting += 1
        if self._waiting == self._PENDING:
            self.counts()

    def counts(self) -> Counts:
        """Local. How many durations fell into each bin."""
        if self._waiting:
            octaves = np.log2(np.maximum(self._pending[: self._waiting], 1))
            bins = np.minimum((octaves * self.BINS_PER_OCTAVE).astype(np.int64), self.BINS - 1)
            self._counts += np.bincount(bins, minlength=self.BINS)
            self._waiting = 0
        return self._counts

    @classmethod
    def quantile_us(cls, counts: Counts, share: float) -> float:
        """Local. The duration (microseconds) that this share of the durations does not exceed; 0 when there is none."""
        total = int(counts.sum())
        if not total:
            return 0.0
        place = int(np.searchsorted(np.cumsum(counts), math.ceil(share * total)))
        return float(2 ** ((place + 0.5) / cls.BINS_PER_OCTAVE) / 1000)


@dataclass(slots=True)
class Tally:
    """What one rank did, in integers that can be summed; times in nanoseconds."""

    accesses: int = 0
    hits: int = 0
    computes: int = 0
    corrupt: int = 0
    kept: int = 0
    refused: int = 0
    lookup_calls: int = 0
    lookup_blocks: int = 0
    lookup_ns: int = 0
    get_calls: int = 0
    get_blocks: int = 0
    get_bytes: int = 0
    get_ns: int = 0
    put_calls: int = 0
    put_blocks: int = 0
    put_bytes: int = 0
    put_ns: int = 0
    recheck_retries: int = 0
    evicted: int = 0
    local_gets: int = 0
    local_bytes: int = 0
    local_timed_bytes: int = 0
    local_timed_ns: int = 0
    node_gets: int = 0
    node_bytes: int = 0
    node_timed_bytes: int = 0
    node_timed_ns: int = 0
    remote_gets: int = 0
    remote_bytes: int = 0
    remote_timed_bytes: int = 0
    remote_timed_ns: int = 0

    def take(self, stats: Mapping[str, Any]) -> None:
        """Local. Add what the store itself counted (`Store.stats()`)."""
        self.recheck_retries = int(stats["recheck_retries"])
        self.evicted = int(stats["evicted"])
        for tier, path in TIERS.items():
            setattr(self, f"{tier}_gets", int(stats["tiers"][path]["gets"]))
            setattr(self, f"{tier}_bytes", int(stats["tiers"][path]["bytes"]))

    def add_timed(self, tier: str, nbytes: int, nanoseconds: int) -> None:
        """Local. Count a read that was served by one tier alone."""
        for name, value in ((f"{tier}_timed_bytes", nbytes), (f"{tier}_timed_ns", nanoseconds)):
            setattr(self, name, getattr(self, name) + value)

    def add_call(self, operation: str, blocks: int, nanoseconds: int) -> None:
        """Local. Count one lookup, get or put of so many blocks."""
        for name, value in (("calls", 1), ("blocks", blocks), ("ns", nanoseconds)):
            setattr(self, f"{operation}_{name}", getattr(self, f"{operation}_{name}") + value)

    def vector(self) -> Counts:
        """Local. The numbers in the order of `NAMES`."""
        return np.array([getattr(self, name) for name in NAMES], dtype=np.int64)


NAMES = tuple(item.name for item in fields(Tally))


@dataclass(frozen=True, slots=True)
class Setting:
    """What was replayed on what: the same on every rank."""

    trace: str
    seed: int
    ranks: int
    nodes: int
    requests: int
    unique: int
    block_bytes: int
    dram_per_rank: int
    dram_per_node: int
    dram_total: int
    window: int
    verify: Verify
    mpi: str

    def line(self) -> str:
        """Local. What is about to be done, in one line."""
        return (
            f"cascade workload: {_count(self.ranks, 'rank')} on {_count(self.nodes, 'node')}, DRAM"
            f" {format_size(self.dram_per_rank)} per rank, {format_size(self.dram_per_node)} per node,"
            f" {format_size(self.dram_total)} in all; {self.trace}: {self.requests:,} requests,"
            f" {self.unique:,} blocks of {format_size(self.block_bytes)}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a replay, the same on every rank.

    hits
        Accesses whose block was fetched with the right contents. Every other access was computed, so that
        ``hits + unique + double_computes == accesses``.
    double_computes
        Blocks computed although they had been computed before: ranks raced, or the block was evicted or corrupt.
    get_gbps, put_gbps
        The sum over the ranks of (bytes that the rank moved / seconds it spent in those calls), 1e9 bytes/s: the rate
        at which the job moves blocks while all its ranks do. Making and checking contents is not in it. Where
        ranks take turns on a core it is too high: no rank's clock sees that the others stood still.
    tiers
        For each tier: gets and bytes of all ranks, and gbps as above, measured on the requests whose blocks
        were fetched tier by tier (one in `workload.SAMPLED` of each rank; a batch is otherwise a mixture).
    latency_us
        Of one call for a batch of blocks: number of calls, blocks per call, mean and quantiles (to 1.1 %).
    """

    setting: Setting
    accesses: int
    hits: int
    unique: int
    double_computes: int
    hit_rate: float
    corrupt: int
    kept: int
    refused: int
    evicted: int
    recheck_retries: int
    bytes_got: int
    bytes_put: int
    get_gbps: float
    put_gbps: float
    seconds: float
    tiers: dict[str, dict[str, float]] = field(default_factory=dict)
    latency_us: dict[str, dict[str, float]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Local. One flat JSON object; `setting` is spread into it."""
        flat = asdict(self)
        return {**flat.pop("setting"), **flat}


def gather(
    comm: MPI.Intracomm, setting: Setting, tally: Tally, latencies: Mapping[str, Latencies], seconds: float
) -> Result:
    """Collective. The result over all ranks, on all ranks. 2 Allgathers, 1 Allreduce."""
    mine = tally.vector()
    tallies = np.empty((comm.size, mine.size), dtype=np.int64)
    comm.Allgather(mine, tallies)
    bins = np.stack([latencies[name].counts() for name in OPERATIONS])
    comm.Allreduce(bins.copy(), bins)
    times = np.empty(comm.size)
    comm.Allgather(np.array([seconds]), times)
    return summarise(setting, tallies, bins, float(times.max()))


def summarise(setting: Setting, tallies: Counts, bins: Counts, seconds: float) -> Result:
    """Local. The result from the tallies [ranks, NAMES] and the latency bins [OPERATIONS, bins]."""
    ranks = {name: tallies[:, column] for column, name in enumerate(NAMES)}
    total = {name: int(column.sum()) for name, column in ranks.items()}
    latency = {}
    for name, counts in zip(OPERATIONS, bins, strict=True):
        calls, blocks = total[f"{name}_calls"], total[f"{name}_blocks"]
        latency[name] = {
            "calls": calls,
            "blocks_per_call": blocks / calls if calls else 0.0,
            "mean": total[f"{name}_ns"] / calls / 1000 if calls else 0.0,
            **{label: Latencies.quantile_us(counts, share) for label, share in QUANTILES.items()},
        }
    return Result(
        setting=setting,
        accesses=total["accesses"],
        hits=total["hits"],
        unique=setting.unique,
        double_computes=total["computes"] - setting.unique,
        hit_rate=total["hits"] / total["accesses"] if total["accesses"] else 0.0,
        corrupt=total["corrupt"],
        kept=total["kept"],
        refused=total["refused"],
        evicted=total["evicted"],
        recheck_retries=total["recheck_retries"],
        bytes_got=total["get_bytes"],
        bytes_put=total["put_bytes"],
        get_gbps=_rate(ranks["get_bytes"], ranks["get_ns"]),
        put_gbps=_rate(ranks["put_bytes"], ranks["put_ns"]),
        seconds=seconds,
        tiers={
            tier: {
                "gets": total[f"{tier}_gets"],
                "bytes": total[f"{tier}_bytes"],
                "gbps": _rate(ranks[f"{tier}_timed_bytes"], ranks[f"{tier}_timed_ns"]),
            }
            for tier in TIERS
        },
        latency_us=latency,
    )


def _rate(moved: Counts, nanoseconds: Counts) -> float:
    busy = nanoseconds > 0
    return float((moved[busy] / nanoseconds[busy]).sum())  # bytes per ns are GB/s


def show(result: Result, console: Console | None = None) -> None:
    """Local. Print the result as tables."""
    console = console or Console(width=None if sys.stdout.isatty() else 100)  # a launcher's pipe has no width
    console.print(_counts_table(result))
    console.print(_tiers_table(result))
    console.print(_latency_table(result))
    if result.corrupt:
        console.print(f"[bold red]{result.corrupt:,} corrupt blocks were read[/]")


def _counts_table(result: Result) -> Table:
    identity = "hits + unique + double computes = accesses"
    table = _table("workload", ["what", "value"], caption=identity)
    table.show_header = False
    rows: Sequence[tuple[str, str]] = (
        ("requests", f"{result.setting.requests:,}"),
        ("block accesses", f"{result.accesses:,}"),
        ("hits", f"{result.hits:,} ({result.hit_rate:.2%})"),
        ("unique blocks", f"{result.unique:,}"),
        ("double computes", f"{result.double_computes:,}"),
        ("corrupt", f"{result.corrupt:,}" if result.setting.verify != "off" else "not checked"),
        ("kept, refused, evicted", f"{result.kept:,}, {result.refused:,}, {result.evicted:,}"),
        ("re-check retries", f"{result.recheck_retries:,}"),
        ("got", f"{format_size(result.bytes_got)} at {result.get_gbps:.2f} GB/s"),
        ("put", f"{format_size(result.bytes_put)} at {result.put_gbps:.2f} GB/s"),
        ("seconds", f"{result.seconds:.2f}"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _tiers_table(result: Result) -> Table:
    table = _table("gets by tier", ["tier", "blocks", "bytes", "GB/s"])
    for name, tier in result.tiers.items():
        table.add_row(name, f"{tier['gets']:,}", format_size(int(tier["bytes"])), f"{tier['gbps']:.2f}")
    return table


def _latency_table(result: Result) -> Table:
    labels = ["mean", *QUANTILES]
    table = _table("latency of a call, µs", ["call", "calls", "blocks each", *labels])
    for name, row in result.latency_us.items():
        values = [f"{row[label]:,.1f}" for label in labels]
        table.add_row(name, f"{row['calls']:,}", f"{row['blocks_per_call']:.1f}", *values)
    return table


def _table(title: str, columns: list[str], caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
