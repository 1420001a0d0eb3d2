"""The workload with blocks on disk: more than memory holds, over several jobs, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from cascade_mpi.commands import workload as workload_command
from cascade_mpi.disk.tier import DiskTier
from cascade_mpi.errors import ConfigError, DiskFullError
from cascade_mpi.traces import deal
from cascade_mpi.workload import Result, WorkloadOptions, replay, run_workload
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.keeping import Keeper

pytestmark = pytest.mark.mpi

TALKS, TURNS, BLOCK = 48, 3, 16 << 10
UNIQUE = TALKS * 2 * TURNS  # 4.5 MiB


def growing(comm: MPI.Intracomm, folder: Path) -> Path:
    """A trace of conversations that grow by two blocks a turn, one after the other.

    There are more of them than requests in a round, so that no two of a round share a block: ranks cannot race, and
    the hits of an endless cache are exactly those to expect.
    """
    path = folder / "trace.jsonl"
    if comm.rank == 0:
        lines = [
            json.dumps({
                "timestamp": 0, "input_length": 1024 * (turn + 1), "output_length": 1,
                "hash_ids": [2 * TURNS * talk + block for block in range(2 * turn + 2)],
            }) for turn in range(TURNS) for talk in range(TALKS)
        ]  # fmt: skip
        path.write_text("\n".join(lines))
    comm.Barrier()
    return path


def options(comm: MPI.Intracomm, folder: Path, **store: Any) -> WorkloadOptions:
    """A fourth of what the trace needs, in the memory of all ranks."""
    return WorkloadOptions(
        trace=growing(comm, folder), trace_format="mooncake", block_bytes=BLOCK, dram_total=UNIQUE * BLOCK // 4,
        state=folder / "state", grace=30.0,
        store={"copy_threads": 1, "disk": str(folder / "kv"), "segment_bytes": 1 << 20, **store},
    )  # fmt: skip


def endless_hits(given: WorkloadOptions) -> int:
    return deal(given.open_trace(), 0, 1).prefix_hits


class Signal:
    """Sends a signal to some ranks, as the meeting with that number begins."""

    def __init__(self, number: int, meeting: int, here: bool) -> None:
        self.number, self.meeting, self.here, self.met = number, meeting, here, 0

    def meet(self, real: Callable[..., Any], *args: Any) -> Any:
        self.met += 1
        if self.met == self.meeting and self.here:
            os.kill(os.getpid(), self.number)
            arrived = threading.Event()
            while not self.interruption.signal:  # a thread is told through a pipe
                arrived.wait(0.001)
            args = (self.interruption.signal, *args[1:3], self.interruption.stopped())
        return real(*args)


def run(
    comm: MPI.Intracomm, given: WorkloadOptions, monkeypatch: pytest.MonkeyPatch, sent: Signal | None = None,
    say: Any = None,
) -> Result:  # fmt: skip
    from cascade_mpi.workload.sampling import Meeting

    with Interruption(speaks=False) as interruption, monkeypatch.context() as patch:
        if sent is not None:
            sent.interruption = interruption
            real = Meeting.meet
            patch.setattr(Meeting, "meet", lambda self, *args: sent.meet(lambda *a: real(self, *a), *args))
        return run_workload(comm, given, say, interruption)


@pytest.mark.core
@pytest.mark.parametrize("durability", ["demote", "writeback"])
def test_with_a_fourth_of_the_memory_the_hits_are_those_of_an_endless_cache(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, durability: str
) -> None:
    given = options(comm, folder, durability=durability)
    result = run_workload(comm, given)
    assert_all(comm, result.setting.unique == UNIQUE, str(result.setting))
    assert_all(comm, result.hits == endless_hits(given), str(result))
    assert_all(comm, (result.corrupt, result.double_computes, result.refused) == (0, 0, 0), str(result))
    gets = {tier: row["gets"] for tier, row in result.tiers.items()}
    assert_all(comm, sum(gets.values()) == result.hits and gets["disk"] > result.hits / 4, str(gets))
    assert_all(comm, result.tiers["disk"]["bytes"] == gets["disk"] * BLOCK, str(result.tiers))
    assert_all(comm, result.tiers["disk"]["gbps"] > 0, str(result.tiers))
    disk = result.disk
    assert_all(comm, disk["demoted"] > 0 or disk["written"] > UNIQUE / 2, str(disk))
    assert_all(comm, disk["damaged"] == disk["errors"] == disk["lost"] == 0, str(disk))
    assert_all(comm, disk["held_bytes"] == disk["held"] * BLOCK >= UNIQUE * BLOCK * 3 // 4, str(disk))
    assert_all(comm, (result.warm, result.drained, result.parts) == (0, None, None), str(result))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_replay_that_is_ended_goes_on_as_if_it_had_not_been(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, number: int,
    everywhere: bool,
) -> None:  # fmt: skip
    """The signal reaches all ranks, or the last one alone, when a round has ended: no rank meets the others before."""
    monkeypatch.setattr(replay, "ROUND_S", 3600.0)
    given = options(comm, folder, durability="none")
    sent = Signal(number, 2, everywhere or comm.rank == comm.size - 1)
    first = run(comm, given, monkeypatch, sent)
    assert_all(comm, first.signal == number and 0 < first.replayed < TALKS * TURNS, str(first))
    assert_all(comm, first.drained is not None and first.drained["left"] == 0, str(first.drained))
    assert_all(comm, first.goes_on and first.parts is None, str(first))
    said: list[str] = []
    second = run(comm, given, monkeypatch, say=said.append)
    assert_all(comm, second.setting.first == first.replayed, f"{second.setting}, {first.replayed}")
    assert_all(comm, second.signal == 0 and second.drained is None, str(second))
    # With a quarter of the memory and "none" what was evicted before the signal is gone.
    assert_all(comm, 0 < second.warm <= first.unique and second.tiers["disk"]["gets"] > 0, str(second))
    whole = second.parts
    assert_all(comm, (whole["runs"], whole["requests"]) == (2, TALKS * TURNS), str(whole))
    assert_all(comm, whole["accesses"] == first.accesses + second.accesses, str(whole))
    assert_all(comm, whole["hits"] == first.hits + second.hits and whole["corrupt"] == 0, str(whole))
    from_disk = first.tiers["disk"]["gets"] + second.tiers["disk"]["gets"]
    assert_all(comm, whole["disk_gets"] == from_disk, f"{whole}, {from_disk} from disk")
    if comm.rank == 0:
        assert f"going on behind request {first.replayed}, where an earlier run has ended" in said
        assert any(line.startswith(f"warm start: {second.warm} blocks") for line in said)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_round_ends_before_the_job_does_if_there_is_time(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Ranks meet after each request here, so a signal comes in the middle of a round. SIGTERM leaves no time for it."""
    monkeypatch.setattr(replay, "ROUND_S", 0.0)
    given = options(comm, folder)
    first = run(comm, given, monkeypatch, Signal(number, 2, here=True))
    a_round = first.setting.window * comm.size
    assert_all(comm, (first.replayed == a_round) == (number == signal.SIGUSR1), f"{first.replayed} of {a_round}")
    second = run(comm, given, monkeypatch)
    begins = a_round if number == signal.SIGUSR1 else 0  # what was begun is served once more
    assert_all(comm, second.setting.first == begins, f"{second.setting}")
    assert_all(comm, second.replayed == TALKS * TURNS - begins, f"{second.replayed}")
    assert_all(comm, second.parts["requests"] == TALKS * TURNS, str(second.parts))
    assert_all(comm, second.parts["corrupt"] == second.double_computes == 0, str(second))
    if number == signal.SIGUSR1:
        assert_all(comm, second.parts["hits"] == endless_hits(given), str(second.parts))


