"""What calls leave behind beside their results: `onesided.hints` through mpi4py.

Covers touches, notes that a word has gone, counts of hits, progress; no decision hangs on them.
"""

from __future__ import annotations

import ctypes

from cascade_mpi.kernels import context as c
from cascade_mpi.layout import unpack_word
from cascade_mpi.onesided.mpi import DATA
from cascade_mpi.onesided.words import DESCRIBE, DESCRIBE_ANY, TICKS
from cascade_mpi.onesided_python.mpi import reporting
from cascade_mpi.onesided_python.records import MASK64, MISS, MIX, ON_DISK, Scratch
from cascade_mpi.onesided_python.words import IndexWords


class Hints(IndexWords):
    """Touches, notes that a word has gone, counts of hits, progress."""

    def _note_touch(self, s: Scratch, word: int) -> None:
        """Note that the cell was used; into the touch array only, never into a cell."""
        _, _, _, _, rank, page = unpack_word(word)
        base, now = self._base(DATA, rank), self._ticks(s) & MASK64
        if base:
            ctypes.c_uint32.from_address(base + self._field(c.TOUCH_AT) + 4 * page).value = now
            return
        entry = c.TOUCH_FILTER + 2 * ((word * MIX & MASK64) >> 56)
        pending = s.signed[c.TOUCHES]
        lately = s.unsigned[entry] == word and now - int(s.unsigned[entry + 1]) & MASK64 < TICKS
        if lately or pending == c.TOUCH_RING_ENTRIES:
            return
        s.unsigned[entry], s.unsigned[entry + 1] = word, now
        s.signed[c.TOUCH_RING + 2 * pending], s.signed[c.TOUCH_RING + 2 * pending + 1] = rank, page
        s.signed[c.TOUCHES] = pending + 1

    def _send_touches(self, s: Scratch) -> None:
        ring = s.signed[c.TOUCH_RING : c.TOUCH_RING + 2 * s.signed[c.TOUCHES]].tolist()
        if not ring:
            return
        s.unsigned[c.TOUCH_VALUE] = self._ticks(s) & MASK64
        for rank, page in zip(ring[::2], ring[1::2], strict=True):
            self._put(s.at(c.TOUCH_VALUE), 4, rank, self._field(c.TOUCH_AT) + 4 * page, DATA)
        for rank in dict.fromkeys(ring[::2]):
            self._flush(rank, DATA)
        s.signed[c.TOUCHES] = 0

    def _note_gone(self, scratch: Scratch, word: int) -> None:
        _, _, _, _, rank, page = unpack_word(word)
        base, at = self._base(DATA, rank), self._field(c.GONE_AT) + page
        if base:
            ctypes.c_uint8.from_address(base + at).value = 1
        else:
            scratch.unsigned[c.TOUCH_VALUE] = 1
            self._put(scratch.at(c.TOUCH_VALUE), 1, rank, at, DATA)
            self._flush(rank, DATA)

    def _count_hit(self, s: Scratch, rank: int, nbytes: int) -> None:
        where = 0 if rank == self._field(c.RANK) else 1 if self._base(DATA, rank) else 2
        s.count(c.C_HITS_SELF + where)
        s.count(c.C_BYTES_SELF + where, nbytes)

    def _account(self, s: Scratch, outcome: int, what: int) -> None:
        read = what not in (DESCRIBE, DESCRIBE_ANY)
        if (outcome >= 0 or outcome == ON_DISK) and read:
            word = s.unsigned[c.WORD]
            if outcome >= 0:
                self._count_hit(s, unpack_word(word).rank, outcome)
            self._note_touch(s, word)
        elif outcome == MISS and read:
            s.count(c.C_MISSES)

    def touch(self, ctx: int, s: int, word: int) -> None:
        """Local. Note that a cell was used, without a read of it."""
        self._note_touch(Scratch(s), word)

    @reporting
    def hint_gone(self, ctx: int, s: int, word: int) -> int:
        """Local. Tell the manager of a cell that its word was taken away."""
        self._note_gone(Scratch(s), word)
        return 0

    def poll(self, ctx: int, s: int) -> None:
        """Local. Enter MPI once, whatever POLL says, and send the touches that wait."""
        self._send_touches(Scratch(s))
        self._enter_mpi()
