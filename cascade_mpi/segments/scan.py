"""Finding the records of a segment without its footer: after a crash, or to compare a footer with what is there.

Covers walking over a file's units, what is a record and what is damage, and the tail that an interrupted write leaves.
Does not cover what damage means to people (see `fsck`).

Every record proves itself: its header says which store, segment, run and unit it belongs to, under a checksum, and so
does its payload. So the walk need not end at the first bad one. A record whose payload is damaged is left out, and the
next is where its header says that it ends; where there is no header, the next units are searched for one. What follows
damage is as good as what is before it: each record was written to stand there, and which of two is newer is said by
their sequences, not by their order. Nothing is found twice, as every step goes forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import DamagedError
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.segments.format import (
    ENTRY,
    LARGE,
    PAGE,
    RECORD_BYTES,
    RECORD_MAGIC,
    UNIT,
    Place,
    align,
    end_of,
    footer_bytes,
    lead,
    unit_after,
)
from cascade_mpi.segments.pages import SegmentHeader, encode_footer, entry_of
from cascade_mpi.segments.reader import Scratch, SegmentReader, address
from cascade_mpi.segments.records import Record, decode_record, header_check

WINDOW_BYTES = 1 << 20
_MAGIC = np.frombuffer(RECORD_MAGIC, "<u8")[0]


Kind = Literal["record", "damaged", "short", "padding", "lost"]


class Found(NamedTuple):
    """A piece of the file.

    ======== =============================================================================
    record   a whole record
    damaged  a record with a valid header, whose payload is not what was written
    short    the same, but the file ends within it, as it does when a write is interrupted
    padding  bytes between records that are not zero; no record is affected
    lost     a stretch without a valid header, where there may have been records
    ======== =============================================================================
    """

    kind: Kind
    start: int
    end: int
    unit: int = 0
    record: Record | None = None
    check: int = 0  # see `records.header_check`
    problem: str = ""


class Scan(NamedTuple):
    """What a scan found."""

    entries: npt.NDArray[np.void]  # `format.ENTRY` of the whole records
    damages: list[Found]
    end: int  # the byte after the last whole record
    place: Place | None  # what its records belong to; None: there is none
    tail: Found | None  # what an interrupted write or seal left at the end: nothing that was promised


def scan(reader: SegmentReader, header: SegmentHeader | None) -> Scan:
    """Local. The entries of all whole records of a segment, and what else is in it. Reads the file once.

    header
        Of the segment; None (it is damaged): its records are those that belong to the run of the first one which is of
        this store and this segment.
    """
    walk = Walk(reader, header.place if header else None)
    rows: list[tuple[Any, ...]] = []
    damages: list[Found] = []
    end = PAGE
    for piece in walk.pieces():
        if piece.kind == "record" and piece.record is not None:
            rows.append(entry_of(piece.record, piece.unit, piece.check))
            end = piece.end
        else:
            damages.append(piece)
    entries = np.array(rows, ENTRY)
    tail = damages[-1] if damages else None
    if tail is not None and _is_interrupted(reader, header, entries, tail, end):
        return Scan(entries, damages[:-1], end, walk.place, tail)
    if tail is not None and _is_footer(reader, len(entries), tail, end):
        return Scan(entries, damages[:-1], end, walk.place, None)
    return Scan(entries, damages, end, walk.place, None)


def place_of(reader: SegmentReader) -> Place:
    """Local. What the records of a segment belong to, as `scan` and its footer have it. 1 read, if its header is whole.

    Without one, as a flush leaves it if the rank whose part has the header was killed before the others: by the footer,
    or else the first record, for which all of the file may be read. Whoever lists records must be able to read them: a
    record that is listed hides the older ones of its key. DamagedError, the header's: nothing tells.
    """
    try:
        return reader.header().place
    except DamagedError:
        with suppress(DamagedError):
            return reader.footer().trailer.place
        walk = Walk(reader, None)
        if not any(piece.kind == "record" for piece in walk.pieces()) or walk.place is None:
            raise
        return walk.place


def _is_interrupted(
    reader: SegmentReader, header: SegmentHeader | None, entries: npt.NDArray[np.void], tail: Found, end: int
) -> bool:
    """Whether what follows the last record is the beginning of a record, or of the footer of these entries."""
    if tail.kind == "short" or (tail.kind == "lost" and reader.size - align(tail.start, UNIT) < RECORD_BYTES):
        return True
    if header is None or tail.kind != "lost" or tail.start != end:
        return False
    table_at, footer = encode_footer(header.place, header.writer, entries, tail.start)
    expected = bytes(table_at - tail.start) + footer
    rest = reader.bytes_at(tail.start, len(expected) + 1)
    return bytes(rest) == expected[: rest.nbytes]


def _is_footer(reader: SegmentReader, records: int, tail: Found, end: int) -> bool:
    """Whether what follows the last record of a sealed segment is its footer, whose damage was told of before."""
    where = tail.kind == "lost" and tail.start == end and reader.size == footer_bytes(end, records)
    return where and not reader.path.endswith(".open") and not any(reader.bytes_at(end, align(end, PAGE) - end))


class Walk:
    """One walk over a segment, between its header and byte `end` (None: its size); `place` as for `scan`."""

    def __init__(self, reader: SegmentReader, place: Place | None, end: int | None = None) -> None:
        self._reader, self.place = reader, place
        self._end = reader.size if end is None else min(end, reader.size)
        self._window, self._at = memoryview(b""), 0
        self._scratch = Scratch()

    def pieces(self) -> Iterator[Found]:
        """Local. The pieces in order, records and all that is none. Memory for pieces of at most 4 MiB."""
        position = PAGE  # everything before it was told of
        while position < self._end:
            unit, record = self._next(position)
            start = unit * UNIT if record else self._end
            boundary = min(align(position, UNIT), start)
            expected = record is not None and unit == unit_after(position, record.length)
            if (record is not None and not expected) or self._nonzero(boundary, start):
                # Also before a large record, where zeros are expected: a small one may have stood there.
                yield Found("lost", position, start, problem=self._why_none(position, start))
            elif self._nonzero(position, boundary):
                yield _padding(position, boundary)
            if record is None:
                return
            stop = end_of(unit, record.length)
            check = header_check(self._bytes(start, RECORD_BYTES))
            if stop > self._end:
                problem = f"the file ends {stop - self._end} bytes before this record does"
                yield Found("short", start, self._end, unit, record, check, problem)
                return
            if self._nonzero(start + RECORD_BYTES, start + lead(record.length)):
                yield _padding(start + RECORD_BYTES, start + lead(record.length))
            problem = self._problem_of(unit, record)
            yield Found("damaged" if problem else "record", start, stop, unit, record, check, problem)
            position = stop

    def _next(self, position: int) -> tuple[int, Record | None]:
        """The first valid header from `position` on, and its unit."""
        unit = -(-position // UNIT)
        if (record := self._record(unit)) is not None:  # as it is of small ones, one behind the other
            return unit, record
        while unit * UNIT < self._end:
            window = self._bytes(unit * UNIT, WINDOW_BYTES)
            units = np.frombuffer(window, np.uint8, len(window) // UNIT * UNIT).reshape(-1, UNIT)
            if not len(units):  # less than a unit is left, but there may be a header in it
                return unit, self._record(unit)
            for candidate in np.flatnonzero(units[:, :8].copy().view("<u8")[:, 0] == _MAGIC).tolist():
                if (record := self._record(unit + candidate)) is not None:
                    return unit + candidate, record
            unit += len(units)
        return unit, None

    def _record(self, unit: int) -> Record | None:
        header = self._bytes(unit * UNIT, RECORD_BYTES)
        if header[:8] != RECORD_MAGIC:
            return None
        place = self.place
        if place is None:  # any run, of which the others must be too
            run = int.from_bytes(header[144:152], "little")
            place = Place(self._reader.store, self._reader.segment, run)
        try:
            record = decode_record(header, place, unit, 1 << 62, self._reader.path)
        except DamagedError:
            return None
        self.place = place
        return record

    def _problem_of(self, unit: int, record: Record) -> str:
        try:
            if record.length < LARGE:
                payload = self._bytes(unit * UNIT + RECORD_BYTES, record.length)
                if (
                    payload.nbytes == record.length
                    and checksum_bytes(address(payload), record.length) == record.checksum
                ):
                    return ""
            self._reader.verify(unit, record, self._scratch)
        except DamagedError as error:
            return error.what
        return ""

    def _why_none(self, start: int, end: int) -> str:
        """Why there is no record in a stretch, by what stands where one would begin."""
        unit, place = -(-start // UNIT), self.place
        problem = f"{end - start} bytes that are no record"
        header = self._bytes(unit * UNIT, min(RECORD_BYTES, end - unit * UNIT))
        if header[:8] == RECORD_MAGIC and place is not None:
            try:
                decode_record(header, place, unit, 1 << 62, self._reader.path)
            except DamagedError as error:
                return f"{problem}: {error.what}"
        return problem

    def _nonzero(self, start: int, end: int) -> bool:
        while start < end:
            piece = self._bytes(start, min(end - start, WINDOW_BYTES))
            if not piece.nbytes:
                return False
            if np.frombuffer(piece, np.uint8).any():
                return True
            start += piece.nbytes
        return False

    def _bytes(self, offset: int, nbytes: int) -> memoryview:
        """Bytes of the file from the window, which moves when it must; fewer at the end."""
        nbytes = max(min(nbytes, self._end - offset), 0)
        first = offset - self._at
        if not 0 <= first <= first + nbytes <= self._window.nbytes:
            self._at, first = offset, 0
            self._window = self._reader.bytes_at(offset, min(max(nbytes, WINDOW_BYTES), self._end - offset))
        return self._window[first : first + nbytes]


def _padding(start: int, end: int) -> Found:
    return Found("padding", start, end, problem=f"{end - start} bytes between records are not all zero")
