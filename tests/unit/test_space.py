"""The account of segments, the quota, and which segments a compaction chooses."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_files import MemoryFiles
from segment_making import RUN, STORE, a_log, random_bytes, record_of

from cascade_mpi.errors import CascadeError, DirectoryQuotaError, DiskQuotaError
from cascade_mpi.segments.format import MIN_SEGMENT_BYTES, UNIT, Place
from cascade_mpi.segments.planning import DEAD_SHARE, START_SHARE, plan
from cascade_mpi.segments.recovery import LOCATED, SegmentIndex, latest, recover
from cascade_mpi.segments.space import TOMBSTONE_BYTES, SegmentSpace, Space, footprint, footprints, most_growth

NAMES = ("size", "live", "held", "tombstones", "garbage")


def sums_agree(space: Space) -> bool:
    return all(sum(getattr(each, name) for each in space.segments.values()) == getattr(space, name) for name in NAMES)


def test_the_life_of_records() -> None:
    space = Space()
    space.appended(3, 100)
    space.appended(3, 5000)
    space.tombstone(3)
    assert (space.held, space.tombstones) == (UNIT + 6 * UNIT, TOMBSTONE_BYTES)
    space.named(3, 100)
    space.named(3, 5000)
    assert (space.live, space.held) == (7 * UNIT, 0)
    space.unnamed(3, 5000)
    assert (space.live, space.held, space.garbage) == (UNIT, 6 * UNIT, 0)
    space.released(3, 5000)
    space.released(3, 0, tombstone=True)
    assert (space.live, space.held, space.garbage, space.tombstones) == (UNIT, 0, 7 * UNIT, 0)
    assert space.segments[3].needed == UNIT
    space.sealed(3, 123_456)
    assert space.size == 123_456
    assert sums_agree(space)
    assert space.removed(3).garbage == 7 * UNIT
    assert [getattr(space, name) for name in NAMES] == [0] * 5
    assert space.files == 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda space: space.named(1, 10),
        lambda space: space.unnamed(1, 5000),
        lambda space: space.released(1, 10),
        lambda space: space.released(1, 0, tombstone=True),
    ],
)
def test_a_record_that_is_not_in_its_class_is_an_error(wrong: Any) -> None:
    space = Space()
    space.appended(1, 100)
    space.named(1, 100)
    with pytest.raises(ValueError, match="cannot become"):
        wrong(space)
    assert (space.live, space.held, space.garbage) == (UNIT, 0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 700, 768, 769, 5000, 65_535, 65_536, 70_000, 200_000]), max_size=40))
def test_sizes_are_never_above_the_account(lengths: list[int]) -> None:
    """The quota holds for the files as they are, whatever alignment costs."""
    files, space, log = MemoryFiles(), Space(), None
    log = a_log(files, 1 << 20)
    for number, length in enumerate(lengths):
        space.appended(log.append(record_of(number, length), bytes(length)).segment, length)
    log.close()
    sizes = {int(path[9:25], 16): len(data) for path, data in files.contents.items()}
    assert sizes.keys() == space.segments.keys()
    for number, each in space.segments.items():
        assert sizes[number] <= each.size <= sizes[number] + 4 * 4096 + 3 * UNIT * len(lengths)


def test_footprints_of_many() -> None:
    lengths = np.array([0, 1, 768, 769, 65_535, 65_536, 1 << 30], np.uint64)
    assert footprints(lengths).tolist() == [footprint(int(each)) for each in lengths]
    assert all(most_growth(int(each)) > footprint(int(each)) for each in lengths)


@pytest.mark.parametrize("seed", range(5))
def test_what_a_restart_rebuilds(seed: int) -> None:
    """Byte for byte what the account was, with everything durable that could be released."""
    files, chance, space = MemoryFiles(), random.Random(seed), Space()
    log = a_log(files)
    newest: dict[int, tuple[int, int, bool]] = {}  # by key: segment, length, tombstone
    for sequence in range(1, 120):
        key, length = chance.randrange(30), chance.choice((0, 10, 3000, 20_000))
        dead = chance.random() < 0.2
        if dead:
            segment = log.tombstone(key, 1, sequence).segment
            space.tombstone(segment)
        else:
            record = record_of(key, length, key_lo=1, sequence=sequence)
            segment = log.append(record, random_bytes(sequence, length)).segment
            space.appended(segment, length)
            space.named(segment, length)
        old = newest.get(key)
        if old is not None and not old[2]:
            space.unnamed(old[0], old[1])
        if old is not None:
            space.released(old[0], old[1], tombstone=old[2])
        newest[key] = segment, 0 if dead else length, dead
    log.close()
    for path, data in files.contents.items():
        space.sealed(int(path[9:25], 16), len(data))
    recovery = recover(files, STORE)
    found = latest(recovery.indexes)
    rebuilt = Space.rebuilt(recovery.indexes, found.blocks, found.tombstones)
    assert rebuilt.segments == space.segments
    assert sums_agree(rebuilt)
    part = Space.rebuilt(recovery.indexes[1::2], found.blocks, found.tombstones)
    assert part.segments == {number: space.segments[number] for number in part.segments}
    assert Space.rebuilt([], found.blocks, found.tombstones).size == 0


def test_more_named_than_there_is_is_an_error() -> None:
    rows = np.zeros(2, LOCATED)
    entries = rows[:1][list(LOCATED.names[:-1])].astype([(name, LOCATED[name]) for name in LOCATED.names[:-1]])
    index = SegmentIndex(0, "", Place(STORE, 0, RUN), 8192, True, True, entries)
    assert Space.rebuilt([index], rows[:1], rows[:0]).live == UNIT
    with pytest.raises(ValueError, match="more of them are named"):
        Space.rebuilt([index], rows, rows[:0])


# The quota


def test_a_quota() -> None:
    space = Space(quota=100 << 10, reserve=30 << 10)
    left = space.room(1000)
    assert 0 < left < 100 << 10
    for _ in range(200):
        try:
            space.room(1000)
        except DirectoryQuotaError as error:
            text = str(error)
            break
        space.appended(0, 1000)
    assert space.size <= 70 << 10
    assert "a record of 1000 B does not fit the quota of 100.0 KiB, 30.0 KiB of it for compaction: 1 segments" in text
    assert "raise the quota" in text
    before = space.size
    assert space.room(1000, compaction=True) > 0
    assert space.size == before
    with pytest.raises(DiskQuotaError):
        space.room(100 << 10, compaction=True)
    assert issubclass(DirectoryQuotaError, CascadeError)


def test_no_quota_and_wrong_ones() -> None:
    assert Space().room(1 << 40) == (1 << 63) - 1
    for quota, reserve in ((10, 10), (10, -1), (0, 0)):
        with pytest.raises(ValueError, match="does not fit a quota"):
            Space(quota, reserve)


# The choice


def a_space(segments: list[tuple[int, int, int, int, int]]) -> Space:
    space = Space()
    for number, (live, held, tombstones, garbage, extra) in enumerate(segments):
        size = live + held + tombstones + garbage + extra + 8192
        segment = space.segments[number] = SegmentSpace(size, live, held, tombstones, garbage)
        space._add(segment, 1)
    return space


amounts = st.one_of(st.just(0), st.integers(0, 40).map(lambda units: units * UNIT))
layouts = st.lists(st.tuples(amounts, amounts, amounts, amounts, st.just(0)), max_size=30)


@settings(max_examples=400, deadline=None)
@given(layouts, st.sets(st.integers(0, 29), max_size=4), st.sets(st.integers(0, 29), max_size=3))
def test_what_a_plan_promises(layout: list[tuple[int, int, int, int, int]], busy: set[int], kept: set[int]) -> None:
    space = a_space(layout)
    for number in kept & space.segments.keys():
        space.keep(number, "damaged")
    chosen = plan(space, segment_bytes=MIN_SEGMENT_BYTES, busy=busy, small_files=5)
    assert len(chosen) == len(set(chosen))
    assert not set(chosen) & (busy | kept)
    free = {number: each for number, each in space.segments.items() if number not in busy | kept}
    left = {number: each for number, each in free.items() if number not in chosen}
    garbage = space.garbage - sum(space.segments[number].garbage for number in chosen)
    assert garbage <= START_SHARE * space.live or not any(each.garbage for each in left.values())
    assert all(each.needed for each in left.values()), "what costs nothing goes"
    assert sum(each.size < MIN_SEGMENT_BYTES // 8 for each in left.values()) <= 5
    assert START_SHARE < DEAD_SHARE


@settings(max_examples=200, deadline=None)
@given(layouts)
def test_no_byte_is_copied_that_need_not_be(layout: list[tuple[int, int, int, int, int]]) -> None:
    """Without the last of those that are chosen for their garbage, there would be too much of it."""
    space = a_space(layout)
    chosen = plan(space, segment_bytes=MIN_SEGMENT_BYTES, small_files=100)
    paid = [space.segments[number] for number in chosen if space.segments[number].needed]
    ratios = [each.garbage / each.needed for each in paid]
    assert ratios == sorted(ratios, reverse=True)
    if paid:
        garbage = space.garbage - sum(space.segments[number].garbage for number in chosen)
        assert garbage + paid[-1].garbage + space.held > START_SHARE * space.live


def test_held_records_are_made_room_for_where_it_is_worth_it() -> None:
    """They are dead and cannot go; as long as garbage is cheap to get rid of, the sum stays below the share."""
    cheap, dear = (10 * UNIT, 0, 0, 4 * UNIT, 0), (100 * UNIT, 0, 0, 4 * UNIT, 0)
    held = (0, 60 * UNIT, 0, 0, 0)
    assert plan(a_space([cheap, dear]), small_files=9) == []
    assert plan(a_space([cheap, dear, held]), small_files=9) == [0]


def test_what_has_no_footer_goes_first() -> None:
    space = a_space([(UNIT, 0, 0, 0, 1 << 20), (UNIT, 0, 0, 0, 1 << 20), (0, 0, 0, 0, 0)])
    assert plan(space, segment_bytes=MIN_SEGMENT_BYTES) == [2]
    assert plan(space, segment_bytes=MIN_SEGMENT_BYTES, first={1, 7}) == [2, 1]
    assert plan(space, segment_bytes=MIN_SEGMENT_BYTES, first={1}, busy={1, 2}) == []


def test_small_segments_are_merged_when_there_are_many() -> None:
    small, large = (UNIT, 0, 0, 0, 0), (UNIT, 0, 0, 0, 32 << 20)
    assert plan(a_space([small, large] * 8)) == []
    assert plan(a_space([small, large] * 9)) == list(range(0, 18, 2))


def test_there_are_not_too_many_files() -> None:
    """The emptiest go together, but for single blocks that have a file of their own, and those that are half full."""
    tenth, third = (MIN_SEGMENT_BYTES // 10, 0, 0, 0, 0), (MIN_SEGMENT_BYTES // 3, 0, 0, 0, 0)
    space = a_space([tenth] * 20 + [third] * 5)
    options = {"segment_bytes": MIN_SEGMENT_BYTES, "small_files": 100}
    assert plan(space, **options, most_files=25) == []
    chosen = plan(space, **options, most_files=15)
    assert chosen == list(range(12))  # into two
    assert plan(space, **options, most_files=1) == list(range(20))
    space.segments[22].records = 2
    assert plan(space, **options, most_files=1) == [*range(20), 22]


def test_ten_to_the_six_records_are_counted_in_a_second() -> None:
    """What a restart does; here only that it is one pass over tables, with the right sums."""
    rows = np.zeros(1_000_000, LOCATED)
    rows["length"] = 1000
    rows["segment"] = np.arange(rows.size) // 50_000
    names = [name for name in LOCATED.names if name != "segment"]
    entries = rows[names].astype([(name, LOCATED[name]) for name in names])
    indexes = [
        SegmentIndex(number, "", Place(STORE, number, RUN), 1 << 26, True, True, entries[number * 50_000 :][:50_000])
        for number in range(20)
    ]
    space = Space.rebuilt(indexes, rows[::2], rows[:0])
    assert (space.live, space.garbage, space.files) == (500_000 * 2 * UNIT, 500_000 * 2 * UNIT, 20)
