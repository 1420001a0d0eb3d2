"""How an arena is cut into extents, and which of the free ones a rank takes next.

Covers the cut, and the choice that leaves little unused: new extents next to free memory that the rank has there
already, so that both are one run. Does not cover who holds an extent (`leases`) nor what is taken (`extents`). Knows no
MPI and no clock.

The rank of the arena fills it from the low end upward, others from the high end downward (`FreeMemory.downward`): what
an extent has left lies next to the one that is taken after it. So a rank that fills an arena wastes less than one block
there, however large blocks are, and long runs remain between the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cascade_mpi.free_memory import FreeMemory

_KEPT_SHARE = 16  # 1/16 of an arena is never lent: its rank can always put something at once
_NO_EXTENTS = range(0)


class ArenaCut:
    """The extents of an arena: the first one is never lent, the others cut the rest into parts of the same length."""

    def __init__(self, pages: int, parts: int) -> None:
        """An arena of so many pages, of which others may lease all but the first extent in so many parts."""
        self._pages = pages
        self.kept_pages = -(-pages // _KEPT_SHARE)
        self.extent_pages = max(1, -(-(pages - self.kept_pages) // parts))
        self.count = 1 - (self.kept_pages - pages) // self.extent_pages  # the last one may be shorter

    def pages_of(self, extent: int) -> tuple[int, int]:
        """Local. (first page, pages) of an extent."""
        if not extent:
            return 0, self.kept_pages
        start = self.kept_pages + (extent - 1) * self.extent_pages
        return start, min(self.extent_pages, self._pages - start)

    def at(self, page: int) -> int:
        """Local. The extent that this page lies in."""
        return 1 + (page - self.kept_pages) // self.extent_pages if page >= self.kept_pages else 0

    def next_run(self, holders: Sequence[int], owner: int, taker: int, memory: FreeMemory, pages: int) -> range:
        """Local. The extents that make room for a cell of so many pages, as few as will do; none if there are none.

        `holders` has the rank that holds each extent, -1: it is free; `memory` is what the taker has of the arena. Of
        runs that are as short the one next to its free memory, then the first from the side that it comes from.
        """
        own, best, cost = owner == taker, _NO_EXTENTS, (self.count + 1, True)
        for run in _free_runs(holders, 0 if own else 1, downward=not own):
            start, end = self.pages_of(run[0])[0], sum(self.pages_of(run[-1]))
            before, after = memory.free_before(start), memory.free_after(end)
            if before + end - start + after < pages:
                continue
            beside = before if own else after
            missing = pages - beside - (0 if run[0] else self.kept_pages)
            few = max(1, min(-(-missing // self.extent_pages), len(run)))
            while few < len(run) and beside + self._length(run[:few] if own else run[-few:]) < pages:
                few += 1  # the last extent may be shorter than others
            if (few, not beside) >= cost:
                continue
            cost = few, not beside
            if own:
                best = run[:few]
                continue
            # A third rank goes on downward from above: who has nothing here leaves it half of the run.
            third = not beside and run.stop < self.count and holders[run.stop] not in (owner, taker)
            top = run.start + max(few, (len(run) + 1) // 2) if third else run.stop
            best = range(top - few, top)
        return best

    def _length(self, run: range) -> int:
        return sum(self.pages_of(run[-1])) - self.pages_of(run[0])[0]


def _free_runs(holders: Sequence[int], lowest: int, *, downward: bool) -> Iterator[range]:
    """The runs of free extents from `lowest` on, ascending or descending."""
    runs, start = list[range](), lowest
    for extent in range(lowest, len(holders) + 1):
        if extent == len(holders) or holders[extent] != -1:
            if extent > start:
                runs.append(range(start, extent))
            start = extent + 1
    return reversed(runs) if downward else iter(runs)
