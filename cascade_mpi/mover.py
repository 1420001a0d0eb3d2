"""Moving blocks from one cell to another: out of extents that are recalled, and from arena to arena.

Covers the move of one block, what is done with those that fit nowhere, and `rebalance`. Does not cover which extents
there are (`pool`), nor what a reader does when a block moves under it (`onesided`: it looks again).

The new copy is whole before the compare-and-swap of the old word for the new one, in the same slot; the old cell goes
to limbo after it. So the block is in the index all the time. The hard bit goes along, and what counts against a quota
is counted for the new arena before the swap, and no more for the old one after it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.dram import DramTier
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import GENERATION_SHIFT, HARD, MAGIC, MAX_GENERATION, MAX_PAGES, MAX_RANKS, RANK_SHIFT
from cascade_mpi.pool import Cell, Pool
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.registry import Registry

_AT_ONCE_BYTES = 64 << 20  # moved in one call out of extents that are recalled: no put waits for more
_PLACE = (
    MAX_GENERATION << GENERATION_SHIFT | MAX_RANKS - 1 << RANK_SHIFT | MAX_PAGES - 1
)  # the bits that a move changes
_ROUNDS = 8


class Rebalanced(NamedTuple):
    """What `rebalance` did, over all ranks: blocks and bytes that moved, and the live bytes of each arena now."""

    moved: int
    bytes: int
    live_bytes: list[int]


class Mover:
    """The moves of the blocks that one rank manages."""

    def __init__(
        self, fabric: Fabric, pool: Pool, registry: Registry, protected: ProtectedBytes, *, later: bool
    ) -> None:
        """`later`: checksums are computed some time after a put."""
        self._fabric, self._pool, self._registry, self._protected = fabric, pool, registry, protected
        self._later = later
        self._scratch = fabric.new_scratch()  # a move in the middle of a put must not overwrite what the put goes by
        self.moved = self.moved_bytes = self.dropped = 0
        self.pause: Callable[[str], None] | None = None  # test hook
        pool.evacuate = self.evacuate

    # ------------------------------------------------------------------------------------------- one block

    def move(self, tier: DramTier, first: int, to: Callable[[int], Cell | None]) -> bool | None:
        """Local. Move a live block to a cell that `to` reserves for so many pages; None: there is no room for it.

        False if it is not there any more. 1 Get + 1 CAS + 2 Flushes at its home. The caller holds the lock.
        """
        nbytes = int(tier.records["length"][first])
        cell = to(tier.pages_for(nbytes))
        if cell is None:
            return None
        done = counted = hard = False
        try:
            self._copy(tier, first, cell, nbytes)
            if self.pause:
                self.pause("mover")
            while (found := tier.standing(first)) is not None:
                hard = bool(found[-1] & HARD)
                if hard and not counted:  # before its word is a hard one in the new arena
                    if self._protected.reserve(cell.tier.area.rank, nbytes):
                        return None
                    counted = True
                if done := self._swap(tier, first, *found, cell, nbytes):
                    if hard:
                        self._protected.release(tier.area.rank, nbytes)
                    return True
                # Its hard bit was toggled, or it has left: only the index can tell.
        finally:
            if not done:
                cell.tier.abandon(cell.first)
            if counted and not (done and hard):
                self._protected.release(cell.tier.area.rank, nbytes)
        if word := int(tier.words[first]):  # others took it away, and have not said so yet
            tier.retire(word)
        return False

    def _copy(self, tier: DramTier, first: int, cell: Cell, nbytes: int) -> None:
        """Payload and descriptor into a cell that no word names yet."""
        page, to = self._fabric.page_bytes, cell.tier
        old, new = tier.records[first : first + 1], to.records[cell.first : cell.first + 1]
        new["magic"] = 0  # a reader with an old word must not find a mixture that looks whole
        full_fence()
        source = self._payload(tier, first, nbytes)
        if to.area.far:
            to.area.far.send_payload(cell.first, source)
        else:
            copy_bytes(to.area.arena_address + cell.first * page, source.ctypes.data, nbytes)
        for name in old.dtype.names or ():
            if name not in ("magic", "generation"):
                new[name] = old[name]
        new["generation"], new["manager"] = cell.generation, self._fabric.comm.rank
        full_fence()
        new["magic"] = MAGIC
        full_fence()  # payload and descriptor before the word
        if to.area.far:
            to.area.far.send_descriptors([cell.first])

    def _payload(self, tier: DramTier, first: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes of a cell: where they are, or a copy of what another node has."""
        if tier.area.far:
            return tier.area.far.fetch_payload(first, nbytes)
        raw = (ctypes.c_uint8 * nbytes).from_address(tier.area.arena_address + first * self._fabric.page_bytes)
        return np.ctypeslib.as_array(raw)

    def _swap(
        self, tier: DramTier, first: int, home: int, bucket: int, slot: int, word: int, cell: Cell, nbytes: int
    ) -> bool:
        """Swap the word of the old cell for that of the new one, and note both; False if it is another by now."""
        fabric, s, to = self._fabric, self._scratch, cell.tier
        new = (word & ~_PLACE) | cell.generation << GENERATION_SHIFT | to.area.rank << RANK_SHIFT | cell.first
        done = fabric.swap(fabric.ctx, s.address, home, bucket, slot, word, new)
        if done < 0:
            fabric.raise_mpi_error(s)
        if not done:
            return False
        to.counted[cell.first] = tier.counted[first]
        tier.counted[first] = False  # it is the same block: nothing is given back
        to.enter(new, nbytes, unsummed=self._later and not to.area.far, touch=int(tier.area.touched[first]))
        space = self._registry.by_id(int(to.records["namespace"][cell.first]))
        if space is not None and space.epoch != int(to.records["epoch"][cell.first]):
            to.let_one_pass(new)  # lists of what has passed have the old word
        tier.retire(word)
        self.moved += 1
        self.moved_bytes += nbytes
        return True

    # ------------------------------------------------------------------------------------ recalled extents

    def evacuate(self, tier: DramTier, start: int, pages: int) -> bool:
        """Local. Move the blocks out of these pages, some at a time; with eviction those that fit nowhere are evicted.

        Hard ones stay until there is room: False, and the rest was not tried.
        """
        budget = _AT_ONCE_BYTES
        for first in self._cells(tier, start, pages):
            if not tier.words[first]:
                continue  # evicted meanwhile, to make room for another
            nbytes = int(tier.records["length"][first])
            moved = self.move(tier, first, self._pool.take_free)
            if moved is None and tier.victims is not None:
                moved = self.move(tier, first, self._pool.make_room)
                if moved is None and tier.words[first] and tier.drop(first):
                    self.dropped += 1
                    moved = False
            if moved is None and tier.words[first]:
                return False
            budget -= nbytes
            if budget <= 0:
                break
        return True

    # ------------------------------------------------------------------------------------------- rebalance

    def rebalance(self) -> Rebalanced:
        """Collective. Even out the live bytes of all arenas. See `Store.rebalance`."""
        comm, before = self._fabric.comm, np.array([self.moved, self.moved_bytes])
        for _ in range(_ROUNDS):
            live = np.array(comm.allgather(self._live()))
            moved = self.moved
            for source, target, nbytes in self._plan(live):
                self._carry(source, target, nbytes)
            if not comm.allreduce(self.moved - moved):
                break
        blocks, nbytes = comm.allreduce(np.array([self.moved, self.moved_bytes]) - before).tolist()
        return Rebalanced(blocks, nbytes, comm.allreduce(self._live()).tolist())

    def _live(self) -> npt.NDArray[np.int64]:
        """Payload bytes of this rank's blocks, by the rank of their arena."""
        live = np.zeros(self._fabric.comm.size, np.int64)
        for rank, tier in self._pool.tiers.items():
            live[rank] = tier.live_bytes - tier.copy_bytes
        return live

    def _plan(self, live: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """(from arena, to arena, bytes) of what this rank is to move; `live` is by manager and arena.

        Every rank finds the same transfers, and that each is dealt to the managers in order.
        """
        if self._pool.table is None:
            return []
        ranks, left, mine = range(self._fabric.comm.size), live.copy(), list[tuple[int, int, int]]()
        above = (live.sum(axis=0) - live.sum() // len(ranks)).tolist()
        for source in ranks:
            for target in ranks:
                amount = min(above[source], -above[target])
                if amount <= 0:
                    continue
                above[source] -= amount
                above[target] += amount
                for manager in ranks:
                    part = min(amount, int(left[manager, source]))
                    left[manager, source] -= part
                    amount -= part
                    if manager == self._fabric.comm.rank and part:
                        mine.append((source, target, part))
        return mine

    def _carry(self, source: int, target: int, nbytes: int) -> None:
        """Move blocks of at most so many bytes from one arena to another, the largest that fit first."""
        with self._pool.lock:
            tier = self._pool.tiers[source]
            firsts = np.flatnonzero(tier.words * ~tier.copies)
            order = firsts[np.argsort(tier.records["length"][firsts], kind="stable")[::-1]].tolist()
        for first in order:
            with self._pool.lock:  # others may put between two moves
                if not tier.words[first] or tier.copies[first] or (size := int(tier.records["length"][first])) > nbytes:
                    continue
                moved = self.move(tier, first, partial(self._pool.take_in, target))
            if moved is None:
                return
            nbytes -= size if moved else 0

    # --------------------------------------------------------------------------------------------- details

    def _cells(self, tier: DramTier, start: int, pages: int) -> list[int]:
        """First pages of the live blocks that have pages there."""
        found: list[int] = (start + np.flatnonzero(tier.words[start : start + pages])).tolist()
        before = np.flatnonzero(tier.words[:start])
        if before.size and before[-1] + tier.allocator.pages_of(int(before[-1])) > start:
            found.append(int(before[-1]))
        return found
