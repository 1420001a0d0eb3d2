"""The segments that a rank has open for reading, of all ranks' writing.

Covers opening them by number, what their headers say, how many stay open, one record's payload, and whether what is
missing of it may only be late. Does not cover what a read that fails means (`reading`).

Where a file system is not coherent between nodes (NFS, say), what another node appends to an open segment is seen here
later: the file is shorter, or zero from some page on. That is no damage. It comes with the seal, and perhaps before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from cascade_mpi.errors import DamagedError
from cascade_mpi.layout import DiskLocation
from cascade_mpi.segments.files import Files
from cascade_mpi.segments.format import PAGE, UNIT, Place, end_of, open_name
from cascade_mpi.segments.reader import SegmentReader, open_segment
from cascade_mpi.segments.scan import place_of

_STEP_BYTES = 1 << 20  # at a time: of more, Linux leaves out what is beyond the device's largest transfer
MOST = 256  # open files of a rank; the segment that was used last longest ago is closed first


class NotVisibleError(DamagedError):
    """Bytes of a segment that a rank of this job still writes are not seen here, perhaps not yet."""


class _Segment:
    __slots__ = ("place", "reader", "users")

    def __init__(self, reader: SegmentReader) -> None:
        self.reader, self.users = reader, 0
        try:
            self.place: Place = place_of(reader)
        except DamagedError as error:
            if _hidden(reader, 0, PAGE):
                raise NotVisibleError(error.path, error.offset, error.what) from error
            raise


class OpenSegments:
    """A cache of open segment files. Thread-safe; reads overlap.

    `run` is that of this job: only its ranks still write. None: none of them does.
    """

    def __init__(self, files: Files, store: bytes, *, run: int | None = None, most: int = MOST) -> None:
        self._files, self._store, self._run, self._most = files, store, run, most
        self._open: OrderedDict[int, _Segment] = OrderedDict()
        self._lock = threading.Lock()
        self.opened = self.bytes_read = 0

    def read(self, location: DiskLocation, address: int, length: int, key: tuple[int, int], sequence: int) -> None:
        """Local. The payload of a record, `length` bytes, to an address; its checksum is compared.

        Raises
        ------
        NotVisibleError
            A rank of this job still writes the segment, and the record or a page of it is not there, or zero: it may
            be found later. The file was opened once more before.
        DamagedError
            It is not there, or not whole, or of another key, sequence or length.
        DiskError
            NoSuchFileError if there is no such segment; others are the file system's.
        """
        try:
            self._read(location, address, length, key, sequence)
        except NotVisibleError as hidden:
            self.forget(location.segment)  # it may be sealed by now, and who opens a file anew may see more of it
            try:
                self._read(location, address, length, key, sequence)
            except FileNotFoundError:  # neither name for a moment: it is being sealed
                raise hidden from None

    def _read(self, location: DiskLocation, address: int, length: int, key: tuple[int, int], sequence: int) -> None:
        segment = self._take(location.segment)
        try:
            reader, end = segment.reader, end_of(location.unit, length)
            if end > reader.size:
                reader.size = reader.file.size()  # it was still being written when it was opened
            try:
                reader.read_to(location.unit, segment.place, address, length, key, sequence)
            except DamagedError as error:
                if segment.place.run == self._run and _hidden(reader, location.unit * UNIT, end):
                    raise NotVisibleError(error.path, error.offset, error.what) from error
                raise
            self.bytes_read += length
        finally:
            self._give_back(location.segment, segment)

    def expect(self, number: int, begin: int, end: int) -> None:
        """Local. These bytes of a segment are read soon. Raises nothing: who reads them hears of what is wrong."""
        try:
            segment = self._take(number)
        except (DamagedError, OSError):
            return
        try:
            self._ask(segment, begin, end)
        finally:
            self._give_back(number, segment)

    def forget(self, segment: int) -> None:
        """Local. Close a segment that was removed, or is not what it was."""
        with self._lock:
            found = self._open.pop(segment, None)
            if found is not None and not found.users:
                found.reader.close()

    def close(self) -> None:
        """Local. Close all."""
        with self._lock:
            for each in self._open.values():
                each.reader.close()
            self._open.clear()

    def about(self) -> dict[str, Any]:
        """Local. For statistics."""
        return {"open": len(self._open), "opened": self.opened}

    @staticmethod
    def _ask(segment: _Segment, begin: int, end: int) -> None:
        end = min(end, segment.reader.size)
        for at in range(begin, end, _STEP_BYTES):
            segment.reader.will_need(at, min(at + _STEP_BYTES, end))

    def _take(self, number: int) -> _Segment:
        with self._lock:
            segment = self._open.get(number)
            if segment is None:
                reader = open_segment(self._files, self._store, number)
                try:
                    segment = _Segment(reader)
                except BaseException:
                    reader.close()
                    raise
                self.opened += 1
                self._open[number] = segment
                self._close_some()
            self._open.move_to_end(number)
            segment.users += 1
            return segment

    def _give_back(self, number: int, segment: _Segment) -> None:
        with self._lock:
            segment.users -= 1
            if not segment.users and self._open.get(number) is not segment:
                segment.reader.close()  # it was forgotten meanwhile

    def _close_some(self) -> None:
        for number in list(self._open)[: -self._most]:
            segment = self._open.pop(number)
            if not segment.users:
                segment.reader.close()


def _hidden(reader: SegmentReader, begin: int, end: int) -> bool:
    """Whether bytes of a segment without a seal are missing, as far as this node sees: cut off, or zero on some page.

    Appends come as whole records, and pages come whole: what is late of a record is all that it has on a page.
    """
    if reader.path != open_name(reader.segment):
        return False
    if end > reader.size:
        return True
    for at in range(begin - begin % PAGE, end, _STEP_BYTES):
        low, high = max(at, begin), min(at + _STEP_BYTES, end)
        data = reader.bytes_at(low, high - low).tobytes()
        if len(data) < high - low:
            return True
        if not all(any(data[max(page - low, 0) : page - low + PAGE]) for page in range(at, high, PAGE)):
            return True
    return False
