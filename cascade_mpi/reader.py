"""Reading: one block, a part of it, its description, many at once; and what to do when words keep changing.

Covers the outcomes of the compiled get and the pinned read that it falls back to. Does not cover the
steps themselves (`onesided`), views (`view`), nor the read of what is on disk, which `on_disk` does.
"""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cascade_mpi.copier import Copier
from cascade_mpi.copies import Copies
from cascade_mpi.errors import BufferSizeError, CascadeError, NoPinSlotError, ProtocolError
from cascade_mpi.fabric import Fabric
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.keys import shown
from cascade_mpi.layout import DESCRIPTOR, FLAG_CHECKSUM, FLAG_PREFIX, TIER_NAMES, is_disk, unpack_word
from cascade_mpi.onesided import DESCRIBE, DESCRIBE_ANY, FETCH, RANGE, WHOLE
from cascade_mpi.pins import Pin, PinTable
from cascade_mpi.values import decode_dims, dtype_name, empty

_log = logging.getLogger("cascade")
_CLAIM_WAIT_S, _CLAIM_BYTES_S, _CLAIM_POLL_S = 0.02, 2e8, 2e-5  # how long a reader leaves a fetch to another rank
_PIN_ATTEMPTS = 10_000  # pins lost in a row before a reader gives up: far beyond any real rate of replaces


class Location(NamedTuple):
    """Where a block is and what it is. `path` is how this rank reaches it: "self", "node", "remote" or "disk".

    Of one on disk `rank` is who manages it there.
    `is_prefix` says whether it was put protected, `protected` whether it is now.
    """

    tier: str
    rank: int
    path: str
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    is_prefix: bool
    protected: bool


class Found(NamedTuple):
    """A block as its word and descriptor describe it; valid at the time of the call."""

    nbytes: int
    dtype: int
    shape: tuple[int, ...]
    flags: int
    word: int
    rank: int
    page: int
    home: int
    bucket: int
    slot: int
    hi: int  # the block's own key: the content's, if an alias led to it
    lo: int


class Plan(Protocol):
    """The order in which blocks on disk are read best: `order` has their numbers."""

    @property
    def order(self) -> list[int]:
        """Local. All numbers, each once."""

    def before(self, number: int) -> None:
        """Local. Block `order[number]` is read now."""


class OnDisk(Protocol):
    """What a reader asks of the disk tier when an index word names a disk cell."""

    def read(self, address: int, room: int, offset: int) -> int:
        """Local. Read `room` bytes from `offset` of the block that this thread's last get found to be ON_DISK.

        The scratch has its WORD, SLOT, HOME, BUCKET, LENGTH, BEGAN and descriptor, which stays there. The outcome:
        `room`; MISS if its record is damaged, or not visible here yet, which is counted and logged there; CHANGED if
        the index has another word by now, or BEGAN is longer ago than an attempt may take (`Fabric.attempt`).
        """

    def plan(self, described: npt.NDArray[np.uint8]) -> Plan:
        """Local. How to read the blocks that have these descriptors, uint8[n, 128], one after the other."""

    def promote(self, found: Found) -> bool:
        """Local. Bring a block into memory, unless its word has changed meanwhile; StoreFullError: there is no room.

        False: its bytes cannot be read, which is counted as a miss.
        """


class _NotInMemoryError(CascadeError):
    """A block that was to be pinned is on disk."""


