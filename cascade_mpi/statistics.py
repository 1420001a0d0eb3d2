"""What a store says of itself: its counters, and what it chose at open.

Covers `Store.stats()` and `Store.report()`. Does not count anything itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from cascade_mpi.config import Config
from cascade_mpi.copier import Copier
from cascade_mpi.copies import Copies
from cascade_mpi.dram import DramTier
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels.jit import KERNELS
from cascade_mpi.mover import Mover
from cascade_mpi.pins import PinTable
from cascade_mpi.pool import Pool
from cascade_mpi.reader import Reader
from cascade_mpi.registry import Registry
from cascade_mpi.writer import Writer


def stats(fabric: Fabric, pool: Pool, writer: Writer, pins: PinTable) -> dict[str, Any]:
    """Local. What this rank has done since the store was opened: counters, and the fill of its arena (bytes).

    `live`, `limbo`, `free` and `lent` (to other ranks) are all of the arena; what this rank has leased is in `pool`.
    """
    count, dram, total = fabric.counters(), pool.own, pool.total
    a = dram.allocator
    paths = {
        path: {"gets": count[f"hits_{path}"], "bytes": count[f"bytes_{path}"]} for path in ("self", "node", "remote")
    }
    hits = sum(each["gets"] for each in paths.values())
    page = fabric.page_bytes
    blocks, nbytes = pool.protected()
    tiers = list(pool.tiers.values())
    nobody, lent = pool.not_used()
    return {
        "gets": hits + count["misses"], "hits": hits, "misses": count["misses"],
        "bytes_got": sum(each["bytes"] for each in paths.values()), "tiers": paths,
        "puts": writer.puts, "bytes_put": writer.bytes_put, "kept": writer.kept, "refused": writer.refused,
        "deletes": writer.deletes, "evicted": total("evicted"), "evicted_bytes": total("evicted_bytes"),
        "passed": total("passed"), "expired": total("expired"), "expired_reads": count["expired_reads"],
        "spared": total("spared"),
        "protected": {"blocks": blocks, "bytes": nbytes, "over_quota": writer.unprotected},
        "recheck_retries": count["recheck_retries"], "retries_exhausted": count["retries_exhausted"],
        "fingerprint_collisions": count["fingerprint_collisions"], "bad_words": count["bad_words"],
        "corrupt": count["corrupt"], "lost_cas": writer.lost_cas, "bucket_overflows": writer.overflows,
        "swept": total("swept"), "cell_allocations": sum(tier.allocator.allocations for tier in tiers),
        "cell_reuses": sum(tier.allocator.reuses for tier in tiers),
        "pins": len(pins.held()),
        "arena": {
            "bytes": a.pages * page, "live_bytes": dram.live_bytes - dram.copy_bytes, "live": a.live_pages * page,
            "limbo": a.limbo_pages * page, "free": (a.free_pages + nobody) * page, "lent": lent * page,
        },
        "blocks": sum(int(np.count_nonzero(tier.words * ~tier.copies)) for tier in tiers),
    }  # fmt: skip


def pool(pool: Pool, mover: Mover) -> dict[str, int]:
    """Local. The extents of this rank's arena, what it has in others', and what was moved; without leases that alone.

    `held_own`, `free`, `lent` and `recalled` count extents of the own arena, `held` those of others.
    """
    return pool.state() | {"moved": mover.moved, "moved_bytes": mover.moved_bytes, "dropped": mover.dropped}


def about_pool(config: Config, fabric: Fabric, pool: Pool) -> dict[str, Any]:
    """Local. Whether this rank's arena is one of a pool, and why."""
    reason = f"the arenas of {fabric.comm.size} ranks, {len(fabric.node_ranks)} of them of this node, which come first"
    if pool.table is None:
        reason = "lease_extents is 0" if not config.lease_extents else "there is one rank"
        return {"on": False, "reason": reason, "placement": "local"}
    return {
        "on": True, "reason": reason, "placement": config.placement, "extents": pool.table.count,
        "extent_bytes": pool.table.extent_pages * fabric.page_bytes, "never_lent": pool.kept,
    }  # fmt: skip


