"""The start of ranks that all need the same blocks, which an earlier job has left on disk.

Covers the store's way, `warm` and `replicate` and then a get of every block by every rank, against ranks that each read
all of it from the file system on their own; bytes are counted by the tier and by the kernel (/proc/self/io). Part of
`bench disk`. Does not cover a restart's own time (`disk_restart`).

Every file was dropped from the page cache before. Independent readers on one node share the page cache, which readers
on nodes of their own do not: with O_DIRECT they read as those do, through one device all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mpi4py import MPI

from bench import rows
from bench.disk_ways import Blocks, LargeFile, device_bytes, forget
from bench.rows import Goal, Row
from bench.timing import Operation, interleave
from cascade_mpi.store import Store

_ONCE, _FASTER = Goal("ratio", "<=", 1.0), Goal("ratio", ">=", 1.0)


def measure_start(count: int, block_bytes: int, pairs: int, root: Path, comm: MPI.Intracomm) -> list[Row]:
    """Collective. Rows of bytes and of speed, the same on all ranks."""
    if comm.size == 1:
        return [rows.absent("disk_start", "there is one rank (mpiexec -n 4)")]
    return _Start(count, block_bytes, root, comm).rows(pairs)


class _Start:
    """The blocks, in a store's directory and in a plain file for each rank, and buffers for all on each rank."""

    def __init__(self, count: int, block_bytes: int, root: Path, comm: MPI.Intracomm) -> None:
        """Collective. Put and flush them; each rank its share."""
        self.comm, self.root = comm, root
        self.blocks = Blocks(block_bytes, count, 0)
        self.keys = np.array([(1, number) for number in range(count)], np.uint64)
        self.arena = 3 * count * block_bytes + (16 << 20)
        if comm.rank == 0:
            root.mkdir()
        comm.Barrier()
        self.blocks.fill(1)
        mine = slice(comm.rank, None, comm.size)
        with Store(comm, dram_bytes=self.arena, disk=str(root / "store")) as store:
            store.put_many(self.keys[mine], self.blocks.rows[mine])
            store.flush()
            self.nodes: int = store.report()["nodes"]
        # One file that all read: as many bytes of the device's own cache are hit or not as in the store's way.
        if comm.rank == 0:
            LargeFile(root / "file", direct=False).write(self.blocks)
        comm.Barrier()
        self.ways = [LargeFile(root / "file", direct=direct, written=1) for direct in (True, False)]
        self.stores: list[Store] = []
        self.right = True
        self.tier_bytes: list[int] = []
        self.device: dict[str, list[int]] = {}

    def rows(self, pairs: int) -> list[Row]:
        operations = [
            Operation(self._open, self._counted("store", self._warm), self._close),
            *(
                Operation(self._forget, self._counted(way.name, lambda way=way: way.read(self.blocks)), self._compare)
                for way in self.ways
            ),
        ]  # fmt: skip
        own = interleave(operations, pairs, self.comm.Barrier).seconds
        slowest = np.empty_like(own)
        self.comm.Allreduce(own, slowest, MPI.MAX)
        ok = bool(self.comm.allreduce(int(self.right), MPI.MIN))
        unique = self.blocks.nbytes
        tier = np.median(self.comm.allreduce(np.array(self.tier_bytes)))
        more = {"contents_ok": ok, "hit_rate": 1.0 if ok else None, "nodes": self.nodes}
        what = "each byte once"
        made = [
            rows.make("disk_start_bytes", self.blocks.block_bytes, tier / 2**20, unique / 2**20, "MiB", _ONCE,
                      limit_what=what, key="read by the tier", **more)
        ]  # fmt: skip
        for name, counted in self.device.items():
            read = np.median(self.comm.allreduce(np.array(counted)))
            made.append(
                rows.make("disk_start_bytes", self.blocks.block_bytes, read / 2**20, unique / 2**20, "MiB",
                          limit_what=what, key=f"{name}: read from the device", **more)
            )  # fmt: skip
        medians = np.median(slowest, axis=0)
        for at, way in enumerate(self.ways, 1):
            paired = slowest[:, at] / slowest[:, 0]
            made.append(
                rows.make("disk_start_time", self.blocks.block_bytes, 1 / medians[0], 1 / medians[at], "starts/s",
                          _FASTER if at == 1 else None, limit_what=f"{self.comm.size} independent readers, {way.name}",
                          key="warm, replicate, get_many", spread=f"{paired.min():.2f}..{paired.max():.2f}", **more)
            )  # fmt: skip
        return made

    def _open(self) -> None:
        self._forget()
        self.stores.append(Store(self.comm, dram_bytes=self.arena, disk=str(self.root / "store"), disk_mode="read"))
        self._forget()  # its footers too

    def _warm(self) -> None:
        store = self.stores[0]
        store.warm(self.keys)
        store.replicate(self.keys)
        got = store.get_many(self.keys, self.blocks.rows)
        self.right &= got == [self.blocks.block_bytes] * self.blocks.count

    def _close(self, _: object) -> None:
        self._compare(_)
        store = self.stores.pop()
        self.tier_bytes.append(store.stats()["disk"]["bytes_read"])
        store.close()

    def _counted(self, name: str, call):  # type: ignore[no-untyped-def]
        def run(_: object) -> None:
            before = device_bytes()[0]
            call()
            self.device.setdefault(name, []).append(device_bytes()[0] - before)

        return run

    def _forget(self) -> None:
        self.blocks.poison()
        self.comm.Barrier()
        if self.comm.rank == 0:
            forget(self.root)
        self.comm.Barrier()

    def _compare(self, _: object) -> None:
        self.right &= self.blocks.hold(1)
