"""What a later job finds: after a close, after a kill, on another number of ranks; and what it must not find.

Covers blocks and deletes that were acknowledged as durable, in the order of the ranks' writes whatever their clocks
say. A kill is a copy of the directory (`disk_stores.killed`). Does not cover power losses (`tests/unit/power_loss.py`).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from disk_stores import SMALL, Refusing, damages, found, killed, leave_memory, opened, tier_of
from mpi4py import MPI
from patterns import block, keys_at

from cascade_mpi.config import Config
from cascade_mpi.disk import opening, sequences
from cascade_mpi.errors import ConfigError, NotConfiguredError, StoreFullError
from cascade_mpi.kernels import context as c
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store

AssertAll = Callable[..., None]


@pytest.fixture
def store(comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store]) -> Store:
    """A store that writes what it is asked for; arenas with room for all, so what is on disk says the test."""
    return open_store(comm, **(SMALL | {"disk": str(folder / "store"), "durability": "none"}))


@contextmanager
def later(comm: MPI.Intracomm, folder: Path, **settings: Any) -> Iterator[Store]:
    """Collective. A job that finds what is left of the folder if this one is killed now."""
    copy = killed(comm, folder / "store", folder / f"killed {comm.bcast(time.monotonic_ns())}")
    with opened(comm, copy, **settings) as store:
        yield store
    assert not damages(copy)


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Local. Let this rank's sequences be those of a clock that is wrong by so much."""
    away = int(seconds * 1e9)
    monkeypatch.setattr(sequences, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + away))


@pytest.mark.core
def test_what_sync_and_flush_promise_is_found_after_a_kill(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll
):
    me, other = comm.rank, (comm.rank + 1) % comm.size
    for number in range(6):
        store.put(f"{me} {number}", block(number, 3000 + number))
    assert store.sync([f"{me} 0", f"{me} 1", f"{me} 77"]) == 2
    with later(comm, folder) as after:
        got = found(after, [f"{other} {number}" for number in range(6)])
        right = [
            None if each is None else block(at, 3000 + at).tobytes() == each for at, each in enumerate(got.values())
        ]
        assert_all(comm, right == [True, True, None, None, None, None], str(right))
    assert store.sync() == 4
    store.put(f"{me} 0", block(50, 100))
    assert store.delete(f"{me} 1")
    assert store.sync() == 1
    with later(comm, folder) as after:
        got = found(after, [f"{other} {number}" for number in range(6)])
        want = [block(50, 100).tobytes(), None, *(block(at, 3000 + at).tobytes() for at in range(2, 6))]
        assert_all(comm, list(got.values()) == want)
    comm.Barrier()
    store.put(f"{other} 2", block(60, 10))  # by another rank, which did not put it
    store.delete(f"{other} 3")
    assert store.flush() == comm.size
    with later(comm, folder) as after:
        got = found(after, [f"{other} {number}" for number in range(6)])
        want[2:4] = [block(60, 10).tobytes(), None]
        assert_all(comm, list(got.values()) == want)
    assert store.flush() == 0


@pytest.mark.core
def test_another_number_of_ranks_finds_the_same(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll):
    """Written by all ranks, then by one, then by all: each adds, replaces and deletes."""
    expected: dict[str, bytes] = {}
    for turn, alone in enumerate([False, True, False]):
        part = comm.Split(comm.rank != 0 and alone)
        if not alone or comm.rank == 0:
            with opened(part, folder, durability=["none", "writeback", "demote"][turn]) as store:
                assert_all(part, found(store, expected) == expected, str(turn))  # before anybody changes them
                names = [f"{turn} {at}" for at in range(12)]
                for at, key in enumerate(names):
                    if at % part.size == part.rank:
                        store.put(key, block(at + turn, 2000))
                old = [f"{turn - 1} {at}" for at in range(12)] if turn else []
                for at, key in enumerate(old):
                    if at % part.size == part.rank and at < 4:
                        store.put(key, block(100 + at, 2500))
                    elif at % part.size == part.rank and at < 8:
                        assert store.delete(key)
                store.flush()
            expected |= {key: block(at + turn, 2000).tobytes() for at, key in enumerate(names)}
            expected |= {key: block(100 + at, 2500).tobytes() for at, key in enumerate(old[:4])}
            for key in old[4:8]:
                del expected[key]
        expected = comm.bcast(expected)
        part.Free()
    with opened(comm, folder, disk_mode="read") as store:
        assert_all(comm, found(store, list(expected)) == expected)
        gone = [f"{turn} {at}" for turn in (0, 1) for at in range(4, 8)]
        assert_all(comm, not any(found(store, gone).values()))


