"""How many requests a second the trace readers give, on one core, with strict validation.

Covers made-up files of each format, and any file that is named. Does not cover dealing or replaying.

    python -m bench traces [FILE ...] [--requests N] [--passes N] [--json FILE]

A pass opens the file and goes through all its requests. The rate is that of the median pass by the wall
clock; beside it stands that by the process's own time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from bench.rows import write
from cascade_mpi.cli import parse
from cascade_mpi.errors import TraceError
from cascade_mpi.traces import Request, Trace, generate, open_trace
from cascade_mpi.traces.recording import Access, Header, access_line, header_line

GOALS = {"azure": 200_000, "burstgpt": 200_000, "splitwise": 200_000, "csv": 200_000, "mooncake": 50_000}
_START = datetime(2024, 5, 10, tzinfo=UTC)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Case(NamedTuple):
    """A file to make: its name, and its lines for some requests."""

    name: str
    lines: Callable[[Iterable[Request]], Iterator[str]]
    share: float = 1.0  # of the requests; the formats with block ids have long lines


def _azure(requests: Iterable[Request]) -> Iterator[str]:
    yield "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    for each in requests:
        yield f"{_START + timedelta(seconds=each.timestamp_s)},{each.input_tokens},{each.output_tokens}\n"


def _burstgpt(requests: Iterable[Request]) -> Iterator[str]:
    yield "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    for each in requests:
        counts = f"{each.input_tokens},{each.output_tokens},{each.input_tokens + each.output_tokens}"
        yield f"{each.timestamp_s:.3f},{each.session},1.5,ChatGPT,{counts},Conversation log\n"


def _splitwise(requests: Iterable[Request]) -> Iterator[str]:
    yield "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    for each in requests:
        yield f"{each.index},2,0,{each.timestamp_s},1,{each.input_tokens},{each.output_tokens}\n"


def _csv(requests: Iterable[Request]) -> Iterator[str]:
    yield "arrival_ms,prompt_tokens,completion_tokens,session_id\n"
    for each in requests:
        yield f"{int(each.timestamp_s * 1000)},{each.input_tokens},{each.output_tokens},{each.session}\n"


def _mooncake(requests: Iterable[Request]) -> Iterator[str]:
    for each in requests:
        lengths = {"input_length": each.input_tokens, "output_length": each.output_tokens}
        yield json.dumps({"timestamp": int(each.timestamp_s * 1000), **lengths, "hash_ids": each.block_ids}) + "\n"


def _jsonl(requests: Iterable[Request]) -> Iterator[str]:
    for each in requests:
        counts = {"prompt_tokens": each.input_tokens, "completion_tokens": each.output_tokens}
        yield json.dumps({"arrival_s": each.timestamp_s, **counts}) + "\n"


def _json(requests: Iterable[Request]) -> Iterator[str]:
    yield "["
    for number, line in enumerate(_jsonl(requests)):
        yield f"{',' if number else ''}{line}"
    yield "]\n"


CASES = (
    Case("azure.csv", _azure),
    Case("burstgpt.csv", _burstgpt),
    Case("splitwise.csv", _splitwise),
    Case("any.csv", _csv),
    Case("azure.csv.gz", _azure),
    Case("mooncake.jsonl", _mooncake, 0.1),
    Case("mooncake.jsonl.gz", _mooncake, 0.1),
    Case("any.jsonl", _jsonl, 0.1),
    Case("any.json", _json, 0.1),
)


def run(files: Sequence[Path], requests: int, passes: int, json_file: Path | None) -> int:
    """Local. Make the files, go through each, show the rates; the exit status is 1 if a goal was missed."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for path in chain(files, _make(Path(name), requests)):
            rows.append(_row(path, passes))
    _show(rows)
    if json_file is not None:
        write(rows, json_file)
    return 0 if all(row["goal_met"] in (None, True) for row in rows) else 1


def _make(directory: Path, count: int) -> Iterator[Path]:
    """One file after another: the disk holds one at a time."""
    made = list(generate("chat").first(count))
    for case in CASES:
        path = directory / case.name
        chosen = made[: max(1, int(count * case.share))]
        with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
            file.writelines(case.lines(chosen))
        yield path
        path.unlink()
    path = directory / "recording.jsonl"
    lookups = (Access(each.timestamp_s, 0, "lookup", tuple(each.block_ids), 0) for each in made[: max(1, count // 10)])
    with path.open("wb") as file:
        file.write(header_line(Header(65536, 512, 1, "chat")))
        file.writelines(map(access_line, lookups))
    yield path


def _row(path: Path, passes: int) -> dict[str, Any]:
    trace = open_trace(path)
    count, walls, own = 0, [], []
    for _ in range(passes):
        wall, process = time.perf_counter(), time.process_time()
        count = _count(trace)
        walls.append(time.perf_counter() - wall)
        own.append(time.process_time() - process)
    rate, goal = count / statistics.median(walls), GOALS.get(trace.format)
    return {
        "file": path.name, "format": trace.format, "bytes": path.stat().st_size, "requests": count, "passes": passes,
        "requests_per_s": rate, "requests_per_cpu_s": count / statistics.median(own),
        "goal": goal, "goal_met": None if goal is None else rate >= goal,
    }  # fmt: skip


def _count(trace: Trace) -> int:
    count = 0
    for _ in trace:
        count += 1
    return count


def _show(rows: Sequence[dict[str, Any]]) -> None:
    console = Console(width=None if Console().is_terminal else 160)
    for name, value in machine().items():
        console.print(f"{name}: {value}")
    table = Table(title="Trace readers, strict, one core")
    for name in ("file", "format", "MB", "requests", "requests/s", "requests/s of own time", "goal", "met"):
        table.add_column(name, justify="left" if name in ("file", "format", "met") else "right")
    for row in rows:
        met = {None: "", True: "yes", False: "[red]no[/red]"}[row["goal_met"]]
        table.add_row(
            row["file"], row["format"], f"{row['bytes'] / 1e6:.1f}", f"{row['requests']:,}",
            f"{row['requests_per_s']:,.0f}", f"{row['requests_per_cpu_s']:,.0f}",
            f"{row['goal']:,}" if row["goal"] else "", met,
        )  # fmt: skip
    console.print(table)


@app.command()
def traces(
    context: typer.Context,
    files: Annotated[list[Path] | None, typer.Argument(help="Trace files to read as well.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the made-up tables; a tenth elsewhere.")] = 10**6,
    passes: Annotated[int, typer.Option(min=1, help="Passes over each file; the median counts.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows.")] = None,
) -> None:
    """Time the trace readers."""
    context.obj.append(lambda: run(files or (), requests, passes, json_file))


def main(arguments: Sequence[str]) -> int:
    """Local. Parse, then measure; the exit status."""
    job, status = parse(app, "python -m bench traces", arguments)
    try:
        return job() if job is not None else status
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
