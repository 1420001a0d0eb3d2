"""The ranks of a node watch each other: a job with a dead rank ends even if its launcher lets the others wait.

Covers noticing that a process of this node is gone, and ending the job for it. Does not cover what rank 0's node says
about it (see `sentinel`), nor the death of a whole node. hydra's mpiexec kills the others by itself, within a
millisecond; `srun` without `-K` does not, and neither does `mpiexec -disable-auto-cleanup`.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

LAUNCHER_S = 2.0  # what the launcher gets to end the job itself


class PeerGuard:
    """While entered, waits for the end of other processes of this node; calls `lost(rank, first)` after one ended.

    `first`: this process is the lowest of the ranks that are left on the node, so that it is the one to speak. On
    kernels without process descriptors nobody is watched.
    """

    def __init__(
        self, rank: int, pids: Mapping[int, int], lost: Callable[[int, bool], None], patience_s: float = LAUNCHER_S
    ) -> None:
        self._rank, self._pids, self._lost, self._patience_s = rank, dict(pids), lost, patience_s
        self._read, self._write = -1, -1
        self._thread: threading.Thread | None = None
        self._dismissed = False

    def __enter__(self) -> Self:
        watched = _open(self._rank, self._pids)
        if watched:
            self._read, self._write = os.pipe()
            self._thread = threading.Thread(target=self._watch, args=(watched,), name="cascade-peers", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.dismiss()
        if self._thread is not None:
            self._thread.join()
            os.close(self._read)

    def dismiss(self) -> None:
        """Local. From now on ranks may end; idempotent."""
        if self._thread is not None and not self._dismissed:
            self._dismissed = True
            os.close(self._write)

    def _watch(self, watched: dict[int, int]) -> None:
        poll = select.poll()
        for fd in (self._read, *watched):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._read not in ready:
            dead = {watched[fd] for fd in ready}
            stop = select.poll()
            stop.register(self._read, select.POLLIN)
            if not stop.poll(self._patience_s * 1000):
                dead |= {watched[fd] for fd, _ in poll.poll(0) if fd in watched}
                left = [rank for rank in self._pids if rank not in dead]
                self._lost(min(dead), self._rank == min(left))
        for fd in watched:
            os.close(fd)


def _open(own: int, pids: Mapping[int, int]) -> dict[int, int]:
    """Descriptors of the processes, with their ranks; empty when this kernel has none."""
    watched: dict[int, int] = {}
    for rank, pid in pids.items():
        if rank == own:
            continue
        try:
            watched[os.pidfd_open(pid)] = rank
        except (OSError, AttributeError):  # as in a container with an old seccomp profile
            for fd in watched:
                os.close(fd)
            return {}
    return watched
