"""Policies that each hold a part of the blocks, exactly: what the ranks of a store lose even if nothing came late.

Covers an exact replay of requests by the caches of several ranks, as `workload` asks them: a request hits up to the
first of its blocks that is nowhere, and the others are put. Blocks go to the cache of the rank that puts them, as in
the store, or of the rank that a hash names. Does not cover late touches (see `store_policies`, which has the store
itself beside it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascade_mpi.policies.family import POLICIES

Ids = NDArray[np.int64]
_NOWHERE = -1


class Shards(NamedTuple):
    """What the caches of some ranks did: shares of all accesses."""

    hits: float
    kept: float  # there, but behind the first block that was not


def by_writer(name: str, capacity: int, blocks: int, requests: Sequence[Ids], ranks: int) -> Shards:
    """Local. Request number i is one of rank i % ranks, whose cache takes what it puts. `capacity` is of all ranks."""
    caches = [POLICIES[name](capacity // ranks, blocks) for _ in range(ranks)]
    hits = kept = 0
    for number, ids in enumerate(requests):
        caches[number % ranks].request(ids)  # to those that want to be told
        where = np.full(ids.size, _NOWHERE)
        for rank, cache in enumerate(caches):
            where[cache.resident(ids)] = rank
        missing = np.flatnonzero(where == _NOWHERE)
        prefix = int(missing[0]) if missing.size else ids.size
        hits += prefix
        kept += ids.size - prefix - missing.size
        for rank, cache in enumerate(caches):
            used = ids[:prefix][where[:prefix] == rank]
            if used.size:
                cache.touched(used)
        if missing.size:
            caches[number % ranks].replay(ids[missing])
    return _shares(hits, kept, requests)


def by_hash(name: str, capacity: int, blocks: int, requests: Sequence[Ids], ranks: int, seed: int = 1) -> Shards:
    """Local. The same where a block belongs to one rank for good, which then remembers it too; told of no request."""
    caches = [POLICIES[name](capacity // ranks, blocks) for _ in range(ranks)]
    home = np.random.default_rng(seed).integers(0, ranks, blocks)
    hits = kept = 0
    for ids in requests:
        there = np.zeros(ids.size, np.bool_)
        for rank, cache in enumerate(caches):
            mine = home[ids] == rank
            there[mine] = cache.replay(ids[mine])
        prefix = ids.size if there.all() else int(np.argmin(there))
        hits += prefix
        kept += int(there[prefix:].sum())
    return _shares(hits, kept, requests)


def _shares(hits: int, kept: int, requests: Sequence[Ids]) -> Shards:
    total = sum(ids.size for ids in requests)
    return Shards(hits / total, kept / total)