@pytest.mark.parametrize("where", ["on disk", "backed", "promoted", "replaced", "replaced, not durable"])
def test_a_delete_by_another_rank_lasts(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, where: str
):
    key, other = f"of {comm.rank}", f"of {(comm.rank + 1) % comm.size}"
    store.put(key, block(1, 5000))
    store.sync()
    if where != "backed":
        leave_memory(store, [key])
    comm.Barrier()
    if where == "promoted":
        assert store.get(other) is not None
    if where.startswith("replaced"):
        store.put(other, block(2, 5000))
    if where == "replaced":
        store.sync()
    comm.Barrier()
    assert store.delete(key if "replaced" in where else other)
    store.sync()
    with later(comm, folder) as after:
        assert_all(comm, after.get(key) is None and after.get(other) is None)
        after.put(key, block(3, 10))  # and again, under the same key
        after.flush()
        comm.Barrier()
        assert_all(comm, np.array_equal(after.get(other), block(3, 10)))


def test_who_deletes_what_was_deleted_may_be_the_one_whose_delete_lasts(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
):
    """The first delete is not durable, the disk is full there; the second one finds nothing, and is."""
    key, last = f"of {comm.rank}", comm.size - 1
    if last == 0:
        pytest.skip("the disk is full for one rank of several")
    store.put(key, block(1, 5000))
    store.flush()
    comm.Barrier()
    if comm.rank == 0:
        refusing = Refusing(monkeypatch, errno.ENOSPC, "pwritev", "pwrite")
        for rank in range(comm.size):
            assert store.delete(f"of {rank}")
        assert refusing.refused
    comm.Barrier()
    if comm.rank == last:
        for rank in range(comm.size):
            assert store.delete(f"of {rank}") is False
        store.sync()
    with later(comm, folder) as after:
        assert_all(comm, after.get(key) is None)


@pytest.mark.parametrize("behind", [3600.0, 0.0])
def test_a_put_after_a_delete_is_found_whatever_the_clocks_say(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, behind: float,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """The rank that puts again has a clock an hour behind that of the rank that put first."""
    first, second = 0, comm.size - 1
    if comm.rank == first:
        for number in range(3):
            store.put(number, block(number, 5000))
        store.sync()
        leave_memory(store, [0, 1])
    comm.Barrier()
    if comm.rank == second:
        clock(monkeypatch, -behind)
        if comm.size == 1:
            store._disk.tier.sequences._last = 0  # as if it had never put
        assert store.delete(0)
        store.put(0, block(10, 100))
        store.put(1, block(11, 100))  # in the place of a newer one
        assert store.delete(2)
        store.put(2, block(12, 100))
        assert store.delete(2)
        store.sync()
    monkeypatch.undo()
    with later(comm, folder) as after:
        got = list(found(after, range(3)).values())
        assert_all(comm, got == [block(10, 100).tobytes(), block(11, 100).tobytes(), None])


@pytest.mark.alone
def test_a_full_bucket_refuses_and_drops_nothing(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll
):
    """Version 1 is durable, version 2 is in memory: were its word taken for another key's, version 1 would be back."""
    store = open_store(
        comm, **(SMALL | {"disk": str(folder / "store"), "durability": "none", "index_blocks": 1, "disk_blocks": 64})
    )
    assert store._fabric.buckets == 1
    numbers = keys_at(store, comm.rank)
    mine = [next(numbers) for _ in range(16)]
    for key in mine:
        store.put(key, block(1, 1000))
    store.sync()
    for key in mine:
        assert store.put(key, block(2, 1000)).stored
    refused = store.put(next(numbers), block(3, 1000))
    assert_all(comm, refused.refused and "index_blocks" in refused.reason, str(refused))
    assert_all(comm, set(found(store, mine).values()) == {block(2, 1000).tobytes()})


@pytest.mark.alone
def test_what_finds_no_slot_can_be_deleted(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll
):
    """A later job has an index that is too small for the directory: what it does not find, a third one must not."""
    with opened(comm, folder / "store", durability="none") as store:
        numbers = keys_at(store, comm.rank)
        mine = [next(numbers) for _ in range(30)]
        for key in mine:
            store.put(key, block(1, 1000))
        store.flush()
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "index_blocks": 1}))
    missing = [key for key in mine if not store.contains(key)]
    assert_all(comm, store.report()["disk"]["found"]["unindexed"] == len(missing) == 14)
    assert not store.delete(missing[0])
    store.flush()
    with later(comm, folder) as after:
        there = [key for key in mine if after.contains(key)]
        assert_all(comm, set(mine) - set(there) == {missing[0]})


