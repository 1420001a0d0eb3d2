"""An exhaustive model of leased extents: recall, move out, give back, and the next holder's writes.

Covers index words of two keys x and y, an extent of one cell in a lessor's arena, one other cell for each holder,
hazard-slot pins, the extent's word with its number, and generations that go on from holder to holder. Beside a move the
block may be replaced or deleted by another rank, or be dropped as it fits nowhere; the freed cell is used for the other
key; and a block moves into the cell of another one that was evicted for it. A recalled extent is free before its rank
has it here, one step more than in the store. Does not cover what `protocol_model` does (several slots, keys that share
a fingerprint, hard bits, copies, doubles, aliases) nor memory fences: a step is atomic.

An operation is a generator that yields one remote action at a time and is sent what it observed. The explorer visits
all interleavings, breadth first; a process is told apart by what it has observed, so a state is the memory and those.

Properties::

    bytes     a get or a view returned anything but one whole value that was put under its key
    lost      a get found nothing, though the block was acknowledged and nobody deletes or evicts it
    stale     a get that began after a put or a delete was acknowledged returned an older value
    holders   two ranks hold the extent, or its holder is not who believes to be
    stuck     nobody can go on, and somebody has not ended
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Action = tuple[Any, ...]
Operation = Generator[Action, Any, Any]
BLOCKED = object()
LEASED = "L"  # the cell of the extent; the others are named by their holder
Value = tuple[str, int]  # key and version
Table = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Rules:
    """The protocol as the store follows it; a mutation replaces one field."""

    word: str = "leaves first"  # before the extent is given back | "leaves last"
    move: str = "swap"  # the old word for the new one | "remove, publish"
    copy: str = "before"  # the new cell is whole before the swap | "after"
    lost: str = "gives up"  # a move whose word has changed | it "writes" the new one
    room: str = "word first"  # of a block in whose place another comes | its "cell first"
    recheck: bool = True  # a reader reads the word again
    pins: str = "after"  # looked at after the word has left | "before" | "never"
    rest: bool = True  # a cell rests until every attempt that was under way is over
    generations: str = "go on"  # of the next holder | "begin again"
    number: bool = True  # of an extent's word: goes up whenever it is given back
    take: str = "cas"  # | "put"


@dataclass(frozen=True)
class Row:
    """One configuration; programs of the processes, which are the ranks 0, 1, 2, ..., are separated by "|".

    "use x2": recall the extent and put a block into it; "try x2": only if it is free; "put x2": into the own cell;
    "move": out of the recalled extent; "leave": the same without being asked; "drop": evict it from there instead;
    "room": move it into the own cell, in the place of y.
    """

    title: str
    programs: str
    breaks: str = ""
    rules: Rules = field(default_factory=Rules)
    leased: int | None = 0  # the rank that holds the extent at first, with the block in it; None: nobody
    most: int = 99  # generations, after which they come round
    beside: bool = False  # y lies in the own cell of rank 0


class Word(NamedTuple):
    cell: str
    generation: int


def changed(table: Table, name: str, value: Any) -> Table:
    """A table with another value for a name."""
    return tuple(sorted((dict(table) | {name: value}).items()))


class Memory(NamedTuple):
    """What all ranks share."""

    words: Table  # key -> word, None
    cells: Table  # name -> key and generation that the descriptor says, halves A and B
    pins: frozenset[tuple[int, Word]]
    holder: int | None
    number: int
    recalled: bool
    reading: frozenset[int]  # ranks with an attempt under way
    resting: Table  # cell -> those that were under way when its word left
    floor: Table  # key -> the version that a get which begins now must find at least, or a miss
    disturbed: frozenset[str]  # keys that anybody ever began to delete or to evict

    def cell(self, name: str) -> tuple[Any, ...]:
        return dict(self.cells)[name]

    def word(self, key: str) -> Word | None:
        return dict(self.words)[key]

    def put(self, name: str, at: int, value: Any) -> Memory:
        cell = self.cell(name)
        return self._replace(cells=changed(self.cells, name, (*cell[:at], value, *cell[at + 1 :])))

    def set(self, key: str, word: Word | None) -> Memory:
        """Another word for a key; the cell that it named rests from now on."""
        old, resting = self.word(key), self.resting
        if old is not None:
            resting = changed(resting, old.cell, self.reading)
        return self._replace(words=changed(self.words, key, word), resting=resting)

    def raised(self, key: str, version: int) -> Memory:
        return self._replace(floor=changed(self.floor, key, max(dict(self.floor)[key], version)))


def apply(memory: Memory, me: int, action: Action) -> tuple[Memory, Any]:
    """The memory after an action, and what it observed; BLOCKED: it cannot go on now."""
    name, *given = action
    if name == "word":
        return memory, memory.word(given[0])
    if name == "begin":
        return memory._replace(reading=memory.reading | {me}), dict(memory.floor)[given[0]]
    if name == "end":
        resting = tuple((cell, ranks - {me}) for cell, ranks in memory.resting)
        return memory._replace(reading=memory.reading - {me}, resting=resting), None
    if name == "load":
        return memory, memory.cell(given[0])[given[1]]
    if name == "store":
        return memory.put(*given), None
    if name == "cas":
        key, old, new = given
        return (memory.set(key, new), True) if memory.word(key) == old else (memory, False)
    if name == "write":
        return memory.set(*given), None
    if name == "acknowledge":
        return memory.raised(*given), None
    if name == "disturb":
        return memory._replace(disturbed=memory.disturbed | {given[0]}), None
    if name == "excused":
        return memory, given[0] in memory.disturbed
    if name == "pin":
        return memory._replace(pins=memory.pins | {(me, given[0])}), None
    if name == "unpin":
        return memory._replace(pins=memory.pins - {(me, given[0])}), None
    if name == "unpinned":
        return memory, BLOCKED if any(word.cell == given[0] for _, word in memory.pins) else None
    if name == "rested":
        return memory, BLOCKED if dict(memory.resting)[given[0]] else None
    if name == "recall":
        return memory._replace(recalled=memory.holder is not None), None
    if name == "recalled":
        return memory, None if memory.recalled else BLOCKED
    if name == "look":
        return memory, (memory.holder, memory.number)
    if name == "free":
        return memory, BLOCKED if memory.holder is not None else memory.number
    if name == "take":
        if memory.holder is not None or memory.number != given[0]:
            return memory, False
        return memory._replace(holder=me), True
    if name == "seize":
        return memory._replace(holder=me), True
    if name == "give back":
        return memory._replace(holder=None, number=memory.number + given[0], recalled=False), memory.holder == me
    raise AssertionError(name)


class Broken(Exception):
    """A property does not hold."""


class Protocol:
    """The operations."""

    def __init__(self, row: Row) -> None:
        self.rules, self.row = row.rules, row

    def next(self, said: Any) -> int:
        """The generation after that of a descriptor, wiped or not, None: the cell was never used."""
        if said is not None and said[0] == "wiped":
            said = said[1]
        return (0 if said is None else said[1]) % self.row.most + 1

    def fill(self, word: Word, value: Value) -> Operation:
        yield "store", word.cell, 0, None
        yield "store", word.cell, 1, value
        yield "store", word.cell, 2, value
        yield "store", word.cell, 0, (value[0], word.generation)
        return None

    def settle(self, cell: str) -> Operation:
        """The word of an own cell has left: wait until it may be used again."""
        if self.rules.rest:
            yield "rested", cell
        if self.rules.pins == "after":
            yield "unpinned", cell
        return None

    def move_out(self, me: int, how: str) -> Operation:
        """The lessee moves its block out of the extent, when it is asked for that or by itself, and gives it back."""
        rules, key = self.rules, "x"
        if how in ("move", "drop"):
            yield ("recalled",)
        word = yield "word", key
        mine = word is not None and word.cell == LEASED
        if rules.word == "leaves last":
            yield from self.give_back(me)
        if rules.pins == "before":
            yield "unpinned", LEASED
        if mine and how == "drop":
            yield "disturb", key
            yield "cas", key, word, None
        elif mine:
            new = Word(str(me), self.next((yield "load", str(me), 0)))
            value = yield "load", LEASED, 1
            if how == "room" and rules.room == "word first":
                yield from self.evict(me, "y")
            if rules.copy == "before":
                yield from self.fill(new, value)
            if how == "room" and rules.room == "cell first":
                yield from self.evict(me, "y")
            if rules.move == "swap":
                if not (yield "cas", key, word, new) and rules.lost == "writes":
                    yield "write", key, new
            elif (yield "cas", key, word, None):
                yield "cas", key, None, new
            if rules.copy == "after":
                yield from self.fill(new, value)
        yield from self.settle(LEASED)
        if rules.word != "leaves last":
            yield from self.give_back(me)
        return None

    def give_back(self, me: int) -> Operation:
        yield "store", LEASED, 0, ("wiped", (yield "load", LEASED, 0))
        if not (yield "give back", int(self.rules.number)):
            raise Broken("holders")
        return None

    def evict(self, me: int, key: str) -> Operation:
        """Take a block of the own cell out, if it is still there, and wait until the cell may be used again."""
        yield "disturb", key
        word = yield "word", key
        if word is not None and word.cell == str(me):
            yield "cas", key, word, None
        yield from self.settle(str(me))
        return None

    def delete(self, me: int, key: str) -> Operation:
        """By any rank. What was acknowledged when it began is not found by a get that begins when it has ended."""
        yield "disturb", key
        since = yield "begin", key
        while True:
            word = yield "word", key
            if word is None or (yield "cas", key, word, None):
                break
        yield ("end",)
        yield "acknowledge", key, since + 1
        return None

    def use(self, me: int, value: Value, wait: bool) -> Operation:
        """Take the extent, recalled or only if it is free, and put a block into it over the key's old one."""
        rules = self.rules
        if wait:
            yield ("recall",)
            number = yield ("free",)
        else:
            holder, number = yield ("look",)
            if holder is not None:
                return False
        if not (yield ("take", number) if rules.take == "cas" else ("seize",)):
            return False
        said = None
        if number or self.row.leased is not None:
            said = yield "load", LEASED, 0
        if rules.generations == "begin again":
            said = None
        yield from self.publish(Word(LEASED, self.next(said)), value)
        return True

    def put(self, me: int, value: Value) -> Operation:
        """Put a block into the own cell, of which nothing is known to anybody."""
        said = yield "load", str(me), 0
        yield from self.publish(Word(str(me), self.next(said)), value)
        return True

    def publish(self, word: Word, value: Value) -> Operation:
        yield from self.fill(word, value)
        while True:
            old = yield "word", value[0]
            if (yield "cas", value[0], old, word):
                break
        yield "acknowledge", *value
        return None

    def get(self, me: int, key: str) -> Operation:
        since = yield "begin", key
        while True:
            word = yield "word", key
            if word is None:
                yield from self.miss(key)
                return None
            said = yield "load", word.cell, 0
            a = yield "load", word.cell, 1
            b = yield "load", word.cell, 2
            if not self.rules.recheck or (yield "word", key) == word:
                break
            yield ("end",)
            yield "begin", key
        if said != (key, word.generation):
            raise Broken("bytes")
        yield ("end",)
        self.judge(key, a, b, since)
        return a, b

    def view(self, me: int, key: str) -> Operation:
        since = yield "begin", key
        while True:
            word = yield "word", key
            if word is None:
                yield from self.miss(key)
                return None
            yield "pin", word
            if (yield "word", key) == word:
                break
            yield "unpin", word
        yield ("end",)
        a = yield "load", word.cell, 1
        b = yield "load", word.cell, 2
        yield "unpin", word
        self.judge(key, a, b, since)
        return a, b

    def miss(self, key: str) -> Operation:
        if not (yield "excused", key):
            raise Broken("lost")
        yield ("end",)
        return None

    def judge(self, key: str, a: Any, b: Any, since: int) -> None:
        if a != b or a is None or a[0] != key:
            raise Broken("bytes")
        if a[1] < since:
            raise Broken("stale")

    def program(self, me: int, text: str) -> Operation:
        for step in text.split(","):
            kind, *given = step.split()
            if kind in ("use", "try"):
                if not (yield from self.use(me, (given[0][0], int(given[0][1:])), kind == "use")):
                    return None  # another rank was quicker
            elif kind == "put":
                yield from self.put(me, (given[0][0], int(given[0][1:])))
            elif kind in ("move", "leave", "drop", "room"):
                yield from self.move_out(me, kind)
            else:
                yield from {"get": self.get, "view": self.view, "delete": self.delete}[kind](me, given[0])
        return None


