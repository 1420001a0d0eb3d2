"""The read of many blocks with one Flush for each target and phase: `onesided.read_many` through mpi4py.

Every doubt goes the long way, one key at a time (`read`).
"""

from __future__ import annotations

import ctypes
from typing import Any

from cascade_mpi.kernels import context as c
from cascade_mpi.kernels import probe
from cascade_mpi.layout import BUCKET_BYTES, DESCRIPTOR_BYTES, is_disk, unpack_word
from cascade_mpi.onesided.batch import W_BUCKET, W_BUCKET_COPY, W_HOME, W_SLOT, W_WORD, WORK_WORDS
from cascade_mpi.onesided.mpi import DATA, INDEX
from cascade_mpi.onesided.words import WHOLE
from cascade_mpi.onesided_python.batch import Batches
from cascade_mpi.onesided_python.mpi import reporting
from cascade_mpi.onesided_python.read import Reads
from cascade_mpi.onesided_python.records import (
    CLAIMED,
    DUE,
    MASK64,
    MISS,
    ON_DISK,
    WRONG_SIZE,
    Cell,
    Item,
    Scratch,
    Words,
)


class ManyReads(Batches, Reads):
    """The read of many blocks."""

    def _get_fixed_copies(self, s: Scratch, items: list[Item], targets: Any, rooms: Any, results: Any) -> None:
        """What this node has copies of and needs no look at its home: done before the first Get."""
        for item in items:
            at = item.number
            if not self._base(INDEX, item.home):
                outcome = self._get_copy(s, item.hi, item.lo, targets[at], rooms[at], 0, WHOLE, 0, 0)
                if outcome >= 0:
                    self._account(s, outcome, WHOLE)
                    results[at], item.done = outcome, True

    def _copy_decides(self, s: Scratch, item: Item, target: int, room: int, results: Any, began: int) -> bool:
        """Whether nothing has to be fetched for a key: this node has a copy, or another rank is about to make one."""
        s.signed[c.HOME] = item.home
        outcome = self._get_copy(s, item.hi, item.lo, target, room, 0, WHOLE, item.word, began)
        if outcome >= 0 and self._too_late(s, began):
            item.doubt = True
            return True
        s.signed[c.CLAIMING] = 0
        if outcome < 0 and not is_disk(item.word) and not self._claim(s, item.hi, item.lo, item.word):
            outcome = CLAIMED
        if outcome == MISS:
            item.claiming = bool(s.signed[c.CLAIMING])
            return False
        self._account(s, outcome, WHOLE)
        results[item.number], item.done = outcome, True
        return True

    def _reload_all(self, items: list[Item]) -> None:
        """The words again, after the payloads are complete; one Flush per home."""
        flags = set()
        for item in items:
            probe.pause(self._ctx, c.H_READER)
            at, base = item.bucket * BUCKET_BYTES + item.slot * 8, self._base(INDEX, item.home)
            if base:
                item.again.unsigned[0] = probe.reload(base + at)
            else:
                self._get(item.again.address, 8, item.home, at, INDEX)
                flags.add(item.home)
        self._flush_all(flags, INDEX)

    def _is_whole(self, s: Scratch, item: Item, target: int, room: int) -> bool:
        cell = Cell.read(item.descriptor)
        return (
            item.again.unsigned[0] == item.word
            and cell.holds(item.word, item.hi, item.lo)
            and cell.length == room
            and self._fits(item.word, room)
            and not self._expired(s, cell)
            and (is_disk(item.word) or self._checksum_holds(cell, target, room))
        )

    def _note_place(self, s: Scratch, item: Item) -> None:
        """Where a block on disk was found, into the key's record."""
        work = Words(item.bucket_copy - W_BUCKET_COPY * 8, WORK_WORDS)
        if item.doubt:  # it was found the long way
            for into, field in ((W_HOME, c.HOME), (W_BUCKET, c.BUCKET), (W_SLOT, c.SLOT), (W_WORD, c.WORD)):
                work.unsigned[into] = s.unsigned[field]
            ctypes.memmove(item.descriptor, s.at(c.DESCRIPTOR_COPY), DESCRIPTOR_BYTES)
        else:
            work.signed[W_HOME], work.signed[W_BUCKET] = item.home, item.bucket

    def _get_chunk(self, s: Scratch, items: list[Item], targets: Any, rooms: Any, results: Any) -> None:
        began, flags = self._ticks(s), set()
        remote = []
        copies = bool(self._field(c.COPY_BUCKETS))
        s.unsigned[c.BEGAN] = began & MASK64
        if copies:
            self._get_fixed_copies(s, items, targets, rooms, results)
        for item in self._choose_candidates(items):
            _, _, _, _, rank, page = unpack_word(item.word)
            if self._base(DATA, rank):
                item.doubt = True  # a copy by loads: as fast one by one
                continue
            if copies and self._copy_decides(s, item, targets[item.number], rooms[item.number], results, began):
                continue
            self._get(item.descriptor, DESCRIPTOR_BYTES, rank, self._descriptor_at(page), DATA)
            if not is_disk(item.word):
                self._get_payload(targets[item.number], rooms[item.number], rank, page, 0)
            flags.add(rank)
            remote.append(item)
        self._flush_all(flags, DATA)
        self._reload_all(remote)
        late = self._too_late(s, began)
        for item in items:
            if item.done:
                continue
            room, outcome, due = rooms[item.number], MISS, False
            if item in remote:
                item.doubt = late or not self._is_whole(s, item, targets[item.number], room)
                on_disk, s.unsigned[c.WORD] = is_disk(item.word), item.word
                outcome = ON_DISK if on_disk else room
                due = copies and not item.doubt and not on_disk and self._is_due(s, item.hi, item.lo, item.word)
                if item.claiming and not due:
                    self._drop_claim(item.hi, item.lo)
            if item.doubt:
                outcome, *read = self._get_named(s, item.hi, item.lo, targets[item.number], room, 0, WHOLE)
                if copies and s.signed[c.CLAIMING]:
                    self._drop_claim(*read)
            if outcome == WRONG_SIZE:
                results[item.number] = c.WRONG_FROM - s.signed[c.LENGTH]
                continue
            if outcome == ON_DISK:
                self._note_place(s, item)
            self._account(s, outcome, WHOLE)
            results[item.number] = DUE if due else outcome
        s.unsigned[c.BEGAN] = began & MASK64  # of what is due: who went the long way has begun later

    @reporting
    def get_many(
        self, ctx: int, s: int, keys: int, n: int, targets: int, rooms: int, results: int, work: int, flags: int
    ) -> int:
        """Local. Read n blocks: results[i] = bytes, an outcome of `get`, or WRONG_FROM - length for a wrong size."""
        if n:
            areas = [Words(address, n).signed for address in (targets, rooms, results)]
            for items in self._items(keys, n, work):
                self._get_chunk(Scratch(s), items, *areas)
        self._end()
        return 0
