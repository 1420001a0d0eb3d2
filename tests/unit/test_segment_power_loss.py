"""What the log of segments promised is there after a power loss, whatever the disk made of the rest; and after faults.

Several writers, each on a node of its own, put, replace and delete the same keys, sync and seal. The disk is that of
`power_loss`.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from disk_faults import FailingFiles, MutantFiles, Plan
from power_loss import Outcome, survey, survey_all
from promises import Acknowledged, Attempt, acknowledged
from recorded_disk import Disk, Event, RecordingFiles

from cascade_mpi.errors import CascadeError, DamagedError, DiskError, NotDurableError
from cascade_mpi.segments import epochs
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import FOLDER, MIN_SEGMENT_BYTES, PAGE, TRAILER_MAGIC, sealed_name
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.offline import compact_directory
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import Recovery, latest, recover

STORE = bytes(range(16))
KEYS = 5
FOLDER_SYNC = "sync_folder", FOLDER
Key = tuple[int, int]


class Writer:
    """A rank: its log, and what it wrote and does not know to be durable."""

    def __init__(self, files: Any, number: int, ranks: int, base: int, run: int) -> None:
        self.log = SegmentLog(files, STORE, count(base + number, ranks), run, MIN_SEGMENT_BYTES, writer=number)
        self.open: dict[int, tuple[Key, bytes | None]] = {}  # by sequence


class Job:
    """The writers of a job, and the notes of what they try and what they may promise."""

    def __init__(
        self,
        disk: Disk,
        seed: int,
        *,
        ranks: int = 3,
        wrap: Callable[[RecordingFiles], Any] = lambda files: files,
        base: int = 0,
        run: int = 1,
        sequence: int = 0,
        one_node: bool = False,
    ) -> None:
        self.disk, self.chance, self.sequence = disk, random.Random(seed), sequence
        self.errors: list[OSError] = []
        self.writers = [
            Writer(wrap(RecordingFiles(disk, 0 if one_node else rank)), rank, ranks, base, run) for rank in range(ranks)
        ]

    def work(self, operations: int, *, syncs: float = 0.12, small: float = 0.0, close: bool = True) -> None:
        for _ in range(operations):
            writer, what = self.chance.choice(self.writers), self.chance.random()
            if what < syncs:
                self.settle(writer, writer.log.sync)
            elif what < syncs + 0.03:
                self.settle(writer, writer.log.seal)
            else:
                key = 7, self.chance.randrange(KEYS)
                sizes = (1, 40, 300, 700, 2500, 5000) if self.chance.random() < 0.95 else (0, 17_000, 66_000)
                sizes = (40, 300) if self.chance.random() < small else sizes
                value = None if self.chance.random() < 0.2 else self.chance.randbytes(self.chance.choice(sizes))
                self.write(writer, key, value)
        for writer in self.writers if close else ():
            self.settle(writer, writer.log.close)

    def write(self, writer: Writer, key: Key, value: bytes | None) -> None:
        self.sequence += 1
        sequence = self.sequence << 12 | self.writers.index(writer)
        self.disk.note(Attempt(key, sequence, value))
        try:
            if value is None:
                writer.log.tombstone(*key, sequence)
            else:
                record = Record(key_hi=key[0], key_lo=key[1], sequence=sequence, length=len(value))
                writer.log.append(record, value)
        except OSError as error:
            self.errors.append(error)
        else:
            writer.open[sequence] = key, value

    def settle(self, writer: Writer, act: Callable[[], int]) -> None:
        """Acknowledge what was written and is not named as lost; write that again."""
        lost: set[int] = set()
        try:
            act()
        except NotDurableError as error:
            self.errors.append(error)
            lost = {each.sequence for each in error.lost}
            assert lost <= writer.open.keys(), "lost is what was never written, or was acknowledged"
        written, writer.open = writer.open, {}
        self.disk.note(Acknowledged(tuple((written[each][0], each) for each in written if each not in lost)))
        for each in sorted(lost):
            with suppress(CascadeError):  # closed
                self.write(writer, *written[each])


def found_in(files: Any) -> tuple[dict[Key, bytes], list[str]]:
    """What a later job reads, and why it is refused: nothing that a power loss leaves is a reason."""
    recovery = recover(files, STORE)
    return read_all(files, recovery), recovery.problems


def read_all(files: Any, recovery: Recovery) -> dict[Key, bytes]:
    places = {index.segment: index.place for index in recovery.indexes}
    found = {}
    for row in latest(recovery.indexes).blocks:
        key, out = (int(row["key_hi"]), int(row["key_lo"])), bytearray(int(row["length"]))
        segment = int(row["segment"])
        reader = open_segment(files, STORE, segment)
        with suppress(DamagedError):
            reader.read(int(row["unit"]), places[segment], memoryview(out), key=key, sequence=int(row["sequence"]))
            found[key] = bytes(out)
        reader.close()
    return found


def judge(files: RecordingFiles, notes: tuple[Any, ...]) -> list[str]:
    found, problems = found_in(files)
    # A power loss is no damage: what has a sealed segment's name is whole.
    return acknowledged(found, notes) + [f"damage: {problem}" for problem in problems]


def words(outcome: Outcome) -> set[str]:
    """Of what kinds the complaints are."""
    text = str(outcome)
    return {word for word in ("lost", "wrong", "foreign", "stale", "resurrected", "damage") if f"{word}" in text}


@pytest.mark.parametrize("seed", range(10))
def test_nothing_that_was_promised_is_lost(seed: int) -> None:
    """10 x 1,100 different states."""
    disk = Disk()
    Job(disk, seed).work(36)
    outcome = survey(disk, judge, seed=seed, count=1_100)
    assert not outcome.bad, str(outcome)
    assert outcome.different == 1_100, str(outcome)
    print(outcome, len(disk.trace))


# What must be found when it is left out

SYNCS = [
    ("sync", "_settle", {"lost", "stale", "resurrected"}),
    ("sync folder", "_settle", {"lost", "stale", "resurrected"}),
    ("sync folder", "_create", {"lost"}),
    ("sync", "_seal", {"damage"}),
]


def is_sync(event: Event, kind: str, place: str) -> bool:
    return event.kind == kind and event.note == place


@pytest.mark.parametrize(("kind", "place", "expected"), SYNCS)
def test_a_sync_that_is_left_out_is_found(kind: str, place: str, expected: set[str]) -> None:
    disk = Disk()
    Job(disk, 3).work(60)
    before = len(disk.trace)
    disk.trace = [event for event in disk.trace if not is_sync(event, kind, place)]
    assert len(disk.trace) < before, "the log calls it elsewhere now: name that place"
    outcome = survey(disk, judge, seed=1, count=4_000)
    assert outcome.bad, str(outcome)
    assert words(outcome) & expected, str(outcome)


@pytest.mark.parametrize(("kind", "place"), [("sync", "_settle"), ("sync folder", "_settle"), ("sync", "_seal")])
def test_a_single_sync_that_is_left_out_is_found(kind: str, place: str) -> None:
    """Not each of them is needed: the seal of the same call may cover it. One rank, or another may."""
    found, disk = 0, Disk()
    Job(disk, 4, ranks=1).work(40, syncs=0.25, small=1.0)
    whole = disk.trace
    places = [at for at, event in enumerate(whole) if is_sync(event, kind, place)]
    for at in places[:6]:
        disk.trace = whole[:at] + whole[at + 1 :]
        found += bool(survey(disk, judge, seed=at, count=200, enough=1, moments=range(at, at + 12)).bad)
    print(kind, place, found, "of", len(places))
    assert found > 0, f"{found} of {len(places)}"


def test_a_footer_before_its_records_is_found() -> None:
    disk = Disk()
    Job(disk, 3).work(60)
    moved = 0
    for footer in [event for event in disk.trace if event.data[-PAGE : -PAGE + 8] == TRAILER_MAGIC]:
        trace, inode = disk.trace, footer.inode
        at = trace.index(footer)
        its_sync = next(event for event in trace[at:] if event.kind == "sync" and event.inode == inode)
        synced = [
            position for position in range(at) if trace[position].kind == "sync" and trace[position].inode == inode
        ]
        since = synced[-2] if len(synced) > 1 else 0  # the last one is that of the records
        records = [
            event for event in trace[since:at] if event.kind == "write" and event.inode == inode and event.offset
        ]
        if records:
            trace.remove(footer)
            trace.pop(next(position for position in range(at, len(trace)) if trace[position] is its_sync))
            first = next(position for position, event in enumerate(trace) if event is records[0])
            trace[first:first] = [footer, its_sync]
            moved += 1
    assert moved > 5
    outcome = survey(disk, judge, seed=1, count=4_000)
    assert outcome.bad, str(outcome)
    assert words(outcome) & {"lost", "stale", "resurrected"}, str(outcome)


def test_the_folder_sync_after_a_seal_carries_no_promise() -> None:
    """Either name will do. Whoever removes older segments in favour of a sealed one needs it."""
    disk = Disk()
    Job(disk, 3).work(60)
    disk.trace = [event for event in disk.trace if not is_sync(event, "sync folder", "_seal")]
    outcome = survey(disk, judge, seed=1, count=3_000)
    assert not outcome.bad, str(outcome)


# Jobs that follow each other


@pytest.mark.parametrize("seed", range(6))
def test_what_a_restart_found_stays_found(seed: int) -> None:
    """A job is killed, which leaves the page cache; the next one reads, works on, is killed; then the power goes.

    All on one node: another one has its own page cache, and a file system that is coherent empties the first before it
    answers.
    """
    disk, sequence, base = Disk(), 0, 0
    for run in (1, 2, 3):
        job = Job(disk, seed * 10 + run, base=base, run=run, sequence=sequence, one_node=True, ranks=run)
        job.work(14, close=False)
        sequence = job.sequence
        files = RecordingFiles(disk)
        recovery = recover(files, STORE)
        base = recovery.next_segment
        assert all(index.durable for index in recovery.indexes)
        kept = latest(recovery.indexes)
        found = [
            ((int(row["key_hi"]), int(row["key_lo"])), int(row["sequence"]))
            for rows in (kept.blocks, kept.tombstones)
            for row in rows
        ]
        disk.note(Acknowledged(tuple(found)))
    outcome = survey(disk, judge, seed=seed, count=1_000)
    assert not outcome.bad, str(outcome)


@pytest.mark.parametrize("seed", range(6))
def test_a_second_power_loss(seed: int) -> None:
    """The second job starts on what the first power loss left, and promises again what it found."""
    first = Disk()
    Job(first, seed).work(30)
    chance, outcomes = random.Random(seed), []

    def restart(files: RecordingFiles, notes: tuple[Any, ...]) -> list[str]:
        if chance.random() > 0.1:
            return []
        disk = files.disk
        recovery = recover(files, STORE)
        for index in recovery.indexes:
            rows = [((int(row["key_hi"]), int(row["key_lo"])), int(row["sequence"])) for row in index.entries]
            disk.note(Acknowledged(tuple(rows)))
        Job(disk, seed, base=recovery.next_segment, run=2, sequence=1_000, ranks=2).work(10)
        outcomes.append(survey(disk, lambda files, later: judge(files, notes + later), seed=len(outcomes), count=60))
        return [str(outcomes[-1])] if outcomes[-1].bad else []

    outcome = survey(first, restart, seed=seed, count=200)
    assert not outcome.bad, str(outcome)
    assert len(outcomes) > 5


def test_a_name_that_a_killed_job_left_unsynced_is_sure_before_it_is_used() -> None:
    """Killed between the new name of a sealed file and the sync of the folder; who finds the block promises it."""
    disk = Disk()
    job = Job(disk, 0, ranks=1, wrap=lambda files: MutantFiles(files, lambda what, path: (what, path) != FOLDER_SYNC))
    job.write(job.writers[0], (7, 1), b"never acknowledged by that job")
    job.writers[0].log.close()
    killed = len(disk.trace)
    found = latest(recover(RecordingFiles(disk), STORE).indexes).blocks
    assert [int(each["key_lo"]) for each in found] == [1]
    disk.note(Acknowledged((((7, 1), int(found[0]["sequence"])),)))
    outcome = survey_all(disk, judge, piece=PAGE)
    assert not outcome.bad, str(outcome)
    disk.trace = [each for at, each in enumerate(disk.trace) if at < killed or each.kind != "sync folder"]
    assert words(survey_all(disk, judge, piece=PAGE)) == {"lost"}


def test_a_removal_that_a_killed_job_left_unsynced_is_sure_before_a_tombstone_goes() -> None:
    """A compaction was killed between the removal of a block's file and the sync of the folder."""
    disk = Disk()
    job = Job(disk, 0, ranks=1)
    for value in (b"first", None):
        job.write(job.writers[0], (7, 1), value)
        job.settle(job.writers[0], job.writers[0].log.seal)
    files = RecordingFiles(disk)
    files.remove(sealed_name(0))
    killed = len(disk.trace)
    compact_directory(files, STORE, now=0, run=9, segment_bytes=MIN_SEGMENT_BYTES)
    assert files.names("segments") == []
    outcome = survey_all(disk, judge, piece=PAGE)
    assert not outcome.bad, str(outcome)
    first = next(at for at in range(killed, len(disk.trace)) if disk.trace[at].kind == "sync folder")
    del disk.trace[first]
    assert words(survey_all(disk, judge, piece=PAGE)) == {"resurrected"}


