"""Copies of other nodes' blocks: when they are made, what they save, and that nobody reads an old one.

Covers promotion, the copies' part of an arena, replicate, content keys and epochs, and rounds of writes raced by
reads; on one node, that nothing of it happens. Does not cover the steps of a read
(`tests/unit/test_onesided_copies.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import VARIANTS
from mpi4py import MPI
from patterns import block

from bench import hot_prefix, stale
from bench.stamped import warm
from cascade_mpi.errors import ConfigError, NotConfiguredError, NotOnNodeError, ProtocolError
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import BUCKET_WORDS, FLAG_COPY
from cascade_mpi.namespaces import Namespace
from cascade_mpi.onesided import WHOLE
from cascade_mpi.store import Store

Open = Callable[..., Store]
NBYTES, ARENA = 20_000, 5 * 4096 * 40  # blocks of 5 pages, 40 of them
FIXED = Namespace("tokens", content_keys=True)


def _nodes() -> int:
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    found = int(MPI.COMM_WORLD.allreduce(int(node.rank == 0)))
    node.Free()
    return found


NODES = _nodes()
several = pytest.mark.skipif(NODES < 2, reason="copies are of blocks of other nodes")
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def opened(open_store: Open, comm: MPI.Intracomm, variant: str = "", **settings: Any) -> Store:
    return open_store(comm, **({"dram_bytes": ARENA} | VARIANTS.get(variant, {}) | settings))


def copies(store: Store) -> dict[str, int]:
    found: dict[str, int] = store.stats()["copies"]
    return found


def is_away(store: Store) -> bool:
    """Is rank 0, which puts all blocks here, on another node?"""
    return not store._fabric.mapped[0]


def put_all(store: Store, comm: MPI.Intracomm, keys: range, seed: int = 0, **more: Any) -> None:
    """Collective. Rank 0 puts a block under each key."""
    comm.Barrier()
    if comm.rank == 0:
        for key in keys:
            assert store.put(key, block(seed + key, NBYTES), **more)
    comm.Barrier()


def is_read(store: Store, key: int, seed: int = 0, **more: Any) -> bool:
    out = np.zeros(NBYTES, np.uint8)
    return store.get(key, out, **more) == NBYTES and np.array_equal(out, block(seed + key, NBYTES))


# ------------------------------------------------------------------------------------------------- promotion


@pytest.mark.nodes
@several
@each_variant
def test_the_third_read_of_a_block_makes_a_copy(variant: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, variant)
    put_all(store, comm, range(4))
    one = comm.rank in (0, store._fabric.node_ranks[0])  # one rank of each node
    for number in range(1, 6):
        for key in range(4):
            assert not one or is_read(store, key)
        made = number >= 3 and one and is_away(store)
        assert not one or copies(store)["promotions"] == (4 if made else 0)
        comm.Barrier()
    if one and is_away(store):
        assert copies(store)["hits"] == 8
        assert copies(store)["bytes"] == 8 * NBYTES
        assert store.stats()["tiers"]["remote"] == {"gets": 12, "bytes": 12 * NBYTES}
        assert store.stats()["tiers"]["self"]["gets"] == 8
        assert store.locate(0).path == "remote"
        with pytest.raises(NotOnNodeError):
            store.view(0)
    comm.Barrier()
    away = comm.allreduce(int(is_away(store)))
    assert store.check()["copies"] == (4 * (NODES - 1) if away else 0)


@several
@each_variant
def test_every_way_to_read_finds_the_copy(variant: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, variant, promote_after=1)
    put_all(store, comm, range(300, 308))
    keys = list(range(300, 308))
    store.replicate(keys)
    before = store.stats()["tiers"]["remote"]["bytes"]
    expected = [block(key, NBYTES) for key in keys]
    outs = [np.zeros(NBYTES, np.uint8) for _ in keys]
    assert store.get_many(keys, outs) == [NBYTES] * 8
    for found in (outs, store.get_many(keys), [store.get(key) for key in keys]):
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert np.array_equal(store.get_range(300, 1000, 500), expected[0][1000:1500])
    assert store.stats()["tiers"]["remote"]["bytes"] == before
    assert copies(store)["hits"] == (25 if is_away(store) else 0)
    comm.Barrier()


@several
@pytest.mark.parametrize("size", [0, 1, 4 << 20, (4 << 20) + 77])
def test_blocks_of_any_size_are_copied(size: int, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, dram_bytes="24MiB", promote_after=1, copy_threads=2)
    if comm.rank == 0:
        store.put("large", block(1, size).reshape(1, size))
    comm.Barrier()
    for _ in range(3):
        found = store.get("large")
        assert found.shape == (1, size)
        assert np.array_equal(found[0], block(1, size))
    assert copies(store)["hits"] >= (1 if is_away(store) else 0)
    comm.Barrier()
    store.check()


@several
def test_the_first_read_of_a_protected_block_makes_a_copy(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=100)
    put_all(store, comm, range(6), is_prefix=True)
    for _ in range(4):
        assert all(is_read(store, key) for key in range(6))
    comm.Barrier()
    fetched = comm.allreduce(store.stats()["tiers"]["remote"]["gets"])
    assert comm.allreduce(copies(store)["promotions"]) == 6 * (NODES - 1)
    # Ranks of a node that come at the same moment leave the fetch to one of them: seldom to two.
    assert 6 * (NODES - 1) <= fetched <= 6 * (NODES - 1) + 4
    store.check()


@several
def test_a_claim_that_is_not_kept_holds_nobody_for_long(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1)
    put_all(store, comm, range(1))
    fabric = store._fabric
    claim = comm.rank == fabric.node_ranks[0]
    if claim:  # claims, fetches, and stops before the copy is made
        out = np.zeros(NBYTES, np.uint8)
        fabric.get(fabric.ctx, fabric.scratch.address, 0, 0, out.ctypes.data, NBYTES, 0, WHOLE)
    comm.Barrier()
    assert is_read(store, 0)
    comm.Barrier()
    store.check()


def test_one_node_keeps_no_copies(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1 if NODES == 1 else 0)
    put_all(store, comm, range(3))
    for _ in range(5):
        assert all(is_read(store, key) for key in range(3))
    assert copies(store)["promotions"] == copies(store)["hits"] == 0
    report = store.report()["copies"]
    assert (report["on"], report["buckets"]) == (False, 0)
    assert report["reason"] in ("there is one node", "promote_after is 0")
    if NODES == 1:
        assert store.replicate([0, 1, 2, "none"])[:5] == (0, 0, 3, 1, 0)


# ----------------------------------------------------------------------------------------- nothing old is read


@each_variant
def test_no_copy_is_read_after_a_write_has_returned(variant: str, open_store: Open, comm: MPI.Intracomm) -> None:
    warm()
    store = open_store(comm, **(VARIANTS[variant] | {"dram_bytes": "512KiB", "promote_after": 1, "copy_share": 0.5}))
    rounds = 300 if "compiled" in variant and comm.size == 2 else 120
    result = stale.play(comm, store, rounds, 7)
    assert result["problems"] == []
    assert result["reads_after"] == rounds * (comm.size - 1)
    made = comm.allreduce(np.array([copies(store)["promotions"], copies(store)["hits"], copies(store)["stale"]]))
    assert (made > 0).all() == (NODES > 1), made
    store.check()


@pytest.mark.nodes
@several
@each_variant
def test_a_replaced_or_deleted_block_is_not_read_from_its_copy(
    variant: str, open_store: Open, comm: MPI.Intracomm
) -> None:
    store = opened(open_store, comm, variant, promote_after=1)
    put_all(store, comm, range(4))
    assert store.replicate(range(4)).copied == 4 * (NODES - 1)
    put_all(store, comm, range(2), seed=50)
    assert all(is_read(store, key, seed=50) for key in range(2))
    assert is_read(store, 2)
    comm.Barrier()
    if comm.rank == 0:
        store.delete(2)
    comm.Barrier()
    assert store.get(2) is None
    assert is_read(store, 3)
    comm.Barrier()
    store.check()


# ------------------------------------------------------------------------------------ keys that are the content


@several
@each_variant
def test_a_copy_under_a_content_key_needs_no_mpi(variant: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, variant, copy_share=0.5)
    put_all(store, comm, range(20), namespace=FIXED)
    store.replicate(range(20), namespace=FIXED)
    assert all(is_read(store, key, namespace=FIXED) for key in range(20))
    polls = bool(store._fabric.context[c.POLL])  # each call enters MPI for its peers
    if is_away(store):
        assert copies(store)["hits"] == 20
        assert copies(store)["hits_without_mpi"] == (0 if polls else 20)
    comm.Barrier()


@several
def test_a_content_key_is_another_one_than_a_plain_name(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm)
    put_all(store, comm, range(1), namespace=FIXED)
    assert store.get(0, namespace="tokens") is None
    assert is_read(store, 0, namespace=FIXED)
    comm.Barrier()


@several
@each_variant
def test_no_copy_outlives_its_epoch(variant: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, variant)
    put_all(store, comm, range(10), namespace=FIXED)
    store.replicate(range(10), namespace=FIXED)
    assert is_read(store, 0, namespace=FIXED)
    comm.Barrier()
    if comm.rank == comm.size - 1:
        store.bump_epoch(FIXED)
    comm.Barrier()
    assert all(store.get(key, namespace=FIXED) is None for key in range(10))
    store.progress()
    comm.Barrier()
    assert copies(store)["held"] == 0
    assert store.check()["copies"] == 0


# -------------------------------------------------------------------------------------------------- replicate


@pytest.mark.nodes
@several
@each_variant
def test_replicate_fetches_each_block_once_for_each_node(variant: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, variant, copy_share=1.0, promote_after=3)
    put_all(store, comm, range(10))
    done = store.replicate([*range(10), 3, 77])  # twice the same key is once, and there is no 77
    assert done == (10 * (NODES - 1), 10 * (NODES - 1) * NBYTES, 10, NODES, 0)
    assert comm.allreduce(store.stats()["tiers"]["remote"]["bytes"]) == done.bytes
    assert store.replicate(range(10)) == (0, 0, 10 * NODES, 0, 0)
    assert all(is_read(store, key) for key in range(10))
    assert comm.allreduce(store.stats()["tiers"]["remote"]["bytes"]) == done.bytes
    assert store.check()["copies"] == done.copied


@several
def test_replicate_says_what_it_had_no_room_for(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, copy_share=0.11, dram_bytes=40 * 5 * 4096)
    put_all(store, comm, range(1))
    if comm.rank == 0:
        store.put("large", block(1, 30 * 4096))
    comm.Barrier()
    done = store.replicate(["large", 0])
    assert done == (NODES - 1, (NODES - 1) * NBYTES, 2, 0, NODES - 1)
    comm.Barrier()


def test_replicate_refuses_different_keys(
    open_store: Open, comm: MPI.Intracomm, raises_all: Callable[..., str]
) -> None:
    store = opened(open_store, comm)
    if comm.size > 1:
        text = raises_all(comm, ConfigError, lambda: store.replicate([comm.rank]))
        assert "other keys on rank 1" in text
    text = raises_all(comm, ConfigError, lambda: store.replicate([1.5] if comm.rank == 0 else [1]))
    assert "rank 0: a key is" in text


@several
def test_replicate_without_copies_says_so(
    open_store: Open, comm: MPI.Intracomm, raises_all: Callable[..., str]
) -> None:
    store = opened(open_store, comm, promote_after=0)
    assert "promote_after is 0" in raises_all(comm, NotConfiguredError, lambda: store.replicate([1]))


# ----------------------------------------------------------------------------------------------- room and checks


@several
@pytest.mark.parametrize("when_full", ["evict", "refuse"])
def test_copies_make_room_for_blocks(when_full: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1, when_full=when_full, copy_share=0.5, lease_extents=0)
    put_all(store, comm, range(15))
    store.replicate(range(15))
    held = copies(store)["held"]
    room = (store.stats()["arena"]["bytes"] - store.stats()["arena"]["live"]) // (5 * 4096)
    for number in range(room + held):  # as many as fit without copies
        assert store.put(f"own {comm.rank} {number}", block(number, NBYTES))
    assert store.stats()["evicted"] == 0 or when_full == "evict"
    assert copies(store)["demotions"] == held - copies(store)["held"] or when_full == "evict"
    assert copies(store)["held"] == 0 or when_full == "evict"
    comm.Barrier()
    if when_full == "refuse":
        assert all(is_read(store, key) for key in range(15))
    comm.Barrier()
    store.check()


@several
def test_copies_take_no_more_than_their_share(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1, copy_share=0.25)
    put_all(store, comm, range(30))
    for _ in range(2):
        for key in range(30):
            assert is_read(store, key)
            assert copies(store)["held"] <= 10
    made, held = copies(store)["promotions"], copies(store)["held"]
    assert made - held == copies(store)["demotions"] + copies(store)["stale_dropped"]
    comm.Barrier()
    store.check()


@several
@pytest.mark.parametrize("damage", ["word", "double", "descriptor", "origin"])
def test_check_finds_a_damaged_copy(
    damage: str, open_store: Open, comm: MPI.Intracomm, raises_all: Callable[..., str]
) -> None:
    store = opened(open_store, comm)
    put_all(store, comm, range(8))
    store.replicate(range(8))
    assert store.check()["copies"] == 8 * (NODES - 1)
    words, records = store._fabric.copy_words, store._dram.records
    at = next(iter(np.flatnonzero(words).tolist()), None)
    first = next(iter(np.flatnonzero(store._dram.copies).tolist()), None)
    before = words.copy(), records.copy()
    if damage in ("word", "double") and at is not None:
        bucket = words[at // BUCKET_WORDS * BUCKET_WORDS :][:BUCKET_WORDS]
        bucket[np.flatnonzero(bucket == 0)[0]] = int(words[at]) ^ (damage == "word") << 36  # a hard one
    elif damage == "descriptor" and first is not None:
        records["flags"][first] &= ~np.uint16(FLAG_COPY)
    elif damage == "origin" and first is not None:
        records["sequence"][first] += 1
    text = raises_all(comm, ProtocolError, store.check)
    expected = {
        "word": "is no word of a copy", "double": "is a double of the copy",
        "descriptor": "names a descriptor", "origin": "has sequence",
    }[damage]  # fmt: skip
    assert expected in text
    comm.Barrier()
    words[:], records[:] = before
    store.check()


# --------------------------------------------------------------------------------------------- the benchmark


def test_a_short_hot_prefix(comm: MPI.Intracomm) -> None:
    measured, _ = hot_prefix.measure(8, 16 << 10, 3, comm)
    if NODES == 1:
        assert "one node" in measured[0]["not_in_this_run"]
        return
    assert all(row["nodes"] == NODES for row in measured)
    assert [row["case"] for row in measured] == ["hot_prefix_bytes", "hot_prefix_speed"] * 3
    assert all(row["contents_ok"] for row in measured)
    assert measured[4]["ratio"] == 1.0  # replicated: exactly once for each other node
    assert all(row["ratio"] >= 1.0 for row in measured[::2])
