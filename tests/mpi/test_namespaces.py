"""Namespaces on any number of ranks: tenants, weight epochs, quotas, and the list of them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import ConfigError
from cascade_mpi.namespaces import Namespace
from cascade_mpi.registry import NamespaceInfo
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
    store._dram.sweep()
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
    assert list(listed) == sorted(listed, key=list(listed).index)
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
    assert any_store.get_many(names, namespace=namespace) == [None] * len(names)
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


def test_a_get_that_began_before_a_bump_returns_nothing_old(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch is looked at again when the bytes are there."""
    any_store.put(f"k{any_store._comm.rank}", block(1, 3000), namespace="late")
    read, name = any_store._reader.new, f"k{any_store._comm.rank}"

    def bump_meanwhile(hi: int, lo: int) -> object:
        found = read(hi, lo)
        if found is not None:
            any_store.bump_epoch("late")
        return found

    monkeypatch.setattr(any_store._reader, "new", bump_meanwhile)
    assert any_store.get(name, namespace="late") is None
    many = any_store._batch.get

    def bump_batch(keys: np.ndarray, outs: object) -> list[object]:
        found = many(keys, outs)  # type: ignore[arg-type]
        if any(each is not None for each in found):
            any_store.bump_epoch("late")
        return found

    any_store.put(name, block(1, 3000), namespace="late")
    monkeypatch.setattr(any_store._batch, "get", bump_batch)
    assert any_store.get_many(iter([name]), namespace="late") == [None]


def test_readers_race_with_bumps(any_store: Store, comm: MPI.Intracomm) -> None:
    """Rank 0 announces each epoch when its bump has returned: nobody reads an older value afterwards."""
    rounds, out, known, reads = 150, np.zeros(64, np.int64), any_store.epoch("race"), 0
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
            if any_store.get("k", out, namespace="race") is not None:
                reads += 1
                if out.min() < known or out.min() != out.max():
                    problems.append(f"read {out.min()}..{out.max()} after epoch {known} had begun")
    assert comm.allgather(problems) == [[]] * comm.size
    assert any_store.epoch("race") == began + rounds


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
