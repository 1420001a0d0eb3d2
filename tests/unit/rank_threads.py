"""Ranks as threads that take turns: a communicator without MPI, for code whose calls of all ranks are recorded.

Covers the calls that `cascade_mpi.mpiio` makes, also of a file that is written together, on the disk of
`recorded_disk`. One thread runs at a time, and which one is next after each call is drawn from a seed: so a run is the
same each time, and another seed gives another order of the ranks' writes and syncs. A rank that is late is late by
everything that the others can do without it. Does not cover errors of MPI, nor ranks that fail.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from recorded_disk import Disk, RecordingFile, RecordingFiles

from cascade_mpi.mpiio import agreement, patterns, shared
from cascade_mpi.segments import faults


class Turns:
    """Whose turn it is."""

    def __init__(self, ranks: int, seed: int) -> None:
        self._chance, self._wake = random.Random(seed), threading.Condition()
        self._waiting: dict[int, Callable[[], bool]] = dict.fromkeys(range(ranks), lambda: True)
        self._now, self._stuck = -1, False

    def begin(self) -> None:
        with self._wake:
            self._choose()

    def take(self, rank: int) -> None:
        """Wait for the turn."""
        with self._wake:
            while self._now != rank and not self._stuck:
                self._wake.wait()
            assert not self._stuck, "all ranks wait for each other, or one has failed and the others wait for it"
            self._waiting.pop(rank)

    def pause(self, rank: int, ready: Callable[[], bool] = lambda: True) -> None:
        """Somebody else's turn, perhaps; not before `ready`."""
        with self._wake:
            self._waiting[rank] = ready
            self._choose()
        self.take(rank)

    def end(self) -> None:
        with self._wake:
            self._choose()

    def _choose(self) -> None:
        able = [rank for rank, ready in sorted(self._waiting.items()) if ready()]
        self._stuck = self._stuck or (bool(self._waiting) and not able)
        self._now = self._chance.choice(able) if able else -1
        self._wake.notify_all()


class _World:
    """What the ranks have told each other."""

    def __init__(self, size: int, turns: Turns) -> None:
        self.size, self.turns = size, turns
        self.boards: dict[int, dict[int, tuple[str, Any]]] = defaultdict(dict)
        self.calls = [0] * size
        self.messages: dict[tuple[int, int, int], deque[bytes]] = defaultdict(deque)


class ThreadComm:
    """A communicator, as far as it is used."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world, self.rank, self.size = world, rank, world.size

    def exchange(self, what: str, value: Any) -> list[Any]:
        """What every rank has given to the same call."""
        world, call = self._world, self._world.calls[self.rank]
        world.calls[self.rank] += 1
        board = world.boards[call]
        board[self.rank] = what, value
        world.turns.pause(self.rank, lambda: len(board) == self.size)
        assert {each for each, _ in board.values()} == {what}, f"ranks are in different calls: {board}"
        return [board[rank][1] for rank in range(self.size)]

    def Dup(self) -> ThreadComm:
        self.exchange("Dup", None)
        return self

    def Split_type(self, kind: int, key: int) -> SimpleNamespace:
        """Every rank is a node."""
        self.exchange("Split_type", (kind, key))
        return SimpleNamespace(rank=0, Free=lambda: None)

    def Free(self) -> None:
        self.exchange("Free", None)

    def allreduce(self, value: Any) -> Any:
        return sum(self.exchange("allreduce", value))

    def Allreduce(self, _: Any, out: Any, op: Any) -> None:
        assert op == MPI.MIN
        out[:] = np.min(self.exchange("Allreduce", out.copy()), axis=0)

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self.exchange("bcast", value)[root]

    def Bcast(self, out: Any) -> None:
        out[:] = self.exchange("Bcast", out.copy())[0]

    def allgather(self, value: Any) -> list[Any]:
        return self.exchange("allgather", value)

    def Allgather(self, value: Any, out: Any) -> None:
        out[:] = np.concatenate(self.exchange("Allgather", value.copy()))

    def Allgatherv(self, value: Any, out: list[Any]) -> None:
        out[0][:] = np.concatenate([each.reshape(-1) for each in self.exchange("Allgatherv", value.copy())])

    def Send(self, value: Any, to: int) -> None:
        self.Isend([value.view(np.uint8), None], to, -1)

    def Recv(self, out: Any, source: int) -> None:
        self.Irecv([out.view(np.uint8), None], source, -1)()

    def Isend(self, value: list[Any], to: int, tag: int) -> Callable[[], None]:
        self._world.messages[self.rank, to, tag].append(bytes(value[0]))
        return lambda: None

    def Irecv(self, out: list[Any], source: int, tag: int) -> Callable[[], None]:
        messages = self._world.messages[source, self.rank, tag]

        def wait() -> None:
            self._world.turns.pause(self.rank, lambda: bool(messages))
            memoryview(out[0]).cast("B")[:] = messages.popleft()

        return wait

    @staticmethod
    def wait_all(requests: list[Callable[[], None]]) -> None:
        """`MPI.Request.Waitall`."""
        for request in requests:
            request()


class RankFiles(RecordingFiles):
    """The files of one rank, which is a node: after each call it may be another rank's turn."""

    def __init__(self, disk: Disk, rank: int, turns: Turns) -> None:
        super().__init__(disk, rank)
        self._turns = turns
        self.root, self.direct_writes = Path("/recorded"), False

    def open(self, path: str, *, direct: bool | None = None) -> RecordingFile:
        del direct
        return super().open(path)

    def join(self, path: str, *, direct: bool | None = None) -> RecordingFile:
        del direct
        return super().join(path)

    def explain(self, error: OSError, doing: str, path: str) -> OSError:
        return faults.explain(error, doing, path)

    def _record(self, kind: str, **fields: Any) -> None:
        super()._record(kind, **fields)
        self._turns.pause(self.node)


