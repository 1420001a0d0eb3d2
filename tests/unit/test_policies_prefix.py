"""The learned policy: its goals on a whole trace, its floor on traces that it does not know, and its parts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from cascade_mpi.policies import hazard, prior
from cascade_mpi.policies import marks as watch
from cascade_mpi.policies.hazard import AGES, AS_LRU, CLASSES, EDGE, ORDER, QUEUES, RANK, TAKEOVERS, TRUST
from cascade_mpi.policies.lru import Lru
from cascade_mpi.policies.prefix import Prefix
from cascade_mpi.policies.state import MARK, ROW
from cascade_mpi.traces import generate, open_trace

TRACE = Path(__file__).resolve().parents[2] / ".." / "shared" / "traces" / "mooncake_conversation.jsonl"
GOALS = {1_000: 25_480, 10_000: 67_640, 30_000: 96_903}  # 30, 15 and 25 % of the way from LRU to MIN


def accesses(requests):
    """Dense ids in the order of first use, blocks of each request, and whether its last one is partial."""
    dense, lengths, partial = {}, [], []
    ids = []
    for request in requests:
        ids.extend(dense.setdefault(block, len(dense)) for block in request.block_ids)
        lengths.append(len(request.block_ids))
        partial.append(request.input_tokens % 512 != 0)
    return np.array(ids), np.array(lengths), np.array(partial)


@pytest.fixture(scope="module")
def conversation():
    if not TRACE.exists():
        pytest.skip(f"no {TRACE.name} beside the checkout (../shared)")
    return accesses(open_trace(TRACE))


@pytest.mark.parametrize(("capacity", "goal"), GOALS.items())
def test_share_of_the_gap_between_lru_and_min(conversation, capacity, goal):
    ids, lengths, partial = conversation
    policy = Prefix(capacity, int(ids.max()) + 1)
    assert policy.replay(ids, lengths, partial).sum() >= goal
    assert policy._numbers[TAKEOVERS] == 0


def test_without_requests_it_is_still_ahead_of_lru(conversation):
    ids, _, _ = conversation
    policy, lru = Prefix(10_000, int(ids.max()) + 1), Lru(10_000, int(ids.max()) + 1)
    assert policy.replay(ids).sum() > lru.replay(ids).sum() + 2_000


def stacked(seed, count, mean):
    """Geometric stack distances: the order of last use is all that there is to know."""
    random = np.random.default_rng(seed)
    stack, ids, blocks = [], [], 0
    for distance, is_new in zip(random.geometric(1 / mean, count).tolist(), random.random(count) < 0.05, strict=True):
        if is_new or distance > len(stack):
            stack.append(blocks)
            blocks += 1
        else:
            stack.append(stack.pop(-distance))
        ids.append(stack[-1])
    return np.array(ids)


def zipf(seed, blocks, count, exponent=0.9):
    weights = 1 / np.arange(1, blocks + 1) ** exponent
    return np.random.default_rng(seed).choice(blocks, count, p=weights / weights.sum())


def moving(seed):
    """What is popular changes from one day to the next."""
    return np.concatenate([zipf(seed + day, 2_000, 15_000, 1.0) + 2_000 * day for day in range(3)])


def single_turns(seed):
    """Requests that share a prompt of 8 blocks and nothing else."""
    return (request for request in islice(generate("chat", seed), 3_000) if len(request.block_ids) < 16)


FOREIGN = {
    "chat": lambda: accesses(islice(generate("chat", 11), 2_500)),
    "rag": lambda: accesses(islice(generate("rag", 12), 2_500)),
    "agents": lambda: accesses(islice(generate("agents", 13), 3_000)),
    "short": lambda: accesses(single_turns(14)),
    "stack": lambda: (stacked(15, 40_000, 300), None, True),
    "deep stack": lambda: (stacked(16, 40_000, 2_500), None, True),
    "loop": lambda: (np.tile(np.arange(1_200), 25), None, True),
    "zipf": lambda: (zipf(17, 10_000, 40_000), None, True),
    "moving": lambda: (moving(18), None, True),
    "uniform": lambda: (np.random.default_rng(19).integers(0, 2_000, 40_000), None, True),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_never_a_point_below_lru_on_traces_it_was_not_made_for(name):
    ids, lengths, partial = FOREIGN[name]()
    blocks = int(ids.max()) + 1
    for capacity in (1, 8, 100, 400, 1_000, blocks // 10, blocks // 3):
        policy = Prefix(capacity, blocks)
        hits, lru = policy.replay(ids, lengths, partial).mean(), Lru(capacity, blocks).replay(ids).mean()
        assert hits > lru - 0.01, f"capacity {capacity:,}: {hits:.2%}, LRU {lru:.2%}"
        if policy._numbers[hazard.TICK] > 20_000:
            assert policy._reals[TRUST] == 0, "what another trace taught does not hold here"


def own_ranks(policy):
    """As if the prior had been confirmed: before that, blocks leave as in LRU."""
    policy._numbers[AS_LRU] = 0
    policy.resize(policy.capacity)
    return policy


def twice(gap, blocks):
    """Each block twice, `gap` blocks later."""
    ids = np.empty(2 * blocks, np.int64)
    ids[0::2] = np.arange(blocks)
    ids[1::2] = np.maximum(np.arange(blocks) - gap, 0)
    return ids


def two_sets(seed):
    """One working set, a little larger than the cache, and then another."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.integers(0, 1_390, 10_000), 1_390 + random.integers(0, 1_390, 10_000)])


