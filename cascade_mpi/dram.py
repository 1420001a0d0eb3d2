"""The DRAM tier of one rank: the cells that this rank manages in one arena, from reservation to reuse.

Covers allocation, the table of published words, removal of own words (evict, expire, clear), the sweep of cells
whose word others took away, limbo, and the look at the pins before reuse. Does not cover how a word is
published (`writer`), which pages a cell gets (`allocator`), which blocks are evicted first (`victims`), nor which
arenas a rank has cells in (`pool`).

The order that keeps readers safe: the word leaves (CAS, flushed), full fence, rest, look at the pins,
wipe the descriptor, reuse with the generation raised. Anybody may toggle the hard bit of a word: the table has
each word as it was seen last, what stands in the index decides, and words are compared without that bit.
"""

from __future__ import annotations

import ctypes
import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cascade_mpi.allocator import PageAllocator
from cascade_mpi.area import Area
from cascade_mpi.coldest import Coldest
from cascade_mpi.elements import elements
from cascade_mpi.errors import ProtocolError
from cascade_mpi.fabric import Fabric, Scratch
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import checksum_cell, full_fence
from cascade_mpi.layout import (
    DESCRIPTOR_BYTES,
    GENERATION_SHIFT,
    HARD,
    MAX_GENERATION,
    MAX_PAGES,
    is_alias,
    same_cell,
)
from cascade_mpi.onesided import SLOTS_PER_PEER
from cascade_mpi.victims import Victims

_PAGE_MASK = MAX_PAGES - 1
_EVICT_SHARE = 64  # a put that finds no room evicts at least 1/64 of the arena: the rest is waited for once
_CHOOSE_SHARE = 8  # victims are chosen for 1/8 of the arena at a time: each choice looks at all touches
_CHOOSE_SHARE_LRU = 4  # where only the last use counts: what is not used until it goes would be chosen later, too
_LARGE_ONES = 8  # candidates that a put passes over as it evicts ahead
_BARREN_S = 0.1  # a look for something to evict ahead that found nothing is not made again so soon
_POLL_S = 5e-5
_DRAIN_LATE_S = 0.001  # cells leave limbo in batches: each looks at the pins
_DRAIN_CELLS = 2  # and so many at a time, unless an allocation needs them all: no put waits for many
_DRAIN_SHARE = 32  # or 1/32 of what rests there: where a put evicts many small ones, limbo does not grow for ever


