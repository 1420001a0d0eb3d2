"""Random sequences of calls on a store of one rank, beside a dictionary that says what must come out.

Every rank runs the same sequences on a store of its own. Two arenas: one that refuses what does not fit,
where the dictionary is exact, and one that evicts, where a block may be missing but never be wrong. The clock is
moved by steps that are long beside the test; half of the arena may be protected.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import BufferSizeError, KeyExistsError, NoPinSlotError, StoreFullError
from cascade_mpi.kernels import context as c
from cascade_mpi.store import Store, View

ARENA = 256 << 10
EXAMPLES = 20 if MPI.COMM_WORLD.size == 1 else 8  # a second rank does the same beside the first
KEYS = st.one_of(st.sampled_from(["a", "b", "c", b"a", "ü"]), st.integers(0, 6), st.just((1 << 128) - 1))
SPACES = st.sampled_from([None, "", "tenant"])
SIZES = st.one_of(st.integers(0, 70), st.sampled_from([4095, 4096, 4097, 20_000, 70_000, ARENA, ARENA + 1]))
SEEDS = st.integers(0, 1000)
TTLS = st.sampled_from([None, None, None, 10_000, 30_000])


class Held(NamedTuple):
    """What the dictionary has of a block; `expiry` by its own clock."""

    value: np.ndarray
    prefix: bool = False
    protected: bool = False
    expiry: float = np.inf


class Machine(RuleBasedStateMachine):
    """The calls of a store, each against the dictionary."""

    store: Store
    refuses: bool

    def __init__(self) -> None:
        super().__init__()
        self.store.clear()
        self.model: dict[tuple[Any, str], Held] = {}
        self.clock = 0
        self.views: list[tuple[View, np.ndarray]] = []

    @staticmethod
    def name(key: Any, space: str | None) -> tuple[Any, str]:
        return key, space or ""

    def expect(self, at: tuple[Any, str], found: np.ndarray | None) -> None:
        """A value is that of the dictionary; it may be missing only where blocks are evicted, never a protected one."""
        if at not in self.model:
            assert found is None
            return
        value, _, protected, _ = self.model[at]
        if found is None:
            assert not self.refuses
            assert not protected
            return
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found, value)

    @rule(
        key=KEYS,
        space=SPACES,
        size=SIZES,
        seed=SEEDS,
        prefix=st.booleans(),
        how=st.sampled_from(["replace", "keep", "error"]),
        ttl=TTLS,
    )
    def put(self, key: Any, space: str | None, size: int, seed: int, prefix: bool, how: Any, ttl: int | None) -> None:
        at, value = self.name(key, space), block(seed, size)
        there = self.store.contains(key, namespace=space)
        try:
            result = self.store.put(key, value, namespace=space, is_prefix=prefix, exists=how, ttl=ttl)
        except KeyExistsError:
            assert how == "error"
            assert there
            return
        except StoreFullError as error:
            assert prefix
            [result] = error.results
            assert result.refused
        assert result.bytes == size
        assert result.stored + result.kept + result.refused == 1
        if result.kept:
            assert how == "keep"
            assert there
        if result.stored:
            assert how == "replace" or not there
            assert result.protected == prefix
            self.model[at] = Held(value, prefix, prefix, np.inf if ttl is None else self.clock + ttl)
        if size > ARENA:
            assert result.refused or result.kept

    @rule(keys=st.lists(KEYS, max_size=6), seed=SEEDS, size=st.integers(0, 9000))
    def put_many(self, keys: list[Any], seed: int, size: int) -> None:
        values = [block(seed + number, size + number) for number in range(len(keys))]
        for key, value, result in zip(keys, values, self.store.put_many(keys, values), strict=True):
            if result.stored:
                self.model[self.name(key, None)] = Held(value)

    @rule(key=KEYS, space=SPACES)
    def get(self, key: Any, space: str | None) -> None:
        self.expect(self.name(key, space), self.store.get(key, namespace=space))

    @rule(key=KEYS, space=SPACES, more=st.sampled_from([0, 0, 0, 1, -1]))
    def get_into(self, key: Any, space: str | None, more: int) -> None:
        at = self.name(key, space)
        value = self.model[at].value if at in self.model else np.zeros(5, np.uint8)
        out = np.full(max(value.nbytes + more, 0), 0xAA, np.uint8)
        try:
            got = self.store.get(key, out, namespace=space)
        except BufferSizeError:
            assert at in self.model
            assert out.nbytes != value.nbytes
            return
        self.expect(at, None if got is None else out)

    @rule(key=KEYS, offset=st.integers(0, 5000), length=st.integers(0, 5000))
    def get_range(self, key: Any, offset: int, length: int) -> None:
        at = self.name(key, None)
        try:
            found = self.store.get_range(key, offset, length)
        except BufferSizeError:
            assert at in self.model
            assert offset + length > self.model[at].value.nbytes
            return
        if found is not None:
            np.testing.assert_array_equal(found, self.model[at].value[offset : offset + length])
            assert len(found) == length
        else:
            self.expect(at, None)

    @rule(keys=st.lists(st.one_of(KEYS, st.just("absent")), max_size=8))
    def get_many(self, keys: list[Any]) -> None:
        for key, found in zip(keys, self.store.get_many(keys), strict=True):
            self.expect(self.name(key, None), found)

    @rule(keys=st.lists(KEYS, max_size=8), exact=st.booleans())
    def contains_many(self, keys: list[Any], exact: bool) -> None:
        for key, there in zip(keys, self.store.contains_many(keys, exact), strict=True):
            if there and exact:
                assert self.name(key, None) in self.model
            if not there:
                self.expect(self.name(key, None), None)

    @rule(key=KEYS, space=SPACES)
    def delete(self, key: Any, space: str | None) -> None:
        there = self.store.contains(key, namespace=space)
        assert self.store.delete(key, namespace=space) == there
        self.expect(self.name(key, space), None) if not there else None
        self.model.pop(self.name(key, space), None)
        assert self.store.get(key, namespace=space) is None

    @rule(key=KEYS)
    def locate(self, key: Any) -> None:
        where, at = self.store.locate(key), self.name(key, None)
        if where is None:
            self.expect(at, None)
        else:
            value, prefix, protected, _ = self.model[at]
            seen = where.nbytes, where.is_prefix, where.protected, where.path
            assert seen == (value.nbytes, prefix, protected, "self")

    @rule(keys=st.lists(KEYS, max_size=4), space=SPACES)
    def protect(self, keys: list[Any], space: str | None) -> None:
        there = self.store.contains_many(keys, namespace=space)
        before = {key: self.store.locate(key, namespace=space) for key in keys}
        try:
            done = self.store.protect(keys, namespace=space)
        except StoreFullError:
            assert before == {key: self.store.locate(key, namespace=space) for key in keys}
            return
        assert done.tolist() == there.tolist()
        for key, is_there in zip(keys, there, strict=True):
            if is_there:
                at = self.name(key, space)
                self.model[at] = self.model[at]._replace(protected=True)

    @rule(key=KEYS, space=SPACES)
    def unprotect(self, key: Any, space: str | None) -> None:
        there = self.store.contains(key, namespace=space)
        assert self.store.unprotect(key, namespace=space).tolist() == [there]
        if there:
            at = self.name(key, space)
            self.model[at] = self.model[at]._replace(protected=False)

    @rule(hours=st.integers(1, 4))
    def wait(self, hours: int) -> None:
        self.clock += 3600 * hours
        self.store._fabric.context[c.EPOCH] -= 3600 * hours
        self.model = {at: held for at, held in self.model.items() if held.expiry > self.clock}

    @rule(space=SPACES)
    def scan(self, space: str | None) -> None:
        listed = [(each.nbytes, each.protected) for each in self.store.scan(space)]
        known = [(held.value.nbytes, held.protected) for at, held in self.model.items() if at[1] == (space or "")]
        if self.refuses:
            assert sorted(listed) == sorted(known)
        for each in listed:
            known.remove(each)  # an error if it is not there
        assert not any(protected for _, protected in known)

    @rule(key=KEYS)
    def hold(self, key: Any) -> None:
        at = self.name(key, None)
        try:
            view = self.store.view(key)
        except NoPinSlotError:
            assert len(self.views) == 8
            return
        self.expect(at, None if view is None else view.array)
        if view is not None:
            self.views.append((view, self.model[at].value))

    @precondition(lambda self: self.views)
    @rule(number=st.integers(0, 7))
    def let_go(self, number: int) -> None:
        view, _ = self.views.pop(number % len(self.views))
        view.release()

    @rule()
    def check(self) -> None:
        self.store._dram.drop_expired()
        counts = self.store.check()
        assert counts["pins"] == len(self.views)
        assert counts["words"] == len(self.model) if self.refuses else counts["words"] <= len(self.model)

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model.clear()

    @invariant()
    def views_stay(self) -> None:
        for view, value in self.views:
            np.testing.assert_array_equal(view.array, value)

    def teardown(self) -> None:
        for view, _ in self.views:
            view.release()
        self.store.check()


@pytest.mark.skipif(MPI.COMM_WORLD.size > 2, reason="every rank does the same on a store of its own")
@pytest.mark.parametrize("when_full", ["refuse", "evict"])
@pytest.mark.parametrize("calls", ["compiled", "python"])
def test_any_sequence_of_calls(when_full: str, calls: str) -> None:
    settings_of = {"dram_bytes": ARENA, "when_full": when_full, "mpi_calls": calls, "rest_ms": 0.1, "copy_threads": 1}
    settings_of["protected_bytes"] = ARENA // 2
    with Store(MPI.COMM_SELF, **settings_of) as opened:
        kind = type("Kind", (Machine,), {"store": opened, "refuses": when_full == "refuse"})
        run_state_machine_as_test(
            kind,
            settings=settings(
                max_examples=EXAMPLES, stateful_step_count=40, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
        # How many puts are among the 40 calls of an example is drawn (6 on average): few means that most were refused.
        assert opened.stats()["puts"] > 5 * EXAMPLES
