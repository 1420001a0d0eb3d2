"""The sentinel: a small process beside rank 0 that says that the job has died, when nobody in it still can.

Covers starting it, telling it whom to watch, and dismissing it; `watch_program` is what it runs. Does not cover
signals that a rank can catch (see `interrupt`). It ends nothing and nobody: that is the launcher's part.

A launcher that sees one rank die kills the others with SIGKILL within a millisecond, so none of them can say a word,
and what the launcher itself prints may name the wrong process (Hydra's does). The sentinel is in a session of its own,
where that SIGKILL does not reach, and ends as soon as rank 0 does, whatever the reason. It is started before MPI is,
since a process that has MPI should not fork.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Sentinel:
    """Started by rank 0, watches the ranks of its node; `dismiss` before any end that has been explained."""

    def __init__(self) -> None:
        # Isolated and without site: it needs the standard library only, and starts in 15 ms.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("watch_program.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pids: Mapping[int, int]) -> None:
        """Local. Watch these processes of this node: rank to process id."""
        self._tell("".join(f"watch {rank} {pid}\n" for rank, pid in pids.items()))

    def dismiss(self) -> None:
        """Local. The job ends for a reason that is known; idempotent, and may be called from any thread."""
        self._tell("dismissed\n")

    def close(self) -> None:
        """Local. Dismiss it and wait for its end."""
        self.dismiss()
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]  # stdin is a pipe
        self._process.wait(timeout=10)

    def _tell(self, text: str) -> None:
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return
        with contextlib.suppress(OSError):  # it may have been killed: then nobody speaks
            os.write(pipe.fileno(), text.encode())
