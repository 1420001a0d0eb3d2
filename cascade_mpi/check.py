"""`Store.check()`: every invariant of the memory tiers, over all ranks.

Covers words (of the index, of copy tables) against descriptors against cells, pins, and payload checksums. A later
tier checks its cells against the words that name them (`on_disk`). Must not run beside writes: it begins and ends with
a barrier, and the caller keeps still.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.dram import DramTier
from cascade_mpi.errors import ProtocolError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.keys import shown
from cascade_mpi.layout import (
    BUCKET_WORDS,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    FLAG_ALIAS,
    FLAG_BACKED,
    FLAG_CHECKSUM,
    FLAG_CONTENT,
    FLAG_COPY,
    FLAG_DISK,
    GENERATION_SHIFT,
    MAGIC,
    MAX_GENERATION,
    MAX_PAGES,
    TIER_DISK,
    TIER_DRAM,
    TIER_NAMES,
    is_alias,
    is_disk,
    place,
    same_cell,
    unpack_location,
    unpack_word,
)
from cascade_mpi.leases import holder_of
from cascade_mpi.pins import PinTable
from cascade_mpi.pool import Pool
from cascade_mpi.protected_bytes import ProtectedBytes

Claims = dict[int, list[int]]  # by manager: the words that name its cells
OnDisk = Callable[[list[int]], list[str]]


def check(
    fabric: Fabric, pool: Pool, pins: PinTable, protected: ProtectedBytes, drafts: Set[int] = frozenset(),
    draft_bytes: Mapping[int, int] | None = None, contents: Callable[[], list[str]] = list,
    on_disk: OnDisk | None = None,
) -> dict[str, int]:  # fmt: skip
    """Collective. Verify all invariants; the number of words, cells, pins and checksums that were looked at.

    `drafts` are the words of this rank's cells that wait for their publication, `draft_bytes` what of them
    will be protected, by the rank of the arena. `contents` says what is wrong with this rank's contents, `on_disk` what
    with its disk cells, given the words that name them.

    Raises
    ------
    ProtocolError
        On all ranks, with the findings of every rank.
    """
    comm = fabric.comm
    comm.Barrier()
    problems: list[str] = []
    with _telling(problems):
        pool.adopt()
        for tier in pool.tiers.values():
            tier.sweep(everything=True)
        pool.compute_checksums()
    comm.Barrier()
    named: dict[int, list[int]] = {}  # by the rank of the arena: the words that name this rank's cells
    claims: Claims = {}
    with _telling(problems):
        claims = _check_words(fabric, problems)
    everyone = _sent(comm, claims)
    words_named = len(everyone)
    for word in everyone:
        if not is_disk(word):
            named.setdefault(unpack_word(word).rank, []).append(word)
    claims = {}
    with _telling(problems):
        problems += (on_disk or _no_disk)([word for word in everyone if is_disk(word)])
        claims = _check_copies(fabric, problems)
    copied = _sent(comm, claims)
    summed, own = 0, pool.own
    # What ranks send each other is sent by all, whatever was found: each look of a rank's own is by itself.
    extents = comm.allgather(_extents_held(pool))
    expected = _sent(comm, pins.by_manager())
    hard_bytes, drafted = comm.allreduce(_protected_named(comm.size, pool, draft_bytes or {}))[:, comm.rank].tolist()
    with _telling(problems):
        _check_extents(fabric, pool, extents, problems)
    with _telling(problems):
        for rank, tier in pool.tiers.items():
            _check_cells(tier, named.pop(rank, []), copied if tier is own else [], problems)
            waiting = {word & MAX_PAGES - 1 for word in drafts if unpack_word(word).rank == rank}
            for first in tier.allocator.live().keys() - waiting:
                if not tier.words[first]:
                    problems.append(f"cell {first} is allocated, but no word was published for it")
            summed += _check_payloads(tier, problems)
            try:
                tier.check()
            except ProtocolError as error:
                problems.append(str(error))
        for rank, words in named.items():
            problems.append(
                f"{len(words)} words name cells of this rank in the arena of rank {rank}, where it has none"
            )
    with _telling(problems):
        _check_pins(fabric, expected, problems)
        _check_protected(protected, hard_bytes, drafted, problems)
    with _telling(problems):
        problems += contents()
    everything = comm.allgather([f"rank {comm.rank}: {text}" for text in problems])
    found = [text for each in everything for text in each]
    if found:
        more = f" (and {len(found) - 20} more)" if len(found) > 20 else ""
        raise ProtocolError("check() found broken invariants: " + "; ".join(found[:20]) + more)
    counts = {
        "words": words_named, "cells": sum(tier.allocator.live_pages for tier in pool.tiers.values()),
        "checksums": summed, "pins": len(pins.held()),
        "copies": len(copied),
    }  # fmt: skip
    totals = comm.allreduce(np.array(list(counts.values())))  # nobody writes before all have looked
    return dict(zip(counts, totals.tolist(), strict=True))


def _no_disk(words: list[int]) -> list[str]:
    """What is wrong on a rank without a disk tier."""
    return [f"word {word:016x} names a disk cell of this rank, which has no disk tier" for word in words]


@contextmanager
def _telling(problems: list[str]) -> Iterator[None]:
    """An error in a rank's own look becomes a finding: raised here, it would leave the others in a collective."""
    try:
        yield
    except Exception as error:  # whatever it is
        problems.append(f"the look was broken off: {type(error).__name__}: {error}")


