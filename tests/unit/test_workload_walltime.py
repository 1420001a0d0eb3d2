"""How long a job may still take, and the file that says how far it has come."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces import deal, synthetic
from cascade_mpi.workload import walltime
from cascade_mpi.workload.state import SUMMED, State, read, trace_digest
from cascade_mpi.workload.tally import NAMES, Tally
from cascade_mpi.workload.walltime import DEFAULT_S, grace, parse_left

IN_A_JOB = {"SLURM_JOB_ID": "77"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00\n", 0), ("1:59", 119), ("59:59", 3599), ("1:00:00", 3600), ("2-03:04:05", 2 * 86400 + 3 * 3600 + 245),
        ("", None), ("UNLIMITED", None), ("INVALID", None), ("NOT_SET", None), ("12", None), ("-1:00", None),
    ],
)  # fmt: skip
def test_the_time_left_as_squeue_writes_it(text: str, seconds: int | None) -> None:
    assert parse_left(text) == seconds


class Slurm:
    def __init__(self, left: str, config: str = "") -> None:
        self.answers = {"squeue": left, "scontrol": config}
        self.asked: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> str:
        self.asked.append(list(command))
        return self.answers[command[0]]


@pytest.mark.parametrize(("left", "seconds"), [("2:00", 108), ("10:00", 540), ("0:20", 15), ("0:08", 2), ("0:00", 0)])
def test_most_of_what_slurm_leaves_is_used(left: str, seconds: float) -> None:
    slurm = Slurm(left)
    found = grace(signal.SIGUSR1, IN_A_JOB, slurm)
    assert found.seconds == seconds
    assert "Slurm leaves this job" in found.reason
    assert slurm.asked == [["squeue", "--noheader", "--jobs=77", "--format=%L"]]


@pytest.mark.parametrize(("config", "seconds"), [("KillWait                = 30 sec\n", 25), ("KillWait = 2 sec", 0.5)])
def test_a_cancelled_job_has_what_slurm_waits_before_it_kills(config: str, seconds: float) -> None:
    found = grace(signal.SIGTERM, IN_A_JOB, Slurm("2:00", f"JobAcctGatherType = x\n{config}"))
    assert found.seconds == seconds
    assert "a cancelled job" in found.reason


def test_where_nobody_knows_it_is_said() -> None:
    nobody = Slurm("UNLIMITED")
    assert grace(signal.SIGUSR1, {}, nobody) == (DEFAULT_S, "this is no job of Slurm, and --grace was not given")
    assert nobody.asked == []
    assert "squeue does not say" in grace(signal.SIGUSR1, IN_A_JOB, nobody).reason
    assert "scontrol does not say" in grace(signal.SIGINT, IN_A_JOB, nobody).reason
    assert grace(signal.SIGINT, IN_A_JOB, nobody).seconds == DEFAULT_S


def test_commands_that_fail_hang_or_are_not_there_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walltime, "ASK_LIMIT_S", 0.05)
    assert walltime._run(["true-or-not-there"]) == ""
    assert walltime._run(["false"]) == ""
    assert walltime._run(["sleep", "60"]) == ""
    monkeypatch.undo()
    assert walltime._run(["echo", "2:00"]) == "2:00\n"


# ------------------------------------------------------------------------------------------------------- the state


def tallies(*ranks: dict[str, int]) -> np.ndarray:
    return np.stack([Tally(**each).vector() for each in ranks])


def test_the_sums_over_runs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state = read(path, "t", 100)
    assert (state.position, state.runs, state.counts) == (0, 0, {})
    state = state.after(40, tallies({"requests": 20, "hits": 5}, {"requests": 20, "disk_gets": 3}), 1.5)
    state.write(path)
    state = read(path, "t", 100)
    assert (state.position, state.runs, state.seconds) == (40, 1, 1.5)
    assert state.counts == {name: {"requests": 40, "hits": 5, "disk_gets": 3}.get(name, 0) for name in SUMMED}
    state.after(100, tallies({"requests": 60, "hits": 7}), 2.0).write(path)
    last = read(path, "t", 100)
    assert (last.position, last.runs, last.seconds) == (100, 2, 3.5)
    assert (last.counts["requests"], last.counts["hits"], last.counts["disk_gets"]) == (100, 12, 3)
    assert list(tmp_path.iterdir()) == [path]
    assert set(SUMMED) <= set(NAMES)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trace": "u"}, "of another trace"), ({"position": 101}, "position 101 of 100"), ({"position": -1}, "-1 of"),
        ({"schema": 2}, "schema 2"), ({"counts": 3}, "no state of a workload"),
    ],
)  # fmt: skip
def test_a_wrong_state_is_an_error(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    path = tmp_path / "state"
    State("t", 40, 1, {}).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ConfigError, match=said):
        read(path, "t", 100)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trace": "t"}'])
def test_a_file_that_is_no_state_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no state of a workload"):
        read(path, "t", 100)
    with pytest.raises(ConfigError, match=f"--state {tmp_path}: "):
        read(tmp_path, "t", 100)


def test_a_trace_is_told_apart_whatever_the_number_of_ranks() -> None:
    def digest(requests: int, ranks: int, name: str = "chat", block_bytes: int = 4096) -> str:
        return trace_digest(deal(islice(synthetic(1), requests), 0, ranks), name, block_bytes)

    assert digest(50, 1) == digest(50, 4)
    assert len({digest(50, 1), digest(51, 1), digest(50, 1, "rag"), digest(50, 1, "chat", 8192)}) == 4
