"""Random histories of all ranks at once on few keys, kills, and restarts on other numbers of ranks, against a model.

Ranks put, delete, read, sync, evict and flush without waiting for one another, by clocks that differ by minutes. Each
call is noted with its beginning and its end on the host's monotonic clock, which the ranks of one machine share.

What may be found: never a value with a later write that was acknowledged, and after a kill never one with a later write
that was acknowledged as durable; and something, if a write that counts so has none after it that could have taken it
away. "Later" is a call that began after the other had ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from disk_stores import damages, killed, leave_memory, opened
from mpi4py import MPI
from patterns import block

from cascade_mpi.disk import sequences
from cascade_mpi.store import Store

SEEDS = range(int(os.environ.get("TEST_DISK_HISTORIES", "2")))
KEYS, JOBS, OPS = 24, 3, 120


class Write(NamedTuple):
    """A put of a value, or with value 0 a delete."""

    key: int
    value: int
    rank: int
    began: int
    ended: int


class Read(NamedTuple):
    """What a get has found: a value, 0 for nothing."""

    key: int
    value: int
    began: int
    ended: int


class Sync(NamedTuple):
    """A call that makes durable what a rank has written; all ranks' if `rank` is None; all keys' if `key` is None."""

    rank: int | None
    key: int | None
    began: int
    ended: int


class History(NamedTuple):
    """What the calls of a rank, or of all, were."""

    writes: list[Write]
    reads: list[Read]
    syncs: list[Sync]

    def durable(self) -> set[Write]:
        """The writes that were acknowledged as durable: by a flush, or by their rank, if no other came between."""
        found = set[Write]()
        for sync in self.syncs:
            for write in self.writes:
                asked = sync.key in (None, write.key) or not write.value  # deletes always
                mine = sync.rank is None or (sync.rank == write.rank and not self._others(write, sync.began))
                if asked and mine and write.ended < sync.began:
                    found.add(write)
        return found

    def _others(self, write: Write, before: int) -> bool:
        """May another rank have replaced it before?"""
        same = (each for each in self.writes if each.key == write.key and each.rank != write.rank)
        return any(each.ended > write.began and each.began < before for each in same)

    def wrong_reads(self) -> list[str]:
        """What was read and cannot be right, where nothing is dropped but by a delete."""
        problems = []
        for read in self.reads:
            mine = [each for each in self.writes if each.key == read.key]
            past = [each for each in mine if each.ended < read.began]
            if read.value:
                source = next((each for each in mine if each.value == read.value), None)
                if source is None or source.began > read.ended:
                    problems.append(f"{read} is of no put")
                elif later := [each for each in past if each.began > source.ended]:
                    problems.append(f"{read} of {source}, older than {later[0]}")
                continue
            for put in past:
                if put.value and not any(not w.value and w.ended > put.began and w.began < read.ended for w in mine):
                    problems.append(f"{read} found nothing, but {put}")
        return problems

    def wrong_finds(self, found: dict[int, int], *, drops: bool) -> list[str]:
        """What a later job has found and cannot be right. `drops`: what left memory before a sync was gone."""
        problems, durable = [], self.durable()
        for key, value in found.items():
            mine = [each for each in self.writes if each.key == key]
            sure = [each for each in mine if each in durable]
            if value:
                source = next((each for each in mine if each.value == value), None)
                if source is None:
                    problems.append(f"key {key} has value {value}, of no put")
                elif later := [each for each in sure if each.began > source.ended]:
                    problems.append(f"key {key} has the value of {source}, older than {later[0]}")
                continue
            for put in [] if drops else sure:
                if put.value and not any(
                    other is not put and other.ended > put.began and not (other.value and other in durable)
                    for other in mine
                ):
                    problems.append(f"key {key} is not there, but {put} was durable")
        return problems


def bytes_of(value: int) -> np.ndarray:
    made = block(value, 8 + 37 * (value % 251))
    made[:8] = np.frombuffer(value.to_bytes(8, "little"), np.uint8)
    return made


def value_of(got: np.ndarray | None) -> int:
    """The value whose bytes these are, all of them."""
    if got is None:
        return 0
    value = int.from_bytes(got[:8].tobytes(), "little")
    assert np.array_equal(got, bytes_of(value)), f"bytes of no value, as of {value}"
    return value


def play(store: Store, rng: np.random.Generator, me: int, base: int, history: History) -> None:
    """Local. The calls of one rank, beside those of the others."""
    clock = time.monotonic_ns
    for number in range(OPS):
        key, kind, began = int(rng.integers(1, KEYS + 1)), rng.random(), clock()
        if kind < 0.34:
            value = base + number * 64 + me + 1
            assert store.put(key, bytes_of(value)).stored
            history.writes.append(Write(key, value, me, began, clock()))
        elif kind < 0.46:
            store.delete(key)
            history.writes.append(Write(key, 0, me, began, clock()))
        elif kind < 0.72:
            value = value_of(store.get(key))
            history.reads.append(Read(key, value, began, clock()))
        elif kind < 0.86:
            leave_memory(store, rng.integers(1, KEYS + 1, 6).tolist())
        elif kind < 0.92:
            store.sync()
            history.syncs.append(Sync(me, None, began, clock()))
        elif kind < 0.95:
            store.sync([key])
            history.syncs.append(Sync(me, key, began, clock()))
        elif kind < 0.97:
            store.protect(key)
            store.unprotect(key)
        else:
            store.progress()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_histories(
    seed: int, comm: MPI.Intracomm, folder: Path, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    level = ("demote", "writeback", "none")[seed % 3]
    away = int(np.random.default_rng([seed, comm.rank]).integers(-200, 200)) * 10**9
    monkeypatch.setattr(sequences, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + away))
    before: dict[int, int] = {}
    for job in range(JOBS):
        # All ranks, then the first half of them (one of one or two), then all again.
        part = comm.Split(job % 2 and comm.rank >= max(comm.size // 2, 1))
        plays = not job % 2 or comm.rank < max(comm.size // 2, 1)
        base = (job + 1) << 32
        history, found = History([], [], []), dict[int, int]()
        where = folder / f"job {job}"
        if plays:
            settings = {"durability": level, "dram_bytes": "96KiB", "verify_reads": seed % 2 == 1, "index_blocks": 2000}
            with opened(part, where, **settings) as store:
                began = time.monotonic_ns()
                part.Barrier()
                found = {key: value_of(store.get(key)) for key in range(1, KEYS + 1)}
                part.Barrier()
                assert_all(part, not before or found == before, f"job {job} found {found}, the one before {before}")
                start = [Write(key, value, -1, began, began + 1) for key, value in found.items()]  # durable, rule 17
                rng = np.random.default_rng([seed, job, comm.rank])
                for turn in range(2):
                    play(store, rng, comm.rank, base + turn * (1 << 20), history)
                    began = time.monotonic_ns()
                    if turn == 0:
                        store.flush()
                        history.syncs.append(Sync(None, None, min(part.allgather(began)), time.monotonic_ns()))
                copy = killed(part, where, folder / f"job {job + 1}")
                everything = History(*([each for some in part.allgather(x) for each in some] for x in history))
                everything.writes[:0] = start
                everything.syncs.append(Sync(None, None, began=start[0].ended + 1, ended=start[0].ended + 2))
                wrong = everything.wrong_reads() if level != "none" else []
                assert_all(part, not wrong, f"{len(wrong)} wrong reads, the first: {wrong[:1]}")
            with opened(part, copy, disk_mode="read", disk_blocks=512) as after:
                found = {key: value_of(after.get(key)) for key in range(1, KEYS + 1)}
                wrong = everything.wrong_finds(found, drops=level == "none")
                assert_all(part, not wrong, f"{len(wrong)} wrong finds after job {job}: {wrong[:2]}")
                part.Barrier()
            assert not damages(where)
        before = comm.bcast(found)
        part.Free()
