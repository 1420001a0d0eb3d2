"""A few kills of the crash torture: jobs with SIGKILL, restarts on other ranks, and what was acknowledged is there."""

from __future__ import annotations

import json
from pathlib import Path

import launch
import pytest

from bench.crash_judge import Judge
from bench.crash_launch import compile_kernels, play
from bench.crash_plan import KINDS, Kill, Kind, Round, settings_of

pytestmark = [
    pytest.mark.launch,
    pytest.mark.timeout(300),  # the first one compiles, where there is no cache yet
    pytest.mark.skipif(launch.mpiexec() is None, reason="there is no mpiexec beside python or in PATH"),
]
KEYS = 48
JOB_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compile_kernels()


@pytest.mark.parametrize(
    ("kind", "kill", "seed"),
    [
        (KINDS[0], Kill("one", 1, "step", "synced", 6), 53),  # no flush in the first seven laps
        (KINDS[3], Kill("all", 0, "step", "flush:folder-synced", 4), 7),  # nothing is durable but by a flush
    ],
    ids=["sync", "flush"],
)
def test_one_kill_at_a_step(tmp_path: Path, kind: Kind, kill: Kill, seed: int) -> None:
    judge = Judge(KEYS, writethrough=False)
    ended = play(a_round(1, 2, tmp_path, kind, seed, kill), JOB_S)
    assert ended.killed, ended.errors
    assert ended.notes.step == kill.step
    assert not ended.notes.wrong
    assert judge.round(ended.notes) == []
    assert judge.counts["promised blocks"] >= 30
    assert judge.counts["promised deletes"] >= 5
    after = play(a_round(2, 1, tmp_path, kind, seed, None), JOB_S)
    assert (after.status, after.notes.ended) == (0, 1), after.errors
    assert judge.round(after.notes) == []
    assert judge.counts["seen"] == 2 * KEYS


def a_round(number: int, ranks: int, folder: Path, kind: Kind, seed: int, kill: Kill | None) -> Round:
    laps = 0 if kill is None else 12
    return Round(number, ranks, seed, str(folder), KEYS, kind.shared, kind.syncs, laps, kill, settings_of(kind))


def test_the_command(tmp_path: Path) -> None:
    report = tmp_path / "crash.json"
    ended = launch.run(
        ["-m", "bench", "crash", "--kills=2", "--rounds=2", "--kind=6", "--seed=4", f"--directory={tmp_path}",
         f"--json={report}"],
        ranks=None, seconds=150,
    )  # fmt: skip
    assert ended.status == 0, str(ended)
    result = json.loads(report.read_text())
    assert result["ok"]
    assert (result["lost"], result["wrong"], result["resurrected"], result["jobs_failed"]) == (0, 0, 0, 0)
    assert result["kills"] == 2
    assert result["counts"]["promised blocks"] > 0
    assert "crash: passed" in ended.output
    assert list(tmp_path.iterdir()) == [report]  # a directory that showed nothing wrong is removed
