"""What a replay came to: the counts of all ranks as one result, the same on every rank.

Covers the setting, the sums and their meaning, and the JSON record. Does not cover how it is shown (see `tables`).
Nothing here calls MPI except `gather` and `distinct`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cascade_mpi import __version__
from cascade_mpi.blocks import Verify
from cascade_mpi.config import format_size
from cascade_mpi.errors import ProtocolError
from cascade_mpi.traces import KINDS
from cascade_mpi.workload.tally import ARENA, DISK, NAMES, OPERATIONS, TIERS, Counts, Latencies, columns, rate, totals

if TYPE_CHECKING:
    from mpi4py import MPI

SCHEMA = 1  # of the record
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class Setting:
    """What was replayed on what: the same on every rank."""

    trace: str
    trace_format: str
    seed: int
    route: str
    timed: float | None
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
    host: str
    """Of rank 0."""
    started: str
    """When rank 0 settled it: ISO 8601, UTC."""
    disk: str | None = None
    """The directory of the disk tier."""
    durability: str = "none"
    first: int = 0
    """The request that the replay began with: an earlier run has served those before it."""

    def line(self) -> str:
        """Local. What is about to be done, in one line."""
        pace = "" if self.timed is None else f", at {self.timed:g} x its pace"
        told = "" if self.trace_format in KINDS else f" ({self.trace_format})"  # a generator's name tells its kind
        return (
            f"cascade workload: {_count(self.ranks, 'rank')} on {_count(self.nodes, 'node')}, DRAM"
            f" {format_size(self.dram_per_rank)} per rank, {format_size(self.dram_per_node)} per node,"
            f" {format_size(self.dram_total)} in all{self._on_disk()}; {self.trace}{told}:"
            f" {_count(self.requests, 'request')}, {_count(self.unique, 'block')} of {format_size(self.block_bytes)};"
            f" route {self.route}{pace}"
        )

    def _on_disk(self) -> str:
        return "" if self.disk is None else f", disk {self.disk} ({self.durability})"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a replay, the same on every rank.

    replayed, signal
        Requests that were served; fewer than the setting's when a signal (its number, else 0) ended the replay.
        Everything below is about that part; the blocks of a request that was cut short are in it as far as they went.
    hits
        Accesses whose block was fetched with the right contents. Every other access was computed, so that
        ``hits + unique - warm + double_computes == accesses``. As the first computation of a block is not a double one,
        the last term follows from the others: what can be wrong is said by `check_counts`.
    unique
        Distinct blocks of the accesses.
    warm
        Those of them that were on disk when the store was opened.
    double_computes
        Blocks computed although they had been computed before: ranks raced, or the block was evicted or corrupt.
    get_gbps, put_gbps
        The sum over the ranks of (bytes that the rank moved / seconds it spent in those calls), 1e9 bytes/s: the rate
        at which the job moves blocks while all its ranks do. Making and checking contents is not in it. Where
        ranks take turns on a core it is too high: no rank's clock sees that the others stood still.
    stall_s
        Seconds that a rank waited in barriers for others: the least, mean and most of the ranks. In a timed replay the
        wait for requests that are still to arrive at other ranks is in it.
    retries
        Reads begun again because the block moved, those that gave up, and compare-and-swaps lost to another rank.
    imbalance
        Most / mean over the ranks of the time neither stalled nor asleep (busy) and of the bytes got and put; the
        rank that was busiest, and its seconds.
    arena
        Bytes of all arenas at the end by state; fill is live / all, of all ranks and of the least and most filled.
    lateness
        Of a timed replay: the share of requests that were begun more than `pacing.LATE_S` after their arrival, the
        mean lateness over all requests and the largest, ms. None for others.
    tiers
        For each tier: gets and bytes of all ranks, and gbps as above, measured on the requests whose blocks
        were fetched tier by tier (one in `server.SAMPLED` of each rank; a batch is otherwise a mixture).
    latency_us
        Of one call for a batch of blocks: number of calls, blocks per call, mean and quantiles (to 1.1 %).
    disk
        Of all ranks: blocks and bytes that are on disk at the end (held), and what went there and came back. None
        without a disk tier.
    drained
        What the end by a signal made durable, as `Store.drain` tells it. None if there was nothing to do, or no time.
    parts
        Sums over all runs that the file of the state knows of, this one included, up to `position`; None if it is the
        only one.
    unwritten
        Files that were asked for and could not be written by rank 0, and why; it has said so.
    """

    setting: Setting
    replayed: int
    signal: int
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
    stall_s: dict[str, float] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    imbalance: dict[str, float] = field(default_factory=dict)
    arena: dict[str, float] = field(default_factory=dict)
    lateness: dict[str, float] | None = None
    tiers: dict[str, dict[str, float]] = field(default_factory=dict)
    latency_us: dict[str, dict[str, float]] = field(default_factory=dict)
    warm: int = 0
    disk: dict[str, int] | None = None
    drained: dict[str, float] | None = None
    parts: dict[str, float] | None = None
    unwritten: tuple[str, ...] = ()

    @property
    def goes_on(self) -> bool:
        """Local. Whether another run is of use: it finds what this one has done. Not if contents were wrong.

        Nor if this one has come nowhere: the next one may not either.
        """
        writes = self.setting.disk is not None and self.setting.durability != "read-only"
        return writes and self.replayed > 0 and not self.corrupt and not self.unwritten

    def record(self) -> dict[str, Any]:
        """Local. One flat JSON object; `setting` is spread into it, its `unique` is `trace_unique`.

        Its names stay as long as `schema` does; `cascade` is the version.
        """
        flat = asdict(self)
        setting = flat.pop("setting")
        names = {"trace_unique": setting["unique"], "directory": setting.pop("disk")}
        return {"schema": SCHEMA, "cascade": __version__, **setting, **names, **flat}


