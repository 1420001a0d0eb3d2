"""Shared segments without MPI: where records go, whose bytes are whose, and which rank writes a page.

The oracle is the log of one writer, to which the records of all ranks are given in the order of ranks.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from memory_files import MemoryFiles
from segment_making import RUN, STORE, a_log, random_bytes, record_of

from cascade_mpi.mpiio.part import PartBytes
from cascade_mpi.mpiio.plan import Cursor, Part, by_segment, fragments, own_range, place
from cascade_mpi.segments.format import LARGE, MIN_SEGMENT_BYTES, PAGE, UNIT, Location, Place, lead
from cascade_mpi.segments.log import checked
from cascade_mpi.segments.records import encode_record

SIZES = (0, 1, 300, 767, 768, 5000, 16_000, 16_385, LARGE - 1, LARGE, LARGE + 1, 70_000, 300_000)


def brought(seed: int, ranks: int) -> list[list[int]]:
    """The sizes of each rank's records; some ranks have none."""
    chance = random.Random(seed)
    return [[chance.choice(SIZES) for _ in range(chance.choice((0, 1, 2, 5, 40)))] for _ in range(ranks)]


def placed(lengths: list[list[int]], segment_bytes: int) -> tuple[list[list[Part]], dict[tuple[int, int], Location]]:
    """The parts of each segment, and where each record is, by rank and number."""
    cursor, parts, where = Cursor(), [], {}
    for rank, mine in enumerate(lengths):
        found = place(rank, cursor, mine, segment_bytes)
        cursor = found.cursor
        parts += found.parts
        for part, numbers, units in zip(found.parts, found.numbers, found.units, strict=True):
            assert part.records == len(numbers)
            for number, unit in zip(numbers, units, strict=True):
                where[rank, number] = Location(part.segment, unit)
    return by_segment(parts, cursor.segments), where


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("segment_bytes", [MIN_SEGMENT_BYTES, 1 << 20])
def test_records_go_where_one_log_would_put_them(seed: int, segment_bytes: int) -> None:
    lengths = brought(seed, 1 + seed % 7)
    segments, where = placed(lengths, segment_bytes)
    log = a_log(MemoryFiles(), segment_bytes)
    number = 0
    for rank, mine in enumerate(lengths):
        for at, length in enumerate(mine):
            assert log.append(record_of(number, length), bytes(length)) == where[rank, at]
            number += 1
    for parts in segments:
        ends = [PAGE, *(part.end for part in parts)]
        assert [part.start for part in parts] == ends[:-1], "the parts of ranks leave no gap"
        assert [part.rank for part in parts] == sorted({part.rank for part in parts})


@pytest.mark.parametrize("seed", range(40))
def test_each_page_is_written_by_one_rank_and_every_byte_by_somebody(seed: int) -> None:
    segments, _ = placed(brought(seed, 2 + seed % 6), 1 << 20)
    for parts in segments:
        writer_of: dict[int, set[int]] = {}
        written = np.zeros(parts[-1].end, np.int8)
        for part in parts:
            start, end = own_range(part)
            assert start % PAGE == 0
            written[start:end] += 1
            for page in range(start // PAGE, -(-end // PAGE)):
                writer_of.setdefault(page, set()).add(part.rank)
        for each in fragments(parts):
            source = next(part for part in parts if part.rank == each.source)
            assert source.start == each.start < each.end <= source.end, "the beginning of a part"
            assert each.end - each.start < PAGE
            assert each.source != each.target
            assert writer_of[each.start // PAGE] == {each.target}
            written[each.start : each.end] += 1
        assert (written == 1).all()
        assert all(len(ranks) == 1 for ranks in writer_of.values())


def test_small_parts_of_many_ranks_on_one_page_go_to_the_one_that_has_its_first_byte() -> None:
    parts = [Part(3, 0, PAGE, PAGE + 300, 1), Part(5, 0, PAGE + 300, PAGE + 600, 1), Part(6, 0, PAGE + 600, 9000, 1)]
    assert [(each.source, each.target, each.start, each.end) for each in fragments(parts)] == [
        (5, 3, PAGE + 300, PAGE + 600),
        (6, 3, PAGE + 600, 2 * PAGE),
    ]
    assert [own_range(part) for part in parts] == [(0, PAGE + 300), (2 * PAGE, 2 * PAGE), (2 * PAGE, 9000)]


def test_a_small_part_that_begins_with_a_page_writes_it() -> None:
    parts = [Part(0, 0, PAGE, 2 * PAGE, 1), Part(1, 0, 2 * PAGE, 2 * PAGE + 300, 1)]
    parts.append(Part(2, 0, 2 * PAGE + 300, 2 * PAGE + 600, 1))
    assert [(each.source, each.target) for each in fragments(parts)] == [(2, 1)]
    assert own_range(parts[1]) == (2 * PAGE, 2 * PAGE + 300)


@pytest.mark.parametrize("seed", range(20))
def test_the_bytes_of_parts_make_the_file(seed: int) -> None:
    lengths = [mine or [10] for mine in brought(seed, 3)]
    segments, where = placed(lengths, 1 << 20)
    files = MemoryFiles()
    log = a_log(files, 1 << 20)
    contents = {(part.rank, part.segment): PartBytes() for parts in segments for part in parts}
    for number, ((rank, at), place_of) in enumerate(where.items()):
        payload = memoryview(random_bytes(number, lengths[rank][at]))
        record = checked(record_of(number, payload.nbytes), payload)
        log.append(record, payload)
        content, start = contents[rank, place_of.segment], place_of.unit * UNIT
        content.add(start, encode_record(record, Place(STORE, place_of.segment, RUN), place_of.unit))
        content.add(start + lead(payload.nbytes), payload)
    log.close()
    chance = random.Random(seed)
    for number, parts in enumerate(segments):
        expected = files.contents[f"segments/{number:016x}.seg"]
        for part in parts:
            content = contents[part.rank, number]
            assert content.take(part.start, part.end) == expected[part.start : part.end]
            low, high = sorted(chance.randrange(part.start, part.end + 1) for _ in range(2))
            assert content.take(low, high) == expected[low:high]
            at = low
            for offset, buffer in content.runs(low, high):
                assert offset == at
                assert buffer == expected[at : at + buffer.nbytes]
                at += buffer.nbytes
            assert at == high


def test_large_payloads_are_not_copied() -> None:
    payload = bytearray(200_000)
    content = PartBytes()
    content.add(PAGE, bytes(256))
    content.add(2 * PAGE, payload)
    runs = list(content.runs(PAGE, 2 * PAGE + len(payload)))
    payload[77] = 99
    assert [(offset, buffer.nbytes) for offset, buffer in runs] == [(PAGE, PAGE), (2 * PAGE, 200_000)]
    assert runs[1][1][77] == 99
