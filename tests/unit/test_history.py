"""The rules for the history of one key: each finds its example, none accuses a register."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.history import CLASSES, DELETE, MISS, PRESENT, PUT, READ, Violation, check

Op = tuple[int, int, int, int]  # begin, end, kind, value


def judge(ops: Sequence[Op], *, evicts: bool = False, comes_back: bool = False) -> list[Violation]:
    columns = np.array(ops, np.int64).reshape(-1, 4).T
    return check(*(np.ascontiguousarray(column) for column in columns), evicts=evicts, comes_back=comes_back)


def rules(ops: Sequence[Op], *, evicts: bool = False) -> set[str]:
    return {each.rule for each in judge(ops, evicts=evicts)}


# ------------------------------------------------------------------------------------- each rule by example

BAD: dict[str, list[tuple[list[Op], bool]]] = {
    "unknown": [
        ([(0, 1, PUT, 1), (2, 3, READ, 2)], False),
        ([(0, 1, READ, 5)], True),
    ],
    "future": [([(0, 1, READ, 1), (2, 3, PUT, 1)], False)],
    "overwritten": [
        ([(0, 1, PUT, 1), (2, 3, PUT, 2), (4, 5, READ, 1)], False),
        # seen before the second put, and again after it; its own put has not even returned
        ([(0, 20, PUT, 1), (1, 2, READ, 1), (3, 4, PUT, 2), (5, 6, READ, 1)], True),
        # a read of the second value overlaps its put, the two together lie between
        ([(0, 1, PUT, 1), (2, 5, PUT, 2), (4, 7, READ, 2), (8, 9, READ, 1)], False),
    ],
    "reordered": [
        ([(0, 9, PUT, 1), (0, 9, PUT, 2), (1, 2, READ, 1), (3, 4, READ, 2), (5, 6, READ, 1), (7, 8, READ, 2)], False),
        ([(0, 1, PUT, 1), (0, 9, PUT, 2), (2, 3, READ, 2), (4, 5, READ, 1), (6, 7, READ, 2)], True),
    ],
    "deleted": [
        ([(0, 1, PUT, 1), (2, 3, DELETE, 0), (4, 5, READ, 1)], False),
        ([(0, 1, PUT, 1), (2, 3, MISS, 0), (4, 5, READ, 1)], True),
        ([(0, 9, PUT, 1), (1, 2, READ, 1), (3, 4, DELETE, 0), (5, 6, READ, 1)], True),
    ],
    "presence": [
        ([(0, 1, PUT, 1), (2, 3, DELETE, 0), (4, 5, PRESENT, 0)], False),
        ([(0, 1, PUT, 1), (2, 3, MISS, 0), (4, 5, PRESENT, 0)], True),
        ([(0, 1, PRESENT, 0), (2, 3, PUT, 1)], False),
    ],
    "lost": [
        ([(0, 1, PUT, 1), (2, 3, MISS, 0)], False),
        ([(0, 1, PUT, 1), (2, 3, MISS, 0), (4, 5, READ, 1)], False),
        ([(0, 1, DELETE, 0), (2, 3, PUT, 1), (4, 5, MISS, 0)], False),
        # the delete may have been before the put, but the value was seen after the delete
        ([(0, 5, PUT, 1), (1, 3, DELETE, 0), (4, 6, READ, 1), (7, 8, MISS, 0)], False),
        # delete and look overlap, but only while the value is held
        ([(0, 1, PUT, 1), (1, 2, READ, 1), (0, 4, DELETE, 0), (3, 9, MISS, 0), (5, 6, READ, 1)], False),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "ops", "evicts"), [(rule, ops, evicts) for rule, cases in BAD.items() for ops, evicts in cases]
)
def test_a_broken_rule_is_found(rule: str, ops: list[Op], evicts: bool) -> None:
    assert rule in rules(ops, evicts=evicts)


@pytest.mark.parametrize(
    ("rule", "ops", "evicts"), [(rule, ops, evicts) for rule, cases in BAD.items() for ops, evicts in cases]
)
def test_the_order_of_notes_does_not_matter(rule: str, ops: list[Op], evicts: bool) -> None:
    assert {frozenset(rules(order, evicts=evicts)) for order in itertools.permutations(ops)} == {
        frozenset(rules(ops, evicts=evicts))
    }


def test_every_rule_has_an_example() -> None:
    assert set(BAD) == set(CLASSES)
    assert set(CLASSES.values()) == {"wrong", "stale", "resurrected", "lost"}


GOOD: dict[str, tuple[list[Op], bool]] = {
    "nothing": ([], False),
    "a miss before the first put": ([(0, 1, MISS, 0), (2, 3, PUT, 1), (4, 5, READ, 1)], False),
    "a read that overlaps its put": ([(0, 5, PUT, 1), (1, 2, READ, 1), (3, 4, READ, 1)], False),
    "the old value while the new one is put": (
        [(0, 1, PUT, 1), (2, 6, PUT, 2), (3, 4, READ, 1), (5, 7, READ, 2)],
        False,
    ),
    "a read that began before the overwrite": ([(0, 1, PUT, 1), (2, 4, PUT, 2), (3, 9, READ, 1)], False),
    "operations that touch have no order": ([(0, 2, PUT, 1), (2, 3, PUT, 2), (3, 4, READ, 1)], False),
    "a delete that overlaps the read": ([(0, 1, PUT, 1), (2, 5, DELETE, 0), (4, 6, READ, 1)], False),
    "a delete that came before the put": ([(0, 5, DELETE, 0), (1, 4, PUT, 1), (6, 7, READ, 1)], False),
    "a miss by a delete that has not returned": ([(0, 1, PUT, 1), (2, 9, DELETE, 0), (3, 4, MISS, 0)], False),
    "a miss by a delete of long ago": ([(0, 1, PUT, 1), (2, 3, DELETE, 0), (90, 91, MISS, 0)], False),
    "a miss by eviction": ([(0, 1, PUT, 1), (2, 3, MISS, 0), (4, 5, MISS, 0)], True),
    "there while a put is under way": ([(0, 9, PUT, 1), (1, 2, PRESENT, 0)], False),
    "there before the delete has returned": ([(0, 1, PUT, 1), (2, 9, DELETE, 0), (3, 4, PRESENT, 0)], False),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_history_of_a_register_breaks_no_rule(name: str) -> None:
    ops, evicts = GOOD[name]
    assert judge(ops, evicts=evicts) == []


def test_a_value_that_may_come_back_does_so_behind_a_look_that_found_nothing() -> None:
    assert (
        judge([(0, 1, PUT, 1), (2, 3, MISS, 0), (4, 5, READ, 1), (6, 7, PRESENT, 0)], evicts=True, comes_back=True)
        == []
    )


@pytest.mark.parametrize(("kind", "value", "rule"), [(DELETE, 0, "deleted"), (PUT, 2, "overwritten")])
def test_it_does_not_come_back_behind_a_write(kind: int, value: int, rule: str) -> None:
    ops = [(0, 1, PUT, 1), (2, 3, kind, value), (4, 5, READ, 1)]
    assert [each.rule for each in judge(ops, evicts=True, comes_back=True)] == [rule]


def test_the_violation_says_whose_value_and_when() -> None:
    found = judge([(0, 1, PUT, 7), (2, 3, PUT, 8), (4, 5, READ, 7)])
    assert found == [Violation("overwritten", 7, 2, 3)]
    assert found[0].kind == "stale"


@pytest.mark.parametrize(
    ("ops", "text"),
    [([(0, 1, PUT, 1), (2, 3, PUT, 1)], "same value"), ([(3, 2, PUT, 1)], "before it begins")],
)
def test_notes_that_cannot_be(ops: list[Op], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        judge(ops)


# --------------------------------------------------------------------------- random histories of a register


def register_history(seed: int, steps: int, *, evicts: bool) -> list[Op]:
    """What clients may see of a register: every operation happens at one moment inside its interval."""
    chance = random.Random(seed)
    ops: list[Op] = []
    held = 0
    for number in range(1, steps + 1):
        moment = 10 * number
        begin = moment - chance.choice((0, 3, 15, 60))
        end = moment + chance.choice((0, 3, 15, 60))
        what = chance.random()
        if evicts and chance.random() < 0.1:
            held = 0
        if what < 0.3:
            held = number
            ops.append((begin, end, PUT, held))
        elif what < 0.4:
            held = 0
            ops.append((begin, end, DELETE, 0))
        elif what < 0.5 and held:
            ops.append((begin, end, PRESENT, 0))
        else:
            ops.append((begin, end, READ, held) if held else (begin, end, MISS, 0))
    return ops


@given(st.integers(0, 1 << 32), st.integers(1, 120), st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_histories_of_a_register_break_no_rule(seed: int, steps: int, evicts: bool) -> None:
    assert judge(register_history(seed, steps, evicts=evicts), evicts=evicts) == []


@given(st.integers(0, 1 << 32), st.integers(20, 80), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_an_old_value_in_a_random_history_is_found(seed: int, steps: int, evicts: bool, data: st.DataObject) -> None:
    ops = register_history(seed, steps, evicts=evicts)
    # A value, and a later write or delete that ended, and then a read of the value.
    pairs = [
        (one, other)
        for one, other in itertools.permutations(ops, 2)
        if one[2] == PUT and other[2] in (PUT, DELETE) and other[0] > one[1]
    ]
    if not pairs:
        return
    one, other = data.draw(st.sampled_from(pairs))
    later = other[1] + data.draw(st.integers(1, 50))
    found = judge([*ops, (later, later + 1, READ, one[3])], evicts=evicts)
    assert {each.kind for each in found} & {"stale", "resurrected"}


@given(st.integers(0, 1 << 32), st.integers(20, 80), st.data())
@settings(max_examples=200, deadline=None)
def test_a_missing_value_in_a_random_history_is_found(seed: int, steps: int, data: st.DataObject) -> None:
    ops = [op for op in register_history(seed, steps, evicts=False) if op[2] not in (DELETE, MISS)]
    ended = [op for op in ops if op[2] == PUT]
    if not ended:
        return
    later = min(op[1] for op in ended) + data.draw(st.integers(1, 500))
    assert "lost" in {each.kind for each in judge([*ops, (later, later + 1, MISS, 0)])}


# ------------------------------------------------------------------------------ against the definition itself


def linearizable(ops: Sequence[Op], *, evicts: bool) -> bool:
    """Is there an order of the operations that a register could have gone through? By trying all."""

    def possible(left: frozenset[int], held: int) -> bool:
        if not left:
            return True
        first_end = min(ops[i][1] for i in left)
        for i in left:
            begin, _, kind, value = ops[i]
            if begin > first_end:
                continue  # another one ended before it began
            rest = left - {i}
            if kind == PUT and possible(rest, value):
                return True
            if kind == DELETE and possible(rest, 0):
                return True
            if kind == READ and held == value and possible(rest, held):
                return True
            if kind == PRESENT and held and possible(rest, held):
                return True
            if kind == MISS and (not held or evicts) and possible(rest, 0):
                return True
        return False

    return possible(frozenset(range(len(ops))), 0)


def small_histories(kinds: Sequence[int]) -> st.SearchStrategy[list[Op]]:
    def build(draws: list[tuple[int, int, int, int]]) -> list[Op]:
        ops: list[Op] = []
        puts = [number for number, (_, _, kind, _) in enumerate(draws, 1) if kind == PUT]
        for number, (begin, length, kind, pick) in enumerate(draws, 1):
            if kind == READ and not puts:
                continue
            value = number if kind == PUT else puts[pick % len(puts)] if kind == READ else 0
            ops.append((begin, begin + length, kind, value))
        return ops

    one = st.tuples(st.integers(0, 12), st.integers(0, 6), st.sampled_from(kinds), st.integers(0, 5))
    return st.lists(one, min_size=1, max_size=7).map(build)


@given(small_histories([PUT, READ]), st.booleans())
@settings(max_examples=600, deadline=None)
def test_puts_and_reads_are_judged_exactly(ops: list[Op], evicts: bool) -> None:
    assert (judge(ops, evicts=evicts) == []) == linearizable(ops, evicts=evicts)


@given(small_histories([PUT, PUT, READ, READ, DELETE, MISS, PRESENT]), st.booleans())
@settings(max_examples=600, deadline=None)
def test_nothing_that_a_register_can_do_is_accused(ops: list[Op], evicts: bool) -> None:
    if judge(ops, evicts=evicts):
        assert not linearizable(ops, evicts=evicts)