def _sent(comm: MPI.Intracomm, claims: Claims) -> list[int]:
    """The words of all ranks that name this rank's cells."""
    return [word for words in comm.alltoall([claims.get(rank, []) for rank in range(comm.size)]) for word in words]


def _check_words(fabric: Fabric, problems: list[str]) -> Claims:
    """Every word of the own shard: it is in bounds, names a descriptor of a key that belongs here, and no double."""
    claims: Claims = {}
    shard = fabric.index_words
    seen: dict[int, set[tuple[int, int]]] = {}
    for at in np.flatnonzero(shard).tolist():
        bucket, slot = divmod(at, BUCKET_WORDS)
        value = int(shard[at])
        word = unpack_word(value)
        where = f"word {value:016x} in bucket {bucket} slot {slot}"
        if not _is_in_bounds(fabric, value):
            problems.append(f"{where} is out of bounds: {word}")
            continue
        record = _fetch_descriptor(fabric, word.rank, word.page)
        manager = int(record["manager"])
        claims.setdefault(manager if manager < fabric.comm.size else word.rank, []).append(value)
        key = int(record["key_hi"]), int(record["key_lo"])
        if record["magic"] != MAGIC or record["generation"] != word.generation:
            problems.append(f"{where} names a descriptor of magic {record['magic']} generation {record['generation']}")
            continue
        expected = place(*key, fabric.comm.size, fabric.buckets)
        if expected != (fabric.comm.rank, bucket, word.fp):
            problems.append(f"{where} names a key that belongs to {expected}")
        if bool(record["flags"] & FLAG_ALIAS) != is_alias(value):
            problems.append(f"{where} has tier {TIER_NAMES[word.tier]}, its descriptor flags {record['flags']}")
        elif is_alias(value):
            _check_alias(fabric, where, word.hard, record, problems)
        _check_disk(fabric, where, value, record, problems)
        if key in seen.setdefault(bucket, set()):
            problems.append(f"{where} is a double of block {shown(*key)}")
        seen[bucket].add(key)
    return claims


def _is_in_bounds(fabric: Fabric, value: int) -> bool:
    """As the kernels have it: an alias or a block of an arena, or a disk cell."""
    word = unpack_word(value)
    if word.rank >= fabric.comm.size:
        return False
    if word.tier <= TIER_DRAM:
        return word.page < fabric.pages
    return word.tier == TIER_DISK and fabric.pages <= word.page < fabric.cells


def _check_disk(fabric: Fabric, where: str, value: int, record: Any, problems: list[str]) -> None:
    """A disk cell is its manager's own and says where its record is; what is backed by one names it."""
    flags, said, word = int(record["flags"]), int(record["content_hi"]), unpack_word(value)
    if bool(flags & FLAG_DISK) != is_disk(value):
        problems.append(f"{where} has tier {TIER_NAMES[word.tier]}, its descriptor flags {flags}")
    elif is_disk(value):
        if flags & (FLAG_ALIAS | FLAG_COPY | FLAG_BACKED) or record["manager"] != word.rank:
            problems.append(f"{where} names a disk cell of flags {flags} and manager {record['manager']}")
        try:
            unpack_location(said)
        except ValueError as error:
            problems.append(f"{where} names a disk cell whose place is wrong: {error}")
    elif flags & FLAG_BACKED:
        behind = unpack_word(said)
        in_bounds = is_disk(said) and _is_in_bounds(fabric, said) and behind.generation
        if flags & (FLAG_ALIAS | FLAG_COPY) or not in_bounds or behind.fp != word.fp or behind.hard:
            problems.append(f"{where} has flags {flags} and is backed by {said:016x}: {behind}")


