"""What a rank holds of a namespace: its blocks one by one, and the removal of many of them.

Covers this rank's part. Does not cover the other ranks' (`store_namespaces`) nor namespaces as a whole (`registry`).

A block is listed under the integer that names it in its namespace: `get`, `delete` and `protect` take it as a key.
Of a block that was put under an integer it is that integer. Of one that was put under a str or bytes it is their
digest: the text is stored nowhere. The integer is made with the digest of the namespace, so that of a tenant's
blocks only who has the salt learns it.

Blocks on disk are listed by the rank that manages their disk cell, unless they are in memory too.

Of a namespace with identity "content" the names are listed, under whichever rank holds them; the contents, which may
have many, are not.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.disk.cells import DiskCells
from cascade_mpi.disk.left_out import LeftOut
from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.dram import DramTier
from cascade_mpi.layout import FLAG_CONTENT, HARD, TIER_DISK, TIER_DRAM, TIER_NAMES
from cascade_mpi.pool import Pool
from cascade_mpi.spaces import Space
from cascade_mpi.values import decode_dims, dtype_name, result_dtype

_AT_ONCE = 1024  # blocks that are looked at under one lock


class BlockInfo(NamedTuple):
    """A stored block as `Store.scan` lists it; `age` and `ttl` (what is left of it) in seconds by its rank's clock.

    `depth` is the block's place in its prefix, as its put said, or None; `ttl` None: it does not expire. `tier` is
    "dram", or "disk" for a block that is there alone.
    """

    key: int
    rank: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    protected: bool
    age: float
    ttl: float | None
    depth: int | None
    tier: str = TIER_NAMES[TIER_DRAM]


def integer_key(space: Space, hi: int, lo: int) -> int:
    """Local. The integer that names a block in its namespace, of the words of its key."""
    return (hi << 64 | lo) ^ int.from_bytes(space.digest, "big")


def _integer_of(space: Space, record: np.void) -> int:
    return integer_key(space, int(record["key_hi"]), int(record["key_lo"]))


class Listing:
    """The cells that a scan has still to look at. It follows the blocks that move meanwhile; the lock is held then."""

    def __init__(self, pool: Pool, space: Space, disk: DiskCells | None = None) -> None:
        self._left = deque[tuple[DramTier | DiskCells, npt.NDArray[np.int64]]]()
        self._waits: dict[int, npt.NDArray[np.bool_]] = {}  # by rank of the arena and first page
        self._disk = disk
        self._on_disk = np.zeros(0 if disk is None else disk.words.size, np.bool_)  # by disk cell
        with pool.lock:
            for tier in pool.tiers.values():
                firsts = tier.cells_of(space.id, space.epoch)
                self._mask(tier)[firsts] = True
                self._left += [(tier, firsts[at : at + _AT_ONCE]) for at in range(0, firsts.size, _AT_ONCE)]
            if disk is not None:  # also those that back a block in memory: they are passed over unless it leaves
                cells = disk.cells_of(space.id, space.epoch)
                self._on_disk[cells] = True
                for tier in pool.tiers.values():
                    self._on_disk[disk.backing(tier.records[tier.cells_of(space.id, space.epoch)])] = False
                self._left += [(disk, cells[at : at + _AT_ONCE]) for at in range(0, cells.size, _AT_ONCE)]
            pool.followers.add(self)

    def moved(self, tier: DramTier, first: int, to: DramTier, new: int) -> None:
        """Local. A block has gone from one cell to another: it is listed there if it was not yet, and only then."""
        old = self._mask(tier)
        waits, old[first] = bool(old[first]), False
        self._mask(to)[new] = waits
        if waits:
            self._left.append((to, np.array([new])))

    def left(self, tier: DramTier, first: int, word: int) -> None:
        """Local. A block has left memory: it is listed where it is now if it was not yet, by its rank."""
        mask = self._mask(tier)
        waits, mask[first] = bool(mask[first]), False
        if self._disk is not None and (cell := self._disk.own_cell(word)) is not None:
            self._on_disk[cell] = waits
            if waits:
                self._left.append((self._disk, np.array([cell])))

    def came(self, word: int, tier: DramTier, first: int) -> None:
        """Local. A block has come into memory: the same. What another rank had on disk may be listed there."""
        waits = False
        if self._disk is not None and (cell := self._disk.own_cell(word)) is not None:
            waits, self._on_disk[cell] = bool(self._on_disk[cell]), False
        self._mask(tier)[first] = waits
        if waits:
            self._left.append((tier, np.array([first])))

    def next(self) -> tuple[DramTier | DiskCells, npt.NDArray[np.int64]] | None:
        """Local. An arena and first pages of some cells in it, or the disk and numbers of cells; None: that was all."""
        if not self._left:
            return None
        tier, firsts = self._left.popleft()
        mask = self._on_disk if isinstance(tier, DiskCells) else self._mask(tier)
        firsts = firsts[mask[firsts]]
        mask[firsts] = False
        return tier, firsts

    def _mask(self, tier: DramTier) -> npt.NDArray[np.bool_]:
        rank = tier.area.rank
        if rank not in self._waits:
            self._waits[rank] = np.zeros(tier.words.size, np.bool_)
        return self._waits[rank]


def scan(
    pool: Pool, space: Space, check_open: Callable[[], None], disk: DiskCells | None = None
) -> Iterator[BlockInfo]:
    """Local. This rank's blocks of a namespace at its epoch that have not expired; no MPI call in memory.

    One that is stored or leaves meanwhile may be listed or not, one that moves is listed once. `check_open` raises when
    the memory is gone. With `disk` those on this rank's disk cells too, 1 Get each.
    """
    return _infos(pool, Listing(pool, space, disk), space, check_open)


def _infos(pool: Pool, listing: Listing, space: Space, check_open: Callable[[], None]) -> Iterator[BlockInfo]:
    while True:
        check_open()
        with pool.lock:
            if (piece := listing.next()) is None:
                return
            cells, firsts = piece
            mine = firsts[_mine(cells, space, firsts)]
            words, records = cells.words[mine], cells.records[mine]
        rank = pool.own.area.rank if isinstance(cells, DiskCells) else cells.area.rank
        tier = TIER_NAMES[TIER_DISK if isinstance(cells, DiskCells) else TIER_DRAM]
        now = pool.own.fabric.now()
        for word, record in zip(words.tolist(), records, strict=True):
            expiry, depth = int(record["expiry"]), int(record["depth"])
            if (expiry and expiry <= now) or record["flags"] & FLAG_CONTENT:
                continue
            ndim = int(record["ndim"])
            dims = tuple(record["dims"].tolist()) if ndim > 1 else ()
            code, shape = int(record["dtype"]), decode_dims(ndim, int(record["dim0"]), dims)
            yield BlockInfo(
                _integer_of(space, record), rank,
                math.prod(shape) * result_dtype(code).itemsize, dtype_name(code), shape, bool(word & HARD),
                max(time.time_ns() - int(record["sequence"]), 0) / 1e9, float(expiry - now) if expiry else None,
                depth - 1 if depth else None, tier,
            )  # fmt: skip


def remove(dram: DramTier, space: Space, keys: range | None) -> int:
    """Local. Take this rank's blocks of a namespace at its epoch out, protected ones too: how many.

    With `keys` those whose integer lies in it. 1 Get + 1 CAS each.
    """
    removed = 0
    with dram.lock:
        for first in dram.cells_of(space.id, space.epoch).tolist():
            record = dram.records[first]
            content = bool(record["flags"] & FLAG_CONTENT)  # named by the others: it goes with the last of them
            if keys is not None and (content or _integer_of(space, record) not in keys):
                continue
            dram.remove(first)
            removed += not content
    return removed


def remove_from_disk(disk: DiskTier, space: Space, keys: range | None) -> int:
    """Local. The same of the blocks that are on this rank's disk cells alone. 1 Get + 1 CAS + 1 Accumulate each."""
    cells = disk.cells.cells_of(space.id, space.epoch).tolist()
    if keys is not None:
        cells = [each for each in cells if _integer_of(space, disk.cells.records[each]) in keys]
    return disk.remove_all(cells)


def remove_left_out(left: LeftOut, space: Space, keys: range | None) -> None:
    """Local. Let no later job find those of a namespace at its epoch that this rank's index had no slot for."""
    chosen = left.of(space.id, space.epoch)
    if keys is not None:
        chosen = chosen[[_integer_of(space, each) in keys for each in left.records[chosen]]]
    left.delete(chosen)


def _mine(cells: DramTier | DiskCells, space: Space, firsts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of these cells are live and of the namespace at its epoch, as they were when they were listed."""
    records = cells.records
    mine: npt.NDArray[np.bool_] = (
        (cells.words[firsts] != 0)
        & (records["namespace"][firsts] == np.uint64(space.id))
        & (records["epoch"][firsts] == space.epoch)
    )
    if not isinstance(cells, DiskCells):
        return mine & ~cells.copies[firsts]
    mine[mine] = [cells.standing(cell) is not None for cell in firsts[mine].tolist()]  # else it is in memory, or gone
    return mine
