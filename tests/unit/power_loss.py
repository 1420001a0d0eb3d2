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

Does not cover bits that rot (see the fuzz tests of the format), sectors torn in themselves, nor nodes that write the
same bytes of one file. The property is the caller's: `survey` hands him each state and the notes that were taken until
then. `acknowledged` is one for keys and values.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cascade_mpi.segments import faults

ROOT = 0
SECTOR, PAGE = 512, 4096


class Event(NamedTuple):
    """One operation as it happened. `inode`: the file, or the folder whose names changed."""

    kind: str  # write, sync, sync failed, link, unlink, rename, folder, sync folder, note
    node: int = 0
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    name: str = ""
    child: int = 0
    other: int = 0
    new: str = ""
    note: Any = None  # of a sync: the function that called it, for mutations

    def __str__(self) -> str:
        detail = {
            "write": f"{len(self.data)} bytes at {self.offset} of file {self.inode}",
            "note": f"{self.note}",
            "sync": f"file {self.inode} in {self.note}",
            "sync folder": f"{self.inode} in {self.note}",
            "link": f"{self.name} in {self.inode} is file {self.child}",
            "folder": f"{self.name} in {self.inode} is folder {self.child}",
            "unlink": f"{self.name} in {self.inode}",
            "rename": f"{self.name} in {self.inode} to {self.new} in {self.other}",
        }.get(self.kind, f"{self.inode}")
        return f"node {self.node}: {self.kind} {detail}"


class Disk:
    """What the living see: folders, names, bytes; and the record of how it came to be."""

    def __init__(self, contents: Mapping[str, bytes] | None = None, folders: Iterable[str] = ()) -> None:
        self.trace: list[Event] = []
        self.files: dict[int, bytearray] = {}
        self.folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._next = ROOT
        for path in folders:
            self._place(path.split("/"), folder=True)
        for path, data in (contents or {}).items():
            self.files[self._place(path.split("/"), folder=False)] = bytearray(data)
        self.first_files = {number: bytes(data) for number, data in self.files.items()}  # sure when the trace begins
        self.first_folders = {number: dict(names) for number, names in self.folders.items()}

    def note(self, note: Any) -> None:
        """Something that the property wants to know the moment of: an attempt, an acknowledgement."""
        self.trace.append(Event("note", note=note))

    def number(self) -> int:
        self._next += 1
        return self._next

    def find(self, path: str) -> tuple[int, str]:
        """The folder of a path, and the name in it."""
        *above, name = path.split("/")
        if not all(part not in ("", ".", "..") for part in (*above, name)):
            raise ValueError(f"{path!r} is not a path inside the store's directory")
        folder = ROOT
        for part in above:
            folder = self.folders[folder].get(part, -1)
            if folder not in self.folders:
                raise OSError(errno.ENOTDIR if folder in self.files else errno.ENOENT, "no such folder")
        return folder, name

    def contents(self) -> dict[str, bytes]:
        """Every file that has a name now."""
        return {path: bytes(self.files[inode]) for path, inode in walk(self.folders)}

    def _place(self, parts: list[str], folder: bool) -> int:
        at = ROOT
        for position, part in enumerate(parts):
            is_folder = folder or position < len(parts) - 1
            if part not in self.folders[at]:
                self.folders[at][part] = self.number()
                if is_folder:
                    self.folders[self._next] = {}
            at = self.folders[at][part]
        return at


def walk(folders: Mapping[int, Mapping[str, int]], at: int = ROOT, above: str = "") -> Iterator[tuple[str, int]]:
    for name, inode in folders[at].items():
        if inode in folders:
            yield from walk(folders, inode, f"{above}{name}/")
        else:
            yield f"{above}{name}", inode


