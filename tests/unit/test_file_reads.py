"""Reads that are summed on their way: sizes, files that end too soon, what the reader of a segment makes of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from memory_files import MemoryFiles
from segment_making import RUN, STORE, a_log, random_bytes, record_of

from cascade_mpi.errors import DamagedError
from cascade_mpi.kernels.checksum import CHUNK, checksum_twin
from cascade_mpi.kernels.file_reads import PIECE, read_summed_bytes, read_summed_twin
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import UNIT, Location, Place, lead, sealed_name
from cascade_mpi.segments.reader import SegmentReader, open_segment

GUARD = 64
HEAD_AT, HEAD = 100, 256
SIZES = [0, 1, 63, 64, 65, 4096, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 77, CHUNK, CHUNK + 1, 2 * CHUNK + PIECE + 5]


def summed(path: Path, offset: int, nbytes: int) -> tuple[int, int | None, bytes, bytes]:
    """Bytes read, the checksum if all were, header and payload; nothing around them was written."""
    memory = np.full(HEAD + nbytes + 3 * GUARD, 0xA5, np.uint8)
    value = np.zeros(1, np.uint64)
    head, begin = memory[GUARD : GUARD + HEAD], 2 * GUARD + HEAD
    descriptor = os.open(path, os.O_RDONLY)
    base = memory.ctypes.data
    done = read_summed_bytes(
        descriptor, HEAD_AT, base + GUARD, HEAD, offset, base + begin, nbytes, value.ctypes.data
    )  # fmt: skip
    os.close(descriptor)
    for guard in (memory[:GUARD], memory[GUARD + HEAD : begin], memory[begin + nbytes :]):
        assert (guard == 0xA5).all()
    whole = done == HEAD + nbytes
    return done, int(value[0]) if whole else None, head.tobytes(), memory[begin : begin + nbytes].tobytes()


@pytest.mark.parametrize("nbytes", SIZES)
def test_bytes_and_checksum(tmp_path: Path, nbytes: int) -> None:
    data = random_bytes(nbytes, nbytes)
    (tmp_path / "a").write_bytes(bytes(HEAD_AT) + b"h" * HEAD + b"-" * 10 + data + b"behind")
    offset = HEAD_AT + HEAD + 10
    done, checksum, head, found = summed(tmp_path / "a", offset, nbytes)
    assert (done, head, found) == (HEAD + nbytes, b"h" * HEAD, data)
    assert checksum == checksum_twin(np.frombuffer(data, np.uint8))
    out, twins_head = np.zeros(nbytes, np.uint8), np.zeros(HEAD, np.uint8)
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    assert read_summed_twin(descriptor, HEAD_AT, twins_head, offset, out) == (done, checksum)
    os.close(descriptor)
    assert (out.tobytes(), twins_head.tobytes()) == (found, head)


@pytest.mark.parametrize("missing", [1, PIECE, PIECE + 1, 2 * PIECE + 500, 2 * PIECE + 500 + HEAD])
def test_a_file_that_ends_before(tmp_path: Path, missing: int) -> None:
    nbytes = 2 * PIECE + 500
    whole = bytes(HEAD_AT) + b"h" * HEAD + random_bytes(1, nbytes)
    (tmp_path / "a").write_bytes(whole[: len(whole) - missing])
    done, checksum, _, _ = summed(tmp_path / "a", HEAD_AT + HEAD, nbytes)
    assert (done, checksum) == (HEAD + nbytes - missing, None)
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    twin = read_summed_twin(
        descriptor, HEAD_AT, np.zeros(HEAD, np.uint8), HEAD_AT + HEAD, np.zeros(nbytes, np.uint8)
    )  # fmt: skip
    os.close(descriptor)
    assert twin == (done, None)


def test_a_descriptor_that_cannot_be_read(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    memory = np.zeros(64, np.uint64)
    at = memory.ctypes.data
    assert read_summed_bytes(descriptor, 0, at, 256, 256, at, 256, at) == 0
    os.close(descriptor)


# ------------------------------------------------------------------------------------------------ of a segment's reader

LENGTHS = [0, 1, 5000, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, PIECE + 3, 700_000]


def _reader(files: PosixFiles | MemoryFiles, number: int) -> SegmentReader:
    return open_segment(files, STORE, number)


def _read(reader: SegmentReader, location: Location, length: int, number: int, **wrong: int) -> bytes:
    out = np.full(length + 2 * GUARD, 0xA5, np.uint8)
    record = record_of(number, length)
    place = Place(STORE, location.segment, RUN)
    key = wrong.get("key_hi", record.key_hi), record.key_lo
    address = out.ctypes.data + GUARD
    reader.read_to(location.unit, place, address, wrong.get("says", length), key, wrong.get("sequence", number + 1))
    assert (out[:GUARD] == 0xA5).all()
    assert (out[GUARD + length :] == 0xA5).all()
    return out[GUARD : GUARD + length].tobytes()


@pytest.mark.parametrize("where", ["posix", "memory", "past the cache"])
def test_a_payload_to_an_address(tmp_path: Path, where: str) -> None:
    files = MemoryFiles() if where == "memory" else PosixFiles(tmp_path, direct_reads=where == "past the cache")
    log = a_log(files, 1 << 20)
    locations = [
        log.append(record_of(number, length), random_bytes(number, length)) for number, length in enumerate(LENGTHS)
    ]
    log.close()
    for number, (length, location) in enumerate(zip(LENGTHS, locations, strict=True)):
        reader = _reader(files, location.segment)
        assert _read(reader, location, length, number) == random_bytes(number, length)
        for wrong in ({"key_hi": 99}, {"sequence": 99}, {"says": length - 1 if length else 1}):
            with pytest.raises(DamagedError):
                _read(reader, location, max(length, 1), number, **wrong)
        with pytest.raises(DamagedError, match=r"segment|record"):
            _read(reader, Location(location.segment, location.unit + 4), length, number)
        reader.close()


@pytest.mark.parametrize("length", [5000, 64 << 10, PIECE + 3])
def test_every_damage_is_seen(tmp_path: Path, length: int) -> None:
    with PosixFiles(tmp_path) as files:
        log = a_log(files, 1 << 20)
        location = log.append(record_of(0, length), random_bytes(0, length))
        log.close()
        path = tmp_path / sealed_name(location.segment)
        whole = path.read_bytes()
        start = location.unit * UNIT
        begin = start + lead(length)
        for at in (start, start + 20, start + 255, begin, begin + 1000, begin + length // 2, begin + length - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            reader = _reader(files, location.segment)
            with pytest.raises(DamagedError):
                _read(reader, location, length, 0)
            reader.close()
        path.write_bytes(whole)
        reader = _reader(files, location.segment)
        os.truncate(path, begin + length - 1)  # since it was opened
        with pytest.raises(DamagedError, match="cut short"):
            _read(reader, location, length, 0)
        reader.close()
