"""`cascade export DIR OUT.h5`: a namespace of a disk tier's directory as an HDF5 file.

Covers the options, what is printed, and the exit status: 0; 1 if blocks were damaged and left out, or may be missing
because of damage in the directory; 2 if nothing was written. Does not cover what is exported (see
`hdf5.from_directory`). Needs no MPI and changes nothing in the directory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cascade_mpi.config import format_size
from cascade_mpi.counted import counted
from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.job import print_error
from cascade_mpi.launcher import launcher_rank

SCHEMA = 1
_NAMED = 8  # damaged blocks that are named for people; JSON names all
SALT_HELP = "File with the salt of the namespace."
NAMESPACE_HELP = "Its name, as cascade ls shows it, or id: and its number."


def export(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="The directory of the disk tier.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.h5", readable=False, help="The file to be made.", show_default=False)
    ],
    namespace: Annotated[str, typer.Option(metavar="N", help=NAMESPACE_HELP, show_default="default")] = "",
    epoch: Annotated[int | None, typer.Option(min=0, help="Weight epoch.", show_default="the present one")] = None,
    salt_file: Annotated[Path | None, typer.Option(metavar="FILE", help=SALT_HELP)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Write a namespace of a disk tier's directory into a new HDF5 file, which any h5py can read.

    Of a namespace with a salt the keys are written as they are stored, unless the salt is given. Exit status 1 if
    damaged blocks were left out, or may be missing because the directory is damaged, 2 if nothing was written. Better
    while no job writes to the directory.
    """
    context.obj.append(
        lambda: run(
            directory, out, namespace=namespace, epoch=epoch, salt_file=salt_file, overwrite=overwrite, as_json=as_json
        )
    )


def run(
    directory: Path, out: Path, *, namespace: str = "", epoch: int | None = None, salt_file: Path | None = None,
    overwrite: bool = False, as_json: bool = False,
) -> int:  # fmt: skip
    """Local. The exit status; only the launcher's rank 0 does anything."""
    if launcher_rank() != 0:
        return 0
    from cascade_mpi.commands.directory import opened
    from cascade_mpi.hdf5.from_directory import export_directory

    with opened(directory) as store:
        if store is None:
            return 2
        try:
            done = export_directory(
                store.files, store.identity, out, namespace=namespace, epoch=epoch, salt=read_salt(salt_file),
                overwrite=overwrite,
            )  # fmt: skip
        except CascadeError as error:
            print_error(str(error))
            return 2
    problems = [*store.problems, *done.problems]
    if as_json:
        record = {
            "schema": SCHEMA, "directory": str(directory), "file": str(out), "namespace": str(done.wanted),
            "namespace_id": f"{done.origin.namespace_id:016x}", "epoch": done.origin.epoch, "keys": done.origin.keys,
            "blocks": done.blocks, "bytes": done.bytes, "expired": done.expired, "damages": done.damages,
            "problems": problems,
        }  # fmt: skip
        print(json.dumps(record, indent=2))
    else:
        print(
            f"{out}: {counted(done.blocks, 'block')}, {format_size(done.bytes)}, of {done.origin}; "
            f"{done.expired} expired"
        )
        if done.origin.keys == "stored":
            print("Keys are as they are stored: --namespace and --salt-file would give those that programs use.")
    tell(done.damages, problems, directory)
    return int(bool(done.damages or problems))  # a table that is lost does not say whose blocks are missing


def read_salt(path: Path | None) -> bytes:
    """Local. The bytes of a salt's file, without a line's end that an editor has put there; ConfigError."""
    if path is None:
        return b""
    try:
        salt = path.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise ConfigError(f"--salt-file {path}: {error.strerror}") from None
    if not salt:
        raise ConfigError(f"--salt-file {path}: it is empty")
    return salt


def tell(damages: list[str], problems: list[str], directory: Path) -> None:
    """Local. Name damaged blocks, and what is wrong with the directory, on stderr."""
    for text in damages[:_NAMED]:
        print_error(f"left out: {text}")
    if len(damages) > _NAMED:
        print_error(f"left out: {len(damages) - _NAMED} more (--json names all)")
    if problems:
        print_error(f"{counted(len(problems), 'problem')}, the first: {problems[0]}; cascade fsck {directory} explains")