@pytest.mark.alone
def test_more_blocks_of_one_home_than_a_rank_can_have(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, raises_all: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """One rank has too many: no rank opens the store, and none waits for the one that cannot."""
    with opened(comm, folder, durability="none") as store:
        if comm.rank == 0:
            numbers = keys_at(store, comm.size - 1)
            for key in (next(numbers) for _ in range(40)):
                store.put(key, block(1, 1000))
        store.flush()
    monkeypatch.setattr(opening, "MAX_DISK_CELLS", 39)
    config = Config.make(None, **(SMALL | {"disk": str(folder), "disk_mode": "read"}))
    with pytest.raises(ConfigError):  # on every rank, whatever is its own part: else some wait for others below
        opening.disk_blocks(config, SimpleNamespace(most=40), comm.size)
    text = raises_all(comm, ConfigError, lambda: Store(comm, config))
    assert_all(comm, "40 blocks" in text and "at most 39" in text and f"use {comm.size + 1} ranks" in text, text)
    monkeypatch.setattr(opening, "MAX_DISK_CELLS", 40)
    with opened(comm, folder) as store:
        assert_all(comm, comm.allreduce(store.stats()["disk"]["blocks"]) == 40)


@pytest.mark.alone
@pytest.mark.parametrize("how", ["range", "delete_all", "clear"])
def test_what_finds_no_slot_goes_with_the_others(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch, how: str
):
    """Many are deleted while the index is too small for the directory; a job with a larger one must not find them."""
    with opened(comm, folder / "store", durability="none") as store:
        numbers = keys_at(store, comm.rank)
        mine = [next(numbers) for _ in range(40)]
        for key in mine:
            store.put(key, block(1, 1000))
        for key in mine[:4]:  # too few to fill a bucket
            store.put(key, block(2, 1000), namespace="tenant")
        store.flush()
    with opened(comm, folder / "store", index_blocks=1) as store:
        missing = [key for key in mine if not store.contains(key)]
        unindexed = comm.allreduce(store.report()["disk"]["found"]["unindexed"])
        assert_all(comm, len(missing) > 2 and unindexed == (44 - 16) * comm.size, f"{len(missing)}, {unindexed}")
        if how == "clear":
            store.clear()
        else:
            highest = comm.allreduce(max(mine), MPI.MAX)
            store.delete_all(keys=range(highest + 1) if how == "range" else None)
        clock(monkeypatch, -1e9)  # what is put now is newer all the same
        again = missing[0]
        assert store.put(again, block(3, 500)).stored
        store.flush()
        monkeypatch.undo()
    with opened(comm, folder / "store", disk_mode="read") as after:
        there = {key: value for key, value in found(after, mine).items() if value is not None}
        assert_all(comm, there == {again: block(3, 500).tobytes()}, f"{len(there)} of {missing}")
        others = set(found(after, mine[:4], "tenant").values())
        assert_all(comm, others == {None if how == "clear" else block(2, 1000).tobytes()}, str(len(others)))


def test_a_delete_that_found_nothing_does_not_kill_what_comes_meanwhile(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
):
    """Rank 0 deletes a key that is not there; before it knows the floor another block is put, and the floor rises."""
    numbers = keys_at(store, comm.size - 1)
    key, next_one = next(numbers), next(numbers)
    if comm.rank == 0:
        tier = store._disk.tier
        store.put(next_one, b"x")
        assert store.delete(next_one)  # there is a floor
        real, came = tier.sequences.floor, []

        def floor(home: int) -> int:
            if not came:
                came.append(home)
                store.put(key, block(1, 1000))
                store.put(next_one, b"x")
                store.delete(next_one)  # raises the floor above what was put just now
            return real(home)

        monkeypatch.setattr(tier.sequences, "floor", floor)
        store.delete(key)
        monkeypatch.undo()
        assert came
        there = store.contains(key)
        store.sync()
    there = comm.bcast(there if comm.rank == 0 else None)
    with later(comm, folder) as after:
        assert_all(comm, after.contains(key) == there, f"{there} before")


@pytest.mark.alone
def test_blocks_of_a_namespace_that_nobody_has_used_yet(
    store: Store, comm: MPI.Intracomm, folder: Path, raises_all: Callable[..., str]
):
    """The later job does not know its name, only its number, and that at epoch 0."""
    for number in range(3):
        store.put(comm.rank, block(number, 500), namespace=f"tenant {number}")
    store.flush()
    with later(comm, folder) as after:
        assert np.array_equal(after.get_many([comm.rank], namespace="tenant 0")[0], block(0, 500))
        assert np.array_equal(after.get(comm.rank, namespace="tenant 1"), block(1, 500))
        out = np.zeros(500, np.uint8)
        assert after.get(comm.rank, out, namespace="tenant 2") == 500
        assert np.array_equal(out, block(2, 500))
        comm.Barrier()
    copy = str(folder / "store")
    text = raises_all(
        comm, ConfigError, lambda: Store(comm, **(SMALL | {"disk": copy, "disk_mode": "read", "namespace_slots": 3}))
    )
    assert "raise namespace_slots" in text


def test_epochs_that_have_passed_do_not_come_back(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll
):
    tenant = Namespace("tenant", salt=b"sixteen bytes or more")
    for space in ("", tenant):
        store.put(f"of {comm.rank}", block(1, 5000), namespace=space)
        store.put(f"more of {comm.rank}", block(2, 5000), namespace=space)
    store.flush()
    leave_memory(store, [f"of {comm.rank}"], tenant)
    comm.Barrier()
    if comm.rank == 0:
        assert store.bump_epoch(tenant) == 1
    comm.Barrier()
    assert store.get(f"of {comm.rank}", namespace=tenant) is None
    with later(comm, folder) as after:  # nothing was put into the new epoch
        assert_all(comm, after.epoch(tenant) == 1)
        assert_all(comm, after.get(f"of {comm.rank}", namespace=tenant) is None)
        assert_all(comm, np.array_equal(after.get(f"of {comm.rank}"), block(1, 5000)))
        held = comm.allreduce(after.stats()["disk"]["blocks"])
        assert_all(comm, held == 2 * comm.size, f"{held} blocks: those of the passed epoch are nobody's")
        after.put(f"of {comm.rank}", block(3, 5000), namespace=tenant)
        after.flush()
        leave_memory(after, [f"of {comm.rank}"], tenant)
        comm.Barrier()
        if comm.rank == 0:
            assert after.bump_epoch(tenant) == 2
            assert after.bump_epoch("") == 1
        comm.Barrier()
        deadline = time.monotonic() + 10
        while after.stats()["disk"]["blocks"] and time.monotonic() < deadline:
            after.progress()  # disk cells of passed epochs are given back, in memory or not
        assert_all(comm, not after.stats()["disk"]["blocks"], str(after.stats()["disk"]))
        with opened(comm, Path(after.config.disk), disk_mode="read") as reader:
            assert_all(comm, (reader.epoch(tenant), reader.epoch("")) == (2, 1))
            assert_all(comm, reader.get(f"of {comm.rank}", namespace=tenant) is None)
            assert_all(comm, reader.get(f"of {comm.rank}") is None)


@pytest.mark.alone
def test_what_is_left_of_a_ttl_counts_after_a_restart(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
):
    store.put(f"short {comm.rank}", block(1, 5000), ttl=500)
    store.put(f"long {comm.rank}", block(2, 5000), ttl=5000)
    store.put(f"for ever {comm.rank}", block(3, 5000))
    store.flush()
    store.put(f"replaced {comm.rank}", block(4, 5000))
    store.flush()
    store.put(f"replaced {comm.rank}", block(5, 5000), ttl=500)  # the newest one counts, though it expires
    store.flush()
    with later(comm, folder) as after:
        listed = [each.ttl for each in after.scan_all() if each.ttl is not None]
        assert_all(comm, len(listed) == 3 * comm.size and all(400 < ttl <= 5001 for ttl in listed), str(listed))
        assert_all(comm, np.array_equal(after.get(f"short {comm.rank}"), block(1, 5000)))
        assert_all(comm, np.array_equal(after.get(f"replaced {comm.rank}"), block(5, 5000)))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1000)  # the store's opening is then
    with later(comm, folder) as after:
        assert_all(comm, after.get(f"short {comm.rank}") is None and after.get(f"replaced {comm.rank}") is None)
        assert_all(comm, np.array_equal(after.get(f"long {comm.rank}"), block(2, 5000)))
        assert_all(comm, np.array_equal(after.get(f"for ever {comm.rank}"), block(3, 5000)))


