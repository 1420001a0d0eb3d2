"""The contract of all policies: what a simulator asks and what a manager of blocks tells.

Covers arguments, their checks and the invariants that all policies share. Does not cover what any policy
does with a block: that is in its own module, as compiled operations (`loops`). A policy knows no MPI, no
clock and no global state; the same calls in the same order give the same victims.

Blocks are integers from 0 to blocks - 1. Two users:

*Exact*: `replay(ids)` or `access(id)`. A block that is not there comes in, and others leave until it fits.

*A manager*, which holds the memory and tells the policy about it in batches: `missed`, `inserted`,
`touched`, `removed`; it asks for `victims` and reports with `evicted` those that left. With `recycle` the
ids are the manager's to reuse: `forgotten` gives those that the policy remembers no longer. A block that
comes back while it is still remembered is to be inserted under its old id: that is how ARC and S3-FIFO
notice what they gave up too early. Driven one block at a time the two are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade_mpi.policies import loops as _loops
from cascade_mpi.policies.state import (
    BLOCKS,
    CAPACITY,
    CODE,
    COUNT,
    FORGOTTEN,
    NEXT,
    OWN,
    PREVIOUS,
    RECYCLE,
    ROW,
    ROW_BYTES,
    UNKNOWN,
    USED,
)

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
_NO_IDS = np.empty(0, np.int64)
_NO_MASK = np.empty(0, np.bool_)
_MAX_BLOCKS = (2**31 - 1) // ROW - 2**20  # rows are addressed with 31 bits; the rest is for heads and tables


class Policy:
    """The order in which blocks leave a cache.

    Parameters
    ----------
    capacity
        What the cache holds, in blocks, or in the unit of `sizes` (bytes). 0 holds nothing.
    blocks
        Ids are 0 to blocks - 1.
    sizes
        Size of each block, shape (blocks,), at least 1 each; by default every block counts 1. A block
        that is larger than the capacity is never admitted.
    costs
        What it takes to make each block again, shape (blocks,), above 0, in any one unit; only GDSF looks
        at it.
    recycle
        Keep the list that `forgotten` gives; the ids are then the caller's to use for other blocks.
    """

    name: ClassVar[str]
    operations: ClassVar[_loops.Operations]
    lists: ClassVar[tuple[tuple[int, int | None], ...]] = ()
    """For each CODE its ring, as the head's row counted from the number of blocks; None without a ring of its own."""
    offline: ClassVar[bool] = False
    """It has to be told the future (`future=`): a bound, not a policy for a store."""
    has_ghosts: ClassVar[bool] = False
    """It remembers blocks that left: a manager needs ids for them too."""
    by_last_use: ClassVar[bool] = False
    """The order is that of the last uses, and coming in is one: `touched` after `inserted` says when."""
    wants_requests: ClassVar[bool] = False
    """It has `request(ids, partial)`, to be told which blocks are asked for together."""
    state_bytes_per_block: ClassVar[int] = ROW_BYTES
    """Bytes of state for each id, ghosts included; `sizes` is 8 more."""

    def __init__(
        self,
        capacity: int,
        blocks: int,
        *,
        sizes: ArrayLike | None = None,
        costs: ArrayLike | None = None,
        recycle: bool = False,
    ) -> None:
        if not 0 <= blocks <= _MAX_BLOCKS:
            raise ValueError(f"{blocks:,} blocks: a policy holds 0 to {_MAX_BLOCKS:,}")
        if capacity < 0:
            raise ValueError(f"capacity {capacity:,}: it is 0 or more")
        heads = 1 + max((ring or 0 for _, ring in self.lists), default=0)
        self._numbers = np.zeros(OWN + self._number_count(capacity, blocks), np.int64)
        self._numbers[CAPACITY], self._numbers[BLOCKS], self._numbers[RECYCLE] = capacity, blocks, recycle
        self._nodes = np.zeros(ROW * (blocks + heads + self._row_count(capacity, blocks)), np.int32)
        for head in range(blocks, blocks + heads):
            self._nodes[ROW * head + PREVIOUS] = self._nodes[ROW * head + NEXT] = head
        self._sizes = np.empty(0, np.int64) if sizes is None else np.ones(blocks, np.int64)
        self._reals = np.zeros(self._real_count(blocks), np.float64)
        self._state = (self._nodes, self._numbers, self._sizes, self._reals)
        self._loops = _loops.loops(self.name, self.operations)
        self._start(capacity, blocks)
        self._learn(np.arange(blocks), sizes, costs)
        self._share(capacity)

    # What a policy may add to its state.

    def _number_count(self, capacity: int, blocks: int) -> int:
        """How many numbers the policy has of its own."""
        return 0

    def _row_count(self, capacity: int, blocks: int) -> int:
        """How many rows it has behind those of the blocks and the heads."""
        return 0

    def _real_count(self, blocks: int) -> int:
        """How many reals it has."""
        return 0

    def _start(self, capacity: int, blocks: int) -> None:
        """Fill in what does not start as 0."""

    def _share(self, capacity: int) -> None:
        """Set what depends on the capacity."""

    def _learn(self, ids: Ids, sizes: ArrayLike | None, costs: ArrayLike | None) -> None:
        """Take in what is said about blocks."""
        if sizes is not None:
            given = np.broadcast_to(np.asarray(sizes), ids.shape)
            if not self._sizes.size and self.blocks:
                raise ValueError("sizes were given, and this policy counts blocks: make it with sizes=")
            if given.dtype.kind not in "iu" or (given.size and given.min() < 1):
                least = given.min() if given.size else "none"
                raise ValueError(f"sizes of type {given.dtype}, smallest {least}: they are integers of 1 or more")
            self._sizes[ids] = given

    @classmethod
    def most_ghosts(cls, capacity: int) -> int:
        """Local. How many blocks that left it remembers at most, of size 1."""
        return capacity if cls.has_ghosts else 0

    @classmethod
    def state_bytes(cls, capacity: int) -> int:
        """Local. Bytes that it takes to hold `capacity` blocks of size 1, with all ghosts and what is fixed.

        Makes such a policy. One that counts accesses by id in a table of its own has that too.
        """
        if cls.offline:
            return (capacity + cls.most_ghosts(capacity)) * cls.state_bytes_per_block
        return sum(part.nbytes for part in cls(capacity, capacity + cls.most_ghosts(capacity))._state)

    # What the policy is.

    @property
    def blocks(self) -> int:
        """Local. How many ids there are."""
        return int(self._numbers[BLOCKS])

    @property
    def capacity(self) -> int:
        """Local. What the cache holds."""
        return int(self._numbers[CAPACITY])

    @property
    def used(self) -> int:
        """Local. The sizes of the resident blocks."""
        return int(self._numbers[USED])

    def __len__(self) -> int:
        """Local. How many blocks are resident."""
        return int(self._numbers[COUNT])

    def resident(self, ids: ArrayLike | None = None) -> Mask:
        """Local. Which of these ids (default: of all) are resident."""
        return np.asarray(self._codes(ids) > 0)

    def remembers(self, ids: ArrayLike | None = None) -> Mask:
        """Local. Which of these ids (default: of all) the policy still knows: residents and ghosts."""
        codes = self._codes(ids)
        return np.asarray((codes != UNKNOWN) & (codes != FORGOTTEN))

    # Exact use.

    def replay(self, ids: ArrayLike) -> Mask:
        """Local. Access these ids in order; which were hits, shape (len(ids),)."""
        wanted = self._ids(ids)
        hits = np.empty(wanted.size, np.bool_)
        self._loops.replay(*self._state, wanted, hits)
        return hits

    def access(self, block: int) -> bool:
        """Local. Access one block: a hit, or a miss after which it is resident if it fits at all."""
        return bool(self.replay(np.array([block], np.int64))[0])

    # A manager's use.

    def missed(self, ids: ArrayLike) -> None:
        """Local. These are about to be inserted and room has not been made; resident ones are passed over.

        Said before `victims`, it lets ARC move its target in time and protects ghosts that are awaited
        from being forgotten. Leaving it out costs exactness, nothing else.
        """
        self._manage(_loops.MISSED, ids)

    def inserted(self, ids: ArrayLike, sizes: ArrayLike | None = None, costs: ArrayLike | None = None) -> None:
        """Local. These became resident, whatever the capacity; if one was before, an error that changes nothing."""
        wanted = self._ids(ids)
        if sizes is not None or costs is not None:
            self._refuse_resident(wanted, bool(self.resident(wanted).any()))
            if sizes is not None and self._sizes.size:
                changed = wanted[self._sizes[wanted] != np.asarray(sizes)]
                self.removed(changed[self.remembers(changed)])  # a ghost of another size was another block
            self._learn(wanted, sizes, costs)
        place = self._manage(_loops.INSERTED, wanted)
        if place >= 0:
            self._refuse_resident(wanted, True, place)

    def request(self, ids: ArrayLike, partial: bool = True) -> None:
        """Local. A request for these blocks arrives: nothing to a policy that does not want requests."""

    def unasked(self, ids: ArrayLike) -> None:
        """Local. Those of these that a request named, and that never came in, are other blocks' ids from now on."""

    def touched(self, ids: ArrayLike) -> None:
        """Local. These were used, in this order; ones that are not resident are passed over: touches come late."""
        self._manage(_loops.TOUCHED, ids)

    def removed(self, ids: ArrayLike) -> None:
        """Local. These were deleted or moved: nothing is remembered, no ghost, and `forgotten` leaves them out."""
        self._manage(_loops.REMOVED, ids)

    def victims(self, count: int | None = None, *, size: int | None = None, excluded: Mask | None = None) -> Ids:
        """Local. What should go: `count` blocks, or as many as it takes for `size`, in the order of going.

        Fewer come back when no more may go. Who is resident does not change, and the next call may give the
        same; choosing does change what a policy spends on it (SIEVE's marks, S3-FIFO's second chances).

        Parameters
        ----------
        excluded
            Shape (blocks,): True for what has to stay (protected, pinned). They keep their places; each one
            that would have been a victim costs as much as a victim.
        """
        if (count is None) == (size is None):
            raise ValueError(f"count={count}, size={size}: give one of the two")
        limit = int(count if size is None else size)  # type: ignore[arg-type]
        if excluded is not None and (excluded.shape != (self.blocks,) or excluded.dtype != np.bool_):
            raise ValueError(f"excluded is {excluded.dtype}{excluded.shape}: it is bool({self.blocks},)")
        mask = _NO_MASK if excluded is None else np.ascontiguousarray(excluded)
        out = np.empty(len(self), np.int64)
        call = _loops.VICTIMS if size is None else _loops.VICTIMS_SIZE
        found = self._loops.manage(call, *self._state, _NO_IDS, mask, limit, out)
        return out[:found].copy()

    def evicted(self, ids: ArrayLike) -> None:
        """Local. These left to make room, in this order; one that was not resident is an error that changes nothing."""
        wanted = self._ids(ids)
        place = self._manage(_loops.EVICTED, wanted)
        if place >= 0:
            raise ValueError(
                f"block {wanted[place]:,} (place {place:,} of {wanted.size:,}) was not resident, or is in the batch "
                "twice: report a block once, between inserted() and evicted() or removed()"
            )

    def forgotten(self) -> Ids:
        """Local. Ids that the policy has ceased to remember since the last call; empty without `recycle`.

        An id that was inserted again meanwhile is not among them.
        """
        out = np.empty(self.blocks if self._numbers[RECYCLE] else 0, np.int64)
        found = self._loops.manage(_loops.TOLD, *self._state, _NO_IDS, _NO_MASK, 0, out)
        return out[:found].copy()

    def resize(self, capacity: int) -> None:
        """Local. Change the capacity. Blocks above it stay until the next insertion, or the manager's `victims`."""
        if capacity < 0:
            raise ValueError(f"capacity {capacity:,}: it is 0 or more")
        self._numbers[CAPACITY] = capacity
        self._share(capacity)
        self._manage(_loops.TRIM, _NO_IDS)

    # Checks.

    def check(self) -> None:
        """Local. Verify all invariants.

        Raises
        ------
        AssertionError
            One is broken; the text has the ids and numbers.
        """
        codes = self._codes()
        resident = np.flatnonzero(codes > 0)
        expect("resident blocks", resident.size, len(self))
        expect("their size", self._size_of(resident), self.used)
        for code, ring in (*self.lists, (FORGOTTEN, 0)):
            if ring is not None:
                found, members = np.flatnonzero(codes == code).tolist(), sorted(self.ring(ring))
                expect(f"{self.name}: blocks with code {code}", found, members)
        known = {UNKNOWN, FORGOTTEN, *(code for code, _ in self.lists)}
        expect("unknown codes", sorted(set(codes.tolist()) - known), [])

    def ring(self, ring: int) -> Iterator[int]:
        """Local. The ids in one ring, from the front to the back; both directions are compared on the way."""
        head = at = self.blocks + ring
        for _ in range(self.blocks + 1):
            after = int(self._nodes[ROW * at + NEXT])
            expect(f"what precedes row {after}", int(self._nodes[ROW * after + PREVIOUS]), at)
            if after == head:
                return
            yield after
            at = after
        raise AssertionError(f"{self.name}: ring {ring} does not close within {self.blocks:,} blocks")

    def _size_of(self, ids: Ids | Sequence[int]) -> int:
        return int(self._sizes[ids].sum()) if self._sizes.size else len(ids)

    def _codes(self, ids: ArrayLike | None = None) -> NDArray[np.int32]:
        codes = self._nodes[CODE : ROW * self.blocks : ROW]
        return codes if ids is None else codes[self._ids(ids)]

    def _ids(self, ids: ArrayLike) -> Ids:
        given = np.asarray(ids)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ValueError(f"ids are {given.dtype}{given.shape}: they are integers in one dimension")
        wanted = np.ascontiguousarray(given, np.int64)
        if wanted.size:
            low, high = int(wanted.min()), int(wanted.max())
            if low < 0 or high >= self.blocks:
                raise ValueError(f"ids from {low:,} to {high:,}: this policy was made for 0 to {self.blocks - 1:,}")
        return wanted

    def _manage(self, call: int, ids: ArrayLike) -> int:
        return int(self._loops.manage(call, *self._state, self._ids(ids), _NO_MASK, 0, _NO_IDS))

    def _refuse_resident(self, ids: Ids, refuse: bool, place: int | None = None) -> None:
        if refuse:
            place = int(np.argmax(self.resident(ids))) if place is None else place
            raise ValueError(
                f"block {ids[place]:,} (place {place:,} of {ids.size:,}) is resident, or is in the batch twice: "
                "report uses with touched(), and a replaced block with removed() first"
            )


def expect(what: str, found: Any, expected: Any) -> None:
    """Local. Raise AssertionError, with both values, unless they are equal."""
    if found != expected:
        raise AssertionError(f"{what}: {str(found)[:300]}, expected {str(expected)[:300]}")
