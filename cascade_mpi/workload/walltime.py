"""How long a job that was told to end may still take, as Slurm says.

Covers the questions to Slurm's commands and their answers. Does not cover signals (see `interrupt`) nor what is done
in that time (see `keeping`).

Slurm sends `--signal` so many seconds before the end of a job, and up to a minute earlier. A job that is cancelled gets
SIGTERM, and SIGKILL after its `KillWait`. Its commands are asked when the time has come: limits are changed.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

ASK_LIMIT_S = 5.0  # what one command of Slurm may take
DEFAULT_S = 20.0  # where nobody says
KEPT_S, KEPT_SHARE = 5.0, 0.1  # of the time that is left: for closing the store, and the end of all processes

Run = Callable[[Sequence[str]], str]
_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)")  # squeue's [days-][hours:]minutes:seconds
_KILL_WAIT = re.compile(r"^KillWait\s*=\s*(\d+) sec", re.MULTILINE)


class Grace(NamedTuple):
    """So many seconds may be spent, and why."""

    seconds: float
    reason: str


def grace(number: int, environ: Mapping[str, str], run: Run | None = None) -> Grace:
    """Local. What a job may still do after this signal. 1 command of Slurm, inside a job of it.

    `run` gives what a command prints, "" if it fails.
    """
    run = _run if run is None else run
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        return Grace(DEFAULT_S, "this is no job of Slurm, and --grace was not given")
    if number == signal.SIGUSR1:
        left = parse_left(run(["squeue", "--noheader", f"--jobs={job}", "--format=%L"]))
        if left is None:
            return Grace(DEFAULT_S, "squeue does not say how much time is left, and --grace was not given")
        return Grace(_spent(left), f"Slurm leaves this job {left} s")
    found = _KILL_WAIT.search(run(["scontrol", "show", "config"]))
    if found is None:
        return Grace(DEFAULT_S, "scontrol does not say how long a cancelled job may take")
    wait = int(found[1])
    return Grace(_spent(wait), f"Slurm leaves a cancelled job {wait} s")


def parse_left(text: str) -> int | None:
    """Local. The seconds of squeue's "1-02:03:04", None if it is no time (UNLIMITED, INVALID, nothing)."""
    match = _LEFT.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _spent(seconds: int) -> float:
    return max(seconds - max(KEPT_S, KEPT_SHARE * seconds), 0.0) if seconds > 2 * KEPT_S else seconds / 4


def _run(command: Sequence[str]) -> str:
    # A process that has MPI should not fork. Without a preexec_fn this is a vfork, which copies no page tables.
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False
        )
        return done.stdout if done.returncode == 0 else ""
    return ""
