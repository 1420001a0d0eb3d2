"""`python -m bench dedup-share`: puts of which a share has contents that are stored already.

Covers the bytes that identity "content" saves, against what the dealt contents say it must, and the speed of its puts
beside the same puts with identity "key", in turns. Contents are dealt to names at random, over all ranks; every rank
then reads the names that the next one put and compares every byte, outside the timed part. Does not cover reads under
load (`torture`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench import rows
from bench.machine import machine, store_block
from bench.rows import Goal, Row
from cascade_mpi.layout import page_bytes_for
from cascade_mpi.namespaces import Identity, Namespace
from cascade_mpi.store import Store

_SAVED = Goal("ratio", ">=", 1.0)
SHARES = (10, 30, 50, 70)


class Filled(NamedTuple):
    """One filling of the store, over all ranks."""

    seconds: float  # of the slowest rank
    hits: int
    saved: int
    right: bool


def run(
    blocks: int,
    block_bytes: int,
    shares: Sequence[int],
    passes: int,
    json_file: Path | None = None,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
    hash_name: str = "blake3",
) -> int:
    """Collective. Measure and show; 1 if contents were wrong or less was saved than the contents say."""
    measured, about = measure(blocks, block_bytes, shares, passes, comm, hash_name)
    status = rows.finish(
        measured, about, f"{comm.size} ranks, {blocks} blocks each, {passes} passes", json_file, comm.rank
    )
    return status or int(any(row.get("saved_bytes") != row.get("expected_bytes") for row in measured))


def measure(
    blocks: int,
    block_bytes: int,
    shares: Sequence[int],
    passes: int,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
    hash_name: str = "blake3",
) -> tuple[list[Row], dict[str, Any]]:
    """Collective. The rows, the same on all ranks, and the machine that they were made on."""
    page = page_bytes_for(2 * blocks * block_bytes)
    arena = blocks * (-(-block_bytes // page) + 2) * page + (1 << 20)
    made: list[Row] = []
    with Store(comm, dram_bytes=arena, when_full="refuse", copy_threads=1) as store:
        about = comm.bcast(machine() | store_block(store))
        for share in shares:
            made += _rows(store, comm, blocks, block_bytes, share, passes, hash_name)
    for row in made:
        row.update(ranks=comm.size, passes=passes, machine=about)
    return made, about


def _rows(
    store: Store, comm: MPI.Intracomm, blocks: int, block_bytes: int, share: int, passes: int, hash_name: str
) -> list[Row]:
    """Collective. A row of saved bytes and one of speed."""
    dealt = _deal(blocks * comm.size, share)
    expected = (len(dealt) - len(set(dealt))) * block_bytes
    content: list[Filled] = []
    plain: list[Filled] = []
    order: list[tuple[Identity, list[Filled]]] = [("content", content), ("key", plain)]
    for number in range(passes):
        for identity, into in order[:: 1 - 2 * (number % 2)]:  # in turns: neither always finds the caches as they were
            into.append(_fill(store, comm, blocks, block_bytes, dealt, identity, hash_name))
    right = all(each.right for each in content + plain)
    total = blocks * block_bytes * comm.size
    saved = min(each.saved for each in content)
    more = {"contents_ok": right, "key": f"{share} % duplicates", "hash": hash_name}
    return [
        rows.make("dedup_saved", block_bytes, saved / 2**20, max(expected, 1) / 2**20, "MiB", _SAVED,
                  hit_rate=content[0].hits / len(dealt), saved_bytes=saved, expected_bytes=expected,
                  hits=content[0].hits, limit_what="what the dealt contents say", **more),
        rows.make("dedup_put", block_bytes, total / 1e9 / float(np.median([each.seconds for each in content])),
                  total / 1e9 / float(np.median([each.seconds for each in plain])), "GB/s", None,
                  hit_rate=content[0].hits / len(dealt), limit_what='the same puts with identity="key"', **more),
    ]  # fmt: skip


def _deal(names: int, share: int) -> list[int]:
    """The number of each name's content: `share` percent of them are another name's too."""
    chance = random.Random(share)
    unique = max(1, round(names * (100 - share) / 100))
    dealt = [*range(unique), *(chance.randrange(unique) for _ in range(names - unique))]
    chance.shuffle(dealt)
    return dealt


def _block(number: int, block_bytes: int) -> npt.NDArray[np.uint8]:
    words = np.uint64((number + 1) << 32) + np.arange(-(-block_bytes // 8), dtype=np.uint64)
    return words.view(np.uint8)[:block_bytes]


def _fill(
    store: Store, comm: MPI.Intracomm, blocks: int, block_bytes: int, dealt: list[int], identity: Identity,
    hash_name: str,
) -> Filled:  # fmt: skip
    """Collective. Put all names, compare what they read, and take everything out again."""
    space = Namespace("dedup-share", identity=identity, **({"hash": hash_name} if identity == "content" else {}))  # type: ignore[arg-type]
    mine = dealt[comm.rank * blocks : (comm.rank + 1) * blocks]
    data = [_block(number, block_bytes) for number in mine]
    before = store.stats()
    comm.Barrier()
    began = time.perf_counter()
    stored = [bool(store.put((comm.rank << 64) + at, each, namespace=space)) for at, each in enumerate(data)]
    seconds = time.perf_counter() - began
    comm.Barrier()
    after = store.stats()
    other, out, right = (comm.rank + 1) % comm.size, np.empty(block_bytes, np.uint8), all(stored)
    for at, number in enumerate(dealt[other * blocks : (other + 1) * blocks]):
        out[::512] = 0
        got = store.get((other << 64) + at, out, namespace=space)
        right &= got == block_bytes and np.array_equal(out, _block(number, block_bytes))
    store.check()
    store.delete_all(space)
    hits, saved = (after[name] - before[name] for name in ("dedup_hits", "dedup_saved_bytes"))
    return Filled(
        comm.allreduce(seconds, MPI.MAX), comm.allreduce(hits), comm.allreduce(saved),
        bool(comm.allreduce(int(right), MPI.MIN)),
    )  # fmt: skip
