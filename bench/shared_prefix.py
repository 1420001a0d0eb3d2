"""`python -m bench shared-prefix`: the blocks of one rank that all ranks read at the same time.

Covers the speed of every rank against copies from the same memory (ranks of the owner's node) or raw MPI Gets of the
same bytes (ranks of other nodes) in the same run, hit rate and contents; between nodes once without copies and once
with the store's own setting, by which a node reads its copy after the third time. Does not cover the bytes that leave
the owner (`hot_prefix`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from bench import rows
from bench.job import Outcome, rate_of_bytes
from bench.machine import machine, store_block
from bench.reads import Reads
from bench.rows import Goal, Row
from bench.stock import Stock
from bench.timing import interleave
from cascade_mpi.store import Store

_NODE, _REMOTE = Goal("ratio", ">=", 0.95), Goal("ratio", ">=", 0.75)  # as of `micro` at 1 MiB
_OWNER = 0


def run(
    blocks: int, block_bytes: int, pairs: int, json_file: Path | None = None, comm: MPI.Intracomm = MPI.COMM_WORLD
) -> int:
    """Collective. Measure and show; 1 if contents were wrong anywhere."""
    measured, about = measure(blocks, block_bytes, pairs, comm)
    title = f"{comm.size} ranks at once, {blocks} blocks, medians of {pairs} interleaved pairs"
    return rows.finish(measured, about, title, json_file, comm.rank)


def measure(
    blocks: int, block_bytes: int, pairs: int, comm: MPI.Intracomm = MPI.COMM_WORLD
) -> tuple[list[Row], dict[str, Any]]:
    """Collective. The rows, the same on all ranks, and the machine that they were made on."""
    made: list[Row] = []
    about: dict[str, Any] = {}
    arena = 6 * blocks * block_bytes + (4 << 20)
    for settings in ({"promote_after": 0}, {}):
        with Store(comm, dram_bytes=arena, copy_share=0.5, copy_threads=1, **settings) as store:
            about = about or comm.bcast(machine() | store_block(store))
            nodes = store.report()["nodes"]
            made += _measure(store, comm, blocks, block_bytes, pairs, copies=not settings)
        if nodes == 1:
            break
    if nodes == 1:
        made.append(
            rows.absent("shared_prefix_remote", "all ranks are on one node (MPIR_CVAR_NUM_CLIQUES=2 makes two)")
        )
    for row in made:
        row.update(ranks=comm.size, nodes=nodes, machine=about)
    return made, about


def _measure(
    store: Store, comm: MPI.Intracomm, blocks: int, block_bytes: int, pairs: int, *, copies: bool
) -> list[Row]:
    """Collective. Read all blocks of the owner on all ranks at once; a row for each way to it."""
    stock = Stock(store, block_bytes, blocks, seed=1)
    near = _OWNER in store._fabric.node_ranks
    out = np.zeros(block_bytes, np.uint8)
    reads = Reads(store, stock, _OWNER, blocks)
    # As many ways on every rank: they meet before each.
    limits = [reads.numpy_copy(out), reads.kernel_copy(out)] if near else [reads.raw_get(out), reads.raw_get(out)]
    outcomes: list[tuple[bool, Outcome]] = comm.allgather(
        (near, reads.outcome(interleave([reads.get(out), *limits], pairs, comm.Barrier)))
    )
    made = []
    for path, what, goal in (
        (True, "np.copyto or the streaming copy, the faster one", _NODE),
        (False, "raw MPI Get + Flush", _REMOTE),
    ):
        found = [outcome for each, outcome in outcomes if each is path]
        if not found or (path and copies):
            continue
        rates = np.array([rate_of_bytes(block_bytes, blocks) / each.samples.medians() for each in found])
        case = "shared_prefix_node" if path else "shared_prefix_copies" if copies else "shared_prefix_remote"
        made.append(
            rows.make(
                case, block_bytes, float(rates[:, 0].mean()), float(rates[:, 1:].max(axis=1).mean()), "GB/s", goal,
                limit_what=what, contents_ok=all(each.right for each in found), concurrent=len(found),
                hit_rate=min(each.hit_rate or 0.0 for each in found),
                disturbed=max(each.samples.disturbed for each in found),
            )
        )  # fmt: skip
    return made
