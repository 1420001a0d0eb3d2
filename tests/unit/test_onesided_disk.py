"""Words of disk cells, compiled and through mpi4py, on emulated ranks: what each call makes of them, and what it costs.

Covers bounds, the look at the descriptor and the second look at the word, batches, aliases, copies, pins and hints.
There is no file here: a read ends with ON_DISK. Does not cover who reads the record then (`reader`), nor who writes
such words.
"""

from __future__ import annotations

import numpy as np
import pytest
from memory_store import DATA, INDEX, PINS, Key, MemoryStore, Placed, colliding_keys, key_at
from test_onesided import PATHS, READS, calls, pattern, read, replace, set_clock, take_away
from test_onesided_aliases import put_alias, put_content

from cascade_mpi import layout
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import write_copy
from cascade_mpi.onesided import (
    BATCH,
    DESCRIBE,
    DESCRIBE_ANY,
    FETCH,
    RANGE,
    W_DESCRIPTOR,
    W_SLOT,
    W_WORD,
    WHOLE,
)
from cascade_mpi.onesided.batch import W_BUCKET, W_HOME

__all__ = ["calls"]  # the fixture
UNTOUCHED = b"\xa5"
CELL = 18  # of 16 pages and 8 disk cells


@pytest.fixture(params=PATHS)
def store(calls, request):
    return MemoryStore(calls, disk_blocks=8, **PATHS[request.param])


def found(store: MemoryStore) -> tuple[int, ...]:
    """Where the last call says that the block is."""
    return tuple(int(store.scratch[field]) for field in (c.WORD, c.HOME, c.BUCKET, c.SLOT, c.LENGTH))


def place_of(placed: Placed, length: int) -> tuple[int, ...]:
    return placed.word, placed.home, placed.bucket, placed.slot, length


def described(store: MemoryStore) -> bytes:
    return store.scratch[c.DESCRIPTOR_COPY : c.DESCRIPTOR_COPY + 16].tobytes()


def noted(store: MemoryStore, number: int) -> tuple[tuple[int, ...], bytes]:
    """The record that a batch keeps of a key: its place, and the descriptor."""
    row = store.work[number]
    place = tuple(int(row[field]) for field in (W_WORD, W_HOME, W_BUCKET, W_SLOT))
    return place, row[W_DESCRIPTOR : W_DESCRIPTOR + 16].tobytes()


# ----------------------------------------------------------------------------------------------- one read


@pytest.mark.parametrize("nbytes", [0, 1, 3000, 200_000])  # the last one is longer than an arena
@pytest.mark.parametrize("how", READS)
def test_a_read_says_where_the_block_is_and_touches_nothing_else(store, how, nbytes):
    placed = store.put_on_disk(key_at(store, home=2, bucket=3), 1, CELL, nbytes, generation=9, slot=5)
    store.arena(1)[:] = 0x77
    assert read(store, how, placed.key, nbytes) == (c.ON_DISK, UNTOUCHED * nbytes)
    assert found(store)[:1] == (placed.word,)
    if how == "get_many":
        assert noted(store, 0) == ((placed.word, 2, 3, 5), store.records(1)[CELL].tobytes())
    else:
        assert found(store) == place_of(placed, nbytes)
        assert described(store) == store.records(1)[CELL].tobytes()
    assert store.scratch[c.BEGAN] == store.mpi.now - 1000
    assert store.counters() == {}  # neither a hit nor a miss: who reads the record counts
    assert all(size <= 128 for _, _, _, size in store.mpi.transfers)
    store.call("poll")  # sends what is not mapped
    assert np.flatnonzero(store.touched(1)).tolist() == [CELL]


def test_calls_of_a_remote_read(calls):
    store = MemoryStore(calls, disk_blocks=8, **PATHS["remote"])
    placed = store.put_on_disk(key_at(store, home=2), 1, CELL, 500)
    for call in (lambda: store.get(placed.key, 500), lambda: store.get_many([placed.key], [500])):
        del store.mpi.calls[:]
        call()
        assert [each for each in store.mpi.calls if each[0] != "delivery"] == [
            ("get", INDEX, 2), ("flush", INDEX, 2), ("get", DATA, 1), ("flush", DATA, 1), ("get", INDEX, 2),
            ("flush", INDEX, 2),
        ]  # fmt: skip


