"""The command line: `cascade workload ...`, the same as `python -m cascade_mpi workload ...`.

Covers who prints under an MPI launcher, and the list of commands. Does not cover the commands (see
`commands`). Importing it, `--help` and wrong options do not start MPI.

Every rank of a job parses the same command line; only rank 0 may talk about it. Before MPI is up a
process knows its rank from the launcher's environment.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from cascade_mpi import __version__, log
from cascade_mpi.commands.cleanup import cleanup
from cascade_mpi.commands.compact import compact
from cascade_mpi.commands.config import config
from cascade_mpi.commands.doctor import doctor
from cascade_mpi.commands.export import export
from cascade_mpi.commands.fsck import fsck
from cascade_mpi.commands.import_file import import_file
from cascade_mpi.commands.ls import ls
from cascade_mpi.commands.workload import workload
from cascade_mpi.errors import ConfigError
from cascade_mpi.job import let_rank_0_speak, print_error
from cascade_mpi.launcher import launcher_rank

Job = Callable[[], int]

app = typer.Typer(
    name="cascade",
    help="Cascade: a distributed KV-cache block store over MPI.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse on every rank, quietly on all but the first; then run the command, if it was a good one.

    Collective once the command line was accepted; returns the exit status.
    """
    job, status = parse(app, "cascade", arguments)
    if job is None:
        if status:
            let_rank_0_speak()
        return status
    try:
        log.read(os.environ)  # the same on all ranks; a store sets it up
    except ConfigError as error:
        if launcher_rank() == 0:
            print_error(str(error))
        let_rank_0_speak()
        return 2
    return job()


def parse(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> tuple[Job | None, int]:
    """Local. The job that a command line (None: this process's) asks for, or None and the exit status.

    Only the launcher's rank 0 prints help and complaints; a command appends its job to `context.obj`.
    """
    jobs: list[Job] = []
    status = 0
    with contextlib.ExitStack() as stack:
        if launcher_rank() != 0:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name=name, obj=jobs)
        except SystemExit as end:  # how typer always ends
            status = end.code if isinstance(end.code, int) else 1
    return (jobs[0] if jobs and status == 0 else None), status


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cascade {__version__}")
        raise typer.Exit


@app.callback()
def _cascade(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Cascade: a distributed KV-cache block store over MPI."""


app.command()(workload)
app.command()(config)
app.command()(cleanup)
app.command()(doctor)
app.command()(fsck)
app.command()(ls)
app.command()(compact)
app.command()(export)
app.command(name="import")(import_file)
