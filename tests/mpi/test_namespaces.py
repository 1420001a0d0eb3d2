"""Namespaces on any number of ranks: tenants, weight epochs, quotas, and the list of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi import registry as registry_module
from cascade_mpi.errors import CascadeError, ConfigError, KeyExistsError
from cascade_mpi.kernels import context as c
from cascade_mpi.namespaces import Namespace
from cascade_mpi.spaces import NamespaceInfo
from cascade_mpi.store import Store

Open = Callable[..., Store]
ALICE = Namespace(model="llama", dtype="bf16", salt=b"alice has sixteen bytes")
BOB = Namespace(model="llama", dtype="bf16", salt=b"bob has others")
KEYS: list[str | bytes | int] = ["sys", b"sys", 7, 1 << 127]


def info(store: Store, namespace: str | Namespace) -> NamespaceInfo:
    """Collective. What `namespaces()` says of one of them."""
    text = str(namespace if isinstance(namespace, Namespace) else Namespace(namespace))
    return next(each for each in store.namespaces() if each.text == text)


def settle(store: Store) -> None:
    """Collective. Every rank notices what others have done to its blocks."""
    store._comm.Barrier()
    for _ in range(10):
        store.progress()
    store._comm.Barrier()


# --------------------------------------------------------------------------------------------------- tenants


def test_tenants_do_not_see_or_probe_each_other(any_store: Store, comm: MPI.Intracomm) -> None:
    if comm.rank == 0:
        for number, key in enumerate(KEYS):
            assert any_store.put(key, block(number, 5000), namespace=ALICE)
    comm.Barrier()
    other = [Namespace(**{**vars_of(ALICE), "salt": salt}) for salt in (b"", b"bob has others", b"alice has")]
    for space in [*other, BOB, "", "llama", str(ALICE)]:
        for key in KEYS:
            assert any_store.get(key, namespace=space) is None
            assert any_store.get(key, np.empty(5000, np.uint8), namespace=space) is None
            assert any_store.get_range(key, 0, 10, namespace=space) is None
            assert any_store.locate(key, namespace=space) is None
            assert any_store.view(key, namespace=space) is None
            assert any_store.pin(key, namespace=space) is None
            assert not any_store.contains(key, namespace=space)
            assert not any_store.delete(key, namespace=space)
        assert not any_store.contains_many(KEYS, namespace=space).any()
        assert any_store.get_many(KEYS, namespace=space) == [None] * len(KEYS)
        assert any_store.get_many(np.array([7], np.int64), namespace=space) == [None]
    comm.Barrier()
    if comm.rank == comm.size - 1:
        # Not even what is done to a key that is there tells anything.
        assert any_store.put(KEYS[0], block(99, 10), namespace=BOB, exists="keep").stored
        assert any_store.put(KEYS[2], block(99, 10), namespace=BOB, exists="error").stored
    comm.Barrier()
    for number, key in enumerate(KEYS):
        np.testing.assert_array_equal(any_store.get(key, namespace=ALICE), block(number, 5000))
    assert any_store.contains_many(KEYS, namespace=ALICE).all()
    comm.Barrier()


def vars_of(namespace: Namespace) -> dict[str, str | bytes]:
    return {name: getattr(namespace, name) for name in ("name", "model", "dtype", "layout", "salt")}


def test_equal_parts_are_one_namespace(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"k{comm.rank}", block(comm.rank, 100), namespace=Namespace("tenant", model="m"))
    comm.Barrier()
    for rank in range(comm.size):
        np.testing.assert_array_equal(
            any_store.get(f"k{rank}", namespace=Namespace(model="m", name="tenant")), block(rank, 100)
        )
    any_store.put(f"n{comm.rank}", block(comm.rank, 100), namespace="plain")
    comm.Barrier()
    assert any_store.contains(f"n{comm.size - 1}", namespace=Namespace("plain"))
    comm.Barrier()


def test_the_salt_is_shown_nowhere(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, namespace=ALICE)
    store.put("k", b"v")
    shown = f"{store.config} {store.report()} {store.stats()} {store.namespaces()} {ALICE} {ALICE!r}"
    assert "alice" not in shown
    assert "salted" in shown
    assert [each.salted for each in store.namespaces()] == [False, True]


def test_the_list_of_namespaces(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, namespace_slots=8)
    store.put(f"a{comm.rank}", block(1, 1000), namespace="a")
    if comm.rank == 0:
        store.put("b", block(1, 50), namespace=Namespace("b", "llama", "bf16", "tp4"))
    store.get("x", namespace="never put into")
    comm.Barrier()
    listed = {each.text: each for each in store.namespaces()}
    assert next(iter(listed)) == "default"
    assert comm.allgather(list(listed)) == [list(listed)] * comm.size
    assert set(listed) == {"default", "a", "b/llama/bf16/tp4"}
    assert (listed["a"].blocks, listed["a"].bytes) == (comm.size, 1000 * comm.size)
    assert listed["b/llama/bf16/tp4"][1:9] == ("b", "llama", "bf16", "tp4", False, 0, None, 1)
    assert store.report()["namespaces"] == {"default": "", "slots": 8, "used": 3}
    comm.Barrier()


def test_all_slots_taken(open_store: Open, comm: MPI.Intracomm, raises_all: Callable[..., str]) -> None:
    store = open_store(comm, namespace_slots=4)
    for number in range(3):
        store.put("k", b"v", namespace=f"n{number}")
    comm.Barrier()
    text = raises_all(comm, ConfigError, lambda: store.put("k", b"v", namespace="one more"))
    assert "namespace one more cannot be added: all 4 are in use; raise namespace_slots" in text
    assert store.get("k", namespace="one more") is None
    assert bytes(store.get("k", namespace="n2")) == b"v"
    assert len(store.namespaces()) == 4


def test_all_ranks_add_namespaces_at_once(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, namespace_slots=64)
    names = [f"tenant {number}" for number in range(50)]
    random.Random(comm.rank).shuffle(names)
    for name in names:
        store.put(comm.rank, name.encode(), namespace=name)
    comm.Barrier()
    slots = {name: store._registry.current(name).slot for name in sorted(names)}
    assert len(set(slots.values())) == 50
    assert comm.allgather(slots) == [slots] * comm.size
    for rank in range(comm.size):
        for name in names:
            assert bytes(store.get(rank, namespace=name)) == name.encode()
    comm.Barrier()


def test_a_namespace_is_a_str_or_a_namespace(any_store: Store) -> None:
    for wrong in (3, b"bytes", ["list"], ("tuple",)):
        with pytest.raises(TypeError, match="a namespace is a str or a Namespace, not"):
            any_store.get("k", namespace=wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize("namespace", ["weights", ALICE], ids=["name", "salted"])
def test_nothing_of_the_old_epoch_is_found_after_a_bump(
    any_store: Store, comm: MPI.Intracomm, namespace: str | Namespace
) -> None:
    began = any_store.epoch(namespace)
    for number in range(40):  # more than are taken out of memory at once
        any_store.put(f"{comm.rank}/{number}", block(number, 3000), namespace=namespace, is_prefix=number == 0)
    any_store.put(f"{comm.rank}/0", block(0, 3000), namespace="other")
    comm.Barrier()
    if comm.rank == comm.size - 1:
        assert any_store.bump_epoch(namespace) == began + 1
        assert any_store.get("0/1", namespace=namespace) is None
    comm.Barrier()
    assert any_store.epoch(namespace) == began + 1
    names = [f"{rank}/{number}" for rank in range(comm.size) for number in range(40)]
    assert all(found is None for found in any_store.get_many(names, namespace=namespace))
    assert not any_store.contains_many(names, namespace=namespace).any()
    for name in names[:: 7 if comm.size > 1 else 1]:
        assert any_store.get(name, namespace=namespace) is None
        assert any_store.get(name, np.empty(3000, np.uint8), namespace=namespace) is None
        assert any_store.view(name, namespace=namespace) is None
        assert any_store.locate(name, namespace=namespace) is None
    comm.Barrier()
    any_store.put(f"{comm.rank}/1", block(77, 20), namespace=namespace)
    comm.Barrier()
    for rank in range(comm.size):
        np.testing.assert_array_equal(any_store.get(f"{rank}/1", namespace=namespace), block(77, 20))
        np.testing.assert_array_equal(any_store.get(f"{rank}/0", namespace="other"), block(0, 3000))
    comm.Barrier()


def test_the_default_namespace_has_epochs_too(open_store: Open, comm: MPI.Intracomm) -> None:
    store, out = open_store(comm), np.zeros(3000, np.uint8)
    store.put(comm.rank, block(1, 3000))
    comm.Barrier()
    assert store.get(0, out) == 3000
    comm.Barrier()
    if comm.rank == 0:
        store.bump_epoch()
    comm.Barrier()
    for rank in range(comm.size):
        assert store.get(rank, out) is None
        assert store.get(rank) is None
    comm.Barrier()
    store.put(comm.rank, block(2, 3000))
    comm.Barrier()
    for rank in range(comm.size):
        assert store.get(rank, out) == 3000
        np.testing.assert_array_equal(out, block(2, 3000))
    comm.Barrier()


def test_bumps_of_all_ranks_at_once(any_store: Store, comm: MPI.Intracomm) -> None:
    began = any_store.epoch("crowd")
    comm.Barrier()
    mine = []
    for _ in range(20):
        mine.append(any_store.bump_epoch("crowd"))
        assert any_store.epoch("crowd") >= mine[-1]
    comm.Barrier()
    assert any_store.epoch("crowd") == began + 20 * comm.size
    assert mine == sorted(set(mine))
    comm.Barrier()


LATE_READS: dict[str, Callable[[Store, str, str], object]] = {
    "get": lambda store, key, space: store.get(key, namespace=space),
    "get-out": lambda store, key, space: store.get(key, np.empty(3000, np.uint8), namespace=space or None),
    "get-wrong-size": lambda store, key, space: store.get(key, np.empty(7, np.uint8), namespace=space or None),
    "get_range": lambda store, key, space: store.get_range(key, 5, 100, namespace=space),
    "get_range-beyond": lambda store, key, space: store.get_range(key, 2999, 2, namespace=space),
    "get_many": lambda store, key, space: store.get_many(iter([key]), namespace=space)[0],
    "get_many-outs": lambda store, key, space: store.get_many([key], [np.empty(3000, np.uint8)], namespace=space)[0],
    "get_many-wrong-size": lambda store, key, space: store.get_many([key], [np.empty(7, np.uint8)], namespace=space)[0],
    "contains": lambda store, key, space: store.contains(key, namespace=space) or None,
    "contains-by-fingerprint": lambda store, key, space: store.contains(key, exact=False, namespace=space) or None,
    "locate": lambda store, key, space: store.locate(key, namespace=space),
    "view": lambda store, key, space: store.view(key, namespace=space),
    "pin": lambda store, key, space: store.pin(key, namespace=space),
}


@pytest.fixture(scope="module")
def own_epochs() -> Iterator[Store]:
    """A store whose default namespace may leave epoch 0: the tests that share theirs count on it."""
    store = Store(MPI.COMM_WORLD, dram_bytes="4MiB", copy_threads=1)
    yield store
    store.close()


@pytest.mark.parametrize("space", ["late", ""], ids=["named", "default"])
@pytest.mark.parametrize("read", LATE_READS)
def test_what_began_before_a_bump_returns_nothing_old(
    own_epochs: Store, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, read: str, space: str
) -> None:
    """The epoch is looked at again when the bytes are there."""
    store, key = own_epochs, f"k{comm.rank}"
    store.put(key, block(1, 3000), namespace=space)
    bumped: list[int] = []

    def then_bump(call: Callable[..., object]) -> Callable[..., object]:
        def bump_after(*arguments: object) -> object:
            found = call(*arguments)
            if not bumped:
                bumped.append(store.bump_epoch(space))
            return found

        return bump_after

    fabric = store._fabric
    for name in ("get", "get_pinned", "get_many", "describe_many", "probe_many"):
        monkeypatch.setattr(fabric, name, then_bump(getattr(fabric, name)))
    monkeypatch.setattr(store, "_get", fabric.get)
    assert LATE_READS[read](store, key, space) is None
    assert bumped
    monkeypatch.undo()
    comm.Barrier()
    store.progress()
    comm.Barrier()


def test_nothing_older_is_read_after_a_put_while_an_epoch_begins(
    any_store: Store, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks leave the old epoch before a put into the new one can return."""
    registry = any_store._registry
    if comm.rank == 0:
        any_store.put("k", b"old", namespace="begins")
    comm.Barrier()
    steps, spread = [], registry._spread

    def record(word: int, value: int, operation: MPI.Op) -> None:
        spread(word, value, operation)
        if operation == MPI.MAX:
            space = registry.current("begins")
            steps.append((value, space.word & 1, any_store.get("k", namespace="begins")))

    monkeypatch.setattr(registry, "_spread", record)
    if comm.rank == comm.size - 1:
        began = any_store.epoch("begins")
        assert any_store.bump_epoch("begins") == began + 1
        assert steps == [(2 * began + 1, 1, None), (2 * began + 2, 0, None)]
    comm.Barrier()


