"""One pool of memory: leased extents, recall, placement by hash, and rebalance."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import VARIANTS
from mpi4py import MPI
from patterns import block

from bench import neighbour_read
from bench.stamped import stamp, stamp_of, unstamp, value
from cascade_mpi.errors import NotOnNodeError, ProtocolError
from cascade_mpi.keys import key_words
from cascade_mpi.layout import MAGIC, unpack_word
from cascade_mpi.leases import holder_of, is_recalled
from cascade_mpi.mover import Moved
from cascade_mpi.store import Store

Open = Callable[..., Store]
AssertAll = Callable[..., None]
ARENA = 4 << 20
POOL: dict[str, Any] = {"dram_bytes": ARENA, "lease_extents": 32, "promote_after": 0}
DEADLINE_S = 20.0


def until(store: Store, condition: Callable[[], bool]) -> bool:
    """Call the store until something has come true; False after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        store.progress()
    return True


def all_until(comm: MPI.Intracomm, store: Store, condition: Callable[[], bool]) -> bool:
    """Collective. The same, while every rank goes on calling the store until all are done."""
    done = comm.Ibarrier() if condition() else None
    deadline = time.monotonic() + DEADLINE_S
    while done is None or not done.Test():
        if time.monotonic() > deadline:
            return False
        store.progress()
        if done is None and condition():
            done = comm.Ibarrier()
    return True


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.core
@pytest.mark.nodes
def test_one_writer_fills_the_memory_of_all(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, variant: str
) -> None:
    store = open_store(comm, **POOL, **VARIANTS[variant])
    ranks = list(range(comm.size))
    size = 40_000
    blocks = int(0.9 * ARENA * len(ranks) / (10 * 4096))
    if comm.rank == 0:
        results = [store.put(key, block(key, size)) for key in range(blocks)]
        assert all(result.stored for result in results)
    comm.Barrier()
    out, wrong = np.empty(size, np.uint8), []
    for key in range(blocks):
        if store.get(key, out) != size or not np.array_equal(out, block(key, size)):
            wrong.append(key)
    assert_all(comm, not wrong, f"of {blocks} blocks {wrong[:5]} are not found or wrong")
    assert_all(comm, store.stats()["evicted"] == 0, "blocks were evicted")
    used = {store.locate(key).rank for key in range(blocks)}
    assert_all(comm, used == set(ranks), f"blocks are in the arenas of {used}")
    assert store.check()["words"] == blocks


