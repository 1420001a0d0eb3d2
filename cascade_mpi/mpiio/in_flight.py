"""Writes that were started and have not ended: how much of them at most, and what becomes of one that fails.

Covers back-pressure, tickets, and writes that end short or never. Knows no MPI: whoever starts a write gives what
tells its end (see `files`). Does not cover what a failure means for a file.

The end of a non-blocking write cannot be trusted. MPICH 5.0's ROMIO never completes one that the system refused (a full
disk), and Open MPI 5.0 ends the process when it is waited for; both give fewer bytes and no error where a part was
taken. So nobody waits inside MPI: the end is polled for, bytes are counted, and what ended short, or not within
`patience_s`, is written once more with pwrite, the same bytes to the same place: then either they are there, or the
system's own error is known.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MOST_PATIENCE_S = 60.0
_LONGEST_PAUSE_S = 1e-3


class Started(Protocol):
    """A write that is under way."""

    def done(self) -> int | None:
        """Local. The bytes that it has written when it has ended, else None; -1: it has failed."""
        ...

    def free(self) -> None:
        """Local. Forget it: it has ended."""
        ...


class Target(Protocol):
    """A file that is written to."""

    def begin(self, offset: int, buffer: memoryview) -> Started:
        """Local. Start a write; OSError if it cannot be started."""
        ...

    def repair(self, offset: int, buffer: memoryview) -> None:
        """Local. Write the same bytes again and wait; OSError says why they cannot be written."""
        ...

    def note(self, error: OSError) -> None:
        """Local. A write has failed, of which its caller has heard nothing."""
        ...


@dataclass(slots=True, eq=False)
class _Write:
    target: Target
    offset: int
    buffer: memoryview
    under_way: Started
    ticket: int


class InFlight:
    """The writes of some files, oldest first. Thread-safe; `lock` is held whenever MPI is called.

    limit_bytes
        What may be under way at a time; a single larger write goes alone.
    patience_s
        How long the oldest write may take before it is written again. Doubled, up to a minute, whenever that shows
        that the disk was only slow.
    """

    def __init__(
        self, limit_bytes: int, patience_s: float, lock: threading.RLock | None = None,
        *, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.limit_bytes, self.patience_s = limit_bytes, patience_s
        self.lock = lock or threading.RLock()
        self._clock, self._pause = clock, pause
        self._writes: deque[_Write] = deque()
        self._since = 0.0  # when the oldest one became that
        self._never: list[_Write] = []  # given up, but MPI may still read their memory
        self.bytes = 0
        self.started = self.finished = 0  # tickets: of the last write, and up to which all have ended
        self.waits = self.repaired = 0

    def start(self, target: Target, offset: int, buffer: memoryview) -> int:
        """Local. Start a write when there is room for it; its ticket. `buffer` stays as it is until it has ended.

        Waits for the oldest writes while more than `limit_bytes` would be under way. OSError if it does not start.
        """
        waited = 0
        while True:
            with self.lock:
                if not self._writes or self.bytes + buffer.nbytes <= self.limit_bytes:
                    under_way = target.begin(offset, buffer)
                    self.started += 1
                    if not self._writes:
                        self._since = self._clock()
                    self._writes.append(_Write(target, offset, buffer, under_way, self.started))
                    self.bytes += buffer.nbytes
                    return self.started
                moved = self._advance()
            if not moved:
                self.waits += not waited
                waited += 1
                self._pause(_how_long(waited))

    def poll(self) -> int:
        """Local. Look what has ended, without waiting: the ticket up to which all have. Their memory is free then."""
        with self.lock:
            while self._advance():
                pass
            return self.finished

    def drain(self, target: Target | None = None) -> None:
        """Local. Wait until every write, or those to one target, have ended. Failures are noted at their targets."""
        waited = 0
        while True:
            with self.lock:
                if not any(target is None or each.target is target for each in self._writes):
                    return
                moved = self._advance()
            waited = 0 if moved else waited + 1
            if not moved:
                self._pause(_how_long(waited))

    def holds(self, target: Target) -> bool:
        """Local. Whether MPI may still write to this file, drained or not: then it must not be closed."""
        with self.lock:
            for each in [each for each in self._never if each.under_way.done() is not None]:
                each.under_way.free()
                self._never.remove(each)
            return any(each.target is target for each in (*self._writes, *self._never))

    def _advance(self) -> bool:
        """End the oldest write if that can be done now."""
        if not self._writes:
            return False
        write = self._writes[0]
        nbytes = write.under_way.done()
        if nbytes is None:
            if self._clock() - self._since < self.patience_s:
                return False
            self._never.append(write)
        else:
            write.under_way.free()
        self._writes.popleft()
        self.bytes -= write.buffer.nbytes
        try:
            if nbytes != write.buffer.nbytes:
                self.repaired += 1
                write.target.repair(write.offset, write.buffer)
                if nbytes is None:
                    self.patience_s = min(2 * self.patience_s, MOST_PATIENCE_S)
        except OSError as error:
            write.target.note(error)
        self.finished = write.ticket
        self._since = self._clock()
        return True


def _how_long(times: int) -> float:
    return min(5e-5 * times, _LONGEST_PAUSE_S)