def test_several_ends_on_several_numbers_of_ranks_come_to_the_same(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks, then rank 0 alone, then all: the hits of all three runs are those of one, and of an endless cache."""
    given = options(comm, folder, durability="demote")
    run(comm, given, monkeypatch, Signal(signal.SIGUSR1, 1, here=True))
    alone = comm.Split(0 if comm.rank == 0 else 1, comm.rank)
    if comm.rank == 0:
        result = run(alone, given, monkeypatch, Signal(signal.SIGUSR1, 2, here=True))
        assert result.setting.ranks == 1
        assert result.parts["runs"] == 2
    comm.Barrier()
    alone.Free()
    last = run(comm, given, monkeypatch)
    whole = last.parts
    assert_all(comm, (whole["runs"], whole["requests"], whole["corrupt"]) == (3, TALKS * TURNS, 0), str(whole))
    assert_all(comm, (whole["hits"], whole["computes"]) == (endless_hits(given), UNIQUE), str(whole))
    again = run(comm, given, monkeypatch)
    assert_all(comm, (again.replayed, again.accesses, again.signal) == (0, 0, 0), str(again))
    assert_all(comm, again.parts["hits"] == whole["hits"], str(again.parts))


def test_what_is_flushed_from_time_to_time_survives_a_kill(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory as a kill behind the second flush leaves it: the rest of the run writes nothing more there."""
    given = replace(options(comm, folder, durability="none"), flush_every=1e-6, dram_total=4 * UNIQUE * BLOCK)
    flush, save, flushed = Keeper.flush, Keeper.save, []

    def twice(self: Keeper) -> None:
        if len(flushed) < 2:
            flush(self)
        flushed.append(self)

    monkeypatch.setattr(Keeper, "flush", twice)
    monkeypatch.setattr(Keeper, "save", lambda self, *args: save(self, *args) if len(flushed) <= 2 else None)
    whole = run_workload(comm, given)
    monkeypatch.setattr(Keeper, "flush", flush)
    monkeypatch.setattr(Keeper, "save", save)
    assert_all(comm, len(flushed) > 3, f"{len(flushed)} flushes")
    result = run_workload(comm, given)
    assert_all(comm, 0 < result.setting.first < TALKS * TURNS, str(result.setting))
    known = 2 * result.setting.first  # each request has two blocks that none before it had
    assert_all(comm, result.warm == known and result.tiers["disk"]["gets"] > 0, f"{result.warm} of {known}")
    assert_all(comm, result.parts["hits"] == whole.hits == endless_hits(given), str(result.parts))


def test_warm_brings_blocks_into_memory_first(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path
) -> None:
    given = replace(options(comm, folder), state=None, flush_every=0, dram_total=4 * UNIQUE * BLOCK)
    cold = run_workload(comm, given)
    assert_all(comm, cold.disk["held"] == UNIQUE and cold.tiers["disk"]["gets"] == 0, str(cold))
    said: list[str] = []
    warm = run_workload(comm, replace(given, warm="all"), said.append)
    assert_all(comm, warm.hits == warm.accesses and warm.warm == UNIQUE, str(warm))
    assert_all(comm, warm.tiers["disk"]["gets"] == 0, str(warm.tiers))
    assert_all(comm, comm.rank != 0 or f"{UNIQUE} blocks, 4.5 MiB, were brought" in " ".join(said), str(said))


def test_a_disk_that_is_full_is_told_and_no_job_is_queued_for_it(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(self: DiskTier, cell: Any) -> bool:
        raise DiskFullError(28, "no space left on the device")

    monkeypatch.setattr(DiskTier, "write", full)
    given = options(comm, folder, durability="none")
    result = run(comm, given, monkeypatch, Signal(signal.SIGUSR1, 1, here=True))
    assert_all(comm, result.signal == signal.SIGUSR1 and not result.goes_on and result.drained is None, str(result))
    said = capsys.readouterr().err
    assert_all(comm, comm.rank != 0 or said.count("no space left on the device") == 1, said)


@pytest.mark.parametrize(("drained", "status"), [(True, 75), (False, 138)])
def test_the_exit_status_says_whether_to_run_it_again(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch,
    drained: bool, status: int,
) -> None:  # fmt: skip
    from cascade_mpi import workload

    given = options(comm, folder) if drained else replace(options(comm, folder), store={"copy_threads": 1}, grace=None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        made = run(comm, given, monkeypatch, Signal(signal.SIGUSR1, 1, here=True))
        monkeypatch.setattr(workload, "run_workload", lambda comm, options, **more: made)
        assert_all(comm, workload_command.run(given) == status, "exit status")
        ignored = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert_all(comm, ignored == drained, "srun must not end what ends by itself")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_state_of_another_trace_is_refused_everywhere(
    comm: MPI.Intracomm, assert_all: Callable[..., None], raises_all: Callable[..., str], folder: Path
) -> None:
    given = options(comm, folder)
    run_workload(comm, given)
    for wrong in (replace(given, block_bytes=2 * BLOCK), replace(given, requests=TALKS)):
        text = raises_all(comm, ConfigError, lambda wrong=wrong: run_workload(comm, wrong))
        assert_all(comm, "--state" in text, text)
