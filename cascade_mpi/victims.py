"""Which blocks of one rank leave next: an eviction policy, fed from the arena's own tables.

Covers the policy's ids of cells, what it is told and when, and the choice in its order. Does not cover taking the
blocks out (`evictions`) nor any policy (`policies`).

A get tells the policy nothing: readers on any rank write the time of use into the touch array of the cell's
manager, which looks at it only before it chooses. So the policy hears of uses late, of several uses of a block
between two looks as one, and at the resolution of a touch: that is what the store's policies lose against the exact
ones. What they remember of blocks that left (ghosts) they remember by key, so a block that is put again is known.

A policy that wants requests is told those of its own rank's program, of each the blocks that this arena has or has
just lost; of a request of another rank it sees the touches.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from cascade_mpi.elements import elements
from cascade_mpi.errors import ProtocolError
from cascade_mpi.policies.family import STORE_POLICIES, make
from cascade_mpi.policies.prefix import Prefix

Pages = npt.NDArray[np.int64]
_NOBODY = -1
_MOST_AWAITED = 4096


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
        self._rate, plain, options = 0, ids, dict[str, int]()
        if STORE_POLICIES[name].wants_requests:
            self._rate, plain = Prefix.watch_rate(pages), ids + _MOST_AWAITED
            ids = plain + Prefix.most_ghosts(pages) + 2 * pages // self._rate  # what is watched
            options["watched"] = plain
        self._policy = make(name, pages, ids, sizes=np.broadcast_to(np.int64(1), ids), recycle=self._keyed, **options)
        # Two kinds of ids, the second of blocks that are watched: those given back, and the next that never was given.
        self._free: tuple[list[int], list[int]] = [], []
        self._next, self._ends = [0, plain], (plain, ids)
        self._key_hi, self._key_lo = records["key_hi"], records["key_lo"]
        self._touched = touched
        self._seen = np.zeros(pages, np.uint32)  # by first page: the touch that the policy knows of
        self._id = np.full(pages, _NOBODY, np.int32)  # by first page
        self._page = np.full(ids, _NOBODY, np.int32)  # by id
        self._touch_of, self._seen_of = elements(self._touched), elements(self._seen)
        self._id_at, self._page_of = elements(self._id), elements(self._page)
        self._key: dict[int, tuple[int, int]] = {}  # by id, of what the policy knows
        self._ghosts: dict[tuple[int, int], int] = {}
        self.wants_requests = STORE_POLICIES[name].wants_requests
        self.by_last_use = self._policy.by_last_use  # nothing else decides who goes first
        self._named: dict[tuple[int, int], int] = {}  # ids by key, of what the policy knows, if it wants requests
        self._awaited: dict[tuple[int, int], int] = {}  # ids by key, of what the last request is about to put
        # Requests that it has not heard of: keys, partial, and the ids of blocks that came in since the one before.
        self._asked: deque[tuple[list[tuple[int, int]], bool, list[int]]] = deque()
        self._arrived: list[int] = []
        self._asked_keys = 0
        self._new: dict[int, int] = {}  # by first page: pages, of what the policy has not heard of
        self._evicted: list[int] = []
        self._removed: list[int] = []

    def entered(self, first: int, pages: int) -> None:
        """Local. A block of so many pages is live in this cell; its descriptor and its touch have been set."""
        block = first
        if self._keyed:
            block = self._id_of((int(self._key_hi[first]), int(self._key_lo[first])))
        self._id_at[first], self._page_of[block] = block, first
        self._seen_of[first] = self._touch_of[first]
        self._new[first] = pages
        if self.wants_requests:
            self._arrived.append(block)

    def left(self, first: int, *, evicted: bool) -> None:
        """Local. The block of this cell is gone: evicted (which a policy may remember), or deleted."""
        block = self._id_at[first]
        if block == _NOBODY:
            return
        self._id_at[first] = self._page_of[block] = _NOBODY
        if self._new.pop(first, None) is not None:  # the policy never heard of it, or only of its ghost
            evicted = self._keyed and bool(self._policy.remembers([block])[0])
            if not evicted and self._keyed:
                self._policy.unasked([block])
                self._give_back(block)
        else:
            (self._evicted if evicted else self._removed).append(block)
        if evicted and self._keyed:
            self._ghosts[self._key[block]] = block

    def request(self, keys: list[tuple[int, int]], partial: bool) -> None:
        """Local. The rank's program asks for these blocks, in the order of their prefix; as `Prefix.request`."""
        if self.wants_requests and keys:
            if self._awaited:  # what did not come in with the last request, which is over
                self._policy.unasked(list(self._awaited.values()))
                while self._awaited:
                    self._give_back(self._awaited.popitem()[1])
            self._asked.append((keys, partial, self._arrived))
            self._arrived = []
            self._asked_keys += len(keys)
            if self._asked_keys > self._touched.size:
                self._look()

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
        return self._touch_of[first] == self._seen_of[first]

    def _look(self) -> None:
        """Tell the policy what has happened since the last time."""
        # What an error cut short is told again: so only of what the policy does not know yet.
        policy = self._policy
        if self._evicted:
            evicted = np.array(self._evicted)
            policy.evicted(evicted[policy.resident(evicted)])
            self._evicted.clear()
        if self._removed:
            policy.removed(np.array(self._removed))
            policy.unasked(np.array(self._removed))
            while self._removed:
                block = self._removed.pop()
                if self._keyed:
                    self._give_back(block)
        while self._asked:
            keys, partial, arrived = self._asked.popleft()
            self._asked_keys -= len(keys)
            if not self._asked and not self._awaited:
                self._await(keys)
            self._insert([first for first in self._page[arrived].tolist() if first in self._new])
            self._tell(keys, partial)
        self._arrived.clear()
        new = np.fromiter(self._new, np.int64, len(self._new))
        used = self._id != _NOBODY
        used[new] = False
        used = np.flatnonzero(used & (self._touched != self._seen))
        if new.size:
            self._insert(new.tolist())
            # Where the last use is all that counts, putting a block is its first one.
            again = new if policy.by_last_use else new[self._touched[new] != self._seen[new]]
            used = np.concatenate([used, again])
        if used.size:
            times = self._touched[used]  # readers go on writing: what is compared next is what was told now
            self._seen[used] = times
            policy.touched(self._id[used[np.argsort(times, kind="stable")]])
        for block in policy.forgotten().tolist():  # last: the steps before may forget, and an id is given back once
            self._give_back(block)

    def _tell(self, keys: list[tuple[int, int]], partial: bool) -> None:
        """Tell a request, of the blocks that are known here, have come in, or are about to."""
        named = dict.fromkeys(self._named.get(key, _NOBODY) for key in keys)
        named.pop(_NOBODY, None)
        ids = np.fromiter(named, np.int64, len(named))
        pages = self._page[ids].tolist()
        # Not of what it has just forgotten: that id is another block's next, which would be taken for asked for.
        coming = np.fromiter((first in self._new for first in pages), np.bool_, len(pages))
        told = self._policy.remembers(ids) | coming | np.isin(ids, list(self._awaited.values()))
        if not told.any():
            return
        self._policy.request(ids[told], partial and bool(told[-1]) and keys[-1] in self._named)

    def _insert(self, firsts: list[int]) -> None:
        """Tell of new blocks, in this order."""
        if not firsts:
            return
        blocks, sizes = self._id[firsts], np.array([self._new[first] for first in firsts])
        known = self._policy.resident(blocks)
        self._policy.inserted(blocks[~known], sizes[~known])
        for first in firsts:
            del self._new[first]

    def _await(self, keys: list[tuple[int, int]]) -> None:
        """Give ids to what the last request has not put yet, so that it is told of it before."""
        room = min(_MOST_AWAITED, *(len(self._free[k]) + self._ends[k] - self._next[k] for k in (0, 1)))
        unknown = dict.fromkeys(key for key in keys if key not in self._named)
        for key in list(unknown)[:room]:
            self._awaited[key] = self._id_of(key)

    def _id_of(self, key: tuple[int, int]) -> int:
        """The id that a key's ghost has, or one that is free."""
        block = self._ghosts.pop(key, _NOBODY)
        if block == _NOBODY and self._awaited:
            block = self._awaited.pop(key, _NOBODY)
        if block != _NOBODY:
            return block
        kind = int(self._rate > 0 and _mixed(*key) % self._rate == 0)
        block = self._take_id(kind)
        if block == _NOBODY and not kind:
            self._look()  # blocks that were deleted, and not told of yet, have ids
            block = self._take_id(kind)
        if block == _NOBODY:
            block = self._take_id(1 - kind)
        if block == _NOBODY:
            raise ProtocolError(f"all {self._page.size} ids of the eviction policy are in use: it forgets too little")
        self._key[block] = key
        if self.wants_requests:
            self._named[key] = block
        return block

    def _take_id(self, kind: int) -> int:
        if self._free[kind]:
            return self._free[kind].pop()
        block = self._next[kind]
        if block == self._ends[kind]:
            return _NOBODY
        self._next[kind] += 1
        return block

    def _give_back(self, block: int) -> None:
        key = self._key.pop(block)
        if self._ghosts.get(key) == block:
            del self._ghosts[key]
        if self._named.get(key) == block:
            del self._named[key]
        self._free[block >= self._ends[0]].append(block)

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
        stray = [key for key, block in self._named.items() if self._key.get(block) != key]
        if stray:
            raise ProtocolError(f"{len(stray)} keys name ids of the eviction policy that are other blocks'")


def _mixed(hi: int, lo: int) -> int:
    """Bits that depend on all of a key: small integers are keys too."""
    x = (hi * 0x9E3779B97F4A7C15 ^ lo) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return x >> 40
