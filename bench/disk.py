"""`python -m bench disk`: the disk tier beside plain files, one file per block and one HDF5 file per rank.

Covers flush, cold and hot reads of blocks of several sizes, all ranks at once, every way with the same bytes in the
same directory, in turns. The contents of every read are compared, outside the timed part.
Does not cover the start of several ranks that need the same blocks (`disk_start`), restarts (`disk_restart`), nor the
ways beside the store (`disk_ways`).

Cold: every file was dropped from the page cache before each read; what a host of this machine caches is out of reach.
Hot: every file was read just before. Rates are those of all ranks, by the slowest one.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench import rows
from bench.disk_start import measure_start
from bench.disk_ways import Blocks, FilePerBlock, LargeFile, Way, file_system, forget, hdf5
from bench.machine import machine, store_block
from bench.rows import Goal, Row
from bench.timing import Operation, interleave
from cascade_mpi.store import Store

_FLUSH, _COLD, _HOT = Goal("ratio", ">=", 0.85), Goal("ratio", ">=", 0.9), Goal("ratio", ">=", 0.8)
_TOO_SMALL = 16 << 10  # an arena that no block of these sizes fits: what is read stays on disk
_BATCH = 16
_BATCHES = f"get_many of {_BATCH}"
CASES = ("flush", "cold", "hot", "start")


class Options(NamedTuple):
    """What to measure: bytes of each rank in a sample, sizes of blocks, samples behind a median."""

    total: int = 256 << 20
    sizes: tuple[int, ...] = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
    pairs: int = 5
    start_blocks: int = 64
    start_bytes: int = 1 << 20
    cases: tuple[str, ...] = CASES


def run(
    options: Options, folder: Path | None, json_file: Path | None = None, comm: MPI.Intracomm = MPI.COMM_WORLD
) -> int:
    """Collective. Measure and show; 1 if contents were wrong anywhere."""
    with a_folder(comm, folder) as root:
        measured, about = measure(options, root, comm)
    title = (
        f"{comm.size} ranks, {options.total >> 20} MiB each, medians of {options.pairs} turns; {about['file_system']}"
    )
    return rows.finish(measured, about, title, json_file, comm.rank)


@contextlib.contextmanager
def a_folder(comm: MPI.Intracomm, folder: Path | None) -> Iterator[Path]:
    """Collective. A new folder in `folder`, or else beside the checkout, that is removed again."""
    parent = folder if folder is not None else Path(__file__).resolve().parents[2]
    root = comm.bcast(tempfile.mkdtemp(prefix="cascade-bench-", dir=parent) if comm.rank == 0 else None)
    try:
        yield Path(root)
    finally:
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(root)


def measure(options: Options, root: Path, comm: MPI.Intracomm) -> tuple[list[Row], dict[str, Any]]:
    """Collective. The rows, the same on all ranks, and the machine that they were made on."""
    about = comm.bcast(machine() | {"file_system": file_system(root)})
    made: list[Row] = []
    for size in options.sizes if set(options.cases) - {"start"} else ():
        made += _Size(options, root / f"{size}", size, comm, about).rows()
    if "start" in options.cases:
        made += measure_start(options.start_blocks, options.start_bytes, options.pairs, root / "start", comm)
    for row in made:
        row.update(ranks=comm.size, machine=about)
    return made, about


class _Size:
    """All that is measured with blocks of one size."""

    def __init__(self, options: Options, root: Path, size: int, comm: MPI.Intracomm, about: dict[str, Any]) -> None:
        """Collective. Make the folders."""
        self.options, self.comm, self.root, self.about = options, comm, root, about
        self.blocks = Blocks(size, max(2, options.total // size), comm.rank + 1)
        if comm.rank == 0:
            root.mkdir()
        comm.Barrier()
        self.mine = root / f"rank{comm.rank}"
        self.plain = LargeFile(self.mine / "plain", direct=False)
        self.direct = LargeFile(self.mine / "direct", direct=True)
        others: list[Way | None] = [FilePerBlock(self.mine / "each"), hdf5(self.mine / "hdf5")]
        self.others = [each for each in others if each is not None]
        self.files: list[Way] = [self.plain, self.direct, *self.others]
        self.version = 0
        self.versions: dict[str, int] = {}  # what each way has
        self.right = True
        self.gets = self.hits = 0
        self.in_cache = 0  # bytes that stayed in the page cache of what was to be cold

    def rows(self) -> list[Row]:
        """Collective. Flush, cold and hot, in this order: what is flushed last is read."""
        flushed = self._flush()
        made = flushed if "flush" in self.options.cases else []
        with self._open(_TOO_SMALL, disk_mode="read") as store:
            self._forget()
            self._get_each(store)  # also if nothing but flushes is measured: is it there?
            self._compare("store")
            if "cold" in self.options.cases:
                made += self._cold(store)
            if "hot" in self.options.cases:
                made += self._hot(store)
        right = bool(self.comm.allreduce(int(self.right), MPI.MIN))
        if len(self.others) < 2:
            made.append(rows.absent("disk_hdf5", "h5py is not installed (pip install h5py)"))
        for row in made:
            row["contents_ok"] = row.get("contents_ok", True) and right
        self.comm.Barrier()
        if self.comm.rank == 0:
            shutil.rmtree(self.root)
        self.comm.Barrier()
        return made

    def _open(self, dram: int, **settings: Any) -> Store:
        path = str(self.root / "store")
        return Store(self.comm, dram_bytes=dram, disk=path, durability="none", copy_threads=1, **settings)

    # ---------------------------------------------------------------------------------------------------------- cases

    def _flush(self) -> list[Row]:
        with self._open(_room(self.blocks)) as store:
            report = store.report()["disk"]
            self.about.update(self.comm.bcast(store_block(store) | {"O_DIRECT": report["direct"]}))
            operations = [
                Operation(lambda: self._put(store), lambda _: store.flush(), self._wrote("store")),
                *(
                    Operation(self._fill, lambda _, way=way: way.write(self.blocks), self._wrote(way.name))
                    for way in self.files
                ),
            ]
            seconds = self._measure(operations)
        plain, direct = "large plain writes + fsync", "large O_DIRECT writes + fsync"
        made = [
            self._row("disk_flush", "flush()", seconds, (0, 1), plain, _FLUSH),
            self._row("disk_flush", "flush()", seconds, (0, 2), direct),
        ]
        return made + [
            self._row("disk_flush", way.name, seconds, (3 + at, 1), plain) for at, way in enumerate(self.others)
        ]

    def _cold(self, store: Store) -> list[Row]:
        with_room: list[Store] = []

        def opened() -> None:
            with_room.append(self._open(_room(self.blocks), disk_mode="read"))
            self._forget()

        def closed(_: object) -> None:
            self._compare("store")
            with_room.pop().close()

        def compared(name: str) -> Callable[[object], None]:
            return lambda _: self._compare(name)

        seconds = self._measure([
            Operation(self._forget, lambda _: self._get_each(store), compared("store")),
            Operation(self._forget, lambda _: self._get_batches(store), compared("store")),
            Operation(opened, lambda _: self._get_each(with_room[0]), closed),
            *(
                Operation(self._forget, lambda _, way=way: way.read(self.blocks), compared(way.name))
                for way in self.files
            ),
        ])  # fmt: skip
        plain, direct = "large plain reads", "large O_DIRECT reads"
        made = []
        for at, name in enumerate(("get", _BATCHES, "get into free memory")):
            made.append(self._row("disk_cold", name, seconds, (at, 3), plain, _COLD if at < 2 else None))
            made.append(self._row("disk_cold", name, seconds, (at, 4), direct))
        return made + [
            self._row("disk_cold", way.name, seconds, (5 + at, 3), plain) for at, way in enumerate(self.others)
        ]

    def _hot(self, store: Store) -> list[Row]:
        def operation(name: str, read: Callable[[], None]) -> Operation:
            def prepare() -> None:
                read()
                self.blocks.poison()

            return Operation(prepare, lambda _: read(), lambda _: self._compare(name))

        seconds = self._measure([
            operation("store", lambda: self._get_each(store)),
            operation("store", lambda: self._get_batches(store)),
            operation(self.plain.name, lambda: self.plain.read_each(self.blocks)),
            *(operation(way.name, lambda way=way: way.read(self.blocks)) for way in self.others),
        ])  # fmt: skip
        limit = "a pread for each block"
        made = [self._row("disk_hot", name, seconds, (at, 2), limit, _HOT) for at, name in enumerate(("get", _BATCHES))]
        return made + [
            self._row("disk_hot", way.name, seconds, (3 + at, 2), limit) for at, way in enumerate(self.others)
        ]

    # ---------------------------------------------------------------------------------------------------------- steps

    def _fill(self) -> None:
        self.version += 1
        self.blocks.fill(self.version)

    def _keys(self, version: int) -> npt.NDArray[np.uint64]:
        """Others for each version: of what is replaced, a flush would give the space back."""
        low = np.arange(self.blocks.count, dtype=np.uint64) + np.uint64(version << 24)
        return np.stack((np.full_like(low, self.comm.rank + 1), low), axis=1)

    def _put(self, store: Store) -> None:
        self._fill()
        if not all(each.stored for each in store.put_many(self._keys(self.version), self.blocks.rows)):
            raise RuntimeError("a block was not stored: the arena is too small for this benchmark")

    def _wrote(self, name: str) -> Callable[[object], None]:
        def check(_: object) -> None:
            self.versions[name] = self.version
            self._drop()  # the next write is to find as much free memory

        return check

    def _drop(self) -> int:
        left = sum(forget(way.root) for way in self.files)
        self.comm.Barrier()  # nobody reads what another one drops
        return left + (forget(self.root / "store" / "segments") if self.comm.rank == 0 else 0)

    def _forget(self) -> None:
        self.blocks.poison()
        self.in_cache = max(self.in_cache, self._drop())

    def _get_each(self, store: Store) -> None:
        first = (self.comm.rank + 1 << 64) + (self.versions["store"] << 24)
        got = [store.get(first + number, row) for number, row in enumerate(self.blocks.rows)]
        self._count(got)

    def _get_batches(self, store: Store) -> None:
        keys = self._keys(self.versions["store"])
        for at in range(0, self.blocks.count, _BATCH):
            self._count(store.get_many(keys[at : at + _BATCH], self.blocks.rows[at : at + _BATCH]))

    def _count(self, got: list[Any]) -> None:
        self.gets += len(got)
        self.hits += len(got) - got.count(None)

    def _compare(self, name: str) -> None:
        self.right &= self.blocks.hold(self.versions[name])

    def _measure(self, operations: Sequence[Operation]) -> npt.NDArray[np.float64]:
        """Collective. Seconds of the slowest rank, float64[pairs, operations]."""
        own = interleave(operations, self.options.pairs, self.comm.Barrier).seconds
        slowest = np.empty_like(own)
        self.comm.Allreduce(own, slowest, MPI.MAX)
        return slowest

    def _row(
        self, case: str, name: str, seconds: npt.NDArray[np.float64], which: tuple[int, int], what: str,
        goal: Goal | None = None,
    ) -> Row:  # fmt: skip
        """Collective. A row of rates: `which` are the operation and its limit."""
        gigabytes = self.blocks.nbytes * self.comm.size / 1e9
        value, limit = (gigabytes / float(np.median(seconds[:, at])) for at in which)
        paired = seconds[:, which[1]] / seconds[:, which[0]]
        gets, hits = self.comm.allreduce(np.array([self.gets, self.hits])).tolist()
        return rows.make(
            case, self.blocks.block_bytes, value, limit, "GB/s", goal, limit_what=what, key=name,
            ratio_paired=float(np.median(paired)), spread=f"{paired.min():.2f}..{paired.max():.2f}",
            hit_rate=hits / gets if gets else None,
            stayed_in_page_cache=self.comm.allreduce(self.in_cache),
        )  # fmt: skip


def _room(blocks: Blocks) -> int:
    """An arena for all blocks twice: a put replaces a block before the old one has rested."""
    return 2 * blocks.nbytes + (64 << 20)
