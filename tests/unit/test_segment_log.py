"""The log of segments: what is appended is found, where and in what order files are written, and what a failure leaves.

Power losses and a fault at every call are in `test_segment_power_loss`.
"""

from __future__ import annotations

import errno
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_files import MemoryFiles
from segment_making import FIRST, RUN, STORE, a_log, a_store, random_bytes, read_back, record_of

from cascade_mpi.errors import BufferSizeError, DamagedError, DiskError, NotDurableError, StoreClosedError
from cascade_mpi.kernels.checksum import checksum_twin
from cascade_mpi.layout import FLAG_CHECKSUM
from cascade_mpi.segments import format as f
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.log import MAX_FULL, SegmentLog
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.recovery import SegmentIndex, latest, numbers_in, recover

PLACE = f.Place(STORE, 0, RUN)


class Faulty(MemoryFiles):
    """Calls of one kind fail while `failing` says so."""

    failing = ""

    def check(self, kind: str) -> None:
        if kind == self.failing:
            raise DiskError(errno.EIO, f"{kind} failed on purpose")

    def create(self, path: str) -> Any:
        self.check("create")
        file = super().create(path)
        write_at, sync = file.write_at, file.sync

        def failing_write(offset: int, *parts: bytes) -> None:
            if self.failing == "write":
                write_at(offset, *(bytes(part)[: len(part) // 2] for part in parts))
            self.check("write")
            write_at(offset, *parts)

        def failing_sync() -> None:
            self.check("sync")
            sync()

        file.write_at, file.sync = failing_write, failing_sync  # type: ignore[method-assign]
        return file

    def rename(self, old: str, new: str) -> None:
        self.check("rename")
        super().rename(old, new)

    def sync_folder(self, path: str) -> None:
        self.check("sync_folder")
        super().sync_folder(path)


def test_what_was_appended_is_read_by_anybody_at_its_place(tmp_path: Path) -> None:
    sizes = [0, 1, 5000, f.LARGE - 1, f.LARGE, 300_000, 70_000]
    with PosixFiles(tmp_path) as files:
        log = a_log(files, 1 << 20)
        places = [log.append(record_of(n, size), random_bytes(n, size)) for n, size in enumerate(sizes)]
        assert places[5] == (1, 7), "larger than a fourth: a segment of its own"
        assert places[6].segment == 0
        reader = open_segment(files, STORE, 0)
        for number, (where, size) in enumerate(zip(places, sizes, strict=True)):
            out = bytearray(b"?" * (size + 100_000))
            source = reader if where.segment == 0 else open_segment(files, STORE, where.segment)
            record = source.read(where.unit, PLACE._replace(segment=where.segment), memoryview(out))
            payload = random_bytes(number, size)
            assert out == payload + b"?" * 100_000
            assert record.checksum == checksum_twin(np.frombuffer(payload, np.uint8))
            assert record == record_of(number, size, flags=FLAG_CHECKSUM, checksum=record.checksum)
        log.close()
        assert files.names("segments") == ["0000000000000000.seg", "0000000000000001.seg"]
        assert read_back(files) == {
            (record_of(n, 0).key_hi, record_of(n, 0).key_lo): random_bytes(n, size) for n, size in enumerate(sizes)
        }


def test_a_checksum_that_the_block_has_is_taken_and_so_finds_what_changed_in_memory() -> None:
    files = MemoryFiles()
    log = a_log(files)
    where = log.append(record_of(1, 4, flags=FLAG_CHECKSUM | 2, checksum=12345), b"abcd")
    log.close()
    with pytest.raises(DamagedError, match="not what was written"):
        open_segment(files, STORE, 0).read(where.unit, PLACE, memoryview(bytearray(4)))


@pytest.mark.parametrize("length", [300, 70_000])
def test_a_read_checks_key_sequence_and_room(length: int) -> None:
    files = MemoryFiles()
    log = a_log(files, 1 << 20)
    where = log.append(record_of(1, length), random_bytes(1, length))
    log.close()
    reader, out = open_segment(files, STORE, 0), memoryview(bytearray(length))
    reader.read(where.unit, PLACE, out, key=(1, 38), sequence=2)
    with pytest.raises(DamagedError, match="another key"):
        reader.read(where.unit, PLACE, out, key=(1, 39))
    with pytest.raises(DamagedError, match="sequence 2, not 3"):
        reader.read(where.unit, PLACE, out, sequence=3)
    with pytest.raises(BufferSizeError, match=f"a block of {length} bytes, the buffer has {length - 1}"):
        reader.read(where.unit, PLACE, out[:-1])
    for unit in (0, 1, where.unit + 1, 1 << 31, 1 << 40):
        with pytest.raises(DamagedError):
            reader.read(unit, PLACE, out)


def test_an_index_is_read_in_two_reads_at_most() -> None:
    for records, reads in ((1, 1), (450, 1), (2000, 2)):
        files, _ = a_store([10] * records, segment_bytes=8 << 20)
        reader = open_segment(files, STORE, 0)
        files.reads = 0
        footer = reader.footer()
        assert len(footer.entries) == records
        assert files.reads == reads
        files.reads = 0
        assert len(recover(files, STORE).indexes[0].entries) == records
        assert files.reads == reads


def test_segments_are_no_larger_than_they_may_be_and_sealed_when_full() -> None:
    files, contents = a_store([700] * 300 + [20_000] * 5)
    assert len(files.contents) > 4
    assert all(len(data) <= f.MIN_SEGMENT_BYTES for data in files.contents.values())
    assert all(path.endswith(".seg") for path in files.contents)
    assert read_back(files) == contents


def test_a_sync_makes_durable_in_the_right_order_and_seals_only_what_is_worth_it() -> None:
    files = MemoryFiles()
    log = a_log(files, 1 << 20)
    log.append(record_of(5, 100), bytes(100))
    assert (files.syncs, log.pending) == (0, 356)
    assert log.sync() == 6
    assert (files.syncs, log.pending, list(files.contents)) == (1, 0, [FIRST + ".open"])
    folder_syncs = files.folder_syncs
    assert log.sync() == 6
    assert files.syncs == 1, "nothing new: nothing is synced"
    log.append(record_of(2, 100), bytes(100))
    assert log.sync() == 6, "the highest so far"
    assert (files.syncs, files.folder_syncs) == (2, folder_syncs), "its name is durable already"
    log.append(record_of(7, 200_000), bytes(200_000))
    log.sync()
    assert list(files.contents) == [FIRST], "more than an eighth full"
    log.append(record_of(8, 10), bytes(10))
    log.seal()
    assert list(files.contents) == [FIRST, FIRST.replace("0.seg", "1.seg")]
    assert log.close() == 9
    with pytest.raises(StoreClosedError):
        log.append(record_of(9, 0), b"")
    assert log.close() == 9


def test_full_segments_do_not_pile_up() -> None:
    files = MemoryFiles()
    log = a_log(files)
    for number in range(100):
        log.append(record_of(number, 20_000), bytes(20_000))  # each has a segment of its own
        assert sum(path.endswith(".open") for path in files.contents) <= MAX_FULL + 1
    assert log.pending <= (MAX_FULL + 1) * 20_256


def test_a_failed_write_stores_nothing_and_its_file_is_not_written_to_again() -> None:
    files = Faulty()
    log = a_log(files)
    log.append(record_of(1, 500), b"a" * 500)
    files.failing = "write"
    for number in (2, 3, 4):
        with pytest.raises(DiskError, match="on purpose"):
            log.append(record_of(number, 500), bytes(500))
    files.failing = ""
    where = log.append(record_of(5, 500), b"b" * 500)
    assert where.segment > 0
    assert log.close() == 6
    assert read_back(files) == {(1, 38): b"a" * 500, (5, 162): b"b" * 500}
    assert len(files.contents) == 2, "what a failed write began is removed"


def test_a_failed_create_stores_nothing() -> None:
    files = Faulty()
    log = a_log(files)
    log.append(record_of(1, 500), b"a" * 500)
    files.failing = "create"
    with pytest.raises(DiskError, match="on purpose"):
        log.append(record_of(2, 60_000), bytes(60_000))
    files.failing = ""
    log.append(record_of(3, 500), b"c" * 500)
    log.close()
    assert read_back(files).keys() == {(1, 38), (3, 100)}


@pytest.mark.parametrize("failing", ["sync", "sync_folder"])
def test_what_a_failed_sync_left_is_reported_once_and_never_counts(failing: str) -> None:
    files = Faulty()
    log = a_log(files)
    log.append(record_of(1, 500), b"a" * 500)
    if failing == "sync":
        log.sync()  # this one is safe whatever comes
    log.append(record_of(2, 500), b"b" * 500)
    files.failing = failing
    with pytest.raises(NotDurableError, match=r"write them again: .* on purpose") as caught:
        log.sync()
    lost = [each.sequence for each in caught.value.lost]
    assert lost == ([3] if failing == "sync" else [2, 3])
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EIO
    assert log.highest == (2 if failing == "sync" else 0)
    files.failing = ""
    assert log.sync() == log.highest, "they are named once, and a sync that works now says nothing about them"
    where = log.append(record_of(2, 500), b"b" * 500)
    assert where.segment == 1, "never again into the file whose sync failed"
    assert log.close() == 3
    assert read_back(files)[2, 69] == b"b" * 500


def test_a_failed_sync_of_a_full_segment_is_told_by_the_next_sync() -> None:
    files = Faulty()
    log = a_log(files)
    files.failing = "sync"
    for number in range(2 * MAX_FULL):
        log.append(record_of(number, 20_000), bytes(20_000))
    files.failing = ""
    with pytest.raises(NotDurableError) as caught:
        log.sync()
    durable = {record_of(n, 0).key_hi for n in range(2 * MAX_FULL)} - {each.key_hi for each in caught.value.lost}
    assert len(caught.value.lost) == MAX_FULL + 1
    assert log.highest == max(durable) + 1


@pytest.mark.parametrize("failing", ["rename", "write"])
def test_a_segment_that_cannot_be_sealed_is_found_all_the_same(failing: str) -> None:
    files = Faulty()
    log = a_log(files)
    log.append(record_of(1, 30_000), b"a" * 15_000 + b"b" * 15_000)
    files.failing = failing
    assert log.sync() == 2, "durable, sealed or not"
    assert log.unsealed == 1
    files.failing = ""
    log.append(record_of(2, 10), b"c" * 10)
    log.close()
    assert len(read_back(files)) == 2
    assert FIRST + ".open" in files.contents


def test_a_number_that_was_used_is_refused() -> None:
    files, contents = a_store([10])
    log = SegmentLog(files, STORE, iter([0, 1]), RUN, f.MIN_SEGMENT_BYTES)
    with pytest.raises(ValueError, match="there already"):
        log.append(record_of(9, 0), b"")
    assert read_back(files) == contents


@pytest.mark.parametrize("size", [f.MIN_SEGMENT_BYTES - 1, f.MAX_SEGMENT_BYTES + 1])
def test_the_size_of_segments_is_checked(size: int) -> None:
    with pytest.raises(ValueError, match="segment_bytes"):
        a_log(MemoryFiles(), size)


def test_the_newest_record_of_a_key_counts_wherever_it_stands() -> None:
    files = MemoryFiles()
    first, second = a_log(files, numbers=count(0, 2)), a_log(files, numbers=count(1, 2))
    second.append(record_of(1, 3, sequence=20), b"new")
    first.append(record_of(1, 3, sequence=10), b"old")
    first.append(record_of(2, 3, sequence=11), b"two")
    second.tombstone(2, 69, 12)
    first.tombstone(3, 100, 1)
    second.append(record_of(3, 5, sequence=2), b"again")
    first.close(), second.close()
    assert read_back(files) == {(1, 38): b"new", (3, 100): b"again"}
    found = latest(recover(files, STORE).indexes)
    assert (len(found.blocks), len(found.tombstones), found.superseded) == (2, 1, 3)
    halves = [recover(files, STORE, share=(part, 2), numbers=numbers_in(files)) for part in (0, 1)]
    assert [index.segment for half in halves for index in half.indexes] == [0, 1]
    assert {half.next_segment for half in halves} == {2}


def test_of_the_same_sequence_a_tombstone_counts_then_the_higher_segment() -> None:
    def index(segment: int, *rows: tuple[int, int, int]) -> SegmentIndex:
        entries = np.zeros(len(rows), f.ENTRY)
        for at, (key, sequence, kind) in enumerate(rows):
            entries[at]["key_lo"], entries[at]["sequence"], entries[at]["kind"] = key, sequence, kind
            entries[at]["unit"] = 4 + at
        return SegmentIndex(segment, "", PLACE, 0, True, True, entries)

    block, dead = f.BLOCK, f.TOMBSTONE
    found = latest([index(9, (1, 5, block), (2, 5, dead)), index(3, (1, 5, block), (2, 5, block), (4, 1, block))])
    assert [(int(row["key_lo"]), int(row["segment"])) for row in found.blocks] == [(4, 3), (1, 9)]
    assert [int(row["key_lo"]) for row in found.tombstones] == [2]
    assert latest([]).superseded == 0


def test_random_keys_have_the_record_that_a_dictionary_has() -> None:
    chance = np.random.default_rng(1)
    indexes, newest = [], {}
    for segment in range(7):
        entries = np.zeros(500, f.ENTRY)
        entries["key_hi"], entries["key_lo"] = chance.integers(0, 3, 500), chance.integers(0, 200, 500)
        entries["sequence"], entries["kind"] = chance.permutation(500) * 7 + segment, chance.integers(1, 3, 500)
        entries["unit"] = np.arange(500)
        indexes.append(SegmentIndex(segment, "", PLACE, 0, True, True, entries))
        for row in entries:
            key = int(row["key_hi"]), int(row["key_lo"])
            newest[key] = max(newest.get(key, (0, 0)), (int(row["sequence"]), int(row["kind"])))
    found = latest(indexes)
    for rows, kind in ((found.blocks, f.BLOCK), (found.tombstones, f.TOMBSTONE)):
        got = {(int(row["key_hi"]), int(row["key_lo"])): int(row["sequence"]) for row in rows}
        assert got == {key: sequence for key, (sequence, its) in newest.items() if its == kind}


def test_what_a_scan_found_is_synced_before_it_is_used() -> None:
    files, _ = a_store([10, 20], seal=False)
    files.syncs = files.folder_syncs = 0
    assert recover(files, STORE).indexes[0].durable
    assert (files.syncs, files.folder_syncs) == (1, 1)
    files.syncs = files.folder_syncs = 0
    recover(files, STORE, sync=False)
    assert (files.syncs, files.folder_syncs) == (0, 0)


def test_names_and_a_footer_without_a_sealed_name_are_synced_before_they_are_used() -> None:
    files, _ = a_store([10, 20])
    files.syncs = files.folder_syncs = 0
    recover(files, STORE)
    assert (files.syncs, files.folder_syncs) == (0, 1)
    files.rename(f.sealed_name(0), f.open_name(0))
    assert recover(files, STORE).indexes[0].sealed
    assert (files.syncs, files.folder_syncs) == (1, 2)
    recover(files, STORE, share=(1, 2), numbers=numbers_in(files))
    assert (files.syncs, files.folder_syncs) == (1, 2)


def test_a_store_without_segments_is_empty() -> None:
    assert recover(MemoryFiles(), STORE) == ([], [], 0, [])


def test_a_segment_that_is_sealed_meanwhile_is_found_under_its_other_name() -> None:
    files, contents = a_store([10, 20], seal=False)
    names = files.names

    def listed_before(folder: str) -> list[str]:
        listed = names(folder)
        if FIRST + ".open" in files.contents:
            files.rename(FIRST + ".open", FIRST)
        return listed

    files.names = listed_before  # type: ignore[method-assign]
    found = recover(files, STORE)
    assert found.indexes[0].path == FIRST
    assert read_back(files, found) == contents
