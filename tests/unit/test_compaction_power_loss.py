"""Compaction and power losses: nothing that was acknowledged is lost, wrong or comes back, wherever the lights go out.

Ranks put, delete, sync and compact, one piece at a time between the other operations; or a directory is compacted as a
whole. The disk is that of `power_loss`, the store that of `compacting`.
"""

from __future__ import annotations

import errno
import random
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from compacting import STORE, Rank, Tier
from disk_faults import FailingFiles, MutantFiles, Plan
from power_loss import Replay, survey, survey_all
from promises import Acknowledged, Attempt
from recorded_disk import Disk, RecordingFiles
from test_segment_power_loss import Job, is_sync, judge, words

from cascade_mpi.errors import CascadeError, DamagedError
from cascade_mpi.segments.format import MIN_SEGMENT_BYTES, PAGE, Location
from cascade_mpi.segments.offline import Compacted, compact_directory
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import Recovery, latest, recover
from cascade_mpi.segments.source import Item


def notes_of(disk: Disk) -> tuple[Any, ...]:
    return tuple(event.note for event in disk.trace if event.kind == "note")


@pytest.mark.parametrize("one_log", [True, False], ids=["one log", "two logs"])
@pytest.mark.parametrize("seed", range(4))
def test_a_running_store(seed: int, one_log: bool) -> None:
    disk = Disk()
    tier = Tier(disk, seed, one_log=one_log)
    tier.work(120)
    tier.check()
    tier.finish()
    tier.check()
    done = [rank.compactor.done for rank in tier.ranks]
    assert sum(each.segments for each in done) > 5, done
    outcome = survey(disk, judge, seed=seed, count=500)
    assert not outcome.bad, str(outcome)
    print(outcome, len(disk.trace), done)


# What must be found when it is left out


def forgetting(kind: str) -> Any:
    return lambda files: MutantFiles(files, lambda what, path: what != kind)


LEFT_OUT = [
    ("wrap_copies", "sync", {"lost", "stale", "resurrected"}),
    ("wrap_copies", "sync_folder", {"lost", "stale", "resurrected"}),
]


@pytest.mark.parametrize(("whose", "kind", "expected"), LEFT_OUT)
def test_a_sync_that_is_left_out_is_found(whose: str, kind: str, expected: set[str]) -> None:
    found = set()
    for seed in range(2):
        disk = Disk()
        tier = Tier(disk, seed, ranks=1, one_log=False, **{whose: forgetting(kind)})
        tier.work(160)
        found |= words(survey(disk, judge, seed=seed, count=1_000))
    assert found & expected, found


@pytest.mark.parametrize("left_out", [False, True])
def test_a_tombstone_outlives_the_removal_of_what_it_deletes(left_out: bool) -> None:
    """Every state of a store that deletes one block and compacts: without the sync of a removal it comes back."""
    disk = Disk()
    tier = Tier(disk, 0, ranks=1, wrap_compactor=forgetting("sync_folder" if left_out else ""))
    rank = tier.ranks[0]
    for value in (b"first", None):
        tier.write(rank, (7, 1), value)
        rank.settle(rank.log.seal)
    for files in (1, 0):
        rank.begin(share=0.0)
        tier.drain(rank)
        assert len(RecordingFiles(disk).names("segments")) == files
    outcome = survey_all(disk, judge, piece=PAGE)
    assert (words(outcome) == {"resurrected"}) if left_out else not outcome.bad, str(outcome)


class Oldest:
    """The state in which everything is lost that may be."""

    def mood(self) -> None:
        return None

    def pick(self, options: int) -> int:
        return 0