@pytest.mark.parametrize("verify", [0, 1])
@pytest.mark.parametrize("how", READS)
def test_the_checksum_is_that_of_the_record_and_not_looked_at(store, how, verify):
    placed = store.put_on_disk(key_at(store), 1, CELL, 700)
    store.context[c.VERIFY] = verify
    assert read(store, how, placed.key, 700)[0] == c.ON_DISK


@pytest.mark.parametrize("room", [0, 99, 101, 60_000])
def test_a_wrong_size_is_said(store, room):
    placed = store.put_on_disk(key_at(store), 1, CELL, 100)
    assert store.get(placed.key, room)[0] == c.WRONG_SIZE
    assert store.scratch[c.LENGTH] == 100
    assert store.get_many([placed.key], [room])[0] == [c.WRONG_FROM - 100]
    assert store.counters() == {}


def test_a_wrong_size_of_nothing_is_not_taken_for_a_block_on_disk(store):
    placed, empty = store.put_on_disk(key_at(store), 1, CELL, 10), store.put_on_disk(key_at(store, skip=1), 1, 19, 0)
    assert store.get_many([placed.key, empty.key], [10, 10])[0] == [c.ON_DISK, c.WRONG_FROM]
    assert min(value for name, value in vars(c).items() if name in OUTCOMES) > c.WRONG_FROM


OUTCOMES = (
    "MISS", "WRONG_SIZE", "CHANGED", "MPI_FAILED", "CORRUPT", "EXPIRED", "DUE", "CLAIMED", "ALIAS", "ON_DISK",
)  # fmt: skip


def test_a_range_must_lie_within_the_block(store):
    placed = store.put_on_disk(key_at(store), 2, CELL, 90_000)
    for offset, room in ((0, 90_000), (0, 1), (70_000, 20_000), (90_000, 0)):
        assert store.get(placed.key, room, offset, RANGE)[0] == c.ON_DISK
    for offset, room in ((89_999, 2), (90_001, 0), (0, 90_001), (1 << 40, 1)):
        assert store.get(placed.key, room, offset, RANGE)[0] == c.WRONG_SIZE


@pytest.mark.parametrize("what", [DESCRIBE, DESCRIBE_ANY])
def test_a_description_is_that_of_any_block(store, what):
    placed = store.put_on_disk(key_at(store, home=1), 2, CELL, 1 << 40)
    assert store.get(placed.key, 0, 0, what)[0] == 1 << 40
    assert found(store) == place_of(placed, 1 << 40)
    assert described(store) == store.records(2)[CELL].tobytes()
    assert not store.touched(2).any()
    assert store.signed[c.TOUCHES] == 0
    lengths, records = store.describe_many([placed.key])
    assert (lengths, records[0]) == ([1 << 40], store.records(2)[CELL])
    assert store.probe_many([placed.key]) == [1]


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, (1 << 64) - 5])
def test_a_length_that_is_none_is_not_believed(store, length):
    placed = store.put_on_disk(key_at(store), 2, CELL, 5)
    store.records(2)[CELL]["length"] = length
    for what in (WHOLE, RANGE, DESCRIBE):
        assert store.get(placed.key, 5 * (what != DESCRIBE), 0, what)[0] == c.MISS
    assert store.get_many([placed.key], [5])[0] == [c.MISS]
    assert store.describe_many([placed.key])[0] == [c.MISS]


def test_an_expired_block_is_a_miss(store):
    placed = store.put_on_disk(key_at(store), 1, CELL, 5, expiry=3)
    set_clock(store, 2)
    assert store.get(placed.key, 5)[0] == c.ON_DISK
    assert store.call("find", *placed.key, 0) == store.signed[c.FOUND_LIVE] == 1
    set_clock(store, 3)
    for how in READS:
        assert read(store, how, placed.key, 5)[0] == c.MISS
    assert store.get(placed.key, 0, 0, DESCRIBE)[0] == c.MISS
    assert store.describe_many([placed.key])[0] == [c.MISS]
    assert (store.call("find", *placed.key, 0), int(store.signed[c.FOUND_LIVE])) == (1, 0)
    assert store.counters() == {"misses": 3, "expired_reads": 3}


# --------------------------------------------------------------------------------------- which words count


