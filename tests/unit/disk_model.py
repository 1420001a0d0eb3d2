"""An exhaustive model of the disk tier: who may write a disk word, when its cell, its file and its tombstone may go.

Covers one index word for each of one or two keys, cells in memory and disk cells (descriptor with a location), records
in files, demotion, reads from disk, promotion, eviction of clean blocks, replace, delete, eviction without demotion,
hints, sweeps, reuse of disk cells with bounded generations, compaction, removal of dead records and of tombstones,
sync, flush, and a crash of all at any step with what recovery may find afterwards; a crash that a second run follows
too. Sequences come from clocks that run apart: a rank's own clock never helps here, only what it has looked at.

A key has one slot, but for the operation "double": a put that may see its bucket's other slot taken.

Does not cover what `protocol_model` covers (payload in halves, pins, copies, aliases, doubles in all other
respects), how a file is cut into records (a file here holds one), nor memory fences: a step is atomic.

An operation is a generator that yields one action at a time and is sent what it observed; a list of actions means
that any of them may happen. A process is told apart by its suspended frames, so two histories that left the same
variables behind are one state. The search is breadth first and ends at the first property that is broken.

Properties::

    bytes      a read returned bytes that were never put under its key
    stale      a read returned a value that its key had at no time between the read's start and its end
    lost       a read found nothing, though its key had a value all the time
    dangling   a word, or the backing of a block in memory, leads to a cell that is free or of another generation
    file       such a word leads to a file that is removed or not whole
    older      recovery may find a value from before the last acknowledged sync, or one that was deleted before it
    forgotten  recovery may find nothing, though the key had a value ever since the last acknowledged sync
    hard       a word is without the hard bit that was acknowledged, or has one that was taken away
    leak       all is quiet and every hint was followed, and a cell that nothing leads to is not free
    stuck      nobody can go on, and somebody has not ended

A sync covers the keys whose latest put or delete before it began was one of its rank's; a flush covers all keys. A
put that is under way when all crash may have happened or not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Action = tuple[Any, ...]
Operation = Generator[Action | list[Action], Any, Any]
BLOCKED = object()
KEYS = "xy"
FREE, TAKEN, LIVE = "free", "taken", "live"
TORN, WRITTEN, SYNCED = "torn", "written", "synced"  # a record: not whole, whole for readers, whole after a crash
THERE, UNLINKED, GONE = 0, 1, 2  # a file: its removal may be undone by a crash until the folder is synced
FIRST = 50  # the sequence of what was put before everything else: every clock of the model is behind it


@dataclass(frozen=True)
class Rules:
    """The protocol; a mutation replaces one field."""

    # A disk word and its cell.
    demote: str = "append first"  # the record is whole before the word is swapped | "swap first"
    carry: bool = True  # a block that is moved keeps its hard bit
    failed_cas: str = "look"  # on an own word: look what stands there | the word is "gone"
    clean: str = "cas"  # a clean block's word is swapped for its backing word by CAS | "put"
    promote: str = "backed first"  # a block says what backs it before it is published | "publish first"
    look: str = "backing"  # a sweep asks every block in memory what backs it | "own" ones only | the "word" only
    look_mismatch: str = "ask"  # the descriptor is of another block: ask the word again | it is "another" block
    pass_hint: bool = True  # who retires a backed cell hints the manager of what backed it
    # Reads.
    second_look: bool = True  # at the word, after the record was read
    header: bool = True  # the record's key and sequence are compared with the descriptor's
    location: str = "again"  # a file that is gone: look at the location again | it is a "miss"
    # Files.
    relocate: str = "synced copy"  # the location changes when the copy is synced | when it is only "copied"
    remove_old: str = "last"  # the old file goes after the location has changed | "first"
    sync_copy: bool = True
    discard: str = "superseded"  # a dead record goes when something above it is durable | when it is "dead"
    purge: str = "last"  # a tombstone goes when no record below it is left or can come | "unlinked" counts as gone
    purge_rest: bool = True  # can come: demotions that were under way when the block was deleted
    # Sequences.
    replace: str = "above"  # what it replaces, whatever the clock says | the "clock" | above the "first" it found
    tombstone: str = "above"  # what it deletes and the floor | what it deletes "alone" | the "clock" | "none"
    absent: str = "tombstone"  # delete of an absent key leaves one too | "late": floor not asked before | "nothing"
    tombstone_order: str = "after"  # it is appended after the word has left | "before"
    drop: str = "tombstone"  # eviction without demotion leaves one | if the block before "looked durable" | "none"
    floor: str = "after"  # a put looks at the highest tombstone after it is published | "before" | "never"
    again: str = "new cell"  # a put below the floor is put again | gets a higher sequence "in place"
    doubles: str = "put again"  # if what stays is not above what was taken out | the "lowest slot" stays as it is
    sync: str = "table"  # writes what the rank's own table holds | what the "index" still names
    adopt: bool = True  # recovery syncs what it found before anybody may use it
    restart: str = "above"  # every clock of the next run begins above all that was found | "clock"s as they are


@dataclass(frozen=True)
class Row:
    """One configuration; programs are separated by "|" and begin with the rank that runs them."""

    title: str
    programs: str
    breaks: str = ""
    rules: Rules = field(default_factory=Rules)
    init: str = "x1:D"  # "x1:b": in memory of rank b, dirty; "x1:D": on disk; "x1:bD": in memory of b, backed
    memory: str = "bcr"  # the managing rank of each cell in memory
    disk: str = "a"  # of each disk cell
    most: int = 2  # generations, after which they come round
    rest: bool = True  # a freed cell rests until every attempt that was under way is over
    faulty: bool = False  # a sync may fail, and what it should have written is lost


class Word(NamedTuple):
    cell: int
    generation: int
    hard: bool = False  # anybody may toggle it


def same(one: Word | None, other: Word | None) -> bool:
    """Whether two words name the same cell in the same generation, with whatever hard bit."""
    return one is not None and other is not None and one[:2] == other[:2]


class Cell(NamedTuple):
    """One cell: its descriptor, what its manager knows of it, and its payload."""

    status: str = FREE
    generation: int = 0
    key: int = -1
    sequence: int = 0
    value: str = ""  # of a disk cell: what stands in its record
    backed: Word | None = None
    location: int = -1
    waiting: frozenset[int] = frozenset()  # attempts that were under way when it was freed
    over_durable: bool = False  # its put believed that it replaced a durable block


class Record(NamedTuple):
    """A file with one record; its number is its location and never comes again."""

    rank: str
    key: int
    sequence: int
    value: str | None  # None: a tombstone
    state: str
    removed: int = THERE
    waiting: frozenset[int] = frozenset()


class Broken(Exception):
    """A property does not hold."""


class Protocol:
    """The operations."""

    def __init__(self, row: Row) -> None:
        self.rules, self.row = row.rules, row

    # Reads.

    def read(self, key: int) -> Operation:
        """Word, descriptor and record of what the index names, all three of one time; None: nothing is there."""
        rules = self.rules
        while True:
            word = yield "look", key
            if word is None:
                return None
            cell = yield "load", word.cell
            if cell.generation == word.generation and cell.location < 0:
                if (yield "word", key) == word:
                    return word, cell, cell.value
                continue
            again, location = True, -1
            while again and cell.generation == word.generation:
                if location < 0:
                    location = yield "locate", word.cell
                record = yield "read", location
                right = record is not None and (
                    not rules.header or (record.key, record.sequence) == (cell.key, cell.sequence)
                )
                if rules.second_look and (yield "word", key) != word:
                    break
                if right:
                    return word, cell, record.value
                del record, right
                known = location
                cell = yield "load", word.cell
                location = yield "locate", word.cell
                again = rules.location == "again" and cell.generation == word.generation and location != known
                del known
                if not again and (not rules.second_look or (yield "word", key) == word):
                    return None  # damaged
            if not rules.second_look:
                return None

    def get(self, rank: str, key: int) -> Operation:
        found = yield from self.read(key)
        return ("got", None if found is None else found[2])

    def promote(self, rank: str, key: int) -> Operation:
        """Into this rank's memory, and that it is backed."""
        found = yield from self.read(key)
        if found is None or found[1].location < 0:
            return ("nothing",)
        word, cell, value = found
        late = self.rules.promote == "publish first"
        new = yield "load up", key, value, cell.sequence, None if late else word._replace(hard=False)
        if new is None:
            return ("no room",)
        if (yield "cas", key, word, new._replace(hard=word.hard), ""):
            if late:
                yield "set backed", new, word._replace(hard=False)
        else:
            yield "give up", new
        return ("done",)

    # Writers.

    def look_up(self, key: int) -> Operation:
        """Word and descriptor of what a writer is about to take away."""
        while True:
            word = yield "look", key
            if word is None:
                return None, None
            cell = yield "load put", word.cell
            if cell.generation == word.generation:
                return word, cell
            del cell

    def put(self, rank: str, key: int, value: str) -> Operation:
        rules, above, new, first, low = self.rules, 0, None, True, None
        while True:
            word, cell = yield from self.look_up(key)
            if word is not None and (rules.replace == "above" or (rules.replace == "first" and first)):
                above = max(above, cell.sequence)
            durable = cell is not None and (cell.location >= 0 or cell.backed is not None or cell.over_durable)
            if rules.floor == "before":
                above = max(above, (yield "floor", key))
            if new is None:
                new = yield "fill", key, value, above, durable
                if new is None:
                    # Nobody was told that it is stored, and recovery would take it for deleted.
                    if low is not None and same(low, word) and not (yield "cas", key, word, None, "-"):
                        continue
                    return ("no room",)
            else:
                yield "renew", new, above, durable
            first = False
            del cell, durable
            if not (yield "cas", key, word, new, rank):
                continue
            if rules.floor != "after":
                return ("stored",)
            floor = yield "floor", key, new
            if not floor:
                return ("stored",)
            # A block was deleted under a higher sequence: recovery would take this one for what was deleted.
            if rules.again == "in place":
                yield "renew", new, floor, False
                return ("stored",)
            new, above, low = None, floor, new
            del floor

    def double(self, rank: str, key: int, value: str) -> Operation:
        """A put in a bucket of two slots that may see the other one taken: the way to two words of one key.

        Who sees two takes the one in the higher slot out, as the store does; what stays must have the highest sequence.
        """
        above, new = 0, None
        while True:
            words = yield "both", key
            hits: tuple[Any, ...] = ()
            restart = False
            for slot, word in words:
                cell = yield "load put", word.cell
                restart = restart or cell.generation != word.generation
                hits, above = (*hits, (slot, word)), max(above, cell.sequence)
                del cell
            if restart:
                continue
            if new is None:
                new = yield "fill", key, value, above, False
                if new is None:
                    return ("no room",)
            else:
                yield "renew", new, above, False
            if hits:
                published = yield "cas", hits[0][0], hits[0][1], new, rank
            else:
                published = yield [("cas", slot, None, new, rank) for slot in (key, key + len(KEYS))]
            del hits, words
            if not published:
                continue
            while True:
                words = yield "both", key
                if new not in (word for _, word in words) or len(words) == 1:
                    return ("stored",)
                (_, low), (slot, high) = words
                mine = (yield "load put", new.cell).sequence
                other = yield "load put", (high if low == new else low).cell
                if other.generation != (high if low == new else low).generation:
                    continue
                if not (yield "take double", slot, high):
                    continue
                if (low == new) == (mine > other.sequence):
                    return ("stored",)  # what stays is above what was taken out
                if self.rules.doubles == "lowest slot":
                    return ("stored",)
                above, new = max(mine, other.sequence), None
                break

    def delete(self, rank: str, key: int) -> Operation:
        floor = yield "floor", key
        while True:
            word, cell = yield from self.look_up(key)
            if word is None:
                if self.rules.absent == "nothing":
                    yield "was absent", key, 0
                    return ("absent",)
                # Somebody else's tombstone may not be durable yet, and this rank's sync must cover its own delete.
                was, floor = floor, (yield "floor", key)
                if floor == was or self.rules.absent == "late":
                    yield "was absent", key, floor
                    return ("absent",)
                continue
            sequence = yield from self.announce(key, cell.sequence)
            if self.rules.tombstone_order == "before":
                yield "bury", key, sequence
            if (yield "cas", key, word, None, rank):
                if self.rules.tombstone != "none" and self.rules.tombstone_order == "after":
                    yield "bury", key, sequence
                return ("deleted",)
            del word, cell, sequence
            floor = yield "floor", key

    def announce(self, key: int, sequence: int) -> Operation:
        """The sequence of a tombstone, said at the home before the word leaves.

        Above the floor too: a put that has not looked at it yet may stand below what was deleted before.
        """
        floor = (yield "floor", key) if self.rules.tombstone == "above" else 0
        above = max(sequence, floor) if self.rules.tombstone != "clock" else 0
        return (yield "raise floor", key, above)

    def drop(self, rank: str, key: int) -> Operation:
        """Evict an own block without demotion, unless it is protected."""
        own = yield "own", key
        if own is None:
            return ("nothing",)
        word, cell = own
        sequence = yield from self.announce(key, cell.sequence)
        while same(word, there := (yield "word", key)):
            if there.hard:
                return ("spared",)
            if (yield "cas", key, there, None, rank):
                if self.rules.drop == "tombstone" or (self.rules.drop == "looked durable" and cell.over_durable):
                    yield "bury", key, sequence
                break
        yield "retire", word, None
        return ("dropped",)

    def protect(self, rank: str, key: int) -> Operation:
        return self.toggle(key, True)

    def unprotect(self, rank: str, key: int) -> Operation:
        return self.toggle(key, False)

    def toggle(self, key: int, hard: bool) -> Operation:
        """Set or clear the hard bit of whatever word stands there: no cell is looked at."""
        while (word := (yield "look", key)) is not None:
            if word.hard == hard or (yield "toggle", key, word, word._replace(hard=hard)):
                return ("toggled",)
        return ("nothing",)

    # From memory to disk.

    def demote(self, rank: str, key: int) -> Operation:
        """Evict an own block: a clean one to what backs it, a dirty one to a record of its own."""
        own = yield "own", key
        if own is None:
            return ("nothing",)
        word, cell = own
        if cell.backed is not None:
            swapped = yield from self.swap(key, word, cell.backed, self.rules.clean)
            yield "retire", word, cell.backed if swapped else None
            return ("done",)
        location = yield "append", key, cell.sequence, cell.value, TORN
        if self.rules.demote == "append first":
            yield "complete", location
        new = yield "describe", key, cell.value, cell.sequence, location
        if new is None:
            return ("no room",)
        swapped = yield from self.swap(key, word, new, "cas")
        if not swapped:
            yield "give up", new
        if self.rules.demote == "swap first":
            yield "complete", location
        yield "retire", word, new if swapped else None
        return ("done",)

    def swap(self, key: int, old: Word, new: Word, how: str) -> Operation:
        """Put another word in the place of an own one, with the hard bit as it is; False: that has left for good."""
        while same(old, there := (yield "word", key)):
            if (yield how, key, there, new._replace(hard=there.hard and self.rules.carry), ""):
                return True
            if self.rules.failed_cas == "gone":
                break
        return False

    def move(self, rank: str, key: int) -> Operation:
        """Into another own cell, with what backs it."""
        own = yield "own", key
        if own is None:
            return ("nothing",)
        word, cell = own
        new = yield "load up", key, cell.value, cell.sequence, cell.backed
        if new is None:
            return ("no room",)
        swapped = yield from self.swap(key, word, new, "cas")
        if not swapped:
            yield "give up", new
        yield "retire", word, cell.backed if swapped else None
        return ("done",)

    def sync(self, rank: str, key: int = -1) -> Operation:
        """Write every dirty block of this rank, back it by its record, and make the rank's records durable."""
        dirty = yield ("dirty",)
        for word, cell in dirty:
            if self.rules.sync == "index" and not same((yield "word", cell.key), word):
                continue
            location = yield "append", cell.key, cell.sequence, cell.value, WRITTEN
            yield "back", word, location
            del location
        yield ("fsync",)
        return ("synced",)

    def flush(self, rank: str, key: int = -1) -> Operation:
        yield "arrive", 0
        yield "all here", 0
        yield from self.sync(rank)
        yield "arrive", 1
        yield "all here", 1
        return ("flushed",)

    # The manager of disk cells and files.

    def sweep(self, rank: str, key: int = -1) -> Operation:
        """Free the own cells that nothing leads to."""
        cells = yield ("mine",)
        for own, of, in_memory in cells:
            word = yield "look", of
            asked = True
            while asked and word is not None and not same(word, own) and not in_memory:
                if self.rules.look == "word" or (self.rules.look == "own" and not (yield "is mine", word)):
                    break
                cell = yield "load", word.cell
                if cell.generation != word.generation:
                    if self.rules.look_mismatch == "another":
                        break
                    word = yield "look", of
                    continue
                asked, word = False, own if same(cell.backed, own) else word
                del cell
            if not same(word, own):
                yield "retire", own, None
            del word, asked
        return ("swept",)

    def compact(self, rank: str, key: int) -> Operation:
        """Copy the record of an own disk cell into another file, and remove the old one."""
        found, rules = (yield "located", key), self.rules
        if found is None:
            return ("nothing",)
        word, cell = found
        old = cell.location
        new = yield "append", key, cell.sequence, cell.value, WRITTEN
        if rules.remove_old == "first":
            yield "remove", old
        if rules.relocate == "copied":
            yield "relocate", word, old, new
        synced = True
        if rules.sync_copy:
            synced = yield [("fsync", new), ("fsync fails", new)] if self.row.faulty else ("fsync", new)
        if not synced:
            return ("failed",)
        if rules.relocate == "synced copy" and not (yield "relocate", word, old, new):
            return ("gone",)
        if rules.remove_old == "last":
            yield "remove", old
        yield ("sync folder",)
        return ("done",)

    def discard(self, rank: str, key: int) -> Operation:
        """Remove the own records of a key that no disk cell leads to."""
        dead = yield "dead", key
        for location in dead:
            yield "remove", location
        yield ("sync folder",)
        return ("done",)

    def purge(self, rank: str, key: int) -> Operation:
        """Remove the own tombstones of a key that nothing needs any more."""
        tombstones = yield "tombstones", key
        for location in tombstones:
            yield "remove", location
        yield ("sync folder",)
        return ("done",)

    def crash(self, rank: str, key: int = -1) -> Operation:
        """Of all ranks. This one goes on alone, in the role of every rank of the next run."""
        yield [("crash", number) for number in range(8)]
        return ("recovered",)