def test_an_epoch_that_a_killed_job_left_unsynced_is_sure_before_it_is_used() -> None:
    for sync in (True, False):
        disk = Disk()
        files = RecordingFiles(disk)
        epochs.note(MutantFiles(files, lambda what, path: (what, path) != ("sync_folder", "epochs")), 5, 3)
        assert epochs.noted(files, sync=sync) == {5: 3}
        disk.note("used")
        outcome = survey_all(
            disk, lambda files, notes: ["lost"] if notes and epochs.noted(files) != {5: 3} else [], piece=PAGE
        )
        assert bool(outcome.bad) != sync, str(outcome)


@pytest.mark.parametrize("direct", [False, True])
def test_on_a_real_directory(tmp_path: Path, direct: bool) -> None:
    """What the recorded disk stands for: a directory gets the same calls, and the same is found in it."""
    disk = Disk()
    with PosixFiles(tmp_path / "store", make=True, direct_writes=direct, direct_reads=direct) as posix:
        recorded, real = Job(disk, 8), Job(Disk(), 8, wrap=lambda _: posix)
        for job in (recorded, real):
            job.work(40, close=False)
            job.write(job.writers[0], (7, 0), random.Random(1).randbytes(300_000))
            job.work(5)
        expected, found = found_in(RecordingFiles(disk)), found_in(posix)
        assert found == expected
        assert found[0]
        assert not acknowledged(found[0], [event.note for event in disk.trace if event.kind == "note"])
        for path, data in disk.contents().items():
            assert (tmp_path / "store" / path).read_bytes() == data


