"""Each policy on a case that can be followed by hand. Blocks are written as letters."""

from __future__ import annotations

import numpy as np
import pytest
from policy_driving import new


def play(name: str, capacity: int, accesses: str, **options):
    """The policy after these accesses, and what was hit, in capitals."""
    ids = np.array([ord(letter) - ord("a") for letter in accesses], np.int64)
    policy = new(name, capacity, 26, ids, **options)
    hits = policy.replay(ids)
    return policy, "".join(each.upper() if hit else each for each, hit in zip(accesses, hits, strict=True))


def going(policy) -> str:
    """The residents in the order of going."""
    return "".join(chr(ord("a") + i) for i in policy.victims(26))


def ghosts(policy) -> str:
    """What is remembered and not there."""
    return "".join(chr(ord("a") + i) for i in np.flatnonzero(policy.remembers() & ~policy.resident()))


@pytest.mark.parametrize(
    ("name", "accesses", "hits", "order"),
    [
        ("fifo", "abcaad", "abcAAd", "bcd"),  # use changes nothing: a, the first, has gone
        ("lru", "abcaad", "abcAAd", "cad"),  # b was not used for longest
        ("lfu", "abcaabd", "abcAABd", "dba"),  # c was used once; then counts 1, 2, 3
        ("lfu", "abcbcad", "abcBCAd", "dca"),  # all twice: b least recently
        ("lfu", "aaabcdaa", "aAAbcdAA", "cda"),  # the count of a keeps it
        ("sieve", "abcad", "abcAd", "cda"),  # the hand spares a, takes b and stands at c
        ("sieve", "abcadae", "abcAdAe", "dea"),
        ("belady", "abcdab", "abcdAB", "dab"),  # c and d never again; c was there when d came
        ("gdsf", "abcaad", "abcAAd", "cda"),
    ],
)
def test_order_of_going(name, accesses, hits, order):
    policy, found = play(name, 3, accesses)
    assert (found, going(policy)) == (hits, order)


def test_lfu_forgets_a_count_with_the_block():
    policy, hits = play("lfu", 2, "aabbcbbbacc")
    assert hits == "aAbBcBBBacC"
    policy.check()
    assert policy.counts() == {2: [2], 5: [1]}


def test_sieve_hand_keeps_its_place_over_a_removal():
    policy, _ = play("sieve", 4, "abcdabe")  # a, b spared, c gone, the hand at d
    policy.removed([ord("d") - ord("a")])
    assert going(policy) == "eab"
    policy.check()


def test_s3fifo_keeps_what_comes_back_and_drops_what_does_not():
    policy, _ = play("s3fifo", 10, "abcdefghij")  # one small place, nine main ones: b to j go there at once
    assert policy.access(10) is False  # a is in the small queue, unused: a ghost
    assert ghosts(policy) == "a"
    assert policy.access(0) is False  # from the ghosts into the main queue
    assert ghosts(policy) == "k"
    assert going(policy) == "bcdefghija"


def test_s3fifo_spares_what_was_used_twice_in_the_small_queue():
    policy, hits = play("s3fifo", 20, "ab" + "cdefghijklmnopqrst" + "aab" + "u")
    assert hits.endswith("AABu")
    assert not policy.resident([1])[0] and policy.resident([0])[0]  # b, used once, has gone, a moved to main
    assert ghosts(policy) == "b"


def test_arc_moves_its_target_towards_the_list_that_gave_up_too_early():
    policy, hits = play("arc", 4, "abab" + "cdef")  # T2: a b; T1: c d, then e and f for c and d
    assert hits == "abABcdef" and policy.target == 0
    assert ghosts(policy) == "cd" and going(policy) == "efab"
    assert policy.access(2) is False  # c, a ghost of B1: the target grows, c comes back into T2
    assert policy.target == 1
    assert policy.resident([2])[0] and ghosts(policy) == "de"
    policy.check()


