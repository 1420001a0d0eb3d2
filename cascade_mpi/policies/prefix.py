"""Prefix: what goes first is what promises the fewest hits for its space, by what a prefix cache knows of a block.

Covers requests and the policy's settings. Does not cover its queues (`queues`), the estimates (`hazard`), how
they are learned and guarded (`watch`), nor what they start from (`prior`).

Known of a block when it is used: how often it was used before; whether it is the last, partly filled block of
its request; how many blocks of the request were new; how long its session paused before (the age of the end
of the longest known prefix). These make its class, and its age makes the rest. Blocks of one class and age
are a queue; the longest unused of the queue that is worth least goes. Queues of a class hold successive
intervals of age, so that growing older moves a block a few times in its life from the end of one to the front
of the next: the choice is exact up to the widths of these intervals, and needs no scan of blocks.

`request` tells what only a request shows. Without it the policy works with uses and ages alone.

A row of 16 bytes is all state of a block, resident or ghost. Ghosts are ends of requests and sampled blocks: as
many as the cache has blocks, but four times as many up to 2,048 blocks, and 8,192 up to there; and up to as many again
as the cache has (a part of that above 4,096 blocks), which LRU would have. 300 KiB of queues,
ranks, observations, samples and the shadow of LRU do not depend on the capacity.
Worth counts blocks, not bytes: for one size of block, or sizes that have nothing to do with their use.

What told nothing more on the half of the trace that was not looked at, and is left out: position in the prefix
and from its end, prompt length beside the number of new blocks, the pause before the last one, the turns of the
session beside the uses of its blocks. Gradient boosting on 14 features is far better where it was trained, by
knowing single sessions again, and worse on the other half (`python -m bench policy-training`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cascade_mpi.policies import prior
from cascade_mpi.policies.compiled import loop, shared
from cascade_mpi.policies.hazard import (
    AGES,
    AS_LRU,
    BITS,
    CLASSES,
    CURVE,
    EDGE,
    EDGES,
    EVERY,
    FACTOR,
    FIRST,
    GHOST_SHARE,
    GHOSTS,
    LONG_GAP,
    MAY_LOSE,
    MISSING,
    MISSING_SHARE,
    NEW_FEW,
    NEW_MANY,
    NUMBERS,
    ORDER,
    PRIOR_EXPOSURE,
    PRIOR_USES,
    QUEUES,
    RANK,
    RATE,
    REALS,
    SAMPLE,
    SAMPLES,
    SHADOW,
    SHADOW_COUNT,
    SHADOW_OLDEST,
    SHADOW_RATE,
    SHADOW_WIDTH,
    SHADOWS,
    SHORT_GAP,
    STEP,
    TICK,
    TRUST,
    UNIT,
    WATCHED,
    class_number,
)
from cascade_mpi.policies.links import take_out
from cascade_mpi.policies.loops import Operations
from cascade_mpi.policies.marks import (
    ASKED,
    END,
    GAP_AT,
    LAST,
    MAX_USES,
    USES_AT,
    WIDTH_AT,
    age_of,
    stamped,
)
from cascade_mpi.policies.policy import Ids, Mask, Policy, expect
from cascade_mpi.policies.queues import (
    GHOST,
    GHOST_RING,
    LRU_ONLY,
    LRU_ONLY_RING,
    drop,
    enqueue,
    gone,
    insert,
    learn_and_rank,
    relink,
    take,
    touch,
    trim,
    unlink,
)
from cascade_mpi.policies.state import CODE, MARK, ROW, Numbers, Reals, Rows, nothing
from cascade_mpi.policies.watch import use

GHOSTS_A_BLOCK, MOST_GHOSTS = 4, 8192  # or as many as the cache has blocks, if that is more
# The guard's: shares of all accesses that may be lost, and from which LRU gives way again; compared blocks that
# chance may cost; gains that are kept, and how long LRU ranks, by the cache's blocks; the first of these where
# the prior fits; the log-likelihood that confirms it; accesses by the cache's blocks before a model without it
# is tried.
SETTINGS = (0.003, 0.0015, 8.0, 0.25, 2.0, 0.01, 10.0, 16.0)
LEARN_EVERY = 4096  # accesses
SMALL, LARGE = 1000, 32768  # blocks between which ages are absolute


@shared
def _is_known(nodes: Rows, i: int) -> bool:
    code = nodes[ROW * i + CODE]
    return bool(code > 0 or code in (GHOST, LRU_ONLY))


def request(nodes: Rows, numbers: Numbers, sizes: Numbers, reals: Reals, ids: Ids, partial: int) -> int:
    """Local. What `Prefix.request` does, compiled; without ids, rank anew."""
    state = (nodes, numbers, sizes, reals)
    if not ids.size:
        learn_and_rank(state)
        return 0
    known, gap = 0, 0
    for k in range(ids.size - 1, -1, -1):
        i = ids[k]
        mark = nodes[ROW * i + MARK]
        if _is_known(nodes, i):
            known = max(known, k + 1)
            # Not of a block that many sessions share: the last of them has just been here.
            if mark & END and (mark >> USES_AT) & MAX_USES < MAX_USES:
                pause = age_of(numbers, mark)
                gap = 1 + (pause >= SHORT_GAP * numbers[UNIT]) + (pause >= LONG_GAP * numbers[UNIT])
                break
    new = ids.size - known
    features = (new >= NEW_FEW) + (new >= NEW_MANY) << WIDTH_AT | gap << GAP_AT | ASKED
    last_full = max(ids.size - 1 - partial, 0)
    uses = -1
    for k in range(ids.size - 1, -1, -1):
        i = ids[k]
        mark = nodes[ROW * i + MARK]
        known_block = _is_known(nodes, i)
        own = features
        if known_block:
            own |= mark & END
            # What stands before a block was used at least as often: so the ends of earlier requests tell
            # of all blocks between them.
            uses = max(uses, (mark >> USES_AT) & MAX_USES)
        own |= min(uses + 1, MAX_USES) << USES_AT
        if k == last_full:
            own |= END
        if k > last_full:
            own |= LAST
        if known_block:
            use(state, i, True, own)
            if nodes[ROW * i + CODE] > 0:  # young at once, for room may be made before it is touched
                take_out(nodes, i)
                enqueue(state, i)
        else:
            nodes[ROW * i + MARK] = stamped(numbers, own)
    return ids.size


_REQUEST = "int64(int32[::1], int64[::1], int64[::1], float64[::1], int64[::1], int64)"


@cache
def _compiled_request() -> Callable[..., Any]:
    return loop(request, "prefix", _REQUEST)


class Prefix(Policy):
    """Fewest hits for its space first, learned by uses, request, session and age.

    Parameters as `Policy`, and

    watched
        The caller, who recycles ids, gives those from this one on to one block in `watch_rate(capacity)`, by a hash of
        its name, and the others to others: a watched block keeps its id long after it has left, so that of ids that
        go round fewer and fewer would be watched. None: a hash of the id says which are.
    trust
        How many times each observation of the `prior` counts; 0 leaves its factors of the classes.
    """

    name = "prefix"
    has_ghosts = True
    wants_requests = True
    operations = Operations(touch, nothing, insert, take, unlink, relink, gone, drop, trim)
    lists = (*((queue + 1, queue + 1) for queue in range(QUEUES)), (GHOST, GHOST_RING), (LRU_ONLY, LRU_ONLY_RING))

    def __init__(
        self, capacity: int, blocks: int, *, trust: float = 4.0, watched: int | None = None, **options: Any
    ) -> None:
        if not 0.0 <= trust <= 1000.0:
            raise ValueError(f"trust {trust}: it is 0 (nothing but the factors) to 1000, and 4 by default")
        self._trust, self._watched = trust, watched
        super().__init__(capacity, blocks, **options)

    @classmethod
    def most_ghosts(cls, capacity: int) -> int:
        """Local. As many as the cache has blocks, and in small caches more."""
        return cls._ends(capacity) + capacity // cls._compared_rate(capacity)

    @classmethod
    def _ends(cls, capacity: int) -> int:
        return max(capacity, min(GHOSTS_A_BLOCK * capacity, MOST_GHOSTS))

    @classmethod
    def watch_rate(cls, capacity: int) -> int:
        """Local. One block in so many is watched, of size 1: a power of two."""
        rate = max(capacity // 4096, min(capacity // 128, 16), 1)
        return 1 << (rate.bit_length() - 1)

    @classmethod
    def shadow_rate(cls, capacity: int) -> int:
        """Local. One block in so many, of size 1, is compared with LRU, at least those that are watched."""
        return 1 << (max(capacity // 2048, 1).bit_length() - 1) if capacity > 4096 else 1

    @classmethod
    def _compared_rate(cls, capacity: int) -> int:
        return min(cls.shadow_rate(capacity), cls.watch_rate(capacity))

    def _number_count(self, capacity: int, blocks: int) -> int:
        return NUMBERS

    def _real_count(self, blocks: int) -> int:
        return REALS

    def _start(self, capacity: int, blocks: int) -> None:
        numbers, reals = self._numbers, self._reals
        numbers[SAMPLE : SAMPLE + SAMPLES] = -1
        numbers[AS_LRU] = 1
        numbers[WATCHED] = -1 if self._watched is None else self._watched
        numbers[ORDER : ORDER + QUEUES] = numbers[RANK : RANK + QUEUES] = np.arange(QUEUES)
        reals[FACTOR : FACTOR + CLASSES] = prior.factors()
        reals[CURVE : CURVE + AGES] = prior.curve()
        uses, exposures = prior.observations()
        reals[PRIOR_USES : PRIOR_USES + QUEUES] = uses.ravel()
        reals[PRIOR_EXPOSURE : PRIOR_EXPOSURE + QUEUES] = exposures.ravel()

    def _share(self, capacity: int) -> None:
        numbers = self._numbers
        places = max(int(capacity / (self._sizes.mean() if self._sizes.size else 1.0)), 1)
        if not numbers[TICK]:
            numbers[UNIT] = 1 << (places // LARGE).bit_length()
        ages = np.array(EDGES) * min(places, SMALL) // SMALL
        if places > LARGE:  # at most what a time in units can tell
            ages = np.array(EDGES) * min(places, 4 * LARGE * int(numbers[UNIT])) // LARGE
        numbers[EDGE : EDGE + AGES + 1] = np.maximum(ages, np.arange(AGES + 1))
        numbers[STEP] = min(max(places // 16, 4), 512)
        numbers[EVERY] = LEARN_EVERY
        self._reals[MAY_LOSE : FIRST + 1] = SETTINGS
        numbers[RATE] = self.watch_rate(places)
        numbers[GHOST_SHARE] = self._ends(places)
        rate, width = self._compared_rate(places), max(places // 512 // int(numbers[UNIT]), 1)
        numbers[MISSING_SHARE] = places // rate
        if (rate, width) != (numbers[SHADOW_RATE], numbers[SHADOW_WIDTH]):
            numbers[SHADOW_RATE], numbers[SHADOW_WIDTH] = rate, width
            numbers[SHADOW : SHADOW + SHADOWS] = numbers[SHADOW_COUNT] = 0
            numbers[SHADOW_OLDEST] = numbers[TICK] // numbers[UNIT] // width
        if not numbers[TICK]:
            self._reals[TRUST] = self._trust / numbers[RATE]  # the prior has seen every block, not one in RATE
        _compiled_request()(*self._state, np.empty(0, np.int64), 0)

    def request(self, ids: ArrayLike, partial: bool = True) -> None:
        """Local. A request for these blocks arrives: the whole of its prefix, in order, resident or not.

        Said before the blocks are touched or inserted; their uses are counted here. Late touches do no harm.

        Parameters
        ----------
        partial
            The last block is not full: it belongs to this request alone, and the one before it is the end
            of what the session's next request will share.
        """
        _compiled_request()(*self._state, self._ids(ids), partial)

    def unasked(self, ids: ArrayLike) -> None:
        """Local. Forget what a request said of those that are neither resident nor remembered."""
        wanted = self._ids(ids)
        self._nodes[ROW * wanted[~self.remembers(wanted)] + MARK] = 0

    def replay(self, ids: ArrayLike, requests: ArrayLike | None = None, partial: ArrayLike = True) -> Mask:
        """Local. Access these ids in order; which were hits, shape (len(ids),).

        Parameters
        ----------
        requests
            The number of blocks of each request, which sum up to len(ids); each is told as by `request`.
        partial
            For each request, or for all of them, whether its last block is not full.
        """
        wanted = self._ids(ids)
        if requests is None:
            return super().replay(wanted)
        lengths = np.asarray(requests, np.int64)
        if lengths.sum() != wanted.size or (lengths.size and lengths.min() < 0):
            raise ValueError(f"{wanted.size:,} ids in requests of {lengths.sum():,} blocks: each id is in one request")
        parts = np.broadcast_to(np.asarray(partial, np.int64), lengths.shape)
        hits = np.empty(wanted.size, np.bool_)
        ask, play, start = _compiled_request(), self._loops.replay, 0
        for length, part in zip(lengths.tolist(), parts.tolist(), strict=True):
            if length:
                here = wanted[start : start + length]
                ask(*self._state, here, part)
                play(*self._state, here, hits[start : start + length])
                start += length
        return hits

    def check(self) -> None:
        """Local. The queues, that each class's hold their ages in order, and that ghosts keep to their share."""
        super().check()
        nodes, numbers = self._nodes, self._numbers
        expect("ghosts", sum(1 for _ in self.ring(GHOST_RING)), numbers[GHOSTS])
        expect("ghosts within their share", numbers[GHOSTS] <= numbers[GHOST_SHARE], True)
        expect("ghosts that LRU would have", sum(1 for _ in self.ring(LRU_ONLY_RING)), numbers[MISSING])
        expect("ranks", numbers[RANK + numbers[ORDER : ORDER + QUEUES]].tolist(), list(range(QUEUES)))
        for queue in {int(code) - 1 for code in self._codes() if code > 0}:
            for i in self.ring(queue + 1):
                mark = int(nodes[ROW * i + MARK])
                fields = (mark & LAST, mark >> USES_AT & MAX_USES, mark >> WIDTH_AT & 3, mark >> GAP_AT & 3)
                expect(f"class of block {i}", class_number(*fields), queue // AGES)
            k = int(numbers[RANK + queue])
            expect(f"the bit of queue {queue}", int(numbers[BITS + (k >> 6)]) >> (k & 63) & 1, 1)
