"""MPI progress: the thread that enters MPI while the program computes.

A compare-and-swap waits on most networks until its target enters MPI; a Get does not. Covers the thread;
whether it is needed is found out in `selftest`, and public calls of the store enter MPI themselves.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cascade_mpi.fabric import Fabric

_turn = threading.Lock()  # held while any store's thread of this process is in MPI


@contextmanager
def paused() -> Iterator[None]:
    """Local. No store's progress thread enters MPI meanwhile: what the self-test sees is MPI's own doing."""
    with _turn:
        yield


class ProgressThread:
    """Polls MPI every `period` seconds until `stop`. It holds the GIL only between two polls."""

    def __init__(self, fabric: Fabric, period: float) -> None:
        self._fabric, self._period = fabric, period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cascade-progress", daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # before MPI is finalised

    def _run(self) -> None:
        poll, ctx, s = self._fabric.poll, self._fabric.ctx, self._fabric.scratch.address
        while not self._stop.is_set():
            with _turn:
                poll(ctx, s)
            time.sleep(self._period)

    def stop(self) -> None:
        """Local. End the thread; idempotent."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)
        atexit.unregister(self.stop)
