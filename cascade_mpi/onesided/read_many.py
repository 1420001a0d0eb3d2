"""The read of many blocks with one Flush for each target and phase.

Covers what can be read side by side; every doubt goes the long way, one key at a time (`read`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import fence_acquire, load64, load_acquire, memcpy, store64
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import (
    BUCKET_BYTES,
    DESCRIPTOR_BYTES,
    O_LENGTH,
    checksum_holds,
    field,
    fits,
    hook,
    is_cell_of,
    is_disk,
    page_of,
    place,
    rank_of,
    set_field,
)
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.batch import (
    BATCH,
    CANDIDATE,
    DONE,
    SLOW,
    W_AGAIN,
    W_BUCKET,
    W_CLAIMING,
    W_DESCRIPTOR,
    W_HOME,
    W_SLOT,
    W_STATE,
    W_WORD,
    WORK_WORDS,
    begin_batch,
    choose_candidates,
    flush_flagged,
)
from cascade_mpi.onesided.claims import claim, drop_claim, is_due
from cascade_mpi.onesided.copies import get_copy
from cascade_mpi.onesided.hints import account
from cascade_mpi.onesided.mpi import DATA, INDEX
from cascade_mpi.onesided.read import get_named
from cascade_mpi.onesided.words import WHOLE, base_remote, expired, ticks

_U = np.uint64
_ZERO = _U(0)


@device
def _get_fixed_copies(ctx, s, keys, n, targets, rooms, results, work):  # type: ignore[no-untyped-def]
    """What this node has copies of and needs no look at its home: done before the first Get."""
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
        home, _, _ = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
        if mpi.base(ctx, c.INDEX_BASES, home) == 0:
            outcome = get_copy(ctx, s, hi, lo, field(targets, i), field(rooms, i), 0, WHOLE, _ZERO, _ZERO)
            if outcome >= 0:
                _end_item(ctx, s, i, outcome, results, w)


@device
def _end_item(ctx, s, i, outcome, results, w):  # type: ignore[no-untyped-def]
    account(ctx, s, outcome, WHOLE)
    set_field(results, i, outcome)
    set_field(w, W_STATE, DONE)


@device
def _note_place(s, w):  # type: ignore[no-untyped-def]
    """Where the long way has found a block, into the key's record."""
    set_field(w, W_HOME, field(s, c.HOME))
    set_field(w, W_BUCKET, field(s, c.BUCKET))
    set_field(w, W_SLOT, field(s, c.SLOT))
    store64(w + W_WORD * 8, load64(s + c.WORD * 8))
    memcpy(w + W_DESCRIPTOR * 8, s + c.DESCRIPTOR_COPY * 8, DESCRIPTOR_BYTES)