def copies(fabric: Fabric, dram: DramTier, copies: Copies, reader: Reader) -> dict[str, int]:
    """Local. The copies of other nodes' blocks: made and held by this rank, read by it from any rank of its node.

    `hits` are among the reads from the own arena and the node's; `hits_without_mpi` called MPI for nothing at all.
    `stale` counts looks at copies whose block was another one by then; `waited` reads that another rank was to fetch.
    """
    count = fabric.counters()
    return {
        "promotions": copies.made, "promoted_bytes": copies.made_bytes, "refused": copies.refused,
        "demotions": dram.demoted, "held": int(np.count_nonzero(dram.copies)), "held_bytes": dram.copy_bytes,
        "hits": count["copy_hits"], "bytes": count["copy_bytes"], "hits_without_mpi": count["copy_hits_without_mpi"],
        "stale": count["stale_copies"], "stale_dropped": dram.stale, "waited": reader.waited,
    }  # fmt: skip


def about_copies(config: Config, fabric: Fabric, copies: Copies) -> dict[str, Any]:
    """Local. Whether this node keeps copies of other nodes' blocks, and why."""
    reason = f"after {config.promote_after} reads of another node's block by one rank, protected blocks after the first"
    if not copies.on:
        reason = "promote_after is 0" if fabric.nodes > 1 else "there is one node"
    return {
        "on": copies.on, "reason": reason, "promote_after": config.promote_after, "share": config.copy_share,
        "most_bytes": copies.most_pages * fabric.page_bytes if copies.on else 0, "buckets": fabric.copy_buckets,
    }  # fmt: skip


def report(
    config: Config,
    fabric: Fabric,
    dram: DramTier,
    copier: Copier,
    writer: Writer,
    registry: Registry,
    self_test: dict[str, Any],
) -> dict[str, Any]:
    """Local. What was chosen at open, and why; the index's load is this rank's shard at the time of the call."""
    used = int(np.count_nonzero(fabric.index_words))
    multiple = fabric.thread_level == MPI.THREAD_MULTIPLE
    return {
        "mpi": MPI.Get_library_version().splitlines()[0].strip("\0 "),
        "ranks": fabric.comm.size, "nodes": fabric.nodes, "ranks_on_node": fabric.node_ranks,
        "thread_level": fabric.level_name,
        "windows": {
            "layout": fabric.layout, "reason": fabric.layout_reason,
            "hints": {each.name: each.hints for each in (fabric.index, fabric.data, fabric.pins, fabric.spaces)},
        },
        "mpi_calls": {"by": fabric.mpi_calls, "reason": fabric.calls_reason},
        "self_test": self_test,
        "async": "one thread" if multiple else f"inline: MPI's thread level is {fabric.level_name!r}",
        "copy_threads": {"threads": copier.threads, "reason": copier.reason},
        "checksum": config.checksum, "verify_reads": config.verify_reads,
        "when_full": config.when_full, "eviction": _eviction(config, dram), "publish": config.publish,
        "arena": {
            "bytes": fabric.pages * fabric.page_bytes, "pages": fabric.pages, "page_bytes": fabric.page_bytes,
        },
        "index": {
            "buckets": fabric.buckets, "words": fabric.index_words.size, "used": used,
            "load": used / fabric.index_words.size, "overflows": writer.overflows,
        },
        "namespaces": {
            "default": str(config.namespace), "slots": config.namespace_slots, "used": registry.slots_used(),
        },
        "protection": {"protected_bytes": config.protected_bytes, "protect_depth": config.protect_depth,
                       "protect_shared": config.protect_shared},
        "kernel_cache": all(kernel.cached for kernel in KERNELS),
    }  # fmt: skip


def _eviction(config: Config, dram: DramTier) -> dict[str, Any]:
    if dram.victims is None:
        return {"policy": "none", "ahead_bytes": 0, "by": 'nobody: when_full is "refuse"'}
    ahead = dram.low_pages - dram.wished
    by = "each put a little, ahead of others" if ahead else "a put that finds no room"
    return {"policy": config.eviction, "ahead_bytes": ahead * dram.fabric.page_bytes, "by": by}
