"""What all ranks have written together is there after a power loss, and what a directory notes beside its segments.

The ranks are threads that take turns (`rank_threads`), each on a node of its own; the disk is that of `power_loss`.
`write` is what `flush()` and `checkpoint()` acknowledge after, `epochs.note` what `bump_epoch` does. Does not cover
calls that fail, nor one rank's log (`test_segment_power_loss`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from itertools import count
from typing import Any

import pytest
from power_loss import Outcome, survey
from promises import Acknowledged, Attempt, acknowledged
from rank_threads import RankFiles, ThreadComm, run_ranks
from recorded_disk import Disk, Event, RecordingFiles
from test_segment_power_loss import STORE, found_in

from cascade_mpi.mpiio.shared import SharedSegments
from cascade_mpi.namespaces import Namespace
from cascade_mpi.public_namespace import public
from cascade_mpi.segments import checkpoints, epochs, names
from cascade_mpi.segments.checkpoints import Checkpoint
from cascade_mpi.segments.format import MIN_SEGMENT_BYTES, PAGE, TRAILER_MAGIC
from cascade_mpi.segments.records import Record

KEYS, SIZES = 6, (1, 40, 300, 700, 2500, 5000, 9000, 17_000)
WAYS = ("own", "together")


def flushes(monkeypatch: pytest.MonkeyPatch, seed: int, way: str, *, ranks: int = 3, calls: int = 5) -> Disk:
    """Ranks that bring new versions of the same keys, to one call after the other."""
    disk = Disk()

    def work(comm: ThreadComm, files: RankFiles) -> None:
        chance = random.Random(seed * 100 + comm.rank)
        together = SharedSegments(
            comm, files, STORE, count(), 1, MIN_SEGMENT_BYTES,  # type: ignore[arg-type]  # what it needs of them
            collective="on" if way == "together" else "off", writer=comm.rank,
        )  # fmt: skip
        for call in range(1, calls + 1):
            records, told = [], []
            for number in range(chance.choice((0, 2, 4, 7))):
                key, sequence = (7, chance.randrange(KEYS)), (call << 8 | number) << 12 | comm.rank
                value = None if chance.random() < 0.2 else chance.randbytes(chance.choice(SIZES))
                disk.note(Attempt(key, sequence, value))
                kind = 2 if value is None else 1
                record = Record(kind=kind, key_hi=7, key_lo=key[1], sequence=sequence, length=len(value or b""))
                records.append((record, value or b""))
                told.append((key, sequence))
            together.write(records)
            disk.note(Acknowledged(tuple(told)))
        together.free()

    run_ranks(monkeypatch, disk, ranks, seed, work)
    return disk


def judge(files: RecordingFiles, notes: tuple[Any, ...]) -> list[str]:
    found, problems = found_in(files)
    return acknowledged(found, notes) + [f"damage: {problem}" for problem in problems]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_a_flush_acknowledged_is_lost(monkeypatch: pytest.MonkeyPatch, seed: int, way: str) -> None:
    """2 x 4 x 600 different states, or nearly so many: there are few of some moments."""
    disk = flushes(monkeypatch, seed, way)
    outcome = survey(disk, judge, seed=seed, count=600)
    assert not outcome.bad, str(outcome)
    assert outcome.different > 250, str(outcome)
    notes = tuple(event.note for event in disk.trace if event.kind == "note")
    assert judge(RecordingFiles(Disk(disk.contents(), ["segments"])), notes) == []
    assert sum(len(note.versions) for note in notes if isinstance(note, Acknowledged)) > 3


def left_out(disk: Disk, kind: str, place: str) -> list[Event]:
    """The trace without what one line of the program has synced."""
    kept = [event for event in disk.trace if (event.kind, event.note) != (kind, place)]
    assert len(kept) < len(disk.trace), "it is called elsewhere now: name that place"
    return kept


@pytest.mark.parametrize(
    ("way", "kind", "place"),
    [
        ("own", "sync", "_synced"), ("together", "sync", "_then"), ("own", "sync folder", "draw"),
        *((way, kind, "_seal") for way in WAYS for kind in ("sync", "sync folder")),
    ],
)  # fmt: skip
def test_a_sync_of_a_flush_that_is_left_out_is_found(
    monkeypatch: pytest.MonkeyPatch, way: str, kind: str, place: str
) -> None:
    disk = flushes(monkeypatch, 1, way)
    disk.trace = left_out(disk, kind, place)
    outcome = survey(disk, judge, seed=1, count=3_000, enough=1)
    assert outcome.bad, str(outcome)


@pytest.mark.parametrize("way", WAYS)
def test_no_rank_can_leave_its_sync_out(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Of the data, each one rank's alone; where they write together, of a rank that has written for the others."""
    place, found = {"own": "_synced", "together": "_then"}[way], set[int]()
    disk = flushes(monkeypatch, 1, way)
    whole = disk.trace
    for rank in range(3):
        disk.trace = [event for event in whole if (event.node, event.kind, event.note) != (rank, "sync", place)]
        assert len(disk.trace) < len(whole)
        if survey(disk, judge, seed=1, count=3_000, enough=1).bad:
            found.add(rank)
    assert found == {0, 1, 2}


