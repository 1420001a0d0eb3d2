"""The words of one key, for writers: `onesided.lookup` through mpi4py.

Does not cover what is swapped then (`swaps`) nor several keys (`lookup_many`).
"""

from __future__ import annotations

from cascade_mpi.kernels import context as c
from cascade_mpi.layout import same_cell
from cascade_mpi.onesided_python.mpi import reporting
from cascade_mpi.onesided_python.records import CHANGED, MISS, Scratch
from cascade_mpi.onesided_python.words import IndexWords, matches

LOOKUP_ATTEMPTS = 1000


class LookUps(IndexWords):
    """The words of one key."""

    def _find(self, s: Scratch, home: int, bucket: int, fp: int, hi: int, lo: int, skip: int) -> int:
        s.signed[c.HOME], s.signed[c.BUCKET] = home, bucket
        for _ in range(LOOKUP_ATTEMPTS):
            words = self._read_bucket(s, home, bucket)
            found = self._words_of(s, words, home, bucket, fp, hi, lo, skip)
            if found is not None:
                for i, (slot, word, length, _, _) in enumerate(found):
                    s.signed[c.FOUND_WORDS + 2 * i], s.unsigned[c.FOUND_WORDS + 2 * i + 1] = slot, word
                    s.unsigned[c.FOUND_LENGTHS + i] = length
                s.signed[c.FOUND] = len(found)
                s.signed[c.FOUND_LIVE] = int(bool(found) and found[0][3])
                s.unsigned[c.FOUND_SEQUENCE] = max((each[4] for each in found), default=0)
                s.signed[c.FREE_SLOT] = words.index(0) if 0 in words else -1
                return len(found)
            s.count(c.C_RETRIES)
        return CHANGED

    def _words_of(
        self, s: Scratch, words: list[int], home: int, bucket: int, fp: int, hi: int, lo: int, skip: int
    ) -> list[tuple[int, int, int, bool, int]] | None:
        """A key's words in a bucket, each with slot, the block's length, whether that has not expired, and sequence.

        None if a word that is not the key's has changed since.
        """
        found = []
        for slot, word in matches(words, fp):
            if not self._in_bounds(word):
                s.count(c.C_BAD_WORDS)
                continue
            if word == skip:
                found.append((slot, word, 0, True, 0))
                continue
            cell = self._read_cell(s, word)
            if not cell.holds(word, hi, lo):
                # The word decides: unchanged, it is another key's; changed, the key may have moved.
                if self._reload(s, home, bucket, slot) != word:
                    return None
                continue
            found.append((slot, word, cell.length, not self._expired(s, cell), cell.sequence))
        return found

    def _slot_in(self, s: Scratch, home: int, bucket: int, word: int) -> int:
        s.signed[c.HOME], s.signed[c.BUCKET] = home, bucket
        for slot, there in enumerate(self._read_bucket(s, home, bucket)):
            if same_cell(there, word):
                s.unsigned[c.WORD] = there
                return slot
        return MISS

    @reporting
    def find(self, ctx: int, s: int, hi: int, lo: int, skip: int) -> int:
        """Local. Every word of a key, for put, delete and protect: their number; the words are in the scratch."""
        scratch = Scratch(s)
        return self._find(scratch, *self._place(scratch, hi, lo), hi, lo, skip)

    @reporting
    def slot_of(self, ctx: int, s: int, hi: int, lo: int, word: int) -> int:
        """Local. The slot in which a word of this key stands now, or MISS; the word as it is there in the scratch."""
        scratch = Scratch(s)
        home, bucket, _ = self._place(scratch, hi, lo)
        return self._slot_in(scratch, home, bucket, word)

    @reporting
    def find_copies(self, ctx: int, s: int, hi: int, lo: int, skip: int) -> int:
        """Local. As `find`, in the copy table of this node."""
        return self._find(Scratch(s), *self._place_copy(hi, lo), hi, lo, skip)

    @reporting
    def slot_of_copy(self, ctx: int, s: int, hi: int, lo: int, word: int) -> int:
        """Local. As `slot_of`, in the copy table of this node."""
        rank, bucket, _ = self._place_copy(hi, lo)
        return self._slot_in(Scratch(s), rank, bucket, word)
