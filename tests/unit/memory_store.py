"""A store of several ranks in plain memory of one process: the one-sided calls without MPI.

Covers the memory of all ranks with tables that map it or do not, and an emulation of the MPI functions
that the calls use, by address for the kernels and as window objects for the mpi4py twin. A Get reads
its target's memory as late as MPI allows, at the Flush, and until then its buffer holds rubbish, so that
a Flush that is missing or in the wrong place is seen; a window in `eager` reads as early as allowed.
Does not cover the allocator: tests write cells and words themselves.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from cascade_mpi import layout, onesided
from cascade_mpi.fabric import copy_table_bytes
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.checksum import checksum_twin

CALLS = (
    "get", "get_pinned", "find", "publish", "remove", "swap", "slot_of", "hint_gone", "pin", "unpin",
    "get_many", "describe_many", "probe_many", "poll", "find_copies", "slot_of_copy", "note_origin", "end_claim",
)  # fmt: skip
INDEX, DATA, PINS = onesided.INDEX, onesided.DATA, onesided.PINS
HANDLES = {INDEX: -1610612735, DATA: 77, PINS: 78}  # MPICH's handles are negative as ints
BYTE_HANDLE, UINT64_HANDLE, PROBE_COMM = 1275068685, 1275070530, -2080374784
RUBBISH = 0xEE
WATCHDOG_S = 60.0  # far beyond anything a test waits for

Key = tuple[int, int]


class Placed(NamedTuple):
    """A block that a test has put: where it is, and the word that names it."""

    key: Key
    word: int
    home: int
    bucket: int
    slot: int
    rank: int
    page: int
    payload: bytes


class Window:
    """The memory of all ranks in one window; each rank's begins at a displacement of its own."""

    def __init__(self, ranks: int, nbytes: int, mapped: set[int], backed: int | None = None) -> None:
        self.nbytes = nbytes
        self.shifts = [64 * (rank + 1) for rank in range(ranks)]
        self.areas = [np.zeros(shift + (nbytes if backed is None else backed), np.uint8) for shift in self.shifts]
        self.memory = [area[shift:] for area, shift in zip(self.areas, self.shifts, strict=True)]
        self.table = np.zeros((ranks, 2), np.int64)
        for rank in range(ranks):
            self.table[rank] = self.memory[rank].ctypes.data if rank in mapped else 0, self.shifts[rank]


