"""Hits of the store with each of its policies at several capacities, beside the exact values, and what is lost why.

Covers a replay of a trace by the workload on all ranks, every byte compared. Does not cover speed (see `micro`).

    mpiexec -n 4 python -m bench store-policies --trace FILE [--capacity 10000 ...] [--policy lru ...] [--json FILE]

Blocks have 4 KiB, a page of the arena; the capacity is that of all ranks together; puts evict one by one. Beside the
store's hits stand those of the exact policy that is one for all ranks, and of as many exact policies as there are
ranks, each for the blocks that its rank puts (and for those that a hash gives it): what lies between the two is lost
because the arenas are apart, and what a rank remembers of a block does not follow it to another; the rest because
touches come late. A hit of the store, and of the caches of ranks, is one of a prefix; the one exact policy counts
blocks behind a gap too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from mpi4py import MPI
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from bench.policy_shards import by_hash, by_writer
from bench.rows import write
from cascade_mpi.cli import parse
from cascade_mpi.layout import MIN_PAGE_BYTES
from cascade_mpi.policies.family import POLICIES, STORE_POLICIES
from cascade_mpi.traces import KINDS
from cascade_mpi.workload import WorkloadOptions, run_workload

CAPACITIES = (10_000, 30_000)
GOALS = {"lru": 2.0}  # points that the store may be below the exact policy

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Row = dict[str, Any]


def measure(
    trace: str, capacities: Sequence[int], names: Sequence[str], requests: int | None, comm: MPI.Intracomm
) -> list[Row]:
    """Collective. A row for each capacity and policy, the same on all ranks; hit rates in percent."""
    made: list[Row] = []
    source: dict[str, Any] = {"kind": trace} if trace in KINDS else {"trace": Path(trace)}
    about = comm.bcast(machine())
    exact: dict[tuple[int, str], Row] = {}
    if comm.rank == 0:
        asked, blocks = _requests(WorkloadOptions(requests=requests, **source))
        exact = {(each, name): _exact(name, each, blocks, asked, comm.size) for each in capacities for name in names}
    exact = comm.bcast(exact)
    for capacity in capacities:
        for name in names:
            options = WorkloadOptions(
                requests=requests, block_bytes=MIN_PAGE_BYTES, dram=capacity // comm.size * MIN_PAGE_BYTES, live=False,
                store={"eviction": name, "evict_ahead": 0.0, "copy_threads": 1}, **source,
            )  # fmt: skip
            result = run_workload(comm, options)
            row: Row = {"policy": name, "capacity": capacity, "store": 100 * result.hit_rate, **exact[capacity, name]}
            row["kept"] = 100 * result.kept / result.accesses
            row["lost"] = row["exact"] - row["store"]
            goal = GOALS.get(name)
            row |= {"goal": goal, "goal_met": None if goal is None else row["lost"] <= goal}
            row |= {"corrupt": result.corrupt, "evicted": result.evicted, "seconds": result.seconds}
            row |= {"trace": Path(trace).name, "accesses": result.accesses, "ranks": comm.size, "machine": about}
            made.append(row | {"nodes": result.setting.nodes})
    return made


def _requests(options: WorkloadOptions) -> tuple[list[Any], int]:
    """The block ids of each request, numbered from 0 by their first use, and how many there are."""
    found = [np.asarray(each.block_ids, np.uint64) for each in options.open_trace()]
    _, first, dense = np.unique(np.concatenate(found), return_index=True, return_inverse=True)
    order = np.empty(first.size, np.int64)
    order[np.argsort(first)] = np.arange(first.size)
    return np.split(order[dense], np.cumsum([ids.size for ids in found])[:-1]), first.size


def _exact(name: str, capacity: int, blocks: int, requests: Sequence[Any], ranks: int) -> Row:
    policy, told = POLICIES[name](capacity, blocks), {}
    if policy.wants_requests:
        told["requests"] = [ids.size for ids in requests]
    hits = policy.replay(np.concatenate(requests), **told)
    writer = by_writer(name, capacity, blocks, requests, ranks)
    return {
        "exact": 100 * float(hits.mean()),
        "by_writer": 100 * writer.hits,
        "by_hash": 100 * by_hash(name, capacity, blocks, requests, ranks).hits,
    }


def run(
    trace: str, capacities: Sequence[int], names: Sequence[str], requests: int | None, json_file: Path | None,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
) -> int:  # fmt: skip
    """Collective. Measure and show; 1 if contents were wrong or the store lost more than it may."""
    rows = measure(trace, capacities, names, requests, comm)
    if comm.rank == 0:
        _show(rows)
        if json_file is not None:
            write(rows, json_file)
    return int(any(row["corrupt"] or row["goal_met"] is False for row in rows))


def _show(rows: Sequence[Row]) -> None:
    console = Console(width=None if Console().is_terminal else 150)
    for key, value in rows[0]["machine"].items():
        console.print(f"{key}: {value}")
    ranks = rows[0]["ranks"]
    table = Table(
        title=f"{rows[0]['trace']}: {rows[0]['accesses']:,} accesses, hits in percent; {ranks} ranks on "
        f"{rows[0]['nodes']} nodes"
    )
    exact = f"exact, {ranks} caches"
    names = ("exact", f"{exact} by writer", f"{exact} by hash", "store", "lost, points", "goal", "met")
    for heading in ("policy", "capacity", *names, "behind a gap", "evicted", "contents", "seconds"):
        table.add_column(heading, justify="left" if heading in ("policy", "met") else "right")
    for row in rows:
        table.add_row(
            row["policy"], f"{row['capacity']:,}",
            *(f"{row[name]:.2f}" for name in ("exact", "by_writer", "by_hash", "store", "lost")),
            "" if row["goal"] is None else f"<= {row['goal']:g}",
            {None: "", True: "yes", False: "[red]no[/red]"}[row["goal_met"]],
            f"{row['kept']:.2f}", f"{row['evicted']:,}", "right" if not row["corrupt"] else f"{row['corrupt']} WRONG",
            f"{row['seconds']:.1f}",
        )  # fmt: skip
    console.print(table)


@app.command("store-policies")
def _options(
    context: typer.Context,
    trace: Annotated[str, typer.Option(help=f"A trace file with block ids, or {', '.join(KINDS)}.")] = "chat",
    capacity: Annotated[list[int] | None, typer.Option(min=1, help="Blocks in all; may be repeated.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows.")] = None,
) -> None:
    """Compare the store's policies with the exact ones on a trace."""
    unknown = sorted(set(policy or ()) - set(STORE_POLICIES))
    if unknown:
        raise typer.BadParameter(f"--policy {unknown[0]}: it must be one of {', '.join(STORE_POLICIES)}")
    if trace not in KINDS and not Path(trace).is_file():
        raise typer.BadParameter(f"--trace {trace}: no such file, and none of {', '.join(KINDS)}")
    context.obj.append(lambda: run(trace, capacity or CAPACITIES, policy or list(STORE_POLICIES), requests, json_file))


def main(arguments: Sequence[str]) -> int:
    """Collective. Parse, then measure; the exit status."""
    job, status = parse(app, "python -m bench store-policies", arguments)
    return job() if job is not None else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