def stray_words(store: MemoryStore, key: Key) -> list[int]:
    """Words of a key's fingerprint that name no cell of the store, 16 pages and 8 disk cells a rank."""
    fp = store.place(key).fp
    named = [(layout.TIER_DISK, 1, page) for page in (0, 15, 24, 25, layout.MAX_PAGES - 1)]
    named += [(layout.TIER_DISK, rank, 16) for rank in (3, 4095)]
    named += [(layout.TIER_DRAM, 1, page) for page in (16, 23)]
    named += [(layout.TIER_ALIAS, 1, 16), (layout.TIER_GPU, 1, 1), (layout.TIER_GPU, 1, 16)]
    return [layout.pack_word(fp, 1, tier, rank, page) for tier, rank, page in named]


def test_a_stray_word_is_never_followed(store):
    key = key_at(store, home=1, bucket=2)
    for page in (0, 1, 15):  # descriptors where the stray words point: following one would find the key
        store.write_cell(1, page, key, b"stray")
    for cell in (16, 23):
        store.write_disk_cell(1, cell, key, 5)
    strays = stray_words(store, key)
    store.words(1)[2, : len(strays)] = strays
    assert store.get(key, 5)[0] == c.MISS
    assert store.counters() == {"bad_words": len(strays), "misses": 1}
    assert store.call("find", *key, 0) == 0
    assert store.describe_many([key])[0] == [c.MISS]
    assert store.get_many([key], [5])[0] == [c.MISS]


def test_the_first_and_the_last_disk_cell_are_in_bounds(store):
    for i, (rank, cell) in enumerate([(0, 16), (2, 23)]):
        placed = store.put_on_disk(key_at(store, skip=i), rank, cell, 5)
        for how in READS:
            assert read(store, how, placed.key, 5)[0] == c.ON_DISK
        assert store.call("find", *placed.key, 0) == 1
        assert store.describe_many([placed.key])[0] == [5]
    assert store.counters() == {}


def test_a_store_without_disk_cells_follows_no_disk_word(calls):
    for where in PATHS.values():
        store = MemoryStore(calls, **where)
        key = key_at(store, home=1, bucket=2)
        fp = store.place(key).fp
        store.write_cell(1, 15, key, b"stray")
        store.words(1)[2, :2] = [layout.pack_word(fp, 1, layout.TIER_DISK, 1, page) for page in (15, 16)]
        assert [read(store, how, key, 5)[0] for how in READS] == [c.MISS] * 3
        assert store.counters() == {"bad_words": 6, "misses": 3}


@pytest.mark.parametrize("field", ["magic", "generation", "key_hi", "key_lo"])
def test_every_field_of_identity_is_compared(store, field):
    placed = store.put_on_disk(key_at(store), 1, CELL, 5, generation=3)
    store.records(1)[CELL][field] += 1
    for how in READS:
        assert read(store, how, placed.key, 5)[0] == c.MISS
    assert store.get(placed.key, 0, 0, DESCRIBE)[0] == c.MISS
    assert store.describe_many([placed.key])[0] == [c.MISS]
    assert store.call("find", *placed.key, 0) == 0
    assert store.call("get_pinned", placed.word, *placed.key, 0, 0, 0) == c.MISS


@pytest.mark.parametrize("kinds", ["disk disk", "disk dram", "dram disk"])
def test_keys_that_share_bucket_and_fingerprint(store, kinds):
    """Another key's word stands before a key's own, and behind it."""
    *keys, absent = colliding_keys(store, 3)
    wanted = []
    for i, (key, kind) in enumerate(zip(keys, kinds.split(), strict=True)):
        if kind == "disk":
            placed = store.put_on_disk(key, i, CELL, 5)
            wanted.append((placed, c.ON_DISK, b""))  # the buffer may have what the other key's word names
        else:
            placed = store.put(key, i, 1, b"value")
            wanted.append((placed, 5, b"value"))
    for placed, outcome, payload in wanted:
        for how in READS:
            result, got = read(store, how, placed.key, 5)
            assert (result, got if outcome == 5 else payload) == (outcome, payload)
        store.get(placed.key, 5)
        assert found(store) == place_of(placed, 5)
        assert store.call("find", *placed.key, 0) == 1
        assert store.found() == [(placed.slot, placed.word)]
    assert [read(store, how, absent, 5)[0] for how in READS] == [c.MISS] * 3
    keys = [wanted[0][0].key, absent, wanted[1][0].key]
    assert store.get_many(keys, [5] * 3)[0] == [wanted[0][1], c.MISS, wanted[1][1]]
    assert store.describe_many(keys)[0] == [5, c.MISS, 5]


