"""Reads through aliases, compiled and through mpi4py, on emulated ranks: results, order, races, accounting.

Covers names of contents on memory that is mapped and that is not. Does not cover who puts them (`test_dedup`).
"""

from __future__ import annotations

import numpy as np
import pytest
from memory_store import Key, MemoryStore, Placed, key_at
from test_onesided import calls, pattern, read, set_clock, store

from cascade_mpi import layout
from cascade_mpi.kernels import context as c
from cascade_mpi.onesided import DESCRIBE, RANGE, WHOLE

__all__ = ["calls", "store"]  # the fixtures
each_read = pytest.mark.parametrize("how", ["get", "get_many"])


def put_content(store: MemoryStore, payload: bytes, skip: int = 0, page: int = 4, rank: int = 1) -> Placed:
    placed = store.put(key_at(store, home=2, skip=skip), rank, page, payload)
    store.records(rank)[page]["flags"] |= layout.FLAG_CONTENT | layout.FLAG_FIXED
    return placed


def put_alias(
    store: MemoryStore, content: Key, skip: int = 0, page: int = 1, rank: int = 2, slot: int | None = None, **more: int
) -> Placed:
    """A name at home 1, in a cell of rank 2."""
    placed = store.put(key_at(store, home=1, skip=skip), rank, page, b"", slot=slot, **more)
    record = store.records(rank)[page]
    record["flags"] = layout.FLAG_ALIAS
    record["content_hi"], record["content_lo"] = content
    word = placed.word - (layout.TIER_DRAM << layout.TIER_SHIFT)
    store.words(placed.home)[placed.bucket, placed.slot] = word
    return placed._replace(word=word)


def remove(store: MemoryStore, placed: Placed) -> None:
    store.words(placed.home)[placed.bucket, placed.slot] = 0


@pytest.mark.parametrize("nbytes", [0, 1, 3000, 12287])
def test_every_read_goes_through(store, nbytes):
    content = put_content(store, pattern(1, nbytes))
    name = put_alias(store, content.key)
    assert store.get(name.key, nbytes) == (nbytes, content.payload)
    assert (int(store.scratch[c.WORD]), int(store.scratch[c.LENGTH])) == (content.word, nbytes)
    assert (store.signed[c.HOME], store.signed[c.BUCKET], store.signed[c.SLOT]) == (2, content.bucket, content.slot)
    assert store.get_many([name.key, content.key], [nbytes] * 2) == ([nbytes] * 2, [content.payload] * 2)
    assert store.get(name.key, 0, nbytes, RANGE)[0] == 0
    assert store.counters()["alias_reads"] == 3
    assert store.get(name.key, 0, 0, DESCRIBE)[0] == nbytes
    described = store.scratch[c.DESCRIPTOR_COPY : c.DESCRIPTOR_COPY + 16].tobytes()
    assert described == store.records(1)[4].tobytes()
    lengths, records = store.describe_many([name.key, content.key])
    assert lengths == [nbytes] * 2
    assert records[0] == records[1] == store.records(1)[4]
    assert store.counters()["alias_reads"] == 3


def test_a_part_is_read_and_a_wrong_size_said(store):
    content = put_content(store, pattern(2, 5000))
    name = put_alias(store, content.key)
    assert store.get(name.key, 100, 4900, RANGE) == (100, content.payload[4900:])
    assert store.get(name.key, 101, 4900, RANGE)[0] == c.WRONG_SIZE
    for room in (0, 1, 4999, 5001):
        assert store.get(name.key, room)[0] == c.WRONG_SIZE
        assert store.scratch[c.LENGTH] == 5000
        assert store.get_many([name.key], [room])[0] == [c.WRONG_FROM - 5000]


def test_name_and_content_are_touched(store):
    content = put_content(store, b"warm")
    name = put_alias(store, content.key)
    store.get(name.key, 4)
    store.call("poll")  # sends what is not mapped
    assert store.touched(1)[4] and store.touched(2)[1]


