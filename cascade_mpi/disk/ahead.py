"""Reads of several records in the order in which they lie in the files, with what follows asked for in time.

Covers the order, and telling the system what is read next. Does not cover the reads (`reading`), nor a record that
follows the one that was read last: `open_segments` sees that by itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cascade_mpi.disk.open_segments import AHEAD_BYTES, OpenSegments
from cascade_mpi.layout import FLAG_DISK, unpack_location
from cascade_mpi.segments.format import UNIT, end_of


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
            self._asked += 1
            if location:
                place = unpack_location(location)
                self._segments.expect(place.segment, place.unit * UNIT, end_of(place.unit, length))
