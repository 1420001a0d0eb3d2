"""Contents that are stored once: on all ranks, in each window layout, raced, and beside a dictionary.

Covers what a user sees of identity "content": which contents are one, the counters, namespaces and tenants, expiry,
quotas, lists, copies. Does not cover each rule at its moment (`test_dedup_steps`) nor the reads' steps
(`tests/unit/test_onesided_aliases.py`).
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import VARIANTS
from mpi4py import MPI
from patterns import block

from bench.dedup_share import measure
from cascade_mpi import contents
from cascade_mpi.errors import NotConfiguredError, ProtocolError, StoreFullError
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import FLAG_COPY, place
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store

Open = Callable[..., Store]
SPACE = Namespace("contents", identity="content")
NBYTES = 20_000
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def opened(open_store: Open, comm: MPI.Intracomm, variant: str = "", **settings: Any) -> Store:
    return open_store(comm, **({"namespace": SPACE} | VARIANTS.get(variant, {}) | settings))


def totals(store: Store) -> dict[str, int]:
    """Collective. What all ranks have saved and hold."""
    every = store.stats_all()
    found = {name: sum(each[name] for each in every) for name in ("dedup_hits", "dedup_saved_bytes", "puts")}
    return found | {name: sum(each["dedup"][name] for each in every) for name in ("contents", "aliases")}


def is_read(store: Store, key: Any, expected: np.ndarray, **more: Any) -> bool:
    out = np.zeros_like(expected)
    return store.get(key, out, **more) == expected.nbytes and np.array_equal(out, expected)


# ------------------------------------------------------------------------------------------------- one content


@each_variant
@pytest.mark.core
def test_the_same_content_at_the_same_time_is_stored_once(
    variant: str, open_store: Open, comm: MPI.Intracomm, assert_all: Callable[..., None]
) -> None:
    store = opened(open_store, comm, variant)
    rounds = 20
    for number in range(rounds):
        comm.Barrier()
        result = store.put((number, comm.rank)[1] + 100 * number, block(number, NBYTES))
        assert result.stored and result.bytes == NBYTES
    comm.Barrier()
    wrong = [
        (number, rank) for number in range(rounds) for rank in range(comm.size)
        if not is_read(store, rank + 100 * number, block(number, NBYTES))
    ]  # fmt: skip
    assert_all(comm, not wrong, str(wrong))
    found = totals(store)
    assert found["contents"] == rounds
    assert found["aliases"] == found["puts"] == rounds * comm.size
    assert found["dedup_hits"] == rounds * (comm.size - 1)
    assert found["dedup_saved_bytes"] == found["dedup_hits"] * NBYTES
    store.check()


@each_variant
def test_every_way_to_read_a_name(variant: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, variant)
    value = block(7, NBYTES).view(np.float16).reshape(10, -1)
    comm.Barrier()
    assert store.put(f"mine {comm.rank}", value)
    comm.Barrier()
    keys = [f"mine {rank}" for rank in range(comm.size)] + ["absent"]
    for key in keys[:-1]:
        assert store.contains(key) and store.contains(key, exact=False)
        assert np.array_equal(store.get(key), value, equal_nan=True)
        assert np.array_equal(store.get_range(key, 99, 1001), value.view(np.uint8).reshape(-1)[99:1100])
        where = store.locate(key)
        assert (where.nbytes, where.dtype, where.shape, where.tier) == (NBYTES, "float16", value.shape, "dram")
        if where.path != "remote":
            with store.view(key) as seen:
                assert seen.tobytes() == value.tobytes()
        pin = store.pin(key)
        assert pin is not None
        pin.release()
    assert store.contains_many(keys).tolist() == [True] * comm.size + [False]
    found = store.get_many(keys)
    assert found[-1] is None and all(each.tobytes() == value.tobytes() for each in found[:-1])
    outs = [np.zeros(value.shape, np.float16) for _ in keys]
    assert store.get_many(keys, outs) == [NBYTES] * comm.size + [None]
    assert all(out.tobytes() == value.tobytes() for out in outs[:-1])
    comm.Barrier()
    [listed] = store.scan(SPACE)
    assert (listed.nbytes, listed.dtype, listed.shape) == (NBYTES, "float16", value.shape)
    assert store.contains(listed.key)
    assert len(store.scan_all(SPACE)) == comm.size
    store.check()


def test_other_bytes_types_and_shapes_are_other_contents(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm)
    data = block(1, 4096)
    values = [data, data.reshape(2, -1), data.view(np.int8), data.view(np.float32), data[:-1], data[1:],
              np.zeros(0, np.uint8), np.zeros((0, 3), np.uint8), np.zeros((), np.uint8)]  # fmt: skip
    if comm.rank == 0:
        for number, value in enumerate(values):
            assert not store.put(number, value).deduplicated
            assert store.put(str(number), value).deduplicated
    comm.Barrier()
    for number, value in enumerate(values):
        for found in (store.get(number), store.get(str(number))):
            assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("name", ["blake3", "sha256"])
def test_each_hash_function(name: str, open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, namespace=Namespace("h", identity="content", hash=name))
    assert store.put(f"a{comm.rank}", block(comm.rank, NBYTES)).stored
    assert store.put(f"b{comm.rank}", block(comm.rank, NBYTES)).deduplicated
    assert is_read(store, f"b{comm.rank}", block(comm.rank, NBYTES))
    comm.Barrier()
    store.check()


# -------------------------------------------------------------------------------------- names and namespaces


def test_names_are_replaced_and_deleted_alone(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm)
    mine = [f"{name} {comm.rank}" for name in "abc"]
    comm.Barrier()
    for key in mine:
        assert store.put(key, block(1, NBYTES))
    comm.Barrier()
    assert store.put(mine[0], block(2, NBYTES))
    assert store.delete(mine[1])
    comm.Barrier()
    for rank in range(comm.size):
        assert is_read(store, f"a {rank}", block(2, NBYTES))
        assert store.get(f"b {rank}") is None
        assert is_read(store, f"c {rank}", block(1, NBYTES))
    comm.Barrier()
    store.delete(mine[2])
    assert store.collect() == 1
    assert totals(store)["contents"] == 1
    assert store.delete_all() == comm.size
    assert totals(store) | {"dedup_hits": 0, "dedup_saved_bytes": 0, "puts": 0} == dict.fromkeys(totals(store), 0)
    store.check()


def test_tenants_share_only_when_both_ask(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm)
    a, b = (Namespace("t", salt=salt, identity="content") for salt in (b"a" * 16, b"b" * 16))
    one, two = (Namespace("t", salt=salt, identity="content", share_content=True) for salt in (b"a" * 16, b"b" * 16))
    if comm.rank == 0:
        assert [store.put("k", block(1, NBYTES), namespace=each).deduplicated for each in (a, b, one, two)] == [
            False, False, False, True
        ]  # fmt: skip
        store.delete("k", namespace=one)
    comm.Barrier()
    assert [store.get("k", namespace=each) is not None for each in (a, b, one, two)] == [True, True, False, True]
    comm.Barrier()
    assert is_read(store, "k", block(1, NBYTES), namespace=two)
    comm.Barrier()
    if comm.rank == 0:
        store.bump_epoch(two)
    comm.Barrier()
    assert store.get("k", namespace=two) is None
    comm.Barrier()
    store.check()


def test_a_new_epoch_ends_names_and_contents(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm)
    assert store.put(comm.rank, block(1, NBYTES))
    comm.Barrier()
    if comm.rank == 0:
        store.bump_epoch()
    comm.Barrier()
    assert store.get(comm.rank) is None
    comm.Barrier()
    assert store.put(comm.rank, block(1, NBYTES))
    comm.Barrier()
    for _ in range(3):
        store.progress()
    assert totals(store)["contents"] == 1
    assert is_read(store, comm.rank, block(1, NBYTES))
    comm.Barrier()
    store.check()


def test_a_name_expires_alone(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm)
    if comm.rank == 0:
        assert store.put("short", block(1, NBYTES), ttl=100)
        assert store.put("long", block(1, NBYTES)).deduplicated
    comm.Barrier()
    store._fabric.context[c.EPOCH] -= 1000  # so many seconds later
    assert store.get("short") is None
    assert is_read(store, "long", block(1, NBYTES))
    comm.Barrier()
    assert store.collect() == 0
    store.check()


def test_a_quota_counts_what_is_stored(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, when_full="refuse")
    store.set_quota(2 * NBYTES)
    if comm.rank == 0:
        for key in range(5):
            assert store.put(key, block(1, NBYTES))
        assert store.put(5, block(2, NBYTES))
        assert store.put(6, block(3, NBYTES)).refused
        assert store.get(6) is None
    comm.Barrier()
    [info] = [each for each in store.namespaces() if each.name == SPACE.name]
    assert info.bytes == 2 * NBYTES
    store.check()


@pytest.mark.nodes
@pytest.mark.parametrize("mode", ["inline", "behind"])
def test_contents_and_names_in_the_memory_of_others(
    open_store: Open, comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Each rank's names, and the whole blocks before them, lie in extents of the next rank; contents anywhere."""
    store = opened(open_store, comm, dedup=mode, placement="hash", lease_extents=16, rest_ms=0.1)
    size, number_of = comm.size, 12
    lender = (comm.rank + 1) % size

    def mine(rank: int) -> list[str]:
        """Names of a rank that the hash puts into the arena of the next one, one for each content."""
        found = (f"{rank} {n}" for n in itertools.count())
        leased = (key for key in found if place(*store._words(key, None), size, 1).home == (rank + 1) % size)
        return list(itertools.islice(leased, number_of))

    with monkeypatch.context() as later:
        later.setattr(store._dedup, "step", lambda limit: 0)  # nothing is looked at before all are stored
        for number, key in enumerate(mine(comm.rank)):
            assert store.put(key, block(number, NBYTES)).stored
    held = store._pool.tiers[lender]
    assert held.live_bytes >= (number_of * NBYTES if mode == "behind" else 0)
    assert np.count_nonzero(held.words) >= number_of
    comm.Barrier()
    while store.stats()["dedup"]["waiting"]:
        store.progress()
    comm.Barrier()
    found = totals(store)
    assert (found["contents"], found["aliases"]) == (number_of, number_of * size)
    assert found["dedup_hits"] == number_of * (size - 1)
    wrong = [
        key for rank in range(size) for number, key in enumerate(mine(rank))
        if not is_read(store, key, block(number, NBYTES))
    ]  # fmt: skip
    assert_all(comm, not wrong, f"{wrong} are wrong or missing")
    store.check()
    for key in mine(comm.rank)[comm.rank == 0 :]:  # the first content keeps the name of rank 0
        assert store.delete(key)
    assert store.collect() == number_of - 1
    assert is_read(store, mine(0)[0], block(0, NBYTES))
    store.check()


