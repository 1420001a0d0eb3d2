"""Large blocks: reads from the own rank, the node and another node, one by one and in batches.

Covers get_self and get_node against copies of the same memory, get_remote and get_many_remote against raw
MPI Gets of the same bytes. Does not cover how they are timed (`timing`) nor the ways to read (`reads`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.job import Job, Outcome, rate_of_bytes
from bench.reads import Bytes, Reads
from bench.rows import Goal
from bench.stock import Stock
from bench.timing import alone, interleave
from cascade_mpi.store import Store

BATCH = 8
_COPY = Goal("ratio", ">=", 0.95)
_BATCH = Goal("ratio", ">=", 0.9)
_REMOTE = {16 << 20: Goal("ratio", ">=", 0.95), 4 << 20: Goal("ratio", ">=", 0.9), 1 << 20: Goal("ratio", ">=", 0.75)}


def measure(job: Job, store: Store, possible: set[str]) -> None:
    """Collective. Every possible case of every size; the store is empty before and after."""
    o = job.options
    mapped = [f"get_{path}" for path in ("self", "node") if f"get_{path}" in possible]
    local = set(o.sizes) if mapped else set()
    remote = set(o.remote_sizes) if possible & {"get_remote", "get_many_remote"} else set()
    for size in sorted(local | remote):
        stock = Stock(store, size, o.count(size), o.seed)
        out = np.zeros(size, np.uint8)
        for case in mapped if size in local else ():
            _mapped(job, store, stock, case, out)
        if size in remote and "get_remote" in possible:
            _remote(job, store, stock, out)
        if size in remote and "get_many_remote" in possible:
            _batch(job, store, stock)
        store.clear()


def _mapped(job: Job, store: Store, stock: Stock, case: str, out: Bytes) -> None:
    """Against copies from the same memory into the same buffer, alone, alone and hot, and all ranks at once."""
    size, owner = stock.block_bytes, job.owners[case.removeprefix("get_")]
    inner = job.options.inner(size)

    def measures(meet: Callable[[], object] | None, hot: bool) -> Outcome:
        assert owner is not None
        reads = Reads(store, stock, owner, inner, stock.take(1) if hot else None)
        ways = [reads.get(out), reads.numpy_copy(out), reads.kernel_copy(out)]
        return reads.outcome(interleave(ways, job.options.pairs, meet))

    def limit(rates: np.ndarray) -> tuple[int, str]:
        at = 1 if rates[1] > rates[2] else 2
        return at, f"{('np.copyto', 'the streaming copy')[at - 1]}, the faster one"

    def extra(rates: np.ndarray) -> dict[str, float]:
        return {"np_copyto": float(rates[1]), "streaming_copy": float(rates[2])}

    amount = rate_of_bytes(size, inner)
    for hot in (False, True) if size == min(job.options.sizes) else (False,):
        outcome = alone(job.comm, lambda hot=hot: measures(None, hot))
        rates = amount / outcome.samples.medians()
        goal = None if hot else _COPY
        job.add_rate(case, size, amount, "GB/s", outcome, limit(rates), goal, hot=hot, **extra(rates))
    if all(job.comm.allgather(owner is not None)) and job.comm.size > 1:
        outcomes = job.comm.allgather(measures(job.comm.Barrier, False))
        rates = np.sum([amount / each.samples.medians() for each in outcomes], axis=0)
        job.add_shared(case, size, rates, "GB/s", outcomes, limit(rates), _COPY, **extra(rates))


def _remote(job: Job, store: Store, stock: Stock, out: Bytes) -> None:
    size, inner = stock.block_bytes, job.options.inner(stock.block_bytes)

    def measures(hot: bool) -> Outcome:
        reads = Reads(store, stock, job.owner("remote"), inner, stock.take(1) if hot else None)
        return reads.outcome(interleave([reads.get(out), reads.raw_get(out)], job.options.pairs))

    for hot in (False, True) if size == min(job.options.remote_sizes) else (False,):
        outcome = alone(job.comm, lambda hot=hot: measures(hot))
        goal = None if hot else next((goal for least, goal in _REMOTE.items() if size >= least), None)
        limit = (1, "raw MPI Get + Flush")
        job.add_rate("get_remote", size, rate_of_bytes(size, inner), "GB/s", outcome, limit, goal, hot=hot)


def _batch(job: Job, store: Store, stock: Stock) -> None:
    size, inner = stock.block_bytes, job.options.inner(stock.block_bytes, BATCH)

    def measures() -> Outcome:
        reads = Reads(store, stock, job.owner("remote"), inner)
        outs = list(np.zeros((BATCH, size), np.uint8))
        return reads.outcome(interleave([reads.get_many(outs), reads.raw_gets(outs)], job.options.pairs))

    limit, goal = (1, f"{BATCH} raw MPI Gets + 1 Flush"), _BATCH if size >= 1 << 20 else None
    amount = rate_of_bytes(size, inner * BATCH)
    job.add_rate("get_many_remote", size, amount, "GB/s", alone(job.comm, measures), limit, goal, batch=BATCH)
