"""What a policy may know of each access, and models of the next use that are fitted to it.

Covers features with unlimited memory, a table by class and age, gradient boosting by LightGBM, and the replay
of any such model. Does not cover the policy of the library, which remembers little and learns as it goes:
these are what it is measured against, and the bounds of what it could know.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cascade_mpi.policies import hazard

Ints = NDArray[np.int64]
Reals = NDArray[np.float64]

NEVER = 1 << 40
FEATURES = (
    "partial", "position", "blocks", "from_end", "uses", "pause", "pause_before", "turn", "session_pause",
    "session_pause_before", "new", "known", "session_age", "new_before",
)  # fmt: skip
_CLUSTERS = 24  # squared: groups of accesses that a fitted model tells apart in a replay
_SHARE = 0.3  # of the accesses of the trained half that LightGBM gets: the blocks of a request are alike


class Accesses(NamedTuple):
    """Block accesses one by one, and what could be known at each."""

    ids: Ints
    lengths: Ints
    """Blocks of each request."""
    partial: NDArray[np.bool_]
    """Is the last one of each request not full?"""
    features: NDArray[np.float32]
    """Shape (accesses, len(FEATURES)); pauses and ages in accesses, -1 where there are none."""
    gaps: Ints
    """Accesses until the same block comes again, or NEVER."""


def known(ids: Ints, lengths: Ints, partial: NDArray[np.bool_]) -> Accesses:
    """Local. Work out the features of all accesses."""
    last: dict[int, int] = {}
    request_of = np.repeat(np.arange(lengths.size), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    uses, pause, before = (np.zeros(ids.size, np.int64) for _ in range(3))
    gaps = np.full(ids.size, NEVER)
    turn, session_pause, session_before, age = (np.full(lengths.size, start) for start in (1, -1, -1, 0))
    new = lengths.copy()
    new_before = np.zeros(lengths.size, np.int64)
    for r, (start, end) in enumerate(zip(starts.tolist(), starts[1:].tolist(), strict=False)):
        matched = 0
        while start + matched < end and int(ids[start + matched]) in last:
            matched += 1
        new[r] = end - start - matched
        if matched > 1:
            p = int(request_of[last[int(ids[start + matched - 1])]])
            turn[r], session_pause[r] = turn[p] + 1, start - starts[p]
            session_before[r], age[r], new_before[r] = session_pause[p], age[p] + session_pause[r], new[p]
        for k in range(start, end):
            block = int(ids[k])
            j = last.get(block, -1)
            if j >= 0:
                uses[k], pause[k], before[k], gaps[j] = uses[j] + 1, k - j, pause[j], k - j
            else:
                pause[k] = before[k] = -1
            last[block] = k
    position = np.arange(ids.size) - starts[request_of]
    blocks = lengths[request_of]
    is_partial = (position == blocks - 1) & partial[request_of]
    per_request = (new, lengths - new, age, new_before)
    columns = [is_partial, position, blocks, blocks - 1 - position, uses, pause, before]
    columns += [each[request_of] for each in (turn, session_pause, session_before, *per_request)]
    return Accesses(ids, lengths, partial, np.stack(columns, 1).astype(np.float32), gaps)


def classes(of: Accesses) -> Ints:
    """Local. The classes of the library's policy, if it remembered everything."""
    column = dict(zip(FEATURES, of.features.T.astype(np.int64), strict=True))
    level = np.searchsorted(hazard.LEVEL_STARTS, column["uses"], side="right") - 1
    width = (column["new"] >= hazard.NEW_FEW).astype(np.int64) + (column["new"] >= hazard.NEW_MANY)
    pause = column["session_pause"]
    gap = np.where(pause < 0, 0, 1 + (pause >= hazard.SHORT_GAP) + (pause >= hazard.LONG_GAP))
    number = 1 + (level * hazard.WIDTHS + width) * hazard.GAPS + gap
    return np.where(column["partial"] > 0, 0, number)


def counts(of: Accesses, groups: Ints, start: int, end: int) -> tuple[Reals, Reals]:
    """Local. Uses and exposures by group and age in this part, which knows nothing of what comes after it."""
    edges, rows = np.array(hazard.EDGES), int(groups.max()) + 1
    watched = np.minimum(of.gaps[start:end], end - np.arange(start, end))
    used = (of.gaps[start:end] == watched) & (watched < edges[-1])
    at = np.minimum(np.searchsorted(edges, watched, side="right") - 1, hazard.AGES - 1)
    part = groups[start:end]
    uses, exposures = np.zeros((rows, hazard.AGES)), np.zeros((rows, hazard.AGES))
    np.add.at(uses, (part[used], at[used]), 1.0)
    for b in range(hazard.AGES):
        through = np.clip((watched - edges[b]) / (edges[b + 1] - edges[b]), 0.0, 1.0)
        exposures[:, b] = np.bincount(part, through, minlength=rows)
    return uses, exposures