class Machine:
    """The local states of all processes, numbered; it runs each generator once per state and observation."""

    def __init__(self, row: Row, merge: bool) -> None:
        self.protocol, self.merge = Protocol(row), merge
        programs = [text.split(None, 1) for text in row.programs.split("|")]
        self.ranks = "".join(rank for rank, _ in programs)
        self.programs = [[self._parse(text) for text in steps.split(",")] for _, steps in programs]
        self.actions: list[tuple[Action, ...]] = []  # of each local state
        self.op: list[Any] = []  # the operation it is in; None: the program is over
        self.fresh: list[bool] = []
        self._histories: list[tuple[int, int, tuple[Any, ...]]] = []
        self._numbers: dict[Any, int] = {}
        self._next: dict[tuple[int, Any], tuple[int, Any]] = {}
        self.over = self._number("over", None, (), (0, 0, ()))
        self.first = tuple(self._start(process, 0) for process in range(len(programs)))

    @staticmethod
    def _parse(text: str) -> tuple[Any, ...]:
        name, *rest = text.split()
        if not rest:
            return (name,)
        return (name, KEYS.index(rest[0][0]), *rest) if name in ("put", "double") else (name, KEYS.index(rest[0][0]))

    def advance(self, local: int, observed: Any) -> tuple[int, Any]:
        """The local state after an observation, and the outcome if the operation has ended."""
        if (local, observed) not in self._next:
            process, index, history = self._histories[local]
            self._next[local, observed] = self._run(process, index, (*history, observed))
        return self._next[local, observed]

    def _start(self, process: int, index: int) -> int:
        return self.over if index == len(self.programs[process]) else self._run(process, index, ())[0]

    def _run(self, process: int, index: int, history: tuple[Any, ...]) -> tuple[int, Any]:
        """Replay an operation from its start: generators cannot be copied, but they are deterministic."""
        op = self.programs[process][index]
        generator = getattr(self.protocol, op[0])(self.ranks[process], *op[1:])
        try:
            request = next(generator)
            for observed in history:
                request = generator.send(observed)
        except StopIteration as end:
            return self._start(process, index + 1), end.value
        actions = tuple(request) if isinstance(request, list) else (request,)
        frame = self._frames(generator) if self.merge else history
        state = (process, index, frame, actions, bool(history))
        return self._number(state, op, actions, (process, index, history)), None

    @staticmethod
    def _frames(generator: Any) -> tuple[Any, ...]:
        """What the rest of a suspended operation depends on. Operations loop over tuples without repeats."""
        chain: list[Any] = []
        while generator is not None:
            frame = generator.gi_frame
            chain.append((frame.f_code.co_name, frame.f_lasti, tuple(frame.f_locals.items())))
            generator = generator.gi_yieldfrom
        return tuple(chain)

    def _number(self, state: Any, op: Any, actions: tuple[Action, ...], history: tuple[int, int, Any]) -> int:
        if state not in self._numbers:
            self._numbers[state] = len(self._histories)
            self._histories.append(history)
            self.op.append(op)
            self.actions.append(actions)
            self.fresh.append(not history[2])
        return self._numbers[state]


