"""One rank's side of a replay: what it does for a request, and what it counts.

Covers the look-up, the fetch of the prefix that is there, and the puts of the rest. Does not cover which requests
a rank serves and when (see `replay`), nor the contents of blocks (see `blocks`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cascade_mpi.blocks import BlockPool, Verify
from cascade_mpi.workload.tally import OPERATIONS, TIERS, Latencies, Tally

if TYPE_CHECKING:
    from cascade_mpi.reader import Location
    from cascade_mpi.workload.result import Setting
    from cascade_mpi.writer import PutResult

BATCH_BLOCKS, BATCH_BYTES = 64, 32 << 20  # of one get_many or put_many: bounds the buffers and stays in the cache
SAMPLED = 8  # one request in so many is fetched tier by tier, to time the tiers

Ids = npt.NDArray[np.uint64]
Buffer = npt.NDArray[np.uint8]


class BlockStore(Protocol):
    """The part of `Store` that a replay uses."""

    def request(self, keys: Ids) -> None:
        """Local. A request for these blocks arrives."""

    def contains_many(self, keys: Ids, exact: bool = True) -> npt.NDArray[np.bool_]:
        """Local. Which keys are there."""

    def locate(self, key: int) -> Location | None:
        """Local. Where a block is."""

    def get_many(self, keys: Ids, outs: Sequence[Buffer]) -> list[Any]:
        """Local. Bytes read into each buffer, None for a miss."""

    def put_many(self, keys: Ids, data: Sequence[Buffer], *, exists: Literal["keep"]) -> list[PutResult]:
        """Local. What became of each block."""

    def progress(self) -> None:
        """Local. Enter MPI once."""

    def stats(self) -> dict[str, Any]:
        """Local. The counters of this rank."""


def _never() -> bool:
    return False


class Server:
    """Serves requests and counts. `stopped()` is asked between batches: what a request did until then counts."""

    def __init__(self, store: BlockStore, setting: Setting, longest: int, stopped: Callable[[], bool] = _never) -> None:
        self.tally = Tally()
        self.latencies = {name: Latencies() for name in OPERATIONS}
        self._store, self._stopped = store, stopped
        self._verify: Verify = setting.verify
        batch = min(BATCH_BLOCKS, BATCH_BYTES // setting.block_bytes, longest)
        self._pool = BlockPool(setting.block_bytes, max(1, batch))
        self._tag = _key_tag(setting)

    def serve(self, ids: Ids) -> int:
        """Local. One request: fetch its longest prefix that is there and right, compute and put the rest.

        The number of its blocks that were fetched or computed: all of them unless it was stopped.
        """
        keys = np.empty((len(ids), 2), dtype=np.uint64)
        keys[:, 0] = self._tag
        keys[:, 1] = ids
        self._store.request(keys)
        hits = self._fetch(ids, keys, self._look_up(keys))
        done = self._compute(ids, keys, hits)
        tally = self.tally
        tally.accesses += done
        tally.hits += hits
        tally.computes += done - hits
        tally.requests += done == len(ids)
        return done

    def _look_up(self, keys: Ids) -> int:
        """How many blocks from the first on seem to be there (by fingerprint: the fetch compares the keys)."""
        start = perf_counter_ns()
        there = self._store.contains_many(keys, exact=False)
        self._count("lookup", len(keys), start)
        missing = np.flatnonzero(~there)
        return int(missing[0]) if missing.size else len(keys)

    def _fetch(self, ids: Ids, keys: Ids, prefix: int) -> int:
        """The length of the prefix that came back right; it ends at the first block that is missing or corrupt."""
        tally, pool = self.tally, self._pool
        read = self._read_by_tier if tally.requests % SAMPLED == 0 else self._read
        for first in range(0, prefix, len(pool)):
            if self._stopped():
                return first
            last = min(prefix, first + len(pool))
            buffers = pool.poison(last - first)
            sizes = read(keys[first:last], buffers)
            there = np.array([size is not None for size in sizes])
            whole = np.array([size == pool.block_bytes for size in sizes])
            right = whole & ~pool.wrong(ids[first:last], first, self._verify)
            tally.corrupt += int((there & ~right).sum())
            if not right.all():
                return first + int(np.argmin(right))
        return prefix

    def _read(self, keys: Ids, buffers: Sequence[Buffer]) -> list[Any]:
        start = perf_counter_ns()
        sizes = self._store.get_many(keys, buffers)
        self._count("get", len(keys), start)
        self.tally.get_bytes += sum(size for size in sizes if size is not None)
        return sizes

    def _read_by_tier(self, keys: Ids, buffers: Sequence[Buffer]) -> list[Any]:
        """The same, the blocks of each tier in a call of their own. What moves meanwhile counts where it was."""
        located = [self._store.locate(hi << 64 | lo) for hi, lo in keys.tolist()]
        sizes: list[Any] = [None] * len(keys)
        for tier, path in TIERS.items():
            of_tier = [k for k, found in enumerate(located) if found is not None and found.path == path]
            if not of_tier:
                continue
            nbytes, ns = self.tally.get_bytes, self.tally.get_ns
            for k, size in zip(of_tier, self._read(keys[of_tier], [buffers[k] for k in of_tier]), strict=True):
                sizes[k] = size
            self.tally.add_timed(tier, self.tally.get_bytes - nbytes, self.tally.get_ns - ns)
        return sizes

    def _compute(self, ids: Ids, keys: Ids, hits: int) -> int:
        """Make the blocks behind the first `hits` and put them; what another rank has put meanwhile stays.

        The number of blocks that are behind it then: all, unless it was stopped.
        """
        tally, pool = self.tally, self._pool
        for first in range(hits, len(ids), len(pool)):
            if self._stopped():
                return first
            last = min(len(ids), first + len(pool))
            buffers = pool.fill(ids[first:last], first)
            start = perf_counter_ns()
            results = self._store.put_many(keys[first:last], buffers, exists="keep")
            self._count("put", last - first, start)
            stored = sum(result.stored for result in results)
            tally.put_bytes += stored * pool.block_bytes
            tally.kept += sum(result.kept for result in results)
            tally.refused += sum(result.refused for result in results)
        return len(ids)

    def _count(self, name: str, blocks: int, start: int) -> None:
        spent = perf_counter_ns() - start
        self.tally.add_call(name, blocks, spent)
        self.latencies[name].add(spent)


def keys_of(ids: Ids, setting: Setting) -> Ids:
    """Local. The keys of block ids, uint64[n, 2]."""
    keys = np.empty((len(ids), 2), dtype=np.uint64)
    keys[:, 0] = _key_tag(setting)
    keys[:, 1] = ids
    return keys


def _key_tag(setting: Setting) -> int:
    """The high half of the keys: one number per trace and block size; the low half is the block id."""
    name = f"{setting.trace} {setting.block_bytes}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
