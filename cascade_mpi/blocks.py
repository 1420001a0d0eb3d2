"""Blocks whose every byte is known from their id: what a workload writes, and how it checks what it reads.

Covers a pool of equally long block buffers: filling them, poisoning them before a read, and comparing
them. Does not cover how the words are made (see `kernels.fill`) nor which blocks a request needs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from cascade_mpi.kernels import fill as kernels

Verify = Literal["full", "sample", "off"]
Ids = npt.NDArray[np.uint64]

POISON = 0xDEADBEEF_DEADBEEF
_POISON_STEP = 512  # words: one in every 4 KiB page
_SAMPLED_WORDS = 64


class BlockPool:
    """Buffers for up to `count` blocks of `block_bytes` bytes each, reused from call to call."""

    def __init__(self, block_bytes: int, count: int) -> None:
        if block_bytes < 1 or count < 1:
            raise ValueError(f"{count} blocks of {block_bytes} bytes: both must be at least 1")
        self.block_bytes = block_bytes
        self.words = np.zeros((count, -(-block_bytes // 8)), dtype=np.uint64)
        tail = block_bytes % 8
        self._last_mask = (1 << 8 * tail) - 1 if tail else (1 << 64) - 1  # blocks are little-endian words
        self._wrong = np.zeros(count, dtype=np.bool_)
        as_bytes = self.words.view(np.uint8)
        self.buffers: list[npt.NDArray[np.uint8]] = [row[:block_bytes] for row in as_bytes]

    def __len__(self) -> int:
        """Local. How many blocks it holds."""
        return len(self.buffers)

    def fill(self, ids: Ids, first: int) -> list[npt.NDArray[np.uint8]]:
        """Local. Write the contents of `ids`, at positions `first`, `first + 1`, ... of their prefix; the buffers."""
        kernels.fill(self.words, ids, first)
        return self.buffers[: len(ids)]

    def poison(self, count: int) -> list[npt.NDArray[np.uint8]]:
        """Local. Spoil the first `count` buffers; the buffers.

        A word in each page of 4 KiB and the last one: a read that wrote nothing, or only a part, must not
        be saved by what the buffer held before (the first blocks of many requests are the same).
        """
        self.words[:count, ::_POISON_STEP] = POISON
        self.words[:count, -1] = POISON
        return self.buffers[:count]

    def wrong(self, ids: Ids, first: int, verify: Verify = "full") -> npt.NDArray[np.bool_]:
        """Local. For each buffer, whether it is not what `fill(ids, first)` would have written.

        "full" compares every byte; "sample" 64 words over the block and the last one: it sees blocks that
        were swapped, shifted or cut, not small damage in between; "off" finds nothing.
        """
        found = self._wrong[: len(ids)]
        found[:] = False
        if verify != "off":
            words = self.words.shape[1]
            step = 1 if verify == "full" else max(1, words // _SAMPLED_WORDS)
            kernels.differs(self.words, ids, first, self._last_mask, step, found)
        return found
