"""The store: the public face of one rank's part of it.

Covers opening and closing, keys and namespaces, and the calls of `README.md`'s tables. The protocol is
below: `reader` and `writer` over `onesided`, the arena in `dram`. Every public docstring begins with
**Collective** (all ranks of the communicator must call it) or **Local**.
"""

from __future__ import annotations

import math
import operator
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, Self, SupportsIndex, cast

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi import check as invariants
from cascade_mpi import listing, selftest, statistics
from cascade_mpi.batch import BatchReader
from cascade_mpi.config import ConfigLike, parse_size
from cascade_mpi.copier import Copier
from cascade_mpi.copies import Copies, Replicated
from cascade_mpi.dedup import Dedup
from cascade_mpi.deferred import Deferred
from cascade_mpi.errors import (
    BufferSizeError,
    CascadeError,
    ConfigError,
    NotConfiguredError,
    NotOnNodeError,
    StoreClosedError,
    StoreFullError,
)
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.keys import Key, key_array, key_words
from cascade_mpi.layout import MAX_DEPTH, MAX_EXPIRY
from cascade_mpi.listing import BlockInfo
from cascade_mpi.mover import Mover, Rebalanced
from cascade_mpi.namespaces import AnyNamespace, as_namespace
from cascade_mpi.onesided import WHOLE
from cascade_mpi.opening import agree, check_memory, geometry
from cascade_mpi.pins import Pin, PinTable
from cascade_mpi.pool import open_pool
from cascade_mpi.progress import ProgressThread, paused
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.protection import Protection
from cascade_mpi.reader import Location, Reader, range_error, wrong_size
from cascade_mpi.registry import MAX_QUOTA, NamespaceInfo, Registry, Space
from cascade_mpi.sessions import Session, SharedBlocks, bit_of
from cascade_mpi.values import source, target
from cascade_mpi.view import View
from cascade_mpi.writer import Exists, PutResult, Writer

__all__ = ["BlockInfo", "Location", "PutResult", "Store", "View"]

_MASK64 = (1 << 64) - 1
_SPLIT_BYTES = 4 << 20
_SWEEP_S = 0.05
_PASSED_AT_ONCE = 32  # blocks of passed epochs, and expired ones, that a put or progress() takes out
_OFF_TIERS = {
    "flush": "the disk tier is off: there is nothing below memory that flush() could write to",
    "prefetch": "the disk tier is off: there is nothing that prefetch() could bring up",
}
_stores: weakref.WeakSet[Store] = weakref.WeakSet()


