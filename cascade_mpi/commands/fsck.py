"""`cascade fsck DIR`: examine a directory of the disk tier, and explain what is damaged.

Covers the options, the table, JSON, and the exit status: 0 without damage, 1 with damage, 2 if it is no store's
directory. Does not cover what is examined (see `segments.fsck`). Needs no MPI and changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascade_mpi.config import format_size
from cascade_mpi.counted import counted
from cascade_mpi.launcher import launcher_rank

if TYPE_CHECKING:
    from rich.console import Console

    from cascade_mpi.segments.fsck import Finding, Report

SCHEMA = 1
KEYS = 8  # named for people; JSON names all


def fsck(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="The directory of the disk tier.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Read every byte of a disk tier's directory and say what is damaged, what follows, and what to do.

    Exit status 0 without damage, 1 with damage, 2 if the directory is no store's. Nothing is changed. While a job
    writes there, its open segments may look interrupted.
    """
    context.obj.append(lambda: run(directory, as_json=as_json))


def run(directory: Path, *, as_json: bool = False) -> int:
    """Local. The exit status; only the launcher's rank 0 does anything."""
    if launcher_rank() != 0:
        return 0
    from cascade_mpi.commands.directory import opened
    from cascade_mpi.commands.printing import PipeConsole, reader_may_leave
    from cascade_mpi.segments.fsck import fsck as examine

    with opened(directory) as store:
        if store is None:
            return 2
        report = examine(store.files, store.identity)
    problems = store.problems
    with reader_may_leave():
        if as_json:
            print(json.dumps(record(directory, report, problems), indent=2))
        else:
            show(directory, report, problems, PipeConsole(soft_wrap=True, highlight=False))
    return int(report.damaged or bool(problems))


def record(directory: Path, report: Report, problems: list[str]) -> dict[str, Any]:
    """Local. What `--json` prints."""
    return {
        "schema": SCHEMA,
        "directory": str(directory),
        "store": report.store.hex(),
        "damaged": report.damaged or bool(problems),
        "blocks": report.keys,
        "deleted": report.deleted,
        "superseded": report.superseded,
        "passed": report.passed,
        "problems": problems,
        "segments": [each._asdict() | {"segment": f"{each.segment:016x}"} for each in report.segments],
        "findings": [each._asdict() for each in report.findings],
    }


def show(directory: Path, report: Report, problems: list[str], console: Console) -> None:
    """Local. Print the report for people."""
    for problem in problems:
        console.print(f"damage  {problem}", style="red", markup=False)
    for each in report.findings:
        _show_finding(each, console)
    segments = report.segments
    states = ", ".join(
        f"{count} {state}"
        for state in ("sealed", "open", "damaged", "unreadable")
        if (count := sum(each.state == state for each in segments))
    )
    damages = sum(each.severity == "damage" for each in report.findings) + len(problems)
    size = format_size(sum(each.size for each in segments))
    console.print(
        f"{directory}: {counted(len(segments), 'segment')} ({states or 'none'}), {size}; "
        f"{counted(report.keys, 'block')}, {report.deleted} deleted, {counted(report.superseded, 'record')} superseded"
        + (f", {counted(report.passed, 'block')} of epochs that have passed" if report.passed else "")
        + f"; {counted(damages, 'damage') if damages else 'no damage'}, "
        f"{counted(len(report.findings) + len(problems) - damages, 'note')}",
        markup=False,
        style="red" if damages else "",
    )


def _show_finding(each: Finding, console: Console) -> None:
    where = each.path if each.offset is None else f"{each.path} at byte {each.offset}"
    console.print(f"{each.severity:7} {where}: {each.what}", markup=False, style="red" * (each.severity == "damage"))
    console.print(f"        then: {each.consequence}", markup=False)
    if each.keys:
        more = f" and {len(each.keys) - KEYS} more (--json names all)" if len(each.keys) > KEYS else ""
        console.print(f"        keys: {' '.join(each.keys[:KEYS])}{more}", markup=False)
    console.print(f"        do: {each.remedy}", markup=False)
