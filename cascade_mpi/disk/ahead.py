"""Reads of several records in the order in which they lie in the files, with what follows asked for in time.

Covers the order, and telling the system what is read next. Does not cover the reads (`reading`), nor a record that
follows the one that was read last: `open_segments` sees that by itself.
"""

from __future__ import annotations

from typing import Any

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
        self._records = list(zip(where[order].tolist(), described["length"][order].tolist(), strict=True))
        self._asked = self._ahead = 0  # records that were asked for, and their bytes that are not read yet

    def before(self, number: int) -> None:
        """Local. Block `order[number]` is read now: let the system bring what comes behind it. 1 call for each MiB."""
        records = self._records
        if number and number <= self._asked:
            self._ahead -= records[number - 1][1]
        while self._asked < len(records) and self._ahead < AHEAD_BYTES:
            location, length = records[self._asked]
            self._asked += 1
            self._ahead += length
            if location:
                place: Any = unpack_location(location)
                self._segments.expect(place.segment, place.unit * UNIT, end_of(place.unit, length))
