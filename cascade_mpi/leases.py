"""Who holds which part of which arena: a word for each extent, which any rank changes by compare-and-swap.

Covers the words: take, give back, recall, look. Does not cover what stands in an extent (`cells`), when one is taken or
given back (`extents`), nor how blocks get out of one (`mover`).

An extent is free or held by one rank, which may be its arena's. The holder alone is the manager of the cells in it.
No rank has to answer for another to take one: the memory of a rank that computes is used as well. The word has a
number that goes up whenever an extent is given back, so that a compare-and-swap with an old look at it fails. The
words stand behind the table of namespaces, in a window that takes MPI atomics alone; see `shared_words`.
"""

from __future__ import annotations

from collections.abc import Iterable

from cascade_mpi.errors import ProtocolError
from cascade_mpi.extent_runs import ArenaCut
from cascade_mpi.shared_words import SharedWords, table_bytes

_RECALL = 1 << 31  # the rank of the arena wants it back
_HOLDER = (1 << 13) - 1  # the rank that holds it, plus 1; 0: it is free
_NUMBER = 1 << 32
_LAST_NUMBER = _NUMBER - 1  # after it comes 1: an extent with number 0 was never given back


def lease_bytes(extents: int, ranks: int) -> int:
    """Local. Bytes of the words on each rank, with that of what is never lent; a single rank needs none."""
    return 8 * (extents + 1) if ranks > 1 else 0


def holder_of(word: int) -> int | None:
    """Local. The rank that holds an extent, None: it is free."""
    return (word & _HOLDER) - 1 if word & _HOLDER else None


def holders_of(words: list[int]) -> list[int]:
    """Local. Of each extent the rank that holds it, -1: it is free."""
    return [(word & _HOLDER) - 1 for word in words]


def is_recalled(word: int) -> bool:
    """Local. Does the rank of the arena want the extent back?"""
    return bool(word & _RECALL)


def was_held(word: int) -> bool:
    """Local. Has an extent, by its word, ever been given back: may descriptors of an earlier holder stand there?"""
    return word >= _NUMBER


class LeaseTable(ArenaCut):
    """The extents of all arenas, as one rank sees and changes them."""

    def __init__(self, shared: SharedWords, rank: int, slots: int, extents: int, pages: int) -> None:
        """`extents` is how many of each arena of so many pages may be lent; `slots` those of the table before it."""
        super().__init__(pages, extents)
        self._shared, self._rank = shared, rank
        self._at = table_bytes(slots) // 8
        self._own = rank + 1

    def look(self, rank: int) -> list[int]:
        """Local. The words of an arena. No MPI call on the same node."""
        found: list[int] = self._shared.read_many(rank, self._at, self.count).tolist()
        return found

    def take(self, rank: int, extent: int, seen: int) -> bool:
        """Local. Take an extent that was free when it was looked at, with this word; False if it is not any more."""
        return holder_of(seen) is None and self._swap(rank, extent, seen, seen | self._own)

    def give_back(self, rank: int, extent: int) -> None:
        """Local. Free an extent that this rank holds: no cell is in it, and the descriptors there say so. 1 CAS.

        One that was recalled becomes its own rank's, which finds that out by a look at its words.

        Raises
        ------
        ProtocolError
            Another rank holds it, or nobody.
        """
        seen = self.look(rank)[extent]
        while True:
            if holder_of(seen) != self._rank:
                raise ProtocolError(
                    f"extent {extent} of rank {rank} was to be given back by rank {self._rank}, its holder is "
                    f"{holder_of(seen)}"
                )
            to = rank + 1 if is_recalled(seen) else 0  # nobody else is to be quicker than who has asked for it
            if self._swap(rank, extent, seen, (seen // _NUMBER % _LAST_NUMBER + 1) * _NUMBER | to):
                return
            seen = self.look(rank)[extent]  # recalled since

    def recall(self, extents: Iterable[int]) -> int:
        """Local. Ask for these extents of the own arena back: how many others were asked."""
        seen, asked = self.look(self._rank), 0
        for extent in extents:
            word = seen[extent]
            if holder_of(word) not in (None, self._rank) and not is_recalled(word):
                asked += self._swap(self._rank, extent, word, word | _RECALL)
        return asked

    def _swap(self, rank: int, extent: int, old: int, new: int) -> bool:
        return self._shared.swap(rank, self._at + extent, old, new)
