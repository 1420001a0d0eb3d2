"""The pages around the records: the header in front, the table of records and the trailer behind.

Covers values to bytes and back, with every check that the bytes and the size of the file allow; and the checksum of
pages. Does not cover records (see `records`) nor files.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from cascade_mpi.errors import DamagedError
from cascade_mpi.segments.format import (
    BLOCK,
    ENTRY,
    ENTRY_BYTES,
    LARGE,
    LARGE_LEAD,
    MAX_RECORDS,
    PAGE,
    RECORD_BYTES,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    TOMBSTONE,
    TRAILER,
    TRAILER_MAGIC,
    UNIT,
    VERSION,
    Place,
    align,
    footer_bytes,
)
from cascade_mpi.segments.records import Record

_CHECKED = PAGE - 8
_ZEROS = (0,) * 14
_CHECK = struct.Struct("<Q")


class SegmentHeader(NamedTuple):
    """The first page: whose segment it is."""

    place: Place
    writer: int  # rank that wrote it
    created: int  # ns of Unix time


class Trailer(NamedTuple):
    """The last page: what the table must be, and what the segment holds."""

    place: Place
    writer: int
    records: int
    table_at: int
    table_bytes: int
    table_check: int
    data_end: int  # the byte after the last payload
    lowest: int  # sequences
    highest: int
    blocks: int
    tombstones: int


def encode_header(header: SegmentHeader) -> bytes:
    """Local. The first page of a segment."""
    store, segment, run = header.place
    return _page(
        SEGMENT_HEADER.pack(
            SEGMENT_MAGIC, VERSION, PAGE, UNIT, store, segment, run, header.writer, 0, header.created
        )
    )  # fmt: skip


def decode_header(page: bytes | memoryview, store: bytes, segment: int, path: str) -> SegmentHeader:
    """Local. The first page of a segment of this store with this number; DamagedError says what is wrong."""
    _check_page(page, SEGMENT_MAGIC, "header", path, 0)
    _, version, page_bytes, unit, its_store, its_segment, run, writer, _, created = SEGMENT_HEADER.unpack_from(page)
    _check_layout((version, page_bytes, unit), (VERSION, PAGE, UNIT), path, 0)
    _check_place(its_store, its_segment, store, segment, path, 0)
    return SegmentHeader(Place(store, segment, run), writer, created)


def entry_of(record: Record, unit: int, check: int) -> tuple[Any, ...]:
    """Local. The fields of `ENTRY` for a record at a unit, `check` from `records.header_check`."""
    r = record
    return (
        r.key_hi, r.key_lo, r.sequence, r.length, r.namespace, r.expiry, r.epoch, unit, check, r.kind, r.marks, r.flags,
        r.checksum, r.dim0, r.dims, r.depth, r.dtype, r.ndim, _ZEROS,
    )  # fmt: skip


def encode_footer(place: Place, writer: int, entries: npt.NDArray[np.void], data_end: int) -> tuple[int, bytes]:
    """Local. Where the footer of these entries begins in the file, and its bytes up to the file's end."""
    table_at, count = align(data_end, PAGE), len(entries)
    table = entries.tobytes()
    sequences = entries["sequence"]
    blocks = int(np.count_nonzero(entries["kind"] == BLOCK))
    trailer = TRAILER.pack(
        TRAILER_MAGIC, VERSION, ENTRY_BYTES, UNIT, *place, writer, 0, count, table_at, len(table),
        xxhash.xxh3_64_intdigest(table), data_end, int(sequences.min()) if count else 0,
        int(sequences.max()) if count else 0, blocks, count - blocks,
    )  # fmt: skip
    return table_at, table + bytes(-len(table) % PAGE) + _page(trailer)


