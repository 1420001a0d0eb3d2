"""Puts into the own arena, and the copy by several threads.

Covers put_self against copies into the same cells, for every setting of the checksum, and the curve of
`copy_threads`. Does not cover how they are timed.
"""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np

from bench.job import Job, Outcome, rate_of_bytes
from bench.machine import store_block
from bench.rows import Goal
from bench.stock import Stock, bytes_at, names
from bench.timing import Operation, alone, interleave
from cascade_mpi.config import ChecksumMode, Config
from cascade_mpi.copier import Copier
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.store import Store

_INLINE, _OTHER = Goal("ratio", ">=", 0.75), Goal("ratio", ">=", 0.9)
_MASK64 = (1 << 64) - 1


def measure_puts(job: Job) -> None:
    """Collective. put_self in stores with default settings but for the checksum, the default one first."""
    o, default = job.options, Config().checksum
    for checksum in sorted(get_args(ChecksumMode), key=lambda each: each != default):
        with Store(job.comm, dram_bytes=o.arena(o.sizes), checksum=checksum) as store:
            if checksum == default:
                job.about |= store_block(store)
            for size in o.sizes:
                stock = Stock(store, size, o.count(size), o.seed)
                outcome = alone(job.comm, lambda store=store, stock=stock: _put(job, store, stock))
                amount = rate_of_bytes(size, o.inner(size))
                _, numpy_copy, kernel = (float(x) for x in amount / outcome.samples.medians())
                best = (1, "np.copyto") if numpy_copy > kernel else (2, "the streaming copy")
                job.add_rate(
                    "put_self", size, amount, "GB/s", outcome, (best[0], f"{best[1]} into the arena, the faster one"),
                    _INLINE if checksum == "inline" else _OTHER,
                    checksum=checksum + (" (default)" if checksum == default else ""),
                    np_copyto=numpy_copy, streaming_copy=kernel,
                )  # fmt: skip
                store.clear()


def _put(job: Job, store: Store, stock: Stock) -> Outcome:
    """Replace the own blocks by the same contents; the copies write what stands there already."""
    size, own, inner = stock.block_bytes, job.comm.rank, job.options.inner(stock.block_bytes)
    sources = list(np.empty((stock.count, size), np.uint8))
    for number, source in enumerate(sources):
        stock.data(own, number, source)
    keys, fabric, find = names(stock.keys[own]), store._fabric, store._reader.find
    put, copyto, copy = store.put, np.copyto, copy_bytes.compile()

    def puts() -> list[Any]:
        return [(keys[block], sources[block]) for block in stock.take(inner)]

    def run_puts(prepared: list[Any]) -> None:
        for key, source in prepared:
            put(key, source)

    def cells() -> list[Any]:
        found = [(find(keys[block] >> 64, keys[block] & _MASK64), sources[block]) for block in stock.take(inner)]
        at = [(fabric.arena_address + cell.page * fabric.page_bytes, source) for cell, source in found]
        return [(bytes_at(address, size), source, address, source.ctypes.data) for address, source in at]

    def run_numpy(prepared: list[Any]) -> None:
        for cell, source, _, _ in prepared:
            copyto(cell, source)

    def run_kernel(prepared: list[Any]) -> None:
        for _, _, to, at in prepared:
            copy(to, at, size)

    ways = [Operation(puts, run_puts), Operation(cells, run_numpy), Operation(cells, run_kernel)]
    return Outcome(interleave(ways, job.options.pairs), stock.verify(store, own))


def measure_copies(job: Job) -> None:
    """Collective. Copies by 1, 2, ... threads on rank 0 alone; the limit is one thread."""
    threads = list(range(1, (job.about["cores"] or 1) + 1))
    for size in job.options.copy_sizes:
        outcome = alone(job.comm, lambda size=size: _copies(job, size, threads))
        rates = rate_of_bytes(size, 1) / outcome.samples.medians()
        for at, count in enumerate(threads):
            one = outcome._replace(samples=outcome.samples.only(at, 0))
            job.add_rate(
                "copy", size, rate_of_bytes(size, 1), "GB/s", one, (1, "one thread"), None,
                threads=count, speedup=float(rates[at] / rates[0]),
            )  # fmt: skip


def _copies(job: Job, size: int, threads: list[int]) -> Outcome:
    count = job.options.count(size)
    sources, targets = (np.empty((count, size), np.uint8) for _ in range(2))
    sources[:] = np.arange(size, dtype=np.uint64).astype(np.uint8)
    sources[:, 0] = np.arange(count)
    targets[:] = 0
    turn, copiers = itertools.count(), [Copier(each) for each in threads]
    addresses = [(to.ctypes.data, of.ctypes.data) for to, of in zip(targets, sources, strict=True)]
    ways = [
        Operation(lambda: addresses[next(turn) % count], lambda at, copy=copier.copy: copy(*at, size))
        for copier in copiers
    ]
    samples = interleave(ways, job.options.pairs)
    for copier in copiers:
        copier.close()
    written = range(min(count, next(turn)))
    return Outcome(samples, all(np.array_equal(sources[at], targets[at]) for at in written))