def test_the_lowest_slot_wins(store):
    key = key_at(store)
    on_disk = store.put_on_disk(key, 1, CELL, 5, slot=9)
    store.put(key, 2, 2, b"value", slot=11)
    assert store.get(key, 5)[0] == c.ON_DISK
    assert store.call("find", *key, 0) == 2
    assert store.found()[0] == (9, on_disk.word)
    store.put(key, 2, 3, b"again", slot=4)
    assert store.get(key, 5) == (5, b"again")
    assert store.get_many([key], [5])[0] == [5]


# -------------------------------------------------------------------------- changed between look and return


@pytest.mark.parametrize("how", READS)
def test_nothing_happens_between_look_and_recheck(store, how):
    placed = store.put_on_disk(key_at(store), 1, CELL, 3000)
    assert store.race(lambda: read(store, how, placed.key, 3000), lambda: None)[0] == c.ON_DISK
    assert store.counters()["recheck_retries"] == 0


@pytest.mark.parametrize("how", READS)
def test_a_word_that_has_left_is_a_miss(store, how):
    placed = store.put_on_disk(key_at(store), 1, CELL, 3000)
    assert store.race(lambda: read(store, how, placed.key, 3000), lambda: take_away(store, placed))[0] == c.MISS
    assert store.counters()["misses"] == 1


@pytest.mark.parametrize("how", READS)
def test_a_block_that_is_promoted_meanwhile_is_read(store, how):
    placed, payload = store.put_on_disk(key_at(store), 1, CELL, 3000), pattern(2, 3000)
    outcome = store.race(lambda: read(store, how, placed.key, 3000), lambda: replace(store, placed, 7, payload))
    assert outcome == (3000, payload)


@pytest.mark.parametrize("how", READS)
def test_a_block_that_is_demoted_meanwhile_is_on_disk(store, how):
    placed = store.put(key_at(store), 1, 3, pattern(2, 3000))
    later = []

    def demote() -> None:
        later.append(store.put_on_disk(placed.key, 2, CELL, 3000, slot=placed.slot))
        store.write_cell(1, 3, (99, 99), b"\x77" * 3000, 2)

    assert store.race(lambda: read(store, how, placed.key, 3000), demote)[0] == c.ON_DISK
    assert found(store)[:4] == place_of(later[0], 3000)[:4]
    if how == "get_many":
        assert noted(store, 0) == (found(store)[:4], store.records(2)[CELL].tobytes())


@pytest.mark.parametrize("how", READS)
def test_the_word_that_counts_is_the_one_that_stands_at_the_end(store, how):
    """Written anew by the same manager: another disk cell, or the same one in its next generation."""
    for i, cell in enumerate((20, CELL)):
        placed = store.put_on_disk(key_at(store, skip=i), 1, CELL, 3000)

        def again(placed: Placed = placed, cell: int = cell) -> None:
            store.records(1)[CELL]["magic"] = 0
            store.put_on_disk(placed.key, 1, cell, 3000, generation=2, slot=placed.slot)

        assert store.race(lambda key=placed.key: read(store, how, key, 3000), again)[0] == c.ON_DISK
        word = int(store.words(placed.home)[placed.bucket, placed.slot])
        assert found(store)[0] == word != placed.word
        if how == "get_many":
            assert noted(store, 0)[0][0] == word


@pytest.mark.parametrize("how", READS)
def test_a_descriptor_that_does_not_match_decides_nothing(store, how):
    """By the time of the second look the block stands in memory, in a lower slot."""
    placed = store.put_on_disk(key_at(store), 1, CELL, 3000, slot=5)
    store.records(1)[CELL]["magic"] = 0
    payload = pattern(3, 3000)

    def promote() -> None:
        store.words(placed.home)[placed.bucket, 5] = 0
        store.put(placed.key, 2, 9, payload, slot=2)

    assert store.race(lambda: read(store, how, placed.key, 3000), promote) == (3000, payload)


@pytest.mark.parametrize("how", READS)
def test_an_attempt_that_takes_too_long_is_made_again(store, how):
    placed = store.put_on_disk(key_at(store), 1, CELL, 3000)

    def sleep() -> None:
        store.mpi.now += store.context[c.ATTEMPT] + 1

    assert store.race(lambda: read(store, how, placed.key, 3000), sleep)[0] == c.ON_DISK
    assert store.counters()["recheck_retries"] == 1 or how == "get_many"  # a batch's first doubt is no retry yet


