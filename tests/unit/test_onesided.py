"""The one-sided calls, compiled and through mpi4py, on emulated ranks: results, order, races, accounting.

Covers both implementations on memory that is mapped, that is not, and with only the index or only the data
mapped. Does not cover the machine's fences (see `test_protocol_assembly`) nor a real MPI (see `tests/mpi`).
"""

from __future__ import annotations

import numpy as np
import pytest
from memory_store import CALLS, DATA, INDEX, Key, MemoryStore, Placed, colliding_keys, key_at

from cascade_mpi import layout, onesided
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.kernels.checksum import checksum_twin
from cascade_mpi.onesided import DESCRIBE, RANGE, WHOLE

PATHS: dict[str, dict[str, set[int] | None]] = {
    "mapped": {"index": None, "data": None, "pins": None},
    "remote": {"index": set(), "data": set(), "pins": set()},
    "index-away": {"index": set(), "data": None, "pins": None},
    "data-away": {"index": None, "data": set(), "pins": set()},
}


@pytest.fixture(params=["compiled", "python"])
def calls(request):
    return request.param


@pytest.fixture(params=PATHS)
def store(calls, request):
    return MemoryStore(calls, **PATHS[request.param])


@pytest.fixture
def remote(calls):
    return MemoryStore(calls, **PATHS["remote"])


def pattern(seed: int, nbytes: int) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def replace(store: MemoryStore, placed: Placed, page: int, payload: bytes, generation: int = 1) -> Placed:
    """A replace as the protocol orders it: a new cell, its word over the old one, then the old cell is reused."""
    made = store.put(placed.key, placed.rank, page, payload, generation, slot=placed.slot)
    overwrite(store, placed)
    return made


def take_away(store: MemoryStore, placed: Placed) -> None:
    """The word leaves, then its cell is reused for another key."""
    store.words(placed.home)[placed.bucket, placed.slot] = 0
    overwrite(store, placed)


def overwrite(store: MemoryStore, placed: Placed, generation: int = 2) -> None:
    store.write_cell(placed.rank, placed.page, (99, 99), b"\x77" * len(placed.payload), generation)


# --------------------------------------------------------------------------------------------------- get


@pytest.mark.parametrize("nbytes", [0, 1, 500, 4096, 12287, 49152])
def test_get_returns_the_block(store, nbytes):
    key = key_at(store, home=2, bucket=3)
    placed = store.put(key, 1, 4, pattern(nbytes, nbytes), generation=9, slot=5)
    assert store.get(key, nbytes) == (nbytes, placed.payload)
    named = (c.LENGTH, c.WORD, c.SLOT, c.HOME, c.BUCKET)
    assert [int(store.scratch[field]) for field in named] == [nbytes, placed.word, 5, 2, 3]
    assert store.scratch[c.DESCRIPTOR_COPY : c.DESCRIPTOR_COPY + 16].tobytes() == store.records(1)[4].tobytes()


def test_get_streams_a_large_block(calls):
    for where in PATHS.values():
        store = MemoryStore(calls, pages=80, **where)
        placed = store.put(key_at(store), 1, 3, pattern(1, 300_001))
        assert store.get(placed.key, 300_001) == (300_001, placed.payload)


def test_get_of_an_absent_key_is_a_miss(store):
    store.put(key_at(store, bucket=0), 1, 4, b"other")
    assert store.get((1, 2), 0, 0, DESCRIBE)[0] == c.MISS  # no read: it is not counted
    assert store.get((1, 2), 5)[0] == c.MISS
    assert store.counters() == {"misses": 1}


@pytest.mark.parametrize("room", [0, 99, 101, 60_000])
def test_get_of_a_wrong_size_says_the_length(store, room):
    placed = store.put(key_at(store), 1, 10, pattern(0, 100))
    assert store.get(placed.key, room)[0] == c.WRONG_SIZE
    assert store.scratch[c.LENGTH] == 100
    assert store.counters() == {}


def test_range_reads_a_part(store):
    placed = store.put(key_at(store), 2, 3, pattern(5, 9000))
    for offset, room in ((0, 9000), (0, 1), (4095, 3), (8999, 1), (9000, 0)):
        assert store.get(placed.key, room, offset, RANGE) == (room, placed.payload[offset : offset + room])
    for offset, room in ((8999, 2), (9001, 0), (0, 9001), (1 << 40, 1)):
        assert store.get(placed.key, room, offset, RANGE)[0] == c.WRONG_SIZE


def test_describe_reads_no_payload(store):
    placed = store.put(key_at(store), 2, 3, pattern(5, 9000))
    assert store.get(placed.key, 0, 0, DESCRIBE)[0] == 9000
    assert store.counters() == {}
    assert not any(nbytes == 9000 for _, _, _, nbytes in store.mpi.transfers)
    assert not store.touched(2).any()
    assert int(store.scratch[c.WORD]) == placed.word


def test_hits_and_bytes_are_counted_by_path(calls):
    store = MemoryStore(calls, rank=1, data={0, 1})
    for rank in range(3):
        placed = store.put(key_at(store, skip=rank), rank, rank, pattern(rank, 10 + rank))
        assert store.get(placed.key, 10 + rank)[0] == 10 + rank
    assert store.counters() == {
        "hits_node": 1, "bytes_node": 10, "hits_self": 1, "bytes_self": 11, "hits_remote": 1, "bytes_remote": 12,
    }  # fmt: skip


def test_keys_that_share_bucket_and_fingerprint(store):
    first, second, absent = colliding_keys(store, 3)
    placed = [store.put(first, 0, 1, b"first"), store.put(second, 1, 1, b"other")]
    assert store.get(first, 5) == (5, b"first")
    assert store.get(second, 5) == (5, b"other")
    assert store.signed[c.SLOT] == placed[1].slot
    assert store.get(absent, 5)[0] == c.MISS
    assert store.counters()["fingerprint_collisions"] == 3


def test_lowest_slot_wins(store):
    key = key_at(store)
    store.put(key, 1, 1, b"higher", slot=9)
    assert store.get(key, 6) == (6, b"higher")
    store.put(key, 2, 2, b"lowest", slot=4)
    assert store.get(key, 6) == (6, b"lowest")
    assert store.get_many([key], [6]) == ([6], [b"lowest"])