def test_expired_blocks_give_their_disk_cells_back(
    store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
):
    """Written by this job or found by it, on disk or in memory; and what is put next is newer, by whatever clock."""
    me = comm.rank
    for name in ("on disk", "backed", "promoted"):
        store.put(f"{name} {me}", block(1, 3000), ttl=500)
    store.put(f"lasts {me}", block(2, 3000))
    store.sync()
    leave_memory(store, [f"on disk {me}", f"promoted {me}", f"lasts {me}"])
    store.put(f"memory {me}", block(1, 3000), ttl=500)
    comm.Barrier()
    assert store.get(f"promoted {(me + 1) % comm.size}") is not None
    with later(comm, folder) as after:
        for each in (store, after):
            each._fabric.context[c.EPOCH] -= 1000  # so much later
            deadline, disk = time.monotonic() + 10, each._disk
            while comm.allreduce(disk.cells.live) > comm.size and comm.bcast(time.monotonic() < deadline):
                each.progress()
            assert_all(comm, disk.cells.live == (1 if each is store else disk.cells.live), str(each.stats()["disk"]))
            assert_all(comm, comm.allreduce(disk.cells.live) == comm.size)
            assert_all(comm, each.get(f"on disk {me}") is None and tier_of(each, f"lasts {me}") == "disk")
    leave_memory(store, [f"memory {me}"])
    assert_all(comm, store.stats()["disk"]["blocks"] == 1)
    if comm.size == 1:
        store._disk.tier.sequences._last = 0
    clock(monkeypatch, -3600)
    store.put(f"on disk {(me + 1) % comm.size}", block(3, 3000))
    store.sync()
    monkeypatch.undo()
    with later(comm, folder) as after:
        assert_all(comm, np.array_equal(after.get(f"on disk {me}"), block(3, 3000)))


