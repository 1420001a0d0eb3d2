"""Compare-and-swaps of index words: publish, remove, toggle.

Covers the swap and the barriers around it. Does not cover the order of a put, a delete and a reclaim (`writer`,
`cells`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import call_int, fence_seq_cst, load64, store64
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import BUCKET_BYTES, BUCKET_WORDS, field, fingerprint_of
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.mpi import INDEX
from cascade_mpi.onesided.words import read_bucket

_U = np.uint64
_ZERO = _U(0)


@device
def _cas(ctx, s, home, offset, old, new):  # type: ignore[no-untyped-def]
    """(rc, the word that was there)."""
    store64(s + c.COMPARE * 8, old)
    store64(s + c.ORIGIN * 8, new)
    at = mpi.displacement(ctx, c.INDEX_BASES, home, offset)
    kind, win = field(ctx, c.UINT64), field(ctx, c.INDEX_WIN)
    rc = np.int64(
        call_int(field(ctx, c.CAS), (s + c.ORIGIN * 8, s + c.COMPARE * 8, s + c.RESULT * 8, kind, home, at, win))
    )
    if rc == 0:
        rc = mpi.flush(ctx, home, INDEX)
    return rc, load64(s + c.RESULT * 8)


@kernel("int64(int64,int64,int64,int64,int64,uint64,uint64)")
def publish(ctx, s, home, bucket, slot, old, new):  # type: ignore[no-untyped-def]
    """CAS `old` to `new`, then Get the bucket again: CHANGED if the CAS lost, else the other words of its fingerprint.

    1 CAS + 1 Get + 2 Flushes.
    """
    # All of the cell before its word (write_cell has fenced; a payload copied by other threads has too).
    fence_seq_cst()
    rc, seen = _cas(ctx, s, home, bucket * BUCKET_BYTES + slot * 8, old, new)
    if rc != 0:
        return mpi.failed(s, rc)
    if seen != old:
        return np.int64(c.CHANGED)
    # The own word before the look at the others': of two putters of one key at least one must see both.
    fence_seq_cst()
    rc = read_bucket(ctx, s, home, bucket)
    if rc != 0:
        return mpi.failed(s, rc)
    others = np.int64(0)
    for i in range(BUCKET_WORDS):
        word = load64(s + (c.BUCKET_COPY + i) * 8)
        if word not in (_ZERO, new) and fingerprint_of(word) == fingerprint_of(new):
            others += 1
    return others


@kernel("int64(int64,int64,int64,int64,int64,uint64)")
def remove(ctx, s, home, bucket, slot, word):  # type: ignore[no-untyped-def]
    """CAS a word away: 1 if this call did it, 0 if it had changed. 1 CAS + 1 Flush."""
    rc, seen = _cas(ctx, s, home, bucket * BUCKET_BYTES + slot * 8, word, _ZERO)
    if rc != 0:
        return mpi.failed(s, rc)
    # The removal before the look at the pins: store-load, so a full barrier on every machine.
    fence_seq_cst()
    return np.int64(seen == word)


@kernel("int64(int64,int64,int64,int64,int64,uint64,uint64)")
def swap(ctx, s, home, bucket, slot, old, new):  # type: ignore[no-untyped-def]
    """CAS `old` to `new`, the same word with the other hard bit: 1 if this call did it, 0 if it had changed.

    1 CAS + 1 Flush.
    """
    rc, seen = _cas(ctx, s, home, bucket * BUCKET_BYTES + slot * 8, old, new)
    if rc != 0:
        return mpi.failed(s, rc)
    fence_seq_cst()  # the word before the hint that it has changed
    return np.int64(seen == old)
