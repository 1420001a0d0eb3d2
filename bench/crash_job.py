"""`mpiexec -n R python -m bench.crash_job FILE`: a job of `crash`, which works until it is killed.

Covers what a rank does: open the store, see what the job before has left, put, replace, delete, read, sync and flush,
and note it. Does not cover which round it is (`crash_plan`), nor the verdict (`crash_judge`).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.crash_journal import Journal
from bench.crash_plan import KIB, Round
from bench.crash_steps import SteppingFiles, Trap
from bench.stamped import LINE, stamp, stamp_of, value, warm

if TYPE_CHECKING:
    from mpi4py import MPI

    from cascade_mpi.store import Store

_LAP = 24  # calls between two that all ranks make together
HURRY = 8  # laps after which the next time that a step is passed will do
_SIZES = ((64, 4 * KIB), (4 * KIB, 48 * KIB), (64 * KIB, 128 * KIB), (264 * KIB, 320 * KIB))  # the last have a segment
_SIZES_WEIGHTS = (40, 40, 16, 4)
_CALLS = ("put", "put_many", "delete", "delete_many", "get", "get_many", "sync", "sync_some", "prefetch")
_CALLS_WEIGHTS = (40, 5, 12, 2, 20, 3, 6, 3, 1)


def main(arguments: Sequence[str]) -> int:
    """Collective. One round."""
    round = Round.read(Path(arguments[0]))
    from mpi4py import MPI

    from cascade_mpi.disk import directory
    from cascade_mpi.segments.files import PosixFiles
    from cascade_mpi.store import Store

    comm = MPI.COMM_WORLD
    assert comm.size == round.ranks, f"{comm.size} ranks, {round.ranks} were to be started"
    journal = Journal(round.journal(comm.rank))
    pids = comm.allgather(os.getpid())
    trap = Trap(round.kill, comm.rank, pids, round.seed, lambda step: journal.note("step", step))
    # Before the store is opened: what it does to files then is part of the write path.
    directory.PosixFiles = lambda *args, **more: SteppingFiles(PosixFiles(*args, **more), trap)  # type: ignore
    journal.note("pid", os.getpid(), _shared_memory())
    with Store(comm, disk=str(round.store), **round.settings) as store:
        _set_traps(store, trap)
        worker = Worker(store, comm, round, journal)
        worker.see()
        comm.Barrier()
        store.check()
        journal.note("work")
        for lap in range(round.laps):
            if lap == HURRY:
                trap.hurry()
            worker.lap(lap)
        if round.laps and round.kill is None:
            comm.Barrier()
            store.check()
        counts = {
            name: by for name, by in store.stats()["disk"].items()
            if name in ("demoted", "cleaned", "promoted", "written", "tombstones", "gets", "damaged", "errors")
        }  # fmt: skip
        trap.closing()
    journal.note("end", counts)
    return 0


def _set_traps(store: Store, trap: Trap) -> None:
    """Local. Those of the parts that are made when a store is opened; its files have theirs already."""
    disk = store._disk
    assert disk is not None
    assert disk.shared is not None
    disk.tier.step = trap.hit
    disk.shared._step = lambda step: trap.hit(f"flush:{step}")
    compact = store._compact

    def trapped(*args: Any) -> Any:
        with trap.within("compact"):
            return compact(*args)

    store._compact = trapped  # type: ignore[method-assign]


class Worker:
    """What one rank does in a round."""

    def __init__(self, store: Store, comm: MPI.Intracomm, round: Round, journal: Journal) -> None:
        warm()
        self._store, self._comm, self._round, self._journal = store, comm, round, journal
        self._random = random.Random(round.seed * 64 + comm.rank)
        self._together = random.Random(round.seed)  # the same on all ranks
        self._mine = [key for key in range(round.keys) if round.shared or key % comm.size == comm.rank]
        self._has: dict[int, int] = {}  # stamps of keys that no other rank writes
        self._version = 0
        self._rooms = [np.empty(_SIZES[-1][1] // 8, np.uint64) for _ in range(4)]

    # ------------------------------------------------------------------------------------------ after the restart

    def see(self) -> None:
        """Local. Note what the store has: each key is read by one rank, some by all, and one's own by whom it is."""
        round, rank, size = self._round, self._comm.rank, self._comm.size
        keys = [
            key for key in range(round.keys)
            if (key + round.number) % size == rank or (key + round.number) % 8 == 0
            or (not round.shared and key % size == rank)
        ]  # fmt: skip
        self._random.shuffle(keys)
        for key in keys:
            found = self._stamp(key, self._store.get(_name(key)))
            self._journal.note("seen", key, found)
            if not round.shared:
                self._has[key] = found

    # ------------------------------------------------------------------------------------------------------- work

    def lap(self, number: int) -> None:
        """Collective. Some calls of each rank, then at times one that all make together."""
        for _ in range(_LAP):
            call = self._random.choices(_CALLS, _CALLS_WEIGHTS)[0]
            if call in ("sync", "sync_some") and not self._round.syncs:
                call = "get"
            getattr(self, f"_{call}")()
        share = self._together.random() * (1 if number < HURRY else 0.35)
        if share < 0.25:
            self._begun("flush")
            if share < 0.05:
                self._store.checkpoint(f"lap-{number % 2}")
            else:
                self._store.flush()
            self._journal.done()
        elif share < 0.35:
            self._begun("flush")
            self._store.compact()
            self._journal.done()
        elif share < 0.4:
            self._store.warm(budget=256 * KIB)

    def _put(self) -> None:
        ((key, stamped, data),) = self._new(1)
        self._begun("put", key, stamped)
        refused = self._store.put(_name(key), data).refused
        self._done([(key, stamped)], [0] if refused else [])

    def _put_many(self) -> None:
        new = self._new(len(self._rooms))
        for key, stamped, _ in new:
            self._begun("put", key, stamped)
        results = self._store.put_many([_name(key) for key, _, _ in new], [data for _, _, data in new])
        refused = [number for number, each in enumerate(results) if each.refused]
        self._done([(key, stamped) for key, stamped, _ in new], refused)

    def _delete(self) -> None:
        key = self._random.choice(self._mine)
        self._begun("delete", key)
        self._store.delete(_name(key))
        self._done([(key, 0)], [])

    def _delete_many(self) -> None:
        keys = self._random.sample(self._mine, 3)
        for key in keys:
            self._begun("delete", key)
        self._store.delete_many([_name(key) for key in keys])
        self._done([(key, 0) for key in keys], [])

    def _get(self) -> None:
        key = self._random.randrange(self._round.keys)
        self._look(key, self._store.get(_name(key)))

    def _get_many(self) -> None:
        keys = self._random.sample(range(self._round.keys), 4)
        for key, array in zip(keys, self._store.get_many([_name(key) for key in keys]), strict=True):
            self._look(key, array)

    def _prefetch(self) -> None:
        self._store.prefetch([_name(key) for key in self._random.sample(range(self._round.keys), 2)]).result()

    def _sync(self) -> None:
        self._begun("sync")
        self._store.sync()
        self._journal.done()

    def _sync_some(self) -> None:
        """With keys it promises these blocks alone, and all deletes: it is not noted, so that nothing is expected."""
        self._store.sync([_name(key) for key in self._random.sample(self._mine, 2)])

    # ------------------------------------------------------------------------------------------------------------

    def _new(self, n: int) -> list[tuple[int, int, Any]]:
        """Keys to be put, with stamps that nobody has used, and their values."""
        made = []
        for room, key in zip(self._rooms, self._random.sample(self._mine, n), strict=False):
            self._version += 1
            stamped = stamp(self._round.number << 3 | self._comm.rank, self._version)
            low, high = self._random.choices(_SIZES, _SIZES_WEIGHTS)[0]
            nbytes = self._random.randrange(low, high + 1, LINE)
            made.append((key, stamped, value(room, key, stamped, nbytes)))
        return made

    def _begun(self, kind: str, *fields: Any) -> None:
        self._journal.begin(kind, *fields)

    def _done(self, written: Sequence[tuple[int, int]], refused: list[int]) -> None:
        self._journal.done(refused)
        if not self._round.shared:
            for number, (key, stamped) in enumerate(written):
                if number not in refused:
                    self._has[key] = stamped
                else:
                    self._has.pop(key, None)

    def _look(self, key: int, array: Any) -> None:
        found = self._stamp(key, array)
        due = self._has.get(key, found) if key in self._mine else found
        if found < 0 or found != due:
            self._journal.note("wrong", f"key {key}: a get found {found:x}, due is {due:x}")

    def _stamp(self, key: int, array: Any) -> int:
        return 0 if array is None else stamp_of(array, key)


def _name(key: int) -> str:
    return f"crash {key}"


def _shared_memory() -> list[str]:
    """Names of the shared memory that MPI has made for this job: a killed job leaves them."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if " /dev/shm/" in line}
    return sorted(path for path in paths if not path.endswith("(deleted)"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
