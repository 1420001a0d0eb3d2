"""How this rank reaches the memory of all ranks: four windows, the kernels' context, scratch per thread.

Covers opening and freeing the windows, which implementation issues the MPI calls, and the lock that MPI's
thread level asks for. Does not cover what the protocol does with them (`onesided`, `cells`, `store`).
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi import onesided, window
from cascade_mpi.config import Config
from cascade_mpi.elements import elements
from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.jit import warm
from cascade_mpi.layout import BUCKET_BYTES, DESCRIPTOR_BYTES, MAX_GENERATION, MIN_PAGE_BYTES
from cascade_mpi.mpi_functions import Functions, find_functions

LEVELS = {
    MPI.THREAD_SINGLE: "single",
    MPI.THREAD_FUNNELED: "funneled",
    MPI.THREAD_SERIALIZED: "serialized",
    MPI.THREAD_MULTIPLE: "multiple",
}
_CALLS = (
    "get", "get_pinned", "find", "publish", "remove", "swap", "slot_of", "hint_gone", "touch", "pin", "unpin",
    "get_many", "describe_many", "probe_many", "poll", "find_copies", "slot_of_copy", "note_origin", "end_claim",
)  # fmt: skip


class Scratch(threading.local):
    """The kernels' scratch memory of the calling thread."""

    def __init__(self, ranks: int, register: Callable[[npt.NDArray[np.uint64]], None]) -> None:
        area = np.zeros(c.SCRATCH_WORDS + 8, np.uint64)
        skip = -(area.ctypes.data // 8) % 8
        words = area[skip : skip + c.SCRATCH_WORDS]  # on a cache line
        self.address: int = words.ctypes.data
        self.words, self.signed = elements(words), elements(words.view(np.int64))
        self.dims = words[c.DIMS : c.DIMS + 4].view(np.uint32)
        self.dims_address: int = self.dims.ctypes.data
        self.descriptor = words[c.DESCRIPTOR_COPY : c.DESCRIPTOR_COPY + DESCRIPTOR_BYTES // 8].view(np.uint8)
        self.work = np.zeros((onesided.BATCH, onesided.WORK_WORDS), np.uint64)
        self.work_address: int = self.work.ctypes.data
        self.flags = np.zeros(ranks, np.int64)
        self.flags_address: int = self.flags.ctypes.data
        register(words)


class Fabric:
    """The windows of one store and the calls on them."""

    def __init__(
        self, comm: MPI.Intracomm, config: Config, pages: int, page_bytes: int, buckets: int, space_bytes: int,
        copy_buckets: int, disk_blocks: int = 0,
    ) -> None:  # fmt: skip
        """Collective. Open the windows. Sizes are per rank and equal on all ranks."""
        functions = find_functions()
        if config.mpi_calls == "compiled" and functions.problem:
            raise ConfigError(f'mpi_calls="compiled" cannot be had: {functions.problem}; use "auto"')
        self.comm = comm
        self.node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank))
        self.nodes = int(comm.allreduce(int(self.node.rank == 0)))
        self.node_ranks: list[int] = self.node.allgather(comm.rank)
        self.pages, self.page_bytes, self.buckets = pages, page_bytes, buckets
        self.disk_blocks, self.cells = disk_blocks, pages + disk_blocks
        self.gone_at, self.touch_at, self.descriptor_at, self.arena_at, data_bytes = data_layout(
            pages, page_bytes, self.cells
        )
        self.thread_level = MPI.Query_thread()
        self.layout, self.layout_reason = window.choose_layout(config.windows, comm, self.node)
        # The node's copy table stands behind the index: its words are read, published and removed by the same calls.
        self.copy_buckets = copy_buckets if self.nodes > 1 else 0
        index_bytes = buckets * BUCKET_BYTES + copy_table_bytes(self.copy_buckets)
        self.index = window.allocate("index", index_bytes, comm, self.node, self.layout, atomics=True)
        self.data = window.allocate("data", data_bytes, comm, self.node, self.layout, atomics=False)
        pin_bytes = comm.size * onesided.SLOTS_PER_PEER * 8
        self.pins = window.allocate("pins", pin_bytes, comm, self.node, self.layout, atomics=False)
        self.spaces = window.allocate("spaces", space_bytes, comm, self.node, self.layout, atomics=False)
        self.probe_comm = comm.Dup()  # never carries a message: an Iprobe on it only makes MPI progress

        # By cell: those of the pages, and behind them those of the disk cells.
        self.gone = self.data.memory[self.gone_at : self.gone_at + self.cells]
        self.touched = self.data.memory[self.touch_at : self.touch_at + 4 * self.cells].view(np.uint32)
        descriptors = self.data.memory[self.descriptor_at : self.descriptor_at + DESCRIPTOR_BYTES * self.cells]
        self.descriptors = descriptors.reshape(self.cells, DESCRIPTOR_BYTES)
        self.descriptors_address: int = descriptors.ctypes.data
        self.arena_address: int = self.data.memory.ctypes.data + self.arena_at
        self.index_words = self.index.memory[: buckets * BUCKET_BYTES].view(np.uint64)
        copies_end = (buckets + self.copy_buckets) * BUCKET_BYTES
        self.copy_words = self.index.memory[buckets * BUCKET_BYTES : copies_end].view(np.uint64)
        self._copy_ranks = np.array(self.node_ranks, np.int64)
        self.read_counts = np.zeros(8 + c.READ_COUNT_BYTES, np.uint8)
        self.pin_words = self.pins.memory[:pin_bytes].view(np.uint64)

        self._mpi_lock = threading.RLock()  # a view may be let go, and unpinned, while this thread holds it
        self._scratches: list[npt.NDArray[np.uint64]] = []
        self._register_lock = threading.Lock()
        self.scratch = Scratch(comm.size, self._register)
        self.mapped: list[bool] = [bool(base) for base in self.data.table[:, 0]]
        # No cell passes through all its generations while an attempt is under way: each rests in between.
        self.attempt = config.rest_ms / 1e3 * MAX_GENERATION / 2
        self.epoch = int(comm.bcast(int(time.time())))
        self.context = self._make_context(functions, config, self.attempt)
        self.ctx: int = self.context.ctypes.data
        self.calls_reason = functions.problem or "MPI is called from the kernels"
        compiled = config.mpi_calls != "python" and not functions.problem
        if config.mpi_calls == "python":
            self.calls_reason = "requested"
        self.mpi_calls = "compiled" if compiled else "python"
        self._compile_once()
        self._bind(compiled)

    # ------------------------------------------------------------------------------------------ opening

    def new_scratch(self) -> Scratch:
        """Local. Another scratch memory, for steps in the middle of which the thread's own must stay as it is."""
        return Scratch(self.comm.size, self._register)

    def _register(self, words: npt.NDArray[np.uint64]) -> None:
        with self._register_lock:
            self._scratches.append(words)

    def _make_context(self, functions: Functions, config: Config, attempt: float) -> npt.NDArray[np.int64]:
        context = np.zeros(c.CONTEXT_WORDS, np.int64)
        for name, value in {
            c.RANKS: self.comm.size, c.RANK: self.comm.rank,
            c.BUCKETS: self.buckets, c.PAGES: self.pages, c.CELLS: self.cells, c.PAGE_BYTES: self.page_bytes,
            c.GONE_AT: self.gone_at, c.TOUCH_AT: self.touch_at,
            c.DESCRIPTOR_AT: self.descriptor_at, c.ARENA_AT: self.arena_at,
            c.INDEX_BASES: self.index.table.ctypes.data, c.DATA_BASES: self.data.table.ctypes.data,
            c.PIN_BASES: self.pins.table.ctypes.data,
            c.INDEX_WIN: self.index.handle, c.DATA_WIN: self.data.handle, c.PIN_WIN: self.pins.handle,
            c.BYTE: window.handle_of(MPI.BYTE), c.UINT64: window.handle_of(MPI.UINT64_T),
            c.PROBE_COMM: window.handle_of(self.probe_comm),
            c.GET: functions.get, c.PUT: functions.put, c.FLUSH: functions.flush,
            c.CAS: functions.cas, c.IPROBE: functions.iprobe,
            c.ANY_SOURCE: MPI.ANY_SOURCE, c.ANY_TAG: MPI.ANY_TAG,
            c.CLOCK: ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value, c.EPOCH: self.epoch,
            c.ATTEMPT: int(attempt * onesided.TICKS), c.VERIFY: int(config.verify_reads),
            c.COPY_BUCKETS: self.copy_buckets, c.COPY_AFTER: config.promote_after,
            c.COPY_RANKS: len(self.node_ranks), c.COPY_RANKS_AT: self._copy_ranks.ctypes.data,
            c.READ_COUNTS: self.read_counts.ctypes.data,
        }.items():  # fmt: skip
            context[name] = value
        return context

    def _compile_once(self) -> None:
        """Collective. One rank fills the kernel cache (on a shared home directory), then the others load from it."""
        if self.comm.rank == 0:
            warm()
        self.comm.Barrier()
        if self.node.rank == 0:  # where the cache is local to the node
            warm()
        self.node.Barrier()
        warm()

    def _bind(self, compiled: bool) -> None:
        if compiled:
            calls: dict[str, Callable[..., Any]] = {name: getattr(onesided, name).compile() for name in _CALLS}
        else:
            from cascade_mpi.onesided_python import PythonCalls

            twin = PythonCalls(self)
            calls = {name: getattr(twin, name) for name in _CALLS}
        calls = {name: self.guarded(call) for name, call in calls.items()}
        for name, call in calls.items():
            setattr(self, name, call)

    get: Callable[..., int]
    get_pinned: Callable[..., int]
    find: Callable[..., int]
    publish: Callable[..., int]
    remove: Callable[..., int]
    swap: Callable[..., int]
    slot_of: Callable[..., int]
    hint_gone: Callable[..., int]
    touch: Callable[..., None]
    pin: Callable[..., int]
    unpin: Callable[..., int]
    get_many: Callable[..., int]
    describe_many: Callable[..., int]
    probe_many: Callable[..., int]
    poll: Callable[..., None]
    find_copies: Callable[..., int]
    slot_of_copy: Callable[..., int]
    note_origin: Callable[..., None]
    end_claim: Callable[..., None]

    def guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Local. `call` kept to the thread level of MPI: one thread at a time, or the main one only."""
        if self.thread_level == MPI.THREAD_MULTIPLE:
            return call
        lock = self._mpi_lock
        level, serialized = self.level_name, self.thread_level == MPI.THREAD_SERIALIZED

        def guarded(*args: Any) -> Any:
            if not serialized and not MPI.Is_thread_main():
                raise CascadeError(
                    f"MPI was initialised with thread level {level!r}: only the main thread may call the store; "
                    'set mpi4py.rc.thread_level = "multiple" before mpi4py.MPI is imported'
                )
            with lock:
                return call(*args)

        return guarded

    def now(self) -> int:
        """Local. Whole seconds since the store was opened, as the kernels count them; below 0 on a clock behind."""
        return int(time.time()) - int(self.context[c.EPOCH])

    @property
    def level_name(self) -> str:
        """The thread level of MPI as its standard names it."""
        return LEVELS.get(self.thread_level, str(self.thread_level))

    def ticks(self) -> int:
        """Local. What a touch of now writes, by the clock that the kernels look at."""
        # A clock that is behind the epoch is no reason to fail after a block was published: it wraps, as theirs does.
        since = time.clock_gettime_ns(onesided.REALTIME_COARSE) - self.epoch * 1_000_000_000
        return since // (1_000_000_000 // onesided.TICKS) & 0xFFFFFFFF

    # ---------------------------------------------------------------------------------------- afterwards

    def counters(self) -> dict[str, int]:
        """Local. The kernels' counters, summed over the threads that called."""
        with self._register_lock:
            total = sum(
                (words[c.COUNTERS : c.COUNTERS + c.COUNTER_WORDS].astype(np.int64) for words in self._scratches),
                np.zeros(c.COUNTER_WORDS, np.int64),
            )
        return {name: int(total[at]) for name, at in c.COUNTER_NAMES.items()}

    def raise_mpi_error(self, scratch: Scratch) -> None:
        """Local. Raise the MPI error that a kernel met."""
        raise MPI.Exception(int(scratch.words[c.MPI_ERROR]))

    def disable(self, error: Callable[[], CascadeError]) -> None:
        """Local. Every later call raises: the store is closed, or this is a forked child."""

        def refuse(*_: Any) -> Any:
            raise error()

        for name in _CALLS:
            setattr(self, name, refuse)

    def free(self) -> None:
        """Collective. Free the windows and communicators; views of their memory are invalid afterwards."""
        empty = np.empty(0, np.uint8)
        self.gone, self.descriptors = empty, empty.reshape(0, DESCRIPTOR_BYTES)
        self.touched = empty.view(np.uint32)
        self.index_words, self.copy_words, self.pin_words = empty.view("u8"), empty.view("u8"), empty.view("u8")
        for each in (self.spaces, self.pins, self.data, self.index):
            each.free()
        self.probe_comm.Free()
        self.node.Free()


def copy_table_bytes(copy_buckets: int) -> int:
    """Local. Bytes of a rank's part of its node's copy table: words, when their origins were seen, and claims."""
    return copy_buckets * (2 * BUCKET_BYTES + 8)


def data_layout(pages: int, page_bytes: int, cells: int) -> tuple[int, int, int, int, int]:
    """Local. Byte offsets of a rank's data memory: gone hints, touches, descriptors, arena; and its size.

    The first three have an entry for each of `cells`, those without memory of the arena too.
    """

    def up(nbytes: int) -> int:
        return -(-nbytes // MIN_PAGE_BYTES) * MIN_PAGE_BYTES

    touch_at = up(cells)
    descriptor_at = touch_at + up(4 * cells)
    arena_at = descriptor_at + up(DESCRIPTOR_BYTES * cells)
    return 0, touch_at, descriptor_at, arena_at, arena_at + pages * page_bytes
