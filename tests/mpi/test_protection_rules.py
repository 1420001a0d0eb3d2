"""Rules that protect blocks, or let them expire, without being asked for each: of a namespace, of shared sessions.

Covers `Namespace(protect_depth=, ttl=)`, `protect_shared` and their quota, and a race of sessions with evictions. Does
not cover the hard bit itself (`test_protection`, `test_protection_steps`).
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import VARIANTS
from mpi4py import MPI
from test_protection import PAGE, PAGES, Open, protected, small, value, variants

from cascade_mpi.kernels import context as c
from cascade_mpi.namespaces import Namespace
from cascade_mpi.sessions import SharedBlocks, bit_of
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

__all__ = ["VARIANTS"]


def are_protected(store: Store, keys: list[int], namespace: Namespace | str | None = None) -> list[bool]:
    found = [store.locate(key, namespace=namespace) for key in keys]
    return [each is not None and each.protected for each in found]


# ------------------------------------------------------------------------------------- the rules of a namespace


def test_a_namespace_protects_the_heads_of_its_prefixes(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm, protect_depth=1)
    first = 1000 * comm.rank
    keys, blocks = list(range(first, first + 4)), [value(n) for n in range(4)]
    for depth, heads in ((3, 3), (0, 0), (None, 1)):  # None: what the setting says
        space = Namespace(f"rule {depth}", protect_depth=depth)
        results = store.put_many(keys, blocks, namespace=space, depth=0)
        assert [each.protected for each in results] == [number < heads for number in range(4)]
        assert are_protected(store, keys, space) == [number < heads for number in range(4)]
    # Rules are no part of a key: the same blocks under the name alone, where a put goes by the setting.
    np.testing.assert_array_equal(store.get(first, namespace="rule 3"), value(0))
    assert not store.put(first + 1, value(7), namespace="rule 3", depth=1).protected
    np.testing.assert_array_equal(store.get(first + 1, namespace=Namespace("rule 3", protect_depth=3)), value(7))
    comm.Barrier()
    store.check()


def test_a_namespace_says_when_its_blocks_expire(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm)
    short, plain = Namespace("short", ttl=100), Namespace("short")
    at = 10 * comm.rank
    store.put(at, value(1), namespace=short)
    store.put(at + 1, value(1), namespace=short, ttl=100_000)
    store.put_many([at + 2, at + 3], [value(2), value(3)], namespace=short)
    store.put(at + 4, value(1), namespace=plain)
    comm.Barrier()
    there = [store.contains(at + number, namespace=plain) for number in range(5)]
    store._fabric.context[c.EPOCH] -= 1000  # this rank's clock is so many seconds further on
    left = [store.contains(at + number, namespace=plain) for number in range(5)]
    comm.Barrier()
    assert there == [True] * 5
    assert left == [False, True, False, False, True]
    store.check()


def test_rules_outlive_an_epoch(open_store: Open, comm: MPI.Intracomm) -> None:
    """The same namespace under two objects: each keeps its own rules when the epoch is renewed."""
    store = small(open_store, comm)
    mine = f"space {comm.rank}"
    ruled, plain = Namespace(mine, protect_depth=2), Namespace(mine)
    for epoch in range(3):
        assert store.put(1, value(1), namespace=ruled, depth=0).protected
        assert not store.put(2, value(2), namespace=plain, depth=0).protected
        assert store.bump_epoch(plain if epoch % 2 else ruled) == epoch + 1
        assert store.epoch(ruled) == store.epoch(plain) == epoch + 1
        assert store.get(1, namespace=plain) is None
    comm.Barrier()
    store.check()


@pytest.mark.parametrize("rules", [{"ttl": 0}, {"ttl": "5"}, {"ttl": True}, {"ttl": float("inf")}, {"ttl": 1e12},
                                   {"protect_depth": -1}, {"protect_depth": 1.0}, {"protect_depth": True}])  # fmt: skip
def test_a_rule_that_is_none_is_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(rules))):
        Namespace("n", **rules)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- shared by k sessions


def test_a_block_is_protected_when_enough_sessions_have_used_it(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm, protect_shared=3)
    keys = [100 * comm.rank, 100 * comm.rank + 1]
    other = [100 * ((comm.rank + 1) % comm.size), 100 * ((comm.rank + 1) % comm.size) + 1]
    store.put_many(keys, [value(1), value(2)], session=-1)
    comm.Barrier()
    if comm.size > 1:
        store.get_many(other, session=-1)
    for _ in range(5):
        store.get_many(other, session=-2)  # one session, however often
        store.get_many(other)  # and nobody's
    assert are_protected(store, other) == [False, False]
    comm.Barrier()
    store.get_many([other[0], 10**6], session="third")
    assert are_protected(store, other) == [True, False]
    comm.Barrier()
    assert protected(store) == [(1, PAGE)] * comm.size
    assert store.stats()["shared"] == {"protected": 1, "over_quota": 0}
    # What was unprotected by hand stays so, and what replaces a block is counted anew.
    store.unprotect(other[0])
    comm.Barrier()
    store.get_many(other[:1], session="fourth")
    assert are_protected(store, other[:1]) == [False]
    comm.Barrier()
    for session in ("a", "b", "c"):
        assert are_protected(store, keys[:1]) == [False]
        store.put_many(keys[:1], [value(9)], session=session, exists="replace" if session == "a" else "keep")
    assert are_protected(store, keys[:1]) == [True]
    with pytest.raises(TypeError, match="session is"):
        store.get_many(keys, session=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="session is"):
        store.put_many([keys[0] + 50], [value(1)], session=True)
    assert not store.contains(keys[0] + 50)
    comm.Barrier()
    store.check()


def test_shared_blocks_keep_to_the_quota(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm, protect_shared=2, protected_bytes=2 * PAGE)
    keys = [100 * comm.rank + number for number in range(4)]
    store.put_many(keys, [value(key) for key in keys], session="a")
    got = store.get_many(keys, session="b")
    for key, each in zip(keys, got, strict=True):  # what does not fit is read as any other
        np.testing.assert_array_equal(each, value(key))
    assert are_protected(store, keys) == [True, True, False, False]
    assert store.stats()["shared"] == {"protected": 2, "over_quota": 2}
    comm.Barrier()
    store.check()


def test_nothing_is_counted_without_the_setting(open_store: Open, comm: MPI.Intracomm) -> None:
    store = small(open_store, comm)
    for session in range(40):
        store.put_many([comm.rank], [value(1)], session=session)
        store.get_many([comm.rank], session=session)
    assert not store.locate(comm.rank).protected
    assert not store._shared._seen
    comm.Barrier()


@variants
def test_shared_blocks_stay_while_four_times_the_memory_is_written(
    open_store: Open, comm: MPI.Intracomm, variant: str
) -> None:
    """Sessions on all ranks use the same heads while all ranks put: a head that two have seen is never lost again."""
    store = small(open_store, comm, variant, protect_shared=2)
    rng = random.Random(7 + comm.rank)
    heads = list(range(PAGES * comm.size // 8))  # of all ranks
    store.put_many(heads[comm.rank :: comm.size], [value(key) for key in heads[comm.rank :: comm.size]])
    comm.Barrier()
    safe: set[int] = set()
    for step in range(4 * PAGES):
        store.put((1 << 20) + step * comm.size + comm.rank, value(step))
        chosen = rng.sample(heads, 3)
        got = store.get_many(chosen, session=step % 8)
        for key, each in zip(chosen, got, strict=True):
            assert each is not None or key not in safe, f"head {key} was shared, and has been evicted"
            if each is not None:
                np.testing.assert_array_equal(each, value(key))
        found = [key for key, each in zip(chosen, got, strict=True) if each is not None]
        safe.update(key for key in found if store._shared._seen.get((0, key)) == -1)
    comm.Barrier()
    everyone = sorted(set().union(*comm.allgather(safe)))
    assert len(everyone) > len(heads) // 4, f"only {everyone} of {len(heads)} heads were shared before they left"
    for key, each in zip(everyone, store.get_many(everyone), strict=True):
        np.testing.assert_array_equal(each, value(key))
    comm.Barrier()
    assert sum(blocks for blocks, _ in protected(store)) == len(everyone)
    store.check()


def test_only_the_lately_used_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Protection:
        def protect(self, keys: list[tuple[int, int]]) -> list[bool]:
            asked.extend(lo for _, lo in keys)
            return [True] * len(keys)

    monkeypatch.setattr("cascade_mpi.sessions.MOST_KEYS", 10)
    shared = SharedBlocks(Protection(), 2)  # type: ignore[arg-type]
    for key in range(100):
        shared.used([(0, key), (0, 1000)], "a")
    assert len(shared._seen) <= 10
    assert len(shared._before) <= 10
    assert not asked
    shared.used([(0, 99), (0, 3), (0, 1000)], "b")
    assert asked == [99, 1000]  # of number 3 the first session is forgotten: never one session counted as two
    shared.used([(0, 99)], "c")
    assert asked == [99, 1000]


def test_sessions_are_told_apart() -> None:
    assert len({bit_of(f"session {number}") for number in range(200)}) > 50
    assert bit_of(5) == bit_of(5)
    assert len({bit_of(number) for number in (-1, 0, 1, 2**70)}) > 1
    assert all(0 <= bit_of(number) < 64 for number in range(-500, 500))
    for wrong in (None, True, 1.5, [1]):
        with pytest.raises(TypeError, match="session is"):
            bit_of(wrong)  # type: ignore[arg-type]
