"""Reads of many blocks on disk: in the order of the files, and no more of them than there is room for.

Covers `get_many` and `warm`. Does not cover what is asked for ahead (`tests/unit/test_open_segments.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared_folder
from disk_stores import leave_memory, opened, tier_of
from mpi4py import MPI
from patterns import block

from cascade_mpi.disk.open_segments import OpenSegments
from cascade_mpi.store import Store

NBYTES, COUNT = 70_000, 24


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The places that this rank reads, in order."""
    real, seen = OpenSegments.read, list[tuple[int, int]]()

    def read(self: OpenSegments, location: Any, *rest: Any) -> None:
        seen.append(tuple(location))
        real(self, location, *rest)

    monkeypatch.setattr(OpenSegments, "read", read)
    yield seen


def filled(store: Store, folder: Path, comm: MPI.Intracomm) -> list[int]:
    """Collective. Blocks of all ranks, on disk and not in memory: their keys."""
    mine = range(comm.rank * COUNT, (comm.rank + 1) * COUNT)
    for key in mine:
        assert store.put(key, block(key, NBYTES))
    store.flush()
    assert leave_memory(store, mine) == COUNT
    comm.Barrier()
    return list(range(comm.size * COUNT))


@pytest.mark.parametrize("outs", [True, False])
def test_get_many_reads_in_the_order_of_the_files(
    comm: MPI.Intracomm, reads: list[tuple[int, int]], assert_all: Callable[..., None], outs: bool
) -> None:
    folder = shared_folder()
    with opened(comm, folder, dram_bytes="16MiB", segment_bytes="1MiB") as store:
        keys = filled(store, folder, comm)
        chance = np.random.default_rng(comm.rank)
        wanted = chance.permutation(keys)[: len(keys) // 2].tolist()
        wanted[3:3] = [10**9, wanted[0]]  # one that is nowhere, and one twice
        assert store.put(10**6 + comm.rank, block(5, 100))
        wanted.append(10**6 + comm.rank)  # in memory
        comm.Barrier()
        reads.clear()
        if outs:
            buffers = [np.zeros(100 if key >= 10**6 and key < 10**9 else NBYTES, np.uint8) for key in wanted]
            got = store.get_many(wanted, buffers)
            got = [None if each is None else buffer for each, buffer in zip(got, buffers, strict=True)]
        else:
            got = store.get_many(wanted)
        for key, each in zip(wanted, got, strict=True):
            if key == 10**9:
                assert_all(comm, each is None, "a block that is nowhere was found")
            else:
                right = block(5, 100) if key >= 10**6 else block(key, NBYTES)
                assert_all(comm, each is not None and np.array_equal(each, right), f"{key}")
        assert_all(comm, len(reads) > 5 and reads == sorted(reads), f"{reads}")
        comm.Barrier()


def test_warm_reads_in_order_and_only_what_fits(
    comm: MPI.Intracomm, reads: list[tuple[int, int]], assert_all: Callable[..., None]
) -> None:
    folder = shared_folder()
    with opened(comm, folder, dram_bytes="8MiB", segment_bytes="1MiB") as store:
        keys = filled(store, folder, comm)
    with opened(comm, folder, dram_bytes="1MiB", segment_bytes="1MiB") as store:
        comm.Barrier()
        reads.clear()
        before = store.stats()["disk"]["bytes_read"]
        warmed = store.warm()
        read = comm.allreduce(store.stats()["disk"]["bytes_read"] - before)
        assert_all(comm, 0 < warmed.blocks < len(keys) == warmed.blocks + warmed.left, f"{warmed}")
        assert_all(comm, read == warmed.bytes == warmed.blocks * NBYTES, f"read {read}, {warmed}")
        assert_all(comm, reads == sorted(reads), f"{reads}")
        there = [tier_of(store, key) for key in keys]
        assert_all(comm, there.count("dram") == warmed.blocks and "" not in there, f"{there}")
        comm.Barrier()
        again = store.warm()  # there is no room: nothing is read
        now = comm.allreduce(store.stats()["disk"]["bytes_read"] - before)
        assert_all(comm, (again.blocks, again.left, now) == (0, warmed.left, read), f"{again}, read {now}")
        for key in keys[comm.rank :: comm.size]:
            assert_all(comm, np.array_equal(store.get(key), block(key, NBYTES)), f"{key}")
        comm.Barrier()