@each_read
def test_a_name_whose_content_is_gone_is_a_miss(store, how):
    content = put_content(store, b"gone")
    name = put_alias(store, content.key)
    remove(store, content)
    assert read(store, how, name.key, 4)[0] == c.MISS
    assert store.get(name.key, 0, 0, DESCRIBE)[0] == c.MISS
    assert store.describe_many([name.key])[0] == [c.MISS]
    assert store.gone(2)[1] == 1  # its manager is told
    assert store.counters()["misses"] == 1


@each_read
def test_an_alias_of_an_alias_names_nothing(store, how):
    content = put_content(store, b"data")
    one = put_alias(store, content.key)
    other = put_alias(store, one.key, skip=1, page=2)
    itself = put_alias(store, key_at(store, home=1, skip=2), skip=2, page=3)
    for name in (other, itself):
        assert read(store, how, name.key, 4)[0] == c.MISS
    assert read(store, how, one.key, 4) == (4, b"data")


def test_an_expired_name_is_a_miss_and_no_other_is(store):
    content = put_content(store, b"data")
    name, other = put_alias(store, content.key, expiry=1), put_alias(store, content.key, skip=1, page=2)
    set_clock(store, 1)
    assert store.get(name.key, 4)[0] == c.MISS
    assert store.get(other.key, 4) == (4, b"data")


def test_of_an_alias_no_payload_is_fetched(store):
    content = put_content(store, pattern(3, 3000))
    name = put_alias(store, content.key)
    store.get(content.key, 3000)
    direct = sum(nbytes >= 3000 for *_, nbytes in store.mpi.transfers)
    store.get(name.key, 3000)
    assert sum(nbytes >= 3000 for *_, nbytes in store.mpi.transfers) == 2 * direct


# ------------------------------------------------------------------------------------------------- races


@each_read
def test_a_name_replaced_while_its_content_goes_is_read_again(store, how):
    """The content was evicted, but by then the name had another block: it was never absent."""
    content = put_content(store, pattern(4, 3000))
    name = put_alias(store, content.key)
    new = pattern(5, 3000)

    def replace() -> None:
        store.put(name.key, 2, 7, new, generation=3, slot=name.slot)

    outcome = store.race(lambda: read(store, how, name.key, 3000), lambda: remove(store, content), replace)
    assert outcome == (3000, new)
    assert store.counters()["recheck_retries"] >= 1


@each_read
def test_a_name_that_gets_another_content_while_the_first_goes(store, how):
    content, other = put_content(store, pattern(4, 3000)), put_content(store, pattern(5, 3000), skip=1, page=8)
    name = put_alias(store, content.key)

    def change() -> None:
        put_alias(store, other.key, page=5, generation=2, slot=name.slot)

    outcome = store.race(lambda: read(store, how, name.key, 3000), lambda: remove(store, content), change)
    assert outcome == (3000, other.payload)


@each_read
def test_a_content_whose_cell_is_reused_during_the_copy(store, how):
    content = put_content(store, pattern(4, 3000))
    name = put_alias(store, content.key)

    def reuse() -> None:
        remove(store, content)
        store.write_cell(1, 4, (99, 99), pattern(6, 3000), 2)

    assert store.race(lambda: read(store, how, name.key, 3000), lambda: None, reuse)[0] == c.MISS


def test_a_name_that_leaves_between_its_look_and_the_re_check(store):
    content = put_content(store, b"data")
    name = put_alias(store, content.key)
    assert store.race(lambda: store.get(name.key, 4), lambda: remove(store, name))[0] == c.MISS
    assert store.counters() == {"misses": 1, "recheck_retries": 1}


def test_a_name_that_changes_with_every_look_is_said_to(store):
    content = put_content(store, b"data")
    name = put_alias(store, content.key)
    generation = iter(range(2, 100))

    def change() -> None:
        put_alias(store, content.key, page=name.page, generation=next(generation), slot=name.slot)

    assert store.race(lambda: store.get(name.key, 4, 0, WHOLE), change, change, change, change)[0] == c.CHANGED


def test_find_gives_writers_the_alias(store):
    content = put_content(store, pattern(1, 3000))
    name = put_alias(store, content.key)
    assert store.call("find", *name.key, 0) == 1
    assert store.found() == [(name.slot, name.word)]
    assert store.scratch[c.FOUND_LENGTHS] == 0
    np.testing.assert_equal(store.signed[c.FOUND_LIVE], 1)
