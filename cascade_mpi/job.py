"""The end of a job: how a command's error on one rank or on all becomes one message and one exit status.

Covers messages for people and the orderly or forced end. Does not cover what the commands do. Needs MPI
only when an error has happened on several ranks.
"""

from __future__ import annotations

import os
import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from cascade_mpi.errors import CascadeError
from cascade_mpi.launcher import launcher_rank

if TYPE_CHECKING:
    from mpi4py import MPI

AGREE_SECONDS = 5.0
SILENT_SECONDS = 1.0


def fail_together(comm: MPI.Intracomm, error: CascadeError) -> int:
    """Collective. Exit status 2 after one message, when all ranks failed alike; else this rank ends the job."""
    meeting = comm.Ibarrier()
    deadline = monotonic() + AGREE_SECONDS
    while not meeting.Test():
        if monotonic() > deadline:  # the others are somewhere else and would wait for ever
            print_error(f"rank {comm.rank}: {error}")
            abort(comm, 2)
    if comm.rank == 0 and launcher_rank() == 0:  # the launcher's rank: each process may be a world of its own
        print_error(str(error))
    if comm.size == 1:
        let_rank_0_speak()
    return 2


def let_rank_0_speak() -> None:
    """Local. Wait on the other ranks before an exit without a word, where MPI does not bring the ranks together.

    With `srun --kill-on-bad-exit` the first bad exit kills all, and rank 0 would be cut short.
    """
    if launcher_rank() != 0:
        sleep(SILENT_SECONDS)


def abort(comm: MPI.Intracomm, status: int) -> NoReturn:
    """Local. End the whole job with this exit status."""
    sys.stderr.flush()
    comm.Abort(status)
    os._exit(status)  # MPI_Abort may come back (MPICH under Slurm's pmi2 does): nothing must run on in a broken job


def print_error(text: str) -> None:
    """Local. One line on stderr that says whose it is."""
    Console(stderr=True, soft_wrap=True).print(f"cascade: {text}", markup=False, highlight=False)
