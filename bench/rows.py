"""The rows of a benchmark: their fields, their goals, the table for people and the list for programs.

Covers what a row says and how rows are shown. Does not measure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
_SHOWN = ("concurrent", "hot", "batch", "exact", "key", "checksum", "threads", "spread")


class Goal(NamedTuple):
    """What a row is to reach: its `of` ("ratio" or "value") is at least or at most `bound`."""

    of: str
    at: str  # ">=" or "<="
    bound: float

    def met(self, row: Row) -> bool:
        """Local. Does the row reach it?"""
        return bool(row[self.of] >= self.bound if self.at == ">=" else row[self.of] <= self.bound)

    def text(self, unit: str) -> str:
        """Local. For people: "ratio >= 0.95"."""
        return f"{self.of} {self.at} {self.bound:g}" + (f" {unit}" if self.of == "value" else "")


def make(
    case: str,
    block_bytes: int,
    value: float,
    limit: float,
    unit: str,
    goal: Goal | None = None,
    **extra: Any,
) -> Row:
    """Local. A measured row. Rates: more is better; times (unit "us"): less is better."""
    row: Row = {
        "case": case, "block_bytes": block_bytes, "value": value, "limit": limit, "ratio": value / limit, "unit": unit,
    }  # fmt: skip
    row |= {"goal": goal.text(unit) if goal else None, "goal_met": goal.met(row) if goal else None}
    return row | extra


def absent(case: str, reason: str) -> Row:
    """Local. A case that this run cannot measure; it is listed so that nobody takes it for forgotten."""
    nothing = dict.fromkeys(("block_bytes", "value", "limit", "ratio", "unit", "goal", "goal_met"))
    return {"case": case, **nothing, "not_in_this_run": reason}


def show(rows: Sequence[Row], machine: Mapping[str, Any], title: str) -> None:
    """Local. Print the machine and the rows."""
    console = Console(width=None if Console().is_terminal else 180)
    about = Table(title="Machine", show_header=False)
    for key, value in machine.items():
        about.add_row(key, str(value))
    console.print(about)
    table = Table(title=title)
    for name in (
        "case",
        "block",
        "variant",
        "store",
        "limit",
        "unit",
        "ratio",
        "goal",
        "met",
        "hits",
        "ok",
        "limit is",
    ):
        table.add_column(name, justify="right" if name in ("block", "store", "limit", "ratio") else "left")
    for row in rows:
        if "not_in_this_run" in row:
            table.add_row(row["case"], *["-"] * 10, f"not in this run: {row['not_in_this_run']}")
            continue
        variant = ", ".join(f"{key} {row[key]}" for key in _SHOWN if row.get(key) not in (None, False))
        met = {None: "", True: "yes", False: "[red]no[/red]"}[row["goal_met"]]
        right = "yes" if row.get("contents_ok") else "[red]NO[/red]"
        table.add_row(
            row["case"], _size(row["block_bytes"]), variant, _number(row["value"]), _number(row["limit"]), row["unit"],
            f"{row['ratio']:.3f}", row["goal"] or "", met, _share(row.get("hit_rate")), right,
            str(row.get("limit_what", "")),
        )  # fmt: skip
    console.print(table)
    goals = [row["goal_met"] for row in rows if row["goal_met"] is not None]
    console.print(f"{sum(goals)} of {len(goals)} goals met; value, limit: medians; 'ok': contents were compared")


def finish(measured: Sequence[Row], machine: Mapping[str, Any], title: str, json_file: Path | None, rank: int) -> int:
    """Local. Rank 0 shows and writes the rows that all ranks have: the exit status, 1 if contents were wrong."""
    if rank == 0:
        show(measured, machine, title)
        if json_file is not None:
            write(measured, json_file)
    return 0 if all(row.get("contents_ok", True) for row in measured) else 1


def write(rows: Sequence[Row], path: Path) -> None:
    """Local. One JSON list, a row a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes % (1 << 20) == 0 else f"{nbytes / 1024:g} KiB"


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.4g}"


def _number(x: float) -> str:
    return f"{x:.3f}" if x < 10 else f"{x:.2f}" if x < 100 else f"{x:.1f}"
