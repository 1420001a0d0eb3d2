"""Blocks that leave memory for the disk, and every way to read them, from their own rank and from others.

Covers what goes, what comes back, and that bytes, types and shapes are those of the put, whatever the store's settings.
Does not cover restarts (`test_disk_restart`), lists (`test_disk_lists`) nor a disk that fails (`test_disk_faults`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared_folder
from disk_stores import SMALL, damages, leave_memory, tier_of
from mpi4py import MPI
from patterns import block, keys_at, other_node

from cascade_mpi.errors import KeyExistsError, StoreFullError
from cascade_mpi.store import Store

SIZES = [0, 1, 4096, (64 << 10) - 1, 64 << 10, 63 << 10, 300_000]  # the last is more than a fourth of a segment
DTYPES: list[Any] = ["u1", "i1", "i8", "f2", "f8", "c16", "?"]
if importlib.util.find_spec("ml_dtypes"):
    import ml_dtypes

    DTYPES += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@pytest.fixture(scope="module")
def shared() -> Iterator[list[Store]]:
    yield (kept := [])
    for each in kept:
        each.close()


@pytest.fixture
def disk(shared: list[Store], comm: MPI.Intracomm) -> Iterator[Store]:
    """An empty store with a disk, which the tests of this module share."""
    if not shared:
        shared.append(Store(MPI.COMM_WORLD, **(SMALL | {"disk": str(shared_folder())})))
    store = shared.pop()  # comes back from a test that has passed
    yield store
    store.check()
    store.clear()
    shared.append(store)


def values() -> dict[str, np.ndarray]:
    """Blocks of all sizes, types and shapes."""
    made = {f"{size} bytes": block(size, size) for size in SIZES}
    for number, dtype in enumerate(DTYPES):
        made[str(np.dtype(dtype))] = block(number, 64).view(np.uint8).astype(dtype)
    made["8 dims"] = block(8, 2**6 * 24).reshape(2, 2, 2, 2, 2, 2, 4, 6)
    made["0-d"] = np.array(3.5)
    made["empty, 3 dims"] = np.empty((3, 0, 5), np.float32)
    return made


def same(got: Any, value: np.ndarray) -> bool:
    return (
        isinstance(got, np.ndarray)
        and (got.dtype, got.shape) == (value.dtype, value.shape)
        and got.tobytes() == value.tobytes()
    )


def wrong_reads(store: Store, key: str, value: np.ndarray) -> list[str]:
    """Local. The calls that do not give a block as it was put."""
    raw, n = value.tobytes(), value.nbytes
    out, outs = np.full(n, 7, np.uint8), [np.full(n, 7, np.uint8)]
    found = store.locate(key)
    part = slice(n // 3, n - n // 5)
    results = {
        "locate": found is not None and (found.nbytes, found.shape) == (n, value.shape),
        "contains": store.contains(key) and store.contains(key, exact=False),
        "range": store.get_range(key, part.start, part.stop - part.start).tobytes() == raw[part],
        "whole range": store.get_range(key, 0, n).tobytes() == raw,
        "new": same(store.get(key), value),
        "out": store.get(key, out) == n and out.tobytes() == raw,
        "many": same(store.get_many([key])[0], value),
        "many into": store.get_many([key], outs) == [n] and outs[0].tobytes() == raw,
        "async": same(store.get_async(key).result(), value),
    }
    return [f"{key}: {name}" for name, right in results.items() if not right]


def test_blocks_of_all_kinds_are_read_from_disk(disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]):
    """By the rank that put them and by others, before anything was promoted and after."""
    made = values()
    mine = [f"{name} of {comm.rank}" for name in made]
    for key, value in zip(mine, made.values(), strict=True):
        assert disk.put(key, value).stored
        leave_memory(disk, [key])
    assert_all(comm, all(tier_of(disk, key) == "disk" for key in mine))
    assert_all(comm, disk.stats()["disk"]["demoted"] >= len(mine))
    for step in (1, 0):  # the next rank's, then one's own
        rank = (comm.rank + step) % comm.size
        wrong = [text for name, value in made.items() for text in wrong_reads(disk, f"{name} of {rank}", value)]
        assert_all(comm, not wrong, "; ".join(wrong))
        disk.check()


def test_views_and_pins_bring_a_block_into_memory(disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]):
    value, key = block(1, 70_000), f"of {comm.rank}"
    disk.put(key, value)
    assert leave_memory(disk, [key]) == 1
    with disk.view(key) as array:
        seen = np.array_equal(array, value)
        assert_all(comm, seen and tier_of(disk, key) == "dram")
    assert leave_memory(disk, [key]) == 1
    held = disk.pin(key)
    assert_all(comm, tier_of(disk, key) == "dram")
    assert leave_memory(disk, [key]) == 1  # its bytes stay where they are
    disk.unpin(held)
    assert_all(comm, tier_of(disk, key) == "disk" and disk.stats()["disk"]["written"] > 0)


def test_a_clean_block_leaves_without_a_write(disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]):
    """Written by sync() or read from the disk: its word is swapped, and comes back."""
    keys = [(comm.rank, number) for number in range(4)]
    for rank, number in keys:
        disk.put(f"{rank} {number}", block(number, 9000))
    mine = [f"{rank} {number}" for rank, number in keys]
    assert disk.sync() >= 4
    written = disk.stats()["disk"]["written"]
    for _ in range(3):
        went = leave_memory(disk, mine)
        tiers = {tier_of(disk, key) for key in mine}
        assert_all(comm, went == 4 and tiers == {"disk"}, f"{went} {tiers}")
        for number, key in enumerate(mine):
            assert np.array_equal(disk.get(key), block(number, 9000))
        assert_all(comm, {tier_of(disk, key) for key in mine} == {"dram"})
    assert_all(comm, disk.stats()["disk"]["written"] == written)
    assert_all(comm, disk.sync() == 0)


def test_puts_under_pressure_lose_nothing(disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]):
    """Three times the arenas, also of blocks that lie in the arenas of others; all is there, for every rank."""
    n, nbytes = 96, 16_000
    for number in range(n):
        assert disk.put(f"{comm.rank} {number}", block(1000 * comm.rank + number, nbytes)).stored
    comm.Barrier()
    for rank in range(comm.size):
        got = disk.get_many([f"{rank} {number}" for number in range(n)])
        wrong = [
            at for at in range(n) if got[at] is None or not np.array_equal(got[at], block(1000 * rank + at, nbytes))
        ]
        assert_all(comm, not wrong, f"of rank {rank}: {wrong}")
    counted = disk.stats()
    assert_all(comm, counted["disk"]["demoted"] > 0 and counted["disk"]["errors"] == 0, str(counted["disk"]))


def test_a_rank_reads_others_blocks_into_its_memory(disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]):
    """Then it manages them; who put them and who reads them may replace and delete them."""
    names = ("kept", "replaced", "deleted", "replaced here", "deleted here")
    for name in names:
        disk.put(f"{name} {comm.rank}", block(comm.rank, 5000))
    leave_memory(disk, [f"{name} {comm.rank}" for name in names])
    comm.Barrier()
    other, mine = (comm.rank + 1) % comm.size, comm.rank
    for name in names:
        assert np.array_equal(disk.get(f"{name} {other}"), block(other, 5000))
    comm.Barrier()
    found = disk.locate(f"kept {mine}")
    assert_all(comm, (found.tier, found.rank) == ("dram", (comm.rank - 1) % comm.size), str(found))
    assert disk.put(f"replaced {mine}", block(100 + mine, 6000)).stored  # by who put it
    assert disk.delete(f"deleted {mine}")
    assert disk.put(f"replaced here {other}", block(200 + other, 7000)).stored  # by who reads it
    assert disk.delete(f"deleted here {other}")
    comm.Barrier()
    disk.check()
    for rank in range(comm.size):
        assert np.array_equal(disk.get(f"kept {rank}"), block(rank, 5000))
        assert np.array_equal(disk.get(f"replaced {rank}"), block(100 + rank, 6000))
        assert np.array_equal(disk.get(f"replaced here {rank}"), block(200 + rank, 7000))
        assert disk.get(f"deleted {rank}") is None
        assert disk.get(f"deleted here {rank}") is None
    for name in names:
        leave_memory(disk, [f"{name} {rank}" for rank in range(comm.size)])
    comm.Barrier()
    assert_all(comm, tier_of(disk, f"kept {mine}") == "disk")  # clean: the word of the disk cell came back
    assert_all(comm, disk.get(f"deleted {mine}") is None)


def test_what_is_on_disk_exists_for_a_put(disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]):
    key = f"of {comm.rank}"
    disk.put(key, block(1, 5000))
    leave_memory(disk, [key])
    comm.Barrier()
    other = f"of {(comm.rank + 1) % comm.size}"
    kept = disk.put(other, block(2, 5000), exists="keep")
    assert_all(comm, kept.kept and kept.tier == "disk", str(kept))
    with pytest.raises(KeyExistsError):
        disk.put(other, block(2, 5000), exists="error")
    comm.Barrier()
    assert_all(comm, np.array_equal(disk.get(key), block(1, 5000)))
    done = disk.put_async(other, block(3, 4000)).result()
    comm.Barrier()
    assert_all(comm, done.stored and np.array_equal(disk.get(key), block(3, 4000)))


def test_a_protected_block_stays_and_one_on_disk_comes(
    disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]
):
    mine = [f"{name} {comm.rank}" for name in ("prefix", "on disk")]
    disk.put(mine[0], block(1, 9000), is_prefix=True)
    disk.put(mine[1], block(2, 9000))
    went = leave_memory(disk, mine)
    assert_all(comm, went == 1 and [tier_of(disk, key) for key in mine] == ["dram", "disk"])
    comm.Barrier()
    other = f"on disk {(comm.rank + 1) % comm.size}"
    assert disk.protect(other).all()
    comm.Barrier()
    went = leave_memory(disk, [other])
    found = disk.locate(other)
    assert_all(comm, went == 0 and found.protected and found.tier == "dram", f"{went} {found}")
    assert disk.unprotect(other).all()
    comm.Barrier()
    leave_memory(disk, [other])
    for _ in range(2):  # read again it is what it was: no wish of before is kept on the disk
        assert np.array_equal(disk.get(other), block(2, 9000))
        assert_all(comm, not disk.locate(other).protected, str(disk.locate(other)))
    assert_all(comm, disk.get(f"nowhere {comm.rank}") is None)
    assert not disk.protect(f"nowhere {comm.rank}").any()


def test_prefetch_and_warm_bring_blocks(disk: Store, comm: MPI.Intracomm, assert_all: Callable[..., None]):
    mine = [f"{comm.rank} {number}" for number in range(6)]
    for number, key in enumerate(mine):
        disk.put(key, block(number, 9000))
    leave_memory(disk, mine)
    comm.Barrier()
    other = [f"{(comm.rank + 1) % comm.size} {number}" for number in range(6)]
    came = disk.prefetch([*other[:2], "nowhere"]).result()
    comm.Barrier()
    assert_all(comm, came == 2 and {tier_of(disk, key) for key in other[:2]} == {"dram"}, str(came))
    every = [f"{rank} {number}" for rank in range(comm.size) for number in range(3)]
    done = disk.warm(every)
    assert_all(comm, (done.blocks, done.bytes, done.left) == (comm.size, 9000 * comm.size, 0), str(done))
    done = disk.warm(budget=20_000)
    assert_all(comm, (done.blocks, done.left) == (2 * comm.size, comm.size), str(done))
    assert_all(comm, sorted(tier_of(disk, key) for key in mine) == ["disk"] + ["dram"] * 5)
    assert disk.prefetch(mine).result() == 1
    assert_all(comm, np.array_equal(disk.get(mine[5]), block(5, 9000)))


def test_a_view_says_that_there_is_no_room(comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store]):
    """Where nothing may go: a read gives the bytes all the same."""
    store = open_store(comm, **(SMALL | {"disk": str(folder), "dram_bytes": "64KiB", "lease_extents": 0}))
    mine = [f"{name} {comm.rank}" for name in "abc"]
    store.put(mine[0], block(0, 40_000))
    leave_memory(store, mine)
    store.put(mine[1], block(1, 40_000), is_prefix=True)
    comm.Barrier()
    with pytest.raises(StoreFullError, match="40000 bytes"):
        store.view(mine[0])
    assert np.array_equal(store.get(mine[0]), block(0, 40_000))
    assert tier_of(store, mine[0]) == "disk"
    comm.Barrier()


VARIANTS: dict[str, dict[str, Any]] = {
    "later": {"checksum": "later", "verify_reads": True},
    "off, no leases": {"checksum": "off", "lease_extents": 0},
    "hash": {"placement": "hash", "verify_reads": True},
    "writeback, deferred": {"durability": "writeback", "publish": "deferred"},
    "python": {"mpi_calls": "python", "windows": "shared", "eviction": "s3fifo", "durability": "writethrough"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_the_settings(
    variant: str, comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store],
    assert_all: Callable[..., None],
):  # fmt: skip
    """Puts of twice the memory, reads by all ranks, replaces and deletes of each other's blocks, and again."""
    store = open_store(comm, **(SMALL | {"disk": str(folder)} | VARIANTS[variant]))
    n, sizes = 32, (0, 1, 4096, 20_000, 60_000)
    expected: dict[tuple[int, int], int | None] = {}

    def look() -> None:
        comm.Barrier()
        for rank in range(comm.size):
            for number in range(n):
                seed = expected[rank, number]
                got = store.get(f"{rank} {number}")
                right = got is None if seed is None else same(got, block(seed, sizes[seed % 5]))
                assert_all(comm, right, f"{rank} {number} of {seed}: {got}")
        store.check()

    def put(key: tuple[int, int], seed: int) -> None:
        assert store.put(f"{key[0]} {key[1]}", block(seed, sizes[seed % 5])).stored

    for number in range(n):
        put((comm.rank, number), number)
        if number % 8 == 7:
            store.publish()  # what waits for that cannot leave memory
    expected |= {(rank, number): number for rank in range(comm.size) for number in range(n)}
    store.publish()
    look()
    for rank in range(comm.size):
        for number in range(0, n, 3):
            if (rank + 1) % comm.size == comm.rank:
                put((rank, number), number + 1)
            expected[rank, number] = number + 1
            if (rank + number) % comm.size == comm.rank:
                store.delete(f"{rank} {number + 1}")
            if number + 1 < n:
                expected[rank, number + 1] = None
    store.publish()
    look()
    assert_all(comm, store.stats()["disk"]["written"] > 0)
    assert_all(comm, not damages(folder))


