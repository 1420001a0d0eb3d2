"""Which segments a compaction rewrites: as few bytes as possible for the garbage that must go, and small files merged.

Covers the choice, from the account of `space`. Does not cover the rewriting (see `compaction`), nor when somebody asks.
"""

from __future__ import annotations

from collections.abc import Collection

from cascade_mpi.segments.format import MAX_SEGMENT_BYTES
from cascade_mpi.segments.log import ALONE_SHARE, SEAL_SHARE
from cascade_mpi.segments.space import SegmentSpace, Space

DEAD_SHARE = 0.5  # dead bytes over live ones: what is promised
START_SHARE = 0.4  # where a compaction begins, so that the promise holds until it has ended
SMALL_FILES = 8  # segments smaller than those that a sync seals; more of them are merged
_WORTH = 8  # what is rewritten to keep room for held records has at least an eighth of its needed bytes in garbage


def plan(
    space: Space,
    *,
    segment_bytes: int = MAX_SEGMENT_BYTES,
    share: float = START_SHARE,
    small_files: int = SMALL_FILES,
    most_files: int | None = None,
    busy: Collection[int] = (),
    first: Collection[int] = (),
) -> list[int]:
    """Local. The segments to rewrite, in this order; none if there is nothing to gain. Sorts all segments once.

    share
        Afterwards garbage is at most this part of what is live, however many bytes that takes, and what is dead (held
        records too, which cannot go) is as well where it is worth it.
    small_files
        If there are more segments smaller than an eighth of `segment_bytes`, all of them are merged.
    most_files
        If there would be more segments, those with the least in them are merged until it is so many, or until all that
        are left are more than half full, or a single large block each.
    busy
        Segments to leave alone: those that are being written, or rewritten already.
    first
        Segments to rewrite in any case: those of `SegmentLog.unsure`, and those without a footer.

    Segments without a byte that is needed come first: they cost nothing. Then those with the most garbage for each byte
    that has to be copied.
    """
    found = {number: each for number, each in space.segments.items() if number not in busy and not each.kept}
    free = sorted(number for number, each in found.items() if not each.needed)
    chosen = dict.fromkeys(free)
    chosen.update(dict.fromkeys(sorted(number for number in first if number in found)))
    garbage = space.garbage - sum(found[number].garbage for number in chosen)
    rest = [number for number, each in found.items() if number not in chosen and each.garbage]
    limit = share * space.live
    for number in sorted(rest, key=lambda number: (-_gain(found[number]), number)):
        each = found[number]
        worth = each.garbage * _WORTH >= each.needed
        if garbage <= limit and (garbage + space.held <= limit or not worth):
            break
        chosen[number] = None
        garbage -= each.garbage
    small = [
        number
        for number, each in sorted(found.items())
        if number not in chosen and each.size < segment_bytes // SEAL_SHARE
    ]
    if len(small) > small_files:
        chosen.update(dict.fromkeys(small))
    if most_files is not None:
        _merge(chosen, found, space.files - most_files, segment_bytes)
    return list(chosen)


def _merge(chosen: dict[int, None], found: dict[int, SegmentSpace], excess: int, segment_bytes: int) -> None:
    """Choose more, the emptiest first, until so many files fewer are left."""
    needed = sum(found[number].needed for number in chosen)
    rest = [number for number, each in found.items() if number not in chosen]
    for number in sorted(rest, key=lambda number: (found[number].needed, number)):
        each, new = found[number], -(-needed // segment_bytes)
        if len(chosen) - new >= excess or each.needed > segment_bytes // 2:
            return
        if each.records > 1 or each.needed <= segment_bytes // ALONE_SHARE:  # else it gets a file of its own again
            chosen[number] = None
            needed += each.needed


def _gain(segment: SegmentSpace) -> float:
    """Garbage that goes for each byte that is copied."""
    return segment.garbage / max(segment.needed, 1)
