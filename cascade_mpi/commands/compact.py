"""`cascade compact DIR`: rewrite a directory of the disk tier so that it holds the newest blocks and nothing else.

Covers the options, the lock, what is printed, JSON, and the exit status: 0 when it is compact, 1 with damage or if it
could not be finished, 2 if it is no store's directory. Does not cover what goes and how (see `segments.offline`). Needs
no MPI.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascade_mpi.config import format_size
from cascade_mpi.counted import counted
from cascade_mpi.errors import CascadeError
from cascade_mpi.job import print_error
from cascade_mpi.launcher import launcher_rank

if TYPE_CHECKING:
    from rich.console import Console

    from cascade_mpi.segments.offline import Compacted

SCHEMA = 1


def compact(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="The directory of the disk tier.", show_default=False)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing; needs no lock.")
    ] = False,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Go on where the file system keeps no locks: you answer for there being no job."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Make a disk tier's directory as small as it gets, while no job has it open.

    What is left is the newest record of each key; older ones go, and blocks that were deleted, have expired or are of
    an epoch that has passed. Small files are merged.
    Segments with damage stay as they are and are named. A run that was interrupted has lost nothing: run it again. Exit
    status 0 when it is done, 1 with damage or if it could not be finished, 2 if the directory is no store's.
    """
    context.obj.append(lambda: run(directory, dry_run=dry_run, alone=alone, as_json=as_json))


def run(directory: Path, *, dry_run: bool = False, alone: bool = False, as_json: bool = False) -> int:
    """Local. The exit status; only the launcher's rank 0 does anything."""
    if launcher_rank() != 0:
        return 0
    from cascade_mpi.commands.directory import opened
    from cascade_mpi.commands.printing import PipeConsole, reader_may_leave

    with opened(directory) as store:
        if store is None:
            return 2
        if store.problems:
            print_error(f"{directory}: {store.problems[0]}; nothing was changed")
            return 1
        began = time.monotonic()
        try:
            done = _compact(directory, store.identity, dry_run, alone)
        except CascadeError as error:
            print_error(f"{error}; nothing is lost: look at that, and run it again")
            return 1
    seconds = time.monotonic() - began
    with reader_may_leave():
        if as_json:
            print(json.dumps(record(directory, store.identity, done, seconds, dry_run), indent=2))
        else:
            show(directory, done, seconds, dry_run, PipeConsole(soft_wrap=True, highlight=False))
    return int(bool(done.damages or done.problems))


def _compact(directory: Path, store: bytes, dry_run: bool, alone: bool) -> Compacted:
    from cascade_mpi.segments import identity
    from cascade_mpi.segments.files import PosixFiles
    from cascade_mpi.segments.lock import DirectoryLock, Owner
    from cascade_mpi.segments.offline import compact_directory

    now = time.time()
    job = secrets.randbits(64)
    with PosixFiles(directory, read_only=dry_run) as files:
        if dry_run:
            return compact_directory(files, store, now=int(now), run=job, dry_run=True)
        owner = Owner.here(int(now), os.environ)
        with DirectoryLock.take(directory, owner, locks="none" if alone else "required"):
            # Its name is made durable before anything that depends on it, and it is read again: nobody writes now.
            store = identity.ensure(files, store, time.time_ns()).uuid
            return compact_directory(files, store, now=int(now), run=job, created=time.time_ns)


def record(directory: Path, store: bytes, done: Compacted, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Local. What `--json` prints."""
    return {
        "schema": SCHEMA,
        "directory": str(directory),
        "store": store.hex(),
        "dry_run": dry_run,
        "seconds": round(seconds, 3),
        "before": done.before._asdict(),
        "after": done.after._asdict(),
        "blocks": done.blocks,
        "superseded": done.superseded,
        "expired": done.expired,
        "passed": done.passed,
        "deleted": done.deleted,
        "tombstones_kept": done.kept,
        "segments_rewritten": done.rewritten,
        "bytes_copied": done.copied,
        "damages": [each._asdict() for each in done.damages],
        "problems": done.problems,
    }


def show(directory: Path, done: Compacted, seconds: float, dry_run: bool, console: Console) -> None:
    """Local. Print it for people."""
    for each in done.damages:
        where = each.path if each.offset is None else f"{each.path} at byte {each.offset}"
        console.print(f"damage  {where}: {each.what}; the segment stays as it is", markup=False, style="red")
    for problem in done.problems:
        console.print(f"damage  {problem}", markup=False, style="red")
    if done.damages or done.problems:
        console.print(f"        cascade fsck {directory} says what follows from that, and what to do", markup=False)
    if done.kept:
        console.print(
            f"        {counted(done.kept, 'deletion')} kept: what is damaged may hold an older record of such a key. "
            "Move a file that is given up out of the folder and run this again",
            markup=False,
        )
    console.print(
        f"{directory}: {counted(done.blocks, 'block')}; {counted(done.superseded, 'record')} superseded, "
        f"{counted(done.deleted, 'key')} deleted, {counted(done.expired, 'block')} expired"
        + (f", {counted(done.passed, 'block')} of epochs that have passed" if done.passed else ""),
        markup=False,
    )
    before, after = done.before, done.after
    what = "dry run, nothing was changed" if dry_run else f"compacted in {seconds:.1f} s"
    about = "about " if dry_run else ""
    console.print(
        f"{what}: {counted(before.files, 'file')}, {format_size(before.nbytes)} -> "
        f"{about}{counted(after.files, 'file')}, {format_size(after.nbytes)}; "
        f"{counted(done.rewritten, 'segment')} rewritten, {format_size(done.copied)} copied",
        markup=False,
    )
