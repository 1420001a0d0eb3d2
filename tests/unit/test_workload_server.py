"""One rank's requests against a store in this process that can be made to fail."""

from __future__ import annotations

from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from workload_fakes import DictStore, replay, setting

from cascade_mpi.traces import deal, synthetic
from cascade_mpi.workload.server import Server


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


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_a_request_that_is_stopped_counts_as_far_as_it_went(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    monkeypatch.setattr("cascade_mpi.workload.server.BATCH_BLOCKS", 4)
    store, asked = DictStore(), count()
    dealt = deal(islice(synthetic(1), 1), 0, 1)
    ids = np.arange(20, dtype=np.uint64)
    first = Server(store, setting(dealt), 20)
    first.serve(ids[:10])
    server = Server(store, setting(dealt), 20, stopped=lambda: next(asked) >= batches)
    done = server.serve(ids)
    tally = server.tally
    assert done == {0: 0, 1: 4, 2: 8, 3: 10, 5: 18}[batches]  # 4, 4, 2 are fetched, then 4 at a time computed
    assert (tally.accesses, tally.hits, tally.computes) == (done, min(done, 10), max(done - 10, 0))
    assert tally.requests == 0
    assert len(store.blocks) == max(done, 10)
