"""Signals, the rank that dies, and what is said about it: each part alone, without MPI."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cascade_mpi.workload import interrupt, peers, watch_program
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.peers import PeerGuard

LONG_S = 60.0  # what a test waits for at most: it never waits that long when all is well


class Process:
    """Stands for this process: keeps the exit status that it would have ended with."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.ended = threading.Event()

    def end(self, status: int) -> None:
        self.status = status
        self.ended.set()


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGREE_S", "CLOSE_S", "OTHERS_S"):
        monkeypatch.setattr(interrupt, name, 0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_the_replay_is_told_and_leaves_time(
    process: Process, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    came = threading.Event()
    with Interruption(speaks=True, end=process.end) as interruption:
        interruption.replaying()
        assert not interruption.stopped()
        os.kill(os.getpid(), number)
        while not interruption.signal:  # the thread is told through a pipe
            came.wait(0.001)
        assert interruption.stopped() == (number != signal.SIGUSR1)
        interruption.ending()
    assert (interruption.signal, process.status) == (number, None)
    said = capfd.readouterr().err
    assert said.startswith(f"cascade: {number.name} (")
    assert said.endswith("): ending with what is done so far; once more ends at once\n")


def test_before_the_replay_a_signal_ends_the_process(process: Process, capfd: pytest.CaptureFixture[str]) -> None:
    with Interruption(speaks=True, end=process.end):
        os.kill(os.getpid(), signal.SIGINT)
        assert process.ended.wait(LONG_S)
    assert process.status == 130
    assert "cascade: SIGINT (Ctrl-C): interrupted before the replay began" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
def test_ranks_that_do_not_meet_are_ended_and_rank_0_says_so(
    process: Process, capfd: pytest.CaptureFixture[str]
) -> None:
    tidied = threading.Event()
    with Interruption(speaks=True, end=process.end, before_end=tidied.set) as interruption:
        interruption.replaying()
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.ended.wait(LONG_S)
    assert (process.status, tidied.is_set()) == (143, True)
    said = capfd.readouterr().err
    assert "the launcher ends this job, or its time is up" in said
    assert said.count("not all ranks came to the next barrier") == 1


@pytest.mark.usefixtures("quick")
def test_other_ranks_end_in_silence(process: Process, capfd: pytest.CaptureFixture[str]) -> None:
    with Interruption(speaks=False, end=process.end) as interruption:
        interruption.replaying()
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.ended.wait(LONG_S)
    assert process.status == 143
    assert capfd.readouterr().err == ""


def test_each_stage_has_its_own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "monotonic", lambda: 100.0)
    deadlines = []
    for stage in ("starting", "replaying", "ending", "closed"):
        interruption = Interruption(speaks=True)
        if stage != "starting":
            getattr(interruption, stage)()
        interruption._received(signal.SIGINT)
        deadlines.append(interruption._deadline)
    assert deadlines == [100.0, 100.0 + interrupt.AGREE_S, 100.0 + interrupt.CLOSE_S, math.inf]


def test_when_the_time_is_nearly_up_a_round_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interrupt, "monotonic", lambda: now[0])
    interruption = Interruption(speaks=True)
    interruption.replaying()
    assert interruption.since() == 0
    interruption._received(signal.SIGUSR1)
    assert (interruption.signal, interruption.stopped()) == (signal.SIGUSR1, False)
    assert interruption._deadline == 100.0 + interrupt.ROUND_END_S + interrupt.AGREE_S
    now[0] += interrupt.ROUND_END_S - 0.1
    assert not interruption.stopped()
    now[0] += 0.1
    assert interruption.stopped()
    assert interruption.since() == interrupt.ROUND_END_S
    interruption.ending()
    interruption.draining(60.0, "writing")
    assert interruption._deadline == now[0] + 60 + interrupt.CLOSE_S


