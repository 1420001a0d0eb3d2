"""Blocks on disk on their way into memory: which, when, and how.

Covers the cell that a block gets, backed by its disk cell, and the swap of the words. Does not cover the read of its
record (`reading`), nor when it leaves again (`tier`).

A read brings a block into free memory. Where there is none, into the place of others when it was read here before, not
long ago: what is read once leaves alone what is read often.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.disk.look import no_longer_held
from cascade_mpi.errors import StoreFullError
from cascade_mpi.fabric import Fabric
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import (
    DESCRIPTOR,
    FLAG_BACKED,
    FLAG_DISK,
    FLAG_HELD,
    FP_SHIFT,
    GENERATION_SHIFT,
    HARD,
    MAGIC,
    RANK_SHIFT,
    TIER_DRAM,
    TIER_SHIFT,
)
from cascade_mpi.pool import Cell, Pool
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.registry import Registry

_REMEMBERED = 4096  # blocks that were read from disk lately


class Promotion:
    """What one rank brings into its memory."""

    def __init__(self, fabric: Fabric, pool: Pool, registry: Registry, protected: ProtectedBytes) -> None:
        self._fabric, self._pool, self._registry, self._protected = fabric, pool, registry, protected
        self._read: OrderedDict[int, None] = OrderedDict()  # words
        self.promoted = self.promoted_bytes = 0

    @uninterrupted
    def offer(self, word: int, nbytes: int, described: npt.NDArray[np.uint8], address: int) -> None:
        """Local. A block was read whole to an address: bring it into memory, if it belongs there.

        `described` are the 128 bytes of its descriptor.
        """
        with self._pool.lock:
            again = word in self._read
            self._read[word] = None
            self._read.move_to_end(word)
            if len(self._read) > _REMEMBERED:
                self._read.popitem(last=False)
            if again or self.has_room(nbytes):
                self.bring(word, described.view(DESCRIPTOR)[0], address, insist=False, evict=again)

    def has_room(self, nbytes: int) -> bool:
        """Local. Is there free memory for a block, and as much more as is kept free?"""
        pool = self._pool
        with pool.lock:
            return bool(pool.spare_pages - pool.own.pages_for(nbytes) >= pool.own.low_pages)

    @uninterrupted
    def bring(self, word: int, described: Any, address: int, *, insist: bool, evict: bool = True) -> bool:
        """Local. Swap the word of a disk cell for that of a cell in memory; False: there is no room, or it has changed.

        `described` is its descriptor, at `address` its payload. With `evict` others may go for it. With `insist`
        StoreFullError says why there is no room. 1 Get + 1 CAS.
        """
        pool, nbytes = self._pool, int(described["length"])
        key = int(described["key_hi"]), int(described["key_lo"])
        with pool.lock:
            if not self._counts(described, nbytes):
                if insist:
                    raise StoreFullError(f"a block of {nbytes} bytes cannot come into memory: its namespace's quota")
                return False
            cell: Cell | None = None
            done = False
            try:
                pages = pool.own.pages_for(nbytes)
                if insist or evict:
                    cell = pool.reserve(nbytes, *key)
                elif self.has_room(nbytes):
                    cell = pool.take(pages)
                if cell is not None:
                    self._fill(cell, described, word, address, nbytes)
                    done = self._swap(cell, key, word, described, nbytes)
            finally:
                if not done:
                    self._uncount(described, nbytes)
                    if cell is not None:
                        cell.tier.abandon(cell.first)
            if cell is None and insist:
                raise StoreFullError(pool.why_full(nbytes))
            return done

    def _fill(self, cell: Cell, described: Any, word: int, address: int, nbytes: int) -> None:
        """Payload and descriptor into a cell that no word names yet."""
        fabric, tier = self._fabric, cell.tier
        new = tier.records[cell.first : cell.first + 1]
        new["magic"] = 0
        full_fence()
        if tier.area.far:
            if nbytes:
                raw = (ctypes.c_uint8 * nbytes).from_address(address)
                tier.area.far.send_payload(cell.first, np.ctypeslib.as_array(raw))
        else:
            copy_bytes(tier.area.arena_address + cell.first * fabric.page_bytes, address, nbytes)
        for name in described.dtype.names:
            if name != "magic":
                new[name] = described[name]
        new["flags"] = int(described["flags"]) & ~(FLAG_DISK | FLAG_HELD) | FLAG_BACKED
        new["content_hi"], new["content_lo"] = word & ~HARD, 0
        new["generation"], new["manager"] = cell.generation, fabric.comm.rank
        full_fence()
        new["magic"] = MAGIC
        full_fence()
        if tier.area.far:
            tier.area.far.send_descriptors([cell.first])

    def _swap(self, cell: Cell, key: tuple[int, int], word: int, described: Any, nbytes: int) -> bool:
        fabric, s, tier = self._fabric, self._pool.own.shared[1], cell.tier
        wants = bool(int(described["flags"]) & FLAG_HELD)
        hard = wants and not self._protected.reserve(tier.area.rank, nbytes)
        done = False
        new = 0
        try:
            while (slot := fabric.slot_of(fabric.ctx, s.address, *key, word)) >= 0:
                there = s.words[c.WORD]
                new = word >> FP_SHIFT << FP_SHIFT | cell.generation << GENERATION_SHIFT | TIER_DRAM << TIER_SHIFT
                new |= tier.area.rank << RANK_SHIFT | cell.first | (HARD if hard or there & HARD else 0)
                swapped = fabric.swap(fabric.ctx, s.address, s.signed[c.HOME], s.signed[c.BUCKET], slot, there, new)
                if swapped < 0:
                    fabric.raise_mpi_error(s)
                if swapped:
                    tier.enter(new, nbytes)
                    done = True
                    break
                new = 0
            if slot == c.MPI_FAILED:
                fabric.raise_mpi_error(s)
        finally:
            if not done and new:  # an error came behind the swap
                done = tier.enter_if_it_stands(new, nbytes)
            if hard and not done:
                self._protected.release(tier.area.rank, nbytes)
        if done and wants:
            no_longer_held(fabric, word, int(described["flags"]))  # from now on the word says it
        if done:
            self._pool.has_come(word, tier, cell.first)
            space = self._registry.by_id(int(described["namespace"]))
            if space is not None:
                tier.counted[cell.first] = space.slot in self._registry.quotas
                if space.epoch != int(described["epoch"]):
                    tier.let_one_pass(new)
            self.promoted += 1
            self.promoted_bytes += nbytes
        return done

    def _counts(self, described: Any, nbytes: int) -> bool:
        """Count the block against its namespace's quota; False if that does not allow it."""
        space = self._registry.by_id(int(described["namespace"]))
        if space is None or space.slot not in self._registry.quotas:
            return True
        return not self._registry.reserve(space, nbytes)

    def _uncount(self, described: Any, nbytes: int) -> None:
        space = self._registry.by_id(int(described["namespace"]))
        if space is not None and space.slot in self._registry.quotas:
            self._registry.release(space.id, space.epoch, nbytes)