def test_protection_comes_back_with_the_block(store: Store, comm: MPI.Intracomm, folder: Path, assert_all: AssertAll):
    names = [f"{name} {comm.rank}" for name in ("prefix", "plain", "freed", "freed later")]
    for name in names:
        store.put(name, block(1, 3000), is_prefix=not name.startswith("plain"))
    store.flush()
    assert store.unprotect(names[2]).all()
    leave_memory(store, [names[2]])
    for _ in range(2):
        assert store.get(names[2]) is not None
        assert_all(comm, not store.locate(names[2]).protected, "what is free came back protected")
    with later(comm, folder, protected_bytes="64KiB") as after:
        tiers = [tier_of(after, name) for name in names]
        assert_all(comm, tiers == ["disk"] * 4, str(tiers))
        assert after.unprotect(names[3]).all()
        for name in names:
            assert np.array_equal(after.get(name), block(1, 3000))
        now = [after.locate(name).protected for name in names]
        assert_all(comm, now[:2] == [True, False], str(now))
        assert_all(comm, not now[3], "what was set free on disk came back protected")
        comm.Barrier()
        every = [f"prefix {rank}" for rank in range(comm.size)]
        assert leave_memory(after, every) == 0
        comm.Barrier()
        assert after.unprotect(f"prefix {(comm.rank + 1) % comm.size}").all()
        comm.Barrier()
        went = leave_memory(after, every)
        comm.Barrier()
        assert np.array_equal(after.get(names[0]), block(1, 3000))
        assert_all(comm, went == 1 and not after.locate(names[0]).protected, f"{went} {after.locate(names[0])}")


