"""One pool of memory: which arena a rank's next cell lies in, and what it lends, borrows and gives back.

Covers the order in which the tiers of one rank are asked for room, and what all of them hold together. Does not cover
how they come by their extents (`extents`), nor the cells of one arena (`dram`).

A put asks, in this order: free cells of the own
arena, more of it, free cells in leased extents, what can be had without a loss, extents of other ranks (of its node
first), and only then does the block go that was not used for longest. Who must evict while others have extents of its
arena recalls some: their holder moves the blocks out with one of its next calls, and gives the extents back when their
cells have rested and nobody has them pinned.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cascade_mpi.area import Area
from cascade_mpi.config import Config
from cascade_mpi.dram import DramTier
from cascade_mpi.extents import Extents
from cascade_mpi.fabric import Fabric
from cascade_mpi.layout import MAX_PAGES, MAX_RANKS, RANK_SHIFT, is_disk, place
from cascade_mpi.leases import LeaseTable, is_recalled
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.registry import Registry

_WAIT_S = 0.2  # at most, for recalled extents, where nothing else is left
_WAIT_AGAIN_S = 2.0  # when that was in vain: their holders are far away
_POLL_S = 2e-4


class Cell(NamedTuple):
    """A reserved cell."""

    tier: DramTier
    first: int
    generation: int


class Follower(Protocol):
    """Who goes through the cells of a rank, and is to hear of the blocks that move meanwhile."""

    def moved(self, tier: DramTier, first: int, to: DramTier, new: int) -> None:
        """Local. A block has gone from one cell to another. The caller holds the lock."""

    def left(self, tier: DramTier, first: int, word: int) -> None:
        """Local. A block has left a cell for the disk: the word of its disk cell, perhaps another rank's."""

    def came(self, word: int, tier: DramTier, first: int) -> None:
        """Local. A block has come from the disk into a cell."""


