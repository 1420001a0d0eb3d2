"""One pool of memory: which arena a rank's next cell lies in, and what it lends, borrows and gives back.

Covers the tiers of one rank (its own arena, and those in which it has leased extents), the order in which
they are asked for room, recall, and what all of them hold together. Does not cover the words of the extents (`leases`),
the cells of one arena (`dram`), nor how a block is moved (`mover`).

A rank holds the extents of its own arena as those of others: it takes what is free, from the low end, others from the
high end, so that long runs remain; the lowest ones are never lent. A put asks, in this order: free cells of the own
arena, more of it, free cells in leased extents, what can be had without a loss, extents of other ranks (of its node
first), and only then does the block go that was not used for longest. Who must evict while others have extents of its
arena recalls some: their holder moves the blocks out with one of its next calls, and gives the extents back when their
cells have rested and nobody has them pinned.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cascade_mpi.area import Area
from cascade_mpi.config import Config
from cascade_mpi.dram import DramTier
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import MAX_PAGES, MAX_RANKS, RANK_SHIFT, place
from cascade_mpi.leases import LeaseTable, holder_of, is_recalled, was_held
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.registry import Registry

_ATTEND_S = 0.005  # between two looks at whether extents are recalled
_STUCK_S = 0.1  # after blocks fitted nowhere, before they are tried again
_IDLE_S = 0.25  # between two looks for extents that are empty
_DRY_S = 0.01  # after a look that found no free extent, before the next one that is made ahead of need
_WAIT_S = 0.2  # at most, for recalled extents, where nothing else is left
_WAIT_AGAIN_S = 2.0  # when that was in vain: their holders are far away
_POLL_S = 2e-4
_KEPT_SHARE = 16  # 1/16 of an arena is never lent: its rank can always put something at once


class Cell(NamedTuple):
    """A reserved cell."""

    tier: DramTier
    first: int
    generation: int


class Follower(Protocol):
    """Who goes through the cells of a rank, and is to hear of the blocks that move meanwhile."""

    def moved(self, tier: DramTier, first: int, to: DramTier, new: int) -> None:
        """Local. A block has gone from one cell to another. The caller holds the lock."""


class Pool:
    """What one rank manages, in all arenas. Public methods take the lock of its tiers."""

    def __init__(
        self, fabric: Fabric, own: DramTier, make: Callable[[Area], DramTier], table: LeaseTable | None, *, hashed: bool
    ) -> None:
        """`make` makes the tier of another arena; without `table` the own arena is all there is."""
        self._fabric, self.own, self._make, self.table = fabric, own, make, table
        self._rank = fabric.comm.rank
        self.lock = own.lock
        self.tiers: dict[int, DramTier] = {self._rank: own}
        others = [*range(self._rank + 1, fabric.comm.size), *range(self._rank)]
        self._near = [rank for rank in others if fabric.mapped[rank]]
        self._far = deque(rank for rank in others if not fabric.mapped[rank])
        self._hashed = hashed and table is not None
        self.kept = 0 if table is None else max(1, table.count // _KEPT_SHARE)
        self.evacuate: Callable[[DramTier, int, int], bool] = lambda tier, start, pages: True
        self.followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self.recalls = self.returned = 0
        self._next_attend = self._next_idle = self._dry_until = self._wait_again = self._stuck_until = 0.0
        if table is not None:
            own.grow = self._grow_own

    # ------------------------------------------------------------------------------------------- one block

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
                except BaseException:  # Ctrl-C too: the caller never heard of its cell
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

    def _keep_ahead(self, pages: int, now: float) -> None:
        """While little is free, take one more extent; else evict about as much as this put takes."""
        missing = self.own.low_pages
        for tier in self.tiers.values():
            missing -= tier.allocator.free_pages + tier.allocator.limbo_pages
        if missing <= 0:
            return
        if now >= self._dry_until:
            if self._grow_own(1) or any(self._take_run(self._tier(rank), 1) for rank in self._lenders()):
                return
            self._note_dry(now)
            self._recall(pages)
        if len(self.tiers) == 1:
            self.own.evict_ahead(pages, missing)
            return
        age, rank = max((tier.oldest(), rank) for rank, tier in self.tiers.items())
        if age >= 0:
            self.tiers[rank].evict_ahead(pages, missing)

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

    # --------------------------------------------------------------------------------------------- extents

    def _words(self) -> list[int]:
        assert self.table is not None
        return self.table.look(self._rank)

    def _tier(self, rank: int) -> DramTier:
        if rank not in self.tiers:
            self.tiers[rank] = self._make(Area.of(self._fabric, rank))
            self.tiers[rank].pause = self.own.pause
        return self.tiers[rank]

    def _leased(self) -> Iterator[DramTier]:
        return (tier for rank, tier in list(self.tiers.items()) if rank != self._rank and tier.allocator.ranges)

    def _all(self) -> list[DramTier]:
        return [self.own, *self._leased()]

    def _grow_own(self, pages: int) -> bool:
        """Take an extent of the own arena, or as many in a row as a cell of so many pages needs."""
        return self._take_run(self.own, pages) or self._take_run(self.own, 1)

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

    def _lenders(self) -> Iterator[int]:
        """Ranks with extents to lend: of the own node first the one that has most, then the one that lent last."""
        free = {rank: self._lendable(rank) for rank in self._near}
        yield from (rank for rank in sorted(self._near, key=free.__getitem__, reverse=True) if free[rank])
        for _ in range(len(self._far)):
            if self._lendable(self._far[0]):
                yield self._far[0]
            self._far.rotate(-1)

    def _lendable(self, rank: int) -> int:
        assert self.table is not None
        return sum(holder_of(word) is None for word in self.table.look(rank)[self.kept :])

    def _note_dry(self, began: float) -> None:
        """No other rank had anything: looking at all of them again is to take a twentieth of the time at most."""
        ended = time.monotonic()
        self._dry_until = ended + max(_DRY_S, 20 * (ended - began))

    def _take_run(self, tier: DramTier, pages: int) -> bool:
        """Take free extents in a row for so many pages: the own ones from the low end, others' from the high end.

        False if there are none; if others are quicker, some of them may have been taken.
        """
        table, own = self.table, tier is self.own
        assert table is not None
        words = table.look(tier.area.rank)
        if self._adopt(tier, words):
            return True
        wanted = -(-pages // table.extent_pages)
        starts = range(0 if own else self.kept, table.count - wanted + 1)
        for start in starts if own else reversed(starts):
            run = range(start, start + wanted)
            if any(holder_of(words[extent]) is not None for extent in run):
                continue
            taken = [extent for extent in run if table.take(tier.area.rank, extent, words[extent])]
            for extent in taken:
                self._enter(tier, extent, was_held(words[extent]))
            if taken:
                return True
        return False

    def adopt(self) -> None:
        """Local. Use what others have given back because it was recalled, and what this rank holds unawares."""
        if self.table is not None:
            with self.lock:
                for rank, tier in self.tiers.items():
                    self._adopt(tier, self.table.look(rank))

    def _adopt(self, tier: DramTier, words: list[int]) -> bool:
        """Enter what this rank holds without knowing it: it was given back, or Ctrl-C came when it was taken."""
        assert self.table is not None
        if sum(holder_of(word) == self._rank for word in words) == len(tier.allocator.ranges):
            return False
        known = {self.table.at(start) for start in tier.allocator.ranges}
        lost = [extent for extent, word in enumerate(words) if holder_of(word) == self._rank and extent not in known]
        for extent in lost:
            self._enter(tier, extent, True)
        return bool(lost)

    def _enter(self, tier: DramTier, extent: int, described: bool) -> None:
        """Let a tier use an extent that was taken. Generations go on from those that earlier holders gave.

        Those stand in the descriptors, if anybody was there before.
        """
        assert self.table is not None and tier.owned is not None
        start, pages = self.table.pages_of(extent)
        held = slice(start, start + pages)
        full_fence()  # the word before what its last holder wrote
        tier.area.gone[held] = 0
        if tier.area.far:
            tier.area.far.send_hints([(start, pages)])
            tier.area.far.look_at_descriptors(start, pages)
        tier.owned[held] = True
        generations = tier.records["generation"][held].tolist() if described else None
        tier.allocator.add(start, pages, generations)

    def _return(self, tier: DramTier, start: int) -> None:
        """Give an extent back: all its cells have rested, nobody has pinned one, and their descriptors say nothing."""
        assert self.table is not None and tier.owned is not None
        extent = self.table.at(start)
        _, pages = self.table.pages_of(extent)
        tier.allocator.drop(start)
        tier.owned[start : start + pages] = False
        full_fence()  # what was written there before the word
        self.table.give_back(tier.area.rank, extent)
        self.returned += 1

    def _recall(self, pages: int) -> None:
        """Ask for some extents of the own arena that others hold, the lowest first, if none is asked for yet."""
        if self.table is None:
            return
        words = self._words()
        others = [extent for extent, word in enumerate(words) if holder_of(word) not in (None, self._rank)]
        wanted = max(self.kept, -(-pages // self.table.extent_pages))
        wanted -= sum(is_recalled(words[extent]) for extent in others)
        if wanted > 0:
            self.recalls += self.table.recall([each for each in others if not is_recalled(words[each])][:wanted])

    def attend(self, *, now: bool = False) -> None:
        """Local. Move out of extents that are recalled, and give back those that are empty; at most every 5 ms."""
        if self.table is None or (time.monotonic() < self._next_attend and not now):
            return
        with self.lock:
            at = time.monotonic()
            self._next_attend = at + _ATTEND_S
            for tier in self._leased():
                words = self.table.look(tier.area.rank)
                for start in tier.allocator.ranges:
                    if is_recalled(words[self.table.at(start)]):
                        tier.allocator.close(start)
            self._adopt(self.own, self._words())
            looked = time.monotonic() - at
            self._next_attend += 20 * looked  # with leases from very many ranks
            for tier in self._leased():
                for start in tier.allocator.closing if at >= self._stuck_until else ():
                    if not self.evacuate(tier, start, self.table.pages_of(self.table.at(start))[1]):
                        self._stuck_until = at + _STUCK_S
                if tier.allocator.closing:
                    tier.drain(time.monotonic())
                    for start in tier.allocator.closing:
                        if tier.allocator.is_empty(start):
                            self._return(tier, start)
            if at >= self._next_idle:
                self._next_idle = at + _IDLE_S
                self.adopt()
                self._return_empty()

    def _return_empty(self) -> None:
        """Give back what this rank does not use; of its own arena it keeps what is never lent."""
        assert self.table is not None
        for tier in self._all():
            if tier.allocator.limbo_pages:
                tier.drain(time.monotonic())
            for start in tier.allocator.ranges:
                kept = tier is self.own and self.table.at(start) < self.kept
                if not kept and tier.allocator.is_empty(start):
                    self._return(tier, start)

    # --------------------------------------------------------------------------------- of all tiers together

    def tier_of(self, word: int) -> DramTier | None:
        """Local. The tier that may hold the cell of a word, None: this rank has nothing in that arena."""
        return self.tiers.get(word >> RANK_SHIFT & MAX_RANKS - 1)

    def retire(self, word: int) -> bool:
        """Local. If a word that has left the index was this rank's, its cell goes to limbo; else False."""
        tier = self.tier_of(word)
        return tier is not None and tier.retire(word)

    def has_moved(self, tier: DramTier, first: int, to: DramTier, new: int) -> None:
        """Local. A block has gone from one cell to another: all who follow hear of it. The caller holds the lock."""
        for each in self.followers:
            each.moved(tier, first, to, new)

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

    def state(self) -> dict[str, int]:
        """Local. How many extents are whose, and what this rank has in those of others."""
        if self.table is None:
            return {}
        words, leased = self._words(), list(self._leased())
        lent = [word for word in words if holder_of(word) not in (None, self._rank)]
        return {
            "extents": self.table.count, "held_own": sum(holder_of(word) == self._rank for word in words),
            "free": sum(holder_of(word) is None for word in words), "lent": len(lent),
            "recalled": sum(is_recalled(word) for word in lent),
            "held": sum(len(tier.allocator.ranges) for tier in leased),
            "leased_bytes": sum(tier.live_bytes for tier in leased),
            "recalls": self.recalls, "returned": self.returned,
        }  # fmt: skip

    @property
    def spare_pages(self) -> int:
        """Local. Pages that this rank's puts get without any block having to go, now or after a rest."""
        leased = sum(tier.allocator.free_pages for tier in self._leased())
        return self.free_pages + leased + sum(tier.allocator.limbo_pages for tier in list(self.tiers.values()))

    @property
    def live_pages(self) -> int:
        """Local. Pages of all cells of this rank that are in use."""
        return sum(tier.allocator.live_pages for tier in list(self.tiers.values()))

    @property
    def free_pages(self) -> int:
        """Local. Pages of the own arena that are free, whoever may take them."""
        free = self.own.allocator.free_pages
        if self.table is not None:
            free += sum(
                self.table.pages_of(extent)[1] for extent, word in enumerate(self._words()) if holder_of(word) is None
            )
        return free


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
        return made

    own = tier()
    table = None
    if leases:
        table = LeaseTable(registry, fabric.comm.rank, config.namespace_slots, config.lease_extents, fabric.pages)
    return Pool(fabric, own, partial(tier, like=own), table, hashed=config.placement == "hash")
