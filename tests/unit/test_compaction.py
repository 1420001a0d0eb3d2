"""Rewriting segments: what is copied and what goes, in which pieces, with which errors, and what stays over time."""

from __future__ import annotations

import errno
import random
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from compacting import Tier
from disk_faults import FailingFiles, Plan
from memory_files import MemoryFiles
from recorded_disk import Disk, RecordingFiles
from segment_making import RUN, STORE, a_log, copy_of, random_bytes, read_back, record_of

from cascade_mpi.errors import DiskFullError, NotDurableError
from cascade_mpi.segments.compaction import SETTLE_RECORDS, Compactor
from cascade_mpi.segments.format import ENTRY_BYTES, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, PAGE, UNIT, Location
from cascade_mpi.segments.log import SEAL_SHARE, SegmentLog
from cascade_mpi.segments.planning import DEAD_SHARE, plan
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.recovery import numbers_in, recover
from cascade_mpi.segments.source import Item
from cascade_mpi.segments.space import SegmentSpace, Space, footprint, footprints


class Notes:
    """A ledger for which only some keys are live, and that takes notes."""

    def __init__(self, live: set[int], needed: set[int] | None = None) -> None:
        self.wanted, self.needed = live, needed or set()
        self.told: list[tuple[Item, Location]] = []
        self.gone: list[int] = []

    def live(self, item: Item) -> bool:
        return item.key_hi in self.wanted and not item.tombstone

    def may_go(self, item: Item) -> bool:
        return item.key_hi not in self.needed

    def moved(self, item: Item, new: Location) -> bool:
        self.told.append((item, new))
        return self.live(item)

    def removed(self, segment: int) -> None:
        self.gone.append(segment)


def a_directory(lengths: list[int], tombstones: list[int] = []) -> MemoryFiles:  # noqa: B006
    """A block of each length, key and sequence as `record_of`, and tombstones of some keys."""
    files = MemoryFiles()
    log = a_log(files)
    for number, length in enumerate(lengths):
        log.append(record_of(number, length), random_bytes(number, length))
    for number in tombstones:
        log.tombstone(number, number * 31 + 7, 1000 + number)
    log.close()
    return files


def a_compactor(files: Any, ledger: Any, **options: Any) -> Compactor:
    log = SegmentLog(files, STORE, count(max(numbers_in(files), default=-1) + 1), RUN + 1, MIN_SEGMENT_BYTES)
    return Compactor(files, STORE, log, ledger, **options)


def finish(compactor: Compactor, nbytes: int = 1 << 20) -> int:
    steps = 1
    while compactor.step(nbytes):
        steps += 1
        assert steps < 10_000
    return steps


def test_what_is_needed_is_copied_as_it_was() -> None:
    lengths = [0, 1, 700, 5000, 15_000, 70_000, 300_000, 10]
    files = a_directory(lengths, [3, 7])
    before, old = read_back(files), sorted(numbers_in(files))
    ledger = Notes({1, 2, 4, 5, 6}, {0, 3})
    compactor = a_compactor(files, ledger)
    compactor.add(old)
    assert compactor.busy == set(old)
    finish(compactor)
    assert ledger.gone == old
    assert not set(old) & numbers_in(files).keys()
    found = recover(files, STORE)
    assert {(item.key_hi, item.tombstone) for item, _ in ledger.told} == {
        (0, False), (1, False), (2, False), (3, False), (3, True), (4, False), (5, False), (6, False),
    }  # fmt: skip
    assert read_back(files, found) == {key: value for key, value in before.items() if key[0] not in (3, 7)}
    for item, new in ledger.told:
        reader = open_segment(files, STORE, new.segment)
        record = reader.record(new.unit, reader.header().place)
        assert (record.key_hi, record.key_lo, record.sequence, record.length) == item[:4]
    assert compactor.done.records == 8
    assert compactor.done.dropped == 2
    assert compactor.done.nbytes == sum(footprint(item.length) for item, _ in ledger.told)
    assert (compactor.done.segments, compactor.damaged) == (len(old), {})