class Pool(Extents):
    """What one rank manages, in all arenas. Public methods take the lock of its tiers."""

    def __init__(
        self, fabric: Fabric, own: DramTier, make: Callable[[Area], DramTier], table: LeaseTable | None, *, hashed: bool
    ) -> None:
        super().__init__(fabric, own, make, table)
        self._hashed = hashed and table is not None
        self.followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._wait_again = 0.0

    # -------------------------------------------------------------------------------------------------------- one block

    def reserve(self, nbytes: int, hi: int, lo: int) -> Cell | None:
        """Local. A cell for the block of this key, or None if no arena has room for it.

        May wait for cells in limbo, sweep, lease, evict, and wait a moment for extents that were recalled; what was
        refused has changed nothing but that.
        """
        own = self.own
        if self.table is None:
            cell = own.reserve(nbytes)
            return None if cell is None else Cell(own, *cell)
        pages = own.pages_for(nbytes)
        if pages > self._fabric.pages:
            return None
        with self.lock:
            now = time.monotonic()
            own.drain_some(now)
            if not self._hashed and own.allocator.free_pages > own.low_pages:  # the most frequent case, in few steps
                cell = own.allocator.allocate(pages, now)
                if cell is not None:
                    return Cell(own, *cell)
            found = self._where_the_key_says(pages, hi, lo, now) if self._hashed else None
            found = found or self.take(pages) or self._regain(pages) or self._lease(pages, now)
            found = found or self.make_room(pages) or self._wait_for_recalled(pages)
            if found is not None:
                try:
                    self._keep_ahead(pages, now)
                except BaseException:  # an error of MPI, say: the caller never heard of its cell
                    found.tier.abandon(found.first)
                    raise
            return found

    def take(self, pages: int) -> Cell | None:
        """Local. A cell in what is free of the own arena, or of the extents that this rank has leased."""
        now = time.monotonic()
        cell = self.own.allocate(pages, now)
        if cell is not None:
            return Cell(self.own, *cell)
        for tier in self._leased():
            tier.drain_some(now)
            cell = tier.allocator.allocate(pages, now)
            if cell is not None:
                return Cell(tier, *cell)
        return None

    def take_free(self, pages: int) -> Cell | None:
        """Local. The same, or in an extent that is free: what can be had without any block having to go."""
        return self.take(pages) or self._lease(pages, time.monotonic())

    def take_in(self, rank: int, pages: int) -> Cell | None:
        """Local. A cell in the arena of a rank of this node, in what is free there."""
        now, tier = time.monotonic(), self._tier(rank)
        cell = tier.allocate(pages, now)
        while cell is None and tier is not self.own and self._take_run(tier, pages):
            cell = tier.allocator.allocate(pages, now)
        return None if cell is None else Cell(tier, *cell)

    def _where_the_key_says(self, pages: int, hi: int, lo: int, now: float) -> Cell | None:
        return self.take_in(place(hi, lo, self._fabric.comm.size, 1).home, pages)

    def _regain(self, pages: int) -> Cell | None:
        for tier in self._all():
            cell = tier.regain(pages)
            if cell is not None:
                return Cell(tier, *cell)
        return None

    def make_room(self, pages: int) -> Cell | None:
        """Local. A cell in the place of blocks that nobody has used for longest; what was lent is recalled."""
        self._recall(pages)
        while True:
            for tier in sorted(self._all(), key=DramTier.oldest, reverse=True):
                if tier.evict(pages):
                    cell = tier.regain(pages)
                    if cell is not None:
                        return Cell(tier, *cell)
                    break
            else:
                return None

    def _lease(self, pages: int, now: float) -> Cell | None:
        """A cell in extents of another arena that were free. Not long after a look at all ranks that found none."""
        if self.table is None or now < self._dry_until:
            return None
        for rank in self._lenders():
            while self._take_run(self._tier(rank), pages):
                cell = self._tier(rank).allocator.allocate(pages, now)
                if cell is not None:
                    return Cell(self._tier(rank), *cell)
        self._note_dry(now)
        return None

    def _keep_ahead(self, pages: int, now: float) -> None:
        """While little is free, take one more extent; else evict about as much as this put takes.

        What is wished for a copy has to be in the own arena; nothing is evicted for it while other memory is free.
        """
        own = self.own
        own.forget_wish(now)
        missing = own.low_pages
        for tier in self.tiers.values():
            allocator = tier.allocator
            missing -= allocator.free_pages + allocator.limbo_pages
        if missing <= 0:
            return
        if now >= self._dry_until:
            if self._grow_own(1) or any(self._take_run(self._tier(rank), 1) for rank in self._lenders()):
                return
            self._note_dry(now)
            self._recall(pages)
        if own.wished and (short := own.low_pages - own.allocator.free_pages - own.allocator.limbo_pages) > 0:
            own.evict_ahead(pages, short)
            return
        tiers = self._all()
        going = tiers[0] if len(tiers) == 1 else max(tiers, key=DramTier.oldest)
        going.evict_ahead(pages, missing)  # which looks by itself whether it has anything

    def _wait_for_recalled(self, pages: int) -> Cell | None:
        """Where nothing may go: what others have of the own arena may come back soon; a rank that computes is late."""
        deadline = time.monotonic() + _WAIT_S
        if time.monotonic() < self._wait_again:
            return None
        while time.monotonic() < deadline:
            if not any(is_recalled(word) for word in self._words()):
                return self.take(pages)
            self._fabric.poll(self._fabric.ctx, self._fabric.scratch.address)
            self.attend(now=True)  # two ranks may wait for one another
            time.sleep(_POLL_S)
            cell = self.take(pages)
            if cell is not None:
                return cell
        self._wait_again = time.monotonic() + _WAIT_AGAIN_S
        return None

    # -------------------------------------------------------------------------------------------- of all tiers together

    def tier_of(self, word: int) -> DramTier | None:
        """Local. The tier that may hold the cell of a word, None: it is on disk, or this rank has none there."""
        if is_disk(word):
            return None
        return self.tiers.get(word >> RANK_SHIFT & MAX_RANKS - 1)

    def retire(self, word: int) -> bool:
        """Local. If a word that has left the index was this rank's, its cell goes to limbo; else False."""
        tier = self.tier_of(word)
        if tier is None and is_disk(word):
            return self.own.below is not None and self.own.below.retire(word)
        return tier is not None and tier.retire(word)

    def has_moved(self, tier: DramTier, first: int, to: DramTier, new: int) -> None:
        """Local. A block has gone from one cell to another: all who follow hear of it. The caller holds the lock."""
        for each in self.followers:
            each.moved(tier, first, to, new)

    def has_left(self, tier: DramTier, first: int, word: int) -> None:
        """Local. The same of a block that is on disk now, under this word."""
        for each in self.followers:
            each.left(tier, first, word)

    def has_come(self, word: int, tier: DramTier, first: int) -> None:
        """Local. The same of a block that was on disk, under this word."""
        for each in self.followers:
            each.came(word, tier, first)

    def give_up(self, word: int) -> None:
        """Local. A reserved cell whose word is nowhere and will never be published goes to limbo."""
        tier = self.tier_of(word)
        assert tier is not None
        tier.give_up(word & MAX_PAGES - 1)

    def total(self, name: str) -> int:
        """Local. The sum of a counter of the tiers."""
        return sum(int(getattr(tier, name)) for tier in list(self.tiers.values()))

    def sweep(self) -> int:
        """Local. `DramTier.sweep` of all."""
        return sum(tier.sweep() for tier in list(self.tiers.values()))

    def sweep_hinted(self) -> None:
        """Local. `DramTier.sweep_hinted` of all."""
        for tier in list(self.tiers.values()):
            tier.sweep_hinted()

    def compute_checksums(self, limit: int | None = None) -> int:
        """Local. `DramTier.compute_checksums` of all, at most `limit` in each."""
        return sum(tier.compute_checksums(limit) for tier in list(self.tiers.values()))

    def let_pass(self, epochs: Mapping[int, int]) -> None:
        """Local. `DramTier.let_pass` of all."""
        for tier in list(self.tiers.values()):
            tier.let_pass(epochs)

    def drop_some(self, limit: int) -> None:
        """Local. Take blocks of passed epochs and expired ones out, at most `limit` of each in each tier."""
        for tier in list(self.tiers.values()):
            if tier.any_passed:
                tier.drop_passed(limit)
            if tier.any_expiring:
                tier.drop_expired(limit)

    def request(self, keys: npt.NDArray[np.uint64], partial: bool) -> None:
        """Local. `DramTier.request` of all."""
        for tier in self._all():
            tier.request(keys, partial)

    def make_room_in(self, namespace_id: int, epoch: int, nbytes: int) -> bool:
        """Local. `DramTier.make_room_in` of the first tier that can, or of several together."""
        with self.lock:
            tiers = self._all()
            if any(tier.make_room_in(namespace_id, epoch, nbytes) for tier in tiers):
                return True
            there = [0 if tier.victims is None else tier.evictable_in(namespace_id, epoch) for tier in tiers]
            if sum(there) < nbytes:
                return False  # none of them has to go
            freed = False
            for tier, held in zip(tiers, there, strict=True):
                if held and nbytes > 0 and tier.make_room_in(namespace_id, epoch, min(held, nbytes)):
                    freed, nbytes = True, nbytes - held
            return freed

    def held(self, namespace_id: int, epoch: int) -> tuple[int, int, int]:
        """Local. `DramTier.held` of all together."""
        with self.lock:  # no block moves past the look, nor is seen twice
            blocks, nbytes, passed = np.sum([t.held(namespace_id, epoch) for t in self.tiers.values()], axis=0)
        return int(blocks), int(nbytes), int(passed)

    def count(self, namespace_id: int, epoch: int, drafts: set[int], *, on: bool) -> int:
        """Local. `DramTier.count` of all together; `drafts` are words."""
        total = 0
        for tier in list(self.tiers.values()):
            firsts = [word & MAX_PAGES - 1 for word in drafts if self.tier_of(word) is tier]
            total += tier.count(namespace_id, epoch, firsts, on=on)
        return total

    def clear(self) -> None:
        """Local. Take every block of this rank out, hard ones too."""
        with self.lock:  # no block moves past the look
            for tier in self.tiers.values():
                tier.clear()

    def protected(self) -> tuple[int, int]:
        """Local. The protected blocks and their payload bytes."""
        with self.lock:
            found = [tier.protected() for tier in self.tiers.values()]
        return sum(blocks for blocks, _ in found), sum(nbytes for _, nbytes in found)

    def why_full(self, nbytes: int) -> str:
        """Local. For people: why a block of this size found no room, and what to do."""
        if self.table is None:
            return self.own.why_full(nbytes)
        state = self.state()
        return self.own.why_full(
            nbytes,
            f"; of its {self.table.count} extents {state['held_own']} are its own, {state['lent']} lent to others "
            f"({state['recalled']} of them recalled: they come when their holders call the store), "
            f"{state['free']} free; it holds {state['held']} of other ranks",
        )

    @property
    def spare_pages(self) -> int:
        """Local. Pages that this rank's puts get without any block having to go, now or after a rest."""
        leased = sum(tier.allocator.free_pages for tier in self._leased())
        return self.free_pages + leased + sum(tier.allocator.limbo_pages for tier in list(self.tiers.values()))

    @property
    def live_pages(self) -> int:
        """Local. Pages of all cells of this rank that are in use."""
        return sum(tier.allocator.live_pages for tier in list(self.tiers.values()))


def open_pool(fabric: Fabric, config: Config, registry: Registry, protected: ProtectedBytes) -> Pool:
    """Local. The memory of this rank as the settings want it."""
    eviction = config.eviction if config.when_full == "evict" else None
    leases = config.lease_extents > 0 and fabric.comm.size > 1

    def tier(area: Area | None = None, like: DramTier | None = None) -> DramTier:
        made = DramTier(
            fabric, rest=config.rest_ms / 1e3, eviction=eviction, ahead=config.evict_ahead, area=area,
            shared=None if like is None else like.shared, whole=not leases,
        )  # fmt: skip
        made.unprotected = partial(protected.release, made.area.rank)
        made.freed = registry.release
        made.pause = None if like is None else like.pause
        made.below = None if like is None else like.below
        return made

    own = tier()
    table = None
    if leases:
        table = LeaseTable(registry, fabric.comm.rank, config.namespace_slots, config.lease_extents, fabric.pages)
    return Pool(fabric, own, partial(tier, like=own), table, hashed=config.placement == "hash")
