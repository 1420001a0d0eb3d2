"""The order of writes on different ranks, so that a restart finds what the index had.

Covers sequences of puts and deletes, and puts that have to be made again: after a delete under a higher sequence, and
where of two blocks of one key the older one stays (rules 5 to 12 of `docs/disk.md`). Does not cover the steps of a put
(`writer`) nor what is written (`tier`).
"""

from __future__ import annotations

from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import GENERATION_SHIFT, HARD, MAX_PAGES, RANK_SHIFT, is_alias, place
from cascade_mpi.mover import PLACE, Mover
from cascade_mpi.pool import Pool
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.writer import Draft, Writer


class WriteOrder:
    """What a writer asks (`writer.Order`)."""

    def __init__(
        self, fabric: Fabric, pool: Pool, writer: Writer, mover: Mover, protected: ProtectedBytes, disk: DiskTier
    ) -> None:
        self._fabric, self._pool, self._writer, self._mover = fabric, pool, writer, mover
        self._protected, self._disk, self._sequences = protected, disk, disk.sequences
        self.put_again = 0

    def sequence(self) -> int:
        """Local. The sequence of a new block."""
        return self._sequences.next()

    def before_publish(self, draft: Draft) -> None:
        """Local. A draft is newer than what was found, whatever the clocks of the ranks say (rule 11 too)."""
        found = self._fabric.scratch.words[c.FOUND_SEQUENCE]
        tier, first = self._pool.tier_of(draft.word), draft.word & MAX_PAGES - 1
        assert tier is not None
        if found >= int(tier.records["sequence"][first]):
            tier.records["sequence"][first] = self._sequences.next(found)  # no word names the cell yet
            tier.wrote_descriptor(first)

    def after_publish(self, draft: Draft, home: int) -> bool:
        """Local. Put a block again that is not above the floor of its home (rule 6); False: there is no room for it."""
        if is_alias(draft.word):
            return True
        tier, first = self._pool.tier_of(draft.word), draft.word & MAX_PAGES - 1
        assert tier is not None
        floor = self._sequences.floor(home)
        if not tier.is_live(draft.word) or int(tier.records["sequence"][first]) > floor:
            return True
        again = self._again(draft, floor)
        if again is not None:
            return self._publish(again)
        if not tier.is_live(draft.word):
            return True  # it was stored; another rank has replaced or deleted it since
        tier.remove(first)
        return False

    def takes_double(self, draft: Draft, stays: bool) -> bool:
        """Local. Take the words in the higher slots away, and put again if what stays is not the newest (rule 12)."""
        writer = self._writer
        tier, first = self._pool.tier_of(draft.word), draft.word & MAX_PAGES - 1
        if tier is None or not tier.is_live(draft.word) or is_alias(draft.word):
            return False
        mine, other = int(tier.records["sequence"][first]), self._fabric.scratch.words[c.FOUND_SEQUENCE]
        blocks = writer.found_blocks()
        again = None if stays == (mine > other) else self._again(draft, max(mine, other))
        if again is not None and writer.find(draft.hi, draft.lo, draft.word) != len(blocks):
            writer.discard(again)  # room was made for it meanwhile: look again
            return True
        took = False
        for slot, word, nbytes in reversed(blocks[1:]):
            took |= writer.take_away(slot, word, draft.nbytes if word == draft.word else nbytes)
        if again is not None:
            if took:
                self._publish(again)
            else:
                writer.discard(again)
        return True

    def before_delete(self, hi: int, lo: int) -> int:
        """Local. The sequence of a delete: above what was found and above the floor, which it is from now on.

        DiskError: too many tombstones wait for the disk, and nothing was changed.
        """
        self._disk.admit_delete()
        return self._disk.before_removal(hi, lo, self._fabric.scratch.words[c.FOUND_SEQUENCE])

    def deleted(self, hi: int, lo: int, sequence: int) -> None:
        """Local. A word was taken away: its tombstone."""
        self._disk.removed(hi, lo, sequence)

    def floor(self, hi: int, lo: int) -> int:
        """Local. The floor of a key's home."""
        return self._sequences.floor(place(hi, lo, self._fabric.comm.size, 1).home)

    def found_nothing(self, hi: int, lo: int, floor: int) -> None:
        """Local. Others may have deleted it, and not made that durable: it is deleted once more (rule 10).

        At the floor as it was before the look that found nothing: what was put since is above it. DiskError as above.
        """
        self._disk.admit_delete()
        self._disk.removed(hi, lo, floor)

    # ---------------------------------------------------------------------------------------------------- put again

    def _again(self, draft: Draft, above: int) -> Draft | None:
        """The same block in a new cell, with a sequence above that one; None: there is no room."""
        self.put_again += 1
        tier, first = self._pool.tier_of(draft.word), draft.word & MAX_PAGES - 1
        assert tier is not None
        hard = bool(int(tier.words[first]) & HARD)
        cell = self._mover.duplicate(tier, first, self._sequences.next(above))
        if cell is None:
            return None
        hard = hard and not self._protected.reserve(cell.tier.area.rank, draft.nbytes)
        word = draft.word & ~PLACE & ~HARD | cell.generation << GENERATION_SHIFT | cell.tier.area.rank << RANK_SHIFT
        return draft._replace(word=word | cell.first | (HARD if hard else 0))

    def _publish(self, draft: Draft) -> bool:
        writer = self._writer
        done = writer.publish(draft, "replace")
        if done.stored:  # it is one put
            writer.puts -= not draft.content
            writer.bytes_put -= 0 if draft.content else draft.nbytes
        return done.stored
