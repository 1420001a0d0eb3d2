"""How many payload bytes of each arena are protected, and the quota on them.

Covers the count beside each rank's table of namespaces. Does not cover the hard bit itself (see `protection`).

A block counts from before its word becomes a hard one until after that word has left or become a soft one, so
the hard words of an arena never name more than is counted. Whoever's compare-and-swap takes a hard word away,
or makes it a soft one, gives its bytes back: the manager would not know whether the word that left was hard.
"""

from __future__ import annotations

from cascade_mpi.config import format_size
from cascade_mpi.fabric import Fabric
from cascade_mpi.shared_words import PROTECTED, SharedWords


class ProtectedBytes:
    """The counts of all ranks. Without a quota nothing is counted and no MPI call made."""

    def __init__(self, fabric: Fabric, shared: SharedWords, limit: int | None) -> None:
        self._fabric, self._shared = fabric, shared
        self.limit = limit

    def reserve(self, rank: int, nbytes: int) -> str:
        """Local. Count `nbytes` more in the arena of a rank: "", or for people why they do not fit (not counted).

        1 Get + 1 CAS at that rank.
        """
        limit, held = self.limit, 0
        if limit is None:
            return ""

        def more(used: int) -> int:
            nonlocal held
            held = used
            return used if used + nbytes > limit else used + nbytes

        self._shared.change(rank, PROTECTED, more)
        if held + nbytes <= limit:
            return ""
        return (
            f"{held} bytes in the arena of rank {rank} are protected, {nbytes} more would exceed protected_bytes = "
            f"{limit} ({format_size(limit)}): raise it, or unprotect or delete protected blocks"
        )

    def release(self, rank: int, nbytes: int) -> None:
        """Local. A hard word of a rank's cell has left or become a soft one. 1 Get + 1 CAS at that rank."""
        if self.limit is not None:
            self._shared.change(rank, PROTECTED, lambda used: used - nbytes)

    def counted(self) -> int:
        """Local. Bytes that count in this rank's arena now; 0 without a quota. 1 Get."""
        return self._shared.read(self._fabric.comm.rank, PROTECTED)
