"""Reads that may find a copy on this node, compiled and through mpi4py: which copies count, and what MPI they cost.

Covers the kernels and their twin on emulated ranks: 0 and 1 are a node, 2 and 3 are not. Does not cover who makes
copies (`tests/mpi/test_copies.py`) nor blocks without copies (`test_onesided`).
"""

from __future__ import annotations

import numpy as np
import pytest
from memory_store import DATA, INDEX, Key, MemoryStore, Placed, colliding_keys, key_at

from cascade_mpi import layout
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import write_copy
from cascade_mpi.onesided import CLAIM_TICKS, DESCRIBE, DESCRIBE_ANY, FETCH, RANGE, TICKS, WHOLE

OLD, NEW = b"\x11" * 3000, b"\x22" * 3000
READS = ["get", "range", "get_many"]
NOW = 100  # ticks since the store was opened, as the emulated clock begins


@pytest.fixture(params=["compiled", "python"])
def store(request):
    node = {0, 1}
    return MemoryStore(request.param, ranks=4, index=node, data=node, pins=node, copy_buckets=2)


def read(store: MemoryStore, how: str, key: Key, room: int) -> tuple[int, bytes]:
    if how == "get":
        return store.get(key, room)
    if how == "range":
        return store.get(key, room, 0, RANGE)
    outcomes, buffers = store.get_many([key], [room])
    return outcomes[0], buffers[0]


def away(store: MemoryStore, home: int, skip: int = 0, slot: int | None = None, expiry: int = 0) -> Placed:
    """A block of rank 2, with its word at `home`."""
    placed = store.put(key_at(store, home=home, skip=skip), 2, 3 + skip, OLD, slot=slot, expiry=expiry)
    store.records(2)[3 + skip]["sequence"] = 70 + skip
    return placed


def replace(store: MemoryStore, placed: Placed, payload: bytes = NEW) -> Placed:
    return store.put(placed.key, 3, 9, payload, slot=placed.slot)


def calls(store: MemoryStore) -> list[tuple[str, int, int]]:
    return [call for call in store.mpi.calls if call[0] != "delivery"]


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
def test_a_copy_is_read_in_the_place_of_the_block(store, how, home):
    placed = away(store, home)
    copy = store.put_copy(placed, 1, 5)
    store.arena(2)[:] = 0  # the block itself is not looked at
    assert read(store, how, placed.key, 3000) == (3000, OLD)
    # The bucket of the other node says that the block is still the one that was copied; that of the own one is loaded.
    assert calls(store) == ([] if home == 1 else [("get", INDEX, 2), ("flush", INDEX, 2)])
    found = store.counters()
    assert found["copy_hits"] == found["hits_node"] == 1
    assert found["copy_bytes"] == found["bytes_node"] == 3000
    assert found["copy_hits_without_mpi"] == (home == 1)
    assert store.scratch[c.WORD] == copy.word
    assert store.touched(1)[5] == NOW
    assert store.signed[c.TOUCHES] == 1  # the block is in use too


@pytest.mark.parametrize("how", READS)
def test_a_copy_whose_key_determines_the_content_needs_no_mpi(store, how):
    placed = away(store, 2)
    store.put_copy(placed, 1, 5, fixed=True)
    store.words(2)[placed.bucket, placed.slot] = 0
    assert read(store, how, placed.key, 3000) == (3000, OLD)
    assert calls(store) == []
    assert store.counters()["copy_hits_without_mpi"] == 1


