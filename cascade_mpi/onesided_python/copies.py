"""Reading the copy that this node has of a block of another one: `onesided.copies` through mpi4py.

Does not cover when one is made (`claims`) nor who makes it (`cascade_mpi.copies`).
"""

from __future__ import annotations

import ctypes

from cascade_mpi.kernels import checksum, probe
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import (
    BUCKET_BYTES,
    BUCKET_WORDS,
    DESCRIPTOR_BYTES,
    FLAG_CHECKSUM,
    FLAG_COPY,
    FLAG_FIXED,
    is_disk,
    same_cell,
    unpack_word,
)
from cascade_mpi.onesided.mpi import DATA, INDEX
from cascade_mpi.onesided.words import DESCRIBE_ANY, RANGE, WHOLE
from cascade_mpi.onesided_python.hints import Hints
from cascade_mpi.onesided_python.records import MISS, Cell, Scratch
from cascade_mpi.onesided_python.words import matches


class Copies(Hints):
    """Reads of this node's copies."""

    def _get_copy(
        self, s: Scratch, hi: int, lo: int, target: int, room: int, offset: int, what: int, origin: int, began: int
    ) -> int:
        """Read a copy that this node has: bytes, or MISS where none counts. See the kernel."""
        rank, bucket, fp = self._place_copy(hi, lo)
        table, descriptor = self._base(INDEX, rank), s.at(c.DESCRIPTOR_COPY)
        probe.copy_bucket(table, bucket, s.at(c.COPIES_COPY))
        for slot, word in matches(s.unsigned[c.COPIES_COPY : c.COPIES_COPY + BUCKET_WORDS].tolist(), fp):
            data = self._base(DATA, unpack_word(word).rank) if self._in_bounds(word) and not is_disk(word) else 0
            if not data:
                continue
            self._copy_descriptor(data, unpack_word(word).page, descriptor)
            cell = Cell.read(descriptor)
            if not (cell.holds(word, hi, lo) and cell.flags & FLAG_COPY and self._fits(word, cell.length)):
                continue
            if self._expired(s, cell):
                continue  # so is the block, unless it was put again: its own word says
            at = bucket * BUCKET_BYTES + slot * 8
            s.signed[c.COPY_ASKED] = 0
            if not cell.flags & FLAG_FIXED:
                if not origin:
                    continue
                seen_at = table + self._field(c.COPY_BUCKETS) * BUCKET_BYTES + at
                stays = same_cell(cell.origin, origin)  # whose hard bit may have been toggled since
                if not stays or not self._origin_stays(s, hi, lo, origin, cell, seen_at, began):
                    s.count(c.C_STALE_COPIES)
                    self._drop_hint(data, word)
                    continue
            outcome = self._read_copy(s, cell, target, room, offset, what, word, data, table + at)
            if outcome != MISS:
                self._count_copy(s, cell, outcome, what, known=bool(origin))
                s.unsigned[c.LENGTH], s.unsigned[c.WORD] = cell.length, word
                s.signed[c.HOME], s.signed[c.BUCKET], s.signed[c.SLOT] = rank, bucket, slot
                return outcome
        return MISS

    def _read_copy(
        self, s: Scratch, cell: Cell, target: int, room: int, offset: int, what: int, word: int, data: int,
        word_at: int,
    ) -> int:  # fmt: skip
        nbytes = 0 if what == DESCRIBE_ANY else room
        if (what == WHOLE and room != cell.length) or (what == RANGE and offset + room > cell.length):
            return MISS  # the block itself is asked, and says so
        source = data + self._payload_at(unpack_word(word).page) + offset
        # The word of the copy leaves before its bytes change: unchanged behind the payload, they were the copy's.
        if int(probe.copy_and_reload(target, source, nbytes, word_at, self._ctx)) != word:
            s.count(c.C_RETRIES)
            return MISS
        if what == WHOLE and not self._checksum_holds(cell, target, room):
            self._drop_hint(data, word)
            return MISS
        return cell.length if what == DESCRIBE_ANY else room

    def _count_copy(self, s: Scratch, cell: Cell, outcome: int, what: int, *, known: bool) -> None:
        if what == DESCRIBE_ANY:
            return
        s.count(c.C_COPY_HITS)
        s.count(c.C_COPY_BYTES, outcome)
        asked = s.signed[c.COPY_ASKED] or self._field(c.POLL)
        if not asked and (not known or self._base(INDEX, s.signed[c.HOME])):
            s.count(c.C_COPY_FREE)
        self._note_touch(s, cell.origin)  # or its manager would take a block for cold that all others read from copies

    def _origin_stays(self, s: Scratch, hi: int, lo: int, origin: int, cell: Cell, seen_at: int, began: int) -> bool:
        """Is the index word that was just read still that of the block that was copied? See the kernel."""
        seen = ctypes.c_int64.from_address(seen_at)
        if began - seen.value > self._field(c.ATTEMPT) // 2:
            asked, named = s.at(c.ORIGIN_COPY), unpack_word(origin)
            self._get(asked, DESCRIPTOR_BYTES, named.rank, self._descriptor_at(named.page), DATA)
            self._flush(named.rank, DATA)
            s.signed[c.COPY_ASKED] = 1
            there = Cell.read(asked)
            if not there.holds(origin, hi, lo) or there.sequence != cell.sequence:
                return False
        seen.value = began
        return True

    def _drop_hint(self, data: int, word: int) -> None:
        """Tell the manager of a copy that its origin has changed: its sweep takes the copy out."""
        ctypes.c_uint8.from_address(data + self._field(c.GONE_AT) + unpack_word(word).page).value = 1

    def _checksum_holds(self, cell: Cell, payload: int, length: int) -> bool:
        if not (self._field(c.VERIFY) and cell.flags & FLAG_CHECKSUM):
            return True
        return int(checksum.checksum_bytes(payload, length)) == cell.checksum

    def note_origin(self, ctx: int, s: int, rank: int, bucket: int, slot: int, tick: int) -> None:
        """Local. Note beside a word of the copy table when its origin was seen in the index."""
        at = (bucket + self._field(c.COPY_BUCKETS)) * BUCKET_BYTES + slot * 8
        ctypes.c_int64.from_address(self._base(INDEX, rank) + at).value = tick
