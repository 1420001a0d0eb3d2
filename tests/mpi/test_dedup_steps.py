"""The rules of puts by content, each at the moment that matters, on one rank.

Covers what `bench mutations` breaks of aliases outside the kernels: the look at the content behind the alias, what is
then put in its place, names whose content is gone, protection. Every store here is this rank's alone; a second thread
plays the other rank. Does not cover races of many ranks (`test_dedup`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from patterns import Watched
from test_mutation_targets import elsewhere, once
from test_protection_steps import before

from cascade_mpi.errors import KeyExistsError, ProtocolError, StoreFullError
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import FLAG_CONTENT, HARD, is_alias, unpack_word
from cascade_mpi.mover import Moved
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store
from cascade_mpi.values import source

pytestmark = pytest.mark.alone

PAGE = 4096
SPACE = Namespace("contents", identity="content")
Open = Callable[..., Store]


@pytest.fixture
def alone(open_store: Open) -> Open:
    """A store of this rank: 16 pages, nothing evicted unless a test says so, rests that are over at once."""

    def make(**settings: Any) -> Store:
        defaults = {"dram_bytes": 16 * PAGE, "when_full": "refuse", "rest_ms": 0.1, "namespace": SPACE}
        return open_store(MPI.COMM_SELF, **(defaults | settings))

    return make


def value(number: int, pages: int = 2) -> np.ndarray:
    return np.full(pages * PAGE - 5, number, np.uint8)


def is_read(store: Store, key: Any, expected: np.ndarray) -> bool:
    found = store.get(key)
    return found is not None and np.array_equal(found, expected)


def words_of(store: Store, key: Any) -> list[int]:
    store._writer.find(*store._words(key, None))
    return [word for _, word in store._writer.found()]


def content_of(store: Store, data: np.ndarray) -> tuple[int, int]:
    return store._dedup.key_of(source(data), store._space(None))


def evict(store: Store, words: tuple[int, int]) -> None:
    """Take a block out as its manager does that needs the room."""
    assert store._writer.find(*words) == 1
    first = unpack_word(store._writer.found()[0][1]).page
    store._dram._evict_one(first)


def at_publish(store: Store, action: Callable[[], None], skip: int = 0) -> None:
    """Let another thread act between a put's look-up and its compare-and-swap, once, after `skip` others."""
    acts = [lambda: None] * skip + [action]

    def pause(_: str) -> None:
        if acts:
            elsewhere(acts.pop(0))

    store._writer.pause = pause


def act(store: Store, how: str) -> None:
    """What another rank does to the name a."""
    store._writer.published = None
    words = store._words("a", None)
    if how == "delete":
        assert store._writer.delete(*words)
    else:
        assert store._writer.put(*words, store._space(None), source(value(2)), prefix=False, exists="replace")


# ------------------------------------------------------------------------------------------- the second look


def test_a_content_evicted_before_its_name_is_published_is_stored_again(alone: Open) -> None:
    store = alone()
    assert store.put("a", value(1))
    at_publish(store, lambda: evict(store, content_of(store, value(1))))  # of the alias of b
    result = store.put("b", value(1))
    assert (result.stored, result.deduplicated, result.bytes) == (True, False, value(1).nbytes)
    assert is_read(store, "b", value(1))
    assert not is_alias(words_of(store, "b")[0])
    assert store.get("a") is None  # evicted, as may happen
    assert store.stats()["dedup"]["stored_again"] == 1
    store.check()


def test_a_content_evicted_behind_the_alias_is_stored_again(alone: Open) -> None:
    store = alone()
    store._dedup.pause = once(lambda: evict(store, content_of(store, value(1))))
    assert not store.put("a", value(1)).deduplicated
    assert is_read(store, "a", value(1))
    assert store.stats()["dedup"]["stored_again"] == 1
    store.check()


@pytest.mark.parametrize("how", ["delete", "replace"])
def test_what_came_after_the_alias_is_not_undone(alone: Open, how: str) -> None:
    """The full block takes the place of the own alias, of nothing else."""
    store = alone()

    def other() -> None:
        evict(store, content_of(store, value(1)))
        act(store, how)

    store._dedup.pause = once(other)
    assert store.put("a", value(1))
    if how == "delete":
        assert store.get("a") is None
    else:
        assert is_read(store, "a", value(2))
    store.check()