def decode_trailer(page: bytes | memoryview, store: bytes, segment: int, size: int, path: str) -> Trailer:
    """Local. The last page of a segment of `size` bytes; DamagedError says what is wrong."""
    at = size - PAGE
    _check_page(page, TRAILER_MAGIC, "trailer", path, at)
    values = TRAILER.unpack_from(page)
    _, version, entry_bytes, unit, its_store, its_segment, run, writer, _ = values[:9]
    count, table_at, table_bytes, table_check, data_end, lowest, highest, blocks, tombstones = values[9:]
    _check_layout((version, entry_bytes, unit), (VERSION, ENTRY_BYTES, UNIT), path, at)
    _check_place(its_store, its_segment, store, segment, path, at)
    for name, found, expected in (
        ("end of the records", data_end >= PAGE, True),
        ("size of the file", footer_bytes(data_end, count), size),
        ("number of records", min(count, (align(data_end, UNIT) - PAGE) // UNIT, MAX_RECORDS), count),
        ("place of the table", table_at, align(data_end, PAGE)),
        ("size of the table", table_bytes, count * ENTRY_BYTES),
        ("number of records of all kinds", blocks + tombstones, count),
    ):
        if found != expected:
            raise DamagedError(path, at, f"the trailer's {name} cannot be: {values[9:]} in a file of {size} bytes")
    return Trailer(
        Place(store, segment, run), writer, count, table_at, table_bytes, table_check, data_end, lowest, highest,
        blocks, tombstones,
    )  # fmt: skip


def decode_table(table: bytes | memoryview, trailer: Trailer, path: str) -> npt.NDArray[np.void]:
    """Local. The entries of a table as `ENTRY` records, not copied; DamagedError says what is wrong.

    Records are checked to be of known kinds, in the order of the file, at possible places and not to overlap.
    """
    at = trailer.table_at
    if len(table) != trailer.table_bytes:
        raise DamagedError(path, at, f"{len(table)} bytes of a table that has {trailer.table_bytes}")
    if (computed := xxhash.xxh3_64_intdigest(table)) != trailer.table_check:
        raise DamagedError(
            path, at, f"the table of records has the checksum {computed:016x}, not {trailer.table_check:016x}"
        )
    entries: npt.NDArray[np.void] = np.frombuffer(table, ENTRY)
    if wrong := _impossible(entries, trailer):
        raise DamagedError(path, at, f"the table of records cannot be: {wrong}")
    return entries


def _impossible(entries: npt.NDArray[np.void], trailer: Trailer) -> str:
    """What no table can have, although its checksum is right: who wrote it was wrong. "" if nothing."""
    length, kind = entries["length"], entries["kind"]
    if length.size == 0:
        return ""
    if int(length.max()) > trailer.data_end:
        return f"a record of {int(length.max())} bytes among {trailer.data_end}"
    start = entries["unit"].astype(np.int64) * UNIT
    large = length >= LARGE
    end = start + np.where(large, LARGE_LEAD, RECORD_BYTES) + length.astype(np.int64)
    dead = kind == TOMBSTONE
    checks = (
        ("a kind that is not known", (kind != BLOCK) & ~dead),
        ("a tombstone with a payload", dead & (length > 0)),
        ("a record outside the records", (start < PAGE) | (end > trailer.data_end)),
        ("a large record whose payload begins at no page", large & ((start + LARGE_LEAD) % PAGE != 0)),
        ("records that overlap", np.concatenate((start[1:] < end[:-1], [False]))),
    )
    for what, where in checks:
        if where.any():
            return f"{what} (entry {int(np.argmax(where))})"
    sequences = entries["sequence"]
    found = (int(end[-1]), int(np.count_nonzero(dead)), int(sequences.min()), int(sequences.max()))
    expected = (trailer.data_end, trailer.tombstones, trailer.lowest, trailer.highest)
    return f"its end, tombstones and sequences are {found}, the trailer says {expected}" if found != expected else ""


def _page(text: bytes) -> bytes:
    text += bytes(_CHECKED - len(text))
    return text + _CHECK.pack(xxhash.xxh3_64_intdigest(text))


def _check_page(page: bytes | memoryview, magic: bytes, what: str, path: str, at: int) -> None:
    if len(page) != PAGE:
        raise DamagedError(path, at, f"{len(page)} bytes of the {what} page, which has {PAGE}: the file was cut short")
    if page[:8] != magic:
        raise DamagedError(path, at, f"no {what} page: it begins with {bytes(page[:8]).hex()}, not {magic!r}")
    own, computed = _CHECK.unpack_from(page, _CHECKED)[0], xxhash.xxh3_64_intdigest(page[:_CHECKED])
    if own != computed:
        raise DamagedError(path, at, f"the {what} page has the checksum {computed:016x}, not {own:016x}")


def _check_layout(found: tuple[int, ...], expected: tuple[int, ...], path: str, at: int) -> None:
    if found[0] != expected[0]:
        raise DamagedError(path, at, f"format {found[0]}: this version of Cascade reads {expected[0]}")
    if found != expected:
        raise DamagedError(path, at, f"a layout of {found[1:]}, not {expected[1:]}")


def _check_place(store: bytes, segment: int, wanted: bytes, number: int, path: str, at: int) -> None:
    if store != wanted:
        raise DamagedError(path, at, f"a segment of the store {store.hex()}, not of {wanted.hex()}")
    if segment != number:
        raise DamagedError(path, at, f"this is segment {segment:x}, not {number:x}: a copy, or renamed")
