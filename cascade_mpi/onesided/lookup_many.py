"""Many keys looked up at once: exactly, or by fingerprint only.

Covers lengths, descriptors and presence. Does not cover payloads (`read_many`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import load64, memcpy, prefetch, store8
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import (
    BUCKET_BYTES,
    BUCKET_WORDS,
    DESCRIPTOR_BYTES,
    O_LENGTH,
    descriptor_address,
    field,
    fingerprint_of,
    fits,
    is_cell_of,
    page_of,
    place,
    rank_of,
    set_field,
)
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.batch import (
    BATCH,
    CANDIDATE,
    NONE,
    W_DESCRIPTOR,
    W_STATE,
    W_WORD,
    WORK_WORDS,
    begin_batch,
    choose_candidates,
    flush_flagged,
)
from cascade_mpi.onesided.mpi import DATA, INDEX
from cascade_mpi.onesided.read import get_named
from cascade_mpi.onesided.words import DESCRIBE, expired

_U = np.uint64
_ZERO = _U(0)
_AHEAD = 16  # buckets that are asked for before they are read


@device
def _describe_chunk(ctx, s, keys, n, descriptors, results, work, flags):  # type: ignore[no-untyped-def]
    begin_batch(n, work)
    rc = choose_candidates(ctx, keys, n, work, flags)
    if rc != 0:
        return mpi.failed(s, rc)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        word = load64(w + W_WORD * 8)
        if field(w, W_STATE) == CANDIDATE:
            rank, page = rank_of(word), page_of(word)
            base = mpi.base(ctx, c.DATA_BASES, rank)
            if base != 0:
                memcpy(w + W_DESCRIPTOR * 8, descriptor_address(ctx, base, page), DESCRIPTOR_BYTES)
            else:
                at = field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES
                rc = mpi.get(ctx, w + W_DESCRIPTOR * 8, DESCRIPTOR_BYTES, rank, at, DATA)
                if rc != 0:
                    return mpi.failed(s, rc)
                set_field(flags, rank, 1)
    rc = flush_flagged(ctx, flags, DATA)
    if rc != 0:
        return mpi.failed(s, rc)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
        state, outcome = field(w, W_STATE), np.int64(c.MISS)
        descriptor = w + W_DESCRIPTOR * 8
        word = load64(w + W_WORD * 8)
        length = np.int64(load64(descriptor + O_LENGTH))
        if (
            state == CANDIDATE
            and is_cell_of(descriptor, word, hi, lo)
            and fits(ctx, word, length)
            and not expired(ctx, s, descriptor)
        ):
            # No second look at the word: it named this generation when the bucket was read, and the
            # descriptor says which key that generation is. That is all a `contains` promises.
            outcome = length
        elif state != NONE:
            descriptor = s + c.DESCRIPTOR_COPY * 8
            outcome, _, _ = get_named(ctx, s, hi, lo, np.int64(0), np.int64(0), np.int64(0), np.int64(DESCRIBE))
            if outcome == c.MPI_FAILED:
                return outcome
        if descriptors != 0 and outcome >= 0:
            memcpy(descriptors + i * DESCRIPTOR_BYTES, descriptor, DESCRIPTOR_BYTES)
        set_field(results, i, outcome)
    return np.int64(0)


@kernel("int64(int64,int64,int64,int64,int64,int64,int64,int64)")
def describe_many(ctx, s, keys, n, descriptors, results, work, flags):  # type: ignore[no-untyped-def]
    """Look n keys up exactly: results[i] = length of the block, MISS or CHANGED; its descriptor if asked for.

    2 Gets a key that is there, 1 for one that is not; one Flush per target and phase for each BATCH keys.
    """
    done = np.int64(0)
    while done < n:
        step = min(n - done, BATCH)
        into = np.int64(0) if descriptors == 0 else descriptors + done * DESCRIPTOR_BYTES
        rc = _describe_chunk(ctx, s, keys + 16 * done, step, into, results + 8 * done, work, flags)
        if rc != 0:
            return rc
        done += step
    mpi.poll(ctx, s)
    return np.int64(0)


@kernel("int64(int64,int64,int64,int64,int64,int64,int64)")
def probe_many(ctx, s, keys, n, results, work, flags):  # type: ignore[no-untyped-def]
    """Look n keys up by fingerprint only: results[i] = 1 or 0 (uint8). 1 Get a key, one Flush per home and BATCH."""
    ranks, buckets = field(ctx, c.RANKS), field(ctx, c.BUCKETS)
    start = np.int64(0)
    while start < n:
        stop = min(start + BATCH, n)
        remote = np.int64(0)
        for i in range(start, min(start + _AHEAD, stop)):
            _prefetch_bucket(ctx, keys + 16 * i, ranks, buckets)
        for i in range(start, stop):
            if i + _AHEAD < stop:
                _prefetch_bucket(ctx, keys + 16 * (i + _AHEAD), ranks, buckets)
            home, bucket, fp = place(load64(keys + 16 * i), load64(keys + 16 * i + 8), ranks, buckets)
            base = mpi.base(ctx, c.INDEX_BASES, home)
            if base != 0:
                store8(results + i, _holds(base + bucket * BUCKET_BYTES, fp))
            else:
                rc = mpi.get(ctx, work + remote * BUCKET_BYTES, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
                if rc != 0:
                    return mpi.failed(s, rc)
                set_field(flags, home, 1)
                remote += 1
        if remote > 0:
            rc = flush_flagged(ctx, flags, INDEX)
            if rc != 0:
                return mpi.failed(s, rc)
            remote = np.int64(0)
            for i in range(start, stop):
                home, _, fp = place(load64(keys + 16 * i), load64(keys + 16 * i + 8), ranks, buckets)
                if mpi.base(ctx, c.INDEX_BASES, home) == 0:
                    store8(results + i, _holds(work + remote * BUCKET_BYTES, fp))
                    remote += 1
        start = stop
    mpi.poll(ctx, s)
    return np.int64(0)


@device
def _prefetch_bucket(ctx, key, ranks, buckets):  # type: ignore[no-untyped-def]
    home, bucket, _ = place(load64(key), load64(key + 8), ranks, buckets)
    base = mpi.base(ctx, c.INDEX_BASES, home)
    if base != 0:
        prefetch(base + bucket * BUCKET_BYTES)
        prefetch(base + bucket * BUCKET_BYTES + 64)


@device
def _holds(bucket_at, fp):  # type: ignore[no-untyped-def]
    found = _ZERO
    for i in range(BUCKET_WORDS - 1, -1, -1):  # downwards, as in read_bucket_mapped
        word = load64(bucket_at + i * 8)
        if word != _ZERO and fingerprint_of(word) == fp:
            found = _U(1)
    return found