@pytest.mark.alone
def test_levels_of_durability(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll):
    """Writethrough: what a put or a delete has returned is found after a kill. Writeback: it is written by itself."""
    me, other = comm.rank, (comm.rank + 1) % comm.size
    with opened(comm, folder / "store", durability="writethrough") as store:
        store.put(f"{me} 0", block(0, 5000))
        store.put_many([f"{me} 1", f"{me} 2"], [block(1, 100), block(2, 200)])
        store.put_async(f"{me} 3", block(3, 300)).result()
        store.delete(f"{me} 1")
        comm.Barrier()
        store.put(f"{other} 2", block(9, 900))
        store.delete(f"{other} 3")
        with later(comm, folder) as after:
            got = list(found(after, [f"{me} {number}" for number in range(4)]).values())
            assert_all(comm, got == [block(0, 5000).tobytes(), None, block(9, 900).tobytes(), None])
    with opened(comm, folder / "store", durability="writeback") as store:
        store.put(f"{me} 4", block(4, 400))
        written = store.stats()["disk"]["written"]
        assert_all(comm, written == 1, str(written))
        assert store.sync() == 0
        with later(comm, folder) as after:
            assert_all(comm, np.array_equal(after.get(f"{other} 4"), block(4, 400)))


@pytest.mark.alone
@pytest.mark.parametrize("level", ["none", "writethrough"])
def test_deferred_puts_are_made_durable(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, level: str):
    """By sync(), which publishes this rank's, and with writethrough by publish()."""
    other = (comm.rank + 1) % comm.size
    with opened(comm, folder / "store", durability=level, publish="deferred") as store:
        for number in range(3):
            store.put(f"{comm.rank} {number}", block(number, 500))
        if level == "writethrough":
            assert store.publish() == 3
        else:
            assert store.sync([f"{comm.rank} 0"]) == 1
            assert store.sync() == 2
        with later(comm, folder) as after:
            got = list(found(after, [f"{other} {number}" for number in range(3)]).values())
            assert_all(comm, got == [block(number, 500).tobytes() for number in range(3)])


def test_a_close_seals_and_keeps_what_was_demoted(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll):
    with opened(comm, folder / "store") as store:
        store.put(f"of {comm.rank}", block(1, 5000))
        leave_memory(store, [f"of {comm.rank}"])
        store.put(f"memory of {comm.rank}", block(2, 5000))
    names = sorted(path.name for path in (folder / "store" / "segments").iterdir())
    assert_all(comm, len(names) == comm.size and all(name.endswith(".seg") for name in names), str(names))
    with later(comm, folder) as after:
        assert_all(comm, np.array_equal(after.get(f"of {comm.rank}"), block(1, 5000)))
        assert_all(comm, after.get(f"memory of {comm.rank}") is None)
        report = after.report()["disk"]
        after.put("more", b"x")
        after.sync()
        assert_all(comm, report["found"]["blocks"] <= comm.size)
        total = comm.allreduce(after.report()["disk"]["found"]["blocks"])
        assert_all(comm, total == comm.size, f"{total} blocks were found at open")


