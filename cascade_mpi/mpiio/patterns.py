"""Two ways for all ranks to write one file, and which of them pays.

Covers the data of a segment: every rank's bytes to their places, durable when it returns. Does not cover the layout
(see `plan`), the footer and names (see `shared`).

- "own": each rank writes its own pages with its own calls, past the page cache where that is possible. No rank waits
  for another one.
- "together": `Write_at_all`: ranks hand their bytes to a few aggregators, which write whole stripes. It copies
  everything once more, so it pays where the ranks' parts are smaller than a stripe and a lock of a parallel file system
  would go to and fro between them.

A rank that fails in the middle of a collective write leaves ROMIO's others waiting for its next exchange, for ever. So
each call writes what is one exchange: one buffer for each aggregator; and a rank that has failed takes part, with
nothing, to the end.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from mpi4py import MPI

from cascade_mpi.errors import DiskError
from cascade_mpi.mpiio.hints import STRIPE_BYTES, info_of, taken_of
from cascade_mpi.mpiio.part import PartBytes
from cascade_mpi.mpiio.plan import Part, own_range
from cascade_mpi.mpiio.refusals import as_os_error
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import PAGE
from cascade_mpi.segments.posix_file import PosixFile

Collective = Literal["auto", "on", "off"]
WRITE_BYTES = 16 << 20  # past the page cache 1 MiB at a time takes a third more time
AHEAD = 1  # files of a rank that are written and not synced yet


@dataclass
class Job:
    """What this rank brings to one segment."""

    path: str
    part: Part
    bytes: PartBytes
    tail: list[tuple[int, memoryview]] = field(default_factory=list)  # of other ranks, on the last page of it

    @property
    def start(self) -> int:
        """Local. Where its bytes begin: those of the first rank with the header."""
        return 0 if self.part.start == PAGE else self.part.start


def choose(collective: Collective, nodes: int, parts: Sequence[Part]) -> tuple[bool, str]:
    """Local. Whether to write together, the same on all ranks, and why."""
    if collective != "auto":
        return collective == "on", f'disk_collective="{collective}"'
    if nodes == 1:
        return False, "one node: a collective write would only copy"
    mean = sum(part.end - part.start for part in parts) // max(len(parts), 1)
    if mean < STRIPE_BYTES:
        return True, f"a rank's part of a segment has {mean:,} bytes on average, less than a stripe"
    return False, f"a rank's part of a segment has {mean:,} bytes on average, a stripe or more"


def write_own(files: PosixFiles, jobs: Sequence[Job], step: Callable[[str], None]) -> None:
    """Local. Write and sync this rank's pages of the segments. 1 open, 1 fsync and 1 close for each segment."""
    written: deque[PosixFile] = deque()
    try:
        for job in jobs:
            start, end = own_range(job.part)
            if start == end:
                continue  # others write the page that it is on
            written.append(files.join(job.path))
            for offset, buffers in gathered(job.bytes.runs(start, end)):
                written[-1].write_at(offset, *buffers)
            for offset, buffer in job.tail:
                written[-1].write_at(offset, buffer)
            if len(written) > AHEAD:
                _synced(written)
        step("data")
        while written:
            _synced(written)
    finally:
        for file in written:
            with suppress(DiskError):
                file.close()


def gathered(runs: Iterable[tuple[int, memoryview]]) -> Iterator[tuple[int, list[memoryview]]]:
    """Local. Pieces that follow each other, put together for writes of 16 MiB and at most one piece more."""
    begin, nbytes, pieces = 0, 0, list[memoryview]()
    for offset, piece in runs:
        if pieces and (offset != begin + nbytes or nbytes >= WRITE_BYTES):
            yield begin, pieces
            pieces = []
        if not pieces:
            begin, nbytes = offset, 0
        pieces.append(piece)
        nbytes += piece.nbytes
    if pieces:
        yield begin, pieces


