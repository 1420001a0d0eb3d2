"""What an earlier job has left in the directory, found by all ranks together.

Covers the index of the segments, dealt to the ranks; the newest record of each key, at the key's home; and the disk
cells and index words that are made of them. Does not cover one segment (`segments.recovery`), nor contents: they stay
where they are until somebody reads them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.disk.cells import DiskCells
from cascade_mpi.disk.descriptors import descriptors_of
from cascade_mpi.disk.directory import Directory, together
from cascade_mpi.disk.exchange import Exchange
from cascade_mpi.errors import CascadeError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import BUCKET_WORDS, place_many
from cascade_mpi.mpiio.agreement import agreed
from cascade_mpi.segments.epochs import noted
from cascade_mpi.segments.recovery import locate, newest, recover

_log = logging.getLogger("cascade.disk")


class Found(NamedTuple):
    """What a directory holds, as one rank needs it."""

    blocks: npt.NDArray[np.void]  # `LOCATED`: the newest records of the keys whose home this rank is
    highest: int  # sequence of anything, on all ranks
    next_segment: int  # above all numbers, the same on all ranks
    most: int  # blocks of one home
    epochs: dict[int, int]  # by namespace id: the highest epoch of any record, on all ranks
    segments: int
    bytes: int  # of all segments
    superseded: int
    seconds: float
    took: dict[str, float]  # seconds of its parts on this rank


def find(directory: Directory) -> Found:
    """Collective. The blocks that are durable in the directory; what is expired too.

    Each rank reads the footers of its share of the segments. What an earlier job has left unsynced, files, names,
    removals and epochs, is made durable before anybody may use it (rule 17).

    Raises
    ------
    CascadeError
        On all ranks: something is damaged, or could not be read, and the directory is to be written to. A block that
        is not found now might be an old one later. What a job may leave that is killed, or loses power, is none.
    """
    comm, began = directory.comm, time.monotonic()
    marks = [began]
    numbers = directory.segments()
    share = comm.rank, comm.size
    recovered = agreed(
        comm,
        lambda: recover(directory.files, directory.store, share=share, sync=directory.writable, numbers=numbers),
    )
    problems = [
        f"rank {rank}: {text}" for rank, texts in enumerate(comm.allgather(recovered.problems)) for text in texts
    ]
    if problems and directory.writable:
        raise CascadeError(
            f"disk {directory.path}: {len(problems)} problems, the first: {problems[0]}. `cascade fsck` explains them "
            'all; open it with disk_mode="read" to use what is whole'
        )
    located = locate(recovered.indexes)
    marks.append(time.monotonic())
    homes = place_many(located["key_hi"], located["key_lo"], comm.size, 1).homes
    mine = Exchange(comm, homes).there(located)
    marks.append(time.monotonic())
    found = newest(mine)
    highest = int(mine["sequence"].max()) if len(mine) else 0
    epochs: dict[int, int] = {}
    for namespace in np.unique(mine["namespace"]).tolist():
        epochs[namespace] = int(mine["epoch"][mine["namespace"] == namespace].max())
    merged = together(comm, lambda: noted(directory.files, sync=directory.writable) if comm.rank == 0 else {})[0]
    for each in comm.allgather(epochs):
        for namespace, epoch in each.items():
            merged[namespace] = max(epoch, merged.get(namespace, 0))
    marks.append(time.monotonic())
    took = dict(zip(("footers", "exchange", "newest"), np.diff(marks).tolist(), strict=True))
    return Found(
        found.blocks, comm.allreduce(highest, MPI.MAX), comm.allreduce(recovered.next_segment, MPI.MAX),
        comm.allreduce(len(found.blocks), MPI.MAX), merged, comm.allreduce(len(recovered.indexes)),
        comm.allreduce(sum(each.size for each in recovered.indexes)), comm.allreduce(found.superseded),
        time.monotonic() - began, took,
    )  # fmt: skip


def adopt(
    fabric: Fabric, cells: DiskCells, blocks: npt.NDArray[np.void], epochs: Mapping[int, int]
) -> npt.NDArray[np.void]:
    """Local. Let the index of this home name the blocks of an earlier job: those that found no slot.

    Before any other rank uses the index. Not those that have expired, or are of an epoch before that in `epochs`.
    """
    opened = int(fabric.context[c.EPOCH])
    there = (blocks["expiry"] == 0) | (blocks["expiry"].astype(np.int64) > opened)
    for namespace, epoch in epochs.items():
        if epoch:
            there &= (blocks["namespace"] != np.uint64(namespace)) | (blocks["epoch"] >= epoch)
    blocks = blocks[there]
    _, buckets, fingerprints = place_many(blocks["key_hi"], blocks["key_lo"], fabric.comm.size, fabric.buckets)
    order = np.argsort(buckets, kind="stable")
    blocks, buckets, fingerprints = blocks[order], buckets[order], fingerprints[order]
    begins = np.flatnonzero(np.append(True, buckets[1:] != buckets[:-1])) if len(buckets) else np.empty(0, np.int64)
    slots = np.arange(len(buckets)) - np.repeat(begins, np.diff(np.append(begins, len(buckets))))
    fits = slots < BUCKET_WORDS
    left, blocks, buckets, slots = blocks[~fits], blocks[fits], buckets[fits], slots[fits]
    words = cells.adopt(descriptors_of(blocks, fabric.comm.rank, opened), fingerprints[fits])
    fabric.index_words[buckets * BUCKET_WORDS + slots] = words
    full_fence()
    if len(left):
        _log.error("rank %d: %d blocks of the directory find no slot: raise index_blocks", fabric.comm.rank, len(left))
    return left
