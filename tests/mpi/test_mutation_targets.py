"""The rules that a manager and a writer keep, each at the moment that matters, on one rank.

Covers what `bench mutations` breaks outside the kernels: reuse and pins, removal before retirement, sweep,
doubles, deletes, the look-up that a put goes by, types of what is read during a replace. Every store here
is this rank's alone, with all keys in one bucket; a second thread plays the other rank. Does not cover the
kernels' rules (`tests/unit/test_onesided.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mpi4py import MPI

from cascade_mpi.kernels import context as c
from cascade_mpi.layout import MAX_PAGES
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

PAGE = 4096
KEY, OTHER, THIRD = 11, 12, 13
Open = Callable[..., Store]


@pytest.fixture
def alone(open_store: Open) -> Open:
    """A store of this rank: 8 pages, one bucket, nothing evicted, rests that are over at once."""

    def make(**settings: Any) -> Store:
        defaults = {"dram_bytes": 8 * PAGE, "index_blocks": 1, "when_full": "refuse", "rest_ms": 0.1}
        return open_store(MPI.COMM_SELF, **(defaults | settings))

    return make


def block(number: int, nbytes: int = PAGE) -> npt.NDArray[np.uint8]:
    return np.full(nbytes, number, np.uint8)


def elsewhere(call: Callable[[], Any]) -> Any:
    """Run a call as another thread, with a scratch of its own, to its end."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    assert results, "the other thread failed"
    return results[0]


def once(action: Callable[[], Any]) -> Callable[[str], None]:
    """A pause in which another thread acts, the first time."""
    left = [action]

    def pause(_: str) -> None:
        if left:
            elsewhere(left.pop())

    return pause


def words_of(store: Store, key: int) -> list[tuple[int, int]]:
    """The (slot, word) pairs of a key."""
    store._writer.find(0, key)
    return store._writer.found()


def page_of(store: Store, key: int) -> int:
    return words_of(store, key)[0][1] & MAX_PAGES - 1


def make_double(store: Store, low: int, high: int) -> None:
    """Two words of KEY: `high` in slot 1, and `low`, the one that counts, in slot 0 as of now."""
    writer, dram, fabric = store._writer, store._dram, store._fabric
    store.put(OTHER, block(0))
    store.put(KEY, block(high))
    store.delete(OTHER)
    value = np.ascontiguousarray(block(low))
    from cascade_mpi.values import source

    draft = writer.draft(0, KEY, store._space(None), source(value), prefix=False)
    assert draft is not None
    s = fabric.scratch
    writer.find(0, KEY)
    with dram.lock:
        assert fabric.publish(fabric.ctx, s.address, 0, 0, 0, 0, draft.word) == 1
        dram.enter(draft.word, PAGE)
    assert [slot for slot, _ in words_of(store, KEY)] == [0, 1]


# ---------------------------------------------------------------------------------------- reuse of cells


def test_a_pinned_cell_is_never_reused(alone: Open) -> None:
    store = alone()
    store.put(KEY, block(1))
    view = store.view(KEY)
    assert view is not None
    store.delete(KEY)
    stored = sum(bool(store.put(100 + number, block(number))) for number in range(2, 30))
    assert stored == 7
    np.testing.assert_array_equal(view.array, block(1))
    view.release()
    assert store.put(200, block(2))
    store.check()


def test_a_pin_that_comes_after_the_removal_is_seen_before_the_reuse(alone: Open) -> None:
    """The look at the pins stands after the pause between removal and reuse, not before."""
    store = alone()
    store.put(KEY, block(1))
    first = page_of(store, KEY)
    word = words_of(store, KEY)[0][1]
    store.delete(KEY)
    pin_words = store._fabric.pin_words

    def late(_: str) -> None:
        pin_words[7] = word

    store._dram.pause = late
    for number in range(2, 30):
        store.put(100 + number, block(number))
    assert store._dram.allocator.state(first) == "limbo"
    store._dram.pause = None
    pin_words[7] = 0


@pytest.mark.parametrize("how", ["evict", "clear", "delete", "replace"])
def test_a_cell_is_live_until_its_word_has_left(alone: Open, how: str) -> None:
    """Reuse of a cell before the removal of its word has been flushed would show its new bytes to readers."""
    store = alone(when_full="evict")
    fabric, dram = store._fabric, store._dram
    store.put(KEY, block(1))
    first = page_of(store, KEY)
    seen: list[tuple[str, int]] = []

    def watched(call: Callable[..., int]) -> Callable[..., int]:
        def guarded(*args: Any) -> int:
            seen.append((str(dram.allocator.state(first)), int(dram.words[first] != 0)))
            return call(*args)

        return guarded

    fabric.remove, fabric.publish = watched(fabric.remove), watched(fabric.publish)
    if how == "evict":
        dram.remove(first)
    elif how == "clear":
        dram.clear()
    elif how == "delete":
        store.delete(KEY)
    else:
        store.put(KEY, block(2))
    assert seen == [("live", 1)]
    assert dram.words[first] == 0
    assert dram.allocator.state(first) != "live"