def test_batches_and_options(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm)
    keys = [(comm.rank << 8) + at for at in range(6)]
    results = store.put_many(keys, [block(at % 2, NBYTES) for at in range(6)], ttl=1000, depth=0)
    assert all(result.stored for result in results)
    assert sum(result.deduplicated for result in results) >= 4
    assert store.put(keys[0], block(5, NBYTES), exists="keep").kept
    assert store.put_async(keys[1], block(0, NBYTES)).result().deduplicated
    found = store.get_many(keys)
    expected = [0, 0, 0, 1, 0, 1]
    assert all(np.array_equal(one, block(at, NBYTES)) for one, at in zip(found, expected, strict=True))
    assert store.delete_many(keys[:3]).all()
    comm.Barrier()
    store.check()


# ---------------------------------------------------------------------------------------------------- copies


def test_a_content_is_copied_once_whatever_its_names(open_store: Open, comm: MPI.Intracomm) -> None:
    store = opened(open_store, comm, promote_after=1)
    names = [f"n{number}" for number in range(4)]
    if comm.rank == 0:
        for name in names:
            assert store.put(name, block(1, NBYTES))
        assert store.put("other", block(2, NBYTES))
    comm.Barrier()
    away = not store._fabric.mapped[0]
    for _ in range(2):
        for name in names:
            assert is_read(store, name, block(1, NBYTES))
    comm.Barrier()
    nodes = store.report()["nodes"]
    copied = comm.allreduce(store.stats()["copies"]["promotions"])
    assert copied == (nodes - 1 if nodes < 3 else copied)
    done = store.replicate([*names, "other"])
    assert (done.copied > 0) == (nodes > 1)
    assert done.missing == 0
    before = store.stats()["tiers"]["remote"]["gets"]
    assert is_read(store, "n2", block(1, NBYTES)) and is_read(store, "other", block(2, NBYTES))
    assert store.stats()["tiers"]["remote"]["gets"] == before
    held = np.flatnonzero(store._dram.records["flags"] & FLAG_COPY)
    assert len(held) <= 2 * away
    comm.Barrier()
    if comm.rank == 0:
        assert store.put("n2", block(3, NBYTES))
    comm.Barrier()
    assert is_read(store, "n2", block(3, NBYTES))
    assert is_read(store, "n1", block(1, NBYTES))
    comm.Barrier()
    store.check()


