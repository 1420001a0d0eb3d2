"""The read of one block: from its bucket to the second look at its word.

Covers every way to it: mapped memory or MPI, an alias, a copy of this node, a pin. Does not cover several blocks at
once (`read_many`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.copy import STREAM_BYTES, copy
from cascade_mpi.kernels.intrinsics import fence_acquire, fence_seq_cst, load64, memcpy, store64
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import (
    BUCKET_BYTES,
    DESCRIPTOR_BYTES,
    O_CONTENT_HI,
    O_CONTENT_LO,
    O_LENGTH,
    checksum_holds,
    copy_then_reload,
    count,
    descriptor_address,
    field,
    fits,
    hook,
    in_arena,
    in_bounds,
    is_alias,
    is_cell_of,
    is_disk,
    match_from,
    page_of,
    payload_address,
    place,
    rank_of,
    set_field,
)
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.claims import claim, drop_claim, then_copy
from cascade_mpi.onesided.copies import get_copy
from cascade_mpi.onesided.hints import account, count_hit, note_gone, note_touch
from cascade_mpi.onesided.mpi import DATA
from cascade_mpi.onesided.words import (
    DESCRIBE,
    DESCRIBE_ANY,
    FETCH,
    RANGE,
    WHOLE,
    base_remote,
    expired,
    read_bucket,
    reload_word,
    ticks,
)

_U = np.uint64
_ZERO = _U(0)
_ATTEMPTS = 4  # the first and three more; then the reader pins


@device
def _fetch(ctx, s, word, hi, lo, target, room, offset, what, word_at):  # type: ignore[no-untyped-def]
    """Read the cell that `word` names, if it is the key's: (outcome, word again or 0).

    Outcome: bytes read, MISS for another key's cell, EXPIRED, ALIAS, WRONG_SIZE, ON_DISK, CORRUPT, MPI_FAILED. Nothing
    of it counts before the word was looked at again; where the payload and the word are both mapped (`word_at` not 0)
    that has been done here, behind the copy.
    """
    rank, page = rank_of(word), page_of(word)
    base = mpi.base(ctx, c.DATA_BASES, rank)
    descriptor = s + c.DESCRIPTOR_COPY * 8
    nbytes = np.int64(0)
    if base == 0:
        at = field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES
        rc = mpi.get(ctx, descriptor, DESCRIPTOR_BYTES, rank, at, DATA)
        if rc == 0 and what != DESCRIBE and in_arena(word):
            at = page * field(ctx, c.PAGE_BYTES) + offset
            nbytes = min(room, field(ctx, c.PAGES) * field(ctx, c.PAGE_BYTES) - at)
            if nbytes > 0:
                rc = mpi.get(ctx, target, nbytes, rank, field(ctx, c.ARENA_AT) + at, DATA)
        if rc == 0:
            rc = mpi.flush(ctx, rank, DATA)
        if rc != 0:
            return mpi.failed(s, rc), _ZERO
    else:
        memcpy(descriptor, descriptor_address(ctx, base, page), DESCRIPTOR_BYTES)
    if not is_cell_of(descriptor, word, hi, lo):
        return np.int64(c.MISS), _ZERO
    length = np.int64(load64(descriptor + O_LENGTH))
    set_field(s, c.LENGTH, length)
    if not fits(ctx, word, length):
        return np.int64(c.MISS), _ZERO
    if expired(ctx, s, descriptor):
        return np.int64(c.EXPIRED), _ZERO
    if is_alias(word):
        return np.int64(c.ALIAS), _ZERO
    if what == DESCRIBE:
        return length, _ZERO
    if (what == WHOLE and room != length) or (what == RANGE and room > length - offset):
        return np.int64(c.WRONG_SIZE), _ZERO
    if is_disk(word):
        return np.int64(c.ON_DISK), _ZERO
    again = _ZERO
    if base != 0:
        source = payload_address(ctx, base, page) + offset
        if word_at != 0:
            again = copy_then_reload(target, source, room, word_at, ctx)
        else:
            copy(target, source, room)
            fence_acquire()
    if field(ctx, c.VERIFY) and what == WHOLE and not checksum_holds(descriptor, target, room):
        return np.int64(c.CORRUPT), again
    return room, again


@device
def _get_one(ctx, s, hi, lo, target, room, offset, what):  # type: ignore[no-untyped-def]
    """The whole read of one word: bytes, or MISS, ALIAS, WRONG_SIZE, ON_DISK, CHANGED (pin and read), CORRUPT,
    MPI_FAILED.
    """
    home, bucket, fp = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
    set_field(s, c.HOME, home)
    set_field(s, c.BUCKET, bucket)
    words = s + c.BUCKET_COPY * 8
    index_base = mpi.base(ctx, c.INDEX_BASES, home)
    heed = what == WHOLE
    if what == FETCH:
        what = np.int64(WHOLE)
    copies = field(ctx, c.COPY_BUCKETS) != 0 and what != DESCRIBE
    if copies:
        set_field(s, c.CLAIMING, 0)
        if index_base == 0:
            outcome = get_copy(ctx, s, hi, lo, target, room, offset, what, _ZERO, _ZERO)
            if outcome != c.MISS:
                return outcome
    parts = np.int64(DESCRIBE) if what == DESCRIBE_ANY else what
    for _ in range(_ATTEMPTS):
        began = ticks(ctx, s)
        store64(s + c.BEGAN * 8, began)
        rc = read_bucket(ctx, s, home, bucket)
        if rc != 0:
            return mpi.failed(s, rc)
        changed = False
        slot = match_from(words, 0, fp)
        while slot >= 0:
            word = load64(words + slot * 8)
            if not in_bounds(ctx, word):
                count(s, c.C_BAD_WORDS, 1)  # never follow it
            else:
                word_at = np.int64(0)
                if index_base != 0:
                    word_at = index_base + bucket * BUCKET_BYTES + slot * 8
                if copies and base_remote(ctx, word) and not is_alias(word):
                    outcome = get_copy(ctx, s, hi, lo, target, room, offset, what, word, began)
                    if outcome != c.MISS:
                        if outcome != c.MPI_FAILED and ticks(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):
                            changed = True
                            break
                        return outcome
                    if heed and not is_disk(word) and not claim(ctx, s, hi, lo, word):
                        return np.int64(c.CLAIMED)
                outcome, again = _fetch(ctx, s, word, hi, lo, target, room, offset, parts, word_at)
                if outcome == c.MPI_FAILED:
                    return outcome
                # Any doubt is settled by the word, not by the descriptor: look at it again, match or not.
                if again == _ZERO:
                    hook(ctx, c.H_READER)
                    rc, again = reload_word(ctx, s, home, bucket, slot)
                    if rc != 0:
                        return mpi.failed(s, rc)
                # An attempt that took too long may have slept through all generations of a cell.
                if again != word or ticks(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):
                    changed = True
                    break
                if outcome == c.EXPIRED:
                    if what not in (DESCRIBE, DESCRIBE_ANY):
                        count(s, c.C_EXPIRED, 1)
                    return np.int64(c.MISS)  # the word that counts: what stands behind it is older
                if outcome != c.MISS:
                    set_field(s, c.WORD, word)
                    set_field(s, c.SLOT, slot)
                    return outcome
                count(s, c.C_COLLISIONS, 1)  # another key with this fingerprint
            slot = match_from(words, slot + 1, fp)
        if not changed:
            return np.int64(c.MISS)
        count(s, c.C_RETRIES, 1)
    count(s, c.C_EXHAUSTED, 1)
    return np.int64(c.CHANGED)


@device
def get_named(ctx, s, hi, lo, target, room, offset, what):  # type: ignore[no-untyped-def]
    """(outcome, hi, lo): the whole read, through an alias where there is one, and the key of the block that was read.

    The key of an alias names one content for ever, so what is read under it is right whenever it is found. But if it is
    not, or is of another size, only the alias's word says whether the name had it to the end: it is looked at again
    behind the content. 4 Gets + 4 Flushes more than the content's own read.
    """
    for _ in range(_ATTEMPTS):
        outcome = _get_one(ctx, s, hi, lo, target, room, offset, what)
        if outcome != c.ALIAS:
            return outcome, hi, lo
        descriptor = s + c.DESCRIPTOR_COPY * 8
        content_hi, content_lo = load64(descriptor + O_CONTENT_HI), load64(descriptor + O_CONTENT_LO)
        alias, began = load64(s + c.WORD * 8), load64(s + c.BEGAN * 8)
        home, bucket, slot = field(s, c.HOME), field(s, c.BUCKET), field(s, c.SLOT)
        outcome = _get_one(ctx, s, content_hi, content_lo, target, room, offset, what)
        if outcome == c.MPI_FAILED:
            return outcome, hi, lo
        hook(ctx, c.H_READER)
        rc, again = reload_word(ctx, s, home, bucket, slot)
        if rc != 0:
            return mpi.failed(s, rc), hi, lo
        if again == alias and ticks(ctx, s) - began <= np.uint64(field(ctx, c.ATTEMPT)):
            if outcome in (c.MISS, c.ALIAS):  # evicted; an alias of an alias is none
                note_gone(ctx, s, alias)  # its manager's sweep takes it out
                return np.int64(c.MISS), content_hi, content_lo
            if what not in (DESCRIBE, DESCRIBE_ANY):
                if outcome >= 0:
                    count(s, c.C_ALIAS_READS, 1)
                if outcome >= 0 or outcome == c.ON_DISK:
                    note_touch(ctx, s, alias)  # or it would be taken for cold, however hot the content is
            return outcome, content_hi, content_lo
        if field(ctx, c.COPY_BUCKETS) and field(s, c.CLAIMING):
            drop_claim(ctx, content_hi, content_lo)
        count(s, c.C_RETRIES, 1)
    count(s, c.C_EXHAUSTED, 1)
    return np.int64(c.CHANGED), hi, lo


@kernel("int64(int64,int64,uint64,uint64,int64,int64,int64,int64)")
def get(ctx, s, hi, lo, target, room, offset, what):  # type: ignore[no-untyped-def]
    """Read one block: bytes or an outcome; LENGTH, WORD, SLOT, HOME, BUCKET and the descriptor in the scratch.

    WHOLE: `room` must be the block's length. RANGE: `room` bytes from `offset`. DESCRIBE: no payload.
    Another node: 4 Gets + 3 Flushes (3 Gets without payload); 1 Get + 1 Flush where this node has a copy, none if the
    key determines the content. DUE: `room` bytes were read, and the block is to be copied. CLAIMED: nothing was read.
    ON_DISK: nothing was read and no hit counted; WORD named a disk cell, whose descriptor is in the scratch, when it
    was looked at again. 3 Gets + 3 Flushes then.
    Through an alias WORD and the others are the content's, its key is in the descriptor.
    """
    outcome, hi, lo = get_named(ctx, s, hi, lo, target, room, offset, what)
    if room >= STREAM_BYTES:
        fence_seq_cst()  # streaming stores, before another thread is told that `target` is ready
    account(ctx, s, outcome, what)
    mpi.poll(ctx, s)
    return then_copy(ctx, s, hi, lo, outcome, what)


@kernel("int64(int64,int64,uint64,uint64,uint64,int64,int64,int64)")
def get_pinned(ctx, s, word, hi, lo, target, room, offset):  # type: ignore[no-untyped-def]
    """Read `room` bytes of a cell that this rank has pinned: no re-check, the cell cannot be reused.

    ON_DISK for the word of a disk cell, which nobody can pin.
    """
    outcome, _ = _fetch(ctx, s, word, hi, lo, target, room, offset, RANGE, np.int64(0))
    if outcome >= 0:
        count_hit(ctx, s, rank_of(word), outcome)
    return np.int64(c.MISS) if outcome == c.EXPIRED else outcome
