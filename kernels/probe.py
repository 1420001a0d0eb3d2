"""The steps of the protocol that need no MPI: where a key lives, what a word says, is this its cell.

Covers placement, decoding, the verification of a descriptor, its writing, and the local copy with its
re-check. Does not cover how bytes of another node are reached (`cascade_mpi.onesided`). The order of
the steps is the protocol; each fence has its reason beside it.
"""

from __future__ import annotations

import numpy as np

from cascade_mpi import layout
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.checksum import checksum, copy_checksum
from cascade_mpi.kernels.copy import copy
from cascade_mpi.kernels.intrinsics import (
    fence_acquire,
    fence_seq_cst,
    load16,
    load32,
    load64,
    load_acquire,
    load_relaxed,
    memcpy,
    store8,
    store16,
    store32,
    store64,
    store_relaxed,
)
from cascade_mpi.kernels.jit import device, kernel

_U = np.uint64
_MIX1, _MIX2, _MIX3 = _U(layout._MIX1), _U(layout._MIX2), _U(layout._MIX3)
_S27, _S29, _S30, _S31, _S32 = _U(27), _U(29), _U(30), _U(31), _U(32)
_FP_SHIFT, _FP_IN_KEY = _U(layout.FP_SHIFT), _U(64 - layout.FP_BITS)
_GENERATION_SHIFT, _GENERATION_MASK = _U(layout.GENERATION_SHIFT), _U(layout.MAX_GENERATION)
_RANK_SHIFT, _RANK_MASK, _PAGE_MASK = _U(layout.RANK_SHIFT), _U(layout.MAX_RANKS - 1), _U(layout.MAX_PAGES - 1)
_TIER_SHIFT, _TIER_MASK, _DRAM = _U(layout.TIER_SHIFT), _U(3), _U(layout.TIER_DRAM)
_DISK = _U(layout.TIER_DISK)
_ONE, _HARD = _U(1), _U(layout.HARD)
_MAGIC = _U(layout.MAGIC)
_FLAG_CHECKSUM, _FLAG_PREFIX = _U(layout.FLAG_CHECKSUM), _U(layout.FLAG_PREFIX)
_FLAG_COPY, _FLAG_FIXED = _U(layout.FLAG_COPY), _U(layout.FLAG_FIXED)
_NOT_OF_A_COPY = ~_U(layout.FLAG_PREFIX | layout.FLAG_BACKED | layout.FLAG_DISK)
_PREFIX_SHIFT, _HARD_SHIFT = _U(layout.FLAG_PREFIX.bit_length() - 1), _U(layout.HARD_SHIFT)

(
    O_GENERATION, O_FLAGS, O_LENGTH, O_HI, O_LO, O_CHECKSUM, O_NAMESPACE, O_EPOCH, O_EXPIRY, O_SEQUENCE, O_MANAGER,
    O_DTYPE, O_NDIM, O_DEPTH,
) = (
    layout.DESCRIPTOR.fields[name][1]  # type: ignore[index]
    for name in (
        "generation", "flags", "length", "key_hi", "key_lo", "checksum", "namespace", "epoch", "expiry", "sequence",
        "manager", "dtype", "ndim", "depth",
    )
)  # fmt: skip
O_ORIGIN = layout.DESCRIPTOR.fields["content_hi"][1]  # type: ignore[index]  # of a copy
O_CONTENT_HI, O_CONTENT_LO = O_ORIGIN, layout.DESCRIPTOR.fields["content_lo"][1]  # type: ignore[index]  # of an alias
O_DIM0, O_DIMS = layout.DESCRIPTOR.fields["dim0"][1], layout.DESCRIPTOR.fields["dims"][1]  # type: ignore[index]
DIMS_BYTES = 4 * (layout.MAX_DIMS - 1)
BUCKET_WORDS, BUCKET_BYTES, DESCRIPTOR_BYTES = layout.BUCKET_WORDS, layout.BUCKET_BYTES, layout.DESCRIPTOR_BYTES


