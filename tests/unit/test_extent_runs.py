"""How an arena is cut into extents and filled: that a rank which takes them one by one leaves little of it unused."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.allocator import PageAllocator
from cascade_mpi.extent_runs import ArenaCut

OWNER, LESSEE, OTHER = 0, 1, 2


class Arena:
    """One arena whose extents ranks take as the store does: never more than they need for the next cell."""

    def __init__(self, pages: int, parts: int) -> None:
        self.cut = ArenaCut(pages, parts)
        self.holders = [-1] * self.cut.count
        self.memory = {
            rank: PageAllocator(pages, 0.0, whole=False, downward=rank != OWNER) for rank in (OWNER, LESSEE, OTHER)
        }

    def put(self, rank: int, pages: int) -> int | None:
        """The first page of a new cell, None: neither what the rank has nor what is free can take it."""
        memory = self.memory[rank]
        while (cell := memory.allocate(pages, 0.0)) is None:
            run = self.cut.next_run(self.holders, OWNER, rank, memory, pages)
            if not run:
                return None
            assert rank == OWNER or run[0] > 0
            assert all(self.holders[extent] == -1 for extent in run)
            for extent in reversed(run) if memory.downward else run:
                self.holders[extent] = rank
                memory.add(*self.cut.pages_of(extent))
        return cell[0]

    def delete(self, rank: int, first: int) -> None:
        memory = self.memory[rank]
        memory.retire(first, 0.0)
        memory.ripe(0.0)
        memory.free(first)

    def give_back(self, rank: int, extent: int) -> None:
        self.memory[rank].drop(self.cut.pages_of(extent)[0])
        self.holders[extent] = -1

    def unused(self, *ranks: int) -> int:
        """Pages that these ranks have and do not use, and that nobody has of what is lent."""
        nobody = sum(self.cut.pages_of(extent)[1] for extent in range(1, self.cut.count) if self.holders[extent] == -1)
        return nobody + sum(self.memory[rank].free_pages for rank in ranks)

    def check(self) -> None:
        for memory in self.memory.values():
            memory.check()


@given(st.integers(1, 5000), st.integers(1, 4096))
def test_a_cut_is_a_sixteenth_that_is_never_lent_and_equal_parts(pages: int, parts: int) -> None:
    cut = ArenaCut(pages, parts)
    spans = [cut.pages_of(extent) for extent in range(cut.count)]
    assert spans[0] == (0, -(-pages // 16))
    assert all(start + length == after for (start, length), (after, _) in itertools.pairwise(spans))
    assert sum(spans[-1]) == pages
    assert {length for _, length in spans[1:-1]} <= {cut.extent_pages}
    assert cut.count <= parts + 1
    for extent, (start, length) in enumerate(spans):
        assert length > 0
        assert cut.at(start) == cut.at(start + length - 1) == extent


@pytest.mark.parametrize("rank", [OWNER, LESSEE])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_who_fills_an_arena_wastes_less_than_a_block(rank: int, data: st.DataObject) -> None:
    """Whatever the size of its blocks is, and into however many parts the arena is cut."""
    pages = data.draw(st.integers(16, 1024))
    arena = Arena(pages, data.draw(st.integers(1, 64)))
    block = data.draw(st.integers(1, max(1, pages // 3)))
    cells = 0
    while arena.put(rank, block) is not None:
        cells += 1
    lendable = pages - arena.cut.kept_pages
    assert cells == (pages if rank == OWNER else lendable) // block
    assert arena.unused(rank) < block
    arena.check()


@given(st.integers(16, 1024), st.integers(1, 64), st.integers(0, 1 << 30))
@settings(deadline=None)
def test_blocks_of_any_sizes_waste_less_than_the_one_that_fits_no_more(pages: int, parts: int, seed: int) -> None:
    rng, arena = random.Random(seed), Arena(pages, parts)
    while arena.put(LESSEE, block := rng.randint(1, max(1, pages // 3))) is not None:
        pass
    assert arena.unused(LESSEE) < block
    arena.check()


@given(st.integers(64, 512), st.integers(2, 40), st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=30)
def test_what_comes_and_goes_leaves_an_arena_that_fills_up_again(pages: int, parts: int, seed: int) -> None:
    """Blocks of one size come and go, extents that are empty are given back and others recalled: then it is filled."""
    rng, arena = random.Random(seed), Arena(pages, parts)
    block = rng.randint(1, pages // 6)
    live = list[int]()
    memory = arena.memory[LESSEE]
    for step in range(80):
        draw = rng.random()
        if draw < 0.5:
            first = arena.put(LESSEE, block)
            live += [] if first is None else [first]
        elif draw < 0.8 and live:
            arena.delete(LESSEE, live.pop(rng.randrange(len(live))))
        elif draw < 0.9 and memory.ranges:
            memory.close(rng.choice([*memory.ranges]))
        for start in memory.ranges:
            if memory.is_empty(start) and (start in memory.closing or rng.random() < 0.2):
                arena.give_back(LESSEE, arena.cut.at(start))
        if step % 8 == 0:
            arena.check()
    for first in live:
        arena.delete(LESSEE, first)
    for start in memory.ranges:
        arena.give_back(LESSEE, arena.cut.at(start))
    cells = 0
    while arena.put(LESSEE, block) is not None:
        cells += 1
    assert cells == (pages - arena.cut.kept_pages) // block
    arena.check()


@pytest.mark.parametrize("block", [200, 256, 320, 500, 1000])
def test_two_ranks_that_fill_an_arena_leave_one_another_long_runs(block: int) -> None:
    """They take extents in any order: a rest in each of them would be 6 to 30 blocks."""
    for seed in range(4):
        rng, arena, filling = random.Random(seed), Arena(16_384, 32), [LESSEE, OTHER]
        while filling:
            rank = rng.choice(filling)
            if arena.put(rank, block) is None:
                filling.remove(rank)
        assert arena.unused(LESSEE, OTHER) < 6 * block
        arena.check()


def test_the_owner_and_a_lessee_meet() -> None:
    """Each fills from its side, and what the two leave in the middle is less than an extent and two blocks."""
    for seed in range(4):
        rng, arena, filling = random.Random(seed), Arena(4096, 32), [OWNER, LESSEE]
        while filling:
            rank = rng.choice(filling)
            if arena.put(rank, 100) is None:
                filling.remove(rank)
        assert arena.unused(OWNER, LESSEE) < 2 * 100
        arena.check()


def test_as_few_extents_as_will_do_and_those_next_to_what_is_left() -> None:
    cut = ArenaCut(160, 5)  # 10 pages are never lent, the other extents have 30
    empty = PageAllocator(160, 0.0, whole=False, downward=True)
    free = [-1] * cut.count
    assert list(cut.next_run(free, OWNER, LESSEE, empty, 30)) == [5]
    assert list(cut.next_run(free, OWNER, LESSEE, empty, 31)) == [4, 5]
    assert list(cut.next_run(free, OWNER, LESSEE, empty, 151)) == []
    own = PageAllocator(160, 0.0, whole=False)
    assert list(cut.next_run(free, OWNER, OWNER, own, 10)) == [0]
    assert list(cut.next_run(free, OWNER, OWNER, own, 40)) == [0, 1]
    assert list(cut.next_run(free, OWNER, OWNER, own, 160)) == [0, 1, 2, 3, 4, 5]
    rest = PageAllocator(160, 0.0, whole=False, downward=True)
    rest.add(*cut.pages_of(3))
    assert rest.allocate(20, 0.0) == (80, 1)
    holders = [-1, -1, -1, LESSEE, -1, -1]
    assert list(cut.next_run(holders, OWNER, LESSEE, rest, 1)) == [2]  # beside the 10 pages that are left
    assert list(cut.next_run(holders, OWNER, LESSEE, rest, 40)) == [2]
    assert list(cut.next_run(holders, OWNER, LESSEE, rest, 70)) == [1, 2]
    assert list(cut.next_run(holders, OWNER, LESSEE, rest, 71)) == []
    assert list(cut.next_run([-1, -1, OTHER, LESSEE, -1, -1], OWNER, LESSEE, rest, 1)) == [5]
    assert list(cut.next_run([-1, -1, -1, -1, -1, OTHER], OWNER, LESSEE, empty, 1)) == [2]  # it goes on into 3 and 4


def test_an_extent_that_is_taken_again_is_one_run_with_what_is_left_above_it() -> None:
    arena = Arena(160, 5)  # 10 pages are never lent, the other extents have 30
    assert [arena.put(LESSEE, 20), arena.put(LESSEE, 20), arena.put(LESSEE, 25)] == [140, 120, 95]
    arena.delete(LESSEE, 95)
    arena.give_back(LESSEE, arena.cut.at(70))
    assert arena.memory[LESSEE].free_pages == 20
    assert arena.put(LESSEE, 25) == 95
    arena.check()