# --------------------------------------------------------------------------------- words, hints, hard, pins


def test_writers_find_it_and_take_it_away(store):
    placed = store.put_on_disk(key_at(store), 1, CELL, 5)
    assert store.call("find", *placed.key, 0) == 1
    assert store.found() == [(placed.slot, placed.word)]
    assert store.signed[c.FOUND_LENGTHS] == 5
    assert store.call("slot_of", *placed.key, placed.word) == placed.slot
    new = store.write_cell(2, 4, placed.key, b"newer")
    assert store.call("publish", placed.home, placed.bucket, placed.slot, placed.word, new) == 0
    assert store.get(placed.key, 5) == (5, b"newer")
    assert store.call("publish", placed.home, placed.bucket, placed.slot, new, placed.word) == 0
    assert store.get(placed.key, 5)[0] == c.ON_DISK
    assert store.call("remove", placed.home, placed.bucket, placed.slot, placed.word) == 1
    assert store.get(placed.key, 5)[0] == c.MISS
    assert store.call("hint_gone", placed.word) == 0
    assert np.flatnonzero(store.gone(1)).tolist() == [CELL]
    assert not store.gone(0).any()


def test_the_last_cell_has_a_hint_and_a_touch_of_its_own(store):
    placed = store.put_on_disk(key_at(store), 1, 23, 5)
    before = store.cells()
    store.get(placed.key, 5)
    store.call("hint_gone", placed.word)
    store.call("poll")
    assert np.flatnonzero(store.touched(1)).tolist() == np.flatnonzero(store.gone(1)).tolist() == [23]
    assert store.cells() == before


@pytest.mark.parametrize("how", READS)
def test_its_hard_bit_is_toggled_as_any_other(store, how):
    placed = store.put_on_disk(key_at(store), 1, CELL, 5)
    hard = placed.word | layout.HARD
    assert store.call("swap", placed.home, placed.bucket, placed.slot, placed.word, hard) == 1
    assert read(store, how, placed.key, 5)[0] == c.ON_DISK
    assert found(store)[0] == hard
    assert store.call("slot_of", *placed.key, placed.word) == placed.slot
    assert store.scratch[c.WORD] == hard

    def soften() -> None:
        store.words(placed.home)[placed.bucket, placed.slot] = placed.word

    assert store.race(lambda: read(store, how, placed.key, 5), soften)[0] == c.ON_DISK
    assert found(store)[0] == placed.word


def test_a_pin_is_refused_and_leaves_nothing(store):
    placed = store.put_on_disk(key_at(store), 1, CELL, 5, hard=True)
    pin = (placed.word, 3, placed.home, placed.bucket, placed.slot)
    assert store.call("pin", *pin) == c.ON_DISK
    assert not store.pin_words(1).any()
    assert not [call for call in store.mpi.calls if call[1] == PINS]
    assert store.call("get_pinned", placed.word, *placed.key, 0, 0, 0) == c.ON_DISK


# ------------------------------------------------------------------------------------------------ batches


