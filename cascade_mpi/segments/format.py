"""The layout of a segment file: sizes, field offsets, and where records and the footer are placed.

Covers constants, dtypes, the arithmetic of places, and the names of files. Does not cover bytes made of values and
back (see `records`, `footer`), nor files (see `files`, `reader`, `log`).

A segment, integers little-endian, offsets in bytes::

    0        header, one page of 4096
    4096     records, each on a unit of 1024: a header of 256, then the payload
    table    at a page: one entry of 128 for each record
    size-4096   trailer, one page: where the table is, and what it must be

A payload below 64 KiB follows its header directly. A larger one begins at a page, and its record one unit before that,
so that it can be read and written without a copy where the file system wants aligned memory and offsets. Everything
between is zero. The layout is a function of the lengths alone: whoever reads checks that each record stands where it
must.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np

VERSION = 1
UNIT = 1024
PAGE = 4096
LARGE = 64 << 10  # payloads of this size and more begin at a page
LARGE_LEAD = UNIT  # from the start of such a record to its payload

RECORD_BYTES = 256
ENTRY_BYTES = 128
MIN_SEGMENT_BYTES = 64 << 10
MAX_SEGMENT_BYTES = 256 << 20  # a larger file holds one record only
MAX_SEGMENT = (1 << 64) - 1
MAX_RECORDS = 1 << 32  # units of a record are 32 bits wide
MAX_LENGTH = UNIT << 32

SEGMENT_MAGIC, RECORD_MAGIC, TRAILER_MAGIC = b"CSCDseg\n", b"CSCDrec\n", b"CSCDend\n"

BLOCK, TOMBSTONE = 1, 2
KINDS = {BLOCK: "block", TOMBSTONE: "tombstone"}
PROTECTED = 1  # marks: what the index word says of a block, not its descriptor

FOLDER = "segments"
_NAME = re.compile(r"([0-9a-f]{16})\.seg(\.open)?")

# The last 8 bytes of each page and of each record header are the checksum (xxh3_64) of all bytes before them.
SEGMENT_HEADER = struct.Struct("<8sHHI16sQQIIQ")
SEGMENT_FIELDS = ("magic", "version", "page", "unit", "store", "segment", "run", "writer", "zero", "created")

RECORD_HEADER = struct.Struct("<8sHBBHBBQQQQQQQQQIIQ7IIQQII16s")
RECORD_FIELDS = (
    "magic", "version", "kind", "ndim", "flags", "marks", "dtype", "key_hi", "key_lo", "sequence", "length",
    "content_hi", "content_lo", "checksum", "namespace", "expiry", "epoch", "depth", "dim0",
    "dim1", "dim2", "dim3", "dim4", "dim5", "dim6", "dim7", "payload_at", "segment", "run", "unit", "zero", "store",
)  # fmt: skip

TRAILER = struct.Struct("<8sHHI16sQQIIQQQQQQQQQ")
TRAILER_FIELDS = (
    "magic", "version", "entry_bytes", "unit", "store", "segment", "run", "writer", "zero", "count", "table_at",
    "table_bytes", "table_check", "data_end", "lowest", "highest", "blocks", "tombstones",
)  # fmt: skip

# The entry of a record in the footer's table: all that a restart needs, without reading the record.
ENTRY = np.dtype(
    [
        ("key_hi", "<u8"), ("key_lo", "<u8"), ("sequence", "<u8"), ("length", "<u8"), ("namespace", "<u8"),
        ("expiry", "<u8"), ("epoch", "<u4"), ("unit", "<u4"), ("header_check", "<u4"), ("kind", "u1"), ("marks", "u1"),
        ("flags", "<u2"), ("checksum", "<u8"), ("dim0", "<u8"), ("dims", "<u4", 7), ("depth", "<u4"), ("dtype", "u1"),
        ("ndim", "u1"), ("zeros", "u1", 14),
    ]
)  # fmt: skip


class Place(NamedTuple):
    """The segment that a record or a footer belongs to: what each of them repeats, so that a foreign one is seen."""

    store: bytes  # 16 bytes: the directory's identity
    segment: int
    run: int  # 64 random bits of the job that wrote it


class Location(NamedTuple):
    """Where a record is: the number of its segment, and its first unit."""

    segment: int
    unit: int


def align(offset: int, step: int) -> int:
    """Local. The first multiple of `step` at or after an offset."""
    return -(-offset // step) * step


def lead(length: int) -> int:
    """Local. Bytes from the start of a record to its payload of `length` bytes."""
    return RECORD_BYTES if length < LARGE else LARGE_LEAD


def unit_after(end: int, length: int) -> int:
    """Local. The unit of a record with a payload of `length` bytes, when what is before it ends at byte `end`."""
    if length < LARGE:
        return -(-end // UNIT)
    return (align(end + LARGE_LEAD, PAGE) - LARGE_LEAD) // UNIT


def is_place_for(unit: int, length: int) -> bool:
    """Local. Whether a record of this length may start at this unit."""
    return unit * UNIT >= PAGE and (length < LARGE or (unit * UNIT + LARGE_LEAD) % PAGE == 0)


def end_of(unit: int, length: int) -> int:
    """Local. The byte after the payload of a record."""
    return unit * UNIT + lead(length) + length


def footer_bytes(end: int, count: int) -> int:
    """Local. The size of a segment whose records end at byte `end`, with the footer of `count` records."""
    return align(align(end, PAGE) + count * ENTRY_BYTES, PAGE) + PAGE


def sealed_name(segment: int) -> str:
    """Local. The path of a sealed segment, relative to the store's directory."""
    return f"{FOLDER}/{segment:016x}.seg"


def open_name(segment: int) -> str:
    """Local. The path of a segment that has not been sealed, relative to the store's directory."""
    return sealed_name(segment) + ".open"


def parse_name(name: str) -> tuple[int, bool] | None:
    """Local. The number of the segment that a file's name (without folder) stands for, and whether it is sealed.

    None: it is not the name of a segment.
    """
    match = _NAME.fullmatch(name)
    return (int(match[1], 16), match[2] is None) if match else None