def test_a_hint_is_not_the_permission_to_reuse(alone: Open) -> None:
    store = alone()
    store.put(KEY, block(1))
    store._fabric.gone[page_of(store, KEY)] = 1  # a stranger's hint about an earlier generation
    assert store._dram.sweep() == 0
    np.testing.assert_array_equal(store.get(KEY), block(1))
    store.check()


def test_the_sweep_finds_what_a_stranger_took_away(alone: Open) -> None:
    store = alone()
    for number in range(8):
        assert store.put(100 + number, block(number))
    assert not store.put(KEY, block(1))
    [(slot, word)] = words_of(store, 103)
    fabric, s = store._fabric, store._fabric.scratch
    assert fabric.remove(fabric.ctx, s.address, 0, 0, slot, word) == 1
    fabric.gone[word & MAX_PAGES - 1] = 1
    assert store.put(KEY, block(1))
    store.check()


def test_a_freed_descriptor_says_nothing(alone: Open) -> None:
    """A reader that still has the old word must not find the old key in a cell that was given out again."""
    store = alone()
    store.put(KEY, block(1))
    first = page_of(store, KEY)
    store.delete(KEY)
    dram = store._dram
    cell = None
    with dram.lock:
        while cell != first:
            reserved = dram.reserve(PAGE)
            assert reserved is not None
            cell, _ = reserved
    assert dram.records[first]["magic"] == 0


# ------------------------------------------------------------------------------------- doubles and deletes


def test_a_delete_takes_every_word(alone: Open) -> None:
    store = alone()
    make_double(store, low=2, high=1)
    assert store.delete(KEY)
    assert store.get(KEY) is None
    assert words_of(store, KEY) == []
    store.check()


def test_a_delete_looks_again_until_nothing_is_found(alone: Open) -> None:
    """A put that ends between the look-up and the end of the delete."""
    store = alone()
    store.put(KEY, block(1))
    fabric = store._fabric
    remove, left = fabric.remove, [1]

    def interrupted(*args: Any) -> int:
        if left:
            left.pop()
            elsewhere(lambda: store.put(KEY, block(2)))  # over the word that is to be taken away
        return remove(*args)

    fabric.remove = interrupted
    store.delete(KEY)
    assert store.get(KEY) is None
    store.check()


def test_an_older_double_is_never_seen_during_a_delete(alone: Open) -> None:
    store = alone()
    make_double(store, low=2, high=1)
    fabric = store._fabric
    remove, seen = fabric.remove, []

    def watched(*args: Any) -> int:
        done = remove(*args)
        got = elsewhere(lambda: store.get(KEY))
        seen.append(None if got is None else int(got[0]))
        return done

    fabric.remove = watched
    store.delete(KEY)
    assert seen == [2, None]


def test_two_puts_in_two_slots_leave_one_word(alone: Open) -> None:
    """Between this put's look and its CAS a lower slot becomes free, and another put takes it."""
    store = alone()
    store.put(OTHER, block(0))

    def other_rank() -> bool:
        store.delete(OTHER)
        return bool(store.put(KEY, block(2)))

    store._writer.pause = once(other_rank)
    assert store.put(KEY, block(1))
    assert [slot for slot, _ in words_of(store, KEY)] == [0]
    np.testing.assert_array_equal(store.get(KEY), block(2))
    store.check()


def test_a_put_takes_an_acknowledged_double_away(alone: Open) -> None:
    """This put saw a free lower slot; the other one ended in a higher slot meanwhile."""
    store = alone()

    def other_rank() -> bool:
        store.put(OTHER, block(0))
        store.put(KEY, block(2))
        return store.delete(OTHER)

    store._writer.pause = once(other_rank)
    assert store.put(KEY, block(1))
    assert [slot for slot, _ in words_of(store, KEY)] == [0]
    np.testing.assert_array_equal(store.get(KEY), block(1))
    store.check()