def test_a_batch_of_everything(store):
    dram = [store.put(key_at(store, skip=i), i % 3, i, pattern(i, 600)) for i in range(4)]
    disk = [store.put_on_disk(key_at(store, skip=10 + i), i % 3, 16 + i, 600) for i in range(6)]
    in_memory, on_disk = put_content(store, pattern(9, 600), skip=40, page=8), disk[0]
    names = [put_alias(store, in_memory.key, skip=41, page=9), put_alias(store, on_disk.key, skip=42, page=10)]
    absent = [(5, i) for i in range(3)]
    gone = store.put_on_disk(key_at(store, skip=30), 1, 22, 600, expiry=1)
    set_clock(store, 2)
    lines = (
        [(each.key, 600, 600) for each in dram] + [(each.key, 600, c.ON_DISK) for each in disk]
        + [(names[0].key, 600, 600), (names[1].key, 600, c.ON_DISK), (gone.key, 600, c.MISS)]
        + [(key, 10, c.MISS) for key in absent] + [(disk[1].key, 600, c.ON_DISK)]
        + [(disk[1].key, 599, c.WRONG_FROM - 600), (dram[0].key, 601, c.WRONG_FROM - 600)]
    )  # fmt: skip
    payloads = {each.key: each.payload for each in (*dram, in_memory)} | {names[0].key: in_memory.payload}
    order = np.random.default_rng(3).permutation(len(lines)).tolist()
    lines = [lines[i] for i in order]
    results, buffers = store.get_many([line[0] for line in lines], [line[1] for line in lines])
    assert results == [line[2] for line in lines]
    of_key = {each.key: each for each in disk} | {names[1].key: on_disk}
    for i, (key, room, wanted) in enumerate(lines):
        if wanted >= 0:
            assert buffers[i] == payloads[key]
        elif wanted == c.ON_DISK:
            placed = of_key[key]
            assert buffers[i] == UNTOUCHED * room
            place = placed.word, placed.home, placed.bucket, placed.slot
            assert noted(store, i) == (place, store.records(placed.rank)[placed.page].tobytes())
    counted = store.counters()
    assert sum(counted[f"hits_{where}"] for where in ("self", "node", "remote")) == 5
    assert (counted["misses"], counted["alias_reads"], counted["corrupt"]) == (4, 1, 0)
    store.call("poll")
    touched = {(rank, page) for rank in range(3) for page in np.flatnonzero(store.touched(rank)).tolist()}
    assert touched == {(each.rank, each.page) for each in (*dram, *disk, *names, in_memory)}
    lengths, _ = store.describe_many([line[0] for line in lines])
    assert lengths == [c.MISS if line[2] == c.MISS else 600 for line in lines]


def test_more_keys_than_a_batch_holds(store):
    disk = [store.put_on_disk(key_at(store, skip=i), i % 3, 16 + i, 50) for i in range(8)]
    keys = [disk[i % 8].key for i in range(BATCH + 3)]
    results, buffers = store.get_many(keys, [50] * len(keys))
    assert results == [c.ON_DISK] * len(keys)
    assert set(buffers) == {UNTOUCHED * 50}
    assert [noted(store, i)[0][0] for i in range(3)] == [disk[i].word for i in range(3)]


def test_one_key_of_a_batch_is_demoted(store):
    blocks = [store.put(key_at(store, skip=i), 1 + i % 2, i, pattern(i, 700)) for i in range(6)]

    def demote() -> None:
        store.put_on_disk(blocks[0].key, 1, CELL, 700, slot=blocks[0].slot)

    results, buffers = store.race(lambda: store.get_many([block.key for block in blocks], [700] * 6), demote)
    assert results == [c.ON_DISK] + [700] * 5
    assert buffers[1:] == [block.payload for block in blocks[1:]]


# ------------------------------------------------------------------------------------------------- aliases


@pytest.mark.parametrize("how", READS)
def test_a_content_on_disk_is_found_through_its_name(store, how):
    content = store.put_on_disk(key_at(store, home=2), 1, CELL, 3000)
    name = put_alias(store, content.key)
    assert read(store, how, name.key, 3000)[0] == c.ON_DISK
    assert found(store)[:4] == place_of(content, 3000)[:4]
    assert described(store) == store.records(1)[CELL].tobytes()  # with the key of the content
    assert store.counters() == {}
    store.call("poll")
    assert np.flatnonzero(store.touched(1)).tolist() == [CELL]
    assert np.flatnonzero(store.touched(2)).tolist() == [name.page]
    assert not store.gone(2).any()
    assert store.get(name.key, 0, 0, DESCRIBE)[0] == 3000


@pytest.mark.parametrize("how", READS)
def test_a_name_that_is_given_away_meanwhile_counts_again(store, how):
    content = store.put_on_disk(key_at(store, home=2), 1, CELL, 3000)
    name = put_alias(store, content.key)
    payload = pattern(4, 3000)

    def replaced() -> None:
        store.put(name.key, 0, 7, payload, generation=2, slot=name.slot)

    # Stops behind the name, behind the content, and behind both.
    outcome = store.race(lambda: read(store, how, name.key, 3000), lambda: None, lambda: None, replaced)
    assert outcome == (3000, payload)


# -------------------------------------------------------------------------------------------------- copies


@pytest.fixture
def nodes(calls):
    """Ranks 0 and 1 are a node and share a copy table; every remote read is due at once."""
    node = {0, 1}
    store = MemoryStore(calls, ranks=4, index=node, data=node, pins=node, copy_buckets=2, disk_blocks=8)
    store.context[c.COPY_AFTER] = 1
    return store


