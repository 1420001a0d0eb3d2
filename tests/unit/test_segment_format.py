"""The bytes of a segment: every field comes back, every flipped bit is seen, and the format is what it was."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_files import MemoryFiles
from segment_making import FIRST, RUN, STORE, a_log, random_bytes, record_of

from cascade_mpi.errors import DamagedError
from cascade_mpi.layout import DESCRIPTOR, MAX_DIMS, pack_location, unpack_location
from cascade_mpi.segments import format as f
from cascade_mpi.segments.pages import (
    SegmentHeader,
    decode_header,
    decode_table,
    decode_trailer,
    encode_footer,
    encode_header,
    entry_of,
)
from cascade_mpi.segments.records import Record, decode_record, encode_record, header_check

PLACE = f.Place(STORE, 5, RUN)
u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
seven = st.tuples(*[u32] * (MAX_DIMS - 1))
records = st.builds(
    Record, kind=st.just(f.BLOCK),
    key_hi=u64, key_lo=u64, sequence=u64, length=st.integers(0, f.MAX_LENGTH), flags=u16,
    marks=u8, dtype=u8, ndim=st.integers(0, MAX_DIMS), dim0=u64, dims=seven, content_hi=u64,
    content_lo=u64, checksum=u64, namespace=u64, epoch=u32, expiry=u64, depth=u32,
)  # fmt: skip


def small_segment() -> bytes:
    """Always the same: what changes its bytes changes the format."""
    files = MemoryFiles()
    log = a_log(files, 1 << 20, writer=3, now=lambda: 1_700_000_000_123_456_789)
    for number, size in enumerate((0, 1, 255, 767, 768, 5000, f.LARGE - 1, f.LARGE, 0)):
        fields = {
            "flags": 2 | number << 5, "marks": number & 1, "dtype": 10, "ndim": 2, "dim0": 3,
            "dims": (number, 0, 0, 0, 0, 0, 9), "content_hi": 11, "content_lo": 12, "namespace": 13, "epoch": 14,
            "expiry": 15, "depth": 16,
        }  # fmt: skip
        log.append(record_of(number, size, **fields), random_bytes(number, size))
    log.tombstone(1, 38, 99, namespace=13, epoch=14)
    log.close()
    return bytes(files.contents[FIRST])


def test_the_bytes_of_a_segment_are_what_they_were() -> None:
    """A change here makes every stored segment unreadable: then VERSION goes up, and the page says so."""
    data = small_segment()
    assert len(data) == 163_840
    assert hashlib.sha256(data).hexdigest() == "d5271840b9e9596f0fa211f06887ce479eab736ac504ad92a68779151f4c9862"
    assert data[:10] == b"CSCDseg\n\x01\x00"
    assert data[4096:4107] == b"CSCDrec\n\x01\x00\x01"
    assert data[-4096:-4086] == b"CSCDend\n\x01\x00"


def test_fields_stand_where_the_page_says() -> None:
    """Read with nothing of the library: another program can do the same."""
    data = small_segment()

    def number(at: int, nbytes: int) -> int:
        return int.from_bytes(data[at : at + nbytes], "little")

    assert data[16:32] == STORE
    assert [number(at, 8) for at in (32, 40, 56)] == [0, RUN, 1_700_000_000_123_456_789]
    assert number(48, 4) == 3
    second = 4096 + 1024
    assert [number(second + at, 1) for at in (10, 11, 14, 15)] == [1, 2, 1, 10]  # kind, ndim, marks, dtype
    assert number(second + 12, 2) == 2 | 1 << 5 | 1  # flags: the checksum is valid
    assert [number(second + at, 8) for at in (16, 24, 32, 40, 48, 56)] == [1, 38, 2, 1, 11, 12]
    assert [number(second + at, 8) for at in (72, 80, 96)] == [13, 15, 3]
    assert [number(second + at, 4) for at in (88, 92, 104, 128, 132, 152)] == [14, 16, 1, 9, 256, 5]
    assert [number(second + at, 8) for at in (136, 144)] == [0, RUN]
    assert data[second + 160 : second + 176] == STORE
    assert data[second + 256 : second + 257] == random_bytes(1, 1)
    end = len(data) - 4096
    assert data[end + 16 : end + 32] == STORE
    count, table_at, table_bytes, _, data_end, lowest, highest, blocks, tombstones = (
        number(end + at, 8) for at in range(56, 128, 8)
    )
    assert (count, table_bytes, lowest, highest, blocks, tombstones) == (10, 1280, 1, 99, 9, 1)
    assert table_at % 4096 == 0
    assert 0 <= table_at - data_end < 4096
    entry = table_at + 128
    assert [number(entry + at, 8) for at in (0, 8, 16, 24, 32, 40)] == [1, 38, 2, 1, 13, 15]
    assert [number(entry + at, 4) for at in (48, 52, 56)] == [14, 5, number(second + 248, 4)]
    assert [number(entry + at, 1) for at in (60, 61, 62)] == [1, 1, 2 | 1 << 5 | 1]
    assert [number(entry + at, 8) for at in (64, 72)] == [number(second + at, 8) for at in (64, 96)]  # checksum, dim0
    assert [number(entry + at, 4) for at in (80, 104, 108)] == [1, 9, 16]
    assert [number(entry + at, 1) for at in (112, 113)] == [10, 2]
    assert not any(data[entry + 114 : entry + 128])


@given(records, st.integers(4, (1 << 32) - 1))
def test_every_field_of_a_record_comes_back(record: Record, unit: int) -> None:
    unit = f.unit_after(unit * f.UNIT, record.length)
    if unit >= 1 << 32:
        return
    header = encode_record(record, PLACE, unit)
    assert len(header) == f.RECORD_BYTES
    assert decode_record(header, PLACE, unit, 1 << 63, "x") == record


def test_a_record_has_all_that_a_descriptor_has() -> None:
    only_of_memory = {"magic", "generation", "manager", "own_checksum"}
    assert set(DESCRIPTOR.names or ()) - only_of_memory <= set(Record._fields)
    limits = Record(
        **{
            name: np.iinfo(DESCRIPTOR[name].base).max
            for name in set(DESCRIPTOR.names or ()) - only_of_memory - {"length", "ndim", "dims"}
        },
        dims=(0xFFFFFFFF,) * (MAX_DIMS - 1), ndim=MAX_DIMS,
    )  # fmt: skip
    assert decode_record(encode_record(limits, PLACE, 4), PLACE, 4, 1 << 63, "x") == limits


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": 3}, {"kind": 0}, {"ndim": 9}, {"length": f.MAX_LENGTH + 1}, {"kind": f.TOMBSTONE, "length": 1},
        {"key_hi": 1 << 64}, {"sequence": -1}, {"flags": 1 << 16}, {"epoch": 1 << 32}, {"marks": 256},
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_is_not_written(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="record"):
        encode_record(Record()._replace(**wrong), PLACE, 4)


@given(st.integers(f.PAGE, 1 << 40), st.integers(0, 1 << 30))
def test_records_are_placed_behind_each_other_and_large_payloads_at_pages(end: int, length: int) -> None:
    unit = f.unit_after(end, length)
    assert f.is_place_for(unit, length)
    assert unit * f.UNIT >= end
    payload = unit * f.UNIT + f.lead(length)
    assert f.end_of(unit, length) == payload + length
    if length < f.LARGE:
        assert unit * f.UNIT - end < f.UNIT
        assert payload == unit * f.UNIT + f.RECORD_BYTES
    else:
        assert payload % f.PAGE == 0
        assert unit * f.UNIT - end < f.PAGE
        assert not f.is_place_for(unit + 1, length)


def test_a_location_fits_the_descriptor_of_a_disk_cell() -> None:
    where = f.Location((1 << 40) - 1, f.MAX_SEGMENT_BYTES // f.UNIT - 1)
    assert tuple(unpack_location(pack_location(*where))) == where


def test_names_of_files() -> None:
    assert f.open_name(10) == "segments/000000000000000a.seg.open"
    for number in (0, 10, f.MAX_SEGMENT):
        assert f.parse_name(f.sealed_name(number).partition("/")[2]) == (number, True)
        assert f.parse_name(f.open_name(number).partition("/")[2]) == (number, False)
    for name in ("a.seg", "000000000000000A.seg", "000000000000000a.seg.new", "x000000000000000a.seg", ""):
        assert f.parse_name(name) is None


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_records_header_is_seen() -> None:
    header = encode_record(record_of(3, 700, checksum=9), PLACE, 8)
    for bit in range(8 * len(header)):
        with pytest.raises(DamagedError, match="x at byte 8192"):
            decode_record(flipped(header, bit), PLACE, 8, 1 << 30, "x")


def test_every_flipped_bit_of_the_first_page_is_seen() -> None:
    header = SegmentHeader(PLACE, 7, 1_700_000_000)
    page = encode_header(header)
    assert decode_header(page, STORE, 5, "x") == header
    for bit in range(8 * len(page)):
        with pytest.raises(DamagedError, match="x at byte 0"):
            decode_header(flipped(page, bit), STORE, 5, "x")


def some_entries(count: int, seed: int = 1) -> tuple[np.ndarray, int]:
    chance, end, rows = random.Random(seed), f.PAGE, []
    for number in range(count):
        length = chance.choice((0, 1, 5000, 70_000))
        unit = f.unit_after(end, length)
        rows.append(entry_of(record_of(number, length), unit, number))
        end = f.end_of(unit, length)
    return np.array(rows, f.ENTRY), end


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
def test_a_footer_comes_back(count: int) -> None:
    entries, end = some_entries(count)
    table_at, footer = encode_footer(PLACE, 7, entries, end)
    size = table_at + len(footer)
    assert size == f.footer_bytes(end, count)
    trailer = decode_trailer(footer[-f.PAGE :], STORE, 5, size, "x")
    assert (trailer.place, trailer.writer, trailer.records, trailer.data_end) == (PLACE, 7, count, end)
    back = decode_table(footer[: trailer.table_bytes], trailer, "x")
    assert back.dtype == f.ENTRY
    assert np.array_equal(back, entries)


def test_every_flipped_bit_of_a_footer_is_seen() -> None:
    entries, end = some_entries(5)
    table_at, footer = encode_footer(PLACE, 7, entries, end)
    size, table = table_at + len(footer), 5 * f.ENTRY_BYTES
    trailer = decode_trailer(footer[-f.PAGE :], STORE, 5, size, "x")
    for bit in range(8 * f.PAGE):
        with pytest.raises(DamagedError):
            decode_trailer(flipped(footer[-f.PAGE :], bit), STORE, 5, size, "x")
    for bit in range(8 * table):
        with pytest.raises(DamagedError):
            decode_table(flipped(footer[:table], bit), trailer, "x")


def test_a_footer_of_another_size_of_file_is_refused() -> None:
    entries, end = some_entries(5)
    table_at, footer = encode_footer(PLACE, 7, entries, end)
    for size in (0, f.PAGE, table_at + len(footer) - f.PAGE, table_at + len(footer) + f.PAGE, 1 << 60):
        with pytest.raises(DamagedError, match="cannot be"):
            decode_trailer(footer[-f.PAGE :], STORE, 5, size, "x")


def test_a_table_that_cannot_be_is_refused_although_its_checksum_is_right() -> None:
    entries, end = some_entries(20)

    def refused(match: str, changed: np.ndarray, data_end: int = end) -> None:
        table_at, footer = encode_footer(PLACE, 7, changed, data_end)
        trailer = decode_trailer(footer[-f.PAGE :], STORE, 5, table_at + len(footer), "x")
        with pytest.raises(DamagedError, match=match):
            decode_table(footer[: trailer.table_bytes], trailer, "x")

    def with_field(name: str, at: int, value: int) -> np.ndarray:
        changed = entries.copy()
        changed[name][at] = value
        return changed

    large = int(np.argmax(entries["length"] >= f.LARGE))
    refused("kind that is not known", with_field("kind", 3, 7))
    refused("tombstone with a payload", with_field("kind", large, f.TOMBSTONE))
    refused("bytes among", with_field("length", 3, 1 << 63))
    refused("outside the records", with_field("unit", 19, 1 << 31))
    refused("outside the records", with_field("unit", 0, 0))
    refused("overlap", with_field("unit", 7, int(entries["unit"][6])))
    refused("overlap", entries[::-1])
    refused("begins at no page", with_field("unit", large, int(entries["unit"][large]) + 1))
    refused("the trailer says", entries, end + 1)


@pytest.mark.parametrize(
    ("other", "match"),
    [(f.Place(bytes(16), 5, RUN), "of the store"), (f.Place(STORE, 6, RUN), "segment"), (f.Place(STORE, 5, 1), "run")],
)
def test_what_belongs_elsewhere_is_refused(other: f.Place, match: str) -> None:
    with pytest.raises(DamagedError, match=match):
        decode_record(encode_record(record_of(1, 10), other, 8), PLACE, 8, 1 << 30, "x")
    if match == "run":
        return  # the header and the footer are the ones that say which run it is
    with pytest.raises(DamagedError, match=match):
        decode_header(encode_header(SegmentHeader(other, 0, 0)), STORE, 5, "x")
    entries, end = some_entries(1)
    table_at, footer = encode_footer(other, 7, entries, end)
    with pytest.raises(DamagedError, match=match):
        decode_trailer(footer[-f.PAGE :], STORE, 5, table_at + len(footer), "x")


def test_a_record_at_another_unit_is_refused() -> None:
    header = encode_record(record_of(1, 10), PLACE, 8)
    with pytest.raises(DamagedError, match=r"unit 8, not .* unit 9"):
        decode_record(header, PLACE, 9, 1 << 30, "x")


def test_a_record_longer_than_the_file_is_refused() -> None:
    header = encode_record(record_of(1, 1 << 40), PLACE, 7)
    with pytest.raises(DamagedError, match=r"would end at byte \d+, beyond 1048576"):
        decode_record(header, PLACE, 7, 1 << 20, "x")


def test_a_newer_format_is_named_as_such() -> None:
    import struct

    import xxhash

    page = bytearray(encode_header(SegmentHeader(PLACE, 0, 0)))
    page[8] = 2
    page[-8:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(page[:-8])))
    with pytest.raises(DamagedError, match="format 2: this version of Cascade reads 1"):
        decode_header(bytes(page), STORE, 5, "x")


def test_the_entry_repeats_the_check_of_the_header() -> None:
    header = encode_record(record_of(1, 10), PLACE, 8)
    assert header_check(header) == int.from_bytes(header[-8:], "little") & 0xFFFFFFFF
    assert f.ENTRY.itemsize == f.ENTRY_BYTES
