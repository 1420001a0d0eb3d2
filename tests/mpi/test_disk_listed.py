"""One list of the segments for all ranks: what a rank lists later, or sees later, is in somebody's share all the same.

Covers files that come between two listings, nodes that know of a file late, and files that are listed and gone. Does
not cover what a compaction makes of what it has read (`test_disk_compaction`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_stores import leave_memory, opened
from mpi4py import MPI

from cascade_mpi.disk import compaction, directory, opening
from cascade_mpi.errors import CascadeError
from cascade_mpi.segments import recovery
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.recovery import numbers_in
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone
AssertAll = Callable[..., None]
KEYS, DELETED, LATER = range(6), (2, 4), 777


def block(version: int) -> np.ndarray:
    return np.random.default_rng(version).integers(0, 256, 30_000, np.uint8)


def seal(comm: MPI.Intracomm, store: Store) -> None:
    comm.Barrier()
    store._disk.tier.sync(seal=True)
    comm.Barrier()


def deleted(comm: MPI.Intracomm, store: Store) -> None:
    """Collective. Blocks of rank 0, a file each; some are deleted by the last rank, durably, in a file of its own."""
    for key in KEYS:
        if comm.rank == 0:
            store.put(key, block(key))
        seal(comm, store)
    if comm.rank == comm.size - 1:
        assert all(store.delete(key) for key in DELETED)
        store.sync()
    seal(comm, store)


def there(comm: MPI.Intracomm, folder: Path, assert_all: AssertAll) -> None:
    with opened(comm, folder) as store:
        back = [key for key in KEYS if store.get(key) is not None]
        assert_all(comm, back == [key for key in KEYS if key not in DELETED], f"after a restart: {back}")


def test_a_file_that_comes_between_two_listings(
    comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    """Another thread demotes a block: a new file. It must not shift what each rank takes for its share."""
    last = comm.size - 1
    with opened(comm, folder / "store", disk_blocks=2048) as store:
        deleted(comm, store)
        if comm.rank == last:
            store.put(LATER, block(7))  # after the flush, in that thread

        def late(*args: Any, **options: Any) -> Any:
            if comm.rank < last:
                found = recovery.recover(*args, **options)
            comm.Barrier()
            if comm.rank == last:
                assert leave_memory(store, [LATER]) == 1
                found = recovery.recover(*args, **options)
            return found

        monkeypatch.setattr(compaction, "recover", late)
        comm.Barrier()
        done = store._compact(store._disk)
        monkeypatch.undo()
        assert_all(comm, not done.problem, done.problem)
    there(comm, folder / "store", assert_all)


@pytest.mark.parametrize("blind", [0, -1], ids=["the first rank", "the last rank"])
def test_a_node_that_knows_of_a_file_late(
    comm: MPI.Intracomm, folder: Path, blind: int, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    """In its cache of the folder the newest files are missing: in a compaction, and at a restart."""

    def stale(files: PosixFiles) -> dict[int, list[str]]:
        found = numbers_in(files)
        return dict(sorted(found.items())[:4]) if comm.rank == blind % comm.size else found

    def patch() -> None:
        if comm.size > 1:
            for module in (compaction, directory, opening, recovery):
                monkeypatch.setattr(module, "numbers_in", stale, raising=False)

    with opened(comm, folder / "store") as store:
        deleted(comm, store)
        patch()
        done = store._compact(store._disk)
        monkeypatch.undo()
        assert_all(comm, not done.problem, done.problem)
    patch()
    there(comm, folder / "store", assert_all)


def test_a_file_that_is_listed_and_gone(
    comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch, assert_all: AssertAll
) -> None:
    """One that this job has removed is no problem, and any other one is."""
    gone = {1 << 20: ["segments/0000000000100000.seg"]}

    def listed(files: PosixFiles) -> dict[int, list[str]]:
        return numbers_in(files) | gone

    with opened(comm, folder / "store") as store:
        deleted(comm, store)
        monkeypatch.setattr(directory, "numbers_in", listed)
        done = store._compact(store._disk)
        assert_all(comm, "gone since the folder was listed" in done.problem, done.problem)
        store._disk.directory.gone.add(1 << 20)
        done = store._compact(store._disk)
        assert_all(comm, not done.problem, done.problem)
        removed = store._disk.directory.gone - {1 << 20}
        gone.update({each: [f"segments/{each:016x}.seg"] for each in removed})
        assert_all(comm, len(removed) > 0)
        done = store._compact(store._disk)
        assert_all(comm, not done.problem, done.problem)
        monkeypatch.undo()
    there(comm, folder / "store", assert_all)
    monkeypatch.setattr(directory, "numbers_in", listed)
    with pytest.raises(CascadeError, match="gone since the folder was listed"):
        Store(comm, disk=str(folder / "store"))
