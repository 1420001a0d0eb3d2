"""The rules of the hard bit that anybody may toggle, each at the moment that matters, on one rank.

Covers what `bench mutations` breaks of protection and expiry outside the kernels. Every store here is this rank's
alone, with all keys in one bucket; a second thread plays the other rank. Does not cover races of many ranks
(`test_protection`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_mutation_targets import KEY, OTHER, PAGE, THIRD, alone, block, elsewhere, make_double, once, page_of, words_of

from cascade_mpi.kernels import context as c
from cascade_mpi.layout import HARD, HARD_SHIFT
from cascade_mpi.store import Store

Open = Callable[..., Store]
__all__ = ["alone"]  # the fixture
pytestmark = pytest.mark.alone


def before(store: Store, name: str, action: Callable[[], Any], skip: int = 0) -> None:
    """Let another thread act before a call on the windows, once, after `skip` calls."""
    call, left = getattr(store._fabric, name), [skip]

    def interrupted(*args: Any) -> Any:
        if left and left[0] == 0:
            left.clear()
            elsewhere(action)
        elif left:
            left[0] -= 1
        return call(*args)

    setattr(store._fabric, name, interrupted)


def is_live(store: Store, first: int) -> bool:
    return bool(store._dram.allocator.state(first) == "live")


def hard_in_index(store: Store, key: int) -> bool:
    [(_, word)] = words_of(store, key)
    return bool(word >> HARD_SHIFT & 1)


def swap(store: Store, slot: int, word: int) -> bool:
    """Toggle the hard bit of a word as a rank does whose hint has not come yet."""
    fabric, s = store._fabric, store._fabric.scratch
    return fabric.swap(fabric.ctx, s.address, 0, 0, slot, word, word ^ HARD) == 1


def toggle_unseen(store: Store, key: int) -> None:
    [(slot, word)] = words_of(store, key)
    assert swap(store, slot, word)


def later(store: Store, seconds: int) -> None:
    """Let the rank's clock be so many seconds further on."""
    store._fabric.context[c.EPOCH] -= seconds


# ------------------------------------------------------------------------------------------- the manager


def test_an_eviction_spares_a_block_that_was_protected_meanwhile(alone: Open) -> None:
    """Between the manager's look and its compare-and-swap: that one fails, and the block lives on."""
    store = alone()
    store.put(KEY, block(1))
    first = page_of(store, KEY)
    before(store, "remove", lambda: store.protect(KEY))
    assert store._dram._evict_one(first) is None
    assert is_live(store, first)
    assert hard_in_index(store, KEY)
    assert int(store._dram.words[first]) >> HARD_SHIFT & 1  # not a victim again
    assert (store._dram.evicted, store._dram.spared) == (0, 1)
    np.testing.assert_array_equal(store.get(KEY), block(1))
    store.check()


def test_an_eviction_spares_a_block_of_whose_protection_it_has_not_heard(alone: Open) -> None:
    store = alone(when_full="evict")
    store.put(KEY, block(1))
    toggle_unseen(store, KEY)
    for number in range(20):
        assert store.put(100 + number, block(number))
    np.testing.assert_array_equal(store.get(KEY), block(1))
    assert store.stats()["spared"] == 1
    store.check()


def test_a_block_that_is_unprotected_can_be_evicted(alone: Open) -> None:
    store = alone(when_full="evict")
    for number in range(8):
        store.put(100 + number, block(number), is_prefix=True)
    assert store.put(KEY, block(1)).refused
    assert store.unprotect(103).all()
    assert store.put(KEY, block(1)).stored
    assert [store.contains(100 + number) for number in range(8)] == [number != 3 for number in range(8)]
    store.check()


def test_protected_blocks_alone_do_not_make_others_go(alone: Open) -> None:
    """Room for the block there is not even without what may go: nothing is evicted."""
    store = alone(when_full="evict")
    for number in range(8):
        store.put(100 + number, block(number), is_prefix=number % 2 == 0)
    assert store.put(KEY, block(1, 2 * PAGE)).refused
    assert store.stats()["evicted"] == 0
    assert store.stats()["blocks"] == 8
    store.check()


@pytest.mark.parametrize("how", ["clear", "bump", "expire", "delete_all"])
def test_what_must_go_goes_although_it_is_protected_meanwhile(alone: Open, how: str) -> None:
    store = alone(protected_bytes=PAGE)
    store.put(KEY, block(1), ttl=100)
    first = page_of(store, KEY)
    [(slot, word)] = words_of(store, KEY)
    before(store, "remove", lambda: store._protected.reserve(0, PAGE) or swap(store, slot, word))
    if how == "clear":
        store.clear()
    elif how == "delete_all":
        assert store.delete_all() == 1
    elif how == "bump":
        store.bump_epoch()
    else:
        later(store, 1000)
        store.progress()
    assert int(store._fabric.index_words[slot]) == 0
    assert not is_live(store, first)
    assert store._protected.counted() == 0
    store.check()


