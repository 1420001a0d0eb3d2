"""Printing to a pipe whose reader may leave early, as `head -1` does: no error, and the exit status stays what it is.

Covers standard output of one process. Does not cover files that a command writes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class PipeConsole(Console):
    """A console that lets a broken pipe be seen; rich ends the program with status 1, which means a problem here."""

    def on_broken_pipe(self) -> None:
        """Local. Rich calls it within a print."""
        raise BrokenPipeError


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Local. Print within it; what nobody reads any more is dropped, also what is still buffered."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter's own flush at its end fails again
        os.close(nowhere)