def test_arc_lowers_its_target_for_a_ghost_of_b2():
    policy, _ = play("arc", 4, "ababcdef" + "c" + "g")  # T1 is at its target of 1, so that g takes a's place in T2
    assert policy.target == 1 and ghosts(policy) == "ade"
    assert policy.access(0) is False  # B1 is twice as long as B2: down by 2, not below 0; f makes room
    assert policy.target == 0
    assert going(policy) == "gbca" and ghosts(policy) == "def"
    policy.check()


def test_arc_is_told_of_a_miss_once():
    policy, _ = play("arc", 4, "ababcdef")
    for _ in range(3):
        policy.missed([2])
    assert policy.target == 1
    policy.evicted(policy.victims(1))
    policy.inserted([2])
    assert policy.target == 1 and going(policy) == "abcf"
    policy.check()


def test_arc_keeps_an_awaited_ghost_longer_than_one_that_left_later():
    policy, _ = play("arc", 4, "ababcdefgh")  # the ghosts e, then f
    policy.missed([4])
    for block in (24, 25):
        policy.evicted(policy.victims(1))
        policy.inserted([block])
    assert ghosts(policy) == "egh"  # one had to be forgotten: f
    policy.check()


def test_wtinylfu_admits_only_what_is_asked_for_more_often():
    policy = new("wtinylfu", 100, 200)
    policy.replay(np.arange(100))  # nothing has to go: all are in the window
    policy.replay([150])  # 0 to 98 move on, 99 would be next: it was asked for no more often than 0, and goes
    assert policy.resident([0, 98, 150]).all() and not policy.resident([99])[0]
    policy.replay([151, 150])  # each in turn pushes the other out of the window
    assert policy.resident([0, 150]).all() and not policy.resident([151])[0]
    policy.replay([151])  # 150 came twice and was pushed out once, that is more than 0 can show
    assert policy.resident([150, 151]).all() and not policy.resident([0])[0]
    policy.check()


@pytest.mark.parametrize(
    ("sizes", "costs", "victim"),
    [(None, None, 0), ([1, 4, 1], None, 1), (None, [2.0, 2.0, 1.0], 2), ([1, 4, 1], [1.0, 8.0, 1.0], 0)],
)
def test_gdsf_gives_up_what_is_worth_least_for_its_size(sizes, costs, victim):
    policy = new("gdsf", 6, 3, sizes=sizes, costs=costs)
    policy.replay([0, 1, 2])
    assert policy.victims(1).tolist() == [victim]


def test_gdsf_ages_by_what_has_left():
    policy = new("gdsf", 2, 4)
    policy.replay([0, 0, 0, 1, 2])
    assert policy.inflation == 1
    policy.replay([3])
    assert policy.inflation == 2  # 2 came in at 1 + 1
    policy.replay([1])
    assert policy.inflation == 3 and not policy.resident([0])[0]  # 0, used three times, is as old as those now


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_gdsf_refuses_impossible_costs(wrong):
    with pytest.raises(ValueError, match="above 0"):
        new("gdsf", 2, 2, costs=[1.0, wrong])


def test_belady_plays_one_trace():
    policy = new("belady", 2, 4, [0, 1, 2])
    policy.replay([0, 1])
    with pytest.raises(ValueError, match="access 2 is to block 3, and the trace has block 2 there"):
        policy.access(3)
    policy.access(2)
    with pytest.raises(ValueError, match="access 3 is to block 0, and the trace has its end there"):
        policy.access(0)


def test_ghost_of_another_size_is_another_block():
    policy = new("s3fifo", 40, 60, sizes=np.ones(60, np.int64))
    policy.replay(np.arange(50))
    ghost = int(np.flatnonzero(policy.remembers() & ~policy.resident())[0])
    policy.evicted(policy.victims(3))
    policy.inserted([ghost], sizes=[3])
    policy.check()
    assert policy.resident([ghost])[0]
    assert policy.used == len(policy) + 2
