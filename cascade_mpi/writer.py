"""Writing: put, replace and delete, step by step as the protocol orders them.

Covers the look-up before, the write of a cell, the publish by compare-and-swap, the look afterwards that
leaves one word per key, and deletion. Does not cover where cells come from (`dram`) nor reading.

The state between the steps needs no lock on other ranks: a rank that dies leaves at most a cell that no
word names. On this rank the publish and the note of it exclude the sweep (rule R8 of the protocol).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import numpy as np

from cascade_mpi.copier import Copier
from cascade_mpi.errors import KeyExistsError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.kernels.probe import full_fence, write_cell
from cascade_mpi.keys import shown
from cascade_mpi.layout import (
    BUCKET_WORDS,
    FLAG_ALIAS,
    FLAG_CHECKSUM,
    FLAG_CONTENT,
    FLAG_FIXED,
    FLAG_PREFIX,
    HARD,
    MAX_RANKS,
    RANK_SHIFT,
    TIER_ALIAS,
    TIER_DISK,
    TIER_DRAM,
    TIER_NAMES,
    TIER_SHIFT,
    is_alias,
    is_disk,
)
from cascade_mpi.onesided import DESCRIBE
from cascade_mpi.pool import Cell, Pool
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.registry import Registry
from cascade_mpi.spaces import Space
from cascade_mpi.values import Source, encode_dims

Exists = Literal["replace", "keep", "error"]


class PutResult(NamedTuple):
    """What a put did; true when the data is available under its key.

    `bytes` is the size of the block, `tier` where it is now ("" if nowhere), `reason` why it was refused,
    `protected` whether this put protected it.
    """

    stored: bool = False
    kept: bool = False
    deduplicated: bool = False
    refused: bool = False
    bytes: int = 0
    tier: str = ""
    reason: str = ""
    protected: bool = False

    def __bool__(self) -> bool:
        """True unless the put was refused."""
        return not self.refused


class Draft(NamedTuple):
    """A cell that is written and fenced, and that no word names yet."""

    hi: int
    lo: int
    word: int
    nbytes: int
    space: Space
    content: bool = False  # a content, which an alias will name: it counts as no put of its own


class Order(Protocol):
    """What a disk tier asks of writes, so that a restart finds the newest block of each key."""

    def sequence(self) -> int:
        """Local. The sequence of a new block."""

    def before_publish(self, draft: Draft) -> None:
        """Local. See to it that a draft is newer than what the last look-up of this thread has found."""

    def after_publish(self, draft: Draft, home: int) -> bool:
        """Local. The same for deletes that it has not seen; False: it is not stored. The lock is held."""

    def takes_double(self, draft: Draft, stays: bool) -> bool:
        """Local. Whether it has dealt with the doubles that the last look-up found; else the higher slots go."""

    def before_delete(self, hi: int, lo: int) -> int:
        """Local. The sequence of the delete of what the last look-up has found, announced."""

    def deleted(self, hi: int, lo: int, sequence: int) -> None:
        """Local. A word was taken away."""

    def floor(self, hi: int, lo: int) -> int:
        """Local. The highest sequence of a delete among the keys of this key's home; 0: nothing was deleted."""

    def found_nothing(self, hi: int, lo: int, floor: int) -> None:
        """Local. A delete has found no block in a look that began after it knew this floor."""


