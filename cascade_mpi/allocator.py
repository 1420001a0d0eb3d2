"""The pages of one arena: which belong to a live cell, which rest in limbo, which are there at all.

Covers the rest of retired cells, the generation of every first page, ranges, and the accounting that `check` proves.
Does not cover which free pages a cell gets (`free_memory`), descriptors, pins or index words (their owner looks at the
pins and wipes the descriptor between `ripe` and `free`), nor what to evict when nothing fits. Knows no MPI and no
clock: `now` comes in, seconds of any clock that does not run backwards. Not thread-safe: the caller holds the lock that
also guards publishing.

An arena may be held in parts: a *range* of pages is there from `add` to `drop`. Between them `close` lets
nothing new into it; it may be dropped once all its cells have been freed. Cells may lie across ranges.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Literal

from .errors import ProtocolError
from .free_memory import FreeMemory
from .layout import MAX_GENERATION, MAX_PAGES, next_generation


class PageAllocator(FreeMemory):
    """First pages, lengths, generations and limbo of one arena's cells.

    A cell is named by its first page. It is *live* from `allocate` to `retire` (published or not),
    in *limbo* from there to `free`. All methods are local; all but `live`, `check`, `ripe` (its
    answer) and `largest_free` (one size class) take constant time, amortised.
    """

    __slots__ = (
        "_closing", "_generations", "_last_ripe", "_limbo", "_live", "_ranges", "_ripe_until",
        "allocations", "limbo_pages", "live_pages", "rest", "reuses",
    )  # fmt: skip

    def __init__(self, pages: int, rest: float, *, whole: bool = True, downward: bool = False) -> None:
        """An arena of so many pages, all of them there, or with `whole=False` none yet (see `add`).

        It is filled from the low end of its free memory upward, or `downward` from the high end.
        """
        if not 1 <= pages <= MAX_PAGES:
            raise ValueError(f"an arena has 1..{MAX_PAGES} pages, not {pages}: choose a larger page")
        if not rest >= 0:
            raise ValueError(f"a rest of {rest} s is not possible: it must be 0 s or more")
        super().__init__(pages, whole=whole, downward=downward)
        self.rest = rest
        self.live_pages = 0
        self.limbo_pages = 0
        self.allocations = 0
        self.reuses = 0  # allocations at a first page that had been one before
        self._generations = array("H", [0]) * pages
        self._live: dict[int, int] = {}  # first page -> pages
        self._limbo: OrderedDict[int, tuple[int, float]] = OrderedDict()  # first page -> pages, time it is ripe
        self._last_ripe = float("-inf")
        self._ripe_until = float("-inf")
        self._ranges: dict[int, int] = {0: pages} if whole else {}  # start -> pages
        self._closing: dict[int, dict[int, int]] = {}  # start of a range -> what of it is kept back, start -> pages

    # -- the life of a cell ------------------------------------------------------------------------

    def allocate(self, pages: int, now: float) -> tuple[int, int] | None:
        """Local. First page and generation (1..32767) of a new live cell, or None if no free extent is that long.

        None changes nothing. Nothing is taken out of limbo here, ripe or not (see `ripe` and `free`);
        `now` (s) does not influence the placement.
        """
        if pages < 1:
            raise ValueError(f"a cell has at least 1 page, not {pages}")
        first = self._place(pages)
        if first is None:
            return None
        self._live[first] = pages
        self.live_pages += pages
        self.free_pages -= pages
        self.allocations += 1
        before = self._generations[first]
        if before:
            self.reuses += 1
        generation = self._generations[first] = next_generation(before)
        return first, generation

    def retire(self, first: int, now: float) -> None:
        """Local. Send a live cell to limbo at `now` (s), whether or not it was ever published.

        Its word must have left the index, for good, before. ProtocolError if no live cell starts there.
        """
        pages = self._live.pop(first, 0)
        if not pages:
            raise ProtocolError(f"cannot retire page {first}: {self._whereabouts(first)}")
        # Order is by arrival; a clock that steps back a little must not make a later cell ripe first.
        self._last_ripe = ripe = max(now + self.rest, self._last_ripe) if self._limbo else now + self.rest
        self._limbo[first] = (pages, ripe)
        self.live_pages -= pages
        self.limbo_pages += pages

    def ripe(self, now: float, limit: int | None = None) -> list[int]:
        """Local. First pages of cells whose rest is over at `now` (s), the `limit` that were retired first, in order.

        They stay in limbo, and in this order, until `free` is called for those that nobody has pinned.
        """
        self._ripe_until = now
        found = []
        for first, (_, ripe) in islice(self._limbo.items(), limit):
            if ripe > now:
                break
            found.append(first)
        return found

    def next_ripe(self) -> float | None:
        """Local. The time (s) at which the oldest cell in limbo is ripe, pinned or not; None if limbo is empty."""
        for _, ripe in self._limbo.values():
            return ripe
        return None

    def free(self, first: int) -> None:
        """Local. Give the pages of a ripe cell back; they may be allocated from now on.

        ProtocolError, and nothing changed, if no cell in limbo starts there or if the latest `ripe`
        call did not find its rest over.
        """
        if first not in self._limbo:
            raise ProtocolError(f"cannot free page {first}: {self._whereabouts(first)}")
        pages, ripe = self._limbo[first]
        if ripe > self._ripe_until:
            raise ProtocolError(
                f"cannot free page {first}: its rest ends {ripe - self._ripe_until:.6f} s after the latest ripe() call"
            )
        del self._limbo[first]
        self.limbo_pages -= pages
        for start, length in self._keep_back(first, pages) if self._closing else ((first, pages),):
            self.free_pages += length
            self._put_back(start, length)

    # -- ranges ------------------------------------------------------------------------------------

    def add(self, start: int, pages: int, generations: Iterable[int] | None = None) -> None:
        """Local. These pages are there from now on; `generations` are the latest ones of cells at each of them.

        Whoever held them before has used up those. None: no cell was ever there.
        """
        if any(other < start + pages and start < other + length for other, length in self._ranges.items()):
            raise ProtocolError(f"cannot add {pages} pages at {start}: some are there already")
        self._ranges[start] = pages
        if generations is not None:
            self._generations[start : start + pages] = array("H", generations)
        self.free_pages += pages
        end, empty = start + pages, self._top == self._end
        if self.downward:
            if empty and end not in self._extents:  # with what is free above it is one piece, and stays one
                self._top, self._end = start, end
            elif self._top == end and not empty:
                self._top = start
            else:
                self._put_back(start, pages)
        elif empty or start == self._end:
            self._top = self._top if start == self._end else start
            self._end = end
        else:
            self._put_back(start, pages)

    def close(self, start: int) -> None:
        """Local. Allocate nothing more in the range that starts here: it is to be dropped."""
        end = start + self._ranges[start]
        if start in self._closing:
            return
        self._closing[start] = {}
        if self._top < self._end and self._top < end and start < self._end:
            self._use_up()
        for first, pages in list(self._extents.items()):
            if first < end and start < first + pages:
                self._remove_extent(first)
                self.free_pages -= pages
                tiles, at = list[tuple[int, int]](), first
                while at < first + pages:
                    tiles.append((at, self._remove_tile(at)))
                    at += tiles[-1][1]
                for at, length in tiles:
                    for piece in self._keep_back(at, length):
                        self.free_pages += piece[1]
                        self._put_back(*piece)

    def _keep_back(self, first: int, pages: int) -> list[tuple[int, int]]:
        """Keep back what of these free pages lies in closing ranges: the (start, pages) of the rest."""
        rest = [(first, pages)]
        for start, kept in self._closing.items():
            end, left = start + self._ranges[start], list[tuple[int, int]]()
            for at, length in rest:
                low, high = max(at, start), min(at + length, end)
                if low >= high:
                    left.append((at, length))
                    continue
                kept[low] = high - low
                left += [(a, b - a) for a, b in ((at, low), (high, at + length)) if b > a]
            rest = left
        return rest

    @property
    def closing(self) -> list[int]:
        """Local. The starts of the ranges that are closed and not dropped yet."""
        return list(self._closing)

    @property
    def ranges(self) -> dict[int, int]:
        """Local. A copy: start -> pages of what is there."""
        return dict(self._ranges)

    @property
    def range_count(self) -> int:
        """How many ranges are there."""
        return len(self._ranges)

    def is_empty(self, start: int) -> bool:
        """Local. Is all of the range that starts here free, or kept back? Linear in the free extents."""
        pages = self._ranges[start]
        if start in self._closing:
            return sum(self._closing[start].values()) == pages
        runs = [*self._extents.items(), (self._top, self._end - self._top)]
        return pages == sum(max(min(at + n, start + pages) - max(at, start), 0) for at, n in runs)

    def drop(self, start: int) -> None:
        """Local. The range that starts here is not there any more; ProtocolError if a cell still is in it."""
        if not self.is_empty(start):
            raise ProtocolError(f"cannot drop the pages from {start} on: cells are live or in limbo there")
        self.close(start)
        del self._ranges[start], self._closing[start]

    def absent(self) -> list[tuple[int, int]]:
        """Local. (start, pages) of what is not there, or closed: no cell can be placed over it."""
        found, at = list[tuple[int, int]](), 0
        for start in sorted(self._ranges.keys() - self._closing.keys()):
            if start > at:
                found.append((at, start - at))
            at = start + self._ranges[start]
        return [*found, (at, self.pages - at)] if at < self.pages else found

    # -- questions ---------------------------------------------------------------------------------

    def pages_of(self, first: int) -> int:
        """Local. The length in pages of the live or resting cell at `first`; ProtocolError if there is none."""
        pages = self._live.get(first)
        if pages is not None:
            return pages
        if first in self._limbo:
            return self._limbo[first][0]
        raise ProtocolError(f"page {first} has no length: {self._whereabouts(first)}")

    def state(self, first: int) -> Literal["live", "limbo"] | None:
        """Local. What the cell that starts at this page is doing; None if no cell starts there."""
        if first in self._live:
            return "live"
        return "limbo" if first in self._limbo else None

    def live(self) -> dict[int, int]:
        """Local. A copy: first page -> pages of all live cells, in the order of their allocation."""
        return dict(self._live)

    @property
    def live_cells(self) -> int:
        """How many cells are live."""
        return len(self._live)

    @property
    def limbo_cells(self) -> int:
        """How many cells rest in limbo."""
        return len(self._limbo)

    def generation(self, first: int) -> int:
        """Local. The generation of the latest cell that started at this page; 0 if none ever did."""
        return self._generations[first]

    @property
    def largest_free(self) -> int:
        """Local. The longest cell (pages) that `allocate` would place now."""
        return max(self._longest_in(self._nonempty.bit_length() - 1) if self._nonempty else 0, self._open_end()[1])

    def _whereabouts(self, first: int) -> str:
        """What is known about a page that is not what the caller took it for."""
        state = self.state(first)
        if state is not None:
            return f"the cell there is {'in limbo' if state == 'limbo' else 'live'}"
        return "no cell starts there"

    # -- proof -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Local. ProtocolError with a dump if any invariant is broken; linear in cells, extents and pages.

        Cells, free extents and never-used memory tile the arena without gap or overlap; the counts add
        up; no two free extents touch; bins, maps and tiles agree with the extents; limbo is in
        the order of ripeness; generations are 0..32767 and every cell has one.
        """
        runs = [(first, pages, "live") for first, pages in self._live.items()]
        runs += [(first, pages, "limbo") for first, (pages, _) in self._limbo.items()]
        runs += [(start, pages, "free") for start, pages in self._extents.items()]
        runs.append((self._top, self._end - self._top, "never used"))
        runs += [(start, pages, "kept back") for kept in self._closing.values() for start, pages in kept.items()]
        at = 0
        for start in sorted(self._ranges):
            if start > at:
                runs.append((at, start - at, "absent"))
            at = start + self._ranges[start]
        if at < self.pages:
            runs.append((at, self.pages - at, "absent"))
        if self._top == self._end:
            runs.remove((self._top, 0, "never used"))  # wherever it ended, it takes no place
        runs.sort(key=lambda run: run[:2])
        position, previous = 0, ""
        for start, pages, kind in runs:
            if start != position or pages < 1:
                self._fail(f"{kind} run of {pages} pages at page {start}, expected one at page {position}", runs)
            if kind == previous == "free":
                self._fail(f"free extents touch at page {start}", runs)
            position, previous = start + pages, kind
        if position != self.pages:
            self._fail(f"the runs end at page {position} of {self.pages}", runs)
        self._check_counts(runs)
        self._check_extents(runs)
        self._check_tiles(runs)
        self._check_limbo(runs)
        self._check_generations(runs)

    def _check_counts(self, runs: list[tuple[int, int, str]]) -> None:
        counted = {"live": 0, "limbo": 0, "free": 0, "never used": 0, "kept back": 0, "absent": 0}
        for _, pages, kind in runs:
            counted[kind] += pages
        counted["free"] += counted.pop("never used")
        back = sum(sum(each.values()) for each in self._closing.values())
        kept = {"live": self.live_pages, "limbo": self.limbo_pages, "free": self.free_pages, "kept back": back}
        kept["absent"] = self.pages - sum(self._ranges.values())
        if counted != kept or not sum(kept.values()) == self.pages == len(self._generations):
            self._fail(f"pages counted {counted}, kept {kept}, in all {self.pages}", runs)

    def _check_limbo(self, runs: list[tuple[int, int, str]]) -> None:
        times = [ripe for _, ripe in self._limbo.values()]
        if times != sorted(times):
            self._fail(f"limbo is out of order: ripe at {times}", runs)

    def _check_generations(self, runs: list[tuple[int, int, str]]) -> None:
        if max(self._generations) > MAX_GENERATION:
            self._fail(f"a generation of {max(self._generations)} exceeds {MAX_GENERATION}", runs)
        for first in (*self._live, *self._limbo):
            if not self._generations[first]:
                self._fail(f"the cell at page {first} has no generation", runs)