def stray_words(store: MemoryStore, key: Key) -> list[int]:
    """Words of a key's fingerprint that name no memory of the store."""
    fp = store.place(key).fp
    named = [(layout.TIER_DRAM, rank, 0) for rank in (3, 4, 4095)]
    named += [(layout.TIER_DRAM, 1, page) for page in (16, 17, layout.MAX_PAGES - 1)]
    named += [(tier, 1, 1) for tier in (layout.TIER_GPU, layout.TIER_DISK)]
    named += [(layout.TIER_ALIAS, 3, 0)]
    return [layout.pack_word(fp, 1, tier, rank, page) for tier, rank, page in named]


def test_a_stray_word_is_never_followed(store):
    key = key_at(store, home=1, bucket=2)
    # A descriptor where the stray words of other tiers point: following one would find the key.
    store.write_cell(1, 1, key, b"stray")
    strays = stray_words(store, key)
    store.words(1)[2, : len(strays)] = strays
    assert store.get(key, 5)[0] == c.MISS
    assert store.counters() == {"bad_words": 9, "misses": 1}
    assert store.call("find", *key, 0) == 0
    assert store.describe_many([key])[0] == [c.MISS]
    assert store.get_many([key], [5])[0] == [c.MISS]
    placed = store.put(key, 0, 3, b"right")
    assert placed.slot == 9
    assert store.get(key, 5) == (5, b"right")
    assert store.get_many([key], [5]) == ([5], [b"right"])
    assert store.describe_many([key])[0] == [5]
    assert store.call("find", *key, 0) == 1
    assert store.counters()["bad_words"] == 9 * 8


@pytest.mark.parametrize("length", [2 * 4096 + 1, 1 << 40, 1 << 63, (1 << 64) - 1, (1 << 64) - 5])
def test_a_length_that_leaves_the_arena_is_not_believed(store, length):
    placed = store.put(key_at(store), 2, 14, b"short")
    store.records(2)[14]["length"] = length
    room = min(length, 2 * 4096 + 1)
    assert store.get(placed.key, room)[0] == c.MISS
    assert store.get(placed.key, 10, 0, RANGE)[0] == c.MISS
    assert store.get(placed.key, 0, 0, DESCRIBE)[0] == c.MISS
    assert store.get_many([placed.key], [room])[0] == [c.MISS]
    assert store.describe_many([placed.key])[0] == [c.MISS]
    assert store.call("get_pinned", placed.word, *placed.key, 0, 0, 0) == c.MISS


def test_a_block_may_end_where_the_arena_ends(store):
    placed = store.put(key_at(store), 2, 14, pattern(3, 2 * 4096))
    assert store.get(placed.key, 2 * 4096) == (2 * 4096, placed.payload)
    assert store.get_many([placed.key], [2 * 4096]) == ([2 * 4096], [placed.payload])


@pytest.mark.parametrize("field", ["magic", "generation", "key_hi", "key_lo"])
def test_every_field_of_identity_is_compared(store, field):
    placed = store.put(key_at(store), 1, 2, b"value", generation=3)
    store.records(1)[2][field] += 1
    assert store.get(placed.key, 5)[0] == c.MISS
    assert store.get_many([placed.key], [5])[0] == [c.MISS]
    assert store.describe_many([placed.key])[0] == [c.MISS]
    assert store.call("find", *placed.key, 0) == 0
    assert store.call("get_pinned", placed.word, *placed.key, 0, 0, 0) == c.MISS
    assert store.counters()["fingerprint_collisions"] == 3


def test_checksums_are_compared_on_request(store):
    good, bad, plain = (key_at(store, skip=i) for i in range(3))
    store.put(good, 1, 2, b"value", checksum=True)
    store.put(bad, 1, 3, b"value", checksum=True)
    store.put(plain, 1, 4, b"value")
    store.arena(1)[3 * 4096] ^= 1
    store.arena(1)[4 * 4096] ^= 1
    assert [store.get(key, 5)[0] for key in (good, bad, plain)] == [5, 5, 5]
    store.context[c.VERIFY] = 1
    assert [store.get(key, 5)[0] for key in (good, bad, plain)] == [5, c.CORRUPT, 5]
    assert store.get_many([good, bad, plain], [5] * 3)[0] == [5, c.CORRUPT, 5]


def test_large_payloads_are_fetched_in_pieces(calls):
    gib, nbytes = 1 << 30, (5 << 29) + 3
    store = MemoryStore(calls, pages=4, page_bytes=gib, index=set(), data=set(), backed=64)
    placed = store.put(key_at(store), 1, 1, b"")
    store.records(1)[1]["length"] = nbytes
    store.mpi.pretend_from = 1 << 20
    assert store.call("get", *placed.key, 4096, nbytes, 0, WHOLE) == nbytes
    start = store.windows[DATA].shifts[1] + store.arena_at + gib
    pieces = [transfer for transfer in store.mpi.transfers if transfer[3] >= store.mpi.pretend_from]
    assert pieces == [
        (DATA, 1, start, gib), (DATA, 1, start + gib, gib), (DATA, 1, start + 2 * gib, nbytes - 2 * gib),
    ]  # fmt: skip


def test_calls_of_a_remote_get(remote):
    placed = remote.put(key_at(remote, home=2), 1, 3, b"value")
    remote.get(placed.key, 5)
    made = [call for call in remote.mpi.calls if call[0] != "delivery"]
    assert made == [
        ("get", INDEX, 2), ("flush", INDEX, 2),
        ("get", DATA, 1), ("get", DATA, 1), ("flush", DATA, 1),
        ("get", INDEX, 2), ("flush", INDEX, 2),
    ]  # fmt: skip


# --------------------------------------------------------------------------------- races: the word decides

READS = ["get", "range", "get_many"]


def read(store: MemoryStore, how: str, key: Key, room: int) -> tuple[int, bytes]:
    if how == "get":
        return store.get(key, room)
    if how == "range":
        return store.get(key, room, 0, RANGE)
    outcomes, buffers = store.get_many([key], [room])
    return outcomes[0], buffers[0]