def test_a_put_that_finds_no_room_for_the_full_block_leaves_no_name(alone: Open) -> None:
    store = alone(dram_bytes=4 * PAGE)

    def fill() -> None:
        evict(store, content_of(store, value(1)))
        assert store.put("other", np.zeros(PAGE, np.uint8), namespace="")
        assert store.put("another", np.zeros(2 * PAGE, np.uint8), namespace="")

    store._dedup.pause = once(fill)
    result = store.put("a", value(1))
    assert result.refused and "needs 2 contiguous pages" in result.reason
    assert not words_of(store, "a")
    store.check()


def move(store: Store, key: Any) -> None:
    """Move the cell of a key as its manager does out of memory that another rank wants back."""
    pool, old = store._pool, words_of(store, key)[0]
    with pool.lock:
        assert store._mover.move(pool.own, unpack_word(old).page, pool.take) is Moved.YES
    assert words_of(store, key)[0] != old


def test_an_alias_that_moved_is_replaced_where_it_is(alone: Open) -> None:
    store = alone()

    def other() -> None:
        evict(store, content_of(store, value(1)))
        move(store, "a")

    store._dedup.pause = once(other)
    assert store.put("a", value(1)).stored
    assert is_read(store, "a", value(1))
    assert not is_alias(words_of(store, "a")[0])
    store.check()


def test_an_alias_that_moved_is_taken_out_where_it_is(alone: Open) -> None:
    store = alone(dram_bytes=4 * PAGE)

    def fill() -> None:
        evict(store, content_of(store, value(1)))
        move(store, "a")
        while store.put(f"other {store.stats()['blocks']}", np.zeros(PAGE, np.uint8), namespace=""):
            pass

    store._dedup.pause = once(fill)
    assert store.put("a", value(1)).refused
    assert not words_of(store, "a")
    store.check()


def test_an_alias_that_moves_gets_no_checksum(alone: Open) -> None:
    store = alone(checksum="later")
    assert store.put("a", value(1))
    move(store, "a")
    store.check()  # computes what is left for later, and looks at the alias
    assert is_read(store, "a", value(1))


def test_a_content_that_moves_is_found_by_its_names(alone: Open) -> None:
    store = alone()
    assert store.put("a", value(1)) and store.put("b", value(1)).deduplicated
    with store._pool.lock:
        assert store._writer.find(*content_of(store, value(1))) == 1
        first = unpack_word(store._writer.found()[0][1]).page
        assert store._mover.move(store._pool.own, first, store._pool.take) is Moved.YES
    assert is_read(store, "a", value(1)) and is_read(store, "b", value(1))
    assert store.put("c", value(1)).deduplicated
    store.check()


def test_an_alias_that_is_refused_stores_no_content(alone: Open) -> None:
    store = alone(dram_bytes=2 * PAGE)
    assert store.put("a", value(1, 1), namespace="")
    assert store.put("a", value(1, 1)).refused  # a page for the alias, none for the content
    assert store.put("b", np.zeros(PAGE, np.uint8), namespace="")
    store.check()
    assert store.stats()["blocks"] == 2


# ------------------------------------------------------------------------------ names whose content is gone


def test_a_put_that_would_keep_stores_what_is_absent(alone: Open) -> None:
    store = alone()
    assert store.put("a", value(1))
    assert store.put("a", value(2), exists="keep").kept
    with pytest.raises(KeyExistsError):
        store.put("a", value(2), exists="error")
    evict(store, content_of(store, value(1)))
    result = store.put("a", value(2), exists="keep")
    assert result.stored and not result.kept
    assert is_read(store, "a", value(2))


def test_a_name_found_hollow_is_swept(alone: Open) -> None:
    store = alone()
    assert store.put("a", value(1))
    assert store.put("b", value(2))
    evict(store, content_of(store, value(1)))
    assert store.get("a") is None  # leaves the hint
    store._dram.sweep_hinted()
    assert not words_of(store, "a")
    assert is_read(store, "b", value(2))


def test_a_hint_is_no_permission(alone: Open) -> None:
    store = alone()
    assert store.put("a", value(1))
    store._fabric.gone[:] = 1
    store._dram.sweep_hinted()
    assert is_read(store, "a", value(1))


