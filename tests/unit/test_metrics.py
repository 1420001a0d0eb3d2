"""Metrics for other programs: their names, their values, and files that are never half written."""

from __future__ import annotations

import io
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_fd_to_metric_families
from workload_fakes import DictStore, setting

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces import deal, synthetic
from cascade_mpi.workload import WorkloadOptions, metrics
from cascade_mpi.workload.metrics import JsonLines, PrometheusFile, record, textfile_path
from cascade_mpi.workload.plan import Nodes
from cascade_mpi.workload.sampling import Sample
from cascade_mpi.workload.tally import DISK, GROUPS, NAMES, OPERATIONS, Latencies, Tally


def counts() -> tuple[np.ndarray, np.ndarray]:
    """A tally in which each number is another one, and latencies of 1, 2 and 3 calls."""
    tally = Tally(**{name: 1000 * (number + 1) for number, name in enumerate(NAMES)})
    latencies = [Latencies() for _ in OPERATIONS]
    for calls, each in enumerate(latencies, start=1):
        for _ in range(calls):
            each.add(3000)
    return tally.vector(), np.stack([each.counts() for each in latencies])


def written(path: Path) -> dict[tuple[str, ...], float]:
    """The samples of a textfile: name and label values to value."""
    found: dict[tuple[str, ...], float] = {}
    with path.open() as file:
        for family in text_fd_to_metric_families(file):
            for sample in family.samples:
                found[sample.name, *sorted(sample.labels.values())] = sample.value
    return found


def test_the_textfile_has_the_numbers_of_the_tally(tmp_path: Path) -> None:
    mine, bins = counts()
    count = dict(zip(NAMES, mine.tolist(), strict=True))
    path = tmp_path / "cascade.prom"
    PrometheusFile(path, "rank", "7").write(mine, bins)
    found = written(path)
    assert found["cascade_requests_total", "7"] == count["requests"]
    assert found["cascade_tier_get_bytes_total", "7", "remote"] == count["remote_bytes"]
    assert found["cascade_puts_total", "7", "stored"] == count["put_blocks"] - count["kept"] - count["refused"]
    assert found["cascade_retries_total", "7", "lost_cas"] == count["lost_cas"]
    assert found["cascade_arena_bytes", "7", "limbo"] == count["arena_limbo"]
    assert found["cascade_arena_bytes", "7", "lent"] == count["arena_lent"]
    assert found["cascade_copies_dropped_total", "7", "stale"] == count["copies_stale_dropped"]
    assert found["cascade_copy_hits_without_mpi_total", "7"] == count["copies_hits_without_mpi"]
    assert found["cascade_extents", "7", "leased"] == count["pool_held"]
    assert found["cascade_moved_bytes_total", "7"] == count["pool_moved_bytes"]
    assert found["cascade_dedup_saved_bytes_total", "7"] == count["dedup_saved_bytes"]
    assert found["cascade_tier_gets_total", "7", "disk"] == count["disk_gets"]
    assert found["cascade_disk_problems_total", "7", "lost"] == count["disk_lost"]
    assert found["cascade_dedup_cells", "7", "alias"] == count["dedup_aliases"]
    assert found["cascade_stall_seconds_total", "7"] == count["stall_ns"] / 1e9
    assert found["cascade_call_seconds_count", "7", "put"] == 3
    assert found["cascade_call_seconds_sum", "7", "get"] == pytest.approx(count["get_ns"] / 1e9)
    assert found["cascade_call_seconds_bucket", "1.024e-06", "7", "put"] == 0
    assert found["cascade_call_seconds_bucket", "4.096e-06", "7", "put"] == 3
    assert list(tmp_path.iterdir()) == [path]  # what it was written to first is gone


def test_every_metric_is_documented_and_there_is_no_other(tmp_path: Path) -> None:
    path = tmp_path / "cascade.prom"
    PrometheusFile(path, "rank", "0").write(*counts())
    names = {re.sub("_(bucket|sum|count|created)$", "", name) for name, *_ in written(path)}
    documented = set(re.findall(r"^(cascade_\w+)", metrics.__doc__ or "", re.MULTILINE))
    assert names == documented


def test_every_number_of_copies_pool_and_contents_is_a_metric(tmp_path: Path) -> None:
    path = tmp_path / "cascade.prom"
    mine, bins = counts()
    PrometheusFile(path, "rank", "0").write(mine, bins)
    values = set(written(path).values())
    grouped = {name: number for name, number in zip(NAMES, mine.tolist(), strict=True) if name.split("_")[0] in GROUPS}
    assert len(grouped) == sum(map(len, GROUPS.values())) + 2  # hits and saved bytes of contents stand outside
    assert {name for name, number in grouped.items() if number not in values} == set()


def test_every_number_of_the_disk_is_a_metric(tmp_path: Path) -> None:
    path = tmp_path / "cascade.prom"
    mine, bins = counts()
    PrometheusFile(path, "rank", "0").write(mine, bins)
    values = set(written(path).values())
    count = dict(zip(NAMES, mine.tolist(), strict=True))
    assert {name for name in DISK if count[f"disk_{name}"] not in values} == set()