def fits_in_arenas(ranks: int, size: int) -> int:
    """How many blocks of so many bytes one rank can put: into its own arena whole, of others' all but a sixteenth."""
    pages, arena = -(-size // 4096), ARENA // 4096
    return arena // pages + (ranks - 1) * ((arena - -(-arena // 16)) // pages)


@pytest.mark.parametrize("size", [100_000, 190_000, 300_000, 440_000, 1_300_000])
def test_one_writer_leaves_no_rest_in_each_extent(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, size: int
) -> None:
    """Blocks of any size up to a third of an arena, whose extents hold no whole number of them, find all the room."""
    store = open_store(comm, **POOL, when_full="refuse")
    blocks = fits_in_arenas(comm.size, size)
    assert blocks * size > 0.8 * (ARENA + (comm.size - 1) * ARENA * 15 // 16)
    refused = None
    if comm.rank == 0:
        refused = [key for key in range(blocks + 1) if store.put(key, block(key, size)).refused]
    refused = comm.bcast(refused)
    assert refused == [blocks]
    wrong = wrong_blocks(store, {key: key for key in range(blocks)}, size, all_there=True)
    assert_all(comm, not wrong, f"of {blocks} blocks {wrong[:5]} are not found or wrong")
    store.check()


@pytest.mark.parametrize("extents", [1, 3, 31])
def test_nine_tenths_can_be_lent_in_however_many_parts(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, extents: int
) -> None:
    store = open_store(comm, **POOL | {"lease_extents": extents})
    kept = fill_from(store, list(range(comm.size)), 30_000, 0.9)
    wrong = wrong_blocks(store, kept, 30_000, all_there=True)
    assert_all(comm, not wrong, f"of {len(kept)} blocks {wrong[:5]} are not found or wrong")
    assert_all(comm, store.stats()["evicted"] == 0, "blocks were evicted")
    comm.Barrier()
    if comm.rank:  # what is never lent is there at once
        assert store.put(f"own {comm.rank}", block(2, 30_000)).stored
        assert store._dram.live_bytes == 30_000
    comm.Barrier()
    store.check()


def fill_from(store: Store, ranks: list[int], size: int, share: float, **options: Any) -> dict[int, int]:
    """Rank 0 puts blocks of so many bytes that fill this share of all memory: key -> seed."""
    pages = -(-size // 4096)
    keys = range(int(share * ARENA * len(ranks) / (pages * 4096)))
    if store._comm.rank == 0:
        for key in keys:
            assert store.put(key, block(key, size), **options).stored
    store._comm.Barrier()
    return {key: key for key in keys}


def wrong_blocks(store: Store, kept: dict[int, int], size: int, *, all_there: bool) -> list[int]:
    """The keys whose block is not what it must be; with `all_there` those that are missing too."""
    out, wrong = np.empty(size, np.uint8), []
    for key, seed in kept.items():
        got = store.get(key, out)
        if (got is None and all_there) or (got is not None and not np.array_equal(out[:got], block(seed, size))):
            wrong.append(key)
    return wrong


def test_an_arena_that_is_lent_adds_up(comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll) -> None:
    """Rank 0 fills its own arena and more than half of the others': what they lend is neither live nor free."""
    store = open_store(comm, **POOL)
    fill_from(store, list(range(comm.size)), 30_000, 0.7)
    stats, extent_bytes = store.stats(), store.report()["pool"].get("extent_bytes", 0)
    arena, pool = stats["arena"], stats["pool"]
    parts = {name: arena[name] for name in ("live", "limbo", "free", "lent")}
    assert_all(comm, sum(parts.values()) == arena["bytes"] == ARENA, f"{parts} of {arena['bytes']}")
    assert_all(comm, parts["lent"] == pool.get("lent", 0) * extent_bytes, f"{parts['lent']} bytes, {pool}")
    assert comm.size == 1 or comm.allreduce(parts["lent"]) > 0
    comm.Barrier()


@pytest.mark.parametrize("protected", [False, True])
def test_a_lessor_gets_its_memory_back(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, protected: bool
) -> None:
    """The lessee moves out with its next calls: by eviction alone what fits nowhere goes, and never a protected one."""
    store = open_store(comm, **POOL)
    ranks = list(range(comm.size))
    size, share = 30_000, 0.95 if not protected else (0.55 if len(ranks) > 1 else 0.4)
    kept = fill_from(store, ranks, size, share, is_prefix=protected)
    lent = store.stats()["pool"].get("lent", 0)
    assert comm.size == 1 or sum(comm.allgather(lent)) > 0
    mine = {10_000 * (comm.rank + 1) + n: n for n in range(int((0.95 if protected else 0.8) * ARENA / 32_768))}
    if comm.rank in ranks and comm.rank:
        for key, seed in mine.items():  # more than what is never lent: it has to evict its own until it has all back
            store.put(key, block(seed, size))
    turns = iter(range(10))

    def served() -> bool:
        """Whoever puts goes on to, as it needs the memory; the lessee calls the store."""
        if comm.rank == 0 or comm.rank not in ranks:
            return True
        if protected and next(turns, None) is None:
            return True  # it cannot have all of it
        for key, seed in mine.items():
            if not store.contains(key):
                store.put(key, block(seed, size))
        return not protected and all(store.contains(key) for key in mine)

    assert_all(comm, all_until(comm, store, served), f"rank {comm.rank} did not get its memory back")
    # Each rank alone need not: what it has lent comes back when another asks, and there may be room at a third.
    assert comm.size == 1 or sum(comm.allgather(store.stats()["pool"]["recalls"])) > 0
    comm.Barrier()
    everything = {}
    for each in comm.allgather(mine if comm.rank in ranks and comm.rank else {}):
        everything.update(each)
    wrong = wrong_blocks(store, everything, size, all_there=not protected)
    assert_all(comm, not wrong, f"of the lessors' blocks {wrong[:5]} are missing or wrong")
    wrong = wrong_blocks(store, kept, size, all_there=protected)
    assert_all(comm, not wrong, f"of the lessee's blocks {wrong[:5]} are wrong")
    found = sum(store.contains_many(list(kept)))
    evicted = comm.bcast(store.stats()["evicted"])
    assert_all(comm, found == len(kept) - evicted, f"{len(kept) - found} blocks are gone, {evicted} were evicted")
    counts = store.stats()["pool"]
    back = protected or comm.rank != 0 or len(ranks) == 1 or counts["returned"] > 0
    assert_all(comm, back, f"nothing was given back: {counts}")
    store.check()


def test_blocks_move_out_of_a_recalled_extent_and_none_goes(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll
) -> None:
    """Where there is room elsewhere nothing is evicted, and quota, expiry, depth, epoch and type go along."""
    store = open_store(comm, **POOL, protected_bytes="4MiB")
    ranks = list(range(comm.size))
    store.set_quota("64MiB", namespace="limited")
    kept = fill_from(store, ranks, 30_000, 0.6 if len(ranks) > 1 else 0.5)
    values = {}
    for number in range(8):
        dtype = np.float32 if number % 2 else np.uint8
        values[number] = np.arange(number, number + 6_000, dtype=dtype).reshape(2, 3, -1)
    values[8] = np.empty(0, np.uint8)
    options: dict[str, Any] = {"namespace": "limited", "ttl": 1000.0, "depth": 5}
    if comm.rank == 0:
        for number, value in values.items():
            assert store.put(f"kept {number}", value, is_prefix=number % 3 == 0, **options)
        for key in list(kept)[: len(kept) // 3]:  # room in the own arena, and in what is leased
            store.delete(key)
    kept = dict(list(kept.items())[len(kept) // 3 :])
    comm.Barrier()
    before = {info.key: info for info in store.scan_all("limited")}
    lent, recalled = None, 1
    if len(ranks) > 1 and comm.rank == ranks[1]:
        table = store._pool.table
        lent = [extent for extent, word in enumerate(table.look(comm.rank)) if holder_of(word) == 0]
        recalled = table.recall(lent)  # what its holder has emptied may come back by itself meanwhile
    assert_all(comm, recalled > 0, f"no extent was recalled of {lent}")

    def home() -> bool:
        return lent is None or not any(is_recalled(word) for word in store._pool.table.look(comm.rank))

    assert_all(comm, all_until(comm, store, home), "the extents did not come back")
    assert_all(comm, store.stats()["evicted"] == 0, "blocks were evicted")
    assert_all(comm, comm.rank or len(ranks) == 1 or store.stats()["pool"]["moved"] > 0, "nothing was moved")
    wrong = wrong_blocks(store, kept, 30_000, all_there=True)
    assert_all(comm, not wrong, f"{wrong[:5]} are missing or wrong")
    for number, value in values.items():
        got = store.get(f"kept {number}", namespace="limited")
        assert_all(comm, np.array_equal(got, value) and got.dtype == value.dtype, f"block {number} is another")
    for info in store.scan_all("limited"):
        was = before[info.key]
        assert (info.nbytes, info.dtype, info.shape, info.protected, info.depth) == (
            was.nbytes, was.dtype, was.shape, was.protected, was.depth,
        )  # fmt: skip
        assert info.ttl > 900
    store.check()
    comm.Barrier()
    assert store.delete_all("limited") == len(values)
    assert store.namespaces()[-1].bytes == 0
    store.check()


def test_a_view_keeps_its_extent_from_being_given_back(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll
) -> None:
    store = open_store(comm, **POOL)
    ranks = list(range(comm.size))
    kept = fill_from(store, ranks, 30_000, 0.6)
    view, seen, lessor = None, None, ranks[1] if len(ranks) > 1 else -1
    if comm.rank == lessor:
        key = next(key for key in kept if store.locate(key).rank == comm.rank)
        view = store.view(key)
        seen = view.__enter__()
        word = store._pins.held()[0].word
        extent = store._pool.table.at(unpack_word(word).page)
        assert store._pool.table.recall([extent]) == 1
    moved = comm.bcast(None if view is None else (key, extent), root=max(lessor, 0))

    def closed() -> bool:
        if comm.rank != 0 or moved is None:
            return True
        there = unpack_word(word_of(store, moved[0]))
        return (there.rank, store._pool.table.at(there.page)) != (lessor, moved[1])

    assert_all(comm, all_until(comm, store, closed), "the block did not move out")
    tier = store._pool.tiers.get(lessor)
    if comm.rank == 0 and tier is not None:  # its rest is over, and it was looked at several times since
        ripe = tier.allocator.next_ripe() or 0.0
        assert until(store, lambda: time.monotonic() > ripe)
        for _ in range(5):
            store._pool.attend(now=True)
    comm.Barrier()
    held = None if view is None else holder_of(store._pool.table.look(comm.rank)[extent])
    assert_all(comm, held in (None, 0) and (view is None or held == 0), "the extent of a pinned cell was given back")
    if view is not None:
        assert np.array_equal(seen, block(key, 30_000))
        del seen
        view.release()

    def free() -> bool:
        return view is None or holder_of(store._pool.table.look(comm.rank)[extent]) != 0

    assert_all(comm, all_until(comm, store, free), "the extent did not come back after the view")
    store.check()


def word_of(store: Store, key: int) -> int:
    """The index word of a key of the default namespace."""
    assert store._writer.find(0, key)
    return store._writer.found()[0][1]


def test_generations_go_on_from_holder_to_holder(comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll) -> None:
    """A word with the bits of an old one would make an old look at it seem right."""
    store = open_store(comm, **POOL)
    ranks = list(range(comm.size))
    table, pool, wrong = store._pool.table, store._pool, ""
    if len(ranks) > 1 and comm.rank == ranks[0]:
        other = pool._tier(ranks[1])
        extent = table.count - 1
        start, pages = table.pages_of(extent)
        for turn in range(1, 4):  # the holders are one rank here, but nothing is remembered from one to the next
            seen = table.look(ranks[1])[extent]
            assert pool._take_run(other, 1)
            pool._return(other, start)
            if table.take(ranks[1], extent, seen):
                wrong = "an extent was taken by an old look at it"
                break
            other.allocator._generations[start : start + pages] = array("H", [0] * pages)
            assert pool._take_run(other, 1)
            first, generation = other.allocator.allocate(2, 0.0)
            if (first, generation) != (start + pages - 2, turn):
                wrong = f"turn {turn} began with generation {generation}"
                break
            other.records["generation"][first] = generation  # as a put would have written it
            other.abandon(first)
            assert until(store, lambda: other.drain(time.monotonic()) or other.allocator.limbo_pages == 0)
            if other.allocator.ranges:  # or it was given back meanwhile
                pool._return(other, start)
    assert_all(comm, not wrong, wrong)
    store.check()
    comm.Barrier()


def test_the_lessor_of_a_block_deletes_it(comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll) -> None:
    """Its hint stands in its own array, where its own sweep leaves it for the lessee."""
    store = open_store(comm, **POOL)
    ranks = list(range(comm.size))
    kept = fill_from(store, ranks, 30_000, 0.6)
    lessor = ranks[-1]
    theirs = [key for key in kept if store.locate(key).rank == lessor][:5] if len(ranks) > 1 else []
    comm.Barrier()
    if comm.rank == lessor:
        for key in theirs:
            assert store.delete(key)
            assert store._dram.sweep() == 0
    comm.Barrier()
    freed = 0
    if comm.rank == 0 and theirs:
        pool = store._pool
        before = pool.tiers[lessor].live_bytes
        pool.sweep_hinted()
        freed = before - pool.tiers[lessor].live_bytes
    assert_all(comm, comm.rank or freed == 30_000 * len(theirs), f"{freed} bytes were freed of {len(theirs)} blocks")
    store.check()


@pytest.mark.parametrize("toggled", [True, False])
def test_a_word_that_changes_while_its_block_moves(
    comm: MPI.Intracomm, open_store: Open, monkeypatch: pytest.MonkeyPatch, toggled: bool
) -> None:
    """Protected between the look and the swap: the move is made again. Deleted: it is given up."""
    store = open_store(comm, **POOL)
    mover, key = store._mover, f"{comm.rank}"
    store.put(key, block(comm.rank, 30_000))
    word = word_of_name(store, key)
    swap, calls = mover._swap, []

    def late(*given: Any) -> bool:
        if not calls:
            (store.protect if toggled else store.delete)(key)
        calls.append(1)
        return swap(*given)

    monkeypatch.setattr(mover, "_swap", late)
    with store._pool.lock:
        moved = mover.move(store._dram, unpack_word(word).page, store._pool.take)
    assert moved is (Moved.YES if toggled else Moved.GONE)
    if toggled:
        assert len(calls) == 2
        there = unpack_word(word_of_name(store, key))
        assert there.hard
        assert there.page != unpack_word(word).page
        assert np.array_equal(store.get(key), block(comm.rank, 30_000))
        assert store._dram.allocator.state(unpack_word(word).page) == "limbo"
    else:
        assert store.get(key) is None
    assert store._dram.live_bytes == (30_000 if toggled else 0)
    comm.Barrier()
    store.check()


def word_of_name(store: Store, key: str) -> int:
    """The index word of a key of the default namespace."""
    assert store._writer.find(*key_words(key))
    return store._writer.found()[0][1]


def test_rebalance_evens_out_the_arenas(comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll) -> None:
    store = open_store(comm, **POOL)
    ranks = list(range(comm.size))
    size = 20_000
    kept = fill_from(store, ranks, size, 0.95 / len(ranks))
    comm.Barrier()
    done = store.rebalance()
    wrong = wrong_blocks(store, kept, size, all_there=True)
    assert_all(comm, not wrong, f"{wrong[:5]} are missing or wrong")
    live = [done.live_bytes[rank] for rank in ranks]
    bound = max(size, ARENA // POOL["lease_extents"])
    assert sum(live) == size * len(kept)
    assert_all(comm, max(live) - min(live) <= 2 * bound, f"the arenas have {live} bytes")
    assert (done.moved > 0) == (len(ranks) > 1)
    assert done.bytes == size * done.moved
    assert_all(comm, store.stats()["evicted"] == 0, "blocks were evicted")
    again = store.rebalance()
    assert again.moved <= 2 * len(ranks)
    store.check()


@pytest.mark.nodes
def test_placement_by_hash_spreads_what_one_rank_puts(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll
) -> None:
    store = open_store(comm, placement="hash", **POOL)
    ranks = list(range(comm.size))
    kept = fill_from(store, ranks, 10_000, 0.5)
    wrong = wrong_blocks(store, kept, 10_000, all_there=True)
    assert_all(comm, not wrong, f"{wrong[:5]} are missing or wrong")
    counts = [sum(store.locate(key).rank == rank for key in kept) for rank in ranks]
    assert min(counts) > 0.7 * len(kept) / len(ranks), counts
    assert store.report()["pool"]["placement"] == ("hash" if comm.size > 1 else "local")
    store.check()


def test_what_is_said_of_a_pool_that_is_full(comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll) -> None:
    store = open_store(comm, when_full="refuse", **POOL)
    ranks = list(range(comm.size))
    comm.Barrier()
    if comm.rank == 0:
        results = []
        while not results or results[-1].stored:
            results.append(store.put(len(results), block(1, 30_000)))
        if len(ranks) > 1:
            held = store.stats()["pool"]["held"]
            assert held > 0
            assert f"it holds {held} of other ranks" in results[-1].reason
            assert store.stats()["pool"]["leased_bytes"] > 0
        assert len(results) > 0.9 * len(ranks) * ARENA / 32_768
        assert store.stats()["evicted"] == 0
    comm.Barrier()
    if comm.rank in ranks and comm.rank:  # what is never lent is there at once
        assert store.put(f"own {comm.rank}", block(2, 30_000)).stored
        assert store.stats()["pool"]["lent"] > 0
    comm.Barrier()
    store.check()


def test_a_pool_of_one(comm: MPI.Intracomm, open_store: Open) -> None:
    """Alone there is nobody to lease from: the report says so."""
    alone = open_store(MPI.COMM_SELF, **POOL)
    assert alone.report()["pool"] == {"on": False, "reason": "there is one rank", "placement": "local"}
    assert alone.stats()["pool"] == {"moved": 0, "moved_bytes": 0, "dropped": 0}
    assert alone.rebalance().moved == 0
    off = open_store(comm, lease_extents=0)
    assert off.report()["pool"]["reason"] == "lease_extents is 0"
    assert off.rebalance().moved == 0
    comm.Barrier()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_race_of_lessors_lessees_and_readers(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, seed: int
) -> None:
    """Ranks that want more than their arena and then nothing, views, deletes, recalls: no wrong byte, nothing older."""
    store = open_store(comm, rest_ms=0.1, **POOL | {"dram_bytes": 1 << 20})
    rng = random.Random(seed * 100 + comm.rank)
    room = np.empty(3000, np.uint64)
    latest: dict[int, int] = {}  # of this rank's keys: the version that was put last, 0: deleted
    seen: dict[int, int] = {}  # by key: the newest version that this rank has read
    views: list[tuple[Any, int, int]] = []
    problems: list[str] = []

    def nap(who: str) -> None:
        if rng.random() < 1 / 64:
            time.sleep(rng.random() * 2e-4)  # a race is wanted, nothing is waited for

    store._mover.pause = store._dram.pause = store._writer.pause = nap

    def look(key: int, stamped: int) -> None:
        writer, version = unstamp(stamped) if stamped > 0 else (-1, 0)
        if writer != key // 1000 + 1:
            problems.append(f"key {key}: a mixture or another block, {stamped}")
        elif version < seen.get(key, 0) or (key // 1000 == comm.rank and version != latest.get(key)):
            problems.append(f"key {key}: version {version} after {seen.get(key)}, put was {latest.get(key)}")
        seen[key] = max(version, seen.get(key, 0))

    version = step = 0
    met: MPI.Request | None = None
    deadline = time.monotonic() + DEADLINE_S
    alone = comm.size == 1
    while met is None or not met.Test():  # until all have done enough, and moved blocks out for others
        step += 1
        if met is None and step > 1000 and (alone or store._mover.moved or time.monotonic() > deadline):
            met = comm.Ibarrier()
        busy = (step // 250 + comm.rank) % 2 == 0  # in turns one wants more than its arena, and the others nothing
        draw = rng.random()
        if not busy and step % 40 == 0:
            store._pool._next_idle = 0.0  # gives back at once what it does not use
            store._pool.attend(now=True)
        if draw < (0.55 if busy else 0.02):
            key = comm.rank * 1000 + rng.randrange(150)
            version += 1
            nbytes = 64 * rng.randint(1, 370)
            result = store.put(key, value(room, key, stamp(comm.rank + 1, version), nbytes))
            latest[key] = version if result.stored else latest.get(key, 0)
        elif draw < 0.6 and not busy and latest:
            key = rng.choice(list(latest))
            store.delete(key)
            latest[key] = 0
        elif draw < 0.63 and len(views) < 4:
            key = rng.randrange(comm.size) * 1000 + rng.randrange(150)
            try:
                view = store.view(key)
            except NotOnNodeError:
                view = None
            if view is not None:
                views.append((view, key, stamp_of(view.__enter__(), key)))
        elif draw < 0.66 and views:
            view, key, stamped = views.pop(rng.randrange(len(views)))
            with view as array:
                if stamp_of(array, key) != stamped or stamped < 0:
                    problems.append(f"key {key}: a pinned block has changed")
                del array
        else:
            key = rng.randrange(comm.size) * 1000 + rng.randrange(150)
            got = store.get(key)
            if got is not None:
                look(key, stamp_of(got, key))
    for view, _, _ in views:
        view.release()
    assert_all(comm, not problems, "; ".join(problems[:3]))
    store._mover.pause = store._dram.pause = store._writer.pause = None
    comm.Barrier()
    store.check()
    counts = store.stats_all()
    if comm.size > 1:
        for name in ("moved", "recalls", "returned"):
            assert sum(each["pool"].get(name, 0) for each in counts) > 0, name


def test_a_short_neighbour_read(comm: MPI.Intracomm) -> None:
    measured, _ = neighbour_read.measure(1 << 20, 30_000 // 8 * 8, 1, comm)
    assert all(row["contents_ok"] for row in measured)
    assert measured[0]["ratio"] == 1.0
    assert {row["key"] for row in measured[1:]} <= {"writer", "node", "remote"}
    assert measured[1]["key"] == "writer"


@pytest.mark.parametrize("damage", ["word", "holder", "pages", "descriptor"])
def test_check_finds(comm: MPI.Intracomm, open_store: Open, raises_all: Callable[..., str], damage: str) -> None:
    """Each extent has one holder, which knows of it, and what is free says nothing."""
    store = open_store(comm, **POOL)
    store.put(f"{comm.rank}", block(comm.rank, 30_000))
    comm.Barrier()
    table, own, pool = store._pool.table, store._dram, store._pool
    if table is None:
        assert comm.size == 1  # which has no extents
        return
    last, undo = table.count - 1, list[Callable[[], object]]()
    start, pages = table.pages_of(last)
    comm.Barrier()
    if comm.rank == 0 and damage == "word":  # held, as its word says, by a rank that does not know
        assert table.take(1, last, table.look(1)[last])
        undo.append(lambda: table.give_back(1, last))
    if comm.rank == 0 and damage == "holder":  # used by a rank that does not hold it
        own.allocator.add(start, pages)
        own.owned[start : start + pages] = True
        undo += [lambda: own.allocator.drop(start), lambda: own.owned.__setitem__(slice(start, start + pages), False)]
    if comm.rank == 0 and damage == "pages":
        own.owned[start] = True
        undo.append(lambda: own.owned.__setitem__(start, False))
    if comm.rank == 0 and damage == "descriptor":
        own.records["magic"][start] = MAGIC
        undo.append(lambda: own.records["magic"].__setitem__(start, 0))
    text = raises_all(comm, ProtocolError, store.check)
    expected = {
        "word": f"extent {last} is held by rank 0 as its word says, by None in truth",
        "holder": f"extent {last} is held by rank None as its word says, by 0 in truth",
        "pages": "whose hints this rank clears are not those that it holds",
        "descriptor": f"extent {last} is free, but a descriptor in it says live",
    }
    assert expected[damage] in text
    for step in undo:
        step()
    comm.Barrier()
    assert pool.own.live_bytes == 30_000
    store.check()


def test_two_holders_of_an_extent_are_found(
    comm: MPI.Intracomm, open_store: Open, raises_all: Callable[..., str]
) -> None:
    store = open_store(comm, **POOL)
    pool = store._pool
    if pool.table is None:
        assert comm.size == 1  # which has no extents
        return
    last = pool.table.count - 1
    if comm.rank < 2:
        tier = pool._tier(0)
        pool._enter(tier, last, False)
    text = raises_all(comm, ProtocolError, store.check)
    assert f"extent {last} of rank 0 is held by ranks 0 and 1" in text
    if comm.rank < 2:
        start, pages = pool.table.pages_of(last)
        tier.allocator.drop(start)
        tier.owned[start : start + pages] = False
    comm.Barrier()
    store.check()