def test_a_block_that_is_evicted_is_stored_by_the_next_put(alone: Open) -> None:
    store = alone()
    for _ in range(3):
        result = store.put("a", value(1))
        assert result.stored and not result.deduplicated
        assert is_read(store, "a", value(1))
        evict(store, content_of(store, value(1)))
    store.check()


# -------------------------------------------------------------------------------------------------- collect


def test_contents_go_when_nobody_names_them(alone: Open) -> None:
    store = alone()
    for name in "abc":
        assert store.put(name, value(1))
    assert store.put("d", value(2))
    store.delete("a")
    assert store.collect() == 0
    store.put("b", value(2))
    store.delete("d")
    assert store.collect() == 0
    assert is_read(store, "b", value(2)) and is_read(store, "c", value(1))
    store.delete("c")
    assert store.collect() == 1
    assert is_read(store, "b", value(2))
    store.delete("b")
    assert store.collect() == 1
    assert store.stats()["arena"]["live"] == 0


def test_nobody_puts_by_alias_while_contents_are_collected(alone: Open) -> None:
    """A put that has found the content, and not named it yet, ends before the names are counted."""
    store = alone()
    assert store.put("a", value(1))
    store.delete("a")
    removed: list[int] = []
    thread = threading.Thread(target=lambda: removed.append(store.collect()))
    lock = store._dedup.lock = Watched(store._dedup.lock)  # type: ignore[assignment]

    def pause(_: str) -> None:
        store._writer.pause = None
        lock.let(thread)

    store._writer.pause = pause
    assert store.put("b", value(1)).deduplicated
    thread.join()
    assert removed == [0]
    assert is_read(store, "b", value(1))


# ----------------------------------------------------------------------------------------------- protection


def hard(store: Store, words: tuple[int, int]) -> bool:
    assert store._writer.find(*words) == 1
    return bool(store._writer.found()[0][1] & HARD)


def both(store: Store, name: str, data: np.ndarray) -> tuple[bool, bool]:
    return hard(store, store._words(name, None)), hard(store, content_of(store, data))


@pytest.mark.parametrize("stored", [False, True], ids=["new", "hit"])
def test_a_protected_name_protects_its_content(alone: Open, stored: bool) -> None:
    store = alone()
    if stored:
        assert store.put("first", value(1))
    result = store.put("a", value(1), is_prefix=True)
    assert result.protected and result.deduplicated == stored
    assert both(store, "a", value(1)) == (True, True)
    store._dram._evict_one(unpack_word(words_of(store, "a")[0]).page)
    evict(store, content_of(store, value(1)))
    assert is_read(store, "a", value(1))
    store.check()


def test_a_content_that_is_soft_behind_a_protected_alias_is_protected_again(alone: Open) -> None:
    """Of two that are put at once, one of them protected, the other may have stayed."""
    store = alone()
    store._dedup.pause = once(lambda: store._protection.unprotect(content_of(store, value(1))))
    assert store.put("a", value(1), is_prefix=True).protected
    assert both(store, "a", value(1)) == (True, True)
    store.check()


def test_a_content_that_comes_and_goes_is_stored_under_its_name(alone: Open) -> None:
    store = alone()
    assert store.put("first", value(1))
    honest = store._protection.protect
    store._protection.protect = lambda keys: [False for _ in keys]  # evicted between the look and the protection
    result = store.put("a", value(1), is_prefix=True)
    store._protection.protect = honest
    assert result.stored and result.protected and not result.deduplicated
    assert is_read(store, "a", value(1))
    assert not is_alias(words_of(store, "a")[0])
    store.check()


def test_protect_reaches_the_content_and_unprotect_waits_for_the_last_name(alone: Open) -> None:
    store = alone()
    for name in "ab":
        assert store.put(name, value(1))
    assert store.protect(["a", "b"]).all()
    assert both(store, "a", value(1)) == both(store, "b", value(1)) == (True, True)
    assert store.unprotect("a").all()
    assert both(store, "a", value(1)) == (False, True)  # b wants it
    assert store.collect() == 0
    assert both(store, "b", value(1)) == (True, True)
    assert store.unprotect("b").all()
    assert store.collect() == 0
    assert both(store, "b", value(1)) == (False, False)
    store.check()