def test_a_put_that_loses_its_slot_looks_again(alone: Open) -> None:
    store = alone()
    store._writer.pause = once(lambda: store.put(OTHER, block(2)))
    assert store.put(KEY, block(1))
    np.testing.assert_array_equal(store.get(KEY), block(1))
    np.testing.assert_array_equal(store.get(OTHER), block(2))
    assert store.stats()["lost_cas"] == 1
    store.check()


# ------------------------------------------------------------------------------ a put in the middle of others


@pytest.mark.parametrize("when_full", ["evict", "refuse"])
def test_making_room_does_not_disturb_the_look_up(alone: Open, when_full: str) -> None:
    """A put that keeps looks first; the arena, which then looks at its own words, must not change what was seen."""
    store = alone(index_blocks=64, when_full=when_full)
    for number in range(200):
        if when_full == "refuse" and number >= 8:
            [(slot, word)] = words_of(store, number - 8)  # a stranger makes room, and leaves a hint
            home, bucket = int(store._fabric.scratch.words[c.HOME]), int(store._fabric.scratch.words[c.BUCKET])
            store._fabric.remove(store._fabric.ctx, store._fabric.scratch.address, home, bucket, slot, word)
            store._fabric.gone[word & MAX_PAGES - 1] = 1
        assert store.put(number, block(number), exists="keep").stored
        np.testing.assert_array_equal(store.get(number), block(number))
    store.check()


@pytest.mark.parametrize("many", [False, True])
def test_a_replace_of_the_same_size_shows_its_own_shape(alone: Open, many: bool) -> None:
    """The size of a block is known before it is read: what is read then has its own type and shape."""
    store = alone()
    old, new = block(1), block(2).view(np.float32).reshape(2, -1)
    store.put(KEY, old)
    fabric, left = store._fabric, [1]

    def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
        def replaced_before(*args: Any) -> Any:
            if left:
                left.pop()
                elsewhere(lambda: store.put(KEY, new))
            return call(*args)

        return replaced_before

    if many:
        fabric.get_many = interrupted(fabric.get_many)
        [got] = store.get_many([KEY])
    else:
        store._reader.into = interrupted(store._reader.into)  # type: ignore[method-assign]
        got = store.get(KEY)
    assert left == []
    assert (got.dtype, got.shape) == (new.dtype, new.shape)
    np.testing.assert_array_equal(got, new)


def test_every_put_takes_a_new_cell_and_generation(alone: Open) -> None:
    store = alone()
    seen = set()
    for number in range(50):
        store.put(KEY, block(number))
        [(_, word)] = words_of(store, KEY)
        assert word not in seen
        seen.add(word)
        assert len(store._dram.allocator.live()) == 1


def test_a_look_up_that_slept_is_made_again(alone: Open) -> None:
    """A CAS that goes by a look of long ago could meet a word that has come round through all generations."""
    store = alone()
    store.put(KEY, block(1))
    finds: list[int] = []
    find = store._fabric.find
    store._fabric.find = lambda *args: finds.append(1) or find(*args)  # type: ignore[func-returns-value]
    store._writer._attempt = -1.0  # every look was too long ago
    assert store.put(OTHER, block(2), exists="keep").stored
    assert len(finds) == 2


def test_a_delete_whose_look_up_slept_looks_again(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CAS, too, could meet a word that has come round through all generations."""
    store = alone()
    store.put(KEY, block(1))
    finds: list[int] = []
    find, now = store._fabric.find, [0.0]

    def slow_find(*args: Any) -> int:
        finds.append(1)
        now[0] += 1000.0 if len(finds) == 1 else 0.0  # asleep between the first look and its CAS
        return int(find(*args))

    monkeypatch.setattr(store._fabric, "find", slow_find)
    monkeypatch.setattr("cascade_mpi.writer.time.monotonic", lambda: now[0])
    assert store.delete(KEY)
    assert len(finds) == 3  # too late, in time, none left


def test_a_pin_that_two_release_at_once_is_cleared_once(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would clear the slot of whoever has taken it meanwhile, and unprotect its view."""
    store = alone()
    store.put(KEY, block(1))
    store.put(OTHER, block(2))
    pin = store.pin(KEY)
    assert pin is not None
    unpin, cleared = store._fabric.unpin, []

    def slow_unpin(*args: int) -> int:
        cleared.append(args[-1])
        if len(cleared) == 1:
            elsewhere(lambda: (pin.release(), True)[1])
        return int(unpin(*args))

    monkeypatch.setattr(store._fabric, "unpin", slow_unpin)
    pin.release()
    assert cleared == [pin.slot]
    view = store.view(OTHER)
    assert view is not None
    pin.release()
    assert len(cleared) == 1
    assert np.count_nonzero(store._fabric.pin_words) == 1
    view.release()