def test_all_fields_of_a_record_are_kept() -> None:
    files = MemoryFiles()
    log = a_log(files)
    fields = {
        "flags": 2, "marks": 1, "dtype": 5, "ndim": 2, "dim0": 3, "dims": (4, 0, 0, 0, 0, 0, 0), "content_hi": 8,
        "content_lo": 9, "namespace": 10, "epoch": 11, "expiry": 12, "depth": 13,
    }  # fmt: skip
    where = log.append(record_of(1, 12, **fields), b"twelve bytes")
    log.close()
    reader = open_segment(files, STORE, where.segment)
    old = reader.record(where.unit, reader.header().place)
    ledger = Notes({1})
    compactor = a_compactor(files, ledger)
    compactor.add([where.segment])
    finish(compactor)
    new = ledger.told[0][1]
    reader = open_segment(files, STORE, new.segment)
    assert reader.record(new.unit, reader.header().place) == old


def test_a_step_is_bounded() -> None:
    """By bytes, but for one record; and what is only looked at counts too."""
    files = a_directory([3000] * 60)
    ledger = Notes(set(range(0, 60, 2)))
    compactor = a_compactor(files, ledger)
    compactor.add(sorted(numbers_in(files)))
    copied = []
    while compactor.step(10_000):
        copied.append(compactor._copied)
    growth = [after - before for before, after in pairwise(copied)]
    assert max(growth) <= 10_000 + footprint(3000)
    assert len(copied) > 8
    assert len(ledger.told) == 30


@pytest.mark.parametrize("settle", [4 << 10, 1 << 30])
def test_copies_are_made_durable_together(settle: int) -> None:
    files = a_directory([700] * 100)
    compactor = a_compactor(files, Notes(set(range(100))), settle_bytes=settle)
    before = files.folder_syncs
    compactor.add(sorted(numbers_in(files)))
    finish(compactor)
    assert (files.folder_syncs - before > 10) == (settle == 4 << 10)
    assert SETTLE_RECORDS > 1000


def test_a_block_that_died_under_way_is_not_named() -> None:
    """It is copied while it lives, deleted before the copy counts: the old file goes, the copy is dead."""
    files, space = a_directory([100, 200]), Space()
    for length in (100, 200):
        space.appended(0, length)
        space.named(0, length)
    ledger = Notes({0, 1})
    compactor = a_compactor(files, ledger, space=space)
    compactor.add([0])
    compactor.step(1 << 20)
    assert not ledger.told
    assert space.held == 2 * UNIT, "copies that nobody knows of yet"
    ledger.wanted.discard(0)  # deleted
    space.unnamed(0, 100)
    finish(compactor)
    assert [item.key_hi for item, _ in ledger.told] == [0, 1]
    assert compactor.done.dead == 1
    assert (space.live, space.held, space.garbage, space.files) == (UNIT, UNIT, 0, 1)
    assert ledger.gone == [0]


def test_a_segment_that_is_written_to_is_refused() -> None:
    files = MemoryFiles()
    log = a_log(files)
    segment = log.append(record_of(1, 10), bytes(10)).segment
    compactor = Compactor(files, STORE, log, Notes(set()))
    assert log.open_segments == {segment}
    with pytest.raises(ValueError, match="still written to"):
        compactor.add([segment])
    log.close()
    assert not log.open_segments
    compactor.add([segment, segment])
    finish(compactor)
    assert not numbers_in(files)


def test_an_unsealed_segment_is_scanned_and_a_stub_goes() -> None:
    files = MemoryFiles()
    log = a_log(files)
    for number in range(3):
        log.append(record_of(number, 500), random_bytes(number, 500))
    log.sync()
    contents = files.contents["segments/0000000000000000.seg.open"]
    files = copy_of(files, **{
        "segments/0000000000000000.seg.open": contents[:-100],  # the last one is torn
        "segments/0000000000000001.seg.open": b"torn header",
    })  # fmt: skip
    ledger = Notes({0, 1, 2})
    compactor = a_compactor(files, ledger)
    compactor.add([0, 1])
    finish(compactor)
    assert [item.key_hi for item, _ in ledger.told] == [0, 1]
    assert ledger.gone == [0, 1]