def test_a_location_changes_when_the_copy_is_durable(seed: int = 5) -> None:
    """And the old file goes afterwards, also if all that may be lost is lost at that moment."""
    disk, moved = Disk(), []

    def watch(rank: Rank, item: Item, new: Location) -> None:
        replay = Replay(disk)
        for event in disk.trace:
            replay.step(event)
        found = readable(replay.build(Oldest()).files(), item, new)
        moved.append((found, readable(RecordingFiles(disk), item, item.location)))

    for one_log in (True, False):
        tier = Tier(disk, seed, one_log=one_log)
        tier.watch = watch
        tier.work(160)
        tier.finish()
        disk = Disk()
    assert len(moved) > 20
    assert all(new and old for new, old in moved), moved


def readable(files: RecordingFiles, item: Item, location: Location) -> bool:
    try:
        reader = open_segment(files, STORE, location.segment)
    except FileNotFoundError:
        return False
    out = memoryview(bytearray(item.length))
    try:
        reader.read(location.unit, reader.header().place, out, key=(item.key_hi, item.key_lo), sequence=item.sequence)
    except DamagedError:
        return False
    return True


# Faults

FAULTS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


@pytest.mark.parametrize(("number", "one_log"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EDQUOT, False)])
def test_every_call_may_fail(number: int, one_log: bool) -> None:
    """Once each. What was acknowledged is there, what the index names can be read, and compaction goes on."""
    calls = removed = 0
    for at in count():
        disk, plan = Disk(), Plan(number, at, part=(0, 0.5, 1)[at % 3])
        tier = Tier(disk, 3, ranks=1, wrap=lambda files, plan=plan: FailingFiles(files, plan), one_log=one_log, keys=3)
        tier.work(45, steps=0.5)
        tier.finish()
        tier.finish()  # what a fault kept it from
        tier.check()
        assert all(isinstance(error, CascadeError) and len(str(error)) > 40 for error in tier.errors)
        outcome = survey(disk, judge, seed=at, count=12)
        assert not outcome.bad, f"call {at}, {plan.calls[at] if plan.failed else 'none'}: {outcome}"
        removed += tier.ranks[0].compactor.done.segments
        if not plan.failed:
            break
        calls += 1
    print(calls, removed)
    assert calls > 60
    assert removed > calls


@pytest.mark.parametrize("number", FAULTS, ids=[errno.errorcode[each] for each in FAULTS])
def test_every_call_may_fail_from_then_on(number: int) -> None:
    for at in range(0, 1 << 20, 4):
        disk, plan = Disk(), Plan(number, at, part=(0, 0.5, 1)[at % 3], for_ever=True)
        tier = Tier(disk, 4, ranks=1, wrap=lambda files, plan=plan: FailingFiles(files, plan), keys=3)
        tier.work(45, steps=0.5)
        outcome = survey(disk, judge, seed=at, count=12)
        assert not outcome.bad, f"call {at}, {plan.calls[at] if plan.failed else 'none'}: {outcome}"
        if not plan.failed:
            break
    assert at > 60


def test_a_refused_record_that_is_whole_does_not_come_back() -> None:
    """A write fails behind its last byte: the record was refused, and is on the disk. Its key is deleted later."""
    disk = Disk()
    plan = Plan(errno.EIO, 5, kinds=frozenset({"write_at"}), part=1)
    tier = Tier(disk, 0, ranks=1, wrap=lambda files: FailingFiles(files, plan))
    rank = tier.ranks[0]
    tier.write(rank, (7, 1), b"first")  # write 1, behind the header
    rank.settle(rank.log.seal)  # write 2
    tier.write(rank, (7, 2), b"other")  # 3 and 4: another segment
    with pytest.raises(CascadeError):
        tier.write(rank, (7, 1), b"second")
    tier.write(rank, (7, 1), None)
    rank.settle(rank.log.seal)
    for _ in range(4):
        rank.begin(share=0.0)
        tier.drain(rank)
    outcome = survey(disk, judge, count=1_000)
    assert not outcome.bad, str(outcome)
    assert not rank.deletions, "it went in the end: what was refused had gone with its file"


