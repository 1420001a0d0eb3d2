"""What the rounds of `crash` do: how the store is opened, who works on which keys, and who is killed where.

Covers the steps at which a rank can be killed by name, and the choice of rounds by a seed. Does not cover how a rank
gets there (`crash_steps`), what it does until then (`crash_job`), nor the verdict (`crash_judge`).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

KIB = 1 << 10
# Where a rank can be killed: a step, and how often it is passed at most before. A torn write is half written by then.
STEPS = {
    "append": 60, "appended": 60, "demote-swap": 30, "tombstone": 12, "sync": 6, "synced": 6,  # of `DiskTier`
    "create:before": 5, "create:after": 5,  # of a rank's own segments
    "header:before": 5, "header:torn": 5, "header:after": 5,
    "record:before": 60, "record:torn": 60, "record:after": 60,
    "footer:before": 3, "footer:torn": 3, "footer:after": 3,
    "fsync:before": 12, "fsync:after": 12,
    "rename:before": 3, "rename:after": 3,
    "sync-folder:before": 6, "sync-folder:after": 6,
    "flush:created": 3, "flush:data": 3, "flush:data-synced": 3, "flush:footer": 3, "flush:footer-synced": 3,
    "flush:renamed": 3, "flush:folder-synced": 3,  # of `SharedSegments`
    "shared:before": 3, "shared:torn": 3, "shared:after": 3,  # a rank's part of what all write together
    "compact:create:after": 1, "compact:record:torn": 6, "compact:fsync:after": 1, "compact:footer:torn": 1,
    "compact:rename:before": 1, "compact:rename:after": 1, "compact:sync-folder:before": 1,
    "compact:remove:before": 2, "compact:remove:after": 2, "compact:sync-folder:after": 2,
    "adopt:before": 1, "adopt:after": 1,  # the sync of what a killed job has left, at the next opening
}  # fmt: skip
_WHILE_CLOSING = ("record:torn", "footer:before", "footer:torn", "footer:after", "fsync:before", "fsync:after",
                  "rename:before", "rename:after", "sync-folder:before", "sync-folder:after")  # fmt: skip


class Kind(NamedTuple):
    """How the store of a directory is opened, and what its ranks do."""

    durability: str
    shared: bool  # every rank writes every key; else each key is one rank's
    syncs: bool  # not only flushes
    more: dict[str, Any] = {}  # noqa: RUF012 - settings of the store, never changed

    def __str__(self) -> str:
        keys = "keys of all ranks" if self.shared else "keys of one rank each"
        more = "".join(f", {name} {value}" for name, value in self.more.items())
        return f"{self.durability}, {keys}, {'sync and flush' if self.syncs else 'flush'}{more}"


KINDS = (
    Kind("demote", False, True),
    Kind("writeback", True, True),
    Kind("writethrough", False, True),
    Kind("none", False, False),
    Kind("demote", True, True, {"disk_collective": "on"}),
    Kind("writeback", False, False, {"disk_direct": "off"}),
    Kind("writethrough", True, True),
    Kind("demote", False, False),
)
_RANKS, _RANKS_WEIGHTS = (2, 3, 4), (6, 2, 2)
_ALONE_SHARE, _CLEAN_SHARE = 0.05, 0.04  # rounds on one rank, and rounds that nobody is killed in
# Of the kills: at a named step; at one of them while the store is closed; at any time while it is opened and read.
_STEP_SHARE, _CLOSE_SHARE, _OPEN_SHARE = 0.55, 0.06, 0.12


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when: at the n-th time that a rank passes a step, or after `seconds` of a phase."""

    who: str  # "one" rank, or "all"
    rank: int
    phase: str  # "step", "close" (a step, while the store is closed), "open" or "work"
    step: str = ""
    times: int = 1
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Local. For tables."""
        if self.phase == "close":
            return f"{self.step} (closing)"
        return self.step or f"any time ({self.phase})"

    @property
    def from_outside(self) -> bool:
        """Local. Whether the ranks do not do it themselves."""
        return not self.step


@dataclass(frozen=True)
class Round:
    """One job: it reads what the one before it has left, then works until it is killed, or its laps are over."""

    number: int  # from 1, in its directory
    ranks: int
    seed: int
    folder: str  # of the store and the journals
    keys: int
    shared: bool  # see `Kind`
    syncs: bool
    laps: int
    kill: Kill | None
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Local. For the ranks of the job."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Round:
        """Local. As it was written."""
        found = json.loads(path.read_text(encoding="utf-8"))
        kill = found.pop("kill")
        return cls(**found, kill=None if kill is None else Kill(**kill))

    @property
    def store(self) -> Path:
        """Local. The directory of the disk tier."""
        return Path(self.folder) / "store"

    def journal(self, rank: int) -> Path:
        """Local. Where a rank notes what it does."""
        return Path(self.folder) / f"{self.number:05d}-{rank}.journal"


class Planner:
    """The rounds of one run, chosen by its seed; the steps that were passed least come first."""

    def __init__(self, seed: int, keys: int, steps: Sequence[str] = ()) -> None:
        """`steps`: all kills at these; none: as the shares of this module say."""
        self._random, self._keys = random.Random(seed), keys
        self._steps = tuple(steps)
        self.reached: Counter[str] = Counter()  # kills that took place, by their names
        self._tried: Counter[str] = Counter()

    def round(self, number: int, folder: Path, kind: Kind, before: int) -> Round:
        """Local. The next round of a directory, on another number of ranks than the one before it."""
        draw = self._random
        ranks = before
        while ranks == before:
            ranks = 1 if draw.random() < _ALONE_SHARE else draw.choices(_RANKS, _RANKS_WEIGHTS)[0]
        kill = None if draw.random() < _CLEAN_SHARE and number > 1 else self._kill(number, ranks, kind)
        # Who is killed at any time works until then; who is to pass a step that it did not, ends at last.
        laps = 10_000 if kill is not None and kill.from_outside else 12
        return self._round(number, folder, kind, ranks, laps, kill)

    def last(self, number: int, folder: Path, kind: Kind, before: int) -> Round:
        """Local. A round that only reads what the last kill has left, and closes the store."""
        return self._round(number, folder, kind, 1 + before % 3, 0, None)

    def _round(self, number: int, folder: Path, kind: Kind, ranks: int, laps: int, kill: Kill | None) -> Round:
        seed = self._random.getrandbits(40)
        return Round(
            number, ranks, seed, str(folder), self._keys, kind.shared, kind.syncs, laps, kill, settings_of(kind)
        )  # fmt: skip

    def _kill(self, number: int, ranks: int, kind: Kind) -> Kill:
        draw = self._random
        who, rank, share = draw.choice(("one", "all")), draw.randrange(ranks), draw.random()
        if self._steps:
            share = 0.0
        if share < _STEP_SHARE:
            step = self._step(number, kind)
            rank = 0 if step.startswith("flush") else rank  # who brings the first record makes and seals the file
            return Kill(who, rank, "step", step, draw.randint(1, STEPS[step]))
        share -= _STEP_SHARE
        if share < _CLOSE_SHARE:
            return Kill(who, rank, "close", draw.choice(_WHILE_CLOSING))
        if share < _CLOSE_SHARE + _OPEN_SHARE:
            return Kill(who, rank, "open", seconds=draw.uniform(0, 0.4 + 0.3 * ranks))
        return Kill(who, rank, "work", seconds=draw.uniform(0, 0.35))

    def _step(self, number: int, kind: Kind) -> str:
        steps = [
            each for each in self._steps or STEPS
            if not (each.startswith("adopt") and number == 1)
            and not (each == "demote-swap" and kind.durability == "none")
            and not (each.startswith("shared") and kind.more.get("disk_collective") == "on")
            and not (each.startswith(("shared", "flush")) and kind.durability in ("writeback", "writethrough"))
        ]  # fmt: skip
        steps = steps or ["append"]  # the steps that were asked for cannot be reached here
        self._random.shuffle(steps)
        step = min(steps, key=lambda each: (self.reached[each], self._tried[each]))
        self._tried[step] += 1
        return step


def settings_of(kind: Kind) -> dict[str, Any]:
    """Local. How the store of a directory is opened.

    Arenas are small, so that blocks leave memory all the time; but where nothing is written by itself a block that
    leaves memory is gone, and nothing could be said about it.
    """
    return {
        "durability": kind.durability, "segment_bytes": 1 << 20, "index_blocks": 1024, "disk_blocks": 1024,
        "dram_bytes": (16384 if kind.durability == "none" else 768) * KIB, "copy_threads": 1, **kind.more,
    }  # fmt: skip