class DramTier:
    """What one rank manages of one arena. Public methods take the lock that also guards publishing (re-entrant)."""

    name = "dram"

    def __init__(
        self, fabric: Fabric, *, rest: float, eviction: str | None, ahead: float = 0.0, area: Area | None = None,
        shared: tuple[threading.RLock, Scratch] | None = None, whole: bool = True,
    ) -> None:  # fmt: skip
        """`eviction` names a policy, None: nothing is evicted; `ahead` is the share of pages to be kept free.

        `area` is the arena, by default this rank's; `shared` the lock and the scratch of the rank's other tier. Not
        `whole`: the allocator has no pages yet.
        """
        self.fabric = fabric
        self.area = Area.own(fabric) if area is None else area
        # Its own: a look in the middle of a put must not overwrite the look-up that the put goes by.
        self.shared = (threading.RLock(), fabric.new_scratch()) if shared is None else shared
        self.lock, self._scratch = self.shared
        self.allocator = PageAllocator(fabric.pages, rest, whole=whole)
        # By page: it is this rank's; others' hints are not to be cleared. None: all are.
        self.owned: npt.NDArray[np.bool_] | None = None if whole else np.zeros(fabric.pages, np.bool_)
        self.grow: Callable[[int], bool] | None = None  # adds pages to the allocator, so that so many may fit
        self.words = np.zeros(fabric.pages, np.uint64)  # by first page: the published word as it was seen last, 0: none
        self.records = self.area.records
        self._lengths = self.records["length"]
        self._word, self._length = elements(self.words), elements(self._lengths)
        self._expiry, self._touch = elements(self.records["expiry"]), elements(self.area.touched)
        self._magic, self._pins = elements(self.records["magic"]), elements(self.area.pin_words).cast("B")
        self._no_pins = bytes(self._pins.nbytes)
        self._key_hi, self._key_lo = elements(self.records["key_hi"]), elements(self.records["key_lo"])
        self.live_bytes = 0
        self.evicted = self.evicted_bytes = self.swept = self.passed = self.expired = self.spared = 0
        self._unsummed: deque[int] = deque()
        self._passed: deque[int] = deque()  # words of blocks of epochs that have passed
        self._expiring: list[tuple[int, int]] = []  # a heap of (expiry, word)
        self.unprotected: Callable[[int], None] | None = None  # told the bytes of a hard word that was taken away
        self.counted = np.zeros(fabric.pages, np.bool_)  # by first page: the block counts against a quota
        self._counts = elements(self.counted)
        self.freed: Callable[[int, int, int], None] | None = None  # told namespace id, epoch and bytes of what counted
        self.copies = np.zeros(fabric.pages, np.bool_)  # by first page: a copy, its word is in the node's copy table
        self._copied = elements(self.copies)
        self.copy_pages = self.copy_bytes = self.demoted = self.stale = 0
        self._rest = rest
        self.victims = None if eviction is None else Victims(eviction, self.records, self.area.touched)
        self._chosen: deque[int] = deque()  # words
        self._coldest = Coldest(self.words, self._lengths, self.area.touched, self.cells_of)
        self.low_pages = int(ahead * fabric.pages) if eviction is not None else 0
        self._barren = 0.0  # until then there is nothing to evict ahead
        self._last_retired = -1.0
        self.pause: Callable[[str], None] | None = None  # test hook

    def pages_for(self, nbytes: int) -> int:
        """Local. Pages of a payload; an empty one takes one page, which its descriptor needs."""
        return max(1, -(-nbytes // self.fabric.page_bytes))

    # ------------------------------------------------------------------------------------ from free to live

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
                except BaseException:  # Ctrl-C too: the caller never heard of its cell
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

    def reserve_copy(self, nbytes: int, most: int, *, wait: bool = False) -> tuple[int, int] | None:
        """Local. The same for a copy; copies may take `most` pages. None if there is no room, without `wait`: now.

        What makes room (older copies beyond `most`; else what an eviction takes) is free after its rest: a later
        attempt finds it.
        """
        pages = self.pages_for(nbytes)
        if pages > most:
            return None
        with self.lock:
            now = time.monotonic()
            if self.copy_pages + pages > most:
                for first in self._cold_copies():
                    if self.copy_pages + pages <= most:
                        break
                    self._evict_one(first)
            self.drain(now)
            cell = self.allocate(pages, now)
            if cell is None and self.allocator.limbo_pages < pages and self.victims is not None:
                self.evict(pages, pages)  # no more than this one needs: a copy is worth no blocks ahead of time
            return self._settle(pages) if cell is None and wait else cell

    def enter_copy(self, word: int, nbytes: int) -> None:
        """Local. Note a word as published in the node's copy table; the caller holds the lock as for `enter`."""
        first = word & _PAGE_MASK
        self.copies[first] = True
        self.copy_pages += self.pages_for(nbytes)
        self.copy_bytes += nbytes
        self.enter(word, nbytes)

    def enter(self, word: int, nbytes: int, *, unsummed: bool = False, touch: int | None = None) -> None:
        """Local. Note a word as published; the caller holds the lock since before its CAS (rule R8).

        `touch` is the tick of its last use, by default now.
        """
        first = word & _PAGE_MASK
        self._word[first] = word
        self.live_bytes += nbytes
        if unsummed:
            self._unsummed.append(word)
            if len(self._unsummed) > 2 * self.allocator.live_pages + 1024:  # most are of cells that are gone
                self._unsummed = deque(filter(self._is_live, self._unsummed))
        if expiry := self._expiry[first]:
            heapq.heappush(self._expiring, (expiry, word))
            if len(self._expiring) > 2 * self.allocator.live_pages + 1024:
                self._expiring = [each for each in self._expiring if self._is_live(each[1])]
                heapq.heapify(self._expiring)
        # As the kernels do: a clock that is behind the epoch is no reason to fail after the block was published.
        self._touch[first] = (self.fabric.ticks() if touch is None else touch) & 0xFFFFFFFF
        if self.area.far:
            self.area.far.send_touch(first)
        if self.victims is not None:
            self.victims.entered(first, self.pages_for(nbytes))

    def is_reserved(self, word: int) -> bool:
        """Local. Whether the cell of a word was reserved for it, and neither entered nor given up since."""
        first = word & _PAGE_MASK
        with self.lock:
            generation = word >> GENERATION_SHIFT & MAX_GENERATION
            known = self.allocator.state(first) == "live" and self.allocator.generation(first) == generation
            return known and not self.words[first]

    def enter_if_it_stands(self, word: int, nbytes: int, *, unsummed: bool = False) -> bool:
        """Local. Enter a word of which it is not known whether its compare-and-swap was made: whether it was."""
        first = word & _PAGE_MASK
        with self.lock:
            if not self.words[first] and self._slot_of(first, word) >= 0:
                self.enter(word, nbytes, unsummed=unsummed)
            return bool(self.words[first])

    def _is_live(self, word: int) -> bool:
        """Whether the cell of a word is that word's still."""
        return same_cell(self._word[word & _PAGE_MASK], word)

    def is_live(self, word: int) -> bool:
        """Local. Whether the cell of an own word is that word's still, whatever its hard bit."""
        with self.lock:
            return self._is_live(word)

    def wrote_descriptor(self, first: int) -> None:
        """Local. The descriptor of a cell that no word names yet was changed: readers find it as it is now."""
        full_fence()
        if self.area.far:
            self.area.far.send_descriptors([first])

    def payload(self, first: int) -> npt.NDArray[np.uint8]:
        """Local. The payload of a live cell: where it lies, or a copy of what lies on another node (1 Get)."""
        nbytes = int(self._lengths[first])
        if self.area.far:
            return self.area.far.fetch_payload(first, nbytes)
        raw = (ctypes.c_uint8 * nbytes).from_address(self.area.arena_address + first * self.fabric.page_bytes)
        found: npt.NDArray[np.uint8] = np.ctypeslib.as_array(raw)
        return found

    def compute_checksums(self, limit: int | None = None) -> int:
        """Local. Compute checksums that puts have left for later, at most `limit`: how many."""
        done = 0
        with self.lock:  # the cell cannot be retired and reused meanwhile
            while self._unsummed and (limit is None or done < limit):
                word = self._unsummed.popleft()
                if self._is_live(word):
                    first = word & _PAGE_MASK
                    descriptor = self.area.descriptors_address + first * DESCRIPTOR_BYTES
                    checksum_cell(descriptor, self.area.arena_address + first * self.fabric.page_bytes)
                    done += 1
        return done

    def abandon(self, first: int) -> None:
        """Local. A reserved cell that was not written whole goes to limbo; it counts against nothing."""
        with self.lock:
            self.counted[first] = False
            self._leave(first)

    def give_up(self, first: int) -> None:
        """Local. A reserved cell whose word is nowhere and will never be published goes to limbo."""
        with self.lock:
            self._leave(first)

    # ---------------------------------------------------------------------------------- from live to limbo

    def retire(self, word: int, *, evicted: bool = False) -> bool:
        """Local. An own word has left the index for good (the caller's CAS has returned): its cell goes to limbo.

        False if that was known already.
        """
        with self.lock:
            if not self._is_live(word):
                return False
            first = word & _PAGE_MASK
            nbytes = self._length[first]
            self._word[first] = 0
            self.live_bytes -= nbytes
            if self._copied[first]:
                self._copied[first] = False
                self.copy_pages -= self.pages_for(nbytes)
                self.copy_bytes -= nbytes
            if self.victims is not None:
                self.victims.left(first, evicted=evicted)
            self._leave(first)
            return True

    def remove(self, first: int, *, evicting: bool = False) -> int | None:
        """Local. Take the word of a live cell out of the index, wherever it stands, and retire the cell: its bytes.

        `evicting` not if it is protected: None. 1 Get + 1 CAS + 2 Flushes at the home.
        """
        with self.lock:
            word, fabric, s = self._word[first], self.fabric, self._scratch
            nbytes = self._length[first]
            while (slot := self._slot_of(first, word)) >= 0:
                there = self._note(first)
                if evicting and there & HARD:
                    self.spared += 1
                    return None
                home, bucket = s.signed[c.HOME], s.signed[c.BUCKET]
                done = fabric.remove(fabric.ctx, s.address, home, bucket, slot, there)
                if done < 0:
                    fabric.raise_mpi_error(s)
                if done:
                    if there & HARD and self.unprotected is not None:
                        self.unprotected(nbytes)
                    break
                # It has left, or its hard bit was toggled and the block lives: only the index can tell.
            self.retire(word, evicted=evicting)
            return nbytes

    def _note(self, first: int) -> int:
        """The word of a cell as the last look found it in the index, entered into the table."""
        there: int = self._scratch.words[c.WORD]
        self._word[first] = there
        return there

    def sweep(self, *, everything: bool = False) -> int:
        """Local. Retire the cells that no word names any more: their number. 1 Get + 1 Flush for each looked at.

        Looks at the cells of which a stranger said so (or at all): a hint is never the permission. Notes what has
        become of the hard bits of the others.
        """
        with self.lock:
            # A copy: NumPy counts the hints before it lists them, and peers write them meanwhile.
            gone, far = self.area.gone, self.area.far
            if far:
                far.look_at_hints([*self.allocator.ranges.items()])
            hints = gone.copy()
            if self.owned is not None:
                hints[~self.owned] = 0
            firsts = np.flatnonzero(self.words if everything else hints)
            gone[firsts] = 0  # before the look: a hint that comes later counts for the next sweep
            full_fence()
            if far:
                far.send_hints([(first, 1) for first in firsts.tolist()])
            found = 0
            for first in firsts.tolist():
                word = self._word[first]
                if not word:
                    continue
                if self._slot_of(first, word) < 0:
                    self.retire(word)
                    found += 1
                elif self.copies[first] and not everything:
                    self.remove(first)  # a reader found that its origin has changed
                    self.stale += 1
                    found += 1
                elif is_alias(word) and not everything and self._names_nothing(first):
                    self.remove(first)  # a reader found that its content was evicted
                    found += 1
                else:
                    self._note(first)
            self.swept += found
            return found

    def _names_nothing(self, first: int) -> bool:
        """Has the content of an own alias no word in the index? Stored again after this look, it has other names."""
        fabric, s, record = self.fabric, self._scratch, self.records[first]
        content = int(record["content_hi"]), int(record["content_lo"])
        found = fabric.find(fabric.ctx, s.address, *content, 0)
        if found == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        return found == 0

    def _slot_of(self, first: int, word: int) -> int:
        fabric, s = self.fabric, self._scratch
        look = fabric.slot_of_copy if self._copied[first] else fabric.slot_of
        slot = look(fabric.ctx, s.address, self._key_hi[first], self._key_lo[first], word)
        if slot == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        return slot

    def standing(self, first: int) -> tuple[int, int, int, int] | None:
        """Local. (home, bucket, slot, word) of a live cell as its word stands in the index now; None: it has left."""
        word, s = self._word[first], self._scratch
        if not word or (slot := self._slot_of(first, word)) < 0:
            return None
        return s.signed[c.HOME], s.signed[c.BUCKET], slot, self._note(first)

    # ---------------------------------------------------------------------------------------------- eviction

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
        if time.monotonic() < self._barren:
            return
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

    def evict(self, pages: int, least: int | None = None) -> bool:
        """Local. Take blocks out, hard ones never, so that a cell of so many pages may fit; False if nothing was taken.

        At least `least` pages of them, by default what spares the next puts an eviction of their own.
        """
        if not self._could_fit(pages):
            return False
        want, taken = least or max(pages, self.fabric.pages // _EVICT_SHARE), 0
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

    def _next_victim(self, staying: Sequence[int] = ()) -> int:
        """First page of the block to go next; -1 if there is none. No block of `staying` (first pages) is chosen."""
        assert self.victims is not None
        for insist in (False, True):  # readers may use all that was chosen: then the first one goes nevertheless
            while self._chosen:
                word = self._chosen.popleft()
                first = word & _PAGE_MASK
                if self._word[first] == word and (insist or self.victims.untouched(first)):
                    return first
            self._look_at_touches()
            stays = np.concatenate([self._staying(), np.array(staying, np.int64)])
            share = _CHOOSE_SHARE_LRU if self.victims.by_last_use else _CHOOSE_SHARE
            chosen = self.victims.choose(max(1, self.fabric.pages // share), stays)
            if not chosen:
                return -1
            self._chosen.extend(self.words[chosen].tolist())
        return self._chosen.popleft() & _PAGE_MASK

    def _look_at_touches(self) -> None:
        if self.area.far:
            self.area.far.look_at_touches([*self.allocator.ranges.items()])

    def _staying(self) -> npt.NDArray[np.int64]:
        """First pages of the live cells that may not be evicted, as far as this rank knows."""
        hard = self.words & np.uint64(HARD) != 0
        stays = hard if self.victims is not None else (self.words != 0) & ~self.copies
        for start in self.allocator.closing:  # what leaves from there makes no room
            held = slice(start, start + self.allocator.ranges[start])
            stays[held] |= self.words[held] != 0
        return np.flatnonzero(stays)

    def _evict_one(self, first: int) -> int | None:
        """Evict a block or a copy: its bytes; None if somebody has protected it meanwhile, and the table says so."""
        copied = self._copied[first]
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

    # ------------------------------------------------------------------------------------------- namespaces

    def cells_of(self, namespace_id: int, epoch: int) -> npt.NDArray[np.int64]:
        """Local. The first pages of the blocks of a namespace at an epoch; copies are no blocks."""
        live = np.flatnonzero(self.words * ~self.copies)
        records = self.records
        mine = (records["namespace"][live] == np.uint64(namespace_id)) & (records["epoch"][live] == epoch)
        found: npt.NDArray[np.int64] = live[mine]
        return found

    def held(self, namespace_id: int, epoch: int) -> tuple[int, int, int]:
        """Local. Of a namespace: its blocks at this epoch, their bytes, and the bytes of its blocks of other epochs."""
        with self.lock:
            live = np.flatnonzero(self.words * ~self.copies)
            live = live[self.records["namespace"][live] == np.uint64(namespace_id)]
            lengths, at = self.records["length"][live], self.records["epoch"][live] == epoch
        return int(at.sum()), int(lengths[at].sum()), int(lengths[~at].sum())

    def count(self, namespace_id: int, epoch: int, drafts: Iterable[int], *, on: bool) -> int:
        """Local. Let the blocks of a namespace at an epoch count against a quota from now on, or not: their bytes.

        `drafts` are first pages of cells that wait for their publication.
        """
        with self.lock:
            cells = [*self.cells_of(namespace_id, epoch).tolist()]
            records = self.records
            cells += [
                first for first in drafts
                if int(records["namespace"][first]) == namespace_id and records["epoch"][first] == epoch
            ]  # fmt: skip
            self.counted[cells] = on
            return int(records["length"][cells].sum())

    def sweep_hinted(self) -> None:
        """Local. Sweep if a stranger has said that a word of this rank's is gone."""
        if self.area.far or self.area.gone.any():
            self.sweep()

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
                freed += sum(self._evict_one(first) or 0 for first in going)
            return freed > 0

    def let_pass(self, epochs: Mapping[int, int]) -> None:
        """Local. Blocks of these namespaces (ids) whose epoch is not the given one are to go: nobody can find them."""
        with self.lock:
            live = np.flatnonzero(self.words)
            spaces, at = self.records["namespace"][live], self.records["epoch"][live]
            known = np.array(sorted(epochs), np.uint64)
            place = np.minimum(np.searchsorted(known, spaces), known.size - 1)
            begun = np.array([epochs[namespace_id] for namespace_id in known.tolist()], np.uint32)
            old = (known[place] == spaces) & (at < begun[place])
            self._passed = deque(self.words[live[old]].tolist())

    def let_one_pass(self, word: int) -> None:
        """Local. The block of this word is to go: its epoch passed before it was published."""
        self._passed.append(word)

    @property
    def any_passed(self) -> bool:
        """Whether blocks of passed epochs wait to be taken out."""
        return bool(self._passed)

    def drop_passed(self, limit: int | None = None) -> int:
        """Local. Take blocks and copies of passed epochs out, protected ones too, at most `limit`: how many."""
        dropped = 0
        with self.lock:
            while self._passed and (limit is None or dropped < limit):
                word = self._passed[0]
                if self._is_live(word):
                    self.remove(word & _PAGE_MASK)
                    dropped += 1
                    self.passed += 1
                self._passed.popleft()  # last: what MPI fails to remove is tried again
        return dropped

    # ------------------------------------------------------------------------------------ expiry, protection

    @property
    def any_expiring(self) -> bool:
        """Whether any block has an expiry, past or not."""
        return bool(self._expiring)

    def drop_expired(self, limit: int | None = None) -> int:
        """Local. Take expired blocks and copies out, protected ones too, after at most `limit` looks: how many."""
        dropped = looks = 0
        with self.lock:
            now = self.fabric.now()
            while self._expiring and self._expiring[0][0] <= now and (limit is None or looks < limit):
                looks += 1
                word = self._expiring[0][1]
                if self._is_live(word):
                    copied = bool(self.copies[word & _PAGE_MASK])
                    self.remove(word & _PAGE_MASK)
                    self.expired += not copied
                    dropped += 1
                heapq.heappop(self._expiring)  # last: what MPI fails to remove is tried again
        return dropped

    def protected(self) -> tuple[int, int]:
        """Local. The protected blocks and their payload bytes, as the table has them."""
        with self.lock:
            hard = np.flatnonzero(self.words & np.uint64(HARD))
            return hard.size, int(self._lengths[hard].sum())

    def clear(self) -> None:
        """Local. Take every block of this rank out, hard ones too."""
        with self.lock:
            for first in np.flatnonzero(self.words).tolist():
                self.remove(first)

    # ---------------------------------------------------------------------------------- from limbo to free

    def _leave(self, first: int) -> None:
        """A cell goes to limbo, and its bytes out of its namespace."""
        if self._counts[first]:
            if self.freed is not None:
                record = self.records[first]
                self.freed(int(record["namespace"]), int(record["epoch"]), int(record["length"]))
            self._counts[first] = False
        self._last_retired = time.monotonic()
        self.allocator.retire(first, self._last_retired)

    def drain(self, now: float, limit: int | None = None) -> None:
        """Local. Free the cells that have rested and that nobody has pinned, the `limit` oldest of them."""
        oldest = self.allocator.next_ripe()
        if oldest is None or oldest > now:
            return
        if self.pause:
            self.pause("manager")
        full_fence()  # the removal of the words before the look at the pins
        pinned = self.pinned_pages()
        # Those that are pinned for long are the oldest: they are not to be all that is looked at.
        ripe = self.allocator.ripe(now, None if limit is None else limit + len(pinned))
        unpinned = [first for first in ripe if first not in pinned] if pinned else ripe
        # What left limbo must say nothing any more before its pages are given out again.
        magic = self._magic
        for first in unpinned:
            magic[first] = 0
        full_fence()
        if self.area.far:
            self.area.far.send_descriptors(unpinned)
        for first in unpinned:
            self.allocator.free(first)

    def drain_some(self, now: float) -> None:
        """Local. Free a few cells that have rested for long."""
        ripe = self.allocator.next_ripe()
        if ripe is not None and ripe + _DRAIN_LATE_S <= now:
            self.drain(now, max(_DRAIN_CELLS, self.allocator.limbo_cells // _DRAIN_SHARE))

    def pinned_pages(self) -> dict[int, int]:
        """Local. The first pages that peers have pinned, with the rank of a holder."""
        if self.area.far:
            self.area.far.look_at_pins()
        if self._pins == self._no_pins:
            return {}
        slots = self.area.pin_words.copy()  # peers write them meanwhile: one look at each
        return {int(slots[at]) & _PAGE_MASK: at // SLOTS_PER_PEER for at in np.flatnonzero(slots).tolist()}

    def _settle(self, pages: int) -> tuple[int, int] | None:
        """Wait until limbo has given back what it can, entering MPI so that peers proceed."""
        while True:
            now = time.monotonic()
            self.drain(now)
            cell = self.allocator.allocate(pages, now)
            if cell is not None or self._last_retired + self._rest <= now:
                return cell
            self.fabric.poll(self.fabric.ctx, self.fabric.scratch.address)
            time.sleep(_POLL_S)

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
        return (
            text + elsewhere + ": raise dram_bytes" + ("" if self.victims is not None else ' or set when_full="evict"')
        )

    def check(self) -> None:
        """Local. Verify the allocator and that the table of words, descriptors and cells say the same.

        Raises
        ------
        ProtocolError
            The first invariant that does not hold.
        """
        with self.lock:
            self.allocator.check()
            total = 0
            for first in np.flatnonzero(self.words).tolist():
                record = self.records[first]
                if self.allocator.state(first) != "live":
                    raise ProtocolError(f"page {first} has a word but its cell is {self.allocator.state(first)}")
                if self.allocator.pages_of(first) != self.pages_for(int(record["length"])):
                    raise ProtocolError(
                        f"cell {first}: {self.allocator.pages_of(first)} pages, {record['length']} bytes"
                    )
                total += int(record["length"])
            self._check_copies()
            if self.victims is not None:
                self.victims.check(np.flatnonzero(self.words))
            if total != self.live_bytes:
                raise ProtocolError(f"live bytes are {total}, counted {self.live_bytes}")

    def _check_copies(self) -> None:
        copied = np.flatnonzero(self.copies)
        words = self.words[copied]
        if not words.all() or (words & np.uint64(HARD)).any() or self.counted[copied].any():
            raise ProtocolError(
                f"of {copied.size} cells that are copies {np.count_nonzero(words)} have words, "
                f"{np.count_nonzero(words & np.uint64(HARD))} hard ones, {np.count_nonzero(self.counted[copied])} "
                "count against a quota"
            )
        pages = sum(self.allocator.pages_of(first) for first in copied.tolist())
        if (pages, int(self._lengths[copied].sum())) != (self.copy_pages, self.copy_bytes):
            raise ProtocolError(f"copies take {pages} pages, counted {self.copy_pages} ({self.copy_bytes} bytes)")
