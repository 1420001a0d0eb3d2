"""What calls leave behind beside their results: touches, notes that a word has gone, counts of hits.

Covers hints to the managers of cells, which never decide anything, how they are sent, and MPI's progress. Does not
cover what a manager makes of them (`cells`, `victims`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import call_int, load64, store8, store32, store64
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import count, field, page_of, rank_of, set_field
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.mpi import DATA
from cascade_mpi.onesided.words import DESCRIBE, DESCRIBE_ANY, TICKS, ticks

_U = np.uint64


@device
def note_touch(ctx, s, word):  # type: ignore[no-untyped-def]
    """Note that the cell was used: a store on the own node, else an entry for the next batch of Puts.

    Into the touch array only, never into a cell: the cell may have a new owner by now.
    """
    rank, page = rank_of(word), page_of(word)
    now = ticks(ctx, s)
    base = mpi.base(ctx, c.DATA_BASES, rank)
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
    store64(s + c.TOUCH_VALUE * 8, ticks(ctx, s))
    for i in range(pending):
        rank, page = field(s, c.TOUCH_RING + 2 * i), field(s, c.TOUCH_RING + 2 * i + 1)
        rc = mpi.put(ctx, s + c.TOUCH_VALUE * 8, 4, rank, field(ctx, c.TOUCH_AT) + page * 4, DATA)
        if rc != 0:
            return rc
    for i in range(pending):
        rank = field(s, c.TOUCH_RING + 2 * i)
        first = True
        for j in range(i):
            if field(s, c.TOUCH_RING + 2 * j) == rank:
                first = False
        if first:
            rc = mpi.flush(ctx, rank, DATA)
            if rc != 0:
                return rc
    set_field(s, c.TOUCHES, 0)
    return np.int64(0)


@device
def note_gone(ctx, s, word):  # type: ignore[no-untyped-def]
    """Tell the manager of a cell that its word was taken away: a hint for its sweep. 1 Put + 1 Flush."""
    rank, page = rank_of(word), page_of(word)
    base = mpi.base(ctx, c.DATA_BASES, rank)
    at = field(ctx, c.GONE_AT) + page
    if base != 0:
        store8(base + at, 1)
        return np.int64(0)
    store64(s + c.TOUCH_VALUE * 8, _U(1))
    rc = mpi.put(ctx, s + c.TOUCH_VALUE * 8, 1, rank, at, DATA)
    if rc == 0:
        rc = mpi.flush(ctx, rank, DATA)
    return rc if rc == 0 else mpi.failed(s, rc)


@device
def count_hit(ctx, s, rank, nbytes):  # type: ignore[no-untyped-def]
    """Count a read by where the block lay: on this rank, on this node, on another one."""
    if rank == field(ctx, c.RANK):
        where = 0
    elif mpi.base(ctx, c.DATA_BASES, rank) != 0:
        where = 1
    else:
        where = 2
    count(s, c.C_HITS_SELF + where, 1)
    count(s, c.C_BYTES_SELF + where, nbytes)


@device
def account(ctx, s, outcome, what):  # type: ignore[no-untyped-def]
    """What every read ends with: its count, and the touch of what was read, or is on disk and yet to be read."""
    read = what not in (DESCRIBE, DESCRIBE_ANY)
    if (outcome >= 0 or outcome == c.ON_DISK) and read:
        word = load64(s + c.WORD * 8)
        if outcome >= 0:
            count_hit(ctx, s, rank_of(word), outcome)
        note_touch(ctx, s, word)
    elif outcome == c.MISS and read:
        count(s, c.C_MISSES, 1)


@kernel("void(int64,int64,uint64)")
def touch(ctx, s, word):  # type: ignore[no-untyped-def]
    """Note that a cell was used, without a read of it: another name was given to its content."""
    note_touch(ctx, s, word)


@kernel("int64(int64,int64,uint64)")
def hint_gone(ctx, s, word):  # type: ignore[no-untyped-def]
    """Tell the manager of a cell that its word was taken away: a hint for its sweep. 1 Put + 1 Flush."""
    return note_gone(ctx, s, word)


@kernel("void(int64,int64)")
def poll(ctx, s):  # type: ignore[no-untyped-def]
    """Enter MPI once (1 Iprobe), whatever POLL says, and send the touches that wait."""
    _send_touches(ctx, s)
    call_int(
        field(ctx, c.IPROBE),
        (field(ctx, c.ANY_SOURCE), field(ctx, c.ANY_TAG), field(ctx, c.PROBE_COMM), s + c.FLAG * 8, s + c.STATUS * 8),
    )
