"""The calls of a store on namespaces: weight epochs, lists, deletes of many blocks, quotas.

Covers what all ranks must agree on before. Does not cover the table of namespaces (`registry`) nor how a list is made
(`listing`).
"""

from __future__ import annotations

from collections.abc import Iterator

from cascade_mpi import listing
from cascade_mpi.config import parse_size
from cascade_mpi.errors import (
    ConfigError,
    DiskError,
)
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.listing import BlockInfo
from cascade_mpi.namespaces import AnyNamespace, as_namespace
from cascade_mpi.quotas import MAX_QUOTA
from cascade_mpi.segments import epochs
from cascade_mpi.spaces import NamespaceInfo
from cascade_mpi.store_life import OpenStore


class Namespaces(OpenStore):
    """Calls on whole namespaces."""

    def epoch(self, namespace: AnyNamespace | None = None) -> int:
        """Local. The weight epoch that a namespace is at; 0 at first. No MPI call after its first use."""
        return self._space(namespace).epoch

    @uninterrupted
    def bump_epoch(self, namespace: AnyNamespace | None = None) -> int:
        """Local. Begin a new weight epoch in a namespace, on all ranks: its number.

        When the call has returned, no get that starts later on any rank gives a block of an earlier epoch; one that was
        under way looks at the epoch once more before it returns. A put that had begun before is one of its own epoch,
        which nobody finds; while the call lasts, puts and deletes in the namespace wait for it. The old blocks' memory
        is taken back by the puts and `progress()` calls of their ranks, protected blocks' too. Views that are held stay
        valid. 1 fetch-and-add and 3 accumulates for each rank, whatever is stored; like a put's compare-and-swap they
        wait on most networks until their target enters MPI (see `progress`).

        Raises
        ------
        DiskError
            The new epoch could not be noted in the directory. It has not begun, or the text says that it has all the
            same, as a restart might find it.
        """
        self._check_open()
        wanted = self._namespace if namespace is None else namespace
        directory, problems = self._directory, list[DiskError]()

        def note(namespace_id: int, epoch: int) -> None:
            """Before any rank is in the epoch: else a restart could begin in one before that of acknowledged blocks."""
            if directory is None or not directory.writable:
                return
            try:
                epochs.note(directory.files, namespace_id, epoch)
            except DiskError as error:
                if epochs.undo(directory.files, namespace_id, epoch):
                    raise
                problems.append(error)  # a restart may find it, and would drop what is put from now on into an earlier

        epoch = self._registry.bump(wanted, note)
        self._let_pass()
        if problems:
            text = f"epoch {epoch} has begun, and a restart may not know of it: call bump_epoch() again ({problems[0]})"
            raise DiskError(problems[0].errno, text) from problems[0]
        return epoch

    @uninterrupted
    def scan(self, namespace: AnyNamespace | None = None) -> Iterator[BlockInfo]:
        """Local. The blocks of a namespace that this rank manages, at its present epoch, expired ones left out.

        Each under the integer that names it there (see `BlockInfo`); what is stored or leaves meanwhile may be listed
        or not; what moves is listed once, also between memory and disk, but for what another rank reads from there into
        its own memory. Of a salted namespace only who has the salt can ask. No MPI call but for the hints that others
        left, and 1 Get for each block on disk.
        """
        space = self._space(namespace)
        self._pool.sweep_hinted()
        return listing.scan(self._pool, space, self._check_open, None if self._disk is None else self._disk.cells)

    def scan_all(self, namespace: AnyNamespace | None = None) -> list[BlockInfo]:
        """Collective. The same of all ranks, by rank; every rank gets the whole list."""
        everyone = self._comm.allgather(list(self.scan(namespace)))
        return [each for blocks in everyone for each in blocks]

    @uninterrupted
    def delete_all(self, namespace: AnyNamespace | None = None, *, keys: range | None = None) -> int:
        """Collective. Delete the blocks of a namespace at its present epoch on all ranks, protected ones too: how many.

        With `keys` those that a `range` of integers names, such as ``range(h << 64, (h + 1) << 64)`` for one high half.
        A str or bytes key counts as its digest, which lies anywhere: there is no deleting by the beginning of a text.
        What was put before the call on any rank goes, what is put after it stays. `bump_epoch` does the like for a
        whole namespace at once and locally. 1 Get + 1 CAS a block, each rank its own. Blocks on disk for which the
        index had no slot when the store was opened go too, uncounted: nobody has found them.

        Raises
        ------
        ConfigError
            The ranks were given different namespaces or keys (on all ranks), or no such range.
        """
        self._check_open()
        wanted, problem, namespace_id = self._namespace if namespace is None else namespace, "", -1
        try:
            namespace_id = as_namespace(wanted).id
            if keys is not None and (not isinstance(keys, range) or keys.step != 1):
                problem = f"keys is {keys!r}: it must be a range of integers with step 1, or None"
        except (TypeError, ValueError) as error:  # whatever it is, the others are told
            problem = str(error)
        bounds = (keys.start, keys.stop) if isinstance(keys, range) else None
        given = self._comm.allgather((problem, namespace_id, bounds))
        for rank, other in enumerate(given):
            if other[0]:
                raise ConfigError(f"rank {rank}: {other[0]}")
            if other != given[0]:
                raise ConfigError(f"rank {rank} was given other keys or another namespace than rank 0")
        space = self._space(wanted)
        waiting = self._deferred.give_up_all(space, keys)
        self._pool.sweep_hinted()  # what another rank has replaced or deleted is not there, and does not count
        total = int(self._comm.allreduce(waiting))
        if self._disk is not None:
            listing.remove_left_out(self._disk.left_out, space, keys)
        while True:
            with self._pool.lock:  # no block moves past the look
                removed = sum(listing.remove(tier, space, keys) for tier in self._pool.tiers.values())
            if self._disk is not None:
                removed += listing.remove_from_disk(self._disk.tier, space, keys)
            everyone = int(self._comm.allreduce(removed))  # nobody puts before all have removed theirs
            total += everyone
            if self._disk is None or not everyone:  # else another thread may have read one into memory meanwhile
                break
        self._registry.settle()
        self._poll()
        return total

    @uninterrupted
    def set_quota(self, nbytes: int | str | None, namespace: AnyNamespace | None = None) -> None:
        """Collective. Let the blocks of a namespace (of its present epoch) take at most so many bytes over all ranks.

        None lifts the quota. A put beyond it evicts blocks of the namespace in its rank's own arena, or is refused
        (with `when_full="refuse"`, or when there are not enough). What was stored before counts, and stays. Payloads
        count, not pages; a block that is replaced counts beside the new one until it has left. Under a quota every put
        costs 1 Get + 1 CAS more at one rank; what a delete or an eviction frees counts when the rank that held it next
        puts, deletes (within 50 ms), or calls `progress()`. With a new epoch the count begins anew.

        Raises
        ------
        ConfigError
            The ranks were given different quotas or namespaces (on all ranks), or no such size.
        """
        self._check_open()
        wanted = self._namespace if namespace is None else namespace
        problem, quota, namespace_id = "", None, -1
        try:
            quota = None if nbytes is None else parse_size(nbytes)
            if quota is not None and quota > MAX_QUOTA:
                raise ConfigError(f"quota {quota} is above the largest possible, {MAX_QUOTA} bytes")
            namespace_id = as_namespace(wanted).id
        except (TypeError, ValueError) as error:  # whatever it is, the others are told
            problem = str(error)
        given = self._comm.allgather((problem, quota, namespace_id))
        for rank, other in enumerate(given):
            if other[0]:
                raise ConfigError(f"rank {rank}: {other[0]}")
            if other != given[0]:
                raise ConfigError(f"rank {rank} was given quota {other[1]}, rank 0 {given[0][1]}, or another namespace")
        space = self._registry.writable(wanted)  # takes a slot: after all have agreed
        with self._pool.lock:
            self._pool.sweep()
            live = self._pool.count(space.id, space.epoch, self._deferred.words(), on=quota is not None)
            self._registry.set_quota(space, quota, live)

    @uninterrupted
    def namespaces(self) -> list[NamespaceInfo]:
        """Collective. The namespaces in use: what each holds over all ranks, its epoch and its quota. Never a salt.

        Those that a rank has named since the store was opened: of others that are on disk only numbers are known. 1 Get
        for each block on disk.
        """
        self._check_open()
        self._pool.sweep()
        return self._registry.list(self._held)

    def _held(self, namespace_id: int, epoch: int) -> tuple[int, int, int, int, int]:
        on_disk = (0, 0) if self._disk is None else self._disk.tier.held_in(namespace_id, epoch)
        return *self._pool.held(namespace_id, epoch), *on_disk