@pytest.mark.parametrize("how", READS)
def test_nothing_happens_between_copy_and_recheck(store, how):
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    assert store.race(lambda: read(store, how, placed.key, 3000), lambda: None) == (3000, placed.payload)
    assert store.counters()["recheck_retries"] == 0


@pytest.mark.parametrize("how", READS)
def test_word_left_between_copy_and_recheck(store, how):
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    outcome, _ = store.race(lambda: read(store, how, placed.key, 3000), lambda: take_away(store, placed))
    assert outcome == c.MISS
    assert store.counters()["misses"] == 1


@pytest.mark.parametrize("how", READS)
def test_block_replaced_between_copy_and_recheck(store, how):
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    new = pattern(2, 3000)
    assert store.race(lambda: read(store, how, placed.key, 3000), lambda: replace(store, placed, 7, new)) == (3000, new)


def test_block_replaced_by_another_size_between_copy_and_recheck(store):
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    outcome, _ = store.race(lambda: store.get(placed.key, 3000), lambda: replace(store, placed, 7, b"new"))
    assert (outcome, store.scratch[c.LENGTH]) == (c.WRONG_SIZE, 3)
    placed = store.put(key_at(store, skip=1), 1, 3, pattern(1, 3000))
    results, _ = store.race(lambda: store.get_many([placed.key], [3000]), lambda: replace(store, placed, 8, b"newer"))
    assert results == [c.WRONG_FROM - 5]


def test_cell_reused_for_the_same_key_between_copy_and_recheck(store):
    """The new generation of the same cell: only the word tells."""
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    new = pattern(2, 3000)

    def reuse() -> None:
        store.words(placed.home)[placed.bucket, placed.slot] = 0
        store.put(placed.key, 1, 2, new, generation=2, slot=placed.slot)

    assert store.race(lambda: store.get(placed.key, 3000), reuse) == (3000, new)
    assert store.counters()["recheck_retries"] >= 1


@pytest.mark.parametrize("goes_to", [5, 2, 8])
@pytest.mark.parametrize("how", READS)
def test_a_block_that_moves_is_never_a_miss(store, how, goes_to):
    """The descriptor does not match, and by the time of the re-check the key has another word."""
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000), slot=5)
    store.records(1)[2]["magic"] = 0  # wiped: the cell was freed behind the reader's bucket

    def move() -> None:
        store.words(placed.home)[placed.bucket, 5] = 0
        store.put(placed.key, 2, 9, placed.payload, slot=goes_to)

    assert store.race(lambda: read(store, how, placed.key, 3000), move) == (3000, placed.payload)
    assert store.counters()["recheck_retries"] == 1 or how == "get_many"  # a batch's first doubt is no retry yet


def test_a_collision_that_stands_is_not_read_twice(store):
    """A mismatch with the word unchanged is another key's block: the next candidate, no retry."""
    first, second = colliding_keys(store, 2)
    store.put(first, 1, 2, b"first", slot=1)
    store.put(second, 1, 3, b"other", slot=2)
    assert store.race(lambda: store.get(second, 5), lambda: None) == (5, b"other")
    assert store.counters()["recheck_retries"] == 0
    assert store.counters()["fingerprint_collisions"] == 1


def test_a_word_that_changes_with_every_attempt(store):
    placed = store.put(key_at(store), 1, 0, b"v0000")
    values = iter(range(1, 20))

    def change() -> None:
        number = next(values)
        store.put(placed.key, 1, number % 16, b"v%04d" % number, number, slot=placed.slot)

    outcome, _ = store.race(lambda: store.get(placed.key, 5), change, change, change, change)
    assert outcome == c.CHANGED
    assert store.counters() == {"recheck_retries": 4, "retries_exhausted": 1}
    placed = store.put(placed.key, 1, 15, b"after", 99, slot=placed.slot)
    assert store.race(lambda: store.get(placed.key, 5), change, change, change) == (5, b"v%04d" % 7)


def test_an_attempt_that_takes_too_long_is_repeated(store):
    """Generations may have gone round: nothing that was read counts."""
    placed = store.put(key_at(store), 1, 2, b"value")
    store.mpi.step = 11  # one more than ATTEMPT each time that the clock is looked at
    assert store.get(placed.key, 5)[0] == c.CHANGED
    assert store.counters() == {"recheck_retries": 4, "retries_exhausted": 1}
    assert store.get_many([placed.key], [5])[0] == [c.CHANGED]
    store.mpi.step = 10
    assert store.get(placed.key, 5) == (5, b"value")
    store.mpi.step = 0

    def sleep() -> None:
        store.mpi.now += 1000

    assert store.race(lambda: store.get(placed.key, 5), sleep) == (5, b"value")
    assert store.counters()["recheck_retries"] == 9
    assert store.race(lambda: store.get_many([placed.key], [5]), sleep) == ([5], [b"value"])


# What the network may do: a Get takes effect at any time between its call and the Flush.


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("moment", [0, 1])
@pytest.mark.parametrize("path", ["remote", "data-away"])
def test_payload_that_arrives_late_is_checked_after_its_flush(calls, path, moment, how):
    """The cell changes hands before (0) or between (1) the arrival of descriptor and payload."""
    store = MemoryStore(calls, **PATHS[path])
    store.mpi.eager = {INDEX}  # a re-check that is issued too early reads the old word
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    new = pattern(2, 3000)
    store.mpi.before("delivery", DATA, lambda: replace(store, placed, 7, new), skip=moment)
    assert read(store, how, placed.key, 3000) == (3000, new)


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("path", ["remote", "data-away"])
def test_payload_that_is_read_early_is_checked_after_its_flush(calls, path, how):
    """The descriptor is read when it is asked for, the payload after the cell has changed hands."""
    store = MemoryStore(calls, **PATHS[path])
    store.mpi.eager = {INDEX, DATA}
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    store.mpi.before("get", DATA, lambda: take_away(store, placed), skip=1)
    outcome, _ = read(store, how, placed.key, 3000)
    assert outcome == c.MISS


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("path", ["remote", "data-away"])
def test_payload_that_is_overtaken_by_its_descriptor(calls, path, how):
    """Descriptor and words are there at once, the payload only with its Flush."""
    store = MemoryStore(calls, **PATHS[path])
    store.mpi.eager_upto = 128
    placed = store.put(key_at(store), 1, 2, pattern(1, 3000))
    assert read(store, how, placed.key, 3000) == (3000, placed.payload)
    assert store.mpi.count("flush", DATA) == 1


