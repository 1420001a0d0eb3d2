"""Protected blocks: they stay in memory, from every rank, whoever protected them and whatever is evicted beside them.

Covers `protect` and `unprotect`, the rule of depths, the quota and its count, and races of all of them with puts,
deletes and evictions. Does not cover the single steps (`test_protection_steps`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from conftest import VARIANTS
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import ConfigError, ProtocolError, StoreFullError
from cascade_mpi.kernels import context as c
from cascade_mpi.shared_words import PROTECTED
from cascade_mpi.store import Store

PAGE = 4096
PAGES = 64
Open = Callable[..., Store]

variants = pytest.mark.parametrize("variant", list(VARIANTS))


def small(open_store: Open, comm: MPI.Intracomm, variant: str = "", **settings: Any) -> Store:
    """A store of 64 pages a rank, whose cells rest shortly."""
    defaults: dict[str, Any] = {"dram_bytes": PAGES * PAGE, "rest_ms": 0.1, "index_blocks": PAGES * comm.size}
    return open_store(comm, **(defaults | (VARIANTS[variant] if variant else {}) | settings))


def value(key: int) -> np.ndarray:
    return block(key, PAGE)


def filler(store: Store, comm: MPI.Intracomm, count: int, first: int = 1 << 20) -> None:
    """Local. Put so many blocks that nobody asks for."""
    for number in range(count):
        store.put(first + number * comm.size + comm.rank, value(number))


def protected(store: Store) -> list[tuple[int, int]]:
    """Collective. Protected blocks and bytes by rank."""
    return [(each["protected"]["blocks"], each["protected"]["bytes"]) for each in store.stats_all()]


@pytest.mark.core
@variants
def test_protected_blocks_stay_while_four_times_the_memory_is_written(
    open_store: Open, comm: MPI.Intracomm, variant: str
) -> None:
    """A tenth of all blocks is protected: a half born so, a half by another rank than the one that holds them."""
    store = small(open_store, comm, variant)
    total = 4 * PAGES
    for number in range(total):
        key = number * comm.size + comm.rank
        assert store.put(key, value(key), is_prefix=number % 20 == 0).stored
        if number % 20 == 9 and comm.size == 1:
            assert store.protect([key]).all()
        elif number % 20 == 9:
            comm.Barrier()
            neighbour = number * comm.size + (comm.rank + 1) % comm.size
            assert store.protect([neighbour]).tolist() == [True]
            comm.Barrier()
    comm.Barrier()
    wanted = [n * comm.size + rank for n in range(total) if n % 20 in (0, 9) for rank in range(comm.size)]
    for key, got in zip(wanted, store.get_many(wanted), strict=True):
        assert got is not None, f"protected block {key} is gone"
        np.testing.assert_array_equal(got, value(key))
        assert store.locate(key).protected
    assert store.stats()["evicted"] > 2 * PAGES
    assert protected(store) == [(26, 26 * PAGE)] * comm.size
    store.check()
    for key in wanted:
        if key % comm.size == comm.rank:
            assert store.unprotect(key).all()
    comm.Barrier()
    assert protected(store) == [(0, 0)] * comm.size
    filler(store, comm, 2 * PAGES)
    comm.Barrier()
    assert not store.contains_many(wanted).any()
    store.check()


@variants
def test_what_protect_says(open_store: Open, comm: MPI.Intracomm, variant: str) -> None:
    store = small(open_store, comm, variant)
    mine, absent = f"block {comm.rank}", f"absent {comm.rank}"
    store.put(mine, b"v", namespace="n")
    store.put(np.uint64(comm.rank), b"i", namespace="n")
    assert store.protect([mine, absent, mine], namespace="n").tolist() == [True, False, True]
    assert store.protect(mine).tolist() == [False]  # of another namespace
    assert store.protect(np.uint64(comm.rank), namespace="n").tolist() == [True]
    assert store.protect(np.array([comm.rank, 1 << 40], np.uint64), namespace="n").tolist() == [True, False]
    assert store.protect([]).tolist() == []
    comm.Barrier()
    theirs = f"block {(comm.rank + 1) % comm.size}"
    where = store.locate(theirs, namespace="n")
    assert (where.protected, where.is_prefix) == (True, False)
    np.testing.assert_array_equal(store.get(theirs, namespace="n"), np.frombuffer(b"v", np.uint8))
    comm.Barrier()
    assert store.unprotect([theirs, absent], namespace="n").tolist() == [True, False]
    assert store.unprotect(theirs, namespace="n").tolist() == [True]
    comm.Barrier()
    assert not store.locate(mine, namespace="n").protected
    with pytest.raises(TypeError, match="a key is a str"):
        store.protect([1.5])  # type: ignore[list-item]
    comm.Barrier()


def test_a_put_decides_anew(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm)
    key = f"block {comm.rank}"
    assert store.put(key, b"1", is_prefix=True).protected
    assert not store.put(key, b"2").protected
    assert not store.locate(key).protected
    assert store.put(key, b"3", is_prefix=True, exists="keep").kept
    assert not store.locate(key).protected  # what was kept stays as it is
    assert store.put(key, b"4", is_prefix=True).protected
    assert store.locate(key)[-2:] == (True, True)
    assert store.unprotect(key).all()
    assert store.locate(key)[-2:] == (True, False)
    comm.Barrier()
    assert protected(store) == [(0, 0)] * comm.size
    store.check()


def test_blocks_at_the_head_of_a_prefix_are_protected(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm, protect_depth=2, protected_bytes=3 * PAGE)
    first = 1000 * comm.rank
    results = store.put_many(range(first, first + 4), [value(n) for n in range(4)], depth=0)
    assert [each.protected for each in results] == [True, True, False, False]
    assert store.put(first + 4, value(4), depth=1).protected
    over = store.put(first + 5, value(5), depth=0)  # a rule is a wish: stored, but not protected
    assert (over.stored, over.protected) == (True, False)
    assert store.stats()["protected"] == {"blocks": 3, "bytes": 3 * PAGE, "over_quota": 1}
    assert store.report()["protection"] == {"protected_bytes": 3 * PAGE, "protect_depth": 2, "protect_shared": 0}
    assert {each.key - first: each.depth for each in store.scan()} == {0: 0, 1: 1, 2: 2, 3: 3, 4: 1, 5: 0}
    for wrong in (-1, 1.0, True, 1 << 32):
        with pytest.raises(ValueError, match="depth is"):
            store.put(first, b"v", depth=wrong)  # type: ignore[arg-type]
    store.check()


# ---------------------------------------------------------------------------------------------------- quota


@variants
def test_a_put_beyond_the_quota_changes_nothing(open_store: Open, comm: MPI.Intracomm, variant: str) -> None:
    store = small(open_store, comm, variant, protected_bytes=2 * PAGE, evict_ahead=0)
    key = 10 * comm.rank
    assert store.put(key, value(1), is_prefix=True)
    assert store.put(key + 1, value(2), is_prefix=True)
    filler(store, comm, PAGES - 2)
    before = store.stats()
    with pytest.raises(StoreFullError) as caught:
        store.put(key + 2, value(3), is_prefix=True)
    [refused] = caught.value.results
    assert refused.refused
    assert f"{2 * PAGE} bytes in the arena of rank {comm.rank} are protected" in str(caught.value)
    assert "raise it, or unprotect" in str(caught.value)
    after = store.stats()
    assert {name: after[name] for name in ("evicted", "blocks", "arena", "protected")} == {
        name: before[name] for name in ("evicted", "blocks", "arena", "protected")
    }
    assert store.get(key + 2) is None
    comm.Barrier()
    assert store.check()["words"] == PAGES * comm.size
    comm.Barrier()
    assert store.delete(10 * ((comm.rank + 1) % comm.size))  # another rank makes room
    comm.Barrier()
    assert store.put(key + 2, value(3), is_prefix=True).stored
    comm.Barrier()
    store.check()


@variants
def test_protect_beyond_the_quota_changes_nothing(open_store: Open, comm: MPI.Intracomm, variant: str) -> None:
    store = small(open_store, comm, variant, protected_bytes=3 * PAGE)
    neighbour = (comm.rank + 1) % comm.size
    for number in range(6):
        assert store.put(10 * comm.rank + number, value(number))
    comm.Barrier()
    theirs = [10 * neighbour + number for number in range(6)]
    with pytest.raises(StoreFullError, match=f"in the arena of rank {neighbour} are protected"):
        store.protect(theirs[:4])
    assert not any(store.locate(key).protected for key in theirs)
    comm.Barrier()
    store.check()
    assert store.protect([*theirs[:3], *theirs[:3], 999]).tolist() == [True] * 6 + [False]
    assert store.protect(theirs[:3]).all()  # already: counts once
    with pytest.raises(StoreFullError):
        store.protect(theirs[3])
    comm.Barrier()
    assert protected(store) == [(3, 3 * PAGE)] * comm.size
    comm.Barrier()
    assert store.unprotect(theirs[0]).all()
    assert store.protect(theirs[3]).all()
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("how", ["unprotect", "delete", "replace", "clear", "bump", "delete_all", "ttl", "overwrite"])
def test_what_leaves_gives_its_count_back(open_store: Open, comm: MPI.Intracomm, how: str) -> None:
    """The count follows every way in which a hard word leaves, on the rank of its block and on another."""
    store = small(open_store, comm, protected_bytes=2 * PAGE)
    key, neighbour = comm.rank, (comm.rank + 1) % comm.size
    assert store.put(key, value(1), is_prefix=True, ttl=1000 if how == "ttl" else None)
    assert store.put(key + 100, value(2))
    comm.Barrier()
    assert store.protect(neighbour + 100).all()
    comm.Barrier()
    assert store._protected.counted() == 2 * PAGE
    comm.Barrier()
    both = [neighbour, neighbour + 100]
    if how == "unprotect":
        assert store.unprotect(both).all()
    elif how == "delete":
        assert store.delete_many(both).all()
    elif how in ("replace", "overwrite"):
        for each in both if how == "replace" else [key, key + 100]:
            assert store.put(each, value(3))
    elif how == "clear":
        store.clear()
    elif how == "delete_all":
        assert store.delete_all() == 2 * comm.size
    elif how == "bump":
        if comm.rank == 0:
            store.bump_epoch()
        comm.Barrier()
        store.progress()
    else:
        later(store, 2000)
        store.progress()
        assert store.delete_many([key + 100]).all()
    comm.Barrier()
    assert store._protected.counted() == 0
    comm.Barrier()
    assert store.put(key + 200, value(4), is_prefix=True)
    comm.Barrier()
    store.check()


def test_many_puts_of_which_some_exceed_the_quota_try_all(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm, protected_bytes=2 * PAGE, when_full="refuse", lease_extents=0)
    keys = [100 * comm.rank + n for n in range(4)]
    assert store.put(keys[2], value(9))
    before = store.stats()["arena"]["live"]
    sizes = [PAGE, 2 * PAGE, PAGE + 1, PAGE]  # the second and the third are too many
    with pytest.raises(StoreFullError, match=r"2 of 4 blocks with is_prefix were not stored: .* raise it") as caught:
        store.put_many(keys, [np.full(size, 5, np.uint8) for size in sizes], is_prefix=True)
    assert [each.stored for each in caught.value.results] == [True, False, False, True]
    assert [each.refused for each in caught.value.results] == [False, True, True, False]
    assert store.contains_many(keys).tolist() == [True, False, True, True]
    np.testing.assert_array_equal(store.get(keys[2]), value(9))  # what it would have replaced is there
    assert store.stats()["arena"]["live"] == before + 2 * PAGE
    assert store._protected.counted() == 2 * PAGE
    results = store.put_many([keys[1], keys[0]], [np.zeros(PAGES * PAGE, np.uint8), value(1)])  # no demand: no error
    assert [each.refused for each in results] == [True, False]
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("wrong", [None, 1.5, object()])
def test_what_are_no_keys_is_said(store: Store, comm: MPI.Intracomm, wrong: Any) -> None:
    for call in (store.protect, store.unprotect):
        with pytest.raises(TypeError, match=r"keys is .*: give one key, a sequence of keys or an array"):
            call(wrong)
    with pytest.raises(TypeError, match=r"keys is .*: give a sequence of keys or an array"):
        store.request(wrong)
    with pytest.raises(ConfigError, match=r"keys is .*: give a sequence of keys or an array"):
        store.replicate(wrong if comm.rank == 0 else [1])


def later(store: Store, seconds: int) -> None:
    """Local. Let the rank's clock be so many seconds further on."""
    store._fabric.context[c.EPOCH] -= seconds


