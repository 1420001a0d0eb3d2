"""What a store's directory holds, by segment and by namespace, without reading a payload.

Covers sums over footers, and over scans of what has none. Does not cover damage (see `fsck`), nor printing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.keys import shown
from cascade_mpi.segments import epochs
from cascade_mpi.segments.checkpoints import Checkpoint, checkpoints
from cascade_mpi.segments.format import BLOCK, PROTECTED
from cascade_mpi.segments.recovery import SegmentIndex, latest, recover

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files


class SegmentRow(NamedTuple):
    """One segment. Sizes in bytes; `live` counts blocks that are the newest of their keys, of the present epoch.

    state: "sealed"; "open" while a job writes it, or when its job ended before it was sealed; "damaged" if it was
    sealed and has lost its footer. Without one what is in it was found by a scan.
    """

    segment: int
    path: str
    state: Literal["sealed", "open", "damaged"]
    sealed: bool
    run: int
    size: int
    records: int
    tombstones: int
    live: int
    live_bytes: int


class NamespaceRow(NamedTuple):
    """The newest blocks of one namespace at one epoch; `namespace` as in descriptors, 0 for the default one.

    passed: the namespace is at a later epoch, and no job finds them any more.
    """

    namespace: int
    epoch: int
    blocks: int
    payload_bytes: int
    protected: int
    passed: bool


class BlockRow(NamedTuple):
    """One block, the newest of its key. `key` as `keys.shown`; `expiry` in seconds of Unix time, 0: never."""

    key: str
    namespace: int
    epoch: int
    nbytes: int
    sequence: int
    expiry: int
    protected: bool
    segment: int
    unit: int


class Listing(NamedTuple):
    """All of a directory. Blocks and bytes without those of epochs that have `passed`."""

    segments: list[SegmentRow]
    namespaces: list[NamespaceRow]
    blocks: int
    payload_bytes: int
    tombstones: int
    superseded: int  # records that have a newer one of their key
    passed: int  # blocks of epochs that have passed
    checkpoints: list[Checkpoint]  # in the order of their times
    problems: list[str]
    present: npt.NDArray[np.void]  # the blocks, as `recovery.LOCATED`

    def rows(self) -> Iterator[BlockRow]:
        """Local. Every block, in the order of segments and units."""
        for row in self.present:
            yield BlockRow(
                shown(int(row["key_hi"]), int(row["key_lo"])), int(row["namespace"]), int(row["epoch"]),
                int(row["length"]), int(row["sequence"]), int(row["expiry"]), bool(row["marks"] & PROTECTED),
                int(row["segment"]), int(row["unit"]),
            )  # fmt: skip


def list_store(files: Files, store: bytes) -> Listing:
    """Local. List a store's directory; changes nothing. 1 open and 1 or 2 reads for each sealed segment."""
    found = recover(files, store, sync=False)
    newest = latest(found.indexes)
    begun = epochs.present(files, (each.entries for each in found.indexes))
    dead = epochs.passed(newest.blocks, begun)
    blocks = newest.blocks[~dead]
    segments = []
    for each in found.indexes:
        mine = blocks["length"][blocks["segment"] == each.segment]
        tombstones = int(np.count_nonzero(each.entries["kind"] != BLOCK))
        segments.append(
            SegmentRow(
                each.segment, each.path, _state(each), each.sealed, each.place.run, each.size, len(each.entries),
                tombstones, mine.size, int(mine.sum()),
            )
        )  # fmt: skip
    return Listing(
        segments, _namespaces(newest.blocks, begun), len(blocks), int(blocks["length"].sum()), len(newest.tombstones),
        newest.superseded, int(np.count_nonzero(dead)), checkpoints(files), found.problems + found.torn, blocks,
    )  # fmt: skip


def _state(index: SegmentIndex) -> Literal["sealed", "open", "damaged"]:
    if index.path.endswith(".open"):
        return "open"
    return "sealed" if index.sealed else "damaged"


def _namespaces(blocks: npt.NDArray[np.void], begun: Mapping[int, int]) -> list[NamespaceRow]:
    groups = np.empty(len(blocks), [("namespace", "<u8"), ("epoch", "<u4")])
    groups["namespace"], groups["epoch"] = blocks["namespace"], blocks["epoch"]
    rows = []
    for group in np.unique(groups):
        mine = blocks[groups == group]
        protected = int(np.count_nonzero(mine["marks"] & PROTECTED))
        nbytes = int(mine["length"].sum())
        namespace, epoch = int(group["namespace"]), int(group["epoch"])
        rows.append(NamespaceRow(namespace, epoch, len(mine), nbytes, protected, epoch < begun.get(namespace, 0)))
    return rows
