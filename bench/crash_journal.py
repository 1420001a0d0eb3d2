"""The journals of `crash`: what each rank has begun, and what it was told had been done.

Covers a file of lines that outlives a SIGKILL, as all that was written to a file does, and reading it. Does not cover
what follows from it (`crash_judge`). Times are those of the machine's monotonic clock, the same for all its processes:
the ranks of one job must be on one machine.

A line is noted before a call begins and another one after it has returned. A killed rank's last line may be cut short:
then what it tells had not begun, or is not known to have ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEVER = 1 << 62  # ns: the end of what was not told to have ended


@dataclass(eq=False)
class Op:
    """A put or a delete of a key."""

    key: int
    value: int  # the stamp of what was put; 0: a delete
    rank: int
    begin: int
    end: int = NEVER
    refused: bool = False
    due: int = NEVER  # when the sync began that promises it (`crash_judge`)


@dataclass(eq=False)
class Sync:
    """A sync or flush of one rank; `end` is NEVER if it is not known to have returned."""

    rank: int
    begin: int
    end: int = NEVER
    flush: int = 0  # the number of the flush, from 1; 0: a sync


@dataclass
class Notes:
    """What one job has noted."""

    pids: list[int] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)  # names of shared memory that MPI has made
    seen: list[tuple[int, int, str]] = field(default_factory=list)  # key, stamp found after the restart, by whom
    working: int = 0  # ranks that have seen all
    ops: list[Op] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what a rank itself saw to be wrong
    step: str = ""  # at which a rank has killed itself
    counts: dict[str, int] = field(default_factory=dict)
    ended: int = 0  # ranks that have closed the store


class Journal:
    """The journal that a rank writes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)

    def note(self, *fields: Any) -> None:
        """Local. A line, handed to the system when this returns."""
        os.write(self._file, (json.dumps(fields) + "\n").encode())

    def begin(self, kind: str, *fields: Any) -> None:
        """Local. A call begins now."""
        self.note(kind, time.monotonic_ns(), *fields)

    def done(self, refused: list[int] | None = None) -> None:
        """Local. What has begun since the last `done` has returned; the numbers of those that were refused."""
        self.note("done", time.monotonic_ns(), refused or [])


def read(paths: list[Path]) -> Notes:
    """Local. The journals of a job, by rank; those that were never begun are left out."""
    notes = Notes()
    for rank, path in enumerate(paths):
        if path.exists():
            _read(notes, rank, path)
    return notes


def lines(path: Path) -> Iterator[list[Any]]:
    """Local. The whole lines of a journal."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)


def _read(notes: Notes, rank: int, path: Path) -> None:
    begun: list[Op | Sync] = []
    flushes = 0
    for kind, *rest in lines(path):
        if kind == "put":
            begun.append(Op(rest[1], rest[2], rank, rest[0]))
            notes.ops.append(begun[-1])
        elif kind == "delete":
            begun.append(Op(rest[1], 0, rank, rest[0]))
            notes.ops.append(begun[-1])
        elif kind in ("sync", "flush"):
            flushes += kind == "flush"
            begun.append(Sync(rank, rest[0], flush=flushes if kind == "flush" else 0))
            notes.syncs.append(begun[-1])
        elif kind == "done":
            for number, each in enumerate(begun):
                each.end = rest[0]
                if number in rest[1]:
                    each.refused = True
            begun = []
        elif kind == "seen":
            notes.seen.append((rest[0], rest[1], f"rank {rank}"))
        elif kind == "pid":
            notes.pids.append(rest[0])
            notes.shared += rest[1]
        elif kind == "work":
            notes.working += 1
        elif kind == "wrong":
            notes.wrong.append(f"rank {rank}: {rest[0]}")
        elif kind == "step":
            notes.step = rest[0]
        elif kind == "end":
            notes.ended += 1
            for name, by in rest[0].items():
                notes.counts[name] = notes.counts.get(name, 0) + by