def test_blocks_in_the_arenas_of_others_are_demoted(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: Callable[..., None]
):
    """Also where the arena is on another node: the bytes are fetched, the descriptor is sent."""
    if comm.size == 1:
        pytest.skip("there is one arena")
    store = open_store(comm, **(SMALL | {"disk": str(folder)}))
    lender = other_node(store)
    lender = (comm.rank + 1) % comm.size if lender is None else lender
    mine, keys = [], keys_at(store, lender)
    if comm.rank == 0:
        store._pool._hashed = True  # a put goes where the key says
        while len(mine) < 6:
            key = next(keys)
            store.put(key, block(key, 9000))
            if store.locate(key).rank == lender:
                mine.append(key)
        store._pool._hashed = False
        assert store.sync() >= 6
        assert leave_memory(store, mine[:3]) == 3
        store.put(mine[5], block(1, 9000), exists="replace")
    mine, lender = comm.bcast((mine, lender))
    tiers = [store.locate(key).tier for key in mine]
    assert_all(comm, tiers == ["disk"] * 3 + ["dram"] * 3, str(tiers))
    assert_all(comm, all(np.array_equal(store.get(key), block(key, 9000)) for key in mine[:5]))
    comm.Barrier()
    store.rebalance()
    store.check()
    assert_all(comm, all(np.array_equal(store.get(key), block(key, 9000)) for key in mine[:5]))


