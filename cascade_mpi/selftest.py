"""The self-test at open: what this MPI does with one-sided operations on each path.

Covers whether a Get and a CAS proceed while their target computes, and whether a plain load of a peer sees
a flushed CAS. Peers' memory is checked where it is mapped (`window`). Uses the first bucket of rank 0's
shard before the store is used, and leaves it empty.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from mpi4py import MPI

from cascade_mpi.errors import ProtocolError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import reload

_BUSY_S = 0.03  # how long rank 0 stays out of MPI
_READY, _DONE = 101, 102


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
        measured = None
        if comm.rank == prober:
            measured = _probe(fabric)
        elif comm.rank == 0 and prober is not None:
            _be_busy(fabric, prober)
        measured = comm.bcast(measured, prober if prober is not None else 0)
        if measured is not None:
            get_s, cas_s, visible = measured
            limit = _BUSY_S / 2
            results[path] = {
                "get_one_sided": get_s < limit, "cas_one_sided": cas_s < limit, "get_s": get_s, "cas_s": cas_s,
            }  # fmt: skip
            seen = seen and visible
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


def _be_busy(fabric: Fabric, prober: int) -> None:
    comm = fabric.comm
    fabric.index_words[0] = 0
    comm.send(None, prober, _READY)
    until = time.perf_counter() + _BUSY_S
    while time.perf_counter() < until:
        pass  # not in MPI: this is the point
    visible = True
    request = comm.irecv(source=prober, tag=_DONE)
    swapped = request.wait()
    if swapped:
        visible = reload(int(fabric.index.table[0, 0])) == swapped
    comm.send(visible, prober, _READY)


def _probe(fabric: Fabric) -> tuple[float, float, bool]:
    """(seconds of a Get, of a CAS, rank 0 saw the CAS) against rank 0, which computes."""
    comm, s = fabric.comm, fabric.scratch
    buffer = np.zeros(1, np.uint64)
    comm.recv(source=0, tag=_READY)
    began = time.perf_counter()
    fabric.index.world.Get([buffer, 8, MPI.BYTE], 0, [int(fabric.index.table[0, 1]), 8, MPI.BYTE])
    fabric.index.world.Flush(0)
    middle = time.perf_counter()
    outcome = fabric.publish(fabric.ctx, s.address, 0, 0, 0, 0, comm.rank + 1)
    end = time.perf_counter()
    if outcome == c.MPI_FAILED:
        fabric.raise_mpi_error(s)
    comm.send(comm.rank + 1, 0, _DONE)
    visible = comm.recv(source=0, tag=_READY)
    return middle - began, end - middle, bool(visible)
