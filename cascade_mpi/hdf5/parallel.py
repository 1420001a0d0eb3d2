"""A file that all ranks write at once, by an h5py that was built with MPI.

Covers the order of the steps. Does not cover where blocks come from, nor what a dataset looks like (`datasets`).

HDF5 asks that whatever changes the structure of a file is done by all ranks alike. So all make the datasets of all
blocks, from one list; then each writes the bytes of its own, alone; then all write the attributes, and take away the
datasets of blocks that have gone meanwhile. Every rank holds the list: some 300 bytes for each block of the job.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mpi4py import MPI

from cascade_mpi.hdf5.datasets import LIBVER, Datasets
from cascade_mpi.hdf5.origin import Origin
from cascade_mpi.hdf5.part_file import PartFile
from cascade_mpi.hdf5.reading import Block
from cascade_mpi.hdf5.rows import Row
from cascade_mpi.hdf5.together import raise_together


def write(
    h5: Any, comm: MPI.Intracomm, path: str | os.PathLike[str], origin: Origin, rows: Sequence[Row],
    read: Callable[[Row], Block | None], *, overwrite: bool, passed: Callable[[], Exception | None],
) -> tuple[int, int]:  # fmt: skip
    """Collective. Write a file of the blocks of all ranks: how many, and their bytes; an error is raised on all.

    rows
        This rank's blocks, as they are now; only key, type and shape count.
    read
        What gives a block's bytes, and its row as it is then; None if it is gone, or has another type or shape.
    passed
        The error for which all is in vain, asked when all blocks have been read.
    """
    part, error = _begin(comm, path, overwrite)
    raise_together(comm, error)
    name = comm.bcast(None if part is None else str(part.part))
    file: Any = None
    try:
        table = _agree(comm, rows)
        error = None
        try:
            file = h5.File(name, "w", driver="mpio", comm=comm, libver=LIBVER)
            datasets = Datasets(h5, file)
            mine = {}
            for row, rank in table:
                dataset = datasets.create(row)
                if rank == comm.rank:
                    mine[row.key] = dataset
        except Exception as raised:
            error = _explained(part, raised, "making the datasets")
        raise_together(comm, error)
        done: list[Row] = []
        try:
            done = _write_own(h5, mine, [row for row, rank in table if rank == comm.rank], read)
        except Exception as raised:  # the others are to hear of it
            error = _explained(part, raised, "writing blocks")
        mine, error = {}, error or passed()
        raise_together(comm, error)
        written = [row for each in comm.allgather(done) for row in each]
        nbytes = sum(row.nbytes for row in written)
        try:
            _finish(datasets, origin, table, written, nbytes)
        except Exception as raised:
            error = _explained(part, raised, "writing the attributes")
        raise_together(comm, error)
    except BaseException:
        if part is not None:
            part.empty()
        if file is not None:  # closing is a step of all ranks, and all are here
            with suppress(Exception):
                file.close()
        if part is not None:
            part.discard()
        raise
    _end(comm, part, file)
    return len(written), nbytes


def _begin(
    comm: MPI.Intracomm, path: str | os.PathLike[str], overwrite: bool
) -> tuple[PartFile | None, Exception | None]:
    if comm.rank:
        return None, None
    try:
        return PartFile(path, overwrite=overwrite), None
    except Exception as error:
        return None, error


def _agree(comm: MPI.Intracomm, rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """The blocks of all ranks and who writes each; of two with one key the newer one."""
    newest: dict[int, tuple[Row, int]] = {}
    for rank, theirs in enumerate(comm.allgather(list(rows))):
        for row in theirs:
            before = newest.get(row.key)
            if before is None or before[0].sequence < row.sequence:
                newest[row.key] = row, rank
    return list(newest.values())


def _write_own(
    h5: Any, mine: dict[int, Any], rows: Sequence[Row], read: Callable[[Row], Block | None]
) -> list[Row]:  # fmt: skip
    done = []
    for row in rows:
        block = read(row)
        if block is None:
            continue
        if block.row.nbytes:
            kind = h5.h5t.py_create(block.data.dtype, logical=True)
            mine[row.key].write(h5.h5s.ALL, h5.h5s.ALL, block.data, kind)
        done.append(block.row)
    return done


def _finish(
    datasets: Datasets, origin: Origin, table: Sequence[tuple[Row, int]], written: Sequence[Row], nbytes: int
) -> None:
    left = {row.key for row, _ in table}
    for row in written:
        dataset = datasets.open(row.key)
        assert dataset is not None
        datasets.describe(dataset, row)
        left.discard(row.key)
    for row, _ in table:  # in the order of the list, which is the same on all ranks
        if row.key in left:
            datasets.remove(row.key)
    datasets.describe_file(origin, len(written), nbytes)


def _end(comm: MPI.Intracomm, part: PartFile | None, file: Any) -> None:
    error: Exception | None = None
    try:
        file.close()
    except Exception as raised:
        error = _explained(part, raised, "closing the HDF5 file")
    try:
        raise_together(comm, error)
        try:
            if part is not None:
                part.commit()
        except Exception as raised:
            error = raised
        raise_together(comm, error)
    except BaseException:
        if part is not None:
            part.discard()
        raise


def _explained(part: PartFile | None, error: Exception, doing: str) -> Exception:
    return error if part is None else part.explained(error, doing)
