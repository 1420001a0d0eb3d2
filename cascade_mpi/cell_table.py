"""What one rank knows of its cells in one arena: their words, descriptors and pins, and what they add up to.

Covers the tables and the questions to them and to the index, and the proof that all say the same. Does not cover what
becomes of a cell (`cells`, `passing`, `evictions`). Anybody may toggle the hard bit of a word: the table has each word
as it was seen last, what stands in the index decides, and words are compared without that bit.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cascade_mpi.allocator import PageAllocator
from cascade_mpi.area import Area
from cascade_mpi.coldest import Coldest
from cascade_mpi.elements import elements
from cascade_mpi.errors import ProtocolError
from cascade_mpi.fabric import Fabric, Scratch
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import (
    GENERATION_SHIFT,
    HARD,
    MAX_GENERATION,
    MAX_PAGES,
    same_cell,
)
from cascade_mpi.onesided import SLOTS_PER_PEER
from cascade_mpi.victims import Victims

PAGE_MASK = MAX_PAGES - 1
DROP, STAYS = -1, -2  # of `Below.demote`: it cannot be kept on disk; it has not left


class Below(Protocol):
    """What the cells of an arena ask of the disk tier below them."""

    def demote(self, tier: Any, first: int) -> int:
        """Local. Let a block leave memory and stay on disk: its bytes, `STAYS` if it has to stay, else `DROP`."""

    @property
    def holds_back(self) -> bool:
        """Whether blocks that are not backed have to stay for the moment: the disk refuses even their tombstones."""

    def may_drop(self) -> bool:
        """Local. Whether a block that is not backed may be taken out."""

    def why_held_back(self) -> str:
        """Local. For people: why not, and what to do."""

    def unbacked(self, word: int) -> None:
        """Local. A block that this disk cell has too has left memory, and not to there."""

    def entered(self, tier: Any, word: int) -> None:
        """Local. A block was published."""

    def retire(self, word: int) -> bool:
        """Local. The word of a disk cell was taken out of the index; False: another rank manages that."""

    def before_removal(self, hi: int, lo: int, sequence: int) -> int:
        """Local. The sequence of the removal of what was found with `sequence`, announced."""

    def removed(self, hi: int, lo: int, sequence: int, *, dropped: bool = False) -> None:
        """Local. It has been made; `dropped`: nobody has asked for it, the block had to make room."""


class CellTable:
    """The tables of one rank's cells in one arena; the lock also guards publishing (re-entrant)."""

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
        leased = self.area.rank != fabric.comm.rank
        self.allocator = PageAllocator(fabric.pages, rest, whole=whole, downward=leased)  # why: see `extent_runs`
        # By page: it is this rank's; others' hints are not to be cleared. None: all are.
        self.owned: npt.NDArray[np.bool_] | None = None if whole else np.zeros(fabric.pages, np.bool_)
        self.grow: Callable[[int], bool] | None = None  # adds pages to the allocator, so that so many may fit
        self.words = np.zeros(fabric.pages, np.uint64)  # by first page: the published word as it was seen last, 0: none
        self.records = self.area.records
        self._lengths = self.records["length"]
        self._word, self._length = elements(self.words), elements(self._lengths)
        self._expiry, self._touch = elements(self.records["expiry"]), elements(self.area.touched)
        self._flags = elements(self.records["flags"])
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
        self.wished = 0  # of them for a copy that found no room
        self._wished_until = self._no_wish_until = 0.0
        self._barren = 0.0  # until then there is nothing to evict ahead
        self._last_retired = -1.0
        self.below: Below | None = None  # the disk tier
        self.pause: Callable[[str], None] | None = None  # test hook

    def pages_for(self, nbytes: int) -> int:
        """Local. Pages of a payload; an empty one takes one page, which its descriptor needs."""
        return max(1, -(-nbytes // self.fabric.page_bytes))

    def payload(self, first: int) -> npt.NDArray[np.uint8]:
        """Local. The payload of a live cell: where it lies, or a copy of what lies on another node (1 Get)."""
        nbytes = int(self._lengths[first])
        if self.area.far:
            return self.area.far.fetch_payload(first, nbytes)
        raw = (ctypes.c_uint8 * nbytes).from_address(self.area.arena_address + first * self.fabric.page_bytes)
        found: npt.NDArray[np.uint8] = np.ctypeslib.as_array(raw)
        return found

    def wrote_descriptor(self, first: int) -> None:
        """Local. The descriptor of a cell that no word names yet was changed: readers find it as it is now."""
        full_fence()
        if self.area.far:
            self.area.far.send_descriptors([first])

    def is_live(self, word: int) -> bool:
        """Local. Whether the cell of an own word is that word's still, whatever its hard bit."""
        with self.lock:
            return self._is_live(word)

    def _is_live(self, word: int) -> bool:
        """Whether the cell of a word is that word's still."""
        return same_cell(self._word[word & PAGE_MASK], word)

    def is_reserved(self, word: int) -> bool:
        """Local. Whether the cell of a word was reserved for it, and neither entered nor given up since."""
        first = word & PAGE_MASK
        with self.lock:
            generation = word >> GENERATION_SHIFT & MAX_GENERATION
            known = self.allocator.state(first) == "live" and self.allocator.generation(first) == generation
            return known and not self.words[first]

    def pinned_pages(self) -> dict[int, int]:
        """Local. The first pages that peers have pinned, with the rank of a holder."""
        if self.area.far:
            self.area.far.look_at_pins()
        if self._pins == self._no_pins:
            return {}
        slots = self.area.pin_words.copy()  # peers write them meanwhile: one look at each
        return {int(slots[at]) & PAGE_MASK: at // SLOTS_PER_PEER for at in np.flatnonzero(slots).tolist()}

    def standing(self, first: int) -> tuple[int, int, int, int] | None:
        """Local. (home, bucket, slot, word) of a live cell as its word stands in the index now; None: it has left."""
        word, s = self._word[first], self._scratch
        if not word or (slot := self._slot_of(first, word)) < 0:
            return None
        return s.signed[c.HOME], s.signed[c.BUCKET], slot, self._note(first)

    def _slot_of(self, first: int, word: int) -> int:
        fabric, s = self.fabric, self._scratch
        look = fabric.slot_of_copy if self._copied[first] else fabric.slot_of
        slot = look(fabric.ctx, s.address, self._key_hi[first], self._key_lo[first], word)
        if slot == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        return slot

    def _note(self, first: int) -> int:
        """The word of a cell as the last look found it in the index, entered into the table."""
        there: int = self._scratch.words[c.WORD]
        self._word[first] = there
        return there

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

    def protected(self) -> tuple[int, int]:
        """Local. The protected blocks and their payload bytes, as the table has them."""
        with self.lock:
            hard = np.flatnonzero(self.words & np.uint64(HARD))
            return hard.size, int(self._lengths[hard].sum())

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
