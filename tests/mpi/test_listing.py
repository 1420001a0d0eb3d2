"""What a namespace holds, rank by rank and as a whole, and the deletion of many blocks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import ConfigError, StoreClosedError
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

Open = Callable[..., Store]
ALICE, MALLORY = Namespace("t", salt=b"alice's secret"), Namespace("t", salt=b"a guess")


def fill(store: Store, comm: MPI.Intracomm, namespace: Any = None) -> None:
    """Each rank: three blocks under integers, one under a text."""
    for number in range(3):
        store.put(1000 * comm.rank + number, block(number, 100 + number), namespace=namespace, is_prefix=number == 1)
    store.put(f"text {comm.rank}", np.zeros((2, 3), np.float32), namespace=namespace, depth=5, ttl=1000)
    comm.Barrier()


@pytest.mark.core
@pytest.mark.parametrize("namespace", [None, "n", ALICE], ids=["default", "named", "salted"])
def test_every_block_is_listed_under_an_integer_that_names_it(
    any_store: Store, comm: MPI.Intracomm, namespace: Any
) -> None:
    store, rank = any_store, comm.rank
    fill(store, comm, namespace)
    fill(store, comm, "another")
    mine = {each.key: each for each in store.scan(namespace)}
    assert len(mine) == 4
    for number in range(3):
        each = mine.pop(1000 * rank + number)
        assert each[1:6] == (rank, 100 + number, "uint8", (100 + number,), number == 1)
        assert (each.ttl, each.depth) == (None, None)
        assert 0 <= each.age < 600
    [text] = mine.values()
    assert text[1:6] == (rank, 24, "float32", (2, 3), False)
    assert text.depth == 5
    assert text.ttl is not None
    assert 990 < text.ttl <= 1001
    comm.Barrier()
    everything = store.scan_all(namespace)
    assert [each.rank for each in everything] == [r for r in range(comm.size) for _ in range(4)]
    for each in everything:  # the integer is a key of that namespace, on any rank
        got = store.get(each.key, namespace=namespace)
        assert (got.nbytes, str(got.dtype), got.shape) == (each.nbytes, each.dtype, each.shape)
    comm.Barrier()
    neighbour = (rank + 1) % comm.size
    theirs = [each.key for each in everything if each.rank == neighbour and each.dtype == "float32"]
    assert store.protect(theirs, namespace=namespace).all()
    comm.Barrier()
    assert [each.protected for each in store.scan(namespace) if each.depth == 5] == [True]
    comm.Barrier()
    assert store.delete(theirs[0], namespace=namespace)
    comm.Barrier()
    assert len(list(store.scan(namespace))) == 3
    comm.Barrier()
    if rank == 0:
        store.bump_epoch(namespace)
    comm.Barrier()
    assert store.scan_all(namespace) == []


def test_nobody_lists_a_tenants_blocks_without_the_salt(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(7, b"secret", namespace=ALICE)
    comm.Barrier()
    for namespace in (None, "t", Namespace("t"), MALLORY):
        assert any_store.scan_all(namespace) == []
    assert {each.key for each in any_store.scan_all(ALICE)} == {7}
    assert "secret" not in repr(any_store.scan_all(ALICE))
    comm.Barrier()


def test_a_list_that_is_read_late(open_store: Open) -> None:
    """Blocks that left meanwhile are left out, and a closed store's memory is not looked at."""
    store = open_store(MPI.COMM_SELF)
    for number in range(1900):
        store.put(number, b"v")
    listed = store.scan()
    first = next(listed).key
    store.delete_many(range(0, 1900, 2))
    rest = {each.key for each in listed} | {first}
    assert set(range(1, 1900, 2)) <= rest
    assert len(rest) < 950 + 1024
    listed = store.scan()
    store.close()
    with pytest.raises(StoreClosedError):
        next(listed)


# Between nodes the puts of four ranks on few cores wait long for each other's compare-and-swaps.
@pytest.mark.parametrize("publish", ["now", "deferred"] if MPI.COMM_WORLD.size <= 2 else ["now"])
def test_delete_all(open_store: Open, comm: MPI.Intracomm, publish: str) -> None:
    store = open_store(comm, publish=publish)
    fill(store, comm, "a")
    fill(store, comm, "b")
    if publish == "deferred":
        store.put(1000 * comm.rank, b"published", namespace="a")
        store.publish()
        store.put(1000 * comm.rank + 1, b"waits", namespace="a")
    deferred = int(publish == "deferred")
    assert store.delete_all("a", keys=range(1000, 1_000_000)) == (3 + deferred) * (comm.size - 1)
    for rank in range(comm.size):
        for number in range(3):
            assert store.contains(1000 * rank + number, namespace="a") == (rank == 0)
            assert store.contains(1000 * rank + number, namespace="b") or deferred
        assert store.contains(f"text {rank}", namespace="a") or deferred
    comm.Barrier()
    store.publish()
    assert store.delete_all("a") == 3 + comm.size
    assert store.scan_all("a") == []
    assert len(store.scan_all("b")) == 4 * comm.size
    assert store.delete_all("never used") == 0
    assert store.delete_all(keys=range(5)) == 0
    store.check()


def test_a_range_of_large_integers(any_store: Store, comm: MPI.Intracomm) -> None:
    high = 1 << 70
    for part in range(3):
        any_store.put((high + part << 40) + comm.rank, b"v")
    assert any_store.delete_all(keys=range(high + 1 << 40, high + 2 << 40)) == comm.size
    assert {each.key >> 40 for each in any_store.scan_all()} == {high, high + 2}


def test_delete_all_is_refused_on_all_ranks(store: Store, comm: MPI.Intracomm, raises_all: Callable[..., str]) -> None:
    store.put(comm.rank, b"v")
    for wrong in (range(0, 10, 2), [1, 2], 5):
        text = raises_all(comm, ConfigError, lambda wrong=wrong: store.delete_all(keys=wrong))
        assert "a range of integers with step 1" in text
    raises_all(comm, ConfigError, lambda: store.delete_all(5))  # type: ignore[arg-type]
    if comm.size > 1:
        text = raises_all(comm, ConfigError, lambda: store.delete_all(keys=range(comm.rank)))
        assert "other keys or another namespace" in text
        raises_all(comm, ConfigError, lambda: store.delete_all(f"{comm.rank}"))
    assert store.contains(comm.rank)
    comm.Barrier()


def test_delete_many_says_which(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(comm.rank, b"v", is_prefix=True)
    comm.Barrier()
    neighbour = (comm.rank + 1) % comm.size
    assert any_store.delete_many([neighbour, 99, neighbour]).tolist() == [True, False, False]
    assert any_store.delete_many(np.array([neighbour], np.uint64)).tolist() == [False]
    assert any_store.delete_many([]).tolist() == []
    comm.Barrier()
    assert any_store.check()["words"] == 0
