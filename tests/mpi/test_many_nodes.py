"""Copies and memory of others in one store, with as many nodes as ranks: each block is away from all ranks but one.

Covers what a user does with both, on any number of nodes; `test_launch` runs it with four. Does not cover copies
(`test_copies`) nor leased memory (`test_pool`) alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.store import Store

ARENA, SIZE = 1 << 20, 11_000


@pytest.mark.nodes
def test_copies_of_blocks_in_the_memory_of_others(
    open_store: Callable[..., Store], comm: MPI.Intracomm, assert_all: Callable[..., None]
) -> None:
    """Blocks of one rank lie on all nodes and are copied to all; behind the copies they move, or are overwritten."""
    store = open_store(comm, dram_bytes=ARENA, lease_extents=16, rest_ms=0.1, promote_after=2, placement="hash")
    nodes = store.report()["nodes"]
    keys = list(range(int(0.55 * ARENA * comm.size / (3 * 4096))))
    hot = keys[:: max(1, len(keys) // 12)]
    if comm.rank == 0:
        assert all(store.put(key, block(key, SIZE), is_prefix=key in hot[:3]).stored for key in keys)
    comm.Barrier()
    expected = {key: block(key, SIZE) for key in keys}

    def is_right(key: int) -> bool:
        found, wanted = store.get(key), expected.get(key)
        return found is None if wanted is None else np.array_equal(found, wanted)

    done = store.replicate(hot)
    assert_all(comm, done.copied + done.present == len(hot) * nodes and not done.refused, f"{done}")
    wrong = [key for key in keys if not is_right(key)]
    assert_all(comm, not wrong, f"{wrong[:5]} are missing or wrong")
    arenas = {store.locate(key).rank for key in keys}
    assert_all(comm, len(arenas) == comm.size, f"all blocks are in the arenas {arenas}")
    away = sum(store.locate(key).path == "remote" for key in hot)
    before = store.stats()["copies"]["hits"]
    assert_all(comm, all(map(is_right, hot)), "a copy is wrong")
    hits = store.stats()["copies"]["hits"] - before
    assert_all(comm, hits == away and (away > 0) == (nodes > 1), f"{hits} reads of copies of {away} blocks")
    comm.Barrier()
    lost = [key for key in keys if store.locate(key).rank == 0 and key not in hot[:3]]
    comm.Barrier()
    if comm.rank == 0:  # room in the first arena, for others to move there
        assert store.delete_many(lost).all()
    for key in lost:
        del expected[key]
    hot = [key for key in hot if key in expected]
    comm.Barrier()
    moved = store.rebalance()  # a copy of what has moved is not read any more
    assert comm.size == 1 or moved.moved > 0
    wrong = [key for key in keys if not is_right(key)]
    assert_all(comm, not wrong, f"after moves {wrong[:5]} are missing or wrong")
    comm.Barrier()
    if comm.rank == comm.size - 1:
        assert all(store.put(key, block(key + 10**6, SIZE)).stored for key in hot[::3])
        assert store.delete_many(hot[1::3]).all()
    comm.Barrier()
    expected |= {key: block(key + 10**6, SIZE) for key in hot[::3]}
    for key in hot[1::3]:
        del expected[key]
    for _ in range(3):  # the second and third read may find new copies
        wrong = [key for key in hot if not is_right(key)]
        assert_all(comm, not wrong, f"behind writes {wrong} are old, missing or wrong")
    assert store.check()["words"] == len(expected)
    assert store.delete_all(keys=range(len(keys) // 2)) == sum(key < len(keys) // 2 for key in expected)
    expected = {key: each for key, each in expected.items() if key >= len(keys) // 2}
    assert_all(comm, all(map(is_right, keys)), "what was deleted is read from a copy, or another is gone")
    assert comm.allreduce(store.stats()["evicted"]) == 0
    store.check()
