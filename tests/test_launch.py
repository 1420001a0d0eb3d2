"""The MPI tests on several numbers of ranks and nodes, and what needs a job of its own, one after the other.

Each job has a time limit, so that a hang is a failure here and not in CI.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import launch
import pytest

pytestmark = pytest.mark.launch

SUITE_LIMIT_S = 400
PROGRAM_LIMIT_S = 90
# Ranks (None: no launcher) and nodes, with the least number of tests that pass: they really ran. 2 and 4 ranks on 2
# nodes: one and two ranks on each. 4 on 4: a copy for each rank, and all memory but the own is away.
JOBS = {(None, 1): 120, (1, 1): 400, (2, 1): 400, (2, 2): 400, (4, 1): 40, (4, 2): 250, (4, 4): 7}
OF_NODES = [f"tests/mpi/test_{name}.py" for name in ("copies", "dedup", "many_nodes", "pool")]

needs_mpiexec = pytest.mark.skipif(launch.mpiexec() is None, reason="there is no mpiexec beside python or in PATH")


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """Fill the kernel cache with nobody waiting: ranks that wait for the one that compiles take its cores."""
    program = "from cascade_mpi.kernels.jit import warm; import cascade_mpi.onesided, cascade_mpi.kernels.fill; warm()"
    subprocess.run([sys.executable, "-c", program], cwd=launch.ROOT, check=True, timeout=300)


def program(name: str, *arguments: str, ranks: int | None = 2, cliques: int = 1, **variables: str) -> launch.Ended:
    command = [str(launch.PROGRAMS / f"{name}.py"), *arguments]
    return launch.run(command, ranks=ranks, cliques=cliques, seconds=PROGRAM_LIMIT_S, **variables)


@pytest.mark.parametrize(("ranks", "cliques"), JOBS, ids=str)
def test_the_mpi_tests(tmp_path: Path, ranks: int | None, cliques: int) -> None:
    if ranks is not None and launch.mpiexec() is None:
        pytest.skip("there is no mpiexec beside python or in PATH")
    command = [
        "-m", "pytest", "--with-mpi", "-q", "-p", "no:cacheprovider",
        "-o", "faulthandler_timeout=180", "-o", "faulthandler_exit_on_timeout=true",
    ]  # fmt: skip
    # Without a launcher there is one rank too: only what may differ then is run once more. 4 ranks of one node
    # take the paths of 2 ranks of one and 4 of two: the essential tests will do.
    if cliques == 4:
        command += [*OF_NODES, "-m", "nodes"]
    else:
        command += ["tests/mpi"] if ranks else ["tests/mpi/test_store.py", "tests/mpi/test_embedding.py"]
        if ranks == 4:
            command += ["-m", "core" if cliques == 1 else "core or not alone"]
    results = tmp_path / "results"
    results.mkdir()
    ended = launch.run(command, ranks=ranks, cliques=cliques, seconds=SUITE_LIMIT_S, TEST_RESULTS_DIR=str(results))
    assert ended.status == 0, str(ended)
    counted = launch.counts(results, ranks or 1)
    assert len(counted) == (ranks or 1), str(ended)
    for each in counted:
        assert each["size"] == (ranks or 1)
        assert each["failed"] == each["testsfailed"] == 0
        assert each["passed"] == counted[0]["passed"]
        assert each["passed"] > JOBS[ranks, cliques], str(ended)


@needs_mpiexec
@pytest.mark.parametrize("level", ["single", "funneled", "serialized"])
def test_thread_levels_below_multiple(level: str) -> None:
    ended = program("thread_level", level, ranks=2, cliques=2)
    assert ended.status == 0, str(ended)
    assert ended.output.count("works") == 2, str(ended)


@pytest.mark.parametrize("ranks", [None, pytest.param(2, marks=needs_mpiexec)])
def test_a_forked_child_gets_an_error(ranks: int | None) -> None:
    ended = program("forked_child", ranks=ranks)
    assert ended.status == 0, str(ended)
    assert ended.output.count("the child was refused 14 times") == (ranks or 1), str(ended)
    assert ended.output.count("the parent goes on") == (ranks or 1), str(ended)


@needs_mpiexec
@pytest.mark.parametrize("cliques", [1, 2])
@pytest.mark.parametrize("where", ["body", "thread"])
def test_an_error_on_one_rank_ends_the_job(where: str, cliques: int) -> None:
    ended = program("error_inside", where, ranks=3 if cliques == 1 else 2, cliques=cliques)
    assert ended.status not in (0, 124, 137), str(ended)
    assert "Traceback (most recent call last)" in ended.errors, str(ended)
    assert "ValueError: planted" in ended.errors, str(ended)
    assert "in fail_here" in ended.errors, str(ended)
    assert "an error inside 'with Store' ends the job" in ended.errors, str(ended)
    assert "reached the end" not in ended.output, str(ended)


def test_an_error_on_a_single_rank_is_an_exception() -> None:
    ended = program("error_inside", "body", ranks=None)
    assert ended.status == 1, str(ended)
    assert ended.errors.count("ValueError: planted") == 1, str(ended)


@needs_mpiexec
def test_sys_exit_with_zero_closes_the_store() -> None:
    ended = program("clean_exit", ranks=2)
    assert ended.status == 0, str(ended)
    assert ended.output.count("reached the end") == 2, str(ended)
    assert "Traceback" not in ended.errors, str(ended)


@needs_mpiexec
@pytest.mark.parametrize("cliques", [1, 2])
def test_a_killed_rank_ends_the_job(cliques: int) -> None:
    ended = program("killed_rank", ranks=2, cliques=cliques)
    assert ended.status not in (0, 124), str(ended)
    assert "reached the end" not in ended.output, str(ended)


@needs_mpiexec
def test_a_store_that_is_not_closed_does_not_hang() -> None:
    ended = program("never_closed", ranks=2, cliques=2)
    assert ended.status == 0, str(ended)
    assert ended.output.count("reached the end") == 2, str(ended)
    assert "Traceback" not in ended.errors, str(ended)


def test_importing_the_package_does_not_initialise_mpi() -> None:
    ended = program("import_only", ranks=None)
    assert ended.status == 0, str(ended)
    assert "MPI is untouched" in ended.output, str(ended)


def test_the_command_line_help_needs_no_mpi() -> None:
    ended = launch.run(["-m", "cascade_mpi", "--help"], ranks=None, seconds=PROGRAM_LIMIT_S)
    assert ended.status == 0, str(ended)
    assert "workload" in ended.output, str(ended)
