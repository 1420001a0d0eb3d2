"""What the disk tier promises in all interleavings of a small store, and what each of its rules is there for.

Covers the configurations of `disk_model`: those of the protocol as it is must break no property, each mutation must
break the one it names, and the same store and programs without the mutation must break none. Does not cover the
code of the store.
"""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from disk_model import Row, explore

# Where a row begins: x1 on disk, in a cell and a file of rank a; in memory of rank b, dirty; in memory of b, backed.
DIRTY: dict[str, Any] = {"init": "x1:b", "disk": "b"}
BACKED: dict[str, Any] = {"init": "x1:bD"}
# x1 on disk at a, y1 dirty in a's memory: y1 comes into the disk cell that x1 leaves.
REUSE: dict[str, Any] = {"init": "x1:D y1:a", "memory": "ar"}
MOVES = "r promote x, demote x"

GOOD = [
    # One word, one cell.
    Row("demote, two reads", "b demote x | r get x, get x", **DIRTY),
    Row("demote against replace", "b demote x | c put x2 | r get x", **DIRTY),
    Row("demote against delete", "b demote x, sweep | c delete x | r get x", **DIRTY),
    Row("promote, evict, two reads", MOVES + " | b get x, get x"),
    Row("promote twice, evict, a read", "r promote x, demote x, promote x | b get x"),
    Row("two promote and evict", MOVES + " | b promote x, demote x | a sweep"),
    Row("clean eviction against replace", "b demote x | c put x2 | a sweep | r get x", **BACKED),
    Row("clean eviction against delete", "b demote x | c delete x | a sweep | r get x", **BACKED),
    Row("promote and evict against delete", MOVES + " | c delete x | a sweep"),
    Row("promote and evict against replace", MOVES + " | c put x2 | a sweep, sweep", memory="cr"),
    Row("promote and evict against eviction without demotion", "r promote x, drop x | b get x | a sweep"),
    Row("move, evict, delete", "b move x, demote x | c delete x | a sweep", **BACKED | {"memory": "bb"}),
    Row("move against sync", "b move x, demote x | b sync | r get x", init="x1:b", memory="bb", disk="bbb"),
    Row("demote against sync", "b demote x | b sync | r get x, promote x", init="x1:b", disk="bb"),
    # Reuse of the disk cell.
    Row("reuse for another key, a read", "a sweep, demote y | c delete x | r get x", **REUSE),
    Row("reuse for another key, promote", "a sweep, demote y | c delete x | " + MOVES, **REUSE),
    Row("reuse for another key, promoted by another", "a sweep, demote y | c delete x | r promote x | b get y",
        **REUSE),
    Row("one generation, cells rest, the same key", "a put x2, sweep, demote x | r promote x, get x", memory="ar",
        most=1),
    Row("one generation, cells rest", "a sweep, demote y | c delete x | " + MOVES, **REUSE, most=1),
    Row("the same key comes into its old cell", "a put x2, sweep, demote x | r promote x, get x", memory="ar"),
    Row("the same, no rest but generations to spare", "a put x2, sweep, demote x | r promote x, get x", memory="ar",
        rest=False),
    Row("reuse in memory, no rest", "a sweep | r promote x, demote x, promote y", init="x1:D y1:D", disk="aa",
        memory="r", most=3, rest=False),
    Row("reuse for another key, no rest", "a sweep, demote y | c delete x | r get x", **REUSE, rest=False),
    # The hard bit, which anybody toggles.
    Row("demote, protect", "b demote x | c protect x, unprotect x | r get x", **DIRTY),
    Row("promote and evict, protect", MOVES + " | c protect x | b protect x, unprotect x"),
    Row("evict, protect and sweep", "b demote x, sweep | c protect x | a sweep", **BACKED),
    Row("evict without demotion, protect", "b drop x | c protect x | r get x", **BACKED),
    # Files.
    Row("compact twice, a read", "a compact x, compact x | b get x"),
    Row("compact, a sync may fail", "a compact x, compact x | b get x", faulty=True),
    Row("compact against delete", "a compact x, sweep | b get x | c delete x"),
    Row("compact, promote and evict", "a compact x | " + MOVES + " | b get x"),
    Row("compact and reuse", "a compact x, sweep, demote y | c delete x | r get x", **REUSE),
    Row("dead records of a replaced block", "a sweep, discard x | c put x2, sync | b get x"),
    Row("dead records of a deleted block", "a sweep, discard x | c delete x, sync, purge x | b put x2, sync"),
    Row("tombstone against demotion", "b demote x, sweep, sync | c delete x, sync, purge x", **DIRTY),
    # Sequences.
    Row("replace and sync", "b put x2, sync | c put x3, sync"),
    Row("replace and sync, then demote", "b put x2, demote x, sync | c put x3, sync", disk="ab"),
    Row("delete and sync", "c delete x, sync | b put x2, sync", memory="bbc"),
    Row("two delete, one puts", "c delete x, sync | b delete x, put x2, sync", memory="bbb"),
    Row("one puts and deletes, one puts", "r put x3, delete x, sync | b put x2, sync", init="", memory="rbb"),
    Row("two keys, one floor, delete of an absent key", "c delete y | b delete x | r put x2, sync", init="y1:D",
        memory="r"),
    Row("doubles and a sync", "b double x1, sync | c double x2 | c sync", init="", memory="bbbccc", disk="bc"),
    Row("doubles, both synced", "b double x1, sync | c double x2, sync", init="", memory="bbbccc", disk="bc"),
    Row("put after delete, replaced", "r delete x, put x2, sync | b put x3, sync", memory="bbrr"),
    Row("two delete, one syncs", "b delete x | c delete x, sync"),
    Row("delete of what was evicted without demotion", "b drop x | c delete x, sync", **BACKED),
    Row("two keys, one floor", "c delete y | r put x2, sync, put x3", init="y1:D", memory="rrrr"),
    Row("delete against sync of another", "c delete x, sync | b sync", **DIRTY),
    Row("replaced, then evicted without demotion", "c put x2, drop x, sync | b sync", **DIRTY),
    Row("sync of what another replaces", "b put x2, sync | c put x3"),
    Row("flush", "b put x2, flush | c put x3, flush"),
    # Crash, and a run after it.
    Row("deleted, nothing synced, crash, then put", "b delete x | c crash, put x3, sync, delete x, sync", disk="aa"),
    Row("crash, then delete and sync", "b put x2, sync | c crash, delete x, sync", disk="aa"),
    Row("crash, then replace and sync", "b put x2, sync | c crash, put x3, sync"),
    Row("deleted, crash, then put", "b delete x, sync | c crash, put x3, sync"),
    Row("crash, dead records", "b put x2, sync | a crash, discard x"),
]  # fmt: skip
ROWS = {row.title: row for row in GOOD}