def test_a_tally_takes_what_the_disk_tier_counts() -> None:
    stats = DictStore().stats()
    there = {name: 100 + k for k, name in enumerate([*DISK.values(), "gets", "bytes_got"])}
    tally = Tally(disk_gets=5)
    tally.take(stats)
    assert (tally.disk_gets, tally.disk_held) == (0, 0)  # of a store without one
    tally.take(stats | {"disk": there})
    assert (tally.disk_gets, tally.disk_bytes) == (there["gets"], there["bytes_got"])
    assert {name: getattr(tally, f"disk_{name}") for name in DISK} == {name: there[DISK[name]] for name in DISK}


def test_a_tally_takes_what_a_store_counts() -> None:
    tally, stats = Tally(), DictStore().stats()
    tally.take(stats)
    assert (tally.dedup_hits, tally.dedup_alias_reads, tally.copies_waited) == (6, 7, 7)
    assert tally.pool_held == 0  # of a store without leases
    assert tally.arena_live + tally.arena_limbo + tally.arena_free + tally.arena_lent == tally.arena_bytes
    tally.take(stats | {"pool": dict.fromkeys(GROUPS["pool"], 8)})
    assert (tally.pool_held, tally.pool_moved_bytes) == (8, 8)


def test_a_later_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cascade.prom"
    file = PrometheusFile(path, "node", "n1")
    mine, bins = counts()
    file.write(mine, bins)
    before = path.stat().st_ino
    file.write(2 * mine, bins)
    assert written(path)["cascade_requests_total", "n1"] == 2 * mine[0]
    assert path.stat().st_ino != before


def test_a_textfile_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = PrometheusFile(tmp_path / "absent" / "cascade.prom", "rank", "0")
    with pytest.raises(OSError, match=r"absent/cascade\.prom"):
        file.write(*counts())


NODES = Nodes(count=2, most=2, on_host=2, mine=1, local_rank=0, host="h2", name="h2")


@pytest.mark.parametrize(
    ("pattern", "per", "expected"),
    [("a-{rank}.prom", "rank", "a-3.prom"), ("{node}-{rank}", "rank", "h2-3"), ("{node}.prom", "node", "h2.prom")],
)
def test_names_of_textfiles(tmp_path: Path, pattern: str, per: Any, expected: str) -> None:
    options = WorkloadOptions(prom_file=str(tmp_path / pattern), prom_per=per)
    assert textfile_path(options, 3, 4, NODES) == tmp_path / expected


@pytest.mark.parametrize(
    ("pattern", "per", "said"),
    [
        ("a.prom", "rank", "4 ranks would write the same file: put {rank} into its name"),
        ("a-{node}.prom", "rank", "put {rank} into its name"),
        ("a.prom", "node", "2 nodes would write the same file: put {node} into its name"),
        ("absent/{rank}", "rank", "there is no directory"),
        ("folder-{rank}", "rank", "folder-3: it is a directory"),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, pattern: str, per: Any, said: str) -> None:
    (tmp_path / "folder-3").mkdir()
    options = WorkloadOptions(prom_file=str(tmp_path / pattern), prom_per=per)
    with pytest.raises(ConfigError, match=said):
        textfile_path(options, 3, 4, NODES)


def test_one_writer_needs_no_number(tmp_path: Path) -> None:
    alone = Nodes(count=1, most=1, on_host=1, mine=0, local_rank=0, host="h", name="h")
    options = WorkloadOptions(prom_file=str(tmp_path / "a.prom"))
    assert textfile_path(options, 0, 1, alone) == tmp_path / "a.prom"


def sample(final: bool = False) -> Sample:
    mine, bins = counts()
    return Sample(setting(deal(islice(synthetic(1), 10), 0, 1)), np.stack([mine, mine]), bins, 2.5, final)


def test_a_line_of_json_has_the_sums_of_all_ranks() -> None:
    found = record(sample())
    assert (found["seconds"], found["ranks"], found["final"]) == (2.5, 2, False)
    assert found["get_bytes"] == 2 * 1000 * (NAMES.index("get_bytes") + 1)
    assert found["late_max_ns"] == 1000 * (NAMES.index("late_max_ns") + 1)  # the largest, not the sum
    assert found["hit_rate"] == found["hits"] / found["accesses"]
    assert found["latency_us"]["lookup"]["p50"] == pytest.approx(3.0, rel=0.02)


def test_json_lines_are_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with path.open("w") as file:
        lines = JsonLines(file, now=lambda: 1.5)
        lines.see(sample())
        assert json.loads(path.read_text())["unix_time"] == 1.5
        lines.see(sample(final=True))
        assert [json.loads(line)["final"] for line in path.read_text().splitlines()] == [False, True]
    assert lines.name == f"--metrics {path}"


def test_a_tally_of_nothing_has_metrics_too(tmp_path: Path) -> None:
    out = io.StringIO()
    nothing = Sample(
        sample().setting, np.zeros((2, len(NAMES)), np.int64), np.zeros((3, Latencies.BINS), np.int64), 0.0
    )
    json.dump(record(nothing), out)
    assert json.loads(out.getvalue())["hit_rate"] == 0