def test_bucket_changes_before_it_arrives(remote):
    placed = remote.put(key_at(remote), 1, 2, b"value")
    remote.mpi.before("flush", INDEX, lambda: take_away(remote, placed))
    assert remote.get(placed.key, 5)[0] == c.MISS
    assert remote.counters() == {"misses": 1}


def test_one_key_of_a_batch_changes(store):
    """The others are read as if nothing had happened."""
    blocks = [store.put(key_at(store, skip=i), 1 + i % 2, i, pattern(i, 700)) for i in range(12)]
    new = pattern(99, 700)
    results, buffers = store.race(
        lambda: store.get_many([block.key for block in blocks], [700] * 12), lambda: replace(store, blocks[0], 15, new)
    )
    assert results == [700] * 12
    assert buffers == [new] + [block.payload for block in blocks[1:]]


# ------------------------------------------------------------------------------------------------ batches


@pytest.fixture(scope="module")
def mixture():
    """What a batch can meet: (key, room, expected result, expected bytes or None), and how to build the store."""
    rng = np.random.default_rng(7)
    blocks: list[tuple[Key, int, int, bytes]] = []
    lines: list[tuple[Key, int, int, bytes | None]] = []
    for i in range(400):
        payload = rng.bytes(int(rng.integers(0, 300)))
        blocks.append(((int(rng.integers(1 << 63)), i), i % 4, i // 4, payload))
    for i in rng.integers(0, 400, 700):
        key, _, _, payload = blocks[i]
        match int(rng.integers(4)):
            case 0:
                lines.append(((5, int(i)), 10, c.MISS, None))
            case 1:
                lines.append((key, len(payload) + 1 + int(i) % 3, c.WRONG_FROM - len(payload), None))
            case _:
                lines.append((key, len(payload), len(payload), payload))
    return blocks, lines


MIXED_PATHS = {
    "mapped": {},
    "remote": {"index": set(), "data": set()},
    "some": {"index": {0, 1}, "data": {0, 2}},
    "index-away": {"index": set()},
    "data-away": {"data": set()},
}


def mixed_store(calls: str, path: str, blocks: list[tuple[Key, int, int, bytes]]) -> MemoryStore:
    where: dict = MIXED_PATHS[path]
    store = MemoryStore(calls, ranks=4, pages=128, page_bytes=512, buckets=16, **where)
    for key, rank, page, payload in blocks:
        store.put(key, rank, page, payload)
    return store


@pytest.mark.parametrize("path", MIXED_PATHS)
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 600])
def test_batches_of_all_sizes(calls, path, n, mixture):
    blocks, lines = mixture
    store, lines = mixed_store(calls, path, blocks), lines[:n]
    cells = store.cells()
    results, buffers = store.get_many([line[0] for line in lines], [line[1] for line in lines])
    assert results == [line[2] for line in lines]
    for buffer, line in zip(buffers, lines, strict=True):
        assert line[3] is None or buffer == line[3]
    counted = store.counters()
    assert counted["misses"] == results.count(c.MISS)
    assert sum(counted[f"hits_{where}"] for where in ("self", "node", "remote")) == sum(r >= 0 for r in results)
    assert sum(counted[f"bytes_{where}"] for where in ("self", "node", "remote")) == sum(r for r in results if r > 0)
    assert store.cells() == cells


@pytest.mark.parametrize("path", MIXED_PATHS)
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 600])
def test_looks_of_all_sizes(calls, path, n, mixture):
    blocks, lines = mixture
    store, keys = mixed_store(calls, path, blocks), [line[0] for line in lines[:n]]
    held = {key: (rank, page, payload) for key, rank, page, payload in blocks}
    exact = [len(held[key][2]) if key in held else c.MISS for key in keys]
    results, records = store.describe_many(keys)
    assert results == exact
    for key, record in zip(keys, records, strict=True):
        wanted = store.records(held[key][0])[held[key][1]].tobytes() if key in held else bytes(128)
        assert record.tobytes() == wanted
    assert store.describe_many(keys, descriptors=False)[0] == exact
    probed = []
    for key in keys:
        home, bucket, fp = store.place(key)
        row = store.words(home)[bucket]
        probed.append(int(any(word and int(word) >> layout.FP_SHIFT == fp for word in row)))
    assert store.probe_many(keys) == probed
    assert all(seen for seen, length in zip(probed, exact, strict=True) if length >= 0)
    assert store.counters()["misses"] == 0


