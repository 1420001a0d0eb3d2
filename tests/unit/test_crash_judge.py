"""The verdict of the crash torture, on histories made by hand: it must see what must not be, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.crash_journal import NEVER, Journal, Notes, Op, Sync, lines, read
from bench.crash_judge import Judge
from bench.crash_plan import KINDS, STEPS, Kill, Planner, Round, settings_of
from bench.crash_steps import SteppingFiles, Trap

OLD, NEW, OTHER = 101, 102, 203  # stamps
Write = tuple[int, int, int, int]  # stamp (0: a delete), rank, begin, end


def kinds_of(
    found: int, ops: Sequence[Write], syncs: Sequence[Sync], *, writethrough: bool = False, refused: Sequence[int] = ()
) -> list[str]:
    """What is said if a restart finds `found`, after the writes of one job that had found nothing."""
    judge = Judge(1, writethrough=writethrough)
    made = [Op(0, value, rank, begin, end, number in refused) for number, (value, rank, begin, end) in enumerate(ops)]
    assert judge.round(Notes(seen=[(0, 0, "")], ops=made, syncs=list(syncs))) == []
    return [each.kind for each in judge.round(Notes(seen=[(0, found, "")]))]


ONE_PUT = [(OLD, 0, 10, 20), (NEW, 0, 30, 40)]
SYNCED = [Sync(0, 50, 60)]
DELETED = [(OLD, 0, 10, 20), (0, 0, 30, 40)]


@pytest.mark.parametrize(
    ("found", "ops", "syncs", "kinds"),
    [
        (NEW, ONE_PUT, SYNCED, []),
        (OLD, ONE_PUT, SYNCED, ["lost"]),
        (0, ONE_PUT, SYNCED, ["lost"]),
        (-1, ONE_PUT, SYNCED, ["wrong"]),
        (999, ONE_PUT, SYNCED, ["lost"]),  # a version that this key never had since
        (OLD, ONE_PUT, [], []),  # nothing was promised
        (0, ONE_PUT, [], []),
        (OLD, ONE_PUT, [Sync(0, 50)], []),  # a sync that did not return
        (OLD, ONE_PUT, [Sync(0, 25, 28)], []),  # before the second
        (0, ONE_PUT, [Sync(0, 25, 28)], ["lost"]),
        (OLD, ONE_PUT, [Sync(1, 50, 60)], []),  # another rank's
        (OLD, ONE_PUT, [Sync(0, 50, flush=1), Sync(1, 50, 60, flush=1)], ["lost"]),  # a flush that returned anywhere
        (NEW, [(OLD, 0, 10, 20), (NEW, 0, 70, NEVER)], SYNCED, []),  # under way when it was killed
        (OLD, [(OLD, 0, 10, 20), (NEW, 0, 70, NEVER)], SYNCED, []),
        (0, [(OLD, 0, 10, 20), (NEW, 0, 70, NEVER)], SYNCED, ["lost"]),
        (0, DELETED, SYNCED, []),
        (OLD, DELETED, SYNCED, ["resurrected"]),
        (OLD, DELETED, [], []),
        (0, [(OLD, 0, 10, 20), (0, 0, 70, NEVER)], SYNCED, []),  # the delete was under way
    ],
)
def test_keys_of_one_rank(found: int, ops: list[Write], syncs: list[Sync], kinds: list[str]) -> None:
    assert kinds_of(found, ops, syncs) == kinds


@pytest.mark.parametrize(
    ("found", "kinds"), [(OLD, []), (0, ["lost"]), (NEW, ["lost"])], ids=["as it was", "gone", "never written"]
)
def test_what_a_restart_has_found_is_durable(found: int, kinds: list[str]) -> None:
    judge = Judge(1, writethrough=False)
    judge.round(Notes(seen=[(0, 0, "")], ops=[Op(0, OLD, 0, 10)]))  # under way when the job was killed
    assert judge.round(Notes(seen=[(0, OLD, "")])) == []
    assert [each.kind for each in judge.round(Notes(seen=[(0, found, "")]))] == kinds


def test_what_a_restart_did_not_find_stays_away() -> None:
    judge = Judge(1, writethrough=False)
    judge.round(Notes(seen=[(0, 0, "")], ops=[Op(0, OLD, 0, 10, 20)]))
    assert judge.round(Notes(seen=[(0, 0, "")])) == []  # it was never promised
    assert [each.kind for each in judge.round(Notes(seen=[(0, OLD, "")]))] == ["resurrected"]


@pytest.mark.parametrize(
    ("found", "other", "syncs", "kinds"),
    [
        # The other rank's put may have replaced the one that was synced, and was not synced itself.
        (0, (OTHER, 1, 30, 40), SYNCED, []),
        (0, (OTHER, 1, 15, 40), SYNCED, []),
        (0, (OTHER, 1, 30, NEVER), SYNCED, []),
        (0, (OTHER, 1, 55, 58), SYNCED, ["lost"]),  # it began after the sync had
        (0, (OTHER, 1, 1, 5), SYNCED, ["lost"]),  # it was over before
        (OTHER, (OTHER, 1, 1, 5), SYNCED, ["lost"]),
        (OTHER, (OTHER, 1, 5, 15), SYNCED, []),
        # Both are promised: one of them is there.
        (0, (OTHER, 1, 30, 40), [*SYNCED, Sync(1, 50, 60)], ["lost"]),
        (OLD, (OTHER, 1, 15, 40), [*SYNCED, Sync(1, 50, 60)], []),
        (OTHER, (OTHER, 1, 15, 40), [*SYNCED, Sync(1, 50, 60)], []),
        (OLD, (OTHER, 1, 30, 40), [*SYNCED, Sync(1, 50, 60)], ["lost"]),
        (OLD, (0, 1, 30, 40), [*SYNCED, Sync(1, 50, 60)], ["resurrected"]),
        (0, (OTHER, 1, 30, 40), [Sync(0, 50, 60, flush=1), Sync(1, 50, flush=1)], ["lost"]),
    ],
)
def test_keys_of_all_ranks(found: int, other: Write, syncs: list[Sync], kinds: list[str]) -> None:
    assert kinds_of(found, [(OLD, 0, 10, 20), other], syncs) == kinds


def test_with_writethrough_a_put_that_has_returned_is_promised() -> None:
    assert kinds_of(OLD, ONE_PUT, [], writethrough=True) == ["lost"]
    assert kinds_of(NEW, ONE_PUT, [], writethrough=True) == []
    assert kinds_of(OLD, DELETED, [], writethrough=True) == ["resurrected"]


def test_a_put_that_was_refused_promises_nothing() -> None:
    assert kinds_of(OLD, ONE_PUT, SYNCED, refused=[1]) == []
    assert kinds_of(0, ONE_PUT, SYNCED, refused=[1]) == []


def test_ranks_that_find_different_things() -> None:
    found = Judge(1, writethrough=False).round(Notes(seen=[(0, 0, "rank 0"), (0, OLD, "rank 1")]))
    assert [each.kind for each in found] == ["lost"]
    assert "rank 1" in found[0].text


def test_a_journal_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.note("pid", 7, ["name"])
    journal.begin("put", 3, OLD)
    journal.begin("delete", 4)
    journal.done([0])
    journal.begin("flush")
    journal.done()
    journal.begin("put", 3, NEW)
    whole = path.read_bytes()
    notes = read([path, tmp_path / "none"])
    assert (notes.pids, notes.shared) == ([7], ["name"])
    assert [(op.key, op.value, op.refused, op.end < NEVER) for op in notes.ops] == [
        (3, OLD, True, True), (4, 0, False, True), (3, NEW, False, False),
    ]  # fmt: skip
    assert [(sync.flush, sync.end < NEVER) for sync in notes.syncs] == [(1, True)]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert len(list(lines(path))) == whole[:size].count(b"\n")
    assert len(read([path]).ops) == 2  # the last one had not begun


def test_rounds_follow_from_the_seed(tmp_path: Path) -> None:
    def rounds(seed: int) -> list[Round]:
        planner, ranks, made = Planner(seed, 10), 0, []
        for number in range(1, 200):
            made.append(planner.round(number, tmp_path, KINDS[number % len(KINDS)], ranks))
            assert made[-1].ranks != ranks
            ranks = made[-1].ranks
        return made

    assert rounds(1) == rounds(1)
    assert rounds(1) != rounds(2)
    path = tmp_path / "round"
    for each in rounds(1):
        each.write(path)
        assert Round.read(path) == each
    assert {each.kill.step for each in rounds(1) if each.kill} == {"", *STEPS}
    assert settings_of(KINDS[0])["durability"] == KINDS[0].durability


class Died(Exception):
    """In the place of a SIGKILL."""


class Harmless(Trap):
    def end(self) -> None:  # type: ignore[override]
        raise Died


class Pages:
    """Files that keep what was written to them."""

    def __init__(self) -> None:
        self.written = b""

    def create(self, _: str) -> Pages:
        return self

    def write_at(self, _: int, *parts: bytes) -> None:
        self.written += b"".join(parts)


@pytest.mark.parametrize(("step", "left"), [("before", 0), ("torn", None), ("after", 12)])
def test_a_rank_ends_at_the_step_that_was_chosen(step: str, left: int | None) -> None:
    inner = Pages()
    trap = Harmless(Kill("one", 1, "step", f"record:{step}", 2), 1, [0, 1], 1, lambda _: None)
    file = SteppingFiles(inner, trap).create("name")
    file.write_at(4096, b"once", b"", b"1234")
    file.write_at(0, b"")  # a header
    assert len(inner.written) == 8
    with pytest.raises(Died):
        file.write_at(8192, b"again", b"", b"1234567")
    rest = len(inner.written) - 8
    assert rest == left if left is not None else 0 < rest < 12
    assert trap.passed["record:before"] == 2


def test_others_and_other_times_do_not_end() -> None:
    for rank, phase in ((0, "step"), (1, "close")):
        trap = Harmless(Kill("one", 1, phase, "rename:after"), rank, [0, 1], 1, lambda _: None)
        trap.hit("rename:after")
        assert trap.passed["rename:after"] == 1
    trap.closing()
    with trap.within("compact"):
        trap.hit("rename:after")
    with pytest.raises(Died):
        trap.hit("rename:after")
