"""The life of the cells that one rank manages in one arena: published, taken out, in limbo, free.

Covers the table of published words, removal of own words, the sweep of cells whose word others took away, limbo, and
the look at the pins before reuse. Does not cover how a word is published (`writer`), which pages a cell gets
(`allocator`), nor why a block goes (`passing`, `evictions`).

The order that keeps readers safe: the word leaves (CAS, flushed), full fence, rest, look at the pins,
wipe the descriptor, reuse with the generation raised.
"""

from __future__ import annotations

import heapq
import time
from collections import deque

import numpy as np

from cascade_mpi.cell_table import PAGE_MASK, CellTable
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import checksum_cell, full_fence
from cascade_mpi.layout import (
    DESCRIPTOR_BYTES,
    FLAG_ALIAS,
    FLAG_BACKED,
    FLAG_CONTENT,
    HARD,
    is_alias,
)

_POLL_S = 5e-5
_NEVER_BELOW = FLAG_ALIAS | FLAG_CONTENT  # blocks that are in memory only
_DRAIN_LATE_S = 0.001  # cells leave limbo in batches: each looks at the pins
_DRAIN_CELLS = 2  # and so many at a time, unless an allocation needs them all: no put waits for many
_DRAIN_SHARE = 32  # or 1/32 of what rests there: where a put evicts many small ones, limbo does not grow for ever


class Cells(CellTable):
    """Cells on their way from live to free. Public methods take the lock."""

    # -------------------------------------------------------------------------------------------- from reserved to live

    def enter(self, word: int, nbytes: int, *, unsummed: bool = False, touch: int | None = None) -> None:
        """Local. Note a word as published; the caller holds the lock since before its CAS (rule R8).

        `touch` is the tick of its last use, by default now.
        """
        first = word & PAGE_MASK
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
        if self.below is not None and not self._copied[first]:
            self.below.entered(self, word)

    def enter_copy(self, word: int, nbytes: int) -> None:
        """Local. Note a word as published in the node's copy table; the caller holds the lock as for `enter`."""
        first = word & PAGE_MASK
        self.copies[first] = True
        self.copy_pages += self.pages_for(nbytes)
        self.copy_bytes += nbytes
        self.enter(word, nbytes)

    def enter_if_it_stands(self, word: int, nbytes: int, *, unsummed: bool = False) -> bool:
        """Local. Enter a word of which it is not known whether its compare-and-swap was made: whether it was."""
        first = word & PAGE_MASK
        with self.lock:
            if not self.words[first] and self._slot_of(first, word) >= 0:
                self.enter(word, nbytes, unsummed=unsummed)
            return bool(self.words[first])

    def compute_checksums(self, limit: int | None = None) -> int:
        """Local. Compute checksums that puts have left for later, at most `limit`: how many."""
        done = 0
        with self.lock:  # the cell cannot be retired and reused meanwhile
            while self._unsummed and (limit is None or done < limit):
                word = self._unsummed.popleft()
                if self._is_live(word):
                    first = word & PAGE_MASK
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

    # ----------------------------------------------------------------------------------------------- from live to limbo

    def retire(self, word: int, *, evicted: bool = False, leaves_to: int = 0) -> bool:
        """Local. An own word has left the index for good (the caller's CAS has returned): its cell goes to limbo.

        `leaves_to` is the word of the disk cell that stands in its place. False if that was known already.
        """
        with self.lock:
            if not self._is_live(word):
                return False
            first = word & PAGE_MASK
            nbytes = self._length[first]
            self._word[first] = 0
            self.live_bytes -= nbytes
            if self._copied[first]:
                self._copied[first] = False
                self.copy_pages -= self.pages_for(nbytes)
                self.copy_bytes -= nbytes
            elif self.below is not None and self._flags[first] & FLAG_BACKED:
                backing = int(self.records["content_hi"][first])
                if backing != leaves_to:
                    self.below.unbacked(backing)
            if self.victims is not None:
                self.victims.left(first, evicted=evicted)
            self._leave(first)
            return True

    def remove(self, first: int, *, evicting: bool = False, passed: bool = False) -> int | None:
        """Local. Take the word of a live cell out of the index, wherever it stands, and retire the cell: its bytes.

        `evicting` not if it is protected: None. `passed`: of an epoch that has, so that no restart finds what is older.
        1 Get + 1 CAS + 2 Flushes at the home.
        """
        with self.lock:
            word, fabric, s = self._word[first], self.fabric, self._scratch
            nbytes = self._length[first]
            below = None if passed or self._copied[first] or self._flags[first] & _NEVER_BELOW else self.below
            key, sequence = (self._key_hi[first], self._key_lo[first]), 0
            while (slot := self._slot_of(first, word)) >= 0:
                there = self._note(first)
                if evicting and there & HARD:
                    self.spared += 1
                    return None
                home, bucket = s.signed[c.HOME], s.signed[c.BUCKET]
                if below is not None:  # an older record may be durable: it must not come back
                    sequence = below.before_removal(*key, int(self.records["sequence"][first]))
                done = fabric.remove(fabric.ctx, s.address, home, bucket, slot, there)
                if done < 0:
                    fabric.raise_mpi_error(s)
                if done:
                    if there & HARD and self.unprotected is not None:
                        self.unprotected(nbytes)
                    if below is not None:
                        below.removed(*key, sequence, dropped=evicting)
                    break
                # It has left, or its hard bit was toggled and the block lives: only the index can tell.
            self.retire(word, evicted=evicting)
            return nbytes

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

    def sweep_hinted(self) -> None:
        """Local. Sweep if a stranger has said that a word of this rank's is gone."""
        if self.area.far or self.area.gone.any():
            self.sweep()

    def _names_nothing(self, first: int) -> bool:
        """Has the content of an own alias no word in the index? Stored again after this look, it has other names."""
        fabric, s, record = self.fabric, self._scratch, self.records[first]
        content = int(record["content_hi"]), int(record["content_lo"])
        found = fabric.find(fabric.ctx, s.address, *content, 0)
        if found == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        return found == 0

    # ----------------------------------------------------------------------------------------------- from limbo to free

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