@device
def field(base, index):  # type: ignore[no-untyped-def]
    """A word of a context or scratch as int64."""
    return np.int64(load64(base + index * 8))


@device
def set_field(base, index, value):  # type: ignore[no-untyped-def]
    """Set a word of a scratch."""
    store64(base + index * 8, np.uint64(value))


@device
def count(s, counter, by):  # type: ignore[no-untyped-def]
    """Add to a counter of this thread."""
    at = s + (c.COUNTERS + counter) * 8
    store64(at, np.uint64(np.int64(load64(at)) + by))


@device
def place(hi, lo, ranks, buckets):  # type: ignore[no-untyped-def]
    """(home, bucket, fingerprint) as `layout.place`."""
    a = (hi * _MIX1) ^ lo
    a = (a ^ (a >> _S30)) * _MIX2
    b = (a ^ (a >> _S27)) + (hi ^ _MIX1)
    b = (b ^ (b >> _S31)) * _MIX3
    b ^= b >> _S29
    a = (a ^ (b >> _S32) ^ (b << _S32)) * _MIX3
    home = ((a >> _S32) * np.uint64(ranks)) >> _S32
    return np.int64(home), np.int64(b & np.uint64(buckets - 1)), b >> _FP_IN_KEY


@device
def fingerprint_of(word):  # type: ignore[no-untyped-def]
    """The fingerprint in a word; compare only words that are not 0."""
    return word >> _FP_SHIFT


@device
def rank_of(word):  # type: ignore[no-untyped-def]
    """The rank that a word names."""
    return np.int64((word >> _RANK_SHIFT) & _RANK_MASK)


@device
def page_of(word):  # type: ignore[no-untyped-def]
    """The first page that a word names."""
    return np.int64(word & _PAGE_MASK)


@device
def same_cell(word, other):  # type: ignore[no-untyped-def]
    """Do two words name the same cell in the same generation? Anybody may toggle the hard bit of a word."""
    return (word | _HARD) == (other | _HARD)


@device
def in_bounds(ctx, word):  # type: ignore[no-untyped-def]
    """True if the word names a cell of this store: only then may its address be used. Aliases lie in arenas too."""
    tier, page, pages = (word >> _TIER_SHIFT) & _TIER_MASK, page_of(word), field(ctx, c.PAGES)
    if rank_of(word) >= field(ctx, c.RANKS):
        return False
    if tier <= _DRAM:
        return page < pages
    return tier == _DISK and page >= pages and page < field(ctx, c.CELLS)


@device
def is_alias(word):  # type: ignore[no-untyped-def]
    """Does a word that is in bounds name an alias?"""
    return ((word >> _TIER_SHIFT) & _TIER_MASK) < _DRAM


@device
def is_disk(word):  # type: ignore[no-untyped-def]
    """Does a word that is in bounds name a disk cell, which has no memory of an arena?"""
    return ((word >> _TIER_SHIFT) & _TIER_MASK) > _DRAM


@device
def in_arena(word):  # type: ignore[no-untyped-def]
    """Does a word that is in bounds name a payload in an arena? Neither an alias nor a disk cell has one."""
    return ((word >> _TIER_SHIFT) & _TIER_MASK) == _DRAM


@device
def is_cell_of(descriptor, word, hi, lo):  # type: ignore[no-untyped-def]
    """Does this copy of a descriptor say: the cell of that generation holds this key?"""
    return (
        load32(descriptor) == _MAGIC
        and load16(descriptor + O_GENERATION) == ((word >> _GENERATION_SHIFT) & _GENERATION_MASK)
        and load64(descriptor + O_HI) == hi
        and load64(descriptor + O_LO) == lo
    )


