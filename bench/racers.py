"""The two kinds of ranks in a torture: those that put, replace and delete, and those that read.

Covers what they do, how they note it with begin and end, and the keys they fight for. What a reader sees
is compared line by line at once; the notes are judged later (`history`). Does not cover phases, pauses
and the verdict (`torture`).
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic_ns, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.history import DELETE, MISS, PRESENT, PUT, READ
from bench.stamped import LINE, stamp, stamp_of, stamp_of_lines, value
from cascade_mpi.errors import BufferSizeError, NotOnNodeError, StoreFullError
from cascade_mpi.layout import place
from cascade_mpi.store import Store, View

_VIEWS_HELD, _VIEW_NS = 5, 20_000_000  # at most, of the 8 pins that a rank has at a manager; the longest time
_TWIN_TRIES = 2_000_000
_TWIN_SHARE = 0.6  # of the puts, where keys have twins


class Log:
    """What one rank did: (begin, end, key, kind, value), in ns of the host's monotonic clock."""

    def __init__(self) -> None:
        self._rows = array("q")

    def add(self, begin: int, end: int, key: int, kind: int, number: int) -> None:
        self._rows.extend((begin, end, key, kind, number))

    def rows(self) -> npt.NDArray[np.int64]:
        """Local. int64[n, 5], in the order in which they were noted."""
        return np.frombuffer(self._rows, np.int64).reshape(-1, 5)


