"""The pace of a timed replay, by a clock that only sleeping moves."""

from __future__ import annotations

import pytest

from cascade_mpi.workload.pacing import STEP_S, Pace
from cascade_mpi.workload.tally import Tally


class Clock:
    def __init__(self) -> None:
        self.now, self.sleeps, self.polls = 100.0, 0, 0

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= STEP_S
        self.now += seconds
        self.sleeps += 1

    def progress(self) -> None:
        self.polls += 1


def pace(clock: Clock, factor: float = 2.0) -> Pace:
    made = Pace(factor, clock.progress, lambda: clock.now, clock.sleep)
    made.begin(100.0)
    return made


def never() -> bool:
    return False


def test_a_request_waits_for_its_arrival_and_mpi_is_entered_meanwhile() -> None:
    clock, tally = Clock(), Tally()
    assert pace(clock).wait(0.2, 200.0, never, tally)
    assert clock.now == pytest.approx(100.1)
    assert clock.polls == clock.sleeps >= 0.1 / STEP_S
    assert tally.slept_ns == pytest.approx(1e8, rel=1e-6)
    assert tally.late_requests == 0


def test_a_request_that_is_due_later_is_left_for_another_round() -> None:
    clock, tally = Clock(), Tally()
    assert not pace(clock).wait(10.0, 100.05, never, tally)
    assert clock.now == pytest.approx(100.05, abs=2 * STEP_S)
    assert pace(clock).wait(0.0, 100.0, never, tally)  # one that is due is served also then
    assert tally.slept_ns == pytest.approx(5e7, rel=0.05)


def test_a_wait_ends_when_the_replay_is_stopped() -> None:
    clock = Clock()
    assert not pace(clock).wait(10.0, 200.0, lambda: clock.sleeps >= 7, Tally())
    assert clock.sleeps == 7


def test_lateness_is_counted_beyond_what_sleeping_costs() -> None:
    clock, tally = Clock(), Tally()
    for arrival, now in ((2.0, 101.005), (2.0, 101.1), (4.0, 102.5)):
        clock.now = now
        assert pace(clock).wait(arrival, 0.0, never, tally)
    assert (tally.late_requests, tally.slept_ns) == (2, 0)
    assert tally.late_ns == pytest.approx(6e8)
    assert tally.late_max_ns == pytest.approx(5e8)
