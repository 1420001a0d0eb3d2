"""Checks of the node's identity and time: its host name and its clock source.

Does not cover whether the nodes of a job agree on the time (see `probe`).
"""

from __future__ import annotations

from collections.abc import Iterator

from cascade_mpi.doctor.finding import Finding, ok, warning
from cascade_mpi.doctor.host import Host
from cascade_mpi.launcher import launch

_SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")


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
