"""What goes through the cells of a rank while blocks move between arenas: lists, deletions, clear; and quotas.

Covers each at the moment that matters (another thread moves blocks from where nobody has looked to where somebody has),
a race of all of it, and quotas of namespaces whose blocks lie in two arenas. Does not cover the move of one block
(`test_pool`) nor lists and quotas without moves (`test_listing`, `test_namespaces`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from patterns import Watched, block

from cascade_mpi import listing
from cascade_mpi.dram import DramTier
from cascade_mpi.leases import holder_of
from cascade_mpi.mover import Moved
from cascade_mpi.store import Store

Open = Callable[..., Store]
AssertAll = Callable[..., None]
PAGE = 4096
PAGES = 256
POOL: dict[str, Any] = {"dram_bytes": PAGES * PAGE, "lease_extents": 16, "promote_after": 0, "rest_ms": 0.1}
SIZE = 3 * PAGE - 7
EACH = 8  # blocks of a rank, half of them in the arena of the next one


def following(comm: MPI.Intracomm) -> int:
    return (comm.rank + 1) % comm.size


def of_all(comm: MPI.Intracomm, keys: list[int]) -> list[int]:
    """Collective. The keys of all ranks."""
    return [key for each in comm.allgather(keys) for key in each]


def carry(store: Store, source: int, target: int, most: int = 10**6, start: int = 0) -> int:
    """Move this rank's blocks of keys from `start` on from one arena to another, at most so many: how many."""
    pool, moved = store._pool, 0
    with pool.lock:
        tier = pool._tier(source)
        firsts = np.flatnonzero(tier.words * ~tier.copies)
        for first in firsts[tier.records["key_lo"][firsts] >= start][:most].tolist():
            moved += store._mover.move(tier, first, partial(pool.take_in, target)) is Moved.YES
    return moved


