"""Protection of stored blocks: the hard bit of an index word, which any rank may toggle.

Covers `protect` and `unprotect` of blocks that any rank manages. Does not cover puts that are born protected
(`writer`), the count of protected bytes (`protected_bytes`), nor who heeds the bit (`evictions`).

The bit is toggled by a compare-and-swap of the word to itself with the other bit, in its slot. All else in a
word stays its manager's. So an eviction, which swaps the soft word for 0, and a protection of the same word
exclude each other: one of the two finds another word than it expects. A manager whose swap fails looks at its
word again: with the other hard bit the block lives on. Of several words of a key the lowest counts, as for a
reader: the others are on their way out. The manager is left a hint, so that its table follows.

Of an alias the content becomes hard first, then its own word: an alias with a hard word names a hard content. The
other way only the alias's word becomes a soft one: other names may want the content protected (`dedup` finds out).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cascade_mpi.disk.look import descriptor_of, no_longer_held
from cascade_mpi.errors import StoreFullError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import DESCRIPTOR, FLAG_HELD, HARD, MAX_RANKS, RANK_SHIFT, is_alias, is_disk
from cascade_mpi.onesided import DESCRIBE
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.writer import Writer

Key = tuple[int, int]


class Standing(NamedTuple):
    """The word of a key that counts, as a look-up found it."""

    slot: int
    word: int
    nbytes: int

    @property
    def hard(self) -> bool:
        """Whether its block is protected."""
        return bool(self.word & HARD)

    @property
    def share(self) -> tuple[int, int]:
        """What counts against a quota: (rank of the arena, bytes)."""
        return self.word >> RANK_SHIFT & MAX_RANKS - 1, self.nbytes


class Protection:
    """The toggling of hard bits by one rank."""

    def __init__(self, fabric: Fabric, writer: Writer, counted: ProtectedBytes) -> None:
        self._fabric, self._writer, self._counted = fabric, writer, counted
        self.promote: Callable[[Key], bool] = _no_disk
        self._attempt = fabric.attempt  # seconds from look-up to CAS after which the look-up is made again (rule R4)

    def protect(self, keys: Iterable[Key]) -> list[bool]:
        """Local. Protect the blocks of these keys: for each whether there is one. 2 Gets + 1 CAS + 1 Put a key.

        With a quota two look-ups, and 1 Get + 1 CAS at the rank of the block.

        Raises
        ------
        StoreFullError
            One is on disk, and there is no room for it in memory; or they do not all fit the quota: nothing was
            changed, unless a block was replaced by a larger one meanwhile. Then the text says how many are protected.
        """
        wanted = list(keys)
        shares: dict[Key, tuple[int, int]] = {}  # counted already, for words that are not hard yet
        done: dict[Key, bool] = {}
        try:
            if self._counted.limit is not None:
                self._count_all(wanted, shares)
            for key in dict.fromkeys(wanted):
                done[key] = self._set(key, shares)
        except StoreFullError as error:
            if any(done.values()):
                error.add_note(f"{sum(done.values())} of {len(wanted)} blocks are protected")
            raise
        finally:
            for share in shares.values():
                self._counted.release(*share)
        return [done[key] for key in wanted]

    def unprotect(self, key: Key) -> bool:
        """Local. Let the block of a key be evicted again: whether there is one. 2 Gets + 1 CAS + 1 Put."""
        while True:
            looked = time.monotonic()
            found = self._look(key)
            if found is None:
                return False
            if is_disk(found.word):
                if self._set_free(key, found, looked):
                    return True
                continue
            if not found.hard:
                return True
            if self._toggle(found, looked):
                self._counted.release(*found.share)
                return True

    def _set_free(self, key: Key, found: Standing, looked: float) -> bool:
        """Let a block not come back from disk protected; False: it may have come, or the look was too long ago."""
        flags = int(descriptor_of(self._fabric, found.word)["flags"])
        if flags & FLAG_HELD:
            if time.monotonic() - looked > self._attempt:
                return False
            no_longer_held(self._fabric, found.word, flags)
        again = self._look(key)
        return again is not None and again.word == found.word

    def _count_all(self, wanted: list[Key], shares: dict[Key, tuple[int, int]]) -> None:
        """Count what is not protected yet, before anything is changed."""
        for key in dict.fromkeys(wanted):
            found = self._look(key)
            counted: Key | None = key
            if found is not None and is_alias(found.word):
                counted = self._content_of(key)
                found = None if counted is None or counted in shares else self._look(counted)
            if found is not None and is_disk(found.word) and self.promote(key):
                found = self._look(key)
            if counted is not None and found is not None and not found.hard and not is_disk(found.word):
                self._count(counted, found.share, shares)

    def _count(self, key: Key, share: tuple[int, int], shares: dict[Key, tuple[int, int]]) -> None:
        if over := self._counted.reserve(*share):
            raise StoreFullError(f"a block cannot be protected: {over}")
        shares[key] = share

    def _set(self, key: Key, shares: dict[Key, tuple[int, int]]) -> bool:
        """Make the word of a key a hard one; its share stays counted then, and leaves `shares`."""
        while True:
            looked = time.monotonic()
            found = self._look(key)
            if found is not None and is_alias(found.word):
                content = self._content_of(key)
                gone = content is None or not self._set(content, shares)
                looked, again = time.monotonic(), self._look(key)
                if again is None or again.word != found.word:
                    continue  # it names something else by now
                if gone:
                    return False
            if found is not None and is_disk(found.word):
                if not self.promote(key):
                    return False
                continue  # its bytes are in an arena now, where they count
            if found is None or found.hard:
                return found is not None
            if self._counted.limit is not None and shares.get(key) != found.share:
                if key in shares:  # replaced since it was counted, or moved
                    self._counted.release(*shares.pop(key))
                self._count(key, found.share, shares)
            if self._toggle(found, looked):
                shares.pop(key, None)
                return True

    def _look(self, key: Key) -> Standing | None:
        writer, s = self._writer, self._fabric.scratch
        if not writer.find(*key) or not s.signed[c.FOUND_LIVE]:
            return None
        return Standing(*writer.found_blocks()[0])

    def _content_of(self, key: Key) -> Key | None:
        """The key of the content that an alias names, None if there is none."""
        fabric, s = self._fabric, self._fabric.scratch
        there = fabric.get(fabric.ctx, s.address, *key, 0, 0, 0, DESCRIBE)
        if there == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        record = s.descriptor.view(DESCRIPTOR)[0]
        return (int(record["key_hi"]), int(record["key_lo"])) if there >= 0 else None

    def _toggle(self, found: Standing, looked: float) -> bool:
        """Swap the hard bit of the word that the last look-up found; False: it has changed, or was too long ago."""
        if time.monotonic() - looked > self._attempt:
            return False
        fabric, s = self._fabric, self._fabric.scratch
        home, bucket = s.words[c.HOME], s.words[c.BUCKET]
        done = fabric.swap(fabric.ctx, s.address, home, bucket, found.slot, found.word, found.word ^ HARD)
        if done < 0:
            fabric.raise_mpi_error(s)
        if done and fabric.hint_gone(fabric.ctx, s.address, found.word) < 0:
            fabric.raise_mpi_error(s)
        return bool(done)


def _no_disk(key: Key) -> bool:
    return False
