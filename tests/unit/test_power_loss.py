"""The model of a disk without power: it finds what a small log does wrong, and nothing in one that is right."""

from __future__ import annotations

import errno
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from disk_faults import FailingFiles, MutantFiles, Plan
from power_loss import PAGE, SECTOR, RandomChooser, Replay, State, survey, survey_all
from promises import Acknowledged, Attempt, acknowledged
from recorded_disk import Disk, RecordingFiles

from cascade_mpi.errors import DiskError, DiskFullError

# What the disk may hold


def states(disk: Disk, piece: int = SECTOR) -> set[tuple[tuple[str, bytes], ...]]:
    """Every state after the last event."""
    found: list[State] = []

    def keep(files: RecordingFiles, notes: tuple[Any, ...]) -> Iterable[str]:
        if notes and notes[-1] == now:
            found.append(State(files.disk.contents(), (), ()))
        return ()

    now = "now", len(disk.trace)
    disk.note(now)
    survey_all(disk, keep, piece=piece)
    return {tuple(sorted(state.contents.items())) for state in found}


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def files(disk: Disk) -> RecordingFiles:
    return RecordingFiles(disk)


def test_an_unsynced_file_may_be_anything_that_was_written(disk: Disk, files: RecordingFiles) -> None:
    file = files.create("a")
    files.sync_folder("")
    file.write_at(0, b"x" * 512 + b"y" * 10)
    found = {dict(state)["a"] for state in states(disk)}
    zeros = bytes(512)
    # the size alone, either sector alone, both
    assert found == {b"", zeros + bytes(10), b"x" * 512 + bytes(10), zeros + b"y" * 10, b"x" * 512 + b"y" * 10}


def test_a_page_is_kept_as_a_whole(disk: Disk, files: RecordingFiles) -> None:
    file = files.create("a")
    files.sync_folder("")
    file.write_at(0, b"x" * 512 + b"y" * 10)
    assert {dict(state)["a"] for state in states(disk, PAGE)} == {b"", bytes(522), b"x" * 512 + b"y" * 10}


def test_writes_are_reordered_but_not_within_a_sector(disk: Disk, files: RecordingFiles) -> None:
    file = files.create("a")
    file.write_at(0, bytes(1024))
    file.sync()
    files.sync_folder("")
    for offset, data in ((0, b"1"), (512, b"2"), (1, b"3")):
        file.write_at(offset, data)
    found = {(state[0][1][0:2], state[0][1][512:513]) for state in states(disk)}
    first, second = {b"\0\0", b"1\0", b"13"}, {b"\0", b"2"}  # never b"\0" + b"3"
    assert found == {(one, other) for one in first for other in second}


def test_a_sync_makes_bytes_and_size_sure_but_not_the_name(disk: Disk, files: RecordingFiles) -> None:
    file = files.create("a")
    file.write_at(0, b"data")
    file.sync()
    assert states(disk) == {(), (("a", b"data"),)}
    files.sync_folder("")
    assert states(disk) == {(("a", b"data"),)}


def test_a_sync_is_of_one_node(disk: Disk, files: RecordingFiles) -> None:
    file = files.create("a")
    file.write_at(0, b"x" * 512)
    files.sync_folder("")
    other = RecordingFiles(disk, node=1).open("a")
    other.sync()
    assert len(states(disk)) == 3
    file.sync()
    assert len(states(disk)) == 1


def test_a_failed_sync_is_never_made_good(disk: Disk, files: RecordingFiles) -> None:
    file = files.create("a")
    files.sync_folder("")
    file.write_at(0, b"x" * 512)
    file.sync_fails()
    out = bytearray(512)
    assert file.read_at(0, out) == 512  # who lives still reads them
    assert out == b"x" * 512
    file.write_at(512, b"y" * 512)
    file.sync()
    file.sync()
    assert {dict(state)["a"] for state in states(disk)} == {bytes(512) + b"y" * 512, b"x" * 512 + b"y" * 512}
    file.write_at(0, b"z" * 512)  # written again
    file.sync()
    assert {dict(state)["a"] for state in states(disk)} == {b"z" * 512 + b"y" * 512}