def test_what_is_protected_counts_once(alone: Open) -> None:
    nbytes = value(1).nbytes
    store = alone(protected_bytes=nbytes, protect_depth=1)
    assert store.put("a", value(1), is_prefix=True).protected
    assert store.put("b", value(1), is_prefix=True).protected
    with pytest.raises(StoreFullError, match="raise it, or unprotect"):
        store.put("c", value(2), is_prefix=True)
    assert store.get("c") is None
    result = store.put("c", value(2), depth=0)  # a rule is a wish
    assert result.stored and not result.protected
    with pytest.raises(StoreFullError):
        store.protect("c")
    assert both(store, "c", value(2)) == (False, False)
    store.check()
    assert store.delete("a") and store.delete("b")
    assert store.collect() == 1
    assert store.protect("c").all()
    store.check()


def test_a_name_that_changes_while_it_is_protected_is_protected_as_it_is_then(alone: Open) -> None:
    store = alone()
    assert store.put("a", value(1))
    before(store, "swap", lambda: store.put("a", value(2)))  # as the first content becomes hard
    assert store._protection.protect([store._words("a", None)]) == [True]
    assert both(store, "a", value(2)) == (True, True)
    store.check()


def test_a_name_without_content_cannot_be_protected(alone: Open) -> None:
    store = alone()
    assert store.put("a", value(1))
    evict(store, content_of(store, value(1)))
    assert not store.protect("a").any()


def test_no_session_protects_a_name_while_contents_are_collected(alone: Open) -> None:
    """It would find the content hard, as a name was protected, and collect would let it go behind the name's back."""
    store = alone(protect_shared=2)
    assert store.put("a", value(1)) and store.put("b", value(1), is_prefix=True)
    assert store.unprotect("b").all()
    assert both(store, "a", value(1)) == (False, True)
    store.get_many(["a"], session="one")
    shared, lock = store._shared, Watched(store._dedup.lock)
    shared._protecting = store._dedup.lock = lock  # type: ignore[assignment]
    reader = threading.Thread(target=lambda: store.get_many(["a"], session="two"))
    ask = store._dedup._ask

    def asked(*given: Any) -> Any:
        """Between the count of the names and what follows from it."""
        found = ask(*given)
        if not reader.ident:
            lock.came.clear()
            lock.let(reader)
        return found

    store._dedup._ask = asked  # type: ignore[method-assign]
    assert store.collect() == 0
    reader.join()
    assert shared.protected == 1
    assert both(store, "a", value(1)) == (True, True)
    assert is_read(store, "b", value(1))
    store.check()


def test_sessions_put_and_read_by_content_while_contents_are_collected(alone: Open) -> None:
    """Two threads and this one: nobody waits for ever, a protected name has its content, and it is not evicted."""
    store = alone(protect_shared=2, when_full="evict", dram_bytes=64 * PAGE)
    names, failed = [f"name {number}" for number in range(8)], list[str]()
    contents = [value(number) for number in range(4)]

    def use(which: int) -> None:
        chance = random.Random(which)
        for step in range(60):
            name = chance.choice(names)
            number = names.index(name) % 4
            session = chance.randrange(4)
            if chance.random() < 0.5:
                [result] = store.put_many([name], [contents[number]], session=session, exists="keep")
                if not (result.stored or result.kept):
                    failed.append(result.reason)
            else:
                [got] = store.get_many([name], session=session)
                if got is not None and not np.array_equal(got, contents[number]):
                    failed.append(f"{name} has the bytes of {got[0]}")
            if step % 10 == 0:
                store.unprotect(name)

    users = [threading.Thread(target=use, args=(which,)) for which in range(2)]
    for user in users:
        user.start()
    while any(user.is_alive() for user in users):
        store.collect()
    for user in users:
        user.join()
    assert not failed
    assert store.stats()["shared"]["protected"] > 5
    hard = [each.key for each in store.scan() if each.protected]
    for _ in range(40):
        assert store.put("filler", value(9, 8), namespace="").stored
    store.check()
    assert store.contains_many(hard).all()


# ------------------------------------------------------------------------------------------------- behind


