"""What is settled before a store allocates anything: its settings on all ranks, its sizes, room on the node.

Covers the agreement of the ranks, the geometry of arena and index, and the check of memory. Does not
allocate (see `fabric`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from mpi4py import MPI

from cascade_mpi import log, memory
from cascade_mpi.config import Config, ConfigLike, format_size
from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.fabric import LEVELS, copy_table_bytes, data_layout
from cascade_mpi.layout import BUCKET_BYTES, BUCKET_WORDS, MAX_DISK_CELLS, MAX_PAGES, MAX_RANKS, page_bytes_for
from cascade_mpi.leases import lease_bytes
from cascade_mpi.onesided import SLOTS_PER_PEER
from cascade_mpi.shared_words import table_bytes

_log = logging.getLogger("cascade")
_WORDS_PER_BLOCK = 4
_WINDOWS = 4
_ROUNDING = 8192  # of each window: to whole pages, and to begin at one


class Geometry(NamedTuple):
    """Sizes on each rank, the same on all of them."""

    pages: int
    page_bytes: int
    buckets: int
    space_bytes: int
    copy_buckets: int  # of the table of copies, should there be several nodes
    disk_blocks: int = 0  # cells that have no memory of the arena


def agree(comm: MPI.Intracomm, config: ConfigLike, overrides: Mapping[str, Any]) -> Config:
    """Collective. The settings of all ranks; ConfigError on all of them if one's are wrong or differ."""
    mine: Config | ConfigError
    try:
        log.setup(MPI.COMM_WORLD.rank)
        mine = Config.make(config, **overrides)
        if comm.size > MAX_RANKS:
            raise ConfigError(f"{comm.size} ranks: an index word names at most {MAX_RANKS}; use fewer ranks")
        if mine.progress == "thread" and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise ConfigError(
                f'progress="thread" needs MPI_THREAD_MULTIPLE, MPI has {LEVELS[MPI.Query_thread()]!r}: set '
                'mpi4py.rc.thread_level = "multiple" before mpi4py.MPI is imported, or use "auto"'
            )
    except ConfigError as error:
        mine = error
    everyone = comm.allgather(mine)
    for rank, other in enumerate(everyone):
        if isinstance(other, ConfigError):
            raise mine if isinstance(mine, ConfigError) else ConfigError(f"rank {rank}: {other}")
        if other != everyone[0]:
            salts = "; the salts of their namespaces differ" if str(other) == str(everyone[0]) else ""
            raise ConfigError(f"rank {rank} was given {other}, rank 0 {everyone[0]}{salts}")
    agreed: Config = everyone[0]
    return agreed


def geometry(config: Config, ranks: int, disk_blocks: int = 0) -> Geometry:
    """Local. The sizes that follow from the settings; `disk_blocks` blocks of each rank may be on disk only.

    ConfigError: an index word cannot number so many cells. The more of them are on disk, the larger is a page of the
    arena.
    """
    if not 0 <= disk_blocks <= MAX_DISK_CELLS:
        raise ConfigError(
            f"disk_blocks {disk_blocks:,}: a rank has at most {MAX_DISK_CELLS:,}, of the {MAX_PAGES:,} cells that an "
            "index word can number; lower it, or use more ranks"
        )
    page_bytes = page_bytes_for(config.dram_bytes, disk_blocks)
    pages = config.dram_bytes // page_bytes
    blocks = config.index_blocks or (pages + disk_blocks) * ranks
    buckets = 1
    while buckets * BUCKET_WORDS * ranks < blocks * _WORDS_PER_BLOCK:
        buckets *= 2
    copy_buckets = 0
    if config.promote_after and ranks > 1:
        copy_buckets = 1
        while copy_buckets < buckets * config.copy_share:
            copy_buckets *= 2
    space_bytes = table_bytes(config.namespace_slots) + lease_bytes(config.lease_extents, ranks)
    return Geometry(pages, page_bytes, buckets, space_bytes, copy_buckets, disk_blocks)


def check_memory(comm: MPI.Intracomm, config: Config, sizes: Geometry) -> None:
    """Collective. MemoryLimitError on all ranks if the windows do not fit a node; nothing is allocated before."""
    index = sizes.buckets * BUCKET_BYTES + copy_table_bytes(sizes.copy_buckets)
    pages, page_bytes = sizes.pages, sizes.page_bytes
    arena = data_layout(pages, page_bytes, pages)[-1]
    disk_cells = data_layout(pages, page_bytes, pages + sizes.disk_blocks)[-1] - arena
    fixed = index + comm.size * SLOTS_PER_PEER * 8 + sizes.space_bytes + _WINDOWS * _ROUNDING + disk_cells
    needed = arena + fixed
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
