"""Small segments for tests: a store of known contents, and what can be read back of one.

Covers making them by the real log, and reading them as a restart does. Does not cover damage.
"""

from __future__ import annotations

import random
from itertools import count
from typing import Any

from memory_files import MemoryFiles

from cascade_mpi.errors import DamagedError
from cascade_mpi.segments.format import MIN_SEGMENT_BYTES, Location
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import Recovery, latest, recover

STORE = bytes(range(16))
RUN = 0x1122334455667788
Key = tuple[int, int]
FIRST = "segments/0000000000000000.seg"


def random_bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def record_of(number: int, length: int, **fields: Any) -> Record:
    return Record(key_hi=number, key_lo=number * 31 + 7, sequence=number + 1, length=length)._replace(**fields)


def a_log(files: Any, segment_bytes: int = MIN_SEGMENT_BYTES, **options: Any) -> SegmentLog:
    return SegmentLog(files, STORE, options.pop("numbers", count()), RUN, segment_bytes, **options)


def a_store(
    sizes: list[int], *, segment_bytes: int = MIN_SEGMENT_BYTES, seal: bool = True
) -> tuple[MemoryFiles, dict[Key, bytes]]:
    """A store of one block of each size, and what is in it."""
    files, contents = MemoryFiles(), {}
    log = a_log(files, segment_bytes)
    for number, size in enumerate(sizes):
        record, payload = record_of(number, size), random_bytes(number, size)
        log.append(record, payload)
        contents[record.key_hi, record.key_lo] = payload
    if seal:
        log.close()
    return files, contents


def copy_of(files: MemoryFiles, **changed: bytes | bytearray | None) -> MemoryFiles:
    """The same directory with other bytes under some paths; None: without them."""
    made = MemoryFiles()
    made.folders = set(files.folders)
    made.contents = {path: bytearray(data) for path, data in files.contents.items()}
    for path, data in changed.items():
        made.contents.pop(path, None)
        if data is not None:
            made.contents[path] = bytearray(data)
    return made


def with_file(files: MemoryFiles, path: str, data: bytes | bytearray | None) -> MemoryFiles:
    return copy_of(files, **{path: data})


def read_back(files: Any, found: Recovery | None = None) -> dict[Key, bytes]:
    """What a restart reads: the newest block of each key that can be read; damaged ones are misses."""
    found = recover(files, STORE) if found is None else found
    places = {index.segment: index.place for index in found.indexes}
    blocks = {}
    for row in latest(found.indexes).blocks:
        where, key = Location(int(row["segment"]), int(row["unit"])), (int(row["key_hi"]), int(row["key_lo"]))
        reader = open_segment(files, STORE, where.segment)
        out = bytearray(int(row["length"]))
        try:
            read = reader.read(
                where.unit, places[where.segment], memoryview(out), key=key, sequence=int(row["sequence"])
            )
        except DamagedError:
            continue
        finally:
            reader.close()
        assert read.length == len(out)
        blocks[key] = bytes(out)
    return blocks
