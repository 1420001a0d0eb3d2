"""What all policies promise: one conformance class, run over every member of the family."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_driving import ONLINE, managed, new, skewed

from cascade_mpi.policies.family import POLICIES, make
from cascade_mpi.policies.state import MARK, NEXT, ROW

BLOCKS = 12
_IDS = st.lists(st.integers(0, BLOCKS - 1), max_size=5)
_STEPS = st.one_of(
    st.tuples(st.sampled_from(["replay", "touched", "missed", "inserted", "removed", "excluded"]), _IDS),
    st.tuples(st.sampled_from(["victims", "evicted", "resize"]), st.integers(0, 8)),
)


@pytest.mark.parametrize("name", POLICIES)
class PolicyTests:
    """The contract, whoever keeps it."""

    @pytest.mark.parametrize("sized", [False, True])
    def test_three_ways_to_drive_it_are_the_same(self, name, sized):
        ids = skewed(3, 60, 700, scan=True)
        sizes = np.random.default_rng(5).integers(1, 9, 60) if sized else None
        capacity = 70 if sized else 20
        replayed, stepped, driven = (new(name, capacity, 60, ids, sizes=sizes) for _ in range(3))
        hits = replayed.replay(ids)
        assert 0.05 < hits.mean() < 0.9
        assert np.array_equal([stepped.access(i) for i in ids], hits)
        assert np.array_equal(managed(driven, ids[:500], sizes), hits[:500])
        driven.check()
        assert np.array_equal(driven.replay(ids[500:]), hits[500:])
        for policy in (stepped, driven):
            policy.check()
            assert np.array_equal(policy.remembers(), replayed.remembers())
        order = replayed.victims(1000).tolist()
        assert [policy.victims(1000).tolist() for policy in (stepped, driven)] == [order, order]

    def test_hit_exactly_if_resident_and_never_above_capacity(self, name):
        ids = skewed(4, 40, 300)
        sizes = np.random.default_rng(6).integers(1, 12, 40)
        policy = new(name, 50, 40, ids, sizes=sizes)
        for i in ids:
            before = policy.resident([i])[0]
            assert policy.access(i) == before
            assert policy.used == sizes[policy.resident()].sum() <= 50
            assert policy.resident([i])[0]

    @pytest.mark.parametrize("capacity", [0, 1])
    def test_smallest_capacities(self, name, capacity):
        ids = np.array([0, 0, 1, 1, 0, 2, 2])
        policy = new(name, capacity, 3, ids)
        assert policy.replay(ids).tolist() == [capacity == 1 and k in (1, 3, 6) for k in range(7)]
        assert len(policy) == capacity
        policy.check()

    def test_block_larger_than_the_capacity_is_not_admitted(self, name):
        ids = np.array([0, 1, 2, 1, 0])
        policy = new(name, 10, 3, ids, sizes=[4, 11, 6])
        assert policy.replay(ids).tolist() == [False, False, False, False, True]
        assert policy.used == 10

    def test_victims_are_residents_in_order_without_the_excluded(self, name):
        ids = skewed(8, 64, 400)
        policy = new(name, 30, 64, ids)
        policy.replay(ids)
        residents = np.flatnonzero(policy.resident())
        excluded = np.zeros(64, bool)
        excluded[residents[::3]] = True
        some = policy.victims(7, excluded=excluded)
        assert len(set(some.tolist())) == 7
        assert policy.resident(some).all() and not excluded[some].any()
        everything = policy.victims(1000, excluded=excluded)
        assert sorted(everything.tolist()) == residents[~excluded[residents]].tolist()
        policy.check()
        assert np.array_equal(np.flatnonzero(policy.resident()), residents)
        assert policy.victims(1000, excluded=np.ones(64, bool)).size == 0
        assert policy.victims(0).size == 0
        policy.evicted(some)
        assert not policy.resident(some).any()
        policy.check()

    def test_batch_of_victims_is_the_same_as_one_by_one(self, name):
        ids = skewed(9, 64, 500)
        batch, single = (new(name, 30, 64, ids) for _ in range(2))
        for policy in (batch, single):
            policy.replay(ids)
        victims = batch.victims(30)
        batch.evicted(victims)
        found = []
        while len(single):
            found.extend(single.victims(1))
            single.evicted(found[-1:])
        assert victims.tolist() == found

    def test_removed_leave_no_ghost(self, name):
        ids = skewed(10, 64, 400)
        policy = new(name, 20, 64, ids, recycle=True)
        policy.replay(ids)
        policy.forgotten()
        ghosts = np.flatnonzero(policy.remembers() & ~policy.resident())
        gone = np.concatenate([ghosts, np.flatnonzero(policy.resident())[::2]])
        policy.removed(gone)
        assert not policy.remembers(gone).any()
        assert policy.forgotten().size == 0
        assert len(policy) == 10
        policy.check()
        policy.removed(np.arange(64))
        assert len(policy) == policy.used == 0 and not policy.remembers().any()
        policy.check()

    def test_every_id_is_resident_ghost_or_forgotten(self, name):
        ids = skewed(11, 64, 600)
        policy = new(name, 12, 64, ids, recycle=True)
        free = set(range(64))
        for part in np.split(ids, 20):
            hits = policy.replay(part)
            assert hits.size == part.size
            free -= set(part.tolist())
            told = policy.forgotten().tolist()
            assert len(told) == len(set(told))
            free = {i for i in free | set(told) if not policy.remembers([i])[0]}
            assert free == set(np.flatnonzero(~policy.remembers()).tolist())
            policy.check()
        assert free

    def test_resize_down_and_up(self, name):
        ids = skewed(12, 64, 600)
        policy = new(name, 30, 64, ids)
        policy.replay(ids[:200])
        policy.resize(10)
        policy.check()
        assert policy.capacity == 10 and len(policy) == 30
        k = 200 + int(np.argmin(policy.resident(ids[200:])))
        policy.replay(ids[200 : k + 1])
        assert len(policy) == 10
        policy.check()
        policy.resize(25)
        policy.replay(ids[k + 1 :])
        assert len(policy) == 25
        policy.check()
        with pytest.raises(ValueError, match="capacity -1: it is 0 or more"):
            policy.resize(-1)

    def test_wrong_input_is_refused_and_changes_nothing(self, name):
        future = np.array([1, 2, 3, 9, 1])
        policy = new(name, 4, 10, future)
        policy.replay(future[:3])
        before = [part.copy() for part in policy._state]
        for wrong, words in (
            (lambda: policy.replay([10]), "ids from 10 to 10: this policy was made for 0 to 9"),
            (lambda: policy.touched([-1]), "ids from -1 to -1"),
            (lambda: policy.removed([[1]]), "in one dimension"),
            (lambda: policy.missed([0.5]), "float64"),
            (lambda: policy.evicted([1, 9]), r"block 9 \(place 1 of 2\) was not resident"),
            (lambda: policy.evicted([1, 1]), r"block 1 \(place 1 of 2\).* twice"),
            (policy.victims, "give one of the two"),
            (lambda: policy.victims(1, size=1), "give one of the two"),
            (lambda: policy.victims(1, excluded=np.zeros(3, bool)), r"bool\(3,\): it is bool\(10,\)"),
            (lambda: new(name, -1, 10), "capacity -1"),
            (lambda: new(name, 1, -1), "-1 blocks"),
            (lambda: new(name, 1, 2, sizes=[1, 0]), "smallest 0"),
        ):
            with pytest.raises(ValueError, match=words):
                wrong()
        with pytest.raises(ValueError, match=r"block 2 \(place 1 of 2\) is resident"):
            policy.inserted([9, 2])
        for part, same in zip(policy._state, before, strict=True):
            assert np.array_equal(part, same)

    def test_check_sees_a_broken_state(self, name):
        ids = skewed(13, 32, 100)
        policy = new(name, 8, 32, ids)
        policy.replay(ids)
        block = np.flatnonzero(policy.resident())[0]
        policy._nodes[ROW * block + NEXT] ^= 1
        policy._nodes[ROW * block + MARK] ^= 1
        policy._numbers[1] += 1
        with pytest.raises(AssertionError, match=r"expected|slot"):
            policy.check()

    def test_bytes_of_state(self, name):
        small, large = (sum(part.nbytes for part in new(name, 100, n)._state) for n in (200_000, 300_000))
        assert (large - small) / 100_000 == POLICIES[name].state_bytes_per_block
        ids = 1_000 + POLICIES[name].most_ghosts(1_000)
        assert POLICIES[name].state_bytes(1_000) >= ids * POLICIES[name].state_bytes_per_block
        if name == "prefix":
            assert POLICIES[name].state_bytes(1_000) > 230 * 1024 + 5_000 * 16  # ghosts and the fixed part too


class TestPolicies(PolicyTests):
    """All of the family."""


@pytest.mark.parametrize("name", ["fifo", "lru", "lfu", "arc", "gdsf", "belady"])
def test_asking_for_victims_changes_nothing_where_order_is_all(name):
    ids = skewed(14, 64, 500)
    asked, spared = (new(name, 30, 64, ids) for _ in range(2))
    for policy in (asked, spared):
        policy.replay(ids)
    excluded = np.arange(64) % 3 == 0
    for count in (1, 7, 30):
        assert np.array_equal(asked.victims(count, excluded=excluded), asked.victims(count, excluded=excluded))
        asked.check()
    assert np.array_equal(asked.victims(30), spared.victims(30))


@pytest.mark.parametrize("name", ONLINE)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    capacity=st.integers(0, 7),
    recycle=st.booleans(),
    sized=st.booleans(),
    steps=st.lists(_STEPS, min_size=5, max_size=40),
)
def test_any_order_of_calls_keeps_the_invariants(name, capacity, recycle, sized, steps):
    sizes = np.arange(BLOCKS) % 3 + 1 if sized else np.ones(BLOCKS, np.int64)
    policy = make(name, capacity, BLOCKS, sizes=sizes if sized else None, recycle=recycle)
    here: set[int] = set()
    excluded = np.zeros(BLOCKS, bool)
    known_free = set(range(BLOCKS))
    for call, value in steps:
        if call == "replay":
            for i in value:
                hit = policy.access(i)
                assert hit == (i in here)
                here = set(np.flatnonzero(policy.resident()).tolist())
                assert hit or sizes[i] > policy.capacity or (i in here and policy.used <= policy.capacity)
        elif call == "inserted":
            coming = sorted(set(value) - here)
            policy.inserted(coming)
            here |= set(coming)
        elif call == "removed":
            policy.removed(value)
            here -= set(value)
            known_free |= set(value)
        elif call == "excluded":
            excluded[:] = False
            excluded[value] = True
        elif call in ("victims", "evicted"):
            victims = policy.victims(value, excluded=excluded)
            free_to_go = {i for i in here if not excluded[i]}
            assert victims.size == min(value, len(free_to_go)) and set(victims.tolist()) <= free_to_go
            if call == "evicted":
                policy.evicted(victims[::2])
                here -= set(victims[::2].tolist())
        elif call == "resize":
            policy.resize(value)
        else:
            getattr(policy, call)(value)
        policy.check()
        assert set(np.flatnonzero(policy.resident()).tolist()) == here
        assert policy.used == sizes[list(here)].sum()
    if recycle:
        known_free |= set(policy.forgotten().tolist())
        assert set(np.flatnonzero(~policy.remembers()).tolist()) <= known_free


def test_unknown_policy_names_those_there_are():
    with pytest.raises(ValueError, match="policy 'mru': there are fifo, lru"):
        make("mru", 1, 1)