# Faults

FAULTS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("number", FAULTS, ids=[errno.errorcode[each] for each in FAULTS])
def test_every_call_may_fail(number: int, for_ever: bool) -> None:
    """A clear error, nothing promised is lost, and who writes again what was named as lost has it all in the end."""
    calls = states = 0
    for at in count():
        disk, plan = Disk(), Plan(number, at, for_ever=for_ever, part=(0, 0.5, 1)[at % 3])
        job = Job(disk, 5, ranks=1, wrap=lambda files, plan=plan: FailingFiles(files, plan))
        job.work(30, close=False)
        writer = job.writers[0]
        if not for_ever:  # the fault is over
            job.settle(writer, writer.log.sync)
            job.settle(writer, writer.log.sync)
            assert not writer.open, f"call {at}, {plan.calls[at]}: {writer.open} were never made durable"
        job.settle(writer, writer.log.close)
        for error in job.errors:
            assert isinstance(error, CascadeError), repr(error)
            assert len(str(error)) > 40, error
        # The log does not look at the number: the states of two of them are enough.
        outcome = survey(disk, judge, seed=at, count=40 if number in (errno.ENOSPC, errno.EIO) else 8)
        assert not outcome.bad, f"call {at}, {plan.calls[at] if plan.failed else 'none'}: {outcome}"
        now = judge(
            RecordingFiles(Disk(disk.contents(), ["segments"])), tuple(e.note for e in disk.trace if e.kind == "note")
        )
        assert not now, f"call {at}: {now}"
        states += outcome.different
        if not plan.failed:
            break
        calls += 1
    print(calls, states)
    assert calls > 40


