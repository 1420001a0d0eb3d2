"""Metrics of a replay for other programs: a Prometheus textfile of each rank or node, and JSON lines of all ranks.

Covers the names below, their meaning, and both files. Does not cover when they are written (see `sampling`).

==========================================  =========  =======================================================
name (label)                                type       meaning
==========================================  =========  =======================================================
cascade_requests_total                      counter    requests served
cascade_block_accesses_total                counter    blocks that these requests needed
cascade_hits_total                          counter    blocks that were there, fetched with the right contents
cascade_computes_total                      counter    blocks that were not, computed and put
cascade_corrupt_blocks_total                counter    blocks that came back with other bytes
cascade_misses_total                        counter    gets of the store that found nothing
cascade_tier_gets_total (tier)              counter    blocks got from local, node or remote memory, or disk
cascade_tier_get_bytes_total (tier)         counter    their bytes
cascade_puts_total (outcome)                counter    blocks put: stored, kept (was there) or refused (no room)
cascade_put_bytes_total                     counter    bytes stored
cascade_evicted_blocks_total                counter    blocks evicted to make room
cascade_evicted_bytes_total                 counter    their bytes
cascade_retries_total (reason)              counter    recheck: the block moved during the read; exhausted: the
                                                       read gave up; lost_cas: another rank was faster
cascade_arena_bytes (state)                 gauge      DRAM arena: live, limbo (resting), free, lent to others
cascade_arena_capacity_bytes                gauge      its size
cascade_copies_made_total                   counter    copies made of other nodes' blocks
cascade_copies_made_bytes_total             counter    their bytes
cascade_copies_refused_total                counter    copies that were due and found no room
cascade_copies_dropped_total (reason)       counter    copies that went: cold (others were used later), stale
                                                       (the block changed)
cascade_copies                              gauge      copies that are held
cascade_copies_bytes                        gauge      their bytes
cascade_copy_hits_total                     counter    blocks read from copies
cascade_copy_hit_bytes_total                counter    their bytes
cascade_copy_hits_without_mpi_total         counter    those that called MPI for nothing
cascade_copy_stale_looks_total              counter    looks at copies whose block was another one
cascade_copy_waits_total                    counter    reads of what another rank was to fetch
cascade_extents (state)                     gauge      extents of the own arena: own (used by its rank), free,
                                                       lent; leased from others
cascade_extents_recalled                    gauge      those of the lent ones that were asked for
cascade_leased_bytes                        gauge      payload in extents of others
cascade_extent_recalls_total                counter    extents asked for
cascade_extents_returned_total              counter    extents given back
cascade_moved_blocks_total                  counter    blocks moved to another cell
cascade_moved_bytes_total                   counter    their bytes
cascade_move_dropped_blocks_total           counter    blocks that went as they fitted nowhere
cascade_dedup_hits_total                    counter    puts whose content was stored already
cascade_dedup_saved_bytes_total             counter    their bytes
cascade_dedup_stored_again_total            counter    puts whose content went meanwhile
cascade_dedup_skipped_total                 counter    blocks left as they were: no room for a content
cascade_dedup_waiting                       gauge      blocks whose content is to be looked at later
cascade_dedup_cells (kind)                  gauge      cells of content (bytes stored once) and alias (names
                                                       of them)
cascade_alias_reads_total                   counter    reads through an alias
cascade_disk_blocks                         gauge      blocks on disk, those that are in memory too included
cascade_disk_bytes                          gauge      their bytes
cascade_disk_written_blocks_total           counter    blocks written to disk
cascade_disk_written_bytes_total            counter    their bytes
cascade_disk_demoted_blocks_total           counter    blocks written as they left memory
cascade_disk_demoted_bytes_total            counter    their bytes
cascade_disk_promoted_blocks_total          counter    blocks brought back into memory
cascade_disk_promoted_bytes_total           counter    their bytes
cascade_disk_tombstones_total               counter    records of deletes written
cascade_disk_problems_total (reason)        counter    damaged: blocks that could not be read; lost: blocks whose
                                                       sync failed; error: refusals of the file system
cascade_stall_seconds_total                 counter    time in barriers, waiting for other ranks
cascade_sleep_seconds_total                 counter    time before requests that had not arrived (timed replay)
cascade_late_requests_total                 counter    requests begun more than 10 ms after their arrival
cascade_late_seconds_total                  counter    their lateness, summed
cascade_call_seconds (operation)            histogram  duration of a call for a batch: lookup, get or put
==========================================  =========  =======================================================

Every metric has a label ``rank`` or ``node``; of a node it is the sum over its ranks. A line of the JSON file has the
same numbers as the sums over all ranks, under the names of `Tally`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from cascade_mpi.errors import ConfigError
from cascade_mpi.workload.result import QUANTILES, arena
from cascade_mpi.workload.sampling import Sample
from cascade_mpi.workload.tally import ARENA, NAMES, OPERATIONS, TIERS, Counts, Latencies, totals

if TYPE_CHECKING:
    from mpi4py import MPI
    from prometheus_client.core import Metric

    from cascade_mpi.workload.options import PromPer, WorkloadOptions
    from cascade_mpi.workload.plan import Nodes

PERIOD_S = 5.0
# Name, what it is divided by (nanoseconds are counted, seconds are told), column of the tally, help.
_COUNTERS = (
    ("cascade_requests", 1, "requests", "Requests served."),
    ("cascade_block_accesses", 1, "accesses", "Blocks that the requests needed."),
    ("cascade_hits", 1, "hits", "Blocks that were there and fetched with the right contents."),
    ("cascade_computes", 1, "computes", "Blocks that were computed and put."),
    ("cascade_corrupt_blocks", 1, "corrupt", "Blocks that came back with other bytes."),
    ("cascade_misses", 1, "misses", "Gets of the store that found nothing."),
    ("cascade_put_bytes", 1, "put_bytes", "Bytes stored by puts."),
    ("cascade_evicted_blocks", 1, "evicted", "Blocks evicted to make room."),
    ("cascade_evicted_bytes", 1, "evicted_bytes", "Bytes evicted to make room."),
    ("cascade_stall_seconds", 1e9, "stall_ns", "Time in barriers, waiting for other ranks."),
    ("cascade_sleep_seconds", 1e9, "slept_ns", "Time before requests that had not arrived."),
    ("cascade_late_requests", 1, "late_requests", "Requests begun more than 10 ms after their arrival."),
    ("cascade_late_seconds", 1e9, "late_ns", "Lateness of these requests, summed."),
    ("cascade_copies_made", 1, "copies_promotions", "Copies made of other nodes' blocks."),
    ("cascade_copies_made_bytes", 1, "copies_promoted_bytes", "Their bytes."),
    ("cascade_copies_refused", 1, "copies_refused", "Copies that were due and found no room."),
    ("cascade_copy_hits", 1, "copies_hits", "Blocks read from copies."),
    ("cascade_copy_hit_bytes", 1, "copies_bytes", "Their bytes."),
    ("cascade_copy_hits_without_mpi", 1, "copies_hits_without_mpi", "Those that called MPI for nothing."),
    ("cascade_copy_stale_looks", 1, "copies_stale", "Looks at copies whose block was another one."),
    ("cascade_copy_waits", 1, "copies_waited", "Reads of what another rank was to fetch."),
    ("cascade_extent_recalls", 1, "pool_recalls", "Extents asked for."),
    ("cascade_extents_returned", 1, "pool_returned", "Extents given back."),
    ("cascade_moved_blocks", 1, "pool_moved", "Blocks moved to another cell."),
    ("cascade_moved_bytes", 1, "pool_moved_bytes", "Their bytes."),
    ("cascade_move_dropped_blocks", 1, "pool_dropped", "Blocks that went as they fitted nowhere."),
    ("cascade_dedup_hits", 1, "dedup_hits", "Puts whose content was stored already."),
    ("cascade_dedup_saved_bytes", 1, "dedup_saved_bytes", "Their bytes."),
    ("cascade_dedup_stored_again", 1, "dedup_stored_again", "Puts whose content went meanwhile."),
    ("cascade_dedup_skipped", 1, "dedup_skipped", "Blocks left as they were: no room for a content."),
    ("cascade_alias_reads", 1, "dedup_alias_reads", "Reads through an alias."),
    ("cascade_disk_written_blocks", 1, "disk_written", "Blocks written to disk."),
    ("cascade_disk_written_bytes", 1, "disk_written_bytes", "Their bytes."),
    ("cascade_disk_demoted_blocks", 1, "disk_demoted", "Blocks written as they left memory."),
    ("cascade_disk_demoted_bytes", 1, "disk_demoted_bytes", "Their bytes."),
    ("cascade_disk_promoted_blocks", 1, "disk_promoted", "Blocks brought back into memory."),
    ("cascade_disk_promoted_bytes", 1, "disk_promoted_bytes", "Their bytes."),
    ("cascade_disk_tombstones", 1, "disk_tombstones", "Records of deletes written."),
)  # fmt: skip
# Name, column of the tally, help.
_GAUGES = (
    ("cascade_arena_capacity_bytes", "arena_bytes", "DRAM arena."),
    ("cascade_copies", "copies_held", "Copies that are held."),
    ("cascade_copies_bytes", "copies_held_bytes", "Their bytes."),
    ("cascade_extents_recalled", "pool_recalled", "Those of the lent ones that were asked for."),
    ("cascade_leased_bytes", "pool_leased_bytes", "Payload in extents of others."),
    ("cascade_dedup_waiting", "dedup_waiting", "Blocks whose content is to be looked at later."),
    ("cascade_disk_blocks", "disk_held", "Blocks on disk, those that are in memory too included."),
    ("cascade_disk_bytes", "disk_held_bytes", "Their bytes."),
)  # fmt: skip
# Is it a gauge, name, help, further label, the columns by its values.
_LABELLED = (
    (False, "cascade_tier_gets", "Blocks got, by tier.", "tier", {tier: f"{tier}_gets" for tier in TIERS}),
    (False, "cascade_tier_get_bytes", "Bytes got, by tier.", "tier", {tier: f"{tier}_bytes" for tier in TIERS}),
    (False, "cascade_retries", "Steps begun again.", "reason",
     {"recheck": "recheck_retries", "exhausted": "retries_exhausted", "lost_cas": "lost_cas"}),
    (True, "cascade_arena_bytes", "DRAM arena, by state.", "state",
     {state: f"arena_{state}" for state in ARENA if state != "bytes"}),
    (False, "cascade_copies_dropped", "Copies that went.", "reason",
     {"cold": "copies_demotions", "stale": "copies_stale_dropped"}),
    (True, "cascade_extents", "Extents, by state.", "state",
     {"own": "pool_held_own", "free": "pool_free", "lent": "pool_lent", "leased": "pool_held"}),
    (False, "cascade_disk_problems", "What went wrong on disk.", "reason",
     {"damaged": "disk_damaged", "lost": "disk_lost", "error": "disk_errors"}),
    (True, "cascade_dedup_cells", "Cells of contents and of their names.", "kind",
     {"content": "dedup_contents", "alias": "dedup_aliases"}),
)  # fmt: skip
_OCTAVES = range(10, 35, 2)  # buckets of the histogram: 1 µs to 17 s, each four times the one before


def families(mine: Counts, bins: Counts, label: str, value: str) -> Iterator[Metric]:
    """Local. The metrics of a tally [NAMES] and its latency bins [OPERATIONS, bins], with one label on each."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    count = dict(zip(NAMES, mine.tolist(), strict=True))
    for name, per, column, text in _COUNTERS:
        yield _filled(CounterMetricFamily(name, text, labels=[label]), {(): count[column] / per}, value)
    for name, column, text in _GAUGES:
        yield _filled(GaugeMetricFamily(name, text, labels=[label]), {(): count[column]}, value)
    for is_gauge, name, text, further, by_value in _LABELLED:
        family = (GaugeMetricFamily if is_gauge else CounterMetricFamily)(name, text, labels=[label, further])
        yield _filled(family, {(each,): count[column] for each, column in by_value.items()}, value)
    kept, refused = count["kept"], count["refused"]
    puts = {("stored",): count["put_blocks"] - kept - refused, ("kept",): kept, ("refused",): refused}
    yield _filled(
        CounterMetricFamily("cascade_puts", "Blocks put, by outcome.", labels=[label, "outcome"]), puts, value
    )
    calls = HistogramMetricFamily(
        "cascade_call_seconds", "Duration of a call for a batch of blocks.", labels=[label, "operation"]
    )
    for name, counts in zip(OPERATIONS, bins, strict=True):
        buckets = [(repr(2.0**octave / 1e9), float(Latencies.at_most(counts, octave))) for octave in _OCTAVES]
        buckets.append(("+Inf", float(counts.sum())))
        calls.add_metric([value, name], buckets, sum_value=count[f"{name}_ns"] / 1e9)
    yield calls


