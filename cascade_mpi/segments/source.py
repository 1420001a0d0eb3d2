"""A segment that is rewritten: its records in the order of the file, if it can be known which they are.

Covers footers, scans of what has none, and everything but a payload that tells of damage. Does not cover which records
are needed, nor their payloads (see `compaction`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import DamagedError
from cascade_mpi.segments.format import ENTRY, PAGE, TOMBSTONE, Location, Place, open_name, sealed_name
from cascade_mpi.segments.reader import SegmentReader
from cascade_mpi.segments.scan import scan

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

_ROWS = 1024  # of a table that are Python objects at once


class Item(NamedTuple):
    """A record of a segment that is rewritten."""

    key_hi: int
    key_lo: int
    sequence: int
    length: int
    tombstone: bool
    location: Location


class Source:
    """A segment that is being read."""

    def __init__(self, reader: SegmentReader, paths: list[str], place: Place, entries: npt.NDArray[np.void]) -> None:
        self.reader, self.paths, self.place = reader, paths, place
        self.number = reader.segment
        self.problem = ""  # why it cannot be removed
        self._items = _items(entries, reader.segment)
        self.item = next(self._items, None)  # the next to be looked at

    def advance(self) -> None:
        """Local. On to the next record."""
        self.item = next(self._items, None)


def open_source(files: Files, reader: SegmentReader) -> Source:
    """Local. A segment and its records, from its footer or a scan; DamagedError if anything that tells is damaged.

    3 reads and 1 open of the other name, or all of the file if it has no footer.
    """
    paths = [reader.path]
    if reader.path == sealed_name(reader.segment):
        other = open_name(reader.segment)
        with contextlib.suppress(FileNotFoundError):
            second = SegmentReader(files.open(other), other, reader.store, reader.segment)
            try:
                if (second.size, _last(second)) != (reader.size, _last(reader)):
                    raise DamagedError(other, 0, f"another segment has its number: {reader.path}")
            finally:
                second.close()
            paths.insert(0, other)  # which of the two is left by a crash between them has a footer
    if reader.size <= PAGE and reader.path.endswith(".open"):  # created, no more: a record begins behind this page
        return Source(reader, paths, Place(reader.store, reader.segment, 0), np.empty(0, ENTRY))
    header = reader.header()
    try:
        footer = reader.footer()
    except DamagedError:
        if not reader.path.endswith(".open"):
            raise
    else:
        if footer.trailer.place != header.place:
            raise DamagedError(reader.path, 0, "the header is of another run than the footer")
        return Source(reader, paths, header.place, footer.entries)
    found = scan(reader, header)
    if found.damages:
        raise DamagedError(reader.path, found.damages[0].start, found.damages[0].problem)
    return Source(reader, paths, header.place, found.entries)


def _items(entries: npt.NDArray[np.void], segment: int) -> Iterator[Item]:
    for start in range(0, len(entries), _ROWS):
        rows = entries[start : start + _ROWS]
        columns = (rows[name].tolist() for name in ("key_hi", "key_lo", "sequence", "length", "kind", "unit"))
        for key_hi, key_lo, sequence, length, kind, unit in zip(*columns, strict=True):
            yield Item(key_hi, key_lo, sequence, length, kind == TOMBSTONE, Location(segment, unit))


def _last(reader: SegmentReader) -> bytes:
    return bytes(reader.bytes_at(reader.size - PAGE, PAGE))
