"""Reading the copy that this node has of a block of another one.

Covers when such a copy counts: its word, its descriptor, its origin. Does not cover when one is made (`claims`) nor
who makes it (`cascade_mpi.copies`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import load64, load_relaxed, memcpy, store8, store64, store_relaxed
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import (
    BUCKET_BYTES,
    DESCRIPTOR_BYTES,
    O_LENGTH,
    O_ORIGIN,
    O_SEQUENCE,
    checksum_holds,
    copy_then_reload,
    count,
    descriptor_address,
    field,
    fits,
    in_arena,
    in_bounds,
    is_cell_of,
    is_copy,
    is_fixed,
    match_from,
    page_of,
    payload_address,
    rank_of,
    read_bucket_mapped,
    same_cell,
    set_field,
)
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.hints import note_touch
from cascade_mpi.onesided.mpi import DATA
from cascade_mpi.onesided.words import DESCRIBE_ANY, RANGE, WHOLE, expired, place_copy

_U = np.uint64
_ZERO = _U(0)


@device
def get_copy(ctx, s, hi, lo, target, room, offset, what, origin, began):  # type: ignore[no-untyped-def]
    """Read a copy that this node has: bytes, or MISS where none counts (the block is read the long way), MPI_FAILED.

    `origin` is the word with which the index named the block after this read began: a copy of anything else is
    stale. 0: nobody has looked; then only blocks count whose key determines the content. No MPI call, but see
    `_origin_stays`.
    """
    rank, bucket, fp = place_copy(ctx, hi, lo)
    table = mpi.base(ctx, c.INDEX_BASES, rank)
    words, descriptor = s + c.COPIES_COPY * 8, s + c.DESCRIPTOR_COPY * 8
    read_bucket_mapped(table, bucket, words)
    slot = match_from(words, 0, fp)
    while slot >= 0:
        word = load64(words + slot * 8)
        data = np.int64(0)
        if in_bounds(ctx, word) and in_arena(word):
            data = mpi.base(ctx, c.DATA_BASES, rank_of(word))
        if data != 0:
            memcpy(descriptor, descriptor_address(ctx, data, page_of(word)), DESCRIPTOR_BYTES)
            if is_cell_of(descriptor, word, hi, lo) and is_copy(descriptor):
                at = bucket * BUCKET_BYTES + slot * 8
                seen_at = table + field(ctx, c.COPY_BUCKETS) * BUCKET_BYTES + at
                outcome = _read_copy(
                    ctx, s, hi, lo, target, room, offset, what, origin, began, word, data, table + at, seen_at
                )
                if outcome != c.MISS:
                    set_field(s, c.HOME, rank)
                    set_field(s, c.BUCKET, bucket)
                    set_field(s, c.SLOT, slot)
                    return outcome
        slot = match_from(words, slot + 1, fp)
    return np.int64(c.MISS)


@device
def _read_copy(  # type: ignore[no-untyped-def]
    ctx, s, hi, lo, target, room, offset, what, origin, began, word, data, word_at, seen_at
):  # fmt: skip
    descriptor = s + c.DESCRIPTOR_COPY * 8
    length, made_from = np.int64(load64(descriptor + O_LENGTH)), load64(descriptor + O_ORIGIN)
    if not fits(ctx, word, length):
        return np.int64(c.MISS)
    if expired(ctx, s, descriptor):
        return np.int64(c.MISS)  # so is the block, unless it was put again: its own word says
    set_field(s, c.COPY_ASKED, 0)
    if not is_fixed(descriptor):
        if origin == _ZERO:
            return np.int64(c.MISS)
        stays = same_cell(made_from, origin)  # whose hard bit may have been toggled since
        if stays:
            rc, stays = _origin_stays(ctx, s, hi, lo, origin, descriptor, seen_at, began)
            if rc != 0:
                return mpi.failed(s, rc)
        if not stays:
            count(s, c.C_STALE_COPIES, 1)
            _drop_hint(ctx, data, word)
            return np.int64(c.MISS)
    nbytes = room
    if what == DESCRIBE_ANY:
        nbytes = np.int64(0)
    elif (what == WHOLE and room != length) or (what == RANGE and room > length - offset):
        return np.int64(c.MISS)  # the block itself is asked, and says so
    # The word of the copy leaves before its bytes change: unchanged behind the payload, they were the copy's.
    again = copy_then_reload(target, payload_address(ctx, data, page_of(word)) + offset, nbytes, word_at, ctx)
    if again != word:
        count(s, c.C_RETRIES, 1)
        return np.int64(c.MISS)
    if field(ctx, c.VERIFY) and what == WHOLE and not checksum_holds(descriptor, target, room):
        _drop_hint(ctx, data, word)
        return np.int64(c.MISS)
    set_field(s, c.LENGTH, length)
    store64(s + c.WORD * 8, word)
    if what == DESCRIBE_ANY:
        return length
    count(s, c.C_COPY_HITS, 1)
    count(s, c.C_COPY_BYTES, room)
    asked = field(s, c.COPY_ASKED) != 0 or field(ctx, c.POLL) != 0
    if not asked and (origin == _ZERO or mpi.base(ctx, c.INDEX_BASES, field(s, c.HOME)) != 0):
        count(s, c.C_COPY_FREE, 1)
    note_touch(ctx, s, made_from)  # or its manager would take a block for cold that all others read from copies
    return room


@device
def _origin_stays(ctx, s, hi, lo, origin, descriptor, seen_at, began):  # type: ignore[no-untyped-def]
    """(rc, is the index word that was just read still that of the block that was copied?).

    A word comes back when its cell has passed through all generations. So who has not seen it for half of an
    attempt's time asks the cell: a sequence number never comes back. 1 Get + 1 Flush then.
    """
    if np.int64(began) - np.int64(load_relaxed(seen_at)) > field(ctx, c.ATTEMPT) // 2:
        rank, asked = rank_of(origin), s + c.ORIGIN_COPY * 8
        at = field(ctx, c.DESCRIPTOR_AT) + page_of(origin) * DESCRIPTOR_BYTES
        rc = mpi.get(ctx, asked, DESCRIPTOR_BYTES, rank, at, DATA)
        if rc == 0:
            rc = mpi.flush(ctx, rank, DATA)
        if rc != 0:
            return rc, False
        set_field(s, c.COPY_ASKED, 1)
        if not is_cell_of(asked, origin, hi, lo) or load64(asked + O_SEQUENCE) != load64(descriptor + O_SEQUENCE):
            return np.int64(0), False
    store_relaxed(seen_at, began)
    return np.int64(0), True


@device
def _drop_hint(ctx, data, word):  # type: ignore[no-untyped-def]
    """Tell the manager of a copy that its origin has changed: its sweep takes the copy out."""
    store8(data + field(ctx, c.GONE_AT) + page_of(word), 1)


@kernel("void(int64,int64,int64,int64,int64,int64)")
def note_origin(ctx, s, rank, bucket, slot, tick):  # type: ignore[no-untyped-def]
    """Note beside a word of the copy table when its origin was seen in the index."""
    at = (bucket + field(ctx, c.COPY_BUCKETS)) * BUCKET_BYTES + slot * 8
    store_relaxed(mpi.base(ctx, c.INDEX_BASES, rank) + at, _U(tick))
