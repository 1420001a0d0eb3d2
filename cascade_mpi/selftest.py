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
from cascade_mpi.kernels.probe import reload

_BUSY_S = 0.015  # how long rank 0 stays out of MPI, for each try
_WAITED_S = _BUSY_S / 3  # an operation that took longer has waited for it
_TRIES = 3  # their median: with more ranks than cores either side may be late once
_READY = 101


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
        seconds = {name: _timed(fabric, prober, operation) for name, operation in (("get", _get), ("cas", _cas))}
        if comm.rank == 0:
            shard = int(fabric.index.table[0, 0])
            seen = seen and all(reload(shard + number * 8) == prober + 1 for number in range(_TRIES))
            fabric.index_words[:_TRIES] = 0
        results[path] = {
            "get_one_sided": seconds["get"] < _WAITED_S, "cas_one_sided": seconds["cas"] < _WAITED_S,
            "get_s": seconds["get"], "cas_s": seconds["cas"],
        }  # fmt: skip
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


def _timed(fabric: Fabric, prober: int, operation: Callable[[Fabric, int], None]) -> float:
    """Collective. Seconds that an operation of `prober` on rank 0's memory takes while rank 0 is not in MPI."""
    comm, seconds = fabric.comm, [0.0] * _TRIES
    for number in range(_TRIES):
        if comm.rank == 0:
            comm.recv(source=prober, tag=_READY)
            until = time.perf_counter() + _BUSY_S
            while time.perf_counter() < until:
                pass  # not in MPI: this is the point
        elif comm.rank == prober:
            comm.send(None, 0, _READY)
            time.sleep(_BUSY_S / 10)  # until rank 0 has left MPI
            began = time.perf_counter()
            operation(fabric, number)
            seconds[number] = time.perf_counter() - began
    return float(comm.bcast(sorted(seconds)[_TRIES // 2], prober))


def _get(fabric: Fabric, number: int) -> None:
    buffer = np.zeros(1, np.uint64)
    at = int(fabric.index.table[0, 1]) + number * 8
    fabric.index.world.Get([buffer, 8, MPI.BYTE], 0, [at, 8, MPI.BYTE])
    fabric.index.world.Flush(0)


def _cas(fabric: Fabric, number: int) -> None:
    s = fabric.scratch
    if fabric.publish(fabric.ctx, s.address, 0, 0, number, 0, fabric.comm.rank + 1) == c.MPI_FAILED:
        fabric.raise_mpi_error(s)