def test_a_quota_spares_blocks_of_whose_protection_the_manager_has_not_heard(alone: Open) -> None:
    store = alone(when_full="evict", evict_ahead=0)
    for number in (KEY, OTHER, THIRD):
        store.put(number, block(1))
    toggle_unseen(store, KEY)
    assert store._dram.make_room_in(0, 0, PAGE)
    assert [store.get(number) is not None for number in (KEY, OTHER, THIRD)] == [True, False, True]
    toggle_unseen(store, THIRD)
    assert not store._dram.make_room_in(0, 0, PAGE)  # and comes to an end
    assert [store.get(number) is not None for number in (KEY, THIRD)] == [True, True]
    assert store._dram.spared == 2
    assert not store._dram.make_room_in(0, 0, PAGE)  # the table says it now: neither was looked at again
    assert store._dram.spared == 2
    store.check()


def test_a_sweep_keeps_a_block_whose_hard_bit_was_toggled(alone: Open) -> None:
    store = alone()
    store.put(KEY, block(1))
    first = page_of(store, KEY)
    assert store.protect(KEY).all()
    assert store._fabric.gone[first] == 1  # the hint
    assert store._dram.sweep() == 0
    assert is_live(store, first)
    assert store._dram.protected() == (1, PAGE)
    assert store.unprotect(KEY).all()
    assert store._dram.sweep() == 0
    assert store._dram.protected() == (0, 0)
    np.testing.assert_array_equal(store.get(KEY), block(1))
    store.check()


@pytest.mark.parametrize("how", ["replace", "delete"])
def test_a_toggled_word_that_left_gives_its_cell_back_at_once(alone: Open, how: str) -> None:
    """The manager's table has the word with the other hard bit."""
    store = alone()
    store.put(KEY, block(1))
    first = page_of(store, KEY)
    toggle_unseen(store, KEY)
    assert store.put(KEY, block(2)) if how == "replace" else store.delete(KEY)
    assert not is_live(store, first)
    assert store._dram.words[first] == 0
    store.check()


def test_a_checksum_that_is_made_later_is_made_of_a_toggled_block(alone: Open) -> None:
    store = alone(checksum="later")
    store.put(KEY, block(1))
    store.protect(KEY)
    store._dram.sweep()
    assert store._dram.compute_checksums() == 1
    assert store.check()["checksums"] == 1


# ------------------------------------------------------------------------------------- protect, unprotect


@pytest.mark.parametrize("hard", [False, True])
def test_protect_looks_again_when_its_swap_finds_another_word(alone: Open, hard: bool) -> None:
    """A put between look-up and swap makes another block: that one is protected, or let go."""
    store = alone(protected_bytes=2 * PAGE)
    store.put(KEY, block(1), is_prefix=hard)
    before(store, "swap", lambda: store.put(KEY, block(2), is_prefix=hard))
    assert (store.unprotect if hard else store.protect)(KEY).all()
    assert hard_in_index(store, KEY) != hard
    np.testing.assert_array_equal(store.get(KEY), block(2))
    store._dram.sweep()
    assert store._dram.protected()[0] == int(not hard)
    store.check()


def test_protect_of_what_is_deleted_meanwhile_says_so(alone: Open) -> None:
    store = alone(protected_bytes=PAGE)
    store.put(KEY, block(1))
    before(store, "swap", lambda: store.delete(KEY))
    assert store.protect(KEY).tolist() == [False]
    assert store._protected.counted() == 0
    store.check()


def test_protect_counts_before_it_sets_the_bit_and_unprotect_after(alone: Open) -> None:
    store = alone(protected_bytes=PAGE)
    store.put(KEY, block(1))
    swap, counted = store._fabric.swap, []

    def watched(*args: Any) -> int:
        counted.append(store._protected.counted())
        done = int(swap(*args))
        counted.append(store._protected.counted())
        return done

    store._fabric.swap = watched
    store.protect(KEY)
    store.unprotect(KEY)
    assert counted == [PAGE] * 4
    assert store._protected.counted() == 0


def test_a_block_that_grew_meanwhile_is_counted_as_it_is(alone: Open) -> None:
    store = alone(protected_bytes=3 * PAGE)
    store.put(KEY, block(1))
    before(store, "swap", lambda: store.put(KEY, block(2, 2 * PAGE)))
    assert store.protect(KEY).all()
    assert store._protected.counted() == 2 * PAGE
    store.check()


