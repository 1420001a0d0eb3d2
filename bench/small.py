"""Blocks of 4 KiB and look-ups: what an operation costs beside its bytes.

Covers get_4k_* and get_many_4k_remote against raw MPI Gets, contains_remote against raw Gets of the same
buckets, lookup_local against a gather of as many buckets. Does not cover how they are timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench.job import SMALL_BYTES, Job, Outcome, random_of
from bench.reads import Bytes, Reads
from bench.rows import Goal
from bench.stock import Indexes, Stock, keys_at
from bench.timing import Operation, alone, interleave
from cascade_mpi.keys import _cached_words as key_digests
from cascade_mpi.layout import BUCKET_BYTES, BUCKET_WORDS, place_many
from cascade_mpi.namespaces import DEFAULT_DIGEST
from cascade_mpi.store import Store

BATCH = 64
LOOKUPS = 512  # keys in a contains_many
LOCAL_LOOKUPS = 1 << 16
NAMES = 1 << 14  # str keys: fewer than the digest cache holds
_LOCAL_BATCHES = 8  # of absent keys, so that they are not the same every time
_MOST_WRONG = 0.05  # of the answers by fingerprint for absent keys
_ONE_GET = "one raw MPI Get + Flush"


def measure(job: Job, store: Store, possible: set[str]) -> None:
    """Collective. Every possible case; the store is empty before."""
    if not possible:
        return
    stock = Stock(store, SMALL_BYTES, job.options.count(SMALL_BYTES), job.options.seed)
    out = np.zeros(SMALL_BYTES, np.uint8)
    for path in ("self", "node", "remote"):
        if f"get_4k_{path}" in possible:
            _get(job, store, stock, path, out)
    if "get_many_4k_remote" in possible:
        _batch(job, store, stock)
    if "contains_remote" in possible:
        for exact in (False, True):
            _contains(job, store, stock, exact)
    if "lookup_local" in possible:
        _lookup(job, store, stock)
    if "get_4k_node" in possible:
        _named(job, store, stock, out)


def _get(job: Job, store: Store, stock: Stock, path: str, out: Bytes) -> None:
    """Integer keys, against one raw Get, and on another node against the same MPI calls issued raw."""
    inner, owner = job.options.operations, job.owners[path]
    goals = {"self": None, "node": Goal("ratio", "<=", 2), "remote": Goal("ratio", "<=", 4.5)}

    def measures(hot: bool) -> Outcome:
        assert owner is not None
        reads = Reads(store, stock, owner, inner, stock.take(1) if hot else None)
        ways = [reads.get(out), reads.raw_get(out)]
        if path == "remote":
            ways.append(reads.raw_sequence(out))
        return reads.outcome(interleave(ways, job.options.pairs))

    for hot in (False, True):
        outcome = alone(job.comm, lambda hot=hot: measures(hot))
        job.add_time(f"get_4k_{path}", inner, outcome, (1, _ONE_GET), None if hot else goals[path], hot=hot)
        if path == "remote":
            goal = None if hot else Goal("ratio", "<=", 1.25)
            job.add_time(f"get_4k_{path}", inner, outcome, (2, "the same 4 Gets + 3 Flushes, raw"), goal, hot=hot)


def _named(job: Job, store: Store, stock: Stock, out: Bytes) -> None:
    """get_4k_node with str keys whose digests are in the cache, and with str keys that are new to this rank."""
    inner, owner = job.options.operations, job.owners["node"]
    count = max(1, min(stock.count // 8, NAMES))
    owners = job.comm.allgather(owner)
    if job.comm.rank in owners:  # its first blocks once more, under the names that its reader will ask for
        block = np.zeros(SMALL_BYTES, np.uint8)
        for number, text in enumerate(_texts(count, owners.index(job.comm.rank))):
            stock.data(job.comm.rank, number, block)
            store.put(text, block)

    def measures() -> Outcome:
        assert owner is not None
        reads, texts = Reads(store, stock, owner, inner), _texts(count, job.comm.rank)
        order = itertools.cycle(np.random.default_rng(job.options.seed).permutation(count).tolist())

        def known() -> tuple[Indexes, list[str]]:
            taken = [next(order) for _ in range(inner)]
            for each in taken:
                key_digests(texts[each], DEFAULT_DIGEST)
            return np.array(taken), [texts[each] for each in taken]

        def unknown() -> tuple[Indexes, list[str]]:
            prepared = known()
            key_digests.cache_clear()
            return prepared

        run, check = reads.get(out).run, reads.compare(out)
        ways = [Operation(known, run, check), Operation(unknown, run, check), reads.raw_get(out)]
        return reads.outcome(interleave(ways, job.options.pairs))

    outcome = alone(job.comm, measures)
    for at, key in enumerate(("str", "str, new")):
        samples = outcome.samples.only(at, 2)
        goal = Goal("value", "<=", 8)
        job.add_time("get_4k_node", inner, outcome._replace(samples=samples), (1, _ONE_GET), goal, key=key)


def _texts(count: int, reader: int) -> list[str]:
    return [f"rank-{reader}/request-{number:08d}/layer-{number % 32}" for number in range(count)]


def _batch(job: Job, store: Store, stock: Stock) -> None:
    inner = max(1, job.options.operations // BATCH)

    def measures() -> Outcome:
        reads = Reads(store, stock, job.owner("remote"), inner)
        outs = list(np.zeros((BATCH, SMALL_BYTES), np.uint8))
        return reads.outcome(interleave([reads.get_many(outs), reads.raw_gets(outs)], job.options.pairs))

    limit, goal = (1, f"{BATCH} raw MPI Gets + 1 Flush"), Goal("ratio", "<=", 3.2)
    job.add_time("get_many_4k_remote", inner, alone(job.comm, measures), limit, goal, batch=BATCH)


class _Lookups:
    """Batches of distinct array keys, half of them stored, and whether the answers were right."""

    def __init__(self, store: Store, exact: bool) -> None:
        self._store, self._exact = store, exact
        self.right = True

    @staticmethod
    def mix(stored: npt.NDArray[np.uint64], absent: npt.NDArray[np.uint64], rng: np.random.Generator) -> Any:
        """Local. (keys in random order, which of them are stored, room for the answer)."""
        order = rng.permutation(len(stored) + len(absent))
        keys = np.ascontiguousarray(np.concatenate([stored, absent])[order])
        return keys, (np.arange(len(keys)) < len(stored))[order], np.zeros(len(keys), np.bool_)

    def look(self, prepared: list[Any]) -> None:
        """Local. Timed."""
        for keys, _, found, *_ in prepared:
            found[:] = self._store.contains_many(keys, self._exact)

    def check(self, prepared: list[Any]) -> None:
        """Local. All that is stored was found, and of the rest none, or few by fingerprint."""
        for _, there, found, *_ in prepared:
            self.right &= bool(found[there].all())
            self.right &= bool(found[~there].mean() <= (0 if self._exact else _MOST_WRONG))


def _contains(job: Job, store: Store, stock: Stock, exact: bool) -> None:
    present = min(LOOKUPS // 2, stock.count)
    inner, fabric = max(1, job.options.operations // (2 * present)), store._fabric

    def measures() -> Outcome:
        home, lookups, window = job.owner("remote"), _Lookups(store, exact), fabric.index.world
        rng = random_of(job.options, job.comm.rank, 1)
        origins = [[bucket, BUCKET_BYTES, MPI.BYTE] for bucket in np.zeros((2 * present, BUCKET_BYTES), np.uint8)]

        def prepare() -> list[Any]:
            batches = []
            for _ in range(inner):
                absent = keys_at(rng, home, present, fabric)
                keys, there, found = lookups.mix(stock.keys[home][stock.take(present)], absent, rng)
                _, buckets, _ = place_many(keys[:, 0], keys[:, 1], fabric.comm.size, fabric.buckets)
                batches.append((keys, there, found, stock.bucket_targets(home, buckets)))
            return batches

        def raw(prepared: list[Any]) -> None:
            for *_, targets in prepared:
                for origin, target in zip(origins, targets, strict=True):
                    window.Get(origin, home, target)
                window.Flush(home)

        ways = [Operation(prepare, lookups.look, lookups.check), Operation(prepare, raw)]
        samples = interleave(ways, job.options.pairs)
        return Outcome(samples, lookups.right)

    job.add_rate(
        "contains_remote", SMALL_BYTES, inner * 2 * present / 1e6, "Mkeys/s", alone(job.comm, measures),
        (1, f"{2 * present} raw bucket Gets + 1 Flush"), Goal("ratio", ">=", 0.5 if exact else 0.9),
        batch=2 * present, exact="yes" if exact else "no",
    )  # fmt: skip


def _lookup(job: Job, store: Store, stock: Stock) -> None:
    """Array keys of the shards that are mapped here, by fingerprint; the rate of one rank."""
    fabric = store._fabric
    homes = [owner for owner in (job.owners["self"], job.owners["node"]) if owner is not None]
    each = max(1, min(LOCAL_LOOKUPS // 2 // len(homes), stock.count))
    rng = random_of(job.options, job.comm.rank, 2)
    absent = {home: keys_at(rng, home, each * _LOCAL_BATCHES, fabric) for home in homes}
    shard = fabric.index_words.reshape(-1, BUCKET_WORDS)
    gathered = np.empty((2 * each * len(homes), BUCKET_WORDS), np.uint64)

    def measures(meet: Callable[[], object] | None) -> Outcome:
        turn, lookups = itertools.count(), _Lookups(store, exact=False)

        def prepare() -> list[Any]:
            start = next(turn) % _LOCAL_BATCHES * each
            stored = np.concatenate([stock.keys[home][stock.take(each)] for home in homes])
            missing = np.concatenate([absent[home][start : start + each] for home in homes])
            return [(*lookups.mix(stored, missing, rng), rng.integers(0, len(shard), len(gathered)))]

        def gather(prepared: list[Any]) -> None:
            np.take(shard, prepared[0][-1], axis=0, out=gathered, mode="clip")

        ways = [Operation(prepare, lookups.look, lookups.check), Operation(prepare, gather)]
        return Outcome(interleave(ways, job.options.pairs, meet), lookups.right)

    limit, goal, amount = (1, "NumPy gather of as many buckets"), Goal("value", ">=", 8), len(gathered) / 1e6
    about = {"batch": len(gathered), "exact": "no"}
    outcome = alone(job.comm, lambda: measures(None))
    job.add_rate("lookup_local", SMALL_BYTES, amount, "Mkeys/s", outcome, limit, goal, **about)
    if job.comm.size > 1:
        outcomes = job.comm.allgather(measures(job.comm.Barrier))
        rates = np.mean([amount / each.samples.medians() for each in outcomes], axis=0)
        job.add_shared("lookup_local", SMALL_BYTES, rates, "Mkeys/s", outcomes, limit, goal, **about)
