"""What the manager of an arena tells a policy, and what it chooses: on a touch array and no store."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.config import _MODES, Config
from cascade_mpi.errors import ProtocolError
from cascade_mpi.layout import DESCRIPTOR
from cascade_mpi.policies.family import STORE_POLICIES, make
from cascade_mpi.policies.state import MARK, ROW
from cascade_mpi.policies.watch import ASKED
from cascade_mpi.victims import Victims

NONE = np.empty(0, np.int64)


class Arena(NamedTuple):
    """The tables of a rank of which the first page of every cell is the number of its key modulo the pages."""

    victims: Victims
    records: np.ndarray
    touched: np.ndarray
    live: dict[int, int]  # key by first page

    def put(self, first: int, key: int, tick: int, pages: int = 1) -> None:
        self.touched[first] = tick
        self.records["key_lo"][first] = key
        self.victims.entered(first, pages)
        self.live[first] = key

    def leave(self, first: int, *, evicted: bool = True) -> None:
        del self.live[first]
        self.victims.left(first, evicted=evicted)

    def check(self) -> None:
        self.victims.check(np.array(sorted(self.live), np.int64))


def arena(name: str, pages: int = 8) -> Arena:
    records, touched = np.zeros(pages, DESCRIPTOR), np.zeros(pages, np.uint32)
    return Arena(Victims(name, records, touched), records, touched, {})


def test_the_settings_are_the_policies() -> None:
    assert tuple(STORE_POLICIES) == _MODES["eviction"]
    assert Config().eviction in STORE_POLICIES


def test_lru_goes_by_the_last_use_whoever_made_it() -> None:
    at = arena("lru")
    for first in range(6):
        at.put(first, first, tick=10 + first)
    at.touched[0] = 30  # what a reader on another rank does
    at.touched[2] = 20
    assert at.victims.choose(6, NONE) == [1, 3, 4, 5, 2, 0]
    at.touched[1] = 40
    assert not at.victims.untouched(1)
    assert at.victims.untouched(3)
    at.put(7, 7, tick=35)
    assert at.victims.choose(7, NONE) == [3, 4, 5, 2, 0, 7, 1]
    at.check()


def test_a_choice_leaves_out_what_stays_and_takes_as_many_pages_as_asked() -> None:
    at = arena("lru")
    for first, pages in ((0, 2), (2, 1), (3, 3), (6, 1)):
        at.put(first, first, tick=first, pages=pages)
    assert at.victims.choose(3, NONE) == [0, 2]
    assert at.victims.choose(3, np.array([0, 6])) == [2, 3]
    assert at.victims.choose(8, np.array([2]), only=np.array([2, 3])) == [3]
    assert at.victims.choose(8, np.array([0, 2, 3, 6])) == []


@pytest.mark.parametrize("known", [True, False])
def test_a_block_that_comes_back_is_known_by_its_key(known: bool) -> None:
    """Wherever its cell is now. ARC makes room for blocks used once when one of those returns that it gave up."""
    at = arena("arc")
    for first in range(8):
        at.put(first, first, tick=first)
    assert at.victims.choose(1, NONE) == [0]
    at.leave(0)
    at.leave(1, evicted=False)
    at.put(1, 0 if known else 99, tick=20)
    at.victims.choose(1, NONE)
    assert (at.victims._policy.target > 0) == known
    at.check()


def test_a_block_that_was_deleted_is_forgotten() -> None:
    at = arena("arc")
    for first in range(8):
        at.put(first, first, tick=first)
    at.victims.choose(1, NONE)
    at.leave(0, evicted=False)
    at.put(0, 0, tick=20)
    assert at.victims.choose(8, NONE) == [1, 2, 3, 4, 5, 6, 7, 0]
    at.check()


def test_check_sees_a_block_that_was_not_told_of() -> None:
    at = arena("lru")
    at.put(0, 0, tick=1)
    with pytest.raises(ProtocolError, match="knows 1 cells, the arena 2"):
        at.victims.check(np.array([0, 1]))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(STORE_POLICIES)),
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 15), st.integers(0, 3)), max_size=120),
)
def test_any_sequence_keeps_the_tables_together(name: str, steps: list[tuple[int, int, int]]) -> None:
    """Cells are evicted, deleted, reused for other keys and touched in any order, looked at now and then."""
    at = arena(name, 6)
    for tick, (what, key, page) in enumerate(steps, 1):
        first = page + key % 3
        if first in at.live and what < 2:
            at.leave(first, evicted=what == 0)
        elif first in at.live:
            at.touched[first] = tick
        elif len(at.live) < 6:
            at.put(first, key, tick)
        if what > 7:
            chosen = at.victims.choose(2, NONE)
            assert set(chosen) <= set(at.live)
            assert len(chosen) == min(2, len(at.live))
        if what == 9:
            at.check()
    at.check()


@pytest.mark.parametrize("name", sorted(STORE_POLICIES))
def test_ids_are_given_back_once_and_suffice(name: str) -> None:
    """Deletions between the looks, of blocks that were told of and of some that were not, and whole arenas at once."""
    at, random = arena(name, 32), np.random.default_rng(3)
    for tick in range(1, 4000):
        first, key = int(random.integers(32)), int(random.integers(150))
        if tick % 700 == 0:
            for each in list(at.live):
                at.leave(each, evicted=False)
            for each in range(32):
                at.put(each, 1000 + tick + each, tick)
        elif first not in at.live:
            at.put(first, key, tick)
        elif random.random() < 0.4:
            at.leave(first, evicted=False)
        else:
            at.touched[first] = tick
        if len(at.live) > 28:
            for each in at.victims.choose(4, NONE):
                at.leave(each)
        if tick % 500 == 0:
            at.check()
    at.check()


@pytest.mark.parametrize(("pages", "keys", "deleted", "seed"), [(8, 150, 0.3, 1), (16, 60, 0.5, 0), (32, 60, 0.1, 2)])
def test_a_ghost_that_is_forgotten_while_others_come_in(pages: int, keys: int, deleted: float, seed: int) -> None:
    """And whose key is put, and deleted, before the next look: its id was given back twice."""
    at, random = arena("arc", pages), np.random.default_rng(seed)
    for tick in range(1, 3000):
        first, key = int(random.integers(pages)), int(random.integers(keys))
        if first not in at.live:
            if key not in at.live.values():
                at.put(first, key, tick)
        elif random.random() < deleted:
            at.leave(first, evicted=False)
        else:
            at.touched[first] = tick
        if len(at.live) == pages:
            for each in at.victims.choose(max(1, pages // 8), NONE):
                at.leave(each)
    at.check()


def test_what_an_interrupt_cut_short_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    at = arena("lru")
    for first in range(4):
        at.put(first, first, tick=first)
    inserted = at.victims._policy.inserted

    def interrupted(*arguments: object) -> None:
        inserted(*arguments)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(at.victims._policy, "inserted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        at.victims.choose(1, NONE)
    assert at.victims.choose(2, NONE) == [0, 1]
    at.check()


@pytest.mark.parametrize("name", sorted(STORE_POLICIES))
def test_looked_at_after_every_step_it_is_the_exact_policy(name: str) -> None:
    """Driven as a store whose manager looks before each put: hit for hit the policy itself."""
    pages, keys = 16, np.random.default_rng(5).zipf(1.2, 3000) % 60
    at, exact, cells = arena(name, pages), make(name, pages, 60), dict[int, int]()
    free = list(range(pages))
    for tick, key in enumerate(keys.tolist(), 1):
        hit = key in cells
        assert hit == exact.resident([key])[0], tick
        if hit:
            at.touched[cells[key]] = tick
            at.victims._look()
            exact.touched([key])
            continue
        if not free:
            victim = at.victims.choose(1, NONE)[0]
            (evicted,) = exact.victims(1)
            assert at.live[victim] == evicted
            at.leave(victim)
            del cells[int(evicted)]
            free.append(victim)
            exact.evicted([evicted])
        cells[key] = free.pop()
        at.put(cells[key], key, tick)
        exact.inserted([key])
    at.check()


# ------------------------------------------------------------------------------------------------- requests


def prefixes(seed: int, count: int) -> list[list[int]]:
    """Requests of some sessions: each one goes on from the last of its session, or begins anew."""
    random, fresh, made = np.random.default_rng(seed), 0, list[list[int]]()
    sessions: list[list[int]] = [[] for _ in range(6)]
    for _ in range(count):
        mine = int(random.integers(6))
        kept = sessions[mine][:-1] if random.random() < 0.7 else []
        new = int(random.integers(1, 5))
        sessions[mine] = (kept + list(range(fresh, fresh + new)))[-9:]
        fresh += new
        made.append(sessions[mine])
    return made


def test_told_of_requests_and_looked_at_after_every_step_it_is_the_exact_policy() -> None:
    """Victim for victim, also of what a request names and puts only later, where no request pushes itself out."""
    pages, requests = 32, prefixes(1, 700)
    blocks = max(map(max, requests)) + 1
    at, exact, cells = arena("prefix", pages), make("prefix", pages, blocks), dict[int, int]()
    free, tick = list(range(pages)), 0
    for request in requests:
        at.victims.request([(0, key) for key in request], True)
        at.victims._look()
        exact.request(request)
        for key in request:
            tick += 1
            if key in cells:
                at.touched[cells[key]] = tick
                at.victims._look()
                exact.touched([key])
                continue
            if not free:
                victim = at.victims.choose(1, NONE)[0]
                (evicted,) = exact.victims(1)
                assert at.live[victim] == evicted, f"request {request}, block {key}"
                at.leave(victim)
                del cells[int(evicted)]
                free.append(victim)
                exact.evicted([evicted])
            cells[key] = free.pop()
            at.put(cells[key], key, tick)
            exact.inserted([key])
    at.check()


def test_one_block_in_so_many_is_watched_however_often_ids_go_round() -> None:
    """A watched one keeps its id when it has left: of ids that go round there were fewer and fewer, and then none."""
    pages, tick = 1024, 0
    at, free = arena("prefix", pages), list(range(pages))
    for request in range(2000):
        keys = range(10 * request, 10 * request + 10)
        at.victims.request([(0, key) for key in keys], True)
        for key in keys:
            tick += 1
            if not free:
                free = at.victims.choose(64, NONE)
                for each in free:
                    at.leave(each)
            at.put(free.pop(), key, tick)
    at.victims._look()
    rate, resident = at.victims._rate, at.victims._id[sorted(at.live)]
    assert rate == 8
    watched = np.count_nonzero(resident >= at.victims._ends[0])
    assert 0.6 * len(resident) / rate < watched < 1.4 * len(resident) / rate
    at.check()


def test_what_is_asked_for_and_never_put_takes_no_room() -> None:
    at, random = arena("prefix", 32), np.random.default_rng(4)
    for number in range(600):
        keys = (random.integers(0, 5000) + np.arange(random.integers(1, 20))).tolist()
        at.victims.request([(0, key) for key in keys], bool(number % 2))
        if number % 3 == 0:
            at.victims._look()
        for first, key in zip(random.permutation(32)[:4].tolist(), keys, strict=False):
            if first in at.live:
                at.leave(first, evicted=bool(random.random() < 0.5))
            if key not in at.live.values():
                at.put(first, key, number)
        if number % 50 == 0:
            at.check()
            # An id that nobody has says nothing of a request: its next block may never be asked for.
            policy, awaited = at.victims._policy, list(at.victims._awaited.values())
            nobodys = ~policy.remembers()
            nobodys[awaited] = False
            assert not (policy._nodes[MARK : ROW * policy.blocks : ROW][nobodys] & ASKED).any()
    at.victims.request([(0, 10**6)], True)
    at.check()
    known = int(at.victims._policy.remembers().sum())
    assert len(at.victims._key) <= known + 1
    assert len(at.victims._named) <= len(at.victims._key)


def test_policies_that_want_no_requests_are_told_nothing() -> None:
    at = arena("lru")
    at.put(0, 0, tick=1)
    at.victims.request([(0, 0)], True)
    assert not at.victims._asked
    assert not at.victims.wants_requests
