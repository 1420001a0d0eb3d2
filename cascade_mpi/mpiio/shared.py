"""Segments that all ranks write together: every rank's records, durable on all ranks or refused on all.

Covers the order of steps, what ranks exchange between them, and what is left after an error. Does not cover the layout
(see `plan`), how bytes get to the disk (see `patterns`), nor which records are written when (the disk tier).

The records of all ranks, in the order of ranks, are placed as one log would place them (`segments.log`). Then, with an
agreement of all ranks after each line:

1. what every rank brought is looked at; rank 0 draws the numbers of the segments; the folder is there;
2. the files are created, each by its *keeper*, the first rank that has a part of it;
3. data is written and synced;
4. the keepers have the tables of all parts: footer, sync, new name, sync of the folder.

What fails on one rank is an error on all of them, and nothing of the call counts as durable: the keepers remove its
files. Where they cannot, the error says so: such records may be found after a restart, as those of `NotDurableError`
may, so a later delete of one of these keys needs its tombstone. The same holds for a job that was killed before the
last agreement.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.mpiio.agreement import agreed, settle
from cascade_mpi.mpiio.hints import compared, shared_hints, taken_of
from cascade_mpi.mpiio.new_file import open_new
from cascade_mpi.mpiio.part import PartBytes
from cascade_mpi.mpiio.patterns import Collective, Job, choose, write_collectively, write_own
from cascade_mpi.mpiio.plan import Cursor, Part, Placed, by_segment, fragments, place
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import (
    ENTRY,
    FOLDER,
    MAX_SEGMENT_BYTES,
    MIN_SEGMENT_BYTES,
    PAGE,
    UNIT,
    Location,
    Place,
    lead,
    open_name,
    sealed_name,
)
from cascade_mpi.segments.log import checked
from cascade_mpi.segments.pages import SegmentHeader, encode_footer, encode_header, entry_of
from cascade_mpi.segments.records import Record, encode_record, header_check

STEPS = ("created", "data", "data-synced", "footer", "footer-synced", "renamed", "folder-synced")
Payload = bytes | bytearray | memoryview
_TAGS = 32767  # the least that every MPI has
_log = logging.getLogger("cascade.mpiio")


def _no_step(_: str) -> None:
    """Nothing is to be done after a step."""


class SharedSegments:
    """What the ranks of a communicator write together. Every rank gives the same settings.

    files
        The store's directory, the same one on all ranks.
    store, run, segment_bytes, writer, now
        As for `SegmentLog`; `writer` is the rank in the headers.
    numbers
        Numbers for new segments, never used in this directory before: those of rank 0 are taken.
    collective
        "on": Write_at_all; "off": each rank writes its own pages; "auto": what pays (see `patterns`).
    hints
        For the files; None: those of `hints.shared_hints`.
    step
        Called with each name of `STEPS` when this rank has taken that step: after "created", "footer", "footer-synced"
        and "renamed" by the keepers of segments, for each of them; after the others once a call.
    """

    def __init__(
        self, comm: MPI.Intracomm, files: PosixFiles, store: bytes, numbers: Iterator[int], run: int,
        segment_bytes: int = MAX_SEGMENT_BYTES, *, collective: Collective = "auto",
        hints: Mapping[str, str] | None = None, writer: int = 0, now: Callable[[], int] = int,
        step: Callable[[str], None] = _no_step,
    ) -> None:  # fmt: skip
        """Collective. 1 Dup, 1 Split_type."""
        if not MIN_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(f"segment_bytes is {segment_bytes}: it must be {MIN_SEGMENT_BYTES}..{MAX_SEGMENT_BYTES}")
        self._comm = comm.Dup()
        node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank))
        self._nodes = int(comm.allreduce(int(node.rank == 0)))
        node.Free()
        self._files, self._store, self._numbers, self._run = files, store, numbers, run
        self._segment_bytes, self._writer, self._now, self._step = segment_bytes, writer, now, step
        self._collective: Collective = collective
        self._hints = shared_hints(comm.size) if hints is None else dict(hints)
        self._taken: dict[str, str] = {}
        self._taken_here: dict[str, str] = {}  # by the first file that this rank has created
        self._why, self._together = "nothing was written yet", False
        self.segments = self.bytes = 0  # of all ranks, durable
        # Of refused calls, kept by this rank: segments that could not be removed, by the first unit that counts as lost
        # (all of them); and those whose names are gone, and may be back after a power loss.
        self.unsure: dict[int, int] = {}
        self.doubtful: set[int] = set()

    def free(self) -> None:
        """Collective. Free the communicator."""
        self._comm.Free()

    def write(self, records: Sequence[tuple[Record, Payload]]) -> list[Location]:
        """Collective. Write what each rank brings, and make it durable: where this rank's records are, in their order.

        Payloads are not copied where they are large, and must not change meanwhile. Every rank takes part, one without
        records too. 5 Allreduce, 1 message from each rank to the next one, 2 Allgather, 2 bcast; then what `patterns`
        says for the data, and per segment 2 fsync and 1 fsync of the folder.

        Raises
        ------
        DiskError
            On all ranks: none of the records is durable, whatever rank brought it; see this module for what may be
            found after a restart. A rank whose records were wrong has a ValueError, and the others a DiskError.
        """
        comm = self._comm
        ready, views = agreed(comm, lambda: _looked_at(records))
        placed, parts, count = self._placed([record.length for record in ready])
        if not count:
            return []
        numbers = self._draw(count)
        segments = by_segment(parts, count)
        self._together, self._why = choose(self._collective, self._nodes, parts)
        kept = [number for number, each in enumerate(segments) if each[0].rank == comm.rank]
        made: list[int] = []
        try:
            jobs, rows = agreed(comm, lambda: self._prepared(placed, ready, views, numbers, kept, made))
            if self._together:
                self._write_together(segments, numbers, jobs)
            else:
                self._taken = self._taken or comm.bcast(self._taken_here, root=segments[0][0].rank)
                self._exchange_fragments(segments, jobs)
                agreed(comm, lambda: write_own(self._files, jobs, self._step))
            tables = self._exchange_tables(segments, placed.parts, rows, kept)
            agreed(comm, lambda: self._seal(segments, numbers, tables))
        except BaseException as error:
            self._take_back([numbers[each] for each in made], error)
            raise
        self.segments += count
        self.bytes += sum(part.end - part.start for part in parts)
        where: list[Location] = [Location(0, 0)] * len(ready)
        for part, mine, units in zip(placed.parts, placed.numbers, placed.units, strict=True):
            for number, unit in zip(mine, units, strict=True):
                where[number] = Location(numbers[part.segment], unit)
        return where

    def report(self) -> dict[str, Any]:
        """Local. What was chosen and why, the hints asked for and taken, and what was written so far by all ranks."""
        direct = self._files.direct_writes and not self._together and self._files.direct.possible
        return {
            "disk_collective": self._collective,
            "pattern": "together" if self._together else "own",
            "why": self._why,
            "direct": direct,
            "hints": compared(self._hints, self._taken),
            "segments": self.segments,
            "bytes": self.bytes,
        }

    # ------------------------------------------------------------------------------------------ before the data

    def _placed(self, lengths: list[int]) -> tuple[Placed, list[Part], int]:
        """Collective. This rank's records, the parts of all ranks, and how many segments there are."""
        comm = self._comm
        state = np.array(Cursor(), np.int64)
        if comm.rank:
            comm.Recv(state, comm.rank - 1)
        placed = place(comm.rank, Cursor(*state.tolist()), lengths, self._segment_bytes)
        if comm.rank + 1 < comm.size:
            comm.Send(np.array(placed.cursor, np.int64), comm.rank + 1)
        mine = np.array(placed.parts, np.int64).reshape(len(placed.parts), len(Part._fields))
        sizes = np.empty(comm.size, np.int64)
        comm.Allgather(np.array([mine.size], np.int64), sizes)
        everyone = np.empty(int(sizes.sum()), np.int64)
        comm.Allgatherv(mine, [everyone, sizes.tolist()])
        parts = [Part(*row) for row in everyone.reshape(-1, len(Part._fields)).tolist()]
        return placed, parts, max((part.segment + 1 for part in parts), default=0)

    def _draw(self, count: int) -> list[int]:
        """Collective. Numbers for new segments, and the folder for them."""

        def draw() -> list[int]:
            """Local. All of them on rank 0, none on the others."""
            if self._comm.rank:
                return []
            self._files.make_folder(FOLDER)
            self._files.sync_folder("")
            numbers = list(islice(self._numbers, count))
            if len(numbers) < count:
                raise ValueError(f"{count} segments are to be written, and there are {len(numbers)} numbers for them")
            for number in numbers:
                with contextlib.suppress(FileNotFoundError):
                    self._files.open(sealed_name(number), direct=False).close()
                    raise ValueError(f"{sealed_name(number)} is there already: segment numbers are never used again")
            return numbers

        drawn = agreed(self._comm, draw)
        numbers = np.array(drawn, np.uint64) if self._comm.rank == 0 else np.empty(count, np.uint64)
        self._comm.Bcast(numbers)
        found: list[int] = numbers.tolist()
        return found

    def _prepared(
        self, placed: Placed, ready: list[Record], views: list[memoryview], numbers: list[int], kept: list[int],
        made: list[int],
    ) -> tuple[list[Job], list[npt.NDArray[np.void]]]:  # fmt: skip
        """Local. Create the files that this rank keeps, and encode what it brings: its jobs, the rows of each part.

        `made` gets the segments that were created, also before an error.
        """
        jobs, tables = [], []
        for part, mine, units in zip(placed.parts, placed.numbers, placed.units, strict=True):
            where = self._place(numbers[part.segment])
            content, rows = PartBytes(), []
            if part.start == PAGE:
                content.add(0, encode_header(SegmentHeader(where, self._writer, self._now())))
            for number, unit in zip(mine, units, strict=True):
                header = encode_record(ready[number], where, unit)
                rows.append(entry_of(ready[number], unit, header_check(header)))
                content.add(unit * UNIT, header)
                content.add(unit * UNIT + lead(ready[number].length), views[number])
            jobs.append(Job(open_name(where.segment), part, content))
            tables.append(np.array(rows, ENTRY))
        for segment in kept:
            file = open_new(self._files, open_name(numbers[segment]), self._hints)
            made.append(segment)
            self._taken_here = self._taken_here or taken_of(file)
            file.Close()
            self._step("created")
        return jobs, tables

    # -------------------------------------------------------------------------------------------- between ranks

    def _write_together(self, segments: list[list[Part]], numbers: list[int], jobs: list[Job]) -> None:
        """Collective. One segment after the other."""
        mine = {job.part.segment: job for job in jobs}
        last = len(segments) - 1
        for number, parts in enumerate(segments):
            error, taken = write_collectively(
                self._comm, self._files, open_name(numbers[number]), parts[-1].end, mine.get(number), self._hints,
                self._step if number == last else _no_step,
            )  # fmt: skip
            self._taken = taken or self._taken
            settle(self._comm, error)

    def _exchange_fragments(self, segments: list[list[Part]], jobs: list[Job]) -> None:
        """Collective. Pages of several ranks go to the one that writes them. At most one message for each part."""
        rank, requests = self._comm.rank, []
        sent: list[memoryview] = []  # until they are
        for job in jobs:
            tag = job.part.segment % _TAGS
            for each in fragments(segments[job.part.segment]):
                if rank not in (each.source, each.target):
                    continue
                if rank == each.target:
                    buffer = memoryview(bytearray(each.end - each.start))
                    job.tail.append((each.start, buffer))
                    requests.append(self._comm.Irecv([buffer, MPI.BYTE], each.source, tag))
                else:
                    sent.append(job.bytes.take(each.start, each.end))
                    requests.append(self._comm.Isend([sent[-1], MPI.BYTE], each.target, tag))
        MPI.Request.Waitall(requests)

    def _exchange_tables(
        self, segments: list[list[Part]], parts: list[Part], rows: list[npt.NDArray[np.void]], kept: list[int]
    ) -> dict[int, npt.NDArray[np.void]]:
        """Collective. The tables of the segments that this rank keeps. One message for each part."""
        rank, requests = self._comm.rank, []
        own = {part.segment: table for part, table in zip(parts, rows, strict=True)}
        tables: dict[int, npt.NDArray[np.void]] = {}
        for number in kept:
            table = np.empty(sum(part.records for part in segments[number]), ENTRY)
            at = 0
            for part in segments[number]:
                piece = table[at : at + part.records]
                at += part.records
                if part.rank == rank:
                    piece[:] = own[number]
                else:
                    requests.append(self._comm.Irecv([piece.view(np.uint8), MPI.BYTE], part.rank, number % _TAGS))
            tables[number] = table
        for number, table in own.items():
            if (keeper := segments[number][0].rank) != rank:
                requests.append(self._comm.Isend([table.view(np.uint8), MPI.BYTE], keeper, number % _TAGS))
        MPI.Request.Waitall(requests)
        return tables

    # --------------------------------------------------------------------------------------------- after the data

    def _seal(self, segments: list[list[Part]], numbers: list[int], tables: dict[int, npt.NDArray[np.void]]) -> None:
        """Local. Footers and names of the segments that this rank keeps."""
        self._step("data-synced")
        for number, table in tables.items():
            where = self._place(numbers[number])
            at, footer = encode_footer(where, self._writer, table, segments[number][-1].end)
            with self._files.join(open_name(where.segment), direct=False) as file:
                file.write_at(at, footer)
                self._step("footer")
                file.sync()  # or a segment with this name could have no footer
                self._step("footer-synced")
            self._files.rename(open_name(where.segment), sealed_name(where.segment))
            self._step("renamed")
        if tables:
            self._files.sync_folder(FOLDER)
        self._step("folder-synced")

    def _take_back(self, numbers: list[int], error: BaseException) -> None:
        """Collective. Remove the files of a call that has failed on all ranks."""
        left = []
        for number in numbers:
            for path in (open_name(number), sealed_name(number)):
                try:
                    self._files.remove(path)
                except FileNotFoundError:
                    continue
                except OSError as refused:
                    self.unsure[number] = 0
                    left.append(f"{path} ({refused})")
        if numbers:
            try:
                self._files.sync_folder(FOLDER)
            except OSError as refused:
                self.doubtful.update(numbers)
                left.append(f"the names in {FOLDER} ({refused})")
        told = [each for some in self._comm.allgather(left) for each in some]
        if told:
            text = "what was refused may be found after a restart, as this could not be removed: " + "; ".join(told)
            _log.error("%s", text)
            error.add_note(text)

    def _place(self, number: int) -> Place:
        return Place(self._store, number, self._run)


def _looked_at(records: Sequence[tuple[Record, Payload]]) -> tuple[list[Record], list[memoryview]]:
    views = [memoryview(payload) for _, payload in records]
    views = [view.cast("B") if view.nbytes else memoryview(b"") for view in views]
    return [checked(record, view) for (record, _), view in zip(records, views, strict=True)], views