def _filled(family: Any, values: Mapping[Any, float], label_value: str) -> Any:
    for labels, value in values.items():
        family.add_metric([label_value, *labels], value)
    return family


class PrometheusFile:
    """The textfile of this rank, or of its node when `node` (the ranks of the node) is given.

    Each write replaces the file at once: a reader never sees half of it.
    """

    period_s = PERIOD_S

    def __init__(self, path: Path, label: str, value: str, node: MPI.Comm | None = None) -> None:
        from prometheus_client import CollectorRegistry

        self._path, self._label, self._value, self._node = path, label, value, node
        self._now: tuple[Counts, Counts] = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Local. What the registry asks for."""
        return families(*self._now, self._label, self._value)

    def write(self, mine: Counts, bins: Counts) -> None:
        """Collective on the node (2 Reduces) if the file is a node's, else local. OSError names the file."""
        from prometheus_client import write_to_textfile

        if self._node is not None:
            # late_max_ns is no metric: its sum is not used
            mine, bins = _sum(self._node, mine), _sum(self._node, bins)
            if self._node.rank != 0:
                return
        self._now = (mine, bins)
        try:
            write_to_textfile(os.fspath(self._path), self._registry)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self._path)) from None

    def close(self) -> None:
        """Collective on the node if the file is a node's."""
        if self._node is not None:
            self._node.Free()


