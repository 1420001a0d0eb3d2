"""The verdict of `crash`: which blocks a restart may find, given what had been acknowledged before the kill.

Covers each key as a register that is written by several ranks, what a sync or flush has promised, and what a restart
found. Does not cover the journals (`crash_journal`).

What was found after a restart is durable (rule 17 of `docs/disk.md`), and each key begins anew with it. A write is
*promised* when the sync or flush has returned that its rank began after it; with "writethrough", when it has returned
itself. A sync promises nothing of what another rank had replaced before it began (rule 16). So of a write W, of all
that may have replaced it before its sync, of all that may have replaced those before theirs, and so on, one is durable
if all of them are promised; and if one is not, nothing is said of W. What may be found is what was not certainly
replaced before all of these began. Where only one rank writes a key this is: the last promised write, or a later one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.crash_journal import NEVER, Notes, Op, Sync
from bench.stamped import unstamp

ABSENT = 0
LONG_AGO = -1


class Violation(NamedTuple):
    """A key that has what it must not have."""

    kind: str  # lost, wrong, resurrected
    key: int
    text: str


class Register:
    """One key: what the last restart has found, and what was begun since."""

    def __init__(self) -> None:
        self.base, self.ops = ABSENT, list[Op]()

    def begin_anew(self, found: int) -> None:
        """Local. A restart has found this, and it is durable."""
        self.base, self.ops = found, []

    def may_have(self, found: int) -> bool:
        """Local. Whether a restart may find it."""
        least = max((_since(self.ops, op) for op in self.ops), default=LONG_AGO)
        ends = [LONG_AGO] if found == self.base else []
        for op in self.ops:
            if op.refused and found in (op.value, ABSENT):
                ends.append(NEVER)  # it says that it has changed nothing: it is believed to have done anything
            elif found == op.value:
                ends.append(op.end)
        return any(end >= least for end in ends)

    def promised(self) -> list[Op]:
        """Local. The writes of which something is promised."""
        return [op for op in self.ops if _since(self.ops, op) > LONG_AGO]


def _since(ops: Sequence[Op], op: Op) -> int:
    """Before when what a restart finds has not been replaced for certain; LONG_AGO: a write promises nothing.

    It is when the first of those began of which one is durable.
    """
    these, new, first = {id(op)}, [op], op.begin
    while new:
        one = new.pop()
        if one.due == NEVER:
            return LONG_AGO
        first = min(first, one.begin)
        for other in ops:
            if id(other) not in these and other.end > one.begin and other.begin < one.due:
                these.add(id(other))
                new.append(other)
    return first


def promise(ops: Iterable[Op], syncs: Iterable[Sync], *, writethrough: bool) -> None:
    """Local. Set `due` of the writes of one job: when the sync began that promises them."""
    syncs = list(syncs)
    flushed = {sync.flush for sync in syncs if sync.flush and sync.end < NEVER}  # by one is by all
    begins: dict[int, list[int]] = defaultdict(list)
    for sync in syncs:
        if sync.end < NEVER or sync.flush in flushed:
            begins[sync.rank].append(sync.begin)
    for op in ops:
        if op.end < NEVER and not op.refused:
            op.due = op.end if writethrough else min((each for each in begins[op.rank] if each > op.end), default=NEVER)


class Judge:
    """All keys of one directory, from round to round."""

    def __init__(self, keys: int, *, writethrough: bool) -> None:
        self._registers = [Register() for _ in range(keys)]
        self._writethrough = writethrough
        self.counts: Counter[str] = Counter()

    def round(self, notes: Notes) -> list[Violation]:
        """Local. Judge what a job has found, then take over what it has done."""
        found = self._judge(notes.seen)
        if notes.ops:
            seen = {key for key, _, _ in notes.seen}
            assert len(seen) == len(self._registers), "a job worked before all keys were seen"
            promise(notes.ops, notes.syncs, writethrough=self._writethrough)
            for op in notes.ops:
                self._registers[op.key].ops.append(op)
            self.counts["acknowledged"] += sum(op.end < NEVER and not op.refused for op in notes.ops)
            self.counts["under way"] += sum(op.end == NEVER for op in notes.ops)
            self.counts["refused"] += sum(op.refused for op in notes.ops)
            for register in self._registers:
                promised = register.promised()
                self.counts["promised blocks"] += sum(op.value != ABSENT for op in promised)
                self.counts["promised deletes"] += sum(op.value == ABSENT for op in promised)
        return found

    def _judge(self, seen: list[tuple[int, int, str]]) -> list[Violation]:
        found: list[Violation] = []
        first: dict[int, int] = {}
        for key, stamp, who in seen:
            if key in first and stamp != first[key]:
                text = f"{who} found {_named(stamp)}, another rank {_named(first[key])}"
                found.append(Violation("wrong" if stamp > 0 < first[key] else "lost", key, text))
            if key in first:
                continue
            first[key] = stamp
            register = self._registers[key]
            if not register.may_have(stamp):
                found.append(self._violation(key, stamp, who))
            self.counts["seen"] += 1
            self.counts["changed"] += stamp != register.base
            self.counts["under way, found"] += any(op.value == stamp and op.end == NEVER for op in register.ops)
        for key, stamp in first.items():
            self._registers[key].begin_anew(stamp)
        return found

    def _violation(self, key: int, stamp: int, who: str) -> Violation:
        register = self._registers[key]
        promised = register.promised()
        newest = max(promised, key=lambda op: op.begin, default=None)
        due = _named(register.base if newest is None else newest.value)
        if stamp < 0:
            kind = "wrong"
        elif stamp == ABSENT:
            kind = "lost"
        else:
            kind = "lost" if (register.base if newest is None else newest.value) != ABSENT else "resurrected"
        later = [_named(op.value) for op in register.ops if newest is None or op.begin > newest.begin]
        return Violation(kind, key, f"{who} found {_named(stamp)}, due is {due}, or of later writes {later[:4]}")


def _named(stamp: int) -> str:
    if stamp == ABSENT:
        return "nothing"
    if stamp < 0:
        return {-1: "bytes of no version", -2: "another type or shape"}.get(stamp, "an error")
    writer, version = unstamp(stamp)
    return f"version {version} of round {writer >> 3}, rank {writer & 7}"