def test_without_copies_nothing_of_the_table_is_looked_at():
    store = MemoryStore("compiled", ranks=4, index={0, 1}, data={0, 1}, pins={0, 1}, copy_buckets=2)
    placed = away(store, 2)
    store.put_copy(placed, 1, 5, NEW, fixed=True)
    store.context[c.COPY_BUCKETS] = 0
    for _ in range(5):
        assert store.get(placed.key, 3000) == (3000, OLD)
    assert store.counters()["copy_hits"] == 0
    assert not store.read_counts.any()


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
def test_a_copy_of_what_was_replaced_is_stale(store, how, home):
    placed = away(store, home)
    store.put_copy(placed, 1, 5)
    replace(store, placed)
    assert read(store, how, placed.key, 3000) == (3000, NEW)
    assert store.counters()["stale_copies"] == 1
    assert store.gone(1)[5] == 1  # its manager is told


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
def test_a_copy_of_what_was_deleted_is_not_read(store, how, home):
    placed = away(store, home)
    store.put_copy(placed, 1, 5)
    store.words(home)[placed.bucket, placed.slot] = 0
    assert read(store, how, placed.key, 3000)[0] == c.MISS


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
def test_a_copy_of_an_older_generation_of_the_cell_is_stale(store, how, home):
    placed = away(store, home)
    store.put_copy(placed, 1, 5)
    store.put(placed.key, 2, 3, NEW, generation=2, slot=placed.slot)
    assert read(store, how, placed.key, 3000) == (3000, NEW)
    assert store.counters()["stale_copies"] == 1


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
@pytest.mark.parametrize("seen", [NOW, 0])
def test_a_block_that_was_protected_or_not_any_more_has_the_same_copy(store, how, home, seen):
    """Seen lately or asked for: the hard bit says nothing about the bytes."""
    placed = away(store, home)
    store.put_copy(placed, 1, 5, seen=seen)
    store.arena(2)[:] = 0
    for toggled in range(1, 3):
        store.words(home)[placed.bucket, placed.slot] ^= np.uint64(layout.HARD)
        assert read(store, how, placed.key, 3000) == (3000, OLD)
        assert store.counters()["copy_hits"] == toggled
    assert store.counters()["stale_copies"] == 0


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
@pytest.mark.parametrize("fixed", [False, True])
def test_an_expired_copy_is_not_read(store, how, home, fixed):
    placed = away(store, home, expiry=1)
    store.put_copy(placed, 1, 5, fixed=fixed)
    store.mpi.now += TICKS - NOW - 1
    assert read(store, how, placed.key, 3000) == (3000, OLD)
    assert store.counters()["copy_hits"] == 1
    store.mpi.now += 1
    assert read(store, how, placed.key, 3000)[0] == c.MISS
    assert store.get(placed.key, 0, 0, DESCRIBE_ANY)[0] == c.MISS
    found = store.counters()
    assert (found["copy_hits"], found["misses"], found["expired_reads"]) == (1, 1, 1)
    replace(store, placed)  # without an expiry
    assert read(store, how, placed.key, 3000) == (3000, NEW)


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
def test_a_lower_word_of_the_key_hides_the_origin_of_a_copy(store, how, home):
    """Two putters at once: the lowest slot wins, and a reader who has seen it never sees the other again."""
    placed = away(store, home, slot=5)
    store.put_copy(placed, 1, 5)
    store.put(placed.key, 3, 9, NEW, slot=2)
    assert read(store, how, placed.key, 3000) == (3000, NEW)
    assert store.counters()["copy_hits"] == 0


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("home", [1, 2])
def test_the_word_of_a_copy_leaves_while_its_payload_is_read(store, how, home):
    """Its cell has other bytes by then; the reader goes to the block."""
    placed = away(store, home)
    copy = store.put_copy(placed, 1, 5)

    def reuse() -> None:
        store.copy_words(copy.home)[copy.bucket, copy.slot] = 0
        store.write_cell(1, 5, (99, 99), b"\x77" * 3000, 2)
        store.arena(2)[3 * 4096 : 3 * 4096 + 3000] = 0x33  # so that it shows which of the two was read

    assert store.race(lambda: read(store, how, placed.key, 3000), reuse) == (3000, b"\x33" * 3000)
    assert store.counters()["recheck_retries"] == 1
    assert store.counters()["copy_hits"] == 0


