"""Ctrl-C beside calls that change shared state: noted, delivered, forced; whose handler is called, and when it goes.

Covers `interrupts` without a store. Does not cover what an interrupted store looks like (`tests/mpi/test_interrupted`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cascade_mpi import interrupts
from cascade_mpi.interrupts import AT_ONCE_S, store_closed, store_opened, uninterrupted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock to set, no open store, Python's own handler; and all as it was afterwards."""
    now = [100.0]
    monkeypatch.setattr(interrupts, "_state", interrupts._State())
    monkeypatch.setattr(interrupts, "monotonic", lambda: now[0])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield now
    signal.signal(signal.SIGINT, before)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def handler_of(calls: list[str], name: str, then: Callable[[], Any] | None = None) -> Callable[..., None]:
    def handler(number: int, frame: object) -> None:
        assert number == signal.SIGINT
        calls.append(name)
        if then is not None:
            then()

    return handler


def test_it_is_delivered_when_the_outermost_call_has_ended(clock: list[float]) -> None:
    steps: list[str] = []

    @uninterrupted
    def inner() -> None:
        ctrl_c()
        steps.append("inner")

    @uninterrupted
    def outer(fails: bool) -> None:
        inner()
        steps.append("outer")
        if fails:
            raise ValueError("of its own")

    store_opened()
    for fails in (False, True):
        with pytest.raises(KeyboardInterrupt) as caught:
            outer(fails)
        assert isinstance(caught.value.__context__, ValueError) == fails
    assert steps == ["inner", "outer"] * 2
    assert interrupts._state.depth == 0
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()  # outside of calls at once
    outer_again = uninterrupted(lambda: 7)
    assert outer_again() == 7  # nothing is delivered twice
    store_closed()


def test_a_second_one_goes_through_when_the_first_has_waited(clock: list[float]) -> None:
    reached = []

    @uninterrupted
    def call() -> None:
        ctrl_c()
        ctrl_c()  # some launchers send it twice
        clock[0] += AT_ONCE_S
        ctrl_c()
        reached.append("not long enough")
        clock[0] += 0.1
        ctrl_c()
        reached.append("too far")

    store_opened()
    with pytest.raises(KeyboardInterrupt):
        call()
    assert reached == ["not long enough"]
    assert (interrupts._state.depth, interrupts._state.noted) == (0, None)
    store_closed()


def test_a_program_s_own_handler_is_what_is_called(clock: list[float]) -> None:
    calls: list[str] = []
    mine = handler_of(calls, "mine")
    signal.signal(signal.SIGINT, mine)
    store_opened()
    store_opened()

    @uninterrupted
    def call(more: float) -> list[str]:
        ctrl_c()
        clock[0] += more
        ctrl_c()
        return list(calls)

    assert call(0) == []
    assert calls == ["mine"]
    assert call(AT_ONCE_S + 1) == ["mine"] * 3  # the first of the two is not lost
    store_closed()
    ctrl_c()
    assert len(calls) == 4
    assert signal.getsignal(signal.SIGINT) is not mine  # a store is open
    store_closed()
    assert signal.getsignal(signal.SIGINT) is mine


def test_a_handler_that_came_later_stays_and_may_call_the_one_before(clock: list[float]) -> None:
    calls: list[str] = []
    signal.signal(signal.SIGINT, handler_of(calls, "first"))
    store_opened()
    ours: Any = signal.getsignal(signal.SIGINT)
    later = handler_of(calls, "later", lambda: ours(signal.SIGINT, None))
    signal.signal(signal.SIGINT, later)
    store_closed()
    assert signal.getsignal(signal.SIGINT) is later
    store_opened()  # over it: there are two of ours by now, one before and one behind it

    @uninterrupted
    def call() -> list[str]:
        ctrl_c()
        return list(calls)

    assert call() == []
    assert calls == ["later", "first"]

    @uninterrupted
    def long() -> list[str]:
        ctrl_c()
        clock[0] += AT_ONCE_S + 1
        ctrl_c()
        return list(calls)

    assert long() == ["later", "first"] * 3
    store_closed()
    assert signal.getsignal(signal.SIGINT) is later


def test_calls_of_other_threads_hold_nothing_up(clock: list[float]) -> None:
    began, ended = threading.Event(), threading.Event()

    @uninterrupted
    def call() -> None:
        began.set()
        ended.wait(60)

    store_opened()
    thread = threading.Thread(target=call)
    thread.start()
    assert began.wait(60)
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    ended.set()
    thread.join()
    opened = threading.Thread(target=store_opened)  # a store of another thread changes no handler
    opened.start()
    opened.join()
    store_closed()
    store_closed()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("present", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_handler_of_python_stays(clock: list[float], present: Any) -> None:
    signal.signal(signal.SIGINT, present)
    store_opened()
    assert signal.getsignal(signal.SIGINT) is present
    store_closed()
    assert signal.getsignal(signal.SIGINT) is present