@device
def fits(ctx, word, length):  # type: ignore[no-untyped-def]
    """Does a payload of this length end inside the arena? A torn descriptor's need not. On disk there is no end."""
    room = (field(ctx, c.PAGES) - page_of(word)) * field(ctx, c.PAGE_BYTES)
    return length >= 0 and (length <= room or is_disk(word))


@device
def payload_address(ctx, base, page):  # type: ignore[no-untyped-def]
    """Where a mapped rank's page lies."""
    return base + field(ctx, c.ARENA_AT) + page * field(ctx, c.PAGE_BYTES)


@device
def descriptor_address(ctx, base, page):  # type: ignore[no-untyped-def]
    """Where a mapped rank's descriptor lies."""
    return base + field(ctx, c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES


@device
def hook(ctx, point):  # type: ignore[no-untyped-def]
    """Tests only: hold the caller here, at random or at a gate. One load and a branch in production."""
    hooks = field(ctx, c.HOOKS)
    if hooks == 0:
        return
    mode = field(hooks, point)
    if mode < 0:
        ticket = load_relaxed(hooks + c.H_ARRIVED * 8) + _ONE
        store_relaxed(hooks + c.H_ARRIVED * 8, ticket)
        while load_relaxed(hooks + c.H_RELEASED * 8) < ticket:
            pass
    elif mode > 0:
        x = load64(hooks + c.H_RANDOM * 8)
        x ^= x << _U(13)
        x ^= x >> _U(7)
        x ^= x << _U(17)
        store64(hooks + c.H_RANDOM * 8, x)
        store64(hooks + c.H_PASSED * 8, load64(hooks + c.H_PASSED * 8) + _ONE)
        spins = np.int64((x >> _S32) % np.uint64(mode))
        while spins > 0:
            load_relaxed(hooks)
            spins -= 1


@device
def read_bucket_mapped(base, bucket, copy_to):  # type: ignore[no-untyped-def]
    """Copy a bucket of a mapped rank word by word: each word is whole, the bucket need not be.

    Highest slot first: of two words of one key the higher is taken away after the lower was published,
    so who finds the higher one gone still meets the lower one.
    """
    at = base + bucket * BUCKET_BYTES
    for i in range(BUCKET_WORDS - 1, -1, -1):
        store64(copy_to + i * 8, load_acquire(at + i * 8))


@device
def copy_then_reload(target, source, nbytes, word_at, ctx):  # type: ignore[no-untyped-def]
    """Copy a payload, then read the word again."""
    copy(target, source, nbytes)
    hook(ctx, c.H_READER)
    # The copy's loads must be done before the word is loaded: an acquire load alone does not hold back
    # what stands before it (on Arm it could be read first, and a reused cell would pass for the old one).
    fence_acquire()
    return load_acquire(word_at)


@device
def write_payload_then_fence(target, source, nbytes):  # type: ignore[no-untyped-def]
    """Write a payload so that whoever sees the word that is published next sees all of it."""
    copy(target, source, nbytes)
    # Streaming stores are not ordered by a release fence on x86; a full barrier drains them.
    fence_seq_cst()


@kernel("uint64(int64,int64,int64,int64,int64)")
def copy_and_reload(target, source, nbytes, word_at, ctx):  # type: ignore[no-untyped-def]
    """The local read's last steps as one call: tests look at its assembly."""
    return copy_then_reload(target, source, nbytes, word_at, ctx)


@kernel("uint64(int64)")
def reload(word_at):  # type: ignore[no-untyped-def]
    """Read a mapped word again after a copy that other threads made."""
    fence_acquire()
    return load_acquire(word_at)


@kernel("void(int64,int64,int64)")
def copy_bucket(base, bucket, copy_to):  # type: ignore[no-untyped-def]
    """The bucket of a mapped rank as one call."""
    read_bucket_mapped(base, bucket, copy_to)


@kernel("void(int64,uint64)")
def store_word(at, word):  # type: ignore[no-untyped-def]
    """Write a mapped word after everything before and before everything after it: a pin, or its end."""
    fence_seq_cst()
    store_relaxed(at, word)
    fence_seq_cst()


@kernel("void(int64,int64)")
def pause(ctx, point):  # type: ignore[no-untyped-def]
    """Tests only: the hook as one call."""
    hook(ctx, point)


@kernel("void(int64,int64,int64)")
def write_cell_payload(target, source, nbytes):  # type: ignore[no-untyped-def]
    """A payload and the fence behind it as one call."""
    write_payload_then_fence(target, source, nbytes)


@kernel(
    "uint64(int64,int64,uint64,uint64,uint64,int64,int64,uint64,uint64,int64,int64,uint64,int64,int64,int64,uint64,"
    "int64,int64)"
)
def write_cell(  # type: ignore[no-untyped-def]
    ctx, page, hi, lo, generation, flags, length, namespace, epoch, dtype, ndim, sequence, dim0, dims, source, total,
    expiry, depth,
):  # fmt: skip
    """Write descriptor and payload of an own cell that no word names yet, then the fence: the word for it.

    `dims` is the address of 7 u32 (0: none), `source` that of the payload (0: it is there already with the
    checksum `total`, and its threads have fenced). With FLAG_CHECKSUM in `flags` the checksum is computed
    in the copy; with FLAG_PREFIX the word is a hard one. `expiry` and `depth` as in `layout`.
    """
    rank = field(ctx, c.RANK)
    base = field(field(ctx, c.DATA_BASES), 2 * rank)
    descriptor, target = descriptor_address(ctx, base, page), payload_address(ctx, base, page)
    store32(descriptor, 0)  # a reader with an old word must not find a mixture that looks whole
    fence_seq_cst()
    if source != 0 and np.uint64(flags) & _FLAG_CHECKSUM:
        total = copy_checksum(target, source, length)
    elif source != 0:
        copy(target, source, length)
    store16(descriptor + O_GENERATION, generation)
    store16(descriptor + O_FLAGS, flags)
    store64(descriptor + O_LENGTH, length)
    store64(descriptor + O_HI, hi)
    store64(descriptor + O_LO, lo)
    store64(descriptor + 32, 0)
    store64(descriptor + 40, 0)
    store64(descriptor + O_CHECKSUM, total)
    store64(descriptor + O_NAMESPACE, namespace)
    store32(descriptor + O_EPOCH, epoch)
    store32(descriptor + O_EXPIRY, expiry)
    store64(descriptor + O_SEQUENCE, sequence)
    store16(descriptor + O_MANAGER, rank)
    store8(descriptor + O_DTYPE, dtype)
    store8(descriptor + O_NDIM, ndim)
    store32(descriptor + O_DEPTH, depth)
    store64(descriptor + O_DIM0, dim0)
    if dims != 0:
        memcpy(descriptor + O_DIMS, dims, DIMS_BYTES)
    else:
        for at in range(O_DIMS, O_DIMS + DIMS_BYTES, 4):
            store32(descriptor + at, 0)
    fence_seq_cst()
    store32(descriptor, _MAGIC)
    # Payload and descriptor before the word; drains the streaming stores too.
    fence_seq_cst()
    _, _, fp = place(hi, lo, field(ctx, c.RANKS), field(ctx, c.BUCKETS))
    hard = (np.uint64(flags) & _FLAG_PREFIX) >> _PREFIX_SHIFT
    return (
        (fp << _FP_SHIFT) | (generation << _GENERATION_SHIFT) | (hard << _HARD_SHIFT) | (_DRAM << _TIER_SHIFT)
        | (np.uint64(rank) << _RANK_SHIFT) | np.uint64(page)
    )  # fmt: skip


@kernel("uint64(int64,int64,int64,uint64,int64,int64)")
def write_copy(ctx, page, generation, origin, described, source):  # type: ignore[no-untyped-def]
    """Write a copy into an own cell that no word names yet, then the fence: the word for it.

    `origin` is the index word that was read, `described` the address of a private copy of its descriptor, `source`
    that of the payload (0: it is there already). 0 if the payload does not have the checksum that it should have.
    """
    rank = field(ctx, c.RANK)
    base = field(field(ctx, c.DATA_BASES), 2 * rank)
    descriptor, target = descriptor_address(ctx, base, page), payload_address(ctx, base, page)
    length, flags = np.int64(load64(described + O_LENGTH)), load16(described + O_FLAGS)
    store32(descriptor, 0)  # as in write_cell
    fence_seq_cst()
    total = load64(described + O_CHECKSUM)
    if flags & _FLAG_CHECKSUM and source != 0:
        total = copy_checksum(target, source, length)
    elif flags & _FLAG_CHECKSUM:
        total = checksum(target, length)
    elif source != 0:
        copy(target, source, length)
    if total != load64(described + O_CHECKSUM):
        return _U(0)  # damaged, or its descriptor was read while the checksum was entered: not to be handed on
    memcpy(descriptor + 4, described + 4, DESCRIPTOR_BYTES - 4)
    store16(descriptor + O_GENERATION, generation)
    # Never hard: it can be fetched again. Nor backed: what says by which disk cell names the origin now.
    store16(descriptor + O_FLAGS, (flags | _FLAG_COPY) & _NOT_OF_A_COPY)
    store64(descriptor + O_ORIGIN, origin)
    store16(descriptor + O_MANAGER, rank)
    fence_seq_cst()
    store32(descriptor, _MAGIC)
    fence_seq_cst()
    return (
        (fingerprint_of(origin) << _FP_SHIFT) | (_U(generation) << _GENERATION_SHIFT) | (_DRAM << _TIER_SHIFT)
        | (_U(rank) << _RANK_SHIFT) | _U(page)
    )  # fmt: skip


@device
def is_copy(descriptor):  # type: ignore[no-untyped-def]
    """Does a descriptor say that its cell is a copy?"""
    return load16(descriptor + O_FLAGS) & _FLAG_COPY != _U(0)


@device
def is_fixed(descriptor):  # type: ignore[no-untyped-def]
    """Does a descriptor say that its key determines the content?"""
    return load16(descriptor + O_FLAGS) & _FLAG_FIXED != _U(0)


@device
def is_hard(word):  # type: ignore[no-untyped-def]
    """Does a word name a block that may not be dropped?"""
    return (word >> _HARD_SHIFT) & _ONE != _U(0)


@kernel("void()")
def full_fence():  # type: ignore[no-untyped-def]
    """Between the removal of a word and the look at the pins: the store must be seen before the load, on x86 too."""
    fence_seq_cst()


@kernel("uint64(int64,int64)")
def checksum_cell(descriptor, payload):  # type: ignore[no-untyped-def]
    """Compute the checksum of a cell's payload and enter it; the cell must be pinned or private."""
    total = checksum(payload, np.int64(load64(descriptor + O_LENGTH)))
    store64(descriptor + O_CHECKSUM, total)
    fence_seq_cst()
    store16(descriptor + O_FLAGS, load16(descriptor + O_FLAGS) | _FLAG_CHECKSUM)
    return total


@device
def checksum_holds(descriptor, payload, length):  # type: ignore[no-untyped-def]
    """Compare a payload with its descriptor; True if there is nothing to compare."""
    if not load16(descriptor + O_FLAGS) & _FLAG_CHECKSUM:
        return True
    return checksum(payload, length) == load64(descriptor + O_CHECKSUM)


@device
def match_from(bucket_copy, first, fp):  # type: ignore[no-untyped-def]
    """The lowest slot >= first whose word has this fingerprint, or -1."""
    for slot in range(first, BUCKET_WORDS):
        word = load64(bucket_copy + slot * 8)
        if word != _U(0) and fingerprint_of(word) == fp:
            return slot
    return -1