@device
def _get_chunk(ctx, s, keys, n, targets, rooms, results, work, flags):  # type: ignore[no-untyped-def]
    began = ticks(ctx, s)
    copies = field(ctx, c.COPY_BUCKETS) != 0
    store64(s + c.BEGAN * 8, began)
    begin_batch(n, work)
    if copies:
        _get_fixed_copies(ctx, s, keys, n, targets, rooms, results, work)
    rc = choose_candidates(ctx, keys, n, work, flags)
    if rc != 0:
        return mpi.failed(s, rc)
    # Phase 2: descriptor and payload of what is on other nodes, one Flush per rank that holds some.
    arena_bytes = field(ctx, c.PAGES) * field(ctx, c.PAGE_BYTES)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) != CANDIDATE:
            continue
        word = load64(w + W_WORD * 8)
        if not base_remote(ctx, word):
            set_field(w, W_STATE, SLOW)  # a copy by loads: as fast one by one
            continue
        if copies:
            hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
            set_field(s, c.HOME, field(w, W_HOME))
            outcome = get_copy(ctx, s, hi, lo, field(targets, i), field(rooms, i), 0, WHOLE, word, began)
            if outcome == c.MPI_FAILED:
                return outcome
            if outcome >= 0 and ticks(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):
                set_field(w, W_STATE, SLOW)
                continue
            if outcome >= 0:
                _end_item(ctx, s, i, outcome, results, w)
                continue
            set_field(s, c.CLAIMING, 0)
            if not is_disk(word) and not claim(ctx, s, hi, lo, word):
                _end_item(ctx, s, i, np.int64(c.CLAIMED), results, w)
                continue
            set_field(w, W_CLAIMING, field(s, c.CLAIMING))
        rank, page = rank_of(word), page_of(word)
        at = field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES
        rc = mpi.get(ctx, w + W_DESCRIPTOR * 8, DESCRIPTOR_BYTES, rank, at, DATA)
        start = page * field(ctx, c.PAGE_BYTES)
        nbytes = min(field(rooms, i), arena_bytes - start)
        if rc == 0 and nbytes > 0 and not is_disk(word):
            rc = mpi.get(ctx, field(targets, i), nbytes, rank, field(ctx, c.ARENA_AT) + start, DATA)
        if rc != 0:
            return mpi.failed(s, rc)
        set_field(flags, rank, 1)
    rc = flush_flagged(ctx, flags, DATA)
    if rc != 0:
        return mpi.failed(s, rc)
    # Phase 3: the words again, after the payloads are complete.
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) != CANDIDATE:
            continue
        home, at = field(w, W_HOME), field(w, W_BUCKET) * BUCKET_BYTES + field(w, W_SLOT) * 8
        hook(ctx, c.H_READER)
        base = mpi.base(ctx, c.INDEX_BASES, home)
        if base != 0:
            fence_acquire()
            store64(w + W_AGAIN * 8, load_acquire(base + at))
        else:
            rc = mpi.get(ctx, w + W_AGAIN * 8, 8, home, at, INDEX)
            if rc != 0:
                return mpi.failed(s, rc)
            set_field(flags, home, 1)
    rc = flush_flagged(ctx, flags, INDEX)
    if rc != 0:
        return mpi.failed(s, rc)
    in_time = ticks(ctx, s) - began <= np.uint64(field(ctx, c.ATTEMPT))
    # Phase 4: what is whole is a hit; every doubt goes the long way, one key at a time.
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
        room = field(rooms, i)
        outcome = np.int64(c.MISS)
        word = load64(w + W_WORD * 8)
        state = field(w, W_STATE)
        if state == DONE:
            continue
        due = False
        if state == CANDIDATE:
            descriptor = w + W_DESCRIPTOR * 8
            whole = (
                in_time
                and load64(w + W_AGAIN * 8) == word
                and is_cell_of(descriptor, word, hi, lo)
                and np.int64(load64(descriptor + O_LENGTH)) == room
                and fits(ctx, word, room)
                and not expired(ctx, s, descriptor)
                and (not field(ctx, c.VERIFY) or is_disk(word) or checksum_holds(descriptor, field(targets, i), room))
            )
            if whole:
                outcome = np.int64(c.ON_DISK) if is_disk(word) else room
                store64(s + c.WORD * 8, word)
                due = copies and not is_disk(word) and is_due(ctx, s, hi, lo, word)
            else:
                state = SLOW
            if copies and not due and field(w, W_CLAIMING):
                drop_claim(ctx, hi, lo)
        if state == SLOW:
            outcome, hi, lo = get_named(ctx, s, hi, lo, field(targets, i), room, 0, WHOLE)
            if copies and field(s, c.CLAIMING):
                drop_claim(ctx, hi, lo)
            if outcome == c.WRONG_SIZE:
                set_field(results, i, c.WRONG_FROM - field(s, c.LENGTH))
                continue
            if outcome == c.MPI_FAILED:
                return outcome
            if outcome == c.ON_DISK:
                _note_place(s, w)
        account(ctx, s, outcome, WHOLE)
        set_field(results, i, np.int64(c.DUE) if due else outcome)
    store64(s + c.BEGAN * 8, began)  # of what is due: who went the long way has begun later
    return np.int64(0)


@kernel("int64(int64,int64,int64,int64,int64,int64,int64,int64,int64)")
def get_many(ctx, s, keys, n, targets, rooms, results, work, flags):  # type: ignore[no-untyped-def]
    """Read n blocks: results[i] = bytes, or an outcome of `get`, or WRONG_FROM - length for a wrong size.

    All areas by address: keys uint64[n, 2]; targets, rooms, results int64[n]; work uint64[BATCH, WORK_WORDS];
    flags int64[ranks], zero. 4 Gets a key, and one Flush per target and phase for each BATCH keys.
    ON_DISK: W_HOME, W_BUCKET, W_SLOT, W_WORD and W_DESCRIPTOR of the key's record in `work` say where the block is,
    until the next BATCH keys; 3 Gets.
    """
    done = np.int64(0)
    while done < n:
        step = min(n - done, BATCH)
        rc = _get_chunk(
            ctx, s, keys + 16 * done, step, targets + 8 * done, rooms + 8 * done, results + 8 * done, work, flags
        )
        if rc != 0:
            return rc
        done += step
    mpi.poll(ctx, s)
    return np.int64(0)