def gather(comm: MPI.Intracomm, mine: Counts, bins: Counts, seconds: float) -> tuple[Counts, Counts, float]:
    """Collective. Tallies [ranks, NAMES], latency bins of all ranks, the longest time. 1 Allgather, 2 Allreduces."""
    from mpi4py import MPI

    tallies = np.empty((comm.size, mine.size), dtype=np.int64)
    comm.Allgather(mine, tallies)
    summed = np.empty_like(bins)
    comm.Allreduce(bins, summed)
    return tallies, summed, comm.allreduce(seconds, MPI.MAX)


def distinct(comm: MPI.Intracomm, ids: npt.NDArray[np.uint64]) -> int:
    """Collective. How many different block ids the ranks have together. 1 Alltoall, 1 Alltoallv, 1 allreduce."""
    mine = np.unique(ids)
    owner = (mine % np.uint64(comm.size)).astype(np.int64)
    mine = mine[np.argsort(owner, kind="stable")]
    sent = np.bincount(owner, minlength=comm.size)
    received = np.empty_like(sent)
    comm.Alltoall(sent, received)
    owned = np.empty(int(received.sum()), dtype=np.uint64)
    comm.Alltoallv([mine, sent], [owned, received])
    return int(comm.allreduce(np.unique(owned).size))


def summarise(
    setting: Setting, tallies: Counts, bins: Counts, seconds: float, *, unique: int | None = None, warm: int = 0,
    signal: int = 0,
) -> Result:  # fmt: skip
    """Local. The result from the tallies [ranks, NAMES] and the latency bins [OPERATIONS, bins].

    `unique`: distinct blocks of what was replayed; None: all of the setting's. `warm`: those that were on disk before.
    """
    ranks, total = columns(tallies), totals(tallies)
    unique = setting.unique if unique is None else unique
    return Result(
        setting=setting,
        replayed=total["requests"],
        signal=signal,
        accesses=total["accesses"],
        hits=total["hits"],
        unique=unique,
        double_computes=total["computes"] - (unique - warm),
        hit_rate=total["hits"] / total["accesses"] if total["accesses"] else 0.0,
        corrupt=total["corrupt"],
        kept=total["kept"],
        refused=total["refused"],
        evicted=total["evicted"],
        recheck_retries=total["recheck_retries"],
        bytes_got=total["get_bytes"],
        bytes_put=total["put_bytes"],
        get_gbps=rate(ranks["get_bytes"], ranks["get_ns"]),
        put_gbps=rate(ranks["put_bytes"], ranks["put_ns"]),
        seconds=seconds,
        stall_s=_spread(ranks["stall_ns"] / 1e9),
        retries={
            "recheck": total["recheck_retries"],
            "exhausted": total["retries_exhausted"],
            "lost_cas": total["lost_cas"],
        },
        imbalance=_imbalance(ranks, seconds),
        arena=arena(tallies),
        lateness=None if setting.timed is None else _lateness(total),
        tiers={
            tier: {
                "gets": total[f"{tier}_gets"],
                "bytes": total[f"{tier}_bytes"],
                "gbps": rate(ranks[f"{tier}_timed_bytes"], ranks[f"{tier}_timed_ns"]),
            }
            for tier in TIERS
        },
        latency_us=_latencies(total, bins),
        warm=warm,
        disk=None if setting.disk is None else {name: total[f"disk_{name}"] for name in DISK},
    )


