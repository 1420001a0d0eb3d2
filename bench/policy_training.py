"""What the learned policy is worth: on the half of a trace it comes from, on the other, and on other traces.

Covers the tables of hits, the bounds, and the lines of the policy's prior. Does not cover speed (`policies`).

    python -m bench policy-training FILE [--no-model] [--no-foreign] [--prior FILE] [--json FILE]

The goals are shares of the gap between LRU and MIN, to be met on the second half: the policy's prior is made from the
first one of the Mooncake conversation trace. The cache is warm there, as the trace is replayed as a whole.

Rows: LRU and MIN; the policy as it is, without its prior, and without being told of requests; then what is
fitted to one half of the trace and not changed after that, with every block's history remembered: a table of
the policy's own classes, and LightGBM on all that is known at an access (`policy_models.FEATURES`). Fitted to
the first half, the second one is the test. Fitted to the second half, that half is no test but a bound: what
these classes, or this model, could do if the future were like the past. (LightGBM also learns single sessions
by heart there.) MIN and all others go through the whole trace once; hits are counted in halves.

Needs the bench extra for LightGBM (`--no-model` does without).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench import policy_models as models
from bench.rows import write
from cascade_mpi.cli import parse
from cascade_mpi.errors import TraceError
from cascade_mpi.policies.family import make
from cascade_mpi.policies.prefix import Prefix
from cascade_mpi.policies.prior import UNIT
from cascade_mpi.traces import KINDS, Request, generate, open_trace

CAPACITIES = (1_000, 10_000, 30_000)
GOALS = {1_000: 0.30, 10_000: 0.15, 30_000: 0.25}  # of the gap between LRU and MIN, on the trace's second half
SEEDS = (101, 102, 103)
FOREIGN_REQUESTS = 5_000
FOREIGN_SHARES = (0.005, 0.02, 0.1, 0.3)  # capacities, in shares of the distinct blocks

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Mask = NDArray[np.bool_]


def accesses(requests: Iterable[Request], block_tokens: int) -> tuple[models.Ints, models.Ints, Mask]:
    """Local. Dense ids in the order of first use, blocks of each request, and whether its last one is not full."""
    dense: dict[int, int] = {}
    ids, lengths, partial = [], [], []
    for request in requests:
        ids.extend(dense.setdefault(block, len(dense)) for block in request.block_ids)
        lengths.append(len(request.block_ids))
        partial.append(request.input_tokens % block_tokens != 0)
    return np.array(ids), np.array(lengths), np.array(partial)


def own_trace(of: models.Accesses, middle: int, capacity: int, fits: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Local. The rows of one capacity."""
    ids, blocks = of.ids, int(of.ids.max()) + 1
    told = {"requests": of.lengths, "partial": of.partial}
    hits = {
        "LRU": make("lru", capacity, blocks).replay(ids),
        "MIN": make("belady", capacity, blocks, future=ids).replay(ids),
        "prefix": Prefix(capacity, blocks).replay(ids, **told),
        "prefix, no prior": Prefix(capacity, blocks, trust=0.0).replay(ids, **told),
        "prefix, no requests": Prefix(capacity, blocks).replay(ids),
    }
    hits |= {name: models.replay(ids, groups, chance, capacity) for name, (groups, chance) in fits.items()}
    for name, found in hits.items():
        row: dict[str, Any] = {"policy": name, "capacity": capacity}
        for part, where in {"first": slice(middle), "second": slice(middle, None), "whole": slice(None)}.items():
            lru, best = int(hits["LRU"][where].sum()), int(hits["MIN"][where].sum())
            row[part] = int(found[where].sum())
            row[f"{part}_gap"] = (row[part] - lru) / (best - lru) if best > lru else None
        if name == "prefix":
            row["goal_met"] = row["second_gap"] is not None and row["second_gap"] >= GOALS[capacity]
        yield row


def fitted(of: models.Accesses, middle: int, with_model: bool) -> dict[str, Any]:
    """Local. The groups of all accesses and their chances, by what they were fitted to."""
    fits: dict[str, Any] = {}
    classes = models.classes(of)
    for half, (start, end) in {"first": (0, middle), "second": (middle, of.ids.size)}.items():
        fits[f"table, {half} half"] = classes, models.table(*models.counts(of, classes, start, end))
        if with_model:
            fits[f"LightGBM, {half} half"] = models.boosted(of, start, end)
    return fits