def in_two_arenas(store: Store, comm: MPI.Intracomm, start: int = 0, least: int = EACH // 2) -> list[int]:
    """Put this rank's blocks, each under its seed, and move half of them to the next rank's arena: their keys."""
    keys = [start + 100 * comm.rank + number for number in range(EACH)]
    for key in keys:
        assert store.put(key, block(key, SIZE), is_prefix=key % 3 == 0).stored
    assert carry(store, comm.rank, following(comm), EACH // 2, start) >= least
    comm.Barrier()
    return keys


def are_read(store: Store, keys: list[int]) -> bool:
    return all(np.array_equal(store.get(key), block(key, SIZE)) for key in keys)


# ------------------------------------------------------------------------------------------------------ lists


def test_a_list_has_each_block_once_while_they_move(
    open_store: Open, comm: MPI.Intracomm, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From cells that were not listed into some that were, and back into cells that others have left."""
    monkeypatch.setattr(listing, "_AT_ONCE", 3)
    store = open_store(comm, **POOL)
    mine = in_two_arenas(store, comm)
    chance, own, other = random.Random(comm.rank), comm.rank, following(comm)
    moved = 0
    for _ in range(4):
        listed = []
        for each in store.scan():
            listed.append(each.key)
            moved += carry(store, *chance.choice([(own, other), (other, own)]), chance.randrange(EACH))
        assert_all(comm, sorted(listed) == mine, f"listed {sorted(listed)} of {mine}")
    assert moved > 10
    whole = store.scan_all()
    assert len(whole) == EACH * comm.size
    assert are_read(store, [each.key for each in whole])
    assert not list(store._pool.followers)  # who has come to the end hears of nothing any more
    comm.Barrier()
    store.check()


# -------------------------------------------------------------------------------------------------- deletions


@pytest.mark.parametrize("how", ["all", "prefix", "clear"])
def test_no_block_moves_past_a_deletion(
    open_store: Open, comm: MPI.Intracomm, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """When one arena was looked at, another thread moves what lies in the others there."""
    store = open_store(comm, **POOL)
    gone, kept = in_two_arenas(store, comm), []
    if how == "prefix":
        kept = in_two_arenas(store, comm, 1 << 20)
    lock = Watched(store._pool.lock)
    monkeypatch.setattr(store._pool, "lock", lock)
    looks: list[int] = []
    moved: list[int] = []
    mover = threading.Thread(target=lambda: moved.append(carry(store, following(comm), comm.rank)))

    def then_move(call: Callable[..., Any]) -> Callable[..., Any]:
        def look(*given: Any) -> Any:
            found = call(*given)
            if not looks:
                lock.came.clear()
                lock.let(mover)
            looks.append(1)
            return found

        return look

    if how == "clear":
        monkeypatch.setattr(DramTier, "clear", then_move(DramTier.clear))
        store.clear()
    else:
        monkeypatch.setattr(listing, "remove", then_move(listing.remove))
        removed = store.delete_all(keys=range(1 << 20) if how == "prefix" else None)
        assert_all(comm, removed == EACH * comm.size, f"{removed} blocks were deleted")
    mover.join()
    assert len(looks) == min(comm.size, 2)
    assert_all(comm, moved == [len(kept) // 2 if comm.size > 1 else len(kept)], f"{moved} were moved")
    comm.Barrier()
    left = [each.key for each in store.scan_all()]
    assert_all(comm, sorted(left) == sorted(of_all(comm, kept)), f"{left} are listed")
    assert not store.contains_many(of_all(comm, gone)).any()
    assert are_read(store, left)
    comm.Barrier()
    store.check()


def test_what_is_deleted_while_everything_moves_is_gone(
    open_store: Open, comm: MPI.Intracomm, assert_all: AssertAll
) -> None:
    """Extents are recalled and a thread moves blocks out, while prefixes are listed and deleted, and all is cleared."""
    store = open_store(comm, **POOL)
    table, rounds = store._pool.table, 6
    for turn in range(rounds):
        over = 10_000 * turn
        gone, kept = in_two_arenas(store, comm, over, 0), in_two_arenas(store, comm, over + 5_000, 0)
        if table is not None:  # what others have here is to leave: their threads, and `rebalance`, move it
            table.recall([at for at, word in enumerate(table.look(comm.rank)) if holder_of(word) == following(comm)])
        done = threading.Event()

        def move(done: threading.Event = done) -> None:
            while not done.wait(1e-4):  # so that others get the lock
                store._pool.attend(now=True)
                carry(store, comm.rank, comm.rank, 3)

        mover = threading.Thread(target=move)
        mover.start()
        everyone = [of_all(comm, keys) for keys in (gone, kept)]
        wrong = sorted(each.key for each in store.scan()) != sorted(gone + kept)
        held = [each.blocks for each in store.namespaces()]
        removed = store.delete_all(keys=range(over, over + 5_000))
        store.rebalance()
        left = sorted(each.key for each in store.scan_all())
        intact = are_read(store, kept)
        if turn % 2:
            store.clear()
        else:
            removed += store.delete_all()
        done.set()
        mover.join()
        comm.Barrier()
        assert_all(comm, not wrong, "a block was not listed, or twice")
        assert held == [2 * EACH * comm.size]
        assert_all(comm, removed == EACH * comm.size * (1 if turn % 2 else 2), f"{removed} were deleted")
        assert_all(comm, left == sorted(everyone[1]) and intact, f"{left} were left")
        assert not store.contains_many(everyone[0] + everyone[1]).any()
        assert store.check()["words"] == 0
    assert_all(comm, store.stats()["pool"]["moved"] > rounds * EACH, "hardly anything moved")


# ----------------------------------------------------------------------------------------------------- quotas


@pytest.mark.alone
def test_a_quota_counts_the_blocks_of_all_arenas(open_store: Open, comm: MPI.Intracomm, assert_all: AssertAll) -> None:
    """One rank's namespace, in its own arena and in what it has leased: counted once wherever a block goes."""
    store = open_store(comm, when_full="refuse", **POOL)
    blocks = int(1.5 * PAGES) // 3 if comm.size > 1 else PAGES // 4  # more than the own arena
    keys = list(range(blocks))
    if comm.rank == 0:
        for key in keys[:-10]:
            assert store.put(key, block(key, SIZE), namespace="q").stored
    comm.Barrier()
    store.set_quota(blocks * SIZE, "q")  # what is stored by then counts
    if comm.rank == 0:
        for key in keys[-10:]:
            assert store.put(key, block(key, SIZE), namespace="q").stored
        assert "would exceed it by" in store.put("beyond", block(1, SIZE), namespace="q").reason
        held = [tier.live_bytes for tier in store._pool.tiers.values()]
        assert sum(held) == blocks * SIZE
        assert comm.size == 1 or min(held[:2]) > 0
    comm.Barrier()
    store.rebalance()
    space = store._registry.current("q")
    assert_all(comm, store._registry.used(space) == blocks * SIZE, "what has moved counts twice, or not")
    if comm.rank == 0:
        rank = list(store._pool.tiers)[-1]
        theirs = [key for key in keys if store.locate(key, namespace="q").rank == rank][:3]
        assert store.delete_many(theirs, namespace="q").all()  # out of the last arena
        freed = [store.put(f"new {number}", block(number, SIZE), namespace="q").stored for number in range(3)]
        as_it_must = all(freed) and store.put("beyond", block(1, 1), namespace="q").refused
    assert_all(comm, comm.rank > 0 or as_it_must, "what was deleted does not count, what was put does")
    assert [each.bytes for each in store.namespaces() if each.name == "q"] == [blocks * SIZE]
    store.check()
    assert store.delete_all("q") == blocks
    assert store._registry.used(space) == 0
    comm.Barrier()


@pytest.mark.alone
def test_a_quota_evicts_from_all_arenas_together(open_store: Open, comm: MPI.Intracomm) -> None:
    """A block larger than what may go in each: some go from both. One that is too large for both: none goes."""
    store = open_store(comm, evict_ahead=0, **POOL)
    for rank in range(comm.size):  # a namespace of its own for each: what others put changes nothing
        store.set_quota(EACH * SIZE, f"q{rank}")
    mine = f"q{comm.rank}"
    keys = [100 * comm.rank + number for number in range(EACH)]
    for key in keys:  # the first are protected
        assert store.put(key, block(key, SIZE), namespace=mine, is_prefix=key % 100 < 2).stored
    assert carry(store, comm.rank, following(comm), EACH // 2) == EACH // 2
    # Of 8 blocks 6 may go, 2 of them in the other arena or 4 in each.
    comm.Barrier()
    store.put(f"other {comm.rank}", block(1, SIZE))
    assert store.put("too large", block(1, 7 * SIZE), namespace=mine).refused
    assert store.contains_many(keys, namespace=mine).all()
    assert store.put(f"large {comm.rank}", block(2, 5 * SIZE), namespace=mine).stored
    there = store.contains_many(keys, namespace=mine)
    assert there[:2].all()
    assert there.sum() == 3
    assert store.contains(f"other {comm.rank}")
    comm.Barrier()
    assert np.array_equal(store.get(f"large {following(comm)}", namespace=f"q{following(comm)}"), block(2, 5 * SIZE))
    assert comm.allreduce(store.stats()["evicted"]) == 5 * comm.size
    assert [each.bytes for each in store.namespaces() if each.name.startswith("q")] == [EACH * SIZE] * comm.size
    store.check()
