"""Where the records of all ranks go in shared segments: as one log would write them, one rank after the other.

Covers the placing of lengths, the parts of segments that ranks bring, and which pages each of them writes. Pure: no
MPI, no files. Does not cover bytes (see `part`).

A scan takes a gap between two records for damage, so there are none between the parts of two ranks: a record's place
follows from all lengths before it, and a segment of several ranks is, byte for byte, what `segments.log.SegmentLog`
writes for the same records in the same order. Pages on which two ranks meet are written by one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cascade_mpi.segments.format import PAGE, align, end_of, footer_bytes, unit_after
from cascade_mpi.segments.log import ALONE_SHARE


class Cursor(NamedTuple):
    """Where the next record goes: what one rank hands to the next."""

    segments: int = 0  # begun so far
    current: int = -1  # the one that takes records; -1: none
    end: int = PAGE  # the byte after its last payload
    records: int = 0  # in it


class Part(NamedTuple):
    """The bytes [start, end) of a segment that are one rank's: the zeros before its records are among them."""

    rank: int
    segment: int  # in the order of this call, from 0
    start: int
    end: int
    records: int


class Placed(NamedTuple):
    """One rank's records: their parts, and for each part the numbers of its records and their units."""

    parts: list[Part]
    numbers: list[list[int]]
    units: list[list[int]]
    cursor: Cursor  # for the next rank


class Fragment(NamedTuple):
    """Bytes [start, end) of a segment that `source` has, on a page that `target` writes."""

    segment: int
    source: int
    target: int
    start: int
    end: int


def place(rank: int, cursor: Cursor, lengths: Iterable[int], segment_bytes: int) -> Placed:
    """Local. Place the payloads of one rank behind those of the ranks before it. About 1 us for each."""
    segments, current, end, count = cursor
    parts: dict[int, Part] = {}
    numbers: dict[int, list[int]] = {}
    units: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        if length > segment_bytes // ALONE_SHARE:
            segment, start, segments = segments, PAGE, segments + 1
            unit = unit_after(PAGE, length)
            stop = end_of(unit, length)
        else:
            unit = unit_after(end, length)
            stop = end_of(unit, length)
            if current < 0 or footer_bytes(stop, count + 1) > segment_bytes:
                current, end, count, segments = segments, PAGE, 0, segments + 1
                unit = unit_after(end, length)
                stop = end_of(unit, length)
            segment, start = current, end
            end, count = stop, count + 1
        part = parts.setdefault(segment, Part(rank, segment, start, start, 0))
        parts[segment] = part._replace(end=stop, records=part.records + 1)
        numbers.setdefault(segment, []).append(number)
        units.setdefault(segment, []).append(unit)
    order = sorted(parts)
    return Placed(
        [parts[each] for each in order], [numbers[each] for each in order], [units[each] for each in order],
        Cursor(segments, current, end, count),
    )  # fmt: skip


def by_segment(parts: Iterable[Part], segments: int) -> list[list[Part]]:
    """Local. The parts of each segment, in the order of the file, which is that of ranks."""
    found: list[list[Part]] = [[] for _ in range(segments)]
    for part in sorted(parts, key=lambda part: (part.segment, part.start)):
        found[part.segment].append(part)
    return found


def fragments(parts: Sequence[Part]) -> list[Fragment]:
    """Local. What the ranks of one segment hand to others, so that each page is written by one of them.

    That is the rank which has the first byte of the page. Whoever has other bytes of it has them at the beginning of
    its part, so each rank hands over less than a page, once.
    """
    found: list[Fragment] = []
    writer = parts[0].rank
    for part in parts:
        if part.start % PAGE:
            end = min(part.end, align(part.start, PAGE))
            found.append(Fragment(part.segment, part.rank, writer, part.start, end))
        if part.end // PAGE * PAGE >= part.start:
            writer = part.rank  # of the page that its last bytes are on
    return found


def own_range(part: Part) -> tuple[int, int]:
    """Local. The bytes of a part that its own rank writes; from 0 for the first one, which has the header."""
    start = 0 if part.start == PAGE else align(part.start, PAGE)
    return start, max(start, part.end)
