"""Whether all ranks see one directory, and what one rank is writing there: reads of open segments need it.

Covers one file of rank 0 that grows while the others have it open. Does not cover speed, nor what one node can find out
by itself (see `disk`).

A block that has just left memory is read by other ranks from a file that its writer has open and has not synced. POSIX
promises that to processes of one node. Parallel file systems keep the promise between nodes; NFS does not: a client
asks for the size of a file every few seconds, and writes when a file is closed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cascade_mpi.doctor.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from mpi4py import MPI

_PAGE = 4096


class Seen(NamedTuple):
    """What one rank saw of the file: "" or what was wrong, when it was new, when it had grown, and after a sync."""

    host: str
    new: str
    grown: str
    synced: str


def coherence(comm: MPI.Intracomm, folder: Path) -> Iterator[Finding]:
    """Collective. The same finding on all ranks; the file is removed afterwards. 6 Barriers, 2 bcasts, 1 allgather."""
    from mpi4py import MPI

    name = comm.bcast(f".cascade-doctor-{secrets.token_hex(8)}")
    path, handle, problem_here = folder / name, -1, ""
    if comm.rank == 0:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except OSError as error:
            problem_here = str(error.strerror)
    if not comm.bcast(problem_here):  # else `disk access` has said so
        try:
            seen = comm.allgather(_look(comm, path, handle, MPI.Get_processor_name()))
        finally:
            if comm.rank == 0:
                os.close(handle)
                with suppress(OSError):
                    path.unlink()
        yield explain(seen)


def _look(comm: MPI.Intracomm, path: Path, handle: int, host: str) -> Seen:
    """Collective. Rank 0 writes a page, a second one, and syncs; the others look after each."""
    outcomes: list[str] = []
    mine = handle
    for step in range(3):
        if comm.rank == 0:
            with suppress(OSError):  # the others see what is not there
                if step < 2:
                    os.pwrite(handle, _page(step), step * _PAGE)
                else:
                    os.fsync(handle)
        comm.Barrier()
        try:
            if mine < 0:
                mine = os.open(path, os.O_RDONLY)
            outcomes.append(_compare(mine, min(step + 1, 2)))
        except OSError as error:
            outcomes.append(str(error.strerror))
        comm.Barrier()  # nobody writes before all have looked
    if mine >= 0 and comm.rank:
        os.close(mine)
    return Seen(host, *outcomes)


def _compare(handle: int, pages: int) -> str:
    size = os.fstat(handle).st_size
    if size < pages * _PAGE:
        return f"{size} bytes, not {pages * _PAGE}"
    for page in range(pages):
        if os.pread(handle, _PAGE, page * _PAGE) != _page(page):
            return f"other bytes in page {page}"
    return ""


def _page(number: int) -> bytes:
    return bytes([number + 1]) * _PAGE


def explain(seen: list[Seen]) -> Finding:
    """Local. What the ranks have seen, by rank, as one line."""
    if not any(each.new or each.grown for each in seen):
        return ok(
            "files of other ranks", f"what a rank writes, {len(seen)} ranks read at once, while it has the file open"
        )
    late = [rank for rank, each in enumerate(seen) if each.new or each.grown]
    never = [rank for rank in late if seen[rank].synced]
    if never:
        each = seen[never[0]]
        return problem(
            "files of other ranks",
            f"{len(never)} of {len(seen)} ranks do not see what rank 0 writes, the first is rank {never[0]} on "
            f"{each.host}: {each.synced}", "name a directory that is the same one on all nodes",
        )  # fmt: skip
    each = seen[late[0]]
    return warning(
        "files of other ranks",
        f"{len(late)} of {len(seen)} ranks see what rank 0 writes only after it was synced, the first is rank "
        f"{late[0]} on {each.host}: {each.new or each.grown}. Blocks that have just left memory are misses there",
        "use a parallel file system (Lustre, GPFS); NFS with the mount option noac",
    )  # fmt: skip