@pytest.mark.alone
def test_a_deferred_put_that_cannot_be_published_is_told_of(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], raises_all: Callable[..., str]
):
    """By sync() on its rank, by flush() on all; what could be made durable is."""
    store = open_store(comm, **(SMALL | {"disk": str(folder), "publish": "deferred", "index_blocks": 1}))
    numbers = keys_at(store, 0)
    mine = [next(numbers) for _ in range(18)]
    for _ in range(2):
        if comm.rank == 0:
            for key in mine:
                store.put(key, block(1, 100))
        assert "2 of 18 blocks" in raises_all(comm, StoreFullError, store.flush)
    if comm.rank == 0:
        for key in mine:
            store.put(key, block(1, 100))
        with pytest.raises(StoreFullError, match=r"2 of 18 blocks were not published.*index_blocks"):
            store.sync()
        assert store.sync() == 0
    comm.Barrier()


@pytest.mark.alone
@pytest.mark.parametrize("dedup", ["inline", "behind"])
def test_blocks_by_content_stay_in_memory(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, dedup: str):
    """They are dropped where others are demoted; where all is to be durable, they are refused.

    With "behind" they are whole blocks at first: on disk they would come back after their names were deleted.
    """
    space = Namespace("contents", identity="content", hash="sha256")
    key = f"of {comm.rank}"
    with opened(comm, folder / "store", dedup=dedup) as store:
        store.put(key, block(1, 5000), namespace=space)
        store.put(key, block(2, 5000))
        assert store.sync() == 1
        comm.Barrier()
        for tier in store._pool.tiers.values():
            for first in np.flatnonzero(tier.words).tolist():
                if tier.words[first]:
                    tier.drop(first)
        comm.Barrier()
        assert_all(comm, store.get(key, namespace=space) is None and tier_of(store, key) == "disk")
    with opened(comm, folder / "store", durability="writeback") as store:
        for put in (
            lambda: store.put(key, b"x", namespace=space),
            lambda: store.put_many([key], [b"x"], namespace=space),
        ):
            with pytest.raises(NotConfiguredError, match=r"contents.*stay in memory.*writeback"):
                put()
        assert_all(comm, store.get(key, namespace=space) is None and np.array_equal(store.get(key), block(2, 5000)))


@pytest.mark.alone
@pytest.mark.parametrize("same", [True, False], ids=["its own key", "another key"])
def test_a_put_that_has_to_be_made_again_and_finds_no_room(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    monkeypatch: pytest.MonkeyPatch, same: bool,
):  # fmt: skip
    """A delete comes between its swap and its look at the floor, of a clock that is ahead.

    Of the block itself: then it was stored, and is deleted. Of another key: it is refused, and found nowhere.
    """
    if comm.size == 1:
        pytest.skip("a rank does not meet its own deletes")
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "dram_bytes": "64KiB", "lease_extents": 0}))
    numbers = keys_at(store, 0)
    key, other = next(numbers), next(numbers)
    last = comm.size - 1
    if comm.rank == last:
        clock(monkeypatch, 3600)
        store.put(other, b"x")
        comm.Barrier()
        assert store.delete(comm.recv(source=0))
        comm.send(None, 0)
    elif comm.rank == 0:
        comm.Barrier()
        real, asked = store._disk.tier.sequences.floor, list[int]()

        def floor(home: int) -> int:
            if not asked:
                asked.append(home)
                comm.send(key if same else other, last)
                comm.recv(source=last)
            return real(home)

        monkeypatch.setattr(store._disk.tier.sequences, "floor", floor)
        done = store.put(key, block(1, 40_000))
        assert done.stored is same and bool(asked), done
        assert done.refused is not same and ("put again" in done.reason) is not same
        store._pool.sweep()
    else:
        comm.Barrier()
    monkeypatch.undo()
    comm.Barrier()
    assert_all(comm, store.get(key) is None and store.locate(key) is None)
    store.check()
    store.flush()
    with later(comm, folder) as after:
        assert_all(comm, after.get(key) is None)
