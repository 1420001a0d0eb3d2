"""The self-test at open: what this MPI does with one-sided operations on each path.

Covers whether a Get and a CAS proceed while their target computes, and whether a plain load of a peer sees
a flushed CAS. Peers' memory is checked where it is mapped (`window`). Uses the first bucket of rank 0's
shard before the store is used, and leaves it empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from cascade_mpi.errors import ProtocolError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import full_fence, reload

_BUSY_S = 0.015  # how long rank 0 stays out of MPI, for each try
_TRIES = 3  # with more ranks than cores the prober may come too late
_READY = 101
_MARK = 14  # the word of rank 0's first bucket that says what rank 0 does: 2 * try + 1 busy, 2 * try + 2 over


def run(fabric: Fabric) -> dict[str, Any]:
    """Collective. Test the paths "node" and "remote" against rank 0 while it computes.

    Returns, the same on all ranks: for each path that exists, `get_one_sided`, `cas_one_sided` and their
    seconds. A path without a second rank is absent. Takes about 0.1 s.

    Raises
    ------
    ProtocolError
        On all ranks, if a plain load does not see a flushed CAS: the store cannot work on this MPI.
    """
    comm, results = fabric.comm, {}
    mapped = comm.allgather(bool(fabric.index.table[0, 0]))
    probers = {
        "node": next((rank for rank in range(1, comm.size) if mapped[rank]), None),
        "remote": next((rank for rank in range(1, comm.size) if not mapped[rank]), None),
    }
    seen = True
    for path, prober in probers.items():
        if prober is None:
            continue
        # Each operation against a busy spell of its own: what waits for the first would find the target idle.
        (get, get_s), (cas, cas_s) = (_against_busy(fabric, prober, operation) for operation in (_get, _cas))
        if comm.rank == 0:
            shard = int(fabric.index.table[0, 0])
            seen = seen and all(reload(shard + number * 8) == prober + 1 for number in range(_TRIES))
            fabric.index_words[:_TRIES] = 0
        results[path] = {"get_one_sided": get, "cas_one_sided": cas, "get_s": get_s, "cas_s": cas_s}
    own = _own_word_visible(fabric)
    if not comm.allreduce(int(own and seen)) == comm.size:
        raise ProtocolError(
            f"a plain load does not see a flushed compare-and-swap (window layout {fabric.layout!r}): "
            'this MPI separates the two memories; try windows="shared" or another MPI'
        )
    fabric.index_words[:16] = 0
    comm.Barrier()
    return results


def _own_word_visible(fabric: Fabric) -> bool:
    """Does this rank's plain load see its own CAS?"""
    s, rank = fabric.scratch, fabric.comm.rank
    fabric.publish(fabric.ctx, s.address, rank, 0, 15, 0, 7)
    visible = reload(int(fabric.index.table[rank, 0]) + 15 * 8) == 7
    fabric.remove(fabric.ctx, s.address, rank, 0, 15, 7)
    return bool(visible)


def _against_busy(fabric: Fabric, prober: int, operation: Callable[[Fabric, int], None]) -> tuple[bool, float]:
    """Collective. Does an operation of `prober` on rank 0 end while rank 0 is not in MPI, and its median seconds.

    Order decides, not time: rank 0 marks its memory when it has left MPI and before it enters again. Who reads
    the first mark before the operation and after it has not waited; once is proof.
    """
    comm, proven, seconds = fabric.comm, False, [0.0] * _TRIES
    if comm.rank == 0:
        fabric.index_words[_MARK] = 0
    comm.Barrier()
    for number in range(_TRIES):
        busy = 2 * number + 1
        if comm.rank == 0:
            comm.recv(source=prober, tag=_READY)
            fabric.index_words[_MARK] = busy
            until = time.perf_counter() + _BUSY_S
            while time.perf_counter() < until:
                pass  # not in MPI: this is the point
            fabric.index_words[_MARK] = busy + 1
            full_fence()
        elif comm.rank == prober:
            comm.send(None, 0, _READY)
            while (mark := _read(fabric, _MARK)) < busy:
                pass  # rank 0 is still in MPI
            began = time.perf_counter()
            operation(fabric, number)
            seconds[number] = time.perf_counter() - began
            proven |= mark == busy == _read(fabric, _MARK)
    proven, median = comm.bcast((proven, sorted(seconds)[_TRIES // 2]), prober)
    return bool(proven), float(median)


def _read(fabric: Fabric, word: int) -> int:
    """A word of rank 0's first bucket, by MPI_Get."""
    buffer = np.zeros(1, np.uint64)
    fabric.index.world.Get([buffer, 8, MPI.BYTE], 0, [int(fabric.index.table[0, 1]) + word * 8, 8, MPI.BYTE])
    fabric.index.world.Flush(0)
    return int(buffer[0])


def _get(fabric: Fabric, number: int) -> None:
    _read(fabric, number)


def _cas(fabric: Fabric, number: int) -> None:
    s = fabric.scratch
    if fabric.publish(fabric.ctx, s.address, 0, 0, number, 0, fabric.comm.rank + 1) == c.MPI_FAILED:
        fabric.raise_mpi_error(s)
