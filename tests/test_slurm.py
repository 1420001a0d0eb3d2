"""The store, its tests and the job scripts under a real Slurm: srun and sbatch on two nodes, and how jobs end.

Both "nodes" of the Slurm that the tests start are this host: MPI and the store see two (they go by what the
process manager says), memory is one, and between them runs a network module that copies through the kernel.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import launch
import pytest
import slurm

pytestmark = [pytest.mark.launch, pytest.mark.slurm]

LIMIT_S = 120  # alone on two cores everything here takes under half a minute
WORKLOAD = ["-m", "cascade_mpi", "workload", "--requests", "60", "--dram", "16MiB"]
ENDLESS = ["-m", "cascade_mpi", "workload", "--requests", "1000", "--dram", "16MiB", "--timed", "0.001"]
SMALL_JOB = {"JOB_DRAM": "16MiB", "JOB_OPTIONS": "--requests 60"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.cluster() as found:
        yield found


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """What a site sets for the job scripts: here the Python of these tests, and small values."""
    return {"JOB_VENV": str(Path(sys.executable).parents[1]), "JOB_SCRATCH": str(tmp_path), **SMALL_JOB}


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
    assert ended.status == 0, str(ended)
    assert ended.output.count("4 ranks on 2 nodes") == 1, str(ended)
    replayed(tmp_path / "result.json")


def test_the_core_tests_on_two_nodes(cluster: slurm.Cluster, tmp_path: Path) -> None:
    command = ["-m", "pytest", "--with-mpi", "-q", "-p", "no:cacheprovider", "-m", "core", "tests/mpi"]
    ended = cluster.srun(command, seconds=LIMIT_S, TEST_RESULTS_DIR=str(tmp_path))
    assert ended.status == 0, str(ended)
    counted = launch.counts(tmp_path, 4)
    assert len(counted) == 4, str(ended)
    for each in counted:
        assert each["size"] == 4
        assert each["failed"] == each["testsfailed"] == 0
        assert each["passed"] > 20, ended  # they really ran


@pytest.mark.parametrize(("nodes", "per_node", "cliques"), [(2, 2, 1), (1, 4, 2)], ids=["slurm", "cliques"])
def test_what_is_a_node(cluster: slurm.Cluster, nodes: int, per_node: int, cliques: int) -> None:
    """Slurm's nodes, also where both are one host; and MPICH's cliques, where Slurm gave one node."""
    program = [str(launch.PROGRAMS / "who_shares.py")]
    ended = cluster.srun(program, nodes=nodes, per_node=per_node, seconds=LIMIT_S, cliques=cliques)
    assert ended.status == 0, str(ended)
    assert len(ended.output.splitlines()) == 4, str(ended)
    for line in ended.output.splitlines():
        rank = int(line.split()[1])
        sharing = [0, 1] if rank < 2 else [2, 3]  # Slurm deals ranks in blocks, MPICH deals cliques in turn
        if cliques > 1:
            sharing = [rank % 2, rank % 2 + 2]
        assert line == f"rank {rank} of 4: nodes 2, MPI sees 2 here, the store {sharing}, 2 remote gets", str(ended)


def test_processes_without_a_common_world_are_explained(cluster: slurm.Cluster) -> None:
    ended = cluster.srun(WORKLOAD, "--mpi=none", nodes=1, seconds=LIMIT_S)
    assert ended.status not in (0, 124, 137), str(ended)
    assert "srun started 2 processes, but MPI joined none of them" in ended.errors, str(ended)
    assert "--mpi=pmi2" in ended.errors, str(ended)
    assert "requests" not in ended.output, ended  # neither replayed anything


def test_a_killed_rank_ends_the_step(cluster: slurm.Cluster) -> None:
    ended = cluster.srun([str(launch.PROGRAMS / "killed_rank.py")], seconds=LIMIT_S)
    assert ended.status not in (0, 124), str(ended)
    assert "reached the end" not in ended.output, str(ended)
    assert "task 3: Killed" in ended.errors, str(ended)


@contextmanager
def replaying(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The name and the srun of a job in the middle of a replay, which its first line of metrics has told."""
    name, fifo = f"cascade-{os.getpid()}", folder / "metrics"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = slurm.step([*ENDLESS, "--metrics", str(fifo)], f"--job-name={name}")
    with subprocess.Popen(
        command, cwd=launch.ROOT, env=launch.environment(**slurm.RELIABLE), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as srun:  # fmt: skip
        try:
            assert select.select([reader], [], [], LIMIT_S)[0], "the replay did not begin"
            yield name, srun
        finally:
            srun.kill()  # it has ended, unless the test failed
            os.close(reader)
            fifo.unlink()


@pytest.mark.parametrize("options", [[], ["--signal=INT"]], ids=["scancel", "scancel-int"])
def test_a_job_that_is_cancelled_shows_what_it_has_done(
    cluster: slurm.Cluster, tmp_path: Path, options: list[str]
) -> None:
    """After scancel Slurm leaves the ranks KillWait seconds, 2 here; after a signal of one's choice all they need."""
    with replaying(tmp_path) as (name, srun):
        slurm.ask("scancel", *options, *cluster.jobs(name))
        output, errors = srun.communicate(timeout=LIMIT_S)
    cluster.cancel(name)
    ended = launch.Ended(srun.returncode, output, errors)
    assert ended.status not in (0, 124), str(ended)
    assert ended.errors.count(f"cascade: {'SIGINT' if options else 'SIGTERM'} (") == 1, str(ended)
    assert "Traceback" not in ended.errors, str(ended)
    if options:
        assert ended.output.count("interrupted after ") == 1, str(ended)


def test_ctrl_c_ends_a_job_at_once(cluster: slurm.Cluster, tmp_path: Path) -> None:
    """srun answers a second Ctrl-C with SIGINT and, within a tenth of a second, SIGKILL: one line is all there is
    time for, and on busy cores not even that, so it has three tries."""
    for _ in range(3):
        with replaying(tmp_path) as (name, srun):
            srun.send_signal(signal.SIGINT)  # after the first one srun only tells how its tasks are
            assert srun.stderr is not None
            said = ""
            while "one more within" not in said and (line := srun.stderr.readline()):
                said += line
            srun.send_signal(signal.SIGINT)
            output, errors = srun.communicate(timeout=LIMIT_S)
        cluster.cancel(name)
        ended = launch.Ended(srun.returncode, output, said + errors)
        assert ended.status not in (0, 124), str(ended)
        assert "Traceback" not in ended.errors, str(ended)
        if "cascade: SIGINT (Ctrl-C): ending with what is done so far" in ended.errors:
            break
    else:
        pytest.fail(f"rank 0 never said why it ended: {ended}")


def test_workload_sbatch(cluster: slurm.Cluster, site: dict[str, str], tmp_path: Path) -> None:
    ended = cluster.sbatch("jobs/workload.sbatch", output=tmp_path / "job.out", seconds=LIMIT_S, **site)
    assert ended.status == 0, str(ended)
    for rank in range(4):
        where = f"job: rank {rank} on node{rank // 2 + 1}"
        assert any(line.startswith(where) and "cpus" in line for line in ended.output.splitlines()), str(ended)
    assert "0 problems" in ended.output, ended  # doctor's
    (result,) = tmp_path.glob("workload-*.json")
    replayed(result)


def test_a_job_whose_time_is_up_goes_on_with_what_is_on_disk(
    cluster: slurm.Cluster, site: dict[str, str], tmp_path: Path
) -> None:
    """As `--signal` does it, but at once; the trace needs four times the memory, and the second job ends it."""
    hits, fifo, output = launch.growing(tmp_path / "trace.jsonl", 40, 3), tmp_path / "metrics", tmp_path / "job.out"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    options = f"--format mooncake --timed 24 --verify full --metrics {fifo}"
    site |= {"JOB_TRACE": str(tmp_path / "trace.jsonl"), "JOB_DRAM": "1MiB", "JOB_DISK": str(tmp_path / "kv")}
    site |= {"JOB_CHECKS": "0"}
    try:
        job = cluster.submit("jobs/workload.sbatch", output=output, **(site | {"JOB_OPTIONS": options}))
        assert select.select([reader], [], [], LIMIT_S)[0], f"the replay did not begin: {output.read_text()}"
        slurm.ask("scancel", "--signal=USR1", job)
        ended = cluster.wait(job, output=output, seconds=LIMIT_S)
    finally:
        os.close(reader)
    assert ended.status == 0, str(ended)
    said = "cascade: SIGUSR1 (its time is nearly up): ending with what is done so far"
    assert ended.output.count(said) == 1, str(ended)
    assert "cascade: writing what is in memory to" in ended.output, str(ended)
    assert "(Slurm leaves this job " in ended.output, str(ended)
    assert ended.output.count("job: not finished, queued again (restart 1 of at most 20)") == 1, str(ended)
    assert "where an earlier run has ended" in ended.output, str(ended)
    assert re.search(r"warm start: \d+ blocks of the trace are on disk", ended.output), str(ended)
    (file,) = tmp_path.glob("workload-*.json")
    result = json.loads(file.read_text())
    assert 0 < result["first"] < result["requests"] == 120, str(ended)
    assert result["tiers"]["disk"]["gets"] > 0, str(ended)
    whole = result["parts"]
    assert (whole["runs"], whole["requests"], whole["corrupt"]) == (2, 120, 0), str(ended)
    assert (whole["hits"], whole["computes"]) == (hits, 40 * 6), ended  # as without the end in between


def test_test_sbatch(cluster: slurm.Cluster, site: dict[str, str], tmp_path: Path) -> None:
    """Options given to sbatch win over the script's: here two ranks in all."""
    site |= {"JOB_TESTS": "-m core tests/mpi/test_store.py", "TEST_RESULTS_DIR": str(tmp_path)}
    options = ["--ntasks-per-node=1"]
    ended = cluster.sbatch("jobs/test.sbatch", *options, output=tmp_path / "job.out", seconds=LIMIT_S, **site)
    assert ended.status == 0, str(ended)
    counted = launch.counts(tmp_path, 2)
    assert [each["size"] for each in counted] == [2, 2], str(ended)
    assert all(each["passed"] > 10 and each["failed"] == 0 for each in counted), str(ended)
    assert ended.output.count(" passed") == 1, ended  # rank 0's alone


NO_GPUS = ["--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1"]  # this Slurm knows of none


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("", "job: 4 of 4 tasks see no GPU, the first is rank 0 on node1"),
        ("0", "job: ranks 0 and 1 on node1 both take device GPU 0 (each sees 1)"),
    ],
    ids=["none", "one-for-two"],
)
def test_gpu_sbatch_refuses(
    cluster: slurm.Cluster, site: dict[str, str], tmp_path: Path, devices: str, message: str
) -> None:
    site |= {"CUDA_VISIBLE_DEVICES": devices}
    ended = cluster.sbatch("jobs/gpu.sbatch", *NO_GPUS, output=tmp_path / "job.out", seconds=LIMIT_S, **site)
    assert ended.status not in (0, 124), str(ended)
    assert message in ended.output, str(ended)
    assert not list(tmp_path.glob("*.json"))


def test_gpu_sbatch(cluster: slurm.Cluster, site: dict[str, str], tmp_path: Path) -> None:
    """With a device for each rank, if only by name: the binding, doctor, and the workload in DRAM."""
    site |= {"CUDA_VISIBLE_DEVICES": "0,1"}
    ended = cluster.sbatch("jobs/gpu.sbatch", *NO_GPUS, output=tmp_path / "job.out", seconds=LIMIT_S, **site)
    assert ended.status == 0, str(ended)
    for local_rank in range(2):
        lines = [line for line in ended.output.splitlines() if f"local rank {local_rank}: cpus" in line]
        assert len(lines) == 2, str(ended)
        assert all(line.endswith(f"device GPU {local_rank} of 2") for line in lines), str(ended)
    (result,) = tmp_path.glob("gpu-*.json")
    replayed(result)


def test_nothing_is_left_running(cluster: slurm.Cluster) -> None:
    """The last test here: what the session started is gone, jobs, daemons and all."""
    if not cluster.started:
        pytest.skip("this Slurm was there before the tests, and stays")
    assert slurm.daemons()
    assert cluster.stop() == []
    assert slurm.cluster_name() is None
