"""What the rounds of `crash` do: how the store is opened, who works on which keys, and who is killed where.

Covers the steps at which a rank can be killed by name, and the choice of rounds by a seed. Does not cover how a rank
gets there (`crash_steps`), what it does until then (`crash_job`), nor the verdict (`crash_judge`).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KIB = 1 << 10
# Where a rank can be killed: a step, and how often it is passed before. A torn write is half written by then.
STEPS = {
    "append": 60, "appended": 60, "demote-swap": 30, "tombstone": 12, "sync": 6, "synced": 6,
    "create:before": 5, "create:after": 5,
    "header:before": 5, "header:torn": 5, "header:after": 5,
    "record:before": 60, "record:torn": 60, "record:after": 60,
    "footer:before": 3, "footer:torn": 3, "footer:after": 3,
    "fsync:before": 12, "fsync:after": 12,
    "rename:before": 3, "rename:after": 3,
    "sync-folder:before": 6, "sync-folder:after": 6,
    "adopt:before": 1, "adopt:after": 1,  # the sync of what a killed job has left, at the next opening
}  # fmt: skip
# A directory each: what is written by itself, and whether a key is written by one rank or by all.
KINDS = (
    ("demote", False), ("writeback", True), ("writethrough", False), ("none", False),
    ("demote", True), ("writeback", False), ("writethrough", True), ("none", True),
)  # fmt: skip
_RANKS, _RANKS_WEIGHTS = (2, 3, 4), (6, 2, 2)
_ALONE_SHARE, _CLEAN_SHARE = 0.06, 0.06  # rounds on one rank, and rounds that nobody is killed in
_STEP_SHARE, _OPEN_SHARE = 0.55, 0.15  # of the kills: at a named step; at any time while the store is opened and read


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when: at the n-th time that a rank passes a step, or after `seconds` of a phase."""

    who: str  # "one" rank, or "all"
    rank: int
    phase: str  # "step", "open" or "work"
    step: str = ""
    times: int = 1
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Local. For tables."""
        return self.step if self.phase == "step" else f"any time ({self.phase})"


@dataclass(frozen=True)
class Round:
    """One job: it reads what the one before it has left, then works until it is killed, or its laps are over."""

    number: int  # from 1, in its directory
    ranks: int
    seed: int
    folder: str  # of the store and the journals
    keys: int
    shared: bool  # every rank writes every key
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

    def __init__(self, seed: int, keys: int) -> None:
        self._random, self._keys = random.Random(seed), keys
        self.reached: Counter[str] = Counter()  # by step: kills that took place there
        self._tried: Counter[str] = Counter()

    def settings(self, kind: int) -> tuple[dict[str, Any], bool]:
        """Local. How the store of the kind-th directory is opened, and whether all ranks write all keys.

        Arenas are small, so that blocks leave memory all the time; but where nothing is written by itself a block that
        leaves memory is gone, and nothing could be said about it.
        """
        durability, shared = KINDS[kind % len(KINDS)]
        return {
            "durability": durability, "segment_bytes": 1 << 20, "index_blocks": 1024, "disk_blocks": 1024,
            "dram_bytes": 16384 * KIB if durability == "none" else 768 * KIB, "copy_threads": 1,
        }, shared  # fmt: skip

    def round(self, number: int, folder: Path, kind: int, before: int) -> Round:
        """Local. The next round of a directory, on another number of ranks than the one before it."""
        draw = self._random
        settings, shared = self.settings(kind)
        ranks = before
        while ranks == before:
            ranks = 1 if draw.random() < _ALONE_SHARE else draw.choices(_RANKS, _RANKS_WEIGHTS)[0]
        kill = None if draw.random() < _CLEAN_SHARE and number > 1 else self._kill(number, ranks, settings)
        seed = draw.getrandbits(40)
        # Who is killed at any time works until then; who is to pass a step that it did not, ends at last.
        laps = 10_000 if kill is not None and kill.phase != "step" else 12
        return Round(number, ranks, seed, str(folder), self._keys, shared, laps, kill, settings)

    def last(self, number: int, folder: Path, kind: int, before: int) -> Round:
        """Local. A round that only reads what the last kill has left, and closes the store."""
        settings, shared = self.settings(kind)
        ranks = 1 + before % 3
        return Round(number, ranks, self._random.getrandbits(40), str(folder), self._keys, shared, 0, None, settings)

    def _kill(self, number: int, ranks: int, settings: dict[str, Any]) -> Kill:
        draw = self._random
        who, rank, share = draw.choice(("one", "all")), draw.randrange(ranks), draw.random()
        if share < _STEP_SHARE:
            step = self._step(number, settings)
            return Kill(who, rank, "step", step, draw.randint(1, STEPS[step]))
        if share < _STEP_SHARE + _OPEN_SHARE:
            return Kill(who, rank, "open", seconds=draw.uniform(0, 0.4 + 0.3 * ranks))
        return Kill(who, rank, "work", seconds=draw.uniform(0, 0.35))

    def _step(self, number: int, settings: dict[str, Any]) -> str:
        steps = [
            each for each in STEPS
            if not (each.startswith("adopt") and number == 1)
            and not (each == "demote-swap" and settings["durability"] == "none")
        ]  # fmt: skip
        self._random.shuffle(steps)
        step = min(steps, key=lambda each: (self.reached[each], self._tried[each]))
        self._tried[step] += 1
        return step