class EmulatedMpi:
    """MPI's one-sided functions on the memory of `windows`, with a log of calls and actions before them."""

    def __init__(self, windows: list[Window]) -> None:
        self.windows = windows
        self.pending: dict[tuple[int, int], list[Callable[[], None]]] = {}
        self.calls: list[tuple[str, int, int]] = []  # (function, window, rank)
        self.faults: list[str] = []  # what a correct program never does
        self.eager: set[int] = set()
        self.eager_upto = 0  # Gets of so many bytes are eager too
        self._failing = ("", 0, 0)  # function, which call of it, error code
        self.now = 1100  # ticks: the store was opened in second 1
        self.step = 0  # what the clock gains each time that it is looked at
        self.transfers: list[tuple[int, int, int, int]] = []  # of Gets: window, rank, displacement, bytes
        self.pretend_from = 1 << 62  # Gets of so many bytes move none
        self._actions: dict[tuple[str, int], list[tuple[int, Callable[[], None]]]] = {}

    def before(self, function: str, window: int, action: Callable[[], None], skip: int = 0) -> None:
        """Run `action` once, before the call number `skip` + 1 from now on.

        "delivery" is the moment in a Flush at which one pending operation takes place.
        """
        self._actions.setdefault((function, window), []).append((self.count(function, window) + skip, action))

    def fail(self, function: str, skip: int, error: int) -> None:
        """Let the call number `skip` + 1 from now on return an error code."""
        self._failing = function, self.count(function) + skip + 1, error

    def count(self, function: str, window: int | None = None, rank: int | None = None) -> int:
        return sum(name == function and window in (None, on) and rank in (None, at) for name, on, at in self.calls)

    def _enter(self, function: str, window: int, rank: int) -> int:
        for due, action in self._actions.get((function, window), []):
            if due == self.count(function, window):
                action()
        self.calls.append((function, window, rank))
        failing, number, error = self._failing
        return error if function == failing and self.count(function) == number else 0

    def _target(self, window: int, rank: int, disp: int, nbytes: int) -> int:
        if not 0 <= rank < len(self.windows[window].areas):
            raise IndexError(f"rank {rank} of window {window}")
        area, shift = self.windows[window].areas[rank], self.windows[window].shifts[rank]
        end = shift + self.windows[window].nbytes
        if not (shift <= disp and disp + nbytes <= end):
            raise IndexError(f"bytes {disp}..{disp + nbytes} of rank {rank} in window {window}: {shift}..{end}")
        return int(area.ctypes.data) + disp

    def get(self, origin: int, nbytes: int, rank: int, disp: int, window: int) -> int:
        error = self._enter("get", window, rank)
        source = self._target(window, rank, disp, nbytes)
        if error:
            return error
        self.transfers.append((window, rank, disp, nbytes))
        if nbytes >= self.pretend_from:
            self._later(window, rank, lambda: None)
        elif window in self.eager or nbytes <= self.eager_upto:
            ctypes.memmove(origin, source, nbytes)
        else:
            ctypes.memset(origin, RUBBISH, nbytes)
            self._later(window, rank, lambda: ctypes.memmove(origin, source, nbytes))
        return 0

    def put(self, origin: int, nbytes: int, rank: int, disp: int, window: int) -> int:
        error = self._enter("put", window, rank)
        target = self._target(window, rank, disp, nbytes)
        if not error:
            self._later(window, rank, lambda: ctypes.memmove(target, origin, nbytes))
        return error

    def flush(self, rank: int, window: int) -> int:
        error = self._enter("flush", window, rank)
        for action in self.pending.pop((window, rank), []):
            self._enter("delivery", window, rank)
            action()
        return error

    def cas(self, origin: int, compare: int, result: int, rank: int, disp: int, window: int) -> int:
        error = self._enter("cas", window, rank)
        target = ctypes.c_uint64.from_address(self._target(window, rank, disp, 8))
        if error:
            return error
        seen, wanted = target.value, ctypes.c_uint64.from_address(compare).value
        if seen == wanted:
            target.value = ctypes.c_uint64.from_address(origin).value
        ctypes.memset(result, RUBBISH, 8)

        def deliver() -> None:
            ctypes.c_uint64.from_address(result).value = seen

        self._later(window, rank, deliver)
        return 0

    def iprobe(self) -> int:
        return self._enter("iprobe", -1, -1)

    def clock_gettime(self, address: int) -> int:
        self.now += self.step
        timespec = (ctypes.c_int64 * 2).from_address(address)
        timespec[0], timespec[1] = divmod(self.now, onesided.TICKS)
        timespec[1] *= 1_000_000_000 // onesided.TICKS
        return 0

    def _later(self, window: int, rank: int, action: Callable[[], Any]) -> None:
        self.pending.setdefault((window, rank), []).append(action)

    def check(self) -> None:
        """No misuse was seen, and nothing was left without a Flush."""
        assert self.faults == []
        assert self.pending == {}


