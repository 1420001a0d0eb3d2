"""The bits of an index word, of a placement and of a descriptor.

Covers the one layout that all ranks, kernels and file formats share. Does not cover how words are
read or changed (see `protocol`) nor where the memory comes from (see `window`).

Word, 64 bits, most significant first::

    fp 12 | generation 15 | hard 1 | tier 2 | rank 12 | page 22

0 is the empty word; a generation is never 0, so no used word is 0. Anybody may toggle `hard` in the index (see
`protection`): two words that differ in it alone name the same cell.

A rank's *cells* are numbered from 0: first the pages of its arena, then its disk cells. A disk cell has what every cell
has at its manager, a hint, a touch, a descriptor and a generation, but no bytes of the arena: its descriptor says where
the record of its block is (`pack_location`). Its word has tier disk, the manager as rank, and its number as page.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAGE_BITS, RANK_BITS, TIER_BITS, HARD_BITS, GENERATION_BITS, FP_BITS = 22, 12, 2, 1, 15, 12
RANK_SHIFT = PAGE_BITS
TIER_SHIFT = RANK_SHIFT + RANK_BITS
HARD_SHIFT = TIER_SHIFT + TIER_BITS
GENERATION_SHIFT = HARD_SHIFT + HARD_BITS
FP_SHIFT = GENERATION_SHIFT + GENERATION_BITS
HARD = 1 << HARD_SHIFT

MAX_PAGES = 1 << PAGE_BITS
MAX_RANKS = 1 << RANK_BITS
MAX_GENERATION = (1 << GENERATION_BITS) - 1

TIER_ALIAS, TIER_DRAM, TIER_GPU, TIER_DISK = range(4)
TIER_NAMES = ("alias", "dram", "gpu", "disk")
MAX_DISK_CELLS = 3 << PAGE_BITS - 2  # of a rank: so many leave 2^20 pages for its arena

SEGMENT_BITS, UNIT_BITS = 40, 24  # of a record's location: the number of its segment file, the unit where it starts
MAX_SEGMENT, MAX_UNIT = (1 << SEGMENT_BITS) - 1, (1 << UNIT_BITS) - 1

BUCKET_WORDS = 16
BUCKET_BYTES = BUCKET_WORDS * 8
MIN_PAGE_BYTES = 4096
DESCRIPTOR_BYTES = 128
MAGIC = 0x43534344  # "CSCD"
MAX_DIMS = 8

FLAG_CHECKSUM = 1  # the payload checksum is valid
FLAG_PREFIX = 2  # put with is_prefix=True
FLAG_COPY = 16  # a copy for one node; `content_hi` is the index word that it was made from
FLAG_FIXED = 32  # the key determines the content: the namespace has content_keys, or the key is made of the content
FLAG_ALIAS = 64  # a second name of stored content: `content_hi` and `content_lo` are its key, there is no payload
FLAG_CONTENT = 128  # the key is the digest of the content: who named it put an alias (see `dedup`)
FLAG_DISK = 256  # of a disk cell: `content_hi` is the location of its record, which its manager may change at any time
FLAG_HELD = 1024  # of a disk cell that a restart made: its block was protected, and is again when it is in memory
FLAG_BACKED = 512  # in memory, and unchanged on disk: `content_hi` is the word of that disk cell, without its hard bit

DESCRIPTOR = np.dtype(
    {
        "names": [
            "magic", "generation", "flags", "length", "key_hi", "key_lo", "content_hi", "content_lo",
            "checksum", "namespace", "epoch", "expiry", "sequence", "manager", "dtype", "ndim", "depth",
            "dim0", "dims", "own_checksum",
        ],
        "formats": [
            "<u4", "<u2", "<u2", "<u8", "<u8", "<u8", "<u8", "<u8",
            "<u8", "<u8", "<u4", "<u4", "<u8", "<u2", "u1", "u1", "<u4",
            "<u8", ("<u4", MAX_DIMS - 1), "<u4",
        ],
        "offsets": [0, 4, 6, 8, 16, 24, 32, 40, 48, 56, 64, 68, 72, 80, 82, 83, 84, 88, 96, 124],
        "itemsize": DESCRIPTOR_BYTES,
    }
)  # fmt: skip


# expiry: the second since the store's opening from which on the block is a miss; 0: never.
# depth: the block's place in its prefix, counted from 1; 0: not known.
MAX_EXPIRY = MAX_DEPTH = (1 << 32) - 1


class Word(NamedTuple):
    """A decoded index word."""

    fp: int
    generation: int
    hard: bool
    tier: int
    rank: int
    page: int


def pack_word(fp: int, generation: int, tier: int, rank: int, page: int, hard: bool = False) -> int:
    """Local. The u64 of these fields; ValueError names the first one that does not fit."""
    fields = (
        ("fp", fp, 0, 1 << FP_BITS), ("generation", generation, 1, 1 << GENERATION_BITS),
        ("tier", tier, 0, 1 << TIER_BITS), ("rank", rank, 0, MAX_RANKS), ("page", page, 0, MAX_PAGES),
    )  # fmt: skip
    for name, value, low, high in fields:
        if not low <= value < high:
            raise ValueError(f"{name} {value} is outside {low}..{high - 1}")
    return (
        fp << FP_SHIFT | generation << GENERATION_SHIFT | int(hard) << HARD_SHIFT | tier << TIER_SHIFT
        | rank << RANK_SHIFT | page
    )  # fmt: skip


def unpack_word(word: int) -> Word:
    """Local. The fields of a u64; the inverse of `pack_word`."""
    return Word(
        fp=word >> FP_SHIFT & (1 << FP_BITS) - 1,
        generation=word >> GENERATION_SHIFT & MAX_GENERATION,
        hard=bool(word >> HARD_SHIFT & 1),
        tier=word >> TIER_SHIFT & (1 << TIER_BITS) - 1,
        rank=word >> RANK_SHIFT & MAX_RANKS - 1,
        page=word & MAX_PAGES - 1,
    )


def is_alias(word: int) -> bool:
    """Local. Whether a word names an alias: a descriptor that holds the key of the content, and no payload."""
    return word != 0 and word >> TIER_SHIFT & (1 << TIER_BITS) - 1 == TIER_ALIAS


def is_disk(word: int) -> bool:
    """Local. Whether a word names a disk cell: a descriptor that says where the record of the block is."""
    return word >> TIER_SHIFT & (1 << TIER_BITS) - 1 == TIER_DISK


def same_cell(word: int, other: int) -> bool:
    """Local. Whether two words name the same cell in the same generation, whatever their hard bits say."""
    return word | HARD == other | HARD


def next_generation(generation: int) -> int:
    """Local. The generation after this one: 1..32767 and round again, never 0."""
    return generation % MAX_GENERATION + 1


def page_bytes_for(arena_bytes: int, disk_cells: int = 0) -> int:
    """Local. The smallest page (bytes, a power of two, at least 4 KiB) that gives at most 2^22 cells, disk cells too.

    ValueError: so many disk cells leave an arena too few pages.
    """
    if not 0 <= disk_cells <= MAX_DISK_CELLS:
        raise ValueError(f"{disk_cells} disk cells of a rank are outside 0..{MAX_DISK_CELLS}")
    page = MIN_PAGE_BYTES
    while -(-arena_bytes // page) > MAX_PAGES - disk_cells:
        page *= 2
    return page


class DiskLocation(NamedTuple):
    """Where a record is: the number of its segment, and the unit (1 KiB) of that file at which it starts."""

    segment: int
    unit: int


def pack_location(segment: int, unit: int) -> int:
    """Local. The u64 that a disk cell's descriptor has as `content_hi`, never 0; ValueError names what does not fit.

    Unit 0 is the segment's own header, so that no record starts there.
    """
    for name, value, low, high in (("segment", segment, 0, MAX_SEGMENT), ("unit", unit, 1, MAX_UNIT)):
        if not low <= value <= high:
            raise ValueError(f"{name} {value} is outside {low}..{high}")
    return segment << UNIT_BITS | unit


def unpack_location(location: int) -> DiskLocation:
    """Local. The inverse of `pack_location`; ValueError for what that never gives, such as 0."""
    found = DiskLocation(location >> UNIT_BITS, location & MAX_UNIT)
    if not 0 <= location < 1 << 64 or not found.unit:
        raise ValueError(f"{location:#x} is no location of a record: unit 0 is the header of a segment")
    return found


class Placement(NamedTuple):
    """Where the index keeps a key."""

    home: int
    bucket: int
    fp: int


_MASK64 = (1 << 64) - 1
_MIX1, _MIX2, _MIX3 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def place(key_hi: int, key_lo: int, ranks: int, buckets: int) -> Placement:
    """Local. Home, bucket and fingerprint of a key, from disjoint bits of a mix of all its 128 bits.

    The mix (constants of SplitMix64, Steele et al., OOPSLA 2014) lets callers use small integers as
    keys; identity stays with the full key. `buckets` (per rank) is a power of two up to 2^40.
    The kernels compute the same (`kernels.probe.place`).
    """
    a = (key_hi * _MIX1 & _MASK64) ^ key_lo
    a = (a ^ a >> 30) * _MIX2 & _MASK64
    b = (a ^ a >> 27) + (key_hi ^ _MIX1) & _MASK64
    b = (b ^ b >> 31) * _MIX3 & _MASK64
    b ^= b >> 29
    a = (a ^ b >> 32 ^ b << 32) * _MIX3 & _MASK64
    return Placement(home=(a >> 32) * ranks >> 32, bucket=b & buckets - 1, fp=b >> 64 - FP_BITS)


class Placements(NamedTuple):
    """Where the index keeps many keys: int64[n], int64[n], uint64[n]."""

    homes: npt.NDArray[np.int64]
    buckets: npt.NDArray[np.int64]
    fps: npt.NDArray[np.uint64]


def place_many(key_hi: npt.NDArray[np.uint64], key_lo: npt.NDArray[np.uint64], ranks: int, buckets: int) -> Placements:
    """Local. `place` for arrays of keys."""
    u = np.uint64
    hi, lo = np.ascontiguousarray(key_hi), np.ascontiguousarray(key_lo)
    a = hi * u(_MIX1) ^ lo
    a = (a ^ a >> u(30)) * u(_MIX2)
    b = (a ^ a >> u(27)) + (hi ^ u(_MIX1))
    b = (b ^ b >> u(31)) * u(_MIX3)
    b ^= b >> u(29)
    a = (a ^ b >> u(32) ^ b << u(32)) * u(_MIX3)
    homes = ((a >> u(32)) * u(ranks) >> u(32)).astype(np.int64)
    return Placements(homes, (b & u(buckets - 1)).astype(np.int64), b >> u(64 - FP_BITS))


def describe(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Local. The bytes of descriptors (uint8, a multiple of 128 long) as `DESCRIPTOR` records, not copied."""
    return records.view(DESCRIPTOR)
