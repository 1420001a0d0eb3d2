"""Ctrl-C and errors in the middle of calls: the store is whole afterwards, and what the index names is known.

Covers Ctrl-C at any step of any call that changes something, and errors right behind or before the compare-and-swap of
puts, deferred puts and moves, on one rank. Does not cover when Ctrl-C is delivered (`tests/unit/test_interrupts.py`)
nor interrupts of whole jobs (`tests/test_interrupt.py`).
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import StoreFullError
from cascade_mpi.interrupts import _Handler
from cascade_mpi.layout import unpack_word
from cascade_mpi.mover import Moved
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

PAGE = 4096
INTERRUPTS = 150
Open = Callable[..., Store]


@pytest.fixture
def alone(open_store: Open) -> Open:
    def make(**settings: Any) -> Store:
        return open_store(
            MPI.COMM_SELF, **({"dram_bytes": 16 * PAGE, "when_full": "refuse", "rest_ms": 0.1} | settings)
        )

    return make


def interrupted(call: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """The call, and then an interrupt that nothing holds up, or the interrupt in its place."""

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


# ------------------------------------------------------------------------------------------------- Ctrl-C at any step


@pytest.fixture
def python_s_handler() -> Iterator[None]:
    """A job may have been started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class CtrlC:
    """In it Ctrl-C comes once, with the step of this number: a call or return of a Python or C function."""

    def __init__(self, step: int) -> None:
        self.left = step

    def _count(self, frame: FrameType, *_: object) -> None:
        if frame.f_globals is globals():
            return  # of the test, not of the call
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def __enter__(self) -> Self:
        sys.setprofile(self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        sys.setprofile(None)
        return kind in (KeyboardInterrupt, StoreFullError)


def calls_of(store: Store, key: int, value: np.ndarray, space: Any) -> list[Callable[[], Any]]:
    """The calls that change something."""
    return [
        lambda: store.put(key, value, namespace=space),
        lambda: store.put(key, value, namespace=space, is_prefix=True),
        lambda: store.put_many([key, key + 1], [value] * 2, namespace=space, ttl=100, session=key),
        lambda: store.delete(key, namespace=space),
        lambda: store.protect([key, key + 1], namespace=space),
        lambda: store.unprotect(key, namespace=space),
        lambda: store.get(key, namespace=space),
        lambda: store.get_many([key, key + 1], namespace=space, session=key + 1),
        store.publish, store.progress, store.collect, store.rebalance,
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"publish": "deferred", "dedup": "behind"}], ids=["now", "deferred"])
def test_ctrl_c_at_any_step_leaves_the_store_whole(
    python_s_handler: None, alone: Open, settings: dict[str, Any]
) -> None:
    store = alone(dram_bytes=64 * PAGE, when_full="evict", protected_bytes=16 * PAGE, protect_shared=2, **settings)
    spaces = [None, "q", Namespace("c", identity="content", hash="sha256")]
    store.set_quota(20 * PAGE, "q")
    chance = random.Random(7)
    came = 0
    for _ in range(INTERRUPTS):
        size, space = chance.choice((0, 100, PAGE + 1, 4 * PAGE)), chance.choice(spaces)
        call = chance.choice(calls_of(store, chance.randrange(30), block(chance.randrange(9), size), space))
        with CtrlC(1 + int(2 ** chance.uniform(0, 9))) as ctrl_c:
            call()
        came += ctrl_c.left <= 0
        store.check()
    assert came > INTERRUPTS // 4
    assert isinstance(signal.getsignal(signal.SIGINT), _Handler)


def test_a_view_that_ctrl_c_ended_holds_no_pin(python_s_handler: None, alone: Open) -> None:
    store = alone()
    assert store.put(1, block(1, PAGE))
    for step in range(1, 120):
        with CtrlC(step), store.view(1):
            pass
    assert len(store._pins.held()) == 0
    store.check()