class _Created:
    """What `open_new` gives, of which only the end is used."""

    def __init__(self, file: RecordingFile) -> None:
        self.Close = file.close


class _TogetherFile:
    """A file that all ranks have open: each call's bytes are written by one of them, another one each time.

    Its sync does nothing: MPI's is not to be trusted.
    """

    def __init__(self, comm: ThreadComm, file: RecordingFile) -> None:
        self._comm, self._file, self._calls = comm, file, 0

    def Write_at_all(self, offset: int, buffer: list[Any], status: Any) -> None:
        every = self._comm.exchange("Write_at_all", (offset, bytes(buffer[0])))
        self._calls += 1
        if (self._file.inode + self._calls) % self._comm.size == self._comm.rank:
            for at, data in every:
                self._file.write_at(at, data)
        status.nbytes = buffer[1]
        self._comm.exchange("Write_at_all ends", None)

    def Sync(self) -> None:
        self._comm.exchange("Sync", None)

    def Close(self) -> None:
        self._comm.exchange("Close", None)
        self._file.close()


class _Status:
    nbytes = 0

    def Get_count(self, _: Any) -> int:
        return self.nbytes


def without_mpi(monkeypatch: pytest.MonkeyPatch, files_of: Callable[[int], RankFiles]) -> None:
    """Let `cascade_mpi.mpiio` work for ranks that are threads."""

    def opened(comm: ThreadComm, path: str, *_: Any) -> _TogetherFile:
        files = files_of(comm.rank)
        return _TogetherFile(comm, files.join(path.removeprefix(f"{files.root}/")))

    @contextmanager
    def info_of(_: Any) -> Iterator[None]:
        yield None

    request = SimpleNamespace(Waitall=ThreadComm.wait_all)
    monkeypatch.setattr(
        shared, "MPI",
        SimpleNamespace(BYTE=None, COMM_TYPE_SHARED=0, Intracomm=ThreadComm, Request=request),
    )  # fmt: skip
    monkeypatch.setattr(shared, "open_new", lambda files, path, _: _Created(files.create(path)))
    monkeypatch.setattr(shared, "taken_of", lambda _: {})
    monkeypatch.setattr(
        patterns, "MPI",
        SimpleNamespace(File=SimpleNamespace(Open=opened), FILE_NULL=None, MODE_WRONLY=0, BYTE=None, Status=_Status,
                        Exception=MPI.Exception),
    )  # fmt: skip
    monkeypatch.setattr(patterns, "taken_of", lambda _: {})
    monkeypatch.setattr(patterns, "info_of", info_of)
    monkeypatch.setattr(agreement, "MPI", SimpleNamespace(IN_PLACE=None, MIN=MPI.MIN))


def run_ranks(
    monkeypatch: pytest.MonkeyPatch, disk: Disk, ranks: int, seed: int, work: Callable[[ThreadComm, RankFiles], None]
) -> None:
    """`work` on every rank, to its end; raises what the first one that failed has met."""
    turns = Turns(ranks, seed)
    world = _World(ranks, turns)
    files = [RankFiles(disk, rank, turns) for rank in range(ranks)]
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            turns.take(rank)
            work(ThreadComm(world, rank), files[rank])
        except BaseException as error:
            errors.append(error)
        finally:
            turns.end()

    with monkeypatch.context() as patch:
        without_mpi(patch, files.__getitem__)
        threads = [threading.Thread(target=one, args=(rank,), name=f"rank {rank}") for rank in range(ranks)]
        for thread in threads:
            thread.start()
        turns.begin()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
