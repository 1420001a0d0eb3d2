"""Draining on all ranks: one deadline, nobody waits for a slow one, and what counts as durable is there afterwards."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from cascade_mpi.errors import ConfigError, DiskFullError, NotConfiguredError
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone

NBYTES, BLOCKS = 64 << 10, 40  # a rank


@pytest.fixture
def folder(comm: MPI.Intracomm) -> Iterator[Path]:
    """One folder for all ranks. Not pytest's `tmp_path`: ranks that tidy its parent get into each other's way."""
    made = tempfile.TemporaryDirectory() if comm.rank == 0 else None
    yield Path(comm.bcast(made and made.name))
    comm.Barrier()
    if made is not None:
        made.cleanup()


def opened(comm: MPI.Intracomm, folder: Path, **more: Any) -> Store:
    more = {"durability": "none"} | more
    return Store(comm, dram_bytes="8MiB", copy_threads=1, disk=str(folder / "store"), **more)


def block(key: int) -> np.ndarray:
    return np.random.default_rng(key).integers(0, 256, NBYTES, np.uint8)


def fill(comm: MPI.Intracomm, store: Store) -> list[int]:
    keys = [1000 * comm.rank + k for k in range(BLOCKS)]
    for key in keys:
        assert store.put(key, block(key))
    return keys


def there(comm: MPI.Intracomm, store: Store, keys: list[int]) -> list[bool]:
    """Which of a rank's keys can be read, each checked."""
    out, found = np.empty(NBYTES, np.uint8), []
    for key in keys:
        size = store.get(key, out)
        assert size is None or np.array_equal(out, block(key))
        found.append(size is not None)
    return found


def test_what_was_drained_is_found_by_the_next_job(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path
) -> None:
    with opened(comm, folder) as store:
        keys = fill(comm, store)
        done = store.drain(60.0)
        again = store.drain(60.0)
    total = comm.size * BLOCKS
    assert_all(comm, done[:4] == (total, total * NBYTES, 0, 0), str(done))
    assert_all(comm, again[:4] == (0, 0, 0, 0) and 0 < again.seconds < 60, str(again))
    with opened(comm, folder) as store:
        assert_all(comm, all(there(comm, store, keys)), "a drained block is not there")


def test_the_most_valuable_go_first_when_time_is_short(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path
) -> None:
    """Each sync of this disk takes so long that there is time for one piece: a block of every rank is in it at least.

    Its log is taken away afterwards, so that nothing is written behind the drain.
    """
    store = opened(comm, folder)
    keys = fill(comm, store)
    store.protect(keys[7:8])
    used = keys[20:30]
    touched = store._dram.area.touched
    for key in keys:
        found = store._reader.find(0, key)
        touched[found.page] = np.uint32(store._fabric.ticks() - (2000 if key in used else 60_000) & 0xFFFFFFFF)
    written: list[int] = []
    tier = store._disk.tier
    write = tier.write

    def slowly(cell: Any) -> bool:
        time.sleep(0.05)
        written.append(int(cell[0].records["key_lo"][cell[1]]))
        return write(cell)

    tier.write = slowly
    done = store.drain(0.6)
    everyone = comm.allgather(written)
    assert_all(comm, 0 < done.blocks == sum(map(len, everyone)) < comm.size * BLOCKS, str(done))
    assert_all(comm, done.left == comm.size * BLOCKS - done.blocks, str(done))
    expected = [keys[7], *used, *(key for key in keys if key not in used and key != keys[7])]
    assert_all(comm, written == expected[: len(written)], f"{written} of {expected}")
    assert_all(comm, len(written) > 1, "a rank has written nothing worth the name")
    tier.write, tier.log.append = write, _refused
    store.close()
    with opened(comm, folder) as store:
        found = there(comm, store, keys)
        assert_all(comm, {key for key, is_there in zip(keys, found, strict=True) if is_there} == set(written), "others")


def _refused(*args: Any) -> None:
    raise AssertionError("something is written behind the drain")