# ----------------------------------------------------------------------------------------------------- races


@pytest.mark.parametrize("mode", ["inline", "behind"])
def test_a_race_of_names_evictions_deletes_and_replaces(mode: str, open_store: Open, comm: MPI.Intracomm) -> None:
    """A few contents under many names in arenas that are too small, every byte looked at, until enough was read."""
    store = opened(open_store, comm, dedup=mode, dram_bytes=44 * 4096, rest_ms=0.2, evict_ahead=0.1)
    contents = [block(number, 4096 * (1 + number % 3) - number) for number in range(12)]
    chance = random.Random(17 + comm.rank)
    mine: dict[int, np.ndarray | None] = {}  # what this rank has put last under its own names
    hits = misses = evicted = 0
    comm.Barrier()
    for step in range(1200):
        name = chance.randrange(12)
        own = name % comm.size == comm.rank
        act = chance.random()
        if act < 0.30:
            new = block(1000 * comm.rank + step, 9000) if act < 0.02 else contents[chance.randrange(len(contents))]
            name = name - name % comm.size + comm.rank
            assert store.put(name, new)
            mine[name] = new
            if act < 0.10:
                assert store.put(1000 + step % 3, new)  # names that all ranks fight for
        elif act < 0.36:
            name = name - name % comm.size + comm.rank
            store.delete(name)
            mine[name] = None
        elif act < 0.42:
            first = np.flatnonzero(store._dram.words)
            if first.size:
                evicted += store._dram._evict_one(int(first[chance.randrange(first.size)])) is not None
        elif act < 0.44:
            store.progress()
        else:
            own = own and act < 0.9
            found = store.get(name if own or act < 0.9 else 1000 + step % 3)
            hits, misses = hits + (found is not None), misses + (found is None)
            if found is not None and own:
                assert mine.get(name) is not None and np.array_equal(found, mine[name]), "not what was put last"
            elif found is not None:
                known = [each for each in contents if each.nbytes == found.nbytes]
                whole = any(np.array_equal(found, each) for each in known)
                assert whole or found.nbytes == 9000, "bytes that nobody put"
    assert hits > 50 and misses > 5 and evicted > 5
    comm.Barrier()
    found = totals(store)
    assert found["dedup_hits"] > 20
    store.check()
    store.collect()
    store.check()
    assert totals(store)["contents"] <= len(contents) + 12


