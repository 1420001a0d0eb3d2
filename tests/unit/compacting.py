"""A disk tier in small for tests of compaction: ranks that put, delete, sync and compact, with one index over them.

Covers what a store has to know of its records, written as plainly as possible, and the notes of what it may promise.
Does not cover memory, other processes' steps in between (an operation here is atomic but for the compaction), nor what
a power loss leaves (see `power_loss`).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

from promises import Acknowledged, Attempt
from recorded_disk import Disk, RecordingFiles

from cascade_mpi.errors import DamagedError, NotDurableError
from cascade_mpi.segments.compaction import Compactor
from cascade_mpi.segments.format import MIN_SEGMENT_BYTES, Location
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.planning import plan
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import Recovery, latest
from cascade_mpi.segments.source import Item
from cascade_mpi.segments.space import TOMBSTONE_BYTES, Space, footprint

STORE = bytes(range(16))
Key = tuple[int, int]
Wrap = Callable[[Any], Any]


def _as_it_is(files: Any) -> Any:
    return files


class Named(NamedTuple):
    """What the index says of a key."""

    rank: int
    sequence: int
    location: Location
    length: int


class Rank:
    """One rank: its log, its account, its compactor; and the ledger that this one asks."""

    def __init__(self, tier: Tier, number: int, clean: Any, numbers: Iterator[int]) -> None:
        files = tier.wrap(clean)
        self.tier, self.number, self.files, self.clean = tier, number, files, clean
        self.log = SegmentLog(files, STORE, numbers, tier.run, tier.segment_bytes, writer=number)
        self.copies = self.log
        if not tier.one_log:
            self.copies = SegmentLog(tier.wrap_copies(files), STORE, numbers, tier.run, tier.segment_bytes)
        self.space = Space()
        self.compactor = Compactor(
            tier.wrap_compactor(files), STORE, self.copies, self, self.space, settle_bytes=tier.settle_bytes
        )
        self.open: dict[int, tuple[Key, bytes | None, Location]] = {}  # by sequence: written, not known to be durable
        self.held: dict[Location, tuple[Key, int, int]] = {}  # dead blocks: key, sequence, length
        self.deletions: dict[Location, tuple[Key, int]] = {}
        self.scanned: set[int] = set()  # left by an earlier job without a footer

    # the ledger

    def live(self, item: Item) -> bool:
        named = self.tier.index.get((item.key_hi, item.key_lo))
        return named is not None and named.location == item.location

    def may_go(self, item: Item) -> bool:
        key = item.key_hi, item.key_lo
        named = self.tier.index.get(key)
        if self.tier.durable.get(key, -1) > item.sequence:
            return True
        if named is not None and named.sequence == item.sequence and named.location != item.location:
            return True
        return item.tombstone and self.tier.nothing_below(key, item.sequence)

    def moved(self, item: Item, new: Location) -> bool:
        key = item.key_hi, item.key_lo
        self.tier.watch(self, item, new)
        self.tier.note_record(key, item.sequence, new.segment)
        if item.tombstone:
            noted = self.deletions.pop(item.location, None) is not None
            self.space.released((item.location if noted else new).segment, 0, tombstone=True)
            if noted:
                self.deletions[new] = key, item.sequence
            return False
        named = self.tier.index.get(key)
        if named is not None and named.location == item.location:
            self.tier.index[key] = named._replace(location=new)
            return True
        noted = self.held.pop(item.location, None) is not None
        self.space.released((item.location if noted else new).segment, item.length)
        if noted:
            self.held[new] = key, item.sequence, item.length
        return False

    def removed(self, segment: int) -> None:
        self.tier.removed(segment)
        for noted in (self.held, self.deletions):
            for location in [each for each in noted if each.segment == segment]:
                del noted[location]

    # its own work

    def settle(self, act: Callable[[], int]) -> None:
        """Acknowledge what was written and is not named as lost; write that again."""
        lost: set[int] = set()
        try:
            act()
        except NotDurableError as error:
            self.tier.errors.append(error)
            lost = {each.sequence for each in self.compactor.foreign(error.lost)} & self.open.keys()
        self.acknowledge(lost)

    def acknowledge(self, lost: set[int]) -> None:
        written, self.open = self.open, {}
        durable = [(key, sequence) for sequence, (key, _, _) in written.items() if sequence not in lost]
        for key, sequence in durable:
            self.tier.durable[key] = max(self.tier.durable.get(key, -1), sequence)
        self.tier.disk.note(Acknowledged(tuple(durable)))
        for sequence in sorted(lost):
            key, value, _ = written[sequence]
            named = self.tier.index.get(key)
            if (named is None) if value is None else (named is not None and named.sequence == sequence):
                with suppress(OSError):
                    self.tier.write(self, key, value)

    def release(self) -> None:
        """Tell the account what may go by now."""
        for location, (key, sequence, length) in list(self.held.items()):
            if self.may_go(Item(*key, sequence, length, False, location)):
                del self.held[location]
                self.space.released(location.segment, length)
        for location, (key, sequence) in list(self.deletions.items()):
            if self.may_go(Item(*key, sequence, 0, True, location)):
                del self.deletions[location]
                self.space.released(location.segment, 0, tombstone=True)

    def busy(self) -> frozenset[int]:
        return self.compactor.busy | self.log.open_segments | self.copies.open_segments

    def first(self) -> set[int]:
        """What was left without a footer goes into sealed segments."""
        return (self.log.unsure | self.copies.unsure | self.scanned) & self.space.segments.keys()

    def begin(self, **options: Any) -> None:
        self.release()
        chosen = plan(
            self.space, segment_bytes=self.tier.segment_bytes, busy=self.busy(), first=self.first(), **options
        )
        self.compactor.add(chosen)


class Tier:
    """The ranks, the index that they share, and where each record of each key lies."""

    def __init__(
        self, disk: Disk, seed: int, *, ranks: int = 2, wrap: Wrap = _as_it_is,
        one_log: bool = True, settle_bytes: int = 6 << 10, segment_bytes: int = MIN_SEGMENT_BYTES, keys: int = 5,
        run: int = 1, base: int = 0, files: Callable[[int], Any] | None = None, wrap_copies: Wrap = _as_it_is,
        wrap_compactor: Wrap = _as_it_is,
    ) -> None:  # fmt: skip
        self.disk, self.chance, self.run, self.one_log = disk, random.Random(seed), run, one_log
        self.wrap, self.wrap_copies, self.wrap_compactor = wrap, wrap_copies, wrap_compactor
        self.settle_bytes, self.segment_bytes, self.keys = settle_bytes, segment_bytes, keys
        self.index: dict[Key, Named] = {}
        self.durable: dict[Key, int] = {}  # the highest durable sequence
        self.records: dict[Key, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))  # segments of each
        self.values: dict[Key, bytes] = {}
        self.sequence = 0
        self.errors: list[OSError] = []
        self.watch: Callable[[Rank, Item, Location], None] = lambda rank, item, new: None
        make = files if files is not None else lambda number: RecordingFiles(disk, number)
        self.ranks = [Rank(self, each, make(each), count(base + each, ranks)) for each in range(ranks)]

    def adopt(self, recovery: Recovery) -> None:
        """The first rank takes over what a restart found."""
        rank, newest = self.ranks[0], latest(recovery.indexes)
        rank.space = Space.rebuilt(recovery.indexes, newest.blocks, newest.tombstones)
        rank.compactor = Compactor(rank.files, STORE, rank.copies, rank, rank.space, settle_bytes=self.settle_bytes)
        rank.scanned = {each.segment for each in recovery.indexes if not each.sealed}
        for index in recovery.indexes:
            for row in index.entries:
                key, sequence = (int(row["key_hi"]), int(row["key_lo"])), int(row["sequence"])
                self.note_record(key, sequence, index.segment)
                self.durable[key] = max(self.durable.get(key, -1), sequence)
                self.sequence = max(self.sequence, sequence >> 12)
        for row in newest.tombstones:
            location = Location(int(row["segment"]), int(row["unit"]))
            rank.deletions[location] = (int(row["key_hi"]), int(row["key_lo"])), int(row["sequence"])
        for row in newest.blocks:
            key, location = (int(row["key_hi"]), int(row["key_lo"])), Location(int(row["segment"]), int(row["unit"]))
            self.index[key] = Named(0, int(row["sequence"]), location, int(row["length"]))
            value = self.read(key)
            assert value is not None
            self.values[key] = value

    def nothing_below(self, key: Key, sequence: int) -> bool:
        """Rule 14. What can still come is in `records` already, or in a segment that a log is not sure of."""
        if any(rank.log.unsure or rank.copies.unsure for rank in self.ranks):
            return False
        return not any(each < sequence and segments for each, segments in self.records[key].items())

    def note_record(self, key: Key, sequence: int, segment: int) -> None:
        self.records[key][sequence].add(segment)

    def removed(self, segment: int) -> None:
        for sequences in self.records.values():
            for sequence in list(sequences):
                sequences[sequence].discard(segment)
                if not sequences[sequence]:
                    del sequences[sequence]

    def unname(self, key: Key) -> None:
        """Nothing leads to the key's record any more."""
        named = self.index.pop(key, None)
        if named is not None:
            owner = self.ranks[named.rank]
            owner.space.unnamed(named.location.segment, named.length)
            owner.held[named.location] = key, named.sequence, named.length

    def write(self, rank: Rank, key: Key, value: bytes | None) -> None:
        """Put, or with None delete. OSError: nothing was changed, though it may be found after a crash."""
        self.sequence += 1
        sequence = self.sequence << 12 | rank.number
        self.disk.note(Attempt(key, sequence, value))
        if value is None:
            location = rank.log.tombstone(*key, sequence)
            rank.space.tombstone(location.segment)
            rank.deletions[location] = key, sequence
        else:
            record = Record(key_hi=key[0], key_lo=key[1], sequence=sequence, length=len(value))
            location = rank.log.append(record, value)
            rank.space.appended(location.segment, len(value))
        self.note_record(key, sequence, location.segment)
        rank.open[sequence] = key, value, location
        self.unname(key)
        self.values.pop(key, None)
        if value is not None:
            rank.space.named(location.segment, len(value))
            self.index[key] = Named(rank.number, sequence, location, len(value))
            self.values[key] = value

    def some_value(self) -> bytes | None:
        sizes = (1, 40, 300, 700, 2500, 5000) if self.chance.random() < 0.95 else (0, 17_000, 66_000)
        return None if self.chance.random() < 0.25 else self.chance.randbytes(self.chance.choice(sizes))

    def work(self, operations: int, *, syncs: float = 0.15, steps: float = 0.45, step_bytes: int = 2000) -> None:
        for _ in range(operations):
            rank, what = self.chance.choice(self.ranks), self.chance.random()
            try:
                if what < syncs:
                    rank.settle(rank.log.seal if self.chance.random() < 0.4 else rank.log.sync)
                elif what < syncs + steps:
                    if not rank.compactor.busy:
                        rank.begin(share=0.1, small_files=2)
                    self.step(rank, step_bytes)
                else:
                    self.write(rank, (7, self.chance.randrange(self.keys)), self.some_value())
            except OSError as error:
                self.errors.append(error)

    def step(self, rank: Rank, nbytes: int) -> bool:
        try:
            return rank.compactor.step(nbytes)
        except NotDurableError as error:
            self.errors.append(error)
            if self.one_log:  # it was a sync of everything
                rank.acknowledge({each.sequence for each in error.lost} & rank.open.keys())
            return True

    def finish(self) -> None:
        """Everything durable, everything compacted that can be. A fault that comes twice is an error."""
        for rank in self.ranks:
            rank.settle(rank.log.sync)
        for rank in self.ranks:
            rank.begin(share=0.0, small_files=1)
            self.drain(rank)

    def drain(self, rank: Rank) -> None:
        """To the end of what its compactor has to do."""
        try:
            while self.step(rank, 1 << 20):
                pass
        except OSError as error:
            self.errors.append(error)
            while self.step(rank, 1 << 20):
                pass

    def read(self, key: Key) -> bytes | None:
        """Through the index, as a reader would."""
        named = self.index.get(key)
        if named is None:
            return None
        rank = self.ranks[named.rank]
        reader = open_segment(rank.clean, STORE, named.location.segment)
        out = bytearray(named.length)
        try:
            place = reader.header().place
            reader.read(named.location.unit, place, memoryview(out), key=key, sequence=named.sequence)
        finally:
            reader.close()
        return bytes(out)

    def check(self) -> None:
        """What the index leads to is right, and the accounts agree with it."""
        for key in {*self.values, *self.index}:
            try:
                assert self.read(key) == self.values.get(key), key
            except DamagedError as error:
                raise AssertionError(f"{key}: {error}") from error
        for rank in self.ranks:
            self.drain(rank)  # a copy that nobody was told of is held, twice
            live = sum(footprint(named.length) for named in self.index.values() if named.rank == rank.number)
            held = sum(footprint(length) for _, _, length in rank.held.values())
            assert (rank.space.live, rank.space.held) == (live, held)
            assert rank.space.tombstones == TOMBSTONE_BYTES * len(rank.deletions)
            for name in ("size", "live", "held", "tombstones", "garbage"):
                each = [getattr(segment, name) for segment in rank.space.segments.values()]
                assert sum(each) == getattr(rank.space, name), name
                assert min(each, default=0) >= 0, name
