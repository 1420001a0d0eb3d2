"""Blocks of all ranks, brought to rank 0 and written there: for an h5py without MPI.

Covers the messages. Does not cover where a rank's blocks come from, nor the file. Memory: one batch at the rank that
sends, one at rank 0, and the block that is read, whatever the number of blocks. Rank 0 asks for each batch, so no rank
runs ahead; it asks for the next one while it writes the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.hdf5.reading import Block
from cascade_mpi.hdf5.rows import Row
from cascade_mpi.hdf5.together import raise_together

BATCH_BYTES = 16 << 20
BATCH_BLOCKS = 4096
_ASK, _ROWS, _BYTES = 101, 102, 103  # tags


class Sink(Protocol):
    """Where rank 0 puts the blocks: `new_file.NewFile`."""

    def begin(self, row: Row) -> None:
        """Local. The next block."""

    def write(self, data: memoryview) -> None:
        """Local. The next bytes of it."""


class Piece(NamedTuple):
    """So many bytes of a block; `row` None: of the one that the piece before was of."""

    row: Row | None
    nbytes: int


class Batch(NamedTuple):
    """Pieces, and their bytes one after the other."""

    pieces: list[Piece]
    data: npt.NDArray[np.uint8]


def batches(blocks: Iterator[Block], most: int = BATCH_BYTES) -> Iterator[Batch]:
    """Local. Blocks in batches of at most `most` bytes: small ones together, large ones in several."""
    pieces: list[Piece] = []
    waiting = np.empty(most, np.uint8)
    used = 0
    for row, values in blocks:
        data = values.reshape(-1).view(np.uint8)
        if pieces and (used + data.size > most or len(pieces) == BATCH_BLOCKS):
            yield Batch(pieces, waiting[:used])
            pieces, used = [], 0
        if data.size <= most:
            waiting[used : used + data.size] = data
            pieces.append(Piece(row, data.size))
            used += data.size
            continue
        for at in range(0, data.size, most):
            part = data[at : at + most]
            yield Batch([Piece(None if at else row, part.size)], part)
    if pieces:
        yield Batch(pieces, waiting[:used])


def gather(comm: MPI.Intracomm, blocks: Iterator[Block], sink: Sink | None) -> None:
    """Collective. Write the blocks of all ranks into the sink of rank 0; an error of one rank is raised on all.

    3 messages a batch.
    """
    error: Exception | None = None
    if comm.rank == 0:
        assert sink is not None
        try:
            for batch in batches(blocks):
                _write(sink, batch)
        except Exception as raised:  # whatever it is, the others are waiting
            error = raised
        memory = np.empty(BATCH_BYTES if comm.size > 1 else 0, np.uint8)
        for source in range(1, comm.size):
            error = _receive(comm, source, sink, memory, error)
    else:
        error = _send(comm, batches(blocks))
    raise_together(comm, error)


def _send(comm: MPI.Intracomm, made: Iterator[Batch]) -> Exception | None:
    """Give rank 0 batches as long as it asks; the error that one could not be made for."""
    error: Exception | None = None
    while comm.recv(source=0, tag=_ASK):
        try:
            batch = next(made, None)
        except Exception as raised:
            error, batch = raised, None
        comm.send(None if batch is None else batch.pieces, dest=0, tag=_ROWS)
        if batch is None:
            break
        if batch.data.size:
            comm.Send([batch.data, MPI.BYTE], dest=0, tag=_BYTES)
    return error


def _receive(
    comm: MPI.Intracomm, source: int, sink: Sink, memory: npt.NDArray[np.uint8], error: Exception | None
) -> Exception | None:
    """Ask one rank for its batches and write them; with an error tell it to send none, or no more."""
    comm.send(error is None, dest=source, tag=_ASK)
    while error is None:
        pieces = comm.recv(source=source, tag=_ROWS)
        if pieces is None:
            return None
        data = memory[: sum(piece.nbytes for piece in pieces)]
        if data.size:
            comm.Recv([data, MPI.BYTE], source=source, tag=_BYTES)
        comm.send(True, dest=source, tag=_ASK)  # it makes the next one meanwhile
        try:
            _write(sink, Batch(pieces, data))
        except Exception as raised:
            error = raised
            if (pieces := comm.recv(source=source, tag=_ROWS)) is not None:  # what it was asked for before
                data = memory[: sum(piece.nbytes for piece in pieces)]
                if data.size:
                    comm.Recv([data, MPI.BYTE], source=source, tag=_BYTES)
                comm.send(False, dest=source, tag=_ASK)
    return error


def _write(sink: Sink, batch: Batch) -> None:
    at = 0
    for piece in batch.pieces:
        if piece.row is not None:
            sink.begin(piece.row)
        if piece.nbytes:
            sink.write(batch.data[at : at + piece.nbytes].data)
        at += piece.nbytes
