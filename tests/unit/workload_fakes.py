"""What the tests of the workload share: a store in this process that can be made to fail, and a replay of it."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np

from cascade_mpi.traces import Deal, deal, synthetic
from cascade_mpi.workload.result import Result, Setting, check_counts, summarise
from cascade_mpi.workload.server import Server
from cascade_mpi.workload.tally import GROUPS, OPERATIONS


class DictStore:
    """A dictionary behind the calls that a replay makes; `hurt(key, data)` changes what is read."""

    def __init__(self, capacity: int = 1 << 60, hurt: Any = None) -> None:
        self.blocks: dict[tuple[int, int], bytes] = {}
        self.capacity, self.hurt = capacity, hurt
        self.gets = self.bytes = 0
        self.lies = False

    def request(self, keys: np.ndarray) -> None:
        pass

    def contains_many(self, keys: np.ndarray, exact: bool = True) -> np.ndarray:
        return np.array([self.lies or (hi, lo) in self.blocks for hi, lo in keys.tolist()])

    def locate(self, key: int) -> Any:
        there = (key >> 64, key & (1 << 64) - 1) in self.blocks
        return SimpleNamespace(path=("self", "node", "remote")[key % 3]) if there else None

    def get_many(self, keys: np.ndarray, outs: Any) -> list[int | None]:
        sizes: list[int | None] = []
        for (hi, lo), out in zip(keys.tolist(), outs, strict=True):
            data = self.blocks.get((hi, lo))
            if data is not None and self.hurt is not None:
                data = self.hurt(lo, data)
            sizes.append(None if data is None else len(data))
            if data is not None:
                out[: len(data)] = np.frombuffer(data, np.uint8)
                self.gets, self.bytes = self.gets + 1, self.bytes + len(data)
        return sizes

    def put_many(self, keys: np.ndarray, data: Any, *, exists: str) -> list[Any]:
        assert exists == "keep"
        results = []
        for (hi, lo), each in zip(keys.tolist(), data, strict=True):
            kept = (hi, lo) in self.blocks
            refused = not kept and len(self.blocks) >= self.capacity
            if not kept and not refused:
                self.blocks[hi, lo] = each.tobytes()
            results.append(SimpleNamespace(stored=not kept and not refused, kept=kept, refused=refused))
        return results

    def progress(self) -> None:
        pass

    def stats(self) -> dict[str, Any]:
        tiers = {path: {"gets": 0, "bytes": 0} for path in ("self", "node", "remote")}
        tiers["self"] = {"gets": self.gets, "bytes": self.bytes}
        return {
            "recheck_retries": 3, "retries_exhausted": 1, "lost_cas": 4, "evicted": 2, "evicted_bytes": 200,
            "misses": 5, "disk": {}, "tiers": tiers, "dedup_hits": 6, "dedup_saved_bytes": 600, "pool": {},
            "arena": {"bytes": 1000, "live": 500, "limbo": 100, "free": 300, "lent": 100},
            **{group: dict.fromkeys(GROUPS[group], 7) for group in ("copies", "dedup")},
        }  # fmt: skip


def setting(dealt: Deal, block_bytes: int = 100, verify: Any = "full") -> Setting:
    return Setting(
        trace="test", trace_format="chat", seed=0, route="round-robin", timed=None, ranks=1,
        nodes=1, requests=dealt.requests, unique=dealt.unique, block_bytes=block_bytes,
        dram_per_rank=1 << 20, dram_per_node=1 << 20, dram_total=1 << 20, window=4, verify=verify, mpi="none",
        host="h", started="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def replay(store: DictStore, requests: int = 200, **options: Any) -> tuple[Result, Deal]:
    dealt = deal(islice(synthetic(1), requests), 0, 1)
    settled = setting(dealt, **options)
    server = Server(store, settled, dealt.longest)
    for ids in dealt.mine:
        server.serve(ids)
    server.tally.take(store.stats())
    bins = np.stack([server.latencies[name].counts() for name in OPERATIONS])
    result = summarise(settled, server.tally.vector()[None, :], bins, seconds=2.0)
    check_counts(result, accesses=dealt.accesses, most_hits=dealt.prefix_hits)
    return result, dealt