@pytest.mark.parametrize(("folder_synced", "both"), [(True, True), (False, False)])
def test_a_rename(disk: Disk, files: RecordingFiles, folder_synced: bool, both: bool) -> None:
    file = files.create("old")
    file.write_at(0, b"data")
    file.sync()
    if folder_synced:
        files.sync_folder("")
    files.rename("old", "new")
    old, new = ("old", b"data"), ("new", b"data")
    named = {(old,), (new,), (new, old)}
    assert states(disk) == (named if both else named | {()})
    files.sync_folder("")
    assert states(disk) == {(new,)}


def test_a_rename_in_place_of_a_file(disk: Disk, files: RecordingFiles) -> None:
    for name in ("a", "tmp"):
        file = files.create(name)
        file.write_at(0, name.encode())
        file.sync()
    files.sync_folder("")
    files.rename("tmp", "a")
    found = states(disk)
    assert (("a", b"tmp"),) in found
    assert (("a", b"a"), ("tmp", b"tmp")) in found
    assert all(dict(state).get("a") in (b"a", b"tmp") for state in found)
    assert all(b"tmp" in dict(state).values() for state in found)


def test_a_removed_file_comes_back_until_the_folder_is_synced(disk: Disk, files: RecordingFiles) -> None:
    files.create("a").sync()
    files.sync_folder("")
    files.remove("a")
    assert states(disk) == {(), (("a", b""),)}
    files.sync_folder("")
    assert states(disk) == {()}


