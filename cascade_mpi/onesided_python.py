"""The one-sided calls of `onesided` once more, issued through mpi4py: for an MPI that kernels cannot call.

Covers the same calls with the same arguments, steps, results, scratch fields and counters, so that the
two are exchanged freely. Does not cover what cannot be said in Python: memory of the own node is read and
written by small kernels of `probe`, which hold the fences. A call costs some tens of microseconds.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mpi4py import MPI

from cascade_mpi.kernels import checksum, probe
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.layout import (
    BUCKET_BYTES,
    BUCKET_WORDS,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    FLAG_CHECKSUM,
    FLAG_COPY,
    FLAG_FIXED,
    FP_SHIFT,
    HARD_SHIFT,
    MAGIC,
    TIER_DRAM,
    is_alias,
    place,
    same_cell,
    unpack_word,
)
from cascade_mpi.onesided import (
    BATCH,
    CLAIM_TICKS,
    DATA,
    DESCRIBE,
    DESCRIBE_ANY,
    FETCH,
    INDEX,
    PINS,
    RANGE,
    REALTIME_COARSE,
    SLOTS_PER_PEER,
    TICKS,
    W_BUCKET_COPY,
    W_DESCRIPTOR,
    W_SLOT,
    W_WORD,
    WHOLE,
    WORK_WORDS,
)

if TYPE_CHECKING:
    from cascade_mpi.fabric import Fabric

MISS: int = c.MISS
WRONG_SIZE: int = c.WRONG_SIZE
CHANGED: int = c.CHANGED
MPI_FAILED: int = c.MPI_FAILED
CORRUPT: int = c.CORRUPT
EXPIRED: int = c.EXPIRED
DUE: int = c.DUE
ALIAS: int = c.ALIAS
CLAIMED: int = c.CLAIMED
LARGEST_PIECE = 1 << 30  # an MPI count is an int; larger payloads are fetched in pieces
_ATTEMPTS, _LOOKUP_ATTEMPTS = 4, 1000
_MASK64 = (1 << 64) - 1
_MIX = 0x9E3779B97F4A7C15
_HALVED = int.from_bytes(b"\x7f" * c.READ_COUNT_BYTES)
_O_GENERATION, _O_FLAGS, _O_LENGTH, _O_HI, _O_LO, _O_CHECKSUM, _O_CONTENT_HI, _O_CONTENT_LO, _O_SEQUENCE, _O_EXPIRY = (
    DESCRIPTOR.fields[name][1]  # type: ignore[index]
    for name in (
        "generation", "flags", "length", "key_hi", "key_lo", "checksum", "content_hi", "content_lo", "sequence",
        "expiry",
    )
)  # fmt: skip


class _Words:
    """64-bit words at an address, which somebody else keeps alive."""

    def __init__(self, address: int, words: int) -> None:
        self.address = address
        raw = memoryview((ctypes.c_uint64 * words).from_address(address)).cast("B")
        self.unsigned: memoryview[int] = raw.cast("Q")
        self.signed: memoryview[int] = raw.cast("q")

    def at(self, index: int) -> int:
        """Local. The address of a word."""
        return self.address + 8 * index


class _Scratch(_Words):
    """The scratch of the calling thread, as `kernels.context` lays it out."""

    def __init__(self, address: int) -> None:
        super().__init__(address, c.SCRATCH_WORDS)

    def count(self, counter: int, by: int = 1) -> None:
        """Local. Add to a counter of this thread."""
        self.signed[c.COUNTERS + counter] += by


class _Cell(NamedTuple):
    """What a copy of a descriptor says; torn ones say anything."""

    magic: int
    generation: int
    flags: int
    length: int
    hi: int
    lo: int
    checksum: int
    origin: int  # of a copy; of an alias the high half of its content's key
    content_lo: int  # the low one
    sequence: int
    expiry: int

    @classmethod
    def read(cls, address: int) -> _Cell:
        """Local. Decode the private copy of a descriptor."""
        raw = memoryview((ctypes.c_uint8 * DESCRIPTOR_BYTES).from_address(address)).cast("B").toreadonly()

        def number(at: int, nbytes: int) -> int:
            return int.from_bytes(raw[at : at + nbytes], "little")

        return cls(
            number(0, 4), number(_O_GENERATION, 2), number(_O_FLAGS, 2), number(_O_LENGTH, 8),
            number(_O_HI, 8), number(_O_LO, 8), number(_O_CHECKSUM, 8), number(_O_CONTENT_HI, 8),
            number(_O_CONTENT_LO, 8), number(_O_SEQUENCE, 8), number(_O_EXPIRY, 4),
        )  # fmt: skip

    def holds(self, word: int, hi: int, lo: int) -> bool:
        """Local. Does it say: the cell of that word's generation holds this key?"""
        return (self.magic, self.generation, self.hi, self.lo) == (MAGIC, unpack_word(word).generation, hi, lo)


class _Item:
    """One key of a batch on its way; `word` is 0 without a candidate, `doubt` sends it the long way."""

    def __init__(self, number: int, hi: int, lo: int, home: int, bucket: int, fp: int, work: int) -> None:
        self.number, self.hi, self.lo = number, hi, lo
        self.home, self.bucket, self.fp = home, bucket, fp
        self.bucket_copy = work + number % BATCH * WORK_WORDS * 8 + W_BUCKET_COPY * 8
        self.descriptor = work + number % BATCH * WORK_WORDS * 8 + W_DESCRIPTOR * 8
        self.again = _Words(self.bucket_copy, 1)  # the bucket's copy has been read by then
        self.word, self.slot, self.doubt, self.done, self.claiming = 0, -1, False, False, False


