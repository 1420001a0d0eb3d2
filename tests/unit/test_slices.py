"""Short time slices: asked for and inherited where the kernel has them, and everything else as it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench import slices

PROGRAM = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
from bench import slices
os.nice(3)
before = os.sched_getscheduler(0)
print(slices.shorten(), os.nice(0), os.sched_getscheduler(0) == before)
"""


def test_only_the_slice_changes() -> None:
    root = os.path.dirname(os.path.dirname(os.path.abspath(slices.__file__)))
    nice = os.nice(0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(root=root)], capture_output=True, text=True, timeout=60, check=True
    )
    shortened, its_nice, same = done.stdout.split()
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release >= (6, 12) and os.uname().machine in ("x86_64", "aarch64"):
        assert shortened == "True"
    assert (int(its_nice), same) == (min(nice + 3, 19), "True")


def test_an_unknown_machine_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices.platform, "machine", lambda: "pdp11")
    assert slices.shorten() is False


def test_another_policy_is_left_alone() -> None:
    program = PROGRAM.replace("before =", "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); before =")
    root = os.path.dirname(os.path.dirname(os.path.abspath(slices.__file__)))
    done = subprocess.run(
        [sys.executable, "-c", program.format(root=root)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split()[::2] == ["False", "True"]
