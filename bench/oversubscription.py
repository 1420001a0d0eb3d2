"""`python -m bench oversubscription`: more blocks than fit, in the store of all ranks, with each of its policies.

Covers hits and evictions at several times the DRAM of all ranks, beside the hits of the exact policy on the same
accesses, and the same with a share of the blocks protected: every rank then reads each of them. The contents of every
hit are compared. Does not cover how long puts take (`pressure`) nor real traces (`store_policies`).

Every rank puts its share of the blocks, in the order of their numbers, and then draws blocks of all ranks, some far
more often than others; what it misses it puts. Ranks are not kept in step, so that the order of accesses, which the
exact policies take in turns, differs from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench import rows
from bench.machine import machine, store_block
from bench.rows import Goal, Row
from cascade_mpi.blocks import BlockPool
from cascade_mpi.errors import StoreFullError
from cascade_mpi.policies.family import STORE_POLICIES
from cascade_mpi.store import Store

FACTORS = (2, 4)
PROTECTED = 0.1  # of all blocks
_SKEW = 0.8  # block number k of the popular ones is drawn k ** -_SKEW as often as the first
_DRAWS = 4  # of each block, on average
_ALL = Goal("ratio", ">=", 1.0)

Numbers = npt.NDArray[np.int64]


def run(
    dram: int, block_bytes: int, names: Sequence[str], seed: int, json_file: Path | None = None,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
) -> int:  # fmt: skip
    """Collective. Measure and show; 1 if contents were wrong, or a protected block was not in memory."""
    measured, about = measure(dram, block_bytes, names, seed, comm)
    status = rows.finish(measured, about, f"{comm.size} ranks, arenas of {dram >> 20} MiB", json_file, comm.rank)
    return status or int(any(row["goal_met"] is False for row in measured))


def measure(
    dram: int, block_bytes: int, names: Sequence[str] = tuple(STORE_POLICIES), seed: int = 1,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """Collective. The rows, the same on all ranks, and the machine that they were made on."""
    made: list[Row] = []
    about: dict[str, Any] = {}
    for name in names:
        for factor in FACTORS:
            for share in (0.0, PROTECTED):
                with Store(comm, dram_bytes=dram, eviction=name, evict_ahead=0.0, copy_threads=1) as store:
                    about = about or comm.bcast(machine() | store_block(store))
                    made += _Load(store, comm, block_bytes, factor, share, seed).rows(name)
                    store.check()
                    nodes = store.report()["nodes"]
    for row in made:
        row.update(ranks=comm.size, nodes=nodes, machine=about)
    return made, about


class _Load:
    """The blocks of one case, and what this rank does with them."""

    def __init__(
        self, store: Store, comm: MPI.Intracomm, block_bytes: int, factor: int, share: float, seed: int
    ) -> None:
        self.store, self.comm, self.factor = store, comm, factor
        fabric = store._fabric
        self.fit = comm.size * (fabric.pages // -(-block_bytes // fabric.page_bytes))
        self.blocks = factor * self.fit
        self.pool = BlockPool(block_bytes, 1)
        order = np.random.default_rng(seed).permutation(self.blocks)
        popular = np.empty(self.blocks)
        popular[order] = np.arange(1, self.blocks + 1) ** -_SKEW
        draws = _DRAWS * self.blocks // comm.size
        # Of all ranks, the same on each: the exact policy replays them.
        self.draws = np.array(
            [
                np.random.default_rng((seed, rank)).choice(self.blocks, draws, p=popular / popular.sum())
                for rank in range(comm.size)
            ]
        )
        self.protected: Numbers = np.sort(
            order[:: round(1 / share)][: int(share * self.blocks)] if share else order[:0]
        )
        self._is_protected = np.isin(np.arange(self.blocks), self.protected)
        self.hits = self.wrong = self.refused = 0

    def rows(self, name: str) -> list[Row]:
        """Collective. Put, draw, and with protected blocks read those."""
        comm, store = self.comm, self.store
        for number in range(comm.rank, self.blocks, comm.size):
            self._put(number)
        comm.Barrier()
        for number in self.draws[comm.rank].tolist():
            if not self._get(number):
                self._put(number)
        comm.Barrier()
        hits, found = self.hits, sum(self._get(number) for number in self.protected.tolist())
        comm.Barrier()  # what is counted next is what all have done
        hits, found, wrong, refused, evicted, kept = (
            comm.allreduce(each)
            for each in (hits, found, self.wrong, self.refused, store.stats()["evicted"], store._dram.protected()[0])
        )
        right = not wrong and kept == self.protected.size
        key = f"{name}, {self.factor}x" + (f", {PROTECTED:.0%} protected" if self.protected.size else "")
        exact = self._exact_hits(name)
        what = f"the exact policy without protection; {evicted:,} evicted, {refused:,} refused"
        more = {"contents_ok": right, "key": key, "hit_rate": hits / self.draws.size}
        nbytes = self.pool.block_bytes
        made = [
            rows.make("oversubscription", nbytes, 100 * hits / self.draws.size, 100 * exact / self.draws.size,
                      "% hits", limit_what=what, evicted=evicted, refused=refused, **more)
        ]  # fmt: skip
        if self.protected.size:
            what = f"{self.protected.size:,} protected blocks, read by each rank"
            limit = self.protected.size * comm.size
            made.append(rows.make("protected", nbytes, found, limit, "reads", _ALL, limit_what=what, **more))
        return made

    def _put(self, number: int) -> None:
        (data,) = self.pool.fill(np.array([number], np.uint64), 0)
        try:
            self.refused += self.store.put(number, data, is_prefix=bool(self._is_protected[number])).refused
        except StoreFullError:  # what a protected one says in the place of a result
            self.refused += 1

    def _get(self, number: int) -> bool:
        (out,) = self.pool.poison(1)
        if self.store.get(number, out) is None:
            return False
        self.hits += 1
        self.wrong += int(self.pool.wrong(np.array([number], np.uint64), 0)[0])
        return True

    def _exact_hits(self, name: str) -> int:
        """Hits among the draws of a cache of that many blocks that takes the accesses of all ranks in turns."""
        accesses = np.concatenate([np.arange(self.blocks), self.draws.T.reshape(-1)])
        return int(STORE_POLICIES[name](self.fit, self.blocks).replay(accesses)[self.blocks :].sum())
