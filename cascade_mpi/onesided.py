"""The one-sided protocol as compiled calls: get, look-up for writers, publish, remove, pin, batches.

Each kernel issues its own MPI calls (by address, see `intrinsics.call_int`) and touches memory of its
own node by load and store. Covers reading and the single steps of writing; the order of a put, a delete
and a reclaim is in `store` and `arena`. `onesided_python` does the same steps with mpi4py.

Costs in MPI calls are for another node; on the own node there are none, but for the CAS.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.copy import STREAM_BYTES, copy
from cascade_mpi.kernels.intrinsics import (
    call_int,
    fence_acquire,
    fence_seq_cst,
    load8,
    load32,
    load64,
    load_acquire,
    load_relaxed,
    memcpy,
    prefetch,
    store8,
    store32,
    store64,
    store_relaxed,
)
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import (
    BUCKET_BYTES,
    BUCKET_WORDS,
    DESCRIPTOR_BYTES,
    O_CONTENT_HI,
    O_CONTENT_LO,
    O_EXPIRY,
    O_LENGTH,
    O_ORIGIN,
    O_SEQUENCE,
    checksum_holds,
    copy_then_reload,
    count,
    descriptor_address,
    field,
    fingerprint_of,
    fits,
    hook,
    in_bounds,
    is_alias,
    is_cell_of,
    is_copy,
    is_fixed,
    is_hard,
    match_from,
    page_of,
    payload_address,
    place,
    rank_of,
    read_bucket_mapped,
    same_cell,
    set_field,
)

_U = np.uint64
_ZERO = _U(0)
INDEX, DATA, PINS = 0, 1, 2  # the windows, as offsets from the INDEX_* fields of the context
_LARGEST_GET = 1 << 30  # an MPI count is an int; larger payloads are fetched in pieces
_ATTEMPTS = 4  # the first and three more; then the reader pins
_LOOKUP_ATTEMPTS = 1000  # a writer looks again until the bucket holds still
BATCH = 256  # keys between two flushes: queues of the network stay short

# What a get fetches. DESCRIBE_ANY may find a copy of this node; FETCH is WHOLE, whoever else is about to fetch it.
WHOLE, RANGE, DESCRIBE, DESCRIBE_ANY, FETCH = 0, 1, 2, 3, 4
SLOTS_PER_PEER = 8
TICKS = 1000  # a second: touches are a u32, so a store may be open for 49 days before they come round
REALTIME_COARSE = 5  # Linux' clock id: of the last timer interrupt, 1 to 4 ms ago; a quarter of the precise one's cost
_MIX = _U(0x9E3779B97F4A7C15)
CLAIM_TICKS = 2 * TICKS  # a claim that is older counts nothing: who made it is late, or gave up


# ------------------------------------------------------------------------------------------- MPI calls


@device
def _get(ctx, origin, nbytes, rank, offset, what):  # type: ignore[no-untyped-def]
    """Get from a rank's memory in the window `what` (INDEX, DATA, PINS)."""
    kind = field(ctx, c.BYTE)
    win = field(ctx, c.INDEX_WIN + what)
    at = _at(ctx, c.INDEX_BASES + what, rank, offset)
    done = np.int64(0)
    while True:
        step = min(nbytes - done, _LARGEST_GET)
        rc = call_int(field(ctx, c.GET), (origin + done, step, kind, rank, at + done, step, kind, win))
        done += step
        if rc != 0 or done >= nbytes:
            return np.int64(rc)


@device
def _put(ctx, origin, nbytes, rank, offset, what):  # type: ignore[no-untyped-def]
    kind = field(ctx, c.BYTE)
    win = field(ctx, c.INDEX_WIN + what)
    at = _at(ctx, c.INDEX_BASES + what, rank, offset)
    return np.int64(call_int(field(ctx, c.PUT), (origin, nbytes, kind, rank, at, nbytes, kind, win)))


@device
def _flush(ctx, rank, what):  # type: ignore[no-untyped-def]
    return np.int64(call_int(field(ctx, c.FLUSH), (rank, field(ctx, c.INDEX_WIN + what))))


@device
def _poll(ctx, s):  # type: ignore[no-untyped-def]
    """Enter MPI, so that peers' CASes on this rank's words proceed."""
    if field(ctx, c.POLL):
        call_int(
            field(ctx, c.IPROBE),
            (
                field(ctx, c.ANY_SOURCE),
                field(ctx, c.ANY_TAG),
                field(ctx, c.PROBE_COMM),
                s + c.FLAG * 8,
                s + c.STATUS * 8,
            ),
        )


@device
def _failed(s, rc):  # type: ignore[no-untyped-def]
    set_field(s, c.MPI_ERROR, rc)
    return np.int64(c.MPI_FAILED)


# ---------------------------------------------------------------------------------- words and descriptors


@device
def _base(ctx, table, rank):  # type: ignore[no-untyped-def]
    """Where a rank's memory is mapped here, 0 if it is not."""
    return field(field(ctx, table), 2 * rank)


@device
def _at(ctx, table, rank, offset):  # type: ignore[no-untyped-def]
    """The displacement in a rank's window of an offset in its memory."""
    return field(field(ctx, table), 2 * rank + 1) + offset


