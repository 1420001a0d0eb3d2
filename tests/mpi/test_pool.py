"""One pool of memory: leased extents, recall, placement by hash, and rebalance."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import VARIANTS
from mpi4py import MPI
from patterns import block

from cascade_mpi.layout import unpack_word
from cascade_mpi.leases import holder_of, is_recalled
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


def on_first_node(store: Store) -> list[int]:
    """Collective. The ranks of rank 0's node."""
    ranks: list[int] = store._comm.bcast(store._fabric.node_ranks)
    return ranks


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_one_writer_fills_the_memory_of_its_node(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, variant: str
) -> None:
    store = open_store(comm, **POOL, **VARIANTS[variant])
    ranks = on_first_node(store)
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


def fill_from(store: Store, ranks: list[int], size: int, share: float, **options: Any) -> dict[int, int]:
    """Rank 0 puts blocks of so many bytes that fill this share of its node's memory: key -> seed."""
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


def has_leases(store: Store) -> bool:
    """Are there two ranks on the first node, so that there is something to lease?"""
    return len(on_first_node(store)) > 1


@pytest.mark.parametrize("protected", [False, True])
def test_a_lessor_gets_its_memory_back(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, protected: bool
) -> None:
    """The lessee moves out with its next calls: by eviction alone what fits nowhere goes, and never a protected one."""
    store = open_store(comm, **POOL)
    ranks = on_first_node(store)
    size, share = 30_000, 0.95 if not protected else (0.55 if len(ranks) > 1 else 0.4)
    kept = fill_from(store, ranks, size, share, is_prefix=protected)
    lent = store.stats()["pool"].get("lent", 0)
    assert_all(comm, comm.rank == 0 or comm.rank not in ranks or lent > 0, "nothing was leased")
    mine = {10_000 * (comm.rank + 1) + n: n for n in range(int((0.95 if protected else 0.8) * ARENA / 32_768))}
    if comm.rank in ranks and comm.rank:
        for key, seed in mine.items():  # more than what is never lent: it has to evict its own until it has all back
            store.put(key, block(seed, size))
        pool = store.stats()["pool"]
        assert pool["recalls"] > 0
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
    ranks = on_first_node(store)
    store.set_quota("64MiB", namespace="limited")
    kept = fill_from(store, ranks, 30_000, 0.6 if len(ranks) > 1 else 0.5)
    values = {}
    for number in range(8):
        dtype = np.float32 if number % 2 else np.uint8
        values[number] = np.arange(number, number + 6_000, dtype=dtype).reshape(2, 3, -1)
    options: dict[str, Any] = {"namespace": "limited", "ttl": 1000.0, "depth": 5}
    if comm.rank == 0:
        for number, value in values.items():
            assert store.put(f"kept {number}", value, is_prefix=number % 3 == 0, **options)
        for key in list(kept)[: len(kept) // 3]:  # room in the own arena, and in what is leased
            store.delete(key)
    kept = dict(list(kept.items())[len(kept) // 3 :])
    comm.Barrier()
    before = {info.key: info for info in store.scan_all("limited")}
    lent = None
    if len(ranks) > 1 and comm.rank == ranks[1]:
        table = store._pool.table
        lent = [extent for extent, word in enumerate(table.look(comm.rank)) if holder_of(word) == 0]
        assert lent
        assert table.recall(lent) == len(lent)

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
    ranks = on_first_node(store)
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
    for _ in range(200):
        store.progress()
    held = None if view is None else holder_of(store._pool.table.look(comm.rank)[extent])
    assert_all(comm, held in (None, 0) and (view is None or held == 0), "the extent of a pinned cell was given back")
    if view is not None:
        assert np.array_equal(seen, block(key, 30_000))
        del seen
        view.release()

    def free() -> bool:
        return view is None or holder_of(store._pool.table.look(comm.rank)[extent]) is None

    assert_all(comm, all_until(comm, store, free), "the extent did not come back after the view")
    store.check()


def word_of(store: Store, key: int) -> int:
    """The index word of a key of the default namespace."""
    assert store._writer.find(0, key)
    return store._writer.found()[0][1]