@dataclass
class Racer:
    """What both kinds have: the store, the keys by number, the sizes of values, chance, and the notes.

    With `twins` the second half of the keys has the values of the first: what a key is put with, its twin may be too.
    """

    store: Store
    keys: list[int]
    smallest: int
    largest: int
    chance: random.Random
    twins: bool = False
    log: Log = field(default_factory=Log)
    counts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def key(self) -> int:
        """A key's number, low ones far more often: few keys that are always fought for, some that rest."""
        return int(len(self.keys) * self.chance.random() ** 2)

    def name(self, key: int) -> int:
        """The number that stands in the values of a key."""
        return key % (len(self.keys) // 2) if self.twins else key

    def size(self, key: int) -> int:
        """Bytes of the next value: one size for even keys, another every time for odd ones; most are small."""
        key = self.name(key)
        low, high = math.log(self.smallest), math.log(self.largest + LINE)
        share = (key * 0.6180339887) % 1 if key % 2 == 0 else self.chance.random()
        nbytes = math.exp(low + (high - low) * share)
        return min(max(int(nbytes) // LINE * LINE, self.smallest), self.largest)


class Writing(Racer):
    """A rank that puts, replaces and deletes."""

    def run(self, writer: int, over: Callable[[int], bool], *, prefixes: bool) -> None:
        """Local. Write until `over(steps so far)`. With `prefixes` some blocks are put as prefixes, never evicted."""
        store, keys, chance, log = self.store, self.keys, self.chance, self.log
        rooms = [np.empty(self.largest // 8, np.uint64) for _ in range(3)]
        version = steps = 0
        while not over(steps):
            steps += 1
            key, what = self.key(), chance.random()
            if what < 0.12:
                self._delete(key)
            elif what < 0.15:
                batch = [self.key() for _ in rooms]
                numbers = [stamp(writer, version + i) for i in range(1, 4)]
                version += 3
                blocks = [
                    value(room, self.name(each), number, min(self.size(each), self.largest // 4 // LINE * LINE or LINE))
                    for room, each, number in zip(rooms, batch, numbers, strict=True)
                ]
                begin = monotonic_ns()
                results = store.put_many([keys[each] for each in batch], blocks)
                end = monotonic_ns()
                for each, number, result in zip(batch, numbers, results, strict=True):
                    if result:
                        log.add(begin, end, each, PUT, number)
                self.count("puts", sum(map(bool, results)))
            else:
                version += 1
                number = stamp(writer, version)
                block = value(rooms[0], self.name(key), number, self.size(key))
                keep, prefix = what < 0.2, prefixes and what > 0.95
                begin = monotonic_ns()
                try:
                    result = store.put(keys[key], block, exists="keep" if keep else "replace", is_prefix=prefix)
                except StoreFullError as error:  # of a prefix, in the place of a result
                    [result] = error.results
                end = monotonic_ns()
                if result.stored or result.deduplicated:
                    log.add(begin, end, key, PUT, number)
                    self.count("puts")
                    if self.twins and chance.random() < _TWIN_SHARE:
                        self._put_twin(key, block, number)
                elif result.kept:
                    log.add(begin, end, key, PRESENT, 0)
                    self.count("kept")
                else:
                    self.count("refused")
                    self._delete(self.key())
            if what > 0.998:
                sleep(chance.random() * 2e-3)  # let the keys be as they are for a while

    def _put_twin(self, key: int, block: npt.NDArray[Any], number: int) -> None:
        """Put the same value under the other key that may have it."""
        twin = (key + len(self.keys) // 2) % len(self.keys)
        begin = monotonic_ns()
        result = self.store.put(self.keys[twin], block)
        if result.stored or result.deduplicated:
            self.log.add(begin, monotonic_ns(), twin, PUT, number)
            self.count("puts")

    def _delete(self, key: int) -> None:
        begin = monotonic_ns()
        self.store.delete(self.keys[key])
        self.log.add(begin, monotonic_ns(), key, DELETE, 0)
        self.count("deletes")


class Reading(Racer):
    """A rank that reads in all ways and compares every line."""

    def run(self, over: Callable[[int], bool]) -> None:
        """Local. Read until `over(reads so far)`."""
        self._room = np.empty(self.largest + 2 * LINE, np.uint8)
        self._sizes = [self.size(key) for key in range(len(self.keys))]
        self._views: list[tuple[int, int, int, View]] = []
        self._reads = self._hits = 0
        ways = (self._into, self._new, self._range, self._many, self._contains, self._view)
        while not over(self._reads):
            key = self.key()
            way = self.chance.choices(ways, (36, 20, 14, 8, 10, 12))[0]
            way(key)
            if self._views:
                self._look_at_views(monotonic_ns())
        self._look_at_views(None)
        self.count("reads", self._reads)
        self.count("hits", self._hits)

    def _saw(self, begin: int, end: int, key: int, number: int | None, how: str) -> None:
        """Note what a read returned: a stamp, None for a miss, less than 0 for what nobody can have put."""
        self._reads += 1
        if number is None:
            self.log.add(begin, end, key, MISS, 0)
            return
        self._hits += 1
        if number <= 0:
            what = "the type or shape of another version" if number == -2 else "a mixture"
            self.wrong.append(f"{how} of key {key} returned {what}")
            return
        self.log.add(begin, end, key, READ, number)

    def _into(self, key: int) -> None:
        size, shift = self._sizes[key], self.chance.choice((0, 0, 8, 13))
        out = self._room[shift : shift + size]
        begin = monotonic_ns()
        try:
            got = self.store.get(self.keys[key], out)
        except BufferSizeError:
            self.count("wrong_sizes")
            self._new(key)
            return
        end = monotonic_ns()
        if got is None:
            number = None
        elif got != size:
            number = -1
        else:
            data = out if shift % 8 == 0 else out.copy()
            number = stamp_of_lines(data.view(np.uint64), self.name(key), size)
        self._saw(begin, end, key, number, "get with out")

    def _new(self, key: int) -> None:
        begin = monotonic_ns()
        got = self.store.get(self.keys[key])
        end = monotonic_ns()
        self._saw(begin, end, key, self._whole(key, got), "get")

    def _whole(self, key: int, got: npt.NDArray[Any] | None) -> int | None:
        if got is None:
            return None
        self._sizes[key] = got.nbytes
        return stamp_of(got, self.name(key))

    def _range(self, key: int) -> None:
        lines = self._sizes[key] // LINE
        first = self.chance.randrange(lines)
        nbytes = self.chance.randint(1, min(lines - first, 64)) * LINE
        begin = monotonic_ns()
        try:
            got = self.store.get_range(self.keys[key], first * LINE, nbytes)
        except BufferSizeError:
            self.count("wrong_sizes")
            self._new(key)
            return
        end = monotonic_ns()
        number: int | None = None
        if got is not None:
            assert isinstance(got, np.ndarray)
            words = got.view(np.uint64)
            whole = int(words[3])  # the length of the value it is a part of, as every line says
            fits = first * LINE + nbytes <= whole <= self.largest
            number = stamp_of_lines(words, self.name(key), whole, first) if fits else -1
        self._saw(begin, end, key, number, "get_range")

    def _many(self, key: int) -> None:
        numbers = [key, *(self.key() for _ in range(self.chance.randrange(8)))]
        outs = None
        if self.chance.random() < 0.5:  # keys whose values always have the same size
            numbers = [each & ~1 for each in numbers]
            outs = [np.empty(self.size(each), np.uint8) for each in numbers]
        begin = monotonic_ns()
        try:
            got = self.store.get_many([self.keys[each] for each in numbers], outs)
        except BufferSizeError:  # a batch of puts has smaller values
            self.count("wrong_sizes")
            return
        end = monotonic_ns()
        for i, each in enumerate(numbers):
            if outs is None or got[i] is None:
                number = self._whole(each, got[i])
            else:
                number = (
                    stamp_of_lines(outs[i].view(np.uint64), self.name(each), outs[i].nbytes)
                    if got[i] == outs[i].nbytes
                    else -1
                )
            self._saw(begin, end, each, number, "get_many")

    def _contains(self, key: int) -> None:
        begin = monotonic_ns()
        there = self.store.contains(self.keys[key])
        self.log.add(begin, monotonic_ns(), key, PRESENT if there else MISS, 0)
        self.count("contains")

    def _view(self, key: int) -> None:
        if len(self._views) >= _VIEWS_HELD:
            self._new(key)
            return
        begin = monotonic_ns()
        try:
            view = self.store.view(self.keys[key])
        except NotOnNodeError:
            self._new(key)
            return
        end = monotonic_ns()
        number = None if view is None else stamp_of(view.array, self.name(key))
        self._saw(begin, end, key, number, "view")
        if view is not None:
            self.count("views")
            self._views.append((end + self.chance.randrange(_VIEW_NS), key, number or 0, view))

    def _look_at_views(self, now: int | None) -> None:
        """Give the views back that have been held for their time: their bytes must be what they were."""
        kept = []
        for held in self._views:
            release, key, number, view = held
            if now is not None and now < release:
                kept.append(held)
                continue
            if stamp_of(view.array, self.name(key)) != number:
                self.wrong.append(f"a view of key {key} changed while it was held")
            view.release()
        self._views = kept


def make_keys(count: int, ranks: int, buckets: int, seed: int) -> list[int]:
    """Local. Different 128-bit keys, among them pairs with the same bucket and fingerprint."""
    chance = random.Random(seed)
    keys = [chance.getrandbits(128) for _ in range(count)]
    for i in range(0, min(count - 1, 4), 2):
        where = place(keys[i] >> 64, keys[i] & (1 << 64) - 1, ranks, buckets)
        high = chance.getrandbits(64)
        twin = next((low for low in range(_TWIN_TRIES) if place(high, low, ranks, buckets) == where), None)
        if twin is not None:
            keys[i + 1] = high << 64 | twin
    return keys