# Jobs that follow each other


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_job_and_one_that_takes_over(seed: int) -> None:
    """The page cache is all there; what is found is promised again, compacted by its new owner; then power fails."""
    disk = Disk()
    Tier(disk, seed, files=lambda number: RecordingFiles(disk)).work(70)
    recovery = recover(RecordingFiles(disk), STORE)
    adopted(disk, recovery)
    tier = Tier(disk, seed, run=2, base=recovery.next_segment, files=lambda number: RecordingFiles(disk))
    tier.adopt(recovery)
    tier.check()
    tier.work(70)
    tier.finish()
    tier.check()
    assert sum(rank.compactor.done.segments for rank in tier.ranks) > 3
    outcome = survey(disk, judge, seed=seed, count=500)
    assert not outcome.bad, str(outcome)


def adopted(disk: Disk, recovery: Recovery) -> None:
    """Who goes on with what was found promises it again."""
    newest = latest(recovery.indexes)
    rows = [*newest.blocks, *newest.tombstones]
    disk.note(Acknowledged(tuple(((int(row["key_hi"]), int(row["key_lo"])), int(row["sequence"])) for row in rows)))


# A whole directory


def compacted(files: Any, disk: Disk, **options: Any) -> Compacted:
    adopted(disk, recover(files, STORE))
    return compact_directory(
        files, STORE, now=options.pop("now", 0), run=99, segment_bytes=MIN_SEGMENT_BYTES, **options
    )


def a_killed_job(seed: int, operations: int = 60, keys: int = 8) -> Disk:
    disk = Disk()
    job = Job(disk, seed, one_node=True)
    job.work(operations, close=seed % 2 == 0)
    return disk


@pytest.mark.parametrize("seed", range(3))
def test_a_directory(seed: int) -> None:
    disk = a_killed_job(seed)
    before = len(disk.trace)
    done = compacted(RecordingFiles(disk), disk)
    assert done.after.nbytes < done.before.nbytes
    assert (done.damages, done.problems, done.kept) == ([], [], 0)
    only_the_newest(disk)
    outcome = survey(disk, judge, seed=seed, count=400, moments=range(before, len(disk.trace) + 1))
    assert not outcome.bad, str(outcome)
    print(outcome, done)


def only_the_newest(disk: Disk) -> None:
    recovery = recover(RecordingFiles(disk), STORE)
    newest = latest(recovery.indexes)
    assert not recovery.problems
    assert all(index.sealed for index in recovery.indexes)
    assert (newest.superseded, len(newest.tombstones)) == (0, 0)


DIRECTORY_SYNCS = [
    ("sync", {"lost", "stale", "resurrected"}),
    ("sync_folder", {"lost", "stale", "resurrected"}),
]


@pytest.mark.parametrize(("kind", "expected"), DIRECTORY_SYNCS)
def test_a_sync_of_a_directory_s_compaction_that_is_left_out_is_found(kind: str, expected: set[str]) -> None:
    found = set()
    for seed in range(3):
        disk = a_killed_job(seed)
        before = len(disk.trace)
        compacted(MutantFiles(RecordingFiles(disk), lambda what, path: what != kind), disk)
        found |= words(survey(disk, judge, seed=seed, count=800, moments=range(before, len(disk.trace) + 1)))
    assert found & expected, found


@pytest.mark.parametrize("which", ["deletions", "copies", "removals"])
def test_a_sync_of_the_folder_that_is_left_out_is_found(which: str) -> None:
    """Of the tombstones that are made first, of the copies, or of the removals."""
    found = 0
    for seed in range(8):
        disk = a_killed_job(seed)
        before = len(disk.trace)
        compacted(RecordingFiles(disk), disk)
        at = range(before, len(disk.trace))
        settled = [n for n in at if any(is_sync(disk.trace[n], "sync folder", each) for each in ("_settle", "_seal"))]
        removed = [n for n in at if is_sync(disk.trace[n], "sync folder", "_remove")]
        left_out = {"deletions": settled[:2], "copies": settled[2:], "removals": removed}[which]
        disk.trace = [event for n, event in enumerate(disk.trace) if n not in left_out]
        found += survey(disk, judge, seed=seed, count=300, moments=range(before, len(disk.trace) + 1)).bad
    assert found


