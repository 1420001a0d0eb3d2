"""What the ranks agree on before a replay: how they lie on nodes, who serves what, and how large the arenas are.

Covers reading the trace on every rank, and errors that one rank has and all must raise. Does not cover the options
themselves (see `options`) nor the replay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cascade_mpi.config import Config
from cascade_mpi.errors import CascadeError, TraceError
from cascade_mpi.layout import MAX_DISK_CELLS, MIN_PAGE_BYTES, page_bytes_for
from cascade_mpi.memory import auto_dram, limits
from cascade_mpi.settings import DEFAULT, resolve
from cascade_mpi.traces import Deal, deal
from cascade_mpi.workload.options import WorkloadOptions, check_dram
from cascade_mpi.workload.result import Setting

if TYPE_CHECKING:
    from mpi4py import MPI

REQUESTS_IN_FLIGHT = 32  # over all ranks, between two barriers
AUTO_SHARE = 0.5  # of what the node may use, at most


@dataclass(frozen=True, slots=True)
class Nodes:
    """How the ranks lie on nodes."""

    count: int
    most: int
    """Ranks on the fullest node."""
    on_host: int
    """Ranks that share the memory of this host: two "nodes" may lie on one."""
    mine: int
    """The number of this rank's node, in the order of the lowest ranks."""
    local_rank: int
    host: str
    name: str
    """The host of this rank's node; with the node's number where several nodes lie on that host."""


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's share of the trace, the arena it would take (bytes), and what the trace says about itself."""

    dealt: Deal
    dram: int
    trace: str
    trace_format: str
    block_tokens: int
    has_blocks: bool
    notes: tuple[str, ...]


def survey(comm: MPI.Intracomm) -> Nodes:
    """Collective. 1 Split, 1 allgather."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first, size, local_rank = node.bcast(comm.rank), node.size, node.rank
    node.Free()
    host = MPI.Get_processor_name()
    everyone = comm.allgather((first, size, host))
    firsts = sorted({first for first, _, _ in everyone})
    nodes_of_host = {where for where, _, other in everyone if other == host}
    mine = firsts.index(first)
    return Nodes(
        count=len(firsts),
        most=max(size for _, size, _ in everyone),
        on_host=sum(other == host for _, _, other in everyone),
        mine=mine,
        local_rank=local_rank,
        host=host,
        name=host if len(nodes_of_host) == 1 else f"{host}-{mine}",
    )


def share(comm: MPI.Intracomm, options: WorkloadOptions, nodes: Nodes) -> Share:
    """Local. This rank's share of the trace; TraceError or ConfigError when there is none."""
    trace = options.open_trace()
    dealt = deal(trace, comm.rank, comm.size, route=options.route)
    settings = resolve(options.config, options.store)
    if options.dram is not None:
        dram = options.dram
    elif options.dram_total is not None:
        dram = options.dram_total // comm.size
    elif settings.origins["dram_bytes"] != DEFAULT:  # a variable or a file says it
        dram = settings.config.dram_bytes
    else:
        dram = _auto_dram(dealt, options.block_bytes, nodes)
    check_dram(dram, options.block_bytes)
    return Share(dealt, dram, trace.name, trace.format, trace.block_tokens, trace.has_blocks, trace.notes)


def agree(comm: MPI.Intracomm, prepare: Callable[[], Share]) -> tuple[Share, int]:
    """Collective. This rank's share and the smallest arena of all ranks. 1 allgather.

    The error of the lowest rank that has one is raised on every rank.
    """
    prepared, error, digest = None, None, ""
    try:
        prepared = prepare()
        digest = hashlib.blake2b(repr(prepared.dealt.totals).encode(), digest_size=16).hexdigest()
    except CascadeError as raised:
        error = raised
    reports = comm.allgather((error, digest, prepared.dram if prepared else 0))
    for reported, _, _ in reports:
        if reported is not None:
            raise reported
    different = [rank for rank, (_, other, _) in enumerate(reports) if other != reports[0][1]]
    if different or prepared is None:
        raise TraceError(f"rank {different[0]} reads another trace than rank 0: is the file the same on every node?")
    return prepared, min(dram for _, _, dram in reports)


def settle(
    comm: MPI.Intracomm, options: WorkloadOptions, share: Share, dram: int, nodes: Nodes, first: int = 0
) -> Setting:
    """Collective. What is going to be replayed on what, from request `first` on. 1 bcast."""
    from mpi4py import MPI

    host, started = comm.bcast((nodes.host, datetime.now(UTC).isoformat(timespec="seconds")))
    config = resolve(options.config, options.store).config
    return Setting(
        trace=share.trace,
        trace_format=share.trace_format,
        seed=options.seed,
        route=options.route,
        timed=options.timed,
        ranks=comm.size,
        nodes=nodes.count,
        requests=share.dealt.requests,
        unique=share.dealt.unique,
        block_bytes=options.block_bytes,
        dram_per_rank=dram,
        dram_per_node=dram * nodes.most,
        dram_total=dram * comm.size,
        window=options.window or max(1, REQUESTS_IN_FLIGHT // comm.size),
        verify=options.verify,
        mpi=MPI.Get_library_version().splitlines()[0].strip("\0 "),
        host=host,
        started=started,
        disk=config.disk,
        durability=config.durability if config.disk_mode == "write" else "read-only",
        first=first,
    )


def disk_cells(dealt: Deal, config: Config, dram: int) -> int | None:
    """Local. Disk cells of each rank, so that all its blocks of the trace fit the disk; None: the default does.

    A rank has cells for the blocks that it puts, and a quarter more: for those that it puts a second time.
    """
    most = max(dealt.computes) * 5 // 4
    pages = dram // page_bytes_for(dram)
    return None if config.disk_blocks is not None or most <= max(pages, 4096) else min(most, MAX_DISK_CELLS)


def needed_dram(dealt: Deal, block_bytes: int) -> int:
    """Local. The arena (bytes per rank) that keeps every block when each is computed once."""
    blocks = max(dealt.computes)
    page = page_bytes_for(blocks * block_bytes)
    return blocks * -(-block_bytes // page) * page


def _auto_dram(dealt: Deal, block_bytes: int, nodes: Nodes) -> int:
    """What the trace needs and a quarter more for races, but at most `AUTO_SHARE` of what this host may use."""
    roomy = (needed_dram(dealt, block_bytes) + 16 * (block_bytes + MIN_PAGE_BYTES)) * 5 // 4
    return min(roomy, auto_dram(limits(), nodes.on_host, AUTO_SHARE))
