"""Signals that end a job of many ranks: an orderly end where that is possible, a forced one where it is not.

Covers catching SIGINT, SIGTERM and SIGUSR1, telling the replay, and the thread that ends this process when the replay
does not answer. Does not cover how the ranks agree (see `sampling.Meeting`), nor a rank that is killed (see `sentinel`:
the launcher kills the others at once then, with a signal that nobody can catch).

SIGUSR1 says that the time is nearly up (`sbatch --signal=USR1@120`): ranks then go on to the end of their round, if
that does not take long, so that what was replayed is a part of the trace from its beginning.

The main thread may be inside MPI when the signal comes, waiting for a rank that is stuck. Python runs its signal
handlers in the main thread only, so they would never run. The C level writes the signal's number to a pipe from
whatever thread it interrupts; a thread that reads the pipe needs the main thread for nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Self

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGREE_S = 3.0  # from the signal to the next meeting of all ranks
ROUND_END_S = 10.0  # after SIGUSR1 a round may take so long to end
CLOSE_S = 15.0  # from there to the end: closing frees memory of many GiB, and the result is summed up
AGAIN_S = 0.3  # two signals closer than that are one: some launchers, and `timeout`, send every signal twice
OTHERS_S = 1.0  # ranks other than 0 wait so much longer: one line, rank 0's, is enough

STARTING, REPLAYING, ENDING, CLOSED = "starting", "replaying", "ending", "closed"


class Interruption:
    """While entered, catches SIGINT, SIGTERM and SIGUSR1; `signal` is the number of the one that came, or 0.

    Only the main thread can catch signals: in another one, and for `Interruption.none()`, nothing is caught.
    """

    def __init__(self, speaks: bool, end: Callable[[int], Any] = os._exit, before_end: Callable[[], Any] | None = None):
        self.signal = 0
        self._speaks, self._end, self._before_end = speaks, end, before_end
        self._stage, self._asked, self._deadline = STARTING, 0.0, 0.0
        self._old: dict[int, Any] = {}
        self._old_fd, self._read, self._write = -1, -1, -1
        self._thread: threading.Thread | None = None
        self._patience = CLOSE_S

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._watch, name="cascade-signals", daemon=True)
        self._thread.start()
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _nothing) for number in CAUGHT}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread is None:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def stopped(self) -> bool:
        """Local. Has a signal come to this rank that ends what it does? SIGUSR1 does after a while."""
        return self.signal != 0 and (self.signal != signal.SIGUSR1 or monotonic() >= self._asked + ROUND_END_S)

    def since(self) -> float:
        """Local. Seconds since the signal came; 0 if none has come to this rank."""
        return monotonic() - self._asked if self.signal else 0.0

    def replaying(self) -> None:
        """Local. From now on the replay asks `stopped`; before, a signal ends the process at once, but for SIGUSR1."""
        self._stage = REPLAYING
        if self.signal:
            self._deadline = monotonic() + AGREE_S + ROUND_END_S

    def ending(self) -> None:
        """Local. All ranks are at the end of the replay: a signal that has come gets time to close the store."""
        self._stage, self._deadline = ENDING, monotonic() + CLOSE_S

    def draining(self, seconds: float, text: str) -> None:
        """Local. So many seconds are spent on what `text` says, to people, before the store is closed."""
        self._deadline = monotonic() + seconds + CLOSE_S
        self._patience = seconds + CLOSE_S
        self._say(text)

    def closed(self) -> None:
        """Local. The store is closed, no rank waits for another: only a second signal ends the process now."""
        self._stage, self._deadline = CLOSED, math.inf

    def ignore(self) -> None:
        """Local. This process ends by itself now, and with a status of its own: SIGTERM does nothing any more."""
        if self._old:
            self._old[signal.SIGTERM] = signal.SIG_IGN
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # ---------------------------------------------------------------------------------------- the thread's side

    def _watch(self) -> None:
        while True:
            left = max(self._deadline - monotonic(), 0.0) if self.signal and self._deadline < math.inf else None
            if not select.select([self._read], [], [], left)[0]:
                if monotonic() >= self._deadline:  # it may have been moved meanwhile
                    return self._force(self._stuck())
                continue
            for number in os.read(self._read, 64):
                if not number:
                    return None
                if number not in CAUGHT:
                    continue
                tell = not self.signal and (self._stage == REPLAYING or number == signal.SIGUSR1)
                if self._received(number):
                    name = signal.Signals(number).name
                    return self._force(f"{name} for the second time: ended at once, without a result")
                if tell:
                    # At once, before the ranks agree: `srun` follows up Ctrl-C with SIGKILL within a tenth of a second.
                    self._say(f"{self._reason()}: ending with what is done so far; once more ends at once")

    def _received(self, number: int) -> bool:
        """Note a signal; true when it is the second one."""
        now = monotonic()
        if self.signal:
            return now - self._asked >= AGAIN_S
        self.signal, self._asked = number, now
        to_meet = AGREE_S + (ROUND_END_S if number == signal.SIGUSR1 else 0.0)
        to_begin = math.inf if number == signal.SIGUSR1 else 0.0  # there is time to open the store, and to end in order
        to_close = max(CLOSE_S, self._deadline - now)
        wait = {STARTING: to_begin, REPLAYING: to_meet, ENDING: to_close, CLOSED: math.inf}[self._stage]
        self._deadline = now + wait + (0.0 if self._speaks else OTHERS_S)
        return False

    def _stuck(self) -> str:
        if self._stage == STARTING:
            return f"{self._reason()}: interrupted before the replay began"
        if self._stage == REPLAYING:
            return (
                f"{self._reason()}: not all ranks came to the next barrier within {self.since():.0f} s, so a rank is"
                " stuck or has died; ended without a result"
            )
        return f"{self._reason()}: the store was not closed within {self._patience:.0f} s; ended without a result"

    def _reason(self) -> str:
        return f"{signal.Signals(self.signal).name} ({_REASONS[self.signal]})"

    def _say(self, text: str) -> None:
        if self._speaks:
            with contextlib.suppress(OSError):
                os.write(2, f"cascade: {text}\n".encode())  # not through sys.stderr: the main thread may hold its lock

    def _force(self, text: str) -> None:
        if self._before_end is not None:
            with contextlib.suppress(OSError, ValueError):  # a pipe whose reader is gone must not save this process
                self._before_end()
        self._say(text)
        self._end(128 + self.signal)


_REASONS: dict[int, str] = {
    signal.SIGINT: "Ctrl-C", signal.SIGTERM: "the launcher ends this job, or its time is up",
    signal.SIGUSR1: "its time is nearly up",
}  # fmt: skip


def _nothing(number: int, frame: FrameType | None) -> None:
    """The handler in Python: the number is already in the pipe."""


def restore_cursor() -> None:
    """Local. What a live view has hidden, for an end that skips its own tidying."""
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")