def test_an_acknowledged_name_is_there_where_nothing_is_evicted(open_store: Open, comm: MPI.Intracomm) -> None:
    """All ranks name the same contents, and others leave beside: what was acknowledged and nobody changed is found."""
    store = opened(open_store, comm, when_full="refuse", rest_ms=0.2)
    chance = random.Random(5)  # the same on all ranks: they race for the same contents
    mine: dict[int, int] = {}
    for step in range(300):
        number = chance.randrange(8)
        key = comm.rank << 16 | step % 40
        assert store.put(key, block(number, 5000))
        mine[key] = number
        if step % 7 == 0:
            gone = comm.rank << 16 | chance.randrange(40)
            assert store.delete(gone) == (mine.pop(gone, None) is not None)
        asked = chance.choice(list(mine))
        assert is_read(store, asked, block(mine[asked], 5000))
    for key, number in mine.items():
        assert is_read(store, key, block(number, 5000))
    found = totals(store)
    assert found["contents"] == 8
    store.check()


# -------------------------------------------------------------------------------------------- beside a dictionary


@pytest.mark.alone
@pytest.mark.parametrize("mode", ["inline", "behind"])
@pytest.mark.parametrize("when_full", ["refuse", "evict"])
def test_random_calls_beside_a_dictionary(mode: str, when_full: str, open_store: Open) -> None:
    """One rank: exact where nothing is evicted, never another value where something is."""
    store = open_store(
        MPI.COMM_SELF, namespace=SPACE, dedup=mode, when_full=when_full, dram_bytes=64 * 4096, rest_ms=0.1
    )
    model: dict[str, int] = {}
    chance = random.Random(f"{mode} {when_full}")
    data = [block(number, 3000 + 3000 * (number % 4)) for number in range(10)]
    lost = 0
    for _ in range(600):
        name, act = f"name {chance.randrange(20)}", chance.random()
        if act < 0.4:
            number = chance.randrange(len(data))
            how = chance.choice(["replace", "replace", "keep"])
            try:
                result = store.put(name, data[number], exists=how, is_prefix=chance.random() < 0.05)
            except StoreFullError as error:
                [result] = error.results
            if result.stored:
                model[name] = number
            elif result.kept:
                assert name in model
            else:
                assert when_full == "evict" or store.stats()["arena"]["live"] > 20 * 4096
        elif act < 0.5:
            there = store.delete(name)
            known = model.pop(name, None) is not None
            assert there == known or (there <= known and when_full == "evict")
        elif act < 0.55:
            store.collect()
        elif act < 0.6:
            store.unprotect(name) if chance.random() < 0.5 else store.protect(name)
        elif act < 0.65:
            store.progress()
        else:
            found = store.get(name)
            if name not in model:
                assert found is None
            elif found is None:
                assert when_full == "evict"
                lost += 1
            else:
                assert np.array_equal(found, data[model[name]])
    store.check()
    listed = {each.key for each in store.scan()}
    assert len(listed) <= len(model) if when_full == "evict" else len(listed) == len(model)
    store.delete_all()
    assert store.stats()["arena"]["live"] == 0