@pytest.mark.parametrize("how", READS)
def test_a_fixed_copy_too_is_looked_at_again(store, how):
    placed = away(store, 2)
    copy = store.put_copy(placed, 1, 5, fixed=True)

    def reuse() -> None:
        store.copy_words(copy.home)[copy.bucket, copy.slot] = 0
        store.write_cell(1, 5, (99, 99), b"\x77" * 3000, 2)

    assert store.race(lambda: read(store, how, placed.key, 3000), reuse) == (3000, OLD)
    assert store.counters()["copy_hits"] == 0


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize(("seen", "asks"), [(NOW - 5, False), (NOW - 6, True)])
def test_an_origin_not_seen_for_long_is_asked(store, how, seen, asks):
    """Half of an attempt's time (10 ticks here) ago the word may have begun to pass through all its generations."""
    placed = away(store, 1)
    copy = store.put_copy(placed, 1, 5, seen=seen)
    assert read(store, how, placed.key, 3000) == (3000, OLD)
    assert calls(store) == ([("get", DATA, 2), ("flush", DATA, 2)] if asks else [])
    assert store.copy_words(copy.home, 1)[copy.bucket, copy.slot] == NOW
    assert store.counters()["copy_hits_without_mpi"] == (not asks)


@pytest.mark.parametrize("how", READS)
def test_a_word_that_came_back_is_not_the_origin(store, how):
    """The same word after 32,767 generations: another put of that key, with another sequence number."""
    placed = away(store, 1)
    store.put_copy(placed, 1, 5, seen=NOW - 6)
    store.put(placed.key, 2, 3, NEW, slot=placed.slot)
    store.records(2)[3]["sequence"] = 71
    assert read(store, how, placed.key, 3000) == (3000, NEW)
    assert store.counters()["stale_copies"] == 1


def test_an_mpi_error_while_an_origin_is_asked(store):
    placed = away(store, 1)
    store.put_copy(placed, 1, 5, seen=0)
    for how in ("get", "get_many"):
        store.mpi.fail("get", 0, 17)
        target, results = np.zeros(3000, np.uint8), np.zeros(1, np.int64)
        keys = np.array([placed.key], np.uint64)
        address, room = np.array([target.ctypes.data], np.int64), np.array([3000], np.int64)
        if how == "get":
            outcome = store.failing_call("get", *placed.key, target.ctypes.data, 3000, 0, WHOLE)
        else:
            areas = (address.ctypes.data, room.ctypes.data, results.ctypes.data)
            work = (store.work.ctypes.data, store.flags.ctypes.data)
            outcome = store.failing_call("get_many", keys.ctypes.data, 1, *areas, *work)
        assert outcome == c.MPI_FAILED
        assert store.scratch[c.MPI_ERROR] == 17


def test_sizes_and_parts_of_a_copy(store):
    placed = away(store, 1)
    store.put_copy(placed, 1, 5, bytes(range(250)) * 12)
    assert store.get(placed.key, 500, 250, RANGE)[1] == bytes(range(250)) * 2
    for room, offset, what in ((2999, 0, WHOLE), (2, 2999, RANGE)):
        assert store.get(placed.key, room, offset, what)[0] == c.WRONG_SIZE
    before = store.counters()
    assert store.get(placed.key, 0, 0, DESCRIBE_ANY)[0] == 3000
    assert store.get(placed.key, 0, 0, DESCRIBE)[0] == 3000
    assert store.counters() == before  # nothing was read
    assert store.scratch[c.WORD] == placed.word  # the second asked for the block


@pytest.mark.parametrize("field", ["magic", "generation", "key_hi", "key_lo", "flags"])
def test_every_field_that_makes_a_copy_is_compared(store, field):
    placed = away(store, 2)
    store.put_copy(placed, 1, 5, NEW, fixed=True)
    store.records(1)[5][field] = 0
    assert store.get(placed.key, 3000) == (3000, OLD)
    assert store.counters()["copy_hits"] == 0


