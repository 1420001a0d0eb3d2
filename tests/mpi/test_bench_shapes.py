"""Tiny runs of the benchmarks of whole shapes: what their rows say, not how fast anything was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are run from the checkout, they are not installed."""
    monkeypatch.syspath_prepend(str(ROOT))


def test_oversubscription_counts_and_compares(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    from bench import oversubscription

    measured, about = oversubscription.measure(1 << 20, 16 << 10, ["lru"], 3, comm)
    plain = [row for row in measured if row["case"] == "oversubscription"]
    protected = [row for row in measured if row["case"] == "protected"]
    assert_all(comm, [row["key"][:7] for row in plain] == ["lru, 2x"] * 2 + ["lru, 4x"] * 2, f"{plain}")
    fit = 64 * comm.size
    for row in plain:
        assert_all(comm, row["contents_ok"] and row["machine"] == about and not row["refused"], f"{row}")
        assert_all(comm, 0 < row["hit_rate"] < 1 and abs(row["value"] / 100 - row["hit_rate"]) < 1e-9, f"{row}")
    # Everything is put once, and nothing but evictions makes room.
    assert_all(comm, plain[0]["evicted"] >= fit and plain[2]["evicted"] >= 3 * fit, f"{plain}")
    assert_all(comm, plain[2]["hit_rate"] < plain[0]["hit_rate"], "four times as many blocks are hit as often as two")
    assert_all(comm, [row["limit"] for row in protected] == [fit * 2 // 10 * comm.size, fit * 4 // 10 * comm.size])
    assert_all(comm, all(row["value"] == row["limit"] and row["goal_met"] for row in protected), f"{protected}")


def test_oversubscription_sees_wrong_contents(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import oversubscription

    def put(self: Any, number: int) -> None:
        (data,) = self.pool.fill(np.array([number], np.uint64), 1)  # what belongs to another place of a prefix
        self.store.put(number, data)

    monkeypatch.setattr(oversubscription, "FACTORS", (2,))
    monkeypatch.setattr(oversubscription._Load, "_put", put)
    measured, _ = oversubscription.measure(1 << 19, 16 << 10, ["lru"], 3, comm)
    assert_all(comm, not any(row["contents_ok"] for row in measured), f"{measured}")
    # And of blocks that were put without protection not all are there, which is seen too.
    assert_all(comm, measured[-1]["case"] == "protected" and not measured[-1]["goal_met"], f"{measured[-1]}")


def test_shared_prefix_has_a_row_for_each_way(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    from bench import shared_prefix

    measured, about = shared_prefix.measure(4, 16 << 10, 2, comm)
    cases = [row["case"] for row in measured]
    there = [row for row in measured if "not_in_this_run" not in row]
    nodes = measured[0]["nodes"]
    remote = ["shared_prefix_remote"] + ["shared_prefix_copies"] * (nodes > 1)
    assert_all(comm, cases == ["shared_prefix_node", *remote], f"{nodes} nodes: {cases}")
    assert_all(comm, len(there) == (3 if nodes > 1 else 1), f"{nodes} nodes: {measured}")
    assert_all(comm, sum(row["concurrent"] for row in there[:2]) == comm.size, f"{there}")
    for row in there:
        assert_all(comm, row["contents_ok"] and row["hit_rate"] == 1.0 and row["machine"] == about, f"{row}")
        assert_all(comm, row["value"] > 0 and row["ratio"] == row["value"] / row["limit"], f"{row}")


def test_store_policies_beside_exact_ones(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    from bench import store_policies

    measured = store_policies.measure("chat", [64, 128], ["lru"], 60, comm)
    assert_all(comm, [row["capacity"] for row in measured] == [64, 128], f"{measured}")
    for row in measured:
        assert_all(comm, not row["corrupt"] and row["evicted"] > 0, f"{row}")
        assert_all(comm, 0 < row["store"] <= row["exact"] + 5 and 0 < row["by_writer"] < 100, f"{row}")
        assert_all(comm, row["lost"] == row["exact"] - row["store"], f"{row}")
    assert_all(comm, measured[0]["exact"] < measured[1]["exact"], "twice the room has no more hits")


def test_caches_by_writer_remember_only_what_their_rank_put() -> None:
    from bench.policy_shards import by_hash, by_writer

    requests = [np.array([0]), np.array([1]), np.array([0]), np.array([1])]
    assert by_writer("lru", 2, 2, requests, 1).hits == 0.5
    assert by_writer("lru", 2, 2, requests, 2).hits == 0.5
    # Two blocks of one rank do not fit its half of the room, although the other half is empty.
    alternating = [np.array([k // 2 % 2 if k % 2 == 0 else 2]) for k in range(12)]
    assert by_writer("lru", 2, 3, alternating, 2).hits < by_writer("lru", 4, 3, alternating, 1).hits
    gap = [np.array([0, 1]), np.array([2, 1])]
    assert by_writer("lru", 3, 3, gap, 1) == (0.0, 0.25)
    assert by_hash("lru", 3, 3, gap, 1) == (0.0, 0.25)
