"""The header of a record: what is known of a block besides its bytes, and where the record belongs.

Covers values to 256 bytes and back, with every check that one header allows. Does not cover payloads (see `reader`)
nor the order of records (see `scan`).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from cascade_mpi.errors import DamagedError
from cascade_mpi.layout import MAX_DIMS
from cascade_mpi.segments.format import (
    BLOCK,
    KINDS,
    MAX_LENGTH,
    RECORD_BYTES,
    RECORD_HEADER,
    RECORD_MAGIC,
    TOMBSTONE,
    VERSION,
    Place,
    end_of,
    is_place_for,
    lead,
)

_CHECKED = RECORD_BYTES - 8
_PADDING = bytes(_CHECKED - RECORD_HEADER.size)
_CHECK = struct.Struct("<Q")
_DIMS = MAX_DIMS - 1


class Record(NamedTuple):
    """What a record says of its block: the fields of a descriptor that outlive the memory it was in.

    `flags` and `dtype` are those of the descriptor (see `layout`, `values`), `marks` what its index word said. `expiry`
    is absolute here, a second of Unix time (0: never); in memory it counts from the opening of the store. `checksum` is
    that of the payload, `kernels.checksum`, and always valid.
    """

    kind: int = BLOCK
    key_hi: int = 0
    key_lo: int = 0
    sequence: int = 0
    length: int = 0
    flags: int = 0
    marks: int = 0
    dtype: int = 0
    ndim: int = 0
    dim0: int = 0
    dims: tuple[int, ...] = (0,) * _DIMS
    content_hi: int = 0
    content_lo: int = 0
    checksum: int = 0
    namespace: int = 0
    epoch: int = 0
    expiry: int = 0
    depth: int = 0


def encode_record(record: Record, place: Place, unit: int) -> bytes:
    """Local. The 256 bytes of a record's header at its place; ValueError names a field that does not fit."""
    r = record
    try:
        text = RECORD_HEADER.pack(
            RECORD_MAGIC, VERSION, r.kind, r.ndim, r.flags, r.marks, r.dtype, r.key_hi, r.key_lo, r.sequence, r.length,
            r.content_hi, r.content_lo, r.checksum, r.namespace, r.expiry, r.epoch, r.depth, r.dim0, *r.dims,
            lead(r.length), place.segment, place.run, unit, 0, place.store,
        ) + _PADDING  # fmt: skip
    except struct.error as error:
        raise ValueError(f"a field of a record does not fit its place in the file ({error}): {r}") from None
    if wrong := _impossible(r, unit):
        raise ValueError(f"{wrong}: {r}")
    return text + _CHECK.pack(xxhash.xxh3_64_intdigest(text))


def header_check(header: bytes | memoryview) -> int:
    """Local. The 32 bits of a header's checksum that its entry in the footer repeats."""
    return int.from_bytes(header[_CHECKED : _CHECKED + 4], "little")


def decode_record(header: bytes | memoryview, place: Place, unit: int, room: int, path: str) -> Record:
    """Local. The record whose header these 256 bytes are, if it belongs here and ends within `room` bytes of the file.

    `path` is for the error: DamagedError says what is wrong and what was expected. Nothing is allocated by a length
    that the file has.
    """
    offset = unit << 10
    if len(header) != RECORD_BYTES:
        raise DamagedError(path, offset, f"{len(header)} bytes of a record's header, which has {RECORD_BYTES}")
    if header[:8] != RECORD_MAGIC:
        raise DamagedError(path, offset, f"no record: it begins with {bytes(header[:8]).hex()}, not {RECORD_MAGIC!r}")
    own, computed = _CHECK.unpack_from(header, _CHECKED)[0], xxhash.xxh3_64_intdigest(header[:_CHECKED])
    if own != computed:
        raise DamagedError(path, offset, f"the record's header has the checksum {computed:016x}, not {own:016x}")
    values = RECORD_HEADER.unpack_from(header)
    (_, version, kind, ndim, flags, marks, dtype, key_hi, key_lo, sequence, length, content_hi, content_lo, checksum,
     namespace, expiry, epoch, depth, dim0) = values[:19]  # fmt: skip
    payload_at, segment, run, own_unit, _, store = values[26:]
    if version != VERSION:
        raise DamagedError(path, offset, f"a record of format {version}: this version of Cascade reads {VERSION}")
    if store != place.store:
        raise DamagedError(path, offset, f"a record of the store {store.hex()}, not {place.store.hex()}")
    there, here = (segment, run, own_unit), (place.segment, place.run, unit)
    if there != here:
        raise DamagedError(path, offset, "a record of segment {:x}, run {:x}, unit {:x}, not ".format(*there)
                           + "segment {:x}, run {:x}, unit {:x}".format(*here))  # fmt: skip
    record = Record(
        kind, key_hi, key_lo, sequence, length, flags, marks, dtype, ndim, dim0, values[19:26], content_hi, content_lo,
        checksum, namespace, epoch, expiry, depth,
    )  # fmt: skip
    if wrong := _impossible(record, unit):
        raise DamagedError(path, offset, wrong)
    if payload_at != lead(length):
        raise DamagedError(path, offset, f"the payload begins {payload_at} bytes after the record, not {lead(length)}")
    if end_of(unit, length) > room:
        raise DamagedError(
            path, offset, f"the payload of {length} bytes would end at byte {end_of(unit, length)}, beyond {room}"
        )
    return record


def _impossible(record: Record, unit: int) -> str:
    """What cannot be in any record, "" if nothing."""
    if record.kind not in KINDS:
        return f"a record of kind {record.kind}: known are {', '.join(map(str, KINDS))}"
    if record.ndim > MAX_DIMS:
        return f"a record of {record.ndim} dimensions: at most {MAX_DIMS}"
    if record.length > MAX_LENGTH or (record.kind == TOMBSTONE and record.length):
        return f"a record that is a {KINDS[record.kind]} of {record.length} bytes"
    if not is_place_for(unit, record.length):
        return f"a record with a payload of {record.length} bytes cannot start at unit {unit}"
    return ""
