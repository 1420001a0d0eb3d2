"""Moving blocks from one cell to another: out of extents that are recalled, and from arena to arena.

Covers the move of one block, what is done with those that fit nowhere, and `rebalance`. Does not cover which extents
there are (`pool`), nor what a reader does when a block moves under it (`onesided`: it looks again).

The new copy is whole before the compare-and-swap of the old word for the new one, in the same slot; the old cell goes
to limbo after it. So the block is in the index all the time. The hard bit goes along, and what counts against a quota
is counted for the new arena before the swap, and no more for the old one after it.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.dram import DramTier
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import (
    FLAG_BACKED,
    FLAG_CHECKSUM,
    GENERATION_SHIFT,
    HARD,
    MAGIC,
    MAX_GENERATION,
    MAX_PAGES,
    MAX_RANKS,
    RANK_SHIFT,
    is_alias,
)
from cascade_mpi.pool import Cell, Pool
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.registry import Registry

_AT_ONCE_BYTES = 64 << 20  # moved in one call out of extents that are recalled: no put waits for more
PLACE = MAX_GENERATION << GENERATION_SHIFT | MAX_RANKS - 1 << RANK_SHIFT | MAX_PAGES - 1  # the bits that a move changes
_ROUNDS = 8


class Moved(enum.Enum):
    """What became of a block that was to be moved."""

    YES = "it is in its new cell"
    GONE = "it is not there any more"
    NO_ROOM = "there is no cell for it"
    NO_QUOTA = "it is protected, and the new arena may protect no more"


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

    def move(self, tier: DramTier, first: int, to: Callable[[int], Cell | None]) -> Moved:
        """Local. Move a live block to a cell that `to` reserves for so many pages. The caller holds the lock.

        1 Get + 1 CAS + 2 Flushes at its home.
        """
        nbytes = int(tier.records["length"][first])
        cell = to(tier.pages_for(nbytes))
        if cell is None:
            return Moved.NO_ROOM
        done = counted = hard = False
        old = new = 0  # while it is not known whether `new` stands in the place of `old`
        try:
            # Its bytes count in the new arena before its word is a hard one there.
            if tier.words[first] & np.uint64(HARD) and not (counted := self._count(tier, cell, nbytes)):
                return Moved.NO_QUOTA
            self._copy(tier, first, cell, nbytes)
            if self.pause:
                self.pause("mover")
            while (found := tier.standing(first)) is not None:
                hard = bool(found[-1] & HARD)
                if hard and not counted and not (counted := self._count(tier, cell, nbytes)):
                    return Moved.NO_QUOTA
                old = found[-1]
                new = (old & ~PLACE) | cell.generation << GENERATION_SHIFT | cell.tier.area.rank << RANK_SHIFT
                new |= cell.first
                if done := self._swap(*found, new):
                    self._moved(tier, first, old, cell, new, nbytes)
                    return Moved.YES
                new = 0  # its hard bit was toggled, or it has left: only the index can tell
        finally:
            if new and tier.is_live(old) and (done or cell.tier.enter_if_it_stands(new, nbytes)):
                done = True  # an error came behind the swap
                self._moved(tier, first, old, cell, new, nbytes)
            if not done:
                cell.tier.abandon(cell.first)
            if counted and tier is not cell.tier:
                self._protected.release((tier if done and hard else cell.tier).area.rank, nbytes)
        if word := int(tier.words[first]):  # others took it away, and have not said so yet
            tier.retire(word)
        return Moved.GONE

    def duplicate(self, tier: DramTier, first: int, sequence: int) -> Cell | None:
        """Local. A new cell with the block of a live one, under another sequence, which no word names yet; or None.

        Where there is no room. The block itself does not go for it. What counted for the old cell counts for this one.
        The caller holds the lock.
        """
        record = tier.records[first]
        nbytes, word = int(record["length"]), int(tier.words[first])
        tier.words[first] = word | HARD  # as the table has it: no room is made in its own place
        try:
            cell = self._pool.reserve(nbytes, int(record["key_hi"]), int(record["key_lo"]))
        finally:
            if int(tier.words[first]) | HARD == word | HARD:
                tier.words[first] = word
        if cell is None:
            return None
        try:
            if int(tier.words[first]) | HARD != word | HARD:  # others took it away, and a sweep has found out
                cell.tier.abandon(cell.first)
                return None
            self._copy(tier, first, cell, nbytes)
            new = cell.tier.records[cell.first : cell.first + 1]
            new["sequence"] = sequence  # nothing on disk has it
            if int(new["flags"][0]) & FLAG_BACKED:
                new["flags"] &= ~np.uint16(FLAG_BACKED)
                new["content_hi"] = 0
            cell.tier.wrote_descriptor(cell.first)
        except BaseException:  # an error of MPI, say: the cell may not be lost
            cell.tier.abandon(cell.first)
            raise
        cell.tier.counted[cell.first], tier.counted[first] = tier.counted[first], False
        return cell

    def _count(self, tier: DramTier, cell: Cell, nbytes: int) -> bool:
        """Count a protected block in the arena that it moves to; False if the quota there does not allow it."""
        return tier is cell.tier or not self._protected.reserve(cell.tier.area.rank, nbytes)

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

    def _swap(self, home: int, bucket: int, slot: int, old: int, new: int) -> bool:
        """Swap the word of the old cell for that of the new one; False if it is another by now."""
        fabric, s = self._fabric, self._scratch
        done = fabric.swap(fabric.ctx, s.address, home, bucket, slot, old, new)
        if done < 0:
            fabric.raise_mpi_error(s)
        return bool(done)

    def _moved(self, tier: DramTier, first: int, word: int, cell: Cell, new: int, nbytes: int) -> None:
        """Note that the index names the new cell in the place of the old one."""
        to = cell.tier
        summed = is_alias(new) or bool(to.records["flags"][cell.first] & FLAG_CHECKSUM)
        if not to.is_live(new):
            unsummed = self._later and not to.area.far and not summed
            to.enter(new, nbytes, unsummed=unsummed, touch=int(tier.area.touched[first]))
        self._pool.has_moved(tier, first, to, cell.first)
        to.counted[cell.first] = tier.counted[first]
        tier.counted[first] = False  # it is the same block: nothing is given back
        space = self._registry.by_id(int(to.records["namespace"][cell.first]))
        if space is not None and space.epoch != int(to.records["epoch"][cell.first]):
            to.let_one_pass(new)  # lists of what has passed have the old word
        tier.retire(word)
        self.moved += 1
        self.moved_bytes += nbytes

    # ------------------------------------------------------------------------------------ recalled extents

    def evacuate(self, tier: DramTier, start: int, pages: int) -> bool:
        """Local. Move the blocks out of these pages, some at a time; with eviction those that fit nowhere are evicted.

        Hard ones stay until there is room, in memory and in `protected_bytes`: False.
        """
        budget, all_gone = _AT_ONCE_BYTES, True
        for first in self._cells(tier, start, pages):
            if not tier.words[first]:
                continue  # evicted meanwhile, to make room for another
            nbytes = int(tier.records["length"][first])
            moved = self.move(tier, first, self._pool.take_free)
            if moved is Moved.NO_ROOM and tier.victims is not None:
                moved = self.move(tier, first, self._pool.make_room)
                if moved is Moved.NO_ROOM and tier.words[first] and tier.drop(first):
                    self.dropped += 1
            if tier.words[first]:
                all_gone = False
                if moved is Moved.NO_ROOM:
                    break  # nor will the others find any
                continue
            budget -= nbytes
            if budget <= 0:
                break
        return all_gone

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
        for rank, tier in list(self._pool.tiers.items()):
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
                if not tier.words[first] or tier.copies[first]:
                    continue
                if not 0 < (size := int(tier.records["length"][first])) <= nbytes:
                    continue  # nor do aliases and empty blocks, which weigh nothing
                moved = self.move(tier, first, partial(self._pool.take_in, target))
            if moved is Moved.NO_ROOM:
                return
            nbytes -= size if moved is Moved.YES else 0

    # --------------------------------------------------------------------------------------------- details

    def _cells(self, tier: DramTier, start: int, pages: int) -> list[int]:
        """First pages of the live blocks that have pages there."""
        found: list[int] = (start + np.flatnonzero(tier.words[start : start + pages])).tolist()
        before = np.flatnonzero(tier.words[:start])
        if before.size and before[-1] + tier.allocator.pages_of(int(before[-1])) > start:
            found.append(int(before[-1]))
        return found