def test_copies_of_keys_that_share_a_fingerprint(store):
    groups = colliding_keys(store, 5, home=2)  # of four places in the copy table
    first, second = next(
        (one, other) for one in groups for other in groups
        if one < other and layout.place(*one, 2, 2) == layout.place(*other, 2, 2)
    )  # fmt: skip
    placed = [store.put(key, 2, 3 + i, bytes([i]) * 100) for i, key in enumerate((first, second))]
    for i, each in enumerate(placed):
        store.put_copy(each, 1, 5 + i, fixed=True)
    assert [store.get(key, 100)[1][0] for key in (first, second)] == [0, 1]
    assert calls(store) == []


def test_a_copy_that_fails_its_checksum_is_left_to_its_manager(store):
    placed = away(store, 1)
    store.put_copy(placed, 1, 5, checksum=True)
    store.arena(1)[5 * 4096] ^= 1
    store.context[c.VERIFY] = 1
    assert store.get(placed.key, 3000) == (3000, OLD)
    assert store.gone(1)[5] == 1


def test_a_copy_out_of_bounds_is_never_followed(store):
    placed = away(store, 2)
    copy = store.put_copy(placed, 1, 5, fixed=True)
    for tier, rank, page in ((layout.TIER_DRAM, 4095, 0), (layout.TIER_DRAM, 1, 16), (layout.TIER_DISK, 1, 5)):
        word = layout.pack_word(store.place(placed.key).fp, 1, tier, rank, page)
        store.copy_words(copy.home)[copy.bucket, copy.slot] = word
        assert store.get(placed.key, 3000)[1] == OLD
    assert store.counters()["copy_hits"] == 0


# --------------------------------------------------------------------------------------- when a copy is due


@pytest.mark.parametrize("how", ["get", "get_many"])
@pytest.mark.parametrize("home", [1, 2])
def test_the_third_read_of_a_block_is_due(store, how, home):
    placed, other = away(store, home), away(store, home, skip=1)
    outcomes = [read(store, how, placed.key, 3000) for _ in range(4)]
    assert [outcome for outcome, _ in outcomes] == [3000, 3000, c.DUE, 3000]  # it is counted anew then
    assert {payload for _, payload in outcomes} == {OLD}
    assert read(store, how, other.key, 3000)[0] == 3000
    assert store.counters()["hits_remote"] == 5


@pytest.mark.parametrize("how", ["get", "get_many"])
def test_the_first_read_of_a_protected_block_is_due(store, how):
    placed = away(store, 2)
    store.words(2)[placed.bucket, placed.slot] |= np.uint64(1 << layout.HARD_SHIFT)
    assert read(store, how, placed.key, 3000) == (c.DUE, OLD)


def test_reads_of_the_own_node_and_of_parts_are_never_due(store):
    placed, near = away(store, 2), store.put(key_at(store, home=2, skip=5), 1, 9, OLD)
    for _ in range(6):
        assert store.get(placed.key, 3000, 0, RANGE)[0] == 3000
        assert store.get(near.key, 3000)[0] == 3000
    assert not store.read_counts.any()


def test_old_reads_count_half(store):
    placed = away(store, 2)
    store.read_counts[8:] = 3
    store.read_counts[:8].view(np.uint64)[0] = c.READ_COUNT_BYTES - 1
    store.context[c.COPY_AFTER] = 100
    store.get(placed.key, 3000)
    assert sorted(set(store.read_counts[8:].tolist())) == [1, 2]
    assert store.read_counts[:8].view(np.uint64)[0] == 0


