"""The sums over the ranks, what they mean, and the tables that show them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from workload_fakes import DictStore, replay, setting

from cascade_mpi import __version__
from cascade_mpi.errors import ProtocolError
from cascade_mpi.traces import deal, synthetic
from cascade_mpi.workload.result import SCHEMA, Result, check_counts, summarise
from cascade_mpi.workload.tables import show
from cascade_mpi.workload.tally import NAMES, Latencies, Tally

NEEDED = {
    "trace", "seed", "mpi", "ranks", "nodes", "requests", "accesses", "hits", "unique", "double_computes", "hit_rate",
    "corrupt", "get_gbps", "put_gbps", "tiers", "latency_us", "recheck_retries", "block_bytes", "dram_per_rank",
    "dram_total", "seconds", "refused", "evicted", "route", "timed", "trace_format", "replayed", "signal", "stall_s",
    "retries", "imbalance", "arena", "lateness", "unwritten", "trace_unique", "schema", "cascade",
    "host", "started",
}  # fmt: skip


def test_the_sum_over_ranks_adds_rates_and_counts() -> None:
    dealt = deal(islice(synthetic(1), 10), 0, 1)
    one = Tally(accesses=6, hits=2, computes=4, get_bytes=4000, get_ns=1000, get_calls=2, get_blocks=6)
    two = Tally(accesses=4, hits=3, computes=1, get_bytes=1000, get_ns=1000, get_calls=1, get_blocks=2)
    idle = Tally()
    bins = np.zeros((3, Latencies.BINS), np.int64)
    result = summarise(setting(dealt), np.stack([t.vector() for t in (one, two, idle)]), bins, 1.5)
    assert (result.accesses, result.hits, result.hit_rate, result.seconds) == (10, 5, 0.5, 1.5)
    assert result.double_computes == 5 - dealt.unique
    assert result.get_gbps == pytest.approx(4.0 + 1.0)
    assert result.put_gbps == 0
    assert result.latency_us["get"]["blocks_per_call"] == pytest.approx(8 / 3)
    assert result.latency_us["get"]["mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"accesses": 9}, "9 accesses were counted, 10 are in what was replayed"),
        ({"double_computes": -1}, "1 of the 4 unique blocks were never computed"),
        ({"hits": 7}, "7 hits were counted, an endless cache has 6"),
    ],
)
def test_counts_that_cannot_be_are_an_error(changed: dict[str, int], said: str) -> None:
    result = replace(three_ranks(), accesses=10, hits=5, unique=4, double_computes=1)
    check_counts(result, accesses=10, most_hits=6)
    with pytest.raises(ProtocolError, match=said):
        check_counts(replace(result, **changed), accesses=10, most_hits=6)


def test_the_first_line_names_a_generator_once_and_counts_in_words() -> None:
    made = setting(deal(islice(synthetic(1), 10), 0, 1))
    assert "; test: 10 requests, " in made.line()
    line = replace(made, trace_format="jsonl", requests=1, unique=1).line()
    assert "; test (jsonl): 1 request, 1 block of 100 B;" in line
    assert "1,500 requests" in replace(made, requests=1500).line()


def test_quantiles_are_within_a_bin() -> None:
    latencies = Latencies()
    for nanoseconds in range(1000, 1_001_000, 100):
        latencies.add(nanoseconds)
    counts = latencies.counts()
    assert counts.sum() == 10_000
    for share in (0.5, 0.9, 0.99, 0.999):
        assert Latencies.quantile_us(counts, share) == pytest.approx(1 + 1000 * share, rel=0.015)
    assert Latencies.quantile_us(np.zeros_like(counts), 0.5) == 0


def test_extreme_durations_stay_in_the_histogram() -> None:
    latencies = Latencies()
    for nanoseconds in (0, 1, 1 << 62):
        latencies.add(nanoseconds)
    assert latencies.counts()[[0, -1]].tolist() == [2, 1]


def test_the_record_has_what_readers_rely_on() -> None:
    result, _ = replay(DictStore())
    record = result.record()
    assert not NEEDED - record.keys()
    assert set(record["tiers"]) == {"local", "node", "remote", "disk"}
    assert set(record["tiers"]["node"]) == {"gets", "bytes", "gbps"}
    assert {"p50", "p90", "p99", "p999", "mean"} <= set(record["latency_us"]["get"])
    assert (record["recheck_retries"], record["evicted"]) == (3, 2)
    assert "setting" not in record
    assert (record["schema"], record["cascade"]) == (SCHEMA, __version__)
    assert record["retries"] == {"recheck": 3, "exhausted": 1, "lost_cas": 4}
    assert json.loads(json.dumps(record))["arena"]["fill"] == 0.5


def test_the_table_shows_the_counts() -> None:
    result, _ = replay(DictStore())
    out = io.StringIO()
    show(result, Console(file=out, width=100))
    assert f"{result.hits:,}" in out.getvalue()
    assert "corrupt blocks were read" not in out.getvalue()
    assert "1 rank on 1 node" in result.setting.line()


def test_the_disk_is_shown_where_there_is_one() -> None:
    plain = three_ranks()
    assert plain.disk is None
    shown = io.StringIO()
    show(plain, Console(file=shown, width=100))
    assert "disk" not in shown.getvalue()
    settled = replace(plain.setting, disk="/kv", durability="demote", first=20, requests=50)
    tally = Tally(requests=30, disk_held=1234, disk_held_bytes=4096, disk_lost=5, disk_gets=77)
    bins = np.zeros((3, Latencies.BINS), np.int64)
    result = summarise(settled, tally.vector()[None, :], bins, 1.0, warm=3)
    drained = {"blocks": 321, "bytes": 4096, "left": 17, "left_bytes": 100, "seconds": 2.5}
    sums = {"runs": 2, "position": 50, "seconds": 3.5, "requests": 50, "accesses": 10, "hits": 4, "computes": 6,
            "corrupt": 0, "disk_gets": 888}  # fmt: skip
    show(replace(result, drained=drained, parts=sums), Console(file=shown, width=100))
    for text in ("30 of 50 behind the first 20", "1,234 blocks, 4.0 KiB", "5 lost", "321 blocks", "17 left", "888",
                 "all 2 runs of this trace", "hits + unique - on disk before + double computes"):  # fmt: skip
        assert text in shown.getvalue()
    assert "disk /kv (demote)" in settled.line()
    record = json.loads(json.dumps(result.record()))
    assert (record["directory"], record["disk"]["held"], record["first"]) == ("/kv", 1234, 20)


@pytest.mark.parametrize(
    ("changed", "goes_on"),
    [({}, True), ({"corrupt": 1}, False), ({"replayed": 0}, False), ({"unwritten": ("a",)}, False)],
)
def test_another_run_is_of_use_where_there_is_something_to_go_on_with(changed: Any, goes_on: bool) -> None:
    result = three_ranks()
    assert not result.goes_on  # there is no disk
    on_disk = replace(result, setting=replace(result.setting, disk="/kv", durability="demote"))
    assert replace(on_disk, **changed).goes_on == goes_on
    assert not replace(on_disk, setting=replace(on_disk.setting, durability="read-only")).goes_on


def test_what_was_on_disk_before_need_not_be_computed() -> None:
    result = replace(three_ranks(), accesses=10, hits=8, unique=4, warm=3, double_computes=1)
    check_counts(result, accesses=10, most_hits=10)
    with pytest.raises(ProtocolError, match="1 of the 4 unique blocks, 3 of which were on disk, were never computed"):
        check_counts(replace(result, double_computes=-1), accesses=10, most_hits=10)


def test_every_number_of_a_tally_is_in_its_vector() -> None:
    tally = Tally(**{name: number for number, name in enumerate(NAMES)})
    assert tally.vector().tolist() == list(range(len(NAMES)))


def three_ranks(**more: Any) -> Result:
    """Three ranks of 10 s: one stalled 1 s, one 4 s and asleep 2 s, one 7 s."""
    dealt = deal(islice(synthetic(1), 30), 0, 3)
    second = 1_000_000_000
    tallies = [
        Tally(requests=10, stall_ns=1 * second, get_bytes=600, arena_bytes=100, arena_live=90, arena_free=10),
        Tally(requests=10, stall_ns=4 * second, slept_ns=2 * second, get_bytes=100, put_bytes=200, arena_bytes=100,
              arena_live=30, arena_limbo=20, arena_free=50, late_requests=6, late_ns=second // 10,
              late_max_ns=second // 20),
        Tally(requests=10, stall_ns=7 * second, late_requests=3, late_ns=second // 5, late_max_ns=second // 10,
              arena_bytes=100, arena_free=100),
    ]  # fmt: skip
    bins = np.zeros((3, Latencies.BINS), np.int64)
    settled = replace(setting(dealt), timed=more.pop("timed", None))
    return summarise(settled, np.stack([tally.vector() for tally in tallies]), bins, 10.0, **more)


def test_stalls_and_imbalance_are_those_of_the_ranks() -> None:
    result = three_ranks()
    assert result.stall_s == {"min": 1.0, "mean": 4.0, "max": 7.0}
    busy = (9.0 + 4.0 + 3.0) / 3
    assert result.imbalance["busy"] == pytest.approx(9.0 / busy)
    assert result.imbalance["bytes"] == pytest.approx(600 / 300)
    assert (result.imbalance["slowest_rank"], result.imbalance["slowest_busy_s"]) == (0, 9.0)
    assert result.imbalance["mean_busy_s"] == pytest.approx(busy)


def test_the_fill_of_the_arenas_is_that_of_all_and_of_single_ranks() -> None:
    arena = three_ranks().arena
    assert (arena["bytes"], arena["live"], arena["limbo"], arena["free"]) == (300, 120, 20, 160)
    assert (arena["fill"], arena["fill_min"], arena["fill_max"]) == (0.4, 0.0, 0.9)


def test_lateness_is_told_of_timed_replays_only() -> None:
    assert three_ranks().lateness is None
    assert three_ranks(timed=2.0).lateness == pytest.approx({"share": 0.3, "mean_ms": 10.0, "max_ms": 100.0})


def test_an_interrupted_result_is_about_what_was_replayed() -> None:
    result = three_ranks(unique=0, signal=2)
    assert (result.signal, result.replayed, result.unique, result.double_computes) == (2, 30, 0, 0)
    out = io.StringIO()
    show(replace(result, setting=replace(result.setting, requests=70)), Console(file=out, width=100))
    assert "interrupted after 30 of 70 requests" in out.getvalue()
    assert "accesses, of what was replayed" in out.getvalue()


def test_the_table_has_stalls_retries_imbalance_fill_and_lateness() -> None:
    out = io.StringIO()
    show(three_ranks(timed=2.0), Console(file=out, width=100))
    text = " ".join(out.getvalue().split())
    for said in (
        "1.00 to 7.00, mean 4.00", "0 re-checks, 0 exhausted, 0 lost CAS", "busy time 1.69, bytes 2.00",
        "slowest rank 0, busy 9.00 s (mean 5.33 s)", "30.00%, mean 10.0 ms, max 100.0 ms",
        "live 120 B, limbo 20 B, free 160 B", "40.0%, a rank 0.0% to 90.0%", "30, round-robin",
    ):  # fmt: skip
        assert said in text
    assert "interrupted" not in text


def test_durations_below_a_power_of_two_are_counted_exactly() -> None:
    latencies = Latencies()
    for nanoseconds in (1, 1023, 1024, 1025, 4095, 4096):
        latencies.add(nanoseconds)
    assert [Latencies.at_most(latencies.counts(), octave) for octave in (0, 10, 12, 13)] == [0, 2, 5, 6]