@device
def _read_bucket(ctx, s, home, bucket):  # type: ignore[no-untyped-def]
    """The bucket into the scratch: 1 Get + 1 Flush."""
    base = _base(ctx, c.INDEX_BASES, home)
    copy_to = s + c.BUCKET_COPY * 8
    if base != 0:
        read_bucket_mapped(base, bucket, copy_to)
        return np.int64(0)
    rc = _get(ctx, copy_to, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
    return rc if rc != 0 else _flush(ctx, home, INDEX)


@device
def _reload_word(ctx, s, home, bucket, slot):  # type: ignore[no-untyped-def]
    """(rc, word): the word as it is now, after everything that was read before. 1 Get + 1 Flush."""
    at = bucket * BUCKET_BYTES + slot * 8
    base = _base(ctx, c.INDEX_BASES, home)
    if base != 0:
        fence_acquire()
        return np.int64(0), load_acquire(base + at)
    rc = _get(ctx, s + c.RELOADED * 8, 8, home, at, INDEX)
    if rc == 0:
        rc = _flush(ctx, home, INDEX)
    return rc, load64(s + c.RELOADED * 8)


@device
def _read_descriptor(ctx, s, word):  # type: ignore[no-untyped-def]
    """The descriptor of a word that is in bounds into the scratch: 1 Get + 1 Flush."""
    rank, page = rank_of(word), page_of(word)
    base = _base(ctx, c.DATA_BASES, rank)
    copy_to = s + c.DESCRIPTOR_COPY * 8
    if base != 0:
        memcpy(copy_to, descriptor_address(ctx, base, page), DESCRIPTOR_BYTES)
        return np.int64(0)
    rc = _get(ctx, copy_to, DESCRIPTOR_BYTES, rank, field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES, DATA)
    return rc if rc != 0 else _flush(ctx, rank, DATA)


@device
def _now(ctx, s):  # type: ignore[no-untyped-def]
    """Ticks since the store was opened."""
    call_int(field(ctx, c.CLOCK), (np.int64(REALTIME_COARSE), s + c.TIMESPEC * 8))
    seconds, nanoseconds = field(s, c.TIMESPEC) - field(ctx, c.EPOCH), field(s, c.TIMESPEC + 1)
    return np.uint64(seconds * TICKS + nanoseconds // (1_000_000_000 // TICKS))


@device
def _expired(ctx, s, descriptor):  # type: ignore[no-untyped-def]
    """Is the block of this copy of a descriptor a miss by this rank's clock?"""
    expiry = np.int64(load32(descriptor + O_EXPIRY))
    # Signed: a clock that is behind the opening one's is at less than 0, which is before everything.
    return expiry != 0 and np.int64(_now(ctx, s)) >= expiry * TICKS


@device
def _touch(ctx, s, word):  # type: ignore[no-untyped-def]
    """Note that the cell was used: a store on the own node, else an entry for the next batch of Puts.

    Into the touch array only, never into a cell: the cell may have a new owner by now.
    """
    rank, page = rank_of(word), page_of(word)
    now = _now(ctx, s)
    base = _base(ctx, c.DATA_BASES, rank)
    if base != 0:
        store32(base + field(ctx, c.TOUCH_AT) + page * 4, now)
        return
    entry = s + (c.TOUCH_FILTER + 2 * np.int64((word * _U(0x9E3779B97F4A7C15)) >> _U(56))) * 8
    if load64(entry) == word and now - load64(entry + 8) < _U(TICKS):
        return  # at most one touch per cell and second
    pending = field(s, c.TOUCHES)
    if pending == c.TOUCH_RING_ENTRIES:
        return  # a touch is a hint; the ring is sent with the next put or progress()
    store64(entry, word)
    store64(entry + 8, now)
    set_field(s, c.TOUCH_RING + 2 * pending, rank)
    set_field(s, c.TOUCH_RING + 2 * pending + 1, page)
    set_field(s, c.TOUCHES, pending + 1)


@device
def _send_touches(ctx, s):  # type: ignore[no-untyped-def]
    pending = field(s, c.TOUCHES)
    if pending == 0:
        return np.int64(0)
    store64(s + c.TOUCH_VALUE * 8, _now(ctx, s))
    for i in range(pending):
        rank, page = field(s, c.TOUCH_RING + 2 * i), field(s, c.TOUCH_RING + 2 * i + 1)
        rc = _put(ctx, s + c.TOUCH_VALUE * 8, 4, rank, field(ctx, c.TOUCH_AT) + page * 4, DATA)
        if rc != 0:
            return rc
    for i in range(pending):
        rank = field(s, c.TOUCH_RING + 2 * i)
        first = True
        for j in range(i):
            if field(s, c.TOUCH_RING + 2 * j) == rank:
                first = False
        if first:
            rc = _flush(ctx, rank, DATA)
            if rc != 0:
                return rc
    set_field(s, c.TOUCHES, 0)
    return np.int64(0)


@device
def _count_hit(ctx, s, rank, nbytes):  # type: ignore[no-untyped-def]
    if rank == field(ctx, c.RANK):
        where = 0
    elif _base(ctx, c.DATA_BASES, rank) != 0:
        where = 1
    else:
        where = 2
    count(s, c.C_HITS_SELF + where, 1)
    count(s, c.C_BYTES_SELF + where, nbytes)


# ------------------------------------------------------------------------------------------------ copies


@device
def _place_copy(ctx, hi, lo):  # type: ignore[no-untyped-def]
    """(rank, bucket in its index window, fingerprint) of a key in the copy table of this node."""
    at, bucket, fp = place(hi, lo, field(ctx, c.COPY_RANKS), field(ctx, c.COPY_BUCKETS))
    return field(field(ctx, c.COPY_RANKS_AT), at), field(ctx, c.BUCKETS) + bucket, fp


@device
def _drop_hint(ctx, data, word):  # type: ignore[no-untyped-def]
    """Tell the manager of a copy that its origin has changed: its sweep takes the copy out."""
    store8(data + field(ctx, c.GONE_AT) + page_of(word), 1)


@device
def _origin_stays(ctx, s, hi, lo, origin, descriptor, seen_at, began):  # type: ignore[no-untyped-def]
    """(rc, is the index word that was just read still that of the block that was copied?).

    A word comes back when its cell has passed through all generations. So who has not seen it for half of an
    attempt's time asks the cell: a sequence number never comes back. 1 Get + 1 Flush then.
    """
    if np.int64(began) - np.int64(load_relaxed(seen_at)) > field(ctx, c.ATTEMPT) // 2:
        rank, asked = rank_of(origin), s + c.ORIGIN_COPY * 8
        at = field(ctx, c.DESCRIPTOR_AT) + page_of(origin) * DESCRIPTOR_BYTES
        rc = _get(ctx, asked, DESCRIPTOR_BYTES, rank, at, DATA)
        if rc == 0:
            rc = _flush(ctx, rank, DATA)
        if rc != 0:
            return rc, False
        set_field(s, c.COPY_ASKED, 1)
        if not is_cell_of(asked, origin, hi, lo) or load64(asked + O_SEQUENCE) != load64(descriptor + O_SEQUENCE):
            return np.int64(0), False
    store_relaxed(seen_at, began)
    return np.int64(0), True


@device
def _get_copy(ctx, s, hi, lo, target, room, offset, what, origin, began):  # type: ignore[no-untyped-def]
    """Read a copy that this node has: bytes, or MISS where none counts (the block is read the long way), MPI_FAILED.

    `origin` is the word with which the index named the block after this read began: a copy of anything else is
    stale. 0: nobody has looked; then only blocks count whose key determines the content. No MPI call, but see
    `_origin_stays`.
    """
    rank, bucket, fp = _place_copy(ctx, hi, lo)
    table = _base(ctx, c.INDEX_BASES, rank)
    words, descriptor = s + c.COPIES_COPY * 8, s + c.DESCRIPTOR_COPY * 8
    read_bucket_mapped(table, bucket, words)
    slot = match_from(words, 0, fp)
    while slot >= 0:
        word = load64(words + slot * 8)
        data = _base(ctx, c.DATA_BASES, rank_of(word)) if in_bounds(ctx, word) else np.int64(0)
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
    if not fits(ctx, page_of(word), length):
        return np.int64(c.MISS)
    if _expired(ctx, s, descriptor):
        return np.int64(c.MISS)  # so is the block, unless it was put again: its own word says
    set_field(s, c.COPY_ASKED, 0)
    if not is_fixed(descriptor):
        if origin == _ZERO:
            return np.int64(c.MISS)
        stays = same_cell(made_from, origin)  # whose hard bit may have been toggled since
        if stays:
            rc, stays = _origin_stays(ctx, s, hi, lo, origin, descriptor, seen_at, began)
            if rc != 0:
                return _failed(s, rc)
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
    if not asked and (origin == _ZERO or _base(ctx, c.INDEX_BASES, field(s, c.HOME)) != 0):
        count(s, c.C_COPY_FREE, 1)
    _touch(ctx, s, made_from)  # or its manager would take a block for cold that all others read from copies
    return room


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
def _is_due(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
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
    rank, bucket, _ = _place_copy(ctx, hi, lo)
    first = (field(ctx, c.BUCKETS) + 2 * field(ctx, c.COPY_BUCKETS)) * BUCKET_BYTES
    return _base(ctx, c.INDEX_BASES, rank) + first + (bucket - field(ctx, c.BUCKETS)) * 8


@device
def _claim(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """False if another rank of this node is about to fetch and copy the block: its bytes leave the owner once a node.

    A claim is `tag 32 | rank 12 | tick 20`, written without an atomic: a hint. Where two are made at once both fetch.
    """
    set_field(s, c.CLAIMING, 0)
    if not _is_next(ctx, s, hi, lo, word):
        return True
    at, tag, rank = _claim_at(ctx, hi, lo), _claim_tag(hi, lo), _U(field(ctx, c.RANK))
    tick = _now(ctx, s) & _U(0xFFFFF)
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
def _end_claim(ctx, hi, lo):  # type: ignore[no-untyped-def]
    at = _claim_at(ctx, hi, lo)
    seen = load_relaxed(at)
    if (seen >> _U(32)) == _claim_tag(hi, lo) and ((seen >> _U(20)) & _U(0xFFF)) == _U(field(ctx, c.RANK)):
        store_relaxed(at, _ZERO)


@device
def _then_copy(ctx, s, hi, lo, outcome, what):  # type: ignore[no-untyped-def]
    """DUE in the place of bytes that were read from another node and are to be copied; else the claim ends."""
    if field(ctx, c.COPY_BUCKETS) == 0:
        return outcome
    whole = outcome >= 0 and what in (WHOLE, FETCH)
    if whole and base_remote(ctx, load64(s + c.WORD * 8)) and _is_due(ctx, s, hi, lo, load64(s + c.WORD * 8)):
        return np.int64(c.DUE)
    if field(s, c.CLAIMING):
        _end_claim(ctx, hi, lo)
    return outcome


@kernel("void(int64,int64,uint64,uint64)")
def end_claim(ctx, s, hi, lo):  # type: ignore[no-untyped-def]
    """The block that this rank was about to copy is copied, or will not be: who waits for it goes on."""
    _end_claim(ctx, hi, lo)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def find_copies(ctx, s, hi, lo, skip):  # type: ignore[no-untyped-def]
    """As `find`, in the copy table of this node. No MPI call."""
    rank, bucket, fp = _place_copy(ctx, hi, lo)
    return _find(ctx, s, rank, bucket, fp, hi, lo, skip)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def slot_of_copy(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """As `slot_of`, in the copy table of this node. No MPI call."""
    rank, bucket, _ = _place_copy(ctx, hi, lo)
    return _slot_in(ctx, s, rank, bucket, word)


@kernel("void(int64,int64,int64,int64,int64,int64)")
def note_origin(ctx, s, rank, bucket, slot, tick):  # type: ignore[no-untyped-def]
    """Note beside a word of the copy table when its origin was seen in the index."""
    at = (bucket + field(ctx, c.COPY_BUCKETS)) * BUCKET_BYTES + slot * 8
    store_relaxed(_base(ctx, c.INDEX_BASES, rank) + at, _U(tick))


# --------------------------------------------------------------------------------------------------- get


@device
def _fetch(ctx, s, word, hi, lo, target, room, offset, what, word_at):  # type: ignore[no-untyped-def]
    """Read the cell that `word` names, if it is the key's: (outcome, word again or 0).

    Outcome: bytes read, MISS for another key's cell, EXPIRED, ALIAS, WRONG_SIZE, CORRUPT, MPI_FAILED. Nothing of it
    counts before the word was looked at again; where the payload and the word are both mapped
    (`word_at` not 0) that has been done here, behind the copy.
    """
    rank, page = rank_of(word), page_of(word)
    base = _base(ctx, c.DATA_BASES, rank)
    descriptor = s + c.DESCRIPTOR_COPY * 8
    nbytes = np.int64(0)
    if base == 0:
        rc = _get(ctx, descriptor, DESCRIPTOR_BYTES, rank, field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES, DATA)
        if rc == 0 and what != DESCRIBE and not is_alias(word):
            at = page * field(ctx, c.PAGE_BYTES) + offset
            nbytes = min(room, field(ctx, c.PAGES) * field(ctx, c.PAGE_BYTES) - at)
            if nbytes > 0:
                rc = _get(ctx, target, nbytes, rank, field(ctx, c.ARENA_AT) + at, DATA)
        if rc == 0:
            rc = _flush(ctx, rank, DATA)
        if rc != 0:
            return _failed(s, rc), _ZERO
    else:
        memcpy(descriptor, descriptor_address(ctx, base, page), DESCRIPTOR_BYTES)
    if not is_cell_of(descriptor, word, hi, lo):
        return np.int64(c.MISS), _ZERO
    length = np.int64(load64(descriptor + O_LENGTH))
    set_field(s, c.LENGTH, length)
    if not fits(ctx, page, length):
        return np.int64(c.MISS), _ZERO
    if _expired(ctx, s, descriptor):
        return np.int64(c.EXPIRED), _ZERO
    if is_alias(word):
        return np.int64(c.ALIAS), _ZERO
    if what == DESCRIBE:
        return length, _ZERO
    if (what == WHOLE and room != length) or (what == RANGE and room > length - offset):
        return np.int64(c.WRONG_SIZE), _ZERO
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
    """The whole read of one word: bytes, or MISS, ALIAS, WRONG_SIZE, CHANGED (pin and read), CORRUPT, MPI_FAILED."""
    home, bucket, fp = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
    set_field(s, c.HOME, home)
    set_field(s, c.BUCKET, bucket)
    words = s + c.BUCKET_COPY * 8
    index_base = _base(ctx, c.INDEX_BASES, home)
    heed = what == WHOLE
    if what == FETCH:
        what = np.int64(WHOLE)
    copies = field(ctx, c.COPY_BUCKETS) != 0 and what != DESCRIBE
    if copies:
        set_field(s, c.CLAIMING, 0)
        if index_base == 0:
            outcome = _get_copy(ctx, s, hi, lo, target, room, offset, what, _ZERO, _ZERO)
            if outcome != c.MISS:
                return outcome
    parts = np.int64(DESCRIBE) if what == DESCRIBE_ANY else what
    for _ in range(_ATTEMPTS):
        began = _now(ctx, s)
        store64(s + c.BEGAN * 8, began)
        rc = _read_bucket(ctx, s, home, bucket)
        if rc != 0:
            return _failed(s, rc)
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
                    outcome = _get_copy(ctx, s, hi, lo, target, room, offset, what, word, began)
                    if outcome != c.MISS:
                        if outcome != c.MPI_FAILED and _now(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):
                            changed = True
                            break
                        return outcome
                    if heed and not _claim(ctx, s, hi, lo, word):
                        return np.int64(c.CLAIMED)
                outcome, again = _fetch(ctx, s, word, hi, lo, target, room, offset, parts, word_at)
                if outcome == c.MPI_FAILED:
                    return outcome
                # Any doubt is settled by the word, not by the descriptor: look at it again, match or not.
                if again == _ZERO:
                    hook(ctx, c.H_READER)
                    rc, again = _reload_word(ctx, s, home, bucket, slot)
                    if rc != 0:
                        return _failed(s, rc)
                # An attempt that took too long may have slept through all generations of a cell.
                if again != word or _now(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):
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
def _get_named(ctx, s, hi, lo, target, room, offset, what):  # type: ignore[no-untyped-def]
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
        rc, again = _reload_word(ctx, s, home, bucket, slot)
        if rc != 0:
            return _failed(s, rc), hi, lo
        if again == alias and _now(ctx, s) - began <= np.uint64(field(ctx, c.ATTEMPT)):
            if outcome in (c.MISS, c.ALIAS):  # evicted; an alias of an alias is none
                _hint_gone(ctx, s, alias)  # its manager's sweep takes it out
                return np.int64(c.MISS), content_hi, content_lo
            if outcome >= 0 and what not in (DESCRIBE, DESCRIBE_ANY):
                count(s, c.C_ALIAS_READS, 1)
                _touch(ctx, s, alias)  # or it would be taken for cold, however hot the content is
            return outcome, content_hi, content_lo
        if field(ctx, c.COPY_BUCKETS) and field(s, c.CLAIMING):
            _end_claim(ctx, content_hi, content_lo)
        count(s, c.C_RETRIES, 1)
    count(s, c.C_EXHAUSTED, 1)
    return np.int64(c.CHANGED), hi, lo


@device
def base_remote(ctx, word):  # type: ignore[no-untyped-def]
    """True if the memory that the word names is not mapped here."""
    return _base(ctx, c.DATA_BASES, rank_of(word)) == 0


@device
def _account(ctx, s, outcome, what):  # type: ignore[no-untyped-def]
    read = what not in (DESCRIBE, DESCRIBE_ANY)
    if outcome >= 0 and read:
        word = load64(s + c.WORD * 8)
        _count_hit(ctx, s, rank_of(word), outcome)
        _touch(ctx, s, word)
    elif outcome == c.MISS and read:
        count(s, c.C_MISSES, 1)


@kernel("int64(int64,int64,uint64,uint64,int64,int64,int64,int64)")
def get(ctx, s, hi, lo, target, room, offset, what):  # type: ignore[no-untyped-def]
    """Read one block: bytes or an outcome; LENGTH, WORD, SLOT, HOME, BUCKET and the descriptor in the scratch.

    WHOLE: `room` must be the block's length. RANGE: `room` bytes from `offset`. DESCRIBE: no payload.
    Another node: 4 Gets + 3 Flushes (3 Gets without payload); 1 Get + 1 Flush where this node has a copy, none if the
    key determines the content. DUE: `room` bytes were read, and the block is to be copied. CLAIMED: nothing was read.
    Through an alias WORD and the others are the content's, its key is in the descriptor.
    """
    outcome, hi, lo = _get_named(ctx, s, hi, lo, target, room, offset, what)
    if room >= STREAM_BYTES:
        fence_seq_cst()  # streaming stores, before another thread is told that `target` is ready
    _account(ctx, s, outcome, what)
    _poll(ctx, s)
    return _then_copy(ctx, s, hi, lo, outcome, what)


@kernel("int64(int64,int64,uint64,uint64,uint64,int64,int64,int64)")
def get_pinned(ctx, s, word, hi, lo, target, room, offset):  # type: ignore[no-untyped-def]
    """Read `room` bytes of a cell that this rank has pinned: no re-check, the cell cannot be reused."""
    outcome, _ = _fetch(ctx, s, word, hi, lo, target, room, offset, RANGE, np.int64(0))
    if outcome >= 0:
        _count_hit(ctx, s, rank_of(word), outcome)
    return np.int64(c.MISS) if outcome == c.EXPIRED else outcome


# ---------------------------------------------------------------------------------------------- writers


@device
def _find(ctx, s, home, bucket, fp, hi, lo, skip):  # type: ignore[no-untyped-def]
    set_field(s, c.HOME, home)
    set_field(s, c.BUCKET, bucket)
    words = s + c.BUCKET_COPY * 8
    for _ in range(_LOOKUP_ATTEMPTS):
        rc = _read_bucket(ctx, s, home, bucket)
        if rc != 0:
            return _failed(s, rc)
        free, found, live, changed = np.int64(-1), np.int64(0), np.int64(0), False
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
                rc = _read_descriptor(ctx, s, word)
                if rc != 0:
                    return _failed(s, rc)
                if not is_cell_of(s + c.DESCRIPTOR_COPY * 8, word, hi, lo):
                    # The word decides: unchanged, it is another key's; changed, the key may have moved.
                    rc, again = _reload_word(ctx, s, home, bucket, slot)
                    if rc != 0:
                        return _failed(s, rc)
                    if again != word:
                        changed = True
                        break
                    continue
            length = _ZERO
            if word != skip:
                length = load64(s + c.DESCRIPTOR_COPY * 8 + O_LENGTH)
            if found == 0 and (word == skip or not _expired(ctx, s, s + c.DESCRIPTOR_COPY * 8)):
                live = np.int64(1)
            set_field(s, c.FOUND_WORDS + 2 * found, slot)
            store64(s + (c.FOUND_WORDS + 2 * found + 1) * 8, word)
            store64(s + (c.FOUND_LENGTHS + found) * 8, length)
            found += 1
        if not changed:
            set_field(s, c.FOUND, found)
            set_field(s, c.FOUND_LIVE, live)
            set_field(s, c.FREE_SLOT, free)
            return found
        count(s, c.C_RETRIES, 1)
    return np.int64(c.CHANGED)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def find(ctx, s, hi, lo, skip):  # type: ignore[no-untyped-def]
    """Every word of a key, for put, delete and protect: their number; (slot, word) pairs, the blocks' lengths, HOME,
    BUCKET, FREE_SLOT, FOUND_LIVE in the scratch.

    `skip` is a word that is known to be the key's (0: none). 1 Get + 1 Flush, and as much for each match.
    """
    home, bucket, fp = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
    return _find(ctx, s, home, bucket, fp, hi, lo, skip)


@device
def _cas(ctx, s, home, offset, old, new):  # type: ignore[no-untyped-def]
    """(rc, the word that was there)."""
    store64(s + c.COMPARE * 8, old)
    store64(s + c.ORIGIN * 8, new)
    at = _at(ctx, c.INDEX_BASES, home, offset)
    kind, win = field(ctx, c.UINT64), field(ctx, c.INDEX_WIN)
    rc = np.int64(
        call_int(field(ctx, c.CAS), (s + c.ORIGIN * 8, s + c.COMPARE * 8, s + c.RESULT * 8, kind, home, at, win))
    )
    if rc == 0:
        rc = _flush(ctx, home, INDEX)
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
        return _failed(s, rc)
    if seen != old:
        return np.int64(c.CHANGED)
    # The own word before the look at the others': of two putters of one key at least one must see both.
    fence_seq_cst()
    rc = _read_bucket(ctx, s, home, bucket)
    if rc != 0:
        return _failed(s, rc)
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
        return _failed(s, rc)
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
        return _failed(s, rc)
    fence_seq_cst()  # the word before the hint that it has changed
    return np.int64(seen == old)


@kernel("int64(int64,int64,uint64,uint64,uint64)")
def slot_of(ctx, s, hi, lo, word):  # type: ignore[no-untyped-def]
    """The slot in which a word of this key stands now, or MISS. 1 Get + 1 Flush.

    The word as it stands there is WORD in the scratch: somebody may have toggled its hard bit.
    """
    home, bucket, _ = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
    return _slot_in(ctx, s, home, bucket, word)


@device
def _slot_in(ctx, s, home, bucket, word):  # type: ignore[no-untyped-def]
    set_field(s, c.HOME, home)
    set_field(s, c.BUCKET, bucket)
    rc = _read_bucket(ctx, s, home, bucket)
    if rc != 0:
        return _failed(s, rc)
    for slot in range(BUCKET_WORDS):
        there = load64(s + (c.BUCKET_COPY + slot) * 8)
        if same_cell(there, word):
            store64(s + c.WORD * 8, there)
            return np.int64(slot)
    return np.int64(c.MISS)


@kernel("int64(int64,int64,uint64)")
def hint_gone(ctx, s, word):  # type: ignore[no-untyped-def]
    """Tell the manager of a cell that its word was taken away: a hint for its sweep. 1 Put + 1 Flush."""
    return _hint_gone(ctx, s, word)


@kernel("void(int64,int64,uint64)")
def touch(ctx, s, word):  # type: ignore[no-untyped-def]
    """Note that a cell was used, without a read of it: another name was given to its content."""
    _touch(ctx, s, word)


@device
def _hint_gone(ctx, s, word):  # type: ignore[no-untyped-def]
    rank, page = rank_of(word), page_of(word)
    base = _base(ctx, c.DATA_BASES, rank)
    at = field(ctx, c.GONE_AT) + page
    if base != 0:
        store8(base + at, 1)
        return np.int64(0)
    store64(s + c.TOUCH_VALUE * 8, _U(1))
    rc = _put(ctx, s + c.TOUCH_VALUE * 8, 1, rank, at, DATA)
    if rc == 0:
        rc = _flush(ctx, rank, DATA)
    return rc if rc == 0 else _failed(s, rc)


# ------------------------------------------------------------------------------------------------- pins


@kernel("int64(int64,int64,uint64,int64,int64,int64,int64)")
def pin(ctx, s, word, pin_slot, home, bucket, slot):  # type: ignore[no-untyped-def]
    """Write the word into a hazard slot of its manager, then read the word again: 1 if it is pinned, else 0.

    1 Put + 1 Get + 2 Flushes. The slot is cleared again when the word has left.
    """
    manager = rank_of(word)
    base = _base(ctx, c.PIN_BASES, manager)
    at = (field(ctx, c.RANK) * SLOTS_PER_PEER + pin_slot) * 8
    rc = _write_pin(ctx, s, manager, base, at, word)
    if rc != 0:
        return _failed(s, rc)
    # The pin must be seen before the word is read: the manager removes the word, then looks at the pins.
    fence_seq_cst()
    rc, again = _reload_word(ctx, s, home, bucket, slot)
    if rc != 0:
        return _failed(s, rc)
    if again == word:
        return np.int64(1)
    rc = _write_pin(ctx, s, manager, base, at, _ZERO)
    return np.int64(0) if rc == 0 else _failed(s, rc)


@device
def _write_pin(ctx, s, manager, base, at, word):  # type: ignore[no-untyped-def]
    if base != 0:
        store_relaxed(base + at, word)
        return np.int64(0)
    store64(s + c.ORIGIN * 8, word)
    rc = _put(ctx, s + c.ORIGIN * 8, 8, manager, at, PINS)
    return rc if rc != 0 else _flush(ctx, manager, PINS)


@kernel("int64(int64,int64,int64,int64)")
def unpin(ctx, s, manager, pin_slot):  # type: ignore[no-untyped-def]
    """Clear a hazard slot, after everything that was read under it. 1 Put + 1 Flush."""
    fence_seq_cst()
    at = (field(ctx, c.RANK) * SLOTS_PER_PEER + pin_slot) * 8
    rc = _write_pin(ctx, s, manager, _base(ctx, c.PIN_BASES, manager), at, _ZERO)
    return rc if rc == 0 else _failed(s, rc)


# ---------------------------------------------------------------------------------------------- batches

# Work area of a batch: one record per key.
W_STATE, W_HOME, W_BUCKET, W_SLOT, W_WORD, W_AGAIN, W_CLAIMING = 0, 1, 2, 3, 4, 5, 6
W_BUCKET_COPY, W_DESCRIPTOR, WORK_WORDS = 8, 24, 40
_NONE, _CANDIDATE, _FETCHED, _SLOW, _DONE = 0, 1, 2, 3, 4


@device
def _flush_flagged(ctx, flags, what):  # type: ignore[no-untyped-def]
    """One Flush for each target that has something under way."""
    for rank in range(field(ctx, c.RANKS)):
        if field(flags, rank):
            rc = _flush(ctx, rank, what)
            if rc != 0:
                return rc
            set_field(flags, rank, 0)
    return np.int64(0)


@device
def _batch_buckets(ctx, keys, n, work, flags):  # type: ignore[no-untyped-def]
    """Phase 1: every bucket into its record, one Flush per home; then the first candidate of each key."""
    ranks, buckets = field(ctx, c.RANKS), field(ctx, c.BUCKETS)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) == _DONE:
            continue
        home, bucket, _ = place(load64(keys + 16 * i), load64(keys + 16 * i + 8), ranks, buckets)
        set_field(w, W_HOME, home)
        set_field(w, W_BUCKET, bucket)
        base = _base(ctx, c.INDEX_BASES, home)
        if base != 0:
            prefetch(base + bucket * BUCKET_BYTES)
            prefetch(base + bucket * BUCKET_BYTES + 64)
        else:
            rc = _get(ctx, w + W_BUCKET_COPY * 8, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
            if rc != 0:
                return rc
            set_field(flags, home, 1)
    rc = _flush_flagged(ctx, flags, INDEX)
    if rc != 0:
        return rc
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) == _DONE:
            continue
        _, _, fp = place(load64(keys + 16 * i), load64(keys + 16 * i + 8), ranks, buckets)
        base = _base(ctx, c.INDEX_BASES, field(w, W_HOME))
        if base != 0:
            read_bucket_mapped(base, field(w, W_BUCKET), w + W_BUCKET_COPY * 8)
        slot = match_from(w + W_BUCKET_COPY * 8, 0, fp)
        set_field(w, W_SLOT, slot)
        set_field(w, W_STATE, _NONE)
        if slot >= 0:
            word = load64(w + (W_BUCKET_COPY + slot) * 8)
            store64(w + W_WORD * 8, word)
            # An alias is two look-ups: one by one.
            set_field(w, W_STATE, _CANDIDATE if in_bounds(ctx, word) and not is_alias(word) else _SLOW)
            if in_bounds(ctx, word):
                data = _base(ctx, c.DATA_BASES, rank_of(word))
                if data != 0:
                    prefetch(descriptor_address(ctx, data, page_of(word)))
                    prefetch(descriptor_address(ctx, data, page_of(word)) + 64)
    return np.int64(0)


@device
def _batch_begin(n, work):  # type: ignore[no-untyped-def]
    for i in range(n):
        set_field(work + i * WORK_WORDS * 8, W_STATE, _NONE)


@device
def _batch_fixed_copies(ctx, s, keys, n, targets, rooms, results, work):  # type: ignore[no-untyped-def]
    """What this node has copies of and needs no look at its home: done before the first Get."""
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
        home, _, _ = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
        if _base(ctx, c.INDEX_BASES, home) == 0:
            outcome = _get_copy(ctx, s, hi, lo, field(targets, i), field(rooms, i), 0, WHOLE, _ZERO, _ZERO)
            if outcome >= 0:
                _batch_done(ctx, s, i, outcome, results, w)


@device
def _batch_done(ctx, s, i, outcome, results, w):  # type: ignore[no-untyped-def]
    _account(ctx, s, outcome, WHOLE)
    set_field(results, i, outcome)
    set_field(w, W_STATE, _DONE)


@device
def _batch_chunk(ctx, s, keys, n, targets, rooms, results, work, flags):  # type: ignore[no-untyped-def]
    began = _now(ctx, s)
    copies = field(ctx, c.COPY_BUCKETS) != 0
    store64(s + c.BEGAN * 8, began)
    _batch_begin(n, work)
    if copies:
        _batch_fixed_copies(ctx, s, keys, n, targets, rooms, results, work)
    rc = _batch_buckets(ctx, keys, n, work, flags)
    if rc != 0:
        return _failed(s, rc)
    # Phase 2: descriptor and payload of what is on other nodes, one Flush per rank that holds some.
    arena_bytes = field(ctx, c.PAGES) * field(ctx, c.PAGE_BYTES)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) != _CANDIDATE:
            continue
        word = load64(w + W_WORD * 8)
        if not base_remote(ctx, word):
            set_field(w, W_STATE, _SLOW)  # a copy by loads: as fast one by one
            continue
        if copies:
            hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
            set_field(s, c.HOME, field(w, W_HOME))
            outcome = _get_copy(ctx, s, hi, lo, field(targets, i), field(rooms, i), 0, WHOLE, word, began)
            if outcome == c.MPI_FAILED:
                return outcome
            if outcome >= 0 and _now(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):
                set_field(w, W_STATE, _SLOW)
                continue
            if outcome >= 0:
                _batch_done(ctx, s, i, outcome, results, w)
                continue
            if not _claim(ctx, s, hi, lo, word):
                _batch_done(ctx, s, i, np.int64(c.CLAIMED), results, w)
                continue
            set_field(w, W_CLAIMING, field(s, c.CLAIMING))
        rank, page = rank_of(word), page_of(word)
        at = field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES
        rc = _get(ctx, w + W_DESCRIPTOR * 8, DESCRIPTOR_BYTES, rank, at, DATA)
        start = page * field(ctx, c.PAGE_BYTES)
        nbytes = min(field(rooms, i), arena_bytes - start)
        if rc == 0 and nbytes > 0:
            rc = _get(ctx, field(targets, i), nbytes, rank, field(ctx, c.ARENA_AT) + start, DATA)
        if rc != 0:
            return _failed(s, rc)
        set_field(flags, rank, 1)
    rc = _flush_flagged(ctx, flags, DATA)
    if rc != 0:
        return _failed(s, rc)
    # Phase 3: the words again, after the payloads are complete.
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        if field(w, W_STATE) != _CANDIDATE:
            continue
        home, at = field(w, W_HOME), field(w, W_BUCKET) * BUCKET_BYTES + field(w, W_SLOT) * 8
        hook(ctx, c.H_READER)
        base = _base(ctx, c.INDEX_BASES, home)
        if base != 0:
            fence_acquire()
            store64(w + W_AGAIN * 8, load_acquire(base + at))
        else:
            rc = _get(ctx, w + W_AGAIN * 8, 8, home, at, INDEX)
            if rc != 0:
                return _failed(s, rc)
            set_field(flags, home, 1)
    rc = _flush_flagged(ctx, flags, INDEX)
    if rc != 0:
        return _failed(s, rc)
    in_time = _now(ctx, s) - began <= np.uint64(field(ctx, c.ATTEMPT))
    # Phase 4: what is whole is a hit; every doubt goes the long way, one key at a time.
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
        room = field(rooms, i)
        outcome = np.int64(c.MISS)
        word = load64(w + W_WORD * 8)
        state = field(w, W_STATE)
        if state == _DONE:
            continue
        due = False
        if state == _CANDIDATE:
            descriptor = w + W_DESCRIPTOR * 8
            whole = (
                in_time
                and load64(w + W_AGAIN * 8) == word
                and is_cell_of(descriptor, word, hi, lo)
                and np.int64(load64(descriptor + O_LENGTH)) == room
                and fits(ctx, page_of(word), room)
                and not _expired(ctx, s, descriptor)
                and (not field(ctx, c.VERIFY) or checksum_holds(descriptor, field(targets, i), room))
            )
            if whole:
                outcome = room
                store64(s + c.WORD * 8, word)
                due = copies and _is_due(ctx, s, hi, lo, word)
            else:
                state = _SLOW
            if copies and not due and field(w, W_CLAIMING):
                _end_claim(ctx, hi, lo)
        if state == _SLOW:
            outcome, hi, lo = _get_named(ctx, s, hi, lo, field(targets, i), room, 0, WHOLE)
            if copies and field(s, c.CLAIMING):
                _end_claim(ctx, hi, lo)
            if outcome == c.WRONG_SIZE:
                set_field(results, i, -10 - field(s, c.LENGTH))
                continue
            if outcome == c.MPI_FAILED:
                return outcome
        _account(ctx, s, outcome, WHOLE)
        set_field(results, i, np.int64(c.DUE) if due else outcome)
    store64(s + c.BEGAN * 8, began)  # of what is due: who went the long way has begun later
    return np.int64(0)


@kernel("int64(int64,int64,int64,int64,int64,int64,int64,int64,int64)")
def get_many(ctx, s, keys, n, targets, rooms, results, work, flags):  # type: ignore[no-untyped-def]
    """Read n blocks: results[i] = bytes, or an outcome of `get`, or -10 - length for a wrong size.

    All areas by address: keys uint64[n, 2]; targets, rooms, results int64[n]; work uint64[BATCH, WORK_WORDS];
    flags int64[ranks], zero. 4 Gets a key, and one Flush per target and phase for each BATCH keys.
    """
    done = np.int64(0)
    while done < n:
        step = min(n - done, BATCH)
        rc = _batch_chunk(
            ctx, s, keys + 16 * done, step, targets + 8 * done, rooms + 8 * done, results + 8 * done, work, flags
        )
        if rc != 0:
            return rc
        done += step
    _poll(ctx, s)
    return np.int64(0)


@device
def _describe_chunk(ctx, s, keys, n, descriptors, results, work, flags):  # type: ignore[no-untyped-def]
    _batch_begin(n, work)
    rc = _batch_buckets(ctx, keys, n, work, flags)
    if rc != 0:
        return _failed(s, rc)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        word = load64(w + W_WORD * 8)
        if field(w, W_STATE) == _CANDIDATE:
            rank, page = rank_of(word), page_of(word)
            base = _base(ctx, c.DATA_BASES, rank)
            if base != 0:
                memcpy(w + W_DESCRIPTOR * 8, descriptor_address(ctx, base, page), DESCRIPTOR_BYTES)
            else:
                at = field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES
                rc = _get(ctx, w + W_DESCRIPTOR * 8, DESCRIPTOR_BYTES, rank, at, DATA)
                if rc != 0:
                    return _failed(s, rc)
                set_field(flags, rank, 1)
    rc = _flush_flagged(ctx, flags, DATA)
    if rc != 0:
        return _failed(s, rc)
    for i in range(n):
        w = work + i * WORK_WORDS * 8
        hi, lo = load64(keys + 16 * i), load64(keys + 16 * i + 8)
        state, outcome = field(w, W_STATE), np.int64(c.MISS)
        descriptor = w + W_DESCRIPTOR * 8
        word = load64(w + W_WORD * 8)
        length = np.int64(load64(descriptor + O_LENGTH))
        if (
            state == _CANDIDATE
            and is_cell_of(descriptor, word, hi, lo)
            and fits(ctx, page_of(word), length)
            and not _expired(ctx, s, descriptor)
        ):
            # No second look at the word: it named this generation when the bucket was read, and the
            # descriptor says which key that generation is. That is all a `contains` promises.
            outcome = length
        elif state != _NONE:
            descriptor = s + c.DESCRIPTOR_COPY * 8
            outcome, _, _ = _get_named(ctx, s, hi, lo, np.int64(0), np.int64(0), np.int64(0), np.int64(DESCRIBE))
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
    _poll(ctx, s)
    return np.int64(0)


_AHEAD = 16  # buckets that are asked for before they are read


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
            base = _base(ctx, c.INDEX_BASES, home)
            if base != 0:
                store8(results + i, _holds(base + bucket * BUCKET_BYTES, fp))
            else:
                rc = _get(ctx, work + remote * BUCKET_BYTES, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
                if rc != 0:
                    return _failed(s, rc)
                set_field(flags, home, 1)
                remote += 1
        if remote > 0:
            rc = _flush_flagged(ctx, flags, INDEX)
            if rc != 0:
                return _failed(s, rc)
            remote = np.int64(0)
            for i in range(start, stop):
                home, _, fp = place(load64(keys + 16 * i), load64(keys + 16 * i + 8), ranks, buckets)
                if _base(ctx, c.INDEX_BASES, home) == 0:
                    store8(results + i, _holds(work + remote * BUCKET_BYTES, fp))
                    remote += 1
        start = stop
    _poll(ctx, s)
    return np.int64(0)


@device
def _prefetch_bucket(ctx, key, ranks, buckets):  # type: ignore[no-untyped-def]
    home, bucket, _ = place(load64(key), load64(key + 8), ranks, buckets)
    base = _base(ctx, c.INDEX_BASES, home)
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


@kernel("void(int64,int64)")
def poll(ctx, s):  # type: ignore[no-untyped-def]
    """Enter MPI once (1 Iprobe), whatever POLL says, and send the touches that wait."""
    _send_touches(ctx, s)
    call_int(
        field(ctx, c.IPROBE),
        (field(ctx, c.ANY_SOURCE), field(ctx, c.ANY_TAG), field(ctx, c.PROBE_COMM), s + c.FLAG * 8, s + c.STATUS * 8),
    )
