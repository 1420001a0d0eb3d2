"""What follows for blocks when records are damaged: which are a miss, which go back to an older version.

Covers damaged records against the newest records of their keys, and a file that is given up. Does not find damage (see
`fsck`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.keys import shown
from cascade_mpi.segments.format import TOMBSTONE
from cascade_mpi.segments.recovery import Latest, SegmentIndex, latest


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
        counts = dict.fromkeys(("miss", "older", "back", "none"), 0)
        keys = []
        for row in rows:
            key, sequence = (int(row["key_hi"]), int(row["key_lo"])), int(row["sequence"])
            what = self._of_record(key, sequence, (segment, int(row["unit"])), row["kind"] == TOMBSTONE, indexed)
            counts[what] += 1
            if what != "none":
                keys.append(shown(*key))
        text = "; ".join(_text(what, count) for what, count in counts.items() if count)
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


def of_removal(indexes: Sequence[SegmentIndex], segment: int) -> str:
    """Local. For people: what becomes of the blocks that can be read when this segment is taken away.

    `indexes`: of all segments. About 1 us for each of their records.
    """
    found, rest = latest(indexes), latest([each for each in indexes if each.segment != segment]).blocks
    mine, dead = (_keys(rows[rows["segment"] == segment]) for rows in (found.blocks, found.tombstones))
    low = np.array([key[1] for key in mine | dead], np.uint64)
    below = _keys(rest[np.isin(rest["key_lo"], low)])
    counts = {"lost": len(mine - below), "before": len(mine & below), "again": len(dead & below)}
    return "; ".join(_text(what, count) for what, count in counts.items() if count) or "no block is lost by that"


def _keys(rows: npt.NDArray[np.void]) -> set[tuple[int, int]]:
    return set(zip(rows["key_hi"].tolist(), rows["key_lo"].tolist(), strict=True))


def _text(what: str, count: int) -> str:
    one, several = _TEXTS[what]
    return one if count == 1 else several.format(count)


_TEXTS = {
    "miss": ("1 block is a miss, never wrong bytes", "{} blocks are misses, never wrong bytes"),
    "older": (
        "1 block goes back to an older version, if it had been acknowledged",
        "{} blocks go back to an older version, if they had been acknowledged",
    ),
    "back": (
        "1 deleted block is found again, if its deletion had been acknowledged",
        "{} deleted blocks are found again, if their deletion had been acknowledged",
    ),
    "none": (
        "1 record concerns no block: it has a newer record, or was deleted",
        "{} records concern no block: it has a newer record, or was deleted",
    ),
    "lost": ("1 block that is whole is lost by that", "{} blocks that are whole are lost by that"),
    "before": ("1 block goes back to an older version", "{} blocks go back to an older version"),
    "again": ("1 deleted block is found again", "{} deleted blocks are found again"),
}
