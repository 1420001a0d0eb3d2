"""What the protocol promises in small stores, and what each of its rules is there for.

Covers the configurations of `protocol_model`: those of the protocol as it is must break no property,
each mutation must break exactly the properties it names, and the same store and programs without the
mutation must break none. Does not cover the code of the store: its own mutations are found by the tests of
the modules that they are in.

TEST_MODEL_ALL=1 adds the configurations of 10^5 states and more (minutes).
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import Any

import pytest
from protocol_model import Result, Row, Rules, World, explore

NEW: dict[str, Any] = {"init": ""}
ONE: dict[str, Any] = {"cells": "0"}  # one rank with one cell, which holds x1
TWO: dict[str, Any] = {"cells": "00"}
LEAN: dict[str, Any] = {"halves": "A", "stores": "at once"}  # where no cell is reused and nothing can tear
# Slot 0 is taken when one putter looks and free when the other does: the way to two words of one key.
DOUBLES: dict[str, Any] = LEAN | {"init": "y1", "cells": "1001", "one_fingerprint": False}
# Another rank's block x1, and a reader with one cell for copies (and whatever comes into it afterwards).
COPY: dict[str, Any] = {"cells": "901", "ranks": "0123"}
# Content c in the arena of rank 1; room for an alias and a full block in that of rank 0.
NAMED: dict[str, Any] = LEAN | {"init": "c1", "cells": "1000", "slots": 3}
# Content c of rank 1 with the names x and y of others.
SHARED: dict[str, Any] = LEAN | {"init": "c1 xc yc", "cells": "102", "slots": 3, "one_fingerprint": False}
REUSE = "evict x, put y2, evict y, put x3 | get x"
CYCLE = ["evict x, put y2", "evict y, put x3", "evict x, put y4", "evict y, put x5"]

GOOD = [
    Row("two first writers", "put x1 | put x2 | get x", **NEW),
    Row("three first writers", "put x1 | put x2 | put x3", **NEW | LEAN, cells="012"),
    Row("three first writers, a reader", "put x1 | put x2 | put x3 | get x", **NEW | LEAN, cells="012", big=True),
    Row("two keys, one slot", "put x1 | put y1 | get x", **NEW, slots=1),
    Row("two keys, two slots", "put x1 | put y1 | get x, get y", **NEW),
    Row("no free cell, no free slot", "put x2, evict x | put y1 | get x, get y", cells="01", slots=1),
    Row("two replacers", "put x2 | put x3 | get x", cells="001"),
    Row("two replacers, two reads", "put x2 | put x3 | get x, get x", cells="001"),
    Row("reuse for another key and back", REUSE, **ONE),
    Row("reuse, stores of a put in any order", REUSE, **ONE, stores="any order"),
    Row("reuse, bucket in any order", REUSE, **ONE, torn="any"),
    Row("reuse, generation not compared", REUSE, **ONE, rules=Rules(compare_generation=False)),
    Row("reuse, old descriptor left valid", REUSE, **ONE, rules=Rules(invalidate=False), stores="any order"),
    Row("reuse, reader pins at once", REUSE, **ONE, rules=Rules(retries=0)),
    Row("replace by a stranger, sweep, reuse", "sweep, put y1 | put x2 | get x"),
    Row("replace by a stranger against evict", "evict x, put y1 | put x2 | get x"),
    Row("replace by a stranger against move", "move x, put y1 | put x2 | get x", cells="001"),
    Row("delete by a stranger, sweep, reuse", "sweep, put y1 | delete x | get x", **ONE),
    Row("delete by a stranger against move", "move x, put y1 | delete x | get x", **TWO),
    Row("two deleters, then another key", "delete x | delete x, put y1 | get y"),
    Row("doubles", "put x1 | evict y, put x2 | get x, get x", **DOUBLES),
    Row("doubles, bucket read downwards", "put x1 | evict y, put x2 | get x, get x", **DOUBLES, torn="down"),
    Row("doubles, one evicted", "put x1, evict x | evict y, put x2, evict x | get x, get x", **DOUBLES),
    Row("doubles, one fingerprint", "put x1 | delete y, put x2 | get x, get x", init="y1", cells="001", **LEAN),
    Row("view, one generation", "evict x, put x2, evict x, put y3 | view x", **ONE, generations=1),
    Row("two views", "evict x, put x2, evict x, put y3 | view x | view x", **ONE, generations=1),
    Row("view and move", "move x, put y2, move x | view x", **TWO),
    Row("threads: sweep", "put x1, evict x, put y1 | sweep | get x", **NEW | ONE, ranks="00"),
    Row("threads: evict", "put x2, put x3 | evict x | get x", **TWO, ranks="001"),
    Row("threads: two replacers", "put x2 | put x3 | get x", **TWO, ranks="001"),
    Row("two generations, two cells, first in first out", REUSE, **TWO, generations=2),
    Row("one generation, cells rest", REUSE, **ONE, generations=1, rest=True),
    Row("one generation, cells rest, deleter", "evict x, put y1 | delete x | get y", **ONE, generations=1, rest=True),
    *(
        Row(f"{n + 1} generations, {n} reuses", ", ".join(CYCLE[:n]) + " | get x", **ONE, generations=n + 1)
        for n in (1, 2, 3, 4)
    ),
    # The hard bit, which anybody toggles.
    Row("protect by a stranger against evict", "evict x, put y1 | protect x | get x", **ONE),
    Row("protect by a stranger, then evict", "put y2, evict x | protect x, get x", **TWO),
    Row("protect, unprotect against evict", "evict x, put y1 | protect x, unprotect x | get x", cells="0"),
    Row("two toggle", "evict x | protect x | unprotect x | get x", **ONE | {"halves": "A"}),
    Row("protect against replace and evict", "put x2, evict x | protect x, get x | get x", cells="00"),
    Row("protect against a stranger's replace", "evict x, put y1 | put x2 | protect x, get x", halves="A"),
    Row("protect against delete", "sweep, put y1 | delete x | protect x, get x", **ONE),
    Row("protect against drop", "drop x, put y1 | protect x | get x", **ONE),
    Row("protect against move", "move x, put y1 | protect x, get x", **TWO),
    Row("protect against move and evict", "move x, evict x, put y1 | protect x | get x", cells="00", halves="A"),
    Row("protect against sweep", "sweep, sweep | protect x, get x | get x", **ONE),
    Row("protect while it is put", "put x1, evict x | protect x, protect x", **NEW | ONE),
    Row("put protected, evict", "keep x2, evict x | get x | unprotect x", **TWO),
    Row("protect of doubles", "put x1, evict x | evict y, put x2, evict x | protect x, get x", **DOUBLES),
    Row("view of what is toggled", "evict x, put x2 | view x | protect x, unprotect x", **ONE, generations=1),
    Row("pin, while it is toggled", "evict x, put y1 | get x | protect x", **ONE, rules=Rules(retries=0)),
    Row("one generation, cells rest, protect", "evict x, put y1 | protect x | get y", **ONE, generations=1, rest=True),
    Row("quota of one, two protect", "protect x | protect y | evict x", init="x1 y1", quota=1, halves="A"),
    Row("quota of one, puts and a delete", "keep x2, keep y1 | delete x | unprotect x",
        cells="000", slots=3, quota=1, **LEAN),
    Row("quota of one, replaced and dropped", "keep x2, drop x | put x3 | protect x", cells="0011", quota=1, **LEAN),
    Row("quota of one, a double is taken away", "keep x1 | evict y, keep x2 | protect x",
        **DOUBLES | {"quota": 2}),
    Row("move, evict, replace, two reads", "move x, evict x | put x2 | get x, get x", cells="001", halves="A"),
    Row("move, evict, replace, delete", "move x, evict x, put y1 | put x2 | delete x | get x",
        cells="001", halves="A", big=True),
    Row("copy and replace", "put x2 | copy x | near x, near x", **COPY),
    Row("copy, then replace twice", "put x2, put x3 | copy x, near x | near x", cells="0001", halves="A", big=True),
    Row("copy and delete, another key in its cell", "delete x, put y2 | copy x | near x", **COPY),
    Row("copy, demote and reuse for another key", "copy x, demote x, put y2 | near x", **COPY),
    Row("copy, demote, replace and copy again", "copy x, demote x, copy x | put x2 | near x", **COPY),
    Row("two ranks of a node copy", "put x2 | copy x | copy x, near x", cells="0012"),
    Row("copy and protect", "protect x, near x | copy x, near x | unprotect x", **COPY),
    Row("copy, protect and replace", "put x2 | copy x, near x | protect x, near x", **COPY | {"halves": "A"}),
    Row("copy, protect and evict", "evict x, put x2 | copy x, near x | protect x", cells="01", halves="A"),
    Row("copy of one of two doubles", "put x1 | evict y, put x2 | copy x, get x, near x",
        **DOUBLES | {"cells": "10012"}),
    Row("copy of one of two doubles, another reads", "put x1 | evict y, put x2 | copy x | near x, near x",
        **DOUBLES | {"cells": "10012"}, big=True),
    # Aliases: of content c under name x the value is xc.
    Row("name and evict its content", "name xc, get x | evict c", **NAMED),
    Row("name and evict its content, two reads", "name xc | evict c | get x, get x", **NAMED),
    Row("two name one content", "name xc, get y | name yc, get x", **NEW | LEAN, cells="001111", slots=4),
    Row("name one content twice, one evicted", "name xc, name yc, get x | evict c, get y",
        **NAMED | {"cells": "1000000"}),
    Row("name and delete", "name xc | evict c | get x, delete x, get x", **NAMED),
    Row("name and replace by a block", "name xc | put x2 | get x, get x", **NAMED | {"cells": "10011"}),
    Row("name replaced, its content evicted", "name xc, put x2, evict c | get x", **NAMED | {"cells": "0000"}),
    Row("name replaced by another, its content evicted", "name xc, name xd, evict c | get x",
        **NAMED | {"cells": "00000"}),
    Row("name, evict, another key in the content's cell", "name xc | evict c, put y2 | get x",
        **NAMED | {"halves": "AB", "stores": "in order"}, big=True),
    Row("name, evict, another key in its cell, a cell in one piece", "name xc | evict c, put y2 | get x", **NAMED),
    Row("name, evict, another content in its cell", "name xc | evict c, name yd | get x",
        **NAMED | {"cells": "10001"}, big=True),
    Row("view of a name, evict, reuse", "name xc | evict c, put y2 | view x", **NAMED | {"halves": "AB"}),
    Row("view of a name, its content is evicted", "name xc | evict c | view x", **NAMED),
    # The protection of what a name names.
    Row("protect a name against evict of its content", "protect x, get x | evict c | get x", **SHARED),
    Row("two protect two names of a content", "protect x, get x | evict c | protect y, get y", **SHARED),
    Row("protect one of two names", "protect x, get x | delete y, evict c | protect y", **SHARED),
    Row("protect a name that is deleted", "protect x, get x | delete x, evict c | get y, get y", **SHARED),
    Row("protect a name that is replaced", "protect x, get x | evict c | put x2, get x",
        **SHARED | {"cells": "1022"}),
    Row("protect a name that gets another content", "protect x, get x | evict c | name xd, get x",
        **SHARED | {"init": "c1 xc d1", "cells": "10122"}),
    Row("protect a name while its content moves", "protect x, get x | move c, evict c | get y",
        **SHARED | {"cells": "1021"}),
    Row("protect a name while it moves", "protect x, get x | evict c | move x, evict x",
        **SHARED | {"cells": "1222"}),
    Row("protect a name while its content is stored again", "protect x, get x | evict c, name zc, evict c",
        **SHARED | {"init": "c1 xc", "cells": "10111"}),
    Row("the last name is unprotected, and collected", "protect x, unprotect x | collect c, evict c | protect y, get y",
        **SHARED),
    Row("collected beside a protect", "protect x, get x | protect y, unprotect y, collect c, evict c", **SHARED),
    Row("collected beside a new name", "name xc, protect x, get x | collect c, evict c", **NAMED),
    Row("quota of one, two names of a content", "protect x, get x | protect y, get y | evict c", **SHARED, quota=1),
    Row("quota of one, names of two contents", "protect x, get x | protect z | evict c, evict d",
        **SHARED | {"init": "c1 xc d1 zd", "cells": "1012", "slots": 4}, quota=1),
    Row("two replace a name by contents", "name xc | name xd, get x | get x",
        **NAMED | {"cells": "10001111"}, big=True),
    Row("two keys, bucket in any order", "evict x, put y1 | put x2, delete y | get x, get y",
        halves="A", torn="any", big=True),
    Row("doubles, delete, two reads", "put x1 | evict y, put x2 | delete x | get x, get x", **DOUBLES, big=True),
    Row("doubles, both moved", "put x1, move x, evict x | evict y, put x2, move x | get x, get x", **DOUBLES, big=True),
    Row("doubles, replaced by a third", "put x1 | evict y, put x2 | put x3, evict x | get x",
        **DOUBLES | {"cells": "1012"}, big=True),
]  # fmt: skip

DOUBLE_READS = "put x1 | evict y, put x2, get x, evict x, get x"
BAD = [
    # Readers.
    Row("no re-check", "evict x, put y1 | get x", "bytes", Rules(recheck="never"), **ONE),
    Row("re-check may pass the payload", "evict x, put x2 | get x", "bytes", Rules(recheck="any time"), **ONE),
    Row("key not compared", "put y1 | get x", "bytes", Rules(compare_key=False), **NEW),
    Row("mismatch is a miss", "sweep, put y1 | put x2 | get x", "lost", Rules(reader_mismatch="miss")),
    Row("mismatch is a miss, after a move", "move x, put y1 | get x", "lost", Rules(reader_mismatch="miss"), **TWO),
    Row("no retry, no pin", "put x2 | get x", "bound", Rules(retries=0, fallback="miss"), **TWO),
    Row("one retry, no pin", "put x2, put x3 | get x", "bound", Rules(retries=1, fallback="miss"), **TWO),
    # Writers.
    Row("deleter takes a mismatch for absent", "move x, put y1 | delete x, get x", "stale",
        Rules(writer_mismatch="absent"), **TWO),
    Row("putter takes a mismatch for absent", "move x, put y1 | put x2, get x", "stale",
        Rules(writer_mismatch="absent"), cells="001"),
    Row("delete of the first match only", "put x1 | evict y, put x2 | delete x, get x", "stale",
        Rules(delete="first"), **DOUBLES),
    Row("delete from the lowest slot up", "put x1, get x, get x | evict y, put x2 | delete x", "stale",
        Rules(removal="upwards"), **DOUBLES),
    Row("no post-check", DOUBLE_READS, "double stale", Rules(post_check="none"), **DOUBLES),
    Row("post-check not repeated", "put x1, move x | evict y, put x2", "double", Rules(post_check="once"), **DOUBLES),
    Row("post-check takes a mismatch for absent", "put x1, move x, put z2 | evict y, put x2", "double",
        Rules(post_check_mismatch="absent"), init="y1", cells="1001"),
    Row("published before it is written", "evict x, put x2 | get x", "bytes", Rules(publish="first"), **ONE),
    Row("replaced in place", "put x2 | get x", "bytes dangling lost", Rules(in_place="always"), **TWO),
    Row("in place if the word is gone", "put x2 | delete x | get x", "bytes", Rules(in_place="gone"), **TWO),
    # Managers.
    Row("reuse before the removal is flushed", "evict x, put y1 | get x", "bytes dangling",
        Rules(flush_removal=False), **ONE),
    Row("sweep during a publish", "put x1, put y1 | sweep | get x", "bytes dangling lost",
        Rules(sweep="under way"), **NEW | ONE, ranks="001"),
    Row("reclaim does not look at the generation", "put x2, put x3 | evict x", "dangling",
        Rules(guard=False), **TWO, ranks="00"),
    Row("no sweep", "put y1 | put x2", "leak", Rules(final_sweep=False)),
    # The hard bit.
    Row("a failed CAS means that the word has left", "evict x, put y1 | protect x | get x", "bytes dangling",
        Rules(failed_cas="gone"), **ONE),
    Row("the same of a drop", "drop x, put y1 | protect x | get x", "bytes dangling",
        Rules(failed_cas="gone"), **ONE),
    Row("the same of a move", "move x, put y1 | protect x", "dangling", Rules(failed_cas="gone"), **TWO),
    Row("evict looks for the word it wrote", "evict x, put y1 | protect x | get x", "bytes dangling",
        Rules(own_word="exact"), **ONE),
    Row("sweep looks for the word it wrote", "sweep | protect x | get x", "dangling", Rules(own_word="exact"), **ONE),
    Row("a put looks for the word it wrote", "put x1 | protect x | get x", "dangling",
        Rules(own_word="exact", final_sweep=False), **NEW | ONE),
    Row("evict takes what has become hard", "evict x | protect x, get x", "evicted", Rules(evict_hard=True), **ONE),
    Row("a move leaves the hard bit behind", "move x, evict x | protect x", "evicted", Rules(carry=False), **TWO),
    Row("protect writes without a look", "evict x, put y1 | protect x | get x", "bytes dangling",
        Rules(toggle="put"), **ONE),
    Row("protect takes a mismatch for absent", "move x, put y1 | protect x", "lost",
        Rules(writer_mismatch="absent"), **TWO),
    Row("protect counts afterwards", "protect x | protect y", "quota", Rules(count="after"), init="x1 y1", quota=1),
    Row("who takes a hard word away does not give its count back", "evict x | protect x | delete x", "count",
        Rules(uncount=False), **ONE),
    # Copies.
    Row("a copy's origin is not asked", "put x2, near x | copy x", "stale", Rules(copy_origin="unasked"), **COPY),
    Row("a copy's origin is any word of the key", "put x1 | evict y, put x2 | copy x, get x, near x", "stale",
        Rules(copy_origin="any"), **DOUBLES | {"cells": "10012"}),
    Row("a copy's origin is any generation of its cell", "evict x, put x2, near x | copy x", "stale",
        Rules(copy_same="cell"), cells="01", ranks="01"),
    Row("a copy's word is not read again", "copy x, demote x, put y2 | near x", "bytes", Rules(copy_recheck=False),
        **COPY),
    Row("a copy's cell goes before its word", "copy x, demote x | near x", "dangling", Rules(demote="cell first"),
        **COPY),
    # Aliases.
    Row("alias without second look", "name xc, get x | evict c", "lost", Rules(second_look=False), **NAMED),
    Row("the look before the alias is published", "name xc, get x | evict c", "lost", Rules(look_order="look first"),
        **NAMED),
    Row("the full block goes over anything", "name xc | evict c | get x, delete x, get x", "stale",
        Rules(store_again="any"), **NAMED),
    Row("alias word not read again", "name xc, put x2, evict c | get x", "lost", Rules(alias_recheck=False),
        **NAMED | {"cells": "0000"}),
    # The protection of what a name names.
    Row("protect of a name leaves its content soft", "protect x, get x | evict c", "evicted", Rules(shield="name"),
        **SHARED),
    Row("unprotect of a name reaches its content", "protect x, get x | protect y, unprotect y, evict c", "evicted",
        Rules(unshield="content"), **SHARED),
    Row("protected while contents are collected",
        "protect x, get x | protect y, unprotect y, collect c, evict c", "evicted",
        Rules(collect_alone=False), **SHARED),
    # Pins.
    Row("view: word, then pin", "evict x, put x2 | view x", "bytes", Rules(pin="late"), **ONE),
    Row("view without a pin", "evict x, put x2 | view x", "bytes", Rules(pin="none"), **ONE),
    Row("reuse ignores pins", "evict x, put x2 | view x", "bytes", Rules(heed_pins=False), **ONE),
    Row("pins looked at before the removal", "evict x, put x2 | view x", "bytes", Rules(look_at_pins="before"), **ONE),
    Row("a pin is forgotten", "evict x, put x2 | view x", "leak stuck", Rules(unpin=False), **ONE),
]  # fmt: skip

# What no rule of a single operation prevents: too few generations, and buckets that arrive out of order.
LIMITS = [
    *(
        Row(f"{n} generations, {n} reuses", ", ".join(CYCLE[:n]) + " | get x", "bytes",
            **ONE, generations=n)
        for n in (1, 2, 3, 4)
    ),
    Row("two generations, two cells, last in first out", REUSE, "bytes", **TWO, generations=2, reuse="lifo"),
    Row("one generation, a deleter holds a word", "evict x, put y1 | delete x | get y", "bytes lost",
        **ONE, generations=1),
    Row("one generation, a replacer holds a word", "evict x, put y1 | put x2 | get y", "bytes lost", generations=1),
    # An acknowledged double in a high slot gives way to one in a lower slot that the reader has passed.
    Row("doubles, bucket read upwards", "put x1 | evict y, put x2 | get x", "lost", **DOUBLES, torn="up"),
]  # fmt: skip

ROWS = [*GOOD, *BAD, *LIMITS]
SCOPE = "TEST_MODEL_ALL"
searched = functools.cache(explore)


def twin(row: Row) -> Row:
    """The same store and programs under the protocol as it is."""
    return replace(row, title=f"{row.title}: the protocol", breaks="", rules=Rules())


def twins() -> list[Row]:
    """The twins of the mutations, those that are the same store and programs once, and not what is a good row."""
    found = {replace(row, title=""): row for row in map(twin, reversed(BAD))}
    return [row for key, row in found.items() if key not in {replace(good, title="") for good in GOOD}][::-1]


def in_scope(rows: list[Row]) -> list[Any]:
    rows = [row for row in rows if not row.big or os.environ.get(SCOPE)]
    return [pytest.param(row, id=row.title.replace(" ", "-")) for row in rows]


def complaint(row: Row, result: Result) -> str:
    """What was found of a configuration, with the shortest traces."""
    traces = ("\n    ".join((name, *trace)) for name, trace in sorted(result.traces.items()))
    return f"'{row.title}' breaks {sorted(result.traces)}, expected {sorted(row.breaks.split())}\n" + "\n".join(traces)


@pytest.mark.parametrize("row", in_scope(GOOD))
def test_the_protocol_keeps_every_property(row: Row) -> None:
    result = searched(row)
    assert not row.breaks and not result.traces, complaint(row, result)


@pytest.mark.parametrize("row", in_scope(BAD + LIMITS))
def test_a_mutation_breaks_exactly_what_it_names(row: Row) -> None:
    result = searched(row)
    assert set(result.traces) == set(row.breaks.split()), complaint(row, result)


@pytest.mark.parametrize("row", in_scope(twins()))
def test_without_its_mutation_the_row_is_clean(row: Row) -> None:
    result = searched(row)
    assert not result.traces, complaint(row, result)


def test_every_property_is_broken_by_some_row() -> None:
    broken = {name for row in BAD + LIMITS for name in row.breaks.split()}
    assert broken == {"bytes", "dangling", "lost", "bound", "stale", "double", "leak", "stuck",
                      "evicted", "quota", "count"}  # fmt: skip


# Some small good rows that reach every outcome together: each worker of a run would search all of them again.
REACHING = (
    "no free cell, no free slot", "protect while it is put", "name and evict its content", "quota of one, two protect",
    "copy, demote and reuse for another key", "one generation, cells rest, deleter", "view and move",
    "quota of one, replaced and dropped", "delete by a stranger, sweep, reuse", "view, one generation",
    "copy and delete, another key in its cell", "quota of one, puts and a delete", "move, evict, replace, two reads",
    "name and delete", "view of a name, its content is evicted", "collected beside a protect",
)  # fmt: skip


def test_the_good_rows_reach_every_outcome() -> None:
    """A search that never reads a value, loses a race or finds the store full would prove nothing."""
    rows = [row for row in GOOD if row.title in REACHING]
    assert len(rows) == len(REACHING)
    assert not any(row.big for row in rows)
    reached = frozenset().union(*(searched(row).outcomes for row in rows))
    assert reached >= {
        ("get", "value"), ("get", "miss"), ("view", "value"), ("view", "miss"),
        ("put", "stored"), ("put", "superseded"), ("put", "refused"), ("delete", "deleted"),
        ("copy", "copied"), ("copy", "gave up"), ("near", "value"), ("near", "miss"), ("demote", "demoted"),
        ("evict", "evicted"), ("evict", "nothing"), ("evict", "spared"), ("move", "moved"),
        ("move", "gave up"), ("sweep", "swept"),
        ("protect", "protected"), ("protect", "absent"), ("protect", "over quota"), ("unprotect", "unprotected"),
        ("keep", "stored"), ("keep", "over quota"), ("drop", "evicted"),
        ("name", "stored"), ("name", "superseded"), ("get", "hollow"), ("view", "hollow"),
        ("protect", "hollow"), ("collect", "collected"),
    }  # fmt: skip


@pytest.mark.parametrize(("readers", "states"), [(1, 2), (2, 4), (3, 8), (10, 1024)])
def test_independent_steps_give_the_product_of_their_states(readers: int, states: int) -> None:
    programs = " | ".join(["get x"] * readers)
    assert explore(Row("empty store", programs, init="", ranks="0" * readers)).states == states


@pytest.mark.parametrize(
    "row",
    [
        Row("one reuse", "evict x, put y2 | get x", cells="0", generations=1),
        Row("moved and deleted", "move x | delete x, get x", cells="00", halves="A"),
        replace(next(row for row in BAD if row.title == "no post-check"), programs="put x1 | evict y, put x2, get x"),
        replace(next(row for row in BAD if row.title == "reuse ignores pins"), halves="A"),
    ],
    ids=lambda row: row.title.replace(" ", "-"),
)
def test_merging_local_states_by_their_frame_loses_nothing(row: Row) -> None:
    """Told apart by all they have observed, the operations reach the same ends, no sooner and no later."""
    merged, apart = explore(row), explore(row, merge=False)
    assert apart.states > merged.states
    assert {k: len(v) for k, v in apart.traces.items()} == {k: len(v) for k, v in merged.traces.items()}
    assert apart.outcomes == merged.outcomes


@pytest.mark.parametrize(
    ("outcomes", "broken"),
    [
        (["x1", "x1", "x2", "x2"], set()),
        (["x1", "x2", "x1"], {"stale"}),
        (["x1", None, "x2"], set()),
        (["x1", None, "x1"], {"stale"}),
    ],
)
def test_reads_one_after_another_never_go_back(outcomes: list[str | None], broken: set[str]) -> None:
    """No put of these values has been acknowledged: what was read counts, and so does a miss."""
    row = Row("empty store", "get x", init="")
    world = World(row, World.initial(row, (0,)))
    found: list[set[str]] = []
    for value in outcomes:
        world.begin(0, ("get", "x", ""))
        found.append(world.finish(0, ("value", value, value) if value else ("miss",)))
    assert found == [set()] * (len(outcomes) - 1) + [broken]


def test_a_trace_can_be_read() -> None:
    trace = searched(next(row for row in BAD if row.title == "no re-check")).traces["bytes"]
    assert "1 get x: get bucket -> 0.0 0" in trace
    assert "0 evict x: cas 0 0.0 0 -> True" in trace
    assert trace[-1].startswith("1 get x: get part 0 ") and " => value " in trace[-1]


def main(arguments: list[str]) -> bool:
    """Print the table of all rows and their twins; with numbers only those, with their shortest traces."""
    chosen = {int(text) for text in arguments if text.isdigit()}
    unknown = [text for text in arguments if not text.isdigit() and text != "--all"]
    if unknown:
        print(f"unknown arguments {unknown}: expected --all or numbers of rows")
        return True
    rows, wrong = [*ROWS, *map(twin, BAD)], 0
    print(f"{'':>3} {'configuration':60} {'states':>9} {'s':>6}  broken (steps of the shortest trace)")
    for number, row in enumerate(rows, 1):
        if number not in chosen if chosen else row.big and "--all" not in arguments:
            continue
        result = explore(row)
        good = set(result.traces) == set(row.breaks.split())
        wrong += not good
        broken = " ".join(f"{name}({len(trace)})" for name, trace in sorted(result.traces.items()))
        end = "" if good else f"  UNEXPECTED, not '{row.breaks}'"
        print(f"{number:3} {row.title:60} {result.states:9} {result.seconds:6.1f}  {broken}{end}", flush=True)
        if chosen and result.traces:
            print(complaint(row, result))
    print(f"{wrong} rows are not as expected" if wrong else "all as expected")
    return wrong > 0
