"""Index words and descriptors, read wherever they lie; what a get asks for, and the clock of all calls.

Covers one look at a bucket, a word or a descriptor, into the scratch, and whether a block has expired. Does not
cover what follows from what was seen (`read`, `lookup`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import call_int, fence_acquire, load32, load64, load_acquire, memcpy
from cascade_mpi.kernels.jit import device
from cascade_mpi.kernels.probe import (
    BUCKET_BYTES,
    DESCRIPTOR_BYTES,
    O_EXPIRY,
    descriptor_address,
    field,
    page_of,
    place,
    rank_of,
    read_bucket_mapped,
)
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.mpi import DATA, INDEX

# What a get fetches. DESCRIBE_ANY may find a copy of this node; FETCH is WHOLE, whoever else is about to fetch it.
WHOLE, RANGE, DESCRIBE, DESCRIBE_ANY, FETCH = 0, 1, 2, 3, 4
TICKS = 1000  # a second: touches are a u32, so a store may be open for 49 days before they come round
REALTIME_COARSE = 5  # Linux' clock id: of the last timer interrupt, 1 to 4 ms ago; a quarter of the precise one's cost


@device
def ticks(ctx, s):  # type: ignore[no-untyped-def]
    """Ticks since the store was opened."""
    call_int(field(ctx, c.CLOCK), (np.int64(REALTIME_COARSE), s + c.TIMESPEC * 8))
    seconds, nanoseconds = field(s, c.TIMESPEC) - field(ctx, c.EPOCH), field(s, c.TIMESPEC + 1)
    return np.uint64(seconds * TICKS + nanoseconds // (1_000_000_000 // TICKS))


@device
def place_copy(ctx, hi, lo):  # type: ignore[no-untyped-def]
    """(rank, bucket in its index window, fingerprint) of a key in the copy table of this node."""
    at, bucket, fp = place(hi, lo, field(ctx, c.COPY_RANKS), field(ctx, c.COPY_BUCKETS))
    return field(field(ctx, c.COPY_RANKS_AT), at), field(ctx, c.BUCKETS) + bucket, fp


@device
def base_remote(ctx, word):  # type: ignore[no-untyped-def]
    """True if the memory that the word names is not mapped here."""
    return mpi.base(ctx, c.DATA_BASES, rank_of(word)) == 0


@device
def read_bucket(ctx, s, home, bucket):  # type: ignore[no-untyped-def]
    """The bucket into the scratch: 1 Get + 1 Flush."""
    base = mpi.base(ctx, c.INDEX_BASES, home)
    copy_to = s + c.BUCKET_COPY * 8
    if base != 0:
        read_bucket_mapped(base, bucket, copy_to)
        return np.int64(0)
    rc = mpi.get(ctx, copy_to, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
    return rc if rc != 0 else mpi.flush(ctx, home, INDEX)


@device
def reload_word(ctx, s, home, bucket, slot):  # type: ignore[no-untyped-def]
    """(rc, word): the word as it is now, after everything that was read before. 1 Get + 1 Flush."""
    at = bucket * BUCKET_BYTES + slot * 8
    base = mpi.base(ctx, c.INDEX_BASES, home)
    if base != 0:
        fence_acquire()
        return np.int64(0), load_acquire(base + at)
    rc = mpi.get(ctx, s + c.RELOADED * 8, 8, home, at, INDEX)
    if rc == 0:
        rc = mpi.flush(ctx, home, INDEX)
    return rc, load64(s + c.RELOADED * 8)


@device
def read_descriptor(ctx, s, word):  # type: ignore[no-untyped-def]
    """The descriptor of a word that is in bounds into the scratch: 1 Get + 1 Flush."""
    rank, page = rank_of(word), page_of(word)
    base = mpi.base(ctx, c.DATA_BASES, rank)
    copy_to = s + c.DESCRIPTOR_COPY * 8
    if base != 0:
        memcpy(copy_to, descriptor_address(ctx, base, page), DESCRIPTOR_BYTES)
        return np.int64(0)
    rc = mpi.get(ctx, copy_to, DESCRIPTOR_BYTES, rank, field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES, DATA)
    return rc if rc != 0 else mpi.flush(ctx, rank, DATA)


@device
def expired(ctx, s, descriptor):  # type: ignore[no-untyped-def]
    """Is the block of this copy of a descriptor a miss by this rank's clock?"""
    expiry = np.int64(load32(descriptor + O_EXPIRY))
    # Signed: a clock that is behind the opening one's is at less than 0, which is before everything.
    return expiry != 0 and np.int64(ticks(ctx, s)) >= expiry * TICKS