def test_a_restart_that_cannot_read_everything_says_so() -> None:
    """A segment that cannot be read may hold the newest version of any key: an older one may not pass unsaid."""
    disk = Disk()
    Job(disk, 6).work(24)
    notes, silent, calls = tuple(event.note for event in disk.trace if event.kind == "note"), [], 0
    for at in count():
        plan = Plan(errno.EIO, at, kinds=Plan.READS)
        files = RecordingFiles(Disk(disk.contents(), ["segments"]))
        with suppress(DiskError):  # it says so
            recovery = recover(FailingFiles(files, plan), STORE)
            if complaints := acknowledged(read_all(files, recovery), notes):
                silent += [] if recovery.problems + recovery.torn else [f"call {at}, {plan.calls[at]}: {complaints}"]
        if not plan.failed:
            break
        calls += 1
    assert calls > 10
    assert not silent, "\n".join(silent)


def test_a_failed_sync_is_never_an_acknowledgement(seed: int = 2) -> None:
    """Every sync fails once, of files and of folders; a second sync of the same file would succeed."""
    for kind in ("sync", "sync_folder"):
        for at in range(6):
            disk, plan = Disk(), Plan(errno.EIO, at, kinds=frozenset({kind}))
            job = Job(disk, seed, ranks=2, wrap=lambda files, plan=plan: FailingFiles(files, plan))
            job.work(25)
            assert plan.failed == 1
            outcome = survey(disk, judge, seed=at, count=300)
            assert not outcome.bad, f"{kind} {at}: {outcome}"
