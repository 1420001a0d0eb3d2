"""Lists and removals of many blocks of which some are on disk: scan, namespaces, delete_all, clear, quotas.

Covers that each block is listed and counted once, wherever it is and goes meanwhile, and that what was removed stays so
after a restart. Does not cover single blocks (`test_disk_reads`, `test_disk_restart`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_folder
from disk_stores import SMALL, found, killed, leave_memory, opened, tier_of
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import StoreFullError
from cascade_mpi.namespaces import Namespace
from cascade_mpi.spaces import NamespaceInfo
from cascade_mpi.store import Store

AssertAll = Callable[..., None]

pytestmark = pytest.mark.alone
TENANT = Namespace("tenant", salt=b"sixteen bytes or more")


@pytest.fixture(scope="module")
def shared() -> Iterator[list[Store]]:
    yield (kept := [])
    for each in kept:
        each.close()


@pytest.fixture
def disk(shared: list[Store]) -> Iterator[Store]:
    """An empty store with a disk, which the tests of this module share; it writes what it is asked for."""
    if not shared:
        shared.append(Store(MPI.COMM_WORLD, **(SMALL | {"disk": str(shared_folder()), "durability": "none"})))
    store = shared.pop()  # comes back from a test that has passed
    yield store
    store.check()
    store.clear()
    shared.append(store)


def info(store: Store, namespace: str | Namespace) -> NamespaceInfo:
    """Collective. What `namespaces()` says of one of them."""
    text = str(namespace if isinstance(namespace, Namespace) else Namespace(namespace))
    return next(each for each in store.namespaces() if each.text == text)


def keys_of(rank: int, n: int) -> list[int]:
    return [1000 * (rank + 1) + number for number in range(n)]


def spread(store: Store, comm: MPI.Intracomm, namespace: str | Namespace = "") -> list[int]:
    """Collective. Nine blocks of each rank: in memory, backed, on disk; of the last three one read by the next rank."""
    mine = keys_of(comm.rank, 9)
    for key in mine:
        store.put(key, block(key, 500), namespace=namespace, depth=key % 10, ttl=5000)
    store.sync(mine[3:], namespace=namespace)
    leave_memory(store, mine[6:], namespace)
    comm.Barrier()
    assert store.get(keys_of((comm.rank + 1) % comm.size, 9)[8], namespace=namespace) is not None
    comm.Barrier()
    return mine


@pytest.mark.parametrize("namespace", ["", TENANT], ids=str)
def test_each_block_is_listed_once(disk: Store, comm: MPI.Intracomm, assert_all: AssertAll, namespace: str | Namespace):
    mine = spread(disk, comm, namespace)
    everyone = [key for rank in range(comm.size) for key in keys_of(rank, 9)]
    listed = disk.scan_all(namespace)
    assert_all(comm, sorted(each.key for each in listed) == everyone, str(sorted(each.key for each in listed)))
    for each in listed:
        assert (each.nbytes, each.dtype, each.shape, each.depth) == (500, "uint8", (500,), each.key % 10)
        assert not each.protected and 0 <= each.age < 60 and 4000 < each.ttl <= 5001
        assert each.tier == tier_of(disk, each.key, namespace), each
        assert each.rank == disk.locate(each.key, namespace=namespace).rank, each
    here = [each.key for each in disk.scan(namespace) if each.tier == "disk"]
    assert_all(comm, here == mine[6:8] or sorted(here) == mine[6:8], str(here))
    assert_all(comm, list(disk.scan("another")) == [])
    comm.Barrier()


def test_what_moves_while_it_is_listed_is_listed_once(disk: Store, comm: MPI.Intracomm, assert_all: AssertAll):
    """Between memory and disk, in both directions, before and after its turn."""
    mine = keys_of(comm.rank, 40)
    for key in mine:
        disk.put(key, block(key, 500))
    disk.sync(mine[:20])
    leave_memory(disk, mine[:10])
    rng = np.random.default_rng(comm.rank)
    for turn in range(4):
        listing = disk.scan()
        came: Counter[int] = Counter()
        for number, each in enumerate(listing):
            came[each.key] += 1
            if turn < 2 or number % 3 == 0:
                for key in rng.choice(mine, 5).tolist():
                    if tier_of(disk, key) == "disk":
                        assert np.array_equal(disk.get(key), block(key, 500))
                        assert tier_of(disk, key) == "dram"
                    else:
                        disk.sync([key])
                        assert leave_memory(disk, [key]) == 1
        wrong = {key: came[key] for key in mine if came[key] != 1}
        assert_all(comm, not wrong and len(came) == len(mine), f"turn {turn}: {wrong}")


def test_a_scan_in_pieces_follows_too(
    disk: Store, comm: MPI.Intracomm, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
):
    """As above with one block at a time under the lock: those that wait have moved."""
    from cascade_mpi import listing

    monkeypatch.setattr(listing, "_AT_ONCE", 1)
    mine = keys_of(comm.rank, 12)
    for key in mine:
        disk.put(key, block(key, 500))
    disk.sync()
    leave_memory(disk, mine[::2])
    came: list[int] = []
    for number, each in enumerate(disk.scan()):
        came.append(each.key)
        for key in mine[number % 4 :: 4]:  # listed or not
            if tier_of(disk, key) == "disk":
                assert disk.get(key) is not None
            else:
                leave_memory(disk, [key])
        if number == 3:
            gone = next(key for key in mine if key not in came)
            assert disk.delete(gone)
    assert_all(comm, sorted([*came, gone]) == mine, f"{came}, {gone}")


def test_namespaces_count_each_block_once(disk: Store, comm: MPI.Intracomm, assert_all: AssertAll):
    spread(disk, comm, TENANT)
    disk.put(comm.rank, b"x" * 10, namespace="other")
    told = info(disk, TENANT)
    n = comm.size
    expected = (7 * n, 3500 * n, 2 * n, 1000 * n)
    assert_all(comm, (told.blocks, told.bytes, told.disk_blocks, told.disk_bytes) == expected, str(told))
    told = info(disk, "other")
    assert_all(comm, (told.blocks, told.bytes, told.disk_blocks, told.disk_bytes) == (n, 10 * n, 0, 0), str(told))


def test_namespaces_after_a_restart(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll):
    """Named by one rank, on the disk cells of all."""
    with opened(comm, folder) as store:
        spread(store, comm, TENANT)
        store.flush()
    with opened(comm, folder) as store:
        if comm.rank == 0:
            assert not store.contains(1, namespace=TENANT)
            store.put(1, b"x", namespace=TENANT)
        told = info(store, TENANT)
        n = comm.size
        assert_all(comm, (told.blocks, told.disk_blocks, told.disk_bytes) == (1, 9 * n, 4500 * n), str(told))
        listed = sorted(each.key for each in store.scan_all(TENANT))
        assert_all(comm, listed == [1, *(key for rank in range(n) for key in keys_of(rank, 9))], str(listed))


def test_delete_all_takes_what_is_on_disk(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll
):
    """All, or those of a range; of one namespace; and a restart does not find them."""
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store")}))
    for namespace in ("", TENANT):
        spread(store, comm, namespace)
    n = comm.size
    everyone = [key for rank in range(n) for key in keys_of(rank, 9)]
    ranged = range(1000, 1000 * (n + 1)) if n > 1 else range(1000, 1005)
    some = [key for key in everyone if key in ranged]
    removed = store.delete_all(keys=ranged)
    assert_all(comm, removed == len(some), f"{removed}, not {len(some)}")
    there = {key for key, value in found(store, everyone).items() if value is not None}
    assert_all(comm, there == set(everyone) - set(some), str(there))
    store.check()
    removed = store.delete_all(TENANT)
    assert_all(comm, removed == 9 * n, str(removed))
    assert_all(comm, store.delete_all(TENANT) == 0)
    assert_all(comm, store.scan_all(TENANT) == [])
    store.check()
    store.put(everyone[0], b"again", namespace=TENANT) if comm.rank == 0 else None
    store.flush()
    left = info(store, TENANT)
    assert_all(comm, (left.blocks, left.disk_blocks) == (1, 0), str(left))
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        there = {key for key, value in found(after, everyone).items() if value is not None}
        assert_all(comm, there == set(everyone) - set(some), str(there))
        got = found(after, everyone, TENANT)
        assert_all(comm, got.pop(everyone[0]) == b"again" and not any(got.values()), str(got))
        after.clear()
        after.check()
        after.flush()
        assert_all(comm, after.scan_all() == [] and after.stats()["disk"]["blocks"] == 0)
        with opened(comm, killed(comm, folder / "copy", folder / "copy of it")) as last:
            assert_all(comm, not any(found(last, everyone).values()))
            assert_all(comm, comm.allreduce(last.stats()["disk"]["blocks"]) == 0)


def test_a_quota_counts_what_is_in_memory(disk: Store, comm: MPI.Intracomm, assert_all: AssertAll):
    """A block that goes to disk is given back, one that comes is counted, and stays there if it would exceed it."""
    disk.set_quota(3000 * comm.size, TENANT)
    mine = [f"{comm.rank} {number}" for number in range(4)]
    for key in mine[:2]:
        disk.put(key, block(1, 1000), namespace=TENANT)
    disk.sync()
    assert leave_memory(disk, mine[:2], TENANT) == 2
    comm.Barrier()
    disk.progress()
    for key in mine[2:]:
        assert disk.put(key, block(2, 1500), namespace=TENANT).stored
    comm.Barrier()
    used = disk._registry.used(disk._space(TENANT))
    assert_all(comm, used == 3000 * comm.size, str(used))
    comm.Barrier()
    assert np.array_equal(disk.get(mine[0], namespace=TENANT), block(1, 1000))
    assert_all(comm, tier_of(disk, mine[0], TENANT) == "disk")
    with pytest.raises(StoreFullError, match="quota"):
        disk.view(mine[0], namespace=TENANT)
    disk.delete(mine[2], namespace=TENANT)
    disk.progress()
    comm.Barrier()
    assert np.array_equal(disk.get(mine[0], namespace=TENANT), block(1, 1000))
    assert_all(comm, tier_of(disk, mine[0], TENANT) == "dram")
    comm.Barrier()
    used = disk._registry.used(disk._space(TENANT))
    assert_all(comm, used == 2500 * comm.size, str(used))
    disk.set_quota(None, TENANT)


def test_collect_beside_blocks_on_disk(disk: Store, comm: MPI.Intracomm, assert_all: AssertAll):
    space = Namespace("contents", identity="content", hash="sha256")
    for name in ("name", "another name"):
        disk.put(f"{name} of {comm.rank}", block(comm.rank, 500), namespace=space)
    mine = spread(disk, comm)
    comm.Barrier()
    for name in ("name", "another name"):
        assert disk.delete(f"{name} of {comm.rank}", namespace=space)
    assert_all(comm, disk.collect() == comm.size)
    assert_all(comm, all(np.array_equal(disk.get(key), block(key, 500)) for key in mine))