def test_an_interrupted_put_gives_its_count_back(
    open_store: Open, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small(open_store, comm, protected_bytes=PAGE, when_full="refuse", lease_extents=0)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for owner, name in ((store._pool, "reserve"), (store._writer, "_write")):
        monkeypatch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.put(comm.rank, value(1), is_prefix=True)
        monkeypatch.undo()
    assert store._protected.counted() == 0
    assert store.put(comm.rank, b"", is_prefix=True)
    for number in range(PAGES - 1):
        assert store.put(1000 + number * comm.size + comm.rank, value(number))
    with pytest.raises(StoreFullError, match=rf"needs 1 contiguous pages.*{PAGES} live.*raise dram_bytes"):
        store.put(2000 + comm.rank, value(1), is_prefix=True)
    assert store.get(2000 + comm.rank) is None
    assert store.put(2000 + comm.rank, value(1)).refused  # without is_prefix no error
    assert store._protected.counted() == 0
    comm.Barrier()
    store.check()


def test_deferred_puts_count_from_the_start(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm, publish="deferred", protected_bytes=2 * PAGE)
    key = 10 * comm.rank
    assert store.put(key, value(1), is_prefix=True).protected
    assert store.put(key + 1, value(2), is_prefix=True)
    with pytest.raises(StoreFullError, match="raise it, or unprotect"):
        store.put(key + 2, value(3), is_prefix=True)
    assert len(store._deferred) == 2
    store.check()
    assert store.delete(key + 1)
    assert store.put(key + 2, value(3), is_prefix=True, ttl=1000)
    store.put(key + 3, value(4), depth=7)
    assert store.protect(key + 2).all()  # what a rank asks for is published first
    store.publish()
    comm.Barrier()
    assert protected(store) == [(2, 2 * PAGE)] * comm.size
    assert [each.depth for each in store.scan() if each.key == key + 3] == [7]
    store.put(key + 2, value(5))
    store.clear()
    assert store._protected.counted() == 0
    store.check()


@pytest.mark.parametrize("damage", ["more", "less", "beyond"])
def test_a_wrong_count_is_found(
    open_store: Open, comm: MPI.Intracomm, raises_all: Callable[..., str], damage: str
) -> None:
    store = small(open_store, comm, protected_bytes=2 * PAGE)
    store.put(comm.rank, value(1), is_prefix=True)
    store.check()
    registry, last = store._registry, comm.size - 1
    if comm.rank == last:
        step = {"more": 1, "less": -1, "beyond": 2 * PAGE}[damage]
        registry.change(last, PROTECTED, lambda used: used + step)
    text = raises_all(comm, ProtocolError, store.check)
    assert f"rank {last}: " in text
    assert f"hard words name {PAGE}" in text
    assert ("protected_bytes is" in text) == (damage == "beyond")
    comm.Barrier()


# ---------------------------------------------------------------------------------------------------- races


@pytest.mark.core
@variants
def test_what_is_protected_is_found_while_everything_races(open_store: Open, comm: MPI.Intracomm, variant: str) -> None:
    """Each rank protects blocks of all ranks that only it unprotects; all put, delete others, and evict.

    The lower half of the keys is deleted and toggled by anybody; nothing is expected of them but right bytes and
    right counts. The bytes of a block follow from its key.
    """
    rounds = 400 if "python" in variant or comm.size > 2 else 1200
    store = small(open_store, comm, variant, dram_bytes=24 * PAGE, protected_bytes=16 * PAGE)
    rng = random.Random(7 + comm.rank)
    keys = 40 * comm.size
    images = [value(key) for key in range(2 * keys)]
    held: list[int] = []
    seen = {"protected": 0, "absent": 0, "full": 0, "deleted": 0}

    def wild() -> int:
        return rng.randrange(keys)

    def own() -> int:
        """A key of the upper half that only this rank protects."""
        return keys + rng.randrange(keys // comm.size) * comm.size + comm.rank

    for _ in range(rounds):
        what = rng.random()
        key = wild() if rng.random() < 0.5 else keys + rng.randrange(keys)
        if what < 0.5:
            # A replace would make another block, which nobody has protected.
            with suppress(StoreFullError):
                store.put(key, images[key], exists="keep", is_prefix=key < keys and rng.random() < 0.1)
        elif what < 0.6:
            seen["deleted"] += store.delete(wild())
        elif what < 0.75:
            key = own() if rng.random() < 0.7 else wild()
            try:
                there = bool(store.protect(key)[0])
            except StoreFullError:
                seen["full"] += 1
                continue
            seen["protected" if there else "absent"] += 1
            if there and key >= keys and key not in held:
                held.append(key)
        elif what < 0.85:
            key = wild() if rng.random() < 0.6 or not held else held.pop(rng.randrange(len(held)))
            store.unprotect(key)
        else:
            got = store.get(key)
            if got is not None:
                np.testing.assert_array_equal(got, images[key])
        if held:
            key = rng.choice(held)
            got = store.get(key)
            assert got is not None, f"protected block {key - keys} is gone"
            np.testing.assert_array_equal(got, images[key])
    comm.Barrier()
    for key in held:
        np.testing.assert_array_equal(store.get(key), images[key])
    comm.Barrier()
    store.check()
    assert comm.allreduce(store.stats()["evicted"]) > 50
    totals = {name: comm.allreduce(count) for name, count in seen.items()}
    assert min(totals["protected"], totals["absent"], totals["deleted"]) > 0, totals
    comm.Barrier()