class Store:
    """One rank's part of a store that is spread over all ranks of a communicator.

    >>> with Store(MPI.COMM_WORLD, dram_bytes="1GiB") as store:
    ...     store.put("sys_prompt", array, is_prefix=True)
    ...     n = store.get("sys_prompt", out)
    """

    def __init__(self, comm: MPI.Intracomm | None = None, config: ConfigLike = None, **overrides: Any) -> None:
        """Collective. Open the store on `comm` (None: COMM_SELF), with the settings of `Config.make`.

        Raises
        ------
        ConfigError
            A setting is wrong, or the ranks' settings differ (on all ranks).
        MemoryLimitError
            The arenas do not fit a node (on all ranks, before anything was allocated).
        ProtocolError
            This MPI cannot do what the store needs.
        """
        self._open = False
        self._reason = "was never opened"
        comm = MPI.COMM_SELF if comm is None else comm
        self.config = agree(comm, config, overrides)
        sizes = geometry(self.config, comm.size)
        check_memory(comm, self.config, sizes)
        self._comm = comm.Dup()
        self._fabric = fabric = Fabric(self._comm, self.config, *sizes)
        with paused():  # another store's thread may end before this store does
            self._self_test = selftest.run(fabric)
        affinity = sorted(os.sched_getaffinity(0))
        self._copier = Copier(self.config.copy_threads, fabric.node.allgather(affinity).count(affinity))
        self._pins = PinTable(fabric)
        self._registry = Registry(fabric, self.config.namespace_slots)
        self._protected = ProtectedBytes(fabric, self._registry, self.config.protected_bytes)
        self._pool = open_pool(fabric, self.config, self._registry, self._protected)
        self._dram = self._pool.own
        self._mover = Mover(
            fabric, self._pool, self._registry, self._protected, later=self.config.checksum == "later"
        )  # fmt: skip
        self._copies = Copies(fabric, self._dram, self._registry, share=self.config.copy_share)
        self._reader = Reader(fabric, self._pins, self._copier, self._copies, verify=self.config.verify_reads)
        self._batch = BatchReader(fabric, self._reader, self._copies)
        self._writer = Writer(
            fabric, self._pool, self._copier, self._registry, self._protected, checksum=self.config.checksum,
            attempt=fabric.attempt, protect_depth=self.config.protect_depth,
        )  # fmt: skip
        self._protection = Protection(fabric, self._writer, self._protected)
        self._dedup = Dedup(
            fabric, self._pool, self._writer, self._registry, self._protection, behind=self.config.dedup == "behind"
        )
        self._shared = SharedBlocks(self._protection, self.config.protect_shared, self._dedup.lock)
        self._deferred = Deferred(self._writer)
        self._drafts = self._deferred.drafts
        self._progress, self._progress_reason = self._start_progress()
        self._async: ThreadPoolExecutor | None = None
        self._async_lock = threading.Lock()
        self._swept_at = 0.0
        self._namespace = self.config.namespace
        # Keys of the default namespace at epoch 0 are as they come; anywhere else they are not.
        plain = as_namespace(self._namespace).is_default
        self._mixed: Sequence[int] = self._registry.epochs[:1] if plain else (1,)
        # What the shortest path needs, without a second attribute look-up.
        self._ctx, self._scratch, self._get = fabric.ctx, fabric.scratch, fabric.get
        self._threaded = self._copier.splits(_SPLIT_BYTES) and not self.config.verify_reads
        self._open, self._reason = True, ""
        _stores.add(self)
        self._comm.Barrier()

    # ------------------------------------------------------------------------------------------------ get

    def get(self, key: Key, out: Any = None, *, namespace: AnyNamespace | None = None) -> Any:
        """Local. Read a block: a new array of its dtype and shape, or with `out` its number of bytes; None for a miss.

        `out` is a writable C-contiguous buffer of exactly the block's size. After an error, or a miss on
        another node, its contents are undefined. On the same node no MPI call; else 4 Gets + 3 Flushes,
        where the node has a copy 1 Get + 1 Flush, or none (see `replicate` and `Namespace.content_keys`).

        Raises
        ------
        BufferSizeError
            `out` has another size than the block; the text has both.
        """
        if out is None:
            return self._read(key, namespace, self._reader.new)
        address, room = target(out)
        if room >= _SPLIT_BYTES and self._threaded:
            return self._read(key, namespace, lambda hi, lo: self._reader.into(hi, lo, address, room))
        # The steps of `_read`, without its calls: half of the time of a small block would be theirs.
        space = None
        if namespace is not None or self._mixed[0]:
            space = self._space(namespace)
            hi, lo = key_words(key, space.digest)
        elif type(key) is int:
            hi, lo = key >> 64, key & _MASK64
        else:
            hi, lo = key_words(key)
        if self._drafts:
            self._deferred.publish_one(hi, lo)
        try:
            outcome: int = self._get(self._ctx, self._scratch.address, hi, lo, address, room, 0, WHOLE)
        except OverflowError:
            key_words(key)  # says what a key may be
            raise
        if outcome == c.MISS:
            return None
        if outcome >= 0 and not (self._mixed[0] if space is None else self._registry.has_passed(space)):
            return outcome
        if outcome == c.DUE:
            self._copies.keep_read(hi, lo, address)
            if not (self._mixed[0] if space is None else self._registry.has_passed(space)):
                return room
        return self._read(key, namespace, lambda hi, lo: self._whole(hi, lo, address, room))

    def _whole(self, hi: int, lo: int, address: int, room: int) -> int | None:
        outcome: int = self._get(self._ctx, self._scratch.address, hi, lo, address, room, 0, WHOLE)
        return outcome if outcome >= 0 else self._reader.settle(outcome, hi, lo, address, room)

    def _read(self, key: Key, namespace: AnyNamespace | None, read: Callable[[int, int], Any]) -> Any:
        """What `read` finds of a key in its namespace's present epoch; nothing of one that passed meanwhile."""
        while True:
            space = self._space(namespace)
            hi, lo = key_words(key, space.digest)
            if self._drafts:
                self._deferred.publish_one(hi, lo)
            try:
                found = read(hi, lo)
            except BufferSizeError:
                if self._registry.has_passed(space):
                    continue  # it was the size of a block that is not to be seen any more
                raise
            if found is None or not self._registry.has_passed(space):
                return found

    def get_range(
        self, key: Key, offset: int, nbytes: int, out: Any = None, *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.uint8] | int | None:
        """Local. Read `nbytes` bytes of a block from `offset`: a uint8 array, or with `out` their number; None: a miss.

        Raises
        ------
        BufferSizeError
            The block ends before, or `out` does not have `nbytes` bytes.
        """
        if offset < 0 or nbytes < 0:
            raise ValueError(f"offset {offset} and nbytes {nbytes} must not be negative")
        if offset + nbytes > self._fabric.pages * self._fabric.page_bytes:  # no block is that long, nor may a buffer be
            found = self.locate(key, namespace=namespace)
            if found is None:
                return None
            raise range_error(offset, nbytes, found.nbytes)
        made = np.empty(nbytes, np.uint8) if out is None else out
        address, room = target(made)
        if room != nbytes:
            raise wrong_size(room, nbytes)
        got: int | None = self._read(key, namespace, lambda hi, lo: self._reader.part(hi, lo, address, nbytes, offset))
        return made if out is None and got is not None else got

    def contains(self, key: Key, exact: bool = True, *, namespace: AnyNamespace | None = None) -> bool:
        """Local. Is the key stored? With `exact=False` by fingerprint only: wrong once in about 1,000 absent keys."""
        return bool(self.contains_many([key], exact, namespace=namespace)[0])

    def locate(self, key: Key, *, namespace: AnyNamespace | None = None) -> Location | None:
        """Local. Where a block is and what it is, or None. 3 Gets + 3 Flushes on another node."""
        found: Location | None = self._read(key, namespace, self._reader.locate)
        return found

    def view(self, key: Key, *, namespace: AnyNamespace | None = None) -> View | None:
        """Local. A block of this node as a pinned read-only array without a copy, or None for a miss.

        Raises
        ------
        NotOnNodeError
            The block is in another node's memory: use `get`.
        NoPinSlotError
            This rank holds 8 pins at the block's rank already.
        """
        found: View | None = self._read(key, namespace, self._view)
        return found

    def _view(self, hi: int, lo: int) -> View | None:
        while True:
            held = self._reader.pin(hi, lo)
            if held is None:
                return None
            found, pin = held
            base = int(self._fabric.data.table[found.rank, 0])
            if not base:
                pin.release()
                raise NotOnNodeError(f"the block is in the memory of rank {found.rank} on another node: use get()")
            # Verified once more under the pin: the descriptor that is there now is the one that stays.
            s = self._scratch
            if self._fabric.get_pinned(self._ctx, s.address, found.word, found.hi, found.lo, 0, 0, 0) >= 0:
                address = base + self._fabric.arena_at + found.page * self._fabric.page_bytes
                return View(pin, address, found.nbytes, found.dtype, found.shape)
            pin.release()

    def pin(self, key: Key, *, namespace: AnyNamespace | None = None) -> Pin | None:
        """Local. Keep the memory of a block from being reused until `unpin`; None for a miss.

        A pinned block can still be replaced, deleted or evicted; its bytes stay where they are.
        """
        held = self._read(key, namespace, self._reader.pin)
        return None if held is None else held[1]

    def unpin(self, pin: Pin) -> None:
        """Local. Give a pin back; nothing the second time."""
        self._check_open()
        pin.release()

    # ------------------------------------------------------------------------------------------------ put

    def put(
        self,
        key: Key,
        data: Any,
        *,
        namespace: AnyNamespace | None = None,
        is_prefix: bool = False,
        exists: Exists = "replace",
        ttl: float | None = None,
        depth: int | None = None,
    ) -> PutResult:
        """Local. Store a block, in this rank's arena if it has room, and publish it. 2 Gets + 1 CAS at the key's home.

        `data`: a NumPy array, a buffer, a torch CPU tensor. `is_prefix` protects the block from eviction, and so does
        a `depth` (its place in its prefix, from 0) below `protect_depth`; refused if it exceeds `protected_bytes`
        (of a depth: stored unprotected). `ttl`: after so many seconds, at most one more, the block is a miss.
        `exists` says what happens to a key that is there: "replace", "keep" it as it is, or an "error". When the call
        has returned, every get that starts later on any rank sees this block, something newer, or a miss.
        With `publish="deferred"` other ranks see it after the next `publish()`. In a namespace with identity "content"
        what is stored already, under whichever key, is not stored again: 4 Gets + 1 CAS, and `deduplicated` is true.

        Raises
        ------
        KeyExistsError
            With `exists="error"`.
        """
        if exists not in ("replace", "keep", "error"):
            raise ValueError(f'exists is {exists!r}: it must be "replace", "keep" or "error"')
        expiry = 0 if ttl is None else self._expiry(ttl)
        place = 0 if depth is None else _place(depth)
        self._let_pass()
        space = self._writable(namespace)
        if ttl is None and space.namespace.ttl is not None:
            expiry = self._expiry(space.namespace.ttl)
        hi, lo = key_words(key, space.digest)
        if self.config.publish == "deferred":
            return self._deferred.put(
                hi, lo, space, data, prefix=is_prefix, exists=exists, expiry=expiry, depth=place
            )  # fmt: skip
        put = self._dedup.put if space.by_content else self._writer.put
        result = put(
            hi, lo, space, source(data), prefix=is_prefix, exists=exists, expiry=expiry, depth=place
        )  # fmt: skip
        self._poll()
        return result

    def replicate(self, keys: Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None) -> Replicated:
        """Collective. Let every node have a copy of these blocks; all ranks give the same keys. Counts over all nodes.

        Each block leaves its owner once for every other node: one rank of a node fetches it, in batches, and the
        node's ranks read the copy. A copy counts for as long as the block is not replaced or deleted; it goes when its
        rank needs the memory. With blocks of this node alone nothing is done.

        Raises
        ------
        ConfigError
            The ranks were given different keys, or keys that are none (on all ranks).
        NotConfiguredError
            There are several nodes and `promote_after` is 0.
        """
        self._check_open()
        problem, array = "", np.empty((0, 2), np.uint64)
        try:
            array = key_array(keys, self._space(namespace).digest)
            self._publish_waiting(array)
        except (TypeError, ValueError, CascadeError) as error:  # whatever it is, the others are told
            problem = str(error)
        return self._copies.replicate(array, problem)

    def publish(self) -> int:
        """Collective. Publish the deferred puts of all ranks; how many this rank had.

        Every rank is inside MPI meanwhile, so no compare-and-swap waits for a rank that computes.

        Raises
        ------
        StoreFullError
            On this rank, after the others have published theirs: its buckets are full of protected words.
        """
        self._check_open()
        results = self._deferred.publish()
        self._comm.Barrier()
        refused = [result for result in results if result.refused]
        if refused:
            raise StoreFullError(f"{len(refused)} of {len(results)} blocks were not published: {refused[0].reason}")
        return len(results)

    def delete(self, key: Key, *, namespace: AnyNamespace | None = None) -> bool:
        """Local. Delete a block; True if this call did. After it has returned no get finds the block on any rank.

        In a namespace with `content_keys` a node's copy of it may still be read until that is dropped.
        """
        hi, lo = key_words(key, self._writable(namespace).digest)
        waiting = self._deferred.give_up(hi, lo)
        deleted = self._writer.delete(hi, lo)
        self._poll()
        return deleted or waiting

    def protect(
        self, keys: Key | Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Protect stored blocks from eviction, whichever rank holds them: for each key whether it is there.

        When the call has returned, none of them is evicted before it is unprotected; it can still be replaced (by a
        block that its put protects or not), deleted, expire, or go with its epoch. Waits for no other rank beyond
        what a compare-and-swap does. 2 Gets + 1 CAS + 1 Put a key; with `protected_bytes` 4 Gets + 2 CASes + 1 Put.

        Raises
        ------
        StoreFullError
            Their bytes would exceed `protected_bytes` of a rank; none of them was protected.
        """
        with self._dedup.lock:  # not while contents are collected
            done = self._protection.protect(self._pairs(keys, namespace))
        self._poll()
        return np.array(done, np.bool_)

    def unprotect(
        self, keys: Key | Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Let blocks be evicted again, those put with `is_prefix` too: for each key whether it is there.

        2 Gets + 1 CAS + 1 Put a key, with `protected_bytes` 1 Get + 1 CAS more.
        """
        there = [self._protection.unprotect(pair) for pair in self._pairs(keys, namespace)]
        self._poll()
        return np.array(there, np.bool_)

    def _pairs(
        self, keys: Key | Iterable[Key] | npt.NDArray[Any], namespace: AnyNamespace | None
    ) -> list[tuple[int, int]]:
        if isinstance(keys, (str, bytes)) or (hasattr(keys, "__index__") and not isinstance(keys, np.ndarray)):
            keys = [cast(Key, keys)]
        array = key_array(keys, self._writable(namespace).digest)
        self._publish_waiting(array)
        return [(hi, lo) for hi, lo in array.tolist()]

    def _expiry(self, ttl: float) -> int:
        """The second from which on the block is a miss: the first whole one at which all of `ttl` has passed."""
        if not isinstance(ttl, (int, float)) or isinstance(ttl, bool) or not 0 < ttl < math.inf:
            raise ValueError(f"ttl is {ttl!r}: it must be a number of seconds above 0, or None")
        expiry = math.ceil(time.time() - int(self._fabric.context[c.EPOCH]) + ttl)
        if expiry > MAX_EXPIRY:
            raise ValueError(f"ttl is {ttl!r}: at most {MAX_EXPIRY} seconds after the store's opening can be said")
        return max(expiry, 1)

    # --------------------------------------------------------------------------------------------- batches

    def get_many(
        self,
        keys: Iterable[Key] | npt.NDArray[Any],
        outs: Sequence[Any] | None = None,
        *,
        namespace: AnyNamespace | None = None,
        session: Session | None = None,
    ) -> list[Any]:
        """Local. Read many blocks, each as `get` does. `keys` may be uint64[n, 2] (high and low halves).

        4 Gets a key on another node, and one Flush per rank and phase for each 256 keys. `session` (a str, bytes or an
        integer) says for whom: a block that `protect_shared` different sessions of this rank have read or put is
        protected, as by `protect`, as long as `protected_bytes` allows.

        Raises
        ------
        BufferSizeError
            A buffer has the wrong size (all others have been read); the text says which.
        """
        if session is not None:
            bit_of(session)  # a wrong one is said before anything is done
        keys = list(keys) if isinstance(keys, Iterator) else keys  # looked at twice, should an epoch pass meanwhile
        while True:
            space = self._space(namespace)
            array = key_array(keys, space.digest)
            if outs is not None and len(outs) != len(array):
                raise ValueError(f"{len(array)} keys and {len(outs)} buffers: give one buffer for each key")
            self._publish_waiting(array)
            try:
                got = self._batch.get(array, outs)
            except BufferSizeError:
                if self._registry.has_passed(space):
                    continue
                raise
            if not self._registry.has_passed(space) or all(each is None for each in got):
                if session is not None:
                    there = zip(array.tolist(), got, strict=True)
                    self._shared.used([(hi, lo) for (hi, lo), each in there if each is not None], session)
                return got

    def put_many(
        self,
        keys: Iterable[Key] | npt.NDArray[Any],
        data: Sequence[Any],
        *,
        namespace: AnyNamespace | None = None,
        is_prefix: bool = False,
        exists: Exists = "replace",
        ttl: float | None = None,
        depth: int | None = None,
        session: Session | None = None,
    ) -> list[PutResult]:
        """Local. Store many blocks, in order, each as `put` does; `depth` is that of the first, the others follow.

        `session` (a str, bytes or an integer) says for whom; with `protect_shared` it counts, see `get_many`.
        """
        if session is not None:
            bit_of(session)
        expiry = 0 if ttl is None else self._expiry(ttl)
        places: Sequence[int] = [0] * len(data)
        if depth is not None:
            places = range(_place(depth), _place(depth) + len(data))
            _place(depth + max(len(data) - 1, 0))
        self._let_pass()
        space = self._writable(namespace)
        if ttl is None and space.namespace.ttl is not None:
            expiry = self._expiry(space.namespace.ttl)
        array = key_array(keys, space.digest)
        if len(array) != len(data):
            raise ValueError(f"{len(array)} keys and {len(data)} blocks: give one block for each key")
        deferred, put = self.config.publish == "deferred", self._dedup.put if space.by_content else self._writer.put
        results = [
            self._deferred.put(hi, lo, space, each, prefix=is_prefix, exists=exists, expiry=expiry, depth=place)
            if deferred
            else put(hi, lo, space, source(each), prefix=is_prefix, exists=exists, expiry=expiry, depth=place)
            for (hi, lo), each, place in zip(array.tolist(), data, places, strict=True)
        ]  # fmt: skip
        if session is not None:
            pairs = [(hi, lo) for hi, lo in array.tolist()]
            self._shared.stored([pair for pair, each in zip(pairs, results, strict=True) if each.stored], session)
            self._shared.used([pair for pair, each in zip(pairs, results, strict=True) if each.kept], session)
        self._poll()
        return results

    def delete_many(
        self, keys: Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Delete many blocks, each as `delete` does: bool[n], which of them this call deleted."""
        array = key_array(keys, self._writable(namespace).digest)
        done = [self._deferred.give_up(hi, lo) | self._writer.delete(hi, lo) for hi, lo in array.tolist()]
        self._poll()
        return np.array(done, np.bool_)

    def contains_many(
        self, keys: Iterable[Key] | npt.NDArray[Any], exact: bool = True, *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Which keys are stored, bool[n]. Another node: 1 Get a key, with `exact` 2 for one that is there.

        `exact=False` compares fingerprints only: of 1,000 absent keys about one is said to be there (4 of a
        bucket's words are used on average, each of 12 bits).
        """
        keys = list(keys) if isinstance(keys, Iterator) else keys
        while True:
            space = self._space(namespace)
            array = key_array(keys, space.digest)
            self._publish_waiting(array)
            found = self._batch.contains(array, exact)
            if not self._registry.has_passed(space) or not found.any():
                return found

    def request(
        self, keys: Iterable[Key] | npt.NDArray[Any], partial: bool = True, *, namespace: AnyNamespace | None = None
    ) -> None:
        """Local. Say that a request arrives for these blocks, the whole of its prefix in order, stored or not.

        Called before they are read and put. With `eviction="prefix"` the rank's policy learns which blocks are asked
        for together; with `partial` that the last one is not full, so that no other request will share it. It hears of
        the blocks that this rank manages alone. Nothing at all for other policies. No MPI call.
        """
        self._check_open()
        if self._pool.own.wants_requests:
            self._pool.request(key_array(keys, self._space(namespace).digest), partial)

    def _publish_waiting(self, keys: npt.NDArray[np.uint64]) -> None:
        if self._drafts:
            for hi, lo in keys.tolist():
                self._deferred.publish_one(hi, lo)

    # ------------------------------------------------------------------------------------------ namespaces

    def epoch(self, namespace: AnyNamespace | None = None) -> int:
        """Local. The weight epoch that a namespace is at; 0 at first. No MPI call after its first use."""
        return self._space(namespace).epoch

    def bump_epoch(self, namespace: AnyNamespace | None = None) -> int:
        """Local. Begin a new weight epoch in a namespace, on all ranks: its number.

        When the call has returned, no get that starts later on any rank gives a block of an earlier epoch; one that was
        under way looks at the epoch once more before it returns. A put that had begun before is one of its own epoch,
        which nobody finds; while the call lasts, puts and deletes in the namespace wait for it. The old blocks' memory
        is taken back by the puts and `progress()` calls of their ranks, protected blocks' too. Views that are held stay
        valid. 1 fetch-and-add and 3 accumulates for each rank, whatever is stored; like a put's compare-and-swap they
        wait on most networks until their target enters MPI (see `progress`).
        """
        self._check_open()
        epoch = self._registry.bump(self._namespace if namespace is None else namespace)
        self._let_pass()
        return epoch

    def scan(self, namespace: AnyNamespace | None = None) -> Iterator[BlockInfo]:
        """Local. The blocks of a namespace that this rank manages, at its present epoch, expired ones left out.

        Each under the integer that names it there (see `BlockInfo`); what is stored or leaves meanwhile may be listed
        or not; what moves is listed once. Of a salted namespace only who has the salt can ask. No MPI call but for the
        hints that others left.
        """
        space = self._space(namespace)
        self._pool.sweep_hinted()
        return listing.scan(self._pool, space, self._check_open)

    def scan_all(self, namespace: AnyNamespace | None = None) -> list[BlockInfo]:
        """Collective. The same of all ranks, by rank; every rank gets the whole list."""
        everyone = self._comm.allgather(list(self.scan(namespace)))
        return [each for blocks in everyone for each in blocks]

    def delete_all(self, namespace: AnyNamespace | None = None, *, keys: range | None = None) -> int:
        """Collective. Delete the blocks of a namespace at its present epoch on all ranks, protected ones too: how many.

        With `keys` those that a `range` of integers names, such as ``range(h << 64, (h + 1) << 64)`` for one high half.
        A str or bytes key counts as its digest, which lies anywhere: there is no deleting by the beginning of a text.
        What was put before the call on any rank goes, what is put after it stays. `bump_epoch` does the like for a
        whole namespace at once and locally. 1 Get + 1 CAS a block, each rank its own.

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
        with self._pool.lock:  # no block moves past the look
            removed = sum(listing.remove(tier, space, keys) for tier in self._pool.tiers.values())
        self._registry.settle()
        total = int(self._comm.allreduce(waiting + removed))  # nobody puts before all have removed theirs
        self._poll()
        return total

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

    def namespaces(self) -> list[NamespaceInfo]:
        """Collective. The namespaces in use: what each holds over all ranks, its epoch and its quota. Never a salt."""
        self._check_open()
        self._pool.sweep()
        return self._registry.list(self._pool.held)

    # --------------------------------------------------------------------------------------------- futures

    def put_async(self, key: Key, data: Any, **options: Any) -> Future[PutResult]:
        """Local. `put` in another thread; `data` must not change before the future is done."""
        return self._submit(self.put, key, data, **options)

    def get_async(self, key: Key, out: Any = None, **options: Any) -> Future[Any]:
        """Local. `get` in another thread; `out` must not be touched before the future is done."""
        return self._submit(self.get, key, out, **options)

    def _submit(self, call: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        self._check_open()
        if self._fabric.thread_level < MPI.THREAD_MULTIPLE:
            done: Future[Any] = Future()  # no other thread may call MPI: done when it is returned
            try:
                done.set_result(call(*args, **options))
            except Exception as error:  # whatever it is, it belongs to the future
                done.set_exception(error)
            return done
        with self._async_lock:
            if self._async is None:
                self._async = ThreadPoolExecutor(1, thread_name_prefix="cascade-async")
            return self._async.submit(call, *args, **options)

    # ------------------------------------------------------------------------------ tiers that are not there

    def flush(self) -> NoReturn:
        """Collective. Make everything durable: needs the disk tier, which this version does not have."""
        self._not_configured("flush")

    def prefetch(self, keys: Iterable[Key]) -> NoReturn:
        """Local. Bring blocks up from the disk tier, which this version does not have."""
        self._not_configured("prefetch")

    def _not_configured(self, name: str) -> NoReturn:
        self._check_open()
        raise NotConfiguredError(_OFF_TIERS[name])

    # ------------------------------------------------------------------------------- progress and statistics

    def progress(self) -> None:
        """Local. Enter MPI once, so that peers' compare-and-swaps on this rank's words proceed. 1 Iprobe.

        With `checksum="later"` also computes the checksum of one block, with `dedup="behind"` looks whether the content
        of one is stored; gives back what left a quota, and takes out some blocks that have expired or are of epochs
        that have passed.
        """
        self._check_open()
        self._let_pass()
        self._pool.compute_checksums(1)
        self._dedup.step(1)
        self._pool.attend()
        if self._registry.quotas:
            self._pool.sweep_hinted()
            self._registry.settle()
        self._fabric.poll(self._ctx, self._scratch.address)

    def _poll(self) -> None:
        if self._registry.quotas:
            if time.monotonic() - self._swept_at > _SWEEP_S:  # a look at all hints: not with every put
                self._swept_at = time.monotonic()
                self._pool.sweep_hinted()
            self._registry.settle()
        self._pool.attend()
        if self._comm.size > 1:
            self._fabric.poll(self._ctx, self._scratch.address)

    def stats(self) -> dict[str, Any]:
        """Local. What this rank has done since the store was opened: counters, and the fill of its arena (bytes).

        What other ranks took away, protected or unprotected counts from this rank's next sweep on: `stats_all()`,
        `scan()` and `check()` make one.
        """
        self._check_open()
        return {
            **statistics.stats(self._fabric, self._pool, self._writer, self._pins), "pending": len(self._deferred),
            **self._dedup.stats(),
            "pool": statistics.pool(self._pool, self._mover),
            "copies": statistics.copies(self._fabric, self._dram, self._copies, self._reader),
            "shared": {"protected": self._shared.protected, "over_quota": self._shared.over_quota},
        }  # fmt: skip

    def stats_all(self) -> list[dict[str, Any]]:
        """Collective. The `stats()` of every rank, by rank."""
        self._check_open()
        self._pool.sweep_hinted()
        return self._comm.allgather(self.stats())

    def report(self) -> dict[str, Any]:
        """Local. What was chosen at open, and why; the index's load is this rank's shard at the time of the call."""
        self._check_open()
        found = statistics.report(
            self.config, self._fabric, self._dram, self._copier, self._writer, self._registry, self._self_test
        )
        found["pool"] = statistics.about_pool(self.config, self._fabric, self._pool)
        found["copies"] = statistics.about_copies(self.config, self._fabric, self._copies)
        found["dedup"] = self._dedup.about()
        return {**found, "progress": {"thread": self._progress is not None, "reason": self._progress_reason}}

    def check(self) -> dict[str, int]:
        """Collective. Verify every invariant while no rank writes; ProtocolError on all ranks if one is broken."""
        self._check_open()
        drafts = self._deferred
        return invariants.check(
            self._fabric, self._pool, self._pins, self._protected, drafts.words(), drafts.protected_bytes(),
            self._dedup.check,
        )  # fmt: skip

    def rebalance(self) -> Rebalanced:
        """Collective. Move blocks so that the arenas of all ranks hold the same number of bytes, as far as it goes.

        Within one extent, or the largest block. Every block is found all the time; its manager moves it, and other
        ranks may read meanwhile. No block goes: one that fits nowhere stays. Nothing moves with `lease_extents=0`.
        1 Get + 1 CAS a block; between nodes a Get where it lies in another's arena, a Put where it goes to one.
        """
        self._check_open()
        return self._mover.rebalance()

    def collect(self) -> int:
        """Collective. Remove the contents, on all ranks, that no name is left of: how many.

        Of namespaces with identity "content": a name that is deleted, replaced or expires leaves its content, as others
        may have it. With `when_full="evict"` it goes in its turn; with "refuse", or where a name of it was protected,
        only now, when nobody puts. Contents of which no name is protected any more can be evicted again.
        """
        self._check_open()
        removed = self._dedup.collect()
        self._registry.settle()
        self._poll()
        return removed

    def clear(self) -> None:
        """Collective. Remove every block of every rank, protected ones too."""
        self._check_open()
        self._comm.Barrier()  # what was put before is removed
        self._deferred.clear()
        self._pool.clear()
        self._registry.settle()
        self._comm.Barrier()  # and what is put afterwards is not

    # ------------------------------------------------------------------------------------------- life cycle

    def close(self) -> None:
        """Collective. Free the memory; nothing the second time. Views must have been released."""
        if not self._open:
            return
        if self._async is not None:
            self._async.shutdown(wait=True)
        if self._progress is not None:
            self._progress.stop()
        self._comm.Barrier()  # nobody reads from this rank any more
        self._refuse_calls("was closed")
        self._mixed = (1,)
        self._registry.close()
        self._fabric.free()
        self._comm.Free()
        self._copier.close()

    def _refuse_calls(self, reason: str) -> None:
        self._open, self._reason = False, reason
        self._fabric.disable(lambda: StoreClosedError(f"this store {reason}"))
        self._get = self._fabric.get

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosedError(f"this store {self._reason}")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close; after an error end the job instead: the other ranks wait for this one, a barrier would hang."""
        left = isinstance(error, SystemExit) and error.code in (0, None)  # sys.exit() of a program that is done
        if error is None or left or self._comm.size == 1 or not self._open:
            self.close()
            return
        sys.stdout.flush()
        traceback.print_exception(kind, error, at)
        print(f"rank {self._comm.rank}: an error inside 'with Store' ends the job", file=sys.stderr, flush=True)
        self._comm.Abort(1)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store cannot be pickled: open one in each process")

    # --------------------------------------------------------------------------------------------- details

    def _space(self, namespace: AnyNamespace | None) -> Space:
        self._check_open()
        return self._registry.current(self._namespace if namespace is None else namespace)

    def _writable(self, namespace: AnyNamespace | None) -> Space:
        self._check_open()
        return self._registry.writable(self._namespace if namespace is None else namespace)

    def _words(self, key: Key, namespace: AnyNamespace | None) -> tuple[int, int]:
        return key_words(key, self._space(namespace).digest)

    def _let_pass(self) -> None:
        """Take out a few blocks of epochs that have passed, and expired ones: nobody finds them any more."""
        self._check_open()
        passed = self._registry.passed()
        if passed:
            self._pool.let_pass(passed)
        self._pool.drop_some(_PASSED_AT_ONCE)

    def _start_progress(self) -> tuple[ProgressThread | None, str]:
        fabric, wanted = self._fabric, self.config.progress
        waits = [path for path, result in self._self_test.items() if not result["cas_one_sided"]]
        allowed = fabric.thread_level == MPI.THREAD_MULTIPLE
        start = wanted == "thread" or (wanted == "auto" and bool(waits) and allowed)
        if wanted != "auto":
            reason = f"progress={wanted!r} was set"
        elif not waits:
            reason = "auto: every CAS proceeds while its target computes"
        elif allowed:
            reason = f"auto: a CAS waits for its target on the path {', '.join(waits)}"
        else:
            reason = f"auto: refused, MPI's thread level is {fabric.level_name!r}; call progress() while computing"
        # A public call enters MPI itself where no thread does and a CAS may wait for it.
        fabric.context[c.POLL] = int(not start and bool(waits))
        return (ProgressThread(fabric, self.config.progress_period_us / 1e6) if start else None), reason


def _place(depth: int) -> int:
    """A depth as a descriptor has it: counted from 1."""
    if not isinstance(depth, SupportsIndex) or isinstance(depth, bool) or not 0 <= operator.index(depth) < MAX_DEPTH:
        raise ValueError(f"depth is {depth!r}: it must be an integer in 0..{MAX_DEPTH - 1}, or None")
    return operator.index(depth) + 1


def _after_fork_in_child() -> None:
    for store in list(_stores):
        if store._open:
            store._refuse_calls(
                "was opened by the parent of this process: MPI does not survive a fork, open a store in the parent only"
            )


os.register_at_fork(after_in_child=_after_fork_in_child)