def bad(title: str, of: str, breaks: str, **rules: Any) -> Row:
    """A configuration of GOOD with a mutation."""
    row = ROWS[of]
    store = {name: rules.pop(name) for name in ("rest", "most") if name in rules}
    return replace(row, title=title, breaks=breaks, rules=replace(row.rules, **rules), **store)


BAD = [
    bad("freed without a look at what is backed", "promote and evict against delete", "dangling", look="word"),
    bad("freed though another rank's block is backed", "promote and evict against delete", "dangling", look="own"),
    bad("a descriptor of another block taken for not backed", "reuse in memory, no rest", "dangling",
        look_mismatch="another"),
    bad("a hard bit that was toggled taken for a block that has left", "evict, protect and sweep", "dangling",
        failed_cas="gone"),
    bad("the hard bit left behind", "promote and evict, protect", "hard", carry=False),
    bad("clean eviction by a plain write", "clean eviction against replace", "dangling", clean="put"),
    bad("promotion published before it says what backs it", "two promote and evict", "dangling",
        promote="publish first"),
    bad("swapped before the record is whole", "demote, two reads", "file", demote="swap first"),
    bad("nobody tells who backed a block", "clean eviction against replace", "leak", pass_hint=False),
    bad("one generation, no rest", "the same key comes into its old cell", "dangling", rest=False, most=1),
    bad("a record read without a second look", "dead records of a replaced block", "lost", second_look=False),
    bad("a location that changed is a miss", "compact twice, a read", "lost", location="miss"),
    bad("no second look, no header compared", "reuse for another key, no rest", "bytes", second_look=False,
        header=False),
    bad("location changed before the copy is synced", "compact, a sync may fail", "file", relocate="copied"),
    bad("copy never synced", "compact twice, a read", "forgotten", sync_copy=False),
    bad("old file removed before the location changes", "compact twice, a read", "file", remove_old="first"),
    bad("dead record removed, what replaced it not durable", "dead records of a replaced block", "forgotten",
        discard="dead"),
    bad("tombstone removed before the folder is synced", "dead records of a deleted block", "older", purge="unlinked"),
    bad("tombstone removed while a demotion is under way", "tombstone against demotion", "older", purge_rest=False),
    bad("replace by the clock alone", "replace and sync", "older", replace="clock"),
    bad("replace above what it found at first", "replace and sync, then demote", "older", replace="first"),
    bad("tombstone by the clock alone", "delete and sync", "older", tombstone="clock"),
    bad("tombstone above what it deletes alone", "two delete, one puts", "older", tombstone="alone"),
    bad("no tombstone", "delete and sync", "older", tombstone="none"),
    bad("tombstone before the word has left", "two delete, one puts", "forgotten", tombstone_order="before"),
    bad("put does not look at tombstones", "delete and sync", "older", floor="never"),
    bad("put looks at tombstones before it publishes", "one puts and deletes, one puts", "forgotten",
        floor="before"),
    bad("of two words the one in the lower slot stays as it is", "doubles and a sync", "older",
        doubles="lowest slot"),
    bad("the sequence of a published block is raised", "put after delete, replaced", "older", again="in place"),
    bad("tombstone of an absent key above what came after the look", "two keys, one floor, delete of an absent key",
        "forgotten", absent="late"),
    bad("delete of an absent key leaves nothing", "two delete, one syncs", "older", absent="nothing"),
    bad("evicted without a tombstone", "replaced, then evicted without demotion", "older", drop="none"),
    bad("tombstone if what was replaced looked durable", "replaced, then evicted without demotion", "older",
        drop="looked durable"),
    bad("sync leaves out what was replaced meanwhile", "sync of what another replaces", "older", sync="index"),
    bad("recovery syncs nothing", "crash, dead records", "older", adopt=False),
    bad("clocks of the next run as they are", "deleted, crash, then put", "forgotten", restart="clock"),
]  # fmt: skip


