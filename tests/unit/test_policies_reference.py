"""Policies against others' results: hits on a whole trace, and libCacheSim access by access."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_driving import new, skewed

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
REFERENCE = SHARED / "reference" / "hit_rates_mooncake_conversation.json"
TRACE = SHARED / "traces" / "mooncake_conversation.jsonl"
IN_REFERENCE = {
    "fifo": "FIFO", "lru": "LRU", "lfu": "LFU", "sieve": "SIEVE", "s3fifo": "S3FIFO", "arc": "ARC",
    "wtinylfu": "WTinyLFU", "belady": "BELADY",
}  # fmt: skip
IN_LIBCACHESIM = {
    "fifo": "FIFO", "lru": "LRU", "lfu": "LFU", "sieve": "Sieve", "s3fifo": "S3FIFO", "arc": "ARC",
    "wtinylfu": "WTinyLFU",
}  # fmt: skip


@pytest.fixture(scope="module")
def accesses() -> np.ndarray:
    """The block accesses of the Mooncake conversation trace, in order."""
    for path in (REFERENCE, TRACE):
        if not path.exists():
            pytest.skip(f"no {path.name} beside the checkout (../shared)")
    with TRACE.open() as lines:
        return np.concatenate([np.array(json.loads(line)["hash_ids"], np.int64) for line in lines])


@pytest.mark.parametrize("name", IN_REFERENCE)
def test_hits_on_the_whole_trace_are_those_of_the_reference(name, accesses):
    reference = json.loads(REFERENCE.read_text())
    blocks = int(accesses.max()) + 1
    assert (accesses.size, blocks) == (reference["block_accesses"], reference["unique_blocks"])
    expected = reference["hits"][IN_REFERENCE[name]]
    found = {
        capacity: int(
            new(name, blocks if capacity == "inf" else int(capacity), blocks, accesses).replay(accesses).sum()
        )
        for capacity in expected
    }
    assert found == expected


def their_hits(name: str, capacity: int, ids, sizes=None) -> np.ndarray:
    """What libCacheSim's policy of this name hits; its ids begin at 1, as those of the reference do."""
    libcachesim = pytest.importorskip("libcachesim", reason="the test extra installs it on Linux x86-64")
    cache, request = getattr(libcachesim, name)(capacity, hashpower=10), libcachesim.Request()
    hits = np.empty(len(ids), bool)
    for k, i in enumerate(ids):
        request.obj_id, request.obj_size, request.clock_time = int(i) + 1, 1 if sizes is None else int(sizes[i]), k
        hits[k] = cache.get(request)
    return hits


# Their S3-FIFO takes nothing below 20 blocks, their W-TinyLFU nothing below 100; multiples of 500 are those whose
# segments add up, so that theirs does not evict on a hit.
@pytest.mark.parametrize(("name", "capacity"), [(n, c) for n in IN_LIBCACHESIM for c in (40, 150, 500)])
def test_every_access_is_as_in_libcachesim(name, capacity):
    capacity = max(capacity, 500) if name == "wtinylfu" else capacity
    for seed in range(capacity, capacity + 3):
        ids = skewed(seed, 3 * capacity, 5000, scan=True)
        hits = new(name, capacity, 3 * capacity).replay(ids)
        assert 0.1 < hits.mean() < 0.95
        assert np.array_equal(hits, their_hits(IN_LIBCACHESIM[name], capacity, ids))


def test_counts_of_wtinylfu_age_as_in_libcachesim():
    ids = np.concatenate([skewed(seed, 1500, 15_000) for seed in (1, 2, 3, 4)])  # other favourites each time
    policy = new("wtinylfu", 500, 1500)
    assert np.array_equal(policy.replay(ids), their_hits("WTinyLFU", 500, ids))
    assert policy.halvings > 0


@pytest.mark.parametrize("name", ["fifo", "lru", "lfu", "sieve", "arc"])
@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(1, 12), ids=st.lists(st.integers(0, 20), max_size=300))
def test_every_access_is_as_in_libcachesim_for_any_ids(name, capacity, ids):
    hits = new(name, capacity, 21).replay(np.array(ids, np.int64))
    assert np.array_equal(hits, their_hits(IN_LIBCACHESIM[name], capacity, ids))


@pytest.mark.parametrize("name", ["fifo", "lru", "lfu", "sieve"])
def test_every_access_to_blocks_of_many_sizes_is_as_in_libcachesim(name):
    for seed in range(3):
        ids = skewed(seed, 200, 4000)
        sizes = np.random.default_rng(seed).integers(1, 100, 200)
        hits = new(name, 3000, 200, sizes=sizes).replay(ids)
        assert np.array_equal(hits, their_hits(IN_LIBCACHESIM[name], 3000, ids, sizes))


def test_gdsf_makes_the_choices_of_libcachesim():
    """Theirs inserts first and may evict what came; here room is made first: their parts in that order."""
    libcachesim = pytest.importorskip("libcachesim", reason="the test extra installs it on Linux x86-64")
    ids = skewed(1, 200, 4000)
    sizes = 2 ** np.random.default_rng(1).integers(0, 7, 200)  # so that 1e6 / size and 1 / size round alike
    cache, request = libcachesim.GDSF(1500, hashpower=10), libcachesim.Request()
    theirs = np.zeros(ids.size, bool)
    for k, i in enumerate(ids):
        request.obj_id, request.obj_size = int(i) + 1, int(sizes[i])
        theirs[k] = cache.find(request, True) is not None
        if not theirs[k]:
            while cache.get_occupied_byte() + request.obj_size > 1500:
                cache.evict(request)
            cache.insert(request)
    policy = new("gdsf", 1500, 200, sizes=sizes, costs=np.full(200, 1e6))
    assert np.array_equal(policy.replay(ids), theirs)


def test_belady_is_as_a_search_of_the_future():
    for seed in range(4):
        ids, capacity = skewed(seed, 40, 600), 5 + 4 * seed
        cache: set[int] = set()
        hits = []
        for k, i in enumerate(ids.tolist()):
            hits.append(i in cache)
            if i not in cache and len(cache) == capacity:
                rest = ids[k + 1 :].tolist()
                cache.remove(max(cache, key=lambda j, rest=rest: rest.index(j) if j in rest else len(rest)))
            cache.add(i)
        assert new("belady", capacity, 40, ids).replay(ids).tolist() == hits


def test_nothing_hits_more_than_belady():
    ids = skewed(77, 300, 6000, scan=True)
    for capacity in (10, 50, 150):
        bound = new("belady", capacity, 300, ids).replay(ids).sum()
        assert all(new(name, capacity, 300).replay(ids).sum() <= bound for name in ("lru", *IN_LIBCACHESIM, "gdsf"))


def test_belady_hits_more_with_more_room():
    ids = skewed(78, 300, 6000)
    hits = [int(new("belady", capacity, 300, ids).replay(ids).sum()) for capacity in (1, 10, 30, 100, 300)]
    assert all(less < more for less, more in pairwise(hits))
    assert hits[-1] == ids.size - np.unique(ids).size
