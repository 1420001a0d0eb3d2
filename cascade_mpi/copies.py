"""Copies of other nodes' blocks, which this rank keeps for the ranks of its node.

Covers when what was just read becomes a copy, its cell and its word in the node's copy table, and `replicate`.
Does not cover the read of a copy (`onesided`), what room it may take (`dram`), nor when it goes (`evictions`: like any
cell, or sooner). No block goes for a copy.

A copy is never in the index, so replace, delete, move and protect need not know of it. Its descriptor has the index
word that it was made from; until the expiry of its block it counts for a reader who has found that word in the index,
whatever its hard bit by then, since the read began, or if the key determines the content. Its own word, in the copy
table, is written by the rank that holds its cell, and leaves before the cell's bytes change: readers look at it again
behind the payload.
"""

from __future__ import annotations

import ctypes
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.dram import DramTier
from cascade_mpi.errors import CascadeError, ConfigError, NotConfiguredError
from cascade_mpi.fabric import Fabric
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import write_copy
from cascade_mpi.layout import (
    BUCKET_WORDS,
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    FLAG_DISK,
    MAX_RANKS,
    RANK_SHIFT,
    place,
    same_cell,
    unpack_word,
)
from cascade_mpi.onesided import BATCH, TICKS, W_DESCRIPTOR, W_WORD, WHOLE
from cascade_mpi.registry import Registry

Keys = npt.NDArray[np.uint64]

_ATTEMPTS = 8  # compare-and-swaps lost before a copy is given up: it is no loss
_WAIT_S = 10.0  # for blocks that other ranks are about to copy, or that are replaced again and again
_BATCH_BYTES = 64 << 20  # fetched at once by `replicate`: the cells of a batch are reserved together


class Replicated(NamedTuple):
    """What `replicate` did, over all nodes; a block counts once for each node that asked for it.

    `copied` blocks of `bytes` bytes were fetched; `present` ones are blocks or copies of the node already;
    `missing` ones are stored nowhere; `refused` ones are on disk, or there was no room for them: no block goes for a
    copy, and all take a share of an arena at most.
    """

    copied: int
    bytes: int
    present: int
    missing: int
    refused: int


