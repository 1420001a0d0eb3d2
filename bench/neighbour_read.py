"""`python -m bench neighbour-read`: one rank fills the memory of all, and every rank reads all of it.

Covers whether all is found, evicted or wrong, and the speed of reads by the writer, by the ranks whose memory it has
leased on its node and on others, against a raw copy of the same bytes (what lies on another node: a raw MPI_Get) in the
same run. Nodes keep copies, as by default. The contents of every read are compared, outside the timed part. Does not
cover recalls (`torture`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench import rows
from bench.machine import machine, store_block
from bench.rows import Goal, Row
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.layout import unpack_word
from cascade_mpi.store import Store

_SPEED, _FOUND = Goal("ratio", ">=", 0.8), Goal("ratio", ">=", 1.0)
_FILL = 0.9
_WHO = ("writer", "node", "remote")


def run(
    dram_bytes: int, block_bytes: int, passes: int, json_file: Path | None = None, comm: MPI.Intracomm = MPI.COMM_WORLD
) -> int:
    """Collective. Measure and show; 1 if a block was missing or wrong anywhere."""
    measured, about = measure(dram_bytes, block_bytes, passes, comm)
    title = f"{comm.size} ranks, {dram_bytes} bytes each, {passes} passes"
    return rows.finish(measured, about, title, json_file, comm.rank)


def measure(
    dram_bytes: int, block_bytes: int, passes: int, comm: MPI.Intracomm = MPI.COMM_WORLD
) -> tuple[list[Row], dict[str, Any]]:
    """Collective. The rows, the same on all ranks, and the machine that they were made on."""
    made: list[Row] = []
    with Store(comm, dram_bytes=dram_bytes, copy_threads=1) as store:
        about = comm.bcast(machine() | store_block(store))
        cell = -(-block_bytes // store._fabric.page_bytes) * store._fabric.page_bytes
        blocks = int(_FILL * dram_bytes * comm.size / cell)
        if comm.rank == 0:
            for at in range(blocks):
                store.put(at, _block(at, block_bytes))
        comm.Barrier()
        who = _WHO[0] if comm.rank == 0 else _WHO[1] if store._fabric.mapped[0] else _WHO[2]
        speed, raw, right = _read(store, comm, blocks, block_bytes, passes)
        found = comm.allgather((who, speed, raw, right))
        # Behind the reads: no block is to go for the copies that they make.
        gone = sum(each["evicted"] + each["refused"] for each in store.stats_all())
        all_right = all(each[-1] for each in found) and not gone
        more = {"contents_ok": all_right, "hit_rate": 1.0 if all_right else None}
        made.append(
            rows.make("neighbour_read_kept", block_bytes, blocks - gone, blocks, "blocks", _FOUND,
                      limit_what=f"puts, {_FILL:.0%} of all memory", key="kept",
                      read_from_copies=sum(each["copies"]["hits"] for each in store.stats_all()), **more)
        )  # fmt: skip
        for each in _WHO:
            speeds = np.array([(speed, raw) for name, speed, raw, _ in found if name == each])
            if speeds.size:
                what = "a raw copy of the same bytes, or MPI_Get"
                made.append(
                    rows.make("neighbour_read_speed", block_bytes, speeds[:, 0].mean(), speeds[:, 1].mean(), "GB/s",
                              _SPEED, limit_what=what, key=each, **more)
                )  # fmt: skip
        store.check()
        nodes = store.report()["nodes"]
    for row in made:
        row.update(ranks=comm.size, nodes=nodes, passes=passes, machine=about)
    return made, about


def _block(at: int, nbytes: int) -> npt.NDArray[np.uint64]:
    return np.uint64(at + 1 << 24) + np.arange(nbytes // 8, dtype=np.uint64)


def _read(store: Store, comm: MPI.Intracomm, blocks: int, block_bytes: int, passes: int) -> tuple[float, float, bool]:
    """Collective. GB/s of gets and of raw copies, one rank after the other, and whether all was right."""
    out, right = np.empty(block_bytes // 8, np.uint64), True
    best = np.zeros((passes, 2))
    for reader in range(comm.size):
        comm.Barrier()
        if reader != comm.rank:
            continue
        words = _words(store, blocks)
        for number in range(passes):
            for at in range(blocks):
                began = time.perf_counter()
                got = store.get(at, out)
                best[number, 0] += time.perf_counter() - began
                right &= got == block_bytes and np.array_equal(out, _block(at, block_bytes))
                began = time.perf_counter()
                _raw(store, words[at], out)
                best[number, 1] += time.perf_counter() - began
                right &= np.array_equal(out, _block(at, block_bytes))
    comm.Barrier()
    seconds = np.median(best, axis=0)
    speed, raw = (blocks * block_bytes / 1e9 / seconds).tolist()
    return speed, raw, bool(right)


def _words(store: Store, blocks: int) -> list[tuple[int, int]]:
    found = []
    for at in range(blocks):
        assert store._writer.find(0, at)
        word = unpack_word(store._writer.found()[0][1])
        found.append((word.rank, word.page))
    return found


def _raw(store: Store, at: tuple[int, int], out: npt.NDArray[np.uint64]) -> None:
    """The bytes without the store's steps."""
    fabric, (rank, page) = store._fabric, at
    offset = fabric.arena_at + page * fabric.page_bytes
    if base := int(fabric.data.table[rank, 0]):
        copy_bytes(out.ctypes.data, base + offset, out.nbytes)
        return
    window = fabric.data.world
    window.Get([out, out.nbytes, MPI.BYTE], rank, [int(fabric.data.table[rank, 1]) + offset, out.nbytes, MPI.BYTE])
    window.Flush(rank)
