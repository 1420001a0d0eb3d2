"""Deferred puts: blocks that are written and wait for the collective `publish()`.

Covers their table and who publishes them when. Does not cover the writing nor the publish (see `writer`).
"""

from __future__ import annotations

import threading
from typing import Any

from cascade_mpi.errors import StoreFullError
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.layout import HARD, unpack_word
from cascade_mpi.listing import integer_key
from cascade_mpi.spaces import Space
from cascade_mpi.values import source
from cascade_mpi.writer import Draft, Exists, PutResult, Writer


class Deferred:
    """The drafts of one rank; `drafts` has them by key, in the order of their puts."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.drafts: dict[tuple[int, int], Draft] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Local. How many puts wait."""
        return len(self.drafts)

    def put(
        self, hi: int, lo: int, space: Space, data: Any, *, prefix: bool, exists: Exists, expiry: int = 0,
        depth: int = 0,
    ) -> PutResult:  # fmt: skip
        """Local. Write a block that the next `publish` makes visible; one of the same key that waits is replaced."""
        writer = self._writer
        value = source(data)
        if exists != "replace" and ((hi, lo) in self.drafts or writer.is_there(hi, lo)):
            self.publish_one(hi, lo)
            return writer.put(
                hi, lo, space, value, prefix=prefix, exists=exists, expiry=expiry, depth=depth
            )  # fmt: skip
        draft = writer.draft(hi, lo, space, value, prefix=prefix, expiry=expiry, depth=depth)
        if isinstance(draft, str):
            return writer.refuse(draft, value.nbytes)
        with self._lock:
            self.give_up(hi, lo)
            self.drafts[hi, lo] = draft
        return PutResult(stored=True, bytes=value.nbytes, tier="dram", protected=bool(draft.word & HARD))

    @uninterrupted
    def publish_one(self, hi: int, lo: int) -> None:
        """Local. A rank sees its own writes: what it asks for is published first."""
        if self.drafts:
            with self._lock:
                draft = self.drafts.get((hi, lo))
                result = None if draft is None else self._publish(draft)
                self.drafts.pop((hi, lo), None)  # afterwards: until then another thread's get comes here too
            if result is not None and result.refused:
                raise StoreFullError(f"a deferred block of {result.bytes} bytes was not published: {result.reason}")

    def publish(self) -> list[PutResult]:
        """Local. Publish all of them, in the order of their puts."""
        with self._lock:
            results = []
            for key, draft in list(self.drafts.items()):
                results.append(self._publish(draft))
                del self.drafts[key]
        return results

    def _publish(self, draft: Draft) -> PutResult:
        """Publish a draft, unless an error came when that was done and it is still among the drafts."""
        if not self._writer.is_draft(draft):
            return PutResult(bytes=draft.nbytes)
        return self._writer.publish(draft, "replace")

    def give_up(self, hi: int, lo: int) -> bool:
        """Local. Forget the draft of a key; whether there was one."""
        with self._lock:
            draft = self.drafts.pop((hi, lo), None)
            if draft is not None:
                self._writer.discard(draft)
        return draft is not None

    def give_up_all(self, space: Space, keys: range | None) -> int:
        """Local. Forget the drafts of a namespace at an epoch, with `keys` those whose integer lies in it: how many."""
        with self._lock:
            gone = [
                (hi, lo) for (hi, lo), draft in self.drafts.items()
                if (draft.space.id, draft.space.epoch) == (space.id, space.epoch)
                and (keys is None or integer_key(space, hi, lo) in keys)
            ]  # fmt: skip
            for hi, lo in gone:
                self.give_up(hi, lo)
        return len(gone)

    def clear(self) -> None:
        """Local. Forget all of them."""
        with self._lock:
            for hi, lo in list(self.drafts):
                self.give_up(hi, lo)

    def protected_bytes(self) -> dict[int, int]:
        """Local. How many bytes of them will be protected, by the rank of their arena: they count already."""
        found: dict[int, int] = {}
        for draft in self.drafts.values():
            if draft.word & HARD:
                rank = unpack_word(draft.word).rank
                found[rank] = found.get(rank, 0) + draft.nbytes
        return found

    def words(self) -> set[int]:
        """Local. The words that they will have."""
        return {draft.word for draft in self.drafts.values()}
