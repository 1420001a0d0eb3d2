"""A tiny run of `python -m bench micro`: what its rows say, not how fast anything was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from cascade_mpi import layout
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
ASKED = ("case", "block_bytes", "ranks", "nodes", "value", "limit", "ratio", "unit")
EVERYWHERE = {"get_self", "get_4k_self", "lookup_local", "put_self", "copy"}
PATHS = {
    "node": {"get_node", "get_4k_node"},
    "remote": {"get_remote", "get_many_remote", "get_4k_remote", "get_many_4k_remote", "contains_remote"},
}


@pytest.fixture(autouse=True)
def _checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are run from the checkout, they are not installed."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def tiny() -> Any:
    from bench.micro import Options

    sizes = (1 << 16, 1 << 17)
    return Options(pairs=2, working_set=1 << 20, sizes=sizes, remote_sizes=sizes, copy_sizes=sizes, operations=8)


def test_rows_of_a_whole_run(tiny: Any, comm: MPI.Intracomm, assert_all: Callable[..., None], tmp_path: Path) -> None:
    from bench import rows
    from bench.micro import CASES, measure

    measured, about = measure(tiny, comm)
    there = {row["case"] for row in measured if "not_in_this_run" not in row}
    absent = {row["case"] for row in measured if "not_in_this_run" in row}
    assert_all(comm, there | absent == set(CASES) and not there & absent, f"{there} {absent}")
    assert_all(comm, there >= EVERYWHERE, f"{EVERYWHERE - there} are missing")
    hosts = comm.allgather(Location(comm).mates)
    for path, cases in PATHS.items():
        possible = len(hosts[0]) > 1 if path == "node" else len(hosts[0]) < comm.size
        assert_all(comm, cases <= (there if possible else absent), f"{path}: {cases} {there} {absent}")
    for row in measured:
        assert_all(comm, all(name in row for name in ASKED), f"{row}")
        if row["case"] in there:
            assert_all(comm, row["contents_ok"] is True and row["hit_rate"] in (None, 1.0), f"{row}")
            assert_all(comm, row["value"] > 0 and row["ratio"] == row["value"] / row["limit"], f"{row}")
        assert_all(comm, row["ranks"] == comm.size and row["machine"] == about, f"{row}")
    rows.write(measured, tmp_path / "rows.json")
    assert_all(comm, json.loads((tmp_path / "rows.json").read_text()) == measured, "JSON differs from the rows")


def test_wrong_contents_are_seen(tiny: Any, comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    from bench.stock import Stock

    with Store(comm, dram_bytes="2MiB", copy_threads=1) as store:
        stock = Stock(store, 4096, 16, seed=3)
        assert_all(comm, stock.verify(store, comm.rank), "what was put is not there")
        comm.Barrier()
        page = int(stock.pages[comm.rank][5])
        store._fabric.data.memory[store._fabric.arena_at + page * store._fabric.page_bytes + 100] ^= 1
        comm.Barrier()
        for rank in range(comm.size):
            assert_all(comm, not stock.verify(store, rank), f"a flipped bit of rank {rank} was not seen")
        out = np.zeros(4096, np.uint8)
        stock.data(comm.rank, 2, out)
        assert_all(comm, stock.holds(out, comm.rank, 2) and not stock.holds(out, comm.rank, 3), "blocks are alike")


def test_places_are_those_of_the_store(tiny: Any, comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    """The raw Gets of a benchmark read the same bucket, word and payload as the store."""
    from bench.stock import Stock, names
    from cascade_mpi.layout import place_many

    with Store(comm, dram_bytes="2MiB", copy_threads=1) as store:
        stock = Stock(store, 4096, 16, seed=4)
        keys, fabric = stock.keys[(comm.rank + 1) % comm.size], store._fabric
        homes, buckets, _ = place_many(keys[:, 0], keys[:, 1], comm.size, fabric.buckets)
        for at, (hi, lo) in enumerate(keys.tolist()):
            placed = layout.place(hi, lo, comm.size, fabric.buckets)
            assert_all(comm, (placed.home, placed.bucket) == (homes[at], buckets[at]), f"key {at}")
        rank = int(homes[0])
        found = store._reader.find(*divmod(names(keys)[3], 1 << 64))
        place = (stock.pages[rank][3], stock.buckets[rank][3], stock.slots[rank][3])
        assert_all(comm, found is not None and (found.page, found.bucket, found.slot) == place, f"{found} {place}")
        comm.Barrier()


def test_goals() -> None:
    from bench.rows import Goal, make

    assert make("x", 1, 9.0, 10.0, "GB/s", Goal("ratio", ">=", 0.9))["goal_met"] is True
    assert make("x", 1, 9.0, 10.0, "GB/s", Goal("ratio", ">=", 0.95))["goal_met"] is False
    assert make("x", 1, 9.0, 10.0, "us", Goal("value", "<=", 8))["goal"] == "value <= 8 us"
    assert make("x", 1, 9.0, 10.0, "us", Goal("value", "<=", 8))["goal_met"] is False


def test_pairs_take_turns() -> None:
    from bench.timing import Operation, interleave

    calls: list[str] = []
    ways = [Operation(lambda name=name: name, calls.append) for name in "ab"]
    samples = interleave(ways, 4, meet=lambda: None)
    assert "".join(calls) == "abbaabbaab"  # the first pair warms up
    assert samples.seconds.shape == (4, 2)


class Location:
    """The ranks that share this rank's node."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
        self.mates: list[int] = node.allgather(comm.rank)
        node.Free()
