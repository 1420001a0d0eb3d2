"""How long a put takes while the arena is full, with and without eviction ahead of puts.

Covers one size of blocks, a median without pressure, and percentiles while twice the arena is put, over and over.
Does not cover hit rates (see `policies` and the workload).

    mpiexec -n 2 python -m bench pressure [--block-bytes SIZE] [--dram SIZE] [--rounds N] [--json FILE]

Every rank puts into its own arena. In the row "no pressure" the arena has room for all that is put; in the others
each round puts twice the arena under keys of its own, while every third put is followed by a get of an earlier block,
whose bytes are compared if it is still there. Percentiles are over the puts of all ranks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from mpi4py import MPI
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from cascade_mpi.cli import parse
from cascade_mpi.config import format_size, parse_size
from cascade_mpi.store import Store

GOAL = 3.0  # P99 under pressure over the median without
PERCENTILES = (50, 90, 99, 99.9)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _payload(buffer: npt.NDArray[np.uint64], rank: int, number: int) -> npt.NDArray[np.uint64]:
    """Fill a buffer so that every word depends on the block and on its place."""
    np.add(np.arange(buffer.size, dtype=np.uint64), np.uint64(rank << 40 | number << 16), out=buffer)
    return buffer


def measure(comm: MPI.Intracomm, block_bytes: int, dram: int, rounds: int, **settings: Any) -> dict[str, Any]:
    """Collective. Seconds of each put of all ranks, in one sorted array, and what the store counted."""
    buffer, out = np.empty(block_bytes // 8, np.uint64), np.empty(block_bytes // 8, np.uint64)
    wrong = hits = gets = 0
    with Store(comm, dram_bytes=dram, **settings) as store:
        blocks = 2 * dram // block_bytes if settings["when_full"] == "evict" else dram // block_bytes // 2
        seconds = np.empty(blocks * rounds)
        random = np.random.default_rng(comm.rank)
        for number in range(blocks * rounds):
            if settings["when_full"] == "refuse" and number >= blocks:
                store.delete((comm.rank << 32) + number - blocks)
            value = _payload(buffer, comm.rank, number)
            began = time.perf_counter()
            result = store.put((comm.rank << 32) + number, value)
            seconds[number] = time.perf_counter() - began
            assert result.stored, result.reason
            if number % 3 == 0:
                earlier = int(random.integers(max(0, number - blocks // 2), number + 1))
                gets += 1
                if store.get((comm.rank << 32) + earlier, out) is not None:
                    hits += 1
                    wrong += not np.array_equal(out, _payload(buffer, comm.rank, earlier))
        comm.Barrier()
        store.check()
        evicted, report = store.stats()["evicted"], store.report()["eviction"]
    everyone = np.sort(np.concatenate(comm.allgather(seconds)))
    return {
        "eviction": report, "puts": int(everyone.size), "evicted": int(comm.allreduce(evicted)),
        "wrong": int(comm.allreduce(wrong)), "hit_rate": comm.allreduce(hits) / comm.allreduce(gets),
        **{f"p{each:g}_us": float(np.percentile(everyone, each)) * 1e6 for each in PERCENTILES},
    }  # fmt: skip


@app.command(epilog="Exit status: 1 if contents were wrong, else 0; a goal that is missed does not change it.")
def _options(
    context: typer.Context,
    block_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Size of a block.")] = "64KiB",
    dram: Annotated[str, typer.Option(metavar="SIZE", help="Arena of each rank.")] = "128MiB",
    rounds: Annotated[int, typer.Option(min=1, help="Times that twice the arena is put.")] = 3,
    eviction: Annotated[str, typer.Option(help="The policy.")] = "lru",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows here.")] = None,
) -> None:
    """Time puts into a full arena, with and without eviction ahead of them."""
    size, arena = max(8, parse_size(block_bytes) // 8 * 8), parse_size(dram)
    context.obj.append(lambda: run(MPI.COMM_WORLD, size, arena, rounds, eviction, json_file))


def run(comm: MPI.Intracomm, size: int, dram: int, rounds: int, eviction: str, json_file: Path | None) -> int:
    """Collective. Measure and show; the exit status, 1 if a byte was wrong."""
    shapes: list[tuple[str, dict[str, Any]]] = [
        ("no pressure", {"when_full": "refuse"}),
        ("puts evict", {"when_full": "evict", "eviction": eviction, "evict_ahead": 0.0}),
        ("evicted ahead", {"when_full": "evict", "eviction": eviction}),
    ]
    rows = [{"case": name, **measure(comm, size, dram, rounds, **settings)} for name, settings in shapes]
    for row in rows:
        row["p99_over_median"] = row["p99_us"] / rows[0]["p50_us"]
    if comm.rank == 0:
        _show(rows, {**machine(), "ranks": comm.size, "block": format_size(size), "arena": format_size(dram)})
        if json_file is not None:
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(row["wrong"] for row in rows))


def _show(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), highlight=False)
    names = [f"p{each:g}_us" for each in PERCENTILES]
    table = Table(title="microseconds of a put")
    for name in ("case", "puts", "evicted", "hits", *names, "P99 / median without pressure", "goal", "contents"):
        table.add_column(name.removesuffix("_us").upper() if name in names else name, justify="right")
    for row in rows:
        pressed = row["case"] != "no pressure"
        table.add_row(
            row["case"], f"{row['puts']:,}", f"{row['evicted']:,}", f"{row['hit_rate']:.1%}",
            *(f"{row[name]:.1f}" for name in names), f"{row['p99_over_median']:.2f}",
            f"<= {GOAL:g}" if pressed else "", "right" if not row["wrong"] else f"{row['wrong']} WRONG",
        )  # fmt: skip
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    """Collective. Parse, then measure; the exit status."""
    job, status = parse(app, "python -m bench pressure", arguments)
    return job() if job is not None else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
