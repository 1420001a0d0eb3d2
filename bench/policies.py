"""Hits of the eviction policies on one trace at several capacities, and how fast each replays it.

Covers exact, sequential replay of block accesses by one core. Does not cover the store, whose touches come
late and in batches.

    python -m bench policies [--trace FILE] [--capacity 1000 ...] [--policy lru ...] [--runs N] [--json FILE]

An access is one block id of a request, in the order of the trace; every miss brings the block in. *Gap* is
the share of the distance from LRU to Belady's MIN that a policy covers: 0 is LRU, 100 % the best possible,
below 0 is worse than LRU. Speeds are of the median run by the process's own time, after compilation; that
of Belady contains its look at the future. *State/block* is all bytes of a policy at this capacity, with its ghosts
and what does not depend on the capacity, for each cached block; `state_bytes_per_block` of the rows is what one
more id takes. MIN is no bound where blocks differ in size, and here they do not.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from bench.rows import write
from cascade_mpi.cli import parse
from cascade_mpi.errors import TraceError
from cascade_mpi.policies.family import POLICIES
from cascade_mpi.traces import KINDS, Request, generate, open_trace

CAPACITIES = (1_000, 10_000, 30_000)
GOALS = (
    dict.fromkeys(("lru", "fifo", "sieve", "lfu", "s3fifo"), 5e6)
    | dict.fromkeys(("arc", "wtinylfu", "belady"), 2e6)
    | {"prefix": 1e6}
)  # accesses a second
_REQUESTS = 5_000  # of a generator, which has no end

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def accesses(trace: str) -> tuple[NDArray[np.int64], int]:
    """Local. The block accesses of a trace file, or of a generator's first requests, and how many blocks there are."""
    opened = generate(trace) if trace in KINDS else open_trace(Path(trace))
    if not opened.has_blocks:
        raise TraceError(f"{trace}: {opened.format} traces do not say which blocks are the same; use one that does")
    requests: Iterable[Request] = opened.first(_REQUESTS) if trace in KINDS else opened
    found = [np.asarray(each.block_ids, np.uint64) for each in requests]
    ids = np.concatenate(found) if found else np.empty(0, np.uint64)
    if not ids.size:
        raise TraceError(f"{trace}: {len(found):,} requests without a single block; use a trace that has some")
    blocks, first, dense = np.unique(ids, return_index=True, return_inverse=True)
    order = np.empty(blocks.size, np.int64)
    order[np.argsort(first)] = np.arange(blocks.size)  # by first use, so that files with other ids give the same
    return order[dense], blocks.size


def run(trace: str, capacities: Sequence[int], names: Sequence[str], runs: int, json_file: Path | None) -> int:
    """Local. Replay, show, write; the exit status is 1 if a policy was slower than its goal."""
    ids, blocks = accesses(trace)
    rows = []
    for capacity in capacities:
        hits = {name: _hits(name, capacity, blocks, ids) for name in {"lru", "belady", *names}}
        gap = hits["belady"] - hits["lru"]
        for name in names:
            rate, goal = _rate(name, capacity, blocks, ids, runs), GOALS.get(name)
            rows.append({
                "policy": name, "trace": Path(trace).name, "accesses": ids.size, "blocks": blocks,
                "capacity": capacity, "hits": hits[name], "hit_rate": hits[name] / ids.size,
                "gap": (hits[name] - hits["lru"]) / gap if gap else None,
                "accesses_per_cpu_s": rate, "runs": runs,
                "goal": goal, "goal_met": None if goal is None else rate >= goal,
                "state_bytes_per_block": POLICIES[name].state_bytes_per_block,
                "state_bytes": POLICIES[name].state_bytes(capacity),
            })  # fmt: skip
    _show(rows)
    if json_file is not None:
        write(rows, json_file)
    return 0 if all(row["goal_met"] in (None, True) for row in rows) else 1


def _replay(name: str, capacity: int, blocks: int, ids: NDArray[np.int64]) -> tuple[int, float]:
    """Hits and seconds of own time."""
    options: dict[str, Any] = {}
    started = time.process_time()
    if POLICIES[name].offline:
        options["future"] = ids
    policy = POLICIES[name](capacity, blocks, **options)
    if not POLICIES[name].offline:
        started = time.process_time()
    hits = policy.replay(ids)
    return int(hits.sum()), time.process_time() - started


def _hits(name: str, capacity: int, blocks: int, ids: NDArray[np.int64]) -> int:
    return _replay(name, capacity, blocks, ids)[0]


def _rate(name: str, capacity: int, blocks: int, ids: NDArray[np.int64], runs: int) -> float:
    return ids.size / statistics.median(_replay(name, capacity, blocks, ids)[1] for _ in range(runs))


def _show(rows: Sequence[dict[str, Any]]) -> None:
    console = Console(width=None if Console().is_terminal else 160)
    for key, value in machine().items():
        console.print(f"{key}: {value}")
    first = rows[0]
    table = Table(title=f"{first['trace']}: {first['accesses']:,} accesses to {first['blocks']:,} blocks, one core")
    for heading in ("policy", "capacity", "hits", "hit rate", "gap", "M accesses/s", "goal", "met", "state/block"):
        table.add_column(heading, justify="left" if heading in ("policy", "met") else "right")
    for row in rows:
        table.add_row(
            row["policy"], f"{row['capacity']:,}", f"{row['hits']:,}", f"{row['hit_rate']:.2%}",
            "" if row["gap"] is None else f"{row['gap']:.1%}", f"{row['accesses_per_cpu_s'] / 1e6:.1f}",
            f"{row['goal'] / 1e6:g}" if row["goal"] else "",
            {None: "", True: "yes", False: "[red]no[/red]"}[row["goal_met"]],
            f"{row['state_bytes'] / max(row['capacity'], 1):,.0f}",
        )  # fmt: skip
    console.print(table)


@app.command()
def policies(
    context: typer.Context,
    trace: Annotated[str, typer.Option(help=f"A trace file with block ids, or {', '.join(KINDS)}.")] = "chat",
    capacity: Annotated[list[int] | None, typer.Option(min=0, help="Blocks; may be repeated.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Replays behind each median.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows.")] = None,
) -> None:
    """Compare the eviction policies on a trace."""
    unknown = sorted(set(policy or ()) - set(POLICIES))
    if unknown:
        raise typer.BadParameter(f"--policy {unknown[0]}: it must be one of {', '.join(POLICIES)}")
    context.obj.append(lambda: run(trace, capacity or CAPACITIES, policy or list(POLICIES), runs, json_file))


def main(arguments: Sequence[str]) -> int:
    """Local. Parse, then measure; the exit status."""
    job, status = parse(app, "python -m bench policies", arguments)
    try:
        return job() if job is not None else status
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
