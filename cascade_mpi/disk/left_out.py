"""Blocks that the directory has and for which the index had no slot: nobody finds them, until a larger index is given.

Covers those of one home, and their tombstones when many blocks are deleted at once. Does not cover the delete of one
key: that leaves a tombstone whatever it finds (rule 10 of `docs/disk.md`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cascade_mpi.disk.tier import DiskTier

_FIELDS = ("key_hi", "key_lo", "namespace", "epoch")  # 28 bytes a block: all of them can be kept, however many
_KEPT = np.dtype([("key_hi", "<u8"), ("key_lo", "<u8"), ("namespace", "<u8"), ("epoch", "<u4")])


class LeftOut:
    """The keys of these blocks, as long as this job has not deleted them."""

    def __init__(self, tier: DiskTier, blocks: npt.NDArray[np.void], above: int) -> None:
        """`blocks` as `restart.adopt` gives them; `above` is above their sequences and below all that this job gives.

        A tombstone with it deletes what was left out, and no block that this job has put under the same key.
        """
        self._tier, self._above = tier, above
        self.records = np.empty(len(blocks), _KEPT)
        for name in _FIELDS:
            self.records[name] = blocks[name]

    def of(self, namespace_id: int, epoch: int) -> npt.NDArray[np.int64]:
        """Local. Which of `records` are of a namespace at an epoch."""
        mine = (self.records["namespace"] == np.uint64(namespace_id)) & (self.records["epoch"] == epoch)
        found: npt.NDArray[np.int64] = np.flatnonzero(mine)
        return found

    def delete(self, chosen: npt.NDArray[np.int64]) -> None:
        """Local. Let no later job find these of `records`: a tombstone each, durable after the next sync."""
        with self._tier.lock:
            for record in self.records[chosen]:
                self._tier.removed(int(record["key_hi"]), int(record["key_lo"]), self._above)
            self.records = np.delete(self.records, chosen)  # from here on they are owed, if they could not be written

    def clear(self) -> None:
        """Local. The same of all."""
        self.delete(np.arange(len(self.records)))
