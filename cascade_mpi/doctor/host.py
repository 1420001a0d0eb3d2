"""What a check may look at: files, variables, programs, limits. Tests give it a fake one.

Covers the access, with time limits. Does not cover what is found there (see the checks).
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PROGRAM_LIMIT_S = 20.0
UNLIMITED = resource.RLIM_INFINITY


class Ran(NamedTuple):
    """How a program ended; status 124: it did not."""

    status: int
    output: str
    errors: str


def run_program(command: Sequence[str]) -> Ran | None:
    """Local. Run a program for at most 20 s; None if there is no such program."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ran(124, "", f"no answer within {PROGRAM_LIMIT_S:.0f} s")
    except OSError:
        return None
    return Ran(done.returncode, done.stdout, done.stderr)


def installed_version(package: str) -> str | None:
    """Local. The version of a Python package, None if it is not installed. Imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def resolve(name: str) -> list[str]:
    """Local. The addresses of a host name; OSError if it has none."""
    return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})


@dataclass(frozen=True)
class Host:
    """One node as one process of it sees it."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    disk: Path | None = None  # the directory of --disk
    name: str = field(default_factory=socket.gethostname)
    ranks: int = 1  # that the launcher started on this node, as far as it says
    python: str = sys.executable
    run: Callable[[Sequence[str]], Ran | None] = run_program
    which: Callable[[str], str | None] = shutil.which
    version: Callable[[str], str | None] = installed_version
    resolve: Callable[[str], list[str]] = resolve
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
    limit: Callable[[int], tuple[int, int]] = resource.getrlimit
    affinity: Callable[[], set[int]] = lambda: os.sched_getaffinity(0)

    def text(self, path: str) -> str:
        """Local. The contents of a file below the root, without white space around it; "" if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return ""

    def names(self, folder: str) -> list[str]:
        """Local. What a folder below the root has, sorted; nothing if there is none."""
        try:
            return sorted(os.listdir(self.root / folder.lstrip("/")))
        except OSError:
            return []
