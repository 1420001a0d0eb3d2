"""One pool of memory: leased extents, recall, placement by hash, and rebalance."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, VARIANTS
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import ProtocolError, StoreFullError
from cascade_mpi.layout import unpack_word
from cascade_mpi.leases import holder_of, is_recalled
from cascade_mpi.store import Store

Open = Callable[..., Store]
AssertAll = Callable[..., None]
ARENA = 4 << 20
DEADLINE_S = 20.0


def until(store: Store, condition: Callable[[], bool]) -> bool:
    """Call the store until something has come true; False after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        store.progress()
    return True


def all_until(comm: MPI.Intracomm, store: Store, condition: Callable[[], bool]) -> bool:
    """Collective. The same, while every rank goes on calling the store until all are done."""
    done = comm.Ibarrier() if condition() else None
    deadline = time.monotonic() + DEADLINE_S
    while done is None or not done.Test():
        if time.monotonic() > deadline:
            return False
        store.progress()
        if done is None and condition():
            done = comm.Ibarrier()
    return True


def on_first_node(store: Store) -> list[int]:
    """Collective. The ranks of rank 0's node."""
    ranks: list[int] = store._comm.bcast(store._fabric.node_ranks)
    return ranks


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_one_writer_fills_the_memory_of_its_node(
    comm: MPI.Intracomm, open_store: Open, assert_all: AssertAll, variant: str
) -> None:
    store = open_store(comm, dram_bytes=ARENA, promote_after=0, **VARIANTS[variant])
    ranks = on_first_node(store)
    size = 40_000
    blocks = int(0.9 * ARENA * len(ranks) / (10 * 4096))
    if comm.rank == 0:
        results = [store.put(key, block(key, size)) for key in range(blocks)]
        assert all(result.stored for result in results)
    comm.Barrier()
    out, wrong = np.empty(size, np.uint8), []
    for key in range(blocks):
        if store.get(key, out) != size or not np.array_equal(out, block(key, size)):
            wrong.append(key)
    assert_all(comm, not wrong, f"of {blocks} blocks {wrong[:5]} are not found or wrong")
    assert_all(comm, store.stats()["evicted"] == 0, "blocks were evicted")
    used = {store.locate(key).rank for key in range(blocks)}
    assert_all(comm, used == set(ranks), f"blocks are in the arenas of {used}")
    assert store.check()["words"] == blocks