def clean(cell: Cell) -> Cell:
    """What others see of a cell: its descriptor, and its payload if it is in memory; not yet its location."""
    if cell.location >= 0:
        cell = cell._replace(value="", location=0)
    return cell._replace(status="", waiting=frozenset(), over_durable=False)


FIELDS = (
    "words", "cells", "records", "floor", "clocks", "hinted", "reading", "windows", "allowed", "author", "hard",
    "arrived", "local",
)  # fmt: skip
WATCHED = ("get", "sync", "flush")  # operations for which the values are noted that keys have meanwhile


class World:
    """One state, thawed: what all ranks share, and what the properties need to know."""

    def __init__(self, row: Row, machine: Machine, state: tuple[Any, ...]) -> None:
        self.row, self.machine, self.ranks = row, machine, machine.ranks
        for name, value in zip(FIELDS, state, strict=True):
            setattr(self, name, list(value) if isinstance(value, tuple) else value)

    words: list[Word | None]
    cells: list[Cell]
    records: list[Record]
    floor: int
    clocks: list[int]
    hinted: frozenset[int]
    reading: frozenset[int]
    windows: list[Any]
    allowed: list[frozenset[str | None]]
    author: list[str]
    hard: list[bool]
    arrived: list[int]
    local: list[int]

    @classmethod
    def initial(cls, row: Row, machine: Machine) -> tuple[Any, ...]:
        """The state before the first step."""
        cells = [Cell() for _ in row.memory + row.disk]
        words: list[Any] = [None] * (2 * len(KEYS))  # x, y, and another slot for each of them
        allowed: list[frozenset[str | None]] = [frozenset({None})] * len(KEYS)
        author, records = [""] * len(words), list[Record]()
        for text in row.init.split():
            value, where = text.split(":")
            key, in_memory = KEYS.index(value[0]), where.rstrip("D")
            allowed[key] = frozenset({value} if "D" in where else {value, None})
            if "D" in where:
                free = next(n for n in range(len(row.memory), len(cells)) if cells[n].status == FREE)
                cells[free] = Cell(LIVE, 1, key, FIRST * 32, value, None, len(records))
                author[key] = row.disk[free - len(row.memory)]
                records.append(Record(author[key], key, FIRST * 32, value, SYNCED))
                words[key] = Word(free, 1)
            if in_memory:
                free = next(n for n, rank in enumerate(row.memory) if cells[n].status == FREE and rank == in_memory)
                cells[free] = Cell(LIVE, 1, key, FIRST * 32, value, words[key])
                author[key] = author[key] or in_memory
                words[key] = Word(free, 1)
        nobody: frozenset[int] = frozenset()
        state: tuple[Any, ...] = (words, cells, records, 0, [0] * 26, nobody, nobody, [None] * len(machine.first))
        state += (allowed, author, [False] * len(words), [0, 0], machine.first)
        return tuple(tuple(part) if isinstance(part, list) else part for part in state)

    def freeze(self) -> tuple[Any, ...]:
        return tuple(
            tuple(part) if isinstance(part, list) else part for part in (getattr(self, name) for name in FIELDS)
        )

    # The parts that actions share.

    def rank_of(self, cell: int) -> str:
        return (self.row.memory + self.row.disk)[cell]

    def value(self, word: Word | None) -> str | None:
        return None if word is None else self.cells[word.cell].value

    def next_sequence(self, me: int, above: int) -> int:
        """A sequence of this rank that is above another one, and above its own earlier ones."""
        number = ord(self.ranks[me]) - ord("a")
        self.clocks[number] = max(self.clocks[number], above // 32) + 1
        return self.clocks[number] * 32 + number

    def enter(self, me: int) -> None:
        """An attempt begins; whatever word an earlier one has read is forgotten."""
        self.leave(me)
        self.reading |= {me}

    def leave(self, me: int) -> None:
        if me in self.reading:
            self.reading -= {me}
            self.cells = [c._replace(waiting=c.waiting - {me}) if me in c.waiting else c for c in self.cells]
            self.records = [r._replace(waiting=r.waiting - {me}) if me in r.waiting else r for r in self.records]

    def take(self, me: int, disk: bool) -> int | None:
        """A free cell of this rank that has rested."""
        first = len(self.row.memory) if disk else 0
        last = len(self.cells) if disk else len(self.row.memory)
        for n in range(first, last):
            if self.rank_of(n) == self.ranks[me] and self.cells[n].status == FREE and not self.cells[n].waiting:
                return n
        return None

    def set_up(self, n: int, cell: Cell) -> Word:
        generation = self.cells[n].generation % self.row.most + 1
        self.cells[n] = cell._replace(generation=generation)
        return Word(n, generation)

    def owned(self, me: int, disk: bool) -> list[tuple[Word, Cell]]:
        """This rank's live cells."""
        return [
            (Word(n, cell.generation), cell._replace(waiting=frozenset()))
            for n, cell in enumerate(self.cells)
            if cell.status == LIVE and self.rank_of(n) == self.ranks[me] and (n >= len(self.row.memory)) == disk
        ]

    def is_live(self, word: Word) -> bool:
        return self.cells[word.cell].status == LIVE and self.cells[word.cell].generation == word.generation

    def values(self, key: int) -> frozenset[str | None]:
        """Of a key: one, but while two put it there may be two."""
        words = [word for word in self.words[key :: len(KEYS)] if word is not None]
        return frozenset(self.value(word) for word in words) or frozenset({None})

    def set_word(self, slot: int, new: Word | None, author: str) -> None:
        key = slot % len(KEYS)
        before = self.values(key)
        if author:
            self.author[slot], self.hard[slot] = author, False
            old = self.words[slot]
            self.hinted |= {old.cell} if old is not None else set()
        self.words[slot] = new
        after = self.values(key)
        if new is not None and self.cells[new.cell].status == TAKEN:
            self.cells[new.cell] = self.cells[new.cell]._replace(status=LIVE)
        if before != after:
            self.allowed[key] |= after
            for n, window in enumerate(self.windows):
                if window is not None:
                    values = [*window[0]]
                    values[key] |= after
                    self.windows[n] = (tuple(values), *window[1:])

    # Actions at the index and at cells.

    def do(self, me: int, action: Action) -> Any:
        return getattr(self, "_" + action[0].replace(" ", "_"))(me, *action[1:])

    def _look(self, me: int, key: int) -> Any:
        self.enter(me)
        return self.words[key]

    def _word(self, me: int, key: int) -> Any:
        return self.words[key]

    def _both(self, me: int, key: int) -> Any:
        """The slots and words of a key."""
        self.enter(me)
        slots = (key, key + len(KEYS))
        return tuple((slot, self.words[slot]) for slot in slots if self.words[slot] is not None)

    def _take_double(self, me: int, slot: int, word: Word) -> bool:
        if self.words[slot] != word:
            return False
        self.set_word(slot, None, "")
        self.hinted |= {word.cell}
        return True

    def _load(self, me: int, n: int) -> Any:
        return clean(self.cells[n])

    def _locate(self, me: int, n: int) -> int:
        return self.cells[n].location

    def _load_put(self, me: int, n: int) -> Any:
        return clean(self.cells[n])._replace(over_durable=self.cells[n].over_durable)

    def _cas(self, me: int, key: int, old: Word | None, new: Word | None, author: str) -> bool:
        if self.words[key] != old:
            return False
        self.set_word(key, new, author)
        return True

    def _toggle(self, me: int, key: int, old: Word, new: Word) -> bool:
        if self.words[key] != old:
            return False
        self.words[key], self.hard[key] = new, new.hard
        return True

    def _put(self, me: int, key: int, old: Word | None, new: Word | None, author: str) -> bool:
        self.set_word(key, new, author)
        return True

    def _fill(self, me: int, key: int, value: str, above: int, durable: bool) -> Any:
        n = self.take(me, False)
        if n is None:
            return None
        return self.set_up(n, Cell(TAKEN, 0, key, self.next_sequence(me, above), value, over_durable=durable))

    def _renew(self, me: int, word: Word, above: int, durable: bool) -> None:
        cell = self.cells[word.cell]
        sequence = cell.sequence if cell.sequence > above else self.next_sequence(me, above)
        self.cells[word.cell] = cell._replace(sequence=sequence, over_durable=durable)

    def _load_up(self, me: int, key: int, value: str, sequence: int, backed: Word | None) -> Any:
        n = self.take(me, False)
        return None if n is None else self.set_up(n, Cell(TAKEN, 0, key, sequence, value, backed))

    def _describe(self, me: int, key: int, value: str, sequence: int, location: int) -> Any:
        n = self.take(me, True)
        return None if n is None else self.set_up(n, Cell(TAKEN, 0, key, sequence, value, None, location))

    def _set_backed(self, me: int, word: Word, backed: Word) -> None:
        if self.is_live(word):
            self.cells[word.cell] = self.cells[word.cell]._replace(backed=backed)

    def _give_up(self, me: int, word: Word) -> None:
        busy = self.reading - {me} if self.row.rest else frozenset()
        self.cells[word.cell] = self.cells[word.cell]._replace(status=FREE, waiting=busy)

    def _retire(self, me: int, word: Word, instead: Word | None) -> None:
        """An own word has left for good: its cell is free once it has rested. `instead`: what stands there now."""
        if not self.is_live(word):
            return
        backed = self.cells[word.cell].backed
        self._give_up(me, word)
        self.hinted -= {word.cell}
        if backed is not None and backed != instead and self.row.rules.pass_hint:
            self.hinted |= {backed.cell}

    def _own(self, me: int, key: int) -> Any:
        self.enter(me)
        return next((pair for pair in self.owned(me, False) if pair[1].key == key), None)

    def _mine(self, me: int) -> Any:
        self.enter(me)
        cells = [*self.owned(me, False), *self.owned(me, True)]
        self.hinted -= {word.cell for word, _ in cells}
        return tuple((word, cell.key, word.cell < len(self.row.memory)) for word, cell in cells)

    def _is_mine(self, me: int, word: Word) -> bool:
        return self.rank_of(word.cell) == self.ranks[me]

    # Sequences.

    def _floor(self, me: int, key: int, new: Word | None = None) -> int:
        """The highest sequence under which a block of this bucket was deleted; 0 if that of an own block is above."""
        if new is not None and self.floor < self.cells[new.cell].sequence:
            return 0
        return self.floor

    def _raise_floor(self, me: int, key: int, above: int) -> int:
        """The sequence of a tombstone: just above what it deletes, so that few puts are under way below it."""
        number = ord(self.ranks[me]) - ord("a")
        mine = (above // 32 + 1) * 32 + number if above else self.next_sequence(me, 0)
        self.floor = max(self.floor, mine)
        return mine

    # Records.

    def _append(self, me: int, key: int, sequence: int, value: str, state: str) -> int:
        self.records.append(Record(self.ranks[me], key, sequence, value, state))
        return len(self.records) - 1

    def _complete(self, me: int, location: int) -> None:
        if self.records[location].state == TORN:
            self.records[location] = self.records[location]._replace(state=WRITTEN)

    def _bury(self, me: int, key: int, sequence: int) -> None:
        record = Record(self.ranks[me], key, sequence, None, WRITTEN, waiting=self.reading - {me})
        self.records.append(record)

    def _was_absent(self, me: int, key: int, floor: int) -> None:
        """A delete that found nothing ends: this rank, too, says that nothing is there."""
        if floor:
            self._bury(me, key, floor)
        if self.words[key] is None and "-" not in self.author[key]:
            self.author[key] += self.ranks[me]

    def _read(self, me: int, location: int) -> Any:
        record = self.records[location]
        if record.removed != THERE or record.state == TORN:
            return None
        return record._replace(rank="", state="", waiting=frozenset())

    def _fsync(self, me: int, location: int = -1) -> bool:
        for n, record in enumerate(self.records):
            if record.rank == self.ranks[me] and location in (-1, n) and record.state == WRITTEN:
                self.records[n] = record._replace(state=SYNCED)
        return True

    def _fsync_fails(self, me: int, location: int) -> bool:
        self.records[location] = self.records[location]._replace(state=TORN)
        return False

    def _remove(self, me: int, location: int) -> None:
        self.records[location] = self.records[location]._replace(removed=UNLINKED)

    def _sync_folder(self, me: int) -> None:
        self.records = [
            r._replace(removed=GONE) if r.removed == UNLINKED and r.rank == self.ranks[me] else r for r in self.records
        ]

    def _dirty(self, me: int) -> Any:
        self.enter(me)
        return tuple((word, cell) for word, cell in self.owned(me, False) if cell.backed is None)

    def _back(self, me: int, word: Word, location: int) -> None:
        """A block that stays in memory is backed from now on, if there is a disk cell for that."""
        n, cell = self.take(me, True), self.cells[word.cell]
        if n is not None and self.is_live(word):
            backed = self.set_up(n, Cell(LIVE, 0, cell.key, cell.sequence, cell.value, None, location))
            self.cells[word.cell] = cell._replace(backed=backed)

    def _located(self, me: int, key: int) -> Any:
        self.enter(me)
        return next((pair for pair in self.owned(me, True) if pair[1].key == key), None)

    def _relocate(self, me: int, word: Word, old: int, new: int) -> bool:
        cell = self.cells[word.cell]
        if not self.is_live(word) or (cell.location != old and self.row.rules.remove_old == "last"):
            return False
        self.cells[word.cell] = cell._replace(location=new)
        return True

    def _dead(self, me: int, key: int) -> Any:
        """Own records that no cell leads to, and that recovery need not find."""
        if any(self.ranks[p] == self.ranks[me] and p != me for p in self.reading):
            return ()  # a demotion of this rank has a record that is not described yet
        led_to = {cell.location for cell in self.cells if cell.status != FREE}
        durable = [r.sequence for r in self.records if r.key == key and r.state == SYNCED and r.removed == THERE]
        empty = self.words[key] is None
        return tuple(
            n
            for n, r in enumerate(self.records)
            if r.rank == self.ranks[me] and r.key == key and r.removed == THERE and r.value is not None
            and n not in led_to
            and (self.row.rules.discard == "dead" or empty or any(s > r.sequence for s in durable))
        )  # fmt: skip

    def _tombstones(self, me: int, key: int) -> Any:
        """Own tombstones below which no record of their key is left or can still come."""
        rules = self.row.rules
        gone = (UNLINKED, GONE) if rules.purge == "unlinked" else (GONE,)
        left = [r.sequence for r in self.records if r.key == key and r.removed not in gone and r.value is not None]
        if rules.purge_rest:
            memory = self.cells[: len(self.row.memory)]
            left += [cell.sequence for cell in memory if cell.key == key and cell.status != FREE]
        return tuple(
            n
            for n, r in enumerate(self.records)
            if r.rank == self.ranks[me] and r.key == key and r.removed == THERE and r.value is None
            and not any(sequence < r.sequence for sequence in left)
            and not (rules.purge_rest and r.waiting)
        )  # fmt: skip

    def _arrive(self, me: int, number: int) -> None:
        self.arrived[number] += 1

    def _all_here(self, me: int, number: int) -> Any:
        there = sum(("flush",) in program for program in self.machine.programs)
        return None if self.arrived[number] == there else BLOCKED

    # Crash and recovery.

    def chances(self) -> list[int]:
        """The records that a crash may keep or lose."""
        return [
            n
            for n, r in enumerate(self.records)
            if r.removed != GONE and (r.state == WRITTEN or (r.state == SYNCED and r.removed == UNLINKED))
        ]

    def certain(self) -> list[int]:
        return [n for n, r in enumerate(self.records) if r.removed == THERE and r.state == SYNCED]

    def _crash(self, me: int, number: int) -> Any:
        chances = self.chances()
        if number >= 2 ** len(chances):
            return BLOCKED
        rules = self.row.rules
        kept = {*self.certain(), *(n for bit, n in enumerate(chances) if number >> bit & 1)}
        for n, r in enumerate(self.records):
            state = SYNCED if rules.adopt and n in kept else r.state
            self.records[n] = r._replace(removed=THERE if n in kept else GONE, state=state, waiting=frozenset())
        self.cells = [Cell() for _ in self.cells]
        self.words, self.hinted, self.reading = [None] * len(self.words), frozenset(), frozenset()
        self.floor, self.windows = 0, [None] * len(self.windows)
        self.local = [local if n == me else self.machine.over for n, local in enumerate(self.local)]
        if rules.restart == "above":
            self.clocks = [max([0, *(self.records[n].sequence // 32 for n in kept)])] * len(self.clocks)
        for key in range(len(KEYS)):
            of = [n for n in kept if self.records[n].key == key]
            best = max(of, key=lambda n: self.records[n].sequence, default=None)
            value = None if best is None else self.records[best].value
            if best is not None and value is not None:
                free = next(n for n in range(len(self.row.memory), len(self.cells)) if self.cells[n].status == FREE)
                self.cells[free] = Cell(LIVE, 1, key, self.records[best].sequence, value, None, best)
                self.words[key] = Word(free, 1)
            self.allowed[key] = frozenset({value})
            self.author[key], self.hard[key] = "", False
        return None

    # The properties.

    def begin(self, me: int, name: str) -> None:
        """The first action of an operation is about to happen."""
        if name in WATCHED:
            self.windows[me] = (
                tuple(self.values(key) for key in range(len(KEYS))),
                tuple(self.author),
                tuple(self.words),
            )

    def finish(self, me: int, op: tuple[Any, ...], outcome: tuple[Any, ...]) -> None:
        """The last action of an operation has happened."""
        self.leave(me)
        window, self.windows[me] = self.windows[me], None
        if outcome[0] == "got":
            value = outcome[1]
            if value is not None and value[0] != KEYS[op[1]]:
                raise Broken("bytes")
            if value not in window[0][op[1]]:
                raise Broken("lost" if value is None else "stale")
        if outcome[0] in ("synced", "flushed"):
            for key in range(len(KEYS)):
                slot = key if window[2][key] is not None or window[2][key + len(KEYS)] is None else key + len(KEYS)
                if outcome[0] == "flushed" or self.ranks[me] in window[1][slot]:
                    self.allowed[key] = window[0][key]

    def leads_to(self, key: int, word: Word) -> None:
        cell = self.cells[word.cell]
        if cell.status != LIVE or cell.generation != word.generation or cell.key != key:
            raise Broken("dangling")
        if cell.location >= 0:
            record = self.records[cell.location]
            if record.removed != THERE or record.state == TORN or record[1:4] != (key, cell.sequence, cell.value):
                raise Broken("file")
        if cell.backed is not None:
            if self.cells[cell.backed.cell].value != cell.value:
                raise Broken("dangling")
            self.leads_to(key, cell.backed)

    def check(self) -> None:
        for slot, word in enumerate(self.words):
            if word is not None:
                self.leads_to(slot % len(KEYS), word)
                if word.hard != self.hard[slot]:
                    raise Broken("hard")
        certain, chances = self.certain(), self.chances()
        for key, allowed in enumerate(self.allowed):
            best = max(((r.sequence, r.value) for r in (self.records[n] for n in certain) if r.key == key),
                       default=(0, None), key=lambda pair: pair[0])  # fmt: skip
            found = {best[1]}
            found |= {r.value for r in (self.records[n] for n in chances) if r.key == key and r.sequence > best[0]}
            for value in (found - allowed) and found - allowed - self.under_way():
                raise Broken("forgotten" if value is None else "older")

    def under_way(self) -> frozenset[str | None]:
        """What is being put: a crash may come before or after it."""
        ops = [self.machine.op[local] for local in self.local if not self.machine.fresh[local]]
        return frozenset(op[2] for op in ops if op is not None and op[0] in ("put", "double"))

    def check_quiet(self) -> None:
        """Nobody can go on: every cell is named, or a hint would find it."""
        if any(local != self.machine.over for local in self.local):
            raise Broken("stuck")
        named: set[int] = set()
        for word in filter(None, self.words):
            backed = self.cells[word.cell].backed
            named |= {word.cell} | ({backed.cell} if backed is not None else set())
        hinted = set(self.hinted)
        for n, cell in enumerate(self.cells):  # those in memory come first: they pass hints on to those on disk
            if cell.status == FREE or n in named:
                continue
            if cell.status == TAKEN or n not in hinted:
                raise Broken("leak")
            if cell.backed is not None and self.row.rules.pass_hint:
                hinted.add(cell.backed.cell)


class Result(NamedTuple):
    broken: str
    states: int
    trace: list[str]
    outcomes: frozenset[tuple[str, Any]]


def explore(row: Row, merge: bool = True, limit: int = 400_000) -> Result:
    """Visit all interleavings: the first property that is broken ("" if none), and a shortest trace to it.

    Without `merge` every history is told apart: the check on taking two for one that left the same variables.
    """
    machine = Machine(row, merge)
    state = World.initial(row, machine)
    origin: dict[int, Any] = {hash(state): None}
    level, outcomes = [state], set()

    def trace(number: int, last: str) -> list[str]:
        lines = [last]
        while (at := origin[number]) is not None:
            number, label = at
            lines.append(_line(*label))
        return lines[::-1]

    def steps(state: tuple[Any, ...]) -> Iterator[tuple[World, int, Any, Any, int, Any]]:
        for process, local in enumerate(state[-1]):
            for action in machine.actions[local]:
                world, op = World(row, machine, state), machine.op[local]
                if machine.fresh[local]:
                    world.begin(process, op[0])
                observed = world.do(process, action)
                if observed is not BLOCKED:
                    yield world, process, op, action, local, observed

    def _line(process: int, op: Any, action: Any, observed: Any) -> str:
        return f"{machine.ranks[process]} {' '.join(map(str, op))}: {_shown(action)} -> {_shown(observed)}"

    while level:
        following = []
        for state in level:
            number, quiet = hash(state), True
            for world, process, op, action, local, observed in steps(state):
                quiet = False
                label = (process, op, action, observed)
                following_local, outcome = machine.advance(local, observed)
                world.local[process] = following_local
                try:
                    if outcome is not None:
                        outcomes.add((op[0], outcome[0]))
                        world.finish(process, op, outcome)
                    world.check()
                except Broken as broken:
                    return Result(str(broken), len(origin), trace(number, _line(*label)), frozenset(outcomes))
                new = world.freeze()
                if (reached := hash(new)) not in origin:
                    origin[reached] = (number, label)
                    following.append(new)
            if quiet:
                try:
                    World(row, machine, state).check_quiet()
                except Broken as broken:
                    return Result(str(broken), len(origin), trace(number, "all is quiet"), frozenset(outcomes))
        if len(origin) > limit:
            raise RuntimeError(f"{row.title}: more than {limit} states")
        level = following
    return Result("", len(origin), [], frozenset(outcomes))


def _shown(value: Any) -> str:
    if isinstance(value, Word):
        return f"{value.cell}.{value.generation}{'!' * value.hard}"
    if isinstance(value, Cell):
        backed = f" backed {_shown(value.backed)}" if value.backed else ""
        return f"[{value.generation} {value.value} #{value.sequence}{backed} @{value.location}]"
    if isinstance(value, Record):
        return f"[{value.value} #{value.sequence}]"
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return str(value)
