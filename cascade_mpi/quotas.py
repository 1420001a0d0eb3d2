"""How many bytes a namespace may have over all ranks, and how many it has.

Covers the word of each quota, at rank ``slot % ranks``: the bytes used, under the low bits of their epoch. Does not
cover what happens to a put beyond a quota (`writer`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cascade_mpi.fabric import Fabric
from cascade_mpi.shared_words import SharedWords
from cascade_mpi.spaces import Space

_BYTES_BITS = 52  # of a used word: bytes; above them the low bits of their epoch
_TAG_MASK = (1 << 64 - _BYTES_BITS) - 1
_BYTES_MASK = (1 << _BYTES_BITS) - 1
MAX_QUOTA = _BYTES_MASK


class Quotas(SharedWords):
    """The quotas as one rank sees and changes them."""

    def __init__(self, fabric: Fabric, used_at: int) -> None:
        """`used_at` is the first of the words, one for each slot."""
        super().__init__(fabric)
        self._used_at = used_at
        self.quotas: dict[int, int] = {}  # by slot
        self._released: dict[tuple[int, int], int] = {}  # by slot and epoch: bytes to be taken off
        self._by_id: dict[int, Space] = {}  # the namespaces that this rank has used
        self._lock = threading.Lock()

    def reserve(self, space: Space, nbytes: int) -> int:
        """Local. Count `nbytes` more against the quota: 0, or by how many bytes they would exceed it (not counted).

        Without a quota nothing is counted and no MPI call made; else 1 Get + 1 CAS.
        """
        quota = self.quotas.get(space.slot)
        if quota is None:
            return 0
        self.settle()
        over = 0

        def more(used: int) -> int:
            nonlocal over
            over = max(used + nbytes - quota, 0)
            return used if over else used + nbytes

        self._change(space.slot, space.epoch, more)
        return over

    def used(self, space: Space) -> int:
        """Local. Bytes that count against the quota now, over all ranks. 1 Get."""
        word = int(self._get(space.slot % self._fabric.comm.size, self._used_at + space.slot, 1)[0])
        return word & _BYTES_MASK if word >> _BYTES_BITS == space.epoch & _TAG_MASK else 0

    def release(self, namespace_id: int, epoch: int, nbytes: int) -> None:
        """Local. A block of this rank has left: its bytes are given back with the next `settle`. No MPI call."""
        space = self._by_id.get(namespace_id)
        if space is not None and space.slot in self.quotas:
            with self._lock:
                at = space.slot, epoch
                self._released[at] = self._released.get(at, 0) + nbytes

    def settle(self) -> None:
        """Local. Give back what was released. 1 Get + 1 CAS for each namespace of which something was."""
        while self._released:
            with self._lock:
                if not self._released:
                    return
                (slot, epoch), nbytes = self._released.popitem()
            self._change(slot, epoch, lambda used, nbytes=nbytes: max(used - nbytes, 0))  # type: ignore[misc]

    def set_quota(self, space: Space, quota: int | None, live_bytes: int) -> None:
        """Collective. Set or lift the quota; `live_bytes` of this epoch are in this rank's arena."""
        comm = self._fabric.comm
        with self._lock:  # what left before is not in `live_bytes`
            self._released = {at: nbytes for at, nbytes in self._released.items() if at[0] != space.slot}
        total = int(comm.allreduce(live_bytes))
        if quota is None:
            self.quotas.pop(space.slot, None)
        else:
            if comm.rank == 0:
                self._change(space.slot, space.epoch, lambda used: total)
            self.quotas[space.slot] = quota
        comm.Barrier()

    def _change(self, slot: int, epoch: int, change: Callable[[int], int]) -> None:
        """Change the used bytes of an epoch, unless another one has begun: then its bytes count nothing."""
        tag = epoch & _TAG_MASK

        def changed(found: int, used: int) -> tuple[int, int]:
            return (tag, change(used)) if found == tag else (found, used)

        self._update(slot, changed)

    def _begin(self, slot: int, epoch: int) -> None:
        """Let the used bytes of an epoch be 0, unless a later one has begun."""
        tag = epoch & _TAG_MASK

        def begun(found: int, used: int) -> tuple[int, int]:
            later = (found - tag) & _TAG_MASK <= _TAG_MASK // 2  # of two bumps at once; others are far apart in time
            return (found, used) if later else (tag, 0)

        self._update(slot, begun)

    def _update(self, slot: int, update: Callable[[int, int], tuple[int, int]]) -> None:
        """Change the word of a slot's quota: the low bits of its epoch, and the bytes used. 1 Get + 1 CAS."""

        def updated(old: int) -> int:
            tag, used = update(old >> _BYTES_BITS, old & _BYTES_MASK)
            return tag << _BYTES_BITS | used

        self.change(slot % self._fabric.comm.size, self._used_at + slot, updated)
