"""The launcher of this process: what its environment says, and whether MPI agrees with it.

Covers the ranks that mpiexec, srun or another launcher gave this process, how many processes it started, and
the case in which each of them is a world of its own. Does not cover MPI's own answers, nor how a job is ended
(see `job`). Everything here is read from variables: it needs no MPI.

Launchers nest: mpiexec inside a Slurm allocation starts its own helpers with srun, so that a rank sees the
variables of both. The innermost one counts, and mpiexec is always inside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from cascade_mpi.errors import SeparateWorldsError

RANK_VARIABLES = ("PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
LOCAL_RANK_VARIABLES = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID")
LOCAL_SIZE_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
# How many processes a launcher started. SLURM_NTASKS is no such number: a plain `python` in a batch script has it too.
_SIZE_VARIABLES = (("OMPI_COMM_WORLD_SIZE", "mpirun"), ("PMI_SIZE", "mpiexec"), ("SLURM_STEP_NUM_TASKS", "srun"))


class Launch(NamedTuple):
    """What started this process."""

    launcher: str  # "mpirun" (Open MPI's), "mpiexec" (Hydra or one like it) or "srun"
    processes: int


def launcher_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Local. The rank of this process as its launcher set it; 0 without a launcher."""
    return _first_number(environ, RANK_VARIABLES) or 0


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """Local. The rank among the processes of this node as the launcher set it, None without one."""
    return _first_number(environ, LOCAL_RANK_VARIABLES)


def local_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """Local. How many processes the launcher started on this node, None where it does not say."""
    count = _first_number(environ, LOCAL_SIZE_VARIABLES)
    if count is None and environ.get("SLURM_STEP_TASKS_PER_NODE"):
        # such as "4(x2),1": four tasks on each of two nodes, one on the third
        counts: list[int] = []
        for part in environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
            tasks, _, times = part.partition("(x")
            counts += [_number(tasks) or 0] * (_number(times.rstrip(")")) or 1)
        node = _number(environ.get("SLURM_NODEID", "")) or 0
        count = counts[node] if node < len(counts) else None
    return count or None


def launch(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """Local. The launcher that started this process and how many with it, None if none did."""
    for name, launcher in _SIZE_VARIABLES:
        if count := _number(environ.get(name, "")):
            # srun's process manager interface sets PMI_SIZE as mpiexec does
            by_slurm = launcher == "mpiexec" and environ.get("SLURM_STEP_NUM_TASKS") == environ[name]
            return Launch("srun" if by_slurm and not _by_hydra(environ) else launcher, count)
    return None


def separate_worlds(environ: Mapping[str, str], world_size: int, library: str = "") -> str | None:
    """Local. What to tell people when a launcher started several processes and MPI joined none of them, else None.

    `world_size` is the size of MPI's world, `library` the text of `MPI.Get_library_version()` if it is known.
    """
    found = launch(environ)
    if world_size != 1 or found is None or found.processes < 2:
        return None
    name = library_name(library)
    happened = (
        f"{found.launcher} started {found.processes} processes, but MPI joined none of them: "
        f"each is a world of 1 rank ({name or 'the MPI library'} did not find {_MANAGERS[found.launcher]}). "
    )
    return happened + _remedy(found.launcher, name)


def check_world(world_size: int, library: str = "", environ: Mapping[str, str] = os.environ) -> None:
    """Local. SeparateWorldsError, on every process, if the launcher's processes are not one world."""
    if text := separate_worlds(environ, world_size, library):
        raise SeparateWorldsError(text)


def of_another_mpi(environ: Mapping[str, str], library: str) -> str | None:
    """Local. What to do when the launcher belongs to another family of MPIs than the library, else None.

    An MPI may end the process at its start then, before it can say how large its world is.
    """
    found, name = launch(environ), library_name(library)
    if found is None or found.launcher == "srun" or not name:
        return None
    return _remedy(found.launcher, name) if (found.launcher == "mpirun") is not name.startswith("Open MPI") else None


def library_name(library: str) -> str:
    """Local. The short name of an MPI library from the text of `MPI.Get_library_version()`, "" if there is none."""
    first = library.strip("\0 \n").splitlines()[0] if library.strip("\0 \n") else ""
    if first.startswith("MPICH Version"):
        return f"MPICH {first.partition(':')[2].strip()}"
    return first.partition(",")[0].partition(" for Linux")[0].strip()


_MANAGERS = {
    "srun": "Slurm's process manager",
    "mpiexec": "that mpiexec",
    "mpirun": "that mpirun, which is Open MPI's",
}


def _remedy(launcher: str, name: str) -> str:
    open_mpi = name.startswith("Open MPI")
    if launcher == "srun":
        interface = "--mpi=pmix" if open_mpi else "--mpi=pmi2 (MPICH; Cray MPICH: --mpi=cray_shasta)"
        return f"Start it with srun {interface}; 'srun --mpi=list' shows what this Slurm offers"
    if launcher == "mpirun" and not open_mpi:
        return "Use the mpiexec of the MPI that mpi4py has loaded (MPICH's stands beside python in its environment)"
    if launcher == "mpiexec" and open_mpi:
        return "That mpiexec is MPICH's or Intel's: use Open MPI's mpirun, or load the module of an MPICH"
    return (
        "Use the mpiexec of the MPI that mpi4py has loaded (beside python in its environment, or of the module), "
        "or 'srun --mpi=pmi2'"
    )


def _by_hydra(environ: Mapping[str, str]) -> bool:
    return "MPI_LOCALNRANKS" in environ or "HYDI_CONTROL_FD" in environ


def _first_number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return next((number for name in names if (number := _number(environ.get(name, ""))) is not None), None)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
