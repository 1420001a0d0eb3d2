"""What one rank counts while it replays: integers that can be summed over the ranks, and histograms of durations.

Covers the tally and the latency histogram. Does not cover what is counted (see `server` and `replay`) nor what
the sums mean (see `result`). Calls no MPI and reads no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

# By the path's name in `locate`, and in `Store.stats()`.
TIERS = {"local": "self", "node": "node", "remote": "remote", "disk": "disk"}
OPERATIONS = ("lookup", "get", "put")
ARENA = ("bytes", "live", "limbo", "free", "lent")
Counts = npt.NDArray[np.int64]

# What a store counts by itself, under the same names here and in `Store.stats()`.
_FROM_STORE = (
    "recheck_retries", "retries_exhausted", "lost_cas", "evicted", "evicted_bytes", "misses", "dedup_hits",
    "dedup_saved_bytes",
)  # fmt: skip
# Likewise, under `Store.stats()[group]` and here with the group before the name.
GROUPS = {
    "copies": (
        "promotions", "promoted_bytes", "refused", "demotions", "held", "held_bytes", "hits", "bytes",
        "hits_without_mpi", "stale", "stale_dropped", "waited",
    ),
    "pool": (
        "held_own", "free", "lent", "recalled", "held", "leased_bytes", "recalls", "returned", "moved", "moved_bytes",
        "dropped",
    ),
    "dedup": ("stored_again", "skipped", "waiting", "contents", "aliases", "alias_reads"),
}  # fmt: skip

# Of `Store.stats()["disk"]`: the name here, behind "disk_", and there.
DISK = {
    "held": "blocks", "held_bytes": "bytes",
    **{name: name for name in (
        "promoted", "promoted_bytes", "demoted", "demoted_bytes", "written", "written_bytes", "tombstones", "damaged",
        "errors", "lost",
    )},
}  # fmt: skip


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

    @classmethod
    def at_most(cls, counts: Counts, octave: int) -> int:
        """Local. How many durations are below 2^octave nanoseconds: exact, octaves are edges of bins."""
        return int(counts[: octave * cls.BINS_PER_OCTAVE].sum())


@dataclass(slots=True)
class Tally:
    """What one rank did, in integers that can be summed (all but `late_max_ns`); times in nanoseconds."""

    requests: int = 0
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
    stall_ns: int = 0
    """In barriers, waiting for other ranks."""
    slept_ns: int = 0
    """Before requests that had not arrived yet."""
    late_requests: int = 0
    late_ns: int = 0
    late_max_ns: int = 0
    recheck_retries: int = 0
    retries_exhausted: int = 0
    lost_cas: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    misses: int = 0
    arena_bytes: int = 0
    arena_live: int = 0
    arena_limbo: int = 0
    arena_free: int = 0
    arena_lent: int = 0
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
    disk_gets: int = 0
    disk_bytes: int = 0
    disk_timed_bytes: int = 0
    disk_timed_ns: int = 0
    disk_held: int = 0
    disk_held_bytes: int = 0
    disk_promoted: int = 0
    disk_promoted_bytes: int = 0
    disk_demoted: int = 0
    disk_demoted_bytes: int = 0
    disk_written: int = 0
    disk_written_bytes: int = 0
    disk_tombstones: int = 0
    disk_damaged: int = 0
    disk_errors: int = 0
    disk_lost: int = 0
    copies_promotions: int = 0
    copies_promoted_bytes: int = 0
    copies_refused: int = 0
    copies_demotions: int = 0
    copies_held: int = 0
    copies_held_bytes: int = 0
    copies_hits: int = 0
    copies_bytes: int = 0
    copies_hits_without_mpi: int = 0
    copies_stale: int = 0
    copies_stale_dropped: int = 0
    copies_waited: int = 0
    pool_held_own: int = 0
    pool_free: int = 0
    pool_lent: int = 0
    pool_recalled: int = 0
    pool_held: int = 0
    pool_leased_bytes: int = 0
    pool_recalls: int = 0
    pool_returned: int = 0
    pool_moved: int = 0
    pool_moved_bytes: int = 0
    pool_dropped: int = 0
    dedup_hits: int = 0
    dedup_saved_bytes: int = 0
    dedup_stored_again: int = 0
    dedup_skipped: int = 0
    dedup_waiting: int = 0
    dedup_contents: int = 0
    dedup_aliases: int = 0
    dedup_alias_reads: int = 0

    def take(self, stats: Mapping[str, Any]) -> None:
        """Local. Set what the store itself counts (`Store.stats()`)."""
        for name in _FROM_STORE:
            setattr(self, name, int(stats[name]))
        for state in ARENA:
            setattr(self, f"arena_{state}", int(stats["arena"][state]))
        for group, names in GROUPS.items():
            for name in names:
                setattr(self, f"{group}_{name}", int(stats[group].get(name, 0)))  # without leases there are no extents
        for tier, path in TIERS.items():
            if path in stats["tiers"]:
                setattr(self, f"{tier}_gets", int(stats["tiers"][path]["gets"]))
                setattr(self, f"{tier}_bytes", int(stats["tiers"][path]["bytes"]))
        disk = stats["disk"]  # empty in a store without one
        self.disk_gets, self.disk_bytes = int(disk.get("gets", 0)), int(disk.get("bytes_got", 0))
        for name, theirs in DISK.items():
            setattr(self, f"disk_{name}", int(disk.get(theirs, 0)))

    def add_timed(self, tier: str, nbytes: int, nanoseconds: int) -> None:
        """Local. Count a read that was served by one tier alone."""
        for name, value in ((f"{tier}_timed_bytes", nbytes), (f"{tier}_timed_ns", nanoseconds)):
            setattr(self, name, getattr(self, name) + value)

    def add_call(self, operation: str, blocks: int, nanoseconds: int) -> None:
        """Local. Count one lookup, get or put of so many blocks."""
        for name, value in (("calls", 1), ("blocks", blocks), ("ns", nanoseconds)):
            setattr(self, f"{operation}_{name}", getattr(self, f"{operation}_{name}") + value)

    def add_late(self, nanoseconds: int) -> None:
        """Local. Count a request that was begun so long after it had arrived."""
        self.late_requests += 1
        self.late_ns += nanoseconds
        self.late_max_ns = max(self.late_max_ns, nanoseconds)

    def vector(self) -> Counts:
        """Local. The numbers in the order of `NAMES`."""
        return np.array([getattr(self, name) for name in NAMES], dtype=np.int64)


NAMES = tuple(item.name for item in fields(Tally))


def columns(tallies: Counts) -> dict[str, Counts]:
    """Local. The tallies [ranks, NAMES] by name: what each rank counted."""
    return {name: tallies[:, column] for column, name in enumerate(NAMES)}


def totals(tallies: Counts) -> dict[str, int]:
    """Local. The sums over the ranks by name; `late_max_ns` is the largest instead."""
    ranks = columns(tallies)
    return {name: int(ranks[name].max() if name == "late_max_ns" else ranks[name].sum()) for name in NAMES}


def rate(moved: Counts, nanoseconds: Counts) -> float:
    """Local. The sum over the ranks of bytes / time of each, GB/s; a rank that spent no time adds nothing."""
    busy = nanoseconds > 0
    return float((moved[busy] / nanoseconds[busy]).sum())  # bytes per ns are GB/s
