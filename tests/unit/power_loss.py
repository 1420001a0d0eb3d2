"""A disk that may lose power: what every writer did, and the states that it may be in afterwards.

SIGKILL leaves the page cache, so it tests no fsync. Here every writer's operations are recorded, and for every moment
between two of them the states are built that the contract of `cascade_mpi.segments.files` allows. The model is the
worst disk that keeps it:

- A file is pieces (sectors of 512 bytes, or pages of 4 KiB). Of each, the disk has any version since the last sync of
  the file, each on its own: lost, partly kept, reordered. The size has versions of its own: a file may be cut, be of
  zero length, have holes of zeros, or hold what other files left on the disk (`stale`).
- A sync keeps what its *node* wrote, bytes and size. After a failed one that is undecided for ever: no later sync of
  the same pages makes it sure, until they are written again.
- A name is as of the last sync of its folder or of any later version, each name on its own, or as a journal has it: all
  operations up to one of them. A renamed file whose old name was sure has the old name, the new one or both, never
  neither: POSIX makes a rename atomic, and with a weaker one nothing could ever be renamed. A file that was never sure
  may have neither. A folder whose own name is not sure is lost with all that is in it.

Does not cover calls that fail (see `disk_faults`), bits that rot (see the fuzz tests of the format), sectors torn in
themselves, nor nodes that write the same bytes of one file. The property is the caller's: `survey` hands him each state
and the notes that were taken until then. `promises` has one for keys and values.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from recorded_disk import ROOT, Disk, Event, RecordingFiles, walk

SECTOR, PAGE = 512, 4096


class Chooser(Protocol):
    """Whoever decides what was kept. `pick(n)` is 0 (the oldest) to n - 1 (the newest); `mood` begins a new object."""

    def mood(self) -> None: ...

    def pick(self, options: int) -> int: ...


class RandomChooser(Chooser):
    """Every object has a mood, else all states would be alike: everything half lost."""

    def __init__(self, random: random.Random) -> None:
        self._random, self._mood = random, 0

    def mood(self) -> None:
        self._mood = self._random.choice((0, 1, 2, 3, 4))

    def pick(self, options: int) -> int:
        if options < 2:
            return 0
        if self._mood == 0:
            return options - 1
        if self._mood == 1:
            return 0
        if self._mood == 2 or self._random.random() < 0.1:
            return int(self._random.random() * options)
        return options - 1 if self._mood == 3 else 0


class EveryChooser(Chooser):
    """All decisions, one after the other: an odometer whose wheels are found while it runs."""

    def __init__(self) -> None:
        self._wheels: list[list[int]] = []  # position and options
        self._at = 0

    def pick(self, options: int) -> int:
        if self._at == len(self._wheels):
            self._wheels.append([0, options])
        position = self._wheels[self._at][0]
        self._at += 1
        return position

    def next(self) -> bool:
        """On to the next decisions; False after the last."""
        self._at = 0
        while self._wheels and self._wheels[-1][0] == self._wheels[-1][1] - 1:
            self._wheels.pop()
        if self._wheels:
            self._wheels[-1][0] += 1
        return bool(self._wheels)


class _Write(NamedTuple):
    node: int
    offset: int
    data: bytes
    state: str  # pending, undecided (its sync failed), sure (but after an undecided one)


@dataclass
class _File:
    """A file on the disk: what is sure, and the writes since."""

    sure: bytearray = field(default_factory=bytearray)
    writes: list[_Write] = field(default_factory=list)

    def sync(self, node: int) -> None:
        if any(write.state == "undecided" for write in self.writes):
            self.writes = [write._replace(state="sure") if _mine(write, node) else write for write in self.writes]
        else:
            for write in self.writes:
                if write.node == node:
                    _apply(self.sure, write.offset, write.data)
            self.writes = [write for write in self.writes if write.node != node]

    def sync_failed(self, node: int) -> None:
        self.writes = [write._replace(state="undecided") if _mine(write, node) else write for write in self.writes]

    def build(self, chooser: Chooser, piece: int, stale: bytes) -> bytes:
        """The bytes that the disk may have."""
        if not self.writes:
            return bytes(self.sure)
        chooser.mood()
        least, sizes = len(self.sure), [len(self.sure)]
        for write in self.writes:
            end = write.offset + len(write.data)
            if write.state == "sure":
                least = max(least, end)
            if end > sizes[-1]:
                sizes.append(end)
        sizes = [size for size in sizes if size > least] if least > sizes[0] else sizes[1:]
        sizes = [least, *sizes]
        size = sizes[chooser.pick(len(sizes))]
        built = self.sure + bytes(max(size - len(self.sure), 0))
        for at, fragments in sorted(self._pieces(piece).items()):
            if at >= size:
                continue
            pending = [place for place, write in enumerate(fragments) if write.state == "pending"]
            kept = chooser.pick(len(pending) + 1)
            last = pending[kept - 1] if kept else -1
            touched = False
            for place, write in enumerate(fragments):
                if (
                    write.state == "sure"
                    or (write.state == "pending" and place <= last)
                    or (write.state == "undecided" and chooser.pick(2))
                ):
                    _apply(built, write.offset, write.data)
                    touched = True
            if not touched and at >= len(self.sure) and stale:
                part = stale[at : min(at + piece, size)]
                built[at : at + len(part)] = part
        return bytes(built[:size])

    def _pieces(self, piece: int) -> dict[int, list[_Write]]:
        pieces: dict[int, list[_Write]] = defaultdict(list)
        for write in self.writes:
            end = write.offset + len(write.data)
            at = write.offset
            while at < end:
                start = at // piece * piece
                stop = min(start + piece, end)
                part = write.data[at - write.offset : stop - write.offset]
                pieces[start].append(_Write(write.node, at, part, write.state))
                at = stop
        return pieces


def _mine(write: _Write, node: int) -> bool:
    return write.node == node and write.state == "pending"


def _apply(data: bytearray, offset: int, new: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


class Replay:
    """The disk at one moment of a trace: `step` goes on by one event, `build` is a state after a power loss now."""

    def __init__(self, disk: Disk) -> None:
        self.files = {number: _File(bytearray(data)) for number, data in disk.first_files.items()}
        self.sure = {number: dict(names) for number, names in disk.first_folders.items()}
        self.pending: dict[int, list[tuple[str, int | None]]] = {number: [] for number in self.sure}
        self.groups: dict[int, list[int]] = {number: [] for number in self.sure}  # which pending entries are one change
        self.removed: set[int] = set()  # files that somebody wanted gone
        self._group = 0
        self.notes: list[Any] = []

    def step(self, event: Event) -> None:
        kind = event.kind
        if kind == "write":
            self.files[event.inode].writes.append(_Write(event.node, event.offset, event.data, "pending"))
        elif kind == "sync":
            self.files[event.inode].sync(event.node)
        elif kind == "sync failed":
            self.files[event.inode].sync_failed(event.node)
        elif kind == "note":
            self.notes.append(event.note)
        elif kind == "sync folder":
            names = self.sure[event.inode]
            for name, inode in self.pending[event.inode]:
                _set(names, name, inode)
            self.pending[event.inode].clear()
            self.groups[event.inode].clear()
        else:
            self._group += 1
            if kind == "rename":
                over = self._now(event.other, event.new)
                if over is not None:
                    self.removed.add(over)
                self._change(event.other, event.new, event.child)
                self._change(event.inode, event.name, None)
            elif kind == "unlink":
                self.removed.add(event.child)
                self._change(event.inode, event.name, None)
            else:
                if kind == "folder":
                    self.sure[event.child], self.pending[event.child], self.groups[event.child] = {}, [], []
                else:
                    self.files[event.child] = _File()
                self._change(event.inode, event.name, event.child)

    def build(self, chooser: Chooser, *, piece: int = SECTOR, journal: bool = False, stale: bool = False) -> State:
        """One state. `journal`: names change in the order in which they were changed."""
        folders = {number: self._names(number, chooser, journal) for number in self.sure}
        self._keep(folders)
        found = {
            path: self.files[inode].build(chooser, piece, self._leavings(inode) if stale else b"")
            for path, inode in sorted(walk(folders))
        }
        return State(found, tuple(sorted(_folder_paths(folders))), tuple(self.notes))

    def is_open(self) -> bool:
        """Is there anything that is not sure?"""
        return any(file.writes for file in self.files.values()) or any(self.pending.values())

    def _names(self, folder: int, chooser: Chooser, journal: bool) -> dict[str, int]:
        names, pending = dict(self.sure[folder]), self.pending[folder]
        if not pending:
            return names
        chooser.mood()
        if journal:
            groups = self.groups[folder]
            starts = [0, *(at for at in range(1, len(groups)) if groups[at] != groups[at - 1]), len(groups)]
            for name, inode in pending[: starts[chooser.pick(len(starts))]]:
                _set(names, name, inode)
            return names
        versions: dict[str, list[int | None]] = {}
        for name, inode in pending:
            versions.setdefault(name, [self.sure[folder].get(name)]).append(inode)
        for name, known in versions.items():
            _set(names, name, known[chooser.pick(len(known))])
        return names

    def _keep(self, folders: dict[int, dict[str, int]]) -> None:
        """A rename never loses a file whose old name was sure: it gets that name back."""
        there = {inode for names in folders.values() for inode in names.values()}
        for folder, names in self.sure.items():
            for name, inode in names.items():
                if inode in there or inode in self.removed:
                    continue
                if name not in folders[folder]:
                    folders[folder][name] = inode
                else:  # that name is another file's now
                    where, fresh = next(
                        (at, new)
                        for at, changes in self.pending.items()
                        for new, child in reversed(changes)
                        if child == inode
                    )
                    folders[where][fresh] = inode
                there.add(inode)

    def _change(self, folder: int, name: str, inode: int | None) -> None:
        self.pending[folder].append((name, inode))
        self.groups[folder].append(self._group)

    def _now(self, folder: int, name: str) -> int | None:
        for known, inode in reversed(self.pending[folder]):
            if known == name:
                return inode
        return self.sure[folder].get(name)

    def _leavings(self, inode: int) -> bytes:
        """What else was once on this disk, at the same offsets: the nastiest, for it is well formed."""
        others = [file for number, file in self.files.items() if number != inode and (file.sure or file.writes)]
        if not others:
            return b"\xa5" * (1 << 20)
        data = bytearray(others[-1].sure)
        for write in others[-1].writes:
            _apply(data, write.offset, write.data)
        return bytes(data)


def _set(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _folder_paths(folders: Mapping[int, Mapping[str, int]], at: int = ROOT, above: str = "") -> Iterator[str]:
    for name, number in folders[at].items():
        if number in folders:
            yield f"{above}{name}"
            yield from _folder_paths(folders, number, f"{above}{name}/")


class State(NamedTuple):
    """What a later job finds, and the notes that were taken before the lights went out."""

    contents: dict[str, bytes]
    folders: tuple[str, ...]
    notes: tuple[Any, ...]

    def files(self, node: int = 0) -> RecordingFiles:
        """The state as files of a fresh disk: what is there now is sure."""
        return RecordingFiles(Disk(self.contents, self.folders), node)


# Surveys


Judge = Callable[[RecordingFiles, tuple[Any, ...]], Iterable[str]]
_PASSES, _KNOWN_IN_A_ROW = 8, 12


@dataclass
class Outcome:
    """What a survey saw."""

    states: int = 0
    different: int = 0  # files, names and notes of no two of them are the same
    bad: int = 0
    complaints: list[str] = field(default_factory=list)  # the first few, each with its state and the events before it

    def __str__(self) -> str:
        shown = "\n".join(self.complaints)
        return f"{self.bad} bad of {self.states} states, {self.different} different\n{shown}"


def survey(
    disk: Disk, judge: Judge, *, seed: int = 0, count: int = 1000, enough: int = 5, moments: range | None = None
) -> Outcome:
    """`count` different random states, spread over all moments of the trace; fewer if there are hardly so many.

    Goes over the trace up to 8 times. Stops after `enough` states that the judge complains of. `moments`: only after so
    many events.
    """
    outcome, chance, kinds, every = Outcome(), random.Random(seed), set[int](), range(len(disk.trace) + 1)
    moments = every if moments is None else moments
    for _ in range(_PASSES):
        replay, wanted, missing = Replay(disk), 0.0, count - outcome.different
        for moment in every[: moments.stop]:
            if moment:
                replay.step(disk.trace[moment - 1])
            if moment not in moments:
                continue
            wanted += missing / len(moments)  # what one moment does not have, the next ones may
            known = 0
            while wanted > 0 and known < _KNOWN_IN_A_ROW:
                state = replay.build(
                    RandomChooser(chance),
                    piece=chance.choice((SECTOR, PAGE)),
                    journal=chance.random() < 0.3,
                    stale=chance.random() < 0.2,
                )
                if not _judged(outcome, state, judge, kinds, disk, moment):
                    known += 1
                    continue
                known, wanted = 0, wanted - 1
                if outcome.bad >= enough or outcome.different >= count:
                    return outcome
                if not replay.is_open():
                    break
    return outcome


def survey_all(disk: Disk, judge: Judge, *, piece: int = SECTOR, limit: int = 200_000, enough: int = 5) -> Outcome:
    """Every state of every moment: for small traces. AssertionError above `limit` states."""
    outcome, kinds, replay = Outcome(), set(), Replay(disk)
    for moment in range(len(disk.trace) + 1):
        if moment:
            replay.step(disk.trace[moment - 1])
        every = EveryChooser()
        more = True
        while more:
            assert outcome.states < limit, f"more than {limit} states: give a smaller trace"
            _judged(outcome, replay.build(every, piece=piece), judge, kinds, disk, moment)
            if outcome.bad >= enough:
                return outcome
            more = every.next()
    return outcome


def _judged(outcome: Outcome, state: State, judge: Judge, kinds: set[int], disk: Disk, moment: int) -> bool:
    """Was it new? Only then it is judged."""
    outcome.states += 1
    kind = hash((frozenset(state.contents.items()), state.folders, len(state.notes)))
    if kind in kinds:
        return False
    kinds.add(kind)
    outcome.different += 1
    complaints = list(judge(state.files(), state.notes))
    if not complaints:
        return True
    outcome.bad += 1
    events = "\n    ".join(map(str, disk.trace[max(moment - 12, 0) : moment]))
    files = ", ".join(f"{path} ({len(data)} bytes)" for path, data in state.contents.items())
    outcome.complaints.append(
        f"after event {moment}: {'; '.join(complaints)}\n  files: {files}\n  events:\n    {events}"
    )
    return True
