"""Views and pins: memory without a copy, kept while it is looked at, however full the arena is."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block, next_on_node, other_node

from cascade_mpi.errors import NoPinSlotError, NotOnNodeError
from cascade_mpi.store import Store


def refill(store: Store, times: int = 3) -> None:
    """Put other blocks into the own arena until every cell that may be reused was, some times over."""
    nbytes, rank = 128 << 10, store._fabric.comm.rank
    for number in range(times * (8 << 20) // nbytes):
        assert store.put(f"filler {rank} {number}", block(number, nbytes))


@pytest.mark.core
def test_a_view_is_the_memory_of_the_arena(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"seen {comm.rank}", block(comm.rank, 10_000).view(np.uint16).reshape(50, 100))
    comm.Barrier()
    for rank in any_store.report()["ranks_on_node"]:
        fabric = any_store._fabric
        begin = int(fabric.data.table[rank, 0]) + fabric.arena_at
        view = any_store.view(f"seen {rank}")
        assert begin <= view.array.ctypes.data < begin + fabric.pages * fabric.page_bytes
        assert (view.nbytes, view.rank, view.array.dtype, view.array.shape) == (10_000, rank, np.uint16, (50, 100))
        np.testing.assert_array_equal(view.array.view(np.uint8).ravel(), block(rank, 10_000))
        view.release()


def test_a_view_cannot_be_written(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"fixed {comm.rank}", block(1, 100))
    with any_store.view(f"fixed {comm.rank}") as array:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        derived = array[10:]
        with pytest.raises(ValueError, match="read-only"):
            derived[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            any_store.get(f"fixed {comm.rank}", array)
    del derived, array
    np.testing.assert_array_equal(any_store.get(f"fixed {comm.rank}"), block(1, 100))


def test_a_view_stays_when_its_block_is_deleted(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"held {comm.rank}", block(comm.rank, 70_000))
    comm.Barrier()
    rank = next_on_node(any_store)
    view = any_store.view(f"held {rank}")
    comm.Barrier()
    assert any_store.delete(f"held {comm.rank}")
    refill(any_store)
    comm.Barrier()  # every arena has been written full, the held cell not
    np.testing.assert_array_equal(view.array, block(rank, 70_000))
    assert any_store.get(f"held {rank}") is None
    comm.Barrier()
    view.release()
    comm.Barrier()
    any_store.clear()
    # Nothing is held any more: the arena is one cell again.
    assert any_store.put(f"whole {comm.rank}", np.zeros(8 << 20, np.uint8))


def test_a_view_stays_when_its_block_is_replaced(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"held {comm.rank}", block(comm.rank, 70_000))
    with any_store.view(f"held {comm.rank}") as array:
        any_store.put(f"held {comm.rank}", block(99, 70_000))
        refill(any_store, 2)
        np.testing.assert_array_equal(array, block(comm.rank, 70_000))
        del array
    found = any_store.get(f"held {comm.rank}")
    assert found is None or (found == block(99, 70_000)).all()  # evicted by the filling, or the new one


@pytest.mark.core
def test_a_pinned_cell_is_not_reused_until_unpinned(any_store: Store, comm: MPI.Intracomm) -> None:
    nbytes = 5 << 20  # two of them do not fit
    any_store.put(f"large {comm.rank}", np.zeros(nbytes, np.uint8))
    comm.Barrier()
    rank = (comm.rank + 1) % comm.size  # also of another node: a pin needs no mapping
    pin = any_store.pin(f"large {rank}")
    comm.Barrier()
    assert any_store.delete(f"large {comm.rank}")
    refused = any_store.put(f"next {comm.rank}", np.zeros(nbytes, np.uint8))
    assert refused.refused
    holder = (comm.rank - 1) % comm.size
    assert f"pinned by rank {holder}" in refused.reason
    comm.Barrier()
    any_store.unpin(pin)
    any_store.unpin(pin)  # nothing the second time
    assert any_store.stats()["pins"] == 0
    comm.Barrier()
    assert any_store.put(f"next {comm.rank}", np.zeros(nbytes, np.uint8)).stored


def test_views_are_released_when_they_are_gone(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"k {comm.rank}", block(2, 5000))
    view = any_store.view(f"k {comm.rank}")
    part = view.array[100:200]
    assert any_store.stats()["pins"] == 1
    del view
    gc.collect()
    assert any_store.stats()["pins"] == 1  # an array made from it looks at the memory still
    np.testing.assert_array_equal(part, block(2, 5000)[100:200])
    del part
    gc.collect()
    assert any_store.stats()["pins"] == 0


def test_release_twice_and_after_another_view(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"k {comm.rank}", b"v")
    one, two = any_store.view(f"k {comm.rank}"), any_store.view(f"k {comm.rank}")
    one.release()
    one.release()
    assert any_store.stats()["pins"] == 1  # the second release is not the other view's
    two.release()
    assert any_store.stats()["pins"] == 0


def test_the_collector_may_release_a_view_at_any_time(
    any_store: Store, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the same thread takes a slot for another one."""
    any_store.put(f"k {comm.rank}", block(4, 300))
    first = any_store.view(f"k {comm.rank}")
    clock = time.monotonic

    def collect_meanwhile() -> float:
        first.release()
        return clock()

    monkeypatch.setattr("cascade_mpi.pins.time", SimpleNamespace(monotonic=collect_meanwhile))
    second = any_store.view(f"k {comm.rank}")
    np.testing.assert_array_equal(second.array, block(4, 300))
    assert any_store.stats()["pins"] == 1
    second.release()
    assert any_store.stats()["pins"] == 0