def _check_alias(fabric: Fabric, where: str, hard: bool, record: Any, problems: list[str]) -> None:
    """An alias has no payload and names a content, which may be gone; never an alias, nor a soft one if it is hard."""
    content = int(record["content_hi"]), int(record["content_lo"])
    itself = content == (int(record["key_hi"]), int(record["key_lo"]))
    if record["length"] or record["flags"] & (FLAG_CONTENT | FLAG_CHECKSUM | FLAG_COPY) or itself:
        text = f"{record['length']} bytes, flags {record['flags']}, of {shown(*content)}"
        problems.append(f"{where} is an alias of {text}")
    fp = place(*content, fabric.comm.size, fabric.buckets).fp
    for there in _fetch_bucket(fabric, content):
        word = unpack_word(there)
        if not there or word.fp != fp or not _is_in_bounds(fabric, there):
            continue
        named = _fetch_descriptor(fabric, word.rank, word.page)
        if (int(named["key_hi"]), int(named["key_lo"])) != content:
            continue
        if not named["flags"] & FLAG_CONTENT or is_alias(there):
            problems.append(f"{where} is an alias of {shown(*content)}, which is none: flags {named['flags']}")
        if hard and not word.hard:
            problems.append(f"{where} is an alias that is protected, its content {shown(*content)} is not")
        for name in ("dtype", "ndim", "dim0"):
            if named[name] != record[name]:
                problems.append(f"{where} is an alias of {name} {record[name]}, its content's is {named[name]}")


def _check_copies(fabric: Fabric, problems: list[str]) -> Claims:
    """Every word of the own part of the copy table: a copy of this node, of a key that belongs here, and no double.

    Where the index still has the word that it was made from, that block is of the same size, type and put.
    """
    claims: Claims = {}
    seen: set[tuple[int, int]] = set()
    for at in np.flatnonzero(fabric.copy_words).tolist():
        bucket, slot = divmod(at, BUCKET_WORDS)
        value = int(fabric.copy_words[at])
        word = unpack_word(value)
        where = f"copy {value:016x} in bucket {bucket} slot {slot}"
        if word.tier != TIER_DRAM or word.hard or word.rank not in fabric.node_ranks or word.page >= fabric.pages:
            problems.append(f"{where} is no word of a copy of this node: {word}")
            continue
        claims.setdefault(word.rank, []).append(value)
        record = _fetch_descriptor(fabric, word.rank, word.page)
        key = int(record["key_hi"]), int(record["key_lo"])
        if record["magic"] != MAGIC or record["generation"] != word.generation or not record["flags"] & FLAG_COPY:
            problems.append(
                f"{where} names a descriptor of magic {record['magic']} generation {record['generation']} "
                f"flags {record['flags']}"
            )
            continue
        home, expected, fp = place(*key, len(fabric.node_ranks), fabric.copy_buckets)
        if (fabric.node_ranks[home], expected, fp) != (fabric.comm.rank, bucket, word.fp):
            problems.append(f"{where} names a key that belongs to {fabric.node_ranks[home], expected, fp}")
        if key in seen:
            problems.append(f"{where} is a double of the copy of block {shown(*key)}")
        seen.add(key)
        origin = int(record["content_hi"])
        if any(same_cell(origin, there) for there in _fetch_bucket(fabric, key)):
            block = _fetch_descriptor(fabric, unpack_word(origin).rank, unpack_word(origin).page)
            for name in ("length", "sequence", "key_hi", "key_lo", "dtype", "ndim", "dim0", "expiry"):
                if block[name] != record[name]:
                    problems.append(f"{where} has {name} {record[name]}, its block {block[name]}")
    return claims


def _fetch_bucket(fabric: Fabric, key: tuple[int, int]) -> list[int]:
    home, bucket, _ = place(*key, fabric.comm.size, fabric.buckets)
    words = np.zeros(BUCKET_WORDS, np.uint64)
    at = int(fabric.index.table[home, 1]) + bucket * words.nbytes
    fabric.index.world.Get([words, words.nbytes, MPI.BYTE], home, [at, words.nbytes, MPI.BYTE])
    fabric.index.world.Flush(home)
    return [int(word) for word in words]


def _fetch_descriptor(fabric: Fabric, rank: int, page: int) -> Any:
    buffer = np.zeros(DESCRIPTOR_BYTES, np.uint8)
    at = int(fabric.data.table[rank, 1]) + fabric.descriptor_at + page * DESCRIPTOR_BYTES
    fabric.data.world.Get([buffer, DESCRIPTOR_BYTES], rank, [at, DESCRIPTOR_BYTES])
    fabric.data.world.Flush(rank)
    return buffer.view(DESCRIPTOR)[0]


def _extents_held(pool: Pool) -> set[tuple[int, int]]:
    """The (rank of the arena, extent) that this rank has cells in."""
    if pool.table is None:
        return set()
    return {(rank, pool.table.at(start)) for rank, tier in pool.tiers.items() for start in tier.allocator.ranges}