def test_both_names_of_a_segment_go() -> None:
    files = a_directory([500])
    twice = copy_of(files, **{"segments/0000000000000000.seg.open": files.contents["segments/0000000000000000.seg"]})
    compactor = a_compactor(twice, Notes({0}))
    compactor.add([0])
    finish(compactor)
    assert list(numbers_in(twice)) == [1]
    other = a_directory([600]).contents["segments/0000000000000000.seg"]
    different = copy_of(files, **{"segments/0000000000000000.seg.open": other})
    compactor = a_compactor(different, Notes({0}))
    compactor.add([0])
    finish(compactor)
    assert len(numbers_in(different)[0]) == 2
    assert "another segment has its number" in compactor.damaged[0]


DAMAGES = [(10, "header page"), (PAGE + 300, "payload"), (PAGE + 20, "record's header"), (-10, "trailer page")]


@pytest.mark.parametrize(("at", "what"), DAMAGES)
def test_a_damaged_segment_stays(at: int, what: str) -> None:
    files = a_directory([3000] * 30)
    data = bytearray(files.contents["segments/0000000000000000.seg"])
    data[at] ^= 1
    damaged = copy_of(files, **{"segments/0000000000000000.seg": data})
    expected = read_back(damaged)
    space, ledger = Space(), Notes(set(range(30)))
    for number, _ in enumerate([0, 1]):
        space.appended(number, 3000)
    compactor = a_compactor(damaged, ledger)
    compactor.add([0, 1])
    finish(compactor)
    assert damaged.contents["segments/0000000000000000.seg"] == data
    assert ledger.gone == [1]
    assert what in compactor.damaged[0]
    assert read_back(damaged) == expected
    compactor.add([0])
    assert not compactor.busy, "it is not looked at again"


def test_damage_behind_good_records() -> None:
    """The good ones before it were copied and count there; the others stay where they are."""
    files = a_directory([3000] * 10)
    data = files.contents["segments/0000000000000000.seg"]
    data[PAGE + 5 * 4096 + 300] ^= 1
    space, ledger = Space(), Notes(set(range(10)))
    for _ in range(10):
        space.appended(0, 3000)
        space.named(0, 3000)
    compactor = a_compactor(files, ledger, space=space)
    compactor.add([0])
    finish(compactor)
    assert [item.key_hi for item, _ in ledger.told] == [0, 1, 2, 3, 4]
    assert not ledger.gone
    assert 0 in numbers_in(files)
    assert "payload" in space.segments[0].kept
    assert (space.segments[0].live, space.segments[0].garbage) == (5 * footprint(3000), 5 * footprint(3000))


# Errors


def a_recorded_directory(lengths: list[int]) -> RecordingFiles:
    memory = a_directory(lengths)
    return RecordingFiles(Disk({path: bytes(data) for path, data in memory.contents.items()}, ["segments"]))


def test_a_full_disk_is_made_room_on_first() -> None:
    """The first copies, and segments without any, go before it is an error; then the same item is tried again."""
    files = a_recorded_directory([3000] * 60)
    numbers = sorted(numbers_in(files))
    fault = Plan(errno.ENOSPC, 12, kinds=frozenset({"write_at"}), for_ever=True)
    ledger = Notes(set(range(60)))
    compactor = a_compactor(FailingFiles(files, fault), ledger)
    compactor.add(numbers)
    with pytest.raises(DiskFullError, match="make room"):
        finish(compactor, 1 << 30)
    told = len(ledger.told)
    assert told == 11
    assert not ledger.gone
    fault.kinds = frozenset()  # somebody made room
    finish(compactor)
    assert [item.key_hi for item, _ in ledger.told] == list(range(60))
    assert ledger.gone == numbers


def test_a_failed_sync_keeps_the_segments_of_lost_copies() -> None:
    files = a_recorded_directory([3000] * 5)
    fault = Plan(errno.EIO, 0, kinds=frozenset({"sync"}))
    failing = FailingFiles(files, fault)
    ledger, log = Notes(set(range(5))), a_log(failing, numbers=count(5))
    compactor = Compactor(failing, STORE, log, ledger)
    compactor.add([0])
    compactor.step(1 << 20)
    mine = log.append(record_of(9, 50), bytes(50))
    with pytest.raises(NotDurableError) as caught:
        finish(compactor)
    assert [each.location for each in caught.value.lost] == [mine], "that of others, and no copy"
    assert (ledger.told, ledger.gone, compactor.busy) == ([], [], frozenset())
    assert log.unsure == {mine.segment}
    compactor.add([0, mine.segment])
    finish(compactor)
    assert ledger.gone == [0, mine.segment]
    assert log.unsure == set()
    assert {item.key_hi for item, _ in ledger.told} == set(range(5))


