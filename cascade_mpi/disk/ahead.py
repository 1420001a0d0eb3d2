"""Reads of several records in the order in which they lie in the files, with what follows asked for in time.

Covers the order, and telling the system what is read next. Does not cover the reads (`reading`).

Only scattered records are asked for. Of what is read in one go the system sees by itself how it goes on, and it reads
that ahead into large pages: what it was asked for comes in small ones, and is read from them at 3.5 GB/s, not 5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cascade_mpi.disk.open_segments import OpenSegments
from cascade_mpi.layout import FLAG_DISK, unpack_location
from cascade_mpi.segments.format import LARGE_LEAD, PAGE, UNIT, end_of

AHEAD_BYTES = 8 << 20  # asked for before they are read: scattered blocks of 64 KiB 0.4 -> 1.2 GB/s, 1 MiB 0.6 -> 1.2
STRETCH_BYTES = 4 << 20


class Plan:
    """The reads of one batch. `order` has the positions of the blocks that were given, as they are to be read."""

    def __init__(self, segments: OpenSegments, described: npt.NDArray[np.void]) -> None:
        """`described`: a descriptor (`DESCRIPTOR`) of each block; one that is not of a disk cell may be among them."""
        self._segments = segments
        on_disk = described["flags"] & FLAG_DISK != 0
        where = np.where(on_disk, described["content_hi"], np.uint64(0))
        order = np.argsort(where, kind="stable")
        self.order: list[int] = order.tolist()
        lengths = np.where(on_disk, described["length"], np.uint64(0))[order]
        self._scattered = _scattered(where[order], lengths).tolist()
        self._where, self._lengths = where[order].tolist(), lengths.tolist()
        self._begins = (np.cumsum(lengths) - lengths).tolist()  # bytes of those before
        self._asked = 0  # records that were asked for

    def before(self, number: int) -> None:
        """Local. Block `order[number]` is read now: let the system bring what comes behind it. 1 call for each MiB.

        Numbers rise; some may be left out.
        """
        self._asked = max(self._asked, number)
        while self._asked < len(self.order) and self._begins[self._asked] < self._begins[number] + AHEAD_BYTES:
            location, length = self._where[self._asked], self._lengths[self._asked]
            scattered = self._scattered[self._asked]
            self._asked += 1
            if location and scattered:
                place = unpack_location(location)
                self._segments.expect(place.segment, place.unit * UNIT, end_of(place.unit, length))


def _scattered(where: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of these records, in their order, are not of a stretch of `STRETCH_BYTES` or more that is all read."""
    ends = where + (lengths + np.uint64(LARGE_LEAD + UNIT - 1)) // np.uint64(UNIT)  # and up to a page until the next
    begins = np.append(True, (where[1:] > ends[:-1] + np.uint64(PAGE // UNIT)))[: len(where)]
    number = np.cumsum(begins) - 1
    stretches = np.bincount(number, weights=lengths.astype(np.float64), minlength=1)
    found: npt.NDArray[np.bool_] = stretches[number] < STRETCH_BYTES
    return found