def _sum(comm: MPI.Comm, counts: Counts) -> Counts:
    summed = np.empty_like(counts)
    comm.Reduce(np.ascontiguousarray(counts), summed if comm.rank == 0 else None)
    return summed


def textfile_path(options: WorkloadOptions, rank: int, ranks: int, nodes: Nodes) -> Path:
    """Local. Where this rank, or its node, writes; ConfigError when several would write the same file, or none can."""
    pattern, per = options.prom_file or "", options.prom_per
    writers = ranks if per == "rank" else nodes.count
    if writers > 1 and f"{{{per}}}" not in pattern:
        raise ConfigError(
            f"--prom-file {pattern}: {writers} {per}s would write the same file: put {{{per}}} into its name"
        )
    path = Path(pattern.replace("{rank}", str(rank)).replace("{node}", nodes.name))
    if not path.parent.is_dir():
        raise ConfigError(f"--prom-file {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--prom-file {path}: it is a directory")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--prom-file {path}: rank {rank} may not write to {path.parent}")
    return path


def open_textfile(comm: MPI.Intracomm, path: Path, per: PromPer, nodes: Nodes) -> PrometheusFile:
    """Collective when it is a node's (1 Split)."""
    if per == "rank":
        return PrometheusFile(path, "rank", str(comm.rank))
    return PrometheusFile(path, "node", nodes.name, comm.Split(nodes.mine, comm.rank))


