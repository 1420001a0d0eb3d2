"""The namespaces in use in a store, the same on all ranks: their slots and weight epochs.

Covers the table of namespaces and the replicated epochs. Does not cover what a namespace is (`namespaces`), its quota
(`quotas`), nor what happens to the blocks of a passed epoch (`passing`).

Each rank has one array of words (`shared_words`). Rank 0's ids say which slot a namespace has; a slot is never given
back. Epochs are on every rank: a reader compares one word of its own memory, without MPI. The number of the next epoch
stands at rank ``slot % ranks``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from mpi4py import MPI

from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.fabric import Fabric
from cascade_mpi.namespaces import DEFAULT, MAX_EPOCH, AnyNamespace, Namespace, as_namespace
from cascade_mpi.quotas import Quotas
from cascade_mpi.shared_words import CHANGES, HEADER, table_bytes
from cascade_mpi.spaces import NamespaceInfo, Space

_BEGIN_S = 60.0


class Registry(Quotas):
    """The namespaces as one rank sees and changes them."""

    def __init__(self, fabric: Fabric, slots: int) -> None:
        self._ids_at, self._next_at, self._epochs_at, used_at = (HEADER + k * slots for k in range(4))
        super().__init__(fabric, used_at)
        self._slots = slots
        words = fabric.spaces.memory[: table_bytes(slots)].view(np.uint64)
        # Indexing a memoryview costs a third of indexing an array; the last one is of namespaces without a slot.
        self.epochs = memoryview(words[self._epochs_at : self._epochs_at + slots].data)
        self._changes = memoryview(words[CHANGES : CHANGES + 1].data)
        self._seen_changes = 0
        default = Space(DEFAULT, 0, 0)
        self._spaces: dict[AnyNamespace, Space] = {"": default, DEFAULT: default}
        self._by_id[0] = default

    # ---------------------------------------------------------------------------------------------------------- look-up

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

    def restore(self, epochs: Mapping[int, int]) -> None:
        """Local. Let namespaces (by id) be at these epochs; all ranks do so before any other uses the store.

        Those at epoch 0 too: a block that is found in a namespace without a slot is taken for one of a passed epoch.
        ConfigError (on all ranks): there are not enough slots.
        """
        rank, ranks = self._fabric.comm.rank, self._fabric.comm.size
        for namespace_id, epoch in sorted(epochs.items()):
            slot = 0 if namespace_id == DEFAULT.id else self._slot(namespace_id, "of the directory", register=True)
            self.epochs[slot] = 2 * epoch
            if slot % ranks == rank:
                self._fabric.spaces.memory.view(np.uint64)[self._next_at + slot] = epoch

    def used_here(self) -> dict[int, Namespace]:
        """Local. The namespaces that this rank has used, by their ids."""
        with self._lock:
            return {number: space.namespace for number, space in self._by_id.items()}

    def all_epochs(self) -> dict[int, int]:
        """Local. By namespace id every epoch above 0, also of namespaces that this rank has not used. 1 Get."""
        ids = self._get(0, self._ids_at, self._slots).tolist()
        found = {each: (self.epochs[slot] + 1) // 2 for slot, each in enumerate(ids) if each}
        found[DEFAULT.id] = (self.epochs[0] + 1) // 2
        return {namespace: epoch for namespace, epoch in found.items() if epoch}

    def _find(self, namespace: Namespace, register: bool) -> Space:
        slot = self._slot(namespace.id, str(namespace), register=register)
        return Space(namespace, slot, 0 if slot < 0 else self.epochs[slot])

    def _slot(self, wanted: int, name: str, *, register: bool) -> int:
        """The slot of a namespace's id, -1 if it has none and is not to get one."""
        while True:
            ids = self._get(0, self._ids_at, self._slots)
            found = np.flatnonzero(ids == np.uint64(wanted))
            if found.size:
                return int(found[0])
            if not register:
                return -1
            # The first free one from a place that the id gives: slots are never given back, so all ranks that
            # register one namespace try the same slot and one of them gets it. Slot 0 is the default one's.
            order = (wanted % (self._slots - 1) + np.arange(self._slots - 1)) % (self._slots - 1) + 1
            free = order[ids[order] == 0]
            if not free.size:
                raise ConfigError(
                    f"namespace {name} cannot be added: all {self._slots} are in use; raise namespace_slots"
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

    # ----------------------------------------------------------------------------------------------------------- epochs

    def bump(self, namespace: AnyNamespace, before: Callable[[int, int], None] | None = None) -> int:
        """Local. Let a new epoch begin on all ranks: its number. 1 fetch-and-add, 3 accumulates for each rank.

        `before` is told the namespace's id and the number before any rank is; it begins on none if that raises.

        First all ranks leave the old epoch, then they may put into the new one. When it has returned, no call
        that starts on any rank finds a block of an earlier epoch.
        """
        space = self.current(namespace, register=True)
        epoch = int(self._add(space.slot % self._fabric.comm.size, self._next_at + space.slot)) + 1
        if epoch > MAX_EPOCH:
            raise ConfigError(f"namespace {space.namespace} is at epoch {MAX_EPOCH}, the last one: use another name")
        if before is not None:
            before(space.id, epoch)
        # The highest number stays, whoever comes later: two ranks may do this at once.
        self._spread(self._epochs_at + space.slot, 2 * epoch - 1, MPI.MAX)
        self._begin(space.slot, epoch)  # the count of a quota begins anew, while nobody puts
        self._spread(self._epochs_at + space.slot, 2 * epoch, MPI.MAX)
        self._spread(CHANGES, 1, MPI.SUM)  # after all have the epoch
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

    # ------------------------------------------------------------------------------------------------------------ lists

    def list(self, held: Callable[[int, int], tuple[int, int, int, int, int]]) -> list[NamespaceInfo]:
        """Collective. What the blocks of all ranks belong to, by slot; of namespaces that some rank has used.

        `held` gives of this rank's blocks in a namespace (id) at an epoch the last five fields of `NamespaceInfo`.
        """
        with self._lock:
            spaces = [*self._by_id.values()]
        mine = []
        for each in spaces:
            space = self.current(each.namespace)
            n, quota = space.namespace, self.quotas.get(space.slot)
            parts = str(n), n.name, n.model, n.dtype, n.layout, bool(n.salt)
            mine.append((space.slot, space.id, NamespaceInfo(*parts, space.epoch, quota, 0, 0, 0)))
        merged: dict[int, tuple[int, NamespaceInfo]] = {}
        for slot, number, info in (each for rank in self._fabric.comm.allgather(mine) for each in rank):
            epoch = max(info.epoch, merged[slot][1].epoch if slot in merged else 0)
            merged[slot] = number, info._replace(epoch=epoch)
        # A rank may have blocks on disk of a namespace that it has not used since it was started: all look for all.
        found = [merged[slot] for slot in sorted(merged)]
        counts = np.array([held(number, info.epoch) for number, info in found], np.int64)
        totals = self._fabric.comm.allreduce(counts).tolist()
        return [
            info._replace(blocks=a, bytes=b, passed_bytes=p, disk_blocks=d, disk_bytes=e)
            for (_, info), (a, b, p, d, e) in zip(found, totals, strict=True)
        ]

    def slots_used(self) -> int:
        """Local. How many namespaces all ranks have, the default one counted. 1 Get where rank 0 is on another node."""
        return 1 + int(np.count_nonzero(self._get(0, self._ids_at, self._slots)))

    def close(self) -> None:
        """Local. Let go of the window's memory."""
        self.epochs.release()
        self._changes.release()
