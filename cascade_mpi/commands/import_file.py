"""`cascade import DIR IN.h5`: the blocks of an HDF5 file into a disk tier's directory.

Covers the options, what is printed, and the exit status: 0; 1 if blocks were damaged and left out, or the disk did not
take all; 2 if nothing was changed. Does not cover what is written (see `hdf5.into_directory`). Needs no MPI.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cascade_mpi.commands.export import NAMESPACE_HELP, SALT_HELP, read_salt, tell
from cascade_mpi.config import format_size
from cascade_mpi.counted import counted
from cascade_mpi.errors import CascadeError
from cascade_mpi.job import print_error
from cascade_mpi.launcher import launcher_rank

SCHEMA = 1


def import_file(
    context: typer.Context,
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", readable=False, help="The directory of the disk tier; made if it is not there.",
                       show_default=False),
    ],
    source: Annotated[
        Path, typer.Argument(metavar="IN.h5", readable=False, help="The exported file.", show_default=False)
    ],
    namespace: Annotated[
        str | None, typer.Option(metavar="N", help=NAMESPACE_HELP, show_default="that of the file")
    ] = None,
    salt_file: Annotated[Path | None, typer.Option(metavar="FILE", help=SALT_HELP)] = None,
    rekey: Annotated[
        bool, typer.Option("--rekey", help="Into another namespace: blocks put under a text lose that name.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave blocks alone that are there.")] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="The file system has no locks, and no job uses the directory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:  # fmt: skip
    """Put the blocks of an exported HDF5 file into a disk tier's directory, for the next job that opens it.

    They replace blocks with the same keys. Exit status 1 if damaged blocks were left out or the disk did not take
    all, 2 if nothing was changed.
    """
    context.obj.append(
        lambda: run(
            directory, source, namespace=namespace, salt_file=salt_file, rekey=rekey, keep=keep, alone=alone,
            as_json=as_json,
        )
    )  # fmt: skip


def run(
    directory: Path, source: Path, *, namespace: str | None = None, salt_file: Path | None = None, rekey: bool = False,
    keep: bool = False, alone: bool = False, as_json: bool = False,
) -> int:  # fmt: skip
    """Local. The exit status; only the launcher's rank 0 does anything."""
    if launcher_rank() != 0:
        return 0
    from cascade_mpi.hdf5.into_directory import import_directory

    try:
        done = import_directory(
            directory, source, namespace=namespace, salt=read_salt(salt_file), rekey=rekey, keep=keep,
            locks="none" if alone else "required",
        )  # fmt: skip
    except CascadeError as error:
        print_error(str(error))
        return 2
    if as_json:
        record = {
            "schema": SCHEMA, "directory": str(directory), "file": str(source), "namespace": str(done.wanted),
            "namespace_id": f"{done.wanted.id:016x}", "epoch": done.epoch, "blocks": done.blocks, "bytes": done.bytes,
            "kept": done.kept, "expired": done.expired, "damages": done.damages, "problems": done.problems,
            "failed": done.failed,
        }  # fmt: skip
        print(json.dumps(record, indent=2))
    else:
        print(
            f"{directory}: {counted(done.blocks, 'block')}, {format_size(done.bytes)}, imported into namespace "
            f"{done.wanted} at epoch {done.epoch}; {done.kept} kept, {done.expired} expired"
        )
    tell(done.damages, done.problems, directory)
    if done.failed:
        print_error(f"not all of {source} was imported: {done.failed}; import it again when that is repaired")
    return int(bool(done.damages or done.failed))