def write_collectively(
    comm: MPI.Intracomm, files: PosixFiles, path: str, end: int, job: Job | None, hints: dict[str, str],
    step: Callable[[str], None],
) -> tuple[BaseException | None, dict[str, str]]:  # fmt: skip
    """Collective. Write and sync one segment; what went wrong on this rank, and the hints taken.

    Never raises what only one rank meets. 1 File.Open, 1 Write_at_all for each buffer of all aggregators, 1 Sync and
    1 fsync, 1 Close.
    """
    error: BaseException | None = None
    taken: dict[str, str] = {}
    own: PosixFile | None = None
    try:
        # Before the first write: the system tells errors of writing back only to those who had the file open. And MPI's
        # sync may sync nothing: ROMIO leaves its fsync out when it thinks that nothing was written.
        own = files.join(path, direct=False)
    except BaseException as met:
        error = met
    try:
        with info_of(hints) as info:
            file = MPI.File.Open(comm, str(files.root / path), MPI.MODE_WRONLY, info)
    except MPI.Exception as met:  # on all ranks, or the others cannot go on: they find out in the next step
        error = error or files.explain(as_os_error(met), "opening it together", path)
        file = MPI.FILE_NULL
    opened = int(comm.allreduce(int(file != MPI.FILE_NULL)))
    if opened < comm.size:  # a handle that is not open everywhere cannot be closed: it waits for all
        error = error or DiskError(
            errno.EIO, f"{path}: {comm.size - opened} of {comm.size} ranks could not open it", path
        )
    else:
        taken = taken_of(file)
        window = comm.bcast(window_bytes(taken, hints))
        for at in range(0, end, window):
            error = _round(files, file, path, at, at + window, job, error)
        error = _then(error, lambda: step("data"))
        for what, act in (("syncing it together", file.Sync), ("closing it together", file.Close)):
            try:
                act()
            except MPI.Exception as met:
                error = error or files.explain(as_os_error(met), what, path)
    if own is not None:
        if error is None:
            error = _then(error, own.sync)
        with suppress(DiskError):
            own.close()
    return error, taken


def window_bytes(taken: dict[str, str], asked: dict[str, str]) -> int:
    """Local. How much one collective call may write to be one exchange: a buffer, or stripe, for each aggregator."""

    def value(name: str, otherwise: int) -> int:
        text = taken.get(name) or asked.get(name) or ""
        return int(text) if text.isdigit() and int(text) > 0 else otherwise

    buffer = min(value("cb_buffer_size", STRIPE_BYTES), value("striping_unit", STRIPE_BYTES))
    return buffer * value("cb_nodes", 1)


def _round(
    files: PosixFiles, file: MPI.File, path: str, low: int, high: int, job: Job | None, error: BaseException | None
) -> BaseException | None:
    """Collective. Write what this rank has between two offsets, nothing if it has failed; its first error."""
    start, buffer = low, memoryview(b"")
    if job is not None and error is None:
        first = max(low, job.start)
        last = min(high, job.part.end)
        if first < last:
            try:
                start, buffer = first, job.bytes.take(first, last)
            except BaseException as met:
                error = met
    status = MPI.Status()
    try:
        file.Write_at_all(start, [buffer, buffer.nbytes, MPI.BYTE], status)
        wrote = int(status.Get_count(MPI.BYTE))
        if wrote != buffer.nbytes and error is None:
            text = f"{path}: {wrote:,} of {buffer.nbytes:,} bytes were written at offset {start:,}; is the disk full?"
            error = DiskError(errno.EIO, text, path)
    except MPI.Exception as met:
        doing = f"writing {buffer.nbytes:,} bytes at offset {start:,} together"
        error = error or files.explain(as_os_error(met), doing, path)
    return error


def _then(error: BaseException | None, act: Callable[[], object]) -> BaseException | None:
    if error is not None:
        return error
    try:
        act()
    except BaseException as met:
        return met
    return None


def _synced(written: deque[PosixFile]) -> None:
    written[0].sync()
    written.popleft().close()
