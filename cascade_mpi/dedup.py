"""Contents that are stored once: puts into namespaces with identity "content".

Covers the put that stores a content under a key made of it and gives it a name, an alias; the same behind a put; and
`collect`, which takes out contents that no name is left of. Does not cover how an alias is read (`onesided`), written
(`writer`) or protected (`protection`), nor the key of a content (`contents`).

A content is a block like any other, under a key that is its digest: of two ranks that put the same one at the same time
the lowest slot stays. A name's word names an alias, a cell of one page with a descriptor that has the content's key.
Nothing counts the names of a content, so a content may be evicted while it has some: who puts by alias therefore
publishes the alias, then looks whether the content is still there, and puts the full block in the place of its alias if
not. What was acknowledged is found, or was evicted afterwards. A key made of the content never has other bytes, so a
name that is replaced or deleted changes no other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.contents import content_key, is_installed
from cascade_mpi.dram import DramTier
from cascade_mpi.errors import StoreFullError
from cascade_mpi.fabric import Fabric
from cascade_mpi.layout import FLAG_ALIAS, FLAG_CONTENT, FLAG_PREFIX, HARD, MAX_PAGES, same_cell
from cascade_mpi.namespaces import Hash, Namespace
from cascade_mpi.pool import Pool
from cascade_mpi.protection import Protection
from cascade_mpi.reader import decode
from cascade_mpi.registry import Registry
from cascade_mpi.spaces import Space
from cascade_mpi.values import Source
from cascade_mpi.writer import Draft, Exists, PutResult, Writer

_Content = tuple[int, int]
_ATTEMPTS = 8  # contents that were evicted between two looks, before a put stores a full block under its name
SHARED = Namespace("shared contents", identity="content", share_content=True)  # what holds them, whoever named them


class Dedup:
    """The puts by content of one rank."""

    def __init__(
        self, fabric: Fabric, pool: Pool, writer: Writer, registry: Registry, protection: Protection, *,
        behind: bool,
    ) -> None:  # fmt: skip
        self._fabric, self._pool, self._writer = fabric, pool, writer
        self._registry, self._protection = registry, protection
        self._behind = behind
        self._waiting: deque[Draft] = deque()  # full blocks, published, that may become aliases
        self._queue = threading.Lock()  # of what waits; taken before the arena's
        self._settling = False
        self.lock = threading.RLock()  # taken before the arena's
        self.hits = self.saved_bytes = self.stored_again = self.skipped = 0
        self.pause: Callable[[str], None] | None = None  # test hook
        writer.published = self._note

    # ---------------------------------------------------------------------------------------------- put

    def put(
        self, hi: int, lo: int, space: Space, value: Source, *, prefix: bool, exists: Exists, expiry: int = 0,
        depth: int = 0,
    ) -> PutResult:  # fmt: skip
        """Local. Store a block under a key, its content once. See `Store.put`.

        Hashes it first, or with `dedup="behind"` not now. 4 Gets + 1 CAS where the content is stored already, as much
        again where it is not.
        """
        if self._behind:
            self.step(1)  # of an earlier put
            return self._writer.put(
                hi, lo, space, value, prefix=prefix, exists=exists, expiry=expiry, depth=depth
            )  # fmt: skip
        if exists != "replace" and self._writer.is_there(hi, lo):
            return self._writer.keeps(hi, lo, value.nbytes, exists)
        content = self.key_of(value, space)
        with self.lock:
            result = self._name(hi, lo, space, value, content, prefix, exists, expiry, depth)
        return self._writer.refuse(result, value.nbytes) if isinstance(result, str) else result

    def key_of(self, value: Source, space: Space) -> _Content:
        """Local. The key of a content, as this namespace at this epoch has it."""
        return content_key(value, self._holder(space).digest, space.namespace.hash)

    def _holder(self, space: Space) -> Space:
        """The namespace that contents belong to: to its epoch, and to its quota."""
        return self._registry.writable(SHARED) if space.namespace.share_content else space

    def _name(
        self, hi: int, lo: int, space: Space, value: Source, content: _Content, prefix: bool, exists: Exists,
        expiry: int, depth: int, over: int = 0,
    ) -> PutResult | str:  # fmt: skip
        """Give a content a name, after it was stored if it is not there; a text that says why there is no room.

        With `over` only in the place of that word, and protected by `prefix` alone.
        """
        writer = self._writer
        wanted = prefix or (not over and writer.protects(space, depth))
        # First the cell of the alias: a put that is refused has stored no content either.
        alias = writer.draft_alias(hi, lo, space, value, content, hard=wanted, expiry=expiry, depth=depth)
        if alias is None:
            return self._pool.why_full(0)
        sequence = int(self._tier(alias).records["sequence"][alias.word & MAX_PAGES - 1])
        try:
            held = self._hold(content, space, value, prefix=prefix, hard=wanted, depth=depth if wanted else 0)
        except StoreFullError as error:
            writer.discard(alias)
            return str(error)
        except BaseException:  # an error of MPI, or no slot for the namespace of shared contents
            writer.discard(alias)
            raise
        if held is None:  # it comes and goes: a block of its own
            writer.discard(alias)
            self.skipped += 1
            if over:
                return PutResult(bytes=value.nbytes)
            return writer.put(hi, lo, space, value, prefix=prefix, exists=exists, expiry=expiry, depth=depth)
        hit, hard, own = held
        if wanted and not hard:
            alias = self._soften(alias)
        result = writer.publish(alias, exists, over=over)
        if not result.stored:
            return result._replace(bytes=value.nbytes)
        if self.pause:
            self.pause("dedup")
        # The alias before this look: whoever took the content away has done so before, and it is stored again here, or
        # does so after the name was acknowledged, as any block may be evicted.
        if not writer.find(*content) or (hard and not self._shield(content)):
            return self._store_again(alias, sequence, value, prefix, expiry, depth)
        if hit or not same_cell(writer.found()[0][1], own):  # two have stored it at once, one of them stays
            hit = True
            self.hits += 1
            self.saved_bytes += value.nbytes
        writer.bytes_put += 0 if over else value.nbytes
        return result._replace(deduplicated=hit, bytes=value.nbytes)

    def _hold(
        self, content: _Content, space: Space, value: Source, *, prefix: bool, hard: bool, depth: int
    ) -> tuple[bool, bool, int] | None:
        """Let a content be stored: whether it was, whether it is protected, and its own word if this call stored it.

        None: it is evicted again and again. StoreFullError: there is no room.
        """
        writer, fabric, s = self._writer, self._fabric, self._fabric.scratch
        holder = self._holder(space)
        for _ in range(_ATTEMPTS):
            if writer.find(*content):
                word = writer.found()[0][1]
                fabric.touch(fabric.ctx, s.address, word)  # whoever names it next is to find it
                if hard and not word & HARD:
                    try:
                        if not self._protection.protect([content])[0]:
                            continue  # evicted meanwhile
                    except StoreFullError:
                        if prefix:
                            raise
                        hard = False  # a rule is a wish, is_prefix a demand
                        writer.unprotected += 1
                return True, hard, 0
            draft = writer.draft(*content, holder, value, prefix=prefix, wish=hard, depth=depth, content=True)
            if isinstance(draft, str):
                raise StoreFullError(draft)
            result = writer.publish(draft, "keep")
            if result.refused:
                raise StoreFullError(result.reason)
            if result.stored:
                return False, result.protected, draft.word
        return None

    def _shield(self, content: _Content) -> bool:
        """Is the content that the last look-up found protected? Of two that were put at once the soft one may stay."""
        if self._writer.found()[0][1] & HARD:
            return True
        try:
            return self._protection.protect([content])[0] and self._writer.find(*content) > 0
        except StoreFullError:
            return False

    def _soften(self, alias: Draft) -> Draft:
        """Of a protected alias, not published yet, one that is not."""
        first, tier = alias.word & MAX_PAGES - 1, self._tier(alias)
        tier.records["flags"][first] &= np.uint16(~FLAG_PREFIX & 0xFFFF)
        tier.wrote_descriptor(first)
        return alias._replace(word=alias.word & ~HARD)

    def _store_again(
        self, alias: Draft, sequence: int, value: Source, prefix: bool, expiry: int, depth: int
    ) -> PutResult | str:
        """The content went before its name was acknowledged: the full block takes the place of the alias."""
        writer, word = self._writer, alias.word
        self.stored_again += 1
        while True:
            draft = writer.draft(alias.hi, alias.lo, alias.space, value, prefix=prefix, expiry=expiry, depth=depth)
            if isinstance(draft, str):
                with self._pool.lock:  # a refused put leaves nothing that could be found later
                    word = self._stands_at(alias, sequence)
                    if word and (tier := self._pool.tier_of(word)):
                        tier.remove(word & MAX_PAGES - 1)
                return draft
            result = writer.publish(draft, "replace", over=word)
            if result.stored or result.refused:
                return result
            # It may only have moved to another cell. Where it was replaced, deleted or evicted, that came after it.
            word = self._stands_at(alias, sequence)
            if not word:
                return result._replace(stored=True, tier="dram")

    def _stands_at(self, alias: Draft, sequence: int) -> int:
        """The word of a published alias, in whichever cell it is now; 0 if it is not there any more."""
        with self._pool.lock:  # it is this rank's, which moves it under the lock
            self._writer.find(alias.hi, alias.lo)
            for _, word in self._writer.found():
                tier, first = self._pool.tier_of(word), word & MAX_PAGES - 1
                if tier is not None and tier.is_live(word) and int(tier.records["sequence"][first]) == sequence:
                    return word
        return 0

    def _tier(self, draft: Draft) -> DramTier:
        tier = self._pool.tier_of(draft.word)
        assert tier is not None
        return tier

    def _is_live(self, draft: Draft) -> bool:
        return self._tier(draft).is_live(draft.word)

    # ------------------------------------------------------------------------------------------- behind

    def _note(self, draft: Draft) -> None:
        """A full block was published under its name."""
        if self._settling:
            return
        with self._queue:
            self._waiting.append(draft)
            if len(self._waiting) > 2 * self._pool.live_pages + 1024:  # most are of cells that are gone
                self._waiting = deque(filter(self._is_live, self._waiting))

    def step(self, limit: int) -> int:
        """Local. Turn full blocks into aliases of their contents, at most `limit`: how many were looked at.

        A copy of the block and its hash, and the MPI calls of a put.
        """
        done = 0
        while self._waiting and done < limit:
            with self.lock:
                self._settling = True
                try:
                    with self._queue:
                        draft = self._waiting.popleft() if self._waiting else None
                    if draft is None:  # another thread was quicker
                        break
                    done += self._settle(draft)
                finally:
                    self._settling = False
        return done

    def _settle(self, draft: Draft) -> bool:
        value = self._copy_of(draft)
        if value is None or self._registry.has_passed(draft.space):
            return False
        content, dram = self.key_of(value, draft.space), self._tier(draft)
        record = dram.records[draft.word & MAX_PAGES - 1]
        if not self._writer.find(*content) and self._pool.spare_pages <= dram.pages_for(value.nbytes):
            self.skipped += 1  # nothing else is to be evicted for it
            return True
        expiry, depth = int(record["expiry"]), int(record["depth"])
        if not dram.is_live(draft.word):
            return False  # the cell may be another's by now, and so may what its descriptor said
        hard = bool(draft.word & HARD)
        result = self._name(
            draft.hi, draft.lo, draft.space, value, content, hard, "replace", expiry, depth, over=draft.word
        )  # fmt: skip
        self.skipped += isinstance(result, str)
        self._writer.puts -= not isinstance(result, str) and result.stored  # the put itself has counted
        return True

    def _copy_of(self, draft: Draft) -> Source | None:
        """The value of a full block in memory of its own: its cell may be given up and reused from here on."""
        dram, first = self._tier(draft), draft.word & MAX_PAGES - 1
        with dram.lock:  # own cells are reused under it only
            if not dram.is_live(draft.word):
                return None
            dtype, shape, _ = decode(dram.records[first : first + 1].view(np.uint8))
            data = dram.payload(first).copy()
        return Source(data.ctypes.data if draft.nbytes else 0, draft.nbytes, dtype, shape, data)

    # ------------------------------------------------------------------------------------------ collect

    def collect(self) -> int:
        """Collective. Take out the contents of all ranks that no name is left of, whatever protects them: how many.

        Contents that only names without protection are left of can be evicted again afterwards. Puts by alias of other
        threads wait. 2 exchanges between all ranks of 16 bytes a content and a name, 1 Get + 1 CAS a content.
        """
        comm, pool = self._fabric.comm, self._pool
        with self.lock:
            comm.Barrier()  # nobody is in the middle of a put by alias
            aliases = list[tuple[int, int]]()
            shields, held, words = list[bool](), list[tuple[int, int]](), list[int]()
            with pool.lock:
                for tier in list(pool.tiers.values()):
                    tier.drop_passed()
                    tier.drop_expired()
                    tier.sweep(everything=True)
                    firsts = _cells(tier, FLAG_ALIAS)
                    aliases += _pairs(tier, firsts, "content_hi", "content_lo")
                    shields += (tier.words[firsts] & np.uint64(HARD) != 0).tolist()
                    firsts = _cells(tier, FLAG_CONTENT)
                    held += _pairs(tier, firsts, "key_hi", "key_lo")
                    words += tier.words[firsts].tolist()
            named = self._ask(held, aliases)
            shielded = self._ask(held, [key for key, hard in zip(aliases, shields, strict=True) if hard])
            removed = 0
            for word, key, keep, shield in zip(words, held, named, shielded, strict=True):
                with pool.lock:  # other threads of this rank may put, and their puts move blocks
                    tier_now = pool.tier_of(word)
                    there = tier_now is not None and tier_now.is_live(word)
                    if there and not keep and tier_now is not None:
                        tier_now.remove(word & MAX_PAGES - 1)
                        removed += 1
                if there and keep and not shield and word & HARD:
                    self._protection.unprotect(key)
            return int(comm.allreduce(removed))

    def _ask(self, keys: list[_Content], names: list[_Content]) -> list[bool]:
        """Of each key whether it is among the names of any rank; both are dealt to ranks by the keys."""
        comm = self._fabric.comm
        given = [{(hi, lo) for hi, lo in part.tolist()} for part in comm.alltoall(_dealt(names, comm.size))]
        there = set().union(*given)
        asked = comm.alltoall(_dealt(keys, comm.size))
        answers = comm.alltoall([[(hi, lo) in there for hi, lo in part.tolist()] for part in asked])
        turn = [iter(each) for each in answers]
        return [next(turn[lo % comm.size]) for _, lo in keys]

    # ---------------------------------------------------------------------------------------- statistics

    def stats(self) -> dict[str, Any]:
        """Local. What this rank's puts by content have saved, and what it holds."""
        return {
            "dedup_hits": self.hits, "dedup_saved_bytes": self.saved_bytes,
            "dedup": {
                "stored_again": self.stored_again, "skipped": self.skipped, "waiting": len(self._waiting),
                "contents": self._held(FLAG_CONTENT), "aliases": self._held(FLAG_ALIAS),
                "alias_reads": self._fabric.counters()["alias_reads"],
            },
        }  # fmt: skip

    def _held(self, flag: int) -> int:
        return sum(_cells(tier, flag).size for tier in list(self._pool.tiers.values()))

    def about(self) -> dict[str, str]:
        """Local. How contents are stored once, for the report."""
        if self._behind:
            return {"mode": "behind", "by": "a block with each later put and progress()"}
        return {"mode": "inline", "by": 'each put into a namespace with identity "content"'}

    def check(self) -> list[str]:
        """Local. Verify that own contents of known namespaces are under the keys of their bytes: what is wrong."""
        return [text for tier in list(self._pool.tiers.values()) for text in self._check_contents(tier)]

    def _check_contents(self, dram: DramTier) -> list[str]:
        problems = []
        for first in _cells(dram, FLAG_CONTENT).tolist():
            record = dram.records[first]
            space = self._registry.by_id(int(record["namespace"]))
            if space is None or space.epoch != int(record["epoch"]):
                continue
            dtype, shape, _ = decode(dram.records[first : first + 1].view(np.uint8))
            data = dram.payload(first)
            value = Source(data.ctypes.data, data.nbytes, dtype, shape, data)
            key = int(record["key_hi"]), int(record["key_lo"])
            hashes: tuple[Hash, ...] = (
                ("blake3", "sha256") if space.namespace.share_content else (space.namespace.hash,)
            )
            here = [each for each in hashes if is_installed(each)]
            # One that the hashes here do not explain may be of another, whose package is missing on this rank.
            if len(here) == len(hashes) and key not in [content_key(value, space.digest, each) for each in here]:
                problems.append(f"the content of cell {first} does not have the key that it stands under")
        return problems


def _cells(dram: DramTier, flag: int) -> npt.NDArray[np.int64]:
    """The first pages of the live cells with a flag that are no copies."""
    live = np.flatnonzero(dram.words * ~dram.copies)
    found: npt.NDArray[np.int64] = live[dram.records["flags"][live] & np.uint16(flag) != 0]
    return found


def _pairs(dram: DramTier, firsts: npt.NDArray[np.int64], hi: str, lo: str) -> list[_Content]:
    """Two fields of descriptors."""
    return list(zip(dram.records[hi][firsts].tolist(), dram.records[lo][firsts].tolist(), strict=True))


def _dealt(keys: list[_Content], ranks: int) -> list[npt.NDArray[np.uint64]]:
    array = np.array(keys, np.uint64).reshape(-1, 2)
    owner = array[:, 1] % np.uint64(ranks)
    return [array[owner == np.uint64(rank)] for rank in range(ranks)]