class RecordingFiles:
    """`Files` of one writer on a disk that others write to as well. Writers of one `node` share its page cache."""

    def __init__(self, disk: Disk, node: int = 0) -> None:
        self.disk, self.node = disk, node

    def create(self, path: str) -> RecordingFile:
        with _errors("creating it", path):
            folder, name = self.disk.find(path)
            if name in self.disk.folders[folder]:
                raise OSError(errno.EEXIST, "exists")
        inode = self.disk.number()
        self.disk.files[inode] = bytearray()
        self.disk.folders[folder][name] = inode
        self._record("link", inode=folder, name=name, child=inode)
        return RecordingFile(self, path, inode, True)

    def open(self, path: str) -> RecordingFile:
        with _errors("opening it", path):
            return RecordingFile(self, path, self._file(path), False)

    def rename(self, old: str, new: str) -> None:
        with _errors("renaming it", old):
            inode = self._file(old)
            (folder, name), (target, fresh) = self.disk.find(old), self.disk.find(new)
            if self.disk.folders[target].get(fresh) in self.disk.folders:
                raise OSError(errno.EISDIR, "a folder has that name")
        if (folder, name) == (target, fresh):
            return
        del self.disk.folders[folder][name]
        self.disk.folders[target][fresh] = inode
        self._record("rename", inode=folder, name=name, child=inode, other=target, new=fresh)

    def remove(self, path: str) -> None:
        with _errors("removing it", path):
            inode = self._file(path)
            folder, name = self.disk.find(path)
        del self.disk.folders[folder][name]
        self._record("unlink", inode=folder, name=name, child=inode)

    def names(self, folder: str) -> list[str]:
        with _errors("listing it", folder):
            return sorted(self.disk.folders[self._folder(folder)])

    def make_folder(self, path: str) -> None:
        with _errors("making the folder", path):
            folder, name = self.disk.find(path)
            found = self.disk.folders[folder].get(name)
            if found is not None and found not in self.disk.folders:
                raise OSError(errno.ENOTDIR, "a file has that name")
        if found is None:
            number = self.disk.number()
            self.disk.folders[number] = {}
            self.disk.folders[folder][name] = number
            self._record("folder", inode=folder, name=name, child=number)

    def sync_folder(self, path: str) -> None:
        with _errors("syncing the folder", path):
            folder = self._folder(path)
        self._record("sync folder", inode=folder, note=sys._getframe(1).f_code.co_name)

    def _folder(self, path: str) -> int:
        if not path:
            return ROOT
        folder, name = self.disk.find(path)
        number = self.disk.folders[folder].get(name, -1)
        if number not in self.disk.folders:
            raise OSError(errno.ENOTDIR if number in self.disk.files else errno.ENOENT, "no such folder")
        return number

    def _file(self, path: str) -> int:
        folder, name = self.disk.find(path)
        number = self.disk.folders[folder].get(name, -1)
        if number not in self.disk.files:
            raise OSError(errno.EISDIR if number in self.disk.folders else errno.ENOENT, "no such file")
        return number

    def _record(self, kind: str, **fields: Any) -> None:
        self.disk.trace.append(Event(kind, self.node, **fields))


class RecordingFile:
    """An open file of `RecordingFiles`."""

    def __init__(self, files: RecordingFiles, path: str, inode: int, writable: bool) -> None:
        self._files, self.path, self.inode, self._writable = files, path, inode, writable
        self._closed = False

    def write_at(self, offset: int, *parts: Any) -> None:
        if not self._writable:
            with _errors("writing", self.path):
                raise OSError(errno.EBADF, "opened for reading")
        data = b"".join(bytes(memoryview(part).cast("B")) if memoryview(part).nbytes else b"" for part in parts)
        bytes_now = self._bytes()
        if not data:
            return
        if offset > len(bytes_now):
            bytes_now.extend(bytes(offset - len(bytes_now)))
        bytes_now[offset : offset + len(data)] = data
        self._files._record("write", inode=self.inode, offset=offset, data=data)

    def read_at(self, offset: int, out: Any) -> int:
        view, bytes_now = memoryview(out), self._bytes()
        if not view.nbytes or offset >= len(bytes_now):
            return 0
        view = view.cast("B")
        taken = min(view.nbytes, len(bytes_now) - offset)
        view[:taken] = bytes_now[offset : offset + taken]
        return taken

    def size(self) -> int:
        return len(self._bytes())

    def sync(self) -> None:
        self._bytes()
        self._files._record("sync", inode=self.inode, note=sys._getframe(1).f_code.co_name)

    def sync_fails(self) -> None:
        """What a failed sync leaves: the living still read the bytes, and nobody knows what the disk has."""
        self._files._record("sync failed", inode=self.inode)

    def close(self) -> None:
        self._closed = True

    def _bytes(self) -> bytearray:
        if self._closed:
            raise ValueError(f"{self.path}: this file is closed")
        return self._files.disk.files[self.inode]


