"""Copies of other nodes' blocks beside what else ends or moves a block: expiry, protection, eviction, bulk deletion.

Covers one store with both, on several nodes. Does not cover copies alone (`test_copies`) nor the steps of a read
(`tests/unit/test_onesided_copies.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import VARIANTS
from mpi4py import MPI
from patterns import block
from test_copies import FIXED, NBYTES, NODES, copies, is_away, is_read, opened, put_all, several

from cascade_mpi.errors import ProtocolError
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import HARD
from cascade_mpi.namespaces import AnyNamespace
from cascade_mpi.policies.family import STORE_POLICIES
from cascade_mpi.store import Store

Open = Callable[..., Store]
PAGES = 5  # of a block
pytestmark = [several, pytest.mark.alone]
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def remote_bytes(store: Store, comm: MPI.Intracomm) -> int:
    return int(comm.allreduce(store.stats()["tiers"]["remote"]["bytes"]))


def summed(store: Store, comm: MPI.Intracomm, name: str) -> int:
    return int(comm.allreduce(copies(store)[name]))


# ---------------------------------------------------------------------------------------------------- expiry


@each_variant
@pytest.mark.parametrize("namespace", ["names", FIXED], ids=["names", "content keys"])
def test_a_copy_expires_with_its_block(
    namespace: AnyNamespace, variant: str, open_store: Open, comm: MPI.Intracomm
) -> None:
    store = opened(open_store, comm, variant)
    put_all(store, comm, range(4), namespace=namespace, ttl=1000)
    put_all(store, comm, range(4, 6), namespace=namespace, ttl=10_000)
    assert store.replicate(range(6), namespace=namespace).copied == 6 * (NODES - 1)
    assert all(is_read(store, key, namespace=namespace) for key in range(6))
    assert copies(store)["hits"] == 6 * is_away(store)
    comm.Barrier()
    store._fabric.context[c.EPOCH] -= 2000  # the clock of every rank is so much further on
    keys = list(range(6))
    assert [store.get(key, namespace=namespace) is None for key in keys] == [True] * 4 + [False] * 2
    assert [found is None for found in store.get_many(keys, namespace=namespace)] == [True] * 4 + [False] * 2
    assert store.get_range(0, 0, 10, namespace=namespace) is None
    assert copies(store)["hits"] == 10 * is_away(store)
    put_all(store, comm, range(1), namespace=namespace)  # again, while the old copy stands
    assert is_read(store, 0, namespace=namespace)
    comm.Barrier()
    while store._dram.drop_expired():
        pass
    assert summed(store, comm, "held") == 2 * (NODES - 1)
    assert comm.allreduce(store.stats()["expired"]) == 4  # blocks alone
    assert summed(store, comm, "demotions") == 0
    assert store.check()["copies"] == 2 * (NODES - 1)
    store._fabric.context[c.EPOCH] += 2000


# ------------------------------------------------------------------------------------------------ protection


@each_variant
def test_copies_stay_when_their_block_is_protected_and_not_any_more(
    variant: str, open_store: Open, comm: MPI.Intracomm
) -> None:
    store = opened(open_store, comm, variant)
    put_all(store, comm, range(4))
    store.replicate(range(4))
    before, last = remote_bytes(store, comm), comm.rank == comm.size - 1
    for toggle, blocks in ((store.protect, 2), (store.unprotect, 0), (store.protect, 2)):
        if last:
            assert toggle([0, 1]).all()
        comm.Barrier()
        assert all(is_read(store, key) for key in range(4))
        comm.Barrier()
        store.check()
        assert comm.allreduce(store.stats()["protected"]["blocks"]) == blocks  # never a copy
    assert copies(store)["hits"] == 12 * is_away(store)
    assert remote_bytes(store, comm) == before
    assert summed(store, comm, "stale") == 0
    put_all(store, comm, range(2), seed=50)
    assert all(is_read(store, key, seed=50) for key in range(2))
    comm.Barrier()
    if comm.rank == 0:
        store.delete(0)
    comm.Barrier()
    assert store.get(0) is None
    comm.Barrier()
    store.check()


@each_variant
def test_a_block_is_copied_with_the_first_read_after_it_was_protected(
    variant: str, open_store: Open, comm: MPI.Intracomm
) -> None:
    store = opened(open_store, comm, variant, promote_after=100)
    put_all(store, comm, range(4))
    assert all(is_read(store, key) for key in range(4))
    comm.Barrier()
    assert summed(store, comm, "promotions") == 0
    if comm.rank == comm.size - 1:
        assert store.protect(range(3)).all()
    comm.Barrier()
    assert all(is_read(store, key) for key in range(4))
    comm.Barrier()
    assert summed(store, comm, "promotions") == 3 * (NODES - 1)
    store.check()


# -------------------------------------------------------------------------------------------------- eviction


@pytest.mark.parametrize("eviction", list(STORE_POLICIES))
def test_copies_and_blocks_leave_by_the_same_policy(eviction: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, eviction=eviction, promote_after=1, copy_share=0.5)
    put_all(store, comm, range(12))
    put_all(store, comm, range(100, 109), is_prefix=True)
    shared = [*range(12), *range(100, 103)]
    store.replicate([*shared, *range(103, 109)])  # the last ones are read by nobody, and stay current
    chance = np.random.default_rng([comm.rank, len(eviction)])
    own = {}
    for number in range(160):  # four times the arena
        key = f"{comm.rank}.{number}"
        assert store.put(key, block(number, NBYTES), is_prefix=number % 40 == 0)
        own[number] = key
        for at in chance.choice(shared, 2):
            found = store.get(int(at))
            assert found is None or np.array_equal(found, block(int(at), NBYTES))
            assert found is not None or at < 100  # the protected ones are there for all
        seen = int(chance.integers(number + 1))
        found = store.get(own[seen])
        assert found is None or np.array_equal(found, block(seen, NBYTES))
        assert found is not None or seen % 40
    assert store.stats()["evicted"] > 0
    assert copies(store)["held"] <= 20
    comm.Barrier()
    if NODES > 1:
        assert summed(store, comm, "hits") > 0
        assert summed(store, comm, "demotions") > 0
    store.check()


def fill(store: Store, comm: MPI.Intracomm) -> None:
    """Collective. Without leases: puts until no arena has room for a block, whatever a put would keep free."""
    comm.Barrier()
    dram, before = store._dram, store.stats()["evicted"]
    with dram.lock:
        dram.low_pages, low = 0, dram.low_pages
        while (free := store.stats()["arena"]["free"]) >= PAGES * 4096:
            assert store.put(f"{comm.rank}.{free}", block(free, NBYTES))
        dram.low_pages = low
    assert store.stats()["evicted"] == before
    comm.Barrier()


@pytest.mark.nodes
@pytest.mark.parametrize("placement", ["local", "hash"])
def test_reads_evict_nothing(placement: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes="512KiB", placement=placement, promote_after=1)
    keys = range(int(0.9 * comm.size * 32))  # of 4 pages: they fill nine tenths of all memory
    if comm.rank == 0:
        assert all(store.put(key, block(key, 16_384)).stored for key in keys)
    comm.Barrier()
    out = np.zeros(16_384, np.uint8)
    for _ in range(4):
        for key in keys:
            assert store.get(key, out) == 16_384
            assert np.array_equal(out, block(key, 16_384))
    comm.Barrier()
    assert store.stats()["evicted"] == 0
    assert summed(store, comm, "promotions") > 0
    assert summed(store, comm, "refused") > 0
    store.check()


def test_a_copy_that_finds_no_room_evicts_no_block(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1, lease_extents=0)
    put_all(store, comm, range(1))
    fill(store, comm)
    assert all(is_read(store, 0) for _ in range(50))
    counts = copies(store)
    assert (counts["held"], counts["refused"] > 0) == (0, is_away(store))
    comm.Barrier()
    done = store.replicate([0])
    assert (done.copied, done.present, done.refused) == (0, 1, NODES - 1)
    assert comm.allreduce(store.stats()["evicted"]) == 0
    assert is_read(store, 0)
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("settings", [{}, {"lease_extents": 0, "evict_ahead": 0.01}], ids=str)
def test_a_copy_comes_to_be_in_a_full_arena_where_puts_go_on(
    settings: dict[str, float], open_store: Open, comm: MPI.Intracomm
) -> None:
    # A short rest: of an arena as small as this one all that is not live would be in limbo where puts follow closely.
    store = opened(open_store, comm, rest_ms=0.1, **settings)
    put_all(store, comm, range(1), is_prefix=True)
    for number in range(1000):
        assert store.put(f"{comm.rank}.{number}", block(number, NBYTES))
        if number > 50:  # all memory is full, and stays so
            assert is_read(store, 0)
            if copies(store)["hits"] or not is_away(store):
                break
    assert store.stats()["evicted"] > 0
    assert copies(store)["hits"] > 0 or not is_away(store)
    assert store._dram.wished == 0 or copies(store)["held"] == 0
    comm.Barrier()
    store.check()


def test_room_is_not_kept_for_ever_for_a_copy_that_nobody_comes_for(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1, lease_extents=0, evict_ahead=0.05)
    put_all(store, comm, range(1))
    fill(store, comm)
    assert is_read(store, 0)
    dram, ahead = store._dram, store.report()["eviction"]["ahead_bytes"]
    assert dram.wished == PAGES * is_away(store)
    for number in range(3):
        assert store.put(f"more {comm.rank}.{number}", block(number, NBYTES))
    kept = store.stats()["arena"]["bytes"] - store.stats()["arena"]["live"]
    assert kept >= ahead + dram.wished * 4096
    dram._wished_until = 0.0
    for number in range(3):
        assert store.put(f"again {comm.rank}.{number}", block(number, NBYTES))
    assert (dram.wished, dram.low_pages * 4096) == (0, ahead)
    assert store.report()["eviction"]["ahead_bytes"] == ahead
    comm.Barrier()
    store.check()


def test_in_a_full_arena_a_copy_takes_the_place_of_an_older_one(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1, lease_extents=0)
    put_all(store, comm, range(3))
    for key in range(2):
        assert is_read(store, key)
    comm.Barrier()
    fill(store, comm)
    assert all(is_read(store, key) for key in range(2))  # used last: nevertheless it is a copy that goes
    before = summed(store, comm, "held")
    assert before == 2 * (NODES - 1)
    one = comm.rank == store._fabric.node_ranks[0] and is_away(store)
    for _ in range(100_000):  # the room is there after its rest
        made = copies(store)["promotions"]
        assert not one or is_read(store, 2)
        if not one or copies(store)["promotions"] > made:
            break
    comm.Barrier()
    assert summed(store, comm, "held") >= before - (NODES - 1)
    assert summed(store, comm, "demotions") > 0
    assert comm.allreduce(store.stats()["evicted"]) == 0
    assert all(is_read(store, key) for key in range(3))
    comm.Barrier()
    store.check()


def test_replicate_keeps_to_the_share_and_says_what_did_not_fit(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=100)
    put_all(store, comm, range(36))
    store.replicate(range(30, 36))  # older ones, which give way
    done = store.replicate(range(30))
    assert copies(store)["held_bytes"] <= store.report()["copies"]["most_bytes"]
    assert done.copied + done.refused == 30 * (NODES - 1)
    assert done.copied >= 9 * (NODES - 1)
    assert done.refused > 0
    before = remote_bytes(store, comm)
    again = store.replicate(range(30))
    assert again == (0, 0, done.present + done.copied, 0, done.refused)  # what it says is copied is there, and stays
    assert remote_bytes(store, comm) == before
    assert comm.allreduce(store.stats()["evicted"]) == 0
    comm.Barrier()
    store.check()


def test_replicate_in_a_full_arena_leaves_what_it_found(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=100, lease_extents=0)
    put_all(store, comm, range(4))
    others = 2 * (NODES - 1)
    assert store.replicate(range(2)).copied == others
    fill(store, comm)
    assert store.replicate(range(4)) == (0, 0, 4 + others, 0, others)
    assert summed(store, comm, "held") == others
    assert comm.allreduce(store.stats()["evicted"]) == 0
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("damage", ["hard", "counted"])
def test_check_finds_a_copy_that_counts_as_a_block(
    damage: str, open_store: Open, comm: MPI.Intracomm, raises_all: Callable[..., str]
) -> None:
    store = opened(open_store, comm)
    put_all(store, comm, range(4))
    store.replicate(range(4))
    dram = store._dram
    held = np.flatnonzero(dram.copies)
    before = dram.words.copy()
    if damage == "counted":
        dram.counted[held] = True
    else:
        dram.words[held] |= np.uint64(HARD)
    if damage == "counted":
        assert "count against a quota" in raises_all(comm, ProtocolError, store.check)
    elif held.size:
        with pytest.raises(ProtocolError, match=f"{held.size} hard ones"):
            dram.check()
    comm.Barrier()
    dram.words[:] = before
    dram.counted[held] = False
    store.check()


# ------------------------------------------------------------------------------------------ lists and counts


@each_variant
def test_copies_are_neither_listed_nor_counted_nor_bulk_deleted(
    variant: str, open_store: Open, comm: MPI.Intracomm
) -> None:
    store = opened(open_store, comm, variant)
    put_all(store, comm, range(8), namespace="n")
    put_all(store, comm, range(8, 10), namespace="n", is_prefix=True)
    store.replicate(range(10), namespace="n")
    held = copies(store)["held"]
    assert summed(store, comm, "held") == 10 * (NODES - 1)
    assert sorted(each.key for each in store.scan("n")) == ([] if comm.rank else list(range(10)))
    assert len(store.scan_all("n")) == 10
    info = next(each for each in store.namespaces() if each.name == "n")
    assert (info.blocks, info.bytes) == (10, 10 * NBYTES)
    assert comm.allreduce(store.stats()["protected"]["blocks"]) == 2
    assert comm.allreduce(store.stats()["blocks"]) == 10
    assert copies(store)["held"] == held
    assert store.delete_all("n", keys=range(4)) == 4
    assert [store.get(key, namespace="n") is None for key in range(10)] == [True] * 4 + [False] * 6
    comm.Barrier()
    assert store.delete_all("n") == 6
    assert store.get_many(list(range(10)), namespace="n") == [None] * 10
    comm.Barrier()
    store.check()