@pytest.mark.parametrize("how", ["get", "get_many"])
def test_a_block_that_another_rank_is_about_to_copy_is_left_to_it(store, how):
    placed = away(store, 2)
    store.context[c.COPY_AFTER] = 1
    store.context[c.RANK] = 1
    assert read(store, how, placed.key, 3000)[0] == c.DUE  # rank 1 has fetched it, and is about to copy it
    store.context[c.RANK] = 0
    del store.mpi.calls[:]
    assert read(store, how, placed.key, 3000)[0] == c.CLAIMED
    assert calls(store) == [("get", INDEX, 2), ("flush", INDEX, 2)]  # no payload
    assert store.get(placed.key, 3000, 0, FETCH) == (c.DUE, OLD)  # whatever the other does
    store.context[c.RANK] = 1
    store._calls["end_claim"](store.ctx, store.s, *placed.key)
    store.context[c.RANK] = 0
    assert read(store, how, placed.key, 3000)[0] == c.DUE
    store.context[c.RANK] = 1
    store.mpi.now += CLAIM_TICKS + 1  # rank 0 has stopped in between: its claim counts nothing any more
    assert read(store, how, placed.key, 3000)[0] == c.DUE


@pytest.mark.parametrize("how", ["get", "get_many"])
def test_a_read_that_is_not_due_leaves_no_claim(store, how):
    placed = away(store, 2)
    store.context[c.COPY_AFTER] = 1
    assert read(store, how, placed.key, 2999)[0] in (c.WRONG_SIZE, c.WRONG_FROM - 3000)
    claims = store.windows[INDEX].memory[0][-8 * store.copy_buckets :], store.windows[INDEX].memory[1][-16:]
    assert not any(each.any() for each in claims)


# ------------------------------------------------------------------------------------------- the copy's cell


def test_find_and_slot_of_a_copy(store):
    placed, other = away(store, 2), away(store, 2, skip=1)
    copy = store.put_copy(placed, 1, 5)
    store.put_copy(other, 0, 6)
    assert store.call("find_copies", *placed.key, 0) == 1
    assert store.found() == [(copy.slot, copy.word)]
    assert (store.signed[c.HOME], store.signed[c.BUCKET]) == (copy.home, store.buckets + copy.bucket)
    assert store.call("slot_of_copy", *placed.key, copy.word) == copy.slot
    assert store.call("slot_of_copy", *placed.key, placed.word) == c.MISS
    assert calls(store) == []


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_write_copy_makes_the_cell_of_a_copy(summed, in_place):
    store = MemoryStore(ranks=4, index={0, 1}, data={0, 1}, pins={0, 1}, copy_buckets=2)
    key = key_at(store, home=2)
    placed = store.put(key, 2, 3, OLD, checksum=summed)
    described = store.records(2)[3:4].copy()
    described["flags"] |= layout.FLAG_PREFIX
    payload = np.frombuffer(OLD, np.uint8)
    if in_place:
        store.arena(0)[7 * 4096 : 7 * 4096 + 3000] = payload
    source = 0 if in_place else payload.ctypes.data
    word = int(write_copy(store.ctx, 7, 9, placed.word, described.ctypes.data, source))
    assert word == layout.pack_word(store.place(key).fp, 9, layout.TIER_DRAM, 0, 7)
    record = store.records(0)[7]
    assert (record["magic"], record["generation"], record["manager"]) == (layout.MAGIC, 9, 0)
    assert record["flags"] == layout.FLAG_COPY | layout.FLAG_CHECKSUM * summed
    assert (record["content_hi"], record["length"]) == (placed.word, 3000)
    assert store.arena(0)[7 * 4096 :][:3000].tobytes() == OLD


@pytest.mark.parametrize("in_place", [False, True])
def test_damaged_bytes_are_not_copied_on(in_place):
    store = MemoryStore(ranks=4, index={0, 1}, data={0, 1}, pins={0, 1}, copy_buckets=2)
    placed = store.put(key_at(store, home=2), 2, 3, OLD, checksum=True)
    payload = np.frombuffer(OLD[:-1] + b"?", np.uint8)
    store.arena(0)[7 * 4096 : 7 * 4096 + 3000] = payload
    source = 0 if in_place else payload.ctypes.data
    assert write_copy(store.ctx, 7, 9, placed.word, store.records(2)[3:4].ctypes.data, source) == 0
    assert store.records(0)[7]["magic"] == 0
