"""An exhaustive model of leased extents: recall, move out, give back, and the next holder's writes.

Covers one index word of one key, an extent of one cell in a lessor's arena, one other cell for each holder, hazard-slot
pins, the extent's word with its number, and generations that go on from holder to holder. A recalled extent is free
before its rank has it here, one step more than in the store. Does not cover what `protocol_model` covers (several keys
and slots, hard bits, copies, doubles) nor memory fences: a step is atomic.

An operation is a generator that yields one remote action at a time and is sent what it observed. The explorer visits
all interleavings, breadth first; a process is told apart by what it has observed, so a state is the memory and those.

Properties::

    bytes     a get or a view returned anything but one whole value that was put
    lost      a get found nothing, though the block was acknowledged and nobody evicts
    stale     a get that began after a put was acknowledged returned an older value
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


@dataclass(frozen=True)
class Rules:
    """The protocol as the store follows it; a mutation replaces one field."""

    word: str = "leaves first"  # before the extent is given back | "leaves last"
    move: str = "swap"  # the old word for the new one | "remove, publish"
    copy: str = "before"  # the new cell is whole before the swap | "after"
    pins: str = "after"  # looked at after the word has left | "before" | "never"
    rest: bool = True  # a cell rests until every attempt that was under way is over
    generations: str = "go on"  # of the next holder | "begin again"
    number: bool = True  # of an extent's word: goes up whenever it is given back
    take: str = "cas"  # | "put"


@dataclass(frozen=True)
class Row:
    """One configuration; programs of the processes, which are the ranks 0, 1, 2, ..., are separated by "|"."""

    title: str
    programs: str
    breaks: str = ""
    rules: Rules = field(default_factory=Rules)
    leased: int | None = 0  # the rank that holds the extent at first, with the block in it; None: nobody
    most: int = 99  # generations, after which they come round


class Word(NamedTuple):
    cell: str
    generation: int


class Memory(NamedTuple):
    """What all ranks share."""

    word: Word | None
    cells: tuple[tuple[str, tuple[Any, ...]], ...]  # name -> generation that the descriptor says, halves A and B
    pins: frozenset[tuple[int, Word]]
    holder: int | None
    number: int
    recalled: bool
    reading: frozenset[int]  # ranks with an attempt under way
    resting: frozenset[int]  # those that were under way when the leased cell's word left
    acknowledged: int

    def cell(self, name: str) -> tuple[Any, ...]:
        return dict(self.cells)[name]

    def put(self, name: str, at: int, value: Any) -> Memory:
        cells = dict(self.cells)
        cells[name] = (*cells[name][:at], value, *cells[name][at + 1 :])
        return self._replace(cells=tuple(sorted(cells.items())))


def apply(memory: Memory, me: int, action: Action) -> tuple[Memory, Any]:
    """The memory after an action, and what it observed; BLOCKED: it cannot go on now."""
    name, *given = action
    if name == "word":
        return memory, memory.word
    if name == "begin":
        return memory._replace(reading=memory.reading | {me}), memory.acknowledged
    if name == "end":
        return memory._replace(reading=memory.reading - {me}, resting=memory.resting - {me}), None
    if name == "load":
        return memory, memory.cell(given[0])[given[1]]
    if name == "store":
        return memory.put(*given), None
    if name == "cas":
        old, new = given
        if memory.word != old:
            return memory, False
        leaves = old is not None and old.cell == LEASED
        return memory._replace(word=new, resting=memory.reading if leaves else memory.resting), True
    if name == "acknowledge":
        return memory._replace(acknowledged=max(memory.acknowledged, given[0])), None
    if name == "pin":
        return memory._replace(pins=memory.pins | {(me, given[0])}), None
    if name == "unpin":
        return memory._replace(pins=memory.pins - {(me, given[0])}), None
    if name == "unpinned":
        return memory, BLOCKED if any(word.cell == given[0] for _, word in memory.pins) else None
    if name == "rested":
        return memory, BLOCKED if memory.resting else None
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

    def next(self, generation: int) -> int:
        return generation % self.row.most + 1

    def fill(self, cell: str, generation: int, value: Any) -> Operation:
        yield "store", cell, 0, None
        yield "store", cell, 1, value
        yield "store", cell, 2, value
        yield "store", cell, 0, generation
        return None

    def move_out(self, me: int, asked: bool) -> Operation:
        """The lessee moves its block out of the extent, when it is asked for that or by itself, and gives it back."""
        rules = self.rules
        if asked:
            yield ("recalled",)
        word = yield ("word",)
        mine = word is not None and word.cell == LEASED
        if rules.word == "leaves last":
            yield from self.give_back(me)
        if rules.pins == "before":
            yield "unpinned", LEASED
        if mine:
            new = Word(str(me), 1)
            value = yield "load", LEASED, 1
            if rules.copy == "before":
                yield from self.fill(str(me), 1, value)
            if rules.move == "swap":
                yield "cas", word, new
            else:
                yield "cas", word, None
                yield "cas", None, new
            if rules.copy == "after":
                yield from self.fill(str(me), 1, value)
        if rules.rest:
            yield ("rested",)
        if rules.pins == "after":
            yield "unpinned", LEASED
        if rules.word != "leaves last":
            yield from self.give_back(me)
        return None

    def give_back(self, me: int) -> Operation:
        yield "store", LEASED, 0, ("wiped", (yield "load", LEASED, 0))
        if not (yield "give back", int(self.rules.number)):
            raise Broken("holders")
        return None

    def use(self, me: int, value: int, wait: bool) -> Operation:
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
        latest = 0
        if number or self.row.leased is not None:
            said = yield "load", LEASED, 0
            latest = said[1] if isinstance(said, tuple) else said or 0
        if rules.generations == "begin again":
            latest = 0
        word = Word(LEASED, self.next(latest))
        yield from self.fill(LEASED, word.generation, value)
        while True:
            old = yield ("word",)
            if (yield "cas", old, word):
                break
        yield "acknowledge", value
        return True

    def get(self, me: int) -> Operation:
        since = yield ("begin",)
        while True:
            word = yield ("word",)
            if word is None:
                raise Broken("lost")
            generation = yield "load", word.cell, 0
            a = yield "load", word.cell, 1
            b = yield "load", word.cell, 2
            if (yield ("word",)) == word:
                break
            yield ("end",)
            yield ("begin",)
        if generation != word.generation:
            raise Broken("bytes")
        yield ("end",)
        self.judge(a, b, since)
        return a, b

    def view(self, me: int) -> Operation:
        since = yield ("begin",)
        while True:
            word = yield ("word",)
            if word is None:
                raise Broken("lost")
            yield "pin", word
            if (yield ("word",)) == word:
                break
            yield "unpin", word
        yield ("end",)
        a = yield "load", word.cell, 1
        b = yield "load", word.cell, 2
        yield "unpin", word
        self.judge(a, b, since)
        return a, b

    def judge(self, a: Any, b: Any, since: int) -> None:
        if a != b or a is None:
            raise Broken("bytes")
        if a < since:
            raise Broken("stale")

    def program(self, me: int, text: str) -> Operation:
        for step in text.split(","):
            kind, *value = step.split()
            if kind in ("use", "try"):
                if not (yield from self.use(me, int(value[0]), kind == "use")):
                    return None  # another rank was quicker
            elif kind in ("move", "leave"):
                yield from self.move_out(me, kind == "move")
            else:
                yield from self.get(me) if kind == "get" else self.view(me)
        return None


class Result(NamedTuple):
    broken: str
    states: int
    trace: list[str]


def explore(row: Row, limit: int = 400_000) -> Result:
    """Visit all interleavings: the first property that is broken ("" if none), and a shortest trace to it."""
    programs = [text.strip() for text in row.programs.split("|")]
    names = [LEASED, *map(str, range(len(programs)))]
    cells = {name: (None, None, None) for name in names}
    word = None
    if row.leased is None:
        word = Word(str(0), 1)
        cells["0"] = (1, 1, 1)
    else:
        word = Word(LEASED, 1)
        cells[LEASED] = (1, 1, 1)
    start = Memory(word, tuple(sorted(cells.items())), frozenset(), row.leased, 0, False, frozenset(), frozenset(), 1)
    protocol = Protocol(row)
    first = (start, tuple(() for _ in programs))
    seen, level = {first: None}, [first]
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


RECALL = "move | use 2 | get"
ROWS = [
    Row("recall, a reader", RECALL),
    Row("recall, a view", "move | use 2 | view"),
    Row("recall, a reader and a view", "move | use 2 | get | view"),
    Row("recall, one generation", RECALL, most=1),
    Row("recall, no rest but generations to spare", RECALL, rules=Rules(rest=False)),
    Row("two want a free extent", "get | try 2 | try 3", leased=None),
    Row("taken, left and taken again", "get | try 2, leave | try 3", leased=None),
    Row("taken, left and taken again, a view", "view | try 2, leave | try 3", leased=None),
    Row("taken, left and taken again, no rest", "get | try 2, leave | try 3", rules=Rules(rest=False), leased=None),
    Row("given back before the word leaves", RECALL, "bytes", Rules(word="leaves last", rest=False)),
    Row("no look at the pins", "move | use 2 | view", "bytes", Rules(pins="never")),
    Row("pins before the word leaves", "move | use 2 | view", "bytes", Rules(pins="before")),
    Row("generations begin again, no rest", RECALL, "bytes", Rules(generations="begin again", rest=False)),
    Row("one generation, no rest", RECALL, "bytes", Rules(rest=False), most=1),
    Row("removed, then published", RECALL, "lost", Rules(move="remove, publish")),
    Row("swapped before the copy is whole", RECALL, "bytes", Rules(copy="after")),
    Row("extents are taken without a CAS", "get | try 2 | try 3", "holders", Rules(take="put"), leased=None),
    Row("extents without a number", "get | try 2, leave | try 3", "bytes",
        Rules(number=False, rest=False), leased=None),
]  # fmt: skip


def main() -> int:
    """Print what each row breaks; 1 if one does not break exactly what it should."""
    wrong = 0
    for row in ROWS:
        found = explore(row)
        wrong += found.broken != row.breaks
        mark = "" if found.broken == row.breaks else f"   EXPECTED {row.breaks or 'nothing'}"
        print(f"{row.title:40} {found.broken or '-':8} {found.states:>7} states {len(found.trace):>3} steps{mark}")
        if "-v" in sys.argv:
            print("\n".join(f"    {step}" for step in found.trace))
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
