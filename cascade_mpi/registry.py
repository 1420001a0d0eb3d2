"""The namespaces in use in a store, the same on all ranks: their slots, weight epochs and byte quotas.

Covers the table of namespaces, the replicated epochs, and how much of a quota is used. Does not cover
what a namespace is (`namespaces`) nor what happens to the blocks of a passed epoch (`dram`).

Each rank has one array of words. Rank 0's ids say which slot a namespace has; a slot is never given
back. Epochs are on every rank: a reader compares one word of its own memory, without MPI. The number of
the next epoch and the used part of a quota stand at rank ``slot % ranks``. Words are changed by MPI
atomics alone, each kind by one operation, and read by plain loads where they are on this rank's node.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.fabric import Fabric
from cascade_mpi.namespaces import DEFAULT, MAX_EPOCH, AnyNamespace, Namespace, as_namespace

_CHANGES = 0  # counts the bumps that have reached this rank
PROTECTED = 1  # payload bytes in this rank's arena that hard words name (see `protected_bytes`)
_HEADER = 8  # words, a cache line
_BEGIN_S = 60.0
_BYTES_BITS = 52  # of a used word: bytes; above them the low bits of their epoch
_TAG_MASK = (1 << 64 - _BYTES_BITS) - 1
_BYTES_MASK = (1 << _BYTES_BITS) - 1
MAX_QUOTA = _BYTES_MASK

Words = npt.NDArray[np.uint64]


def table_bytes(slots: int) -> int:
    """Local. Bytes of the array on each rank."""
    return 8 * (_HEADER + 4 * slots)


class NamespaceInfo(NamedTuple):
    """A namespace as `Store.namespaces()` lists it; bytes and blocks over all ranks."""

    text: str  # for people
    name: str
    model: str
    dtype: str
    layout: str
    salted: bool
    epoch: int
    quota: int | None
    blocks: int
    bytes: int
    passed_bytes: int  # of earlier epochs, not yet taken out of memory

    def plus(self, other: NamespaceInfo) -> NamespaceInfo:
        """Local. The same namespace with what another rank holds of it."""
        return self._replace(
            epoch=max(self.epoch, other.epoch), blocks=self.blocks + other.blocks, bytes=self.bytes + other.bytes,
            passed_bytes=self.passed_bytes + other.passed_bytes,
        )  # fmt: skip


class Space:
    """A namespace as this rank saw it last.

    `word` is that of the table of epochs: twice the epoch, or one less while that epoch is about to begin.
    """

    __slots__ = ("by_content", "digest", "epoch", "id", "namespace", "slot", "word")

    def __init__(self, namespace: Namespace, slot: int, word: int) -> None:
        self.namespace, self.slot, self.word = namespace, slot, word
        self.epoch = (word + 1) // 2
        self.id = namespace.id
        self.digest = namespace.digest(self.epoch)
        self.by_content = namespace.by_content


class Registry:
    """The namespaces as one rank sees and changes them."""

    def __init__(self, fabric: Fabric, slots: int) -> None:
        self._fabric, self._slots = fabric, slots
        self._ids_at, self._next_at, self._epochs_at, self._used_at = (_HEADER + k * slots for k in range(4))
        words = fabric.spaces.memory[: table_bytes(slots)].view(np.uint64)
        # Indexing a memoryview costs a third of indexing an array; the last one is of namespaces without a slot.
        self.epochs = memoryview(words[self._epochs_at : self._epochs_at + slots].data)
        self._changes = memoryview(words[_CHANGES : _CHANGES + 1].data)
        self._seen_changes = 0
        default = Space(DEFAULT, 0, 0)
        self._spaces: dict[AnyNamespace, Space] = {"": default, DEFAULT: default}
        self._by_id: dict[int, Space] = {0: default}
        self.quotas: dict[int, int] = {}  # by slot
        self._released: dict[tuple[int, int], int] = {}  # by slot and epoch: bytes to be taken off
        self._lock = threading.Lock()
        self._get, self._cas, self._add, self._spread = (
            fabric.guarded(call) for call in (self._mpi_get, self._mpi_cas, self._mpi_add, self._mpi_spread)
        )

    # ------------------------------------------------------------------------------------------- look-up

    def current(self, namespace: AnyNamespace, *, register: bool = False) -> Space:
        """Local. The namespace at its present epoch. No MPI call but for the first use of a namespace on this rank.

        With `register` it gets a slot if it has none yet. Without, one that no rank has put into stays
        unregistered, with slot -1: it has no blocks.

        Raises
        ------
        ConfigError
            All slots are taken.
        """
        try:
            space = self._spaces.get(namespace)
        except TypeError:  # not hashable, so neither a str nor a Namespace
            space = None
        if space is None:
            space = self._find(as_namespace(namespace), register)
            if space.slot < 0:
                return space
            with self._lock:
                self._spaces[namespace] = self._by_id[space.id] = space
        if self.epochs[space.slot] != space.word:
            space = self._renew(space)
        return space

    def writable(self, namespace: AnyNamespace) -> Space:
        """Local. The same for a put or a delete, with a slot; waits while an epoch is about to begin.

        A rank that has not heard of the new epoch yet reads in the old one: a put into the new one must not have
        returned before all have heard, nor one into the old one be seen after a put into the new one.

        Raises
        ------
        CascadeError
            The epoch did not begin within a minute.
        """
        space = self.current(namespace, register=True)
        if space.word & 1:
            deadline = time.monotonic() + _BEGIN_S
            while (space := self.current(namespace)).word & 1:
                self._fabric.poll(self._fabric.ctx, self._fabric.scratch.address)
                if time.monotonic() > deadline:
                    raise CascadeError(
                        f"epoch {space.epoch} of namespace {space.namespace} has not begun on all ranks for "
                        f"{_BEGIN_S:.0f} s: is the rank that called bump_epoch() still there?"
                    )
        return space

    def has_passed(self, space: Space) -> bool:
        """Local. Whether the namespace is at a later epoch by now: what was read of this one is not to be returned."""
        if space.slot < 0:
            return True  # somebody has registered it since, or there would be nothing to be found
        return (self.epochs[space.slot] + 1) // 2 != space.epoch

    def _find(self, namespace: Namespace, register: bool) -> Space:
        wanted = namespace.id
        while True:
            ids = self._get(0, self._ids_at, self._slots)
            found = np.flatnonzero(ids == np.uint64(wanted))
            if found.size:
                slot = int(found[0])
                return Space(namespace, slot, self.epochs[slot])
            if not register:
                return Space(namespace, -1, 0)
            # The first free one from a place that the id gives: slots are never given back, so all ranks that
            # register one namespace try the same slot and one of them gets it. Slot 0 is the default one's.
            order = (wanted % (self._slots - 1) + np.arange(self._slots - 1)) % (self._slots - 1) + 1
            free = order[ids[order] == 0]
            if not free.size:
                raise ConfigError(
                    f"namespace {namespace} cannot be added: all {self._slots} are in use; raise namespace_slots"
                )
            self._cas(0, self._ids_at + int(free[0]), 0, wanted)

    def _renew(self, space: Space) -> Space:
        with self._lock:
            word = self.epochs[space.slot]
            new = Space(space.namespace, space.slot, word)
            self._by_id[new.id] = new
            for name, old in list(self._spaces.items()):
                if old.slot == new.slot:  # each with the rules of its own namespace object
                    self._spaces[name] = Space(old.namespace, old.slot, word)
        return new

    def by_id(self, namespace_id: int) -> Space | None:
        """Local. The namespace of this id at its present epoch, if this rank has used it."""
        space = self._by_id.get(namespace_id)
        return None if space is None else self.current(space.namespace)

    # -------------------------------------------------------------------------------------------- epochs

    def bump(self, namespace: AnyNamespace) -> int:
        """Local. Let a new epoch begin on all ranks: its number. 1 fetch-and-add, 3 accumulates for each rank.

        First all ranks leave the old epoch, then they may put into the new one. When it has returned, no call
        that starts on any rank finds a block of an earlier epoch.
        """
        space = self.current(namespace, register=True)
        epoch = int(self._add(space.slot % self._fabric.comm.size, self._next_at + space.slot)) + 1
        if epoch > MAX_EPOCH:
            raise ConfigError(f"namespace {space.namespace} is at epoch {MAX_EPOCH}, the last one: use another name")
        # The highest number stays, whoever comes later: two ranks may do this at once.
        self._spread(self._epochs_at + space.slot, 2 * epoch - 1, MPI.MAX)
        self._begin(space.slot, epoch)  # the count of a quota begins anew, while nobody puts
        self._spread(self._epochs_at + space.slot, 2 * epoch, MPI.MAX)
        self._spread(_CHANGES, 1, MPI.SUM)  # after all have the epoch
        return epoch

    def passed(self) -> dict[int, int] | None:
        """Local. By namespace id every epoch above 0; None if nothing has changed since the last call."""
        changes = self._changes[0]
        if changes == self._seen_changes:
            return None
        self._seen_changes = changes
        with self._lock:
            epochs = {space.id: (self.epochs[space.slot] + 1) // 2 for space in self._by_id.values()}
        return {namespace_id: epoch for namespace_id, epoch in epochs.items() if epoch}

    # -------------------------------------------------------------------------------------------- quotas

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

    # --------------------------------------------------------------------------------------------- words

    def read(self, rank: int, word: int) -> int:
        """Local. A word of a rank's table. 1 Get."""
        return int(self._get(rank, word, 1)[0])

    def read_many(self, rank: int, word: int, count: int) -> Words:
        """Local. Words of a rank's table, one after the other. 1 Get."""
        found: Words = self._get(rank, word, count)
        return found

    def swap(self, rank: int, word: int, old: int, new: int) -> bool:
        """Local. Change a word of a rank's table from `old` to `new`; False if it is not `old`. 1 CAS."""
        return int(self._cas(rank, word, old, new)) == old

    def change(self, rank: int, word: int, update: Callable[[int], int]) -> None:
        """Local. Change a word of a rank's table by compare-and-swap, unless `update` leaves it. 1 Get + 1 CAS."""
        old = self.read(rank, word)
        while (new := update(old)) != old:
            seen = int(self._cas(rank, word, old, new))
            if seen == old:
                return
            old = seen

    # --------------------------------------------------------------------------------------------- lists

    def list(self, held: Callable[[int, int], tuple[int, int, int]]) -> list[NamespaceInfo]:
        """Collective. What the blocks of all ranks belong to, by slot; `held` as `Pool.held`, of this rank."""
        with self._lock:
            spaces = [*self._by_id.values()]
        mine = []
        for each in spaces:
            space = self.current(each.namespace)
            blocks, nbytes, passed = held(space.id, space.epoch)
            n = space.namespace
            info = NamespaceInfo(
                str(n), n.name, n.model, n.dtype, n.layout, bool(n.salt), space.epoch,
                self.quotas.get(space.slot), blocks, nbytes, passed,
            )  # fmt: skip
            mine.append((space.slot, info))
        merged: dict[int, NamespaceInfo] = {}
        for slot, info in (each for rank in self._fabric.comm.allgather(mine) for each in rank):
            before = merged.get(slot)
            merged[slot] = info if before is None else before.plus(info)
        return [merged[slot] for slot in sorted(merged)]

    def slots_used(self) -> int:
        """Local. How many namespaces all ranks have, the default one counted. 1 Get where rank 0 is on another node."""
        return 1 + int(np.count_nonzero(self._get(0, self._ids_at, self._slots)))

    # ----------------------------------------------------------------------------------------- MPI calls

    def _at(self, rank: int, word: int) -> int:
        return int(self._fabric.spaces.table[rank, 1]) + 8 * word

    def _mpi_get(self, rank: int, word: int, count: int) -> Words:
        if base := int(self._fabric.spaces.table[rank, 0]):  # a load does not wait for a rank that computes
            return np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(base + 8 * word)).copy()
        window, found = self._fabric.spaces.world, np.empty(count, np.uint64)
        window.Get([found, MPI.UINT64_T], rank, [self._at(rank, word), count, MPI.UINT64_T])
        window.Flush(rank)
        return found

    def _mpi_cas(self, rank: int, word: int, old: int, new: int) -> int:
        window = self._fabric.spaces.world
        values, seen = np.array([new, old], np.uint64), np.empty(1, np.uint64)
        window.Compare_and_swap(
            [values[:1], MPI.UINT64_T], [values[1:], MPI.UINT64_T], [seen, MPI.UINT64_T], rank, self._at(rank, word)
        )
        window.Flush(rank)
        return int(seen[0])

    def _mpi_add(self, rank: int, word: int) -> int:
        window, one, before = self._fabric.spaces.world, np.ones(1, np.uint64), np.empty(1, np.uint64)
        window.Fetch_and_op([one, MPI.UINT64_T], [before, MPI.UINT64_T], rank, self._at(rank, word), MPI.SUM)
        window.Flush(rank)
        return int(before[0])

    def _mpi_spread(self, word: int, value: int, operation: MPI.Op) -> None:
        window, buffer = self._fabric.spaces.world, np.array([value], np.uint64)
        for rank in range(self._fabric.comm.size):
            target = [self._at(rank, word), 1, MPI.UINT64_T]
            window.Accumulate([buffer, MPI.UINT64_T], rank, target, operation)
        window.Flush_all()

    def close(self) -> None:
        """Local. Let go of the window's memory."""
        self.epochs.release()
        self._changes.release()
