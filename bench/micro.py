"""Single operations of the store against what they are made of: copies of the same bytes, raw MPI calls.

Covers `python -m bench micro` (reads and look-ups on the own rank, the node and another node, puts, and
the copy's thread curve) and `python -m bench copy` (the curve alone). Does not cover whole workloads.

A rank measures while the others sleep, or all at once where a row says `concurrent`. Blocks are drawn in
turn from a working set larger than the caches; the home of a block's key is the rank that holds it, so
a remote read is remote in every step. The contents of what was read are compared outside the timed part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

from bench import large, rows, small, writing
from bench.job import CASES, LARGE, SMALL, SMALL_BYTES, Job, Options
from bench.machine import store_block
from bench.rows import Row
from cascade_mpi.store import Store

__all__ = ["CASES", "Options", "measure", "run"]


def run(options: Options, json_file: Path | None = None, comm: MPI.Intracomm = MPI.COMM_WORLD) -> int:
    """Collective. Measure and show; 1 if contents were wrong anywhere."""
    measured, about = measure(options, comm)
    title = f"{comm.size} ranks, medians of {options.pairs} interleaved pairs"
    return rows.finish(measured, about, title, json_file, comm.rank)


def measure(options: Options, comm: MPI.Intracomm) -> tuple[list[Row], dict[str, Any]]:
    """Collective. All rows, the same on all ranks, and the machine that they were made on."""
    job = Job(options, comm)
    big, little = job.possible(LARGE), job.possible(SMALL)
    if big or little:
        sizes = [SMALL_BYTES, *(options.sizes if big else ()), *(options.remote_sizes if big else ())]
        # Without copies: what is read from another node again and again is to come from there.
        with Store(comm, dram_bytes=options.arena(sizes), copy_threads=1, promote_after=0) as store:
            job.about |= store_block(store)
            large.measure(job, store, big)
            small.measure(job, store, little)
    if job.wants("put_self"):
        writing.measure_puts(job)
    if job.wants("copy"):
        writing.measure_copies(job)
    for row in job.rows:
        row.update(ranks=comm.size, nodes=job.nodes, pairs=options.pairs, machine=job.about)
    return job.rows, job.about
