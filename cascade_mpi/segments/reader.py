"""Reading one segment: its header, its footer, and one record into a caller's buffer, always verified.

Covers which bytes are read, and that nothing comes back that is not what was written. Does not cover segments without
a footer (see `scan`) nor which record is the newest of its key (see `recovery`).

Memory is taken for what the file is known to hold, never for what it says of itself: a table is read after its size
was compared with that of the file, and a payload goes into the memory of the caller.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import BufferSizeError, DamagedError
from cascade_mpi.kernels.checksum import (
    CHUNK,
    checksum_bytes,
    copy_checksum_bytes,
    copy_chunks_bytes,
    fold_chunks_bytes,
)
from cascade_mpi.segments.format import (
    LARGE,
    PAGE,
    RECORD_BYTES,
    UNIT,
    Place,
    lead,
    open_name,
    sealed_name,
)
from cascade_mpi.segments.pages import SegmentHeader, Trailer, decode_header, decode_table, decode_trailer
from cascade_mpi.segments.records import Record, decode_record

if TYPE_CHECKING:
    from cascade_mpi.segments.files import File, Files

TAIL_BYTES = 64 << 10  # read at once from the end: the trailer and the table of 480 records


class Footer(NamedTuple):
    """What the end of a sealed segment says of it."""

    trailer: Trailer
    entries: npt.NDArray[np.void]  # of `format.ENTRY`, in the order of the file


class SegmentReader:
    """An open segment of a store. Reads of several threads may overlap: there is no state but the file.

    `path` is relative to the store's directory, `size` that of the file when it was opened or last measured.
    """

    def __init__(self, file: File, path: str, store: bytes, segment: int) -> None:
        self.file, self.path, self.store, self.segment = file, path, store, segment
        self.size = file.size()
        self._summed: Callable[..., bool] | None = getattr(file, "read_summed", None)
        self._will_need: Callable[[int, int], None] | None = getattr(file, "will_need", None)
        if (read_on := getattr(file, "read_on", None)) is not None:
            read_on()

    def close(self) -> None:
        """Local. Close the file."""
        self.file.close()

    def header(self) -> SegmentHeader:
        """Local. The first page. 1 read; DamagedError if it is not the one of this segment."""
        return decode_header(self.bytes_at(0, PAGE), self.store, self.segment, self.path)

    def footer(self) -> Footer:
        """Local. The table of records. 1 read, 2 for more than 480 records; DamagedError without a valid footer."""
        size = self.size
        tail = self.bytes_at(max(size - TAIL_BYTES, 0), min(size, TAIL_BYTES))
        trailer = decode_trailer(tail[-PAGE:], self.store, self.segment, size, self.path)
        begin = trailer.table_at - (size - len(tail))
        if begin >= 0:
            # A copy: a view would keep the whole tail in memory as long as the entries live.
            table = memoryview(bytes(tail[begin : begin + trailer.table_bytes]))
        else:
            table = self.bytes_at(trailer.table_at, trailer.table_bytes)
        return Footer(trailer, decode_table(table, trailer, self.path))

    def record(self, unit: int, place: Place) -> Record:
        """Local. The header of the record at a unit. 1 read; DamagedError if there is none, or it belongs elsewhere."""
        return decode_record(self.bytes_at(unit * UNIT, RECORD_BYTES), place, unit, self.size, self.path)

    def read(
        self,
        unit: int,
        place: Place,
        out: memoryview,
        *,
        key: tuple[int, int] | None = None,
        sequence: int | None = None,
    ) -> Record:
        """Local. Read the payload of the record at a unit into `out`, from its start; what the record says of it.

        out
            Writable, contiguous bytes, at least as many as the payload has.
        key, sequence
            What the record must be of, if given.

        1 read for less than 64 KiB, 2 for more. The payload's checksum is always compared.

        Raises
        ------
        DamagedError
            The record is not there, belongs elsewhere, is of another key, or its payload is not what was written. `out`
            then has undefined contents.
        BufferSizeError
            The payload does not fit `out`.
        """
        out = out.cast("B")
        start, room = unit * UNIT, out.nbytes
        head = self.bytes_at(start, RECORD_BYTES + (room if room < LARGE else 0))
        record = decode_record(head[:RECORD_BYTES], place, unit, self.size, self.path)
        length = record.length
        if key is not None and key != (record.key_hi, record.key_lo):
            raise DamagedError(self.path, start, "a record of another key than the index says")
        if sequence is not None and sequence != record.sequence:
            raise DamagedError(self.path, start, f"a record of sequence {record.sequence}, not {sequence}")
        if length > room:
            raise BufferSizeError(f"{self.path} at byte {start}: a block of {length} bytes, the buffer has {room}")
        if not length:
            found = checksum_bytes(0, 0)
        elif length < LARGE and room < LARGE:
            payload = head[RECORD_BYTES : RECORD_BYTES + length]
            self._all(start + RECORD_BYTES, payload.nbytes, length)
            found = copy_checksum_bytes(address(out), address(payload), length)
        else:
            self._all(start + lead(length), self.file.read_at(start + lead(length), out[:length]), length)
            found = checksum_bytes(address(out), length)
        if found != record.checksum:
            raise DamagedError(self.path, start, _differs(record, found))
        return record

    def read_to(self, unit: int, place: Place, address: int, length: int, key: tuple[int, int], sequence: int) -> None:
        """Local. As `read`, of a payload whose length is known, to an address that has room for it.

        2 reads for 256 KiB. DamagedError also if the payload has another length.
        """
        start, path = unit * UNIT, self.path
        head = np.empty(RECORD_BYTES // 8 + 1, np.uint64)  # the record's header, and the checksum of what was read
        where: int = head.__array_interface__["data"][0]
        value = where + RECORD_BYTES
        begin = start + lead(length)
        if self._summed is not None and self._summed(start, where, RECORD_BYTES, begin, address, length, value):
            record = decode_record(head.data.cast("B")[:RECORD_BYTES], place, unit, self.size, path)
            found = int(head[-1])
            if key != (record.key_hi, record.key_lo) or sequence != record.sequence or length != record.length:
                text = f"a record of another key, of sequence {record.sequence} or of {record.length} bytes, the index "
                raise DamagedError(path, start, f"{text}says sequence {sequence} and {length} bytes")
            if found != record.checksum:
                raise DamagedError(path, start, _differs(record, found))
            return
        out = memoryview((ctypes.c_uint8 * length).from_address(address)).cast("B") if length else memoryview(b"")
        try:
            record = self.read(unit, place, out, key=key, sequence=sequence)
        except BufferSizeError as error:
            raise DamagedError(path, start, f"the index says {length} bytes: {error}") from error
        if record.length != length:
            raise DamagedError(path, start, f"a record of {record.length} bytes, the index says {length}")

    def will_need(self, begin: int, end: int) -> None:
        """Local. These bytes are read soon: let the system bring them meanwhile, where it can."""
        if self._will_need is not None:
            self._will_need(begin, end - begin)

    def verify(self, unit: int, record: Record, scratch: Scratch) -> None:
        """Local. Compare the checksum of a payload of any size, in pieces of 4 MiB; DamagedError if it is another."""
        at, left = unit * UNIT + lead(record.length), record.length
        words = np.empty(-(-left // CHUNK), np.uint64)
        for number in range(words.size):
            piece = scratch.take(min(left, CHUNK))
            self._all(at, self.file.read_at(at, piece), piece.nbytes)
            where = address(piece)
            copy_chunks_bytes(where, where, piece.nbytes, words.ctypes.data + 8 * number)  # onto itself: for its word
            at, left = at + piece.nbytes, left - piece.nbytes
        found = int(fold_chunks_bytes(words, record.length))
        if found != record.checksum:
            raise DamagedError(self.path, unit * UNIT, _differs(record, found))

    def bytes_at(self, offset: int, nbytes: int) -> memoryview:
        """Local. The bytes from `offset`, fewer at the end of the file. 1 read; memory for what the file has there."""
        nbytes = max(min(nbytes, self.size - offset), 0)
        if not nbytes:
            return memoryview(b"")
        memory = memoryview(bytearray(nbytes))
        return memory[: self.file.read_at(offset, memory)]

    def _all(self, offset: int, found: int, wanted: int) -> None:
        if found < wanted:
            raise DamagedError(self.path, offset, f"{found} bytes of a payload of {wanted}: the file was cut short")


class Scratch:
    """Memory for pieces of payloads, as much as the largest needed so far, at most 4 MiB."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray())

    def take(self, nbytes: int) -> memoryview:
        """Local. `nbytes` of it, contents undefined; what was taken before is given up."""
        if self._memory.nbytes < nbytes:
            self._memory = memoryview(bytearray(nbytes))
        return self._memory[:nbytes]


def open_segment(files: Files, store: bytes, segment: int) -> SegmentReader:
    """Local. Open a segment by its number, sealed or not yet; FileNotFoundError if there is none.

    It may be sealed between two looks at it, and so be found only by the third.
    """
    for path in (sealed_name(segment), open_name(segment)):
        try:
            return SegmentReader(files.open(path), path, store, segment)
        except FileNotFoundError:
            continue
    path = sealed_name(segment)
    return SegmentReader(files.open(path), path, store, segment)


def address(memory: bytes | memoryview) -> int:
    """Local. Where these bytes are, for kernels; 0 if there are none. The caller keeps them alive."""
    if not len(memory):
        return 0
    where: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]  # a third of the time of `ctypes.data`
    return where


def _differs(record: Record, found: int) -> str:
    return (
        f"the payload of {record.length} bytes has the checksum {found:016x}, not {record.checksum:016x}: it is not "
        "what was written"
    )