@pytest.mark.parametrize("way", WAYS)
def test_a_footer_before_the_data_of_all_ranks_is_found(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """It would be taken at its word: blocks whose newest record has no bytes, in the place of those that have."""
    disk = flushes(monkeypatch, 1, way)
    trace, moved = disk.trace, 0
    for footer in [event for event in trace if event.data[-PAGE : -PAGE + 8] == TRAILER_MAGIC]:
        first = next(at for at, event in enumerate(trace) if event.kind == "write" and event.inode == footer.inode)
        at = trace.index(footer)
        its_sync = next(
            event for event in trace[at:]
            if (event.kind, event.inode, event.node) == ("sync", footer.inode, footer.node)
        )  # fmt: skip
        for event in (footer, its_sync):  # by identity: one sync of a file is like the next
            trace.pop(next(place for place, each in enumerate(trace) if each is event))
        trace[first:first] = [footer, its_sync]
        moved += 1
    assert moved > 2
    outcome = survey(disk, judge, seed=1, count=3_000, enough=1)
    assert outcome.bad, str(outcome)


# What stands beside the segments

Act = Callable[[RecordingFiles, int], None]
SPACES = {each.id: public(each) for each in (Namespace(name) for name in "abcdefgh")}


def note_epochs(files: RecordingFiles, turn: int) -> None:
    told(files, 5 + turn % 2, turn // 2 + 1, lambda: epochs.note(files, 5 + turn % 2, turn // 2 + 1))


def write_checkpoints(files: RecordingFiles, turn: int) -> None:
    made = Checkpoint("ab"[turn % 2], turn + 1, turn, 10 * turn, 2)
    told(files, made.tag, made.time, lambda: checkpoints.write(files, made))


def add_names(files: RecordingFiles, turn: int) -> None:
    number = sorted(SPACES)[turn]
    told(files, number, 1, lambda: names.add(files, {number: SPACES[number]}))


def told(files: RecordingFiles, key: Hashable, version: int, act: Callable[[], object]) -> None:
    files.disk.note(Attempt(key, version, b"%d" % version))
    act()
    files.disk.note(Acknowledged(((key, version),)))


def found_beside(files: RecordingFiles) -> dict[Hashable, bytes]:
    versions: dict[Hashable, int] = {
        **epochs.noted(files),
        **{each.tag: each.time for each in checkpoints.checkpoints(files)},
        **{number: 1 for number, each in names.read(files).namespaces.items() if SPACES[number] == each},
    }
    return {key: b"%d" % version for key, version in versions.items()}


def notes_of(act: Act) -> Disk:
    """Two ranks, on nodes of their own, in turns."""
    disk = Disk()
    files = [RecordingFiles(disk, node) for node in range(2)]
    for turn in range(6):
        act(files[turn // 2 % 2], turn)
    return disk


def beside(files: RecordingFiles, notes: Iterable[Any]) -> list[str]:
    return acknowledged(found_beside(files), notes) + names.read(files).problems


def surveyed(disk: Disk) -> Outcome:
    return survey(disk, beside, seed=3, count=1_000)


@pytest.mark.parametrize("act", [note_epochs, write_checkpoints, add_names])
def test_what_is_noted_beside_the_segments_is_not_lost(act: Act) -> None:
    outcome = surveyed(notes_of(act))
    assert not outcome.bad, str(outcome)
    assert outcome.different > 25, str(outcome)


@pytest.mark.parametrize(
    ("act", "place", "kinds"),
    [(note_epochs, "note", {"sync folder"}), (write_checkpoints, "write", {"sync", "sync folder"}),
     (add_names, "add", {"sync", "sync folder"})],
)  # fmt: skip
def test_a_sync_of_a_note_that_is_left_out_is_found(act: Act, place: str, kinds: set[str]) -> None:
    """Each one: of the folder above, of the folder, of the file."""
    disk = notes_of(act)
    whole = disk.trace
    lines = {(event.kind, event.inode if event.kind == "sync folder" else 0) for event in whole if event.note == place}
    assert {kind for kind, _ in lines} == kinds
    for kind, folder in lines:
        disk.trace = [
            event for event in whole
            if (event.kind, event.note) != (kind, place) or folder not in (0, event.inode) or
            (kind == "sync folder" and event.inode != folder)
        ]  # fmt: skip
        assert len(disk.trace) < len(whole)
        outcome = surveyed(disk)
        assert outcome.bad, f"{kind} {folder}: {outcome}"
