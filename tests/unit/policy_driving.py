"""How tests drive policies: as a manager of blocks would, one block at a time, and traces to drive them with."""

from __future__ import annotations

import numpy as np

from cascade_mpi.policies.family import POLICIES, make
from cascade_mpi.policies.policy import Policy

ONLINE = [name for name, policy in POLICIES.items() if not policy.offline]


def new(name: str, capacity: int, blocks: int, future=(), **options) -> Policy:
    """The policy of this name; the offline ones are told the future."""
    if POLICIES[name].offline:
        options["future"] = np.asarray(future, np.int64)
    return make(name, capacity, blocks, **options)


def managed(policy: Policy, ids, sizes=None) -> np.ndarray:
    """Access ids as a manager does: say what was missed, make room, say what left and what came."""
    hits = np.zeros(len(ids), bool)
    for k, i in enumerate(np.asarray(ids, np.int64)):
        size = 1 if sizes is None else int(sizes[i])
        hits[k] = policy.resident([i])[0]
        if hits[k]:
            policy.touched([i])
            continue
        policy.missed([i])
        if size > policy.capacity:
            continue
        need = policy.used + size - policy.capacity
        if need > 0:
            policy.evicted(policy.victims(size=need))
        policy.inserted([i])
    return hits


def skewed(seed: int, blocks: int, accesses: int, *, scan: bool = False) -> np.ndarray:
    """Zipf-like ids, and in the middle, if asked for, all blocks once in order."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, blocks + 1) ** random.uniform(0.5, 1.1)
    ids = random.permutation(blocks)[random.choice(blocks, accesses, p=weights / weights.sum())]
    if scan:
        ids[accesses // 2 : accesses // 2 + blocks] = np.arange(blocks)
    return ids.astype(np.int64)
