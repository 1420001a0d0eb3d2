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


def test_a_copy_evicts_no_more_than_it_needs(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1, evict_ahead=0.2, lease_extents=0)
    put_all(store, comm, range(1))
    room = store.stats()["arena"]["free"] // (PAGES * 4096)
    dram = store._dram
    while store.stats()["arena"]["free"] >= PAGES * 4096:  # no room is left, whatever a put would keep free
        with dram.lock:
            dram.low_pages, low = 0, dram.low_pages
            assert store.put(f"{comm.rank}.{room}", block(room, NBYTES))
            dram.low_pages, room = low, room - 1
    comm.Barrier()
    before = store.stats()["evicted"]
    one = comm.rank == store._fabric.node_ranks[0] and is_away(store)
    for _ in range(100_000):
        if not one or copies(store)["held"]:
            break
        assert is_read(store, 0)  # the room is there after its rest
    assert store.stats()["evicted"] - before == int(one)
    comm.Barrier()
    assert is_read(store, 0)
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
