"""One outcome for all ranks: what failed on one of them fails on every one, with its reason.

Covers the exchange after a step that each rank did by itself, and the error that the others raise. Does not cover
steps in which ranks wait for each other: a rank that has failed must take part in those all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from mpi4py import MPI

from cascade_mpi import errors
from cascade_mpi.errors import DiskError, NotDurableError

T = TypeVar("T")
_KINDS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DiskError) and kind is not NotDurableError
}


def agreed(comm: MPI.Intracomm, act: Callable[[], T]) -> T:
    """Collective. What `act` returns here, if it has returned on all ranks. 1 Allreduce, 1 bcast more after an error.

    Raises
    ------
    DiskError
        It raised on some rank: the same class everywhere, that of the lowest such rank, whose number is in the text.
        A rank where it was no DiskError (a bug, no memory, Ctrl-C) raises what it met.
    NotDurableError
        Instead, if blocks are lost on any rank: `lost` has those of all ranks.
    """
    result: T | None = None
    error: BaseException | None = None
    try:
        result = act()
    except BaseException as met:
        error = met
    settle(comm, error)
    return result  # type: ignore[return-value]  # it has returned


def settle(comm: MPI.Intracomm, error: BaseException | None) -> None:
    """Collective. As `agreed`, of what each rank has met already. 1 allgather more after an error."""
    first = np.array([comm.size if error is None else comm.rank], np.int64)
    comm.Allreduce(MPI.IN_PLACE, first, MPI.MIN)
    rank = int(first[0])
    if rank == comm.size:
        return
    kind, number, text, where = comm.bcast(_told(error) if rank == comm.rank else None, root=rank)
    mine = list(error.lost) if isinstance(error, NotDurableError) else []
    everyone = comm.allgather(mine)  # not to be told of on one rank alone: whoever has put them may be another
    if error is not None and not isinstance(error, DiskError):
        raise error
    if kind == NotDurableError.__name__ or any(everyone):
        if counts := ", ".join(f"{len(lost)} of rank {at}" for at, lost in enumerate(everyone) if lost):
            text += f" (blocks to be put again: {counts})"
        raise NotDurableError(
            number, f"on rank {rank}: {text}", [each for lost in everyone for each in lost]
        ) from error
    raise _KINDS.get(kind, DiskError)(number, f"on rank {rank}: {text}", where) from error


def _told(error: BaseException | None) -> tuple[str, int | None, str, str | None]:
    if isinstance(error, DiskError):
        return type(error).__name__, error.errno, str(error), error.filename
    return "", getattr(error, "errno", None), f"{type(error).__name__}: {error}", None
