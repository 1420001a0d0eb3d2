"""The life of a rank's part of a store: what it is made of, how it is opened and closed, and what all calls share.

Covers `__init__`, `close`, `with`, forked children, and the steps before and after a call. Does not cover the calls
themselves (`store_reads`, `store_writes`, `store_namespaces`, `store`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi import selftest
from cascade_mpi.batch import BatchReader
from cascade_mpi.config import ConfigLike
from cascade_mpi.copier import Copier
from cascade_mpi.copies import Copies
from cascade_mpi.dedup import Dedup
from cascade_mpi.deferred import Deferred
from cascade_mpi.disk.directory import Directory
from cascade_mpi.disk.opening import Disk, disk_blocks, open_disk
from cascade_mpi.disk.restart import find
from cascade_mpi.errors import (
    StoreClosedError,
)
from cascade_mpi.fabric import Fabric
from cascade_mpi.interrupts import forked, store_closed, store_opened, uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.keys import Key, key_words
from cascade_mpi.mover import Mover
from cascade_mpi.namespaces import AnyNamespace, as_namespace
from cascade_mpi.opening import agree, check_memory, geometry
from cascade_mpi.pins import PinTable
from cascade_mpi.pool import open_pool
from cascade_mpi.progress import ProgressThread, paused
from cascade_mpi.protected_bytes import ProtectedBytes
from cascade_mpi.protection import Protection
from cascade_mpi.reader import Reader
from cascade_mpi.registry import Registry
from cascade_mpi.sessions import SharedBlocks
from cascade_mpi.spaces import Space
from cascade_mpi.writer import Writer

_SWEEP_S = 0.05
_PASSED_AT_ONCE = 32  # blocks of passed epochs, and expired ones, that a put or progress() takes out
SPLIT_BYTES = 4 << 20  # of a copy that several threads make
_stores: weakref.WeakSet[OpenStore] = weakref.WeakSet()


class OpenStore:
    """One rank's part of a store, open from its making to `close`."""

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
        self._comm = comm.Dup()
        self._directory = None if self.config.disk is None else Directory(self._comm, self.config)
        try:
            self._open_tiers()
        except BaseException:
            if self._directory is not None:
                self._directory.close()
            raise
        self._open, self._reason = True, ""
        _stores.add(self)
        self._comm.Barrier()
        store_opened()

    def _open_tiers(self) -> None:
        """Collective. Windows, the memory tiers, the disk tier below them, and the parts that use them."""
        directory, comm = self._directory, self._comm
        found = None if directory is None else find(directory)
        sizes = geometry(self.config, comm.size, 0 if found is None else disk_blocks(self.config, found, comm.size))
        check_memory(comm, self.config, sizes)
        self._fabric = fabric = Fabric(comm, self.config, *sizes)
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
        self._threaded = self._copier.splits(SPLIT_BYTES) and not self.config.verify_reads
        self._disk: Disk | None = None
        if directory is not None and found is not None:
            self._disk = open_disk(
                directory, found, self.config, fabric, self._pool, self._registry, self._protected, self._reader,
                self._writer, self._mover,
            )  # fmt: skip
            self._protection.promote = self._disk.reads.promote_key

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

    # ---------------------------------------------------------------------------------------------------------- closing

    @uninterrupted
    def close(self) -> None:
        """Collective. Free the memory; nothing the second time. Views must have been released."""
        if not self._open:
            return
        if self._async is not None:
            self._async.shutdown(wait=True)
        if self._progress is not None:
            self._progress.stop()
        try:
            if self._disk is not None:
                self._disk.close()
        finally:
            self._close_memory()

    def _close_memory(self) -> None:
        self._comm.Barrier()  # nobody reads from this rank any more, and all have written what they write
        self._refuse_calls("was closed")
        if self._disk is not None:
            self._disk.free()
        if self._directory is not None:
            self._directory.close()
        self._mixed = (1,)
        self._registry.close()
        self._fabric.free()
        self._comm.Free()
        self._copier.close()
        store_closed()

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

    # --------------------------------------------------------------------------------------------- what the calls share

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

    def _space(self, namespace: AnyNamespace | None) -> Space:
        self._check_open()
        return self._registry.current(self._namespace if namespace is None else namespace)

    def _writable(self, namespace: AnyNamespace | None) -> Space:
        self._check_open()
        return self._registry.writable(self._namespace if namespace is None else namespace)

    def _words(self, key: Key, namespace: AnyNamespace | None) -> tuple[int, int]:
        return key_words(key, self._space(namespace).digest)

    def _publish_waiting(self, keys: npt.NDArray[np.uint64]) -> None:
        if self._drafts:
            for hi, lo in keys.tolist():
                self._deferred.publish_one(hi, lo)

    def _let_pass(self) -> None:
        """Take out a few blocks of epochs that have passed, and expired ones: nobody finds them any more."""
        self._check_open()
        passed = self._registry.passed()
        if passed:
            self._pool.let_pass(passed)
        if passed is not None and self._disk is not None:  # it may have blocks of namespaces that nobody has used yet
            self._disk.passing.let_pass(self._registry.all_epochs())
        self._pool.drop_some(_PASSED_AT_ONCE)
        if self._disk is not None:
            self._disk.passing.drop_some(_PASSED_AT_ONCE)

    def _poll(self) -> None:
        if self._registry.quotas:
            if time.monotonic() - self._swept_at > _SWEEP_S:  # a look at all hints: not with every put
                self._swept_at = time.monotonic()
                self._pool.sweep_hinted()
            self._registry.settle()
        self._pool.attend()
        if self._comm.size > 1:
            self._fabric.poll(self._ctx, self._scratch.address)
        if self._disk is not None:
            self._disk.tier.after_write()


def _after_fork_in_child() -> None:
    forked()
    for store in list(_stores):
        if store._open:
            store._refuse_calls(
                "was opened by the parent of this process: MPI does not survive a fork, open a store in the parent only"
            )


os.register_at_fork(after_in_child=_after_fork_in_child)