def test_a_slow_rank_does_not_keep_the_others_from_writing(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path
) -> None:
    with opened(comm, folder) as store:
        keys = fill(comm, store)
        if comm.rank == comm.size - 1:
            store._disk.tier.step = lambda name: time.sleep(0.2 if name == "append" else 0)
        done = store.drain(1.0)
        wrote = store.stats()["disk"]["written"]
        store._disk.tier.step = None
    slow = comm.rank == comm.size - 1
    assert_all(comm, (0 < wrote < BLOCKS) if slow else wrote == BLOCKS, f"{wrote} of {BLOCKS}")
    assert_all(comm, done.left > 0 and done.blocks + done.left == comm.size * BLOCKS, str(done))
    assert_all(comm, done.seconds < 10, str(done))  # eight seconds of writing are left
    with opened(comm, folder) as store:
        assert_all(comm, sum(there(comm, store, keys)) == wrote, "what was written is there, and nothing else")


@pytest.mark.parametrize("put_since", [False, True])
def test_a_close_leaves_what_a_drain_had_no_time_for(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, put_since: bool
) -> None:
    """With "writeback" a close writes everything, however long that takes: not when the time is up."""
    store = opened(comm, folder, durability="writeback")
    store._disk.tier._write_back = lambda: None  # it is busy elsewhere
    keys = fill(comm, store)
    done = store.drain(0)
    assert_all(comm, done.left == comm.size * BLOCKS, str(done))
    if put_since:
        keys.append(1000 * comm.rank + BLOCKS)
        store.put(keys[-1], block(keys[-1]))
    store.close()
    with opened(comm, folder) as store:
        assert_all(comm, there(comm, store, keys) == [put_since] * len(keys), "what close() has written")


def test_the_least_of_the_ranks_times_counts(
    comm: MPI.Intracomm, assert_all: Callable[..., None], raises_all: Callable[..., str], folder: Path
) -> None:
    with opened(comm, folder) as store:
        fill(comm, store)
        done = store.drain(0 if comm.rank == comm.size - 1 else 60)
        assert_all(comm, (done.blocks, done.left) == (0, comm.size * BLOCKS), str(done))
        for wrong in (-1.0, float("nan"), float("inf"), None, True, "5"):
            given = wrong if comm.rank == comm.size - 1 else 5.0
            text = raises_all(comm, ConfigError, lambda given=given: store.drain(given))
            assert_all(comm, f"rank {comm.size - 1} gave {wrong!r} seconds" in text, text)


def test_a_full_disk_of_one_rank_is_told_everywhere(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path
) -> None:
    with opened(comm, folder) as store:
        keys = fill(comm, store)
        if comm.rank == comm.size - 1:

            def full(name: str) -> None:
                if name == "append" and store._disk.tier.written >= 5:
                    raise DiskFullError(28, "no space left on the device")

            store._disk.tier.step = full
        try:
            store.drain(60.0)
            notes = ["nothing was raised"]
        except DiskFullError as error:
            notes = error.__notes__
        store._disk.tier.step = None
        wrote = store.stats()["disk"]["written"]
    assert_all(comm, f"on rank {comm.size - 1}; {(comm.size - 1) * BLOCKS} blocks were" in notes[0], str(notes))
    with opened(comm, folder) as store:
        assert_all(comm, sum(there(comm, store, keys)) == wrote >= 5, "what was written is there")


def test_a_store_without_a_disk_to_write_to_says_so(
    comm: MPI.Intracomm, raises_all: Callable[..., str], folder: Path
) -> None:
    with Store(comm, dram_bytes="1MiB", copy_threads=1) as store:
        assert "disk tier is off" in raises_all(comm, NotConfiguredError, lambda: store.drain(1.0))
    opened(comm, folder).close()
    with opened(comm, folder, disk_mode="read") as store:
        assert "drain() writes" in raises_all(comm, NotConfiguredError, lambda: store.drain(1.0))
