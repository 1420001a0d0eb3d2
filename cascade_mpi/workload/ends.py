"""Everything that makes sure that a job ends, and says why, put together for a command.

Covers who is started on which rank, and when each is sent home. Does not cover how they work (see `interrupt`,
`sentinel`, `peers`) nor errors that are exceptions (see `job`).
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cascade_mpi.launcher import launch, launcher_rank
from cascade_mpi.workload.interrupt import Interruption, restore_cursor
from cascade_mpi.workload.peers import PeerGuard
from cascade_mpi.workload.sentinel import Sentinel

if TYPE_CHECKING:
    from mpi4py import MPI

ABORT_S = 2.0  # MPI_Abort may need a lock that a dead rank held


class Ends:
    """Entered before MPI is up; `watch` when it is, `over` when ranks may end. Ranks are those of the launcher."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._sentinel: Sentinel | None = None
        self._peers: PeerGuard | None = None
        self._comm: MPI.Intracomm | None = None
        self._said = False
        self.interruption = Interruption(speaks=launcher_rank() == 0, before_end=self._before_end)

    def __enter__(self) -> Self:
        started = launch()
        several = started is not None and started.processes > 1
        if several and launcher_rank() == 0 and "mpi4py.MPI" not in sys.modules:
            self._sentinel = Sentinel()
            self._stack.callback(self._sentinel.close)
        self._stack.enter_context(self.interruption)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def watch(self, comm: MPI.Intracomm) -> None:
        """Collective. From now on no rank of this node may end. 1 Split, 1 allgather on the node."""
        from mpi4py import MPI

        self._comm = comm
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        pids = dict(node.allgather((comm.rank, os.getpid())))
        node.Free()
        if self._sentinel is not None:
            self._sentinel.watch(pids)
        self._said = 0 in pids  # the sentinel has spoken about this node, if one was started
        self._peers = self._stack.enter_context(PeerGuard(comm.rank, pids, self._lost))

    def over(self) -> None:
        """Local. The work is done, or its failure has been explained: ranks may end."""
        if self._peers is not None:
            self._peers.dismiss()
        if self._sentinel is not None:
            self._sentinel.dismiss()

    def _before_end(self) -> None:
        if self._sentinel is not None:
            self._sentinel.dismiss()
        restore_cursor()

    def _lost(self, rank: int, first: bool) -> None:
        """End the job, in the thread that noticed: the main one may be in MPI, waiting for the dead rank for ever."""
        from mpi4py import MPI

        if first and not self._said:
            os.write(2, f"cascade: rank {rank} has died: the job is ended\n".encode())
        ender = threading.Timer(ABORT_S, os._exit, args=(1,))
        ender.daemon = True
        ender.start()
        if self._comm is not None and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._comm.Abort(1)
        os._exit(1)
