"""Checks of CPUs: how many, which NUMA nodes, threads per rank; and over the ranks of a node: sharing and binding.

Does not cover Slurm's way of binding (see `slurm`) nor GPUs (see `gpu`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cascade_mpi.doctor.finding import Finding, Report, ok, warning
from cascade_mpi.doctor.host import Host

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_BIND = "srun --cpu-bind=cores, mpiexec -bind-to core (MPICH), mpirun --bind-to core (Open MPI)"


def cpus(host: Host) -> Iterator[Finding]:
    """Local. The CPUs that this rank may use, their NUMA nodes, and a quota that makes them fewer."""
    allowed = host.affinity()
    online = parse_list(host.text("sys/devices/system/cpu/online"))
    numa = [name for name in host.names("sys/devices/system/node") if name.startswith("node") and name[4:].isdigit()]
    mine = [name[4:] for name in numa if parse_list(host.text(f"sys/devices/system/node/{name}/cpulist")) & allowed]
    line = f"{len(allowed)} of {len(online) or '?'} CPUs"
    if numa:
        line += f", NUMA node{'' if len(mine) == 1 else 's'} {','.join(mine)} of {len(numa)}"
    quota = cpu_quota(host)
    if quota is not None and quota < len(allowed):
        yield warning(
            "CPUs",
            f"{line}, but the cgroup's quota is {quota:.1f} CPUs: ranks are stopped when it is used up",
            "ask for as many CPUs as ranks, whole ones (docker run --cpuset-cpus instead of --cpus)",
        )
    elif len(mine) > 1 and host.ranks > 1:
        yield warning(
            "CPUs",
            f"{line}: an arena's memory may be far from the CPU that uses it",
            f"bind ranks within a NUMA node: {_BIND}",
        )
    else:
        yield ok("CPUs", line)


def threads_per_rank(host: Host) -> int:
    """Local. The threads that a variable asks for in every rank; 0: as many as the rank has CPUs."""
    first = next((host.environ[name] for name in _THREAD_VARIABLES if host.environ.get(name)), "").partition(",")[0]
    return int(first) if first.isdigit() else 0


def threads(node: Sequence[Report]) -> Iterator[Finding]:
    """Local. Of all ranks of one node: the threads that NumPy's BLAS and OpenMP would start, against the CPUs."""
    have = len(frozenset().union(*(report.cpus for report in node)))
    each = sorted({report.threads or len(report.cpus) for report in node})
    total = sum(report.threads or len(report.cpus) for report in node)
    shown = f"{each[0]}" if len(each) == 1 else f"{each[0]} to {each[-1]}"
    how = f"OMP_NUM_THREADS={shown}" if node[0].threads else f"OMP_NUM_THREADS is not set: {shown} threads"
    line = f"{how} in {len(node)} rank{'' if len(node) == 1 else 's'} on {have} CPUs"
    if total > have and len(node) > 1 and max(each) > 1:
        share = max(have // len(node), 1)
        yield warning("threads", line, f"export OMP_NUM_THREADS={share}, and OMP_WAIT_POLICY=passive")
    else:
        yield ok("threads", line)


def sharing(node: Sequence[Report]) -> Iterator[Finding]:
    """Local. Of all ranks of one node: do they have CPUs of their own, and enough?"""
    sets = [frozenset(report.cpus) for report in node]
    together = frozenset().union(*sets)
    count, have = len(node), len(together)
    if count > have:
        yield warning(
            "CPU sharing",
            f"{count} ranks on {have} CPU{'' if have == 1 else 's'}: they wait for each other's time slices",
            "start fewer ranks on a node, or ask for more CPUs (--cpus-per-task)",
        )
    elif count == 1:
        yield ok("CPU sharing", f"1 rank on {have} CPUs")
    elif sum(map(len, sets)) == have:
        yield ok("CPU sharing", f"{count} ranks on {have} CPUs, each on its own")
    else:
        how = "may all run on the same" if len(set(sets)) == 1 else "are bound, but share some of the"
        yield warning("CPU sharing", f"{count} ranks {how} {have} CPUs", f"bind them: {_BIND}")


def cpu_quota(host: Host) -> float | None:
    """Local. The CPUs' worth of time that the cgroups of this process may use, None without a limit."""
    quotas = []
    for line in host.text("proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        steps = [step for step in path.split("/") if step not in ("", ".", "..")]
        for depth in range(len(steps) + 1):
            below = "/".join(steps[:depth])
            if number == "0" and not controllers:
                words = host.text(f"sys/fs/cgroup/{below}/cpu.max").split()
            elif "cpu" in controllers.split(","):
                folder = f"sys/fs/cgroup/cpu/{below}"
                words = [host.text(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                continue
            if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
                quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=math.inf) if quotas else None


def parse_list(text: str) -> set[int]:
    """Local. The numbers of a list as the kernel writes it, such as "0-3,8"."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def format_list(numbers: Sequence[int]) -> str:
    """Local. The inverse of `parse_list`, for ranks and CPUs: "0-3,8"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
