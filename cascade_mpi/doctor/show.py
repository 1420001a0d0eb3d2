"""The doctor's findings for people, as one table, and for programs, as one JSON object.

The JSON object: `schema` (1), `cascade` (version), `status` ("ok", "warning" or "problem": the worst), `mpi` (was MPI
asked), `ranks` (how many reports), `hosts` (their names), and `findings`: a list of objects with `name`, `status`,
`found`, `remedy` ("" where nothing is to be done), `ranks` (numbers) and `hosts` (names). New members may be added;
those named here stay as long as `schema` is 1. `name` is stable, `found` and `remedy` are texts for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascade_mpi import __version__
from cascade_mpi.doctor.cpus import format_list
from cascade_mpi.doctor.finding import count, worst
from cascade_mpi.doctor.merge import Row

SCHEMA = 1
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
WIDTH = 120  # where there is no terminal
_OTHERS = 3  # so many different good findings of a check are shown


def record(rows: Sequence[Row], *, mpi: bool) -> dict[str, Any]:
    """Local. What `--json` prints."""
    return {
        "schema": SCHEMA,
        "cascade": __version__,
        "status": worst(row.finding for row in rows),
        "mpi": mpi,
        "ranks": len({rank for row in rows for rank in row.ranks}),
        "hosts": sorted({host for row in rows for host in row.hosts}),
        "findings": [
            {
                "name": row.finding.name,
                "status": row.finding.status,
                "found": row.finding.found,
                "remedy": row.finding.remedy,
                "ranks": list(row.ranks),
                "hosts": list(row.hosts),
            }
            for row in rows
        ],
    }


def show(rows: Sequence[Row], console: Console) -> None:
    """Local. Print the table and a last line that counts."""
    ranks = sorted({rank for row in rows for rank in row.ranks})
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    for options in ({}, {"no_wrap": True}, {"overflow": "fold"}, {"overflow": "fold"})[: 3 + (len(ranks) > 1)]:
        table.add_column(**options)
    seen: dict[str, int] = {}
    for row in rows:
        finding = row.finding
        if finding.status == "ok":
            seen[finding.name] = seen.get(finding.name, 0) + 1
            if seen[finding.name] > _OTHERS:
                continue
        body = Text(finding.found)
        if finding.remedy:
            body.append(f"\n-> {finding.remedy}", style="bold")
        where = [] if len(ranks) < 2 else [_where(row, len(ranks))]
        table.add_row(Text(finding.status, style=_STYLES[finding.status]), finding.name, body, *where)
    console.print(table)
    more = sum(max(times - _OTHERS, 0) for times in seen.values())
    counts = {status: sum(row.finding.status == status for row in rows) for status in _STYLES}
    line = f"{count(counts['problem'], 'problem')}, {count(counts['warning'], 'warning')}, {counts['ok']} ok"
    console.print(line + (f" ({more} that differ between ranks are only in --json)" if more else ""))


def _where(row: Row, ranks: int) -> str:
    if len(row.ranks) == ranks:
        return "all ranks"
    numbers = f"rank{'' if len(row.ranks) == 1 else 's'} {format_list(row.ranks)}"
    return f"{numbers} ({row.hosts[0]})" if len(row.hosts) == 1 else numbers
