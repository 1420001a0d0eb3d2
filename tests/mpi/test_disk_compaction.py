"""Space in the directory of a store: what is dead comes back, and nothing else goes.

Covers compaction by all ranks after flushes, the quota, checkpoints. Does not cover the rewriting of one segment
(`tests/unit/test_compaction.py`) nor which records are needed (`tests/unit/test_disk_needed.py`).
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from disk_stores import opened
from mpi4py import MPI

from cascade_mpi.errors import ConfigError, DirectoryQuotaError
from cascade_mpi.namespaces import Namespace
from cascade_mpi.segments import names
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import ENTRY_BYTES, PAGE
from cascade_mpi.segments.space import footprint

KEYS, NBYTES = 24, 30_000


def block(version: int) -> np.ndarray:
    return np.random.default_rng(version).integers(0, 256, NBYTES, np.uint8)


def size(folder: Path) -> int:
    return sum(each.stat().st_size for each in (folder / "segments").iterdir())


def test_what_is_dead_comes_back_and_nothing_else_goes(comm: MPI.Intracomm, folder: Path, assert_all):
    chance, versions = random.Random(comm.rank), dict[int, int]()
    with opened(comm, folder / "store", dram_bytes="512KiB", segment_bytes="1MiB", lease_extents=0) as store:
        for _ in range(6):
            for _ in range(40):
                key = chance.randrange(KEYS) * comm.size + comm.rank
                if chance.random() < 0.2:
                    store.delete(key)
                    versions.pop(key, None)
                else:
                    versions[key] = chance.randrange(1 << 30)
                    assert store.put(key, block(versions[key]))
            store.flush()
            live = comm.allreduce(store.stats()["disk"]["blocks"]) * (footprint(NBYTES) + ENTRY_BYTES)
            around = 3 * PAGE * len(list((folder / "store" / "segments").iterdir()))  # headers, footers, what aligns
            dead = size(folder / "store") - around - live
            assert_all(comm, dead <= 0.5 * live + (1 << 18), f"{dead} dead, {live} live")
            wrong = [key for key, version in versions.items() if not np.array_equal(store.get(key), block(version))]
            assert_all(comm, not wrong, str(wrong))
            store.check()
        done = store.compact()
        assert_all(comm, not done.problem and done.files_after <= done.files_before)
        assert_all(comm, all((store.get(key * comm.size + comm.rank) is not None) ==
                             (key * comm.size + comm.rank in versions) for key in range(KEYS)))  # fmt: skip
        store.check()
    everything: dict[int, int] = {}
    for each in comm.allgather(versions):
        everything |= each
    with opened(comm, folder / "store", dram_bytes="512KiB") as store:
        wrong = []
        for key in range(KEYS * comm.size):
            found, version = store.get(key), everything.get(key)
            right = found is None if version is None else found is not None and np.array_equal(found, block(version))
            wrong += [] if right else [key]
        assert_all(comm, not wrong, str(wrong))
        store.check()


def test_a_quota_stops_what_is_written(comm: MPI.Intracomm, folder: Path, assert_all):
    quota = comm.size * 20 * NBYTES
    with opened(comm, folder / "store", dram_bytes="4MiB", segment_bytes="1MiB", disk_quota=quota) as store:
        for key in range(15):
            store.put(key * comm.size + comm.rank, block(key))
        store.flush()
        for key in range(15, 40):
            store.put(key * comm.size + comm.rank, block(key))
        with pytest.raises(DirectoryQuotaError, match="disk_quota"):
            store.flush()
        assert_all(comm, all(store.get(key * comm.size + comm.rank) is not None for key in range(40)))  # in memory
        for key in range(40):
            if key not in (3, 4, 5):
                store.delete(key * comm.size + comm.rank)
        store.compact()
        for key in range(40, 45):
            store.put(key * comm.size + comm.rank, block(key))
        store.flush()
        store.check()
    with opened(comm, folder / "store") as store:
        there = [key for key in range(45) if store.get(key * comm.size + comm.rank) is not None]
        assert_all(comm, there == [3, 4, 5, 40, 41, 42, 43, 44], str(there))


def test_a_checkpoint_has_a_name(comm: MPI.Intracomm, folder: Path, assert_all):
    with opened(comm, folder / "store") as store:
        store.put(comm.rank, block(1))
        made = store.checkpoint("step-7")
        assert_all(comm, (made.tag, made.blocks, made.bytes) == ("step-7", comm.size, comm.size * NBYTES))
        for number in range(100, 104):
            store.put(f"{comm.rank} {number}", block(number))
        store.flush()
        other = (comm.rank + 1) % comm.size
        store.put(f"{other} 100", block(99))
        store.delete(f"{other} 101")
        comm.Barrier()
        made = store.checkpoint("step-7")
        assert_all(comm, made.blocks == 4 * comm.size, f"{made}: what was replaced or deleted does not count")
        with pytest.raises(ConfigError, match="tag is"):
            store.checkpoint("a/b")
        if comm.size > 1:
            with pytest.raises(ConfigError, match="was given tag"):
                store.checkpoint(f"of rank {comm.rank}".replace(" ", "-"))
    with opened(comm, folder / "store") as store:
        listed = store.report()["disk"]["checkpoints"]
        assert_all(comm, [each["tag"] for each in listed] == ["step-7"])


def test_a_flush_notes_the_names_of_namespaces(comm: MPI.Intracomm, folder: Path, assert_all):
    with opened(comm, folder / "store") as store:
        for name in ("of all", f"of rank {comm.rank}"):
            store.put(comm.rank, block(1), namespace=Namespace(name, salt=b"sixteen bytes or more"))
        store.flush()
        files = PosixFiles(folder / "store", read_only=True)
        told = sorted(each.name for each in names.read(files).namespaces.values())
        files.close()
        assert_all(comm, told == sorted(["of all", *(f"of rank {rank}" for rank in range(comm.size))]), str(told))
        assert_all(comm, b"sixteen" not in (folder / "store" / names.NAME).read_bytes())