def _reporting(call: Callable[..., int]) -> Callable[..., int]:
    """Turn MPI's exceptions into the result and the scratch field by which kernels report them."""

    @functools.wraps(call)
    def reported(self: PythonCalls, ctx: int, s: int, *args: int) -> int:
        try:
            return call(self, ctx, s, *args)
        except MPI.Exception as error:
            _Scratch(s).signed[c.MPI_ERROR] = error.Get_error_code()
            return MPI_FAILED

    return reported


class PythonCalls:
    """The calls of one store; each takes the addresses of the context and of the thread's scratch first.

    Costs in MPI calls are those of the kernels of the same names.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._windows = (fabric.index, fabric.data, fabric.pins)
        self._probe_comm = fabric.probe_comm
        self._ctx = fabric.context.ctypes.data
        self._context = _Words(self._ctx, c.CONTEXT_WORDS).signed
        self._clock = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(self._field(c.CLOCK))
        self._arena_bytes = self._field(c.PAGES) * self._field(c.PAGE_BYTES)

    def _field(self, index: int) -> int:
        return self._context[index]

    # -------------------------------------------------------------------------------------- memory of ranks

    def _base(self, what: int, rank: int) -> int:
        """Where a rank's memory is mapped here, 0 if it is not."""
        return int(self._windows[what].table[rank, 0])

    def _at(self, what: int, rank: int, offset: int) -> int:
        """The displacement in a rank's window of an offset in its memory."""
        return int(self._windows[what].table[rank, 1]) + offset

    def _get(self, origin: int, nbytes: int, rank: int, offset: int, what: int) -> None:
        at = self._at(what, rank, offset)
        for done in range(0, nbytes, LARGEST_PIECE):
            step = min(nbytes - done, LARGEST_PIECE)
            buffer = MPI.buffer.fromaddress(origin + done, step)
            self._windows[what].world.Get([buffer, step, MPI.BYTE], rank, [at + done, step, MPI.BYTE])

    def _put(self, origin: int, nbytes: int, rank: int, offset: int, what: int) -> None:
        buffer = MPI.buffer.fromaddress(origin, nbytes)
        target = [self._at(what, rank, offset), nbytes, MPI.BYTE]
        self._windows[what].world.Put([buffer, nbytes, MPI.BYTE], rank, target)

    def _flush(self, rank: int, what: int) -> None:
        self._windows[what].world.Flush(rank)

    def _flush_all(self, ranks: Iterable[int], what: int) -> None:
        """One Flush for each target that has something under way."""
        for rank in sorted(set(ranks)):
            self._flush(rank, what)

    def _descriptor_at(self, page: int) -> int:
        return self._field(c.DESCRIPTOR_AT) + page * DESCRIPTOR_BYTES

    def _payload_at(self, page: int) -> int:
        return self._field(c.ARENA_AT) + page * self._field(c.PAGE_BYTES)

    def _now(self, s: _Scratch) -> int:
        """Ticks since the store was opened."""
        self._clock(REALTIME_COARSE, s.at(c.TIMESPEC))
        seconds, nanoseconds = s.signed[c.TIMESPEC : c.TIMESPEC + 2].tolist()
        return int((seconds - self._field(c.EPOCH)) * TICKS + nanoseconds // (1_000_000_000 // TICKS))

    def _too_late(self, s: _Scratch, began: int) -> bool:
        """True for an attempt that took so long that a cell may have passed through all its generations."""
        return not 0 <= self._now(s) - began <= self._field(c.ATTEMPT)

    # ------------------------------------------------------------------------------- words and descriptors

    def _place(self, s: _Scratch, hi: int, lo: int) -> tuple[int, int, int]:
        home, bucket, fp = place(hi, lo, self._field(c.RANKS), self._field(c.BUCKETS))
        s.signed[c.HOME], s.signed[c.BUCKET] = home, bucket
        return home, bucket, fp

    def _in_bounds(self, word: int) -> bool:
        """True if the word names memory of this store: only then may its address be used. Aliases lie in arenas too."""
        named = unpack_word(word)
        return named.tier <= TIER_DRAM and named.rank < self._field(c.RANKS) and named.page < self._field(c.PAGES)

    def _expired(self, s: _Scratch, cell: _Cell) -> bool:
        return cell.expiry != 0 and self._now(s) >= cell.expiry * TICKS

    def _fits(self, page: int, length: int) -> bool:
        return length <= self._arena_bytes - page * self._field(c.PAGE_BYTES)

    def _read_bucket(self, s: _Scratch, home: int, bucket: int) -> list[int]:
        base, copy_to = self._base(INDEX, home), s.at(c.BUCKET_COPY)
        if base:
            probe.copy_bucket(base, bucket, copy_to)
        else:
            self._get(copy_to, BUCKET_BYTES, home, bucket * BUCKET_BYTES, INDEX)
            self._flush(home, INDEX)
        return s.unsigned[c.BUCKET_COPY : c.BUCKET_COPY + BUCKET_WORDS].tolist()

    def _reload(self, s: _Scratch, home: int, bucket: int, slot: int) -> int:
        """The word as it is now, after everything that was read before."""
        at, base = bucket * BUCKET_BYTES + slot * 8, self._base(INDEX, home)
        if base:
            return int(probe.reload(base + at))
        self._get(s.at(c.RELOADED), 8, home, at, INDEX)
        self._flush(home, INDEX)
        return int(s.unsigned[c.RELOADED])

    def _copy_descriptor(self, base: int, page: int, copy_to: int) -> None:
        """From mapped memory: the word was loaded by a kernel with acquire, so this is not read before it."""
        ctypes.memmove(copy_to, base + self._descriptor_at(page), DESCRIPTOR_BYTES)

    def _touch(self, s: _Scratch, word: int) -> None:
        """Note that the cell was used; into the touch array only, never into a cell."""
        _, _, _, _, rank, page = unpack_word(word)
        base, now = self._base(DATA, rank), self._now(s) & _MASK64
        if base:
            ctypes.c_uint32.from_address(base + self._field(c.TOUCH_AT) + 4 * page).value = now
            return
        entry = c.TOUCH_FILTER + 2 * ((word * _MIX & _MASK64) >> 56)
        pending = s.signed[c.TOUCHES]
        lately = s.unsigned[entry] == word and now - int(s.unsigned[entry + 1]) & _MASK64 < TICKS
        if lately or pending == c.TOUCH_RING_ENTRIES:
            return
        s.unsigned[entry], s.unsigned[entry + 1] = word, now
        s.signed[c.TOUCH_RING + 2 * pending], s.signed[c.TOUCH_RING + 2 * pending + 1] = rank, page
        s.signed[c.TOUCHES] = pending + 1

    def _send_touches(self, s: _Scratch) -> None:
        ring = s.signed[c.TOUCH_RING : c.TOUCH_RING + 2 * s.signed[c.TOUCHES]].tolist()
        if not ring:
            return
        s.unsigned[c.TOUCH_VALUE] = self._now(s) & _MASK64
        for rank, page in zip(ring[::2], ring[1::2], strict=True):
            self._put(s.at(c.TOUCH_VALUE), 4, rank, self._field(c.TOUCH_AT) + 4 * page, DATA)
        for rank in dict.fromkeys(ring[::2]):
            self._flush(rank, DATA)
        s.signed[c.TOUCHES] = 0

    def _count_hit(self, s: _Scratch, rank: int, nbytes: int) -> None:
        where = 0 if rank == self._field(c.RANK) else 1 if self._base(DATA, rank) else 2
        s.count(c.C_HITS_SELF + where)
        s.count(c.C_BYTES_SELF + where, nbytes)

    def _account(self, s: _Scratch, outcome: int, what: int) -> None:
        read = what not in (DESCRIBE, DESCRIBE_ANY)
        if outcome >= 0 and read:
            word = s.unsigned[c.WORD]
            self._count_hit(s, unpack_word(word).rank, outcome)
            self._touch(s, word)
        elif outcome == MISS and read:
            s.count(c.C_MISSES)

    def _enter_mpi(self) -> None:
        self._probe_comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)

    def _end(self) -> None:
        """What public calls end with, so that peers' CASes on this rank's words proceed."""
        if self._field(c.POLL):
            self._enter_mpi()

    # ---------------------------------------------------------------------------------------------- copies

    def _place_copy(self, hi: int, lo: int) -> tuple[int, int, int]:
        """(rank, bucket in its index window, fingerprint) of a key in the copy table of this node."""
        at, bucket, fp = place(hi, lo, self._field(c.COPY_RANKS), self._field(c.COPY_BUCKETS))
        rank = ctypes.c_int64.from_address(self._field(c.COPY_RANKS_AT) + 8 * at).value
        return rank, self._field(c.BUCKETS) + bucket, fp

    def _drop_hint(self, data: int, word: int) -> None:
        """Tell the manager of a copy that its origin has changed: its sweep takes the copy out."""
        ctypes.c_uint8.from_address(data + self._field(c.GONE_AT) + unpack_word(word).page).value = 1

    def _origin_stays(self, s: _Scratch, hi: int, lo: int, origin: int, cell: _Cell, seen_at: int, began: int) -> bool:
        """Is the index word that was just read still that of the block that was copied? See the kernel."""
        seen = ctypes.c_int64.from_address(seen_at)
        if began - seen.value > self._field(c.ATTEMPT) // 2:
            asked, named = s.at(c.ORIGIN_COPY), unpack_word(origin)
            self._get(asked, DESCRIPTOR_BYTES, named.rank, self._descriptor_at(named.page), DATA)
            self._flush(named.rank, DATA)
            s.signed[c.COPY_ASKED] = 1
            there = _Cell.read(asked)
            if not there.holds(origin, hi, lo) or there.sequence != cell.sequence:
                return False
        seen.value = began
        return True

    def _get_copy(
        self, s: _Scratch, hi: int, lo: int, target: int, room: int, offset: int, what: int, origin: int, began: int
    ) -> int:
        """Read a copy that this node has: bytes, or MISS where none counts. See the kernel."""
        rank, bucket, fp = self._place_copy(hi, lo)
        table, descriptor = self._base(INDEX, rank), s.at(c.DESCRIPTOR_COPY)
        probe.copy_bucket(table, bucket, s.at(c.COPIES_COPY))
        for slot, word in _matches(s.unsigned[c.COPIES_COPY : c.COPIES_COPY + BUCKET_WORDS].tolist(), fp):
            data = self._base(DATA, unpack_word(word).rank) if self._in_bounds(word) else 0
            if not data:
                continue
            self._copy_descriptor(data, unpack_word(word).page, descriptor)
            cell = _Cell.read(descriptor)
            if not (
                cell.holds(word, hi, lo) and cell.flags & FLAG_COPY and self._fits(unpack_word(word).page, cell.length)
            ):
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
        self, s: _Scratch, cell: _Cell, target: int, room: int, offset: int, what: int, word: int, data: int,
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

    def _count_copy(self, s: _Scratch, cell: _Cell, outcome: int, what: int, *, known: bool) -> None:
        if what == DESCRIBE_ANY:
            return
        s.count(c.C_COPY_HITS)
        s.count(c.C_COPY_BYTES, outcome)
        asked = s.signed[c.COPY_ASKED] or self._field(c.POLL)
        if not asked and (not known or self._base(INDEX, s.signed[c.HOME])):
            s.count(c.C_COPY_FREE)
        self._touch(s, cell.origin)  # or its manager would take a block for cold that all others read from copies

    def _counters_of(self, hi: int, lo: int) -> tuple[Any, Any]:
        """The two counters of a key; the smaller one counts."""
        mixed, first = _key_mix(hi, lo), self._field(c.READ_COUNTS) + 8
        last = c.READ_COUNT_BYTES - 1
        one, other = (ctypes.c_uint8.from_address(first + (mixed >> shift & last)) for shift in (48, 24))
        return one, other

    def _is_next(self, s: _Scratch, hi: int, lo: int, word: int) -> bool:
        if word >> HARD_SHIFT & 1 or s.signed[c.KEEP_ALL]:
            return True
        one, other = self._counters_of(hi, lo)
        return bool(min(one.value, other.value) + 1 >= self._field(c.COPY_AFTER))

    def _is_due(self, s: _Scratch, hi: int, lo: int, word: int) -> bool:
        """Count a remote read of a block; is it to be copied now?"""
        counts = self._field(c.READ_COUNTS)
        reads = ctypes.c_uint64.from_address(counts)
        reads.value += 1
        if reads.value >= c.READ_COUNT_BYTES:
            reads.value = 0
            counters = (ctypes.c_uint8 * c.READ_COUNT_BYTES).from_address(counts + 8)
            halved = int.from_bytes(counters) >> 1 & _HALVED
            counters[:] = list(halved.to_bytes(c.READ_COUNT_BYTES))
        due = self._is_next(s, hi, lo, word)
        one, other = self._counters_of(hi, lo)
        smaller = min(one.value, other.value)
        for counter in (one, other):
            if due:
                counter.value = 0
            elif counter.value == smaller:
                counter.value = smaller + 1
        return due

    def _claim_word(self, hi: int, lo: int) -> Any:
        rank, bucket, _ = self._place_copy(hi, lo)
        first = (self._field(c.BUCKETS) + 2 * self._field(c.COPY_BUCKETS)) * BUCKET_BYTES
        at = self._base(INDEX, rank) + first + (bucket - self._field(c.BUCKETS)) * 8
        return ctypes.c_uint64.from_address(at)

    def _claim(self, s: _Scratch, hi: int, lo: int, word: int) -> bool:
        """False if another rank of this node is about to fetch and copy the block. See the kernel."""
        s.signed[c.CLAIMING] = 0
        if not self._is_next(s, hi, lo, word):
            return True
        claim, tag, rank, tick = self._claim_word(hi, lo), _claim_tag(hi, lo), self._field(c.RANK), self._now(s)
        for look in range(2):
            seen = claim.value
            others = seen >> 32 == tag and seen >> 20 & 0xFFF != rank
            if others and (tick - seen) & 0xFFFFF <= CLAIM_TICKS:
                return False
            if look == 0:
                claim.value = tag << 32 | rank << 20 | tick & 0xFFFFF
                probe.full_fence()
        s.signed[c.CLAIMING] = 1
        return True

    def _end_claim(self, hi: int, lo: int) -> None:
        claim = self._claim_word(hi, lo)
        if claim.value >> 20 == _claim_tag(hi, lo) << 12 | self._field(c.RANK):
            claim.value = 0

    def _then_copy(self, s: _Scratch, hi: int, lo: int, outcome: int, what: int) -> int:
        """DUE in the place of bytes that were read from another node and are to be copied; else the claim ends."""
        if not self._field(c.COPY_BUCKETS):
            return outcome
        if outcome >= 0 and what in (WHOLE, FETCH):
            word = s.unsigned[c.WORD]
            if not self._base(DATA, unpack_word(word).rank) and self._is_due(s, hi, lo, word):
                return DUE
        if s.signed[c.CLAIMING]:
            self._end_claim(hi, lo)
        return outcome

    def end_claim(self, ctx: int, s: int, hi: int, lo: int) -> None:
        """Local. The block that this rank was about to copy is copied, or will not be."""
        self._end_claim(hi, lo)

    @_reporting
    def find_copies(self, ctx: int, s: int, hi: int, lo: int, skip: int) -> int:
        """Local. As `find`, in the copy table of this node."""
        return self._find(_Scratch(s), *self._place_copy(hi, lo), hi, lo, skip)

    @_reporting
    def slot_of_copy(self, ctx: int, s: int, hi: int, lo: int, word: int) -> int:
        """Local. As `slot_of`, in the copy table of this node."""
        rank, bucket, _ = self._place_copy(hi, lo)
        return self._slot_in(_Scratch(s), rank, bucket, word)

    def note_origin(self, ctx: int, s: int, rank: int, bucket: int, slot: int, tick: int) -> None:
        """Local. Note beside a word of the copy table when its origin was seen in the index."""
        at = (bucket + self._field(c.COPY_BUCKETS)) * BUCKET_BYTES + slot * 8
        ctypes.c_int64.from_address(self._base(INDEX, rank) + at).value = tick

    # ------------------------------------------------------------------------------------------------- get

    def _fetch(
        self, s: _Scratch, word: int, hi: int, lo: int, target: int, room: int, offset: int, what: int, word_at: int
    ) -> tuple[int, int | None]:
        """Read the cell that `word` names, if it is the key's: (outcome, the word again if it was looked at)."""
        _, _, _, _, rank, page = unpack_word(word)
        base, descriptor = self._base(DATA, rank), s.at(c.DESCRIPTOR_COPY)
        if base:
            self._copy_descriptor(base, page, descriptor)
        else:
            self._get(descriptor, DESCRIPTOR_BYTES, rank, self._descriptor_at(page), DATA)
            if what != DESCRIBE and not is_alias(word):
                self._get_payload(target, room, rank, page, offset)
            self._flush(rank, DATA)
        cell = _Cell.read(descriptor)
        if not cell.holds(word, hi, lo):
            return MISS, None
        s.unsigned[c.LENGTH] = cell.length
        if not self._fits(page, cell.length):
            return MISS, None
        if self._expired(s, cell):
            return EXPIRED, None
        if is_alias(word):
            return ALIAS, None
        if what == DESCRIBE:
            return cell.length, None
        if (what == WHOLE and room != cell.length) or (what == RANGE and offset + room > cell.length):
            return WRONG_SIZE, None
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

    def _checksum_holds(self, cell: _Cell, payload: int, length: int) -> bool:
        if not (self._field(c.VERIFY) and cell.flags & FLAG_CHECKSUM):
            return True
        return int(checksum.checksum_bytes(payload, length)) == cell.checksum

    def _get_one(self, s: _Scratch, hi: int, lo: int, target: int, room: int, offset: int, what: int) -> int:
        home, bucket, fp = self._place(s, hi, lo)
        index_base, heed = self._base(INDEX, home), what == WHOLE
        what = WHOLE if what == FETCH else what
        copies = bool(self._field(c.COPY_BUCKETS)) and what != DESCRIBE
        if copies:
            s.signed[c.CLAIMING] = 0
            if not index_base and (outcome := self._get_copy(s, hi, lo, target, room, offset, what, 0, 0)) != MISS:
                return outcome
        parts = DESCRIBE if what == DESCRIBE_ANY else what
        for _ in range(_ATTEMPTS):
            began, changed = self._now(s), False
            s.unsigned[c.BEGAN] = began & _MASK64
            for slot, word in _matches(self._read_bucket(s, home, bucket), fp):
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
                    if heed and not self._claim(s, hi, lo, word):
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
        self, s: _Scratch, hi: int, lo: int, target: int, room: int, offset: int, what: int
    ) -> tuple[int, int, int]:
        """The whole read, through an alias too: (outcome, key of the block that was read). See the kernel."""
        for _ in range(_ATTEMPTS):
            outcome = self._get_one(s, hi, lo, target, room, offset, what)
            if outcome != ALIAS:
                return outcome, hi, lo
            cell, alias, began = _Cell.read(s.at(c.DESCRIPTOR_COPY)), s.unsigned[c.WORD], s.signed[c.BEGAN]
            home, bucket, slot = s.signed[c.HOME], s.signed[c.BUCKET], s.signed[c.SLOT]
            content = cell.origin, cell.content_lo
            outcome = self._get_one(s, *content, target, room, offset, what)
            probe.pause(self._ctx, c.H_READER)
            if self._reload(s, home, bucket, slot) == alias and not self._too_late(s, began):
                if outcome in (MISS, ALIAS):  # evicted; an alias of an alias is none
                    self._hint_gone(s, alias)  # its manager's sweep takes it out
                    return MISS, *content
                if outcome >= 0 and what not in (DESCRIBE, DESCRIBE_ANY):
                    s.count(c.C_ALIAS_READS)
                    self._touch(s, alias)  # or it would be taken for cold, however hot the content is
                return outcome, *content
            if self._field(c.COPY_BUCKETS) and s.signed[c.CLAIMING]:
                self._end_claim(*content)
            s.count(c.C_RETRIES)
        s.count(c.C_EXHAUSTED)
        return CHANGED, hi, lo

    @_reporting
    def get(self, ctx: int, s: int, hi: int, lo: int, target: int, room: int, offset: int, what: int) -> int:
        """Local. Read one block: bytes or an outcome."""
        # Compiled code says so when it takes its arguments.
        if hi >> 64 or lo >> 64:
            raise OverflowError(f"{hi} and {lo} must be in 0..2**64-1")
        scratch = _Scratch(s)
        outcome, hi, lo = self._get_named(scratch, hi, lo, target, room, offset, what)
        self._account(scratch, outcome, what)
        self._end()
        return self._then_copy(scratch, hi, lo, outcome, what)

    @_reporting
    def get_pinned(self, ctx: int, s: int, word: int, hi: int, lo: int, target: int, room: int, offset: int) -> int:
        """Local. Read `room` bytes of a cell that this rank has pinned, without a re-check."""
        scratch = _Scratch(s)
        outcome, _ = self._fetch(scratch, word, hi, lo, target, room, offset, RANGE, 0)
        if outcome >= 0:
            self._count_hit(scratch, unpack_word(word).rank, outcome)
        return MISS if outcome == EXPIRED else outcome

    # --------------------------------------------------------------------------------------------- writers

    @_reporting
    def find(self, ctx: int, s: int, hi: int, lo: int, skip: int) -> int:
        """Local. Every word of a key, for put, delete and protect: their number; the words are in the scratch."""
        scratch = _Scratch(s)
        return self._find(scratch, *self._place(scratch, hi, lo), hi, lo, skip)

    def _find(self, s: _Scratch, home: int, bucket: int, fp: int, hi: int, lo: int, skip: int) -> int:
        s.signed[c.HOME], s.signed[c.BUCKET] = home, bucket
        for _ in range(_LOOKUP_ATTEMPTS):
            words = self._read_bucket(s, home, bucket)
            found = self._words_of(s, words, home, bucket, fp, hi, lo, skip)
            if found is not None:
                for i, (slot, word, length, _) in enumerate(found):
                    s.signed[c.FOUND_WORDS + 2 * i], s.unsigned[c.FOUND_WORDS + 2 * i + 1] = slot, word
                    s.unsigned[c.FOUND_LENGTHS + i] = length
                s.signed[c.FOUND] = len(found)
                s.signed[c.FOUND_LIVE] = int(bool(found) and found[0][3])
                s.signed[c.FREE_SLOT] = words.index(0) if 0 in words else -1
                return len(found)
            s.count(c.C_RETRIES)
        return CHANGED

    def _words_of(
        self, s: _Scratch, words: list[int], home: int, bucket: int, fp: int, hi: int, lo: int, skip: int
    ) -> list[tuple[int, int, int, bool]] | None:
        """A key's words in a bucket, each with its slot, the block's length and whether that has not expired.

        None if a word that is not the key's has changed since.
        """
        found = []
        for slot, word in _matches(words, fp):
            if not self._in_bounds(word):
                s.count(c.C_BAD_WORDS)
                continue
            if word == skip:
                found.append((slot, word, 0, True))
                continue
            cell = self._read_cell(s, word)
            if not cell.holds(word, hi, lo):
                # The word decides: unchanged, it is another key's; changed, the key may have moved.
                if self._reload(s, home, bucket, slot) != word:
                    return None
                continue
            found.append((slot, word, cell.length, not self._expired(s, cell)))
        return found

    def _read_cell(self, s: _Scratch, word: int) -> _Cell:
        """What the descriptor of a word that is in bounds says."""
        _, _, _, _, rank, page = unpack_word(word)
        base, copy_to = self._base(DATA, rank), s.at(c.DESCRIPTOR_COPY)
        if base:
            self._copy_descriptor(base, page, copy_to)
        else:
            self._get(copy_to, DESCRIPTOR_BYTES, rank, self._descriptor_at(page), DATA)
            self._flush(rank, DATA)
        return _Cell.read(copy_to)

    def _swap(self, s: _Scratch, home: int, offset: int, old: int, new: int) -> int:
        """The word that was there."""
        s.unsigned[c.COMPARE], s.unsigned[c.ORIGIN] = old, new
        origin, compare, result = (
            [MPI.buffer.fromaddress(s.at(field), 8), 1, MPI.UINT64_T] for field in (c.ORIGIN, c.COMPARE, c.RESULT)
        )
        self._windows[INDEX].world.Compare_and_swap(origin, compare, result, home, self._at(INDEX, home, offset))
        self._flush(home, INDEX)
        return int(s.unsigned[c.RESULT])

    @_reporting
    def publish(self, ctx: int, s: int, home: int, bucket: int, slot: int, old: int, new: int) -> int:
        """Local. CAS `old` to `new`: CHANGED if it lost, else the number of other words of its fingerprint."""
        scratch = _Scratch(s)
        probe.full_fence()  # all of the cell before its word
        if self._swap(scratch, home, bucket * BUCKET_BYTES + slot * 8, old, new) != old:
            return CHANGED
        probe.full_fence()  # the own word before the look at the others'
        words = self._read_bucket(scratch, home, bucket)
        return sum(1 for _, word in _matches(words, new >> FP_SHIFT) if word != new)

    @_reporting
    def remove(self, ctx: int, s: int, home: int, bucket: int, slot: int, word: int) -> int:
        """Local. CAS a word away: 1 if this call did it, 0 if it had changed."""
        seen = self._swap(_Scratch(s), home, bucket * BUCKET_BYTES + slot * 8, word, 0)
        probe.full_fence()  # the removal before the look at the pins
        return int(seen == word)

    @_reporting
    def swap(self, ctx: int, s: int, home: int, bucket: int, slot: int, old: int, new: int) -> int:
        """Local. CAS `old` to `new`: 1 if this call did it, 0 if it had changed."""
        seen = self._swap(_Scratch(s), home, bucket * BUCKET_BYTES + slot * 8, old, new)
        probe.full_fence()  # the word before the hint that it has changed
        return int(seen == old)

    @_reporting
    def slot_of(self, ctx: int, s: int, hi: int, lo: int, word: int) -> int:
        """Local. The slot in which a word of this key stands now, or MISS; the word as it is there in the scratch."""
        scratch = _Scratch(s)
        home, bucket, _ = self._place(scratch, hi, lo)
        return self._slot_in(scratch, home, bucket, word)

    def _slot_in(self, s: _Scratch, home: int, bucket: int, word: int) -> int:
        s.signed[c.HOME], s.signed[c.BUCKET] = home, bucket
        for slot, there in enumerate(self._read_bucket(s, home, bucket)):
            if same_cell(there, word):
                s.unsigned[c.WORD] = there
                return slot
        return MISS

    @_reporting
    def hint_gone(self, ctx: int, s: int, word: int) -> int:
        """Local. Tell the manager of a cell that its word was taken away."""
        self._hint_gone(_Scratch(s), word)
        return 0

    def touch(self, ctx: int, s: int, word: int) -> None:
        """Local. Note that a cell was used, without a read of it."""
        self._touch(_Scratch(s), word)

    def _hint_gone(self, scratch: _Scratch, word: int) -> None:
        _, _, _, _, rank, page = unpack_word(word)
        base, at = self._base(DATA, rank), self._field(c.GONE_AT) + page
        if base:
            ctypes.c_uint8.from_address(base + at).value = 1
        else:
            scratch.unsigned[c.TOUCH_VALUE] = 1
            self._put(scratch.at(c.TOUCH_VALUE), 1, rank, at, DATA)
            self._flush(rank, DATA)

    # ------------------------------------------------------------------------------------------------ pins

    @_reporting
    def pin(self, ctx: int, s: int, word: int, pin_slot: int, home: int, bucket: int, slot: int) -> int:
        """Local. Write the word into a hazard slot of its manager, then read it again: 1 if pinned, else 0."""
        scratch, manager = _Scratch(s), unpack_word(word).rank
        self._write_pin(scratch, manager, pin_slot, word)
        if self._reload(scratch, home, bucket, slot) == word:
            return 1
        self._write_pin(scratch, manager, pin_slot, 0)
        return 0

    @_reporting
    def unpin(self, ctx: int, s: int, manager: int, pin_slot: int) -> int:
        """Local. Clear a hazard slot, after everything that was read under it."""
        self._write_pin(_Scratch(s), manager, pin_slot, 0)
        return 0

    def _write_pin(self, s: _Scratch, manager: int, pin_slot: int, word: int) -> None:
        """After everything before, and seen before anything after."""
        at = (self._field(c.RANK) * SLOTS_PER_PEER + pin_slot) * 8
        base = self._base(PINS, manager)
        if base:
            probe.store_word(base + at, word)
            return
        probe.full_fence()
        s.unsigned[c.ORIGIN] = word
        self._put(s.at(c.ORIGIN), 8, manager, at, PINS)
        self._flush(manager, PINS)
        probe.full_fence()

    # --------------------------------------------------------------------------------------------- batches

    def _items(self, keys: int, n: int, work: int) -> Iterator[list[_Item]]:
        """The keys, BATCH at a time, with their places."""
        for start in range(0, n, BATCH):
            step = min(n - start, BATCH)
            words = _Words(keys + 16 * start, 2 * step).unsigned.tolist()
            pairs = zip(words[::2], words[1::2], strict=True)
            ranks, buckets = self._field(c.RANKS), self._field(c.BUCKETS)
            yield [_Item(start + i, hi, lo, *place(hi, lo, ranks, buckets), work) for i, (hi, lo) in enumerate(pairs)]

    def _read_buckets(self, items: list[_Item]) -> list[list[int]]:
        """Every bucket, one Flush per home."""
        items = [item for item in items if not item.done]
        remote = [item for item in items if not self._base(INDEX, item.home)]
        for item in remote:
            self._get(item.bucket_copy, BUCKET_BYTES, item.home, item.bucket * BUCKET_BYTES, INDEX)
        self._flush_all((item.home for item in remote), INDEX)
        buckets = []
        for item in items:
            base = self._base(INDEX, item.home)
            if base:
                probe.copy_bucket(base, item.bucket, item.bucket_copy)
            buckets.append(_Words(item.bucket_copy, BUCKET_WORDS).unsigned.tolist())
        return buckets

    def _choose_candidates(self, items: list[_Item]) -> list[_Item]:
        """Give each key its first candidate; the items that have one that may be followed."""
        items = [item for item in items if not item.done]
        for item, words in zip(items, self._read_buckets(items), strict=True):
            item.slot, item.word = next(_matches(words, item.fp), (-1, 0))
            # An alias is two look-ups: one by one.
            item.doubt = bool(item.word) and (is_alias(item.word) or not self._in_bounds(item.word))
            work = _Words(item.bucket_copy - W_BUCKET_COPY * 8, WORK_WORDS)
            work.signed[W_SLOT], work.unsigned[W_WORD] = item.slot, item.word  # who copies blocks needs them
        return [item for item in items if item.word and not item.doubt]

    def _get_chunk(self, s: _Scratch, items: list[_Item], targets: Any, rooms: Any, results: Any) -> None:
        began, flags = self._now(s), set()
        remote = []
        copies = bool(self._field(c.COPY_BUCKETS))
        s.unsigned[c.BEGAN] = began & _MASK64
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
                outcome, s.unsigned[c.WORD] = room, item.word
                due = copies and not item.doubt and self._is_due(s, item.hi, item.lo, item.word)
                if item.claiming and not due:
                    self._end_claim(item.hi, item.lo)
            if item.doubt:
                outcome, *read = self._get_named(s, item.hi, item.lo, targets[item.number], room, 0, WHOLE)
                if copies and s.signed[c.CLAIMING]:
                    self._end_claim(*read)
            if outcome == WRONG_SIZE:
                results[item.number] = -10 - s.signed[c.LENGTH]
                continue
            self._account(s, outcome, WHOLE)
            results[item.number] = DUE if due else outcome
        s.unsigned[c.BEGAN] = began & _MASK64  # of what is due: who went the long way has begun later

    def _get_fixed_copies(self, s: _Scratch, items: list[_Item], targets: Any, rooms: Any, results: Any) -> None:
        """What this node has copies of and needs no look at its home: done before the first Get."""
        for item in items:
            at = item.number
            if not self._base(INDEX, item.home):
                outcome = self._get_copy(s, item.hi, item.lo, targets[at], rooms[at], 0, WHOLE, 0, 0)
                if outcome >= 0:
                    self._account(s, outcome, WHOLE)
                    results[at], item.done = outcome, True

    def _copy_decides(self, s: _Scratch, item: _Item, target: int, room: int, results: Any, began: int) -> bool:
        """Whether nothing has to be fetched for a key: this node has a copy, or another rank is about to make one."""
        s.signed[c.HOME] = item.home
        outcome = self._get_copy(s, item.hi, item.lo, target, room, 0, WHOLE, item.word, began)
        if outcome >= 0 and self._too_late(s, began):
            item.doubt = True
            return True
        if outcome < 0 and not self._claim(s, item.hi, item.lo, item.word):
            outcome = CLAIMED
        if outcome == MISS:
            item.claiming = bool(s.signed[c.CLAIMING])
            return False
        self._account(s, outcome, WHOLE)
        results[item.number], item.done = outcome, True
        return True

    def _reload_all(self, items: list[_Item]) -> None:
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

    def _is_whole(self, s: _Scratch, item: _Item, target: int, room: int) -> bool:
        cell = _Cell.read(item.descriptor)
        return (
            item.again.unsigned[0] == item.word
            and cell.holds(item.word, item.hi, item.lo)
            and cell.length == room
            and self._fits(unpack_word(item.word).page, room)
            and not self._expired(s, cell)
            and self._checksum_holds(cell, target, room)
        )

    @_reporting
    def get_many(
        self, ctx: int, s: int, keys: int, n: int, targets: int, rooms: int, results: int, work: int, flags: int
    ) -> int:
        """Local. Read n blocks: results[i] = bytes, an outcome of `get`, or -10 - length for a wrong size."""
        if n:
            areas = [_Words(address, n).signed for address in (targets, rooms, results)]
            for items in self._items(keys, n, work):
                self._get_chunk(_Scratch(s), items, *areas)
        self._end()
        return 0

    def _describe_chunk(self, s: _Scratch, items: list[_Item], descriptors: int, results: Any) -> None:
        flags, candidates = set(), self._choose_candidates(items)
        for item in candidates:
            _, _, _, _, rank, page = unpack_word(item.word)
            base = self._base(DATA, rank)
            if base:
                self._copy_descriptor(base, page, item.descriptor)
            else:
                self._get(item.descriptor, DESCRIPTOR_BYTES, rank, self._descriptor_at(page), DATA)
                flags.add(rank)
        self._flush_all(flags, DATA)
        for item in items:
            outcome, descriptor = MISS, item.descriptor
            if item in candidates:
                cell = _Cell.read(descriptor)
                fits = self._fits(unpack_word(item.word).page, cell.length)
                item.doubt = not (fits and cell.holds(item.word, item.hi, item.lo)) or self._expired(s, cell)
                outcome = cell.length
            if item.doubt:
                descriptor = s.at(c.DESCRIPTOR_COPY)
                outcome, _, _ = self._get_named(s, item.hi, item.lo, 0, 0, 0, DESCRIBE)
            if descriptors and outcome >= 0:
                ctypes.memmove(descriptors + item.number * DESCRIPTOR_BYTES, descriptor, DESCRIPTOR_BYTES)
            results[item.number] = outcome

    @_reporting
    def describe_many(
        self, ctx: int, s: int, keys: int, n: int, descriptors: int, results: int, work: int, flags: int
    ) -> int:
        """Local. Look n keys up exactly: results[i] = length of the block, MISS or CHANGED; its descriptor if asked."""
        if n:
            area = _Words(results, n).signed
            for items in self._items(keys, n, work):
                self._describe_chunk(_Scratch(s), items, descriptors, area)
        self._end()
        return 0

    @_reporting
    def probe_many(self, ctx: int, s: int, keys: int, n: int, results: int, work: int, flags: int) -> int:
        """Local. Look n keys up by fingerprint only: results[i] = 1 or 0 (uint8)."""
        for items in self._items(keys, n, work):
            for item, words in zip(items, self._read_buckets(items), strict=True):
                found = any(True for _ in _matches(words, item.fp))
                ctypes.c_uint8.from_address(results + item.number).value = found
        self._end()
        return 0

    def poll(self, ctx: int, s: int) -> None:
        """Local. Enter MPI once, whatever POLL says, and send the touches that wait."""
        self._send_touches(_Scratch(s))
        self._enter_mpi()


def _key_mix(hi: int, lo: int) -> int:
    return (lo ^ hi * _MIX & _MASK64) * _MIX & _MASK64


def _claim_tag(hi: int, lo: int) -> int:
    return _key_mix(hi, lo) >> 32 | 1  # no claim is 0


def _matches(words: list[int], fp: int) -> Iterator[tuple[int, int]]:
    """The (slot, word) pairs of a bucket with this fingerprint, lowest slot first."""
    return ((slot, word) for slot, word in enumerate(words) if word and word >> FP_SHIFT == fp)