def table(uses: Reals, exposures: Reals, weight: float = 50.0) -> Reals:
    """Local. Chances of use by group and age; `weight` uses in favour of the curve of all, scaled for the group."""
    curve = (uses.sum(0) + 1.0) / (exposures.sum(0) + 1.0)
    factor = (uses.sum(1) + weight) / ((exposures * curve).sum(1) + weight)
    rate = factor[:, None] * curve
    rate = rate * (uses + weight) / (rate * exposures + weight)
    return 1.0 - np.exp(-rate)


def boosted(of: Accesses, start: int, end: int, seed: int = 0) -> tuple[Ints, Reals]:
    """Local. Groups of accesses and their chances of use by age, from LightGBM trained on this part."""
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError(f"{error}: install the bench extra (pip install -e '.[bench]'), or use --no-model") from None

    edges = np.array(hazard.EDGES)
    drawn = np.flatnonzero(np.random.default_rng(seed).random(end - start) < _SHARE) + start
    rows, ages = [], []
    for b in range(hazard.AGES):
        at_risk = drawn[(of.gaps[drawn] >= edges[b]) & (drawn + edges[b] < end)]
        rows.append(at_risk)
        ages.append(np.full(at_risk.size, b))
    row, age = np.concatenate(rows), np.concatenate(ages)
    options = {
        "objective": "binary", "num_leaves": 31, "learning_rate": 0.1, "min_data_in_leaf": 200,
        "feature_fraction": 0.8, "num_threads": 1, "verbose": -1, "seed": seed,
    }  # fmt: skip
    inputs = np.column_stack([of.features[row], age.astype(np.float32)])
    model = lightgbm.train(options, lightgbm.Dataset(inputs, of.gaps[row] < edges[age + 1]), 120)
    different, which = np.unique(of.features, axis=0, return_inverse=True)
    chance = np.empty((len(different), hazard.AGES))
    for b in range(hazard.AGES):
        chance[:, b] = model.predict(np.column_stack([different, np.full(len(different), b)]), num_threads=1)
    return _grouped(chance, which.ravel())


def _grouped(chance: Reals, which: Ints) -> tuple[Ints, Reals]:
    """Few groups in place of many rows: those that are worth about the same when young and when old."""
    values = worth(chance)
    early, late = (_quantiles(values[:, b]) for b in (0, hazard.AGES // 2))
    _, group = np.unique(early * _CLUSTERS + late, return_inverse=True)
    weight = np.bincount(which, minlength=group.size).astype(np.float64)
    total = np.bincount(group, weight)
    means = np.stack([np.bincount(group, weight * chance[:, b]) / total for b in range(hazard.AGES)], 1)
    return group[which], means


def _quantiles(values: Reals) -> Ints:
    return np.searchsorted(np.quantile(values, np.arange(1, _CLUSTERS) / _CLUSTERS), values)


def worth(chance: Reals) -> Reals:
    """Local. The index of `hazard` for each row and age."""
    width = np.diff(hazard.EDGES)
    values = np.zeros_like(chance)
    for b in range(hazard.AGES):
        left, hit, cost = np.ones(len(chance)), np.zeros(len(chance)), np.zeros(len(chance))
        for t in range(b, hazard.AGES):
            cost += left * width[t] * (1.0 - chance[:, t] / 2.0)
            hit += left * chance[:, t]
            left *= 1.0 - chance[:, t]
            values[:, b] = np.maximum(values[:, b], hit / cost)
    return values


def replay(ids: Ints, groups: Ints, chance: Reals, capacity: int) -> NDArray[np.bool_]:
    """Local. Which accesses are hits if the block goes that is worth least by these chances."""
    order = np.argsort(worth(chance).ravel(), kind="stable")
    return _replay(ids, groups, order, np.array(hazard.EDGES), hazard.AGES, capacity, int(ids.max()) + 1)


@njit(nogil=True)  # type: ignore[misc]
def _replay(ids, groups, order, edges, ages, capacity, blocks):  # type: ignore[no-untyped-def]
    queues = order.size
    before, after = np.arange(blocks + queues), np.arange(blocks + queues)  # rings; heads behind the blocks
    used, queue_of = np.zeros(blocks, np.int64), np.full(blocks, -1)
    hits, resident = np.zeros(ids.size, np.bool_), 0
    for k in range(ids.size):
        if k % 16 == 0:
            for queue in range(queues):
                if queue % ages == ages - 1:
                    continue
                head = blocks + queue
                while before[head] != head and k - used[before[head]] >= edges[queue % ages + 1]:
                    i = before[head]
                    before[head], after[before[i]] = before[i], head
                    first = after[head + 1]
                    before[i], after[i] = head + 1, first
                    before[first] = after[head + 1] = i
                    queue_of[i] = queue + 1
        i = ids[k]
        hits[k] = queue_of[i] >= 0
        if hits[k]:
            after[before[i]], before[after[i]] = after[i], before[i]
        elif resident < capacity:
            resident += 1
        else:
            for queue in order:
                victim = before[blocks + queue]
                if victim < blocks:
                    after[before[victim]], before[after[victim]] = after[victim], before[victim]
                    queue_of[victim] = -1
                    break
        used[i], queue_of[i] = k, groups[k] * ages
        head = blocks + queue_of[i]
        first = after[head]
        before[i], after[i] = head, first
        before[first] = after[head] = i
    return hits
