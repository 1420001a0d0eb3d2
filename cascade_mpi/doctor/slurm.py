"""Checks of the launcher and the node's identity: Slurm, its step and binding, host name, clock.

Does not cover whether MPI made one world of the tasks (see `probe`): only MPI knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from cascade_mpi.doctor.finding import Finding, ok, warning
from cascade_mpi.doctor.host import Host
from cascade_mpi.launcher import launch, local_size

_SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")


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


def host_name(host: Host) -> Iterator[Finding]:
    """Local. Does the node find its own name: MPI libraries look it up to meet."""
    try:
        addresses = host.resolve(host.name)
    except OSError as error:
        yield warning(
            "host name",
            f"{host.name} has no address: {error.strerror or error}",
            f"add '127.0.0.1 {host.name}' to /etc/hosts (one node) or the node to the name service (several)",
        )
        return
    line = f"{host.name} is {', '.join(addresses)}"
    here = [address for address in addresses if address.startswith("127.") or address == "::1"]
    several = host.environ.get("SLURM_JOB_NUM_NODES", "1") not in ("", "1")
    started = launch(host.environ)
    # Hydra's helpers meet by name; srun hands addresses over
    if len(here) == len(addresses) and several and (started is None or started.launcher != "srun"):
        remedy = "give the node's name its network address in /etc/hosts, or choose the interface (HYDRA_IFACE)"
        yield warning("host name", f"{line}: other nodes cannot reach that", remedy)
    else:
        yield ok("host name", line)


def clock(host: Host) -> Iterator[Finding]:
    """Local. The kernel's clock source: reading a slow one takes as long as a small get."""
    source = host.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in _SLOW_CLOCKS:
        yield warning("clock", f"{source}: a look at the clock takes 1 us or more", "boot with clocksource=tsc")
    elif not source:
        yield ok("clock", "clock source unknown")
    else:
        yield ok("clock", source)


def mpi_variables(host: Host) -> Iterator[Finding]:
    """Local. Variables of MPI that are known to do harm."""
    if host.environ.get("MPIR_CVAR_ASYNC_PROGRESS", "0") not in ("", "0"):
        yield warning(
            "MPI progress",
            "MPIR_CVAR_ASYNC_PROGRESS is set: MPICH's own progress thread slows most operations down 5 to 1000 times",
            "unset MPIR_CVAR_ASYNC_PROGRESS: Cascade has a thread of its own that rests between two looks",
        )
