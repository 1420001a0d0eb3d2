"""The open segments of a rank: what is asked for before it is read, the plan of a batch, files that come and go."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late_files import LateFiles
from memory_files import MemoryFile, MemoryFiles
from segment_making import RUN, STORE, a_log, random_bytes, record_of

from cascade_mpi.disk.ahead import AHEAD_BYTES, STRETCH_BYTES, Plan
from cascade_mpi.disk.open_segments import NotVisibleError, OpenSegments
from cascade_mpi.errors import DamagedError
from cascade_mpi.layout import DESCRIPTOR, FLAG_DISK, DiskLocation, pack_location
from cascade_mpi.segments.format import PAGE, UNIT, Location, end_of, open_name, sealed_name
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.recovery import recover

LENGTH = 600 << 10


class AskedFile(MemoryFile):
    """A file in memory that notes what it is asked for."""

    def will_need(self, offset: int, nbytes: int) -> None:
        self.files.asked.append((self.path, offset, offset + nbytes))  # type: ignore[attr-defined]


class AskedFiles(MemoryFiles):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int, int]] = []
        self.opens = 0

    def open(self, path: str) -> MemoryFile:
        super().open(path)
        self.opens += 1
        return AskedFile(self, path, self.contents[path])


def a_disk(count: int, segment_bytes: int = 64 << 20, length: int = LENGTH) -> tuple[AskedFiles, list[Location]]:
    files = AskedFiles()
    log = a_log(files, segment_bytes)
    places = [log.append(record_of(number, length), random_bytes(number, length)) for number in range(count)]
    log.close()
    return files, places


def read(segments: OpenSegments, where: Location, number: int, length: int = LENGTH) -> None:
    out, record = np.zeros(length, np.uint8), record_of(number, length)
    key = record.key_hi, record.key_lo
    segments.read(DiskLocation(*where), out.ctypes.data, length, key, record.sequence)
    assert out.tobytes() == random_bytes(number, length)


def covers(asked: list[tuple[str, int, int]]) -> int:
    """Bytes that were asked for, none twice."""
    spans = sorted((path, begin, end) for path, begin, end in asked)
    for (path, _, end), (other, begin, _) in itertools.pairwise(spans):
        assert path != other or end <= begin, "asked for twice"
    return sum(end - begin for _, begin, end in spans)


def described(places: list[Location], length: int = LENGTH) -> np.ndarray[Any, np.dtype[np.void]]:
    made = np.zeros(len(places), DESCRIPTOR)
    made["flags"], made["length"] = FLAG_DISK, length
    made["content_hi"] = [pack_location(*where) for where in places]
    return made


def test_a_plan_is_in_the_order_of_the_files() -> None:
    """Every third record is read: each lies alone."""
    files, places = a_disk(90, segment_bytes=4 << 20)
    segments, places = OpenSegments(files, STORE), places[::3]
    shuffled = np.random.default_rng(3).permutation(30).tolist()
    plan = Plan(segments, described([places[number] for number in shuffled]))
    assert [shuffled[at] for at in plan.order] == list(range(30))
    for at in range(30):
        plan.before(at)
        asked = covers(files.asked)
        assert min((at + 1) * LENGTH, 30 * LENGTH) <= asked <= at * LENGTH + AHEAD_BYTES + 30 * UNIT + LENGTH
    assert covers(files.asked) >= 30 * LENGTH
    assert max(end - begin for _, begin, end in files.asked) <= 1 << 20
    segments.close()


def test_some_of_a_plan_may_be_left_out() -> None:
    files, places = a_disk(90, segment_bytes=4 << 20)
    segments = OpenSegments(files, STORE)
    plan = Plan(segments, described(places[::3]))
    plan.before(2)
    plan.before(29)
    ends = {(path, end) for path, _, end in files.asked}
    first, third, last = ((sealed_name(places[at].segment), end_of(places[at].unit, LENGTH)) for at in (0, 6, 87))
    assert first not in ends
    assert {third, last} <= ends
    segments.close()


@pytest.mark.parametrize("length", [5000, (64 << 10) - 1, 64 << 10, LENGTH, LENGTH + 1])
def test_what_is_read_in_one_go_is_not_asked_for(length: int) -> None:
    """Such a stretch, and one that is too short for it; between them, and behind them, is what nobody reads."""
    long, short = STRETCH_BYTES // length + 1, STRETCH_BYTES // length // 2
    gap = -(-20_000 // length)
    files, places = a_disk(long + gap + short + 1, length=length)
    segments = OpenSegments(files, STORE)
    plan = Plan(segments, described([*places[:long], *places[long + gap :][:short]], length))
    for at in range(len(plan.order)):
        plan.before(at)
    units = [where.unit * UNIT for where in places[long + gap :][:short]]
    begins = sorted(begin for _, begin, _ in files.asked)
    assert [begin for begin in begins if begin in units] == units
    assert not begins or begins[0] == units[0]
    segments.close()


def test_a_plan_with_blocks_that_are_not_on_disk() -> None:
    files, places = a_disk(3)
    segments = OpenSegments(files, STORE)
    given = described([places[2], places[0], places[1]])
    given["flags"][1], given["content_hi"][1], given["length"][1] = 0, 1 << 63, 1 << 62  # in memory since, or gone
    given["content_hi"][2] = pack_location(77, 4)  # of a segment that was removed
    plan = Plan(segments, given)
    assert sorted(plan.order) == [0, 1, 2]
    for at in range(3):
        plan.before(at)
    assert {end for _, _, end in files.asked} >= {end_of(places[2].unit, LENGTH)}
    segments.close()


def test_few_files_stay_open_and_a_forgotten_one_is_opened_again() -> None:
    files, places = a_disk(8, segment_bytes=1 << 20)
    assert len({where.segment for where in places}) == 8
    segments = OpenSegments(files, STORE, most=3)
    for _ in range(2):
        for number, where in enumerate(places):
            read(segments, where, number)
            assert segments.about()["open"] <= 3
    assert (files.opens, segments.opened, segments.bytes_read) == (16, 16, 16 * LENGTH)
    read(segments, places[-1], 7)
    assert segments.opened == 16
    segments.forget(places[-1].segment)
    read(segments, places[-1], 7)
    assert segments.opened == 17
    segments.close()


def test_advice_for_a_real_file_changes_no_byte(tmp_path: Path) -> None:
    from cascade_mpi.segments.files import PosixFiles

    with PosixFiles(tmp_path) as files:
        log = a_log(files, 4 << 20)
        places = [log.append(record_of(number, LENGTH), random_bytes(number, LENGTH)) for number in range(12)]
        log.close()
        segments = OpenSegments(files, STORE)
        plan = Plan(segments, described(places))
        for at, number in enumerate(plan.order):
            plan.before(at)
            read(segments, places[number], number)
        segments.expect(places[0].segment, 0, 1 << 40)  # far beyond its end
        segments.expect(99, 0, 4096)  # there is none
        assert segments.bytes_read == 12 * LENGTH
        segments.close()


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_small_blocks_too(length: int) -> None:
    files, places = a_disk(200, segment_bytes=1 << 20, length=length)
    segments = OpenSegments(files, STORE)
    for number, where in enumerate(places):
        read(segments, where, number, length)
    assert segments.bytes_read == 200 * length
    segments.close()


# ------------------------------------------------------------------- where others' writes are seen late

SIZES = [5000, 70_000, 300_000, 900]


def written(files: MemoryFiles) -> tuple[SegmentLog, list[Location]]:
    """A segment that is still written, with a block of each size."""
    log = a_log(files, 1 << 20)
    return log, [log.append(record_of(at, size), random_bytes(at, size)) for at, size in enumerate(SIZES)]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("pages", [0, 1, 2, 4, 30, 60])
def test_a_tail_that_is_not_seen_is_no_damage_and_is_found_after_the_seal(pages: int, zeros: bool) -> None:
    files = MemoryFiles()
    log, places = written(files)
    late = LateFiles(files, pages * PAGE, zeros=zeros)
    segments = OpenSegments(late, STORE, run=RUN)
    hidden = [end_of(where.unit, size) > pages * PAGE for where, size in zip(places, SIZES, strict=True)]
    assert any(hidden)
    for _ in range(2):
        for at, where in enumerate(places):
            if hidden[at]:
                with pytest.raises(NotVisibleError):
                    read(segments, where, at, SIZES[at])
            else:
                read(segments, where, at, SIZES[at])
    log.close()
    for at, where in enumerate(places):
        read(segments, where, at, SIZES[at])
    segments.close()


def test_a_tail_is_found_when_it_is_seen_and_while_its_segment_is_renamed() -> None:
    files = MemoryFiles()
    log, places = written(files)
    late = LateFiles(files, 2 * PAGE)
    segments = OpenSegments(late, STORE, run=RUN)
    with pytest.raises(NotVisibleError):
        read(segments, places[1], 1, SIZES[1])
    late.seen = 1 << 20
    read(segments, places[1], 1, SIZES[1])
    late.seen = 2 * PAGE
    segments.forget(places[1].segment)
    with pytest.raises(NotVisibleError):
        read(segments, places[1], 1, SIZES[1])
    whole = files.contents.pop(open_name(0))  # neither name is seen
    with pytest.raises(NotVisibleError):
        read(segments, places[1], 1, SIZES[1])
    files.contents[open_name(0)] = whole
    log.close()
    read(segments, places[1], 1, SIZES[1])
    segments.close()


def test_what_is_wrong_in_an_open_segment_is_damage_if_it_cannot_be_late() -> None:
    files = MemoryFiles()
    log, places = written(files)
    data = files.contents[open_name(0)]
    for run, at in ((RUN, places[1].unit * UNIT + 5000), (RUN, places[0].unit * UNIT + 20)):
        data[at] ^= 1
        segments = OpenSegments(files, STORE, run=run)
        for number in range(2):
            if places[number].unit * UNIT <= at < end_of(places[number].unit, SIZES[number]):
                with pytest.raises(DamagedError) as caught:
                    read(segments, places[number], number, SIZES[number])
                assert not isinstance(caught.value, NotVisibleError)
        segments.close()
        data[at] ^= 1
    for run in (RUN + 1, None):  # of an earlier job: nobody writes it now
        segments = OpenSegments(LateFiles(files, 2 * PAGE), STORE, run=run)
        with pytest.raises(DamagedError) as caught:
            read(segments, places[1], 1, SIZES[1])
        assert not isinstance(caught.value, NotVisibleError)
        segments.close()
    log.close()
    files.contents[sealed_name(0)][2 * PAGE :] = bytes(len(files.contents[sealed_name(0)]) - 2 * PAGE)
    segments = OpenSegments(files, STORE, run=RUN)  # sealed: all of it was there
    with pytest.raises(DamagedError) as caught:
        read(segments, places[1], 1, SIZES[1])
    assert not isinstance(caught.value, NotVisibleError)
    segments.close()


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("run", [None, RUN])
def test_what_a_restart_lists_without_a_header_is_read(sealed: bool, run: int | None) -> None:
    """A flush whose rank with the header was killed first; a listed record that is not read hides older ones."""
    files, length = AskedFiles(), 9000
    log = a_log(files)
    places = [log.append(record_of(number, length), random_bytes(number, length)) for number in range(3)]
    if sealed:
        log.close()
    path = sealed_name(0) if sealed else open_name(0)
    files.contents[path][:PAGE] = bytes(PAGE)
    (index,) = recover(files, STORE, sync=False).indexes
    assert len(index.entries) == 3
    segments, unread = OpenSegments(files, STORE, run=run), []
    for number, where in enumerate(places):
        try:
            read(segments, where, number, length)
        except DamagedError as error:
            unread.append(str(error))
    assert not unread
    segments.close()


def test_without_header_and_records_nothing_is_read() -> None:
    files, places = a_disk(1)
    files.contents[sealed_name(0)][:] = bytes(len(files.contents[sealed_name(0)]))
    with pytest.raises(DamagedError, match="no header page"):
        read(OpenSegments(files, STORE), places[0], 0)
