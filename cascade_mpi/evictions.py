"""Blocks and copies of one rank that make room for others in one arena.

Covers how many go and when, ahead of puts and for one that finds no room. Does not cover which go first (`victims`,
`coldest`, `policies`) nor how one is taken out (`cells`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cascade_mpi.cell_table import DROP, PAGE_MASK, STAYS
from cascade_mpi.cells import Cells
from cascade_mpi.layout import FLAG_ALIAS, FLAG_BACKED, FLAG_CONTENT, HARD

_EVICT_SHARE = 64  # a put that finds no room evicts at least 1/64 of the arena: the rest is waited for once
_CHOOSE_SHARE = 8  # victims are chosen for 1/8 of the arena at a time: each choice looks at all touches
_CHOOSE_SHARE_LRU = 4  # where only the last use counts: what is not used until it goes would be chosen later, too
_LARGE_ONES = 8  # candidates that a put passes over as it evicts ahead
_BARREN_S = 0.1  # a look for something to evict ahead that found nothing is not made again so soon
_WISH_S = 10.0  # puts keep room for a copy that had none for so long: then nobody comes for it any more
_WISH_AGAIN_S = 60.0  # after a wish in vain: what is free is in pieces, or not in this arena


class Evictions(Cells):
    """Who goes, so that something else may come."""

    @property
    def wants_requests(self) -> bool:
        """Whether the eviction policy wants to be told which blocks are asked for together."""
        return self.victims is not None and self.victims.wants_requests

    def request(self, keys: npt.NDArray[np.uint64], partial: bool) -> None:
        """Local. Tell the policy of a request for the blocks of these keys, uint64[n, 2]. See `Store.request`."""
        if self.victims is not None:
            with self.lock:
                self.victims.request([(hi, lo) for hi, lo in keys.tolist()], partial)

    def evict_ahead(self, pages: int, missing: int | None = None) -> None:
        """Local. While less than the low watermark is free, evict about as much as this put takes.

        `missing` pages, by default of this arena alone. A block that is larger stays: it may be worth more than a put
        that evicts for itself. What was chosen after it goes in its place, of a few candidates, so that no put looks
        at many.
        """
        now = time.monotonic()
        if now < self._barren:
            return
        forgotten = self.forget_wish(now)
        missing = None if missing is None else missing - forgotten
        if missing is None:
            missing = self.low_pages - self.allocator.free_pages - self.allocator.limbo_pages
        want = pages if 2 * missing < self.low_pages else 2 * pages
        large: list[int] = []  # first pages
        try:
            while want > 0 and missing > 0 and len(large) < _LARGE_ONES:
                first = self._next_victim(large)
                if first < 0:  # all is protected, large, or being written
                    self._barren = time.monotonic() + _BARREN_S
                    return
                if (size := self.allocator.pages_of(first)) > missing:
                    large.append(first)
                elif self._evict_one(first) is not None:
                    want -= size
                    missing -= size
        finally:
            for first in reversed(large):
                self._chosen.appendleft(self._word[first])  # next when more is missing

    def evict(self, pages: int) -> bool:
        """Local. Take blocks out, hard ones never, so that a cell of so many pages may fit; False if nothing was taken.

        As many of them as spare the next puts an eviction of their own.
        """
        if not self._could_fit(pages):
            return False
        want, taken = max(pages, self.fabric.pages // _EVICT_SHARE), 0
        for first in self._going():
            size = self.allocator.pages_of(first)
            if self._evict_one(first) is not None:
                taken += size
            if taken >= want:
                break
        return taken > 0

    def _going(self) -> Iterator[int]:
        """First pages of what is to go, one after the other: copies are cells as others to the policy.

        Without eviction copies alone: what is lost with them can be fetched again.
        """
        if self.victims is None:
            yield from self._cold_copies()
            return
        while (first := self._next_victim()) >= 0:
            yield first

    def _cold_copies(self) -> list[int]:
        """First pages of the copies, the one that was not read for longest first."""
        held = np.flatnonzero(self.copies)
        order: list[int] = held[np.argsort(self.area.touched[held], kind="stable")].tolist()
        return order

    def evict_copies(self, most: int, staying: Collection[int] = ()) -> None:
        """Local. Take copies out until all take `most` pages at most, the one that was not read for longest first.

        None of `staying` (first pages).
        """
        if self.copy_pages > most:
            for first in self._cold_copies():
                if first not in staying and self._evict_one(first) is not None and self.copy_pages <= most:
                    break

    def evict_copy(self, pages: int, staying: Collection[int] = ()) -> bool:
        """Local. Take one copy out, in whose place a cell of so many pages fits; False if there is none."""
        for first in self._cold_copies() if self.copy_pages >= pages else ():
            if self.allocator.pages_of(first) >= pages and first not in staying:
                return self._evict_one(first) is not None
        return False

    def wish(self, pages: int) -> None:
        """Local. Let the next puts keep so many more pages free, for a copy that found no room; 0: no more.

        A read evicts nothing: it is puts that do, in the order of the policy, and only where they would anyhow.
        """
        now = time.monotonic()
        if self.victims is None or (pages and (self.wished or now < self._no_wish_until)):
            return  # one at a time, and none right after one that was in vain
        self.low_pages += pages - self.wished
        self.wished, self._wished_until = pages, now + _WISH_S

    def forget_wish(self, now: float) -> int:
        """Local. Give up a wish that has waited for too long: its pages."""
        wished = self.wished
        if not wished or now <= self._wished_until:
            return 0
        self.wish(0)
        self._no_wish_until = now + _WISH_AGAIN_S
        return wished

    def _next_victim(self, staying: Sequence[int] = ()) -> int:
        """First page of the block to go next; -1 if there is none. No block of `staying` (first pages) is chosen."""
        assert self.victims is not None
        for insist in (False, True):  # readers may use all that was chosen: then the first one goes nevertheless
            while self._chosen:
                word = self._chosen.popleft()
                first = word & PAGE_MASK
                if self._word[first] == word and (insist or self.victims.untouched(first)):
                    return first
            self._look_at_touches()
            stays = np.concatenate([self._staying(), np.array(staying, np.int64)])
            share = _CHOOSE_SHARE_LRU if self.victims.by_last_use else _CHOOSE_SHARE
            chosen = self.victims.choose(max(1, self.fabric.pages // share), stays)
            if not chosen:
                return -1
            self._chosen.extend(self.words[chosen].tolist())
        return self._chosen.popleft() & PAGE_MASK

    def _look_at_touches(self) -> None:
        if self.area.far:
            self.area.far.look_at_touches([*self.allocator.ranges.items()])

    def _staying(self) -> npt.NDArray[np.int64]:
        """First pages of the live cells that may not be evicted, as far as this rank knows."""
        hard = self.words & np.uint64(HARD) != 0
        stays = hard if self.victims is not None else (self.words != 0) & ~self.copies
        if self.below is not None and self.below.holds_back:
            goes = self.records["flags"] & np.uint16(FLAG_BACKED | FLAG_ALIAS | FLAG_CONTENT) != 0
            stays |= (self.words != 0) & ~self.copies & ~goes
        for start in self.allocator.closing:  # what leaves from there makes no room
            held = slice(start, start + self.allocator.ranges[start])
            stays[held] |= self.words[held] != 0
        return np.flatnonzero(stays)

    def _evict_one(self, first: int) -> int | None:
        """Evict a block or a copy: its bytes; None if it has to stay.

        Then somebody has protected it meanwhile, and the table says so; or the disk tier holds it back.
        """
        copied = self._copied[first]
        nbytes: int | None = None if self.below is None or copied else self.below.demote(self, first)
        if nbytes == STAYS:
            return None
        if nbytes is None or nbytes == DROP:
            nbytes = self.remove(first, evicting=True)
        if nbytes is not None and copied:
            self.demoted += 1
        elif nbytes is not None:
            self.evicted_bytes += nbytes
            self.evicted += 1
        return nbytes

    def drop(self, first: int) -> bool:
        """Local. Evict the block of a cell that cannot stay where it is; False if it is protected."""
        return self._evict_one(first) is not None

    def oldest(self) -> int:
        """Local. Ticks since the last use of the block that goes next, -1 if none may go."""
        if self.victims is None or time.monotonic() < self._barren:
            return -1
        if (first := self._next_victim()) < 0:
            self._barren = time.monotonic() + _BARREN_S
            return -1
        self._chosen.appendleft(self._word[first])
        return (self.fabric.ticks() - self._touch[first]) & 0xFFFFFFFF

    def _could_fit(self, pages: int) -> bool:
        """Would there be a run of so many pages if all that may go were gone? If not, none of it has to go."""
        if self.victims is None and not self.copy_pages:
            return False
        pinned, staying = self.pinned_pages(), self._staying().tolist()
        if self.allocator.live_cells > np.count_nonzero(self.words):  # cells that are being written
            staying += [first for first in self.allocator.live() if not self.words[first]]
        staying += [first for first in pinned if self.allocator.state(first) is not None]
        end = 0
        runs = [(first, self.allocator.pages_of(first)) for first in set(staying)] + self.allocator.absent()
        for first, length in sorted(runs):
            if first - end >= pages:
                return True
            end = max(end, first + length)
        return self.fabric.pages - end >= pages

    def evictable_in(self, namespace_id: int, epoch: int) -> int:
        """Local. Bytes of this rank's blocks in a namespace that may be evicted."""
        with self.lock:
            cells = self.cells_of(namespace_id, epoch)
            return int(self._lengths[cells[self.words[cells] & np.uint64(HARD) == 0]].sum())

    def make_room_in(self, namespace_id: int, epoch: int, nbytes: int) -> bool:
        """Local. Sweep, or evict `nbytes` of this rank's blocks in a namespace; False if it has not so many."""
        with self.lock:
            freed = self.sweep()
            if freed or self.victims is None:
                return freed > 0
            # None goes if there are not enough; one that is spared is protected, which the table says from then on.
            while freed < nbytes and (going := self._coldest.of(namespace_id, epoch, nbytes - freed)):
                went = sum(self._evict_one(first) or 0 for first in going)
                freed += went
                if not went and self.below is not None and self.below.holds_back:
                    break  # the table does not say of these that they stay
            return freed > 0
