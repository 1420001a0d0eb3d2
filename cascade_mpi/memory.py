"""Memory of a node: what its ranks may still take, before anything is allocated.

Covers the limits that would end a job with SIGBUS or an out-of-memory kill (/dev/shm, cgroups, Slurm,
the node itself), the error that names the tightest, and a size of arena that fits. Does not allocate
and knows no MPI: the caller sums over the ranks of the node and asks once, before any of them allocates.

A limit that cannot be read, because its file is absent or malformed, is left out of the list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cascade_mpi.config import format_size
from cascade_mpi.errors import MemoryLimitError
from cascade_mpi.layout import MIN_PAGE_BYTES

_UNLIMITED = 1 << 62  # cgroup v1 writes its largest page multiple, just below 2^63, for "no limit"


class Limit(NamedTuple):
    """One bound on what the processes of this node may take together."""

    name: str  # "/dev/shm", "cgroup", "SLURM_MEM_PER_NODE" or "MemAvailable"
    bytes_free: int  # 0 or more
    detail: str  # where the number comes from


_REMEDIES = {
    "/dev/shm": "mount a larger /dev/shm",
    "cgroup": "start the job with a larger memory limit",
    "SLURM_MEM_PER_NODE": "ask Slurm for more with --mem",
    "MemAvailable": "use a node with more free memory",
}


def limits(
    root: str | Path = "/",
    environ: Mapping[str, str] = os.environ,
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
) -> list[Limit]:
    """Local. What each known limit leaves free on this node now, bytes; `root` is where the file system starts."""
    root = Path(root)
    found = [
        _shared_memory(root / "dev/shm", statvfs),
        *_cgroups(root),
        _slurm(environ),
        _available(root / "proc/meminfo"),
    ]
    return [limit for limit in found if limit is not None]


def check(
    required_bytes: int,
    ranks: int,
    limits: Sequence[Limit],
    *,
    dram_bytes: int | None = None,
    fixed_bytes: int = 0,
) -> None:
    """Local. MemoryLimitError if what all `ranks` of this node need together exceeds a limit.

    The text names the tightest limit and the largest `dram_bytes` that would fit. For that, `dram_bytes`
    is the setting that led to `required_bytes`, of which `fixed_bytes` do not shrink with it; without it
    all the rest is taken to be arenas.
    """
    tightest = min(limits, key=_bytes_free, default=None)
    if tightest is None or required_bytes <= tightest.bytes_free:
        return
    room, scaled = max(tightest.bytes_free - fixed_bytes, 0), max(required_bytes - fixed_bytes, 1)
    largest = room // ranks if dram_bytes is None else room * dram_bytes // scaled
    remedy = _REMEDIES.get(tightest.name, "raise that limit")
    if largest >= MIN_PAGE_BYTES:
        remedy = f"lower dram_bytes to at most {_size_that_fits(largest)} or {remedy}"
    noun = "rank on this node needs" if ranks == 1 else "ranks on this node need"
    raise MemoryLimitError(
        f"{ranks} {noun} {format_size(required_bytes)} of shared memory, {tightest.name} has "
        f"{format_size(tightest.bytes_free)} free ({tightest.detail}): {remedy}"
    )


def auto_dram(limits: Sequence[Limit], ranks: int, share: float = 0.5) -> int:
    """Local. The arena of each rank, bytes, a multiple of 4 KiB: `share` of the tightest limit over all `ranks`.

    MemoryLimitError if no limit is known or not even a page is left.
    """
    if not limits:
        raise MemoryLimitError("no memory limit of this node can be read: set dram_bytes")
    tightest = min(limits, key=_bytes_free)
    dram_bytes = int(tightest.bytes_free * share) // ranks // MIN_PAGE_BYTES * MIN_PAGE_BYTES
    if dram_bytes < MIN_PAGE_BYTES:
        raise MemoryLimitError(
            f"{tightest.name} has {format_size(tightest.bytes_free)} free ({tightest.detail}), not a page for each of "
            f"{ranks} ranks: {_REMEDIES.get(tightest.name, 'raise that limit')}"
        )
    return dram_bytes


def _bytes_free(limit: Limit) -> int:
    return limit.bytes_free


def _size_that_fits(nbytes: int) -> str:
    # rounded down and without a fraction: the text can be given as dram_bytes as it is
    if nbytes >= 64 << 20:
        return f"{nbytes >> 20} MiB"
    return f"{nbytes // MIN_PAGE_BYTES * MIN_PAGE_BYTES >> 10} KiB"


def _shared_memory(path: Path, statvfs: Callable[[Path], os.statvfs_result]) -> Limit | None:
    try:
        status = statvfs(path)
    except OSError:
        return None
    total = format_size(status.f_blocks * status.f_frsize)
    return Limit("/dev/shm", status.f_bavail * status.f_frsize, f"of {total}")


def _cgroups(root: Path) -> Iterator[Limit]:
    """The tightest group of each cgroup version, from this process's group up to the mount point."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            mounts, read = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], _group_v2
        elif "memory" in controllers.split(","):
            mounts, read = ["sys/fs/cgroup/memory"], _group_v1
        else:
            continue
        # inside a container the path may be the host's: the part that is visible here ends at the mount point
        steps = [step for step in path.split("/") if step not in ("", ".", "..")]
        groups = [root / mount / "/".join(steps[:depth]) for mount in mounts for depth in range(len(steps), -1, -1)]
        found = [limit for limit in (read(group, root) for group in groups) if limit is not None]
        if found:
            yield min(found, key=_bytes_free)


def _group_v2(group: Path, root: Path) -> Limit | None:
    return _group(group, root, "memory.max", "memory.current", "inactive_file")


def _group_v1(group: Path, root: Path) -> Limit | None:
    return _group(group, root, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _group(group: Path, root: Path, limit_file: str, usage_file: str, reclaimable: str) -> Limit | None:
    limit, usage = _number(_text(group / limit_file)), _number(_text(group / usage_file))
    if limit is None or usage is None or limit >= _UNLIMITED:
        return None
    # pages of files that nobody uses count as usage, yet the kernel drops them before it kills
    cached = _field(_text(group / "memory.stat"), reclaimable) or 0
    where = "/" / group.relative_to(root) / limit_file
    return Limit("cgroup", max(limit - max(usage - cached, 0), 0), f"of {format_size(limit)} in {where}")


def _slurm(environ: Mapping[str, str]) -> Limit | None:
    mebibytes = _number(environ.get("SLURM_MEM_PER_NODE", ""))
    if not mebibytes:  # 0: the whole node
        return None
    return Limit("SLURM_MEM_PER_NODE", mebibytes << 20, "what the job asked for, in all")


def _available(path: Path) -> Limit | None:
    kibibytes = _field(_text(path), "MemAvailable:")
    return None if kibibytes is None else Limit("MemAvailable", kibibytes << 10, "of this node, /proc/meminfo")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name:
            return _number(words[1])
    return None
