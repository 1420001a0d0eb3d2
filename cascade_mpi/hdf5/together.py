"""An error of one rank, raised on all: nobody waits for a rank that has failed.

Covers collective steps that may fail on some ranks. Does not cover ranks that die: that ends the job.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from cascade_mpi.errors import CascadeError

if TYPE_CHECKING:
    from mpi4py import MPI


def raise_together(comm: MPI.Intracomm, error: Exception | None) -> None:
    """Collective. Raise `error`, or the first one of another rank with a note of which; nothing if all have None.

    1 allgather.
    """
    everyone = comm.allgather(None if error is None else _portable(error))
    if error is not None:
        raise error
    for rank, other in enumerate(everyone):
        if other is not None:
            other.add_note(f"(raised by rank {rank})")
            raise other


def _portable(error: Exception) -> Exception:
    """The error if it can be sent as it is, else one with its text."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:  # whatever it is made of: another rank only needs the words
        pass
    return CascadeError(f"{type(error).__name__}: {error}")
