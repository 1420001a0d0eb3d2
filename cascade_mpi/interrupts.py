"""Ctrl-C beside calls that change shared state: noted while one runs, delivered when it has ended.

Covers SIGINT in the main thread, from the first open store to the close of the last. Does not cover other signals,
other threads (Python runs no handler there), a handler that the program installs after it has opened a store (that one
is called at once), nor how a workload ends on signals (`workload.interrupt`).

A handler that raises does so between any two steps of a put: behind a compare-and-swap and before its note, say. No
`try` around such steps closes every gap, so the handler does not run there. It is whatever the program had, called when
the outermost call has ended; the block is stored then, though the caller gets no result. Calls that only read are
interrupted where they are. The call may itself wait, for a rank that computes and does not enter MPI: a second Ctrl-C
goes through at once when the first has waited for a while.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, TypeVar

AT_ONCE_S = 2.0  # a noted Ctrl-C has waited so long when the next one goes through; launchers send each twice at once

P = ParamSpec("P")
R = TypeVar("R")
_MAIN = threading.main_thread().ident


class _Handler:
    """What is installed for SIGINT: it calls what was there before, `previous`, now or when the call has ended.

    Each installation has its own: a program's handler in between may call the one that it found.
    """

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self.previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not _state.depth or _state.forcing:
            if not _state.forcing:
                _state.noted = None  # of one that was about to be delivered: it is, with this one
            self.previous(number, frame)
        elif _state.noted is None:
            _state.noted = _Noted(self, monotonic())
        elif monotonic() - _state.noted.since > AT_ONCE_S:
            first, _state.noted, _state.forcing = _state.noted.handler, None, True
            try:
                first.previous(number, frame)
                self.previous(number, frame)
            finally:
                _state.forcing = False


class _Noted(NamedTuple):
    handler: _Handler
    since: float


class _State:
    __slots__ = ("depth", "forcing", "lock", "noted", "stores")

    def __init__(self) -> None:
        self.depth = 0  # of calls that change shared state, one in the other, in the main thread
        self.noted: _Noted | None = None
        self.forcing = False  # a second Ctrl-C goes through: of handlers that call each other none notes it again
        self.stores = 0  # that are open
        self.lock = threading.Lock()  # of their number: stores may be opened and closed in any thread


_state = _State()


def uninterrupted(call: Callable[P, R]) -> Callable[P, R]:
    """Local. The same function, with a Ctrl-C that comes while it runs delivered when the outermost such has ended."""

    @wraps(call)
    def guarded(*args: P.args, **named: P.kwargs) -> R:
        if get_ident() != _MAIN:
            return call(*args, **named)
        state = _state
        state.depth += 1  # Python looks for signals at calls and jumps alone, so at none between this and the `try`
        try:
            return call(*args, **named)
        finally:
            state.depth -= 1
            if state.noted is not None and not state.depth:
                _deliver()

    return guarded


def _deliver() -> None:
    noted, _state.noted = _state.noted, None
    if noted is not None:
        noted.handler.previous(signal.SIGINT, sys._getframe(1))


def store_opened() -> None:
    """Local. A store is open: from now on Ctrl-C waits for calls, if this is the main thread.

    Not where SIGINT is ignored, ends the process (its default outside Python), or is handled in C.
    """
    with _state.lock:
        _state.stores += 1
    if get_ident() == _MAIN:
        present = signal.getsignal(signal.SIGINT)
        if callable(present) and not isinstance(present, _Handler):
            signal.signal(signal.SIGINT, _Handler(present))


def forked() -> None:
    """Local. This is a forked child: nobody is inside a call, and its only thread is the main one."""
    global _MAIN  # noqa: PLW0603  # read with every guarded call: a name of the module is the quickest
    _MAIN = get_ident()
    _state.depth, _state.noted, _state.forcing, _state.stores, _state.lock = 0, None, False, 0, threading.Lock()


def store_closed() -> None:
    """Local. With the last store the handler goes that was there before, unless the program has changed it since.

    One that is closed in another thread leaves it, and it passes every signal on.
    """
    with _state.lock:
        _state.stores -= 1
        last = not _state.stores
    if last and get_ident() == _MAIN:
        present = signal.getsignal(signal.SIGINT)
        if isinstance(present, _Handler):
            signal.signal(signal.SIGINT, present.previous)
