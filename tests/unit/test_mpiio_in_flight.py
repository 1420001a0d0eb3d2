"""Writes under way, without MPI: how much at a time, when their memory is free, and what becomes of those that fail."""

from __future__ import annotations

import errno

import pytest

from cascade_mpi.mpiio.in_flight import MOST_PATIENCE_S, InFlight


class Write:
    """A write whose end the test decides."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.result, self.freed = nbytes, None, False
        self.result: int | None

    def done(self) -> int | None:
        return self.result

    def free(self) -> None:
        assert self.result is not None
        assert not self.freed
        self.freed = True


class Target:
    """A file that counts."""

    def __init__(self, refusal: OSError | None = None) -> None:
        self.refusal = refusal
        self.writes: list[Write] = []
        self.repaired: list[tuple[int, bytes]] = []
        self.noted: list[OSError] = []

    def begin(self, offset: int, buffer: memoryview) -> Write:
        self.writes.append(Write(buffer.nbytes))
        return self.writes[-1]

    def repair(self, offset: int, buffer: memoryview) -> None:
        self.repaired.append((offset, bytes(buffer)))
        if self.refusal is not None:
            raise self.refusal

    def note(self, error: OSError) -> None:
        self.noted.append(error)


class Clock:
    """Time that goes on by pauses; `at` says what happens after so many of them."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, 0
        self.at: dict[int, tuple[Write, int]] = {}

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses += 1
        if self.pauses in self.at:
            write, nbytes = self.at[self.pauses]
            write.result = nbytes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def flight(clock: Clock) -> InFlight:
    return InFlight(1000, 2.0, clock=lambda: clock.now, pause=clock.pause)


def test_no_more_is_under_way_than_the_limit(flight: InFlight, clock: Clock) -> None:
    target = Target()
    assert flight.start(target, 0, memoryview(bytes(600))) == 1
    assert flight.start(target, 600, memoryview(bytes(400))) == 2
    assert (clock.pauses, flight.bytes, flight.waits) == (0, 1000, 0)
    clock.at = {3: (target.writes[1], 400), 5: (target.writes[0], 600)}
    assert flight.start(target, 1000, memoryview(bytes(300))) == 3
    assert (clock.pauses, flight.waits, flight.bytes) == (5, 1, 700 if flight.finished == 1 else 300)
    assert flight.poll() == 2
    assert flight.bytes == 300


def test_a_write_above_the_limit_goes_alone(flight: InFlight, clock: Clock) -> None:
    target = Target()
    flight.start(target, 0, memoryview(bytes(5000)))
    clock.at = {2: (target.writes[0], 5000)}
    flight.start(target, 5000, memoryview(bytes(5000)))
    assert (clock.pauses, flight.bytes) == (2, 5000)


def test_a_ticket_has_ended_when_all_before_it_have(flight: InFlight) -> None:
    target = Target()
    for at in range(3):
        flight.start(target, at, memoryview(b"x"))
    target.writes[1].result = target.writes[2].result = 1
    assert (flight.poll(), flight.started) == (0, 3)
    target.writes[0].result = 1
    assert flight.poll() == 3
    assert all(write.freed for write in target.writes)
    assert (target.repaired, flight.bytes) == ([], 0)


@pytest.mark.parametrize("nbytes", [0, 3, -1])
def test_a_short_write_is_made_again_and_its_error_found_out(flight: InFlight, nbytes: int) -> None:
    good, full = Target(), Target(OSError(errno.ENOSPC, "full"))
    for target in (good, full):
        flight.start(target, 7, memoryview(b"abcd"))
        target.writes[0].result = nbytes
    assert flight.poll() == 2
    assert good.repaired == full.repaired == [(7, b"abcd")]
    assert [error.errno for error in full.noted] == [errno.ENOSPC]
    assert good.noted == []
    assert flight.repaired == 2
    assert good.writes[0].freed


def test_a_write_that_never_ends_is_made_again_and_its_file_is_held(flight: InFlight, clock: Clock) -> None:
    target, other = Target(OSError(errno.EDQUOT, "quota")), Target()
    flight.start(target, 0, memoryview(b"abcd"))
    flight.start(other, 0, memoryview(b"ef"))
    other.writes[0].result = 2
    flight.drain()
    assert 2.0 <= clock.now < 2.1
    assert [error.errno for error in target.noted] == [errno.EDQUOT]
    assert (flight.finished, other.noted, other.repaired) == (2, [], [])
    assert flight.holds(target), "MPI may still read and write"
    assert not flight.holds(other)
    assert not target.writes[0].freed
    target.writes[0].result = 4
    assert not flight.holds(target)
    assert target.writes[0].freed


def test_a_disk_that_is_only_slow_gets_more_time(flight: InFlight, clock: Clock) -> None:
    target = Target()
    for _ in range(8):
        flight.start(target, 0, memoryview(b"x"))
        flight.drain()
    assert (flight.repaired, target.noted) == (8, [])
    assert flight.patience_s == MOST_PATIENCE_S


def test_a_drain_waits_for_one_file_alone(flight: InFlight, clock: Clock) -> None:
    first, second = Target(), Target()
    flight.start(first, 0, memoryview(b"x"))
    flight.start(second, 0, memoryview(b"y"))
    clock.at = {4: (first.writes[0], 1)}
    flight.drain(first)
    assert (clock.pauses, flight.bytes) == (4, 1)