class JsonLines:
    """An observer that appends a line of JSON for each sample, the last one with ``"final": true``."""

    def __init__(self, file: TextIO, period_s: float = PERIOD_S, now: Callable[[], float] = time.time) -> None:
        self.name, self.period_s = f"--metrics {file.name}", period_s
        self._file, self._now = file, now

    def see(self, sample: Sample) -> None:
        """Local. Write a line; it is in the file when this returns. After an OSError the file is closed."""
        try:
            self._file.write(json.dumps({"unix_time": self._now(), **record(sample)}) + "\n")
            self._file.flush()
        except OSError:
            with suppress(OSError):  # closing writes what is left once more: let that fail here, not at the end
                self._file.close()
            raise


def record(sample: Sample) -> dict[str, Any]:
    """Local. A sample as JSON: sums over the ranks, the fill of the arenas, quantiles of the calls so far."""
    total = totals(sample.tallies)
    return {
        "seconds": sample.seconds,
        "final": sample.final,
        "ranks": len(sample.tallies),
        **total,
        "hit_rate": total["hits"] / total["accesses"] if total["accesses"] else 0.0,
        "arena_fill": arena(sample.tallies)["fill"],
        "latency_us": {
            name: {label: Latencies.quantile_us(counts, share) for label, share in QUANTILES.items()}
            for name, counts in zip(OPERATIONS, sample.bins, strict=True)
        },
    }
