"""The jobs of `crash`: started, killed from outside, and cleared away.

Covers the launcher, whom a SIGKILL goes to and when, what is left of a job, and its time limit. Does not cover what a
job does (`crash_job`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import crash_journal
from bench.crash_journal import Notes
from bench.crash_plan import Round

ROOT = Path(__file__).resolve().parent.parent
_POLL_S = 0.005
_CLEAR_S = 20.0  # in which the launcher ends the ranks that are left when one was killed


class _Patience:
    """How long a job is waited for, not counting what this process was stopped or kept off the processor for."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def until(self, done: Callable[[], bool]) -> bool:
        """Local. Wait for something; False: patience is over."""
        while not done():
            if self._left <= 0:
                return False
            began = time.monotonic()
            time.sleep(_POLL_S)
            self._left -= min(time.monotonic() - began, 10 * _POLL_S)
        return True


class Ended(NamedTuple):
    """A job that is over."""

    notes: Notes
    killed: bool  # on purpose
    hung: bool  # it was ended by the time limit
    status: int
    errors: str


def launcher() -> str | None:
    """Local. The launcher beside this Python, else the one in PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def compile_kernels() -> None:
    """Local. Fill the kernel cache: the first job would compile for longer than a job may last."""
    modules = "cascade_mpi.onesided, cascade_mpi.kernels.fill, bench.stamped"
    program = f"import {modules}; from cascade_mpi.kernels import jit; jit.warm(); bench.stamped.warm()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)


def play(round: Round, seconds: float) -> Ended:
    """Local. Run a round to its end, however that comes; after `seconds` it is ended."""
    plan, errors = Path(round.folder) / "round.json", Path(round.folder) / "errors.txt"
    round.write(plan)
    command = [str(launcher()), "-n", str(round.ranks), sys.executable, "-m", "bench.crash_job", str(plan)]
    journals = [round.journal(rank) for rank in range(round.ranks)]
    patience = _Patience(seconds)
    with open(errors, "w+b") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        killed = hung = False
        try:
            killed = _kill(round, journals, process, patience)
            if killed:
                patience = _Patience(_CLEAR_S)
            hung = not patience.until(lambda: _over(process, journals))
        finally:
            _clear_away(process, journals)
        output.seek(0)
        text = output.read().decode(errors="replace")
    notes = _notes(journals)
    return Ended(notes, killed or bool(notes.step), hung, process.returncode, text)


def _kill(round: Round, journals: list[Path], process: subprocess.Popen[bytes], patience: _Patience) -> bool:
    """Kill from outside, if the round says so: whether it was done before the job was over."""
    kill = round.kill
    if kill is None or not kill.from_outside:
        return False
    word = b'["work"' if kill.phase == "work" else b'["pid"'
    if not patience.until(lambda: process.poll() is not None or all(_has(each, word) for each in journals)):
        return False
    time.sleep(kill.seconds)
    if process.poll() is not None:
        return False
    pids, met = _notes(journals).pids, False
    for pid in pids if kill.who == "all" else [pids[kill.rank]]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            met = True
    return met


def _over(process: subprocess.Popen[bytes], journals: list[Path]) -> bool:
    """The launcher has ended, and no rank of it lives: the directory's lock is free."""
    return process.poll() is not None and not any(_lives(pid) for pid in _notes(journals).pids)


def _clear_away(process: subprocess.Popen[bytes], journals: list[Path]) -> None:
    """End what still lives of a job, and remove the shared memory that its MPI has left."""
    notes = _notes(journals)
    for pid in notes.pids:
        if _lives(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in {*notes.shared}:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _lives(pid: int) -> bool:
    """Does a rank run still, or a thread of one whose first thread has ended? It has its files open then."""
    folder = Path(f"/proc/{pid}")
    try:
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return len(os.listdir(folder / "task")) > 1
        return b"bench.crash_job" in (folder / "cmdline").read_bytes()  # the number may be another process's by now
    except (FileNotFoundError, ProcessLookupError):
        return False


def _notes(journals: list[Path]) -> Notes:
    return crash_journal.read(journals)


def _has(path: Path, word: bytes) -> bool:
    return path.exists() and word in path.read_bytes()
