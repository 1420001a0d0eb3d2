"""The bytes of one rank's part of a segment: headers, payloads and the zeros between them, without a copy of payloads.

Covers any range of them, for a write. Does not cover where they belong (see `plan`) nor who writes them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from cascade_mpi.segments.direct import aligned_buffer
from cascade_mpi.segments.format import LARGE, PAGE

JOINED_BYTES = 1 << 20  # small records are written together, up to so many bytes


class PartBytes:
    """Pieces of memory at offsets of a file, in rising order; what is between them is zero."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[memoryview] = []

    def add(self, offset: int, piece: bytes | bytearray | memoryview) -> None:
        """Local. The next piece. Its memory is referred to, and must not change."""
        view = memoryview(piece)
        if view.nbytes:
            self._starts.append(offset)
            self._pieces.append(view.cast("B"))

    def take(self, start: int, end: int) -> memoryview:
        """Local. The bytes [start, end): the caller's own memory if they are of one piece, else a copy.

        A copy of a page and more is in memory that begins with one, as O_DIRECT wants it.
        """
        first = bisect_right(self._starts, start) - 1
        if first >= 0 and end <= self._starts[first] + self._pieces[first].nbytes:
            return self._pieces[first][start - self._starts[first] : end - self._starts[first]]
        copy = aligned_buffer(end - start) if end - start >= PAGE else memoryview(bytearray(end - start))
        for number in range(max(first, 0), len(self._starts)):
            at, piece = self._starts[number], self._pieces[number]
            if at >= end:
                break
            low, high = max(at, start), min(at + piece.nbytes, end)
            if low < high:
                copy[low - start : high - start] = piece[low - at : high - at]
        return copy

    def runs(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Local. The bytes [start, end) as (offset, memory) one after the other: large pieces as they are.

        What is small is joined, up to 1 MiB of memory at a time.
        """
        at = start
        for number in range(max(bisect_right(self._starts, start) - 1, 0), len(self._starts)):
            low, piece = self._starts[number], self._pieces[number]
            if low >= end:
                break
            high = min(low + piece.nbytes, end)
            low = max(low, start)
            if high - low >= LARGE:
                yield from self._joined(at, low)
                yield low, self.take(low, high)
                at = high
        yield from self._joined(at, end)

    def _joined(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        for at in range(start, end, JOINED_BYTES):
            yield at, self.take(at, min(at + JOINED_BYTES, end))
