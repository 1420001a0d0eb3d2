"""One writer's segments: records appended, made durable, and sealed.

Covers the order of writes, syncs and names, and what is still true after one of them failed. Does not cover who writes
what when (the disk tier), finding it again (`recovery`), nor files (`files`: a POSIX directory, or another one).

The order, for each segment: create `N.seg.open`, header, records; `sync`: the file, then the folder once; when it is
full enough: footer, the file again, rename to `N.seg`, the folder again. A record is durable when both its file and,
since the creation, the folder were synced after it: nothing that comes later is needed for it, and nothing that fails
later takes it back.

- A failed write ends its segment: no byte of a file is ever written twice, so that no state of the disk can be a mix of
  two records. What was appended before stays, the next record goes to a new segment, and the failed one was not stored.
- A failed sync ends its segment too, and what was not durable before is given up: a second sync could succeed without
  the bytes being there. `sync` raises `NotDurableError` with the list of these records, once; append them again. They
  may all the same be found after a restart, so a later delete of one of these keys needs its tombstone.
- A segment that cannot be sealed stays as it is, `N.seg.open`, and is scanned by the next restart.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cascade_mpi.errors import NotDurableError, StoreClosedError
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.layout import FLAG_CHECKSUM
from cascade_mpi.segments.format import (
    ENTRY,
    FOLDER,
    MAX_SEGMENT_BYTES,
    MIN_SEGMENT_BYTES,
    PAGE,
    RECORD_BYTES,
    TOMBSTONE,
    UNIT,
    Location,
    Place,
    end_of,
    footer_bytes,
    lead,
    open_name,
    sealed_name,
    unit_after,
)
from cascade_mpi.segments.pages import SegmentHeader, encode_footer, encode_header, entry_of
from cascade_mpi.segments.reader import address
from cascade_mpi.segments.records import Record, encode_record, header_check

if TYPE_CHECKING:
    from cascade_mpi.segments.files import File, Files

ALONE_SHARE = 4  # a block larger than a fourth of a segment has one of its own
SEAL_SHARE = 8  # a sync seals what is more than an eighth full: an inode for each sync would be too many
MAX_FULL = 4  # full segments that wait for a sync; more are synced by the append that fills them
_ZEROS = bytes(UNIT)
_log = logging.getLogger("cascade.segments")


class Lost(NamedTuple):
    """A record that was appended, and is not durable."""

    key_hi: int
    key_lo: int
    sequence: int
    location: Location


class _Open:
    """A segment that is being written."""

    def __init__(self, place: Place, writer: int, file: File) -> None:
        self.place, self.writer, self.file = place, writer, file
        self.rows: list[tuple[Any, ...]] = []  # of `format.ENTRY`
        self.durable = 0  # of these rows
        self.end = PAGE  # the byte after the last payload
        self.name_durable = False
        self.lost = False  # its sync failed

    def fits(self, length: int, segment_bytes: int) -> bool:
        """Local. Whether a record with so large a payload still fits, with the footer."""
        end = end_of(unit_after(self.end, length), length)
        return footer_bytes(end, len(self.rows) + 1) <= segment_bytes

    def not_durable(self) -> list[Lost]:
        """Local. The records that no sync has covered."""
        number = self.place.segment
        return [Lost(row[0], row[1], row[2], Location(number, row[7])) for row in self.rows[self.durable :]]

    def close(self) -> None:
        """Local. Close the file; an error says nothing that is not known."""
        with contextlib.suppress(OSError):  # of a file that was synced, or given up
            self.file.close()


class SegmentLog:
    """The segments that one writer appends to. For one thread at a time.

    files
        The store's directory.
    store
        Its identity, 16 bytes.
    numbers
        Numbers for new segments, never used in this directory before.
    run
        64 random bits, the same for all writers of a job.
    segment_bytes
        How large a segment gets, with its footer; one that holds a single large block may be larger.
    writer, now
        The rank for the header, and what gives ns of Unix time for it.
    """

    def __init__(
        self, files: Files, store: bytes, numbers: Iterator[int], run: int, segment_bytes: int = MAX_SEGMENT_BYTES,
        *, writer: int = 0, now: Callable[[], int] = int,
    ) -> None:  # fmt: skip
        if not MIN_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(f"segment_bytes is {segment_bytes}: it must be {MIN_SEGMENT_BYTES}..{MAX_SEGMENT_BYTES}")
        self._files, self._store, self._numbers, self._run = files, store, numbers, run
        self._segment_bytes, self._writer, self._now = segment_bytes, writer, now
        self._current: _Open | None = None
        self._full: list[_Open] = []  # nothing more is appended to them; not sealed yet
        self._lost: list[Lost] = []  # not told of yet
        self._cause: OSError | None = None
        self._has_folder = self._closed = False
        self.highest = 0  # the highest durable sequence
        self.unsealed = 0  # segments that could not be sealed and are left to a scan
        # Segments in which a write or a sync failed: they may hold records that were refused or lost, and that nobody
        # counts. As long as there is one, no tombstone may go: it may be what keeps such a record from coming back.
        self.unsure: set[int] = set()
        self.lost_from: dict[int, int] = {}  # by segment whose sync failed: the first unit that is not durable

    @property
    def open_segments(self) -> frozenset[int]:
        """Local. The segments that this log still writes to: nobody else may remove or rewrite them."""
        return frozenset(each.place.segment for each in self._all())

    @property
    def pending(self) -> int:
        """Local. Bytes of the records that are not durable yet."""
        rows = [row for each in self._all() for row in each.rows[each.durable :]]
        return sum(lead(row[3]) + row[3] for row in rows)

    def append(self, record: Record, payload: bytes | bytearray | memoryview) -> Location:
        """Local. Write a record behind the others: where it is. Durable after the next `sync`.

        1 write; 1 create and 1 write more when it begins a segment. The checksum is that of `record` if its flag says
        that it has one, else it is computed. The payload is not looked at otherwise, and must not change meanwhile.

        Raises
        ------
        DiskError
            The record was not stored. What was appended before is as it was, and the log can be used on.
        """
        if self._closed:
            raise StoreClosedError("this log of segments was closed")
        payload = memoryview(payload).cast("B")
        length = payload.nbytes
        record = checked(record, payload)
        alone = length > self._segment_bytes // ALONE_SHARE
        segment = self._create() if alone else self._with_room(length)
        unit = unit_after(segment.end, length)
        try:
            header = encode_record(record, segment.place, unit)
        except ValueError:  # nothing was written
            if not segment.rows:
                self._retire(segment)
            raise
        try:
            segment.file.write_at(unit * UNIT, header, _ZEROS[: lead(length) - RECORD_BYTES], payload)
        except BaseException:
            self.unsure.add(segment.place.segment)
            self._retire(segment)  # what is behind its last record is not known now
            raise
        segment.rows.append(entry_of(record, unit, header_check(header)))
        segment.end = end_of(unit, length)
        if alone:
            self._retire(segment)
        return Location(segment.place.segment, unit)

    def tombstone(self, key_hi: int, key_lo: int, sequence: int, *, namespace: int = 0, epoch: int = 0) -> Location:
        """Local. Write that the key was deleted at a sequence above that of what is deleted. Otherwise as `append`."""
        return self.append(Record(TOMBSTONE, key_hi, key_lo, sequence, namespace=namespace, epoch=epoch), b"")

    def sync(self, *, seal_share: int = SEAL_SHARE) -> int:
        """Local. Make durable all that was appended; the highest sequence of it so far.

        1 sync of each segment that was written to, and of the folder if one is new. A segment that is full, or more
        than an eighth full (another part with `seal_share`; 1: full ones only), is sealed then; that this fails is
        logged and counted, and changes no promise.

        Raises
        ------
        NotDurableError
            Some records are not durable, and `lost` names them; those that are not named are. They are named once: the
            next `sync` speaks of what was appended since.
        """
        return self._sync(self._segment_bytes // seal_share)

    def seal(self) -> int:
        """Local. As `sync`, and seal every segment."""
        return self._sync(0)

    def close(self) -> int:
        """Local. As `seal`, and append no more. A second close does nothing."""
        if self._closed:
            return self.highest
        try:
            return self._sync(0)
        finally:
            self._closed = True
            for each in self._all():
                each.close()

    def _all(self) -> list[_Open]:
        return [*self._full, *([self._current] if self._current is not None else [])]

    def _with_room(self, length: int) -> _Open:
        segment = self._current
        if segment is not None and not segment.fits(length, self._segment_bytes):
            self._retire(segment)
            segment = None
        if segment is None:
            segment = self._current = self._create()
        return segment

    def _create(self) -> _Open:
        if not self._has_folder:
            self._files.make_folder(FOLDER)
            self._files.sync_folder("")
            self._has_folder = True
        place = Place(self._store, next(self._numbers), self._run)
        with contextlib.suppress(FileNotFoundError):
            self._files.open(sealed_name(place.segment)).close()
            raise ValueError(f"{sealed_name(place.segment)} is there already: segment numbers are never used again")
        segment = _Open(place, self._writer, self._files.create(open_name(place.segment)))
        try:
            segment.file.write_at(0, encode_header(SegmentHeader(place, self._writer, self._now())))
        except BaseException:
            self._discard(segment)
            raise
        return segment

    def _discard(self, segment: _Open) -> None:
        """Remove a segment without a record. One that cannot be removed is found by the next restart, and is empty."""
        segment.close()
        with contextlib.suppress(OSError):
            self._files.remove(open_name(segment.place.segment))

    def _retire(self, segment: _Open) -> None:
        """Append no more to a segment. Too many of them are made durable now: files are not to pile up."""
        if segment is self._current:
            self._current = None
        if not segment.rows:
            self._discard(segment)
            return
        self._full.append(segment)
        if len(self._full) > MAX_FULL:
            self._settle(self._full, 0)

    def _sync(self, least: int) -> int:
        self._settle(self._all(), least)
        if self._lost:
            lost, cause = self._lost, self._cause
            self._lost, self._cause = [], None
            text = f"{len(lost)} records that were written are not sure to be on the disk, write them again: {cause}"
            raise NotDurableError(cause.errno if cause is not None else None, text, lost) from cause
        return self.highest

    def _settle(self, segments: list[_Open], least: int) -> None:
        """Make segments durable, and seal those that are full or hold more than `least` bytes. Raises no OSError."""
        segments = list(segments)
        written = [each for each in segments if each.durable < len(each.rows)]
        for each in written:
            try:
                each.file.sync()
            except OSError as error:
                self._give_up([each], error)
        if any(not each.name_durable and not each.lost for each in written):
            try:
                self._files.sync_folder(FOLDER)
            except OSError as error:  # of the others the names may never be there now, whatever a later sync says
                self._give_up([each for each in self._all() if not each.name_durable], error)
        for each in written:
            if not each.lost:
                self.highest = max(self.highest, *(row[2] for row in each.rows[each.durable :]))
                each.durable, each.name_durable = len(each.rows), True
        self._seal([each for each in segments if not each.lost and (each in self._full or each.end > least)])

    def _give_up(self, segments: list[_Open], error: OSError) -> None:
        """A sync failed: whatever these segments hold that was not durable before never counts as durable."""
        self._cause = self._cause or error
        for each in segments:
            lost = each.not_durable()
            _log.error("%s: %d records are not durable: %s", open_name(each.place.segment), len(lost), error)
            self._lost += lost
            each.lost = True
            self.unsure.add(each.place.segment)
            if lost:
                self.lost_from[each.place.segment] = lost[0].location.unit
            self._drop(each)

    def _seal(self, segments: list[_Open]) -> None:
        renamed = False
        for each in segments:
            if not each.rows:
                continue
            old, new = open_name(each.place.segment), sealed_name(each.place.segment)
            try:
                self._write_footer(each)
                each.file.sync()  # or a segment with this name could have no footer
                self._files.rename(old, new)
                renamed = True
            except OSError as error:
                self.unsealed += 1
                _log.warning("%s stays unsealed, the next restart reads all of it: %s", old, error)
            self._drop(each)
        if renamed:
            try:
                self._files.sync_folder(FOLDER)
            except OSError as error:  # it has one of its two names, and both are found
                _log.warning("the names of sealed segments may be the old ones after a power loss: %s", error)

    def _write_footer(self, segment: _Open) -> None:
        table_at, footer = encode_footer(segment.place, segment.writer, np.array(segment.rows, ENTRY), segment.end)
        size = segment.file.size()
        if size > segment.end:  # a failed write left something, and what is no record is to be zero
            raise OSError(f"{size - segment.end} bytes of a failed write stand where its footer belongs")
        segment.file.write_at(table_at, footer)

    def _drop(self, segment: _Open) -> None:
        segment.close()
        if segment is self._current:
            self._current = None
        elif segment in self._full:
            self._full.remove(segment)


def checked(record: Record, payload: memoryview) -> Record:
    """Local. The record with the checksum of its payload, computed unless it has one; ValueError if lengths differ."""
    if record.length != payload.nbytes:
        raise ValueError(f"a record of {record.length} bytes with a payload of {payload.nbytes}")
    if record.flags & FLAG_CHECKSUM:
        return record
    checksum = int(checksum_bytes(address(payload), payload.nbytes))
    return record._replace(flags=record.flags | FLAG_CHECKSUM, checksum=checksum)
