"""The words of one key, for writers: all of them, or the slot of one.

Covers the index and the node's copy table. Does not cover what is swapped then (`swaps`) nor several keys
(`lookup_many`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import load64, store64
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import (
    BUCKET_WORDS,
    O_LENGTH,
    O_SEQUENCE,
    count,
    field,
    fingerprint_of,
    in_bounds,
    is_cell_of,
    place,
    same_cell,
    set_field,
)
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.words import expired, place_copy, read_bucket, read_descriptor, reload_word

_U = np.uint64
_ZERO = _U(0)
_LOOKUP_ATTEMPTS = 1000  # a writer looks again until the bucket holds still


@device
def _find(ctx, s, home, bucket, fp, hi, lo, skip):  # type: ignore[no-untyped-def]
    set_field(s, c.HOME, home)
    set_field(s, c.BUCKET, bucket)
    words = s + c.BUCKET_COPY * 8
    for _ in range(_LOOKUP_ATTEMPTS):
        rc = read_bucket(ctx, s, home, bucket)
        if rc != 0:
            return mpi.failed(s, rc)
        free, found, live, changed = np.int64(-1), np.int64(0), np.int64(0), False
        highest = _ZERO
        for slot in range(BUCKET_WORDS):
            word = load64(words + slot * 8)
            if word == _ZERO:
                if free < 0:
                    free = np.int64(slot)
                continue
            if fingerprint_of(word) != fp:
                continue
            if not in_bounds(ctx, word):
                count(s, c.C_BAD_WORDS, 1)
                continue
            if word != skip:
                rc = read_descriptor(ctx, s, word)
                if rc != 0:
                    return mpi.failed(s, rc)
                if not is_cell_of(s + c.DESCRIPTOR_COPY * 8, word, hi, lo):
                    # The word decides: unchanged, it is another key's; changed, the key may have moved.
                    rc, again = reload_word(ctx, s, home, bucket, slot)
                    if rc != 0:
                        return mpi.failed(s, rc)
                    if again != word:
                        changed = True
                        break
                    continue
            length = _ZERO
            if word != skip:
                length = load64(s + c.DESCRIPTOR_COPY * 8 + O_LENGTH)
                sequence = load64(s + c.DESCRIPTOR_COPY * 8 + O_SEQUENCE)
                highest = max(highest, sequence)
            if found == 0 and (word == skip or not expired(ctx, s, s + c.DESCRIPTOR_COPY * 8)):
                live = np.int64(1)
            set_field(s, c.FOUND_WORDS + 2 * found, slot)
            store64(s + (c.FOUND_WORDS + 2 * found + 1) * 8, word)
            store64(s + (c.FOUND_LENGTHS + found) * 8, length)
            found += 1
        if not changed:
            set_field(s, c.FOUND, found)
            set_field(s, c.FOUND_LIVE, live)
            set_field(s, c.FREE_SLOT, free)
            store64(s + c.FOUND_SEQUENCE * 8, highest)
            return found
        count(s, c.C_RETRIES, 1)
    return np.int64(c.CHANGED)


@device
def _slot_in(ctx, s, home, bucket, word):  # type: ignore[no-untyped-def]
    set_field(s, c.HOME, home)
    set_field(s, c.BUCKET, bucket)
    rc = read_bucket(ctx, s, home, bucket)
    if rc != 0:
        return mpi.failed(s, rc)
    for slot in range(BUCKET_WORDS):
        there = load64(s + (c.BUCKET_COPY + slot) * 8)
        if same_cell(there, word):
            store64(s + c.WORD * 8, there)
            return np.int64(slot)
    return np.int64(c.MISS)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def find(ctx, s, hi, lo, skip):  # type: ignore[no-untyped-def]
    """Every word of a key, for put, delete and protect: their number; (slot, word) pairs, the blocks' lengths, HOME,
    BUCKET, FREE_SLOT, FOUND_LIVE, FOUND_SEQUENCE in the scratch.

    `skip` is a word that is known to be the key's (0: none). 1 Get + 1 Flush, and as much for each match.
    """
    home, bucket, fp = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
    return _find(ctx, s, home, bucket, fp, hi, lo, skip)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def slot_of(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """The slot in which a word of this key stands now, or MISS. 1 Get + 1 Flush.

    The word as it stands there is WORD in the scratch: somebody may have toggled its hard bit.
    """
    home, bucket, _ = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
    return _slot_in(ctx, s, home, bucket, word)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def find_copies(ctx, s, hi, lo, skip):  # type: ignore[no-untyped-def]
    """As `find`, in the copy table of this node. No MPI call."""
    rank, bucket, fp = place_copy(ctx, hi, lo)
    return _find(ctx, s, rank, bucket, fp, hi, lo, skip)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def slot_of_copy(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """As `slot_of`, in the copy table of this node. No MPI call."""
    rank, bucket, _ = place_copy(ctx, hi, lo)
    return _slot_in(ctx, s, rank, bucket, word)
