"""Single operations of the store against what they are made of: copies of the same bytes, raw MPI calls.

Covers `python -m bench micro` (reads and look-ups on the own rank, the node and another node, puts, and
the copy's thread curve) and `python -m bench copy` (the curve alone). Does not cover whole workloads.

A rank measures while the others sleep, or all at once where a row says `concurrent`. Blocks are drawn in
turn from a working set larger than the caches; the home of a block's key is the rank that holds it, so
a remote read is remote in every step. The contents of what was read are compared outside the timed part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench import rows
from bench.machine import machine, store_block
from bench.reads import Reads
from bench.rows import Goal, Row
from bench.stock import Indexes, Stock, bytes_at, keys_at, names, place_many
from bench.timing import Operation, Samples, alone, interleave
from cascade_mpi.config import ChecksumMode, Config
from cascade_mpi.copier import Copier
from cascade_mpi.kernels.copy import copy_bytes
from cascade_mpi.keys import _cached_words as key_digests
from cascade_mpi.layout import BUCKET_BYTES, BUCKET_WORDS
from cascade_mpi.store import Store

CASES = (
    "get_self", "get_node", "get_remote", "get_many_remote", "get_4k_self", "get_4k_node", "get_4k_remote",
    "get_many_4k_remote", "contains_remote", "lookup_local", "put_self", "copy",
)  # fmt: skip
SMALL = 4096
BATCH = 8  # large blocks in a get_many
SMALL_BATCH = 64
LOOKUPS = 512  # keys in a contains_many
LOCAL_LOOKUPS = 1 << 16
SAMPLE_BYTES = 32 << 20  # large blocks: about as many bytes in a timed sample
SLACK = 1.25  # arena over working set: a put finds a cell that has rested
FULL_COPY, AFTER_SUM, IN_SUM = Goal("ratio", ">=", 0.95), Goal("ratio", ">=", 0.9), Goal("ratio", ">=", 0.75)
_ABSENT = 1  # of the seed of keys that are not stored: the stock's own seed would repeat its keys
_LARGE = ("get_self", "get_node", "get_remote", "get_many_remote")
_SMALL = ("get_4k_self", "get_4k_node", "get_4k_remote", "get_many_4k_remote", "contains_remote", "lookup_local")

Bytes = npt.NDArray[np.uint8]
_Result = tuple[Samples, bool]  # and whether all contents were right


@dataclass(frozen=True)
class Options:
    """What to measure. Sizes in bytes; `operations` small ones make one timed sample."""

    pairs: int = 15
    working_set: int = 1 << 30
    sizes: tuple[int, ...] = (1 << 20, 16 << 20, 64 << 20)
    remote_sizes: tuple[int, ...] = (1 << 20, 4 << 20, 16 << 20)
    copy_sizes: tuple[int, ...] = (4 << 20, 16 << 20, 64 << 20, 256 << 20)
    operations: int = 256
    cases: tuple[str, ...] = CASES
    seed: int = 1

    def count(self, block_bytes: int) -> int:
        """Local. Blocks of a size that make the working set, at least two."""
        return max(2, -(-self.working_set // block_bytes))

    def arena(self, sizes: Sequence[int]) -> int:
        """Local. An arena for a working set of any of these sizes, with room for puts."""
        return int(max(self.count(size) * size for size in sizes) * SLACK) + 2 * max(sizes)

    def inner(self, block_bytes: int) -> int:
        """Local. Large operations in one timed sample."""
        return max(1, min(SAMPLE_BYTES, self.working_set) // block_bytes)


def run(options: Options, json_file: Path | None = None, comm: MPI.Intracomm = MPI.COMM_WORLD) -> int:
    """Collective. Measure and show; 1 if contents were wrong anywhere."""
    measured, about = measure(options, comm)
    if comm.rank == 0:
        rows.show(measured, about, f"{comm.size} ranks, medians of {options.pairs} interleaved pairs")
        if json_file is not None:
            rows.write(measured, json_file)
    return 0 if all(row.get("contents_ok", True) for row in measured) else 1


def measure(options: Options, comm: MPI.Intracomm) -> tuple[list[Row], dict[str, Any]]:
    """Collective. All rows, the same on all ranks, and the machine they were made on."""
    bench = _Bench(options, comm)
    if bench.wants(*_LARGE, *_SMALL):
        bench.reads()
    if bench.wants("put_self"):
        bench.puts()
    if bench.wants("copy"):
        bench.curve()
    for row in bench.rows:
        row.update(ranks=comm.size, nodes=bench.nodes, pairs=options.pairs, machine=bench.about)
    return bench.rows, bench.about


class _Bench:
    """One run: its ranks, its rows, and the operations that it times."""

    def __init__(self, options: Options, comm: MPI.Intracomm) -> None:
        self.options, self.comm = options, comm
        self.rows: list[Row] = []
        self.about = comm.bcast(machine())
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
        self.nodes: int = comm.allreduce(int(node.rank == 0))
        mates: list[int] = node.allgather(comm.rank)
        node.Free()
        others = [rank for rank in range(comm.size) if rank not in mates]
        at = mates.index(comm.rank)
        # Whose blocks this rank reads on each path.
        self.owners = {
            "self": comm.rank,
            "node": mates[(at + 1) % len(mates)] if len(mates) > 1 else None,
            "remote": others[0] if others else None,
        }
        self.missing = {
            "node": None if len(mates) > 1 else "no second rank on the node of rank 0",
            "remote": None if others else "all ranks are on one node: set MPIR_CVAR_NUM_CLIQUES=2",
        }
        self.missing = comm.bcast(self.missing)

    def wants(self, *cases: str) -> bool:
        return any(case in self.options.cases for case in cases)

    def possible(self, case: str) -> bool:
        """Collective. Is the case wanted and possible here? Lists it as absent if it only is wanted."""
        reason = next((why for path, why in self.missing.items() if why and path in case), None)
        if self.wants(case) and reason:
            self.rows.append(rows.absent(case, reason))
        return self.wants(case) and not reason

    # ------------------------------------------------------------------------------------------ reading

    def reads(self) -> None:
        """Collective. Every case that reads, in one store with single-threaded copies."""
        o = self.options
        possible = {case: self.possible(case) for case in (*_LARGE, *_SMALL) if self.wants(case)}
        local = [size for size in o.sizes if possible.get("get_self") or possible.get("get_node")]
        remote = [size for size in o.remote_sizes if possible.get("get_remote") or possible.get("get_many_remote")]
        small = [SMALL] if any(possible.get(case) for case in _SMALL) else []
        if not (local or remote or small):
            return
        with Store(self.comm, dram_bytes=o.arena([*local, *remote, *small]), copy_threads=1) as store:
            self.about |= store_block(store)
            for size in sorted({*local, *remote}, reverse=True):
                stock = Stock(store, size, o.count(size), o.seed)
                out = np.zeros(size, np.uint8)
                for path in ("self", "node") if size in local else ():
                    if possible.get(f"get_{path}"):
                        self._large_mapped(store, stock, path, out)
                if size in remote and possible.get("get_remote"):
                    self._large_remote(store, stock, out)
                if size in remote and possible.get("get_many_remote"):
                    self._batch_remote(store, stock, SAMPLE_BYTES)
                store.clear()
            if small:
                self._small(store, Stock(store, SMALL, o.count(SMALL), o.seed), possible)

    def _large_mapped(self, store: Store, stock: Stock, path: str, out: Bytes) -> None:
        """get_self, get_node: against copies from the same memory into the same buffer."""
        size, owner, case = stock.block_bytes, self.owners[path], f"get_{path}"
        inner = self.options.inner(size)

        def measures(meet: Callable[[], object] | None, hot: bool) -> _Result:
            fixed = stock.take(1) if hot else None
            reads = Reads(store, stock, owner, inner, fixed)
            ways = [reads.get(out), reads.numpy_copy(out), reads.kernel_copy(out)]
            return interleave(ways, self.options.pairs, meet), reads.right and (hot or stock.verify(store, owner))

        def add(samples: list[Samples], ok: bool, **extra: Any) -> None:
            medians = [inner * size / 1e9 / each.medians() for each in samples]
            value, numpy_copy, kernel = (float(sum(column)) for column in zip(*medians, strict=True))
            best = "np.copyto" if numpy_copy > kernel else "streaming copy"
            self.rows.append(
                rows.make(
                    case, size, value, max(numpy_copy, kernel), "GB/s", None if extra.get("hot") else FULL_COPY,
                    contents_ok=ok, limit_what=f"the faster of np.copyto and the streaming copy: {best}",
                    np_copyto=numpy_copy, streaming_copy=kernel,
                    disturbed=max(each.disturbed for each in samples), **extra,
                )
            )  # fmt: skip

        samples, ok = alone(self.comm, lambda: measures(None, False))
        add([samples], ok)
        if size == min(self.options.sizes):
            samples, ok = alone(self.comm, lambda: measures(None, True))
            add([samples], ok, hot=True)
        if self.comm.size > 1 and self.comm.allreduce(int(owner is not None), MPI.MIN):
            self.comm.Barrier()
            everyone = self.comm.allgather(measures(self.comm.Barrier, False))
            add([each for each, _ in everyone], all(good for _, good in everyone), concurrent=self.comm.size)

    def _large_remote(self, store: Store, stock: Stock, out: Bytes) -> None:
        size, inner = stock.block_bytes, self.options.inner(stock.block_bytes)
        for hot in (False, True) if size == min(self.options.remote_sizes) else (False,):

            def measures(hot: bool = hot) -> _Result:
                reads = Reads(store, stock, self.owners["remote"], inner, stock.take(1) if hot else None)
                samples = interleave([reads.get(out), reads.raw_get(out)], self.options.pairs)
                return samples, reads.right and (hot or stock.verify(store, reads.owner))

            samples, ok = alone(self.comm, measures)
            goal = None if hot else _remote_goal(size)
            self._add_rate("get_remote", stock, inner, samples, ok, "raw MPI Get + Flush", goal, hot=hot)

    def _batch_remote(self, store: Store, stock: Stock, sample_bytes: int) -> None:
        """get_many_remote: batches of 8."""
        size = stock.block_bytes
        inner = max(1, min(sample_bytes, self.options.working_set) // (size * BATCH))

        def measures() -> _Result:
            reads = Reads(store, stock, self.owners["remote"], inner)
            outs = list(np.zeros((BATCH, size), np.uint8))
            return interleave([reads.get_many(outs), reads.raw_gets(outs)], self.options.pairs), reads.right

        samples, ok = alone(self.comm, measures)
        what = f"{BATCH} raw MPI Gets + 1 Flush"
        goal = Goal("ratio", ">=", 0.9) if size >= 1 << 20 else None
        self._add_rate("get_many_remote", stock, inner * BATCH, samples, ok, what, goal, batch=BATCH)

    def _add_rate(
        self, case: str, stock: Stock, blocks: int, samples: Samples, ok: bool, what: str,
        goal: Goal | None, **extra: Any,
    ) -> None:  # fmt: skip
        value, limit = (float(x) for x in blocks * stock.block_bytes / 1e9 / samples.medians())
        self.rows.append(
            rows.make(
                case, stock.block_bytes, value, limit, "GB/s", goal, contents_ok=ok, limit_what=what,
                ratio_paired=_paired(samples, 1, 0), disturbed=samples.disturbed, **extra,
            )
        )  # fmt: skip

    # --------------------------------------------------------------------------------------- small blocks

    def _small(self, store: Store, stock: Stock, possible: dict[str, bool]) -> None:
        out = np.zeros(SMALL, np.uint8)
        for path in ("self", "node", "remote"):
            if possible.get(f"get_4k_{path}"):
                self._small_get(store, stock, path, out)
        if possible.get("get_4k_node"):
            self._named_get(store, stock, out)
        if possible.get("get_many_4k_remote"):
            self._small_batch(store, stock)
        if possible.get("contains_remote"):
            self._contains(store, stock)
        if possible.get("lookup_local"):
            self._lookup(store, stock)

    def _small_get(self, store: Store, stock: Stock, path: str, out: Bytes) -> None:
        """get_4k_*: against one raw Get, and on another node against the same MPI calls issued raw."""
        inner, owner, case = self.options.operations, self.owners[path], f"get_4k_{path}"
        for hot in (False, True):

            def measures(hot: bool = hot) -> _Result:
                reads = Reads(store, stock, owner, inner, stock.take(1) if hot else None)
                ways = [reads.get(out), reads.raw_get(out)]
                if path == "remote":
                    ways.append(reads.raw_sequence(out))
                samples = interleave(ways, self.options.pairs)
                return samples, reads.right and (hot or stock.verify(store, owner))

            samples, ok = alone(self.comm, measures)
            goal = {"self": None, "node": Goal("ratio", "<=", 2), "remote": Goal("ratio", "<=", 4.5)}[path]
            self._add_time(case, inner, samples, 1, ok, "one raw MPI Get + Flush", None if hot else goal, hot=hot)
            if path == "remote":
                what, goal = "the same 4 Gets + 3 Flushes issued raw", None if hot else Goal("ratio", "<=", 1.25)
                self._add_time(case, inner, samples, 2, ok, what, goal, hot=hot)

    def _named_get(self, store: Store, stock: Stock, out: Bytes) -> None:
        """get_4k_node with str keys: as many names as the digest cache holds, so most are found in it."""
        inner, owner = self.options.operations, self.owners["node"]
        count = max(1, min(stock.count // 8, 1 << 14))
        texts = [f"request-{number:08d}/layer-{number % 32}" for number in range(count)]
        # Every rank puts the names that the rank before it reads; contents are those of its first blocks.
        readers = [self.comm.allgather(owner)[rank] == self.comm.rank for rank in range(self.comm.size)]
        mine = readers.index(True) if True in readers else None
        if mine is not None:
            block = np.zeros(SMALL, np.uint8)
            for number, text in enumerate(texts):
                stock.data(self.comm.rank, number, block)
                store.put(f"{text}@{mine}", block)

        def measures() -> _Result:
            reads = Reads(store, stock, owner, inner)
            mine = [f"{text}@{self.comm.rank}" for text in texts]
            order = itertools.cycle(np.random.default_rng(self.options.seed).permutation(count).tolist())

            def prepare() -> tuple[Indexes, list[str]]:
                taken = np.array([next(order) for _ in range(inner)])
                return taken, [mine[each] for each in taken]

            def forget() -> tuple[Indexes, list[str]]:
                key_digests.cache_clear()
                return prepare()

            run, check = reads.get(out).run, reads.compare(out)
            ways = [Operation(prepare, run, check), Operation(forget, run, check), reads.raw_get(out)]
            return interleave(ways, self.options.pairs), reads.right

        samples, ok = alone(self.comm, measures)
        what, goal = "one raw MPI Get + Flush", Goal("value", "<=", 8)
        for at, key in enumerate(("str", "str, its digest not cached")):
            self._add_time("get_4k_node", inner, samples.only(at, 2), 1, ok, what, goal, key=key)

    def _small_batch(self, store: Store, stock: Stock) -> None:
        inner = max(1, self.options.operations // SMALL_BATCH)

        def measures() -> _Result:
            reads = Reads(store, stock, self.owners["remote"], inner)
            outs = list(np.zeros((SMALL_BATCH, SMALL), np.uint8))
            return interleave([reads.get_many(outs), reads.raw_gets(outs)], self.options.pairs), reads.right

        samples, ok = alone(self.comm, measures)
        what, goal = f"{SMALL_BATCH} raw MPI Gets + 1 Flush", Goal("ratio", "<=", 3.2)
        self._add_time("get_many_4k_remote", inner, samples, 1, ok, what, goal, batch=SMALL_BATCH)

    def _contains(self, store: Store, stock: Stock) -> None:
        inner, fabric, home = max(1, self.options.operations // LOOKUPS), store._fabric, self.owners["remote"]
        present = min(LOOKUPS // 2, stock.count)
        buckets = np.zeros((2 * present, BUCKET_BYTES), np.uint8)
        origins = [[bucket, BUCKET_BYTES, MPI.BYTE] for bucket in buckets]
        rng = np.random.default_rng((self.options.seed, self.comm.rank, _ABSENT))
        window, exactness = fabric.index.world, (False, True)

        def measures(exact: bool) -> _Result:
            right = [True]

            def prepare() -> list[Any]:
                return [_half_there(stock, home, present, rng) for _ in range(inner)]

            def look(prepared: list[Any]) -> None:
                for keys, _, _, found in prepared:
                    found[:] = store.contains_many(keys, exact)

            def check(prepared: list[Any]) -> None:
                for _, _, there, found in prepared:
                    wrong = found[~there].mean()
                    right[0] &= bool(found[there].all()) and bool(wrong <= (0 if exact else 0.05))

            def raw(prepared: list[Any]) -> None:
                for _, targets, _, _ in prepared:
                    for origin, target in zip(origins, targets, strict=True):
                        window.Get(origin, home, target)
                    window.Flush(home)

            ways = [Operation(prepare, look, check), Operation(prepare, raw)]
            return interleave(ways, self.options.pairs), right[0]

        for exact in exactness:
            samples, ok = alone(self.comm, lambda exact=exact: measures(exact))
            keys = inner * 2 * present
            value, limit = (float(x) for x in keys / 1e6 / samples.medians())
            self.rows.append(
                rows.make(
                    "contains_remote", SMALL, value, limit, "Mkeys/s", Goal("ratio", ">=", 0.5 if exact else 0.9),
                    contents_ok=ok, limit_what=f"{2 * present} raw bucket Gets + 1 Flush",
                    exact="yes" if exact else "no", batch=2 * present, ratio_paired=_paired(samples, 1, 0), disturbed=samples.disturbed,
                )
            )  # fmt: skip

    def _lookup(self, store: Store, stock: Stock) -> None:
        """lookup_local: array keys of the shards that are mapped here, half of them absent."""
        fabric = store._fabric
        rng = np.random.default_rng((self.options.seed, self.comm.rank, _ABSENT))
        homes = [owner for owner in (self.owners["self"], self.owners["node"]) if owner is not None]
        each = max(1, min(LOCAL_LOOKUPS // 2 // len(homes), stock.count))
        batches = 8
        absent = {home: keys_at(rng, home, each * batches, fabric) for home in homes}
        shard = fabric.index_words.reshape(-1, BUCKET_WORDS)
        gathered = np.empty((2 * each * len(homes), BUCKET_WORDS), np.uint64)

        def measures(meet: Callable[[], object] | None) -> _Result:
            right, turn = [True], itertools.count()

            def prepare() -> tuple[npt.NDArray[Any], ...]:
                start = next(turn) % batches * each
                stop = start + each
                parts = [part for h in homes for part in (stock.keys[h][stock.take(each)], absent[h][start:stop])]
                there = np.repeat([True, False] * len(homes), each)
                order = rng.permutation(len(there))
                keys = np.ascontiguousarray(np.concatenate(parts)[order])
                return keys, there[order], rng.integers(0, len(shard), len(keys)), np.zeros(len(keys), np.bool_)

            def look(prepared: tuple[npt.NDArray[Any], ...]) -> None:
                prepared[3][:] = store.contains_many(prepared[0], exact=False)

            def check(prepared: tuple[npt.NDArray[Any], ...]) -> None:
                _, there, _, found = prepared
                right[0] &= bool(found[there].all()) and bool(found[~there].mean() <= 0.05)

            def gather(prepared: tuple[npt.NDArray[Any], ...]) -> None:
                np.take(shard, prepared[2], axis=0, out=gathered, mode="clip")

            ways = [Operation(prepare, look, check), Operation(prepare, gather)]
            return interleave(ways, self.options.pairs, meet), right[0]

        results = [([alone(self.comm, lambda: measures(None))], {})]
        if self.comm.size > 1:
            self.comm.Barrier()
            results.append((self.comm.allgather(measures(self.comm.Barrier)), {"concurrent": self.comm.size}))
        for everyone, extra in results:  # per rank: the mean
            rates = np.mean([len(gathered) / 1e6 / samples.medians() for samples, _ in everyone], axis=0)
            self.rows.append(
                rows.make(
                    "lookup_local", SMALL, float(rates[0]), float(rates[1]), "Mkeys/s", Goal("value", ">=", 8),
                    contents_ok=all(good for _, good in everyone), batch=len(gathered), exact="no",
                    limit_what="NumPy gather of as many buckets, per rank",
                    disturbed=max(samples.disturbed for samples, _ in everyone), **extra,
                )
            )  # fmt: skip

    def _add_time(
        self, case: str, inner: int, samples: Samples, against: int, ok: bool, what: str,
        goal: Goal | None, **extra: Any,
    ) -> None:  # fmt: skip
        medians = samples.medians() / inner * 1e6
        self.rows.append(
            rows.make(
                case, SMALL, float(medians[0]), float(medians[against]), "us", goal, contents_ok=ok, limit_what=what,
                ratio_paired=_paired(samples, 0, against), disturbed=samples.disturbed, **extra,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------- writing

    def puts(self) -> None:
        """Collective. put_self in stores with default settings but for the checksum, the default one first."""
        o, default = self.options, Config().checksum
        for checksum in sorted(get_args(ChecksumMode), key=lambda each: each != default):
            with Store(self.comm, dram_bytes=o.arena(o.sizes), checksum=checksum) as store:
                if checksum == default:
                    self.about |= store_block(store)
                for size in o.sizes:
                    stock = Stock(store, size, o.count(size), o.seed)
                    samples, ok = alone(self.comm, lambda store=store, stock=stock: self._put(store, stock))
                    value, *copies = (float(x) for x in o.inner(size) * size / 1e9 / samples.medians())
                    best = "np.copyto" if copies[0] > copies[1] else "streaming copy"
                    self.rows.append(
                        rows.make(
                            "put_self", size, value, max(copies), "GB/s", IN_SUM if checksum == "inline" else AFTER_SUM,
                            contents_ok=ok, limit_what=f"the faster copy into the same arena: {best}",
                            checksum=checksum + (" (default)" if checksum == default else ""),
                            np_copyto=copies[0], streaming_copy=copies[1], disturbed=samples.disturbed,
                        )
                    )  # fmt: skip
                    store.clear()

    def _put(self, store: Store, stock: Stock) -> _Result:
        """Replace the own blocks by the same contents; the copies write what stands there already."""
        size, own, inner = stock.block_bytes, self.comm.rank, self.options.inner(stock.block_bytes)
        sources = list(np.empty((stock.count, size), np.uint8))
        for number, source in enumerate(sources):
            stock.data(own, number, source)
        keys, fabric, find = names(stock.keys[own]), store._fabric, store._reader.find
        put, copyto, copy = store.put, np.copyto, copy_bytes.compile()

        def puts() -> list[Any]:
            return [(keys[block], sources[block]) for block in stock.take(inner)]

        def run_puts(prepared: list[Any]) -> None:
            for key, source in prepared:
                put(key, source)

        def cells() -> list[Any]:
            found = [(find(keys[block] >> 64, keys[block] & (1 << 64) - 1), block) for block in stock.take(inner)]
            at = [(fabric.arena_address + cell.page * fabric.page_bytes, sources[block]) for cell, block in found]
            return [(bytes_at(address, size), source, address, source.ctypes.data) for address, source in at]

        def run_numpy(prepared: list[Any]) -> None:
            for cell, source, _, _ in prepared:
                copyto(cell, source)

        def run_kernel(prepared: list[Any]) -> None:
            for _, _, to, at in prepared:
                copy(to, at, size)

        ways = [Operation(puts, run_puts), Operation(cells, run_numpy), Operation(cells, run_kernel)]
        return interleave(ways, self.options.pairs), stock.verify(store, own)

    # --------------------------------------------------------------------------------------------- copies

    def curve(self) -> None:
        """Collective. Copies by 1, 2, ... threads on rank 0 alone."""
        threads = list(range(1, (self.about["cores"] or 1) + 1))
        for size in self.options.copy_sizes:
            samples, ok = alone(self.comm, lambda size=size: self._curve(size, threads))
            rates = size / 1e9 / samples.medians()
            for count, rate in zip(threads, rates.tolist(), strict=True):
                self.rows.append(
                    rows.make(
                        "copy", size, rate, float(rates[0]), "GB/s", contents_ok=ok, limit_what="one thread",
                        threads=count, disturbed=samples.disturbed,
                    )
                )  # fmt: skip

    def _curve(self, size: int, threads: list[int]) -> _Result:
        count = self.options.count(size)
        sources, targets = (np.empty((count, size), np.uint8) for _ in range(2))
        sources[:] = np.arange(size, dtype=np.uint64).astype(np.uint8)
        sources[:, 0] = np.arange(count)
        targets[:] = 0
        turn, copiers = itertools.count(), [Copier(each) for each in threads]
        addresses = [(to.ctypes.data, of.ctypes.data) for to, of in zip(targets, sources, strict=True)]
        ways = [
            Operation(lambda: addresses[next(turn) % count], lambda at, copy=copier.copy: copy(*at, size))
            for copier in copiers
        ]
        samples = interleave(ways, self.options.pairs)
        for copier in copiers:
            copier.close()
        written = range(min(count, next(turn)))
        return samples, all(np.array_equal(sources[at], targets[at]) for at in written)


def _half_there(
    stock: Stock, home: int, present: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint64], list[list[object]], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Keys, half of them stored; their buckets' targets; which are stored; room for the answer."""
    fabric = stock.fabric
    keys = np.concatenate([stock.keys[home][stock.take(present)], keys_at(rng, home, present, fabric)])
    order = rng.permutation(len(keys))
    keys = np.ascontiguousarray(keys[order])
    _, buckets = place_many(keys, fabric.comm.size, fabric.buckets)
    there = (np.arange(len(keys)) < present)[order]
    return keys, stock.bucket_targets(home, buckets), there, np.zeros(len(keys), np.bool_)


def _remote_goal(block_bytes: int) -> Goal | None:
    for least, bound in ((16 << 20, 0.95), (4 << 20, 0.9), (1 << 20, 0.75)):
        if block_bytes >= least:
            return Goal("ratio", ">=", bound)
    return None


def _paired(samples: Samples, above: int, below: int) -> float:
    """The median of the pairs' own ratios: what drifts from pair to pair drops out of it."""
    return float(np.median(samples.seconds[:, above] / samples.seconds[:, below]))