class Result(NamedTuple):
    broken: str
    states: int
    trace: list[str]


def explore(row: Row, limit: int = 400_000) -> Result:
    """Visit all interleavings: the first property that is broken ("" if none), and a shortest trace to it."""
    programs = [text.strip() for text in row.programs.split("|")]
    names = [LEASED, *map(str, range(len(programs)))]
    cells: dict[str, Any] = {name: (None, None, None) for name in names}
    first = Word(str(0) if row.leased is None else LEASED, 1)
    cells[first.cell] = (("x", 1), ("x", 1), ("x", 1))
    second = Word(str(0), 1) if row.beside else None
    if second is not None:
        cells[second.cell] = (("y", 1), ("y", 1), ("y", 1))
    start = Memory(
        (("x", first), ("y", second)), tuple(sorted(cells.items())), frozenset(), row.leased, 0, False, frozenset(),
        tuple((name, frozenset()) for name in sorted(names)), (("x", 1), ("y", int(row.beside))),
        frozenset() if row.beside else frozenset("y"),
    )  # fmt: skip
    protocol = Protocol(row)
    beginning = (start, tuple(() for _ in programs))
    seen, level = {beginning: None}, [beginning]
    parents: dict[Any, tuple[Any, str]] = {}

    def trace(state: Any, last: str) -> list[str]:
        steps = [last]
        while state in parents:
            state, step = parents[state]
            steps.append(step)
        return steps[::-1]

    while level:
        following = []
        for state in level:
            memory, histories = state
            moved = ended = 0
            for me, text in enumerate(programs):
                operation = protocol.program(me, text)
                try:
                    action = next(operation)
                    for observed in histories[me]:
                        action = operation.send(observed)
                except StopIteration:
                    ended += 1
                    continue
                except Broken as broken:
                    return Result(str(broken), len(seen), trace(state, f"{me}: {broken}"))
                changed, observed = apply(memory, me, action)
                if observed is BLOCKED:
                    continue
                if action[0] == "seize" and memory.holder is not None:
                    return Result("holders", len(seen), trace(state, f"{me}: {action}"))
                moved += 1
                after = (changed, (*histories[:me], (*histories[me], observed), *histories[me + 1 :]))
                if after not in seen:
                    seen[after] = None
                    parents[after] = (state, f"{me}: {action} -> {observed}")
                    following.append(after)
            if not moved and ended < len(programs):
                return Result("stuck", len(seen), trace(state, "nobody goes on"))
        if len(seen) > limit:
            raise RuntimeError(f"{row.title}: more than {limit} states")
        level = following
    return Result("", len(seen), [])


