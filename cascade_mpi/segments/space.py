"""How the bytes of one writer's segments are used: what is live, what may not go yet, and what is garbage.

Covers the account, kept up to date record by record or made from the tables that a restart reads, and the quota. Does
not cover which segments are rewritten (see `planning`) nor the rewriting (see `compaction`).

A record is counted with the units of its file that it takes. It is in one of four classes::

    held        a block that no disk cell names, and that may not go all the same: written just now, or dead, while
                nothing of its key with a higher sequence is durable (rule 13 of docs/disk.md)
    live        a block that a disk cell names
    tombstones  deletions that something may still need (rule 14)
    garbage     what may go with its file

`appended` makes it held; `named` makes that live; `unnamed` makes it held again; `released` makes it garbage.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascade_mpi.config import format_size
from cascade_mpi.errors import DirectoryQuotaError
from cascade_mpi.segments.format import (
    ENTRY_BYTES,
    FOLDER,
    LARGE,
    LARGE_LEAD,
    PAGE,
    RECORD_BYTES,
    UNIT,
    align,
    lead,
)
from cascade_mpi.segments.recovery import SegmentIndex

_EMPTY_BYTES = 4 * PAGE  # header, trailer, and what table and records may leave unused of a page
TOMBSTONE_BYTES = UNIT


def footprint(length: int) -> int:
    """Local. The bytes of a file that a record with a payload of `length` bytes takes: whole units."""
    return align(lead(length) + length, UNIT)


def footprints(lengths: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Local. `footprint` of many."""
    signed: npt.NDArray[np.int64] = lengths.astype(np.int64)
    ends = signed + np.where(signed < LARGE, np.int64(RECORD_BYTES), np.int64(LARGE_LEAD))
    return (ends + np.int64(UNIT - 1)) // np.int64(UNIT) * np.int64(UNIT)


def most_growth(length: int) -> int:
    """Local. By how many bytes at most a record makes its file larger, with its entry in the table."""
    return footprint(length) + ENTRY_BYTES + (PAGE - UNIT if length >= LARGE else 0)


@dataclass(slots=True)
class SegmentSpace:
    """One segment, in bytes but for `records`.

    `size` is that of its file; while it is written, the most that it can be with a footer.
    """

    size: int = _EMPTY_BYTES
    live: int = 0
    held: int = 0
    tombstones: int = 0
    garbage: int = 0
    records: int = 0
    kept: str = ""  # why it is not to be rewritten; "": it may be

    @property
    def needed(self) -> int:
        """What a compaction has to copy."""
        return self.live + self.held + self.tombstones


