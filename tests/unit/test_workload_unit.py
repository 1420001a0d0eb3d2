"""The replay against a store in this process that can be made to fail, the sums of it, and the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cascade_mpi import cli, launcher
from cascade_mpi.commands import workload as workload_command
from cascade_mpi.errors import ConfigError
from cascade_mpi.traces import Deal, deal, synthetic
from cascade_mpi.workload import Result, WorkloadOptions
from cascade_mpi.workload.result import Setting, summarise
from cascade_mpi.workload.server import Server
from cascade_mpi.workload.tables import show
from cascade_mpi.workload.tally import NAMES, OPERATIONS, Latencies, Tally

NEEDED = {
    "trace", "seed", "mpi", "ranks", "nodes", "requests", "accesses", "hits", "unique", "double_computes", "hit_rate",
    "corrupt", "get_gbps", "put_gbps", "tiers", "latency_us", "recheck_retries", "block_bytes", "dram_per_rank",
    "dram_total", "seconds", "refused", "evicted",
}  # fmt: skip


class DictStore:
    """A dictionary behind the calls that a replay makes; `hurt(key, data)` changes what is read."""

    def __init__(self, capacity: int = 1 << 60, hurt: Any = None) -> None:
        self.blocks: dict[tuple[int, int], bytes] = {}
        self.capacity, self.hurt = capacity, hurt
        self.gets = self.bytes = 0
        self.lies = False

    def contains_many(self, keys: np.ndarray, exact: bool = True) -> np.ndarray:
        return np.array([self.lies or (hi, lo) in self.blocks for hi, lo in keys.tolist()])

    def locate(self, key: int) -> Any:
        there = (key >> 64, key & (1 << 64) - 1) in self.blocks
        return SimpleNamespace(path=("self", "node", "remote")[key % 3]) if there else None

    def get_many(self, keys: np.ndarray, outs: Any) -> list[int | None]:
        sizes: list[int | None] = []
        for (hi, lo), out in zip(keys.tolist(), outs, strict=True):
            data = self.blocks.get((hi, lo))
            if data is not None and self.hurt is not None:
                data = self.hurt(lo, data)
            sizes.append(None if data is None else len(data))
            if data is not None:
                out[: len(data)] = np.frombuffer(data, np.uint8)
                self.gets, self.bytes = self.gets + 1, self.bytes + len(data)
        return sizes

    def put_many(self, keys: np.ndarray, data: Any, *, exists: str) -> list[Any]:
        assert exists == "keep"
        results = []
        for (hi, lo), each in zip(keys.tolist(), data, strict=True):
            kept = (hi, lo) in self.blocks
            refused = not kept and len(self.blocks) >= self.capacity
            if not kept and not refused:
                self.blocks[hi, lo] = each.tobytes()
            results.append(SimpleNamespace(stored=not kept and not refused, kept=kept, refused=refused))
        return results

    def progress(self) -> None:
        pass

    def stats(self) -> dict[str, Any]:
        tiers = {path: {"gets": 0, "bytes": 0} for path in ("self", "node", "remote")}
        tiers["self"] = {"gets": self.gets, "bytes": self.bytes}
        return {
            "recheck_retries": 3, "retries_exhausted": 1, "lost_cas": 4, "evicted": 2, "evicted_bytes": 200,
            "misses": 5, "arena": {"bytes": 1000, "live": 500, "limbo": 100, "free": 400}, "tiers": tiers,
        }  # fmt: skip


def setting(dealt: Deal, block_bytes: int = 100, verify: Any = "full") -> Setting:
    return Setting(
        trace="test", trace_format="chat", seed=0, route="round-robin", timed=None, ranks=1,
        nodes=1, requests=dealt.requests, unique=dealt.unique, block_bytes=block_bytes,
        dram_per_rank=1 << 20, dram_per_node=1 << 20, dram_total=1 << 20, window=4, verify=verify, mpi="none",
    )  # fmt: skip


def replay(store: DictStore, requests: int = 200, **options: Any) -> tuple[Result, Deal]:
    dealt = deal(islice(synthetic(1), requests), 0, 1)
    settled = setting(dealt, **options)
    server = Server(store, settled, dealt.longest)
    for ids in dealt.mine:
        server.serve(ids)
    server.tally.take(store.stats())
    bins = np.stack([server.latencies[name].counts() for name in OPERATIONS])
    return summarise(settled, server.tally.vector()[None, :], bins, seconds=2.0), dealt


# ------------------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("block_bytes", [1, 100, 4096])
def test_one_rank_hits_exactly_the_prefixes(block_bytes: int) -> None:
    result, dealt = replay(DictStore(), block_bytes=block_bytes)
    assert (result.hits, result.double_computes, result.corrupt) == (dealt.prefix_hits, 0, 0)
    assert result.hits + result.unique == result.accesses == dealt.accesses
    assert result.bytes_got == result.hits * block_bytes
    assert result.bytes_put == result.unique * block_bytes
    assert result.tiers["local"]["gets"] == result.hits


def test_a_prefix_longer_than_the_buffers_is_fetched_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade_mpi.workload.server.BATCH_BLOCKS", 3)
    result, dealt = replay(DictStore())
    assert result.hits == dealt.prefix_hits
    assert result.latency_us["get"]["blocks_per_call"] <= 3


def swapped(store: DictStore) -> Any:
    return lambda lo, data: next(v for (_, other), v in store.blocks.items() if other != lo) if lo == 5 else data


@pytest.mark.parametrize(
    "hurt",
    [
        lambda lo, data: data[:-1] if lo == 5 else data,
        lambda lo, data: data[8:] + data[:8] if lo == 5 else data,
        lambda lo, data: bytes([data[0] ^ 1]) + data[1:] if lo == 5 else data,
        lambda lo, data: b"" if lo == 5 else data,
    ],
    ids=["cut", "shifted", "one bit", "empty"],
)
def test_a_corrupt_block_is_counted_and_computed_again(hurt: Any) -> None:
    result, dealt = replay(DictStore(hurt=hurt))
    assert result.corrupt > 0
    assert result.hits < dealt.prefix_hits
    assert result.double_computes == dealt.prefix_hits - result.hits
    assert result.hits + result.unique + result.double_computes == result.accesses


def test_a_swapped_block_is_corrupt_unless_nobody_looks() -> None:
    for verify, seen in (("full", True), ("sample", True), ("off", False)):
        store = DictStore()
        store.hurt = swapped(store)
        result, _ = replay(store, verify=verify)
        assert (result.corrupt > 0) is seen


def test_a_read_that_writes_nothing_is_corrupt() -> None:
    store = DictStore()
    read = store.get_many
    store.get_many = lambda keys, outs: read(keys, [np.empty_like(out) for out in outs])  # type: ignore[method-assign]
    result, _ = replay(store)
    assert (result.hits, result.corrupt > 0) == (0, True)


def test_a_lookup_may_be_wrong_about_a_block() -> None:
    # A fingerprint can be there without the key: the fetch decides.
    store = DictStore()
    store.lies = True
    result, dealt = replay(store)
    assert (result.hits, result.corrupt) == (dealt.prefix_hits, 0)


def test_refused_puts_are_counted_and_computed_again() -> None:
    result, dealt = replay(DictStore(capacity=100))
    assert result.refused == result.accesses - result.hits - 100
    assert result.hits + result.unique + result.double_computes == result.accesses
    assert result.hits < dealt.prefix_hits


def test_blocks_that_another_rank_put_first_are_kept() -> None:
    store = DictStore()
    replay(store)
    store.contains_many = lambda keys, exact: np.zeros(len(keys), bool)  # type: ignore[method-assign]
    result, _ = replay(store)
    assert (result.hits, result.kept, result.bytes_put) == (0, result.accesses, 0)
    assert result.unique + result.double_computes == result.accesses


def test_tiers_are_timed_on_sampled_requests() -> None:
    store = DictStore()
    dealt = deal(islice(synthetic(1), 100), 0, 1)
    server = Server(store, setting(dealt), dealt.longest)
    for ids in dealt.mine:
        server.serve(ids)
    timed = {tier: getattr(server.tally, f"{tier}_timed_bytes") for tier in ("local", "node", "remote")}
    assert min(timed.values()) > 0
    assert sum(timed.values()) < server.tally.get_bytes


# --------------------------------------------------------------------------------------------------- sums


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
    assert set(record["tiers"]) == {"local", "node", "remote"}
    assert set(record["tiers"]["node"]) == {"gets", "bytes", "gbps"}
    assert {"p50", "p90", "p99", "p999", "mean"} <= set(record["latency_us"]["get"])
    assert (record["recheck_retries"], record["evicted"]) == (3, 2)
    assert "setting" not in record


def test_the_table_shows_the_counts() -> None:
    result, _ = replay(DictStore())
    out = io.StringIO()
    show(result, Console(file=out, width=100))
    assert f"{result.hits:,}" in out.getvalue()
    assert "corrupt blocks were read" not in out.getvalue()
    assert "1 rank on 1 node" in result.setting.line()


def test_every_number_of_a_tally_is_in_its_vector() -> None:
    tally = Tally(**{name: number for number, name in enumerate(NAMES)})
    assert tally.vector().tolist() == list(range(len(NAMES)))


# ------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_bytes": 0}, "block size 0"),
        ({"requests": 0}, "requests 0"),
        ({"window": -1}, "window -1"),
        ({"seed": -1}, "seed -1"),
        ({"verify": "some"}, "full, sample, off"),
        ({"dram": 1 << 20, "dram_total": 1 << 20}, "both given"),
        ({"dram": 1 << 20, "block_bytes": 2 << 20}, "does not hold one block"),
        ({"store": {"windows": "both"}}, "windows"),
        ({"store": {"window": "auto"}}, "did you mean"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WorkloadOptions(**options)


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[WorkloadOptions]:
    """The options of command lines that were run, without running them."""
    found: list[WorkloadOptions] = []
    monkeypatch.setattr(workload_command, "run", lambda options: found.append(options) or 0)
    for name in launcher.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return found


def test_options_reach_the_workload(accepted: list[WorkloadOptions], tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text("{}")
    words = f"""workload --trace {trace} --model llama-3-70b --scale 1/64 --requests 7 --dram 2GiB --verify sample
        --seed 5 --window 3 --json out.json
        --windows shared --progress none --checksum off --copy-threads 2 --when-full refuse"""
    assert cli.main(words.split()) == 0
    assert accepted == [
        WorkloadOptions(
            trace=trace, block_bytes=160 << 14, requests=7, dram=2 << 30, verify="sample", seed=5, window=3,
            json=Path("out.json"),
            store={
                "windows": "shared", "progress": "none", "checksum": "off", "copy_threads": 2, "when_full": "refuse",
            },
        )
    ]  # fmt: skip


def test_the_defaults_are_those_of_the_options(accepted: list[WorkloadOptions]) -> None:
    assert cli.main(["workload"]) == 0
    assert accepted == [WorkloadOptions()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("workload --bogus", "No such option"),
        ("workload --dram 4XB", "is not a size"),
        ("workload --dram 2GiB --dram-total 4GiB", "both given"),
        ("workload --trace absent.jsonl", "no such file"),
        ("workload --trace .", "not a file"),
        ("workload --model gpt", "unknown model"),
        ("workload --model llama-3-70b --block-bytes 4KiB", "both given"),
        ("workload --scale 1/2", "--scale needs --model"),
        ("workload --block-tokens 5", "--block-tokens needs --model"),
        ("workload --model llama-3-70b --scale 3", "scale '3'"),
        ("workload --block-bytes 0", "1 byte or more"),
        ("workload --requests 0", "--requests"),
        ("workload --verify some", "full, sample, off"),
        ("workload --copy-threads many", "copy_threads"),
        ("frobnicate", "No such command"),
    ],
)
def test_a_wrong_command_line_is_said_once_by_rank_0(
    accepted: list[WorkloadOptions], monkeypatch: pytest.MonkeyPatch, capsys: Any, words: str, said: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(words.split()) == 2
    assert said in capsys.readouterr().err
    monkeypatch.setenv("PMI_RANK", "3")
    assert cli.main(words.split()) == 2
    assert capsys.readouterr() == ("", "")
    assert accepted == []


@pytest.mark.parametrize(
    ("words", "said"), [("--version", "cascade "), ("workload --help", "--trace"), ("--help", "workload")]
)
def test_help_and_version_end_well(accepted: list[WorkloadOptions], capsys: Any, words: str, said: str) -> None:
    assert cli.main(words.split()) == 0
    assert said in capsys.readouterr().out
    assert accepted == []


@pytest.mark.parametrize("name", launcher.RANK_VARIABLES)
def test_the_rank_is_read_from_each_launcher(accepted: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert launcher.launcher_rank() == 0
    monkeypatch.setenv(name, "5")
    assert launcher.launcher_rank() == 5
    monkeypatch.setenv(name, "none")
    assert launcher.launcher_rank() == 0


def test_options_are_parsed_without_mpi() -> None:
    program = (
        "import sys; from cascade_mpi import cli\n"
        "status = cli.main(['workload', '--dram', 'x'])\n"
        "sys.exit(status + 10 * ('mpi4py.MPI' in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "is not a size" in ended.stderr) == (2, True), ended.stderr
