"""`cascade cleanup`: remove the shared memory that killed jobs left on this node.

Covers what is shown, who is asked, and the exit status: 0, also when files were only shown; 1 if a leftover
could not be removed. Does not cover which files are leftovers (see `shm_files`). Needs no MPI.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cascade_mpi import shm_files
from cascade_mpi.config import format_size
from cascade_mpi.job import print_error
from cascade_mpi.launcher import launch, local_rank

SCHEMA = 1


def cleanup(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    min_age: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Keep younger files: a job may be about to map them.")
    ] = shm_files.MIN_AGE_S,
    alone: Annotated[
        bool, typer.Option("--alone", help="In a container: nothing outside of it uses this /dev/shm.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Show the shared memory of killed MPI jobs in /dev/shm that no living process uses, and remove it.

    Without a terminal and without --yes it is only shown. Run it on each node: srun -N4 --ntasks-per-node=1
    --mpi=none python -m cascade_mpi cleanup --yes
    """
    context.obj.append(lambda: run(yes=yes, min_age=min_age, alone=alone, as_json=as_json))


def run(
    *,
    yes: bool = False,
    min_age: float = shm_files.MIN_AGE_S,
    alone: bool = False,
    as_json: bool = False,
    root: str | Path = "/",
    ask: bool | None = None,
) -> int:
    """Local. The exit status. `ask`: whether there is somebody to ask; None: on a terminal, and not for JSON."""
    if launch() is not None and local_rank():  # one process a node is enough
        return 0
    found = shm_files.survey(root, min_age=min_age, alone=alone)
    leftovers = [file for file in found if file.state == "leftover"]
    if not as_json:
        _show(found)
    remove = yes
    if leftovers and not yes and not as_json:
        if sys.stdin.isatty() and sys.stdout.isatty() if ask is None else ask:
            remove = typer.confirm(f"Remove {_total(leftovers)}?", default=False)
        else:
            typer.echo(f"Nothing was removed. To remove {_total(leftovers)}: cascade cleanup --yes")
    kept = {}
    if remove:
        kept = {file.path: shm_files.remove(file, root, min_age=min_age, alone=alone) for file in leftovers}
        removed = [file for file in leftovers if not kept[file.path]]
        for file in leftovers:
            if kept[file.path]:
                print_error(f"{file.path} was kept: {kept[file.path]}")
        if not as_json and leftovers:
            typer.echo(f"Removed {_total(removed)}.")
    if as_json:
        typer.echo(json.dumps(record(found, kept), indent=2))
    return int(any(kept.values()))


def record(found: Sequence[shm_files.SharedFile], kept: Mapping[Path, str]) -> dict[str, Any]:
    """Local. What `--json` prints; `kept` has an entry for each file that was to be removed, "" if it was."""
    files = [
        {
            "file": str(file.path),
            "library": file.library,
            "bytes": file.bytes,
            "age_s": round(file.age_s, 1),
            "owner": file.owner,
            "state": file.state,
            "removed": kept.get(file.path) == "",
            "reason": kept.get(file.path) or file.reason,
        }
        for file in found
    ]
    return {"schema": SCHEMA, "host": socket.gethostname(), "files": files}


def _show(found: Sequence[shm_files.SharedFile]) -> None:
    if not found:
        typer.echo("No shared memory of MPI jobs in /dev/shm.")
        return
    table = Table(title=f"shared memory of MPI jobs on {socket.gethostname()}", title_justify="left")
    table.add_column("file", overflow="fold")
    for name, justify in (("size", "right"), ("age", "right"), ("owner", "left"), ("", "left"), ("why", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich's literal
    for file in found:
        verdict = "leftover" if file.state == "leftover" else "kept"
        table.add_row(
            file.path.name, format_size(file.bytes), _age(file.age_s), file.owner, verdict, file.reason,
            style="yellow" if verdict == "leftover" else "",
        )  # fmt: skip
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160).print(table)


def _total(files: Sequence[shm_files.SharedFile]) -> str:
    return f"{len(files)} file{'' if len(files) == 1 else 's'}, {format_size(sum(file.bytes for file in files))}"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
