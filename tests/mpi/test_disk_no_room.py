"""Compaction where the disk is full, refuses, or forgets: it frees what can go, and what it is unsure of stays in mind.

Covers quotas, full disks, errors of one rank that must not leave the others waiting, and what failed calls leave. Does
not cover the order of copies and removals of one rank (`tests/unit/test_compaction.py`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disk_stores import Refusing, opened
from mpi4py import MPI

from cascade_mpi.errors import DirectoryQuotaError, DiskError, DiskFullError
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone
AssertAll = Callable[..., None]
NBYTES = 48 << 10


def block(version: int) -> np.ndarray:
    return np.random.default_rng(version).integers(0, 256, NBYTES, np.uint8)


def size(comm: MPI.Intracomm, folder: Path) -> int:
    comm.Barrier()
    found = sum(each.stat().st_size for each in (folder / "segments").iterdir())
    comm.Barrier()
    return found


def rewritten(comm: MPI.Intracomm, store: Store, versions: int) -> None:
    """Collective. Six blocks of each rank, again and again: nearly all of the directory is dead."""
    for version in range(versions):
        for key in range(6):
            store.put(key * comm.size + comm.rank, block(version))
        store.put((100 + version) * comm.size + comm.rank, block(7)[: 20 << 10])
        store._disk.tier.sync(seal=True)
    comm.Barrier()


def right(comm: MPI.Intracomm, store: Store, version: int) -> bool:
    return all(np.array_equal(store.get(key * comm.size + comm.rank), block(version)) for key in range(6))


def test_a_quota_that_is_used_up_is_left(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll) -> None:
    """Six blocks fit many times: what is in the way is dead, but for blocks that are not written yet."""
    with opened(comm, folder / "store", disk_quota=comm.size << 21) as store:
        refused = False
        for version in range(12):
            for key in range(6):
                store.put(key * comm.size + comm.rank, block(version))
            try:
                store.sync()
            except DirectoryQuotaError:
                refused = True
                break
        assert_all(comm, refused)
        store.delete(comm.rank)
        with pytest.raises(DirectoryQuotaError):
            store.flush()
        done = store.compact()
        assert_all(comm, not done.problem and done.bytes_after < done.bytes_before // 2, str(done))
        assert_all(comm, size(comm, folder / "store") < comm.size << 20)
        store.put(comm.rank, block(version))
        store.flush()
        assert_all(comm, right(comm, store, version))
    with opened(comm, folder / "store") as store:
        assert_all(comm, right(comm, store, version))


def test_a_full_disk_is_left(
    comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    """Nothing can be written at all: what nothing needs goes all the same; and then the rest, with room again."""
    with opened(comm, folder / "store") as store:
        rewritten(comm, store, 8)
        before = size(comm, folder / "store")
        refusing = Refusing(monkeypatch, errno.ENOSPC, "pwrite", "pwritev")
        with pytest.raises(DiskFullError):
            store.compact()
        refusing.over()
        after = size(comm, folder / "store")
        assert_all(comm, after <= before, f"{before} bytes before, {after} after")
        store.check()
        assert_all(comm, right(comm, store, 7))
        done = store.compact()
        assert_all(comm, not done.problem and size(comm, folder / "store") < before // 2, str(done))
        assert_all(comm, right(comm, store, 7))
    with opened(comm, folder / "store") as store:
        assert_all(comm, right(comm, store, 7))


def test_what_nothing_needs_goes_without_room_for_a_copy(
    comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    with opened(comm, folder / "store") as store:
        for version in range(6):  # files of which nothing is needed afterwards
            for key in range(6):
                store.put(key * comm.size + comm.rank, block(version))
            store._disk.tier.sync(seal=True)
        for key in range(6):  # and one of which something is
            store.put((200 + key) * comm.size + comm.rank, block(1))
        store._disk.tier.sync(seal=True)
        for key in range(1, 6):
            store.delete((200 + key) * comm.size + comm.rank)
        store.sync()
        comm.Barrier()
        before = size(comm, folder / "store")
        refusing = Refusing(monkeypatch, errno.ENOSPC, "pwrite", "pwritev")
        with pytest.raises(DiskFullError):
            store._compact(store._disk)
        refusing.over()
        after = size(comm, folder / "store")
        assert_all(comm, after < before // 2, f"{before} bytes before, {after} after")
        store.check()
        assert_all(comm, right(comm, store, 5))
    with opened(comm, folder / "store") as store:
        assert_all(comm, right(comm, store, 5))
        assert_all(comm, np.array_equal(store.get(200 * comm.size + comm.rank), block(1)))


@pytest.mark.parametrize("call", ["flush", "compact"])
def test_a_folder_that_one_rank_cannot_list(
    comm: MPI.Intracomm, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    """All ranks hear of it: the others would wait for ever."""
    with opened(comm, folder / "store") as store:
        rewritten(comm, store, 2)
        refusing = Refusing(monkeypatch, errno.ESTALE, "listdir", after=0 if comm.rank == 0 else 1 << 30)
        with pytest.raises(DiskError, match="rank 0"):
            getattr(store, call)()
        refusing.over()
        store.flush()
        assert_all(comm, right(comm, store, 1))


def test_a_removal_that_is_not_sure_keeps_tombstones(
    comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    """The folder cannot be synced behind the removal of a block's file: no tombstone goes in this job any more."""
    with opened(comm, folder / "store") as store:
        key = comm.rank
        store.put(key, block(1))
        store._disk.tier.sync(seal=True)
        store.delete(key)
        store._disk.tier.sync(seal=True)
        comm.Barrier()
        disk = store._disk
        real, folders = os.fsync, [0]

        def refuse(descriptor: int) -> None:
            if removed and os.path.isdir(f"/proc/self/fd/{descriptor}"):
                folders[0] += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        removed: list[str] = []
        unlink = os.unlink

        def note(path: str, **options: int) -> None:
            unlink(path, **options)
            removed.append(path)

        monkeypatch.setattr(os, "fsync", refuse)
        monkeypatch.setattr(os, "unlink", note)
        with pytest.raises(DiskError):
            store._compact(disk)
        monkeypatch.undo()
        assert_all(comm, comm.allreduce(folders[0]) > 0)
        assert_all(comm, comm.allreduce(len(disk.doubtful)) > 0)
        for _ in range(3):
            assert_all(comm, not store._compact(disk).problem)
        assert_all(comm, len(os.listdir(folder / "store" / "segments")) > 0, "the tombstones are gone")
    for _ in range(2):  # the next job has synced the folder
        with opened(comm, folder / "store") as store:
            assert_all(comm, store.get(comm.rank) is None)
            store.compact()


