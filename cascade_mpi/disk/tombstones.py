"""The tombstones that one rank owes the disk: of keys that were deleted or dropped, and not written yet.

Covers which they are, their number, and the bytes they will take. Does not cover when they are written (`tier`).

Whether a key has an older record that is durable cannot be known without a look at all segments (rule 9 of
`docs/disk.md`), so every delete and drop owes one. While the disk refuses they pile up: so their number has a limit,
beyond which no block is dropped, and deletes are refused a little later.
"""

from __future__ import annotations

from collections.abc import Callable

from cascade_mpi.segments.format import ENTRY_BYTES
from cascade_mpi.segments.space import TOMBSTONE_BYTES

MOST = 1 << 16  # that drops may owe: 10 MB of memory, 72 MiB of a file
COST = TOMBSTONE_BYTES + ENTRY_BYTES  # bytes of a file that one takes


class Tombstones:
    """By key the sequence of what is owed. The caller holds the pool's lock."""

    def __init__(self) -> None:
        self._owed: dict[tuple[int, int], int] = {}
        self.most = MOST

    def __len__(self) -> int:
        """Local. How many keys are owed one."""
        return len(self._owed)

    @property
    def nbytes(self) -> int:
        """What they will take of the directory."""
        return len(self._owed) * COST

    @property
    def full(self) -> bool:
        """Whether no block may be dropped."""
        return len(self._owed) >= self.most

    @property
    def overfull(self) -> bool:
        """Whether nothing may be deleted either: deletes have as much room again."""
        return len(self._owed) >= 2 * self.most

    def owe(self, hi: int, lo: int, sequence: int) -> None:
        """Local. One is owed for this key: of several the highest sequence counts."""
        self._owed[hi, lo] = max(sequence, self._owed.get((hi, lo), 0))

    def pay(self, append: Callable[[int, int, int], None]) -> None:
        """Local. Write them all; those that an error leaves are owed still."""
        while self._owed:
            key, sequence = next(iter(self._owed.items()))
            append(*key, sequence)
            del self._owed[key]