def check_counts(result: Result, *, accesses: int, most_hits: int) -> None:
    """Local. ProtocolError when the counts contradict the trace, which then says nothing about the store either.

    accesses, most_hits
        Of what was replayed, as the trace tells them; hits of an endless cache.
    """
    wrong = []
    if result.accesses != accesses:
        wrong.append(f"{result.accesses:,} accesses were counted, {accesses:,} are in what was replayed")
    if result.double_computes < 0:
        there = f", {result.warm:,} of which were on disk," if result.warm else ""
        wrong.append(f"{-result.double_computes:,} of the {result.unique:,} unique blocks{there} were never computed")
    if result.hits > most_hits:
        wrong.append(f"{result.hits:,} hits were counted, an endless cache has {most_hits:,}")
    if wrong:
        raise ProtocolError(f"the counts of this replay cannot be right: {'; '.join(wrong)}: please report this")


def arena(tallies: Counts) -> dict[str, float]:
    """Local. Bytes of all arenas by state, and how full they are."""
    ranks, total = columns(tallies), totals(tallies)
    fills = ranks["arena_live"] / np.maximum(ranks["arena_bytes"], 1)
    return {
        **{state: total[f"arena_{state}"] for state in ARENA},
        "fill": total["arena_live"] / max(total["arena_bytes"], 1),
        "fill_min": float(fills.min()),
        "fill_max": float(fills.max()),
    }


def _latencies(total: dict[str, int], bins: Counts) -> dict[str, dict[str, float]]:
    latencies = {}
    for name, counts in zip(OPERATIONS, bins, strict=True):
        calls, blocks = total[f"{name}_calls"], total[f"{name}_blocks"]
        latencies[name] = {
            "calls": calls,
            "blocks_per_call": blocks / calls if calls else 0.0,
            "mean": total[f"{name}_ns"] / calls / 1000 if calls else 0.0,
            **{label: Latencies.quantile_us(counts, share) for label, share in QUANTILES.items()},
        }
    return latencies


def _imbalance(ranks: dict[str, Counts], seconds: float) -> dict[str, float]:
    busy = np.maximum(seconds - (ranks["stall_ns"] + ranks["slept_ns"]) / 1e9, 0.0)
    slowest = int(np.argmax(busy))
    return {
        "busy": _most_by_mean(busy),
        "bytes": _most_by_mean((ranks["get_bytes"] + ranks["put_bytes"]).astype(float)),
        "slowest_rank": slowest,
        "slowest_busy_s": float(busy[slowest]),
        "mean_busy_s": float(busy.mean()),
    }


def _lateness(total: dict[str, int]) -> dict[str, float]:
    served = max(total["requests"], 1)
    return {
        "share": total["late_requests"] / served,
        "mean_ms": total["late_ns"] / served / 1e6,
        "max_ms": total["late_max_ns"] / 1e6,
    }


def _most_by_mean(values: npt.NDArray[np.float64]) -> float:
    mean = float(values.mean())
    return float(values.max()) / mean if mean else 1.0


def _spread(values: npt.NDArray[np.float64]) -> dict[str, float]:
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def empty_tallies(ranks: int) -> Counts:
    """Local. The tallies of ranks that have done nothing yet."""
    return np.zeros((ranks, len(NAMES)), dtype=np.int64)
