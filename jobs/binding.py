"""Which cores and which GPU each task of a job step got, and whether tasks got in each other's way.

Covers the report of one task (`report`, under srun) and the verdict over all reports (`judge`, on stdin). Does
not cover MPI, memory, or whether a GPU works (see `cascade doctor`). Needs nothing but Python, so that it
also works where the environment of the job is what is broken.

    srun ... python3 jobs/binding.py report | python3 jobs/binding.py judge --tasks 8 --own-cores --devices
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby
from typing import NamedTuple


class Task(NamedTuple):
    """What one task of a step sees."""

    rank: int
    node: str  # Slurm's name; two of them may be one host
    host: str
    local_rank: int
    cpus: tuple[int, ...]
    device: str | None  # of all that it sees, the one that its local rank takes
    devices: int  # how many it sees


def visible_devices(environ: Mapping[str, str], listed: Sequence[str]) -> list[str]:
    """The GPUs that a CUDA program sees, by UUID where known; `listed` are the UUIDs that nvidia-smi shows.

    Numbers alone would not do: where Slurm hides the other devices, each task calls its own one 0.
    """
    names = environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return list(listed)
    found = []
    for name in (part.strip() for part in names.split(",")):
        if name.isdecimal():
            if listed and int(name) >= len(listed):
                break  # as CUDA does: what stands behind a wrong one is not seen either
            found.append(listed[int(name)] if listed else f"GPU {int(name)}")
        elif name.startswith(("GPU-", "MIG-")):
            found.append(next((uuid for uuid in listed if uuid.startswith(name)), name))
        else:
            break
    return found


def report(environ: Mapping[str, str], cpus: Iterable[int], listed: Sequence[str]) -> Task:
    """What the task with these variables, allowed cores and listed GPUs has."""
    devices, local_rank = visible_devices(environ, listed), int(environ.get("SLURM_LOCALID", "0"))
    host = socket.gethostname()
    return Task(
        rank=int(environ.get("SLURM_PROCID", "0")),
        node=environ.get("SLURMD_NODENAME", host),
        host=host,
        local_rank=local_rank,
        cpus=tuple(sorted(cpus)),
        device=devices[local_rank % len(devices)] if devices else None,
        devices=len(devices),
    )


def judge(tasks: Sequence[Task], expected: int, *, own_cores: bool, need_devices: bool) -> str | None:
    """What is wrong with how these tasks are bound and what to do, None if nothing is."""
    if len(tasks) != expected:
        return f"{len(tasks)} of {expected} tasks reported: see srun's messages above"
    without = [task for task in tasks if task.device is None]
    if need_devices and without:
        return (
            f"{len(without)} of {expected} tasks see no GPU, the first is rank {without[0].rank} on {without[0].node}: "
            "give sbatch --gpus-per-node, or run jobs/workload.sbatch"
        )
    by_node = sorted(tasks, key=lambda task: (task.node, task.rank))
    for node, there in groupby(by_node, key=lambda task: task.node):
        for one, other in combinations(there, 2):
            pair = f"ranks {one.rank} and {other.rank} on {node}"
            if need_devices and one.device == other.device:
                return (
                    f"{pair} both take device {one.device} (each sees {one.devices}): "
                    "give --ntasks-per-node as many ranks as --gpus-per-node, and JOB_GPU_BIND=none"
                )
            if own_cores and (shared := set(one.cpus) & set(other.cpus)):
                return (
                    f"{pair} share the cpus {ranges(shared)}: lower --ntasks-per-node or --cpus-per-task until the "
                    "ranks of a node fit its cores, or set JOB_CPU_BIND=none if they are meant to share"
                )
    return None


def ranges(cpus: Iterable[int]) -> str:
    """Numbers as Slurm and Linux write them: 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def line(task: Task) -> str:
    """One task, for people."""
    where = task.node if task.host.startswith(task.node) else f"{task.node} ({task.host})"
    device = f"device {task.device} of {task.devices}" if task.device else "no GPU"
    return f"rank {task.rank} on {where}, local rank {task.local_rank}: cpus {ranges(task.cpus)}, {device}"


def _listed() -> list[str]:
    """The UUIDs that nvidia-smi shows this task, in the order of their numbers."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=uuid", "--format=csv,noheader"]
    shown = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return [text.strip() for text in shown.stdout.splitlines()] if shown.returncode == 0 else []


def _parse(text: str) -> Task | None:
    """A report, or None for a line that is none: programs of the site may print into the step."""
    try:
        fields = json.loads(text)
        return Task(**{**fields, "cpus": tuple(fields["cpus"])})
    except (ValueError, TypeError, KeyError):
        return None


def main() -> int:
    """The exit status: 1 when the binding is wrong."""
    parser = argparse.ArgumentParser(description="How the tasks of a job step are bound to cores and GPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report", help="Print what this task has, as one line of JSON.")
    verdict = commands.add_parser("judge", help="Read the reports of all tasks and say what is wrong.")
    verdict.add_argument("--tasks", type=int, required=True, help="How many reports there must be.")
    verdict.add_argument("--own-cores", action="store_true", help="No two tasks of a node may share a core.")
    verdict.add_argument("--devices", action="store_true", help="Every task must have a GPU of its own.")
    options = parser.parse_args()
    if options.command == "report":
        print(json.dumps(report(os.environ, os.sched_getaffinity(0), _listed())._asdict()))
        return 0
    tasks = sorted(task for text in sys.stdin if (task := _parse(text)) is not None)
    for task in tasks:
        print(f"job: {line(task)}")
    wrong = judge(tasks, options.tasks, own_cores=options.own_cores, need_devices=options.devices)
    if wrong:
        print(f"job: {wrong}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
