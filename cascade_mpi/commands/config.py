"""`cascade config`: the settings in effect, and where each of them came from.

Covers the options, the table, JSON, and a TOML file that reads back. Does not cover the sources (see
`settings`). Starts no MPI; exit status 2 when a setting is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade_mpi.commands.pairs import parse_pairs
from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.launcher import launcher_rank

if TYPE_CHECKING:
    from cascade_mpi.settings import Effective

_PIPE_WIDTH = 160  # columns of a table that nobody looks at in a terminal


def config(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Read this TOML file, not the one of CASCADE_CONFIG."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set one; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print a TOML file that --config reads; defaults are comments.")
    ] = False,
) -> None:
    """Print the settings that a store would be opened with here, and where each value came from.

    `cascade workload` takes them too, but sizes its arenas by the trace where dram_bytes is the default.
    """
    from cascade_mpi.settings import resolve

    try:
        if as_json and as_toml:
            raise ConfigError("--json and --toml are both given: give one of them")
        effective = resolve(file, options=parse_pairs("--set", settings or []))
    except CascadeError as error:
        raise typer.BadParameter(str(error)) from None
    context.obj.append(lambda: show(effective, "json" if as_json else "toml" if as_toml else "table"))


def show(effective: Effective, form: str) -> int:
    """Local. Print the settings as "json", "toml" or a "table", on the launcher's rank 0; exit status 0."""
    from cascade_mpi.settings import as_record, as_toml

    if launcher_rank() != 0:
        return 0
    if form == "toml":
        sys.stdout.write(as_toml(effective))
    elif form == "json":
        print(json.dumps(as_record(effective), indent=2))
    else:
        _table(
            [
                (name, *(str(cell) for cell in row.values()))
                for name, row in as_record(effective, for_people=True).items()
            ]
        )
    return 0


def _table(rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    table = Table("setting", "value", "from", "meaning", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell or '""') for cell in row))
    console.print(table)