@pytest.mark.parametrize("keep_all", [0, 1])
@pytest.mark.parametrize("home", [1, 2])
@pytest.mark.parametrize("how", [*READS, "fetch"])
def test_no_copy_is_made_of_a_block_on_disk(nodes, how, home, keep_all):
    placed = nodes.put_on_disk(key_at(nodes, home=home), 2, CELL, 3000)
    beside = nodes.put(key_at(nodes, home=home, skip=1), 2, 4, pattern(1, 3000))
    nodes.signed[c.KEEP_ALL] = keep_all
    for _ in range(3):
        outcome = nodes.get(placed.key, 3000, 0, FETCH) if how == "fetch" else read(nodes, how, placed.key, 3000)
        assert outcome[0] == c.ON_DISK
    assert not nodes.read_counts.any()
    claims = [nodes.windows[INDEX].memory[rank][-8 * nodes.copy_buckets :] for rank in (0, 1)]
    assert not any(each.any() for each in claims)
    assert nodes.get_many([beside.key, placed.key], [3000] * 2)[0] == [c.DUE, c.ON_DISK]  # nor by what stands beside it
    assert nodes.get_many([placed.key, beside.key], [3000] * 2)[0] == [c.ON_DISK, c.DUE]


@pytest.mark.parametrize("how", READS)
def test_a_copy_from_before_the_demotion_is_stale(nodes, how):
    placed = nodes.put(key_at(nodes, home=2), 2, 3, pattern(1, 3000))
    copy = nodes.put_copy(placed, 1, 5)
    nodes.put_on_disk(placed.key, 2, CELL, 3000, slot=placed.slot)
    assert read(nodes, how, placed.key, 3000)[0] == c.ON_DISK
    assert nodes.counters()["stale_copies"] == 1
    assert nodes.gone(copy.rank)[copy.page] == 1


@pytest.mark.parametrize("home", [1, 2])
@pytest.mark.parametrize("how", READS)
def test_a_copy_whose_key_determines_the_content_spares_the_disk(nodes, how, home):
    placed = nodes.put(key_at(nodes, home=home), 2, 3, pattern(1, 3000))
    nodes.put_copy(placed, 1, 5, fixed=True)
    nodes.put_on_disk(placed.key, 2, CELL, 3000, slot=placed.slot)
    assert read(nodes, how, placed.key, 3000) == (3000, placed.payload)


@pytest.mark.parametrize("how", READS)
def test_a_disk_word_in_the_copy_table_is_not_followed(nodes, how):
    placed = nodes.put(key_at(nodes, home=1), 2, 3, pattern(1, 3000))
    copy = nodes.put_copy(placed, 1, 5, fixed=True)
    word = nodes.write_disk_cell(1, CELL, placed.key, 3000)
    nodes.records(1)[CELL]["flags"] |= layout.FLAG_COPY | layout.FLAG_FIXED
    nodes.copy_words(copy.home)[copy.bucket, copy.slot] = word
    assert read(nodes, how, placed.key, 3000)[0] == (3000 if how == "range" else c.DUE)
    assert nodes.counters()["copy_hits"] == 0


@pytest.mark.parametrize("how", ["get", "get_many"])
def test_a_claim_ends_when_the_block_is_found_on_disk(nodes, how):
    placed = nodes.put(key_at(nodes, home=2), 2, 3, pattern(1, 3000))

    def demote() -> None:
        nodes.put_on_disk(placed.key, 2, CELL, 3000, slot=placed.slot)

    assert nodes.race(lambda: read(nodes, how, placed.key, 3000), demote)[0] == c.ON_DISK
    claims = [nodes.windows[INDEX].memory[rank][-8 * nodes.copy_buckets :] for rank in (0, 1)]
    assert not any(each.any() for each in claims)


def test_a_copy_is_neither_backed_nor_on_disk(nodes):
    placed = nodes.put(key_at(nodes, home=2), 2, 3, pattern(1, 3000))
    described = nodes.records(2)[3:4].copy()
    described["flags"] |= layout.FLAG_BACKED | layout.FLAG_DISK | layout.FLAG_FIXED
    payload = np.frombuffer(placed.payload, np.uint8)
    write_copy(nodes.ctx, 7, 9, placed.word, described.ctypes.data, payload.ctypes.data)
    record = nodes.records(0)[7]
    assert record["flags"] == layout.FLAG_COPY | layout.FLAG_FIXED
    assert record["content_hi"] == placed.word
