"""Jobs that are interrupted, killed or wrong: they end within seconds and say why, once.

Each is a real job of two ranks in the middle of a replay; when it is there is told by its first line of metrics.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import launch
import psutil
import pytest

pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(launch.mpiexec() is None, reason="there is no mpiexec beside python or in PATH"),
]

START_S, END_S = 120, 60  # generous: the machine may be busy. The replay itself would take ten minutes


class Job(NamedTuple):
    """A job in the middle of a replay."""

    mpiexec: subprocess.Popen[str]
    ranks: dict[int, psutil.Process]

    def end(self) -> launch.Ended:
        output, errors = self.mpiexec.communicate(timeout=END_S)
        return launch.Ended(self.mpiexec.returncode, output, errors)


@contextmanager
def replaying(folder: Path, *options: str) -> Iterator[Job]:
    """Start a timed replay on two ranks; a fifo in the place of the file of metrics tells when it is under way."""
    fifo = folder / "metrics"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = [sys.executable, "-m", "cascade_mpi", "workload", "--timed", "20", "--requests", "3000"]
    started = subprocess.Popen(
        [str(launch.mpiexec()), "-n", "2", *command, "--block-bytes", "4KiB", "--metrics", str(fifo), *options],
        cwd=launch.ROOT, env=launch.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert select.select([reader], [], [], START_S)[0], "the replay did not begin"
        yield Job(started, _ranks(started.pid))
    finally:
        if started.poll() is None:  # the test has failed: nothing of it may stay
            for process in psutil.Process(started.pid).children(recursive=True):
                process.kill()
            started.kill()
        os.close(reader)


def _ranks(launcher: int) -> dict[int, psutil.Process]:
    """The ranks below a launcher. Its proxies and rank 0's sentinel are there too."""
    found = {}
    for process in psutil.Process(launcher).children(recursive=True):
        if "workload" in process.cmdline() and "PMI_RANK" in process.environ():
            found[int(process.environ()["PMI_RANK"])] = process
    assert sorted(found) == [0, 1]
    return found


def to_the_launcher(job: Job) -> None:
    job.mpiexec.send_signal(signal.SIGINT)


def to_one_rank(job: Job) -> None:
    job.ranks[1].send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("send", "status", "said"),
    [
        (to_the_launcher, 130, ["cascade: SIGINT (Ctrl-C): ending with what is done so far; once more ends at once"]),
        (to_one_rank, 143, []),  # only rank 0 says when a signal has come, to itself
    ],
)
def test_an_interrupted_job_shows_what_it_has_done(
    tmp_path: Path, send: Callable[[Job], None], status: int, said: list[str]
) -> None:
    with replaying(tmp_path) as job:
        send(job)
        ended = job.end()
    assert ended.status == status, str(ended)
    assert ended.output.count("interrupted after ") == 1, str(ended)
    assert " of 3,000 requests" in ended.output, str(ended)
    assert "of what was replayed" in ended.output, str(ended)
    assert "Traceback" not in ended.errors, str(ended)
    assert [line for line in ended.errors.splitlines() if "cascade: " in line] == said, str(ended)


def test_a_rank_that_is_stuck_does_not_keep_the_job_alive(tmp_path: Path) -> None:
    with replaying(tmp_path) as job:
        job.ranks[1].suspend()
        job.ranks[0].send_signal(signal.SIGINT)
        ended = job.end()
    assert ended.status == 130, str(ended)
    assert ended.errors.count("cascade: SIGINT (Ctrl-C): ") == 2, str(ended)
    assert "SIGINT (Ctrl-C): not all ranks came to the next barrier within 3 s" in ended.errors, str(ended)
    assert "interrupted after" not in ended.output, str(ended)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_job_and_is_named(tmp_path: Path, rank: int) -> None:
    with replaying(tmp_path) as job:
        job.ranks[rank].kill()
        ended = job.end()
    assert ended.status not in (0, 124), str(ended)
    said = [line for line in ended.errors.splitlines() if line.startswith("cascade: ")]
    assert len(said) == 1, str(ended)
    assert "has died" in said[0], str(ended)
    # Which one is known unless the launcher was faster than the sentinel.
    assert f"rank {rank} has died" in said[0] or "the launcher has killed the others" in said[0], str(ended)


def test_a_killed_job_is_gone_on_with_by_another_number_of_ranks(tmp_path: Path) -> None:
    """Every put of the first job is durable when it returns; the trace needs four times the memory."""
    hits, state, result = launch.growing(tmp_path / "trace.jsonl", 40, 3), tmp_path / "state", tmp_path / "result"
    options = ["--trace", str(tmp_path / "trace.jsonl"), "--format", "mooncake", "--disk", str(tmp_path / "kv")]
    options += ["--durability", "writethrough", "--dram-total", "1MiB", "--block-bytes", "16KiB", "--state", str(state)]
    pace = ["--timed", "20", "--window", "4", "--flush-every", "0.1", "--requests", "120"]
    with replaying(tmp_path, *options, *pace) as job:
        deadline = time.monotonic() + START_S
        while (not state.exists() or json.loads(state.read_text())["position"] < 50) and time.monotonic() < deadline:
            assert job.mpiexec.poll() is None, job.end()
            time.sleep(0.02)
        job.ranks[1].kill()
        ended = job.end()
    assert ended.status not in (0, 124), str(ended)
    again = ["-m", "cascade_mpi", "workload", *options, "--json", str(result)]
    ended = launch.run(again, ranks=1, seconds=START_S)
    assert ended.status == 0, str(ended)
    found = json.loads(result.read_text())
    assert 50 <= found["first"] < 120, str(ended)
    assert found["warm"] >= 2 * found["first"], ended  # each request has two blocks that none before it had
    assert (found["corrupt"], found["double_computes"], found["disk"]["damaged"]) == (0, 0, 0), str(ended)
    assert found["tiers"]["disk"]["gets"] > 0, str(ended)
    whole = found["parts"]
    assert whole["requests"] == 120, str(ended)
    assert whole["hits"] >= hits, ended  # and those that the kill has come behind, which are served once more
    assert whole["hits"] + whole["computes"] == whole["accesses"], str(ended)


def test_a_wrong_trace_is_said_once_with_its_place(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    good = '{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [4]}\n'
    trace.write_text(good + good.replace("[4]", '"x"'))
    command = ["-m", "cascade_mpi", "workload", "--format", "mooncake", "--trace", str(trace)]
    ended = launch.run(command, ranks=2, seconds=START_S)
    assert ended.status == 2, str(ended)
    assert ended.errors.count("trace.jsonl, line 2: field 'hash_ids'") == 1, str(ended)
    assert ended.errors.count("cascade: ") == 1, str(ended)