class Space:
    """The account of one writer's segments. Every change is O(1). For one thread at a time.

    quota
        Bytes that the files may have together; None: no limit.
    reserve
        Of these, how many only a compaction may use: it needs room to make room.
    """

    def __init__(self, quota: int | None = None, reserve: int = 0) -> None:
        if quota is not None and not 0 <= reserve < quota:
            raise ValueError(f"a reserve of {reserve} bytes does not fit a quota of {quota}")
        self.quota, self.reserve = quota, reserve
        self.segments: dict[int, SegmentSpace] = {}
        self.size = self.live = self.held = self.tombstones = self.garbage = 0  # sums over all segments

    @classmethod
    def rebuilt(
        cls,
        indexes: Sequence[SegmentIndex],
        live: npt.NDArray[np.void],
        tombstones: npt.NDArray[np.void],
        *,
        quota: int | None = None,
        reserve: int = 0,
    ) -> Space:
        """Local. The account of segments that a restart found. About 0.1 us for each record.

        indexes
            Of the segments that are counted.
        live, tombstones
            Rows of `recovery.LOCATED`: the blocks that a disk cell will name, and the deletions that are still needed.
            Rows of other segments are ignored; every record that is not named is garbage.
        """
        made = cls(quota, reserve)
        numbers = np.array(sorted(each.segment for each in indexes), np.uint64)
        lives, deletions = _sums(live, numbers), _sums(tombstones, numbers)
        for each in indexes:
            at = int(np.searchsorted(numbers, each.segment))
            nbytes = int(footprints(each.entries["length"]).sum())
            segment = SegmentSpace(each.size, int(lives[at]), 0, int(deletions[at]), records=len(each.entries))
            segment.garbage = nbytes - segment.live - segment.tombstones
            if segment.garbage < 0:
                raise ValueError(f"segment {each.segment:x} has {nbytes} bytes of records, and more of them are named")
            made.segments[each.segment] = segment
            made._add(segment, 1)
        return made

    @property
    def files(self) -> int:
        """Local. How many segments there are."""
        return len(self.segments)

    def room(self, length: int, *, compaction: bool = False) -> int:
        """Local. Bytes of the quota that are left behind a record of `length` bytes; 2^63 - 1 without a quota.

        compaction
            It may use the reserve.

        Raises
        ------
        DirectoryQuotaError
            It does not fit. Nothing was changed.
        """
        if self.quota is None:
            return (1 << 63) - 1
        limit = self.quota if compaction else self.quota - self.reserve
        left = limit - self.size - most_growth(length) - _EMPTY_BYTES  # it may need a new file
        if left < 0:
            kept = f", {format_size(self.reserve)} of it for compaction" if self.reserve and not compaction else ""
            raise DirectoryQuotaError(
                errno.EDQUOT,
                f"{FOLDER}: a record of {format_size(length)} does not fit the quota of {format_size(self.quota)}"
                f"{kept}: {self.files} segments have {format_size(self.size)}, {format_size(self.live)} of them live "
                f"and {format_size(self.garbage)} garbage; raise the quota, delete blocks, or end the job and run "
                "cascade compact",
                FOLDER,
            )
        return left

    def appended(self, segment: int, length: int) -> None:
        """Local. A block of `length` bytes was appended: it is held until it is named or released."""
        self._grow(segment, length)
        self._put(segment, "held", footprint(length))

    def tombstone(self, segment: int) -> None:
        """Local. A deletion was appended."""
        self._grow(segment, 0)
        self._put(segment, "tombstones", TOMBSTONE_BYTES)

    def named(self, segment: int, length: int) -> None:
        """Local. A disk cell names this block."""
        self._move(segment, "held", "live", footprint(length))

    def unnamed(self, segment: int, length: int) -> None:
        """Local. No disk cell names it any more. Until it is released a compaction copies it."""
        self._move(segment, "live", "held", footprint(length))

    def released(self, segment: int, length: int, *, tombstone: bool = False) -> None:
        """Local. A block that nothing names, or a deletion, that may go (rules 13 and 14)."""
        self._move(segment, "tombstones" if tombstone else "held", "garbage", footprint(length))

    def sealed(self, segment: int, size: int) -> None:
        """Local. The file is complete, and has `size` bytes."""
        found = self.segments[segment]
        self.size += size - found.size
        found.size = size

    def keep(self, segment: int, why: str) -> None:
        """Local. Never rewrite this segment: `why`, for people."""
        self.segments[segment].kept = why

    def removed(self, segment: int) -> SegmentSpace:
        """Local. The file is gone; what was counted for it."""
        found = self.segments.pop(segment)
        self._add(found, -1)
        return found

    def _add(self, segment: SegmentSpace, sign: int) -> None:
        for name in ("size", "live", "held", "tombstones", "garbage"):
            setattr(self, name, getattr(self, name) + sign * getattr(segment, name))

    def _grow(self, segment: int, length: int) -> None:
        found = self.segments.get(segment)
        if found is None:
            found = self.segments[segment] = SegmentSpace()
            self.size += found.size
        growth = most_growth(length)
        found.size += growth
        found.records += 1
        self.size += growth

    def _put(self, segment: int, name: str, nbytes: int) -> None:
        found = self.segments[segment]
        setattr(found, name, getattr(found, name) + nbytes)
        setattr(self, name, getattr(self, name) + nbytes)

    def _move(self, segment: int, old: str, new: str, nbytes: int) -> None:
        found = self.segments[segment]
        if (there := getattr(found, old)) < nbytes:
            raise ValueError(f"segment {segment:x} has {there} bytes that are {old}, so {nbytes} cannot become {new}")
        self._put(segment, old, -nbytes)
        self._put(segment, new, nbytes)


def _sums(rows: npt.NDArray[np.void], numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The bytes of rows of `LOCATED` in each of these segments, which are in order."""
    if not numbers.size:
        return np.zeros(0, np.int64)
    at = np.minimum(np.searchsorted(numbers, rows["segment"]), numbers.size - 1)
    mine = numbers[at] == rows["segment"]
    sums = np.zeros(numbers.size, np.int64)
    np.add.at(sums, at[mine], footprints(rows["length"][mine]))
    return sums
