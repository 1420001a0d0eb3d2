"""`cascade doctor`: what this machine, its MPI and its launcher offer, and what to do about the rest.

Covers the options and the exit status: 0, also with warnings; 1 with a problem, on every rank that knows of it.
Does not cover the checks (see `cascade_mpi.doctor`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cascade_mpi.launcher import local_size


def doctor(
    context: typer.Context,
    mpi: Annotated[bool, typer.Option("--mpi/--no-mpi", help="Ask MPI, in a process of its own.")] = True,
    disk: Annotated[Path | None, typer.Option(metavar="DIR", help="Check this directory for the disk tier.")] = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long MPI may take.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Check MPI, shared memory, limits, CPUs, GPU, HDF5, disk and launcher, and say what to do.

    Without a launcher it looks at this node; started by mpiexec or srun it looks at the whole job and opens a small
    store on it.
    """
    context.obj.append(lambda: run(mpi=mpi, disk=disk, timeout=timeout, as_json=as_json))


def run(*, mpi: bool = True, disk: Path | None = None, timeout: float = 120, as_json: bool = False) -> int:
    """Collective under a launcher. The exit status; one process prints."""
    from cascade_mpi.commands.printing import PipeConsole, reader_may_leave
    from cascade_mpi.doctor.examine import examine
    from cascade_mpi.doctor.finding import worst
    from cascade_mpi.doctor.host import Host
    from cascade_mpi.doctor.merge import merge
    from cascade_mpi.doctor.show import WIDTH, record, show

    examined = examine(Host(disk=disk, ranks=local_size() or 1), mpi=mpi, seconds=timeout)
    rows = merge(examined.reports)
    if examined.speaks:
        with reader_may_leave():
            if as_json:
                print(json.dumps(record(rows, mpi=mpi), indent=2))
            else:
                show(rows, PipeConsole(width=None if sys.stdout.isatty() else WIDTH, highlight=False))
    return int(worst(row.finding for row in rows) == "problem")