class Functions:
    """The emulation as C functions: what a kernel finds at MPI's addresses. Handles and types are checked."""

    def __init__(self, mpi: EmulatedMpi) -> None:
        windows = {handle: window for window, handle in HANDLES.items()}

        def guarded(body: Callable[..., int]) -> Callable[..., int]:
            def call(*args: int) -> int:
                try:
                    return body(*args)
                except Exception as error:  # an exception cannot leave a callback
                    mpi.faults.append(repr(error))
                    return 15

            return call

        def transfer(name: str) -> Callable[..., int]:
            def body(*args: int) -> int:
                origin, nbytes, kind, rank, disp, target_nbytes, target_kind, window = args
                assert (kind, target_kind, target_nbytes) == (BYTE_HANDLE, BYTE_HANDLE, nbytes)
                assert 0 < nbytes <= 1 << 30
                return int(getattr(mpi, name)(origin, nbytes, rank, disp, windows[window]))

            return body

        def swap(*args: int) -> int:
            origin, compare, result, kind, rank, disp, window = args
            assert kind == UINT64_HANDLE
            return mpi.cas(origin, compare, result, rank, disp, windows[window])

        def probe(*args: int) -> int:
            assert args[2] == PROBE_COMM
            return mpi.iprobe()

        pointer, integer = ctypes.c_int64, ctypes.c_int
        moves = (pointer, integer, integer, integer, pointer, integer, integer, integer)
        self._kept = {
            "get": ctypes.CFUNCTYPE(integer, *moves)(guarded(transfer("get"))),
            "put": ctypes.CFUNCTYPE(integer, *moves)(guarded(transfer("put"))),
            "flush": ctypes.CFUNCTYPE(integer, integer, integer)(
                guarded(lambda rank, window: mpi.flush(rank, windows[window]))
            ),
            "cas": ctypes.CFUNCTYPE(integer, pointer, pointer, pointer, integer, integer, pointer, integer)(
                guarded(swap)
            ),
            "iprobe": ctypes.CFUNCTYPE(integer, integer, integer, integer, pointer, pointer)(guarded(probe)),
            "clock_gettime": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int64)(
                lambda _, address: mpi.clock_gettime(address)
            ),
        }

    def address(self, name: str) -> int:
        return ctypes.cast(self._kept[name], ctypes.c_void_p).value or 0


class WindowObject:
    """The emulation as the `world` of a window, for the mpi4py twin."""

    def __init__(self, mpi: EmulatedMpi, window: int) -> None:
        from mpi4py import MPI

        self._mpi, self._window, self._types, self._error = mpi, window, (MPI.BYTE, MPI.UINT64_T), MPI.Exception

    def _raise(self, error: int) -> None:
        if error:
            raise self._error(error)

    def _transfer(self, name: str, origin: Any, rank: int, target: Any) -> None:
        buffer, nbytes, kind = origin
        disp, target_nbytes, target_kind = target
        assert (kind, target_kind, target_nbytes, buffer.nbytes) == (self._types[0], self._types[0], nbytes, nbytes)
        self._raise(getattr(self._mpi, name)(buffer.address, nbytes, rank, disp, self._window))

    def Get(self, origin: Any, rank: int, target: Any) -> None:
        self._transfer("get", origin, rank, target)

    def Put(self, origin: Any, rank: int, target: Any) -> None:
        self._transfer("put", origin, rank, target)

    def Flush(self, rank: int) -> None:
        self._raise(self._mpi.flush(rank, self._window))

    def Compare_and_swap(self, origin: Any, compare: Any, result: Any, rank: int, disp: int) -> None:
        for buffer, number, kind in (origin, compare, result):
            assert (buffer.nbytes, number, kind) == (8, 1, self._types[1])
        addresses = (buffer.address for buffer, _, _ in (origin, compare, result))
        self._raise(self._mpi.cas(*addresses, rank, disp, self._window))


