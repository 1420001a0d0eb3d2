"""Hazard slots: keep a cell from being reused while this rank looks at it.

Covers the two steps of a pin and its end. Does not cover who owns a slot (`cascade_mpi.pins`) nor when a manager
looks at them (`cells`).
"""

from __future__ import annotations

import numpy as np

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.intrinsics import fence_seq_cst, store64, store_relaxed
from cascade_mpi.kernels.jit import device, kernel
from cascade_mpi.kernels.probe import field, is_disk, rank_of
from cascade_mpi.onesided import mpi
from cascade_mpi.onesided.mpi import PINS
from cascade_mpi.onesided.words import reload_word

_U = np.uint64
_ZERO = _U(0)
SLOTS_PER_PEER = 8


@device
def _write_pin(ctx, s, manager, base, at, word):  # type: ignore[no-untyped-def]
    if base != 0:
        store_relaxed(base + at, word)
        return np.int64(0)
    store64(s + c.ORIGIN * 8, word)
    rc = mpi.put(ctx, s + c.ORIGIN * 8, 8, manager, at, PINS)
    return rc if rc != 0 else mpi.flush(ctx, manager, PINS)


@kernel("int64(int64,int64,uint64,int64,int64,int64,int64)")
def pin(ctx, s, word, pin_slot, home, bucket, slot):  # type: ignore[no-untyped-def]
    """Write the word into a hazard slot of its manager, then read the word again: 1 if it is pinned, else 0.

    1 Put + 1 Get + 2 Flushes. The slot is cleared again when the word has left. ON_DISK, and nothing written, for the
    word of a disk cell: there is no memory to be kept, and its record may be moved under a reader.
    """
    if is_disk(word):
        return np.int64(c.ON_DISK)
    manager = rank_of(word)
    base = mpi.base(ctx, c.PIN_BASES, manager)
    at = (field(ctx, c.RANK) * SLOTS_PER_PEER + pin_slot) * 8
    rc = _write_pin(ctx, s, manager, base, at, word)
    if rc != 0:
        return mpi.failed(s, rc)
    # The pin must be seen before the word is read: the manager removes the word, then looks at the pins.
    fence_seq_cst()
    rc, again = reload_word(ctx, s, home, bucket, slot)
    if rc != 0:
        return mpi.failed(s, rc)
    if again == word:
        return np.int64(1)
    rc = _write_pin(ctx, s, manager, base, at, _ZERO)
    return np.int64(0) if rc == 0 else mpi.failed(s, rc)


@kernel("int64(int64,int64,int64,int64)")
def unpin(ctx, s, manager, pin_slot):  # type: ignore[no-untyped-def]
    """Clear a hazard slot, after everything that was read under it. 1 Put + 1 Flush."""
    fence_seq_cst()
    at = (field(ctx, c.RANK) * SLOTS_PER_PEER + pin_slot) * 8
    rc = _write_pin(ctx, s, manager, mpi.base(ctx, c.PIN_BASES, manager), at, _ZERO)
    return rc if rc == 0 else mpi.failed(s, rc)
