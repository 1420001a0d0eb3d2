"""Rows that go to other ranks, and answers that come back in the same order.

Covers one exchange of all ranks with all, of any number of rows (not of bytes: an MPI count has 31 bits).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI


class Exchange:
    """The way of some rows, known on all ranks."""

    def __init__(self, comm: MPI.Intracomm, to: npt.NDArray[np.int64]) -> None:
        """Collective. Row i of this rank goes to rank `to[i]`. 1 alltoall."""
        self._comm = comm
        self._order = np.argsort(to, kind="stable")
        self._sent = np.bincount(to, minlength=comm.size)
        self._received = np.array(comm.alltoall(self._sent.tolist()), np.int64)

    def there(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Collective. The rows of all ranks that go to this one, by rank. 1 Alltoallv."""
        return self._move(rows[self._order], self._sent, self._received)

    def back(self, answers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Collective. What all ranks answered to this rank's rows, in their order; `answers` to what `there` gave."""
        came = self._move(answers, self._received, self._sent)
        found = np.empty_like(came)
        found[self._order] = came
        return found

    def _move(
        self, rows: npt.NDArray[Any], send: npt.NDArray[np.int64], receive: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        out = np.empty(int(receive.sum()), rows.dtype)
        row = MPI.BYTE.Create_contiguous(rows.dtype.itemsize).Commit()
        try:
            self._comm.Alltoallv([np.ascontiguousarray(rows), send, _starts(send), row],
                                 [out, receive, _starts(receive), row])  # fmt: skip
        finally:
            row.Free()
        return out


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts)[:-1]))
