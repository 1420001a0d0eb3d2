"""Checks of the launcher: Slurm, its step, its interface to MPI, and how it binds tasks.

Does not cover whether MPI made one world of the tasks (see `probe`): only MPI knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from cascade_mpi.doctor.finding import Finding, ok, warning
from cascade_mpi.doctor.host import Host
from cascade_mpi.launcher import launch, local_size


def slurm(host: Host) -> Iterator[Finding]:
    """Local. Slurm's version, the job and its step, the interface to MPI, and how tasks are bound."""
    environ, found = host.environ, launch(host.environ)
    ran = host.run(["srun", "--version"])
    version = ran.output.strip().removeprefix("slurm").lstrip("- ").removeprefix("wlm ") if ran and ran.output else ""
    if not version and "SLURM_JOB_ID" not in environ:
        yield ok("Slurm", f"none here; started by {found.launcher if found else 'no launcher'}")
        return
    line = version or "version unknown (srun is not in PATH)"
    if "SLURM_JOB_ID" not in environ:
        yield ok("Slurm", f"{line}; not in a job" + (f", started by {found.launcher}" if found else ""))
        return
    line += f"; job {environ['SLURM_JOB_ID']}"
    if found is None:
        yield ok("Slurm", f"{line}, {environ.get('SLURM_NTASKS', '?')} tasks asked for, this process is none of them")
        return
    line += f" step {environ.get('SLURM_STEP_ID', '?')}, {found.processes} tasks by {found.launcher}"
    line += (
        f" on {environ.get('SLURM_STEP_NUM_NODES' if found.launcher == 'srun' else 'SLURM_JOB_NUM_NODES', '?')} nodes"
    )
    if found.launcher == "srun":
        line += f", --mpi={environ.get('SLURM_MPI_TYPE') or 'none'}"
    line += f", CPU binding {environ.get('SLURM_CPU_BIND') or 'none'}"
    if found.launcher == "srun" and found.processes > 1 and not environ.get("SLURM_MPI_TYPE"):
        offered = host.run(["srun", "--mpi=list"])
        listed = " ".join((offered.output + offered.errors).split()) if offered else ""
        yield warning(
            "Slurm", line, "srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)" + (f"; {listed}" if listed else "")
        )
    elif "SLURM_CPU_BIND" in environ and "none" in environ["SLURM_CPU_BIND"] and (local_size(environ) or 1) > 1:
        yield warning("Slurm", line, "srun --cpu-bind=cores")
    else:
        yield ok("Slurm", line)
