"""Ctrl-C in the middle of a step that has changed the index: what the index names must be known to its manager.

Covers puts, deferred puts and moves, each interrupted right behind its compare-and-swap, on one rank. Does not cover
interrupts of whole jobs (`tests/test_interrupt.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.layout import unpack_word
from cascade_mpi.mover import Moved
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

PAGE = 4096
Open = Callable[..., Store]


@pytest.fixture
def alone(open_store: Open) -> Open:
    def make(**settings: Any) -> Store:
        return open_store(
            MPI.COMM_SELF, **({"dram_bytes": 16 * PAGE, "when_full": "refuse", "rest_ms": 0.1} | settings)
        )

    return make


def interrupted(call: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """The call, and then Ctrl-C, or Ctrl-C in its place."""

    def made(*given: Any, **named: Any) -> Any:
        if not before:
            call(*given, **named)
        raise KeyboardInterrupt

    return made


def page_of(store: Store, key: int) -> int:
    assert store._writer.find(0, key) == 1
    return unpack_word(store._writer.found()[0][1]).page


def is_whole(store: Store, key: int, number: int) -> bool:
    return bool(np.array_equal(store.get(key), block(number, PAGE)))


@pytest.mark.parametrize("checksum", ["inline", "later"])
def test_a_put_that_is_interrupted_behind_its_swap_is_known(
    alone: Open, monkeypatch: pytest.MonkeyPatch, checksum: str
) -> None:
    store = alone(checksum=checksum)
    monkeypatch.setattr(store._fabric, "publish", interrupted(store._fabric.publish))
    with pytest.raises(KeyboardInterrupt):
        store.put(1, block(1, PAGE))
    monkeypatch.undo()
    assert is_whole(store, 1, 1)
    store.check()


def test_a_put_that_is_interrupted_before_its_swap_leaves_no_cell(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = alone()
    monkeypatch.setattr(store._fabric, "publish", interrupted(store._fabric.publish, before=True))
    with pytest.raises(KeyboardInterrupt):
        store.put(1, block(1, PAGE))
    monkeypatch.undo()
    assert store.get(1) is None
    store.check()
    assert all(store.put(key, block(key, PAGE)) for key in range(16))


def test_a_deferred_put_that_was_published_is_not_published_again(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = alone(publish="deferred")
    for key in range(3):
        store.put(key, block(key, PAGE))
    monkeypatch.setattr(store._writer, "publish", interrupted(store._writer.publish))
    with pytest.raises(KeyboardInterrupt):
        store.publish()
    monkeypatch.undo()
    assert store.publish() == 3
    first = page_of(store, 0)
    assert store._dram.allocator.state(first) == "live"
    for key in range(3):
        assert is_whole(store, key, key)
    assert store.stats()["blocks"] == 3
    store.check()


def test_a_move_that_is_interrupted_behind_its_swap_has_moved(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = alone()
    assert store.put(1, block(1, PAGE))
    first = page_of(store, 1)
    monkeypatch.setattr(store._fabric, "swap", interrupted(store._fabric.swap))
    with pytest.raises(KeyboardInterrupt), store._pool.lock:
        store._mover.move(store._dram, first, store._pool.take)
    monkeypatch.undo()
    assert page_of(store, 1) != first
    assert store._dram.allocator.state(page_of(store, 1)) == "live"
    assert store._dram.allocator.state(first) == "limbo"
    assert is_whole(store, 1, 1)
    store.check()


def test_a_move_that_is_interrupted_before_its_swap_has_not(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = alone(protected_bytes=4 * PAGE)
    assert store.put(1, block(1, PAGE), is_prefix=True)
    first = page_of(store, 1)
    monkeypatch.setattr(store._fabric, "swap", interrupted(store._fabric.swap, before=True))
    with pytest.raises(KeyboardInterrupt), store._pool.lock:
        store._mover.move(store._dram, first, store._pool.take)
    monkeypatch.undo()
    assert page_of(store, 1) == first
    assert is_whole(store, 1, 1)
    store.check()


def test_a_protected_block_that_may_not_move_drives_no_others_out(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the quota of the other arena is missing, an eviction there would not help."""
    store = alone(when_full="evict", evict_ahead=0)
    for key in range(14):
        assert store.put(key, block(key, PAGE), is_prefix=key == 3)
    monkeypatch.setattr(store._mover, "_count", lambda *_: False)
    with store._pool.lock:
        first = page_of(store, 3)
        assert store._mover.move(store._dram, first, store._pool.take) is Moved.NO_QUOTA
        assert not store._mover.evacuate(store._dram, first, 1)
    monkeypatch.undo()
    assert store.stats()["evicted"] == 0
    assert all(is_whole(store, key, key) for key in range(14))
    store.check()
