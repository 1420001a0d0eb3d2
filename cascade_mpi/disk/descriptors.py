"""Descriptors in memory, records and footers' entries on disk: each made of the other.

Covers which fields are the same and which are not: an expiry counts from the store's opening in memory and is absolute
on disk. Does not cover who writes them where.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.layout import (
    DESCRIPTOR,
    FLAG_BACKED,
    FLAG_CHECKSUM,
    FLAG_COPY,
    FLAG_DISK,
    FLAG_HELD,
    MAGIC,
    MAX_EXPIRY,
    UNIT_BITS,
)
from cascade_mpi.segments.format import BLOCK, PROTECTED
from cascade_mpi.segments.records import Record

_OF_MEMORY = FLAG_BACKED | FLAG_DISK | FLAG_COPY | FLAG_HELD  # flags of a cell, not of the block


def record_of(described: Any, checksum: int, *, hard: bool, opened: int) -> Record:
    """Local. The record of the block that a descriptor (one of `DESCRIPTOR`) describes.

    `checksum` is that of its payload, `hard` whether it is protected, `opened` the second from which expiries count.
    """
    d = described
    expiry = int(d["expiry"])
    return Record(
        BLOCK, int(d["key_hi"]), int(d["key_lo"]), int(d["sequence"]), int(d["length"]),
        int(d["flags"]) & ~_OF_MEMORY | FLAG_CHECKSUM, PROTECTED if hard else 0, int(d["dtype"]), int(d["ndim"]),
        int(d["dim0"]), tuple(d["dims"].tolist()), 0, 0, checksum, int(d["namespace"]), int(d["epoch"]),
        expiry + opened if expiry else 0, int(d["depth"]),
    )  # fmt: skip


def descriptors_of(located: npt.NDArray[np.void], rank: int, opened: int) -> npt.NDArray[np.void]:
    """Local. The descriptors of disk cells for the blocks of these entries (`segments.recovery.LOCATED`), of one rank.

    Generation 1. What has expired by `opened` is not to be among them.
    """
    made = np.zeros(len(located), DESCRIPTOR)
    for name in ("length", "key_hi", "key_lo", "checksum", "namespace", "epoch", "sequence", "dtype", "ndim", "depth",
                 "dim0", "dims"):  # fmt: skip
        made[name] = located[name]
    made["magic"], made["generation"], made["manager"] = MAGIC, 1, rank
    held = (located["marks"] & PROTECTED != 0) * np.uint16(FLAG_HELD)
    made["flags"] = located["flags"] & ~np.uint16(_OF_MEMORY) | np.uint16(FLAG_DISK) | held
    made["content_hi"] = located["segment"] << np.uint64(UNIT_BITS) | located["unit"].astype(np.uint64)
    expiry = located["expiry"].astype(np.int64)
    made["expiry"] = np.where(expiry > 0, np.clip(expiry - opened, 1, MAX_EXPIRY), 0)
    return made
