"""The store: the public face of one rank's part of it.

Covers the calls of `README.md`'s tables: those that read, write, and concern namespaces are in the modules beside it,
here are futures, progress, statistics and what concerns all blocks. The protocol is below: `reader` and `writer` over
`onesided`, the arena in `dram`. Every public docstring begins with **Collective** (all ranks of the communicator must
call it) or **Local**.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from cascade_mpi import check as invariants
from cascade_mpi import statistics
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.keys import Key
from cascade_mpi.listing import BlockInfo
from cascade_mpi.mover import Rebalanced
from cascade_mpi.mpiio.agreement import agreed
from cascade_mpi.reader import Location
from cascade_mpi.store_disk import Durable, Warmed
from cascade_mpi.store_hdf5 import Exports
from cascade_mpi.store_reads import Reads
from cascade_mpi.store_writes import Writes
from cascade_mpi.view import View
from cascade_mpi.writer import PutResult

__all__ = ["BlockInfo", "Location", "PutResult", "Store", "View", "Warmed"]


class Store(Reads, Writes, Exports, Durable):
    """One rank's part of a store that is spread over all ranks of a communicator.

    >>> with Store(MPI.COMM_WORLD, dram_bytes="1GiB") as store:
    ...     store.put("sys_prompt", array, is_prefix=True)
    ...     n = store.get("sys_prompt", out)
    """

    # ---------------------------------------------------------------------------------------------------------- futures

    def put_async(self, key: Key, data: Any, **options: Any) -> Future[PutResult]:
        """Local. `put` in another thread; `data` must not change before the future is done."""
        return self._submit(self.put, key, data, **options)

    def get_async(self, key: Key, out: Any = None, **options: Any) -> Future[Any]:
        """Local. `get` in another thread; `out` must not be touched before the future is done."""
        return self._submit(self.get, key, out, **options)

    # ------------------------------------------------------------------------------------------ progress and statistics

    @uninterrupted
    def progress(self) -> None:
        """Local. Enter MPI once, so that peers' compare-and-swaps on this rank's words proceed. 1 Iprobe.

        With `checksum="later"` also computes the checksum of one block, with `dedup="behind"` looks whether the content
        of one is stored; gives back what left a quota, and takes out some blocks that have expired or are of epochs
        that have passed.
        """
        self._check_open()
        self._let_pass()
        self._pool.compute_checksums(1)
        self._dedup.step(1)
        self._pool.attend()
        if self._registry.quotas:
            self._pool.sweep_hinted()
            self._registry.settle()
        if self._disk is not None:
            self._disk.tier.after_write()
        self._fabric.poll(self._ctx, self._scratch.address)

    def stats(self) -> dict[str, Any]:
        """Local. What this rank has done since the store was opened: counters, and the fill of its arena (bytes).

        What other ranks took away, protected or unprotected counts from this rank's next sweep on: `stats_all()`,
        `scan()` and `check()` make one.
        """
        self._check_open()
        return {
            **statistics.stats(self._fabric, self._pool, self._writer, self._pins), "pending": len(self._deferred),
            **self._dedup.stats(),
            "pool": statistics.pool(self._pool, self._mover),
            "copies": statistics.copies(self._fabric, self._dram, self._copies, self._reader),
            "shared": {"protected": self._shared.protected, "over_quota": self._shared.over_quota},
            "disk": {} if self._disk is None else self._disk.stats(),
        }  # fmt: skip

    @uninterrupted
    def stats_all(self) -> list[dict[str, Any]]:
        """Collective. The `stats()` of every rank, by rank."""
        self._check_open()
        self._pool.sweep_hinted()
        return self._comm.allgather(self.stats())

    def report(self) -> dict[str, Any]:
        """Local. What was chosen at open, and why; the index's load is this rank's shard at the time of the call."""
        self._check_open()
        found = statistics.report(
            self.config, self._fabric, self._dram, self._copier, self._writer, self._registry, self._self_test
        )
        found["pool"] = statistics.about_pool(self.config, self._fabric, self._pool)
        found["copies"] = statistics.about_copies(self.config, self._fabric, self._copies)
        found["dedup"] = self._dedup.about()
        found["disk"] = (
            {"on": False, "reason": "disk is None"} if self._disk is None else self._disk.report(self.config)
        )
        return {**found, "progress": {"thread": self._progress is not None, "reason": self._progress_reason}}

    @uninterrupted
    def check(self) -> dict[str, int]:
        """Collective. Verify every invariant while no rank writes; ProtocolError on all ranks if one is broken."""
        self._check_open()
        drafts = self._deferred
        return invariants.check(
            self._fabric, self._pool, self._pins, self._protected, drafts.words(), drafts.protected_bytes(),
            self._dedup.check, None if self._disk is None else self._disk.check,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- all blocks

    @uninterrupted
    def rebalance(self) -> Rebalanced:
        """Collective. Move blocks so that the arenas of all ranks hold the same number of bytes, as far as it goes.

        Within one extent, or the largest block. Every block is found all the time; its manager moves it, and other
        ranks may read meanwhile. No block goes: one that fits nowhere stays. Nothing moves with `lease_extents=0`.
        1 Get + 1 CAS a block; between nodes a Get where it lies in another's arena, a Put where it goes to one.
        """
        self._check_open()
        return self._mover.rebalance()

    @uninterrupted
    def collect(self) -> int:
        """Collective. Remove the contents, on all ranks, that no name is left of: how many.

        Of namespaces with identity "content": a name that is deleted, replaced or expires leaves its content, as others
        may have it. With `when_full="evict"` it goes in its turn; with "refuse", or where a name of it was protected,
        only now, when nobody puts. Contents of which no name is protected any more can be evicted again.
        """
        self._check_open()
        removed = self._dedup.collect()
        self._registry.settle()
        self._poll()
        return removed

    @uninterrupted
    def clear(self) -> None:
        """Collective. Remove every block of every rank, protected ones too.

        With `durability="writethrough"` for good when it has returned; else with the next `flush()`.

        Raises
        ------
        DiskError
            With "writethrough", on all ranks: they are removed, and may be back after a restart.
        """
        self._check_open()
        self._comm.Barrier()  # what was put before is removed
        self._deferred.clear()
        self._pool.clear()
        if self._disk is not None:
            self._disk.clear()
        self._registry.settle()
        if self._disk is not None and self._disk.tier.writes_through:
            tier = self._disk.tier
            agreed(self._comm, lambda: tier.sync([]))  # each rank has the tombstones of its own blocks
        self._comm.Barrier()  # and what is put afterwards is not