class Writer:
    """The write path of one rank."""

    def __init__(
        self, fabric: Fabric, pool: Pool, copier: Copier, registry: Registry, protected: ProtectedBytes, *,
        checksum: str, attempt: float, protect_depth: int,
    ) -> None:  # fmt: skip
        self._fabric, self._pool, self._copier, self._registry = fabric, pool, copier, registry
        self._protected, self._protect_depth = protected, protect_depth
        self._checksum = checksum
        self._attempt = attempt  # seconds from look-up to CAS after which the look-up is made again (rule R4)
        self._sequence = 0
        self.puts = self.bytes_put = self.kept = self.refused = self.deletes = self.lost_cas = self.overflows = 0
        self.unprotected = 0  # blocks that the rule would have protected, but for the quota
        self.order: Order | None = None  # with a disk tier
        self.pause: Callable[[str], None] | None = None  # test hook
        self.published: Callable[[Draft], None] | None = None  # told of every full block of a namespace by content

    # ---------------------------------------------------------------------------------------------- put

    def put(
        self, hi: int, lo: int, space: Space, source: Source, *, prefix: bool, exists: Exists, expiry: int = 0,
        depth: int = 0,
    ) -> PutResult:  # fmt: skip
        """Local. Store a block under a key and publish it. See `Store.put`; `expiry` and `depth` as in `layout`."""
        looked = 0.0
        if exists != "replace":
            looked = time.monotonic()
            if self.is_there(hi, lo):
                return self.keeps(hi, lo, source.nbytes, exists)
        draft = self.draft(hi, lo, space, source, prefix=prefix, expiry=expiry, depth=depth)
        if isinstance(draft, str):
            return self.refuse(draft, source.nbytes)
        try:
            return self.publish(draft, exists, looked)
        except BaseException:  # an error of MPI, say: a cell that no word names may not be lost
            if self.is_draft(draft):
                self.discard(draft)
            raise

    def refuse(self, reason: str, nbytes: int) -> PutResult:
        """Local. Count and return a refusal."""
        self.refused += 1
        return PutResult(refused=True, bytes=nbytes, reason=reason)

    def protects(self, space: Space, depth: int) -> bool:
        """Local. Does a rule protect blocks of this depth (as in a descriptor, 0: none was given) in this namespace?"""
        below = space.namespace.protect_depth
        return 0 < depth <= (self._protect_depth if below is None else below)

    def draft(
        self, hi: int, lo: int, space: Space, source: Source, *, prefix: bool, expiry: int = 0, depth: int = 0,
        content: bool = False, wish: bool = False,
    ) -> Draft | str:  # fmt: skip
        """Local. Write payload and descriptor into a new cell; a text that says why if there is no room.

        `prefix` demands its protection, `wish` asks for it as a rule does: where the quota allows it.
        No MPI call unless something has to go first, or the namespace or protected bytes have a quota.
        """
        rank, nbytes = self._fabric.comm.rank, source.nbytes
        hard = prefix or wish or self.protects(space, depth)
        if hard and (over := self._protected.reserve(rank, nbytes)):
            if prefix:
                return over
            hard = False  # a rule is a wish, is_prefix a demand
            self.unprotected += 1
        cell: Cell | None = None
        counted = False
        try:
            if space.slot in self._registry.quotas:
                if over := self._over_quota(space, nbytes):
                    self._give_back(hard, rank, nbytes)
                    return over
                counted = True
            cell = self._pool.reserve(nbytes, hi, lo)
            over = ""
            if cell is not None and hard and cell.tier.area.rank != rank:  # it counts where the bytes are
                over = self._protected.reserve(cell.tier.area.rank, nbytes)
                self._give_back(True, rank, nbytes)
                rank, hard = cell.tier.area.rank, not over
                self.unprotected += bool(over) and not prefix
            if cell is not None and not (over and prefix):
                flags = FLAG_CONTENT | FLAG_FIXED if content else 0
                word = self._write(cell, hi, lo, space, source, hard, expiry, depth, flags)
                if counted:
                    cell.tier.counted[cell.first] = True
                return Draft(hi, lo, word, nbytes, space, content)
        except BaseException:  # an error of MPI, say: neither the cell nor the counts may be lost
            if cell is not None:
                cell.tier.abandon(cell.first)
            if counted:
                self._registry.release(space.id, space.epoch, nbytes)
            self._give_back(hard, rank, nbytes)
            raise
        if cell is not None:
            cell.tier.abandon(cell.first)
        if counted:
            self._registry.release(space.id, space.epoch, nbytes)
        self._give_back(hard, rank, nbytes)
        return over or self._pool.why_full(nbytes)

    def draft_alias(
        self, hi: int, lo: int, space: Space, source: Source, content: tuple[int, int], *, hard: bool, expiry: int,
        depth: int,
    ) -> Draft | None:  # fmt: skip
        """Local. Write an alias into a new cell, a page: a name for the block of that content; None: there is no room.

        `source` is what it names; its dtype and shape stand in the alias too. It counts against no quota. No MPI call
        unless something has to go first.
        """
        cell = self._pool.reserve(0, hi, lo)
        if cell is None:
            return None
        tier, first = cell.tier, cell.first
        try:
            empty = source._replace(address=0, nbytes=0)
            word = self._write(cell, hi, lo, space, empty, hard, expiry, depth, FLAG_ALIAS)
            record = tier.records[first : first + 1]
            record["content_hi"], record["content_lo"] = content  # no word names the cell yet
            record["flags"] &= ~np.uint16(FLAG_CHECKSUM)
            tier.wrote_descriptor(first)
        except BaseException:  # whatever it is, the cell must not be lost
            tier.abandon(first)
            raise
        return Draft(hi, lo, word - (TIER_DRAM - TIER_ALIAS << TIER_SHIFT), 0, space)

    def discard(self, draft: Draft) -> None:
        """Local. Give up a draft whose word is nowhere: its cell, and what it counted for."""
        self._pool.give_up(draft.word)
        self._give_back(bool(draft.word & HARD), draft.word >> RANK_SHIFT & MAX_RANKS - 1, draft.nbytes)

    def _give_back(self, hard: bool, rank: int, nbytes: int) -> None:
        if hard:
            self._protected.release(rank, nbytes)

    def _write(
        self, cell: Cell, hi: int, lo: int, space: Space, source: Source, hard: bool, expiry: int, depth: int,
        flags: int,
    ) -> int:  # fmt: skip
        """Write payload and descriptor into a cell; the word for it."""
        dim0, dims = (source.shape[0], ()) if len(source.shape) == 1 else encode_dims(source.shape)
        fabric, s, area = self._fabric, self._fabric.scratch, cell.tier.area
        # An empty value has no address; 0 would say that its payload and checksum are there already.
        payload, total, inline = source.address or s.address, 0, self._checksum == "inline"
        if area.far:
            payload = 0  # it is put below; the checksum is that of what the caller has given
            inline = self._checksum != "off"  # later it would have to be fetched for that
            total = checksum_bytes(source.address or s.address, source.nbytes) if inline else 0
        elif self._copier.splits(source.nbytes):
            payload = 0  # the threads fence their own streaming stores
            target = area.arena_address + cell.first * fabric.page_bytes
            if inline:
                total = self._copier.copy_checksum(target, source.address, source.nbytes)
            else:
                self._copier.copy(target, source.address, source.nbytes)
        ndim = len(source.shape)
        if ndim > 1:
            s.dims[:7] = dims
        self._sequence = max(self._sequence + 1, time.time_ns()) if self.order is None else self.order.sequence()
        flags |= (FLAG_CHECKSUM if inline else 0) | (FLAG_PREFIX if hard else 0)
        flags |= FLAG_FIXED if space.namespace.content_keys else 0
        word: int = write_cell(
            area.ctx, cell.first, hi, lo, cell.generation, flags, source.nbytes, space.id, space.epoch, source.dtype,
            ndim, self._sequence, dim0, s.dims_address if ndim > 1 else 0, payload, total, expiry, depth,
        )  # fmt: skip
        if area.rank != fabric.comm.rank:
            area.records["manager"][cell.first] = fabric.comm.rank  # in the arena of another rank
            full_fence()
        if area.far:
            if source.nbytes:
                raw = (ctypes.c_uint8 * source.nbytes).from_address(source.address)
                area.far.send_payload(cell.first, np.ctypeslib.as_array(raw))
            area.far.send_descriptors([cell.first])
        return word

    def _over_quota(self, space: Space, nbytes: int) -> str:
        """Count the bytes against the quota, making room in it where this rank can: "", or why they do not fit."""
        registry, pool = self._registry, self._pool
        while over := registry.reserve(space, nbytes):
            quota = registry.quotas[space.slot]
            if nbytes > quota or not pool.make_room_in(space.id, space.epoch, over):
                held = registry.used(space)
                return (
                    f"namespace {space.namespace} holds {held} bytes of its quota of {quota}, a block of {nbytes} "
                    f"bytes would exceed it by {over}: raise the quota or delete blocks"
                )
        return ""

    def is_draft(self, draft: Draft) -> bool:
        """Local. Does the cell of a draft still wait for its word? Else it was published, or given up."""
        dram = self._pool.tier_of(draft.word)
        return dram is not None and dram.is_reserved(draft.word)

    def publish(self, draft: Draft, exists: Exists, looked: float = 0.0, *, over: int = 0) -> PutResult:
        """Local. Make a draft the block of its key. 1 Get and 1 CAS + 1 Get at the home.

        `looked` is when the look-up whose results are still in the scratch was made (0: look now). With `over` only in
        the place of that word: where another one counts by now the draft is superseded, and given up.
        """
        fabric, dram = self._fabric, self._pool.tier_of(draft.word)
        assert dram is not None
        address, signed = fabric.scratch.address, fabric.scratch.signed  # looked up once: they are of the thread
        hi, lo, new, nbytes, space, content = draft
        while True:
            if not looked or time.monotonic() - looked > self._attempt:
                looked = time.monotonic()
                self.find(hi, lo)
            if exists != "replace" and self._found_there(hi, lo):
                self.discard(draft)
                return self.keeps(hi, lo, nbytes, exists, counts=not content)
            if self.order is not None:
                self.order.before_publish(draft)
            slot, old, old_bytes = self._goal(new)
            if over and old != over:
                self.discard(draft)
                return PutResult(bytes=nbytes)
            if slot < 0:
                self.discard(draft)
                which = "protected" if self.order is None else "in use"
                return self.refuse(f"all {BUCKET_WORDS} words of its bucket are {which}: raise index_blocks", nbytes)
            if self.pause:
                self.pause("putter")
            with dram.lock:
                home, bucket = signed[c.HOME], signed[c.BUCKET]
                summing = self._checksum == "later" and not dram.area.far and not is_alias(new)
                try:
                    others = fabric.publish(fabric.ctx, address, home, bucket, slot, old, new)
                    if others >= 0:
                        dram.enter(new, nbytes, unsummed=summing)
                    elif others == c.MPI_FAILED:  # before the swap, or behind it
                        fabric.raise_mpi_error(fabric.scratch)
                except BaseException:  # an error behind the swap: a cell that the index names must be known here
                    dram.enter_if_it_stands(new, nbytes, unsummed=summing)
                    raise
                if others >= 0 and self._registry.has_passed(space):
                    dram.let_one_pass(new)  # after it was entered: a list of what passed may be older
                if others > 0:
                    # Under the lock: were the new block evicted first, an older double would be seen again.
                    self._leave_one(draft)
                in_order = others < 0 or self.order is None or self.order.after_publish(draft, home)
            if others >= 0:
                break
            self.lost_cas += 1
            looked = 0.0
        if old:
            self._has_left(old, old_bytes)
        if not in_order:
            return self.refuse(
                f"{self._pool.why_full(nbytes)} (it was deleted meanwhile: it had to be put again)", nbytes
            )
        self.puts += not content
        self.bytes_put += 0 if content else nbytes
        if self.published and space.by_content and not content and not is_alias(new):
            self.published(draft)
        return PutResult(stored=True, bytes=nbytes, tier=TIER_NAMES[TIER_DRAM], protected=bool(new & HARD))

    def _goal(self, new: int) -> tuple[int, int, int]:
        """(slot, old word, bytes of its block if it may be hard) for the CAS.

        Over the key's first word, else the lowest free slot, else over another's that is not hard; with a disk tier
        never over another's.
        """
        words, signed = self._fabric.scratch.words, self._fabric.scratch.signed
        if signed[c.FOUND]:
            return signed[c.FOUND_WORDS], words[c.FOUND_WORDS + 1], words[c.FOUND_LENGTHS]
        if (free := signed[c.FREE_SLOT]) >= 0:
            return free, 0, 0
        if self.order is not None:
            return -1, 0, 0  # what is on disk must be found, and an older record of what is not must not
        self.overflows += 1
        start = new >> 7  # anywhere, not always the first: victims spread over the bucket
        for i in range(BUCKET_WORDS):
            slot = (start + i) % BUCKET_WORDS
            word = words[c.BUCKET_COPY + slot]
            if not word & HARD:
                return slot, word, 0
        return -1, 0, 0

    def keeps(self, hi: int, lo: int, nbytes: int, exists: Exists, *, counts: bool = True) -> PutResult:
        """Local. What a put says whose look-up has just found its key: KeyExistsError, or that the block was kept."""
        if exists == "error":
            raise KeyExistsError(f'block {shown(hi, lo)} is stored already and exists="error": delete it first')
        self.kept += counts
        on_disk = is_disk(self._fabric.scratch.words[c.FOUND_WORDS + 1])  # the word that was found
        return PutResult(kept=True, bytes=nbytes, tier=TIER_NAMES[TIER_DISK if on_disk else TIER_DRAM])

    # ---------------------------------------------------------------------------- words that are taken away

    def find(self, hi: int, lo: int, known: int = 0) -> int:
        """Local. Number of words of a key; they are in the scratch. `known` is a word that is the key's for sure."""
        fabric, s = self._fabric, self._fabric.scratch
        while (found := fabric.find(fabric.ctx, s.address, hi, lo, known)) == c.CHANGED:
            self._fabric.poll(self._fabric.ctx, s.address)  # a storm of writes: let the peers' proceed
        if found == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        return found

    def is_there(self, hi: int, lo: int) -> bool:
        """Local. Whether a key has a block that has not expired; its words are in the scratch."""
        return self.find(hi, lo) > 0 and self._found_there(hi, lo)

    def _found_there(self, hi: int, lo: int) -> bool:
        """Whether the last look-up found a block that has not expired, or an alias of one; the scratch keeps its words.

        An alias whose content was evicted is none: to keep it would be to acknowledge what is absent.
        """
        fabric, s = self._fabric, self._fabric.scratch
        while s.signed[c.FOUND_LIVE]:
            word = s.words[c.FOUND_WORDS + 1]
            if not is_alias(word):
                return True
            there = fabric.get(fabric.ctx, s.address, hi, lo, 0, 0, 0, DESCRIBE)
            if there == c.MPI_FAILED:
                fabric.raise_mpi_error(s)
            if self.find(hi, lo) and s.words[c.FOUND_WORDS + 1] == word:
                return bool(there != c.MISS)
        return False

    def found_blocks(self) -> list[tuple[int, int, int]]:
        """Local. The same as `found`, with the bytes of each block; 0 for the word that `find` was told."""
        s = self._fabric.scratch
        return [(*each, s.words[c.FOUND_LENGTHS + i]) for i, each in enumerate(self.found())]

    def found(self) -> list[tuple[int, int]]:
        """Local. The (slot, word) pairs of the last `find` of this thread."""
        s = self._fabric.scratch
        return [(s.signed[c.FOUND_WORDS + 2 * i], s.words[c.FOUND_WORDS + 2 * i + 1]) for i in range(s.signed[c.FOUND])]

    def take_away(self, slot: int, word: int, nbytes: int) -> bool:
        """Local. Take a word that the last `find` has found out of its slot; False if it is another by now."""
        fabric, s = self._fabric, self._fabric.scratch
        home, bucket = s.words[c.HOME], s.words[c.BUCKET]
        done = fabric.remove(fabric.ctx, s.address, home, bucket, slot, word)
        if done == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        if done:
            self._has_left(word, nbytes)
        return bool(done)

    def _has_left(self, word: int, nbytes: int) -> None:
        """This rank's CAS took a word away: the manager may reuse its cell, or is told that it may look."""
        fabric, rank = self._fabric, word >> RANK_SHIFT & MAX_RANKS - 1
        if word & HARD:
            self._protected.release(rank, nbytes)  # only who took it away knows that it was a hard one
        if not self._pool.retire(word) and fabric.hint_gone(fabric.ctx, fabric.scratch.address, word) < 0:
            fabric.raise_mpi_error(fabric.scratch)

    def _leave_one(self, draft: Draft) -> None:
        """Of several words with the same full key the lowest slot wins: take the others away before the put returns.

        With a disk tier the block that stays has the highest sequence, too.
        """
        while self.find(draft.hi, draft.lo, draft.word) > 1:
            blocks = self.found_blocks()
            if self.order is not None and self.order.takes_double(draft, blocks[0][1] == draft.word):
                continue
            for slot, word, nbytes in reversed(blocks[1:]):
                self.take_away(slot, word, draft.nbytes if word == draft.word else nbytes)

    def delete(self, hi: int, lo: int) -> bool:
        """Local. Take every word of a key away until none is found; True if this call took one that had not expired."""
        deleted, floor = False, -1  # not known yet
        while True:
            looked = time.monotonic()
            if not self.find(hi, lo):
                if deleted or floor >= 0 or self.order is None or not (floor := self.order.floor(hi, lo)):
                    break
                continue  # what is put after this floor was read is above it, and stays: so the look that counts is now
            sequence = 0 if self.order is None else self.order.before_delete(hi, lo)
            # The highest slot first: were the lowest, which wins, gone before, an older double would be seen again.
            live = bool(self._fabric.scratch.signed[c.FOUND_LIVE])
            for slot, word, nbytes in reversed(self.found_blocks()):
                if time.monotonic() - looked > self._attempt:
                    break  # the word may name another block by now (rule R4): look again
                if self.take_away(slot, word, nbytes):
                    deleted |= live
                    if self.order is not None and not is_alias(word):
                        self.order.deleted(hi, lo, sequence)
        if not deleted and floor > 0 and self.order is not None:
            self.order.found_nothing(hi, lo, floor)
        self.deletes += deleted
        return deleted