class _errors:
    """Errors as `PosixFiles` raises them."""

    def __init__(self, doing: str, path: str) -> None:
        self.doing, self.path = doing, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise faults.explain(error, self.doing, self.path) from error


# What is sure, and what may be


class Chooser:
    """Whoever decides what was kept. `pick(n)` is 0 (the oldest) to n - 1 (the newest); `mood` begins a new object."""

    def mood(self) -> None: ...

    def pick(self, options: int) -> int:
        raise NotImplementedError


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


# A property for keys and values


class Attempt(NamedTuple):
    """Note: somebody begins to write this version of a key. `value` None: a delete."""

    key: Hashable
    version: int  # higher is newer, over all writers
    value: bytes | None

    def __str__(self) -> str:
        return f"{self.key} version {self.version}: {'delete' if self.value is None else f'{len(self.value)} bytes'}"


class Acknowledged(NamedTuple):
    """Note: these versions were promised to be durable."""

    versions: tuple[tuple[Hashable, int], ...]


def acknowledged(found: Mapping[Hashable, bytes], notes: Iterable[Any]) -> list[str]:
    """What is wrong with the values that were found. A key that is absent, or damaged, is not in `found`.

    Right is the newest promised version of a key, or any newer one that was attempted.
    """
    attempts: dict[Hashable, dict[int, bytes | None]] = defaultdict(dict)
    promised: dict[Hashable, int] = {}
    for note in notes:
        if isinstance(note, Attempt):
            attempts[note.key][note.version] = note.value
        elif isinstance(note, Acknowledged):
            for key, version in note.versions:
                promised[key] = max(promised.get(key, -1), version)
    complaints = [f"foreign: {key!r} was never written" for key in found if key not in attempts]
    for key, versions in attempts.items():
        least = promised.get(key, -1)
        new = {version: value for version, value in versions.items() if version >= least}
        value = found.get(key)
        if value is None:
            if least >= 0 and None not in new.values():
                complaints.append(f"lost: {key!r} version {least} was acknowledged")
        elif value not in new.values():
            if value not in versions.values():
                complaints.append(f"wrong bytes: {key!r} has {value[:16]!r}...")
            elif versions[least] is None:
                complaints.append(f"resurrected: {key!r}, whose delete {least} was acknowledged")
            else:
                complaints.append(f"stale: {key!r}, whose version {least} was acknowledged")
    return complaints


# Failures and mutations


class Plan:
    """Which call fails: the `at`-th (from 0) of the `kinds`, once, or it and all that follow."""

    READS = frozenset({"open", "read_at", "names", "size"})
    WRITES = frozenset({"create", "write_at", "sync", "close", "rename", "remove", "make_folder", "sync_folder"})

    def __init__(
        self, number: int, at: int, *, for_ever: bool = False, kinds: frozenset[str] = READS | WRITES, part: float = 0.5
    ) -> None:
        self.number, self.at, self.for_ever, self.kinds, self.part = number, at, for_ever, kinds, part
        self.calls: list[str] = []
        self.failed = 0

    def fails(self, kind: str) -> bool:
        if kind not in self.kinds:
            return False
        self.calls.append(kind)
        failing = len(self.calls) - 1 >= self.at if self.for_ever else len(self.calls) - 1 == self.at
        self.failed += failing
        return failing


