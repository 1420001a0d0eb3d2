"""The store: the public face of one rank's part of it.

Covers opening and closing, keys and namespaces, and the calls of `README.md`'s tables. The protocol is
below: `reader` and `writer` over `onesided`, the arena in `dram`. Every public docstring begins with
**Collective** (all ranks of the communicator must call it) or **Local**.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi import check as invariants
from cascade_mpi import log, memory, selftest
from cascade_mpi.config import Config, ConfigLike, format_size
from cascade_mpi.copier import Copier
from cascade_mpi.dram import DramTier
from cascade_mpi.errors import (
    BufferSizeError,
    CascadeError,
    ConfigError,
    NotConfiguredError,
    NotOnNodeError,
    StoreClosedError,
    StoreFullError,
)
from cascade_mpi.fabric import LEVELS, Fabric, data_layout
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.jit import KERNELS
from cascade_mpi.keys import Key, key_array, key_words, namespace_id
from cascade_mpi.layout import BUCKET_BYTES, BUCKET_WORDS, MAX_RANKS, page_bytes_for, unpack_word
from cascade_mpi.onesided import SLOTS_PER_PEER, WHOLE
from cascade_mpi.pins import Pin, PinTable
from cascade_mpi.progress import ProgressThread, paused
from cascade_mpi.reader import Location, Reader, decode, range_error, wrong_size
from cascade_mpi.values import empty, result_dtype, source, target
from cascade_mpi.view import View
from cascade_mpi.writer import Draft, Exists, PutResult, Writer

__all__ = ["Location", "PutResult", "Store", "View"]

_log = logging.getLogger("cascade")
_MASK64 = (1 << 64) - 1
_WORDS_PER_BLOCK = 4
_SPLIT_BYTES = 4 << 20
_OFF_TIERS = {
    "flush": "the disk tier is off: there is nothing below memory that flush() could write to",
    "prefetch": "the disk tier is off: there is nothing that prefetch() could bring up",
    "protect": "protection of stored blocks is off: put them with is_prefix=True",
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
        self.config = _agree(comm, config, overrides)
        if self.config.progress == "thread" and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise ConfigError(
                f'progress="thread" needs MPI_THREAD_MULTIPLE, MPI has {LEVELS[MPI.Query_thread()]!r}: set '
                'mpi4py.rc.thread_level = "multiple" before mpi4py.MPI is imported, or use "auto"'
            )
        page_bytes = page_bytes_for(self.config.dram_bytes)
        pages = self.config.dram_bytes // page_bytes
        blocks = self.config.index_blocks or pages * comm.size
        buckets = 1
        while buckets * BUCKET_WORDS * comm.size < blocks * _WORDS_PER_BLOCK:
            buckets *= 2
        _check_memory(comm, self.config, pages, page_bytes, buckets)
        self._comm = comm.Dup()
        self._fabric = fabric = Fabric(self._comm, self.config, pages, page_bytes, buckets)
        with paused():  # another store's thread may end before this store does
            self._self_test = selftest.run(fabric)
        sharing = sum(affinity == sorted(os.sched_getaffinity(0)) for affinity in _affinities(fabric.node))
        self._copier = Copier(self.config.copy_threads, sharing)
        self._dram = DramTier(fabric, rest=self.config.rest_ms / 1e3, evict=self.config.when_full == "evict")
        self._pins = PinTable(fabric)
        self._reader = Reader(fabric, self._pins, self._copier, verify=self.config.verify_reads)
        self._writer = Writer(fabric, self._dram, self._copier, checksum=self.config.checksum, attempt=fabric.attempt)
        self._progress, self._progress_reason = self._start_progress()
        self._pending: dict[tuple[int, int], Draft] = {}  # deferred puts, by key
        self._pending_lock = threading.RLock()
        self._async: ThreadPoolExecutor | None = None
        self._async_lock = threading.Lock()
        self._namespace = self.config.namespace
        self._plain = self._namespace == ""
        # What the shortest path needs, without a second attribute look-up.
        self._ctx, self._scratch, self._get = fabric.ctx, fabric.scratch, fabric.get
        self._threaded = self._copier.splits(_SPLIT_BYTES) and not self.config.verify_reads
        self._open, self._reason = True, ""
        _stores.add(self)
        self._comm.Barrier()

    # ------------------------------------------------------------------------------------------------ get

    def get(self, key: Key, out: Any = None, *, namespace: str | None = None) -> Any:
        """Local. Read a block: a new array of its dtype and shape, or with `out` its number of bytes; None for a miss.

        `out` is a writable C-contiguous buffer of exactly the block's size. After an error, or a miss on
        another node, its contents are undefined. On the same node no MPI call; else 4 Gets + 3 Flushes.

        Raises
        ------
        BufferSizeError
            `out` has another size than the block; the text has both.
        """
        if type(key) is int and namespace is None and self._plain:
            hi, lo = key >> 64, key & _MASK64
        else:
            hi, lo = self._words(key, namespace)
        if self._pending:
            self._publish_own(hi, lo)
        if out is None:
            return self._reader.new(hi, lo)
        address, room = target(out)
        if room >= _SPLIT_BYTES and self._threaded:
            return self._reader.into(hi, lo, address, room)
        try:
            outcome: int = self._get(self._ctx, self._scratch.address, hi, lo, address, room, 0, WHOLE)
        except OverflowError:
            self._words(key, namespace)  # says what a key may be
            raise
        return outcome if outcome >= 0 else self._reader.settle(outcome, hi, lo, address, room)

    def get_range(
        self, key: Key, offset: int, nbytes: int, out: Any = None, *, namespace: str | None = None
    ) -> npt.NDArray[np.uint8] | int | None:
        """Local. Read `nbytes` bytes of a block from `offset`: a uint8 array, or with `out` their number; None: a miss.

        Raises
        ------
        BufferSizeError
            The block ends before, or `out` does not have `nbytes` bytes.
        """
        if offset < 0 or nbytes < 0:
            raise ValueError(f"offset {offset} and nbytes {nbytes} must not be negative")
        hi, lo = self._words(key, namespace)
        self._publish_own(hi, lo)
        if offset + nbytes > self._fabric.pages * self._fabric.page_bytes:  # no block is that long
            found = self._reader.find(hi, lo)
            if found is None:
                return None
            raise range_error(offset, nbytes, found.nbytes)
        made = np.empty(nbytes, np.uint8) if out is None else out
        address, room = target(made)
        if room != nbytes:
            raise wrong_size(room, nbytes)
        got = self._reader.part(hi, lo, address, nbytes, offset)
        return made if out is None and got is not None else got

    def contains(self, key: Key, exact: bool = True, *, namespace: str | None = None) -> bool:
        """Local. Is the key stored? With `exact=False` by fingerprint only: wrong once in about 1,000 absent keys."""
        return bool(self.contains_many([key], exact, namespace=namespace)[0])

    def locate(self, key: Key, *, namespace: str | None = None) -> Location | None:
        """Local. Where a block is and what it is, or None. 3 Gets + 3 Flushes on another node."""
        hi, lo = self._words(key, namespace)
        self._publish_own(hi, lo)
        return self._reader.locate(hi, lo)

    def view(self, key: Key, *, namespace: str | None = None) -> View | None:
        """Local. A block of this node as a pinned read-only array without a copy, or None for a miss.

        Raises
        ------
        NotOnNodeError
            The block is in another node's memory: use `get`.
        NoPinSlotError
            This rank holds 8 pins at the block's rank already.
        """
        hi, lo = self._words(key, namespace)
        self._publish_own(hi, lo)
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
            if self._fabric.get_pinned(self._ctx, s.address, found.word, hi, lo, 0, 0, 0) >= 0:
                address = base + self._fabric.arena_at + found.page * self._fabric.page_bytes
                return View(pin, address, found.nbytes, found.dtype, found.shape)
            pin.release()

    def pin(self, key: Key, *, namespace: str | None = None) -> Pin | None:
        """Local. Keep the memory of a block from being reused until `unpin`; None for a miss.

        A pinned block can still be replaced, deleted or evicted; its bytes stay where they are.
        """
        hi, lo = self._words(key, namespace)
        self._publish_own(hi, lo)
        held = self._reader.pin(hi, lo)
        return None if held is None else held[1]

    def unpin(self, pin: Pin) -> None:
        """Local. Give a pin back; nothing the second time."""
        self._check_open()
        pin.release()

    # ------------------------------------------------------------------------------------------------ put

    def put(
        self, key: Key, data: Any, *, namespace: str | None = None, is_prefix: bool = False, exists: Exists = "replace"
    ) -> PutResult:
        """Local. Store a block in this rank's arena and publish it. 2 Gets + 1 CAS at the key's home.

        `data`: a NumPy array, a buffer, a torch CPU tensor. `is_prefix` protects the block from eviction.
        `exists` says what happens to a key that is there: "replace", "keep" it, or an "error". When the call
        has returned, every get that starts later on any rank sees this block, something newer, or a miss.
        With `publish="deferred"` other ranks see it after the next `publish()`.

        Raises
        ------
        KeyExistsError
            With `exists="error"`.
        """
        if exists not in ("replace", "keep", "error"):
            raise ValueError(f'exists is {exists!r}: it must be "replace", "keep" or "error"')
        hi, lo = self._words(key, namespace)
        space = namespace_id(self._namespace if namespace is None else namespace)
        if self.config.publish == "deferred":
            return self._put_deferred(hi, lo, space, data, is_prefix, exists)
        result = self._writer.put(hi, lo, space, source(data), prefix=is_prefix, exists=exists)
        self._poll()
        return result

    def _put_deferred(self, hi: int, lo: int, space: int, data: Any, is_prefix: bool, exists: Exists) -> PutResult:
        writer = self._writer
        value = source(data)
        if exists != "replace" and ((hi, lo) in self._pending or writer.find(hi, lo)):
            self._publish_own(hi, lo)
            return writer.put(hi, lo, space, value, prefix=is_prefix, exists=exists)
        draft = writer.draft(hi, lo, space, value, prefix=is_prefix)
        if draft is None:
            return writer.refuse(self._dram.why_full(value.nbytes), value.nbytes)
        with self._pending_lock:
            older = self._pending.pop((hi, lo), None)
            if older is not None:
                self._dram.give_up(unpack_word(older.word).page)
            self._pending[hi, lo] = draft
        return PutResult(stored=True, bytes=value.nbytes, tier="dram")

    def _publish_own(self, hi: int, lo: int) -> None:
        """A rank sees its own writes: what it asks for is published first."""
        if self._pending:
            with self._pending_lock:
                draft = self._pending.get((hi, lo))
                result = None if draft is None else self._writer.publish(draft, "replace")
                self._pending.pop((hi, lo), None)  # afterwards: until then another thread's get comes here too
            if result is not None and result.refused:
                raise StoreFullError(f"a deferred block of {result.bytes} bytes was not published: {result.reason}")

    def publish(self) -> int:
        """Collective. Publish the deferred puts of all ranks; how many this rank had.

        Every rank is inside MPI meanwhile, so no compare-and-swap waits for a rank that computes.

        Raises
        ------
        StoreFullError
            On this rank, after the others have published theirs: its buckets are full of protected words.
        """
        self._check_open()
        with self._pending_lock:
            results = [self._writer.publish(draft, "replace") for draft in self._pending.values()]
            self._pending.clear()
        self._comm.Barrier()
        refused = [result for result in results if result.refused]
        if refused:
            raise StoreFullError(f"{len(refused)} of {len(results)} blocks were not published: {refused[0].reason}")
        return len(results)

    def delete(self, key: Key, *, namespace: str | None = None) -> bool:
        """Local. Delete a block; True if this call did. After it has returned no get finds the block on any rank."""
        hi, lo = self._words(key, namespace)
        with self._pending_lock:
            draft = self._pending.pop((hi, lo), None)
            if draft is not None:
                self._dram.give_up(unpack_word(draft.word).page)
        deleted = self._writer.delete(hi, lo)
        self._poll()
        return deleted or draft is not None

    # --------------------------------------------------------------------------------------------- batches

    def get_many(
        self, keys: Iterable[Key] | npt.NDArray[Any], outs: Sequence[Any] | None = None, *, namespace: str | None = None
    ) -> list[Any]:
        """Local. Read many blocks, each as `get` does. `keys` may be uint64[n, 2] (high and low halves).

        4 Gets a key on another node, and one Flush per rank and phase for each 256 keys.

        Raises
        ------
        BufferSizeError
            A buffer has the wrong size (all others have been read); the text says which.
        """
        array = self._array(keys, namespace)
        n = len(array)
        if outs is not None and len(outs) != n:
            raise ValueError(f"{n} keys and {len(outs)} buffers: give one buffer for each key")
        for hi, lo in list(self._pending) and array.tolist():
            self._publish_own(hi, lo)
        s, fabric = self._scratch, self._fabric
        results = np.empty(n, np.int64)
        if outs is None:
            made, described = self._empty_like(array)
            targets = np.array([0 if each is None else each.ctypes.data for each in made], np.int64)
            rooms = np.array([0 if each is None else each.nbytes for each in made], np.int64)
        else:
            pairs = np.array([target(out) for out in outs], np.int64).reshape(n, 2)
            targets, rooms = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        outcome = fabric.get_many(
            self._ctx, s.address, array.ctypes.data, n, targets.ctypes.data, rooms.ctypes.data,
            results.ctypes.data, s.work_address, s.flags_address,
        )  # fmt: skip
        if outcome == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        if outs is None and n:
            # A block that was replaced meanwhile by one of the same size may have another type or shape.
            lengths, again = self._describe(array, want=True)
            results[(lengths < 0) | (again != described).any(axis=1)] = c.CHANGED
        if results.size and results.min() >= 0:
            return results.tolist() if outs is not None else made
        got: list[Any] = []
        wrong: BufferSizeError | None = None
        for i, result in enumerate(results.tolist()):
            if result >= 0:
                got.append(result if outs is not None else made[i])
                continue
            hi, lo = int(array[i, 0]), int(array[i, 1])
            if outs is None:  # a miss when sized or read, or changed in between: once more, alone
                got.append(self._reader.new(hi, lo))
                continue
            if result <= -10:
                wrong = wrong or wrong_size(int(rooms[i]), -10 - result)
                wrong.add_note(f"key number {i}")
                got.append(None)
            else:
                got.append(self._reader.settle(result, hi, lo, int(targets[i]), int(rooms[i])))
        if wrong is not None:
            raise wrong
        return got

    def _empty_like(self, array: npt.NDArray[np.uint64]) -> tuple[list[npt.NDArray[Any] | None], npt.NDArray[np.uint8]]:
        lengths, descriptors = self._describe(array, want=True)
        made: list[npt.NDArray[Any] | None] = []
        for i, length in enumerate(lengths.tolist()):
            if length < 0:
                made.append(None)
            else:
                made.append(_empty_as(descriptors[i], length))
        return made, descriptors

    def _describe(
        self, array: npt.NDArray[np.uint64], *, want: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        s, n = self._scratch, len(array)
        lengths = np.empty(n, np.int64)
        descriptors = np.empty((n if want else 0, 128), np.uint8)
        outcome = self._fabric.describe_many(
            self._ctx, s.address, array.ctypes.data, n, descriptors.ctypes.data if want else 0, lengths.ctypes.data,
            s.work_address, s.flags_address,
        )  # fmt: skip
        if outcome == c.MPI_FAILED:
            self._fabric.raise_mpi_error(s)
        for i in np.flatnonzero(lengths == c.CHANGED).tolist():
            found = self._reader.find(int(array[i, 0]), int(array[i, 1]))
            lengths[i] = c.MISS if found is None else found.nbytes
            if want and found is not None:
                descriptors[i] = s.descriptor
        return lengths, descriptors

    def put_many(
        self,
        keys: Iterable[Key] | npt.NDArray[Any],
        data: Sequence[Any],
        *,
        namespace: str | None = None,
        is_prefix: bool = False,
        exists: Exists = "replace",
    ) -> list[PutResult]:
        """Local. Store many blocks, in order, each as `put` does."""
        array = self._array(keys, namespace)
        if len(array) != len(data):
            raise ValueError(f"{len(array)} keys and {len(data)} blocks: give one block for each key")
        # The array's keys are in their namespace already; the descriptor names it.
        space = namespace_id(self._namespace if namespace is None else namespace)
        if self.config.publish == "deferred":
            return [
                self._put_deferred(hi, lo, space, each, is_prefix, exists)
                for (hi, lo), each in zip(array.tolist(), data, strict=True)
            ]
        put = self._writer.put
        results = [
            put(hi, lo, space, source(each), prefix=is_prefix, exists=exists)
            for (hi, lo), each in zip(array.tolist(), data, strict=True)
        ]
        self._poll()
        return results

    def contains_many(
        self, keys: Iterable[Key] | npt.NDArray[Any], exact: bool = True, *, namespace: str | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Which keys are stored, bool[n]. Another node: 1 Get a key, with `exact` 2 for one that is there.

        `exact=False` compares fingerprints only: of 1,000 absent keys about one is said to be there (4 of a
        bucket's words are used on average, each of 12 bits).
        """
        array = self._array(keys, namespace)
        if self._pending:
            for hi, lo in array.tolist():
                self._publish_own(hi, lo)
        if exact:
            lengths, _ = self._describe(array, want=False)
            return lengths >= 0
        s, n = self._scratch, len(array)
        results = np.empty(n, np.bool_)
        outcome = self._fabric.probe_many(
            self._ctx, s.address, array.ctypes.data, n, results.ctypes.data, s.work_address, s.flags_address
        )
        if outcome == c.MPI_FAILED:
            self._fabric.raise_mpi_error(s)
        return results

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

    def protect(self, key: Key) -> NoReturn:
        """Local. Protect a stored block: needs the protected-prefix registry, which this version does not have."""
        self._not_configured("protect")

    def _not_configured(self, name: str) -> NoReturn:
        self._check_open()
        raise NotConfiguredError(_OFF_TIERS[name])

    # ------------------------------------------------------------------------------- progress and statistics

    def progress(self) -> None:
        """Local. Enter MPI once, so that peers' compare-and-swaps on this rank's words proceed. 1 Iprobe.

        With `checksum="later"` also computes the checksum of one block.
        """
        self._check_open()
        self._dram.compute_checksums(1)
        self._fabric.poll(self._ctx, self._scratch.address)

    def _poll(self) -> None:
        if self._comm.size > 1:
            self._fabric.poll(self._ctx, self._scratch.address)

    def stats(self) -> dict[str, Any]:
        """Local. What this rank has done since the store was opened: counters, and the fill of its arena (bytes)."""
        self._check_open()
        count, dram, writer, a = self._fabric.counters(), self._dram, self._writer, self._dram.allocator
        paths = {
            path: {"gets": count[f"hits_{path}"], "bytes": count[f"bytes_{path}"]}
            for path in ("self", "node", "remote")
        }
        hits = sum(each["gets"] for each in paths.values())
        page = self._fabric.page_bytes
        return {
            "gets": hits + count["misses"], "hits": hits, "misses": count["misses"],
            "bytes_got": sum(each["bytes"] for each in paths.values()), "tiers": paths,
            "puts": writer.puts, "bytes_put": writer.bytes_put, "kept": writer.kept, "refused": writer.refused,
            "deletes": writer.deletes, "evicted": dram.evicted, "evicted_bytes": dram.evicted_bytes,
            "recheck_retries": count["recheck_retries"], "retries_exhausted": count["retries_exhausted"],
            "fingerprint_collisions": count["fingerprint_collisions"], "bad_words": count["bad_words"],
            "corrupt": count["corrupt"], "lost_cas": writer.lost_cas, "bucket_overflows": writer.overflows,
            "swept": dram.swept, "cell_allocations": a.allocations, "cell_reuses": a.reuses,
            "pins": len(self._pins.held()), "pending": len(self._pending),
            "arena": {
                "bytes": a.pages * page, "live_bytes": dram.live_bytes, "live": a.live_pages * page,
                "limbo": a.limbo_pages * page, "free": a.free_pages * page,
            },
            "blocks": int(np.count_nonzero(dram.words)),
        }  # fmt: skip

    def stats_all(self) -> list[dict[str, Any]]:
        """Collective. The `stats()` of every rank, by rank."""
        return self._comm.allgather(self.stats())

    def report(self) -> dict[str, Any]:
        """Local. What was chosen at open, and why; the index's load is this rank's shard at the time of the call."""
        self._check_open()
        fabric, comm = self._fabric, self._comm
        used = int(np.count_nonzero(fabric.index_words))
        return {
            "mpi": MPI.Get_library_version().splitlines()[0].strip("\0 "),
            "ranks": comm.size, "nodes": fabric.nodes, "ranks_on_node": fabric.node_ranks,
            "thread_level": fabric.level_name,
            "windows": {
                "layout": fabric.layout, "reason": fabric.layout_reason,
                "hints": {window.name: window.hints for window in (fabric.index, fabric.data, fabric.pins)},
            },
            "mpi_calls": {"by": fabric.mpi_calls, "reason": fabric.calls_reason},
            "self_test": self._self_test,
            "progress": {"thread": self._progress is not None, "reason": self._progress_reason},
            "async": "one thread" if fabric.thread_level == MPI.THREAD_MULTIPLE else
                     f"inline: MPI's thread level is {fabric.level_name!r}",
            "copy_threads": {"threads": self._copier.threads, "reason": self._copier.reason},
            "checksum": self.config.checksum, "verify_reads": self.config.verify_reads,
            "when_full": self.config.when_full, "publish": self.config.publish,
            "arena": {
                "bytes": fabric.pages * fabric.page_bytes, "pages": fabric.pages, "page_bytes": fabric.page_bytes,
            },
            "index": {
                "buckets": fabric.buckets, "words": fabric.index_words.size, "used": used,
                "load": used / fabric.index_words.size, "overflows": self._writer.overflows,
            },
            "kernel_cache": all(kernel.cached for kernel in KERNELS),
        }  # fmt: skip

    def check(self) -> dict[str, int]:
        """Collective. Verify every invariant while no rank writes; ProtocolError on all ranks if one is broken."""
        self._check_open()
        drafts = {unpack_word(draft.word).page for draft in self._pending.values()}
        return invariants.check(self._fabric, self._dram, self._pins, drafts)

    def clear(self) -> None:
        """Collective. Remove every block of every rank, protected ones too."""
        self._check_open()
        self._comm.Barrier()  # what was put before is removed
        with self._pending_lock:
            for draft in self._pending.values():
                self._dram.give_up(unpack_word(draft.word).page)
            self._pending.clear()
        self._dram.clear()
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

    def _words(self, key: Key, namespace: str | None) -> tuple[int, int]:
        self._check_open()
        return key_words(key, self._namespace if namespace is None else namespace)

    def _array(self, keys: Iterable[Key] | npt.NDArray[Any], namespace: str | None) -> npt.NDArray[np.uint64]:
        self._check_open()
        return key_array(keys, self._namespace if namespace is None else namespace)

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