def _check_extents(fabric: Fabric, pool: Pool, held: list[set[tuple[int, int]]], problems: list[str]) -> None:
    """Each extent has one holder, which knows of it: so no two managers' cells overlap. `held` is by rank.

    That a tier's cells lie in the extents that it holds is the allocator's to check.
    """
    if pool.table is None:
        return
    holders: dict[tuple[int, int], int] = {}
    for rank, extents in enumerate(held):
        for at in extents:
            if at in holders:
                problems.append(f"extent {at[1]} of rank {at[0]} is held by ranks {holders[at]} and {rank}")
            holders[at] = rank
    for extent, word in enumerate(pool.table.look(fabric.comm.rank)):
        known = holders.get((fabric.comm.rank, extent))
        if holder_of(word) != known:
            problems.append(f"extent {extent} is held by rank {holder_of(word)} as its word says, by {known} in truth")
        start, pages = pool.table.pages_of(extent)
        if known is None and (pool.own.records["magic"][start : start + pages] == MAGIC).any():
            problems.append(f"extent {extent} is free, but a descriptor in it says live")
    for rank, tier in pool.tiers.items():
        owned = np.zeros(fabric.pages, np.bool_)
        for start, pages in tier.allocator.ranges.items():
            owned[start : start + pages] = True
        if tier.owned is None or not np.array_equal(owned, tier.owned):
            problems.append(f"the pages of rank {rank} whose hints this rank clears are not those that it holds")


def _check_cells(dram: DramTier, named: list[int], copied: list[int], problems: list[str]) -> None:
    """Every live cell is named by exactly one word, a copy in the copy table and a block in the index, and no other."""
    counted: dict[int, int] = {}
    for word in named + copied:
        counted[word] = counted.get(word, 0) + 1
    in_table = set(copied)
    for word, times in counted.items():
        first = unpack_word(word).page
        if bool(dram.copies[first]) != (word in in_table):
            problems.append(f"word {word:016x} stands in the {'copy table' if word in in_table else 'index'}, its cell "
                            f"is {'a' if dram.copies[first] else 'no'} copy")  # fmt: skip
        if int(dram.words[first]) != word:
            problems.append(f"word {word:016x} stands in the index, its cell has word {int(dram.words[first]):016x}")
        elif times != 1:
            problems.append(f"word {word:016x} stands in the index {times} times")
        generation = dram.allocator.generation(first)
        if generation != word >> GENERATION_SHIFT & MAX_GENERATION:
            problems.append(f"word {word:016x}: generation of its cell is {generation}")
    for first in np.flatnonzero(dram.words).tolist():
        if int(dram.words[first]) not in counted:
            problems.append(f"live cell {first} is named by no word")
    spans = sorted((first, first + dram.allocator.pages_of(first)) for first in np.flatnonzero(dram.words).tolist())
    for (one, end), (other, _) in itertools.pairwise(spans):
        if end > other:
            problems.append(f"cells {one} and {other} overlap")
    magics = dram.records["magic"] == MAGIC
    for first in np.flatnonzero(magics).tolist():
        if (dram.owned is None or dram.owned[first]) and dram.allocator.state(first) is None:
            problems.append(f"descriptor {first} says live, but no cell begins there")


def _check_pins(fabric: Fabric, expected: list[int], problems: list[str]) -> None:
    """The non-zero slots of this manager are the pins that the ranks hold: their words are `expected`."""
    found = np.sort(fabric.pin_words[fabric.pin_words != 0])
    if not np.array_equal(np.array(sorted(expected), np.uint64), found):
        problems.append(f"{found.size} pin slots are set, the ranks hold {len(expected)} pins here")


def _protected_named(ranks: int, pool: Pool, draft_bytes: Mapping[int, int]) -> npt.NDArray[np.int64]:
    """Protected bytes of this rank's words and of its drafts, each by the rank of the arena: int64[2, ranks]."""
    found = np.zeros((2, ranks), np.int64)
    for rank, tier in pool.tiers.items():
        found[0, rank] = tier.protected()[1]
    for rank, nbytes in draft_bytes.items():
        found[1, rank] = nbytes
    return found


def _check_protected(protected: ProtectedBytes, named: int, drafted: int, problems: list[str]) -> None:
    """What counts against an arena's quota is what the hard words of all its managers name, and is allowed."""
    if protected.limit is None:
        return
    counted = protected.counted()
    if counted != named + drafted:
        problems.append(f"{counted} protected bytes are counted, hard words name {named} and drafts {drafted}")
    if counted > protected.limit:
        problems.append(f"{counted} protected bytes are counted, protected_bytes is {protected.limit}")


def _check_payloads(dram: DramTier, problems: list[str]) -> int:
    summed = 0
    for first in np.flatnonzero(dram.words).tolist():
        record = dram.records[first]
        if record["flags"] & FLAG_CHECKSUM:
            summed += 1
            payload = dram.payload(first)
            if checksum_bytes(payload.ctypes.data, payload.nbytes) != int(record["checksum"]):
                problems.append(f"payload of cell {first} does not have its checksum")
    return summed