class Reader:
    """The read path of one rank."""

    def __init__(self, fabric: Fabric, pins: PinTable, copier: Copier, copies: Copies, *, verify: bool) -> None:
        self._fabric, self._pins, self._copier, self._verify = fabric, pins, copier, verify
        self._copies = copies
        self._sizing = DESCRIBE_ANY if copies.on else DESCRIBE
        self.waited = 0
        self.on_disk: OnDisk | None = None  # set by the disk tier, where there is one

    # ------------------------------------------------------------------------------------------- one block

    def into(self, hi: int, lo: int, address: int, room: int) -> int | None:
        """Local. Read a block into a buffer of exactly its size: its bytes, or None for a miss."""
        if self._copier.splits(room) and not self._verify:
            found = self.find(hi, lo, self._sizing)
            if found is None:
                self._count(c.C_MISSES)  # seen without a read
                return None
            if found.nbytes != room:
                raise wrong_size(room, found.nbytes)
            if self._copy_split(hi, lo, found, address, room):
                return room
        fabric, s = self._fabric, self._fabric.scratch
        return self.settle(fabric.get(fabric.ctx, s.address, hi, lo, address, room, 0, WHOLE), hi, lo, address, room)

    def settle(self, outcome: int, hi: int, lo: int, address: int, room: int, *, again: bool = True) -> int | None:
        """Local. What an outcome of the compiled get means to the caller."""
        if outcome >= 0:
            return outcome
        if outcome == c.MISS:
            return None
        if outcome == c.WRONG_SIZE:
            raise wrong_size(room, self._fabric.scratch.words[c.LENGTH])
        if outcome == c.CHANGED:
            return self._pinned(hi, lo, address, room, 0, WHOLE)
        if outcome == c.DUE:
            self._copies.keep_read(hi, lo, address)
            return room
        if outcome == c.CLAIMED:
            return self.settle(self._after_claim(hi, lo, address, room), hi, lo, address, room)
        if outcome == c.ON_DISK:
            return self.settle(self._from_disk(hi, lo, address, room, 0, WHOLE), hi, lo, address, room)
        if outcome == c.CORRUPT and again:
            # A checksum that is entered later may have been read half: a second read settles it.
            fabric = self._fabric
            outcome = fabric.get(fabric.ctx, fabric.scratch.address, hi, lo, address, room, 0, WHOLE)
            return self.settle(outcome, hi, lo, address, room, again=False)
        self._fail(outcome, hi, lo)
        return None

    def _after_claim(self, hi: int, lo: int, address: int, room: int) -> int:
        """Another rank of this node is about to copy the block: read its copy, or after a while fetch the block too."""
        fabric, s = self._fabric, self._fabric.scratch
        self.waited += 1
        deadline = time.monotonic() + _CLAIM_WAIT_S + room / _CLAIM_BYTES_S
        while True:
            what = WHOLE if time.monotonic() < deadline else FETCH
            outcome: int = fabric.get(fabric.ctx, s.address, hi, lo, address, room, 0, what)
            if outcome != c.CLAIMED:
                return outcome
            fabric.poll(fabric.ctx, s.address)
            time.sleep(_CLAIM_POLL_S)

    def part(self, hi: int, lo: int, address: int, room: int, offset: int) -> int | None:
        """Local. Read `room` bytes of a block from `offset`; BufferSizeError if the block ends before."""
        fabric, s = self._fabric, self._fabric.scratch
        outcome = fabric.get(fabric.ctx, s.address, hi, lo, address, room, offset, RANGE)
        if outcome == c.ON_DISK:
            outcome = self._from_disk(hi, lo, address, room, offset, RANGE)
        if outcome >= 0:
            return outcome
        if outcome == c.WRONG_SIZE:
            raise range_error(offset, room, s.words[c.LENGTH])
        if outcome == c.CHANGED:
            return self._pinned(hi, lo, address, room, offset, RANGE)
        self._fail(outcome, hi, lo)
        return None

    def new(self, hi: int, lo: int) -> npt.NDArray[Any] | None:
        """Local. Read a block into a new array of its dtype and shape, or None for a miss."""
        while True:
            found = self.find(hi, lo, self._sizing)
            if found is None:
                self._count(c.C_MISSES)  # seen without a read
                return None
            made = empty(found.dtype, found.shape)
            try:
                if self.into(hi, lo, made.ctypes.data, found.nbytes) is None:
                    return None
            except BufferSizeError:
                continue  # replaced by a block of another size meanwhile
            if decode(self._fabric.scratch.descriptor)[:2] == (found.dtype, found.shape):
                return made  # else replaced by one of the same size, but of another type or shape

    def find(self, hi: int, lo: int, what: int = DESCRIBE) -> Found | None:
        """Local. The word and the descriptor of a key's block, or None. 3 Gets + 3 Flushes on another node.

        With DESCRIBE_ANY those of a copy that this node has, if there is one.
        """
        fabric, s = self._fabric, self._fabric.scratch
        for _ in range(_PIN_ATTEMPTS):
            outcome = fabric.get(fabric.ctx, s.address, hi, lo, 0, 0, 0, what)
            if outcome >= 0:
                return self.described(outcome)
            if outcome != c.CHANGED:
                self._fail(outcome, hi, lo)
                return None
        raise CascadeError(f"block {shown(hi, lo)} was replaced in every one of {_PIN_ATTEMPTS} looks at it")

    def described(self, nbytes: int) -> Found:
        """Local. The descriptor and the word that the last call left in this thread's scratch."""
        s = self._fabric.scratch
        dtype, shape, flags = decode(s.descriptor)
        record = s.descriptor.view(DESCRIPTOR)[0]
        key = int(record["key_hi"]), int(record["key_lo"])
        word = s.words[c.WORD]
        fields = unpack_word(word)
        home, bucket, slot = s.words[c.HOME], s.words[c.BUCKET], s.words[c.SLOT]
        return Found(nbytes, dtype, shape, flags, word, fields.rank, fields.page, home, bucket, slot, *key)

    def locate(self, hi: int, lo: int) -> Location | None:
        """Local. Where a block is, or None."""
        found = self.find(hi, lo)
        if found is None:
            return None
        mapped = self._fabric.mapped[found.rank]
        path = "self" if found.rank == self._fabric.comm.rank else "node" if mapped else "remote"
        if is_disk(found.word):
            path = "disk"
        return Location(
            TIER_NAMES[unpack_word(found.word).tier], found.rank, path, found.nbytes,
            dtype_name(found.dtype), found.shape, bool(found.flags & FLAG_PREFIX),
            unpack_word(found.word).hard,
        )  # fmt: skip

    def pin(self, hi: int, lo: int, *, promote: bool = True) -> tuple[Found, Pin] | None:
        """Local. Find and pin a block; None if there is none. One that is on disk is brought into memory first.

        StoreFullError: there is no room for that.
        """
        for _ in range(_PIN_ATTEMPTS):
            found = self.find(hi, lo)
            if found is None:
                return None
            if is_disk(found.word):
                if not promote:
                    raise _NotInMemoryError(f"block {shown(hi, lo)} is on disk")
                if not self._disk(hi, lo).promote(found):
                    return None
                continue
            pin = self._pins.pin(found.word, found.rank, found.home, found.bucket, found.slot)
            if pin is not None:
                return found, pin
        raise CascadeError(f"block {shown(hi, lo)} was replaced {_PIN_ATTEMPTS} times while it was to be pinned")

    # -------------------------------------------------------------------------------------------- the rest

    def _copy_split(self, hi: int, lo: int, found: Found, address: int, room: int) -> bool:
        """Copy with several threads from memory that is mapped here; False if that was not possible or not whole."""
        fabric, s, began = self._fabric, self._fabric.scratch, time.monotonic()
        base = int(fabric.data.table[found.rank, 0])
        if not base or is_disk(found.word):
            return False
        self._copier.copy(address, base + fabric.arena_at + found.page * fabric.page_bytes, room)
        # Every thread has fenced. A read of no bytes is the re-check: it finds the same word behind a fence of
        # its own, counts the hit and touches the cell.
        outcome = fabric.get(fabric.ctx, s.address, hi, lo, 0, 0, 0, RANGE)
        if outcome != 0 or s.words[c.WORD] != found.word or time.monotonic() - began > fabric.attempt:
            return False
        path = c.C_BYTES_SELF if found.rank == fabric.comm.rank else c.C_BYTES_NODE
        s.words[c.COUNTERS + path] += room
        return True

    @uninterrupted
    def _pinned(self, hi: int, lo: int, address: int, room: int, offset: int, what: int) -> int | None:
        """Read under a pin: the words change faster than the payload can be copied."""
        fabric, s = self._fabric, self._fabric.scratch
        for _ in range(_PIN_ATTEMPTS):
            try:
                held = self.pin(hi, lo, promote=False)
            except (NoPinSlotError, _NotInMemoryError):  # then only copying helps: try the plain read again
                outcome = fabric.get(fabric.ctx, s.address, hi, lo, address, room, offset, what)
                if outcome == c.ON_DISK:
                    outcome = self._from_disk(hi, lo, address, room, offset, what)
                if outcome == c.CHANGED:
                    continue
                return self.settle(outcome, hi, lo, address, room)
            if held is None:
                return None
            found, pin = held
            try:
                if (what == WHOLE and found.nbytes != room) or offset + room > found.nbytes:
                    raise wrong_size(offset + room, found.nbytes)
                at = found.hi, found.lo
                outcome = fabric.get_pinned(fabric.ctx, s.address, found.word, *at, address, room, offset)
            finally:
                pin.release()
            if outcome >= 0:
                if not self._verify or what != WHOLE or self._sum_holds(address, room):
                    return outcome
                outcome = c.CORRUPT
            if outcome != c.MISS:
                self._fail(outcome, hi, lo)
                return None
        raise CascadeError(f"block {shown(hi, lo)} could not be read: its word changed with every attempt")

    def _from_disk(self, hi: int, lo: int, address: int, room: int, offset: int, what: int) -> int:
        """Read what the last get of this thread has found on disk: an outcome of a get, but never ON_DISK."""
        fabric, s = self._fabric, self._fabric.scratch
        for _ in range(_PIN_ATTEMPTS):
            outcome = self._disk(hi, lo).read(address, room, offset)
            if outcome != c.CHANGED:
                return outcome
            outcome = fabric.get(fabric.ctx, s.address, hi, lo, address, room, offset, what)
            if outcome != c.ON_DISK:
                return outcome
        raise CascadeError(f"block {shown(hi, lo)} could not be read from disk: its word changed with every attempt")

    def _disk(self, hi: int, lo: int) -> OnDisk:
        """The disk tier; ProtocolError if this store has none, and there should be no such word."""
        if self.on_disk is None:
            word = unpack_word(self._fabric.scratch.words[c.WORD])
            raise ProtocolError(
                f"block {shown(hi, lo)}: its word names disk cell {word.page} of rank {word.rank}, and this store was "
                "opened without a disk tier"
            )
        return self.on_disk

    def _sum_holds(self, address: int, room: int) -> bool:
        """Does what was just read have the checksum of its descriptor, if that has one?"""
        record = self._fabric.scratch.descriptor.view(DESCRIPTOR)[0]
        return not record["flags"] & FLAG_CHECKSUM or checksum_bytes(address, room) == int(record["checksum"])

    def _count(self, counter: int) -> None:
        self._fabric.scratch.words[c.COUNTERS + counter] += 1

    def _fail(self, outcome: int, hi: int, lo: int) -> None:
        if outcome == c.MPI_FAILED:
            self._fabric.raise_mpi_error(self._fabric.scratch)
        if outcome == c.CORRUPT:
            self._count(c.C_CORRUPT)
            _log.error("block %s: its checksum does not hold; reported as a miss", shown(hi, lo))


def wrong_size(room: int, nbytes: int) -> BufferSizeError:
    """Local. The error for a buffer that is not of the block's size."""
    return BufferSizeError(f"out has {room} bytes, the block has {nbytes} bytes: give a buffer of its size")


def range_error(offset: int, room: int, nbytes: int) -> BufferSizeError:
    """Local. The error for a range that does not lie within the block."""
    return BufferSizeError(f"bytes {offset}..{offset + room} were asked for, the block has {nbytes} bytes")


def decode(descriptor: npt.NDArray[np.uint8]) -> tuple[int, tuple[int, ...], int]:
    """Local. (dtype code, shape, flags) of the 128 bytes of a descriptor."""
    record = descriptor.view(DESCRIPTOR)[0]
    ndim = int(record["ndim"])
    dims = tuple(record["dims"].tolist()) if ndim > 1 else ()
    shape = decode_dims(ndim, int(record["dim0"]), dims)
    return int(record["dtype"]), shape, int(record["flags"])