def _agree(comm: MPI.Intracomm, config: ConfigLike, overrides: Mapping[str, Any]) -> Config:
    """Collective. The settings of all ranks; ConfigError on all of them if one's are wrong or differ."""
    mine: Config | ConfigError
    try:
        log.setup(MPI.COMM_WORLD.rank)
        mine = Config.make(config, **overrides)
        if comm.size > MAX_RANKS:
            raise ConfigError(f"{comm.size} ranks: an index word names at most {MAX_RANKS}; use fewer ranks")
    except ConfigError as error:
        mine = error
    everyone = comm.allgather(mine)
    for rank, other in enumerate(everyone):
        if isinstance(other, ConfigError):
            raise mine if isinstance(mine, ConfigError) else ConfigError(f"rank {rank}: {other}")
        if other != everyone[0]:
            raise ConfigError(f"rank {rank} was given {other}, rank 0 {everyone[0]}")
    return Config.make(everyone[0])


def _empty_as(descriptor: npt.NDArray[np.uint8], nbytes: int) -> npt.NDArray[Any] | None:
    """An array for a block of this description; None if that cannot be: it was torn by a write, look again."""
    try:
        dtype, shape, _ = decode(descriptor)
        if math.prod(shape) * result_dtype(dtype).itemsize == nbytes:
            return empty(dtype, shape)
    except ValueError:
        pass
    return None