def test_names_are_reordered_and_a_journal_keeps_their_order(disk: Disk, files: RecordingFiles) -> None:
    for name in "ab":
        files.create(name)
    files.rename("a", "c")
    assert {tuple(dict(state)) for state in states(disk)} == {
        names for names in [(), ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    }
    replay, chance = Replay(disk), random.Random(1)
    for event in disk.trace:
        replay.step(event)
    ordered = {tuple(replay.build(RandomChooser(chance), journal=True).contents) for _ in range(200)}
    assert ordered == {(), ("a",), ("a", "b"), ("b", "c")}


def test_a_lost_folder_takes_its_files(disk: Disk, files: RecordingFiles) -> None:
    files.make_folder("d")
    file = files.create("d/a")
    file.write_at(0, b"x")
    file.sync()
    files.sync_folder("d")
    assert states(disk) == {(), (("d/a", b"x"),)}
    files.sync_folder("")
    assert states(disk) == {(("d/a", b"x"),)}


def test_a_lost_sector_may_hold_what_another_file_left(disk: Disk, files: RecordingFiles) -> None:
    first, second = files.create("a"), files.create("b")
    first.write_at(0, b"old" * 300)
    first.sync()
    files.sync_folder("")
    second.write_at(0, b"x" * 900)
    replay, chance = Replay(disk), random.Random(1)
    for event in disk.trace:
        replay.step(event)
    found = {replay.build(RandomChooser(chance), stale=True).contents["b"] for _ in range(300)}
    old = b"old" * 300
    assert {b"", old, b"x" * 512 + old[512:], old[:512] + b"x" * 388, b"x" * 900} == found


def test_a_state_is_a_disk_that_can_be_written_and_lost_again(disk: Disk, files: RecordingFiles) -> None:
    files.make_folder("d")
    files.create("d/a").write_at(0, b"x")
    again = State(disk.contents(), ("d",), ()).files()
    assert again.names("d") == ["a"]
    again.create("d/b")
    assert states(again.disk) == {(("d/a", b"x"),), (("d/a", b"x"), ("d/b", b""))}


def test_a_survey_stays_below_its_limit(disk: Disk, files: RecordingFiles) -> None:
    files.create("a").write_at(0, bytes(512 * 10))
    with pytest.raises(AssertionError, match="more than 100 states"):
        survey_all(disk, lambda files, notes: (), limit=100)


# What may be found, given what was acknowledged


PUT, ACK = Attempt("k", 1, b"one"), Acknowledged((("k", 1),))


@pytest.mark.parametrize(
    ("notes", "found", "word"),
    [
        ([PUT], {}, ""),
        ([PUT], {"k": b"one"}, ""),
        ([PUT, ACK], {"k": b"one"}, ""),
        ([PUT, ACK], {}, "lost"),
        ([PUT, ACK], {"k": b"two"}, "wrong"),
        ([PUT], {"k": b"two"}, "wrong"),
        ([], {"k": b"one"}, "foreign"),
        ([PUT, ACK, Attempt("k", 2, b"two")], {"k": b"one"}, ""),
        ([PUT, ACK, Attempt("k", 2, b"two")], {"k": b"two"}, ""),
        ([PUT, ACK, Attempt("k", 2, b"two")], {}, "lost"),
        ([PUT, Attempt("k", 2, b"two"), Acknowledged((("k", 2),))], {"k": b"one"}, "stale"),
        ([PUT, ACK, Attempt("k", 2, None)], {}, ""),
        ([PUT, Attempt("k", 2, None), Acknowledged((("k", 2),))], {"k": b"one"}, "resurrected"),
        ([PUT, Attempt("k", 2, None), Acknowledged((("k", 2), ("k", 1)))], {}, ""),
    ],
)
def test_the_property(notes: list[Any], found: dict[str, bytes], word: str) -> None:
    complaints = acknowledged(found, notes)
    assert [complaint.partition(":")[0].partition(" ")[0] for complaint in complaints] == ([word] if word else [])


# A small log


SLOT = 1200  # bytes of a record: two sectors and a bit


class SmallLog:
    """Records of a fixed size, a footer that names the sound ones, and a name that says that it is whole."""

    def __init__(self, files: Any, name: str, footer_first: bool = False) -> None:
        self.files, self.name, self.footer_first = files, name, footer_first
        self.records: list[bytes] = []
        self.written = 0
        self.file = files.create(f"{name}.open")
        files.sync_folder("")

    def put(self, key: str, version: int, value: bytes | None) -> None:
        body = f"{key}|{version}|".encode() + (b"-" if value is None else b"+" + value)
        body = body.ljust(SLOT - 4, b".")
        self.records.append(body + zlib.crc32(body).to_bytes(4, "little"))
        if not self.footer_first:
            self.write()

    def write(self) -> None:
        while self.written < len(self.records):
            self.file.write_at(self.written * SLOT, self.records[self.written])
            self.written += 1

    def sync(self) -> None:
        self.write()
        self.file.sync()

    def seal(self) -> None:
        # The footer says which records are sound, so that nobody has to read them: it must not be there before them.
        footer = b"".join(record[-4:] for record in self.records)
        footer += len(self.records).to_bytes(4, "little")
        footer += zlib.crc32(footer).to_bytes(4, "little")
        if self.footer_first:
            self.file.write_at(len(self.records) * SLOT, footer)
            self.file.sync()
            self.write()
        else:
            self.write()
            self.file.sync()
            self.file.write_at(len(self.records) * SLOT, footer)
        self.file.sync()
        self.files.rename(f"{self.name}.open", self.name)
        self.files.sync_folder("")


def recover(files: RecordingFiles) -> dict[str, bytes]:
    newest: dict[str, tuple[int, bytes | None]] = {}
    for name in files.names(""):
        file = files.open(name)
        data = bytearray(file.size())
        file.read_at(0, data)
        for record in _records(bytes(data)):
            key, version, value = record[:-4].rstrip(b".").split(b"|", 2)
            known = newest.get(key.decode(), (-1, None))
            if int(version) > known[0]:
                sound = zlib.crc32(record[:-4]).to_bytes(4, "little") == record[-4:]
                newest[key.decode()] = int(version), value[1:] if sound and value[:1] == b"+" else None
    return {key: value for key, (_, value) in newest.items() if value is not None}


def _records(data: bytes) -> Iterator[bytes]:
    """By the footer, which is believed; without one by scanning up to the first bad record."""
    count = int.from_bytes(data[-8:-4], "little")
    footer = data[-4 * count - 8 :]
    if len(data) == count * (SLOT + 4) + 8 and zlib.crc32(footer[:-4]).to_bytes(4, "little") == footer[-4:]:
        for at in range(count):
            yield _by_footer(data[at * SLOT : (at + 1) * SLOT])
        return
    for at in range(0, len(data) - SLOT + 1, SLOT):
        record = data[at : at + SLOT]
        if zlib.crc32(record[:-4]).to_bytes(4, "little") != record[-4:]:
            return
        yield record


def _by_footer(record: bytes) -> bytes:
    """A record that the footer vouches for is believed, whatever is there: zeros hide every older version."""
    return record if record.count(b"|") >= 2 else b"k|1000000|-" + bytes(SLOT - 11)


def judge(files: RecordingFiles, notes: tuple[Any, ...]) -> list[str]:
    return acknowledged(recover(files), notes)


def run(
    disk: Disk,
    wrap: Callable[[RecordingFiles], Any] = lambda files: files,
    *,
    footer_first: bool = False,
    puts: int = 12,
    each: int = 3,
    seed: int = 1,
) -> None:
    """Two writers take turns: put, replace, delete, after `each` of these sync or seal, which acknowledges."""
    chance = random.Random(seed)
    logs = [
        SmallLog(wrap(RecordingFiles(disk, node)), f"{number:02}", footer_first) for number, node in enumerate((0, 1))
    ]
    open_versions: list[list[tuple[str, int]]] = [[], []]
    for number in range(puts):
        version = number + 1
        writer = chance.randrange(2)
        key = chance.choice("kl")
        value = None if chance.random() < 0.3 else f"{key}{version}".encode() * chance.randrange(1, 300)
        disk.note(Attempt(key, version, value))
        logs[writer].put(key, version, value)
        open_versions[writer].append((key, version))
        if number % each == each - 1:
            for at, log in enumerate(logs):
                if number % (2 * each) == 2 * each - 1:
                    log.seal()
                    logs[at] = SmallLog(log.files, f"{number:02}{at}", footer_first)
                else:
                    log.sync()
                disk.note(Acknowledged(tuple(open_versions[at])))
                open_versions[at] = []


def test_a_log_that_is_right_loses_nothing(disk: Disk) -> None:
    run(disk, puts=96, each=12)
    outcome = survey(disk, judge, seed=7, count=10_000)
    assert not outcome.bad, str(outcome)
    assert outcome.different == 10_000, str(outcome)


def test_a_small_log_in_every_state(disk: Disk) -> None:
    run(disk, puts=6)
    outcome = survey_all(disk, judge)
    assert not outcome.bad, str(outcome)
    assert outcome.different > 500, str(outcome)


class Forget:
    """Leaves out the syncs of one place of the log's code."""

    def __init__(self, place: str) -> None:
        self.place, self.syncs = place, 0
        self.names: dict[str, int] = {}

    def __call__(self, files: RecordingFiles) -> Any:
        return MutantFiles(files, lambda kind, path: self.keep(kind))

    def keep(self, kind: str) -> bool:
        import sys

        frame = sys._getframe(3)  # whoever called sync
        while frame.f_code.co_name not in ("__init__", "sync", "seal") or "self" not in frame.f_locals:
            frame = frame.f_back  # type: ignore[assignment]
        return f"{kind} in {frame.f_code.co_name}" != self.place


@pytest.mark.parametrize("place", ["sync in sync", "sync_folder in __init__", "sync in seal"])
def test_a_missing_sync_is_found(disk: Disk, place: str) -> None:
    run(disk, Forget(place), puts=30)
    outcome = survey(disk, judge, seed=7, count=4_000)
    assert outcome.bad, f"without the {place}: {outcome}"
    assert "lost" in str(outcome) or "stale" in str(outcome) or "resurrected" in str(outcome)


def test_a_footer_before_the_data_is_found(disk: Disk) -> None:
    run(disk, footer_first=True, puts=30)
    outcome = survey(disk, judge, seed=7, count=4_000)
    assert outcome.bad, str(outcome)


def test_a_complaint_shows_how_it_came_to_be(disk: Disk) -> None:
    run(disk, Forget("sync in sync"), puts=12)
    text = str(survey(disk, judge, seed=7, count=2_000, enough=1))
    assert "1 bad of" in text
    assert "node 0: write 1200 bytes at 0 of file" in text
    assert "files: " in text
    assert "version" in text


def test_a_survey_is_repeatable(disk: Disk) -> None:
    run(disk, puts=12)
    seen: list[list[tuple[str, ...]]] = []
    for seed in (1, 1, 2):
        found: list[tuple[str, ...]] = []
        survey(disk, lambda files, notes, found=found: found.append(tuple(files.disk.contents())) or (), seed=seed)
        seen.append(found)
    assert seen[0] == seen[1] != seen[2]


# Failures


@pytest.mark.parametrize("kind", sorted(Plan.READS | Plan.WRITES))
@pytest.mark.parametrize("for_ever", [False, True])
def test_every_call_can_fail(disk: Disk, kind: str, for_ever: bool) -> None:
    def act(files: Any, kind: str) -> None:
        if kind in ("create", "open"):
            getattr(files, kind)("b" if kind == "create" else "a")
        elif kind in ("names", "make_folder", "sync_folder", "remove"):
            getattr(files, kind)({"names": "", "make_folder": "d", "sync_folder": "", "remove": "a"}[kind])
        elif kind == "rename":
            files.rename("a", "c")
        else:
            arguments = {"read_at": (0, bytearray(1)), "write_at": (0, b"1234")}.get(kind, ())
            getattr(files.create(f"f{len(disk.trace)}"), kind)(*arguments)

    RecordingFiles(disk).create("a")
    plan = Plan(errno.ENOSPC, 0, for_ever=for_ever, kinds=frozenset({kind}))
    files = FailingFiles(RecordingFiles(disk), plan)
    with pytest.raises(DiskFullError, match="full"):
        act(files, kind)
    if for_ever:
        with pytest.raises(DiskFullError, match="full"):
            act(files, kind)
    else:
        act(files, kind)
    assert plan.calls == [kind, kind]
    assert plan.failed == 1 + for_ever


def test_a_failed_write_leaves_a_part_and_a_failed_sync_doubt(disk: Disk) -> None:
    files = FailingFiles(RecordingFiles(disk), Plan(errno.EIO, 0, kinds=frozenset({"write_at"}), part=0.5))
    file = files.create("a")
    with pytest.raises(DiskError):
        file.write_at(0, b"1234")
    assert disk.contents() == {"a": b"12"}
    doubt = FailingFiles(RecordingFiles(disk), Plan(errno.EIO, 0, kinds=frozenset({"sync"}))).create("b")
    doubt.write_at(0, b"1234")
    with pytest.raises(DiskError):
        doubt.sync()
    doubt.sync()
    files.sync_folder("")
    assert {dict(state)["b"] for state in states(disk)} == {b"", bytes(4), b"1234"}


@pytest.mark.parametrize("part", [0, 1])
def test_a_failed_rename_has_happened_or_not(disk: Disk, part: int) -> None:
    RecordingFiles(disk).create("a")
    with pytest.raises(DiskError):
        FailingFiles(RecordingFiles(disk), Plan(errno.EIO, 0, part=part)).rename("a", "b")
    assert list(disk.contents()) == ["b" if part else "a"]
