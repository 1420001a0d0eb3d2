"""A full arena: what is refused, what is evicted, what never leaves, and that nothing leaks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from layouts import LAYOUTS
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import StoreFullError
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import MAX_PAGES
from cascade_mpi.policies.family import STORE_POLICIES
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

ARENA = 4 << 20
BLOCK = 256 << 10


@pytest.fixture
def open_store(open_store: Callable[..., Store]) -> Callable[..., Store]:
    """Arenas of one rank each: `test_pool` has those that ranks share."""
    return partial(open_store, lease_extents=0)


@pytest.fixture
def refusing(open_store: Callable[..., Store], comm: MPI.Intracomm) -> Store:
    return open_store(comm, dram_bytes=ARENA, when_full="refuse")


@pytest.fixture
def evicting(open_store: Callable[..., Store], comm: MPI.Intracomm) -> Store:
    return open_store(comm, dram_bytes=ARENA, when_full="evict")


def fill(store: Store, number: int) -> bool:
    rank = store._fabric.comm.rank
    return bool(store.put(f"{rank} {number}", block(1000 * rank + number, BLOCK)))


@pytest.mark.core
def test_a_refusal_says_why_and_changes_nothing(refusing: Store, comm: MPI.Intracomm) -> None:
    capacity = ARENA // BLOCK
    assert all(fill(refusing, number) for number in range(capacity))
    before = refusing.stats()
    refused = refusing.put(f"{comm.rank} extra", block(1, BLOCK))
    assert not refused
    assert (refused.stored, refused.refused, refused.tier, refused.bytes) == (False, True, "", BLOCK)
    for number in (BLOCK, BLOCK // 4096, ARENA // 4096):
        assert re.search(rf"\b{number}\b", refused.reason), refused.reason
    assert 'when_full="evict"' in refused.reason
    # A block that is there is not lost by a replace that does not fit.
    assert not refusing.put(f"{comm.rank} 0", block(2, 2 * BLOCK))
    assert not refusing.put_many([f"{comm.rank} 1"], [block(2, BLOCK)])[0]
    after = refusing.stats()
    assert after["refused"] == before["refused"] + 3
    assert (after["arena"], after["blocks"]) == (before["arena"], before["blocks"])
    comm.Barrier()
    for rank in range(comm.size):
        assert not refusing.contains(f"{rank} extra")
        for number in range(capacity):
            np.testing.assert_array_equal(refusing.get(f"{rank} {number}"), block(1000 * rank + number, BLOCK))
    refusing.check()


def test_room_after_a_delete_by_a_stranger(refusing: Store, comm: MPI.Intracomm) -> None:
    assert all(fill(refusing, number) for number in range(ARENA // BLOCK))
    comm.Barrier()
    assert refusing.delete(f"{(comm.rank + 1) % comm.size} 3")
    comm.Barrier()
    assert refusing.put(f"{comm.rank} extra", block(1, BLOCK)).stored
    assert not refusing.put(f"{comm.rank} more", block(1, BLOCK))
    refusing.check()


def test_pinned_cells_do_not_hold_back_those_behind_them_in_limbo(refusing: Store, comm: MPI.Intracomm) -> None:
    # More views than a put looks at cells: they are the oldest in limbo, and stay there as long as they are held.
    assert all(fill(refusing, number) for number in range(ARENA // BLOCK))
    views = [refusing.view(f"{comm.rank} {number}") for number in range(6)]
    assert all(refusing.delete(f"{comm.rank} {number}") for number in range(12))
    allocator, held = refusing._dram.allocator, 6 * (BLOCK // 4096)
    deadline = time.monotonic() + 20
    while allocator.limbo_pages > held and time.monotonic() < deadline:
        refusing._dram.drain_some(time.monotonic())
    assert allocator.limbo_pages == held
    for number, view in enumerate(views):
        assert view is not None
        with view as array:
            np.testing.assert_array_equal(array, block(1000 * comm.rank + number, BLOCK))
    refusing.check()


@pytest.mark.parametrize("nbytes", [ARENA + 1, 10 * ARENA])
def test_a_block_larger_than_the_arena(refusing: Store, evicting: Store, comm: MPI.Intracomm, nbytes: int) -> None:
    for store in (refusing, evicting):
        assert fill(store, 0)
        refused = store.put(f"{comm.rank} large", np.zeros(nbytes, np.uint8))
        assert refused.refused
        assert str(nbytes) in refused.reason
        np.testing.assert_array_equal(store.get(f"{comm.rank} 0"), block(1000 * comm.rank, BLOCK))
        assert store.stats()["evicted"] == 0


def test_a_block_of_the_whole_arena(evicting: Store, comm: MPI.Intracomm) -> None:
    assert all(fill(evicting, number) for number in range(5))
    assert evicting.put(f"whole {comm.rank}", block(comm.rank, ARENA))
    comm.Barrier()
    for rank in range(comm.size):
        np.testing.assert_array_equal(evicting.get(f"whole {rank}"), block(rank, ARENA))
        assert evicting.get(f"{rank} 4") is None
    evicting.check()


@pytest.mark.core
def test_eviction_takes_the_old_and_never_the_protected(evicting: Store, comm: MPI.Intracomm) -> None:
    for number in range(4):
        assert evicting.put(f"{comm.rank} prefix {number}", block(number, BLOCK), is_prefix=True)
    total = 5 * ARENA // BLOCK
    assert all(fill(evicting, number) for number in range(total))
    comm.Barrier()
    for rank in range(comm.size):
        for number in range(4):
            np.testing.assert_array_equal(evicting.get(f"{rank} prefix {number}"), block(number, BLOCK))
        assert evicting.get(f"{rank} 0") is None
        np.testing.assert_array_equal(evicting.get(f"{rank} {total - 1}"), block(1000 * rank + total - 1, BLOCK))
        for number in range(total):  # whatever is left is right
            found = evicting.get(f"{rank} {number}")
            assert found is None or (found == block(1000 * rank + number, BLOCK)).all()
    stats = evicting.stats()
    assert stats["evicted"] >= total - ARENA // BLOCK
    assert stats["evicted_bytes"] == stats["evicted"] * BLOCK
    evicting.check()


def test_an_arena_of_protected_blocks_refuses(evicting: Store, comm: MPI.Intracomm) -> None:
    capacity = ARENA // BLOCK
    for number in range(capacity):
        assert evicting.put(f"{comm.rank} {number}", block(number, BLOCK), is_prefix=True)
    assert evicting.put(f"{comm.rank} new", block(0, BLOCK)).refused
    with pytest.raises(StoreFullError, match="raise dram_bytes"):
        evicting.put(f"{comm.rank} new", block(0, BLOCK), is_prefix=True)
    comm.Barrier()
    for rank in range(comm.size):
        for number in range(capacity):
            np.testing.assert_array_equal(evicting.get(f"{rank} {number}"), block(number, BLOCK))
    comm.Barrier()
    assert evicting.delete(f"{comm.rank} 5")
    assert evicting.put(f"{comm.rank} new", block(0, BLOCK)).stored


def test_what_was_read_lately_stays(evicting: Store, comm: MPI.Intracomm) -> None:
    """By the neighbour as well: it writes the time of the use into this rank's touch array."""
    capacity, neighbour = ARENA // BLOCK, (comm.rank + 1) % comm.size
    for number in range(capacity):
        assert fill(evicting, number)
    comm.Barrier()
    put, deadline = evicting._fabric.ticks(), time.monotonic() + 30
    while evicting._fabric.ticks() <= put + 1:  # until a touch differs from that of the puts
        assert time.monotonic() < deadline
    for number in range(0, capacity, 2):
        assert evicting.get(f"{neighbour} {number}") is not None
    evicting.progress()  # touches of other nodes leave with it
    comm.Barrier()
    for number in range(capacity, capacity + capacity // 2):
        assert fill(evicting, number)
    assert all(evicting.contains(f"{comm.rank} {number}") for number in range(0, capacity, 2))
    assert not any(evicting.contains(f"{comm.rank} {number}") for number in range(1, capacity, 2))


@pytest.mark.parametrize("windows", LAYOUTS)
def test_replaces_by_strangers_leak_nothing(
    open_store: Callable[..., Store], comm: MPI.Intracomm, windows: str
) -> None:
    store = open_store(comm, dram_bytes=ARENA, when_full="refuse", windows=windows)
    keys = 4
    for version in range(60):  # 60 x 4 x 256 KiB: each arena is written several times over
        if comm.rank == version % comm.size:
            for key in range(keys):
                assert store.put(f"turn {key}", block(keys * version + key, BLOCK)), version
        comm.Barrier()
        if version % 10 == 9:
            for key in range(keys):
                np.testing.assert_array_equal(store.get(f"turn {key}"), block(keys * version + key, BLOCK))
        comm.Barrier()
    store.check()
    assert comm.allreduce(store.stats()["blocks"]) == keys
    assert comm.allreduce(store.stats()["arena"]["live_bytes"]) == keys * BLOCK
    assert store.stats()["cell_reuses"] > 0


def test_all_replace_the_same_keys_at_once(refusing: Store, comm: MPI.Intracomm) -> None:
    """Each arena holds 16 blocks and 40 rounds of 4 are put: lost races must give their cells back too."""
    for version in range(40):
        for key in range(4):
            assert refusing.put(f"race {key}", np.full(BLOCK, version, np.uint8))
        if version % 8 == 7:
            comm.Barrier()
            for key in range(4):
                assert (refusing.get(f"race {key}") == version).all()
            comm.Barrier()
    assert refusing.check()["words"] == 4


def test_kept_and_failed_puts_leak_nothing(refusing: Store, comm: MPI.Intracomm) -> None:
    refusing.put(f"there {comm.rank}", b"v")
    for _ in range(100):
        assert refusing.put(f"there {comm.rank}", block(1, BLOCK), exists="keep").kept
        with pytest.raises(KeyError, match="delete it first"):
            refusing.put(f"there {comm.rank}", block(1, BLOCK), exists="error")
        with pytest.raises(TypeError, match="references"):
            refusing.put(f"there {comm.rank}", np.array([None]))
    refusing.check()
    assert refusing.stats()["arena"]["live_bytes"] == 1


def test_small_blocks_fill_the_arena(refusing: Store, comm: MPI.Intracomm) -> None:
    """Every page has its descriptor and its share of index words."""
    pages = ARENA // 4096
    keys = np.arange(pages, dtype=np.uint64) + np.uint64(comm.rank * pages)
    results = refusing.put_many(keys, [b"x" * 100] * pages)
    assert all(results)
    comm.Barrier()
    assert refusing.contains_many(np.arange(pages * comm.size)).all()
    refusing.check()


def test_a_full_bucket_gives_up_its_blocks(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    """An index that is far too small drops blocks, never protected ones, and finds no wrong ones."""
    store = open_store(comm, dram_bytes=ARENA, index_blocks=1)
    assert store.put(f"{comm.rank} prefix", b"kept", is_prefix=True)
    comm.Barrier()
    for number in range(200):
        store.put(f"{comm.rank} {number}", np.array([comm.rank, number]))
    comm.Barrier()
    for rank in range(comm.size):
        assert store.get(f"{rank} prefix").tobytes() == b"kept"
        for number in range(200):
            found = store.get(f"{rank} {number}")
            assert found is None or found.tolist() == [rank, number]
    assert comm.allreduce(store.stats()["bucket_overflows"]) > 0
    store.check()


@pytest.mark.skipif("TEST_BIG" not in os.environ, reason="needs 8 GiB of memory: set TEST_BIG=1")
def test_a_block_over_2_gib(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    """Put by one rank, read by all: whole, in ranges on both sides of 2 GiB, as a view on its node."""
    nbytes = (2200 << 20) + 12_345
    store = open_store(comm, dram_bytes="2.3GiB", when_full="refuse")
    piece = block(77, 1 << 20)
    if comm.rank == 0:
        value = np.resize(piece, nbytes)
        value[-4:] = (1, 2, 3, 4)
        assert store.put("big", value).stored
        del value
    comm.Barrier()
    assert store.locate("big").nbytes == nbytes
    assert store.get_range("big", nbytes - 4, 4).tolist() == [1, 2, 3, 4]
    at = (1 << 31) - 100
    np.testing.assert_array_equal(store.get_range("big", at, 200), np.resize(np.roll(piece, -(at % len(piece))), 200))
    readers = sorted({comm.size - 1, comm.size // 2, 0})  # one after the other: memory for one copy
    for rank in readers:
        if comm.rank == rank:
            out = np.zeros(nbytes, np.uint8)
            assert store.get("big", out) == nbytes
            whole = nbytes // len(piece) * len(piece)
            assert (out[:whole].reshape(-1, len(piece)) == piece).all()
            assert out[-4:].tolist() == [1, 2, 3, 4]
            del out
        comm.Barrier()
    if store._fabric.mapped[0]:
        with store.view("big") as array:
            assert array.nbytes == nbytes
            assert array[-1] == 4
            del array
    store.check()


def test_a_put_that_can_never_fit_evicts_nothing(evicting: Store, comm: MPI.Intracomm) -> None:
    """Protected blocks leave no run of pages for it, whatever else goes; nor does a pinned one."""
    numbers = range(ARENA // BLOCK)
    for number in numbers:  # every fourth is protected: the longest run is of three
        assert evicting.put(f"{comm.rank} {number}", block(number, BLOCK), is_prefix=number % 4 == 0)
    refused = evicting.put(f"{comm.rank} large", block(0, 4 * BLOCK))
    assert refused.refused
    assert evicting.stats()["evicted"] == 0
    assert all(evicting.contains(f"{comm.rank} {number}") for number in numbers)
    views = [evicting.view(f"{comm.rank} {number}") for number in numbers if number % 4 == 2]  # amid each run
    assert evicting.put(f"{comm.rank} large", block(0, 3 * BLOCK)).refused
    assert evicting.stats()["evicted"] == 0
    for view in views:
        view.release()
    assert evicting.put(f"{comm.rank} large", block(0, 3 * BLOCK)).stored
    assert all(evicting.contains(f"{comm.rank} {number}") for number in numbers if number % 4 == 0)
    evicting.check()


def test_a_clock_that_is_behind_the_others(evicting: Store, comm: MPI.Intracomm) -> None:
    """Touches are ticks since the store was opened, by rank 0's clock: a put must not fail by them."""
    evicting._fabric.epoch += 100_000
    assert evicting.put(f"{comm.rank}", block(1, BLOCK)).stored
    np.testing.assert_array_equal(evicting.get(f"{comm.rank}"), block(1, BLOCK))
    assert evicting.stats()["arena"]["live_bytes"] == BLOCK
    comm.Barrier()
    evicting.check()


def test_checksums_for_later_do_not_pile_up(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, checksum="later")
    for number in range(5000):
        store.put(f"{comm.rank}", block(number, 64))
    assert len(store._dram._unsummed) <= 2048
    comm.Barrier()
    assert store.check()["checksums"] == comm.size


@pytest.mark.parametrize("eviction", list(STORE_POLICIES))
def test_every_policy_evicts_and_loses_no_byte(
    open_store: Callable[..., Store], comm: MPI.Intracomm, eviction: str
) -> None:
    """Sizes of one to nine pages, replaces and deletes, reads by all ranks in between."""
    store = open_store(comm, dram_bytes="1MiB", eviction=eviction)
    random = np.random.default_rng(comm.rank)
    sizes: dict[int, int] = {}
    for number in range(900):
        key = int(random.zipf(1.3) % 400)
        size = sizes.get(key)
        if size is not None and number % 37 == 0:
            store.delete((comm.rank << 32) + key)
            del sizes[key]
        elif size is not None and (found := store.get((comm.rank << 32) + key)) is not None:
            assert (found == block(1000 * comm.rank + key, size)).all()
        else:
            sizes[key] = size = int(random.integers(1, 9 * 4096))
            assert store.put((comm.rank << 32) + key, block(1000 * comm.rank + key, size)).stored
    comm.Barrier()
    found = store.get_many([(rank << 32) + key for rank in range(comm.size) for key in range(20)])
    assert sum(each is not None for each in found) > 5 * comm.size
    assert store.stats()["evicted"] > 0
    assert store.report()["eviction"]["policy"] == eviction
    store.check()


def test_puts_keep_some_pages_free(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes="8MiB", evict_ahead=0.1, rest_ms=0.1)
    dram, least = store._dram, []
    for number in range(4000):
        assert store.put((comm.rank << 32) + number, block(number, 4096)).stored
        least.append(dram.allocator.free_pages + dram.allocator.limbo_pages)
    assert dram.low_pages == 204
    assert min(least[2048:]) >= dram.low_pages - 2
    assert max(least[2048:]) < 2 * dram.low_pages
    store.check()


def test_a_block_that_is_larger_than_what_is_kept_free_stays(
    open_store: Callable[..., Store], comm: MPI.Intracomm
) -> None:
    store = open_store(comm, dram_bytes="1MiB", evict_ahead=0.05)
    large = block(comm.rank, 200 * 4096)
    assert store.put(f"{comm.rank}", large).stored
    for number in range(50):  # of 256 pages 6 are left
        assert store.put(f"{comm.rank} {number}", block(number, 4096)).stored
    np.testing.assert_array_equal(store.get(f"{comm.rank}"), large)
    assert store.report()["eviction"]["ahead_bytes"] == 12 * 4096
    # It is the oldest, and what comes after it has gone in its place, so that puts find room that is kept free.
    assert 0 < store.stats()["evicted"] < 50
    free = store._dram.allocator.free_pages + store._dram.allocator.limbo_pages
    assert free >= 10, f"{free} pages"
    comm.Barrier()
    store.check()


def test_a_block_that_is_used_after_it_was_chosen_stays(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    """Victims are chosen for an eighth of the arena at a time; a later look finds those that were used since."""
    store = open_store(comm, dram_bytes="1MiB", evict_ahead=0, rest_ms=0.1)
    for number in range(257):  # of 256 pages: the last one had to evict, and has chosen
        assert store.put((comm.rank << 32) + number, block(number, 4096)).stored
    chosen = list(store._dram._chosen)
    assert len(chosen) > 10
    key = int(store._dram.records["key_lo"][chosen[3] & MAX_PAGES - 1])
    put, deadline = store._fabric.ticks(), time.monotonic() + 30
    while store._fabric.ticks() <= put + 1:
        assert time.monotonic() < deadline
    assert store.get((comm.rank << 32) + (key & 0xFFFFFFFF)) is not None
    for number in range(300, 310):
        assert store.put((comm.rank << 32) + number, block(number, 4096)).stored
    assert store.contains((comm.rank << 32) + (key & 0xFFFFFFFF))
    assert len(set(chosen) & set(store._dram.words.tolist())) < len(chosen) - 5
    store.check()


def test_a_cell_does_not_leak_when_evicting_ahead_fails(
    open_store: Callable[..., Store], comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(comm, dram_bytes="1MiB", evict_ahead=0.2, when_full="evict")
    for number in range(230):  # of 256 pages
        assert store.put((comm.rank << 32) + number, block(number, 4096)).stored
    live = store._dram.allocator.live_cells

    def fails(first: int) -> int:
        raise MPI.Exception(MPI.ERR_OTHER)

    monkeypatch.setattr(store._dram, "_evict_one", fails)
    with pytest.raises(MPI.Exception):
        store.put((comm.rank << 32) + 999, block(0, 4096))
    monkeypatch.undo()
    assert store._dram.allocator.live_cells == live
    comm.Barrier()
    store.check()


def test_large_old_blocks_do_not_keep_puts_from_evicting_ahead(
    open_store: Callable[..., Store], comm: MPI.Intracomm
) -> None:
    """Several of them, which stay in their order, and go when a put needs the room."""
    store = open_store(comm, dram_bytes="1MiB", evict_ahead=0.05, rest_ms=0.1)
    for number in range(3):
        assert store.put(f"{comm.rank} large {number}", block(number, 40 * 4096)).stored
    least = []
    for number in range(600):
        assert store.put(f"{comm.rank} {number}", block(number, 4096)).stored
        least.append(store._dram.allocator.free_pages + store._dram.allocator.limbo_pages)
    assert min(least[200:]) >= store._dram.low_pages - 2
    assert all(store.contains(f"{comm.rank} large {number}") for number in range(3))
    assert store.put(f"{comm.rank} room", block(1, 40 * 4096)).stored
    assert [store.contains(f"{comm.rank} large {number}") for number in range(3)] == [False, True, True]
    comm.Barrier()
    store.check()


def test_a_quota_takes_the_coldest_of_its_namespace_and_asks_no_policy(
    open_store: Callable[..., Store], comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(comm, dram_bytes="4MiB", eviction="s3fifo", evict_ahead=0)
    for rank in range(comm.size):  # each rank has a namespace of its own: what others put changes nothing
        store.set_quota(100 * 4096, f"q{rank}")
    mine = f"q{comm.rank}"
    looks, cells_of = [0], store._dram._coldest._cells_of

    def counted(namespace_id: int, epoch: int) -> np.ndarray:
        looks[0] += 1
        return cells_of(namespace_id, epoch)

    def asked(*_: object, **__: object) -> list[int]:
        raise AssertionError("the policy of the whole arena was asked for a block of one namespace")

    monkeypatch.setattr(store._dram._coldest, "_cells_of", counted)
    monkeypatch.setattr(store._dram.victims, "choose", asked)
    store.put(f"{comm.rank} other", block(1, 4096))
    for number in range(100):
        assert store.put(f"{comm.rank} {number}", block(number, 4096), namespace=mine).stored
    put, deadline = store._fabric.ticks(), time.monotonic() + 30
    while store._fabric.ticks() <= put + 1:
        assert time.monotonic() < deadline
    assert store.get(f"{comm.rank} 3", namespace=mine) is not None  # so it is not among the first to go
    for number in range(100, 150):
        assert store.put(f"{comm.rank} {number}", block(number, 4096), namespace=mine).stored
    there = [number for number in range(150) if store.contains(f"{comm.rank} {number}", namespace=mine)]
    assert there == [3, *range(51, 150)]
    assert 0 < looks[0] <= 10
    monkeypatch.undo()
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("how", ["expired", "passed"])
def test_what_mpi_fails_to_remove_is_removed_later(
    open_store: Callable[..., Store], comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store = open_store(comm, dram_bytes="1MiB")
    space = f"of rank {comm.rank}"
    for number in range(3):
        assert store.put(number, block(number, 4096), ttl=100, namespace=space).stored
    comm.Barrier()
    failures = [1]

    def fails(first: int, **why: bool) -> int | None:
        if failures and failures.pop():
            raise MPI.Exception(MPI.ERR_OTHER)
        return remove(first, **why)

    remove = store._dram.remove
    monkeypatch.setattr(store._dram, "remove", fails)
    if how == "expired":
        store._fabric.context[c.EPOCH] -= 1000
        with pytest.raises(MPI.Exception):
            store.progress()
    else:
        with pytest.raises(MPI.Exception):
            store.bump_epoch(space)
    assert store.stats()["blocks"] == 3
    store.progress()
    assert store.stats()["blocks"] == 0
    assert store.stats()["expired"] == (3 if how == "expired" else 0)
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("told", [True, False])
def test_the_last_blocks_of_requests_go_first_if_requests_are_told(
    open_store: Callable[..., Store], comm: MPI.Intracomm, told: bool
) -> None:
    """The last one is not full, so that nobody will ask for it again; only the request says which one that is."""
    store = open_store(comm, dram_bytes="1MiB", eviction="prefix", evict_ahead=0, rest_ms=0.1)
    requests = 2400  # of 4 blocks each, into 256 pages: it goes by age until it has seen sixteen times as many
    for request in range(requests):
        keys = [(comm.rank << 32) + 4 * request + place for place in range(4)]
        if told:
            store.request(keys)
        assert all(each.stored for each in store.put_many(keys, [block(key & 0xFFFF, 4096) for key in keys]))
    there = store.contains_many([(comm.rank << 32) + number for number in range(4 * requests)]).reshape(requests, 4)
    last, others = int(there[:, 3].sum()), int(there[:, :3].sum())
    for number in np.flatnonzero(there.reshape(-1))[:20].tolist():
        np.testing.assert_array_equal(store.get((comm.rank << 32) + number), block(number, 4096))
    assert (last < 0.5 * others / 3) == told, f"{last} last blocks are there, {others} others"
    comm.Barrier()
    store.check()


def test_a_request_is_nothing_to_other_policies(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes="1MiB")
    store.request(["a", "b"])
    store.request(np.zeros((0, 2), np.uint64))
    assert store.stats()["blocks"] == 0
    comm.Barrier()
