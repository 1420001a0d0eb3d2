"""The store, its tests and the job scripts under a real Slurm: srun and sbatch on two nodes, and how jobs end.

Both "nodes" of the Slurm that the tests start are this host: MPI and the store see two (they go by what the
process manager says), memory is one, and between them runs a network module that copies through the kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest
import slurm

pytestmark = [pytest.mark.launch, pytest.mark.slurm]

LIMIT_S = 90
WORKLOAD = ["-m", "cascade_mpi", "workload", "--requests", "60", "--dram", "16MiB"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.cluster() as found:
        yield found


def replayed(file: Path) -> dict[str, object]:
    """The result of a workload on two nodes with two ranks each, checked for what every such run must show."""
    result = json.loads(file.read_text())
    assert (result["ranks"], result["nodes"]) == (4, 2)
    assert result["requests"] == 60
    assert result["corrupt"] == 0
    assert result["hits"] + result["unique"] + result["double_computes"] == result["accesses"]
    assert result["tiers"]["node"]["gets"] > 0
    assert result["tiers"]["remote"]["gets"] > 0
    return result


def test_the_workload_on_two_nodes(cluster: slurm.Cluster, tmp_path: Path) -> None:
    ended = cluster.srun([*WORKLOAD, "--json", str(tmp_path / "result.json")], seconds=LIMIT_S)
    assert ended.status == 0, ended
    assert ended.output.count("4 ranks on 2 nodes") == 1, ended
    replayed(tmp_path / "result.json")


def test_the_core_tests_on_two_nodes(cluster: slurm.Cluster, tmp_path: Path) -> None:
    command = ["-m", "pytest", "--with-mpi", "-q", "-p", "no:cacheprovider", "-m", "core", "tests/mpi"]
    ended = cluster.srun(command, seconds=LIMIT_S, TEST_RESULTS_DIR=str(tmp_path))
    assert ended.status == 0, ended
    counted = launch.counts(tmp_path, 4)
    assert len(counted) == 4, ended
    for each in counted:
        assert each["size"] == 4
        assert each["failed"] == each["testsfailed"] == 0
        assert each["passed"] > 20, ended  # they really ran


@pytest.mark.parametrize(("nodes", "per_node", "cliques"), [(2, 2, 1), (2, 1, 1), (1, 4, 2)])
def test_what_the_store_takes_for_a_node(cluster: slurm.Cluster, nodes: int, per_node: int, cliques: int) -> None:
    """Slurm's nodes, also where they are one host; and MPICH's cliques, where Slurm gave one node."""
    program = [str(launch.PROGRAMS / "who_shares.py")]
    ended = cluster.srun(program, nodes=nodes, per_node=per_node, seconds=LIMIT_S, cliques=cliques)
    assert ended.status == 0, ended
    ranks = nodes * per_node
    there = ranks // 2
    assert ended.output.count(f"of {ranks}: node of {there}, store node of {there}, {ranks - there} remote") == ranks, (
        ended
    )


def test_a_killed_rank_ends_the_step(cluster: slurm.Cluster) -> None:
    ended = cluster.srun([str(launch.PROGRAMS / "killed_rank.py")], seconds=LIMIT_S)
    assert ended.status not in (0, 124), ended
    assert "reached the end" not in ended.output, ended
    assert "Killed" in ended.errors, ended  # srun says which task


def test_a_job_that_is_ended_says_why(cluster: slurm.Cluster, end: Callable[[slurm.Cluster, str, int], None]) -> None:
    name = f"cascade-{os.getpid()}"
    command = slurm.step(ENDLESS, f"--job-name={name}")
    with subprocess.Popen(
        launch.limited(command, LIMIT_S),
        cwd=launch.ROOT,
        env=launch.environment(**slurm.RELIABLE),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        first = job.stdout.readline()  # all ranks are there
        assert "4 ranks on 2 nodes" in first, first
        end(cluster, *cluster.jobs(name), job.pid)
        output, errors = job.communicate(timeout=LIMIT_S)
    ended = launch.Ended(job.returncode, first + output, errors)
    assert ended.status not in (0, 124), ended
    assert "SIGTERM" in errors + output or "SIGINT" in errors + output, ended
    assert "Traceback" not in errors, ended
    assert not cluster.jobs(name)
