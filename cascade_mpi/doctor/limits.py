"""Checks of memory and limits: /dev/shm, cgroups, Slurm, locked memory, files and processes, and what jobs left.

What an arena needs beside its bytes is checked where it is allocated (see `cascade_mpi.memory`).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator

from cascade_mpi import memory, shm_files
from cascade_mpi.config import format_size
from cascade_mpi.doctor.configured import arena
from cascade_mpi.doctor.finding import Finding, count, ok, problem, warning
from cascade_mpi.doctor.host import UNLIMITED, Host

_SMALLEST = 32 << 20  # of a rank: below, not even MPI's own buffers and a small arena fit
_FILES_PER_RANK = 64
_FILES = 1024
_LARGER_SHM = (
    "lower dram_bytes, or have /dev/shm enlarged (docker run --shm-size=8g; mount -o remount,size=50% /dev/shm)"
)
_MORE_MEMORY = "lower dram_bytes, or ask for more (sbatch --mem=0: all of the node; docker run --memory)"


def shared_memory(host: Host) -> Iterator[Finding]:
    """Local. Size and free bytes of /dev/shm, in which the arenas are."""
    found = [limit for limit in _limits(host) if limit.name == "/dev/shm"]
    if not found:
        yield problem("/dev/shm", "there is none", "mount a tmpfs at /dev/shm: MPI's shared memory needs it")
    for limit in found:
        line = f"{format_size(limit.bytes_free)} free {limit.detail}"
        yield _judge("/dev/shm", line, limit.bytes_free, host, _LARGER_SHM)


def memory_limits(host: Host) -> Iterator[Finding]:
    """Local. What cgroups, Slurm and the node itself leave to its ranks."""
    found = [limit for limit in _limits(host) if limit.name != "/dev/shm"]
    if not found:
        yield warning("memory limit", "no limit of this node can be read", "set dram_bytes yourself")
        return
    tightest = min(found, key=lambda limit: limit.bytes_free)
    others = [f"{limit.name} {format_size(limit.bytes_free)}" for limit in found if limit is not tightest]
    line = f"{tightest.name}: {format_size(tightest.bytes_free)} free ({tightest.detail})"
    line += f"; {', '.join(others)}" if others else ""
    yield _judge("memory limit", line, tightest.bytes_free, host, _MORE_MEMORY)


def locked_memory(host: Host) -> Iterator[Finding]:
    """Local. RLIMIT_MEMLOCK: networks that write into memory by themselves, and GPUs, want theirs locked."""
    soft, hard = host.limit(resource.RLIMIT_MEMLOCK)
    line = f"{_size(soft)} (hard limit {_size(hard)})"
    networks = network_devices(host)
    if soft == UNLIMITED:
        yield ok("locked memory", line)
    elif networks:
        remedy = "ulimit -l unlimited in the job script"
        if hard != UNLIMITED:
            remedy = "ask the administrators for 'memlock unlimited' (limits.conf; for Slurm: LimitMEMLOCK of slurmd)"
        yield warning("locked memory", f"{line}, with {', '.join(networks)}: registering an arena may fail", remedy)
    else:
        yield ok("locked memory", f"{line}; no RDMA network here that would need more")


def files_and_processes(host: Host) -> Iterator[Finding]:
    """Local. RLIMIT_NOFILE, RLIMIT_NPROC and the cgroup's number of processes."""
    files, files_hard = host.limit(resource.RLIMIT_NOFILE)
    processes, _ = host.limit(resource.RLIMIT_NPROC)
    line = f"{_count(files)} files, {_count(processes)} processes"
    wanted = max(_FILES, _FILES_PER_RANK * host.ranks)
    if files != UNLIMITED and files < wanted:
        enough = files_hard == UNLIMITED or files_hard >= wanted
        remedy = f"ulimit -n {wanted} in the job script" if enough else f"ask the administrators for {wanted} files"
        yield warning("files, processes", f"{line}: few for MPI's connections", remedy)
    elif processes != UNLIMITED and processes < 256 + 16 * host.ranks:
        yield warning(
            "files, processes", f"{line}: few for {count(host.ranks, 'rank')} and their threads", "ulimit -u 4096"
        )
    else:
        yield ok("files, processes", line)


def leftovers(host: Host) -> Iterator[Finding]:
    """Local. Shared memory of dead jobs: how much, and whose."""
    found = shm_files.survey(host.root)
    dead = [file for file in found if file.state == "leftover"]
    unknown = [file for file in found if file.state == "unknown"]
    # Another user's file is a leftover as far as this user can see; without root's eyes that is a guess.
    others = [file for file in found if file.state == "other user"]
    used = len(found) - len(dead) - len(unknown) - len(others)
    parts = [f"{count(used, 'file')} of MPI in use or new"] if found else ["none"]
    if others:
        parts.append(f"{_bytes(others)} of {', '.join(sorted({file.owner for file in others}))} without a visible user")
    if unknown:
        parts.append(f"{_bytes(unknown)} that may be in use: {unknown[0].reason}")
    if dead:
        parts.insert(0, f"{_bytes(dead)} of dead jobs of {dead[0].owner}, oldest {_age(dead)}")
        yield warning("leftover memory", "; ".join(parts), "cascade cleanup")
    else:
        yield ok("leftover memory", "; ".join(parts))


def network_devices(host: Host) -> list[str]:
    """Local. The RDMA devices of this node: InfiniBand and RoCE, Slingshot, Omni-Path."""
    infiniband = host.names("sys/class/infiniband")
    slingshot = host.names("sys/class/cxi")
    return [*infiniband, *slingshot]


def _limits(host: Host) -> list[memory.Limit]:
    return memory.limits(host.root, host.environ, host.statvfs)


def _judge(name: str, line: str, free: int, host: Host, remedy: str) -> Finding:
    wanted = arena(host)
    ranks = count(host.ranks, "rank")
    smallest = min(_SMALLEST, wanted.bytes) if wanted.given else _SMALLEST
    if free < smallest * host.ranks:
        needed = f"{ranks} need{'s' if host.ranks == 1 else ''} {format_size(smallest * host.ranks)} at least"
        return problem(name, f"{line}: {needed}", remedy)
    if free < wanted.bytes * host.ranks:
        # A workload makes an arena smaller that nobody asked for; one that somebody did is refused.
        return (problem if wanted.given else warning)(
            name, f"{line}: too little for the {wanted.name} of {ranks}", remedy
        )
    return ok(name, line)


def _size(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else format_size(limit)


def _count(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else str(limit)


def _bytes(files: list[shm_files.SharedFile]) -> str:
    return f"{count(len(files), 'file')}, {format_size(sum(file.bytes for file in files))},"


def _age(files: list[shm_files.SharedFile]) -> str:
    seconds = max(file.age_s for file in files)
    return f"{seconds / 3600:.0f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