def test_a_copy_of_another_node_ends_when_its_block_goes_to_disk(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: Callable[..., None]
):
    store = open_store(comm, **(SMALL | {"disk": str(folder), "promote_after": 1}))
    if store._fabric.nodes == 1:
        pytest.skip("all memory is on one node")
    key = f"of {comm.rank}"
    store.put(key, block(comm.rank, 9000))
    store.sync()
    comm.Barrier()
    for rank in range(comm.size):
        for _ in range(2):
            assert np.array_equal(store.get(f"of {rank}"), block(rank, 9000))
    comm.Barrier()
    made = comm.allreduce(store._copies.made)
    assert_all(comm, made > 0)
    leave_memory(store, [key])
    comm.Barrier()
    for rank in range(comm.size):
        assert np.array_equal(store.get(f"of {rank}"), block(rank, 9000))
    comm.Barrier()
    store.put(key, block(50 + comm.rank, 9000))
    comm.Barrier()
    assert_all(comm, all(np.array_equal(store.get(f"of {rank}"), block(50 + rank, 9000)) for rank in range(comm.size)))
    leave_memory(store, [key])
    comm.Barrier()
    store.delete(f"of {(comm.rank + 1) % comm.size}")
    comm.Barrier()
    assert_all(comm, all(store.get(f"of {rank}") is None for rank in range(comm.size)))
    store.check()
