"""What follows for blocks when records are damaged: which are a miss, which go back to an older version.

Covers damaged records against the newest records of their keys. Does not find damage (see `fsck`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.keys import shown
from cascade_mpi.segments.format import TOMBSTONE
from cascade_mpi.segments.recovery import Latest


class Consequence(NamedTuple):
    """A text for people, and the blocks that are not what they would be, as `keys.shown`."""

    text: str
    keys: tuple[str, ...]


class Newest:
    """The sequences of the newest records of some keys."""

    def __init__(self, found: Latest, concerned: Sequence[npt.NDArray[np.void]]) -> None:
        """`found`: what a restart finds. `concerned`: entries of damaged records, whose keys will be asked for."""
        low = np.unique(np.concatenate([each["key_lo"] for each in concerned])) if concerned else np.empty(0, np.uint64)
        self._of: dict[tuple[int, int], tuple[int, int, int]] = {}
        for rows in (found.blocks, found.tombstones):
            for row in rows[np.isin(rows["key_lo"], low)]:
                place = int(row["sequence"]), int(row["segment"]), int(row["unit"])
                self._of[int(row["key_hi"]), int(row["key_lo"])] = place

    def consequence(self, rows: npt.NDArray[np.void], segment: int, indexed: bool) -> Consequence:
        """Local. What it means that these records of a segment cannot be read.

        indexed
            A footer names them: a restart takes them for what they were. Otherwise it does not know of them.
        """
        counts = dict.fromkeys(_TEXTS, 0)
        keys = []
        for row in rows:
            key, sequence = (int(row["key_hi"]), int(row["key_lo"])), int(row["sequence"])
            what = self._of_record(key, sequence, (segment, int(row["unit"])), row["kind"] == TOMBSTONE, indexed)
            counts[what] += 1
            if what != "none":
                keys.append(shown(*key))
        text = "; ".join(_TEXTS[what].format(count) for what, count in counts.items() if count)
        return Consequence(text, tuple(keys))

    def _of_record(
        self, key: tuple[int, int], sequence: int, where: tuple[int, int], tombstone: bool, indexed: bool
    ) -> str:
        newest = self._of.get(key)
        if newest is not None and (newest[0] > sequence or (newest[0] == sequence and newest[1:] != where)):
            return "none"
        if tombstone:
            return "none" if indexed or newest is None else "back"
        return "miss" if indexed or newest is None else "older"


_TEXTS = {
    "miss": "{} blocks are misses, never wrong bytes",
    "older": "{} blocks go back to an older version, if they had been acknowledged",
    "back": "{} deleted blocks are found again, if their deletion had been acknowledged",
    "none": "{} records concern no block: it has a newer record, or was deleted",
}
