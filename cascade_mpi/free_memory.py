"""The free pages of one arena: as extents, which can be handed out, and as tiles, which remember the order.

Covers placement (which free pages a new cell gets) and the proof of its own tables. Does not cover cells, limbo and
generations (`allocator`). Knows no MPI and no clock.

Placement, in this order:

1. memory that was never used, so that a generation is not spent before it has to be;
2. the place of the cell of exactly this size that was freed first, if it is a free extent by itself
   or if all free memory consists of cells of this size;
3. a good fit: the oldest extents of the request's own size class, then the oldest extent of the
   next class that has any (eight classes per octave);
4. never-used memory together with the free extent before it.

A cell is cut from the low end of what was found, so that an arena fills upward; *downward* from the high end.

Rule 2 brings cells of one size back in exactly the order in which they were freed, however their
neighbours have merged meanwhile: the longest way round before a generation repeats. Among mixed
sizes it cuts nothing out of the middle of an extent: that scatters what was freed together, and
doubled the waste of four mixed block sizes under first-in-first-out eviction.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import NoReturn

from .errors import ProtocolError

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


class FreeMemory:
    """The free pages: `_place` takes some, `_put_back` gives some back; both take constant time, amortised."""

    __slots__ = (
        "_bin_limit", "_bins", "_end", "_extent_ends", "_extents", "_nonempty", "_starts", "_tile_ends", "_tile_queues",
        "_tiles", "_top", "downward", "free_pages", "pages",
    )  # fmt: skip

    def __init__(self, pages: int, *, whole: bool, downward: bool = False) -> None:
        self.pages = pages
        self.free_pages = pages if whole else 0
        self.downward = downward
        self._top = 0  # pages from here to the end were never used, or not since they were added
        self._end = pages if whole else 0
        # Free memory below the top, twice: as extents (no two of them adjacent), which are what can be
        # handed out, and as tiles (what was freed in one piece, or is left of it), which remember the order.
        self._extents: dict[int, int] = {}  # start -> pages
        self._extent_ends: dict[int, int] = {}  # end -> start
        self._starts = _StartMap(pages)
        self._bins: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(_size_class(pages) + 1)]
        self._bin_limit = [0] * len(self._bins)  # no extent of this bin is longer
        self._nonempty = 0  # bit i: bin i is not empty
        self._tiles: dict[int, int] = {}  # start -> pages
        self._tile_ends: dict[int, int] = {}  # end -> start; downward alone
        self._tile_queues: dict[int, OrderedDict[int, None]] = {}  # pages -> starts, first freed first

    def _place(self, pages: int) -> int | None:
        """Take `pages` out of the free memory and return where, by the four rules of the module's text."""
        top = self._top
        if self._end - top >= pages:
            if self.downward:
                self._end -= pages
                return self._end
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
            return self._cut(found, pages)
        start, length = self._open_end()
        if length >= pages and self.downward:
            self._take_tiles(self._end, self._remove_extent(self._end))
            self._end = start + length - pages
            return self._end
        if length >= pages:
            self._remove_extent(start)
            self._take_tiles(start, self._top - start)
            self._top = start + pages
            return start
        # A range was added before one that has been used, or behind it.
        if self._top < self._end and (self._top in self._extent_ends if self.downward else self._end in self._extents):
            self._use_up()
            return self._place(pages)
        return None

    def _cut(self, start: int, pages: int) -> int:
        """Take so many pages from the end of a free extent at which cells are placed: the first of them."""
        length = self._remove_extent(start)
        rest = length - pages
        if self.downward:
            self._take_last_tiles(start + length, pages)
            if rest:
                self._add_extent(start, rest)
            return start + rest
        self._take_tiles(start, pages)
        if rest:
            self._add_extent(start + pages, rest)
        return start

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
        """Start and length of the never-used memory with the free extent before it; downward: after it."""
        if self.downward:
            return self._top, self._end - self._top + self._extents.get(self._end, 0)
        start = self._extent_ends.get(self._top, self._top)
        return start, self._end - start

    def free_before(self, page: int) -> int:
        """Local. How many pages are free in a row right before this one."""
        at = page
        while True:
            if self._top < self._end == at:
                at = self._top
            elif at in self._extent_ends:
                at = self._extent_ends[at]
            else:
                return page - at

    def free_after(self, page: int) -> int:
        """Local. How many pages are free in a row from this one on."""
        at = page
        while True:
            if at == self._top < self._end:
                at = self._end
            elif at in self._extents:
                at += self._extents[at]
            else:
                return at - page

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
        if self.downward:
            self._tile_ends[start + pages] = start

    def _remove_tile(self, start: int) -> int:
        pages = self._tiles.pop(start)
        if self.downward:
            del self._tile_ends[start + pages]
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

    def _take_last_tiles(self, end: int, pages: int) -> None:
        """The same of the pages up to `end`, where a tile ends; keep what sticks out of the first."""
        start = end - pages
        while end > start:
            end -= self._remove_tile(self._tile_ends[end])
        if end < start:
            self._add_tile(end, start - end)

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
        if self._tile_ends != ({start + n: start for start, n in self._tiles.items()} if self.downward else {}):
            self._fail(f"the ends {self._tile_ends} are not those of the tiles", runs)
        queued = {start: pages for pages, queue in self._tile_queues.items() for start in queue}
        entries = sum(map(len, self._tile_queues.values()))
        counts_differ = not seen == entries == len(self._tiles)
        if counts_differ or queued != self._tiles or not all(self._tile_queues.values()):
            self._fail(f"{len(self._tiles)} tiles, {seen} in free extents, {entries} in queues", runs)

    def _fail(self, what: str, runs: list[tuple[int, int, str]]) -> NoReturn:
        lines = [f"  {start:>9} +{pages:<9} {kind}" for start, pages, kind in runs[:_DUMP_RUNS]]
        if len(runs) > _DUMP_RUNS:
            lines.append(f"  ... and {len(runs) - _DUMP_RUNS} more")
        raise ProtocolError(f"page allocator: {what}\n" + "\n".join(lines))
