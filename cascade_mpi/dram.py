"""The DRAM tier of one rank: room for new cells in one arena.

Covers reservation: what is free, what rests, what can be had without a loss, and what has to go. Does not cover the
cells' life (`cells`), which blocks go (`evictions`, `passing`), which pages a cell gets (`allocator`), nor which
arenas a rank has cells in (`pool`).
"""

from __future__ import annotations

import time
from collections.abc import Collection

from cascade_mpi.evictions import Evictions
from cascade_mpi.passing import Passing


class DramTier(Evictions, Passing):
    """What one rank manages of one arena. Public methods take the lock that also guards publishing (re-entrant)."""

    name = "dram"

    def reserve(self, nbytes: int) -> tuple[int, int] | None:
        """Local. (first page, generation) of a new cell, or None if the arena has no room for it.

        May wait for cells in limbo, sweep, and evict; what was refused has changed nothing but that.
        """
        pages = self.pages_for(nbytes)
        if pages > self.fabric.pages:
            return None
        with self.lock:
            now = time.monotonic()
            self.drain_some(now)
            cell = self.allocate(pages, now)
            while cell is None:
                cell = self.regain(pages)
                if cell is None and not self.evict(pages):
                    return None
            if self.allocator.free_pages + self.allocator.limbo_pages < self.low_pages and now >= self._barren:
                try:
                    self.evict_ahead(pages)
                except BaseException:  # an error of MPI, say: the caller never heard of its cell
                    self.abandon(cell[0])
                    raise
            return cell

    def allocate(self, pages: int, now: float) -> tuple[int, int] | None:
        """Local. (first page, generation) of a new cell in what is free, also where the arena must `grow`; or None."""
        cell = self.allocator.allocate(pages, now)
        while cell is None and self.grow is not None and self.grow(pages):
            cell = self.allocator.allocate(pages, now)
        return cell

    def regain(self, pages: int) -> tuple[int, int] | None:
        """Local. The same of what can be had without a loss: from limbo, swept, of passed epochs or expired."""
        while True:
            cell = self._settle(pages)
            if cell is not None or not (self.sweep() or self.drop_passed() or self.drop_expired()):
                return cell

    def reserve_copy(
        self, nbytes: int, most: int, *, wait: bool = False, beside: int = 0, staying: Collection[int] = ()
    ) -> tuple[int, int] | None:
        """Local. The same for a copy; None if there is no room, without `wait`: now. No block has to go for it.

        A copy takes what is free, else the place of one that was not read for longest, none of `staying` (first
        pages). All may take `most` pages, those of reserved cells `beside` included. Where a copy went the room is
        there after a rest: a later attempt finds it. Puts that evict make room for one that found none.
        """
        pages = self.pages_for(nbytes)
        if beside + pages > most:
            return None
        with self.lock:
            now = time.monotonic()
            self.evict_copies(most - beside - pages, staying)
            self.drain(now)
            cell = self.allocate(pages, now)
            makes_way = cell is None and self.allocator.limbo_pages < pages and self.evict_copy(pages, staying)
            if wait:
                return cell or self.regain(pages)
            if cell and pages >= self.wished:
                self.wish(0)
            elif cell is None and not makes_way:
                self.wish(pages)
            return cell

    def copies_take(self, firsts: Collection[int]) -> int:
        """Local. Pages of the copies in the cells with these first pages."""
        with self.lock:
            return sum(self.allocator.pages_of(first) for first in firsts if self.copies[first])

    def why_full(self, nbytes: int, elsewhere: str = "") -> str:
        """Local. For people: why a block of this size found no room, also `elsewhere`, and what to do."""
        a, page = self.allocator, self.fabric.page_bytes
        pages = self.pages_for(nbytes)
        text = (
            f"a block of {nbytes} bytes needs {pages} contiguous pages of {page} bytes in the arena of rank "
            f"{self.area.rank}: {a.pages} pages, {a.live_pages} live, {a.limbo_pages} in limbo, "
            f"{a.free_pages} free, longest free run {a.largest_free}"
        )
        limbo = sum(1 for first in self.pinned_pages() if a.state(first) == "limbo")
        if limbo:
            holders = sorted({rank for first, rank in self.pinned_pages().items() if a.state(first) == "limbo"})
            text += f"; {limbo} cells in limbo are pinned by rank {', '.join(map(str, holders))} (release the views)"
        if self.below is not None and self.below.holds_back:
            return f"{text}{elsewhere}; {self.below.why_held_back()}"
        return (
            text + elsewhere + ": raise dram_bytes" + ("" if self.victims is not None else ' or set when_full="evict"')
        )
