"""`cascade ls DIR`: what a directory of the disk tier holds.

Covers the options, the tables and JSON, and the exit status: 0, also with damage, which is told of; 2 if it is no
store's directory. Does not cover the sums (see `segments.listing`). Needs no MPI, reads no payload, changes nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascade_mpi.config import format_size
from cascade_mpi.counted import counted
from cascade_mpi.job import print_error
from cascade_mpi.launcher import launcher_rank

if TYPE_CHECKING:
    from rich.console import Console

    from cascade_mpi.segments.listing import Listing

SCHEMA = 1
_PIPE_WIDTH = 160


def ls(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="The directory of the disk tier.", show_default=False)
    ],
    blocks: Annotated[bool, typer.Option("--blocks", help="List every block too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """List what a disk tier's directory holds: segments, namespaces and checkpoints, and what of it is live.

    Reads footers only; segments without one are scanned.
    """
    context.obj.append(lambda: run(directory, blocks=blocks, as_json=as_json))


def run(directory: Path, *, blocks: bool = False, as_json: bool = False) -> int:
    """Local. The exit status; only the launcher's rank 0 does anything."""
    if launcher_rank() != 0:
        return 0
    from cascade_mpi.commands.directory import opened
    from cascade_mpi.commands.printing import PipeConsole, reader_may_leave
    from cascade_mpi.segments import names
    from cascade_mpi.segments.listing import list_store

    with opened(directory) as store:
        if store is None:
            return 2
        listing = list_store(store.files, store.identity)
        known = names.read(store.files)
    problems = [*store.problems, *known.problems, *listing.problems]
    shown = {number: str(each) for number, each in known.namespaces.items()}
    with reader_may_leave():
        if as_json:
            print(json.dumps(record(directory, store.identity, listing, problems, blocks, shown), indent=2))
        else:
            show(
                listing, blocks, shown, PipeConsole(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
            )
    if problems and not as_json:
        print_error(
            f"{counted(len(problems), 'problem')}, the first: {problems[0]}; cascade fsck {directory} explains them"
        )
    return 0


def record(
    directory: Path, store: bytes, listing: Listing, problems: list[str], blocks: bool, names: Mapping[int, str]
) -> dict[str, Any]:  # fmt: skip
    """Local. What `--json` prints. Numbers of 64 bits that are no counts are written in hexadecimal."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "directory": str(directory),
        "store": store.hex(),
        "blocks": listing.blocks,
        "payload_bytes": listing.payload_bytes,
        "tombstones": listing.tombstones,
        "superseded": listing.superseded,
        "passed": listing.passed,
        "checkpoints": [each._asdict() for each in listing.checkpoints],
        "problems": problems,
        "segments": [
            each._asdict() | {"segment": f"{each.segment:016x}", "run": f"{each.run:016x}"} for each in listing.segments
        ],
        "namespaces": [
            each._asdict() | {"namespace": f"{each.namespace:016x}", "name": names.get(each.namespace)}
            for each in listing.namespaces
        ],
    }
    if blocks:
        found["each"] = [
            row._asdict() | {"namespace": f"{row.namespace:016x}", "segment": f"{row.segment:016x}"}
            for row in listing.rows()
        ]
    return found


def show(listing: Listing, blocks: bool, names: Mapping[int, str], console: Console) -> None:
    """Local. Print the listing for people."""
    from rich.text import Text

    table = _table("segment", "state", "size", "records", "deletions", "live blocks", "live bytes")
    for segment in listing.segments:
        table.add_row(
            f"{segment.segment:x}", segment.state, format_size(segment.size),
            str(segment.records), str(segment.tombstones), str(segment.live), format_size(segment.live_bytes),
        )  # fmt: skip
    console.print(table)
    table = _table("namespace", "name", "epoch", "blocks", "bytes", "protected")
    for space in listing.namespaces:
        table.add_row(
            f"{space.namespace:016x}" if space.namespace else "default", Text(names.get(space.namespace, "")),
            f"{space.epoch}{' (passed)' * space.passed}", str(space.blocks), format_size(space.payload_bytes),
            str(space.protected),
        )  # fmt: skip
    console.print(table)
    if blocks:
        table = _table("key", "namespace", "epoch", "bytes", "expires", "protected", "segment", "unit")
        for row in listing.rows():
            table.add_row(
                row.key, f"{row.namespace:016x}" if row.namespace else "default", str(row.epoch), str(row.nbytes),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.expiry)) if row.expiry else "",
                "yes" if row.protected else "", f"{row.segment:x}", str(row.unit),
            )  # fmt: skip
        console.print(table)
    if listing.checkpoints:
        table = _table("checkpoint", "made", "blocks", "bytes", "ranks")
        for each in listing.checkpoints:
            table.add_row(
                each.tag, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.time / 1e9)), str(each.blocks),
                format_size(each.bytes), str(each.ranks),
            )  # fmt: skip
        console.print(table)
    console.print(
        f"{counted(listing.blocks, 'block')}, {format_size(listing.payload_bytes)}; {listing.tombstones} deleted, "
        f"{counted(listing.superseded, 'record')} superseded"
        + (f", {counted(listing.passed, 'block')} of epochs that have passed" if listing.passed else "")
    )


def _table(*names: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    left = ("segment", "state", "namespace", "name", "key", "expires", "protected", "checkpoint", "made")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right")
    return table