def test_a_sync_of_the_log_s_owner_that_fails() -> None:
    """He hears of his own records; the compaction hears of its copies by itself."""
    files = a_recorded_directory([3000] * 5)
    failing = FailingFiles(files, Plan(errno.EIO, 0, kinds=frozenset({"sync"})))
    ledger, log = Notes(set(range(5))), a_log(failing, numbers=count(5))
    compactor = Compactor(failing, STORE, log, ledger)
    compactor.add([0])
    compactor.step(1 << 20)
    mine = log.append(record_of(9, 50), bytes(50))
    with pytest.raises(NotDurableError) as caught:
        log.sync()
    assert len(caught.value.lost) == 6
    assert [each.location for each in compactor.foreign(caught.value.lost)] == [mine]
    finish(compactor)
    assert (ledger.told, ledger.gone) == ([], [])
    assert 0 in numbers_in(files)


def test_a_removal_is_told_when_it_is_durable() -> None:
    """After a failed sync of the folder it never is: a later one says nothing about these names."""
    files = a_recorded_directory([3000] * 30)
    fault = Plan(errno.EIO, 0, kinds=frozenset({"remove"}))
    ledger = Notes(set())
    compactor = a_compactor(FailingFiles(files, fault), ledger)
    compactor.add([0])
    with pytest.raises(OSError, match="EIO"):
        finish(compactor)
    assert compactor.busy == {0}
    finish(compactor)  # tried again
    assert ledger.gone == [0]
    fault.kinds, fault.calls = frozenset({"sync_folder"}), []
    compactor.add([1])
    with pytest.raises(OSError, match="EIO"):
        finish(compactor)
    assert 1 not in numbers_in(files)
    compactor.add([2] if 2 in numbers_in(files) else [])
    finish(compactor)
    assert 1 not in ledger.gone


def test_giving_up_leaves_everything_where_it_is() -> None:
    files = a_directory([3000] * 30)
    before, numbers = read_back(files), sorted(numbers_in(files))
    ledger, space = Notes(set(range(30))), Space()
    compactor = a_compactor(files, ledger, space=space)
    compactor.add(numbers)
    compactor.step(30_000)
    compactor.give_up()
    assert (compactor.busy, ledger.told, ledger.gone) == (frozenset(), [], [])
    assert compactor._log.unsure == {numbers[-1] + 1}
    assert (space.held, space.garbage > 0) == (0, True)
    assert read_back(files) == before
    assert not compactor.step(1 << 20)


# Over time


def churn(rounds: int, keys: int, **options: Any) -> Tier:
    """Puts and deletes of few keys over and over, with a compaction that follows."""
    tier = Tier(Disk(), 1, ranks=1, files=lambda number: MemoryFiles(), keys=keys, **options)
    rank, chance = tier.ranks[0], random.Random(2)
    for turn in range(rounds):
        for _ in range(20):
            key = 7, int(chance.random() ** 2 * keys)  # some much more often than others
            tier.write(rank, key, None if chance.random() < 0.1 else chance.randbytes(chance.choice((100, 900, 4000))))
        rank.settle(rank.log.sync)
        rank.begin()
        while rank.compactor.step(64 << 10):
            pass
        rank.release()
        tier.disk.trace.clear()
        space = rank.space
        dead = space.garbage + space.held
        written = rank.busy()
        loose = sum(each.garbage + each.held for number, each in space.segments.items() if number in written)
        assert dead - loose <= DEAD_SHARE * space.live, f"round {turn}: {dead} dead, {space.live} live"
    return tier


