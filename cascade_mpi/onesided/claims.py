"""Which blocks of other nodes are to be copied, and which rank of this node does it.

Covers the counts of remote reads and the claims of those who are about to fetch a block. Does not cover the copies
themselves (`copies` here and in `cascade_mpi`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import fence_seq_cst, load8, load64, load_relaxed, store8, store64, store_relaxed
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import BUCKET_BYTES, field, is_hard, set_field
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.words import FETCH, TICKS, WHOLE, base_remote, place_copy, ticks

_U = np.uint64
_ZERO = _U(0)
_MIX = _U(0x9E3779B97F4A7C15)
CLAIM_TICKS = 2 * TICKS  # a claim that is older counts nothing: who made it is late, or gave up


@device
def _key_mix(hi, lo):  # type: ignore[no-untyped-def]
    return (lo ^ (hi * _MIX)) * _MIX


@device
def _counters_of(ctx, hi, lo):  # type: ignore[no-untyped-def]
    """Addresses of the two counters of a key; the smaller one counts."""
    mixed, first = _key_mix(hi, lo), field(ctx, c.READ_COUNTS) + 8
    last = _U(c.READ_COUNT_BYTES - 1)
    return first + np.int64((mixed >> _U(48)) & last), first + np.int64((mixed >> _U(24)) & last)


@device
def _is_next(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """Is the block to be copied with the next remote read?"""
    if is_hard(word) or field(s, c.KEEP_ALL):
        return True
    one, other = _counters_of(ctx, hi, lo)
    return np.int64(min(load8(one), load8(other))) + 1 >= field(ctx, c.COPY_AFTER)


@device
def is_due(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """Count a remote read of a block; is it to be copied now? Threads may lose each other's counts: they are hints."""
    counts = field(ctx, c.READ_COUNTS)
    reads = load64(counts) + _U(1)
    if reads >= _U(c.READ_COUNT_BYTES):  # what was read long ago counts half
        reads = _ZERO
        for at in range(counts + 8, counts + 8 + c.READ_COUNT_BYTES, 8):
            store64(at, (load64(at) >> _U(1)) & _U(0x7F7F7F7F7F7F7F7F))
    store64(counts, reads)
    due = _is_next(ctx, s, hi, lo, word)
    one, other = _counters_of(ctx, hi, lo)
    smaller = min(load8(one), load8(other))
    for at in (one, other):
        if due:
            store8(at, 0)  # should the copy go, it is earned anew
        elif load8(at) == smaller:
            store8(at, smaller + _U(1))
    return due


@device
def _claim_tag(hi, lo):  # type: ignore[no-untyped-def]
    return (_key_mix(hi, lo) >> _U(32)) | _U(1)  # no claim is 0


@device
def _claim_at(ctx, hi, lo):  # type: ignore[no-untyped-def]
    rank, bucket, _ = place_copy(ctx, hi, lo)
    first = (field(ctx, c.BUCKETS) + 2 * field(ctx, c.COPY_BUCKETS)) * BUCKET_BYTES
    return mpi.base(ctx, c.INDEX_BASES, rank) + first + (bucket - field(ctx, c.BUCKETS)) * 8


@device
def claim(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """False if another rank of this node is about to fetch and copy the block: its bytes leave the owner once a node.

    A claim is `tag 32 | rank 12 | tick 20`, written without an atomic: a hint. Where two are made at once both fetch.
    """
    set_field(s, c.CLAIMING, 0)
    if not _is_next(ctx, s, hi, lo, word):
        return True
    at, tag, rank = _claim_at(ctx, hi, lo), _claim_tag(hi, lo), _U(field(ctx, c.RANK))
    tick = ticks(ctx, s) & _U(0xFFFFF)
    mine = (tag << _U(32)) | (rank << _U(20)) | tick
    for look in range(2):
        seen = load_relaxed(at)
        others = (seen >> _U(32)) == tag and ((seen >> _U(20)) & _U(0xFFF)) != rank
        if others and ((tick - seen) & _U(0xFFFFF)) <= _U(CLAIM_TICKS):
            return False
        if look == 0:
            store_relaxed(at, mine)
            fence_seq_cst()
    set_field(s, c.CLAIMING, 1)
    return True


@device
def drop_claim(ctx, hi, lo):  # type: ignore[no-untyped-def]
    """Take the claim on a block back, if it is still this rank's."""
    at = _claim_at(ctx, hi, lo)
    seen = load_relaxed(at)
    if (seen >> _U(32)) == _claim_tag(hi, lo) and ((seen >> _U(20)) & _U(0xFFF)) == _U(field(ctx, c.RANK)):
        store_relaxed(at, _ZERO)


@device
def then_copy(ctx, s, hi, lo, outcome, what):  # type: ignore[no-untyped-def]
    """DUE in the place of bytes that were read from another node and are to be copied; else the claim ends."""
    if field(ctx, c.COPY_BUCKETS) == 0:
        return outcome
    whole = outcome >= 0 and what in (WHOLE, FETCH)
    if whole and base_remote(ctx, load64(s + c.WORD * 8)) and is_due(ctx, s, hi, lo, load64(s + c.WORD * 8)):
        return np.int64(c.DUE)
    if field(s, c.CLAIMING):
        drop_claim(ctx, hi, lo)
    return outcome


@kernel("void(int64,int64,uint64,uint64)")
def end_claim(ctx, s, hi, lo):  # type: ignore[no-untyped-def]
    """The block that this rank was about to copy is copied, or will not be: who waits for it goes on."""
    drop_claim(ctx, hi, lo)