def test_a_refused_flush_whose_files_stay_keeps_tombstones(
    comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    with opened(comm, folder / "store") as store:
        store.put(comm.rank, block(1))
        comm.Barrier()
        # Behind the sync of the folder that has the segments, which is the first one of rank 0.
        refusing = Refusing(monkeypatch, errno.EIO, "unlink", "fsync", after=int(comm.rank == 0))
        with pytest.raises(DiskError):
            store.flush()
        refusing.over()
        tier = store._disk.tier
        assert_all(comm, comm.allreduce(len(tier.log.unsure | store._disk.doubtful)) > 0)
        store.flush()
        store.compact()
        store.compact()
        assert_all(comm, not comm.allreduce(len(tier.log.unsure)), "they were not rewritten")
        assert_all(comm, np.array_equal(store.get(comm.rank), block(1)))
    with opened(comm, folder / "store") as store:
        assert_all(comm, np.array_equal(store.get(comm.rank), block(1)))


def test_small_blocks_are_counted_as_they_lie(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll) -> None:
    """1.1 KiB for 100 bytes: nothing of it is dead."""
    with opened(comm, folder / "store", dram_bytes="8MiB", disk_blocks=4096) as store:
        for key in range(1200):
            store.put(key * comm.size + comm.rank, np.full(100, 1, np.uint8))
        store.flush()
        assert_all(comm, not store._disk.wastes(1 << 20))
        for key in range(1200):
            store.put(key * comm.size + comm.rank, np.full(100, 2, np.uint8))
        store._disk.tier.sync()
        comm.Barrier()
        store._disk.cells.sweep_hinted()  # as a flush does before it counts
        assert_all(comm, store._disk.wastes(1 << 20))