def test_a_drain_has_its_time_also_when_the_signal_comes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rank that hears of the end from others first."""
    monkeypatch.setattr(interrupt, "monotonic", lambda: 100.0)
    interruption = Interruption(speaks=True)
    interruption.replaying()
    interruption.ending()
    interruption.draining(60.0, "writing")
    interruption._received(signal.SIGUSR1)
    assert interruption._deadline == 160.0 + interrupt.CLOSE_S


def test_a_store_is_opened_though_the_time_is_nearly_up(process: Process, capfd: pytest.CaptureFixture[str]) -> None:
    """There is time to end in order; only then the exit status tells what to do."""
    came = threading.Event()
    with Interruption(speaks=True, end=process.end) as interruption:
        os.kill(os.getpid(), signal.SIGUSR1)
        while not interruption.signal:
            came.wait(0.001)
        assert interruption._deadline == math.inf
        interruption.replaying()
        assert interruption._deadline < math.inf
    assert process.status is None
    assert capfd.readouterr().err.startswith("cascade: SIGUSR1 (its time is nearly up): ending with what is done")


def test_a_process_that_ends_by_itself_is_not_ended_by_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with Interruption(speaks=True) as interruption:
            interruption.ignore()
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    Interruption(speaks=True).ignore()  # of a thread that catches nothing
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_at_once(process: Process, capfd: pytest.CaptureFixture[str]) -> None:
    with Interruption(speaks=True, end=process.end) as interruption:
        interruption.replaying()
        interruption.signal = signal.SIGINT  # the first one came long ago
        interruption._deadline = float("inf")
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.ended.wait(LONG_S)
    assert process.status == 130
    assert capfd.readouterr().err == "cascade: SIGTERM for the second time: ended at once, without a result\n"


def test_a_signal_that_is_sent_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.1, 101.0])
    interruption = Interruption(speaks=True)
    monkeypatch.setattr(interrupt, "monotonic", lambda: next(times))
    assert [interruption._received(signal.SIGINT) for _ in range(3)] == [False, False, True]


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in interrupt.CAUGHT]
    with Interruption(speaks=True):
        assert [signal.getsignal(number) for number in interrupt.CAUGHT] != before
    assert [signal.getsignal(number) for number in interrupt.CAUGHT] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_thread_that_is_not_the_main_one_catches_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    inside: list[object] = []

    def run() -> None:
        with Interruption(speaks=True) as interruption:
            inside.extend([signal.getsignal(signal.SIGINT), interruption.stopped()])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before, False]


# ---------------------------------------------------------------------------------------------- ranks that die


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until its stdin is closed."""
    started = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    yield started
    started.kill()
    started.communicate()


@pytest.mark.parametrize(("own", "first"), [(1, True), (7, False)])
def test_a_peer_that_dies_is_noticed(child: subprocess.Popen[bytes], own: int, first: bool) -> None:
    noticed: list[tuple[int, bool]] = []
    called = threading.Event()

    def lost(rank: int, is_first: bool) -> None:
        noticed.append((rank, is_first))
        called.set()

    pids = (
        {1: os.getpid(), 3: child.pid, 7: os.getppid()} if own == 1 else {1: os.getppid(), 3: child.pid, 7: os.getpid()}
    )
    with PeerGuard(own, pids, lost, patience_s=0.01):
        child.kill()
        assert called.wait(LONG_S)
    assert noticed == [(3, first)]


def test_peers_may_end_after_the_work(child: subprocess.Popen[bytes]) -> None:
    noticed: list[int] = []
    with PeerGuard(1, {1: os.getpid(), 3: child.pid}, lambda rank, first: noticed.append(rank), patience_s=0) as guard:
        guard.dismiss()
        child.kill()
        child.wait()
    assert noticed == []


def test_where_processes_cannot_be_watched_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int) -> int:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "pidfd_open", refused)
    with PeerGuard(1, {1: os.getpid(), 3: os.getppid()}, lambda rank, first: None) as guard:
        assert guard._thread is None
    assert peers._open(1, {3: 1}) == {}


def sentinel(tell: Callable[[subprocess.Popen[bytes]], None]) -> str:
    """What the sentinel's program says after it was told something and its stdin was closed."""
    program = [sys.executable, "-I", "-S", str(Path(watch_program.__file__))]
    started = subprocess.Popen(program, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdin is not None
    tell(started)
    _, said = started.communicate(timeout=LONG_S)
    assert started.returncode == 0
    return said.decode()


def test_the_sentinel_is_silent_when_it_is_dismissed() -> None:
    assert sentinel(lambda started: started.stdin.write(b"watch 0 %d\ndismissed\n" % os.getpid())) == ""


def test_the_sentinel_speaks_when_its_rank_is_gone() -> None:
    said = sentinel(lambda started: None)
    assert said.startswith("cascade: rank 0 has died")
    assert said.count("\n") == 1


def test_the_sentinel_names_the_rank_that_died(child: subprocess.Popen[bytes]) -> None:
    def tell(started: subprocess.Popen[bytes]) -> None:
        started.stdin.write(b"watch 0 %d\nwatch 5 %d\n" % (os.getpid(), child.pid))
        started.stdin.flush()
        child.kill()
        started.wait(LONG_S)

    assert sentinel(tell).startswith("cascade: rank 5 has died: the job is over")


def test_what_is_said_of_ranks_that_died_together() -> None:
    assert watch_program.said({0}).startswith("rank 0 has died")
    assert watch_program.said({0, 2}).startswith("a rank has died and the launcher has killed the others")
