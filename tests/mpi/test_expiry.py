"""Blocks with a time to live, read from every rank on every path, by the clock of the reader.

Covers put with `ttl` and what is seen of an expired block. Does not cover when its manager takes it out, nor what
writers do with it (`test_protection_steps`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.kernels import context as c
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

SIZE = 10_000


@pytest.fixture
def clock(any_store: Store) -> Iterator[Store]:
    """The store; what a test does to the clock of its rank is undone."""
    before = int(any_store._fabric.context[c.EPOCH])
    yield any_store
    any_store._fabric.context[c.EPOCH] = before


def set_clock(store: Store, seconds: float) -> None:
    """Local. Let the rank's clock be so many seconds further on."""
    store._fabric.context[c.EPOCH] -= int(seconds)


@pytest.mark.core
def test_an_expired_block_is_a_miss_on_every_path(clock: Store, comm: MPI.Intracomm) -> None:
    store, mine = clock, comm.rank
    value = block(mine, SIZE)
    assert store.put(mine, value, ttl=1000)
    assert store.put(100 + mine, value, ttl=10_000)
    assert store.put(f"n{mine}", value, ttl=1000, namespace="n")
    comm.Barrier()
    key = (mine + 1) % comm.size
    value, out = block(key, SIZE), np.empty(SIZE, np.uint8)
    np.testing.assert_array_equal(store.get(key), value)
    view = store.view(mine)
    assert view is not None
    lasting = np.array(block(mine, SIZE))
    comm.Barrier()
    set_clock(store, 2000)
    assert store.get(key) is None
    assert store.get(key, out) is None
    assert store.get(key, np.empty(7, np.uint8)) is None  # of another size: no error for what is not there
    assert store.get_range(key, 10, 100) is None
    assert store.get_range(key, 10, SIZE) is None
    assert store.get(f"n{key}", namespace="n") is None
    assert store.get_async(key).result() is None
    assert store.get_many([key, 100 + key])[0] is None
    assert store.get_many([key, 100 + key], [out, out]) == [None, SIZE]
    np.testing.assert_array_equal(out, value)
    assert not store.contains(key)
    assert store.contains_many([key, 100 + key]).tolist() == [False, True]
    assert store.locate(key) is None
    assert store.view(mine) is None
    assert store.pin(key) is None
    np.testing.assert_array_equal(view.array, lasting)  # what is held stays
    view.release()
    assert store.stats()["expired_reads"] >= 5
    comm.Barrier()
    assert store.put(key, b"again").stored  # by another rank than before
    comm.Barrier()
    np.testing.assert_array_equal(store.get(mine), np.frombuffer(b"again", np.uint8))
    comm.Barrier()


def test_a_block_lives_as_long_as_was_said(clock: Store, comm: MPI.Intracomm) -> None:
    """Not shorter, at most a second longer; a reader whose clock is behind the opening finds it, too."""
    store, key = clock, comm.rank
    for ttl in (1e-9, 0.5, 1, 59.5, 86_400):
        before = time.time() - int(store._fabric.context[c.EPOCH])
        store.put(key, b"v", ttl=ttl)
        after = time.time() - int(store._fabric.context[c.EPOCH])
        [info] = [each for each in store.scan() if each.key == key]
        assert info.ttl is not None
        expiry = int(store._dram.records[store._reader.find(0, key).page]["expiry"])
        assert before + ttl <= expiry < after + ttl + 1
        if ttl > 10:
            assert store.get(key) is not None
            set_clock(store, ttl - 2)
            assert store.get(key) is not None
            set_clock(store, 600)
            assert store.get(key) is None
    set_clock(store, -1_000_000)
    assert store._fabric.now() < 0
    assert store.get(key) is not None
    assert store.contains(key)
    set_clock(store, 1_000_000)
    comm.Barrier()


def test_the_clock_of_the_reader_decides(clock: Store, comm: MPI.Intracomm) -> None:
    store = clock
    store.put(comm.rank, b"v", ttl=1000)
    comm.Barrier()
    if comm.rank == 0:
        set_clock(store, 2000)
    for rank in range(comm.size):
        assert (store.get(rank) is None) == (comm.rank == 0)
    comm.Barrier()


@pytest.mark.parametrize("ttl", [np.int64(3), np.float32(3), np.uint8(3), 3, 2.5])
def test_a_ttl_may_be_any_real_number(store: Store, comm: MPI.Intracomm, ttl: float) -> None:
    space = Namespace(f"ttl {comm.rank}", ttl=ttl, protect_depth=np.int32(0))  # type: ignore[arg-type]
    assert type(space.ttl) in (int, float) and type(space.protect_depth) is int
    store.put(f"t {comm.rank}", b"v", ttl=ttl, namespace="ttl")
    store.put("t", b"v", namespace=space)
    for found in (store.scan("ttl"), store.scan(space)):
        [left] = [each.ttl for each in found]
        assert left is not None
        assert 0 < left <= 4


@pytest.mark.parametrize("ttl", [10**400, np.bool_(True), np.float32(0), 0, -1, math.inf, math.nan, "5", True, 1e12])
def test_what_is_no_ttl_is_said(store: Store, ttl: object) -> None:
    with pytest.raises(ValueError, match="ttl is "):
        store.put("k", b"v", ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ttl is "):
        store.put_many(["k"], [b"v"], ttl=ttl)  # type: ignore[arg-type]
    assert store.stats()["blocks"] == 0
