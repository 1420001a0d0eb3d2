"""What one rank holds of which arena: extents taken, given back, recalled, and moved out of.

Covers the tiers of one rank (its own arena, and those in which it has leased extents) and how each comes by its
extents. Does not cover the words of the extents (`leases`), which tier a block's cell lies in (`pool`), nor how a block
is moved (`mover`).

A rank holds the extents of its own arena as those of others: it takes what is free (`extent_runs` says which of it);
the lowest one is never lent. What is recalled its holder gives back when its
cells have rested and nobody has them pinned.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from cascade_mpi.area import Area
from cascade_mpi.dram import DramTier
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.leases import LeaseTable, holders_of, is_recalled, was_held

_ATTEND_S = 0.005  # between two looks at whether extents are recalled
_STUCK_S = 0.1  # after blocks fitted nowhere, before they are tried again
_IDLE_S = 0.25  # between two looks for extents that are empty
_DRY_S = 0.01  # after a look that found no free extent, before the next one that is made ahead of need
_RECALL_SHARE = 16  # 1/16 of the extents are recalled at a time, or what the block needs


class Extents:
    """The tiers of one rank, and the extents in them."""

    def __init__(
        self, fabric: Fabric, own: DramTier, make: Callable[[Area], DramTier], table: LeaseTable | None
    ) -> None:
        """`make` makes the tier of another arena; without `table` the own arena is all there is."""
        self._fabric, self.own, self._make, self.table = fabric, own, make, table
        self._rank = fabric.comm.rank
        self.lock = own.lock
        self.tiers: dict[int, DramTier] = {self._rank: own}
        others = [*range(self._rank + 1, fabric.comm.size), *range(self._rank)]
        self._near = [rank for rank in others if fabric.mapped[rank]]
        self._far = deque(rank for rank in others if not fabric.mapped[rank])
        self.kept = 0 if table is None else 1  # so many, the lowest, are never lent
        self.evacuate: Callable[[DramTier, int, int], bool] = lambda tier, start, pages: True
        self.recalls = self.returned = 0
        self._next_attend = self._next_idle = self._dry_until = self._stuck_until = 0.0
        if table is not None:
            own.grow = self._grow_own

    def _words(self) -> list[int]:
        assert self.table is not None
        return self.table.look(self._rank)

    def _tier(self, rank: int) -> DramTier:
        if rank not in self.tiers:
            self.tiers[rank] = self._make(Area.of(self._fabric, rank))
            self.tiers[rank].pause = self.own.pause
        return self.tiers[rank]

    def _leased(self) -> Iterator[DramTier]:
        return (tier for tier in self._all() if tier is not self.own)

    def _all(self) -> list[DramTier]:
        own = self.own
        if len(self.tiers) == 1:
            return [own]
        return [own, *(tier for tier in list(self.tiers.values()) if tier is not own and tier.allocator.range_count)]

    def _grow_own(self, pages: int) -> bool:
        """Take an extent of the own arena, or as many in a row as a cell of so many pages needs."""
        assert self.table is not None
        return self._take_run(self.own, pages) or (pages > self.table.extent_pages and self._take_run(self.own, 1))

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
        return holders_of(self.table.look(rank)[self.kept :]).count(-1)

    def _note_dry(self, began: float) -> None:
        """No other rank had anything: looking at all of them again is to take a twentieth of the time at most."""
        ended = time.monotonic()
        self._dry_until = ended + max(_DRY_S, 20 * (ended - began))

    def _take_run(self, tier: DramTier, pages: int) -> bool:
        """Take free extents in a row, so that a cell of so many pages fits there; False if there are none.

        If others are quicker, some of them may have been taken.
        """
        table, rank = self.table, tier.area.rank
        assert table is not None
        words = table.look(rank)
        if self._adopt(tier, words):
            return True
        while run := table.next_run(holders_of(words), rank, self._rank, tier.allocator, pages):
            # From the side of the free memory that they lie next to: what was taken of them is one run with it.
            order = reversed(run) if tier.allocator.downward else run
            taken = [extent for extent in order if table.take(rank, extent, words[extent])]
            for extent in taken:
                self._enter(tier, extent, was_held(words[extent]))
            if taken:
                return True
            words = table.look(rank)
        return False

    def adopt(self) -> None:
        """Local. Use what others have given back because it was recalled, and what this rank holds unawares."""
        if self.table is not None:
            with self.lock:
                for rank, tier in self.tiers.items():
                    self._adopt(tier, self.table.look(rank))

    def _adopt(self, tier: DramTier, words: list[int]) -> bool:
        """Enter what this rank holds without knowing it: it was given back, or an error came when it was taken."""
        assert self.table is not None
        holders = holders_of(words)
        if holders.count(self._rank) == tier.allocator.range_count:
            return False
        known = {self.table.at(start) for start in tier.allocator.ranges}
        lost = [extent for extent, holder in enumerate(holders) if holder == self._rank and extent not in known]
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
        others = [extent for extent, holder in enumerate(holders_of(words)) if holder not in (-1, self._rank)]
        wanted = max(self.table.count // _RECALL_SHARE, -(-pages // self.table.extent_pages))
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

    def state(self) -> dict[str, int]:
        """Local. How many extents are whose, and what this rank has in those of others."""
        if self.table is None:
            return {}
        words, leased = self._words(), list(self._leased())
        holders = holders_of(words)
        lent = [word for word, holder in zip(words, holders, strict=True) if holder not in (-1, self._rank)]
        return {
            "extents": self.table.count, "held_own": holders.count(self._rank), "free": holders.count(-1),
            "lent": len(lent),
            "recalled": sum(is_recalled(word) for word in lent),
            "held": sum(len(tier.allocator.ranges) for tier in leased),
            "leased_bytes": sum(tier.live_bytes for tier in leased),
            "recalls": self.recalls, "returned": self.returned,
        }  # fmt: skip

    def not_used(self) -> tuple[int, int]:
        """Local. Pages of the own arena's extents that this rank does not use: that others do not either, that they do.

        Nobody uses what is free, and what was given back to this rank and is not entered yet.
        """
        if self.table is None:
            return 0, 0
        known, nobody, lent = self.own.allocator.ranges, 0, 0
        for extent, holder in enumerate(holders_of(self._words())):
            start, pages = self.table.pages_of(extent)
            if holder not in (-1, self._rank):
                lent += pages
            elif start not in known:
                nobody += pages
        return nobody, lent

    @property
    def free_pages(self) -> int:
        """Local. Pages of the own arena that are free, whoever may take them."""
        return self.own.allocator.free_pages + self.not_used()[0]
