"""How tests start MPI jobs: which mpiexec, how many ranks and "nodes", and what they wait for at most.

Covers one job at a time, its output and its end. Does not cover what a job tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "tests" / "programs"
# What a launcher or an MPI job tells its processes: a job started from here must not take it for its own.
_OF_A_JOB = (
    "PMI", "HYDRA", "HYDI", "MPI_LOCAL", "MPIR_CVAR_NUM_CLIQUES", "MPIEXEC", "OMPI_", "PRTE_", "PMIX", "PALS_",
    # mpiexec inside a Slurm job would start its ranks by srun on all nodes of it; the tests mean this one
    "SLURM_JOB", "SLURM_STEP", "SLURM_NODE", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_TASK",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_CPUS", "SLURM_MPI_TYPE",
)  # fmt: skip


class Ended(NamedTuple):
    """A job that has ended: its exit status (124 and 137: it was ended by the limit) and its output."""

    status: int
    output: str
    errors: str

    def __str__(self) -> str:
        return f"exit status {self.status}\n--- output:\n{self.output[-6000:]}\n--- errors:\n{self.errors[-6000:]}"


def launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Is this process a rank that a launcher started: MPICH's, Open MPI's, or srun?

    A batch script and the shell of an allocation are none, although Slurm gives them a rank and a number of tasks.
    """
    if any(name in environ for name in ("PMI_RANK", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")):
        return True
    # Where srun's process manager sets no variable that is known here. One task is no job: srun --pty is such a step.
    return "SLURM_STEP_ID" in environ and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def mpiexec() -> str | None:
    """The launcher beside this Python, else the one in PATH, else None."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def environment(cliques: int = 1, **more: str) -> dict[str, str]:
    """The variables of a new job; with `cliques` MPICH plays that many nodes on this one."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_JOB)}
    # Ranks that wait on more ranks than cores must not keep others off their core longer than need be.
    found |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    if cliques > 1:
        found["MPIR_CVAR_NUM_CLIQUES"] = str(cliques)
    return found | more


def run(command: list[str], *, ranks: int | None, seconds: int, cliques: int = 1, **variables: str) -> Ended:
    """Run a Python command line on `ranks` ranks (None: without a launcher), for at most `seconds`."""
    launcher = [] if ranks is None else [str(mpiexec()), "-n", str(ranks)]
    return ended([*launcher, sys.executable, *command], seconds=seconds, cliques=cliques, **variables)


def limited(command: list[str], seconds: int) -> list[str]:
    """The command, ended after that many seconds; where there is no `timeout`, as it is."""
    return ["timeout", "-k", "5", str(seconds), *command] if shutil.which("timeout") else command


def ended(command: list[str], *, seconds: int, cliques: int = 1, **variables: str) -> Ended:
    """Run any command line, launcher and all, for at most `seconds`."""
    done = subprocess.run(
        limited(command, seconds),
        cwd=ROOT,
        env=environment(cliques, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + 15,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def counts(folder: Path, ranks: int) -> list[dict[str, int]]:
    """What each rank of a test job counted (see `tests/mpi/conftest.py`); fewer than `ranks` if some did not end."""
    files = [folder / f"{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def growing(path: Path, conversations: int, turns: int) -> int:
    """Write a trace of conversations that grow by two blocks a turn, one after the other; the hits of an endless cache.

    With more conversations than requests in a round no two of a round share a block: ranks cannot race.
    """
    requests = [(turn, talk) for turn in range(turns) for talk in range(conversations)]
    lines = [
        json.dumps({
            "timestamp": 1000 * k, "input_length": 1024 * (turn + 1), "output_length": 1,
            "hash_ids": [2 * turns * talk + block for block in range(2 * turn + 2)],
        }) for k, (turn, talk) in enumerate(requests)
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return sum(2 * turn for turn, _ in requests)
