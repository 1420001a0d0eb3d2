"""Reading a file into memory together with the checksum of what was read, in pieces that stay in the cache.

Covers one payload and the bytes of a header before it. Does not cover which file, nor what an error means: errno is not
looked at here, who gets fewer bytes than asked for reads once more with a call that says why.

A payload is summed piece by piece while the piece is in the core's own cache. Reading all of it first and summing it
then takes it through the cache twice: 16 MiB at 4.3 GB/s instead of 5.2, where reading alone goes at 6.1.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
from numba import types, uint64

from cascade_mpi.kernels.checksum import CHUNK, LANES, _begin, _chunk_word, _end, _fold, _sum_only, checksum_twin
from cascade_mpi.kernels.intrinsics import LINE_BYTES, store64
from cascade_mpi.kernels.jit import device, kernel

# A divisor of CHUNK, a multiple of LINE_BYTES. A fourth of it would stay in more caches, and is too little for the
# system to read ahead in time: 1.0 GB/s instead of 1.46 from a device, where 4 MiB give 1.49.
PIECE = 1 << 20

# Of libc, which is in every process: its offset is an off_t, 64 bits wide on all that Cascade runs on.
_pread = types.ExternalFunction("pread", types.int64(types.int32, types.int64, types.uint64, types.int64))


@device
def _filled(descriptor, address, nbytes, offset):  # type: ignore[no-untyped-def]
    """Bytes read from `offset`: fewer than `nbytes` at the end of the file, and after an error or a signal."""
    done = 0
    while done < nbytes:
        taken = _pread(descriptor, address + done, uint64(nbytes - done), offset + done)
        if taken <= 0:
            break
        done += taken
    return done


@kernel("int64(int32, int64, int64, int64, int64, int64, int64, int64)")
def read_summed_bytes(descriptor, head_at, head, head_bytes, offset, address, nbytes, value):  # type: ignore[no-untyped-def]
    """Local. `head_bytes` from `head_at` to `head` and `nbytes` from `offset` to `address`; the bytes read, of both.

    The checksum of the second goes to the address `value` (uint64), if all of them were read.
    """
    done = _filled(descriptor, head, head_bytes, head_at)
    if done < head_bytes:
        return done
    state = _begin(nbytes)
    for chunk in range(0, nbytes, CHUNK):
        size = min(CHUNK, nbytes - chunk)
        zero = uint64(0)
        sums = (zero, zero, zero, zero, zero, zero, zero, zero)
        for at in range(0, size, PIECE):
            piece = min(PIECE, size - at)
            taken = _filled(descriptor, address + chunk + at, piece, offset + chunk + at)
            done += taken
            if taken < piece:
                return done
            more = _sum_only(address + chunk + at, at // LINE_BYTES, piece // LINE_BYTES, 0, 0)
            sums = (
                sums[0] + more[0], sums[1] + more[1], sums[2] + more[2], sums[3] + more[3],
                sums[4] + more[4], sums[5] + more[5], sums[6] + more[6], sums[7] + more[7],
            )  # fmt: skip
        state = _fold(state, _chunk_word(sums, address + chunk, size))
    store64(value, _end(state))
    return done


def read_summed_twin(
    descriptor: int, head_at: int, head: npt.NDArray[np.uint8], offset: int, out: npt.NDArray[np.uint8]
) -> tuple[int, int | None]:
    """Local. What `read_summed_bytes` does, in plain Python: the bytes read, and the checksum if all were."""
    done = 0
    for at, target in ((head_at, head), (offset, out)):
        filled = 0
        while filled < target.size:
            taken = os.preadv(descriptor, [target[filled:]], at + filled)
            if not taken:
                return done + filled, None
            filled += taken
        done += filled
    return done, checksum_twin(out)


assert CHUNK % PIECE == 0 and PIECE % LINE_BYTES == 0 and LANES == 8  # as the sums above have it