def test_behind_a_put_its_block_becomes_an_alias(alone: Open) -> None:
    store = alone(dedup="behind")
    for name in "ab":
        result = store.put(name, value(1), ttl=1000)
        assert result.stored and not result.deduplicated
    for _ in range(3):
        store.progress()
    assert is_alias(words_of(store, "a")[0]) and is_alias(words_of(store, "b")[0])
    stats = store.stats()
    assert (stats["dedup_hits"], stats["dedup_saved_bytes"], stats["puts"]) == (1, value(1).nbytes, 2)
    assert stats["bytes_put"] == 2 * value(1).nbytes
    assert is_read(store, "a", value(1)) and is_read(store, "b", value(1))
    assert all(each.ttl is not None for each in store.scan(SPACE))
    store.check()
    assert store.report()["dedup"]["mode"] == "behind"


@pytest.mark.parametrize("how", ["delete", "replace"])
def test_behind_a_put_nothing_newer_is_lost(alone: Open, how: str) -> None:
    """The block is named by content after its name was given to something else."""
    store = alone(dedup="behind")
    assert store.put("a", value(1))
    at_publish(store, lambda: act(store, how), skip=1)  # the content's is the first, the alias's the second
    store.progress()
    if how == "delete":
        assert store.get("a") is None
    else:
        assert is_read(store, "a", value(2))


def test_behind_a_put_nothing_is_evicted(alone: Open) -> None:
    store = alone(dedup="behind", when_full="evict", evict_ahead=0.0, dram_bytes=6 * PAGE)
    assert store.put("other", value(9, 4), namespace="") and store.put("a", value(1))
    for _ in range(3):
        store.progress()
    assert store.stats()["evicted"] == 0
    assert store.stats()["dedup"]["skipped"] == 1
    assert is_read(store, "a", value(1))


def test_deferred_puts_are_named_by_content_afterwards(alone: Open) -> None:
    store = alone(publish="deferred")
    for name in "ab":
        assert store.put(name, value(1))
    assert store.publish() == 2
    for _ in range(3):
        store.progress()
    assert store.stats()["dedup_hits"] == 1
    assert is_read(store, "a", value(1)) and is_read(store, "b", value(1))


# ------------------------------------------------------------------------------------------------- check()


def damage_key(store: Store, record: np.ndarray, words: list[int]) -> None:
    record["content_lo"] = record["key_lo"]
    record["content_hi"] = record["key_hi"]


def damage_flags(store: Store, record: np.ndarray, words: list[int]) -> None:
    record["flags"] = 0


def damage_type(store: Store, record: np.ndarray, words: list[int]) -> None:
    record["dim0"] = 5


def damage_content(store: Store, record: np.ndarray, words: list[int]) -> None:
    cells = np.flatnonzero(store._dram.records["flags"] & FLAG_CONTENT)
    store._fabric.data.memory[store._fabric.arena_at + int(cells[0]) * PAGE] ^= 1
    store._dram.records["flags"][cells[0]] &= ~np.uint16(1)


def damage_hard(store: Store, record: np.ndarray, words: list[int]) -> None:
    store.protect("a")
    content = content_of(store, value(1))
    store._protection.unprotect(content)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_key, "is an alias of 0 bytes"), (damage_flags, "has tier alias, its descriptor flags 0"),
        (damage_type, "is an alias of dim0 5"), (damage_content, "does not have the key that it stands under"),
        (damage_hard, "is an alias that is protected, its content"),
    ],
)  # fmt: skip
def test_check_finds_damage(alone: Open, damage: Callable[..., None], text: str) -> None:
    store = alone()
    assert store.put("a", value(1))
    store.check()
    words = words_of(store, "a")
    first = unpack_word(words[0]).page
    damage(store, store._dram.records[first : first + 1], words)
    with pytest.raises(ProtocolError, match=text):
        store.check()


def test_reads_without_aliases_count_none(alone: Open) -> None:
    store = alone(namespace="")
    assert store.put("a", value(1)) and store.put("b", value(1))
    assert is_read(store, "a", value(1))
    stats = store.stats()
    assert stats["dedup"] == {
        "stored_again": 0, "skipped": 0, "waiting": 0, "contents": 0, "aliases": 0, "alias_reads": 0
    }  # fmt: skip
    assert stats["blocks"] == 2
    assert elsewhere(lambda: store._fabric.scratch.signed[c.FOUND]) == 0