def test_the_ninth_view_names_the_ages_of_the_others(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(9):
        any_store.put(f"{comm.rank} {number}", block(number, 50))
    comm.Barrier()
    rank = next_on_node(any_store)
    views = [any_store.view(f"{rank} {number}") for number in range(8)]
    with pytest.raises(NoPinSlotError) as caught:
        any_store.view(f"{rank} 8")
    assert len(re.findall(r"\d+\.\d s", str(caught.value))) == 8
    assert f"at rank {rank}" in str(caught.value)
    np.testing.assert_array_equal(any_store.get(f"{rank} 8"), block(8, 50))  # a get copies
    views.pop().release()
    with any_store.view(f"{rank} 8") as array:
        np.testing.assert_array_equal(array, block(8, 50))
        del array
    for number, view in enumerate(views):
        np.testing.assert_array_equal(view.array, block(number, 50))
        view.release()


@pytest.mark.core
def test_a_view_of_another_node_is_refused(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"k {comm.rank}", block(comm.rank, 100))
    comm.Barrier()
    rank = other_node(any_store)
    if rank is None:
        assert all(any_store._fabric.mapped)
        pytest.skip("all ranks are on one node")
    for _ in range(10):  # more often than there are slots: none is lost
        with pytest.raises(NotOnNodeError, match=f"rank {rank}.*use get"):
            any_store.view(f"k {rank}")
    np.testing.assert_array_equal(any_store.get(f"k {rank}"), block(rank, 100))
    assert any_store.stats()["pins"] == 0


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3)])
def test_views_of_every_shape(any_store: Store, comm: MPI.Intracomm, shape: tuple[int, ...]) -> None:
    value = np.full(shape, 1.5, np.float32)
    any_store.put(f"k {comm.rank}", value)
    with any_store.view(f"k {comm.rank}") as array:
        assert array.shape == shape
        assert array.dtype == np.float32
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, value)
        del array


def test_a_view_publishes_a_deferred_put(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, publish="deferred")
    store.put(f"k {comm.rank}", block(3, 100))
    with store.view(f"k {comm.rank}") as array:
        np.testing.assert_array_equal(array, block(3, 100))
        del array