class FailingFiles:
    """Files that fail by a plan, as a disk does: a write leaves `part` of its bytes, a sync leaves doubt.

    A failed close has closed. Of a failed create, rename or remove nothing has happened for a `part` below 1, else all.
    """

    def __init__(self, files: RecordingFiles, plan: Plan) -> None:
        self.files, self.plan = files, plan

    def create(self, path: str) -> FailingFile:
        return FailingFile(self._call("create", path, lambda: self.files.create(path)), path, self.plan)

    def open(self, path: str) -> FailingFile:
        return FailingFile(self._call("open", path, lambda: self.files.open(path)), path, self.plan)

    def rename(self, old: str, new: str) -> None:
        self._call("rename", old, lambda: self.files.rename(old, new))

    def remove(self, path: str) -> None:
        self._call("remove", path, lambda: self.files.remove(path))

    def names(self, folder: str) -> list[str]:
        return self._call("names", folder, lambda: self.files.names(folder))

    def make_folder(self, path: str) -> None:
        self._call("make_folder", path, lambda: self.files.make_folder(path))

    def sync_folder(self, path: str) -> None:
        if self.plan.fails("sync_folder"):
            raise fault(self.plan.number, "sync_folder", path)
        self.files.sync_folder(path)

    def _call(self, kind: str, path: str, act: Callable[[], Any]) -> Any:
        if self.plan.fails(kind):
            if self.plan.part >= 1:
                act()
            raise fault(self.plan.number, kind, path)
        return act()


class FailingFile:
    def __init__(self, file: RecordingFile, path: str, plan: Plan) -> None:
        self.file, self.path, self.plan = file, path, plan

    def write_at(self, offset: int, *parts: Any) -> None:
        if self.plan.fails("write_at"):
            data = b"".join(bytes(memoryview(part).cast("B")) for part in parts if memoryview(part).nbytes)
            self.file.write_at(offset, data[: int(len(data) * self.plan.part)])
            raise fault(self.plan.number, "writing", self.path)
        self.file.write_at(offset, *parts)

    def read_at(self, offset: int, out: Any) -> int:
        if self.plan.fails("read_at"):
            raise fault(self.plan.number, "reading", self.path)
        return self.file.read_at(offset, out)

    def size(self) -> int:
        if self.plan.fails("size"):
            raise fault(self.plan.number, "asking for its size", self.path)
        return self.file.size()

    def sync(self) -> None:
        if self.plan.fails("sync"):
            self.file.sync_fails()
            raise fault(self.plan.number, "syncing it", self.path)
        self.file.sync()

    def close(self) -> None:
        failing = self.plan.fails("close")
        self.file.close()
        if failing:
            raise fault(self.plan.number, "closing it", self.path)


def fault(number: int, doing: str, path: str) -> OSError:
    return faults.explain(OSError(number, os.strerror(number)), doing, path)


class MutantFiles:
    """Files that forget a sync: `keep(kind, path)` says which are done, for "sync" of a file and "sync_folder"."""

    def __init__(self, files: Any, keep: Callable[[str, str], bool]) -> None:
        self._inner, self._keep = files, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, path: str) -> Any:
        return _MutantFile(self._inner.create(path), path, self._keep)

    def open(self, path: str) -> Any:
        return _MutantFile(self._inner.open(path), path, self._keep)

    def sync_folder(self, path: str) -> None:
        if self._keep("sync_folder", path):
            self._inner.sync_folder(path)


class _MutantFile:
    def __init__(self, file: Any, path: str, keep: Callable[[str, str], bool]) -> None:
        self._inner, self._path, self._keep = file, path, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sync(self) -> None:
        if self._keep("sync", self._path):
            self._inner.sync()
