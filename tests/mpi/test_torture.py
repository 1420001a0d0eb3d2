"""A short torture on all ranks: everything that a full run asserts, on fewer reads."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layouts import OPEN_MPI
from mpi4py import MPI

from bench import torture
from bench.history import MISS, PUT, READ
from bench.pauses import Pauses
from bench.racers import Reading, Writing, make_keys
from bench.rounds import play
from bench.stamped import shape_of, stamp, stamp_of, stamp_of_lines, unstamp, value, warm
from bench.torture import PHASES, Options, main, run
from cascade_mpi.kernels import context as c
from cascade_mpi.layout import place
from cascade_mpi.store import Store

Open = Callable[..., Store]
# Where a compare-and-swap waits for its target, a reader hardly ever meets a writer: all phases in one run then, and
# fewer reads, of which none has to be in vain.
READS, RACES = 6000, [("allocate", ("tiny", "large")), ("shared", ("evict", "names"))]
if OPEN_MPI:
    READS, RACES = 1999, [("shared", ("tiny", "evict", "names", "large"))]
several = pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="one rank cannot race")


@several
@pytest.mark.parametrize(("windows", "names"), RACES)
def test_a_short_torture(
    windows: str,
    names: tuple[str, ...],
    comm: MPI.Intracomm,
    assert_all: Callable[..., None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The large blocks a little smaller than in a full run: their arenas would be prefaulted for longer than the race.
    # Where there are few reads there are few puts too: less memory, or nothing has to be evicted.
    less = 2 if OPEN_MPI else 1
    phases = tuple(
        replace(each, dram_bytes=min(each.dram_bytes, 4 << 20) // less, largest=min(each.largest, 1 << 20))
        for each in PHASES if each.name in names
    )  # fmt: skip
    share = sum(each.share for each in phases)
    phases = tuple(replace(each, share=each.share / share) for each in phases)
    report = tmp_path / "torture.json"
    options = Options(READS, 60.0, 5, 40, {"windows": windows}, report, phases)
    status = run(comm, options)
    printed = capfd.readouterr().out
    assert_all(comm, status == 0, printed)
    if comm.rank:
        assert printed == ""
        return
    result = json.loads(report.read_text())
    assert result["ok"]
    assert result["windows"] == windows
    assert result["reads"] >= READS
    assert result["hit_rate"] >= 0.3
    assert [result[name] for name in ("wrong", "stale", "resurrected", "lost", "rounds_failed")] == [0] * 5
    assert result["recheck_retries"] >= options.least_retries
    assert options.least_retries > 0 or OPEN_MPI
    assert result["cell_reuses"] >= options.least_reuses > 0
    assert min(result["paused"].values()) > 0
    assert sum(result["rounds_won_by"]) == 40
    assert "torture: passed" in printed


@several
@pytest.mark.alone
def test_too_few_reads_fail(comm: MPI.Intracomm, capfd: pytest.CaptureFixture[str]) -> None:
    options = Options(10**9, 0.2, 1, 0, {}, None, (replace(PHASES[0], share=1.0),))
    assert run(comm, options) == 1
    out = capfd.readouterr().out
    assert comm.rank or "1000000000 are asked for" in out


@several
@pytest.mark.alone
def test_a_reader_that_sees_an_old_value_is_found(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from a wrong answer of the store to the exit status."""
    kept: dict[object, object] = {}
    honest = Store.get

    def forgetful(store: Store, key: object, out: object = None, **more: object) -> object:
        got = honest(store, key, **more) if out is None else honest(store, key, out, **more)  # type: ignore[arg-type]
        if out is None and got is not None:
            return kept.setdefault(key, got)
        return got

    monkeypatch.setattr(Store, "get", forgetful)
    options = Options(3000, 30.0, 1, 0, {}, None, (replace(PHASES[0], share=1.0),))
    assert run(comm, options) == 1


@pytest.mark.alone
def test_one_rank_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(MPI.COMM_SELF, Options(10, 1.0, 1, 0, {})) == 2
    assert "start 2 or more ranks" in capfd.readouterr().out


@several
def test_rounds_of_two_putters(comm: MPI.Intracomm, open_store: Open, assert_all: Callable[..., None]) -> None:
    store = open_store(comm, index_blocks=1, when_full="refuse")
    pauses = Pauses(store, 3 + comm.rank)
    played = play(comm, store, 100, 3)
    pauses.remove()
    assert_all(comm, played["problems"] == [], str(played["problems"]))
    assert sum(played["won_by"]) == 100
    assert min(played["won_by"]) > 0


