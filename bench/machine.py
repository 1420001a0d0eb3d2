"""The machine and the MPI that a measurement was made on.

Covers what a reader needs to judge a number: processor, cores, memory, kernel, versions, MPI and its
network module, what the store chose, and how busy the machine was. Does not measure anything.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from cascade_mpi.store import Store


def machine() -> dict[str, Any]:
    """Local. The machine of this rank, without a store."""
    version = MPI.Get_library_version()
    return {
        "cpu": _first("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.machine(),
        "cores": os.cpu_count(),
        "cpuset": _ranges(sorted(os.sched_getaffinity(0))),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mpi": " ".join(version.splitlines()[0].replace("\t", " ").split()).strip("\0 "),
        "netmod": _netmod(version),
        "load_average": round(os.getloadavg()[0], 2),
    }


def store_block(store: Store) -> dict[str, Any]:
    """Local. What an open store chose at open."""
    report = store.report()
    hints = report["windows"]["hints"]["index"]
    return {
        "windows": report["windows"]["layout"],
        "index_hints": ",".join(f"{key}={value}" for key, value in sorted(hints.items())),
        "progress": ("thread" if report["progress"]["thread"] else "none") + f" ({report['progress']['reason']})",
        "mpi_calls": report["mpi_calls"]["by"],
        "copy_threads": report["copy_threads"]["threads"],
        "checksum": report["checksum"],
    }


def _netmod(version: str) -> str:
    """MPICH's device, the module in use in brackets: the one of the environment, else the first that was built in."""
    found = re.search(r"MPICH Device:\s*(\S+?):([\w, ]+)", version)
    if found is None:
        return "unknown"
    built = found[2].replace(",", " ").split()
    chosen = os.environ.get("MPIR_CVAR_CH4_NETMOD") or (built[0] if built else "none")
    settings = [f"{name}={os.environ[name]}" for name in ("UCX_TLS", "FI_PROVIDER") if name in os.environ]
    return f"{found[1]}:{chosen}" + "".join(f" {each}" for each in settings)


def _first(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _ranges(cores: list[int]) -> str:
    """Sorted core numbers as people write them: 0-3,8."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
