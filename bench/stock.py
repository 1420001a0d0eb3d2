"""The blocks that a benchmark reads: put by every rank, known to every rank, drawn in turn.

Covers keys whose home is the rank that holds the block (so that a path is wholly local or wholly
remote), where each block, its bucket and its word lie (for raw MPI calls on the same bytes), drawing
without repetition until all have been drawn, and the comparison of contents. Does not time anything.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi import layout
from cascade_mpi.blocks import BlockPool
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import fill as contents
from cascade_mpi.layout import place_many
from cascade_mpi.store import Store

Indexes = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
_CHUNK_BYTES = 64 << 20
_CHUNK_BLOCKS = 4096
_FULL = (1 << 64) - 1


def keys_at(rng: np.random.Generator, home: int, count: int, fabric: Fabric) -> Keys:
    """Local. `count` random keys whose home is the rank `home`."""
    found: list[Keys] = []
    while sum(map(len, found)) < count:
        keys = rng.integers(0, 1 << 64, (count * fabric.comm.size + 64, 2), np.uint64)
        found.append(keys[place_many(keys[:, 0], keys[:, 1], fabric.comm.size, fabric.buckets)[0] == home])
    return np.ascontiguousarray(np.concatenate(found)[:count])


def names(keys: Keys) -> list[int]:
    """Local. Keys as Python integers of 128 bits."""
    return [hi << 64 | lo for hi, lo in keys.tolist()]


class Stock:
    """`count` blocks of one size on every rank. Block i of rank r has the key `keys[r][i]`."""

    def __init__(self, store: Store, block_bytes: int, count: int, seed: int) -> None:
        """Collective. Put this rank's blocks; the store was empty before."""
        fabric = store._fabric
        self.fabric, self.block_bytes, self.count = fabric, block_bytes, count
        own = keys_at(np.random.default_rng((seed, fabric.comm.rank)), fabric.comm.rank, count, fabric)
        self.chunk = max(1, min(count, _CHUNK_BLOCKS, _CHUNK_BYTES // block_bytes))
        self.pool = BlockPool(block_bytes, self.chunk)
        for start in range(0, count, self.chunk):
            keys = own[start : start + self.chunk]
            store.put_many(keys, self.pool.fill(np.ascontiguousarray(keys[:, 1]), start))
        pages, slots = self._places(store, own)
        everyone = fabric.comm.allgather((own, pages, slots))
        self.keys = [keys for keys, _, _ in everyone]
        self.pages = [pages for _, pages, _ in everyone]
        self.slots = [slots for _, _, slots in everyone]
        self.buckets = [place_many(keys[:, 0], keys[:, 1], fabric.comm.size, fabric.buckets)[1] for keys in self.keys]
        self._order = np.random.default_rng(seed).permutation(count)
        self._drawn = 0
        self._visited: set[int] = set()
        self._last = np.zeros(1, np.bool_)

    @staticmethod
    def _places(store: Store, keys: Keys) -> tuple[Indexes, Indexes]:
        """First page and slot of this rank's blocks, from its own table of words."""
        fabric, words = store._fabric, store._dram.words
        live = np.flatnonzero(words)
        order = np.argsort(store._dram.records["key_lo"][live])
        by_key = live[order]
        at = np.searchsorted(store._dram.records["key_lo"][by_key], keys[:, 1])
        pages = by_key[np.minimum(at, len(by_key) - 1)]
        if not np.array_equal(store._dram.records["key_lo"][pages], keys[:, 1]):
            raise RuntimeError("a block of the stock is not where it was put: the arena is too small for it")
        _, buckets, _ = place_many(keys[:, 0], keys[:, 1], fabric.comm.size, fabric.buckets)
        in_bucket = fabric.index_words.reshape(-1, layout.BUCKET_WORDS)[buckets] == words[pages][:, None]
        return pages.astype(np.int64), in_bucket.argmax(axis=1).astype(np.int64)

    def visit(self, store: Store, rank: int) -> None:
        """Local. Read a rank's blocks once: the first touch of a mapped page costs a page fault, the second none."""
        if rank not in self._visited:
            self.verify(store, rank)
            self._visited.add(rank)

    # ------------------------------------------------------------------------------------------- drawing

    def take(self, count: int) -> Indexes:
        """Local. The next `count` blocks in turn, in a random order that stays the same."""
        at = (self._drawn + np.arange(count)) % self.count
        self._drawn += count
        return self._order[at]

    # -------------------------------------------------------------------------------------------- places

    def addresses(self, rank: int, blocks: Indexes) -> list[int]:
        """Local. Where the payloads of a rank's blocks are mapped here."""
        fabric = self.fabric
        base = int(fabric.data.table[rank, 0]) + fabric.arena_at
        return (base + self.pages[rank][blocks] * fabric.page_bytes).tolist()

    def payload_targets(self, rank: int, blocks: Indexes) -> list[list[object]]:
        """Local. Payloads as mpi4py's target specifications in the data window."""
        fabric = self.fabric
        at = int(fabric.data.table[rank, 1]) + fabric.arena_at + self.pages[rank][blocks] * fabric.page_bytes
        return [[each, self.block_bytes, MPI.BYTE] for each in at.tolist()]

    def descriptor_targets(self, rank: int, blocks: Indexes) -> list[list[object]]:
        """Local. Descriptors as target specifications in the data window."""
        fabric = self.fabric
        at = int(fabric.data.table[rank, 1]) + fabric.descriptor_at + self.pages[rank][blocks] * layout.DESCRIPTOR_BYTES
        return [[each, layout.DESCRIPTOR_BYTES, MPI.BYTE] for each in at.tolist()]

    def bucket_targets(self, home: int, buckets: Indexes) -> list[list[object]]:
        """Local. Buckets of a home as target specifications in the index window."""
        at = int(self.fabric.index.table[home, 1]) + buckets * layout.BUCKET_BYTES
        return [[each, layout.BUCKET_BYTES, MPI.BYTE] for each in at.tolist()]

    def word_targets(self, rank: int, blocks: Indexes) -> list[list[object]]:
        """Local. The words of a rank's blocks as target specifications in the index window."""
        at = int(self.fabric.index.table[rank, 1]) + self.buckets[rank][blocks] * layout.BUCKET_BYTES
        return [[each, 8, MPI.BYTE] for each in (at + 8 * self.slots[rank][blocks]).tolist()]

    # ------------------------------------------------------------------------------------------ contents

    def data(self, rank: int, block: int, out: npt.NDArray[np.uint8]) -> None:
        """Local. Write what block number `block` of a rank holds into `out`."""
        contents.fill(out.view(np.uint64)[None, :], self.keys[rank][block : block + 1, 1].copy(), int(block))

    def holds(self, out: npt.NDArray[np.uint8], rank: int, block: int, *, everything: bool = False) -> bool:
        """Local. Is that block in `out`? Looks at 64 words spread over it, or at all."""
        words = out.view(np.uint64)[None, :]
        step = 1 if everything else max(1, words.shape[1] // 64)
        contents.differs(words, self.keys[rank][block : block + 1, 1].copy(), int(block), _FULL, step, self._last)
        return not self._last[0]

    def verify(self, store: Store, rank: int) -> bool:
        """Local. Read every block of a rank and compare every byte."""
        for start in range(0, self.count, self.chunk):
            keys = self.keys[rank][start : start + self.chunk]
            got = store.get_many(keys, self.pool.poison(len(keys)))
            if None in got or self.pool.wrong(np.ascontiguousarray(keys[:, 1]), start).any():
                return False
        return True


def bytes_at(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """Local. The memory at an address as an array; somebody else keeps it alive."""
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)