@pytest.mark.parametrize("seed", range(4))
def test_a_directory_after_a_power_loss_and_before_another_one(seed: int) -> None:
    first = a_killed_job(seed, 30)
    outcomes, seen = [], count()

    def again(files: RecordingFiles, notes: tuple[Any, ...]) -> list[str]:
        if next(seen) % 10:
            return []
        compacted(files, files.disk)
        outcome = survey(files.disk, lambda files, later: judge_all(files, notes + later), seed=len(outcomes), count=60)
        outcomes.append(outcome)
        return [str(outcome)] if outcome.bad else []

    outcome = survey(first, again, seed=seed, count=150)
    assert not outcome.bad, str(outcome)
    assert len(outcomes) > 10


def judge_all(files: RecordingFiles, notes: tuple[Any, ...]) -> list[str]:
    """What a power loss left is no damage here: only what is found counts."""
    return [each for each in judge(files, notes) if not each.startswith("damage")]


@pytest.mark.parametrize("number", FAULTS, ids=[errno.errorcode[each] for each in FAULTS])
def test_every_call_of_a_directory_s_compaction_may_fail(number: int) -> None:
    """And a second run ends what the first one could not."""
    failed = 0
    for at in count():
        disk, plan = a_killed_job(1, 22), Plan(number, at, part=(0, 0.5, 1)[at % 3])
        before = len(disk.trace)
        adopted(disk, recover(RecordingFiles(disk), STORE))
        with suppress(CascadeError):
            compacted(FailingFiles(RecordingFiles(disk), plan), disk)
        outcome = survey(disk, judge, seed=at, count=6, moments=range(before, len(disk.trace) + 1))
        assert not outcome.bad, f"call {at}, {plan.calls[at] if plan.failed else 'none'}: {outcome}"
        done = compacted(RecordingFiles(disk), disk)
        assert not done.damages, at
        only_the_newest(disk)
        assert not judge(RecordingFiles(disk), notes_of(disk)), at
        if not plan.failed:
            break
        failed += 1
    print(failed)
    assert failed > 50


def test_an_expired_block_uncovers_nothing() -> None:
    """What it replaced is not found again, wherever the lights go out."""
    found = 0
    for seed in range(3):
        disk, chance = Disk(), random.Random(seed)
        job = Job(disk, seed, ranks=2, one_node=True)
        for _ in range(12):
            writer = chance.choice(job.writers)
            job.write(writer, (7, chance.randrange(4)), chance.randbytes(700))
            job.settle(writer, writer.log.seal)
        for low in range(3):
            writer = job.writers[low % 2]
            job.sequence += 1
            sequence, value = job.sequence << 12, chance.randbytes(50)
            disk.note(Attempt((7, low), sequence, value))
            writer.log.append(Record(key_hi=7, key_lo=low, sequence=sequence, length=50, expiry=10 + low), value)
            writer.log.seal()
            disk.note(Acknowledged((((7, low), sequence),)))
            if low < 2:
                disk.note(Attempt((7, low), sequence + 1, None))  # it expires
        before = len(disk.trace)
        done = compacted(RecordingFiles(disk), disk, now=11)
        assert done.expired == 2
        only_the_newest(disk)
        assert {int(row["key_lo"]) for row in latest(recover(RecordingFiles(disk), STORE).indexes).blocks} >= {2}
        outcome = survey(disk, judge, seed=seed, count=500, moments=range(before, len(disk.trace) + 1))
        assert not outcome.bad, str(outcome)
        found += outcome.different
    assert found > 300