RECALL = "move | use x2 | get x"
BESIDE = "move | delete x, get x"
OTHER = "drop | use y2 | get x"
ROOM: dict[str, Any] = {"beside": True}
ROWS = [
    Row("recall, a reader", RECALL),
    Row("recall, a view", "move | use x2 | view x"),
    Row("recall, a reader and a view", "move | use x2 | get x | view x"),
    Row("recall, one generation", RECALL, most=1),
    Row("recall, no rest but generations to spare", RECALL, rules=Rules(rest=False)),
    Row("two want a free extent", "get x | try x2 | try x3", leased=None),
    Row("taken, left and taken again", "get x | try x2, leave | try x3", leased=None),
    Row("taken, left and taken again, a view", "view x | try x2, leave | try x3", leased=None),
    Row("taken, left and taken again, no rest", "get x | try x2, leave | try x3", rules=Rules(rest=False), leased=None),
    # Beside the move the block is deleted or replaced, or another key gets the cell.
    Row("deleted beside a move", "leave | delete x, get x | get x"),
    Row("deleted and put anew beside a move", "leave | delete x, put x2, get x"),
    Row("replaced beside a move", "leave | put x2, get x | get x"),
    Row("recall, another key in the cell", "move | use y2, get y | get x"),
    Row("recall, another key in the cell, one generation", "move | use y2 | get x", most=1),
    Row("recall, another key in the cell, a view", "move | use y2 | view x"),
    Row("recall, deleted, another key in the cell", "move | use y2 | delete x, get x"),
    Row("recall, deleted, another key, one generation", "move | use y2 | delete x | get y", most=1),
    Row("dropped, another key in the cell", OTHER),
    Row("dropped, another key in the cell, one generation", OTHER, most=1),
    Row("dropped, another key in the cell, a view", "drop | use y2 | view x"),
    Row("dropped beside a delete and a put", "drop | delete x, use x2, get x"),
    # A block moves into the cell of one that is evicted for it.
    Row("moved into the place of another", "room | get y | get x", **ROOM),
    Row("moved into the place of another, a view", "room | view y", **ROOM),
    Row("moved into the place of another, one generation", "room | get y", **ROOM, most=1),
    Row("moved into the place of another, both deleted", "room | delete y, get y | delete x, get x", **ROOM),
    Row("moved into the place of another, which is put anew", "room | put y2, get y", **ROOM),
    Row("given back before the word leaves", RECALL, "bytes", Rules(word="leaves last", rest=False)),
    Row("no look at the pins", "move | use x2 | view x", "bytes", Rules(pins="never")),
    Row("pins before the word leaves", "move | use x2 | view x", "bytes", Rules(pins="before")),
    Row("generations begin again, no rest", RECALL, "bytes", Rules(generations="begin again", rest=False)),
    Row("one generation, no rest", RECALL, "bytes", Rules(rest=False), most=1),
    Row("removed, then published", RECALL, "lost", Rules(move="remove, publish")),
    Row("swapped before the copy is whole", RECALL, "bytes", Rules(copy="after")),
    Row("extents are taken without a CAS", "get x | try x2 | try x3", "holders", Rules(take="put"), leased=None),
    Row("extents without a number", "get x | try x2, leave | try x3", "bytes",
        Rules(number=False, rest=False), leased=None),
    Row("the word is not read again, no rest", "move | use y2 | get x", "bytes", Rules(recheck=False, rest=False)),
    Row("the word is not read again, dropped and no rest", OTHER, "bytes", Rules(recheck=False, rest=False)),
    Row("deleted, but the move writes its word", "leave | delete x, get x", "stale", Rules(lost="writes")),
    Row("replaced, but the move writes its word", "leave | put x2, get x", "stale", Rules(lost="writes")),
    Row("removed, found absent by a delete, then published", "leave | delete x, get x", "stale",
        Rules(move="remove, publish")),
    Row("dropped, given back before the word leaves", OTHER, "bytes", Rules(word="leaves last", rest=False)),
    Row("dropped without a look at the pins", "drop | use y2 | view x", "bytes", Rules(pins="never")),
    Row("moved over another before its word leaves", "room | get y", "bytes", Rules(room="cell first"), **ROOM),
    Row("moved over another without a look at the pins", "room | view y", "bytes", Rules(pins="never"), **ROOM),
    Row("moved over another, the word is not read again, no rest", "room | get y", "bytes",
        Rules(recheck=False, rest=False), **ROOM),
]  # fmt: skip


def main() -> int:
    """Print what each row breaks; 1 if one does not break exactly what it should."""
    wrong = 0
    for row in ROWS:
        found = explore(row)
        wrong += found.broken != row.breaks
        mark = "" if found.broken == row.breaks else f"   EXPECTED {row.breaks or 'nothing'}"
        print(f"{row.title:62} {found.broken or '-':8} {found.states:>7} states {len(found.trace):>3} steps{mark}")
        if "-v" in sys.argv:
            print("\n".join(f"    {step}" for step in found.trace))
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
