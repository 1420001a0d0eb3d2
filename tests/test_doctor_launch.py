"""`cascade doctor` and `cascade cleanup` for real: alone, in jobs, with a broken MPI, and after a killed job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import launch
import pytest

pytestmark = pytest.mark.launch

LIMIT_S = 100
needs_mpiexec = pytest.mark.skipif(launch.mpiexec() is None, reason="there is no mpiexec beside python or in PATH")


def doctor(*options: str, ranks: int | None = None, status: int = 0, **more: Any) -> dict[str, Any]:
    """The JSON object of one examination, and its findings by name."""
    command = ["-m", "cascade_mpi", "doctor", "--json", *options]
    ended = launch.run(command, ranks=ranks, seconds=LIMIT_S, **more)
    assert ended.status == status, str(ended)
    assert "Traceback" not in ended.errors, str(ended)
    record: dict[str, Any] = json.loads(ended.output)
    assert record["schema"] == 1
    for finding in record["findings"]:
        assert finding["status"] in ("ok", "warning", "problem")
        assert (finding["status"] == "ok") is (finding["remedy"] == "")
    record["by_name"] = {finding["name"]: finding for finding in record["findings"]}
    return record


def test_without_a_launcher(tmp_path: Path) -> None:
    found = doctor("--disk", str(tmp_path))
    assert (found["mpi"], found["ranks"]) == (True, 1)
    names = found["by_name"]
    assert names["world"]["found"] == "1 rank on 1 node"
    assert "needs two ranks" in names["one-sided Get, CAS"]["found"]
    assert names["disk access"]["status"] == "ok"
    assert names["MPI library"]["status"] in ("ok", "warning")


def test_without_mpi() -> None:
    ended = launch.run(["-m", "cascade_mpi", "doctor", "--no-mpi"], ranks=None, seconds=LIMIT_S, MPI4PY_LIBMPI="/gone")
    assert ended.status == 0, str(ended)
    assert "/dev/shm" in ended.output, str(ended)
    assert "MPI library" not in ended.output, str(ended)
    assert "0 problems" in ended.output, str(ended)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_problem(options: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cascade_mpi", "doctor", "--no-mpi", *options]
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False, env=launch.environment()
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_mpi_that_cannot_be_loaded() -> None:
    found = doctor(status=1, MPI4PY_LIBMPI="/gone/libmpi.so")
    assert found["status"] == "problem"
    library = found["by_name"]["MPI library"]
    assert (library["status"], "/gone/libmpi.so" in library["found"]) == ("problem", True)
    assert found["by_name"]["/dev/shm"]["found"]


@needs_mpiexec
def test_two_ranks_on_two_nodes(tmp_path: Path) -> None:
    found = doctor("--disk", str(tmp_path), ranks=2, cliques=2)
    names = found["by_name"]
    assert found["ranks"] == 2
    assert names["world"]["found"] == "2 ranks on 2 nodes"
    assert names["store"]["status"] == names["one-sided Get"]["status"] == "ok"
    assert "each read a block of the next one" in names["store"]["found"]
    assert {len(finding["ranks"]) for finding in found["findings"]} == {2}  # equal findings are one
    assert names["mpiexec"]["status"] == "ok"
    assert "2 ranks read at once" in names["files of other ranks"]["found"]


@needs_mpiexec
def test_processes_that_are_worlds_of_their_own_are_told_once() -> None:
    # What srun --mpi=none or another MPI's mpirun does: a launcher's variables, and no way to meet.
    variables = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
    found = doctor(status=1, SLURM_PROCID="0", **variables)
    assert found["by_name"]["world"]["status"] == "problem"
    command = ["-m", "cascade_mpi", "workload", "--requests", "20"]
    for rank, complaints in (("0", 1), ("1", 0)):
        ended = launch.run(command, ranks=None, seconds=LIMIT_S, SLURM_PROCID=rank, **variables)
        assert ended.status == 2, str(ended)
        assert ended.errors.count("each is a world of 1 rank") == complaints, str(ended)
        assert bool(ended.errors) is bool(complaints), str(ended)
    assert "srun --mpi=list" in found["by_name"]["world"]["remedy"]


@contextmanager
def job_that_holds_memory() -> Iterator[tuple[list[int], list[Path]]]:
    """Two ranks that wait: their process numbers and their shared-memory files."""
    command = [str(launch.mpiexec()), "-n", "2", sys.executable, str(launch.PROGRAMS / "holds_memory.py")]
    files: list[Path] = []
    with subprocess.Popen(
        ["timeout", "-k", "5", str(LIMIT_S), *command],
        env=launch.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().split() for _ in range(2)]
            files += sorted({Path(name) for line in lines for name in line[1:]})
            assert files, lines
            yield [int(line[0]) for line in lines], files
        finally:
            process.terminate()
            process.wait(30)
            for path in files:
                path.unlink(missing_ok=True)


@needs_mpiexec
def test_what_a_killed_job_leaves_is_found_and_removed() -> None:
    with job_that_holds_memory() as (_, living), job_that_holds_memory() as (doomed, dead):
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        for pid in doomed:
            while Path(f"/proc/{pid}/fd").exists() and _alive(pid):
                os.sched_yield()
        long_ago = time.time() - 600
        for path in (*dead, *living):
            os.utime(path, (long_ago, long_ago))

        held = doctor("--no-mpi")["by_name"]["leftover memory"]
        assert ("of dead jobs" in held["found"]) or ("may be in use" in held["found"]), held

        ended = launch.run(["-m", "cascade_mpi", "cleanup", "--alone", "--json"], ranks=None, seconds=LIMIT_S)
        assert ended.status == 0, str(ended)
        states = {Path(file["file"]): file["state"] for file in json.loads(ended.output)["files"]}
        assert {states[path] for path in dead} == {"leftover"}, str(ended)
        assert {states[path] for path in living} == {"used"}, str(ended)
        assert all(path.exists() for path in dead), "it was only to show them"

        ended = launch.run(["-m", "cascade_mpi", "cleanup", "--alone", "--yes"], ranks=None, seconds=LIMIT_S)
        assert ended.status == 0, str(ended)
        assert not any(path.exists() for path in dead), str(ended)
        assert all(path.exists() for path in living), str(ended)


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False