def test_a_put_waits_for_an_epoch_that_is_about_to_begin(
    open_store: Open, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(comm)
    registry, at = store._registry, store._registry._epochs_at
    store.put(comm.rank, b"old", namespace="w")
    comm.Barrier()
    if comm.rank == 0:
        registry._spread(at + registry.current("w").slot, 1, MPI.MAX)  # the first half of a bump
    comm.Barrier()
    assert registry.current("w").word == 1
    assert store.get(comm.rank, namespace="w") is None
    monkeypatch.setattr(registry_module, "_BEGIN_S", 0.05)
    for write in (lambda: store.put(comm.rank, b"new", namespace="w"), lambda: store.delete(comm.rank, namespace="w")):
        with pytest.raises(CascadeError, match="epoch 1 of namespace w has not begun on all ranks for 0 s"):
            write()
    monkeypatch.undo()
    comm.Barrier()
    polls = []

    def poll(*arguments: int) -> None:
        polls.append(arguments)
        if len(polls) == 3 and comm.rank == 0:
            registry._spread(at + registry.current("w").slot, 2, MPI.MAX)  # the second half

    monkeypatch.setattr(store._fabric, "poll", poll)
    assert store.put(comm.rank, b"new", namespace="w").stored
    if comm.rank == 0:
        assert len(polls) >= 3
    monkeypatch.undo()
    comm.Barrier()
    assert bytes(store.get(0, namespace="w")) == b"new"
    comm.Barrier()


def test_readers_race_with_bumps(any_store: Store, comm: MPI.Intracomm) -> None:
    """Rank 0 announces each epoch when its bump has returned: nobody reads an older value afterwards."""
    rounds, out, known = 150, np.zeros(64, np.int64), any_store.epoch("race")
    began, problems = known, []
    comm.Barrier()
    if comm.rank == 0:
        for _ in range(rounds):
            epoch = any_store.epoch("race")
            any_store.put("k", np.full(64, epoch), namespace="race")
            announced = any_store.bump_epoch("race")
            for rank in range(1, comm.size):
                comm.send(announced, rank)
    else:
        while known < began + rounds:
            while comm.Iprobe(source=0):
                known = comm.recv(source=0)
            there = any_store.get("k", out, namespace="race") is not None
            if there and (out.min() < known or out.min() != out.max()):
                problems.append(f"read {out.min()}..{out.max()} after epoch {known} had begun")
    assert comm.allgather(problems) == [[]] * comm.size
    assert any_store.epoch("race") == began + rounds
    if comm.rank == 0:
        any_store.put("k", np.full(64, known + rounds), namespace="race")
    comm.Barrier()
    assert any_store.get("k", out, namespace="race") == out.nbytes  # they were no misses of a key that is never there
    comm.Barrier()


def test_blocks_of_a_passed_epoch_leave_memory(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes="1MiB", when_full="refuse")
    for number in range(200):
        assert store.put((comm.rank, number).__repr__(), block(number, 4096), namespace="w", is_prefix=True)
    comm.Barrier()
    held = info(store, "w")
    assert (held.blocks, held.bytes, held.passed_bytes) == (200 * comm.size, 819_200 * comm.size, 0)
    comm.Barrier()
    if comm.rank == 0:
        store.bump_epoch("w")
    comm.Barrier()
    held = info(store, "w")
    assert (held.blocks, held.bytes) == (0, 0)
    # All of the arena is there for the new epoch at once, although the old blocks were protected.
    for number in range(200):
        assert store.put((comm.rank, number).__repr__(), block(number, 4096), namespace="w", is_prefix=True)
    for _ in range(10):
        store.progress()
    comm.Barrier()
    held = info(store, "w")
    assert (held.blocks, held.epoch, held.passed_bytes) == (200 * comm.size, 1, 0)
    assert store.stats()["passed"] == 200
    store.check()


def test_a_view_outlives_its_epoch(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes="1MiB")
    name = f"k{comm.rank}"
    store.put(name, block(3, 300_000), namespace="w")
    with store.view(name, namespace="w") as seen:
        comm.Barrier()
        store.bump_epoch("w")
        store.progress()
        for number in range(40):
            store.put(f"{comm.rank} {number}", block(number, 100_000), namespace="w")
        np.testing.assert_array_equal(seen, block(3, 300_000))
    comm.Barrier()


def test_deferred_puts_of_a_passed_epoch_are_not_found(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, publish="deferred")
    store.put(comm.rank, block(1, 500), namespace="w")
    comm.Barrier()
    if comm.rank == 0:
        store.bump_epoch("w")
    comm.Barrier()
    store.publish()
    assert all(store.get(rank, namespace="w") is None for rank in range(comm.size))
    comm.Barrier()
    store.put(comm.rank, block(2, 500), namespace="w")
    store.publish()
    assert all(store.get(rank, namespace="w") is not None for rank in range(comm.size))
    comm.Barrier()
    settle(store)
    assert info(store, "w").passed_bytes == 0
    store.check()


def test_a_put_whose_epoch_passes_meanwhile_leaves_memory(
    open_store: Open, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(comm)
    publish, bumped = store._fabric.publish, []

    def bump_meanwhile(*arguments: int) -> int:
        if not bumped:
            bumped.append(store.bump_epoch("w"))
            store.progress()  # which sees the new epoch, and not yet the block
        return publish(*arguments)

    monkeypatch.setattr(store._fabric, "publish", bump_meanwhile)
    store.put(comm.rank, block(1, 5000), namespace="w", is_prefix=True)
    monkeypatch.undo()
    assert store.get(comm.rank, namespace="w") is None
    settle(store)
    assert info(store, "w").passed_bytes == 0
    store.check()


# ---------------------------------------------------------------------------------------------------- quotas


def test_a_quota_holds_over_all_ranks(any_store: Store, comm: MPI.Intracomm) -> None:
    quota = 40_000 * comm.size + 5_000
    any_store.set_quota(quota, "q")
    for number in range(60):
        result = any_store.put(f"{comm.rank}/{number}", block(number, 10_000), namespace="q")
        assert result.stored or "of its quota" in result.reason
        any_store.put(f"{comm.rank}/{number}", block(number, 10_000), namespace="free")
    comm.Barrier()
    held = info(any_store, "q")
    assert held.quota == quota
    assert quota - 10_000 * comm.size <= held.bytes <= quota
    assert info(any_store, "free").blocks == 60 * comm.size
    assert any_store._registry.used(any_store._registry.current("q")) == held.bytes
    any_store.set_quota(None, "q")
    for number in range(60):
        assert any_store.put(f"{comm.rank}/{number}", block(number, 10_000), namespace="q").stored
    comm.Barrier()
    assert info(any_store, "q").blocks == 60 * comm.size
    comm.Barrier()


def test_one_rank_may_use_the_whole_quota_and_not_a_byte_more(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, when_full="refuse")
    store.put(f"before {comm.rank}", block(1, 1000), namespace=ALICE)
    store.set_quota("100KiB", ALICE)
    full = 102_400 - 1000 * comm.size
    if comm.rank == 0:
        assert store.put("all", block(2, full), namespace=ALICE).stored
        refused = store.put("one byte", b"1", namespace=ALICE)
        assert not refused
        assert (
            "llama/bf16 (salted) holds 102400 bytes of its quota of 102400, a block of 1 bytes would exceed it by 1"
            in (refused.reason)
        )
        assert store.get("one byte", namespace=ALICE) is None
        assert store.put("empty", b"", namespace=ALICE).stored
    comm.Barrier()
    np.testing.assert_array_equal(store.get("all", namespace=ALICE), block(2, full))
    comm.Barrier()
    if comm.rank == comm.size - 1:
        assert store.delete("all", namespace=ALICE)  # of another rank's block, where there is one
    settle(store)
    if comm.rank == comm.size - 1:
        assert store.put("again", block(3, full), namespace=ALICE).stored
    comm.Barrier()
    assert info(store, ALICE).bytes == 102_400
    store.clear()
    comm.Barrier()
    if comm.rank == 0:
        assert store.put("after clear", block(3, 102_400), namespace=ALICE).stored
        refused = store.put("too large", block(3, 102_401), namespace=ALICE)
        assert "would exceed it by" in refused.reason
    comm.Barrier()


def test_a_quota_evicts_only_in_its_namespace(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, when_full="evict")
    store.put(f"other {comm.rank}", block(9, 5000))
    store.put(f"prefix {comm.rank}", block(8, 1000), namespace="q", is_prefix=True)
    store.set_quota(21_000 * comm.size, "q")
    for number in range(30):
        store.put(f"{comm.rank}/{number}", block(number, 10_000), namespace="q")
    comm.Barrier()
    assert comm.allreduce(store.stats()["evicted"]) > 0
    for rank in range(comm.size):
        np.testing.assert_array_equal(store.get(f"other {rank}"), block(9, 5000))
        np.testing.assert_array_equal(store.get(f"prefix {rank}", namespace="q"), block(8, 1000))
    comm.Barrier()
    assert 21_000 * comm.size - 10_000 * comm.size < info(store, "q").bytes <= 21_000 * comm.size
    comm.Barrier()


def test_a_new_epoch_begins_with_an_empty_quota(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, when_full="refuse")
    store.set_quota(10_000 * comm.size, "q")
    for epoch in range(1, 4):
        assert store.put(f"{comm.rank}", block(1, 10_000), namespace="q").stored
        comm.Barrier()
        assert not store.put(f"{comm.rank} more", block(1, 10_000), namespace="q")
        comm.Barrier()
        if comm.rank == 0:
            assert store.bump_epoch("q") == epoch
        comm.Barrier()
    settle(store)
    assert store._registry.used(store._registry.current("q")) == 0
    assert info(store, "q").passed_bytes == 0
    comm.Barrier()


def test_a_put_that_finds_no_room_is_not_counted(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes="64KiB", when_full="refuse")
    store.set_quota("1GiB", "q")
    assert "contiguous pages" in store.put(comm.rank, block(1, 1 << 20), namespace="q").reason
    assert store.put(comm.rank, block(1, 1000), namespace="q").stored
    comm.Barrier()
    settle(store)
    assert store._registry.used(store._registry.current("q")) == 1000 * comm.size
    comm.Barrier()


def test_quotas_must_agree(any_store: Store, comm: MPI.Intracomm, raises_all: Callable[..., str]) -> None:
    text = raises_all(comm, ConfigError, lambda: any_store.set_quota("a lot", "q"))
    assert "'a lot' is not a size" in text
    text = raises_all(comm, ConfigError, lambda: any_store.set_quota(1 << 60, "q"))
    assert "above the largest possible" in text
    if comm.size > 1:
        text = raises_all(comm, ConfigError, lambda: any_store.set_quota(1000 + comm.rank, "q"))
        assert "rank 1 was given quota 1001, rank 0 1000" in text
        text = raises_all(comm, ConfigError, lambda: any_store.set_quota(1000, f"q{comm.rank > 0}"))
        assert "another namespace" in text
    assert info(any_store, "q").quota is None
    comm.Barrier()


def test_a_wrong_namespace_is_said_on_all_ranks(
    any_store: Store, comm: MPI.Intracomm, raises_all: Callable[..., str]
) -> None:
    before = any_store._registry.slots_used()
    comm.Barrier()
    wrong = "\ud800" if comm.rank == 0 else "right"
    assert "rank 0: " in raises_all(comm, ConfigError, lambda: any_store.set_quota(1000, wrong))
    assert any_store._registry.slots_used() == before


def test_what_others_delete_or_replace_leaves_the_quota(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, when_full="refuse")
    store.set_quota(100_000, "q")
    last = comm.size - 1
    for number in range(3):
        if comm.rank == last:
            assert store.put("k", block(number, 60_000), namespace="q").stored
        comm.Barrier()
        if comm.rank == 0:
            if number != 1:
                assert store.put("k", block(9, 40_000), namespace="q").stored  # beside the one that it replaces
            assert store.delete("k", namespace="q")
        settle(store)
        assert store._registry.used(store._registry.current("q")) == 0
        comm.Barrier()


def test_setting_a_quota_again_counts_what_is_there(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, when_full="refuse")
    share = 50_000
    for quota in (share * comm.size, None, share * comm.size, share * comm.size):
        store.put(f"gone {comm.rank}", block(1, 20_000), namespace="q")
        store.put(f"kept {comm.rank}", block(1, 30_000), namespace="q", exists="keep")
        comm.Barrier()
        store.delete(f"gone {(comm.rank + 1) % comm.size}", namespace="q")  # noticed by the next set_quota, or before
        comm.Barrier()
        store.set_quota(quota, "q")
        if quota is not None:
            assert store._registry.used(store._registry.current("q")) == 30_000 * comm.size
        comm.Barrier()
    while store.put(f"more {comm.rank} {store.stats()['puts']}", block(1, 5_000), namespace="q"):
        pass
    comm.Barrier()
    assert info(store, "q").bytes <= share * comm.size
    comm.Barrier()


def test_deferred_puts_count(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, publish="deferred", when_full="refuse")
    store.put(f"a {comm.rank}", block(1, 10_000), namespace="q")
    comm.Barrier()
    store.set_quota(20_000 * comm.size, "q")
    assert store.put(f"b {comm.rank}", block(1, 10_000), namespace="q").stored
    comm.Barrier()
    assert not store.put(f"c {comm.rank}", block(1, 10_000), namespace="q")
    comm.Barrier()
    assert store.delete(f"b {comm.rank}", namespace="q")  # given up before anybody saw it
    settle(store)
    assert store._registry.used(store._registry.current("q")) == 10_000 * comm.size
    store.publish()
    assert info(store, "q").bytes == 10_000 * comm.size
    comm.Barrier()


def test_a_refused_put_evicts_nothing(open_store: Open, comm: MPI.Intracomm) -> None:
    store = open_store(comm, when_full="evict")
    store.set_quota(100_000 * comm.size, "q")
    store.put(f"mine {comm.rank}", block(1, 5_000), namespace="q")
    if comm.rank == 0:
        store.put("large", block(1, 95_000 * comm.size), namespace="q", is_prefix=True)
    comm.Barrier()
    assert not store.put(f"no room {comm.rank}", block(1, 20_000), namespace="q")
    comm.Barrier()
    for rank in range(comm.size):
        np.testing.assert_array_equal(store.get(f"mine {rank}", namespace="q"), block(1, 5_000))
    comm.Barrier()


def test_a_put_that_fails_counts_nothing(
    open_store: Open, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(comm)
    store.set_quota(1_000_000, "q")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for owner, name in ((store._pool, "reserve"), (store._writer, "_write")):
        monkeypatch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.put(comm.rank, block(1, 5_000), namespace="q")
        monkeypatch.undo()
    settle(store)
    assert store._registry.used(store._registry.current("q")) == 0
    assert info(store, "q").blocks == 0
    store.check()


def test_many_epochs_between_two_puts(open_store: Open, comm: MPI.Intracomm) -> None:
    """The count knows the low bits of its epoch only."""
    store = open_store(comm, when_full="refuse")
    store.set_quota(10_000 * comm.size, "q")
    for bumps in (2_100, 4_096) if comm.size == 1 else (3,):
        assert store.put(f"{comm.rank}", block(1, 10_000), namespace="q").stored
        comm.Barrier()
        if comm.rank == 0:
            for _ in range(bumps):
                store.bump_epoch("q")
        comm.Barrier()
        assert store._registry.used(store._registry.current("q")) == 0
        comm.Barrier()
        assert store.put(f"{comm.rank}", block(1, 10_000), namespace="q").stored
        comm.Barrier()
        assert not store.put(f"{comm.rank} more", block(1, 1), namespace="q")
        comm.Barrier()
        if comm.rank == 0:
            store.bump_epoch("q")
        comm.Barrier()


def test_no_message_tells_the_words_of_a_key(
    any_store: Store, comm: MPI.Intracomm, caplog: pytest.LogCaptureFixture
) -> None:
    any_store.put(0, b"v", namespace=ALICE)  # its words are the digest of the namespace
    digest = any_store._registry.current(ALICE).digest.hex()
    with pytest.raises(KeyExistsError) as caught:
        any_store.put(0, b"v", namespace=ALICE, exists="error")
    assert digest not in str(caught.value)
    any_store._reader._fail(c.CORRUPT, int(digest[:16], 16), int(digest[16:], 16))
    assert "checksum" in caplog.text
    assert digest not in caplog.text
    comm.Barrier()