UNKIND = {  # traces on which what was learned or expected is wrong: capacity, ids, blocks of each request
    "twice": (3_000, twice(1_200, 9_000), 6),
    "twice, short": (3_000, twice(960, 4_500), 2),
    "Zipf in sixes": (3_000, zipf(2, 39_000, 75_000, 0.6), 6),
    "sets": (1_000, two_sets(1), 2),
    "other sets": (1_000, two_sets(2), 2),
    "scan, then twice": (1_000, np.concatenate([np.arange(6_000), 6_000 + twice(350, 6_000)]), 3),
}


@pytest.mark.parametrize("partial", [None, True, False])
@pytest.mark.parametrize("name", UNKIND)
def test_never_a_point_below_lru_on_short_and_changing_traces(name, partial):
    capacity, ids, width = UNKIND[name]
    told = () if partial is None else (np.full(ids.size // width, width), partial)
    policy, lru = (kind(capacity, int(ids.max()) + 1) for kind in (Prefix, Lru))
    hits, bound = policy.replay(ids, *told).mean(), lru.replay(ids).mean()
    assert hits > bound - 0.01, f"{hits:.2%}, LRU {bound:.2%}"


def test_before_anything_is_known_it_is_lru():
    ids = zipf(3, 3_000, 12_000)
    policy = Prefix(800, 3_000, trust=0.0)
    assert policy.replay(ids).tolist() == Lru(800, 3_000).replay(ids).tolist()
    assert policy._numbers[AS_LRU]
    policy.check()


def test_when_lru_takes_over_blocks_of_all_queues_leave_by_last_use():
    ids = zipf(4, 5_000, 8_000)
    policy = own_ranks(Prefix(1_000, 5_000))
    policy.replay(ids)
    last = {block: at for at, block in enumerate(ids.tolist())}
    resident = np.flatnonzero(policy.resident()).tolist()
    policy._numbers[AS_LRU] = 1
    policy.resize(1_000)
    assert policy.victims(1_000).tolist() == sorted(resident, key=last.__getitem__)


def test_same_calls_same_victims(conversation):
    ids, lengths, partial = (part[:4_000] for part in conversation)
    lengths = lengths[: np.searchsorted(lengths.cumsum(), ids.size)]
    ids, partial = ids[: lengths.sum()], partial[: lengths.size]
    first, second = (Prefix(500, int(ids.max()) + 1) for _ in range(2))
    assert (first.replay(ids, lengths, partial) == second.replay(ids, lengths, partial)).all()
    assert first.victims(100).tolist() == second.victims(100).tolist()


def test_partial_block_of_a_request_goes_first():
    policy = own_ranks(Prefix(100, 100))
    policy.replay(np.arange(60), np.full(6, 10), True)
    assert sorted(policy.victims(6).tolist()) == [9, 19, 29, 39, 49, 59]
    policy.check()


def test_blocks_of_a_running_session_stay_longer_than_those_of_a_new_prompt():
    policy = own_ranks(Prefix(1_000, 1_000))
    for _ in range(6):  # turns
        policy.replay(np.arange(10), [10], False)
    policy.replay(np.arange(20, 30), [10], False)
    policy.replay(np.arange(10), [10], False)
    assert sorted(policy.victims(10).tolist()) == list(range(20, 30))


def test_session_is_known_again_by_its_end_after_its_blocks_have_left():
    policy = Prefix(40_000, 100)
    assert policy._numbers[hazard.RATE] == 16
    policy.replay(np.arange(10), [10], False)
    policy.evicted(np.arange(10))
    assert policy.remembers(np.arange(10)).sum() < 5  # the end, and what is sampled
    policy._nodes[MARK : ROW * 9 : ROW] = 0
    policy.request(np.arange(12), partial=False)
    marks = policy._nodes[MARK : ROW * 12 : ROW]
    assert (marks >> watch.USES_AT & watch.MAX_USES).tolist() == [1] * 10 + [0] * 2
    assert (marks >> watch.GAP_AT & 3).tolist() == [1] * 12  # it has paused, and shortly


def test_touches_may_come_late_and_in_batches(conversation):
    ids, lengths, partial = (part[:30_000] for part in conversation)
    policy, start, hits = Prefix(2_000, int(ids.max()) + 1), 0, 0
    late: list[np.ndarray] = []
    for length, part in zip(lengths[:1_000].tolist(), partial.tolist(), strict=False):
        prefix = ids[start : start + length]
        start += length
        policy.request(prefix, part)
        found = policy.resident(prefix)
        hits += int(found.sum())
        late.append(prefix[found])
        room = policy.used + int((~found).sum()) - policy.capacity
        if room > 0:
            policy.evicted(policy.victims(room))
        policy.inserted(prefix[~found])
        if len(late) == 20:
            policy.touched(np.concatenate(late))
            late.clear()
    policy.check()
    exact = Prefix(2_000, int(ids.max()) + 1).replay(ids[:start], lengths[:1_000], partial[:1_000]).sum()
    assert hits > 0.9 * exact


def test_state_of_a_block_is_16_bytes():
    small, large = Prefix(1_000, 1_000), Prefix(1_000, 101_000)
    grown = large._nodes.nbytes + large._numbers.nbytes + large._reals.nbytes
    grown -= small._nodes.nbytes + small._numbers.nbytes + small._reals.nbytes
    assert grown == 100_000 * Prefix.state_bytes_per_block
    assert Prefix.state_bytes_per_block == 16


def test_ages_are_distinct_at_every_capacity():
    for capacity in (0, 1, 2, 3, 7, 12, 50, 333, 999, 1_000, 32_768, 32_769, 10**6, 10**9):
        policy = Prefix(capacity, 4)
        edges = policy._numbers[EDGE : EDGE + AGES + 1]
        assert (np.diff(edges) > 0).all(), capacity
        assert edges[-1] // policy._numbers[hazard.UNIT] < watch.TIMES


def test_prior_has_every_class_of_plain_blocks_and_sums():
    uses, exposures = prior.observations()
    assert uses.shape == exposures.shape == (CLASSES, AGES)
    assert 0 < uses.sum() < exposures.sum()
    kinds = exposures[1:].reshape(hazard.LEVELS, hazard.WIDTHS, hazard.GAPS, AGES)
    assert np.array_equal(kinds[:, hazard.NO_WIDTH, 0], kinds[:, : hazard.NO_WIDTH].sum((1, 2)))
    assert (prior.curve() > 0).all()


def test_classes_are_numbered_without_gaps():
    numbers = {
        hazard.class_number(last, uses, width, gap)
        for last in (0, 1)
        for uses in range(watch.MAX_USES + 1)
        for width in range(hazard.WIDTHS)
        for gap in range(hazard.GAPS)
    }
    assert numbers == set(range(CLASSES))


def test_check_sees_what_is_out_of_place():
    policy = Prefix(50, 100)
    policy.replay(np.arange(80), np.full(8, 10))
    policy.check()
    block = int(np.flatnonzero(policy.resident())[0])
    policy._nodes[ROW * block + MARK] ^= watch.LAST
    with pytest.raises(AssertionError, match=f"class of block {block}"):
        policy.check()
    policy._nodes[ROW * block + MARK] ^= watch.LAST
    policy._numbers[RANK] = policy._numbers[RANK + 1]
    with pytest.raises(AssertionError, match="ranks"):
        policy.check()
    assert len(policy._numbers[ORDER : ORDER + QUEUES]) == QUEUES


@pytest.mark.parametrize("trust", [-1.0, 1e6, float("nan")])
def test_trust_out_of_bounds_is_refused(trust):
    with pytest.raises(ValueError, match=r"trust .* 4 by default"):
        Prefix(10, 10, trust=trust)


@pytest.mark.parametrize("lengths", [[3], [3, 3], [5, -1]])
def test_requests_that_are_not_the_ids_are_refused(lengths):
    policy = Prefix(10, 10)
    with pytest.raises(ValueError, match="each id is in one request"):
        policy.replay(np.arange(4), lengths)
    assert len(policy) == 0
