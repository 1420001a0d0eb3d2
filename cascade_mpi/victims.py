"""Which blocks of one rank leave next: an eviction policy, fed from the arena's own tables.

Covers the policy's ids of cells, what it is told and when, and the choice in its order. Does not cover taking the
blocks out (`dram`) nor any policy (`policies`).

A get tells the policy nothing: readers on any rank write the time of use into the touch array of the cell's
manager, which looks at it only before it chooses. So the policy hears of uses late, of several uses of a block
between two looks as one, and at the resolution of a touch: that is what the store's policies lose against the exact
ones. What they remember of blocks that left (ghosts) they remember by key, so a block that is put again is known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import ProtocolError
from cascade_mpi.policies.family import STORE_POLICIES, make

Pages = npt.NDArray[np.int64]
_NOBODY = -1


class Victims:
    """The policy of one rank's arena. The caller holds the arena's lock.

    A policy that forgets what has left knows a cell by its first page. One that has ghosts gets ids of their own.
    """

    def __init__(self, name: str, records: npt.NDArray[np.void], touched: npt.NDArray[np.uint32]) -> None:
        """`records` are the descriptors of the arena and `touched` its touch array, one for each page."""
        pages = touched.size
        self._keyed = STORE_POLICIES[name].has_ghosts
        # A whole arena of new blocks may wait to be told of while as many that left are still known as residents.
        ids = pages + STORE_POLICIES[name].most_ghosts(pages) + (pages if self._keyed else 0)
        self._policy = make(name, pages, ids, sizes=np.broadcast_to(np.int64(1), ids), recycle=self._keyed)
        self._key_hi, self._key_lo = records["key_hi"], records["key_lo"]
        self._touched = touched
        self._seen = np.zeros(pages, np.uint32)  # by first page: the touch that the policy knows of
        self._id = np.full(pages, _NOBODY, np.int32)  # by first page
        self._page = np.full(ids, _NOBODY, np.int32)  # by id
        self._key: dict[int, tuple[int, int]] = {}  # by id, of what the policy knows
        self._ghosts: dict[tuple[int, int], int] = {}
        self._free, self._next = list[int](), 0  # ids that were given back, and the first that never was given out
        self._new: dict[int, int] = {}  # by first page: pages, of what the policy has not heard of
        self._evicted: list[int] = []
        self._removed: list[int] = []

    def entered(self, first: int, pages: int) -> None:
        """Local. A block of so many pages is live in this cell; its descriptor and its touch have been set."""
        block = first
        if self._keyed:
            block = self._id_of((int(self._key_hi[first]), int(self._key_lo[first])))
        self._id[first], self._page[block] = block, first
        self._seen[first] = self._touched[first]
        self._new[first] = pages

    def left(self, first: int, *, evicted: bool) -> None:
        """Local. The block of this cell is gone: evicted (which a policy may remember), or deleted."""
        block = int(self._id[first])
        if block == _NOBODY:
            return
        self._id[first] = self._page[block] = _NOBODY
        if self._new.pop(first, None) is not None:  # the policy never heard of it, or only of its ghost
            evicted = self._keyed and bool(self._policy.remembers([block])[0])
            if not evicted and self._keyed:
                self._give_back(block)
        else:
            (self._evicted if evicted else self._removed).append(block)
        if evicted and self._keyed:
            self._ghosts[self._key[block]] = block

    def choose(self, pages: int, staying: Pages, only: Pages | None = None) -> list[int]:
        """Local. First pages of cells of at least so many pages in all, if there are so many, in the order of going.

        Parameters
        ----------
        staying
            First pages of what may not leave.
        only
            First pages of what alone may.
        """
        self._look()
        excluded = np.zeros(self._page.size, np.bool_)
        if only is not None:
            excluded[:] = True
            excluded[self._id[only]] = False
        excluded[self._id[staying]] = True
        found: list[int] = self._page[self._policy.victims(size=pages, excluded=excluded)].tolist()
        return found

    def untouched(self, first: int) -> bool:
        """Local. Has nobody used the block of this cell since the policy looked last?"""
        return bool(self._touched[first] == self._seen[first])

    def _look(self) -> None:
        """Tell the policy what has happened since the last time."""
        # What an interrupt (Ctrl-C) cut short is told again: so only of what the policy does not know yet.
        policy = self._policy
        if self._evicted:
            evicted = np.array(self._evicted)
            policy.evicted(evicted[policy.resident(evicted)])
            self._evicted.clear()
        if self._removed:
            policy.removed(np.array(self._removed))
            while self._removed:
                block = self._removed.pop()
                if self._keyed:
                    self._give_back(block)
        new = np.fromiter(self._new, np.int64, len(self._new))
        used = self._id != _NOBODY
        used[new] = False
        used = np.flatnonzero(used & (self._touched != self._seen))
        if new.size:
            blocks, sizes = self._id[new], np.fromiter(self._new.values(), np.int64, new.size)
            known = policy.resident(blocks)
            policy.inserted(blocks[~known], sizes[~known])
            self._new.clear()
            # Where the last use is all that counts, putting a block is its first one.
            again = new if policy.by_last_use else new[self._touched[new] != self._seen[new]]
            used = np.concatenate([used, again])
        if used.size:
            times = self._touched[used]  # readers go on writing: what is compared next is what was told now
            self._seen[used] = times
            policy.touched(self._id[used[np.argsort(times, kind="stable")]])
        for block in policy.forgotten().tolist():  # last: the steps before may forget, and an id is given back once
            self._give_back(block)

    def _id_of(self, key: tuple[int, int]) -> int:
        """The id that a key's ghost has, or one that is free."""
        block = self._ghosts.pop(key, _NOBODY)
        if block != _NOBODY:
            return block
        if not self._free and self._next == self._page.size:
            self._look()  # blocks that were deleted, and not told of yet, have ids
        if self._free:
            block = self._free.pop()
        elif self._next < self._page.size:
            block, self._next = self._next, self._next + 1
        else:
            raise ProtocolError(f"all {self._next} ids of the eviction policy are in use: it forgets too little")
        self._key[block] = key
        return block

    def _give_back(self, block: int) -> None:
        key = self._key.pop(block)
        if self._ghosts.get(key) == block:
            del self._ghosts[key]
        self._free.append(block)

    def check(self, live: Pages) -> None:
        """Local. Verify that the policy and the arena know the same blocks; `live` are first pages.

        Raises
        ------
        ProtocolError
            They do not, or the policy breaks an invariant of its own.
        """
        self._look()
        try:
            self._policy.check()
        except AssertionError as error:
            raise ProtocolError(f"eviction policy {self._policy.name}: {error}") from None
        known = np.flatnonzero(self._id != _NOBODY)
        if not np.array_equal(known, live):
            raise ProtocolError(f"the eviction policy knows {known.size} cells, the arena {live.size}")
        if not np.array_equal(self._page[self._id[known]], known):
            raise ProtocolError("ids and cells of the eviction policy do not belong together")
        if not self._policy.resident(self._id[known]).all() or len(self._policy) != known.size:
            raise ProtocolError(f"the eviction policy holds {len(self._policy)} blocks, the arena {known.size}")
