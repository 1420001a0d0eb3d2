"""Words of disk cells, locations of records, sizes of pages: what fits, what does not, and that nothing overlaps.

Does not cover how kernels read words (`test_onesided`).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_mpi.layout import (
    DESCRIPTOR,
    FLAG_ALIAS,
    FLAG_BACKED,
    FLAG_CHECKSUM,
    FLAG_CONTENT,
    FLAG_COPY,
    FLAG_DISK,
    FLAG_FIXED,
    FLAG_PREFIX,
    HARD,
    MAX_DISK_CELLS,
    MAX_PAGES,
    MAX_SEGMENT,
    MAX_UNIT,
    TIER_NAMES,
    DiskLocation,
    is_alias,
    is_disk,
    pack_location,
    pack_word,
    page_bytes_for,
    place,
    place_many,
    unpack_location,
    unpack_word,
)


def test_a_word_of_a_disk_cell_is_told_from_all_others():
    words = [pack_word(0xFFF, 5, tier, 4095, MAX_PAGES - 1) for tier in range(4)]
    assert [TIER_NAMES[unpack_word(word).tier] for word in words if is_disk(word)] == ["disk"]
    assert not is_alias(words[3])
    assert is_disk(words[3] | HARD)
    assert not is_disk(0)


@pytest.mark.parametrize(
    ("segment", "unit"), [(0, 1), (0, MAX_UNIT), (MAX_SEGMENT, 1), (MAX_SEGMENT, MAX_UNIT), (77, 4)]
)
def test_a_location_comes_back(segment, unit):
    location = pack_location(segment, unit)
    assert 0 < location < 1 << 64
    assert unpack_location(location) == DiskLocation(segment, unit) == (segment, unit)
    record = np.zeros(1, DESCRIPTOR)
    record["content_hi"] = location
    assert int(record["content_hi"][0]) == location


def test_locations_differ():
    pairs = [(segment, unit) for segment in (0, 1, MAX_SEGMENT) for unit in (1, 2, MAX_UNIT)]
    assert len({pack_location(*each) for each in pairs}) == len(pairs)


@pytest.mark.parametrize(
    ("segment", "unit", "named"),
    [(-1, 1, "segment"), (MAX_SEGMENT + 1, 1, "segment"), (0, 0, "unit"), (0, -1, "unit"), (0, MAX_UNIT + 1, "unit")],
)
def test_what_does_not_fit_is_named(segment, unit, named):
    with pytest.raises(ValueError, match=rf"^{named} {segment if named == 'segment' else unit} is outside "):
        pack_location(segment, unit)


@pytest.mark.parametrize("location", [0, 5 << 24, -1, 1 << 64, (1 << 64) + 1])
def test_what_is_no_location_is_refused(location):
    with pytest.raises(ValueError, match="is no location of a record"):
        unpack_location(location)


def test_flags_are_bits_of_their_own():
    flags = [
        FLAG_CHECKSUM, FLAG_PREFIX, FLAG_COPY, FLAG_FIXED, FLAG_ALIAS, FLAG_CONTENT, FLAG_DISK, FLAG_BACKED,
    ]  # fmt: skip
    assert sum(flags).bit_count() == len(flags)
    assert sum(flags) <= np.iinfo(DESCRIPTOR["flags"]).max


@pytest.mark.parametrize("arena", [1, 4096, 1 << 30, 16 << 30, (16 << 30) + 1, 1 << 40])
@pytest.mark.parametrize("disk_cells", [0, 1, 1 << 21, MAX_DISK_CELLS])
def test_pages_are_the_smallest_that_leave_room_for_disk_cells(arena, disk_cells):
    page = page_bytes_for(arena, disk_cells)
    assert page.bit_count() == 1
    assert -(-arena // page) + disk_cells <= MAX_PAGES
    assert page == 4096 or -(-arena // (page // 2)) + disk_cells > MAX_PAGES
    assert page == 4096 or arena // page >= 1 << 18


@pytest.mark.parametrize("disk_cells", [-1, MAX_DISK_CELLS + 1])
def test_too_many_disk_cells_are_refused(disk_cells):
    with pytest.raises(ValueError, match=f"{disk_cells} disk cells"):
        page_bytes_for(1 << 30, disk_cells)


keys64 = st.integers(0, (1 << 64) - 1)


@given(st.lists(st.tuples(keys64, keys64), min_size=1, max_size=20), st.integers(1, 4096), st.integers(0, 20))
def test_many_keys_have_the_places_that_each_has(keys: list[tuple[int, int]], ranks: int, bits: int) -> None:
    hi, lo = np.array(keys, np.uint64).T
    found = place_many(hi, lo, ranks, 1 << bits)
    for number, key in enumerate(keys):
        assert tuple(int(each[number]) for each in found) == place(*key, ranks, 1 << bits)
