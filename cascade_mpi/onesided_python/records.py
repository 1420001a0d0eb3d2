"""Memory at an address as Python sees it: words, a thread's scratch, a descriptor, an item of a batch; and outcomes.

Covers decoding and encoding. Does not cover how the bytes came there.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from cascade_mpi.kernels import context as c
from cascade_mpi.layout import DESCRIPTOR, DESCRIPTOR_BYTES, MAGIC, unpack_word
from cascade_mpi.onesided.batch import BATCH, W_BUCKET_COPY, W_DESCRIPTOR, WORK_WORDS

MISS: int = c.MISS
WRONG_SIZE: int = c.WRONG_SIZE
CHANGED: int = c.CHANGED
MPI_FAILED: int = c.MPI_FAILED
CORRUPT: int = c.CORRUPT
EXPIRED: int = c.EXPIRED
DUE: int = c.DUE
ALIAS: int = c.ALIAS
CLAIMED: int = c.CLAIMED
ON_DISK: int = c.ON_DISK
MASK64 = (1 << 64) - 1
MIX = 0x9E3779B97F4A7C15
_O_GENERATION, _O_FLAGS, _O_LENGTH, _O_HI, _O_LO, _O_CHECKSUM, _O_CONTENT_HI, _O_CONTENT_LO, _O_SEQUENCE, _O_EXPIRY = (
    DESCRIPTOR.fields[name][1]  # type: ignore[index]
    for name in (
        "generation", "flags", "length", "key_hi", "key_lo", "checksum", "content_hi", "content_lo", "sequence",
        "expiry",
    )
)  # fmt: skip


class Words:
    """64-bit words at an address, which somebody else keeps alive."""

    def __init__(self, address: int, words: int) -> None:
        self.address = address
        raw = memoryview((ctypes.c_uint64 * words).from_address(address)).cast("B")
        self.unsigned: memoryview[int] = raw.cast("Q")
        self.signed: memoryview[int] = raw.cast("q")

    def at(self, index: int) -> int:
        """Local. The address of a word."""
        return self.address + 8 * index


class Scratch(Words):
    """The scratch of the calling thread, as `kernels.context` lays it out."""

    def __init__(self, address: int) -> None:
        super().__init__(address, c.SCRATCH_WORDS)

    def count(self, counter: int, by: int = 1) -> None:
        """Local. Add to a counter of this thread."""
        self.signed[c.COUNTERS + counter] += by


class Cell(NamedTuple):
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
    def read(cls, address: int) -> Cell:
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


class Item:
    """One key of a batch on its way; `word` is 0 without a candidate, `doubt` sends it the long way."""

    def __init__(self, number: int, hi: int, lo: int, home: int, bucket: int, fp: int, work: int) -> None:
        self.number, self.hi, self.lo = number, hi, lo
        self.home, self.bucket, self.fp = home, bucket, fp
        self.bucket_copy = work + number % BATCH * WORK_WORDS * 8 + W_BUCKET_COPY * 8
        self.descriptor = work + number % BATCH * WORK_WORDS * 8 + W_DESCRIPTOR * 8
        self.again = Words(self.bucket_copy, 1)  # the bucket's copy has been read by then
        self.word, self.slot, self.doubt, self.done, self.claiming = 0, -1, False, False, False