def _affinities(node: MPI.Intracomm) -> list[list[int]]:
    return node.allgather(sorted(os.sched_getaffinity(0)))


def _check_memory(comm: MPI.Intracomm, config: Config, pages: int, page_bytes: int, buckets: int) -> None:
    """Collective. MemoryLimitError on all ranks if the windows do not fit a node; nothing is allocated before."""
    fixed = buckets * BUCKET_BYTES + comm.size * SLOTS_PER_PEER * 8 + 3 * 8192
    needed = data_layout(pages, page_bytes)[-1] + fixed
    problem: CascadeError | None = None
    hosts = comm.allgather(MPI.Get_processor_name())
    on_host = hosts.count(MPI.Get_processor_name())  # two "nodes" on one host share its memory
    try:
        memory.check(
            needed * on_host, on_host, memory.limits(), dram_bytes=config.dram_bytes, fixed_bytes=fixed * on_host
        )
    except CascadeError as error:
        problem = error
    problems = [each for each in comm.allgather(problem) if each is not None]
    if problems:
        raise problems[0]
    _log.debug("rank %d: windows of %s", comm.rank, format_size(needed))


def _after_fork_in_child() -> None:
    for store in list(_stores):
        if store._open:
            store._refuse_calls(
                "was opened by the parent of this process: MPI does not survive a fork, open a store in the parent only"
            )


os.register_at_fork(after_in_child=_after_fork_in_child)