# ------------------------------------------------------------------------------------------------------- bench


@pytest.mark.alone
def test_the_bench_saves_what_it_expects(comm: MPI.Intracomm) -> None:
    rows, _ = measure(24, 8192, (10, 70), 3, comm)
    shares = [row for row in rows if row["case"].startswith("dedup_saved")]
    assert len(shares) == 2
    for row in shares:
        assert row["contents_ok"]
        assert row["saved_bytes"] == row["expected_bytes"] > 0


# ---------------------------------------------------------------------------------------------- a missing package


@pytest.fixture
def without_blake3(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    contents.hasher_of.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "blake3", None)
        yield patch
    contents.hasher_of.cache_clear()


@pytest.mark.parametrize("settings", [{}, {"dedup": "behind"}, {"dedup": "behind", "publish": "deferred"}])
def test_the_put_that_needs_a_missing_package_says_so(
    settings: dict[str, str], without_blake3: pytest.MonkeyPatch, open_store: Open, comm: MPI.Intracomm
) -> None:
    store = open_store(comm, **settings)
    with pytest.raises(NotConfiguredError, match="needs the package blake3"):
        store.put(comm.rank, block(1, NBYTES), namespace=SPACE)
    with pytest.raises(NotConfiguredError, match="needs the package blake3"):
        store.put_many([comm.rank], [block(1, NBYTES)], namespace=SPACE)
    other = Namespace("other", identity="content", hash="sha256")
    for number in range(3):  # none of these says it in the place of the first
        assert store.put(100 * comm.rank + number, block(1, NBYTES), namespace=other)
        store.progress()
    assert store.get(comm.rank, namespace=SPACE) is None
    store.check()


def test_a_check_without_the_package_of_some_contents_ends_on_all_ranks(
    without_blake3: pytest.MonkeyPatch, open_store: Open, comm: MPI.Intracomm, raises_all: Callable[..., str]
) -> None:
    """What only one rank holds, so that only one could raise, is no reason to leave the others waiting."""
    store = open_store(comm)
    shared = Namespace("s", identity="content", share_content=True, hash="sha256")
    if comm.rank == 0:
        assert store.put("a", block(1, NBYTES), namespace=shared)
    comm.Barrier()
    assert store.check()["checksums"] >= 1
    without_blake3.undo()
    contents.hasher_of.cache_clear()
    store.check()  # both hashes can be tried
    if comm.rank == 0:
        store._dedup.check = lambda: 1 // 0  # type: ignore[assignment, return-value]
    text = raises_all(comm, ProtocolError, store.check)
    assert "rank 0: the look was broken off: ZeroDivisionError" in text
