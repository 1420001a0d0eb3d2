"""The work area of a batch, one record a key, and its first phase: the buckets and who may be followed.

Covers what `read_many` and `lookup_many` share. Does not cover descriptors and payloads.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import load64, prefetch, store64
from cascade_mpi.kernels.jit import device
from cascade_mpi.kernels.probe import (
    BUCKET_BYTES,
    descriptor_address,
    field,
    in_bounds,
    is_alias,
    match_from,
    page_of,
    place,
    rank_of,
    read_bucket_mapped,
    set_field,
)
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.mpi import INDEX

BATCH = 256  # keys between two flushes: queues of the network stay short
# Work area of a batch: one record per key.
W_STATE, W_HOME, W_BUCKET, W_SLOT, W_WORD, W_AGAIN, W_CLAIMING = 0, 1, 2, 3, 4, 5, 6
W_BUCKET_COPY, W_DESCRIPTOR, WORK_WORDS = 8, 24, 40
NONE, CANDIDATE, SLOW, DONE = 0, 1, 3, 4


@device
def begin_batch(n, work):  # type: ignore[no-untyped-def]
    """Nothing is known of any key."""
    for i in range(n):
        set_field(work + i * WORK_WORDS * 8, W_STATE, NONE)


@device
def flush_flagged(ctx, flags, what):  # type: ignore[no-untyped-def]
    """One Flush for each target that has something under way."""
    for rank in range(field(ctx, c.RANKS)):
        if field(flags, rank):
            rc = mpi.flush(ctx, rank, what)
            if rc != 0:
                return rc
            set_field(flags, rank, 0)
    return np.int64(0)


@device
def choose_candidates(ctx, keys, n, work, flags):  # type: ignore[no-untyped-def]
    """Phase 1: every bucket into its record, one Flush per home; then the first candidate of each key."""
    ranks, buckets = field(ctx, c.RANKS), field(ctx, c.BUCKETS)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) == DONE:
            continue
        home, bucket, _ = place(load64(keys + 16 * i), load64(keys + 16 * i + 8), ranks, buckets)
        set_field(w, W_HOME, home)
        set_field(w, W_BUCKET, bucket)
        base = mpi.base(ctx, c.INDEX_BASES, home)
        if base != 0:
            prefetch(base + bucket * BUCKET_BYTES)
            prefetch(base + bucket * BUCKET_BYTES + 64)
        else:
            rc = mpi.get(ctx, w + W_BUCKET_COPY * 8, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
            if rc != 0:
                return rc
            set_field(flags, home, 1)
    rc = flush_flagged(ctx, flags, INDEX)
    if rc != 0:
        return rc
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) == DONE:
            continue
        _, _, fp = place(load64(keys + 16 * i), load64(keys + 16 * i + 8), ranks, buckets)
        base = mpi.base(ctx, c.INDEX_BASES, field(w, W_HOME))
        if base != 0:
            read_bucket_mapped(base, field(w, W_BUCKET), w + W_BUCKET_COPY * 8)
        slot = match_from(w + W_BUCKET_COPY * 8, 0, fp)
        set_field(w, W_SLOT, slot)
        set_field(w, W_STATE, NONE)
        if slot >= 0:
            word = load64(w + (W_BUCKET_COPY + slot) * 8)
            store64(w + W_WORD * 8, word)
            # An alias is two look-ups: one by one.
            set_field(w, W_STATE, CANDIDATE if in_bounds(ctx, word) and not is_alias(word) else SLOW)
            if in_bounds(ctx, word):
                data = mpi.base(ctx, c.DATA_BASES, rank_of(word))
                if data != 0:
                    prefetch(descriptor_address(ctx, data, page_of(word)))
                    prefetch(descriptor_address(ctx, data, page_of(word)) + 64)
    return np.int64(0)
