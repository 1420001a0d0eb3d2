"""Which records of a directory a later job needs, against the plain words of the rules."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from cascade_mpi.disk.compaction import _counted, kept_places, needed
from cascade_mpi.layout import pack_location
from cascade_mpi.segments.format import BLOCK, TOMBSTONE
from cascade_mpi.segments.recovery import LOCATED, newest

NOW = 1000
Row = tuple[int, int, int, int, int, bool]  # key, sequence, expiry, epoch, namespace, tombstone
rows = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(1, 6), st.sampled_from((0, NOW, NOW + 1)), st.integers(0, 2), st.integers(0, 1),
        st.booleans(),
    ),
    max_size=12,
)  # fmt: skip


def located(found: list[Row]) -> np.ndarray:
    made = np.zeros(len(found), LOCATED)
    for number, (key, sequence, expiry, epoch, namespace, tombstone) in enumerate(found):
        row = made[number]
        row["key_hi"], row["key_lo"], row["sequence"] = key // 2, key % 2, sequence
        row["kind"], row["segment"], row["unit"] = (TOMBSTONE if tombstone else BLOCK), number // 3, 4 + number % 3
        if not tombstone:
            row["expiry"], row["epoch"], row["namespace"] = expiry, epoch, namespace
    return made


@given(rows, st.booleans())
@example([(1, 1, 0, 0, 0, False), (1, 2, 0, 0, 0, True)], False)
@example([(1, 2, 0, 0, 0, True)], False)
@example([(1, 1, 0, 0, 0, False), (1, 2, NOW, 0, 0, False)], False)
def test_what_is_needed_is_what_the_rules_say(found: list[Row], keep: bool) -> None:
    table = located(found)
    flags = needed(table, NOW, {1: 2}, keep=keep)
    for number, row in enumerate(table):
        others = [
            (int(each["sequence"]), each["kind"] == TOMBSTONE, int(each["segment"]), int(each["unit"]))
            for each in table
            if (each["key_hi"], each["key_lo"]) == (row["key_hi"], row["key_lo"])
        ]
        own = (int(row["sequence"]), row["kind"] == TOMBSTONE, int(row["segment"]), int(row["unit"]))
        wanted = own == max(others)
        if own[1]:
            wanted = wanted and (len(others) > 1 or keep)
        else:
            passed = row["namespace"] == 1 and row["epoch"] < 2
            expired = 0 < row["expiry"] <= NOW
            wanted = wanted and not passed and not (expired and len(others) == 1 and not keep)
        assert bool(flags[number]) == wanted, row


@given(rows)
def test_a_restart_finds_the_same_without_the_rest(found: list[Row]) -> None:
    """Whatever goes, the newest blocks that count are the same; and nothing that was deleted is among them."""
    table = located(found)
    left = table[needed(table, NOW, {}, keep=False)]

    def alive(some: np.ndarray) -> list[bytes]:
        blocks = newest(some).blocks
        return sorted(each.tobytes() for each in blocks[(blocks["expiry"] == 0) | (blocks["expiry"] > NOW)])

    assert alive(left) == alive(table)
    assert len(table) == 0 or len(left) < len(table) or len(left) == len({(r["key_hi"], r["key_lo"]) for r in table})


def test_of_two_copies_of_a_record_the_one_that_stays_is_told() -> None:
    """A compaction that ended early has left them; a restart takes the higher segment."""
    table = located([(1, 5, 0, 0, 0, False), (2, 1, 0, 0, 0, False), (1, 4, 0, 0, 0, False), (1, 5, 0, 0, 0, False)])
    stays, other = pack_location(1, 4), pack_location(0, 5)
    assert kept_places(table, NOW, {}, keep=False).tolist() == [stays, other, 0, stays]


def test_a_record_whose_sync_failed_stands_above_nothing() -> None:
    table = located([(1, 1, 0, 0, 0, False), (2, 1, 0, 0, 0, False), (2, 1, 0, 0, 0, False), (1, 2, 0, 0, 0, False)])
    assert needed(table, NOW, {}, keep=False).tolist() == [False, False, True, True]
    counted = _counted(table, {1: 4, 0: 6})
    assert needed(counted, NOW, {}, keep=False).tolist() == [True, True]
    assert len(counted) == 2
