"""A disk that refuses, lies or is somebody else's: errors where they must be heard, and nothing wrong or lost after.

Covers two jobs on one directory, reading beside a writer, file systems that fail on one rank, cells that run out, and
damage. Does not cover each call that can fail (`tests/unit/test_segment_log.py`), nor power losses.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disk_stores import SMALL, Refusing, damages, found, killed, leave_memory, opened, tier_of
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import (
    CascadeError,
    ConfigError,
    DiskError,
    DiskFullError,
    DiskGoneError,
    NotConfiguredError,
    NotDurableError,
    ReadOnlyDiskError,
    StoreInUseError,
)
from cascade_mpi.segments import lock
from cascade_mpi.store import Store

AssertAll = Callable[..., None]

pytestmark = pytest.mark.alone
RaisesAll = Callable[..., str]


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Local. All files of a folder: sizes, times of change, contents."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_size, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }  # fmt: skip


def open_in(folder: Path) -> list[str]:
    """Local. The files of a folder that this process has open."""
    links = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            links.append(os.readlink(f"/proc/self/fd/{each}"))
    return [each for each in links if each.startswith(str(folder))]


def keys_of(rank: int, n: int) -> list[str]:
    return [f"{rank} {number}" for number in range(n)]


def all_keys(comm: MPI.Intracomm, n: int) -> list[str]:
    return [key for rank in range(comm.size) for key in keys_of(rank, n)]


def raised(error: type[Exception], call: Callable[[], object]) -> str:
    """Local. The text of the error that a call raises."""
    with pytest.raises(error) as told:
        call()
    return str(told.value)


# ------------------------------------------------------------------------------------------------- whose directory


def test_the_directory_is_the_job_s_until_its_last_rank_has_ended(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
):
    """Rank 0's part of the lock goes as if it had died; the others write on, and no second job may begin."""
    if comm.size == 1:
        pytest.skip("the last rank is the first")
    monkeypatch.setattr(lock, "_END_S", 0.0)
    refused = ""
    with opened(comm, folder) as store:
        comm.Barrier()
        if comm.rank == 0:
            store._directory.lock.release()
            try:
                lock.DirectoryLock.take(folder, lock.Owner("another", 1, "", 1)).release()
            except StoreInUseError as error:
                refused = str(error)
        comm.Barrier()
        store.put(comm.rank, block(1, 5000))
        assert_all(comm, store.sync() == 1)
    assert_all(comm, comm.rank > 0 or "others of its job" in refused, refused)


def test_a_second_job_is_refused_with_the_name_of_the_first(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, raises_all: RaisesAll
):
    """Each half of the ranks is a job; where there is one rank it is the same process."""
    part, first = comm.Split(comm.rank % 2), comm.bcast(os.getpid())
    if comm.rank % 2 == 0:
        with opened(part, folder) as store:
            store.put("key", block(1, 5000))
            store.flush()
            comm.Barrier()
            if comm.size == 1:
                assert "this process" in raises_all(part, StoreInUseError, lambda: Store(part, disk=str(folder)))
            comm.Barrier()
            store.put("key", block(2, 5000))  # the other job reads the one that it has found
            store.flush()
            comm.Barrier()
            comm.Barrier()
        comm.Barrier()
    else:
        comm.Barrier()
        text = raises_all(part, StoreInUseError, lambda: Store(part, **(SMALL | {"disk": str(folder)})))
        assert f"process {first} on {os.uname().nodename}" in text and "open it read-only" in text
        before = tree(folder)
        with opened(part, folder, disk_mode="read") as reader:
            assert tree(folder) == before
            comm.Barrier()
            comm.Barrier()
            assert np.array_equal(reader.get("key"), block(1, 5000))
            with opened(part, folder, disk_mode="read") as another:
                assert np.array_equal(another.get("key"), block(2, 5000))
            comm.Barrier()
        comm.Barrier()
    part.Free()
    with opened(comm, folder) as store:  # the lock went with the first job, all ranks' parts of it
        assert_all(comm, np.array_equal(store.get("key"), block(2, 5000)))