class Copies:
    """The copies that one rank makes."""

    def __init__(self, fabric: Fabric, dram: DramTier, registry: Registry, *, share: float) -> None:
        self._fabric, self._dram, self._registry = fabric, dram, registry
        # Its own: what a read has left in the thread's scratch is still needed.
        self._scratch = fabric.new_scratch()
        self.on = fabric.copy_buckets > 0
        self.most_pages = int(fabric.pages * share)
        self.made = self.made_bytes = self.refused = 0

    # ------------------------------------------------------------------------------------------ one copy

    def keep_read(self, hi: int, lo: int, address: int) -> bool:
        """Local. Copy what the last whole read of this thread has read to `address`; False if it was not to be."""
        s, described = self._fabric.scratch, self._fabric.scratch.address + 8 * c.DESCRIPTOR_COPY
        record = _record(described)  # if an alias led to the block, its own key is the content's
        return self.keep(int(record["key_hi"]), int(record["key_lo"]), s.words[c.WORD], described, address)

    def keep_batched(self, number: int, hi: int, lo: int, address: int) -> bool:
        """Local. The same of a key of the last batch, of at most BATCH keys, by its number."""
        work = self._fabric.scratch.work[number]
        return self.keep(hi, lo, int(work[W_WORD]), work.ctypes.data + 8 * W_DESCRIPTOR, address)

    @uninterrupted
    def keep(self, hi: int, lo: int, origin: int, described: int, address: int) -> bool:
        """Local. Copy a block that `origin` named when it was read: one copy of its bytes, 1 CAS at a rank of the node.

        `described` is the address of a private copy of its descriptor, `address` that of its bytes.
        """
        fabric = self._fabric
        try:
            if self._there(hi, lo, origin):
                return False
            nbytes = int(_record(described)["length"])
            cell = self._dram.reserve_copy(nbytes, self.most_pages)
            if cell is None:
                self.refused += 1
                return False
            return self.publish(hi, lo, origin, described, cell, address, fabric.scratch.signed[c.BEGAN])
        finally:
            fabric.end_claim(fabric.ctx, fabric.scratch.address, hi, lo)

    def publish(
        self, hi: int, lo: int, origin: int, described: int, cell: tuple[int, int], address: int, seen: int
    ) -> bool:
        """Local. Fill a reserved cell (`address` 0: the bytes are in it) and enter it in the node's copy table.

        `seen` is the tick before which the read that `origin` comes from had not looked at the index.
        """
        fabric, dram, (first, generation) = self._fabric, self._dram, cell
        try:
            word = int(write_copy(fabric.ctx, first, generation, origin, described, address))
        except BaseException:  # whatever it is, the cell must not be lost
            dram.abandon(first)
            raise
        record = _record(described)
        if not word or not self._enter(hi, lo, word, origin, int(record["length"]), seen):
            dram.abandon(first)
            return False
        self.made += 1
        self.made_bytes += int(record["length"])
        space = self._registry.by_id(int(record["namespace"]))
        if space is not None and space.epoch != int(record["epoch"]):
            dram.let_one_pass(word)  # its epoch passed meanwhile: a list of what passed may be older than the copy
        return True

    def _enter(self, hi: int, lo: int, new: int, origin: int, nbytes: int, seen: int) -> bool:
        """Put a word into the table: over the key's own, else into a free slot, else over another copy's."""
        fabric, s = self._fabric, self._scratch
        for _ in range(_ATTEMPTS):
            found = self._find(hi, lo)
            if found and same_cell(self._origin_of(found[0][1]), origin):
                return False  # another rank was quicker
            if (fabric.ticks() - seen) & 0xFFFFFFFF > fabric.attempt / 2 * TICKS:
                return False  # the origin may name another block by now
            slot, old = self._goal(found, new)
            rank, bucket = s.words[c.HOME], s.words[c.BUCKET]
            with self._dram.lock:
                others = fabric.publish(fabric.ctx, s.address, rank, bucket, slot, old, new)
                if others == c.MPI_FAILED:
                    fabric.raise_mpi_error(s)
                if others == c.CHANGED:
                    continue
                fabric.note_origin(fabric.ctx, s.address, rank, bucket, slot, seen)
                self._dram.enter_copy(new, nbytes)
                if others:
                    self._leave_one(hi, lo, new)
            if old:
                self._has_left(old)
            return True
        return False

    def _find(self, hi: int, lo: int, known: int = 0) -> list[tuple[int, int]]:
        """The (slot, word) pairs of a key in the copy table; its rank, bucket and free slot are in the scratch."""
        fabric, s = self._fabric, self._scratch
        while (found := fabric.find_copies(fabric.ctx, s.address, hi, lo, known)) == c.CHANGED:
            fabric.poll(fabric.ctx, fabric.scratch.address)
        at = c.FOUND_WORDS
        return [(s.signed[at + 2 * i], s.words[at + 2 * i + 1]) for i in range(found)]

    def _goal(self, found: Sequence[tuple[int, int]], new: int) -> tuple[int, int]:
        s = self._scratch
        if found:
            return found[0]
        if s.signed[c.FREE_SLOT] >= 0:
            return s.signed[c.FREE_SLOT], 0
        slot = new % BUCKET_WORDS  # anywhere: victims spread over the bucket
        return slot, s.words[c.BUCKET_COPY + slot]

    def _leave_one(self, hi: int, lo: int, new: int) -> None:
        """Of several copies of a key on this node the lowest slot stays."""
        fabric, s = self._fabric, self._scratch
        for slot, word in reversed(self._find(hi, lo, new)[1:]):
            rank, bucket = s.words[c.HOME], s.words[c.BUCKET]
            done = fabric.remove(fabric.ctx, s.address, rank, bucket, slot, word)
            if done == c.MPI_FAILED:
                fabric.raise_mpi_error(s)
            if done:
                self._has_left(word)

    def _has_left(self, word: int) -> None:
        """A word was taken away: the manager may reuse its cell, or is told that it may look."""
        fabric = self._fabric
        if word >> RANK_SHIFT & MAX_RANKS - 1 == fabric.comm.rank:
            self._dram.retire(word)
        elif fabric.hint_gone(fabric.ctx, fabric.scratch.address, word) < 0:
            fabric.raise_mpi_error(fabric.scratch)

    def _there(self, hi: int, lo: int, origin: int) -> int:
        """The word of the node's copy of what this origin names; 0: it has none."""
        found = self._find(hi, lo)
        return found[0][1] if found and same_cell(self._origin_of(found[0][1]), origin) else 0

    def _origin_of(self, word: int) -> int:
        """What the cell of a copy says now; a cell that is reused says anything, and a copy more does no harm."""
        named, fabric = unpack_word(word), self._fabric
        base = int(fabric.data.table[named.rank, 0])
        return int(_record(base + fabric.descriptor_at + DESCRIPTOR_BYTES * named.page)["content_hi"])

    # ------------------------------------------------------------------------------------------ replicate

    def replicate(self, keys: Keys, problem: str = "") -> Replicated:
        """Collective. Let every node have a copy of each of these blocks, fetched once by one of its ranks.

        All ranks give the same keys. Each rank fetches those that are dealt to it, a batch at a time, straight into
        the cells of the copies.

        Raises
        ------
        ConfigError
            The keys differ, or one rank's were refused (`problem`): on all ranks.
        """
        fabric = self._fabric
        given = fabric.comm.allgather((problem, hashlib.blake2b(keys.tobytes(), digest_size=16).digest()))
        for rank, (text, digest) in enumerate(given):
            if text:
                raise ConfigError(f"replicate() on rank {rank}: {text}")
            if digest != given[0][1]:
                raise ConfigError(f"replicate() was given other keys on rank {rank} than on rank 0: give all the same")
        if not self.on and fabric.nodes > 1:
            raise NotConfiguredError(
                "copies are off (promote_after is 0): there is nothing that replicate() could fill"
            )
        counts, failure, stays = np.zeros(5, np.int64), None, set[int]()
        left = self._dealt(np.unique(keys, axis=0))
        deadline = time.monotonic() + _WAIT_S
        try:
            while len(left):
                step, more, again = self._fetch(left[:BATCH], stays)
                counts += more
                left = np.concatenate([left[step:], again])
                if len(again):  # another rank is about to copy them, or they were replaced meanwhile
                    fabric.poll(fabric.ctx, fabric.scratch.address)
                    if time.monotonic() > deadline:
                        counts[4] += len(left)
                        break
        except CascadeError as error:  # said when the others have come, or they would wait for ever
            failure = error
        total = fabric.comm.allreduce(counts)  # nobody returns before all nodes have their copies
        if failure is not None:
            raise failure
        return Replicated(*total.tolist())

    def _dealt(self, keys: Keys) -> Keys:
        """The keys that this rank fetches for its node."""
        ranks = len(self._fabric.node_ranks)
        own = self._fabric.node_ranks.index(self._fabric.comm.rank)
        mine = [place(hi ^ 1, lo, ranks, 1).home == own for hi, lo in keys.tolist()]
        return np.ascontiguousarray(keys[np.array(mine, np.bool_)])

    def _fetch(self, keys: Keys, stays: set[int]) -> tuple[int, npt.NDArray[np.int64], Keys]:
        """Fetch blocks into cells of their own, as many of these as one batch may hold.

        `stays` are the first pages of own copies that this `replicate` has made or found: none goes for another one.
        How many were looked at, the counts, and the keys to try again. 6 Gets a key, one Flush per rank and phase.
        """
        fabric, dram, s = self._fabric, self._dram, self._fabric.scratch
        lengths, records = np.empty(len(keys), np.int64), np.empty(len(keys), DESCRIPTOR)
        areas = (records.ctypes.data, lengths.ctypes.data)
        self._batch(fabric.describe_many, keys, *areas)
        words = s.work[: len(keys), W_WORD].tolist()
        content = np.stack([records["key_hi"], records["key_lo"]], 1)
        names = (lengths >= 0) & (content != keys).any(axis=1)
        step = min(len(keys), 1 + int(np.searchsorted(np.cumsum(np.maximum(lengths, 0)), _BATCH_BYTES)))
        missing = present = refused = copied = nbytes = pages = 0
        cells, wanted = dict[int, tuple[int, int]](), list[int]()
        for i in range(step):
            hi, lo = keys[i].tolist()
            if names[i]:
                continue  # an alias: its content is what is copied
            if lengths[i] < 0:
                missing += lengths[i] == c.MISS
            elif records["flags"][i] & FLAG_DISK:
                refused += 1
            elif self._node_has(hi, lo, words[i], records[i], stays):
                present += 1
            else:
                wanted.append(i)
        most = self.most_pages - dram.copies_take(stays)
        for i in wanted:
            if pages + (size := dram.pages_for(int(lengths[i]))) > most or not (
                cell := dram.reserve_copy(int(lengths[i]), self.most_pages, wait=True, beside=pages, staying=stays)
            ):
                refused += 1
            else:
                cells[i] = cell
                pages += size
        again = [i for i in range(step) if lengths[i] < 0 and lengths[i] != c.MISS]
        outcomes = self._read_into(keys[np.array(list(cells), np.int64)], cells, lengths)
        began = s.signed[c.BEGAN]
        for number, (i, found) in enumerate(zip(cells, outcomes, strict=True)):
            hi, lo = keys[i].tolist()
            work = s.work[number]
            outcome, seen, origin = found, began, int(work[W_WORD])
            described = work.ctypes.data + 8 * W_DESCRIPTOR
            if outcome >= 0:  # the batch went the long way, by another key's word: this one once more, alone
                outcome = self._read_alone(hi, lo, cells[i], int(lengths[i]))
                origin, described = s.words[c.WORD], s.address + 8 * c.DESCRIPTOR_COPY
                seen = s.signed[c.BEGAN]
            if outcome == c.DUE:
                if self.publish(hi, lo, origin, described, cells[i], 0, seen):
                    copied, nbytes = copied + 1, nbytes + int(lengths[i])
                    stays.add(cells[i][0])
                else:
                    again.append(i)
                fabric.end_claim(fabric.ctx, s.address, hi, lo)
                continue
            dram.abandon(cells[i][0])
            if outcome >= 0:
                present += 1  # by now
            elif outcome == c.MISS:
                missing += 1
            elif outcome == c.ON_DISK:
                refused += 1  # by now
            else:
                again.append(i)
        more = np.concatenate([keys[again], content[:step][names[:step]]])
        return step, np.array([copied, nbytes, present, missing, refused], np.int64), more

    def _node_has(self, hi: int, lo: int, word: int, record: np.void, stays: set[int]) -> bool:
        """Is the block, which the look-up found by this word, or a copy of it, in the memory of this node?

        The first page of an own copy is added to `stays`.
        """
        named = unpack_word(word)
        if named.generation != int(record["generation"]):
            return False  # another key's word: the look-up went on to the next
        if self._fabric.mapped[named.rank]:
            return True
        copy = unpack_word(self._there(hi, lo, word))
        if copy.generation and copy.rank == self._fabric.comm.rank:
            stays.add(copy.page)
        return copy.generation > 0

    def _read_into(self, keys: Keys, cells: dict[int, tuple[int, int]], lengths: npt.NDArray[np.int64]) -> list[int]:
        """Read blocks into reserved cells as one batch; DUE for those that came from another node."""
        fabric, n = self._fabric, len(keys)
        if not n:
            return []
        pages = np.array([first for first, _ in cells.values()], np.int64)
        targets, rooms = fabric.arena_address + pages * fabric.page_bytes, lengths[list(cells)]
        results = np.empty(n, np.int64)
        keys = np.ascontiguousarray(keys)
        fabric.scratch.words[c.KEEP_ALL] = 1  # of a block of another node the outcome is DUE
        try:
            self._batch(fabric.get_many, keys, targets.ctypes.data, rooms.ctypes.data, results.ctypes.data)
        finally:
            fabric.scratch.words[c.KEEP_ALL] = 0
        found: list[int] = results.tolist()
        return found

    def _read_alone(self, hi: int, lo: int, cell: tuple[int, int], nbytes: int) -> int:
        fabric, s = self._fabric, self._fabric.scratch
        target = fabric.arena_address + cell[0] * fabric.page_bytes
        s.words[c.KEEP_ALL] = 1
        try:
            outcome = fabric.get(fabric.ctx, s.address, hi, lo, target, nbytes, 0, WHOLE)
        finally:
            s.words[c.KEEP_ALL] = 0
        if outcome == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        return outcome

    def _batch(self, call: Callable[..., int], keys: Keys, *areas: int) -> None:
        s = self._fabric.scratch
        outcome = call(
            self._fabric.ctx, s.address, keys.ctypes.data, len(keys), *areas, s.work_address, s.flags_address
        )
        if outcome == c.MPI_FAILED:
            self._fabric.raise_mpi_error(s)


def _record(address: int) -> np.void:
    """The descriptor at an address."""
    raw = (ctypes.c_uint8 * DESCRIPTOR_BYTES).from_address(address)
    record: np.void = np.frombuffer(memoryview(raw), DESCRIPTOR)[0]
    return record
