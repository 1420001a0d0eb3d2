"""What a rank holds of a namespace: its blocks one by one, and the removal of many of them.

Covers this rank's part. Does not cover the other ranks' (`store_namespaces`) nor namespaces as a whole (`registry`).

A block is listed under the integer that names it in its namespace: `get`, `delete` and `protect` take it as a key.
Of a block that was put under an integer it is that integer. Of one that was put under a str or bytes it is their
digest: the text is stored nowhere. The integer is made with the digest of the namespace, so that of a tenant's
blocks only who has the salt learns it.

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

from cascade_mpi.dram import DramTier
from cascade_mpi.layout import FLAG_CONTENT, HARD
from cascade_mpi.pool import Pool
from cascade_mpi.spaces import Space
from cascade_mpi.values import decode_dims, dtype_name, result_dtype

_AT_ONCE = 1024  # blocks that are looked at under one lock


class BlockInfo(NamedTuple):
    """A stored block as `Store.scan` lists it; `age` and `ttl` (what is left of it) in seconds by its rank's clock.

    `depth` is the block's place in its prefix, as its put said, or None; `ttl` None: it does not expire.
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


def integer_key(space: Space, hi: int, lo: int) -> int:
    """Local. The integer that names a block in its namespace, of the words of its key."""
    return (hi << 64 | lo) ^ int.from_bytes(space.digest, "big")


def _integer_of(space: Space, record: np.void) -> int:
    return integer_key(space, int(record["key_hi"]), int(record["key_lo"]))


class Listing:
    """The cells that a scan has still to look at. It follows the blocks that move meanwhile; the lock is held then."""

    def __init__(self, pool: Pool, space: Space) -> None:
        self._left = deque[tuple[DramTier, npt.NDArray[np.int64]]]()
        self._waits: dict[int, npt.NDArray[np.bool_]] = {}  # by rank of the arena and first page
        with pool.lock:
            for tier in pool.tiers.values():
                firsts = tier.cells_of(space.id, space.epoch)
                self._mask(tier)[firsts] = True
                self._left += [(tier, firsts[at : at + _AT_ONCE]) for at in range(0, firsts.size, _AT_ONCE)]
            pool.followers.add(self)

    def moved(self, tier: DramTier, first: int, to: DramTier, new: int) -> None:
        """Local. A block has gone from one cell to another: it is listed there if it was not yet, and only then."""
        old = self._mask(tier)
        waits, old[first] = bool(old[first]), False
        self._mask(to)[new] = waits
        if waits:
            self._left.append((to, np.array([new])))

    def next(self) -> tuple[DramTier, npt.NDArray[np.int64]] | None:
        """Local. An arena and first pages of some cells in it; None: that was all."""
        if not self._left:
            return None
        tier, firsts = self._left.popleft()
        mask = self._mask(tier)
        firsts = firsts[mask[firsts]]
        mask[firsts] = False
        return tier, firsts

    def _mask(self, tier: DramTier) -> npt.NDArray[np.bool_]:
        rank = tier.area.rank
        if rank not in self._waits:
            self._waits[rank] = np.zeros(tier.words.size, np.bool_)
        return self._waits[rank]


def scan(pool: Pool, space: Space, check_open: Callable[[], None]) -> Iterator[BlockInfo]:
    """Local. This rank's blocks of a namespace at its epoch that have not expired; no MPI call.

    One that is stored or leaves meanwhile may be listed or not, one that moves is listed once. `check_open` raises when
    the memory is gone.
    """
    return _infos(pool, Listing(pool, space), space, check_open)


def _infos(pool: Pool, listing: Listing, space: Space, check_open: Callable[[], None]) -> Iterator[BlockInfo]:
    while True:
        check_open()
        with pool.lock:
            if (piece := listing.next()) is None:
                return
            dram, firsts = piece
            mine = firsts[_mine(dram, space, firsts)]
            words, records = dram.words[mine], dram.records[mine]
        now = dram.fabric.now()
        for word, record in zip(words.tolist(), records, strict=True):
            expiry, depth = int(record["expiry"]), int(record["depth"])
            if (expiry and expiry <= now) or record["flags"] & FLAG_CONTENT:
                continue
            ndim = int(record["ndim"])
            dims = tuple(record["dims"].tolist()) if ndim > 1 else ()
            code, shape = int(record["dtype"]), decode_dims(ndim, int(record["dim0"]), dims)
            yield BlockInfo(
                _integer_of(space, record), dram.area.rank,
                math.prod(shape) * result_dtype(code).itemsize, dtype_name(code), shape, bool(word & HARD),
                max(time.time_ns() - int(record["sequence"]), 0) / 1e9, float(expiry - now) if expiry else None,
                depth - 1 if depth else None,
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


def _mine(dram: DramTier, space: Space, firsts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of these cells are live and of the namespace at its epoch, as they were when they were listed."""
    records = dram.records
    mine: npt.NDArray[np.bool_] = (
        (dram.words[firsts] != 0)
        & ~dram.copies[firsts]
        & (records["namespace"][firsts] == np.uint64(space.id))
        & (records["epoch"][firsts] == space.epoch)
    )
    return mine
