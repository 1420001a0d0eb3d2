"""The disk cells of one rank: descriptors and words without memory of the arena, and who still names them.

Covers their life: reserved, written, live, resting, free; and the sweep of those that the index names no more. Does not
cover records and files (`tier`), nor how a word is swapped for another.

A cell is live while the index has its word, or the word of a block in memory that it backs. A look that finds neither
is final (`docs/disk.md`), if the descriptors that it saw belong to the words that it saw.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.disk.look import descriptor_of
from cascade_mpi.fabric import Fabric, Scratch
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import (
    BUCKET_WORDS,
    DESCRIPTOR,
    FLAG_BACKED,
    FLAG_CHECKSUM,
    FLAG_DISK,
    FP_SHIFT,
    GENERATION_SHIFT,
    HARD,
    MAGIC,
    MAX_GENERATION,
    MAX_PAGES,
    MAX_RANKS,
    RANK_SHIFT,
    TIER_DISK,
    TIER_DRAM,
    next_generation,
    pack_location,
    pack_word,
    place,
    unpack_word,
)
from cascade_mpi.segments.format import Location

REST_S = 0.1  # before a cell is used again: with all its generations longer than the longest read of a record
ATTEMPT_S = REST_S * MAX_GENERATION / 2  # how long a read may last
_LOOKS = 1000  # at a bucket that does not hold still
_POLL_S = 1e-3


class DiskCells:
    """The cells of this rank. The caller of what changes something holds the lock of its pool."""

    def __init__(self, fabric: Fabric, scratch: Scratch) -> None:
        self._fabric, self._scratch = fabric, scratch
        pages, n = fabric.pages, fabric.disk_blocks
        self.records = fabric.descriptors[pages:].view(DESCRIPTOR)[:, 0]
        self._gone, self.touched = fabric.gone[pages:], fabric.touched[pages:]
        self.words = np.zeros(n, np.uint64)  # of live cells, without hard bits; 0: the cell is not live
        self._generations = np.zeros(n, np.uint16)
        self._unused = 0  # cells from here on were never used
        self._free: deque[int] = deque()
        self._resting: deque[tuple[float, int]] = deque()
        self._reserved: set[int] = set()
        self.live = self.live_bytes = self.swept = 0
        self.entered: Callable[[int, int], None] | None = None  # told word and expiry of a live cell that has one
        self.died: Callable[[Any], None] | None = None  # told the descriptor of a cell that is live no more

    # --------------------------------------------------------------------------------------------------------- its life

    def adopt(self, described: npt.NDArray[np.void], fingerprints: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Local. Take over the blocks of an earlier job, before any other use: their words, uint64[n].

        `described` as `descriptors_of` makes them.
        """
        n = len(described)
        self.records[:n] = described
        self._generations[:n], self._unused = 1, n
        rank, pages = self._fabric.comm.rank, self._fabric.pages
        some = pack_word(0, 1, TIER_DISK, rank, pages)
        words = np.uint64(some) + np.arange(n, dtype=np.uint64) + (fingerprints << np.uint64(FP_SHIFT))
        self.words[:n] = words
        self.live, self.live_bytes = n, int(described["length"].sum())
        full_fence()
        return words

    def reserve(self) -> int | None:
        """Local. A cell that nothing names, its generation raised; None: all are live. Waits for those that rest."""
        while True:
            now = time.monotonic()
            while self._resting and self._resting[0][0] <= now:
                self._free.append(self._resting.popleft()[1])
            if self._unused < self.words.size:
                cell, self._unused = self._unused, self._unused + 1
            elif self._free:
                cell = self._free.popleft()
            elif self._resting:
                self._fabric.poll(self._fabric.ctx, self._scratch.address)
                time.sleep(_POLL_S)
                continue
            else:
                return None
            self._generations[cell] = next_generation(int(self._generations[cell]))
            self._reserved.add(cell)
            return cell

    def write(self, cell: int, described: Any, location: Location, checksum: int) -> int:
        """Local. Describe a reserved cell as a block in memory is described, whose record is there: its word.

        Never with FLAG_HELD: what is protected does not leave memory, so what comes back from here was not.
        """
        fabric, record = self._fabric, self.records[cell : cell + 1]
        made = np.array([described], DESCRIPTOR)  # one copy of 128 bytes: a fifth of the time of its 20 fields
        made["flags"] = int(described["flags"]) & ~FLAG_BACKED | FLAG_DISK | FLAG_CHECKSUM
        made["generation"], made["manager"] = self._generations[cell], fabric.comm.rank
        made["content_hi"], made["content_lo"] = pack_location(*location), 0
        made["checksum"], made["magic"] = checksum, 0
        record["magic"] = 0  # a reader with an old word must not find a mixture that looks whole
        full_fence()
        record[:] = made
        full_fence()
        record["magic"] = MAGIC
        full_fence()  # before any word names it
        hi, lo = int(described["key_hi"]), int(described["key_lo"])
        fp = place(hi, lo, fabric.comm.size, fabric.buckets).fp
        return pack_word(fp, int(self._generations[cell]), TIER_DISK, fabric.comm.rank, fabric.pages + cell)

    def enter(self, word: int) -> None:
        """Local. A cell is live from now on: the index has its word, or soon that of a block that it backs."""
        cell = self.cell_of(word)
        self._reserved.discard(cell)
        self.words[cell] = word & ~HARD
        self.live += 1
        self.live_bytes += int(self.records["length"][cell])
        self.touched[cell] = self._fabric.ticks() & 0xFFFFFFFF
        if self.entered is not None and (expiry := int(self.records["expiry"][cell])):
            self.entered(word & ~HARD, expiry)

    def give_up(self, cell: int) -> None:
        """Local. A reserved cell whose word was nowhere rests."""
        self._reserved.discard(cell)
        self._rest(cell)

    def retire(self, word: int) -> bool:
        """Local. Nothing names an own cell any more, and nothing will: it rests. False if that was known."""
        cell = self.cell_of(word)
        if int(self.words[cell]) != word & ~HARD:
            return False
        self.words[cell] = 0
        self.live -= 1
        self.live_bytes -= int(self.records["length"][cell])
        if self.died is not None:
            self.died(self.records[cell])
        self._rest(cell)
        return True

    def _rest(self, cell: int) -> None:
        self._resting.append((time.monotonic() + REST_S, cell))

    # ------------------------------------------------------------------------------------------------- what is known

    def cell_of(self, word: int) -> int:
        """Local. The number of an own cell, from 0."""
        return (word & MAX_PAGES - 1) - self._fabric.pages

    def is_live(self, word: int) -> bool:
        """Local. Whether an own cell is that word's still."""
        return int(self.words[self.cell_of(word)]) == word & ~HARD

    @property
    def spare(self) -> int:
        """How many cells `reserve` gives before all are live, now or after a rest."""
        return self.words.size - self.live - len(self._reserved)

    def word_at(self, location: Location) -> int:
        """Local. The word of the live cell whose record is there; 0: there is none."""
        found = np.flatnonzero((self.records["content_hi"] == np.uint64(pack_location(*location))) & (self.words != 0))
        return int(self.words[found[0]]) if found.size else 0

    def own_cell(self, word: int) -> int | None:
        """Local. The number of the disk cell of a word, None if another rank manages it."""
        return self.cell_of(word) if word >> RANK_SHIFT & MAX_RANKS - 1 == self._fabric.comm.rank else None

    def backing(self, described: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Local. The own cells that back blocks in memory with these descriptors."""
        words = described["content_hi"][described["flags"] & np.uint16(FLAG_BACKED) != 0]
        own = words[words >> np.uint64(RANK_SHIFT) & np.uint64(MAX_RANKS - 1) == self._fabric.comm.rank]
        cells: npt.NDArray[np.int64] = (own & np.uint64(MAX_PAGES - 1)).astype(np.int64) - self._fabric.pages
        return cells

    def hint(self, word: int) -> None:
        """Local. Let the next sweep look at an own cell."""
        self._gone[self.cell_of(word)] = 1

    def cells_of(self, namespace_id: int, epoch: int) -> npt.NDArray[np.int64]:
        """Local. The live cells of a namespace at an epoch; also those that back a block in memory."""
        live = np.flatnonzero(self.words)
        mine = (self.records["namespace"][live] == np.uint64(namespace_id)) & (self.records["epoch"][live] == epoch)
        found: npt.NDArray[np.int64] = live[mine]
        return found

    def standing(self, cell: int) -> tuple[int, int, int, int] | None:
        """Local. (home, bucket, slot, word) of a live cell whose own word the index has; None: it has another."""
        word, record, fabric, s = int(self.words[cell]), self.records[cell], self._fabric, self._scratch
        if not word:
            return None
        slot = fabric.slot_of(fabric.ctx, s.address, int(record["key_hi"]), int(record["key_lo"]), word)
        if slot == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        return None if slot < 0 else (s.signed[c.HOME], s.signed[c.BUCKET], slot, s.words[c.WORD])

    # ------------------------------------------------------------------------------------------------------ sweep

    def sweep(self, *, everything: bool = False) -> int:
        """Local. Retire the cells that nothing names any more, of those that somebody has hinted at: their number.

        2 Gets + 2 Flushes for each looked at, and 1 for each other block of its key.
        """
        hints = self._gone.copy()  # peers write them meanwhile
        cells = np.flatnonzero(self.words if everything else hints)
        self._gone[cells] = 0  # before the look: a hint that comes later counts for the next sweep
        full_fence()
        found = 0
        for cell in cells.tolist():
            word = int(self.words[cell])
            if word and not self._is_named(cell, word):
                found += self.retire(word)
        self.swept += found
        return found

    def sweep_hinted(self) -> None:
        """Local. Sweep if there is a hint."""
        if self._gone.any():
            self.sweep()

    def _is_named(self, cell: int, word: int) -> bool:
        """Has the index the word of a cell, or that of a block in memory which it backs?"""
        fabric, s, record = self._fabric, self._scratch, self.records[cell]
        key = int(record["key_hi"]), int(record["key_lo"])
        before: list[int] | None = None
        for _ in range(_LOOKS):
            if self.standing(cell) is not None:
                return True
            words = [s.words[c.BUCKET_COPY + slot] for slot in range(BUCKET_WORDS)]
            words = [each for each in words if each and each >> FP_SHIFT == word >> FP_SHIFT]
            if words == before:
                return False  # the descriptors were those of these words: they stood there before and after
            before = words
            for each in words:
                if unpack_word(each).tier != TIER_DRAM:
                    continue
                behind = descriptor_of(fabric, each)
                if behind["magic"] != MAGIC or int(behind["generation"]) != each >> GENERATION_SHIFT & MAX_GENERATION:
                    before = None  # it was evicted since, and its cell is another's: the word may be back
                    break
                named = int(behind["key_hi"]), int(behind["key_lo"])
                if named == key and behind["flags"] & FLAG_BACKED and int(behind["content_hi"]) == word:
                    return True
        self._gone[cell] = 1  # a storm of writes: the next sweep looks again
        return True

    # ------------------------------------------------------------------------------------------------------ check

    def check(self, named: list[int]) -> list[str]:
        """Local. What is wrong, given the words in the index that name own disk cells, while nobody writes."""
        problems = []
        for word in named:
            cell = self.cell_of(word)
            if int(self.words[cell]) != word & ~HARD:
                problems.append(f"word {word:016x} names disk cell {cell}, which has word {int(self.words[cell]):016x}")
        if len({word & ~HARD for word in named}) != len(named):
            problems.append("a disk cell is named twice")
        standing = {word & ~HARD for word in named}
        for cell in np.flatnonzero(self.words).tolist():
            word = int(self.words[cell])
            if word not in standing and not self._is_named(cell, word):
                problems.append(f"disk cell {cell} is live, and nothing names it")
        live = np.flatnonzero(self.words)
        counted = live.size, int(self.records["length"][live].sum())
        if counted != (self.live, self.live_bytes):
            problems.append(f"{counted} disk cells and bytes are live, counted {self.live, self.live_bytes}")
        idle = len(self._free) + len(self._resting) + len(self._reserved)
        if live.size + idle != self._unused:
            problems.append(f"{live.size} disk cells live, {idle} free, resting or reserved, of {self._unused} used")
        if self._reserved:
            problems.append(f"disk cells {sorted(self._reserved)[:5]} are reserved, and nobody is writing")
        return problems