def test_a_batch_flushes_once_per_target_and_phase(calls):
    store = MemoryStore(calls, ranks=3, pages=600, page_bytes=64, buckets=64, index=set(), data=set())
    # No two of one bucket and fingerprint: the second would go the long way.
    keys = list({store.place((3, i)): (3, i) for i in range(620)}.values())[:600]
    for i, key in enumerate(keys):
        store.put(key, i % 3, i // 3, b"%05d" % i)
    assert store.get_many(keys, [5] * 600)[0] == [5] * 600
    # 3 chunks, 3 ranks: buckets and re-checks at the index, descriptors and payloads at the data.
    assert (store.mpi.count("flush", INDEX), store.mpi.count("flush", DATA)) == (18, 9)
    assert (store.mpi.count("get", INDEX), store.mpi.count("get", DATA)) == (1200, 1200)
    store.mpi.calls.clear()
    assert store.describe_many(keys)[0] == [5] * 600
    assert (store.mpi.count("flush", INDEX), store.mpi.count("flush", DATA)) == (9, 9)
    assert (store.mpi.count("get", INDEX), store.mpi.count("get", DATA)) == (600, 600)
    store.mpi.calls.clear()
    assert store.probe_many(keys) == [1] * 600
    assert (store.mpi.count("flush"), store.mpi.count("get")) == (9, 600)


def test_colliding_keys_in_a_batch(store):
    keys = colliding_keys(store, 3)
    for page, key in enumerate(keys[:2]):
        store.put(key, 1, page, b"value%d" % page)
    assert store.get_many(keys, [6] * 3)[0] == [6, 6, c.MISS]
    results, records = store.describe_many(keys)
    assert results == [6, 6, c.MISS]
    assert records["key_lo"].tolist() == [keys[0][1], keys[1][1], 0]
    assert store.probe_many(keys) == [1, 1, 1]


# -------------------------------------------------------------------------------------------- single steps


def test_publish_into_an_empty_slot(store):
    key = key_at(store, home=2, bucket=1)
    word = store.write_cell(0, 5, key, b"value")
    assert store.call("publish", 2, 1, 3, 0, word) == 0
    assert store.words(2)[1].tolist() == [0, 0, 0, word] + [0] * 12
    assert store.mpi.count("cas", INDEX, 2) == 1  # always through MPI, on the own node too
    assert store.get(key, 5) == (5, b"value")


def test_publish_over_an_old_word(store):
    placed = store.put(key_at(store), 1, 5, b"value", slot=3)
    word = store.write_cell(0, 6, placed.key, b"newer")
    assert store.call("publish", placed.home, placed.bucket, 3, placed.word, word) == 0
    assert store.get(placed.key, 5) == (5, b"newer")


def test_publish_that_loses_changes_nothing(store):
    key = key_at(store, home=1, bucket=2)
    word = store.write_cell(0, 5, key, b"value")
    store.mpi.before("cas", INDEX, lambda: store.put(key_at(store, home=1, bucket=2, skip=1), 2, 2, b"first", slot=3))
    before = store.windows[INDEX].memory[1].copy()
    assert store.call("publish", 1, 2, 3, 0, word) == c.CHANGED
    changed = np.flatnonzero(store.windows[INDEX].memory[1].view(np.uint64) != before.view(np.uint64))
    assert changed.tolist() == [2 * 16 + 3]  # the winner's word, nothing of the loser
    assert store.words(1)[2, 3] != word


def test_publish_counts_the_other_words_of_its_fingerprint(store):
    """The bucket is looked at after the CAS: a word that came meanwhile is seen."""
    first, second = colliding_keys(store, 2)
    home, bucket, _ = store.place(first)
    store.put(second, 1, 7, b"other", slot=9)
    store.put(key_at(store, home=home, bucket=bucket, skip=0), 1, 8, b"plain", slot=10)
    word = store.write_cell(0, 5, first, b"value")
    store.mpi.before("cas", INDEX, lambda: store.put(first, 2, 6, b"rival", slot=4))
    assert store.call("publish", home, bucket, 0, 0, word) == 2
    assert store.call("find", *first, word) == 2
    assert [slot for slot, _ in store.found()] == [0, 4]


def test_remove(store):
    placed = store.put(key_at(store), 1, 5, b"value", slot=3)
    assert store.call("remove", placed.home, placed.bucket, 4, placed.word) == 0
    assert store.call("remove", placed.home, placed.bucket, 3, placed.word + 1) == 0
    assert store.words(placed.home)[placed.bucket, 3] == placed.word
    assert store.call("remove", placed.home, placed.bucket, 3, placed.word) == 1
    assert not store.words(placed.home).any()
    assert store.call("remove", placed.home, placed.bucket, 3, placed.word) == 0
    assert store.mpi.count("cas", INDEX, placed.home) == 4


def test_slot_of(store):
    placed = store.put(key_at(store, home=2, bucket=3), 1, 5, b"value", slot=15)
    assert store.call("slot_of", *placed.key, placed.word) == 15
    assert (store.signed[c.HOME], store.signed[c.BUCKET]) == (2, 3)
    assert store.call("slot_of", *placed.key, placed.word + 1) == c.MISS
    assert store.call("slot_of", *placed.key, placed.word + layout.HARD * 2) == c.MISS


def test_slot_of_finds_a_word_whose_hard_bit_was_toggled(store):
    placed = store.put(key_at(store, home=2, bucket=3), 1, 5, b"value", slot=4)
    toggled = placed.word ^ layout.HARD
    assert store.call("swap", 2, 3, 4, placed.word, toggled) == 1
    assert store.call("swap", 2, 3, 4, placed.word, toggled) == 0
    assert int(store.words(2)[3, 4]) == toggled
    assert store.call("slot_of", *placed.key, placed.word) == 4
    assert int(store.scratch[c.WORD]) == toggled
    assert store.call("slot_of", *placed.key, toggled) == 4


# ------------------------------------------------------------------------------------------------ expiry


def set_clock(store: MemoryStore, seconds: int) -> None:
    """Let it be so many seconds since the opening."""
    store.context[c.EPOCH] = store.mpi.now // onesided.TICKS - seconds


def test_an_expired_block_is_a_miss_on_every_path(store):
    key, payload = key_at(store), pattern(3, 500)
    placed = store.put(key, 1, 1, payload, expiry=50)
    lasting = store.put(key_at(store, skip=1), 2, 2, payload)
    for now, live in ((-5, True), (0, True), (49, True), (50, False), (1 << 33, False)):
        set_clock(store, now)
        hit = (500, payload) if live else c.MISS
        for found in (store.get(key, 500), store.get(key, 500, 0, RANGE)):
            assert found == hit or found[0] == hit
        assert store.get(key, 0, 0, DESCRIBE)[0] == (500 if live else c.MISS)
        assert store.get(key, 499)[0] == (c.WRONG_SIZE if live else c.MISS)
        target = np.zeros(500, np.uint8)
        wanted = 500 if live else c.MISS
        assert store.call("get_pinned", placed.word, *key, target.ctypes.data, 500, 0) == wanted
        assert store.get_many([key, lasting.key], [500, 500])[0] == [wanted, 500]
        assert store.describe_many([key, lasting.key])[0] == [wanted, 500]
        assert store.call("find", *key, 0) == 1  # a put replaces it, a delete takes it away
        assert store.signed[c.FOUND_LIVE] == int(live)
        assert int(store.scratch[c.FOUND_LENGTHS]) == 500


def test_a_block_behind_an_expired_one_is_older(store):
    """Of several words of a key the lowest counts, expired or not."""
    key = key_at(store)
    store.put(key, 1, 1, b"older", slot=9)
    store.put(key, 2, 2, b"newer", slot=4, expiry=50)
    set_clock(store, 49)
    assert store.get(key, 5) == (5, b"newer")
    set_clock(store, 50)
    assert store.get(key, 5)[0] == c.MISS
    assert store.get_many([key], [5])[0] == [c.MISS]
    assert store.describe_many([key])[0] == [c.MISS]
    assert store.call("find", *key, 0) == 2
    assert store.signed[c.FOUND_LIVE] == 0


def test_a_torn_expiry_is_settled_by_the_word(remote):
    """A descriptor of the next block in the cell says that it has expired: the word that has left decides."""
    placed = remote.put(key_at(remote), 1, 3, b"value")

    def replaced() -> None:
        replace(remote, placed, 4, b"newer")
        remote.write_cell(1, 3, placed.key, b"value", expiry=1)

    set_clock(remote, 99)
    remote.mpi.before("get", DATA, replaced)
    assert remote.get(placed.key, 5) == (5, b"newer")


def test_find_names_every_word_of_a_key(store):
    first, second = colliding_keys(store, 2)
    words = [store.put(first, 1, page, b"value", slot=slot).word for page, slot in ((1, 2), (2, 7))]
    store.put(second, 1, 3, b"other", slot=4)
    assert store.call("find", *first, 0) == 2
    assert store.found() == [(2, words[0]), (7, words[1])]
    assert store.signed[c.FREE_SLOT] == 0
    assert store.counters()["recheck_retries"] == 0
    assert store.call("find", *second, 0) == 1
    assert store.call("find", 5, 5, 0) == 0


def test_find_trusts_the_word_that_the_caller_knows(store):
    placed = store.put(key_at(store), 1, 1, b"value")
    store.records(1)[1]["magic"] = 0
    assert store.call("find", *placed.key, placed.word) == 1
    assert store.call("find", *placed.key, 0) == 0


def test_find_in_a_full_bucket(store):
    key = key_at(store, home=1, bucket=1)
    other = store.place(key).fp ^ 1
    store.words(1)[1] = [layout.pack_word(other, 1, layout.TIER_DRAM, 0, page) for page in range(16)]
    assert store.call("find", *key, 0) == 0
    assert store.signed[c.FREE_SLOT] == -1
    store.words(1)[1, [3, 11]] = 0
    assert store.call("find", *key, 0) == 0
    assert store.signed[c.FREE_SLOT] == 3


@pytest.mark.parametrize("flags", [0, layout.FLAG_CHECKSUM, layout.FLAG_PREFIX | layout.FLAG_CHECKSUM])
@pytest.mark.parametrize("nbytes", [0, 500, 300_001])
def test_write_cell_makes_descriptor_payload_and_word(flags, nbytes):
    store, key, page = MemoryStore(pages=90, rank=2), (5, 6), 7
    payload, dims = np.frombuffer(pattern(1, nbytes), np.uint8), np.arange(7, dtype=np.uint32)
    store.windows[DATA].memory[2][store.descriptor_at :] = 0x5A
    before = store.windows[DATA].memory[2].copy()
    values = (3, flags, nbytes, 11, 15, 12, 2, 13, 14, dims.ctypes.data, payload.ctypes.data, 0, 16, 17)
    word = probe.write_cell(store.ctx, page, *key, *values)
    assert word == layout.pack_word(
        store.place(key).fp, 3, layout.TIER_DRAM, 2, page, hard=bool(flags & layout.FLAG_PREFIX)
    )
    record = store.records(2)[page]
    wanted = {
        "magic": layout.MAGIC, "generation": 3, "flags": flags, "length": nbytes, "key_hi": 5, "key_lo": 6,
        "content_hi": 0, "content_lo": 0, "checksum": checksum_twin(payload) if flags & layout.FLAG_CHECKSUM else 0,
        "namespace": 11, "epoch": 15, "expiry": 16, "sequence": 13, "manager": 2, "dtype": 12, "ndim": 2, "dim0": 14,
        "depth": 17,
    }  # fmt: skip
    assert {name: int(record[name]) for name in wanted} == wanted
    assert record["dims"].tolist() == dims.tolist()
    start = store.arena_at + page * store.page_bytes
    after = store.windows[DATA].memory[2]
    assert after[start : start + nbytes].tobytes() == payload.tobytes()
    changed = np.flatnonzero(after != before)
    at = store.descriptor_at + 128 * page
    own = ((changed >= at) & (changed < at + 128)) | ((changed >= start) & (changed < start + nbytes))
    assert own.all()


@pytest.mark.parametrize("path", ["remote", "index-away"])
def test_find_looks_again_when_a_mismatched_word_has_changed(calls, path):
    """Otherwise a delete would be acknowledged while the moved block stays."""
    store = MemoryStore(calls, **PATHS[path])
    placed = store.put(key_at(store), 1, 1, b"value", slot=5)
    store.records(1)[1]["magic"] = 0
    moved: list[Placed] = []

    def move() -> None:
        store.words(placed.home)[placed.bucket, 5] = 0
        moved.append(store.put(placed.key, 2, 2, b"value", slot=2))

    store.mpi.before("flush", INDEX, move, skip=1)  # that of the re-check
    assert store.call("find", *placed.key, 0) == 1
    assert store.found() == [(2, moved[0].word)]
    assert store.counters()["recheck_retries"] == 1


def test_find_gives_up_on_a_bucket_that_never_holds_still(calls):
    store = MemoryStore(calls, index=set())
    placed = store.put(key_at(store), 1, 1, b"value", slot=5)
    store.records(1)[1]["magic"] = 0
    row, generation = store.words(placed.home)[placed.bucket], layout.GENERATION_SHIFT
    flush = store.mpi.flush

    def changing_flush(rank: int, window: int) -> int:
        result = flush(rank, window)
        row[5] ^= np.uint64(2 << generation)
        return result

    store.mpi.flush = changing_flush
    assert store.call("find", *placed.key, 0) == c.CHANGED
    assert store.counters() == {"recheck_retries": 1000}


def test_hint_gone_marks_one_page(store):
    word = layout.pack_word(1, 1, layout.TIER_DRAM, 2, 6)
    before = [memory.copy() for memory in store.windows[DATA].memory]
    assert store.call("hint_gone", word) == 0
    assert store.gone(2).tolist() == [0] * 6 + [1] + [0] * 9
    store.gone(2)[6] = 0
    assert all((memory == old).all() for memory, old in zip(store.windows[DATA].memory, before, strict=True))


# --------------------------------------------------------------------------------------------------- pins


def pin(store: MemoryStore, placed: Placed, pin_slot: int = 3) -> int:
    return store.call("pin", placed.word, pin_slot, placed.home, placed.bucket, placed.slot)


def test_pin_and_unpin(calls):
    for where in PATHS.values():
        store = MemoryStore(calls, rank=2, **where)
        placed = store.put(key_at(store), 1, 5, b"value", slot=2)
        assert pin(store, placed) == 1
        assert np.argwhere(store.pin_words(1)).tolist() == [[2, 3]]
        assert store.pin_words(1)[2, 3] == placed.word
        assert not store.pin_words(0).any()
        assert store.call("unpin", 1, 3) == 0
        assert not store.pin_words(1).any()


def test_pin_of_a_word_that_has_left_is_cleared(store):
    placed = store.put(key_at(store), 1, 5, b"value", slot=2)
    take_away(store, placed)
    assert pin(store, placed) == 0
    assert not store.pin_words(1).any()


@pytest.mark.parametrize("path", ["remote", "index-away"])
def test_pin_then_recheck(calls, path):
    """The manager removes the word and then looks at the pins: one of the two must see the other."""
    store = MemoryStore(calls, **PATHS[path])
    placed = store.put(key_at(store), 1, 5, b"value", slot=2)
    seen: list[int] = []

    def reclaim() -> None:
        seen.append(int(store.pin_words(1)[0, 3]))
        take_away(store, placed)

    store.mpi.eager = {INDEX}
    store.mpi.before("get", INDEX, reclaim)
    assert pin(store, placed) == 0
    assert seen == [placed.word]
    assert not store.pin_words(1).any()


def test_a_pinned_cell_is_read_without_its_word(store):
    placed = store.put(key_at(store), 1, 5, pattern(1, 5000), slot=2)
    assert pin(store, placed) == 1
    store.words(placed.home)[placed.bucket, 2] = 0
    store.mpi.calls.clear()
    target = np.zeros(100, np.uint8)
    assert store.call("get_pinned", placed.word, *placed.key, target.ctypes.data, 100, 4900) == 100
    assert target.tobytes() == placed.payload[4900:]
    assert store.call("get_pinned", placed.word, *placed.key, target.ctypes.data, 100, 4901) == c.WRONG_SIZE
    assert store.call("get_pinned", placed.word, *placed.key[::-1], target.ctypes.data, 100, 0) == c.MISS
    assert store.mpi.count("get", INDEX) == 0
    assert sum(store.counters()[f"hits_{where}"] for where in ("self", "node", "remote")) == 1


# ------------------------------------------------------------------------------------- touches and progress


def test_touches_go_into_the_touch_array_only(store):
    blocks = [store.put(key_at(store, skip=i), 1, 2 * i, pattern(i, 5000)) for i in range(5)]
    cells, pages = store.cells(), [0, 2, 4, 6, 8]
    index = store.windows[INDEX].memory[1].tobytes()
    store.mpi.now = 1234
    for block in blocks[:3]:
        assert store.get(block.key, 5000)[0] == 5000
    assert store.get_many([block.key for block in blocks[3:]], [5000] * 2)[0] == [5000] * 2
    store.call("poll")
    assert np.flatnonzero(store.touched(1)).tolist() == pages
    assert set(store.touched(1)[pages].tolist()) == {1234 - 1000}
    assert store.cells() == cells
    assert store.windows[INDEX].memory[1].tobytes() == index
    assert not store.touched(0).any()
    assert not store.gone(1).any()


def test_remote_touches_are_sent_once_per_cell_and_second(remote):
    blocks = [remote.put(key_at(remote, skip=i), 1 + i % 2, i, b"value") for i in range(4)]
    for _ in range(3):
        for block in blocks:
            remote.get(block.key, 5)
    assert remote.mpi.count("put") == 0  # they wait for the next poll
    assert not remote.touched(1).any()
    remote.mpi.calls.clear()
    remote.call("poll")
    assert remote.mpi.count("put", DATA) == 4
    assert remote.mpi.count("flush", DATA) == 2
    remote.call("poll")
    for block in blocks:
        remote.get(block.key, 5)
    remote.call("poll")
    assert remote.mpi.count("put", DATA) == 4
    remote.mpi.now += onesided.TICKS - 1
    remote.get(blocks[0].key, 5)
    remote.call("poll")
    assert remote.mpi.count("put", DATA) == 4  # still within a second
    remote.mpi.now += 1
    remote.get(blocks[0].key, 5)
    remote.call("poll")
    assert remote.mpi.count("put", DATA) == 5
    assert remote.touched(blocks[0].rank)[blocks[0].page] == remote.mpi.now - 1000


def test_touches_that_nobody_sends_are_dropped(calls):
    store = MemoryStore(calls, pages=100, page_bytes=64, buckets=16, data=set())
    for i in range(100):
        placed = store.put((3, i), 1, i, b"value")
        assert store.get(placed.key, 5)[0] == 5
    assert store.signed[c.TOUCHES] == c.TOUCH_RING_ENTRIES
    store.call("poll")
    touched = np.count_nonzero(store.touched(1))
    assert touched == store.mpi.count("put", DATA)
    assert 32 < touched <= c.TOUCH_RING_ENTRIES


def test_misses_and_wrong_sizes_touch_nothing(store):
    placed = store.put(key_at(store), 1, 2, b"value")
    store.get(placed.key, 4)
    store.get((1, 2), 4)
    store.call("find", *placed.key, 0)
    store.describe_many([placed.key])
    store.probe_many([placed.key])
    store.call("poll")
    assert not store.touched(1).any()


def test_public_reads_end_in_mpi_when_asked(store):
    placed = store.put(key_at(store), 1, 2, b"value")

    def reads() -> None:
        store.get(placed.key, 5)
        store.get_many([placed.key], [5])
        store.describe_many([placed.key])
        store.probe_many([placed.key])

    reads()
    assert store.mpi.count("iprobe") == 0
    store.context[c.POLL] = 1
    reads()
    assert store.mpi.count("iprobe") == 4
    store.context[c.POLL] = 0
    store.call("poll")
    assert store.mpi.count("iprobe") == 5


# ---------------------------------------------------------------------------------------------- MPI errors


def error_cases() -> list[tuple[str, str, int]]:
    """(call, the MPI function that fails in it, how many calls of it succeed before)."""
    cases = [("get", "get", skip) for skip in range(4)] + [("get", "flush", skip) for skip in range(3)]
    cases += [("get_many", "get", skip) for skip in range(4)] + [("get_many", "flush", skip) for skip in range(3)]
    cases += [("describe_many", "get", 0), ("describe_many", "get", 1), ("describe_many", "flush", 1)]
    cases += [("probe_many", "get", 0), ("probe_many", "flush", 0)]
    cases += [("find", "get", 0), ("find", "get", 1), ("find", "flush", 1), ("slot_of", "flush", 0)]
    cases += [("publish", "cas", 0), ("publish", "flush", 0), ("publish", "get", 0), ("remove", "cas", 0)]
    cases += [("swap", "cas", 0), ("swap", "flush", 0)]
    cases += [("pin", "put", 0), ("pin", "flush", 1), ("unpin", "put", 0), ("hint_gone", "put", 0)]
    return [*cases, ("get_pinned", "flush", 0)]


@pytest.mark.parametrize(("name", "function", "skip"), error_cases())
def test_mpi_errors_are_reported(remote, name, function, skip):
    placed = remote.put(key_at(remote), 1, 2, b"value", slot=1)
    keys, room = np.array([placed.key], np.uint64), np.array([5], np.int64)
    target, result = np.zeros(5, np.uint8), np.zeros(1, np.int64)
    address, at = target.ctypes.data, (placed.home, placed.bucket, placed.slot)
    targets = np.array([address], np.int64)
    areas = (result.ctypes.data, remote.work.ctypes.data, remote.flags.ctypes.data)
    batch = (keys.ctypes.data, 1)
    args = {
        "get": (*placed.key, address, 5, 0, WHOLE),
        "get_pinned": (placed.word, *placed.key, address, 5, 0),
        "find": (*placed.key, 0),
        "slot_of": (*placed.key, placed.word),
        "publish": (*at, placed.word, placed.word + (1 << layout.GENERATION_SHIFT)),
        "remove": (*at, placed.word),
        "swap": (*at, placed.word, placed.word ^ layout.HARD),
        "hint_gone": (placed.word,),
        "pin": (placed.word, 0, *at),
        "unpin": (1, 0),
        "get_many": (*batch, targets.ctypes.data, room.ctypes.data, *areas),
        "describe_many": (*batch, 0, *areas),
        "probe_many": (*batch, *areas),
    }[name]

    remote.mpi.fail(function, skip, 15)
    assert remote.failing_call(name, *args) == c.MPI_FAILED
    assert remote.signed[c.MPI_ERROR] == 15


# ------------------------------------------------------------------------------------------------ the twin


@pytest.mark.parametrize("path", MIXED_PATHS)
def test_both_implementations_do_the_same(path, mixture):
    """The same MPI calls in the same order, the same results, scratch and memory."""
    blocks, lines = mixture
    stores = [mixed_store(calls, path, blocks) for calls in ("compiled", "python")]
    seen = []
    for store in stores:
        rng = np.random.default_rng(3)
        log: list[object] = []
        for key, room, _, _ in lines[:60]:
            log.append(store.get(key, room)[0])
            log.append(store.get(key, room // 2, room // 4, RANGE)[0])
            log.append(store.call("find", *key, 0))
            if store.signed[c.FOUND]:
                (slot, word), *_ = store.found()
                at = int(store.signed[c.HOME]), int(store.signed[c.BUCKET]), slot
                log.append(store.call("pin", word, int(rng.integers(8)), *at))
                log.append(store.call("slot_of", *key, word))
                log.append(store.call("publish", *at, word, word ^ layout.HARD))
                log.append(store.call("swap", *at, word, word ^ layout.HARD))
                log.append(store.call("swap", *at, word ^ layout.HARD, word))
                log.append(store.call("swap", *at, word, word ^ layout.HARD))
                log.append(store.call("slot_of", *key, word))
                log.append(store.call("hint_gone", word))
                if rng.integers(3) == 0:
                    log.append(store.call("remove", *at, word ^ layout.HARD))
                log.append(store.call("unpin", int(rng.integers(4)), int(rng.integers(8))))
        log.append(store.get_many([line[0] for line in lines], [line[1] for line in lines])[0])
        log.append(store.describe_many([line[0] for line in lines])[0])
        log.append(store.probe_many([line[0] for line in lines]))
        store.call("poll")
        memory = [area.tobytes() for window in store.windows for area in window.areas]
        results = store.scratch[
            [c.LENGTH, c.WORD, c.SLOT, c.HOME, c.BUCKET, c.FOUND, c.FREE_SLOT, c.FOUND_LIVE]
        ].tolist()
        rings = store.scratch[c.TOUCHES : c.COUNTERS + c.COUNTER_WORDS].tolist(), store.scratch[c.TOUCH_RING :].tolist()
        seen.append((log, store.mpi.calls, store.mpi.transfers, results, rings, memory))
    for compiled, python in zip(*seen, strict=True):
        assert compiled == python


def test_both_implementations_have_the_same_calls():
    from cascade_mpi.onesided_python import PythonCalls

    for name in CALLS:
        kernel = getattr(onesided, name)
        arguments = kernel.python.__code__.co_varnames[: kernel.python.__code__.co_argcount]
        twin = getattr(PythonCalls, name)
        code = getattr(twin, "__wrapped__", twin).__code__
        assert code.co_varnames[1 : code.co_argcount] == arguments
        assert len(kernel.signature) == len(arguments)
