"""`python -m bench hot-prefix`: the blocks of one rank that the ranks of all other nodes read again and again.

Covers the bytes that leave the owner's node, against one fetch for each other node, and the speed from the second
pass on, against blocks of the readers' own nodes in the same passes. All readers begin at the same time with the
same block. Three ways: keys that determine the content, plain names, and names that were replicated before. The
contents of every read are compared, outside the timed part. Does not cover replaces (`stale`).
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
from cascade_mpi.namespaces import Namespace
from cascade_mpi.store import Store

_BYTES, _SPEED = Goal("ratio", "<=", 1.1), Goal("ratio", ">=", 0.95)
_WAYS = ("content keys", "names", "replicated names")


def run(
    blocks: int, block_bytes: int, passes: int, json_file: Path | None = None, comm: MPI.Intracomm = MPI.COMM_WORLD
) -> int:
    """Collective. Measure and show; 1 if contents were wrong anywhere."""
    measured, about = measure(blocks, block_bytes, passes, comm)
    title = f"{comm.size} ranks, {blocks} blocks, {passes} passes"
    return rows.finish(measured, about, title, json_file, comm.rank)


def measure(
    blocks: int, block_bytes: int, passes: int, comm: MPI.Intracomm = MPI.COMM_WORLD
) -> tuple[list[Row], dict[str, Any]]:
    """Collective. The rows, the same on all ranks, and the machine that they were made on."""
    arena = (1 + 2 * len(_WAYS)) * blocks * block_bytes + (4 << 20)
    made: list[Row] = []
    with Store(comm, dram_bytes=arena, copy_share=0.5, copy_threads=1) as store:
        about = comm.bcast(machine() | store_block(store))
        report = store.report()
        if report["nodes"] == 1:
            return [rows.absent("hot_prefix", "all ranks are on one node (MPIR_CVAR_NUM_CLIQUES=2 makes two)")], about
        for way in _WAYS:
            made += _Prefix(store, comm, way, blocks, block_bytes).rows(passes)
        store.check()
    for row in made:
        row.update(ranks=comm.size, nodes=report["nodes"], passes=passes, machine=about)
    return made, about


class _Prefix:
    """One prefix, and as many blocks on each node to compare with; rank 0 is the owner."""

    def __init__(self, store: Store, comm: MPI.Intracomm, way: str, blocks: int, block_bytes: int) -> None:
        """Collective. Put all blocks."""
        self.store, self.comm, self.way, self.blocks, self.block_bytes = store, comm, way, blocks, block_bytes
        self.space = Namespace(way, content_keys=way == "content keys")
        mates = store._fabric.node_ranks
        self.reader = 0 not in mates
        self.nodes = store._fabric.nodes
        for at in range(blocks):
            if comm.rank == 0:
                store.put(at, self.block(at, 0), namespace=self.space, is_prefix=True)
            if comm.rank == mates[at % len(mates)]:  # where the node's copy of that block might be too
                store.put(self.near(at), self.block(at, 1 + mates[0]), namespace=self.space)
        comm.Barrier()

    def near(self, at: int) -> str:
        return f"near {self.store._fabric.node_ranks[0]} {at}"

    def block(self, at: int, whose: int) -> npt.NDArray[np.uint64]:
        return np.uint64((whose << 48) + (at + 1 << 24)) + np.arange(self.block_bytes // 8, dtype=np.uint64)

    def rows(self, passes: int) -> list[Row]:
        """Collective. Read in passes: a row of bytes and one of speed."""
        comm, before = self.comm, self.fetched()
        if self.way == "replicated names":
            self.store.replicate(range(self.blocks), namespace=self.space)
        outs = [np.empty(self.block_bytes // 8, np.uint64) for _ in range(self.blocks)]
        hot, near, right = [], [], True
        for number in range(passes):
            for keys, seconds, whose in (
                (list(range(self.blocks)), hot, 0),
                ([self.near(at) for at in range(self.blocks)], near, 1 + self.store._fabric.node_ranks[0]),
            )[:: 1 - 2 * (number % 2)]:  # in turns: neither always finds the caches as the other left them
                for out in outs:
                    out[::512] = 0
                comm.Barrier()
                if self.reader:
                    began = time.perf_counter()
                    got = [self.store.get(key, out, namespace=self.space) for key, out in zip(keys, outs, strict=True)]
                    seconds.append(time.perf_counter() - began)
                    right &= all(each == self.block_bytes for each in got)
                    right &= all(np.array_equal(out, self.block(at, whose)) for at, out in enumerate(outs))
                comm.Barrier()
        unique = self.blocks * self.block_bytes
        right = bool(comm.allreduce(int(right), MPI.MIN))
        more = {"contents_ok": right, "key": self.way, "hit_rate": 1.0 if right else None}
        fetched = comm.allreduce(self.fetched() - before)
        once = unique * (self.nodes - 1)
        made = [
            rows.make("hot_prefix_bytes", self.block_bytes, fetched / 2**20, once / 2**20, "MiB", _BYTES,
                      limit_what="each block once for each other node", **more)
        ]  # fmt: skip
        speeds = comm.allgather([unique / 1e9 / np.median(each[1:]) for each in (hot, near)] if self.reader else None)
        values = np.array([each for each in speeds if each is not None])
        free = comm.allreduce(self.store.stats()["copies"]["hits_without_mpi"])
        made.append(
            rows.make("hot_prefix_speed", self.block_bytes, values[:, 0].mean(), values[:, 1].mean(), "GB/s", _SPEED,
                      limit_what=f"blocks of the readers' nodes ({free} reads without MPI so far)", **more)
        )  # fmt: skip
        return made

    def fetched(self) -> int:
        """Local. Bytes that this rank has read from other nodes."""
        return int(self.store.stats()["tiers"]["remote"]["bytes"])