@pytest.mark.alone
def test_reading_changes_nothing(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, raises_all: RaisesAll):
    with opened(comm, folder) as store:
        for number, key in enumerate(keys_of(comm.rank, 20)):
            store.put(key, block(number, 20_000))
        store.flush()
    before = tree(folder)
    with opened(comm, folder, disk_mode="read", dram_bytes="64KiB", lease_extents=0) as store:
        for _ in range(2):
            for rank in range(comm.size):
                for number, key in enumerate(keys_of(rank, 20)):
                    assert np.array_equal(store.get(key), block(number, 20_000)), key
        comm.Barrier()
        for number, key in enumerate(keys_of(comm.rank, 5)):
            assert store.put(key, block(number + 50, 10_000)).stored  # in memory
        assert store.delete(keys_of(comm.rank, 20)[7])
        comm.Barrier()
        assert_all(comm, all(store.get(keys_of(rank, 20)[7]) is None for rank in range(comm.size)))
        for call in (store.sync, store.flush, store.compact, lambda: store.checkpoint("tag"), lambda: store.drain(1)):
            assert "disk_mode" in raises_all(comm, NotConfiguredError, call)
        if comm.rank == 0:
            store.bump_epoch("tenant")
        comm.Barrier()
        store.clear()
        assert store.report()["disk"]["mode"] == "read"
    assert_all(comm, tree(folder) == before)
    with opened(comm, folder, disk_mode="read") as store:
        got = found(store, keys_of(comm.rank, 20))
        assert_all(comm, all(each == block(number, 20_000).tobytes() for number, each in enumerate(got.values())))


@pytest.mark.alone
def test_directories_that_cannot_be(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, raises_all: RaisesAll):
    def store(**settings: object) -> Callable[[], Store]:
        return lambda: Store(comm, **(SMALL | settings))

    assert "mkdir -p" in raises_all(comm, DiskGoneError, store(disk=str(folder / "no" / "parent")))
    assert "no store in it" in raises_all(comm, ConfigError, store(disk=str(folder), disk_mode="read"))
    if comm.rank == 0:
        (folder / "file").write_text("no directory")
    comm.Barrier()
    assert str(folder / "file") in raises_all(comm, DiskError, store(disk=str(folder / "file")))
    with opened(comm, folder / "made") as made:  # it is made, its parent is there
        assert made.put("key", b"x").stored
    with opened(comm, folder / "made", disk=None) as without:
        for call in (without.sync, without.flush, without.warm, without.compact, lambda: without.prefetch([])):
            assert "give `disk`, a directory" in raises_all(comm, NotConfiguredError, call)
        assert_all(comm, not without.report()["disk"]["on"])


# --------------------------------------------------------------------------------------------- a disk that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_heard_where_it_must_be(
    number: int, comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    raises_all: RaisesAll, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """On rank 0 alone: sync() there, flush() on all ranks. Memory goes on; with room again nothing is missing."""
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "disk_collective": "off"}))
    kind = DiskFullError if number == errno.ENOSPC else ReadOnlyDiskError
    mine = keys_of(comm.rank, 8)
    for at, key in enumerate(mine):
        store.put(key, block(at, 5000))
    store.flush()
    for at, key in enumerate(mine[:4]):
        store.put(key, block(at + 10, 5000))
    comm.Barrier()
    refusing = Refusing(monkeypatch, number, "pwritev", "pwrite") if comm.rank == 0 else None
    if comm.rank == 0:
        raised(kind, store.sync)
    else:
        store.sync()
    comm.Barrier()
    raises_all(comm, kind, store.flush)
    raises_all(comm, kind, lambda: store.checkpoint("tag"))
    went = leave_memory(store, mine)  # on rank 0 what is not on disk is dropped
    assert_all(comm, went == 8, str(went))
    tiers = [tier_of(store, key) for key in mine]
    assert_all(comm, tiers == ([""] * 4 if comm.rank == 0 else ["disk"] * 4) + ["disk"] * 4, str(tiers))
    assert store.put("another " + mine[0], block(1, 5000)).stored
    assert store.delete(mine[7])
    stats, report = store.stats()["disk"], store.report()["disk"]
    assert_all(comm, (stats["errors"] > 0) == (comm.rank == 0) == bool(report["last_error"]), f"{stats} {report}")
    store.check()
    if refusing is not None:
        assert refusing.refused > 3
        refusing.over()
    comm.Barrier()
    store.flush()
    everyone = [*all_keys(comm, 8), *(f"another {key}" for key in all_keys(comm, 1))]
    now = found(store, everyone)
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        assert_all(comm, found(after, everyone) == now)
        dropped = [key for key in everyone if now[key] is None]
        deleted = {keys_of(rank, 8)[7] for rank in range(comm.size)}
        assert_all(comm, set(dropped) == {*keys_of(0, 4)} | deleted, str(dropped))


