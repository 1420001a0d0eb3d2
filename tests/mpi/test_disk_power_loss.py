"""A store's flush, checkpoint, sync, weight epochs and compaction, and then the power goes.

All ranks' calls on a real directory are put into one order and played on the disk of `power_loss`. The ranks' real
timing decides what lies between what; `tests/unit/test_flush_power_loss.py` draws that, for shared segments alone.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared_folder
from disk_stores import leave_memory, opened
from mpi4py import MPI

from cascade_mpi.errors import DamagedError
from cascade_mpi.keys import key_words
from cascade_mpi.namespaces import Namespace
from cascade_mpi.segments import checkpoints, epochs
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.recovery import latest, recover

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from logged_files import Call, CallLog, logged, played
from power_loss import Outcome, survey
from promises import Acknowledged, Attempt, acknowledged
from recorded_disk import Disk, RecordingFiles

KEYS, SIZES = 5, (40, 3000, 9000, 40_000)


class Job:
    """What one rank does, and notes."""

    def __init__(self, comm: MPI.Intracomm, store: Any, log: CallLog) -> None:
        self.comm, self.store, self.log, self.chance = comm, store, log, random.Random(comm.rank)
        self.open: list[tuple[Hashable, int]] = []
        self.version = 0
        self.weights = Namespace(f"weights of {comm.rank}")

    def tried(self, key: Hashable, value: bytes | None, version: int) -> None:
        self.log.add("note", Attempt(key, version, value))
        self.open.append((key, version))

    def promised(self) -> None:
        self.log.add("note", Acknowledged(tuple(self.open)))
        self.open.clear()

    def change(self) -> None:
        for _ in range(self.chance.choice((1, 2, 4))):
            self.version += 1
            key = f"{self.chance.randrange(KEYS)} of {self.comm.rank}"
            words = key_words(key, self.store._space(None).digest)
            if self.chance.random() < 0.25:
                self.tried(words, None, self.version)
                self.store.delete(key)
                continue
            value = self.chance.randbytes(self.chance.choice(SIZES))
            self.tried(words, value, self.version)
            self.store.put(key, np.frombuffer(value, np.uint8))
            if self.chance.random() < 0.3:
                leave_memory(self.store, [key])

    def run(self) -> None:
        for turn in range(5):
            self.change()
            if turn % 2:
                self.store.sync()
                self.promised()
                self.change()
            if turn == 2:
                self.tried("moment", b"1", 1)
                made = self.store.checkpoint("moment")
                assert made.tag == "moment"
            else:
                self.store.flush()
            self.promised()
            self.tried(self.weights.id, b"%d" % (turn + 1), turn + 1)
            assert self.store.bump_epoch(self.weights) == turn + 1
            self.promised()
        self.store.compact()
        self.promised()


@pytest.fixture(scope="module")
def calls() -> tuple[list[Call], bytes]:
    """Collective. What all ranks called, on every rank, and the store that it was."""
    comm, folder = MPI.COMM_WORLD, shared_folder()
    log = CallLog(comm.rank, folder / "lock")
    with pytest.MonkeyPatch.context() as patch:
        logged(patch, log)
        with opened(comm, folder / "store", disk_collective="off") as store:
            Job(comm, store, log).run()
            name = bytes.fromhex(store.report()["disk"]["store"])
    log.close()
    return [call for mine in comm.allgather(log.calls) for call in mine], name


def found_in(files: RecordingFiles, store: bytes) -> tuple[dict[Hashable, bytes], list[str]]:
    recovery = recover(files, store)
    places = {index.segment: index.place for index in recovery.indexes}
    found: dict[Hashable, bytes] = {}
    for row in latest(recovery.indexes).blocks:
        key, out = (int(row["key_hi"]), int(row["key_lo"])), bytearray(int(row["length"]))
        reader = open_segment(files, store, int(row["segment"]))
        try:
            reader.read(int(row["unit"]), places[int(row["segment"])], memoryview(out), key=key)
            found[key] = bytes(out)
        except DamagedError:
            continue
        finally:
            reader.close()
    found.update({namespace: b"%d" % epoch for namespace, epoch in epochs.noted(files).items()})
    found.update({each.tag: b"1" for each in checkpoints.checkpoints(files)})
    return found, recovery.problems


def surveyed(comm: MPI.Intracomm, disk: Disk, store: bytes, count: int, enough: int = 5) -> Outcome:
    """Collective. By rank 0; the others wait."""

    def judge(files: RecordingFiles, notes: tuple[Any, ...]) -> list[str]:
        found, problems = found_in(files, store)
        return acknowledged(found, notes) + [f"damage: {problem}" for problem in problems]

    outcome = survey(disk, judge, seed=1, count=count, enough=enough) if comm.rank == 0 else None
    given: Outcome = comm.bcast(outcome)
    return given


def test_nothing_that_a_store_acknowledged_is_lost(calls: tuple[list[Call], bytes], comm: MPI.Intracomm) -> None:
    disk = played(calls[0])
    outcome = surveyed(comm, disk, calls[1], 400)
    assert not outcome.bad, str(outcome)
    assert outcome.different > 200, str(outcome)
    assert {call.rank for call in calls[0]} == set(range(comm.size))


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("sync folder", "_seal"),
        ("sync folder", "note"),
        ("sync folder", "write"),
        ("sync", "write"),
        ("sync", "_settle"),
    ],
)
def test_a_sync_that_a_store_leaves_out_is_found(
    calls: tuple[list[Call], bytes], comm: MPI.Intracomm, kind: str, place: str
) -> None:
    """Not the sync of each rank's part of a flush: on one node that of the footer takes the data of all ranks along.

    `tests/unit/test_flush_power_loss.py` leaves it out with every rank on a node of its own.
    """
    disk = played(calls[0])
    whole = len(disk.trace)
    disk.trace = [event for event in disk.trace if (event.kind, event.note) != (kind, place)]
    assert len(disk.trace) < whole, "it is called elsewhere now: name that place"
    outcome = surveyed(comm, disk, calls[1], 2_000, enough=1)
    assert outcome.bad, str(outcome)
