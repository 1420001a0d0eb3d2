"""The verdict of jobs/binding.py on the cores and GPUs of a job's tasks; which processes are ranks of a job."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import launch
import pytest

SCRIPT = launch.ROOT / "jobs" / "binding.py"
spec = importlib.util.spec_from_file_location("binding", SCRIPT)
assert spec is not None
assert spec.loader is not None
binding = importlib.util.module_from_spec(spec)
spec.loader.exec_module(binding)


def task(rank: int, node: str, cpus: tuple[int, ...], device: str | None = None) -> object:
    return binding.Task(rank, node, f"{node}.site", rank % 2, cpus, device, 2 if device else 0)


GOOD = [task(0, "n1", (0, 1), "A"), task(1, "n1", (2, 3), "B"), task(2, "n2", (0, 1), "A"), task(3, "n2", (2, 3), "B")]


def verdict(tasks: list[object], expected: int = 4, *, own_cores: bool = True, need_devices: bool = True) -> str | None:
    return binding.judge(tasks, expected, own_cores=own_cores, need_devices=need_devices)


def test_ranks_of_other_nodes_may_have_the_same_cores_and_devices() -> None:
    assert verdict(GOOD) is None


def test_two_ranks_of_a_node_on_one_device() -> None:
    tasks = [*GOOD[:3], task(3, "n2", (2, 3), "A")]
    text = verdict(tasks)
    assert text is not None
    assert text.startswith("ranks 2 and 3 on n2 both take device A (each sees 2)")
    assert verdict(tasks, need_devices=False) is None


def test_two_ranks_of_a_node_on_one_core() -> None:
    tasks = [*GOOD[:3], task(3, "n2", (1, 2, 3), "B")]
    text = verdict(tasks)
    assert text is not None
    assert text.startswith("ranks 2 and 3 on n2 share the cpus 1")
    assert "JOB_CPU_BIND=none" in text
    assert verdict(tasks, own_cores=False) is None


def test_a_rank_without_a_device() -> None:
    tasks = [*GOOD[:3], task(3, "n2", (2, 3))]
    text = verdict(tasks)
    assert text is not None
    assert text.startswith("1 of 4 tasks see no GPU, the first is rank 3 on n2")
    assert verdict(tasks, need_devices=False) is None


def test_a_task_that_did_not_report() -> None:
    assert (verdict(GOOD[:3]) or "").startswith("3 of 4 tasks reported")


@pytest.mark.parametrize(
    ("variable", "listed", "seen"),
    [
        (None, ["GPU-a", "GPU-b"], ["GPU-a", "GPU-b"]),
        (None, [], []),
        ("", ["GPU-a"], []),
        ("1,0", ["GPU-a", "GPU-b"], ["GPU-b", "GPU-a"]),
        ("0", ["GPU-b"], ["GPU-b"]),  # Slurm hides the others: everybody's own is number 0
        ("0,2,1", ["GPU-a", "GPU-b"], ["GPU-a"]),  # CUDA stops at the first that is not there
        ("0,1", [], ["GPU 0", "GPU 1"]),
        ("GPU-b", ["GPU-aa", "GPU-bb"], ["GPU-bb"]),
        ("MIG-x", ["GPU-aa"], ["MIG-x"]),
        ("-1", ["GPU-a"], []),
    ],
)
def test_what_a_cuda_program_sees(variable: str | None, listed: list[str], seen: list[str]) -> None:
    environ = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert binding.visible_devices(environ, listed) == seen


def test_the_local_rank_takes_its_device() -> None:
    environ = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "n2"}
    found = binding.report(environ, {7, 6}, ["GPU-a", "GPU-b"])
    assert (found.rank, found.node, found.cpus, found.device, found.devices) == (5, "n2", (6, 7), "GPU-b", 2)
    alone = binding.report({**environ, "CUDA_VISIBLE_DEVICES": "0"}, {7, 6}, ["GPU-b"])
    assert (alone.device, alone.devices) == ("GPU-b", 1)


@pytest.mark.parametrize(("cpus", "text"), [((), ""), ((3,), "3"), ((8, 0, 1, 2), "0-2,8")])
def test_ranges(cpus: tuple[int, ...], text: str) -> None:
    assert binding.ranges(cpus) == text


def test_the_judge_prints_every_task_and_one_reason() -> None:
    lines = ["a greeting of the site", *(json.dumps(each._asdict()) for each in reversed(GOOD)), "{}"]
    command = [sys.executable, str(SCRIPT), "judge", "--own-cores", "--devices", "--tasks"]
    for expected, status in ((4, 0), (5, 1)):
        judged = subprocess.run(
            [*command, str(expected)], input="\n".join(lines), capture_output=True, text=True, timeout=60, check=False
        )
        assert judged.returncode == status, judged
        assert judged.stdout.splitlines()[0] == "job: rank 0 on n1, local rank 0: cpus 0-1, device A of 2"
        assert len(judged.stdout.splitlines()) == 4
        assert len(judged.stderr.splitlines()) == status


STEP = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environ", "is_rank"),
    [
        ({}, False),
        (STEP, False),  # a batch script, or the shell of an allocation
        (STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, False),  # srun --pty
        (STEP | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        (STEP | {"PMI_RANK": "0"}, True),
        ({"PMIX_RANK": "1"}, True),
        ({"OMPI_COMM_WORLD_RANK": "0"}, True),
    ],
)
def test_a_process_that_a_launcher_started(environ: dict[str, str], is_rank: bool) -> None:
    assert launch.launched(environ) is is_rank


def test_a_new_job_knows_nothing_of_the_job_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_job = [*STEP, "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_STEP_ID", "PMI_RANK", "SLURM_CPUS_PER_TASK"]
    of_the_site = ["SLURM_CONF", "SLURM_MEM_PER_NODE", "SLURM_ACCOUNT", "SLURM_PARTITION"]
    for name in [*of_the_job, *of_the_site]:
        monkeypatch.setenv(name, "1")
    found = launch.environment()
    assert not set(of_the_job) & set(found)
    assert set(of_the_site) <= set(found)