@pytest.mark.parametrize("one_log", [True, False])
def test_dead_bytes_stay_below_half_of_the_live_ones(one_log: bool) -> None:
    tier = churn(250, 400, one_log=one_log, segment_bytes=128 << 10, settle_bytes=32 << 10)
    rank = tier.ranks[0]
    tier.check()
    done = rank.compactor.done
    written = sum(len(value) for value in tier.values.values())
    assert done.segments > 20
    assert rank.space.garbage <= DEAD_SHARE * rank.space.live
    sizes = [len(data) for path, data in rank.clean.contents.items()]
    assert sum(sizes) <= rank.space.size
    assert sum(sizes) < 3 * written + (1 << 20)
    print(done, rank.space.files, rank.space.live, rank.space.garbage, rank.space.tombstones)


class Counted:
    """The account of one rank whose blocks are only counted, as its log and a compaction would lay them out."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.space, self.numbers = Space(), count(rank, ranks)
        self.current = next(self.numbers)

    def add(self, keys: Any, where: Any, nbytes: Any) -> None:
        """Append these blocks, a segment after the other."""
        while keys.size:
            segment = self.space.segments.setdefault(self.current, SegmentSpace(0, records=2))
            fits = np.cumsum(nbytes[keys] + ENTRY_BYTES) <= MAX_SEGMENT_BYTES - segment.size
            mine, keys = keys[: fits.sum()], keys[fits.sum() :]
            self.change(self.current, int(nbytes[mine].sum()), 0)
            where[mine] = self.current
            if keys.size:
                self.seal()

    def change(self, number: int, live: int, garbage: int) -> None:
        segment, space = self.space.segments[number], self.space
        space._add(segment, -1)
        segment.live += live
        segment.garbage += garbage
        segment.size += live + garbage
        space._add(segment, 1)

    def seal(self) -> None:
        self.current = next(self.numbers)

    def sync(self) -> None:
        found = self.space.segments.get(self.current)
        if found is not None and found.size > MAX_SEGMENT_BYTES // SEAL_SHARE:
            self.seal()

    def compact(self, where: Any, nbytes: Any, most_files: int | None) -> int:
        chosen = plan(self.space, busy={self.current}, most_files=most_files)
        moved = np.flatnonzero(np.isin(where, chosen))
        self.add(moved, where, nbytes)
        for number in chosen:
            self.space.removed(number)
        return int(nbytes[moved].sum())


@pytest.mark.parametrize(("largest", "most_files"), [(3000, None), (230 << 10, 14)], ids=["small", "large"])
def test_ten_to_the_six_blocks_are_at_most_a_thousand_files(largest: int, most_files: int | None) -> None:
    """At a fourth of that: 16 ranks, blocks replaced four times over, a sync each round and a new job every ten.

    0.5 GiB of small ones, or 27 GiB of large ones, where a sync leaves segments a third full.
    """
    blocks, ranks, limit, chance = 250_000, 16, 250, np.random.default_rng(1)
    batch_size = blocks // 20
    where, nbytes = np.full(blocks, -1), footprints(chance.integers(0, largest, blocks).astype(np.uint64))
    each = [Counted(rank, ranks) for rank in range(ranks)]
    files, dead, copied, written = [], [], 0, 0
    for turn in range(100):
        batch = np.arange(turn * batch_size, (turn + 1) * batch_size)
        if turn >= 20:
            batch = chance.integers(0, blocks, batch_size)
        batch = np.unique(batch)
        old = batch[where[batch] >= 0]
        for number in np.unique(where[old]):
            gone = int(nbytes[old[where[old] == number]].sum())
            each[number % ranks].change(int(number), -gone, 0)
            each[number % ranks].change(int(number), 0, gone)
        where[old] = -1
        written += int(nbytes[batch].sum())
        for rank, mine in enumerate(np.array_split(chance.permutation(batch), ranks)):
            each[rank].add(mine, where, nbytes)
            if turn % 10 == 9:
                each[rank].seal()
            each[rank].sync()
            copied += each[rank].compact(where, nbytes, most_files)
        files.append(sum(rank.space.files for rank in each))
        dead.append(sum(rank.space.garbage for rank in each) / sum(rank.space.live for rank in each))
        assert sum(rank.space.live for rank in each) == int(nbytes[where >= 0].sum())
    print(max(files), files[-1], max(dead), copied / written)
    assert max(files) <= limit
    assert max(dead) <= DEAD_SHARE
    assert copied < 2 * written
