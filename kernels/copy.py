"""Copying a block: libc's memcpy for small ones, streaming stores for the rest.

Covers how bytes are moved by one thread. Does not cover the order against other ranks (callers place
their fences; see `probe`), the copy with a checksum (see `checksum`) nor several threads (see
`cascade_mpi.copier`). Source and target must not overlap.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cascade_mpi.kernels.intrinsics import fence_seq_cst, memcpy, stream_line
from cascade_mpi.kernels.jit import device, kernel

# From this size on lines are streamed past the cache. Measured on an Emerald Rapids core (2 MiB L2, 260 MiB L3,
# glibc 2.36) from /dev/shm, the blocks drawn from 1 GiB: 128 KiB 5.8 GB/s with memcpy, 8.7 streamed; 1 MiB and more
# 7.1 against 11.5. A store's blocks are rarely in a cache. The price is paid where both sides are: 34 against 20 GB/s
# at 128 KiB. Below, streaming gains little and the reader of the copy wants it in its cache.
STREAM_BYTES = 128 << 10

LINE = 64
# Lines are taken from four pages in turn: the prefetcher follows a stream only to the end of its page, so one page
# after the other pays that start every 4 KiB (10.0 GB/s; two pages 11.2, four 11.6, eight 12.0, with twice the code).
PAGE = 4096
GROUP = 4 * PAGE


@device
def _stream_four(target, source):  # type: ignore[no-untyped-def]
    stream_line(target, source)
    stream_line(target + 64, source + 64)
    stream_line(target + 128, source + 128)
    stream_line(target + 192, source + 192)


@device
def copy(target, source, nbytes):  # type: ignore[no-untyped-def]
    """Copy `nbytes` from address to address (int64), whatever their alignment.

    No fence: from `STREAM_BYTES` on, other cores see the target in order only after a `fence_seq_cst`.
    """
    if nbytes < STREAM_BYTES:
        memcpy(target, source, nbytes)
        return
    head = -target & (LINE - 1)  # streaming stores need aligned targets; loads from a shifted source are cheap
    memcpy(target, source, head)
    target += head
    source += head
    left = nbytes - head
    while left >= GROUP:
        for _ in range(PAGE // (4 * LINE)):
            _stream_four(target, source)
            _stream_four(target + PAGE, source + PAGE)
            _stream_four(target + 2 * PAGE, source + 2 * PAGE)
            _stream_four(target + 3 * PAGE, source + 3 * PAGE)
            target += 4 * LINE
            source += 4 * LINE
        target += GROUP - PAGE
        source += GROUP - PAGE
        left -= GROUP
    while left >= LINE:
        stream_line(target, source)
        target += LINE
        source += LINE
        left -= LINE
    memcpy(target, source, left)


@kernel("void(int64, int64, int64)")
def copy_bytes(target, source, nbytes):  # type: ignore[no-untyped-def]
    """Copy `nbytes` between two addresses and make the copy visible to every core."""
    copy(target, source, nbytes)
    fence_seq_cst()


def copy_twin(target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
    """Local. Copy all bytes of `source` over the first ones of `target`: the NumPy twin of `copy`."""
    target[: source.size] = source