found = functools.cache(explore)


@pytest.mark.parametrize("row", GOOD + BAD, ids=lambda row: row.title)
def test_a_row_breaks_exactly_what_it_should(row: Row) -> None:
    assert found(row).broken == row.breaks, "\n".join(found(row).trace)


@pytest.mark.parametrize("title", ["two promote and evict", "delete and sync", "compact and reuse"])
def test_histories_that_left_the_same_behind_are_one(title: str) -> None:
    merged, apart = explore(ROWS[title]), explore(ROWS[title], merge=False)
    assert (merged.broken, merged.outcomes) == (apart.broken, apart.outcomes) == ("", merged.outcomes)
    assert merged.states < apart.states


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.title)
def test_every_operation_of_a_row_does_something(row: Row) -> None:
    """Else a row could hold because nothing happens in it."""
    idle, outcomes = ("nothing", "no room", "absent", "spared"), found(row).outcomes
    assert {op for op, _ in outcomes} == {op for op, what in outcomes if what not in idle}


def main(arguments: list[str]) -> int:
    """Print what each row breaks; 1 if one does not break what it should. Numbers choose rows and show traces."""
    wrong, rows = 0, GOOD + BAD
    for number, row in enumerate(rows):
        if arguments and str(number) not in arguments:
            continue
        began = time.process_time()
        result = explore(row)
        wrong += result.broken != row.breaks
        mark = "" if result.broken == row.breaks else f"   EXPECTED {row.breaks or 'nothing'}"
        sizes = f"{result.states:>7} states {len(result.trace):>3} steps {time.process_time() - began:5.2f} s"
        print(f"{number:3} {row.title:58} {result.broken or '-':9} {sizes}{mark}", flush=True)
        if arguments or mark:
            print("\n".join(f"    {line}" for line in result.trace))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
