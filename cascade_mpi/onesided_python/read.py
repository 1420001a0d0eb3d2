"""The read of one block: `onesided.read` through mpi4py.

Does not cover several blocks at once (`read_many`).
"""

from __future__ import annotations

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.layout import BUCKET_BYTES, DESCRIPTOR_BYTES, is_alias, is_disk, unpack_word
from cascade_mpi.onesided.mpi import DATA, INDEX
from cascade_mpi.onesided.words import DESCRIBE, DESCRIBE_ANY, FETCH, RANGE, WHOLE
from cascade_mpi.onesided_python.claims import Claims
from cascade_mpi.onesided_python.copies import Copies
from cascade_mpi.onesided_python.mpi import reporting
from cascade_mpi.onesided_python.records import (
    ALIAS,
    CHANGED,
    CLAIMED,
    CORRUPT,
    EXPIRED,
    MASK64,
    MISS,
    ON_DISK,
    WRONG_SIZE,
    Cell,
    Scratch,
)
from cascade_mpi.onesided_python.words import matches

ATTEMPTS = 4


class Reads(Claims, Copies):
    """The read of one block."""

    def _fetch(
        self, s: Scratch, word: int, hi: int, lo: int, target: int, room: int, offset: int, what: int, word_at: int
    ) -> tuple[int, int | None]:
        """Read the cell that `word` names, if it is the key's: (outcome, the word again if it was looked at)."""
        _, _, _, _, rank, page = unpack_word(word)
        base, descriptor = self._base(DATA, rank), s.at(c.DESCRIPTOR_COPY)
        if base:
            self._copy_descriptor(base, page, descriptor)
        else:
            self._get(descriptor, DESCRIPTOR_BYTES, rank, self._descriptor_at(page), DATA)
            if what != DESCRIBE and not is_alias(word) and not is_disk(word):
                self._get_payload(target, room, rank, page, offset)
            self._flush(rank, DATA)
        cell = Cell.read(descriptor)
        if not cell.holds(word, hi, lo):
            return MISS, None
        s.unsigned[c.LENGTH] = cell.length
        if not self._fits(word, cell.length):
            return MISS, None
        if self._expired(s, cell):
            return EXPIRED, None
        if is_alias(word):
            return ALIAS, None
        if what == DESCRIBE:
            return cell.length, None
        if (what == WHOLE and room != cell.length) or (what == RANGE and offset + room > cell.length):
            return WRONG_SIZE, None
        if is_disk(word):
            return ON_DISK, None
        again = None
        if base and word_at:
            source = base + self._payload_at(page) + offset
            again = int(probe.copy_and_reload(target, source, room, word_at, self._ctx))
        elif base:
            copy_bytes(target, base + self._payload_at(page) + offset, room)
        if what == WHOLE and not self._checksum_holds(cell, target, room):
            return CORRUPT, again
        return room, again

    def _get_payload(self, target: int, room: int, rank: int, page: int, offset: int) -> None:
        start = page * self._field(c.PAGE_BYTES) + offset
        self._get(target, min(room, self._arena_bytes - start), rank, self._field(c.ARENA_AT) + start, DATA)

    def _get_one(self, s: Scratch, hi: int, lo: int, target: int, room: int, offset: int, what: int) -> int:
        home, bucket, fp = self._place(s, hi, lo)
        index_base, heed = self._base(INDEX, home), what == WHOLE
        what = WHOLE if what == FETCH else what
        copies = bool(self._field(c.COPY_BUCKETS)) and what != DESCRIBE
        if copies:
            s.signed[c.CLAIMING] = 0
            if not index_base and (outcome := self._get_copy(s, hi, lo, target, room, offset, what, 0, 0)) != MISS:
                return outcome
        parts = DESCRIBE if what == DESCRIBE_ANY else what
        for _ in range(ATTEMPTS):
            began, changed = self._ticks(s), False
            s.unsigned[c.BEGAN] = began & MASK64
            for slot, word in matches(self._read_bucket(s, home, bucket), fp):
                if not self._in_bounds(word):
                    s.count(c.C_BAD_WORDS)  # never follow it
                    continue
                word_at = index_base + bucket * BUCKET_BYTES + slot * 8 if index_base else 0
                if copies and not self._base(DATA, unpack_word(word).rank) and not is_alias(word):
                    outcome = self._get_copy(s, hi, lo, target, room, offset, what, word, began)
                    if outcome != MISS:
                        if not self._too_late(s, began):
                            return outcome
                        changed = True
                        break
                    if heed and not is_disk(word) and not self._claim(s, hi, lo, word):
                        return CLAIMED
                outcome, again = self._fetch(s, word, hi, lo, target, room, offset, parts, word_at)
                # Any doubt is settled by the word, not by the descriptor: look at it again, match or not.
                if again is None:
                    probe.pause(self._ctx, c.H_READER)
                    again = self._reload(s, home, bucket, slot)
                if again != word or self._too_late(s, began):
                    changed = True
                    break
                if outcome == EXPIRED:
                    s.count(c.C_EXPIRED, int(what not in (DESCRIBE, DESCRIBE_ANY)))
                    return MISS  # the word that counts: what stands behind it is older
                if outcome != MISS:
                    s.unsigned[c.WORD], s.signed[c.SLOT] = word, slot
                    return outcome
                s.count(c.C_COLLISIONS)  # another key with this fingerprint
            if not changed:
                return MISS
            s.count(c.C_RETRIES)
        s.count(c.C_EXHAUSTED)
        return CHANGED

    def _get_named(
        self, s: Scratch, hi: int, lo: int, target: int, room: int, offset: int, what: int
    ) -> tuple[int, int, int]:
        """The whole read, through an alias too: (outcome, key of the block that was read). See the kernel."""
        for _ in range(ATTEMPTS):
            outcome = self._get_one(s, hi, lo, target, room, offset, what)
            if outcome != ALIAS:
                return outcome, hi, lo
            cell, alias, began = Cell.read(s.at(c.DESCRIPTOR_COPY)), s.unsigned[c.WORD], s.signed[c.BEGAN]
            home, bucket, slot = s.signed[c.HOME], s.signed[c.BUCKET], s.signed[c.SLOT]
            content = cell.origin, cell.content_lo
            outcome = self._get_one(s, *content, target, room, offset, what)
            probe.pause(self._ctx, c.H_READER)
            if self._reload(s, home, bucket, slot) == alias and not self._too_late(s, began):
                if outcome in (MISS, ALIAS):  # evicted; an alias of an alias is none
                    self._note_gone(s, alias)  # its manager's sweep takes it out
                    return MISS, *content
                if what not in (DESCRIBE, DESCRIBE_ANY):
                    s.count(c.C_ALIAS_READS, int(outcome >= 0))
                    if outcome >= 0 or outcome == ON_DISK:
                        self._note_touch(s, alias)  # or it would be taken for cold, however hot the content is
                return outcome, *content
            if self._field(c.COPY_BUCKETS) and s.signed[c.CLAIMING]:
                self._drop_claim(*content)
            s.count(c.C_RETRIES)
        s.count(c.C_EXHAUSTED)
        return CHANGED, hi, lo

    @reporting
    def get(self, ctx: int, s: int, hi: int, lo: int, target: int, room: int, offset: int, what: int) -> int:
        """Local. Read one block: bytes or an outcome."""
        # Compiled code says so when it takes its arguments.
        if hi >> 64 or lo >> 64:
            raise OverflowError(f"{hi} and {lo} must be in 0..2**64-1")
        scratch = Scratch(s)
        outcome, hi, lo = self._get_named(scratch, hi, lo, target, room, offset, what)
        self._account(scratch, outcome, what)
        self._end()
        return self._then_copy(scratch, hi, lo, outcome, what)

    @reporting
    def get_pinned(self, ctx: int, s: int, word: int, hi: int, lo: int, target: int, room: int, offset: int) -> int:
        """Local. Read `room` bytes of a cell that this rank has pinned, without a re-check."""
        scratch = Scratch(s)
        outcome, _ = self._fetch(scratch, word, hi, lo, target, room, offset, RANGE, 0)
        if outcome >= 0:
            self._count_hit(scratch, unpack_word(word).rank, outcome)
        return MISS if outcome == EXPIRED else outcome
