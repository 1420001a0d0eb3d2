"""An arena that is held in parts: ranges that are added, closed and dropped, with cells across them."""

from __future__ import annotations

import random

import pytest

from cascade_mpi.allocator import PageAllocator
from cascade_mpi.errors import ProtocolError


def parts(pages: int, *ranges: tuple[int, int]) -> PageAllocator:
    made = PageAllocator(pages, 0.0, whole=False)
    for start, length in ranges:
        made.add(start, length)
    return made


def release(allocator: PageAllocator, first: int) -> None:
    allocator.retire(first, 0.0)
    allocator.ripe(0.0)
    allocator.free(first)


def test_nothing_is_there_at_first() -> None:
    allocator = PageAllocator(64, 0.0, whole=False)
    assert allocator.allocate(1, 0.0) is None
    assert (allocator.free_pages, allocator.ranges, allocator.absent()) == (0, {}, [(0, 64)])
    allocator.check()


def test_a_cell_lies_across_ranges_that_touch() -> None:
    allocator = parts(64, (16, 16), (32, 16))
    assert allocator.allocate(24, 0.0) == (16, 1)
    assert allocator.allocate(9, 0.0) is None
    assert allocator.absent() == [(0, 16), (48, 16)]
    allocator.check()
    with pytest.raises(ProtocolError, match="cells are live or in limbo"):
        allocator.drop(32)


def test_a_range_between_others_is_free_again() -> None:
    allocator = parts(64, (0, 16), (32, 16), (16, 16))
    first, _ = allocator.allocate(16, 0.0) or (-1, 0)
    assert first == 0
    release(allocator, first)
    assert allocator.allocate(48, 0.0) is not None
    allocator.check()


def test_pages_cannot_be_added_twice() -> None:
    allocator = parts(64, (0, 16))
    with pytest.raises(ProtocolError, match="already"):
        allocator.add(8, 16)


def test_generations_go_on() -> None:
    allocator = parts(64)
    allocator.add(16, 4, [7, 8, 9, 10])
    assert [allocator.allocate(1, 0.0) for _ in range(4)] == [(16, 8), (17, 9), (18, 10), (19, 11)]


def test_nothing_new_comes_into_a_closed_range() -> None:
    allocator = parts(64, (0, 16), (16, 16))
    cells = [allocator.allocate(5, 0.0) for _ in range(6)]  # the fourth lies across
    allocator.close(16)
    allocator.check()
    assert allocator.absent() == [(16, 48)]
    assert allocator.allocate(1, 0.0) is None
    assert not allocator.is_empty(16)
    for first, _ in filter(None, cells):
        release(allocator, first)
        allocator.check()
    assert allocator.is_empty(16)
    assert allocator.free_pages == 16
    allocator.drop(16)
    allocator.check()
    assert allocator.ranges == {0: 16}
    assert allocator.allocate(16, 0.0) == (0, 2)
    assert allocator.allocate(1, 0.0) is None


def test_downward_cells_come_from_the_high_end() -> None:
    allocator = PageAllocator(64, 0.0, whole=False, downward=True)
    allocator.add(48, 16)
    assert [allocator.allocate(5, 0.0) for _ in range(4)] == [(59, 1), (54, 1), (49, 1), None]
    allocator.add(32, 16)  # right below the page that is left
    assert allocator.allocate(17, 0.0) == (32, 1)
    allocator.add(0, 16)  # not beside it
    assert allocator.allocate(16, 0.0) == (0, 1)
    for first in (59, 54, 32):
        release(allocator, first)
        allocator.check()
    assert allocator.allocate(9, 0.0) == (55, 1)
    assert allocator.allocate(1, 0.0) == (54, 2)
    assert allocator.largest_free == 17
    allocator.check()


@pytest.mark.parametrize("downward", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_every_invariant_holds_whatever_comes_and_goes(seed: int, downward: bool) -> None:
    rng = random.Random(seed)
    allocator = PageAllocator(256, 0.0, whole=False, downward=downward)
    live, dropped = dict[int, int](), 0
    for _ in range(600):
        draw = rng.random()
        start = 16 * rng.randrange(16)
        if draw < 0.15 and start not in allocator.ranges:
            allocator.add(start, 16, [rng.randrange(100)] * 16 if rng.random() < 0.5 else None)
        elif draw < 0.55:
            pages, longest = rng.randint(1, 20), max(map(allocator.free_after, range(256)))
            assert longest == max(map(allocator.free_before, range(257)))
            cell = allocator.allocate(pages, 0.0)
            if cell is not None:
                held = allocator.ranges.keys() - allocator.closing
                assert all(page // 16 * 16 in held for page in range(cell[0], cell[0] + pages))
                assert all(cell[0] + pages <= a or a + n <= cell[0] for a, n in live.items())
                assert pages <= longest
                live[cell[0]] = pages
            else:
                assert pages > longest
        elif draw < 0.9 and live:
            first = rng.choice(list(live))
            del live[first]
            release(allocator, first)
        elif draw < 0.95 and allocator.ranges:
            allocator.close(rng.choice(list(allocator.ranges)))
        for start in allocator.ranges:
            overlaps = any(first < start + 16 and start < first + pages for first, pages in live.items())
            assert allocator.is_empty(start) != overlaps
            if start in allocator.closing and not overlaps:
                allocator.drop(start)
                dropped += 1
        allocator.check()
    assert dropped > 3
