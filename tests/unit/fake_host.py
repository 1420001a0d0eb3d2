"""A `Host` of the tests: files below a folder, programs with given answers, and nothing else."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cascade_mpi.doctor.finding import Finding
from cascade_mpi.doctor.host import UNLIMITED, Host, Ran

GIB = 1 << 30


def space(free: int, total: int = 1000 * GIB, inodes: int = 10**6) -> Callable[[Path], Any]:
    """A statvfs of any path with so many bytes and inodes free."""
    status = types.SimpleNamespace(
        f_bavail=free // 4096, f_blocks=total // 4096, f_frsize=4096, f_files=2 * inodes, f_favail=inodes
    )
    return lambda path: status


def host(
    root: Path,
    files: Mapping[str, str] | None = None,
    *,
    programs: Mapping[str, Ran] | None = None,
    packages: Mapping[str, str] | None = None,
    limit: tuple[int, int] = (UNLIMITED, UNLIMITED),
    cpus: Iterable[int] = (0, 1, 2, 3),
    **more: Any,
) -> Host:
    """A fake host. `programs`: what a command whose text begins like the key answers."""
    for name, content in (files or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    answers, allowed = dict(programs or {}), set(cpus)

    def run(command: Sequence[str]) -> Ran | None:
        line = " ".join(command)
        return next((answer for beginning, answer in answers.items() if line.startswith(beginning)), None)

    def which(name: str) -> str | None:
        return name if name in answers else None

    defaults: dict[str, Any] = {
        "environ": {}, "name": "n1", "python": "/env/bin/python", "run": run, "which": which,
        "version": (packages or {}).get, "limit": lambda which: limit, "affinity": lambda: allowed,
        "statvfs": os.statvfs, "resolve": lambda name: ["10.0.0.1"],
    }  # fmt: skip
    return Host(root=root, **(defaults | more))


def only(findings: Iterable[Finding]) -> Finding:
    """The single finding; one that is not ok says what to do, one that is ok asks for nothing."""
    (finding,) = findings
    assert finding.found
    assert (finding.status == "ok") is (finding.remedy == "")
    return finding


def statuses(findings: Iterable[Finding]) -> dict[str, str]:
    """Status by name; no name twice."""
    listed = list(findings)
    found = {finding.name: only([finding]).status for finding in listed}
    assert len(found) == len(listed)
    return found
