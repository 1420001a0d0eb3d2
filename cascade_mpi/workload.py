"""Replay a trace of LLM requests against a store that is spread over all ranks, and check every byte.

Covers the options, the drift bound, and what a rank does for one request. Does not cover traces (see
`traces`), contents of blocks (see `blocks`), or what the numbers mean (see `workload_report`).

Request i is served by rank ``i % ranks``, in the order of the trace: the rank looks its blocks up,
fetches the contiguous prefix that is there, "computes" the other blocks and puts them.

Ranks may not drift apart: a rank that runs ahead asks for blocks that nobody has computed yet. So all
meet at a barrier after every `window` requests of each rank. On the Mooncake conversation trace the
worst order between two barriers (nobody sees what another rank put since the last one) costs at most
0.02 % of the hits with 32 requests between barriers (2 to 16 ranks), 0.2 % with 64, 1 % with 128, so
the default window is 32 / ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from cascade_mpi.blocks import BlockPool, Verify
from cascade_mpi.config import MAX_SIZE, Config, format_size
from cascade_mpi.errors import CascadeError, ConfigError, TraceError
from cascade_mpi.layout import MIN_PAGE_BYTES, page_bytes_for
from cascade_mpi.memory import auto_dram, limits
from cascade_mpi.traces import Deal, Request, deal, read_mooncake, synthetic
from cascade_mpi.workload_report import OPERATIONS, TIERS, Latencies, Result, Setting, Tally, gather

if TYPE_CHECKING:
    from mpi4py import MPI

    from cascade_mpi.reader import Location
    from cascade_mpi.writer import PutResult

DEFAULT_BLOCK_BYTES = 64 << 10
DEFAULT_SYNTHETIC_REQUESTS = 1000
REQUESTS_IN_FLIGHT = 32  # over all ranks, between two barriers
BATCH_BLOCKS, BATCH_BYTES = 64, 32 << 20  # of one get_many or put_many: bounds the buffers and stays in the cache
AUTO_SHARE = 0.5  # of what the node may use, at most

SAMPLED = 8  # one request in so many is fetched tier by tier, to time the tiers

Ids = npt.NDArray[np.uint64]
Buffer = npt.NDArray[np.uint8]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What to replay and on what; equal on all ranks.

    trace
        A file in Mooncake's format; None: the synthetic chat trace of `seed`.
    block_bytes
        Size of every block.
    requests
        Replay only the first so many; None: the whole file, or 1,000 of the synthetic trace.
    dram, dram_total
        Bytes of the arena of each rank, or of all ranks together; neither: what the trace needs, but at
        most half of the memory that a node may use.
    verify
        Compare every byte that comes back ("full"), some words of each block ("sample"), or nothing ("off").
    window
        Requests of each rank between two barriers; None: 32 / ranks, at least 1.
    json
        Where rank 0 is going to write the result: checked before anything is run.
    store
        Settings of `Config` for the store, such as ``{"windows": "shared"}``.
    """

    trace: Path | None = None
    block_bytes: int = DEFAULT_BLOCK_BYTES
    requests: int | None = None
    dram: int | None = None
    dram_total: int | None = None
    verify: Verify = "full"
    seed: int = 0
    window: int | None = None
    json: Path | None = None
    store: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without MPI and files; ConfigError names the option and its value."""
        if not 1 <= self.block_bytes <= MAX_SIZE:
            raise ConfigError(f"block size {self.block_bytes}: it must be 1 byte or more")
        for name in ("requests", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value}: it must be 1 or more")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: it must be 0 or more")
        if self.verify not in get_args(Verify):
            raise ConfigError(f"verify {self.verify!r}: it must be one of {', '.join(get_args(Verify))}")
        if self.dram is not None and self.dram_total is not None:
            raise ConfigError("dram (per rank) and dram-total (of all ranks) are both given: give one of them")
        if self.dram is not None:
            _check_dram(self.dram, self.block_bytes)
        Config.make(None, **self.store)

    @property
    def trace_name(self) -> str:
        """What the report calls the trace."""
        return f"synthetic chat (seed {self.seed})" if self.trace is None else self.trace.name

    def open_trace(self) -> Iterator[Request]:
        """Local. The requests to replay; TraceError while they are read."""
        if self.trace is None:
            return islice(synthetic(self.seed), self.requests or DEFAULT_SYNTHETIC_REQUESTS)
        return islice(read_mooncake(self.trace), self.requests)


def run_workload(comm: MPI.Intracomm, options: WorkloadOptions, say: Say | None = None) -> Result:
    """Collective. Replay the trace on all ranks of `comm`; every rank returns the same result.

    `say` is called on rank 0 with the start line. Errors of the trace and of the options are raised on
    every rank, and so is what `Store` raises at open; an error during the replay ends the job.
    """
    nodes = _survey(comm)
    dealt, dram = _agree(comm, lambda: _prepare(comm, options, nodes))
    setting = _setting(comm, options, dealt, dram, nodes)
    if say is not None and comm.rank == 0:
        say(setting.line())
        needed = _needed_dram(dealt, options.block_bytes)
        if dram < needed:
            say(f"the trace needs {format_size(needed)} per rank to keep every block: expect evictions")
    from cascade_mpi.store import Store  # needs MPI: the options above do not

    with Store(comm, {**options.store, "dram_bytes": dram}) as store:
        return replay(comm, store, dealt, setting)


def replay(comm: MPI.Intracomm, store: BlockStore, dealt: Deal, setting: Setting) -> Result:
    """Collective. Serve this rank's requests and sum up. 1 Barrier for each `window` requests of a rank."""
    server = Server(store, setting, dealt.longest)
    share = -(-dealt.requests // comm.size)
    comm.Barrier()
    start = perf_counter()
    for first in range(0, share, setting.window):  # the same rounds on every rank, also without a request in the last
        for ids in dealt.mine[first : first + setting.window]:
            server.serve(ids)
        comm.Barrier()
    seconds = perf_counter() - start
    server.tally.take(store.stats())
    return gather(comm, setting, server.tally, server.latencies, seconds)


class BlockStore(Protocol):
    """The part of `Store` that a replay uses."""

    def contains_many(self, keys: Ids, exact: bool = True) -> npt.NDArray[np.bool_]:
        """Local. Which keys are there."""

    def locate(self, key: int) -> Location | None:
        """Local. Where a block is."""

    def get_many(self, keys: Ids, outs: Sequence[Buffer]) -> list[Any]:
        """Local. Bytes read into each buffer, None for a miss."""

    def put_many(self, keys: Ids, data: Sequence[Buffer], *, exists: Literal["keep"]) -> list[PutResult]:
        """Local. What became of each block."""

    def stats(self) -> dict[str, Any]:
        """Local. The counters of this rank."""


class Server:
    """One rank's side of the replay: serves requests and counts."""

    def __init__(self, store: BlockStore, setting: Setting, longest: int) -> None:
        self.tally = Tally()
        self.latencies = {name: Latencies() for name in OPERATIONS}
        self._store = store
        self._verify: Verify = setting.verify
        batch = min(BATCH_BLOCKS, BATCH_BYTES // setting.block_bytes, longest)
        self._pool = BlockPool(setting.block_bytes, max(1, batch))
        self._tag = _key_tag(setting)
        self._served = 0

    def serve(self, ids: Ids) -> None:
        """Local. One request: fetch its longest prefix that is there and right, compute and put the rest."""
        keys = np.empty((len(ids), 2), dtype=np.uint64)
        keys[:, 0] = self._tag
        keys[:, 1] = ids
        hits = self._fetch(ids, keys, self._look_up(keys))
        self._compute(ids, keys, hits)
        self.tally.accesses += len(ids)
        self.tally.hits += hits
        self.tally.computes += len(ids) - hits
        self._served += 1

    def _look_up(self, keys: Ids) -> int:
        """How many blocks from the first on seem to be there (by fingerprint: the fetch compares the keys)."""
        start = perf_counter_ns()
        there = self._store.contains_many(keys, exact=False)
        self._count("lookup", len(keys), start)
        missing = np.flatnonzero(~there)
        return int(missing[0]) if missing.size else len(keys)

    def _fetch(self, ids: Ids, keys: Ids, prefix: int) -> int:
        """The length of the prefix that came back right; it ends at the first block that is missing or corrupt."""
        tally, pool = self.tally, self._pool
        sampled = self._served % SAMPLED == 0
        for first in range(0, prefix, len(pool)):
            last = min(prefix, first + len(pool))
            buffers = pool.poison(last - first)
            sizes = self._read_by_tier(keys[first:last], buffers) if sampled else self._read(keys[first:last], buffers)
            there = np.array([size is not None for size in sizes])
            whole = np.array([size == pool.block_bytes for size in sizes])
            right = whole & ~pool.wrong(ids[first:last], first, self._verify)
            tally.corrupt += int((there & ~right).sum())
            if not right.all():
                return first + int(np.argmin(right))
        return prefix

    def _read(self, keys: Ids, buffers: Sequence[Buffer]) -> list[Any]:
        start = perf_counter_ns()
        sizes = self._store.get_many(keys, buffers)
        self._count("get", len(keys), start)
        self.tally.get_bytes += sum(size for size in sizes if size is not None)
        return sizes

    def _read_by_tier(self, keys: Ids, buffers: Sequence[Buffer]) -> list[Any]:
        """The same, the blocks of each tier in a call of their own. What moves meanwhile counts where it was."""
        located = [self._store.locate(hi << 64 | lo) for hi, lo in keys.tolist()]
        sizes: list[Any] = [None] * len(keys)
        for tier, path in TIERS.items():
            of_tier = [k for k, found in enumerate(located) if found is not None and found.path == path]
            if not of_tier:
                continue
            nbytes, ns = self.tally.get_bytes, self.tally.get_ns
            for k, size in zip(of_tier, self._read(keys[of_tier], [buffers[k] for k in of_tier]), strict=True):
                sizes[k] = size
            self.tally.add_timed(tier, self.tally.get_bytes - nbytes, self.tally.get_ns - ns)
        return sizes

    def _compute(self, ids: Ids, keys: Ids, hits: int) -> None:
        """Make the blocks behind the first `hits` and put them; what another rank has put meanwhile stays."""
        tally, pool = self.tally, self._pool
        for first in range(hits, len(ids), len(pool)):
            last = min(len(ids), first + len(pool))
            buffers = pool.fill(ids[first:last], first)
            start = perf_counter_ns()
            results = self._store.put_many(keys[first:last], buffers, exists="keep")
            self._count("put", last - first, start)
            stored = sum(result.stored for result in results)
            tally.put_bytes += stored * pool.block_bytes
            tally.kept += sum(result.kept for result in results)
            tally.refused += sum(result.refused for result in results)

    def _count(self, name: str, blocks: int, start: int) -> None:
        spent = perf_counter_ns() - start
        self.tally.add_call(name, blocks, spent)
        self.latencies[name].add(spent)


def _key_tag(setting: Setting) -> int:
    """The high half of the keys: one number per trace and block size; the low half is the block id."""
    name = f"{setting.trace} {setting.block_bytes}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class _Nodes:
    """How the ranks lie on nodes."""

    count: int
    most: int
    """Ranks on the fullest node."""
    on_host: int
    """Ranks that share the memory of this host: two "nodes" may lie on one."""


def _survey(comm: MPI.Intracomm) -> _Nodes:
    """Collective. 1 Split, 2 allreduces, 1 allgather."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    ranks, first = node.size, node.rank == 0
    node.Free()
    host = MPI.Get_processor_name()
    return _Nodes(comm.allreduce(int(first)), comm.allreduce(ranks, MPI.MAX), comm.allgather(host).count(host))


def _prepare(comm: MPI.Intracomm, options: WorkloadOptions, nodes: _Nodes) -> tuple[Deal, int]:
    """This rank's share of the trace and the arena it would take."""
    if comm.rank == 0 and options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"--json {options.json}: there is no directory {options.json.parent}")
    dealt = deal(options.open_trace(), comm.rank, comm.size)
    if options.dram is not None:
        dram = options.dram
    elif options.dram_total is not None:
        dram = options.dram_total // comm.size
    else:
        dram = _auto_dram(dealt, options.block_bytes, nodes)
    _check_dram(dram, options.block_bytes)
    return dealt, dram


def _agree(comm: MPI.Intracomm, prepare: Callable[[], tuple[Deal, int]]) -> tuple[Deal, int]:
    """Collective. This rank's share and the smallest arena of all ranks. 1 allgather.

    The error of the lowest rank that has one is raised on every rank.
    """
    prepared, error, digest = None, None, ""
    try:
        prepared = prepare()
        digest = hashlib.blake2b(repr(prepared[0].totals).encode(), digest_size=16).hexdigest()
    except CascadeError as raised:
        error = raised
    reports = comm.allgather((error, digest, prepared[1] if prepared else 0))
    for reported, _, _ in reports:
        if reported is not None:
            raise reported
    different = [rank for rank, (_, other, _) in enumerate(reports) if other != reports[0][1]]
    if different or prepared is None:
        raise TraceError(f"rank {different[0]} reads another trace than rank 0: is the file the same on every node?")
    return prepared[0], min(dram for _, _, dram in reports)


def _setting(comm: MPI.Intracomm, options: WorkloadOptions, dealt: Deal, dram: int, nodes: _Nodes) -> Setting:
    from mpi4py import MPI

    return Setting(
        trace=options.trace_name,
        seed=options.seed,
        ranks=comm.size,
        nodes=nodes.count,
        requests=dealt.requests,
        unique=dealt.unique,
        block_bytes=options.block_bytes,
        dram_per_rank=dram,
        dram_per_node=dram * nodes.most,
        dram_total=dram * comm.size,
        window=options.window or max(1, REQUESTS_IN_FLIGHT // comm.size),
        verify=options.verify,
        mpi=MPI.Get_library_version().splitlines()[0].strip("\0 "),
    )


def _check_dram(dram: int, block_bytes: int) -> None:
    if dram < max(block_bytes, MIN_PAGE_BYTES):
        raise ConfigError(
            f"a DRAM arena of {format_size(dram)} per rank does not hold one block of {format_size(block_bytes)}:"
            " give more with --dram (per rank) or --dram-total"
        )


def _needed_dram(dealt: Deal, block_bytes: int) -> int:
    """The arena (bytes per rank) that keeps every block when each is computed once."""
    blocks = max(dealt.computes)
    page = page_bytes_for(blocks * block_bytes)
    return blocks * -(-block_bytes // page) * page


def _auto_dram(dealt: Deal, block_bytes: int, nodes: _Nodes) -> int:
    """What the trace needs and a quarter more for races, but at most `AUTO_SHARE` of what this host may use."""
    roomy = (_needed_dram(dealt, block_bytes) + 16 * (block_bytes + MIN_PAGE_BYTES)) * 5 // 4
    return min(roomy, auto_dram(limits(), nodes.on_host, AUTO_SHARE))