class MemoryStore:
    """R ranks' memory and the calls of one of them, `rank`, on it.

    `index`, `data` and `pins` are the ranks that are mapped in each window (None: all); `calls` is "compiled"
    or "python"; `backed` bytes of each arena exist (None: all). With `copy_buckets` the ranks that are mapped in the
    index window share a copy table. Behind its pages a rank has `disk_blocks` disk cells. After each call the emulation
    is checked.
    """

    def __init__(
        self,
        calls: str = "compiled",
        *,
        ranks: int = 3,
        rank: int = 0,
        pages: int = 16,
        page_bytes: int = 4096,
        buckets: int = 4,
        index: set[int] | None = None,
        data: set[int] | None = None,
        pins: set[int] | None = None,
        backed: int | None = None,
        copy_buckets: int = 0,
        disk_blocks: int = 0,
    ) -> None:
        everybody = set(range(ranks))
        self.ranks, self.rank, self.pages, self.page_bytes, self.buckets = ranks, rank, pages, page_bytes, buckets
        # Not the offsets of the real store: the calls must take them from the context.
        self.cells_each = cells = pages + disk_blocks
        self.gone_at, self.touch_at = 192, -(-(192 + cells) // 4) * 4
        self.descriptor_at = -(-(self.touch_at + 4 * cells) // 128) * 128
        self.arena_at = self.descriptor_at + 128 * cells + 64
        mapped = [everybody if each is None else each for each in (index, data, pins)]
        self.copy_buckets, self.node_ranks = copy_buckets, np.array(sorted(mapped[INDEX]), np.int64)
        self.read_counts = np.zeros(8 + c.READ_COUNT_BYTES, np.uint8)
        sizes = [
            buckets * layout.BUCKET_BYTES + copy_table_bytes(copy_buckets),
            self.arena_at + pages * page_bytes,
            ranks * onesided.SLOTS_PER_PEER * 8,
        ]
        backing = [None, None if backed is None else self.arena_at + backed, None]
        self.windows = [Window(ranks, *each) for each in zip(sizes, mapped, backing, strict=True)]
        self.mpi = EmulatedMpi(self.windows)
        self.functions = Functions(self.mpi)
        self.hooks = np.zeros(c.HOOK_WORDS, np.int64)
        self.context = self._make_context()
        self.ctx: int = self.context.ctypes.data
        self._area = np.zeros(c.SCRATCH_WORDS + 8, np.uint64)
        skip = -(self._area.ctypes.data // 8) % 8
        self.scratch = self._area[skip : skip + c.SCRATCH_WORDS]
        self.signed = self.scratch.view(np.int64)
        self.s: int = self.scratch.ctypes.data
        self.work = np.zeros((onesided.BATCH, onesided.WORK_WORDS), np.uint64)
        self.flags = np.zeros(ranks, np.int64)
        self._calls = self._bind(calls)

    def _make_context(self) -> np.ndarray:
        context = np.zeros(c.CONTEXT_WORDS, np.int64)
        tables = [window.table.ctypes.data for window in self.windows]
        for name, value in {
            c.RANKS: self.ranks, c.RANK: self.rank, c.BUCKETS: self.buckets, c.PAGES: self.pages,
            c.CELLS: self.cells_each, c.PAGE_BYTES: self.page_bytes, c.GONE_AT: self.gone_at, c.TOUCH_AT: self.touch_at,
            c.DESCRIPTOR_AT: self.descriptor_at, c.ARENA_AT: self.arena_at,
            c.INDEX_BASES: tables[INDEX], c.DATA_BASES: tables[DATA], c.PIN_BASES: tables[PINS],
            c.INDEX_WIN: HANDLES[INDEX], c.DATA_WIN: HANDLES[DATA], c.PIN_WIN: HANDLES[PINS],
            c.BYTE: BYTE_HANDLE, c.UINT64: UINT64_HANDLE, c.PROBE_COMM: PROBE_COMM,
            c.GET: self.functions.address("get"), c.PUT: self.functions.address("put"),
            c.FLUSH: self.functions.address("flush"), c.CAS: self.functions.address("cas"),
            c.IPROBE: self.functions.address("iprobe"), c.ANY_SOURCE: -2, c.ANY_TAG: -1,
            c.CLOCK: self.functions.address("clock_gettime"), c.EPOCH: 1, c.ATTEMPT: 10,
            c.HOOKS: self.hooks.ctypes.data,
            c.COPY_BUCKETS: self.copy_buckets, c.COPY_RANKS: self.node_ranks.size,
            c.COPY_RANKS_AT: self.node_ranks.ctypes.data, c.COPY_AFTER: 3, c.READ_COUNTS: self.read_counts.ctypes.data,
        }.items():  # fmt: skip
            context[name] = value
        return context

    def _bind(self, calls: str) -> dict[str, Callable[..., Any]]:
        if calls == "compiled":
            return {name: getattr(onesided, name) for name in CALLS}
        from cascade_mpi.onesided_python import PythonCalls

        worlds = [
            SimpleNamespace(world=WindowObject(self.mpi, number), table=window.table)
            for number, window in enumerate(self.windows)
        ]
        probe_comm = SimpleNamespace(Iprobe=lambda source, tag: self.mpi.iprobe())
        fabric: Any = SimpleNamespace(
            index=worlds[INDEX], data=worlds[DATA], pins=worlds[PINS], context=self.context, probe_comm=probe_comm
        )
        twin = PythonCalls(fabric)
        return {name: getattr(twin, name) for name in CALLS}

    # ------------------------------------------------------------------------------------ the ranks' memory

    def words(self, home: int) -> np.ndarray:
        """The index words of a rank, one row for each bucket."""
        words = self.windows[INDEX].memory[home][: self.buckets * layout.BUCKET_BYTES].view(np.uint64)
        return words.reshape(self.buckets, layout.BUCKET_WORDS)

    def copy_words(self, rank: int, what: int = 0) -> np.ndarray:
        """A rank's part of the copy table, one row for each bucket; with `what` 1 when their origins were seen."""
        begin = (self.buckets + what * self.copy_buckets) * layout.BUCKET_BYTES
        words = self.windows[INDEX].memory[rank][begin : begin + self.copy_buckets * layout.BUCKET_BYTES]
        return words.view(np.uint64).reshape(self.copy_buckets, layout.BUCKET_WORDS)

    def pin_words(self, manager: int) -> np.ndarray:
        """The hazard slots at a manager, one row for each rank."""
        return self.windows[PINS].memory[manager].view(np.uint64).reshape(self.ranks, onesided.SLOTS_PER_PEER)

    def gone(self, rank: int) -> np.ndarray:
        return self.windows[DATA].memory[rank][self.gone_at : self.gone_at + self.cells_each]

    def touched(self, rank: int) -> np.ndarray:
        return self.windows[DATA].memory[rank][self.touch_at : self.touch_at + 4 * self.cells_each].view(np.uint32)

    def records(self, rank: int) -> np.ndarray:
        at = self.descriptor_at
        return self.windows[DATA].memory[rank][at : at + 128 * self.cells_each].view(layout.DESCRIPTOR)

    def arena(self, rank: int) -> np.ndarray:
        return self.windows[DATA].memory[rank][self.arena_at :]

    def cells(self) -> list[bytes]:
        """All descriptors and payloads, to compare with what they are later."""
        return [self.windows[DATA].memory[rank][self.descriptor_at :].tobytes() for rank in range(self.ranks)]

    def place(self, key: Key) -> layout.Placement:
        return layout.place(*key, self.ranks, self.buckets)

    def write_cell(
        self, rank: int, page: int, key: Key, payload: bytes, generation: int = 1, *, checksum: bool = False,
        expiry: int = 0,
    ) -> int:  # fmt: skip
        """Fill a cell as its manager would, and return the word that names it."""
        record = self.records(rank)[page]
        record["magic"], record["generation"], record["length"] = layout.MAGIC, generation, len(payload)
        record["key_hi"], record["key_lo"] = key
        record["expiry"] = expiry
        data = np.frombuffer(payload, np.uint8)
        record["flags"] = layout.FLAG_CHECKSUM if checksum else 0
        record["checksum"] = checksum_twin(data) if checksum else 0
        start = page * self.page_bytes
        self.arena(rank)[start : start + data.size] = data
        return layout.pack_word(self.place(key).fp, generation, layout.TIER_DRAM, rank, page)

    def put(
        self, key: Key, rank: int, page: int, payload: bytes, generation: int = 1, slot: int | None = None, **more: Any
    ) -> Placed:
        """Write a cell and its word, in the lowest free slot or in `slot`."""
        word = self.write_cell(rank, page, key, payload, generation, **more)
        home, bucket, _ = self.place(key)
        row = self.words(home)[bucket]
        slot = int(np.flatnonzero(row == 0)[0]) if slot is None else slot
        row[slot] = word
        return Placed(key, word, home, bucket, slot, rank, page, payload)

    def write_disk_cell(
        self, rank: int, cell: int, key: Key, length: int, generation: int = 1, *, expiry: int = 0, hard: bool = False
    ) -> int:
        """Fill the descriptor of a disk cell as its manager would, and return the word that names it."""
        record = self.records(rank)[cell]
        record["magic"], record["generation"], record["length"] = layout.MAGIC, generation, length
        record["key_hi"], record["key_lo"] = key
        record["flags"], record["checksum"], record["expiry"] = layout.FLAG_CHECKSUM | layout.FLAG_DISK, 77, expiry
        record["content_hi"], record["manager"] = layout.pack_location(5, 3), rank
        return layout.pack_word(self.place(key).fp, generation, layout.TIER_DISK, rank, cell, hard)

    def put_on_disk(
        self, key: Key, rank: int, cell: int, length: int, generation: int = 1, slot: int | None = None, **more: Any
    ) -> Placed:
        """Write a disk cell and its word, in the lowest free slot or in `slot`."""
        word = self.write_disk_cell(rank, cell, key, length, generation, **more)
        home, bucket, _ = self.place(key)
        row = self.words(home)[bucket]
        slot = int(np.flatnonzero(row == 0)[0]) if slot is None else slot
        row[slot] = word
        return Placed(key, word, home, bucket, slot, rank, cell, b"")

    def put_copy(
        self, of: Placed, rank: int, page: int, payload: bytes | None = None, generation: int = 1, *,
        seen: int = 100, fixed: bool = False, **more: Any,
    ) -> Placed:  # fmt: skip
        """A copy of a block in a rank's cell, and its word in the copy table; its origin was seen at tick `seen`."""
        payload = of.payload if payload is None else payload
        word = self.write_cell(rank, page, of.key, payload, generation, **more)
        record = self.records(rank)[page]
        record["flags"] |= layout.FLAG_COPY | layout.FLAG_FIXED * fixed
        block = self.records(of.rank)[of.page]
        record["content_hi"], record["sequence"], record["expiry"] = of.word, block["sequence"], block["expiry"]
        at, bucket, _ = layout.place(*of.key, self.node_ranks.size, self.copy_buckets)
        home = int(self.node_ranks[at])
        slot = int(np.flatnonzero(self.copy_words(home)[bucket] == 0)[0])
        self.copy_words(home)[bucket, slot], self.copy_words(home, 1)[bucket, slot] = word, seen
        return Placed(of.key, word, home, bucket, slot, rank, page, payload)

    def counters(self) -> Counter[str]:
        """The counters that are not 0."""
        values = self.signed[c.COUNTERS : c.COUNTERS + c.COUNTER_WORDS]
        return Counter({name: int(values[at]) for name, at in c.COUNTER_NAMES.items() if values[at]})

    # -------------------------------------------------------------------------------------------- the calls

    def call(self, name: str, *args: int) -> int:
        """One call; the emulation must have seen nothing wrong."""
        result = self._calls[name](self.ctx, self.s, *args)
        self.mpi.check()
        return result

    def failing_call(self, name: str, *args: int) -> int:
        """One call in which MPI fails: what was under way then is lost."""
        result = self._calls[name](self.ctx, self.s, *args)
        self.mpi.pending.clear()
        self.mpi.check()
        return result

    def get(self, key: Key, room: int, offset: int = 0, what: int = onesided.WHOLE) -> tuple[int, bytes]:
        """(outcome, the buffer's bytes); the byte behind the buffer must not be written."""
        target = np.full(room + 1, 0xA5, np.uint8)
        outcome = self.call("get", *key, target.ctypes.data, room, offset, what)
        assert target[room] == 0xA5
        return outcome, target[:room].tobytes()

    def get_many(self, keys: list[Key], rooms: list[int]) -> tuple[list[int], list[bytes]]:
        targets = [np.full(room + 1, 0xA5, np.uint8) for room in rooms]
        addresses = np.array([target.ctypes.data for target in targets], np.int64)
        sizes, results = np.array(rooms, np.int64), np.full(len(keys), 77, np.int64)
        self._batch("get_many", keys, addresses.ctypes.data, sizes.ctypes.data, results.ctypes.data)
        assert all(target[-1] == 0xA5 for target in targets)
        return results.tolist(), [target[:-1].tobytes() for target in targets]

    def describe_many(self, keys: list[Key], *, descriptors: bool = True) -> tuple[list[int], np.ndarray]:
        records, results = np.zeros(len(keys), layout.DESCRIPTOR), np.full(len(keys), 77, np.int64)
        self._batch("describe_many", keys, records.ctypes.data if descriptors else 0, results.ctypes.data)
        return results.tolist(), records

    def probe_many(self, keys: list[Key]) -> list[int]:
        results = np.full(len(keys), 77, np.uint8)
        self._batch("probe_many", keys, results.ctypes.data)
        return results.tolist()

    def _batch(self, name: str, keys: list[Key], *areas: int) -> None:
        packed = np.array(keys, np.uint64).reshape(-1, 2)
        more = (self.work.ctypes.data, self.flags.ctypes.data)
        assert self.call(name, packed.ctypes.data, len(keys), *areas, *more) == 0
        assert not self.flags.any()

    def found(self) -> list[tuple[int, int]]:
        """The (slot, word) pairs that `find` left in the scratch."""
        at = c.FOUND_WORDS
        return [
            (int(self.signed[at + 2 * i]), int(self.scratch[at + 2 * i + 1])) for i in range(int(self.signed[c.FOUND]))
        ]

    # ------------------------------------------------------------------------------------------------ races

    def race(self, call: Callable[[], Any], *actions: Callable[[], None]) -> Any:
        """The result of `call` in a thread that stops between each copy and its re-check for the next action.

        After the last action it runs freely. Fails, and does not hang, if it stops less often than there
        are actions, or never ends.
        """
        outcome = SimpleNamespace(result=None, error=None)

        def run() -> None:
            try:
                outcome.result = call()
            except BaseException as error:
                outcome.error = error

        self.hooks[:] = 0
        self.hooks[c.H_READER] = -1
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        arrived = 0
        try:
            for action in actions:
                limit = time.monotonic() + WATCHDOG_S
                while self.hooks[c.H_ARRIVED] == arrived and thread.is_alive() and time.monotonic() < limit:
                    time.sleep(0)  # gives the GIL away
                arrived += 1
                assert self.hooks[c.H_ARRIVED] == arrived or outcome.error, f"the reader did not stop {arrived} times"
                action()
                self.hooks[c.H_RELEASED] = arrived
        finally:
            self.hooks[c.H_RELEASED] = 1 << 62
            thread.join(WATCHDOG_S)
            self.hooks[c.H_READER] = 0
        assert not thread.is_alive(), "the reader did not end"
        if outcome.error is not None:
            raise outcome.error
        return outcome.result


def colliding_keys(store: MemoryStore, number: int, start: int = 0, home: int | None = None) -> list[Key]:
    """Keys with the same home, bucket and fingerprint."""
    groups: dict[layout.Placement, list[Key]] = {}
    for lo in range(start, start + 1_000_000):
        placed = store.place((0, lo))
        if home is not None and placed.home != home:
            continue
        group = groups.setdefault(placed, [])
        group.append((0, lo))
        if len(group) == number:
            return group
    raise AssertionError("no such keys found")


def key_at(store: MemoryStore, home: int | None = None, bucket: int | None = None, skip: int = 0) -> Key:
    """A key with this home and bucket; `skip` gives others."""
    for lo in range(1, 1_000_000):
        placed = store.place((7, lo))
        if home in (None, placed.home) and bucket in (None, placed.bucket):
            if skip == 0:
                return (7, lo)
            skip -= 1
    raise AssertionError("no such key found")
