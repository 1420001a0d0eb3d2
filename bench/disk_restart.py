"""`python -m bench disk-restart`: how long a store takes to open on a directory that has many blocks.

Covers 10^3 to 10^6 blocks in segments of as many records as blocks of 1 MiB make, on as many ranks as the job has:
seconds of `Store()` without a directory and with one, and what footers, exchange and index take of it. Footers are read
from the device: the directory was dropped from the page cache before. Afterwards every rank looks for all keys of its
share, and some blocks are read and compared. Does not cover reads (`disk`).

The directory is made at the level of segments, with payloads of 256 bytes and without syncs: only the restart is timed.
"""

from __future__ import annotations

import gc
import itertools
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bench import rows
from bench.disk import a_folder
from bench.disk_ways import file_system, forget
from bench.machine import machine, store_block
from bench.rows import Row
from cascade_mpi.kernels import fill as contents
from cascade_mpi.segments import identity
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.posix_file import PosixFile
from cascade_mpi.segments.records import Record
from cascade_mpi.store import Store

RECORDS = 255  # of a segment of 256 MiB with blocks of 1 MiB
_PAYLOAD = 256
_SEGMENT = RECORDS * 1024 + (48 << 10)  # with so many records of one unit, and their footer
_COMPARED = 200
_PARTS = ("footers", "exchange", "newest", "index")


def run(
    counts: Sequence[int], times: int, folder: Path | None, json_file: Path | None = None,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
) -> int:  # fmt: skip
    """Collective. Measure and show; 1 if a block was missing or wrong anywhere."""
    with a_folder(comm, folder) as root:
        measured, about = measure(counts, times, root, comm)
    title = f"{comm.size} ranks, medians of {times} restarts; {about['file_system']}"
    return rows.finish(measured, about, title, json_file, comm.rank)


def measure(counts: Sequence[int], times: int, root: Path, comm: MPI.Intracomm) -> tuple[list[Row], dict[str, Any]]:
    """Collective. The rows, the same on all ranks, and the machine that they were made on."""
    about = comm.bcast(machine() | {"file_system": file_system(root)})
    made: list[Row] = []
    for count in counts:
        made += _restarts(count, times, root / f"{count}", comm, about)
    for row in made:
        row.update(ranks=comm.size, machine=about)
    return made, about


def _restarts(count: int, times: int, root: Path, comm: MPI.Intracomm, about: dict[str, Any]) -> list[Row]:
    """Collective. Make a directory, open it several times, with and without it in turns."""
    if comm.rank == 0:
        make(root, count)
    comm.Barrier()
    without, whole, parts = [], [], []
    right, segments = True, 0
    settings = {"dram_bytes": 16 << 20, "index_blocks": max(2 * count, 4096), "copy_threads": 1}
    for number in range(times + 1):
        seconds, store = _opened(comm, settings)
        without.append(seconds)
        store.close()
        comm.Barrier()
        if comm.rank == 0:
            forget(root)
        seconds, store = _opened(comm, {**settings, "disk": str(root), "disk_mode": "read"})
        whole.append(seconds)
        found = store.report()["disk"]["found"]
        parts.append([found["took"][name] for name in _PARTS])
        segments = found["segments"]
        right &= comm.allreduce(found["blocks"]) == count and not found["unindexed"]
        if not number:
            about.update(comm.bcast(store_block(store)))
            right &= _all_there(store, count, comm)
        store.close()
    slowest = np.array(parts[1:])  # the first one warmed up
    comm.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    took = {f"{name}_s": float(median) for name, median in zip(_PARTS, np.median(slowest, axis=0), strict=True)}
    timed, bare = np.array(whole[1:]), np.array(without[1:])
    right = bool(comm.allreduce(int(right), MPI.MIN))
    return [
        rows.make(
            "disk_restart", _PAYLOAD, float(np.median(timed)), float(np.median(bare)), "s", None, contents_ok=right,
            key=f"{count:,} blocks, {segments:,} segments: "
            + ", ".join(f"{name} {took[f'{name}_s']:.3f}" for name in _PARTS),
            limit_what="Store() without a directory", blocks=count, segments=segments, hit_rate=1.0 if right else None,
            spread=f"{timed.min():.3f}..{timed.max():.3f} s", **took,
        )
    ]  # fmt: skip


def _opened(comm: MPI.Intracomm, settings: dict[str, Any]) -> tuple[float, Store]:
    """Collective. A new store, and the seconds of the slowest rank."""
    gc.collect()
    comm.Barrier()
    began = time.perf_counter()
    store = Store(comm, **settings)
    return comm.allreduce(time.perf_counter() - began, MPI.MAX), store


# ------------------------------------------------------------------------------------------------------- the directory


class _Quick(PosixFile):
    """A file that is not synced: it need not survive anything."""

    def sync(self) -> None:
        pass


class _QuickFiles(PosixFiles):
    def create(self, path: str, *, direct: bool | None = None) -> PosixFile:
        made = super().create(path, direct=False)
        made.__class__ = _Quick
        return made

    def sync_folder(self, path: str) -> None:
        pass


def make(root: Path, count: int) -> None:
    """Local. A directory with `count` blocks; block i has the key i and the contents `_payloads` says."""
    with _QuickFiles(root, make=True) as files:
        store = identity.ensure(files, secrets.token_bytes(identity.UUID_BYTES), time.time_ns())
        log = SegmentLog(files, store.uuid, itertools.count(), secrets.randbits(64), _SEGMENT, now=time.time_ns)
        for at in range(0, count, 4096):
            payloads = _payloads(np.arange(at, min(at + 4096, count), dtype=np.uint64))
            for number, payload in enumerate(payloads, at):
                hi, lo = _key(number)
                record = Record(
                    key_hi=hi, key_lo=lo, sequence=number + 1 << 12, length=_PAYLOAD, dtype=1, ndim=1, dim0=_PAYLOAD
                )
                log.append(record, payload.data)
        log.close()


def _key(number: int) -> tuple[int, int]:
    """Spread as digests are: the high word is the number, scrambled one to one."""
    mixed = (number + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return mixed ^ mixed >> 32, number


def _payloads(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    words = np.empty((len(numbers), _PAYLOAD // 8), np.uint64)
    contents.fill(words, numbers, int(numbers[0]))
    return words.view(np.uint8)


def _all_there(store: Store, count: int, comm: MPI.Intracomm) -> bool:
    """Local. Are all keys of this rank's share there, and has every n-th block what was written?"""
    mine = np.array([_key(number) for number in range(comm.rank, count, comm.size)], np.uint64).reshape(-1, 2)
    there = bool(store.contains_many(mine).all()) if len(mine) else True
    chosen = np.arange(comm.rank, count, max(1, count // _COMPARED), dtype=np.uint64)
    outs = list(np.zeros((len(chosen), _PAYLOAD), np.uint8))
    got = store.get_many(np.array([_key(number) for number in chosen.tolist()], np.uint64), outs)
    return (
        there
        and got == [_PAYLOAD] * len(outs)
        and all(np.array_equal(out, _payloads(chosen[at : at + 1])[0]) for at, out in enumerate(outs))
    )
