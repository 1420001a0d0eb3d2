"""The pages of one arena: which are free, which belong to a live cell, which rest in limbo.

Covers placement (which free pages a new cell gets), the rest of retired cells, the generation of
every first page, and the accounting that `check` proves. Does not cover descriptors, pins or index
words (their owner looks at the pins and wipes the descriptor between `ripe` and `free`), nor
what to evict when nothing fits. Knows no MPI and no clock: `now` comes in, seconds of any clock
that does not run backwards. Not thread-safe: the caller holds the lock that also guards publishing.

Placement, in this order:

1. memory that was never used, so that a generation is not spent before it has to be;
2. the place of the cell of exactly this size that was freed first, if it is a free extent by itself
   or if all free memory consists of cells of this size;
3. a good fit: the oldest extents of the request's own size class, then the oldest extent of the
   next class that has any (eight classes per octave);
4. never-used memory together with the free extent before it.

Rule 2 brings cells of one size back in exactly the order in which they were freed, however their
neighbours have merged meanwhile: the longest way round before a generation repeats. Among mixed
sizes it cuts nothing out of the middle of an extent: that scatters what was freed together, and
doubled the waste of four mixed block sizes under first-in-first-out eviction.

An arena may be held in parts: a *range* of pages is there from `add` to `drop`. Between them `close` lets
nothing new into it; it may be dropped once all its cells have been freed. Cells may lie across ranges.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Literal, NoReturn

from .errors import ProtocolError
from .layout import MAX_GENERATION, MAX_PAGES, next_generation

_CLASS_SCAN = 8  # extents of the request's own class looked at before a larger class is split
_WORD_SHIFT = 10  # of one integer of the start map, in bits; 4 Mi pages are 4,096 such words
_WORD_BITS = 1 << _WORD_SHIFT
_BITS = tuple(1 << bit for bit in range(_WORD_BITS))
_DUMP_RUNS = 40  # lines of a failed check's dump


def _size_class(pages: int) -> int:
    """Local. Eight classes per octave; below 16 pages every length has its own."""
    if pages < 16:
        return pages
    exponent = pages.bit_length() - 4
    return (exponent << 3) + (pages >> exponent)


class _StartMap:
    """One bit per page, set where a free extent starts; finds the extent that holds a page."""

    __slots__ = ("_summary", "_words")

    def __init__(self, pages: int) -> None:
        self._words = [0] * (pages // _WORD_BITS + 1)
        self._summary = 0  # bit i: word i is not 0

    def flip(self, page: int) -> None:
        """Local. Set the bit of a page that has none, or clear it."""
        index = page >> _WORD_SHIFT
        before = self._words[index]
        self._words[index] = after = before ^ _BITS[page & _WORD_BITS - 1]
        if not (before and after):
            self._summary ^= 1 << index

    def at_or_before(self, page: int) -> int:
        """Local. The last set page up to `page`; -1 if there is none."""
        index = page >> _WORD_SHIFT
        word = self._words[index] & ((2 << (page & _WORD_BITS - 1)) - 1)
        if not word:
            index = (self._summary & ((1 << index) - 1)).bit_length() - 1
            if index < 0:
                return -1
            word = self._words[index]
        return index * _WORD_BITS + word.bit_length() - 1

    def pages(self) -> list[int]:
        """Local. All set pages, ascending; for `check`."""
        return [
            index * _WORD_BITS + bit
            for index, word in enumerate(self._words)
            if word
            for bit in range(word.bit_length())
            if word >> bit & 1
        ]


class PageAllocator:
    """First pages, lengths, generations and limbo of one arena's cells.

    A cell is named by its first page. It is *live* from `allocate` to `retire` (published or not),
    in *limbo* from there to `free`. All methods are local; all but `live`, `check`, `ripe` (its
    answer) and `largest_free` (one size class) take constant time, amortised.
    """

    __slots__ = (
        "_bin_limit", "_bins", "_closing", "_end", "_extent_ends", "_extents", "_generations", "_last_ripe", "_limbo",
        "_live", "_nonempty", "_ranges", "_ripe_until", "_starts", "_tile_queues", "_tiles", "_top",
        "allocations", "free_pages", "limbo_pages", "live_pages", "pages", "rest", "reuses",
    )  # fmt: skip

    def __init__(self, pages: int, rest: float, *, whole: bool = True) -> None:
        """An arena of so many pages, all of them there, or with `whole=False` none yet (see `add`)."""
        if not 1 <= pages <= MAX_PAGES:
            raise ValueError(f"an arena has 1..{MAX_PAGES} pages, not {pages}: choose a larger page")
        if not rest >= 0:
            raise ValueError(f"a rest of {rest} s is not possible: it must be 0 s or more")
        self.pages = pages
        self.rest = rest
        self.free_pages = pages if whole else 0
        self.live_pages = 0
        self.limbo_pages = 0
        self.allocations = 0
        self.reuses = 0  # allocations at a first page that had been one before
        self._generations = array("H", [0]) * pages
        self._live: dict[int, int] = {}  # first page -> pages
        self._limbo: OrderedDict[int, tuple[int, float]] = OrderedDict()  # first page -> pages, time it is ripe
        self._last_ripe = float("-inf")
        self._ripe_until = float("-inf")
        self._top = 0  # pages from here to the end were never used, or not since they were added
        self._end = pages if whole else 0
        self._ranges: dict[int, int] = {0: pages} if whole else {}  # start -> pages
        self._closing: dict[int, dict[int, int]] = {}  # start of a range -> what of it is kept back, start -> pages
        # Free memory below the top, twice: as extents (no two of them adjacent), which are what can be
        # handed out, and as tiles (what was freed in one piece, or is left of it), which remember the order.
        self._extents: dict[int, int] = {}  # start -> pages
        self._extent_ends: dict[int, int] = {}  # end -> start
        self._starts = _StartMap(pages)
        self._bins: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(_size_class(pages) + 1)]
        self._bin_limit = [0] * len(self._bins)  # no extent of this bin is longer
        self._nonempty = 0  # bit i: bin i is not empty
        self._tiles: dict[int, int] = {}  # start -> pages
        self._tile_queues: dict[int, OrderedDict[int, None]] = {}  # pages -> starts, first freed first

    # -- the life of a cell ---------------------------------------------------------------------

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

    def _put_back(self, first: int, pages: int) -> None:
        """Make pages a tile, and a part of the free extent around it."""
        self._add_tile(first, pages)
        start, end = first, first + pages
        before = self._extent_ends.get(first)
        if before is not None:
            self._remove_extent(before)
            start = before
        after = self._extents.get(end)
        if after is not None:
            self._remove_extent(end)
            end += after
        self._add_extent(start, end - start)

    # -- ranges ---------------------------------------------------------------------------------

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
        if self._end in (start, self._top):
            self._top = self._top if start == self._end else start
            self._end = start + pages
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

    # -- questions ------------------------------------------------------------------------------

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

    # -- placement ------------------------------------------------------------------------------

    def _place(self, pages: int) -> int | None:
        """Take `pages` out of the free memory and return where, by the four rules of the module's text."""
        top = self._top
        if self._end - top >= pages:
            self._top = top + pages
            return top
        queue = self._tile_queues.get(pages)
        if queue:
            first = next(iter(queue))
            if self._extents.get(first) == pages:
                self._remove_extent(first)
                self._remove_tile(first)
                return first
            if len(self._tile_queues) == 1:
                self._take_tile(first, pages)
                return first
        found = self._good_fit(pages)
        if found is not None:
            length = self._remove_extent(found)
            self._take_tiles(found, pages)
            if length > pages:
                self._add_extent(found + pages, length - pages)
            return found
        start, length = self._open_end()
        if length >= pages:
            self._remove_extent(start)
            self._take_tiles(start, self._top - start)
            self._top = start + pages
            return start
        if self._top < self._end and self._end in self._extents:  # a range was added before one that has been used
            self._use_up()
            return self._place(pages)
        return None

    def _use_up(self) -> None:
        """Make never-used memory a free extent like others."""
        top, self._top = self._top, self._end
        self._put_back(top, self._end - top)

    def _good_fit(self, pages: int) -> int | None:
        """The start of the free extent to cut a cell from, None if none is long enough."""
        own = _size_class(pages)
        if own >= len(self._bins):
            return None
        extents = self._extents
        fits = self._bin_limit[own] >= pages
        if fits:
            for start in islice(self._bins[own], _CLASS_SCAN):
                if extents[start] >= pages:
                    return start
        larger = self._nonempty >> (own + 1)
        if larger:
            return next(iter(self._bins[own + (larger & -larger).bit_length()]))
        # Before giving up, the rest of the own class; its limit, made exact, spares the next caller the search.
        if fits and self._longest_in(own) >= pages:
            return next(start for start in self._bins[own] if extents[start] >= pages)
        return None

    def _longest_in(self, index: int) -> int:
        """The length of the longest extent of a bin; remembered as its limit."""
        extents = self._extents
        self._bin_limit[index] = longest = max((extents[start] for start in self._bins[index]), default=0)
        return longest

    def _open_end(self) -> tuple[int, int]:
        """Start and length of the never-used memory with the free extent before it."""
        start = self._extent_ends.get(self._top, self._top)
        return start, self._end - start

    def _add_extent(self, start: int, pages: int) -> None:
        self._extents[start] = pages
        self._extent_ends[start + pages] = start
        self._starts.flip(start)
        index = _size_class(pages)
        members = self._bins[index]
        if members:
            self._bin_limit[index] = max(self._bin_limit[index], pages)
        else:
            self._nonempty |= 1 << index
            self._bin_limit[index] = pages
        members[start] = None

    def _remove_extent(self, start: int) -> int:
        pages = self._extents.pop(start)
        del self._extent_ends[start + pages]
        self._starts.flip(start)
        index = _size_class(pages)
        members = self._bins[index]
        del members[start]
        if not members:
            self._nonempty ^= 1 << index
            self._bin_limit[index] = 0
        return pages

    def _add_tile(self, start: int, pages: int) -> None:
        self._tiles[start] = pages
        queue = self._tile_queues.get(pages)
        if queue is None:
            queue = self._tile_queues[pages] = OrderedDict()
        queue[start] = None

    def _remove_tile(self, start: int) -> int:
        pages = self._tiles.pop(start)
        queue = self._tile_queues[pages]
        del queue[start]
        if not queue:
            del self._tile_queues[pages]
        return pages

    def _take_tile(self, first: int, pages: int) -> None:
        """Take exactly one tile out of the extent that holds it, from its middle if need be."""
        start = first if first in self._extents else self._starts.at_or_before(first)
        end, after = start + self._remove_extent(start), first + pages
        self._remove_tile(first)
        if first > start:
            self._add_extent(start, first - start)
        if end > after:
            self._add_extent(after, end - after)

    def _take_tiles(self, start: int, pages: int) -> None:
        """Remove the tiles of these pages, the first of which starts a tile; keep what sticks out of the last."""
        end = start + pages
        while start < end:
            start += self._remove_tile(start)
        if start > end:
            self._add_tile(end, start - end)

    # -- proof ----------------------------------------------------------------------------------

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

    def _check_extents(self, runs: list[tuple[int, int, str]]) -> None:
        if self._extent_ends != {start + pages: start for start, pages in self._extents.items()}:
            self._fail(f"the ends {self._extent_ends} are not those of the free extents", runs)
        if self._starts.pages() != sorted(self._extents):
            self._fail(f"the start map has {self._starts.pages()}", runs)
        for index, members in enumerate(self._bins):
            if bool(members) != bool(self._nonempty >> index & 1):
                self._fail(f"bin {index} has {len(members)} extents, which its bit denies", runs)
            for start in members:
                pages = self._extents.get(start, 0)
                if _size_class(pages) != index or pages > self._bin_limit[index]:
                    self._fail(f"bin {index} (limit {self._bin_limit[index]}) holds {pages} pages at {start}", runs)
        if sum(map(len, self._bins)) != len(self._extents):
            self._fail(f"the bins hold {sum(map(len, self._bins))} extents of {len(self._extents)}", runs)

    def _check_tiles(self, runs: list[tuple[int, int, str]]) -> None:
        seen = 0
        for start, pages in self._extents.items():
            position = start
            while position < start + pages and position in self._tiles:
                position += self._tiles[position]
                seen += 1
            if position != start + pages:
                self._fail(f"the tiles of the free extent at page {start} ({pages} pages) end at {position}", runs)
        queued = {start: pages for pages, queue in self._tile_queues.items() for start in queue}
        entries = sum(map(len, self._tile_queues.values()))
        counts_differ = not seen == entries == len(self._tiles)
        if counts_differ or queued != self._tiles or not all(self._tile_queues.values()):
            self._fail(f"{len(self._tiles)} tiles, {seen} in free extents, {entries} in queues", runs)

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

    def _whereabouts(self, first: int) -> str:
        """What is known about a page that is not what the caller took it for."""
        state = self.state(first)
        if state is not None:
            return f"the cell there is {'in limbo' if state == 'limbo' else 'live'}"
        return "no cell starts there"

    def _fail(self, what: str, runs: list[tuple[int, int, str]]) -> NoReturn:
        lines = [f"  {start:>9} +{pages:<9} {kind}" for start, pages, kind in runs[:_DUMP_RUNS]]
        if len(runs) > _DUMP_RUNS:
            lines.append(f"  ... and {len(runs) - _DUMP_RUNS} more")
        raise ProtocolError(f"page allocator: {what}\n" + "\n".join(lines))