def test_a_look_up_that_slept_is_made_again_before_the_swap(alone: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word could have come round through all generations, and name another block."""
    store = alone()
    store.put(KEY, block(1))
    finds: list[int] = []
    find, now = store._fabric.find, [0.0]

    def slow_find(*args: Any) -> int:
        finds.append(1)
        now[0] += 1000.0 if len(finds) == 1 else 0.0
        return int(find(*args))

    monkeypatch.setattr(store._fabric, "find", slow_find)
    monkeypatch.setattr("cascade_mpi.protection.time.monotonic", lambda: now[0])
    assert store.protect(KEY).all()
    assert len(finds) == 2


def test_only_the_word_that_counts_is_protected(alone: Open) -> None:
    store = alone(protected_bytes=8 * PAGE)
    make_double(store, low=2, high=1)
    assert store.protect(KEY).all()
    (_, low), (_, high) = words_of(store, KEY)
    assert low & HARD
    assert not high & HARD
    assert store._protected.counted() == PAGE
    assert store.delete(KEY)
    assert store._protected.counted() == 0
    store.check()


def test_a_loser_of_two_puts_gives_its_count_back(alone: Open) -> None:
    """Two protected puts of one key in two slots: the word that is taken away was a hard one."""
    store = alone(protected_bytes=2 * PAGE)
    store.put(OTHER, block(0))

    def other_rank() -> bool:
        store.delete(OTHER)
        return bool(store.put(KEY, block(2), is_prefix=True))

    store._writer.pause = once(other_rank)
    assert store.put(KEY, block(1), is_prefix=True)
    assert len(words_of(store, KEY)) == 1
    assert store._protected.counted() == PAGE
    store.check()


def test_a_full_bucket_never_gives_a_protected_word_away(alone: Open) -> None:
    """The word over which a put would write has become hard meanwhile: its compare-and-swap fails."""
    store = alone(dram_bytes=32 * PAGE)
    for number in range(16):
        store.put(100 + number, block(number))
    store._writer.pause = once(lambda: bool(store.protect(range(100, 116)).all()))
    assert store.put(KEY, block(1)).refused
    assert all(store.contains(100 + number) for number in range(16))
    store.check()


# ------------------------------------------------------------------------------------------------ expiry


@pytest.mark.parametrize("how", ["keep", "error"])
def test_an_expired_block_does_not_keep_a_put_out(alone: Open, how: Any) -> None:
    store = alone()
    store.put(KEY, block(1), ttl=100)
    assert store.put(KEY, block(2), exists="keep").kept
    later(store, 1000)
    store._dram._expiring.clear()  # the manager has not come to it yet
    assert store.put(KEY, block(3), exists=how).stored
    np.testing.assert_array_equal(store.get(KEY), block(3))
    store.check()


def test_nothing_is_done_with_an_expired_block(alone: Open) -> None:
    store = alone(protected_bytes=4 * PAGE)
    store.put(KEY, block(1), ttl=100, is_prefix=True)
    store.put(OTHER, block(1), ttl=100)
    later(store, 1000)
    assert store.protect([KEY, OTHER]).tolist() == [False, False]
    assert store.unprotect([KEY, OTHER]).tolist() == [False, False]
    assert list(store.scan()) == []
    assert store.delete_many([KEY, OTHER]).tolist() == [False, False]
    assert words_of(store, KEY) == []
    assert store._protected.counted() == 0
    store.check()


def test_the_manager_takes_expired_blocks_out_a_few_at_a_time(alone: Open) -> None:
    store = alone(dram_bytes=128 * PAGE, index_blocks=128)
    for number in range(100):
        store.put(number, block(number), ttl=100 + number % 2 * 10_000, is_prefix=True)
    later(store, 1000)
    left = []
    for _ in range(3):
        store.progress()
        left.append(store.stats()["blocks"])
    assert left == [68, 50, 50]
    assert store.stats()["expired"] == 50
    assert store.get(1) is not None
    store.check()


def test_expired_blocks_make_room(alone: Open) -> None:
    store = alone()
    for number in range(8):
        assert store.put(number, block(number), ttl=100)
    assert store.put(KEY, block(1)).refused
    later(store, 1000)
    assert store.put(KEY, block(1, 8 * PAGE)).stored
    store.check()


def test_a_replaced_block_does_not_expire_with_the_old_one(alone: Open) -> None:
    store = alone()
    store.put(KEY, block(1), ttl=100)
    store.put(KEY, block(2))
    store.put(OTHER, block(1))
    store.put(OTHER, block(2), ttl=100)
    for number in range(3000):  # the heap of expiries does not grow with the puts
        store.put(THIRD, block(number % 251), ttl=10_000)
    assert len(store._dram._expiring) < 2000
    later(store, 1000)
    store.progress()
    np.testing.assert_array_equal(store.get(KEY), block(2))
    assert store.get(OTHER) is None
    assert store.get(THIRD) is not None
    store.check()