@pytest.mark.alone
def test_a_writethrough_put_says_that_it_is_not_durable(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """To its rank. It is in memory, and durable with the next call that works."""
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "durability": "writethrough"}))
    key, other = f"of {comm.rank}", f"of {(comm.rank + 1) % comm.size}"
    store.put(key, block(1, 5000))
    comm.Barrier()
    refusing = Refusing(monkeypatch, errno.ENOSPC, "pwritev", "pwrite")
    raised(DiskFullError, lambda: store.put(key, block(2, 5000)))
    raised(DiskFullError, lambda: store.put_many([f"more {key}"], [block(3, 50)]))
    raised(DiskFullError, lambda: store.delete(f"nothing {key}"))
    raised(DiskFullError, store.progress)
    comm.Barrier()
    assert_all(comm, np.array_equal(store.get(other), block(2, 5000)))
    assert_all(comm, np.array_equal(store.get(f"more {other}"), block(3, 50)))
    refusing.over()
    store.progress()
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        assert_all(comm, np.array_equal(after.get(other), block(2, 5000)))
        assert_all(comm, np.array_equal(after.get(f"more {other}"), block(3, 50)))


@pytest.mark.parametrize("call", ["sync", "flush"])
@pytest.mark.parametrize("times", [1, 1 << 30])
def test_a_sync_that_fails_promises_nothing(
    call: str, times: int, comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store],
    assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Once: what memory has is written again. Always: an error, and when the disk works again all of it is there."""
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "disk_collective": "off"}))
    mine = keys_of(comm.rank, 6)
    for at, key in enumerate(mine):
        store.put(key, block(at, 5000))
    leave_memory(store, mine[:2])
    for key in mine[:2]:
        assert store.get(key) is not None  # in memory again, backed by what is not durable
    refusing = Refusing(monkeypatch, errno.EIO, "fsync", "fdatasync", times=times)
    error: Exception | None = None
    try:
        getattr(store, call)()
    except DiskError as told:
        error = told
    failed = comm.allgather(error is not None)
    assert_all(comm, any(failed) if times > 1 else True, str(error))
    if call == "flush":
        assert_all(comm, len(set(failed)) == 1, f"{failed}: heard by some ranks only")
    refusing.over()
    comm.Barrier()
    store.check()
    for at, key in enumerate(all_keys(comm, 6)):
        assert np.array_equal(store.get(key), block(at % 6, 5000)), key
    comm.Barrier()
    store.flush()
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        for at, key in enumerate(all_keys(comm, 6)):
            assert np.array_equal(after.get(key), block(at % 6, 5000)), key


@pytest.mark.alone
def test_what_had_left_memory_and_is_not_durable_is_told_of(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store")}))
    mine = keys_of(comm.rank, 3)
    for at, key in enumerate(mine):
        store.put(key, block(at, 5000))
    leave_memory(store, mine[:1])
    refusing = Refusing(monkeypatch, errno.EIO, "fsync", "fdatasync", times=1)
    with caplog.at_level(logging.ERROR, logger="cascade"):
        text = raised(NotDurableError, store.sync)
    refusing.over()
    assert_all(comm, "1 blocks that had left memory" in text and "put them again" in text, text)
    assert_all(comm, store.stats()["disk"]["lost"] == 1 and "could not be synced" in caplog.text, caplog.text)
    got = store.get(mine[0])
    assert got is None or np.array_equal(got, block(0, 5000))
    store.put(mine[0], block(9, 5000))
    store.sync()
    comm.Barrier()
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        want = [block(9, 5000).tobytes(), block(1, 5000).tobytes(), block(2, 5000).tobytes()]
        assert_all(comm, list(found(after, mine).values()) == want)


@pytest.mark.alone
def test_a_directory_that_was_moved_is_noticed(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll, raises_all: RaisesAll
):
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "disk_collective": "off"}))
    mine = keys_of(comm.rank, 3)
    store.put(mine[0], block(0, 5000))
    store.flush()
    store.put(mine[1], block(1, 5000))
    comm.Barrier()
    if comm.rank == 0:
        (folder / "store").rename(folder / "away")
    comm.Barrier()
    raises_all(comm, DiskError, store.sync)
    raises_all(comm, DiskError, store.flush)
    assert_all(comm, np.array_equal(store.get(mine[0]), block(0, 5000)))
    assert store.put(mine[2], block(2, 5000)).stored
    comm.Barrier()
    if comm.rank == 0:
        (folder / "away").rename(folder / "store")
    comm.Barrier()
    store.flush()
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        got = found(after, all_keys(comm, 3))
        assert_all(comm, list(got.values()) == [block(at, 5000).tobytes() for at in range(3)] * comm.size)


def test_a_close_that_fails_lets_the_others_close(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch
):
    store = Store(comm, **(SMALL | {"disk": str(folder), "durability": "writeback"}))
    store.put(f"of {comm.rank}", block(1, 5000))
    store.flush()
    store.put(f"more of {comm.rank}", block(2, 5000))
    last = comm.size - 1
    if comm.rank == last:
        refusing = Refusing(monkeypatch, errno.EIO, "fsync", "fdatasync")
        raised(DiskError, store.close)
        refusing.over()
        assert not open_in(folder)
        store.close()  # nothing the second time
    else:
        store.close()
    with opened(comm, folder) as after:
        everyone = range(comm.size)
        assert_all(comm, all(np.array_equal(after.get(f"of {rank}"), block(1, 5000)) for rank in everyone))
        assert_all(comm, all(np.array_equal(after.get(f"more of {rank}"), block(2, 5000)) for rank in range(last)))


@pytest.mark.alone
def test_disk_cells_run_out(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll, raises_all: RaisesAll
):
    """Then what leaves memory is dropped, and what is to be durable is an error; with cells free again both work."""
    store = open_store(comm, **(SMALL | {"disk": str(folder), "disk_blocks": 8}))
    mine = keys_of(comm.rank, 12)
    for at, key in enumerate(mine):
        store.put(key, block(at, 1000))
    assert "all 8 disk cells" in raises_all(comm, DiskError, store.sync)
    assert "raise disk_blocks" in raises_all(comm, DiskError, store.flush)
    went = leave_memory(store, mine)
    tiers = [tier_of(store, key) for key in mine]
    assert_all(comm, went == 12 and sorted(tiers) == [""] * 4 + ["disk"] * 8, str(tiers))
    store.check()
    gone = [key for key, tier in zip(mine, tiers, strict=True) if tier == "disk"][:3]
    comm.Barrier()
    for key in comm.sendrecv(gone, (comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size):
        assert store.delete(key)  # of another rank, which finds out
    comm.Barrier()
    for at, key in enumerate(gone):
        store.put(key, block(at + 20, 1000))
    assert store.sync() == 3
    for at, key in enumerate(gone):
        assert np.array_equal(store.get(key), block(at + 20, 1000))


# ------------------------------------------------------------------------------------------------------- damage


def test_damaged_records_are_misses_and_a_damaged_index_is_refused(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, raises_all: RaisesAll, caplog: pytest.LogCaptureFixture
):
    """Never wrong bytes, in any way of reading; the others are read."""
    where = folder / "store"
    with opened(comm, where) as store:
        for at, key in enumerate(keys_of(comm.rank, 4)):
            store.put(key, block(at, 9000))
        leave_memory(store, keys_of(comm.rank, 4))
    comm.Barrier()
    with opened(comm, where) as store:
        if comm.rank == 0:
            for path in sorted((where / "segments").iterdir()):
                data = bytearray(path.read_bytes())
                data[data.index(block(1, 9000).tobytes()) + 4567] ^= 1  # the second block of a rank
                path.write_bytes(data)
        comm.Barrier()
        key = keys_of((comm.rank + 1) % comm.size, 4)[1]
        out = np.zeros(9000, np.uint8)
        with caplog.at_level(logging.ERROR, logger="cascade"):
            got = [
                store.get(key), store.get(key, out), store.get_range(key, 0, 10), store.get_many([key])[0],
                store.get_many([key], [out])[0],
            ]  # fmt: skip
        assert_all(comm, got == [None] * 5, str(got))
        assert_all(comm, store.stats()["disk"]["damaged"] == 5 and "is lost" in caplog.text, caplog.text)
        assert_all(comm, store.prefetch([key]).result() == 0)
        assert not store.protect(key).any()
        for rank in range(comm.size):
            for number in (0, 2, 3):
                assert np.array_equal(store.get(keys_of(rank, 4)[number]), block(number, 9000))
        comm.Barrier()
        store.put(key, block(7, 100))  # computed and stored again
        comm.Barrier()
        assert_all(comm, np.array_equal(store.get(keys_of(comm.rank, 4)[1]), block(7, 100)))
        store.flush()
    assert_all(comm, len(damages(where)) == comm.size, str(damages(where)))
    with opened(comm, where) as store:  # found by footers: the newest is whole
        assert_all(comm, np.array_equal(store.get(keys_of(comm.rank, 4)[1]), block(7, 100)))
    comm.Barrier()
    if comm.rank == 0:
        path = next(iter(sorted((where / "segments").iterdir())))
        data = bytearray(path.read_bytes())
        data[-2 * 4096 + 10] ^= 1  # in its table
        path.write_bytes(data)
    comm.Barrier()
    text = raises_all(comm, CascadeError, lambda: Store(comm, **(SMALL | {"disk": str(where)})))
    assert "cascade fsck" in text and 'disk_mode="read"' in text
    with opened(comm, where, disk_mode="read") as store:
        for rank in range(comm.size):
            for number in (0, 2, 3):
                assert np.array_equal(store.get(keys_of(rank, 4)[number]), block(number, 9000))


def test_a_store_whose_segments_were_taken_away_is_no_new_one(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, raises_all: RaisesAll
):
    with opened(comm, folder / "store") as store:
        store.put(f"of {comm.rank}", block(comm.rank, 9000))
        store.flush()
    comm.Barrier()
    if comm.rank == 0:
        (folder / "store/segments").rename(folder / "elsewhere")
    comm.Barrier()
    text = raises_all(comm, CascadeError, lambda: Store(comm, **(SMALL | {"disk": str(folder / "store")})))
    assert "segments/ is not there, although STORE is" in text
    with opened(comm, folder / "store", disk_mode="read") as store:
        assert_all(comm, store.get(f"of {comm.rank}") is None)
    comm.Barrier()
    if comm.rank == 0:
        (folder / "elsewhere").rename(folder / "store/segments")
    comm.Barrier()
    with opened(comm, folder / "store") as store:
        for rank in range(comm.size):
            assert np.array_equal(store.get(f"of {rank}"), block(rank, 9000))


@pytest.mark.alone
def test_a_segment_that_was_removed_is_a_miss(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, caplog: pytest.LogCaptureFixture
):
    with opened(comm, folder) as store:
        store.put(f"of {comm.rank}", block(1, 9000))
        store.flush()
    with opened(comm, folder) as store:
        store.put(f"memory of {comm.rank}", block(2, 9000))
        comm.Barrier()
        if comm.rank == 0:
            for path in (folder / "segments").iterdir():
                path.unlink()
        comm.Barrier()
        other = f"of {(comm.rank + 1) % comm.size}"
        with caplog.at_level(logging.ERROR, logger="cascade"):
            assert_all(comm, store.get(other) is None)
        assert_all(comm, "it is not there" in caplog.text, caplog.text)
        assert_all(comm, np.array_equal(store.get(f"memory {other}"), block(2, 9000)))
        comm.Barrier()
        store.flush()
    with opened(comm, folder) as store:
        assert_all(comm, store.get(other) is None and np.array_equal(store.get(f"memory {other}"), block(2, 9000)))