def foreign() -> Iterator[dict[str, Any]]:
    """Local. Generated traces of other seeds: hit rates of LRU and of the policy, as it is."""
    for kind in KINDS:
        for seed in SEEDS:
            ids, lengths, partial = accesses(islice(generate(kind, seed), FOREIGN_REQUESTS), 512)
            blocks = int(ids.max()) + 1
            for share in FOREIGN_SHARES:
                capacity = int(blocks * share)
                lru = make("lru", capacity, blocks).replay(ids).mean()
                ours = Prefix(capacity, blocks).replay(ids, lengths, partial).mean()
                yield {"trace": f"{kind} {seed}", "capacity": capacity, "blocks": blocks, "lru": lru, "prefix": ours,
                       "goal_met": ours > lru - 0.01}  # fmt: skip


def prior_lines(of: models.Accesses, middle: int) -> list[str]:
    """Local. The lines of `cascade_mpi.policies.prior`, of the first half."""
    uses, exposures = models.counts(of, models.classes(of), 0, middle)
    lines = []
    for kind in range(len(uses)):
        if exposures[kind].any():
            for letter, values in (("u", uses[kind]), ("e", exposures[kind])):
                lines.append(f"{kind} {letter} {' '.join(str(round(value / UNIT)) for value in values)}")
    return lines


def _show(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    table = Table(title="hits, and the share of the gap between LRU and MIN")
    parts = ("first", "second", "whole")
    for heading in ("policy", "capacity", *(name for part in parts for name in (part, "gap")), "met"):
        table.add_column(heading, justify="left" if heading in ("policy", "met") else "right")
    words = {None: "", True: "yes", False: "[red]no[/red]"}
    for row in rows:
        gaps = {part: "" if row[f"{part}_gap"] is None else f"{row[f'{part}_gap']:.1%}" for part in parts}
        cells = [cell for part in parts for cell in (f"{row[part]:,}", gaps[part])]
        table.add_row(row["policy"], f"{row['capacity']:,}", *cells, words[row.get("goal_met")])
    console.print(table)
    if others:
        table = Table(title="generated traces: hit rate")
        for heading in ("trace", "capacity", "LRU", "prefix", "points", "met"):
            table.add_column(heading, justify="left" if heading in ("trace", "met") else "right")
        for row in others:
            gain = f"{100 * (row['prefix'] - row['lru']):+.2f}"
            rates = f"{row['lru']:.2%}", f"{row['prefix']:.2%}", gain
            table.add_row(row["trace"], f"{row['capacity']:,}", *rates, words[bool(row["goal_met"])])
        console.print(table)


def run(trace: Path, model: bool, with_foreign: bool, prior_file: Path | None, json_file: Path | None) -> int:
    """Local. Fit, replay, show, write; the exit status is 1 if a goal was missed."""
    opened = open_trace(trace)
    if not opened.has_blocks:
        raise TraceError(f"{trace}: {opened.format} traces do not say which blocks are the same; use one that does")
    requests = list(opened)
    of = models.known(*accesses(requests, opened.block_tokens))
    half_time = requests[-1].timestamp_s / 2
    middle = int(of.lengths[: sum(request.timestamp_s < half_time for request in requests)].sum())
    if prior_file is not None:
        prior_file.write_text("\n".join(prior_lines(of, middle)) + "\n")
    fits = fitted(of, middle, model)
    rows = [row for capacity in CAPACITIES for row in own_trace(of, middle, capacity, fits)]
    others = list(foreign()) if with_foreign else []
    _show(rows, others)
    if json_file is not None:
        write([*rows, *({**row, "goal_met": bool(row["goal_met"])} for row in others)], json_file)
    return 0 if all(row.get("goal_met", True) for row in (*rows, *others)) else 1


@app.command()
def policy_training(
    context: typer.Context,
    trace: Annotated[Path, typer.Argument(help="A trace file with block ids.")],
    model: Annotated[bool, typer.Option(help="Also LightGBM: minutes.")] = True,
    foreign_traces: Annotated[bool, typer.Option("--foreign/--no-foreign", help="Also generated traces.")] = True,
    prior: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the lines of the policy's prior.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows.")] = None,
) -> None:
    """Compare the learned policy with its bounds on two halves of a trace, and with LRU on others."""
    context.obj.append(lambda: run(trace, model, foreign_traces, prior, json_file))


def main(arguments: Sequence[str]) -> int:
    """Local. Parse, then measure; the exit status."""
    job, status = parse(app, "python -m bench policy-training", arguments)
    try:
        return job() if job is not None else status
    except (TraceError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