@pytest.mark.alone
def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Options] = []
    monkeypatch.setattr(torture, "run", lambda comm, options: started.append(options) or 7)
    words = ["--reads", "5", "--phase", "large", "--windows", "shared", "--seed", "9", "--rounds", "2"]
    assert main(words) == 7
    made = started.pop()
    assert (made.reads, made.seed, made.rounds, made.settings["windows"]) == (5, 9, 2, "shared")
    assert [(each.name, each.share) for each in made.phases] == [("large", 1.0)]
    assert main(["--phase", "none"]) == 2
    assert main(["--help"]) == 0
    assert not started


# ------------------------------------------------------------------------------------------- stamped values


@pytest.mark.alone
def test_every_changed_word_of_a_value_is_seen() -> None:
    warm()
    room = np.empty(1024, np.uint64)
    made = value(room, 3, stamp(2, 77), 1024)
    assert unstamp(stamp_of(made, 3)) == (2, 77)
    flat = room[:128]
    for at in range(128):
        flat[at] ^= np.uint64(1 << (at % 64))
        assert stamp_of(made, 3) == -1
        flat[at] ^= np.uint64(1 << (at % 64))
    assert stamp_of(made, 4) == -1
    assert stamp_of_lines(flat[64:], 3, 1024, 8) == stamp(2, 77)
    assert stamp_of_lines(flat[64:], 3, 1024, 0) == -1
    assert stamp_of_lines(flat[64:], 3, 512, 8) == -1


@pytest.mark.alone
def test_a_mixture_of_two_versions_is_seen() -> None:
    one, other = (value(np.empty(64, np.uint64), 3, stamp(1, number), 512) for number in (5, 9))
    assert shape_of(stamp(1, 5), 512) == shape_of(stamp(1, 9), 512)
    mixed = one.copy()
    flat, source = mixed.reshape(-1).view(np.uint64), other.reshape(-1).view(np.uint64)
    for at in range(8, 64, 8):  # from a line on
        flat[:], flat[at:] = one.reshape(-1).view(np.uint64), source[at:]
        assert stamp_of(mixed, 3) == -1
    assert stamp_of(one.reshape(-1).view(np.uint8), 3) == -2


@pytest.mark.alone
def test_pauses_hold_readers_managers_and_putters(open_store: Open) -> None:
    store = open_store(MPI.COMM_SELF, dram_bytes=16384, when_full="evict")
    pauses = Pauses(store, 1)
    for number in range(1000):
        pauses.vary()
        store.put(number % 7, np.zeros(4096, np.uint8))
        store.get(number % 7)
    assert pauses.spun > 0
    assert pauses.slept["manager"] > 0
    assert pauses.slept["putter"] > 0
    pauses.remove()
    assert store._fabric.context[c.HOOKS] == 0


@pytest.mark.alone
def test_keys_have_twins() -> None:
    keys = make_keys(6, 2, 2, 1)
    places = [place(key >> 64, key & (1 << 64) - 1, 2, 2) for key in keys]
    assert places[0] == places[1]
    assert places[2] == places[3]
    assert len(set(keys)) == 6


@pytest.mark.alone
def test_what_racers_note(open_store: Open) -> None:
    """On one rank, without a race: every put and every read is in the notes."""
    store = open_store(MPI.COMM_SELF, dram_bytes="1MiB", when_full="refuse")
    more = (store, make_keys(4, 1, store._fabric.buckets, 1), 64, 4096)
    writing = Writing(*more, random.Random(1))
    writing.run(1, lambda steps: steps == 200, prefixes=False)
    reading = Reading(*more, random.Random(2))
    reading.run(lambda reads: reads >= 300)
    wrote, read = writing.log.rows(), reading.log.rows()
    assert int((wrote[:, 3] == PUT).sum()) == writing.counts["puts"] > 100
    assert int((read[:, 3] == READ).sum()) == reading.counts["hits"]
    assert int(np.isin(read[:, 3], (READ, MISS)).sum()) >= reading.counts["reads"] >= 300
    assert set(read[read[:, 3] == READ, 4]) <= set(wrote[wrote[:, 3] == PUT, 4])
    assert (wrote[:, 0] <= wrote[:, 1]).all()
    assert reading.wrong == []
