"""An exhaustive model of the store's protocol: every interleaving of a few operations in a small store.

Covers the index words of one bucket, cells (payload in halves), descriptors, hazard-slot pins, limbo,
reuse with bounded generations, the hard bit that anybody may toggle and the count of hard words, and get,
view, put, delete, protect, unprotect, evict, move, drop and sweep as the store does them, with CAS publishing
and the look at the bucket after it; the copy table of a node (one word), with "copy" (read a block, then keep a
copy), "near" (a get that may find the copy) and "demote" (its manager takes it out). Covers aliases too:
"name xc" lets content c be stored, unless it is, and gives it the name x; gets and views go through them, "protect x"
reaches the content, "collect c" lets it be evicted again if no name of it is protected. Does not cover memory fences
(a step is atomic and steps are sequentially consistent: see the assembly tests), clocks, leases (see `pool_model`), and
the disk tier.

How it works. An operation is a generator: it yields one remote action at a time, as plain data, and is
sent what the action observed. A list of actions means that any of them may come first. The explorer
applies actions to an immutable state and searches breadth first, so the first trace that breaks a
property is a shortest one. The local state of an operation is its suspended frame (where it stands and
its variables), so two histories that left the same variables behind are one state; `merge=False`
tells every history apart instead and is the check on that shortcut.

Properties::

    bytes      a get or view returned anything but one whole value that was put under its key
    dangling   a word names a cell that is free, in limbo or being written, or another generation of it
    lost       a get missed a key that was acknowledged before it began and never evicted or deleted
    bound      the same, only because the bound on retries was reached
    stale      a get returned a value that an earlier acknowledgement, read, miss or delete had superseded
    double     nobody is writing a key, and two words name cells of it
    evicted    an evict took a block away whose protection had been acknowledged, and that nobody had unprotected; of a
               name also if it took its content
    quota      more hard words stand in the index than the quota allows
    count      all is quiet, and another number of hard words is counted than stand in the index
    leak       all is quiet and swept, and a cell is neither free nor named, or a pin is still set
    stuck      all is quiet, and an operation has not ended

`python tests/unit/protocol_model.py [--all] [NUMBER ...]` prints a table of the configurations that
`test_protocol_model` lists; with numbers only those, with their shortest traces. The exit status is 1 if
one does not break exactly what it should break.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Action = tuple[Any, ...]
Operation = Generator[Action | list[Action], Any, tuple[Any, ...]]

FREE, WRITING, PUBLISHING, LIVE, LIMBO = "free", "writing", "publishing", "live", "limbo"
UNDER_WAY = object()  # what a blocked action observes: nothing, its process cannot go on now
SILENT = {"take", "owned", "settle", "enter"}  # in the manager's own table: one step with the action that follows
PUTS = ("put", "keep", "name")
READS = {"get bucket", "get slot", "get slot R", "get word", "get part", "get copy", "look at pins"}  # change nothing


@dataclass(frozen=True)
class Rules:
    """The protocol, as the store follows it; a mutation replaces one field."""

    recheck: str = "after"  # the word is read again: after the payload | any time | never
    compare_key: bool = True  # the reader looks at the full key in the descriptor
    compare_generation: bool = True
    reader_mismatch: str = "ask"  # the descriptor is another's: ask the word | it is a "miss"
    writer_mismatch: str = "ask"  # the same for the look-up of put and delete: ask | the key is "absent"
    retries: int = 3  # attempts after the first in which the word may change under a get
    fallback: str = "pin"  # after those: pin and read | "miss"
    pin: str = "first"  # view: pin, then read the word again | "late", after it | "none"
    unpin: bool = True  # a view gives its pin back
    heed_pins: bool = True  # a pinned cell is not reused
    look_at_pins: str = "after"  # reclaim looks at the pins after the word has left | "before"
    flush_removal: bool = True  # a cell is reused only after its removal is known to have landed
    in_place: str = "never"  # a replace writes into its old cell: never | "always" | if its word is "gone"
    invalidate: bool = True  # a cell's old descriptor is made invalid before its payload changes
    publish: str = "last"  # after payload and descriptor | "first"
    post_check: str = "repeat"  # look for doubles after a publish, until none is left | "once" | "none"
    post_check_mismatch: str = "ask"  # as writer_mismatch, after the publish
    removal: str = "downwards"  # doubles leave from the highest slot down | "upwards"
    delete: str = "all"  # words of the key | the "first"
    own_word: str = "either"  # a manager finds its word with either hard bit | "exact"ly as it wrote it
    failed_cas: str = "look"  # on an own word: look what stands there | the word is "gone"
    evict_hard: bool = False  # evict takes a word that has become hard
    toggle: str = "cas"  # protect sets the bit by CAS | "put"
    carry: bool = True  # a move takes the hard bit along
    count: str = "first"  # protect counts the block before its bit is set | "after"
    uncount: bool = True  # who takes a hard word away gives its count back
    sweep: str = "live"  # takes cells that are acknowledged | also those "under way"
    guard: bool = True  # reclaim asks that the cell is still live in the generation that was found gone
    final_sweep: bool = True  # managers sweep once all is quiet
    copy_origin: str = "first"  # a copy counts if its origin is the key's first word | "any" word | "unasked"
    copy_same: str = "cell and generation"  # of the origin, with either hard bit | the "cell" alone
    copy_recheck: bool = True  # the copy's word is read again after its payload
    demote: str = "word first"  # a copy's word leaves before its cell is reused | "cell first"
    second_look: bool = True  # who has published an alias looks whether the content is still there
    look_order: str = "alias first"  # that look comes after the alias is published | "look first"
    store_again: str = "own alias"  # the full block goes over the own alias | over "any" word, or none
    alias_recheck: bool = True  # a reader looks at the alias's word again behind the content
    shield: str = "content first"  # protect of a name sets the content's bit and then its own | the "name" alone
    unshield: str = "name"  # unprotect of a name takes its own bit | that of its "content" too
    collect_alone: bool = True  # nobody protects or puts by content meanwhile


@dataclass(frozen=True)
class Row:
    """One configuration: the store, the programs of its processes, and the properties they must break."""

    title: str
    programs: str  # of the processes, separated by "|"; operations by ","; "put x1", "keep x1" (protected), "get x"
    breaks: str = ""
    rules: Rules = field(default_factory=Rules)
    init: str = "x1"  # values published beforehand: the n-th is in slot and cell n; "-" leaves that slot empty; "xc"
    cells: str = "01"  # the managing rank of each cell
    ranks: str = "0123"  # the rank of each process; two processes of one rank are its threads
    slots: int = 2
    generations: int = 99
    quota: int = 99  # hard words that may stand in the index
    halves: str = "AB"  # "A": payloads are one piece, for rows in which tearing is no question
    stores: str = "in order"  # of a put: A, B, descriptor | "any order" | "at once", where no cell is reused
    reuse: str = "fifo"
    rest: bool = False  # a freed cell rests until every attempt that was under way is over
    torn: str = ""  # the words of a bucket arrive one by one: "down" from the highest | "up" | "any" order
    one_fingerprint: bool = True  # all keys share it
    big: bool = False  # not in the default set


class Word(NamedTuple):
    """An index word; 0 is the empty one."""

    fingerprint: str
    cell: int
    generation: int
    hard: bool = False
    alias: bool = False


def counts(word: Any) -> bool:
    """Whether a word counts against the quota: a name has no bytes."""
    return bool(word) and word.hard and not word.alias


def same(one: Any, other: Any) -> bool:
    """Whether two words, or 0, name the same cell in the same generation."""
    return bool(one) and bool(other) and one[:3] == other[:3]


class Protocol:
    """The operations, each a generator of remote actions that returns its outcome."""

    def __init__(self, row: Row) -> None:
        self.rules, self.row = row.rules, row

    def matching(self, words: tuple[Any, ...], key: str) -> tuple[tuple[int, Word], ...]:
        """Slots and words of `words` that have the fingerprint of `key`, lowest slot first."""
        mark = "*" if self.row.one_fingerprint else key
        return tuple((slot, word) for slot, word in enumerate(words) if word and word[0] == mark)

    def is_of(self, descriptor: Any, key: str, word: Word) -> bool:
        """Whether a descriptor says that `word` names a cell of `key`."""
        if descriptor is not None and word.alias:
            descriptor = descriptor[:2]
        return descriptor is not None and descriptor == (
            key if self.rules.compare_key else descriptor[0],
            word.generation if self.rules.compare_generation else descriptor[1],
        )

    def mine(self, me: int, word: Word) -> bool:
        return self.row.cells[word.cell] == self.row.ranks[me]

    def standing(self, words: tuple[Any, ...], own: Word) -> tuple[int | None, Any]:
        """Slot and word, as it stands there, of an own word: anybody may have toggled its hard bit."""
        for slot, word in enumerate(words):
            if word == own or (self.rules.own_word == "either" and same(word, own)):
                return slot, word
        return None, 0

    def stands(self, origin: Word, words: tuple[Any, ...]) -> bool:
        """Whether the block that was copied is one that these words name, with whatever hard bit by now."""
        if self.rules.copy_same == "cell":
            return any(word.cell == origin.cell for word in words)
        return any(same(word, origin) for word in words)

    # The parts that operations share.

    def bucket(self) -> Operation:
        """Get the words of the bucket."""
        if not self.row.torn:
            words = yield ("get bucket",)
            return words
        seen, left = (), tuple(range(self.row.slots))
        while left:
            first = {"down": left[-1:], "up": left[:1], "any": left}[self.row.torn]
            slot, word = yield [("get slot", slot) for slot in first]
            seen, left = tuple(sorted((*seen, (slot, word)))), tuple(s for s in left if s != slot)
            del slot, word, first
        return tuple(word for _, word in seen)

    def fetch(self, parts: str, slot: int, word: Word) -> Operation:
        """Get some parts of a cell in any order: descriptor, payload, and perhaps the word again ("R")."""
        got = ()
        while parts:
            part, content = yield [("get part", word.cell, p) if p != "R" else ("get slot R", slot) for p in parts]
            got, parts = tuple(sorted((*got, (part, content)))), parts.replace(part, "")
            del part, content
        return got

    def look_up(self, key: str, mismatch: str, known: Any = None) -> Operation:
        """The words of `key` for a writer, and the free slots; `known` is a word that needs no proof."""
        while True:
            words = yield from self.bucket()
            hits = ()
            for slot, word in self.matching(words, key):
                if word == known:
                    hits += ((slot, word),)
                    continue
                _, descriptor = yield ("get part", word.cell, "D")
                if self.is_of(descriptor, key, word):
                    hits += ((slot, word),)
                elif mismatch == "ask":
                    now = yield ("get word", slot)
                    if now != word:  # it moved or left while we looked: the bucket is out of date
                        break
                    del now
                del descriptor
            else:
                return hits, tuple(slot for slot, word in enumerate(words) if not word)

    def fill(self, word: Word, key: str, value: str) -> Operation:
        """Write payload and descriptor of a cell that no word names."""
        if self.row.stores == "at once":
            yield ("fill", word, key, value)
            return ()
        if self.rules.invalidate:
            yield ("store", word.cell, "D", None)
        parts = self.row.halves + "D"
        while parts:
            first = parts if self.row.stores == "any order" else parts[0]
            part = yield [("store", word.cell, p, (key, word.generation) if p == "D" else value) for p in first]
            parts = parts.replace(part, "")
            del part, first
        return ()

    def remove(self, me: int, slot: int, word: Word) -> Operation:
        """CAS a word away; if this rank manages its cell, reclaim that. Tells whether the CAS found the word."""
        unpinned = None
        if self.mine(me, word) and self.rules.look_at_pins == "before":
            unpinned = yield ("look at pins", word.cell)
        removed = yield ("cas", slot, word, 0)
        if removed and counts(word) and self.rules.uncount:
            yield ("uncount",)
        # Not found, an own word may have left, or its hard bit has been toggled: who must know looks again.
        if self.mine(me, word) and (removed or self.rules.failed_cas == "gone"):
            yield ("reclaim", word, unpinned)
        return removed

    # Readers.

    def get(self, me: int, key: str) -> Operation:
        rules, tries = self.rules, 0
        while tries <= rules.retries:
            words = yield from self.bucket()
            candidates = self.matching(words, key)
            del words
            for slot, word in candidates:
                parts = "D" + self.row.halves * (not word.alias) + "R" * (rules.recheck == "any")
                got = yield from self.fetch(parts, slot, word)
                now = dict(got).get("R", word)
                right = self.is_of(dict(got)["D"], key, word)
                if not right and rules.reader_mismatch == "miss":
                    return ("miss",)
                if rules.recheck == "after":
                    now = yield ("get word", slot)
                if now != word:  # whatever was read is void
                    break
                if right and word.alias:
                    content = dict(got)["D"][2]
                    del got, now, right
                    outcome = yield from self.get(me, content)
                    now = (yield ("get word", slot)) if rules.alias_recheck else word
                    if now != word:
                        break
                    return self.through(key, content, outcome)
                if right:
                    return ("value", *(dict(got)[half] for half in self.row.halves))
                del got, now, right  # confirmed: another key with this fingerprint
            else:
                return ("miss",)
            got = now = right = content = outcome = None
            tries += 1
        if rules.fallback == "miss":
            return ("bound",)
        outcome = yield from self.view(me, key)
        return outcome

    def through(self, key: str, content: str, outcome: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a read of a content means to who asked for a name of it: of content c under name x the value is xc."""
        if outcome[0] != "value":
            return ("hollow",) if outcome[0] == "miss" else outcome
        return ("value", *(key + content if half == content + "1" else half for half in outcome[1:]))

    def view(self, me: int, key: str) -> Operation:
        """Pin, read in place, unpin; the reads stand for a user who looks at the bytes later."""
        pinning = self.rules.pin
        while True:
            words = yield from self.bucket()
            candidates = self.matching(words, key)
            del words
            for slot, word in candidates:
                if word.alias:  # what is pinned is the content
                    _, descriptor = yield ("get part", word.cell, "D")
                    now = yield ("get word", slot)
                    if now != word:
                        break
                    if not self.is_of(descriptor, key, word):
                        del now, descriptor
                        continue
                    content = descriptor[2]
                    del now, descriptor
                    outcome = yield from self.view(me, content)
                    now = (yield ("get word", slot)) if self.rules.alias_recheck else word
                    if now != word:
                        break
                    return self.through(key, content, outcome)
                if pinning == "first":
                    yield ("pin", word)
                now = yield ("get word", slot)
                if now != word:
                    if pinning == "first":
                        yield ("unpin",)
                    break
                if pinning == "late":
                    yield ("pin", word)
                _, descriptor = yield ("get part", word.cell, "D")
                if self.is_of(descriptor, key, word):
                    got = yield from self.fetch(self.row.halves, slot, word)
                    if pinning != "none" and self.rules.unpin:
                        yield ("unpin",)
                    return ("value", *(half for _, half in got))
                if pinning != "none":
                    yield ("unpin",)
                del now, descriptor
            else:
                return ("miss",)
            now = descriptor = content = outcome = None

    def near(self, me: int, key: str) -> Operation:
        """A get by a rank whose node may have a copy; any doubt is left to the get."""
        rules = self.rules
        words = yield from self.bucket()
        candidates = self.matching(words, key)
        del words
        copy = (yield ("get copy",)) if candidates else 0
        if copy:
            _, descriptor = yield ("get part", copy.cell, "D")
            origins = tuple(word for _, word in candidates)
            origins = origins[:1] if rules.copy_origin == "first" else origins
            is_copy = descriptor is not None and descriptor[:2] == (key, copy.generation) and len(descriptor) == 3
            if is_copy and (rules.copy_origin == "unasked" or self.stands(descriptor[2], origins)):
                got = yield from self.fetch(self.row.halves, 0, copy)
                now = copy
                if rules.copy_recheck:
                    now = yield ("get copy",)
                if now == copy:
                    return ("value", *(half for _, half in got))
                got = now = None
            del descriptor, origins, is_copy
        candidates = copy = None
        outcome = yield from self.get(me, key)
        return outcome

    # Writers.

    def copy(self, me: int, key: str) -> Operation:
        """Read a block as a get does; if nothing was in doubt keep a copy of it for the node."""
        words = yield from self.bucket()
        candidates = self.matching(words, key)
        del words
        if not candidates:
            return ("nothing",)
        slot, origin = candidates[0]
        got = yield from self.fetch("D" + self.row.halves, slot, origin)
        now = yield ("get word", slot)
        if now != origin or not self.is_of(dict(got)["D"], key, origin):
            return ("gave up",)
        value = dict(got)["A"]
        del got, now, candidates, slot
        new = yield ("take", key.upper())
        if new is None:
            return ("refused",)
        yield ("store", new.cell, "D", None)
        for half in self.row.halves:
            yield ("store", new.cell, half, value)
        yield ("store", new.cell, "D", (key, new.generation, origin))
        old = yield ("get copy",)
        published = yield ("publish copy", old, new)
        if not published:
            yield ("reclaim", new, None)
            return ("gave up",)
        if old and self.mine(me, old):
            yield ("reclaim", old, None)
        return ("copied", value, new)

    def demote(self, me: int, key: str) -> Operation:
        """Take the own copy of `key` out of the node's table."""
        word, _ = yield ("owned", key.upper())
        if word is None:
            return ("nothing",)
        if self.rules.demote == "cell first":
            yield ("reclaim", word, None)
            yield ("cas copy", word, 0)
            return ("demoted",)
        yield ("cas copy", word, 0)
        yield ("reclaim", word, None)
        return ("demoted",)

    def keep(self, me: int, key: str, value: str) -> Operation:
        """Put a protected block."""
        outcome = yield from self.put(me, key, value, hard=True)
        return outcome

    def put(self, me: int, key: str, value: str, hard: bool = False) -> Operation:
        """Put or replace: always into a cell from the free list, in a new generation."""
        rules = self.rules
        if hard:
            counted = yield ("count",)
            if not counted:
                return ("over quota",)
            del counted
        new = yield ("take", key)
        if new is None:
            if hard:
                yield ("uncount",)
            return ("refused",)
        new = new._replace(hard=hard)
        if rules.publish == "last":
            yield from self.fill(new, key, value)
        outcome = yield from self.install(me, key, value, new)
        return outcome

    def name(self, me: int, key: str, value: str) -> Operation:
        """Let a content be stored, give it a name, look whether it is still there; if not the full block is put."""
        yield from self.beside_collect("enter shared")
        outcome = yield from self.named(me, key, value)
        yield from self.beside_collect("leave")
        return outcome

    def named(self, me: int, key: str, value: str) -> Operation:
        rules, content = self.rules, value[1]
        alias = yield ("take", key)
        if alias is None:
            return ("refused",)
        alias = alias._replace(alias=True)
        hits, _ = yield from self.look_up(content, rules.writer_mismatch)
        if not hits:
            new = yield ("take", content)
            if new is None:
                yield ("reclaim", alias, None)
                return ("refused",)
            yield from self.fill(new, content, content + "1")
            outcome = yield from self.install(me, content, content + "1", new, keep=True)
            if outcome[0] == "refused":
                yield ("reclaim", alias, None)
                return ("refused",)
            if outcome[0] != "kept":
                yield ("enter", new)
            del new, outcome
        del hits
        if rules.look_order == "look first":
            hits, _ = yield from self.look_up(content, rules.writer_mismatch)
        yield ("store", alias.cell, "D", None)
        yield ("store", alias.cell, "D", (key, alias.generation, content))
        outcome = yield from self.install(me, key, value, alias)
        if outcome[0] == "refused" or not rules.second_look:
            return outcome
        if rules.look_order == "alias first":
            yield ("settle", key)
            hits, _ = yield from self.look_up(content, rules.writer_mismatch)
        if hits:
            return outcome
        del hits
        new = yield ("take", key)
        if new is None:
            words = yield from self.bucket()
            slot, there = self.standing(words, alias)
            if slot is None:
                yield ("reclaim", alias, None)
            else:
                yield from self.remove(me, slot, there)
            return ("gave way",)
        yield from self.fill(new, key, value)
        yield ("enter", alias)
        over = alias if rules.store_again == "own alias" else None
        again = yield from self.install(me, key, value, new, over=over)
        return outcome if again[0] == "given up" else again

    def install(
        self, me: int, key: str, value: str, new: Word, keep: bool = False, over: Word | None = None
    ) -> Operation:
        """Publish the word of a cell that is written, and leave one word of its key."""
        rules, hard = self.rules, new.hard
        while True:
            hits, empty = yield from self.look_up(key, rules.writer_mismatch)
            if (keep and hits) or (over and (not hits or hits[0][1] != over)):
                yield ("reclaim", new, None)
                return ("kept",) if keep else ("given up",)
            if not hits and not empty:
                if hard:
                    yield ("uncount",)
                yield ("reclaim", new, None)
                return ("refused",)
            slot, old = hits[0] if hits else (empty[0], 0)
            published = yield ("publish", slot, old, new)
            if published:
                break
        if rules.publish == "first":
            yield from self.fill(new, key, value)
        if counts(old) and rules.uncount:
            yield ("uncount",)
        if old and old != new and self.mine(me, old):
            yield ("reclaim", old, None)
        del slot, old, hits, empty, published
        if rules.post_check == "none":
            return ("stored", value, new)
        while True:
            hits, _ = yield from self.look_up(key, rules.post_check_mismatch, known=new)
            if self.standing(tuple(word for _, word in hits), new)[0] is None:
                yield ("reclaim", new, None)  # somebody replaced or removed it already: stored, and superseded
                return ("superseded", value, new)
            losers = hits[1:] if rules.removal == "upwards" else hits[:0:-1]
            clean = True
            for slot, word in losers:
                removed = yield from self.remove(me, slot, word)
                clean, removed = clean and removed, None
            if clean or rules.post_check == "once":
                return ("stored" if same(hits[0][1], new) else "superseded", value, new)
            slot = word = None

    def delete(self, me: int, key: str) -> Operation:
        while True:
            hits, _ = yield from self.look_up(key, self.rules.writer_mismatch)
            if not hits:
                return ("deleted",)
            if self.rules.delete == "first":
                hits = hits[:1]
            hits = hits if self.rules.removal == "upwards" else hits[::-1]
            for slot, word in hits:
                yield from self.remove(me, slot, word)
            if self.rules.delete == "first":
                return ("deleted",)
            slot = word = None

    def protect(self, me: int, key: str) -> Operation:
        """Toggle the hard bit of the word that counts, whoever manages its cell; of a name its content's first."""
        yield from self.beside_collect("enter shared")
        outcome = yield from self.shielded(me, key)
        yield from self.beside_collect("leave")
        return outcome

    def shielded(self, me: int, key: str) -> Operation:
        rules = self.rules
        while True:
            hits, _ = yield from self.look_up(key, rules.writer_mismatch)
            if not hits:
                return ("absent",)
            slot, word = hits[0]
            if word.alias and rules.shield == "content first":
                _, descriptor = yield ("get part", word.cell, "D")
                outcome = yield from self.shielded(me, descriptor[2])
                hits, _ = yield from self.look_up(key, rules.writer_mismatch)
                if not hits or hits[0] != (slot, word):
                    del descriptor, outcome, hits, slot, word
                    continue  # it names something else by now
                if outcome[0] == "absent":
                    return ("hollow",)
                if outcome[0] != "protected":
                    return outcome
                del descriptor, outcome
            if word.hard:
                return ("protected", word)
            if rules.count == "first" and not word.alias:
                counted = yield ("count",)
                if not counted:
                    return ("over quota",)
                del counted
            swapped = yield (rules.toggle, slot, word, word._replace(hard=True))
            if swapped and rules.count == "after":
                counted = yield ("count",)
                if not counted:
                    yield ("cas", slot, word._replace(hard=True), word)
                    return ("over quota",)
            if swapped:
                return ("protected", word)
            if not word.alias:
                yield ("uncount",)
            del hits, slot, word, swapped

    def unprotect(self, me: int, key: str) -> Operation:
        while True:
            hits, _ = yield from self.look_up(key, self.rules.writer_mismatch)
            if not hits:
                return ("absent",)
            slot, word = hits[0]
            if not word.hard:
                return ("unprotected",)
            swapped = yield ("cas", slot, word, word._replace(hard=False))
            if swapped and not word.alias:
                yield ("uncount",)
            if swapped:
                break
            del hits, slot, word, swapped
        if word.alias and self.rules.unshield == "content":
            _, descriptor = yield ("get part", word.cell, "D")
            yield from self.unprotect(me, descriptor[2])
        return ("unprotected",)

    def collect(self, me: int, content: str) -> Operation:
        """Let a content be evicted again if no name of it, on any rank, is protected any more."""
        yield from self.beside_collect("enter alone")
        shields = yield ("shields", content)
        if not shields:
            yield from self.unprotect(me, content)
        yield from self.beside_collect("leave")
        return ("collected",)

    def beside_collect(self, action: str) -> Operation:
        """The lock that collect takes on all ranks, and whoever protects or puts by content on its own."""
        if "collect" in self.row.programs and self.rules.collect_alone:
            yield (action,)

    # Managers.

    def evict(self, me: int, key: str, *, forced: bool = False) -> Operation:
        """Take the own live cell of `key` out of the index, unless its word is a hard one."""
        word, _ = yield ("owned", key)
        if word is None:
            return ("nothing",)
        while True:
            words = yield from self.bucket()
            slot, there = self.standing(words, word)
            del words
            if slot is None:
                yield ("reclaim", word, None)
                return ("evicted",)
            if there.hard and not forced and not self.rules.evict_hard:
                return ("spared",)
            if not self.rules.flush_removal:
                yield ("cas unflushed", slot, there, 0)
                return ("evicted",)
            removed = yield from self.remove(me, slot, there)
            if removed or self.rules.failed_cas == "gone":
                return ("evicted",)
            del slot, there, removed

    def drop(self, me: int, key: str) -> Operation:
        """The same, hard or not: clear, a passed epoch, an expiry."""
        outcome = yield from self.evict(me, key, forced=True)
        return outcome

    def move(self, me: int, key: str) -> Operation:
        """Copy the own live cell of `key` into another cell, then change its word; no word changes its slot."""
        old, value = yield ("owned", key)
        if old is None:
            return ("nothing",)
        new = yield ("take", key)
        if new is None:
            return ("refused",)
        if old.alias:
            _, descriptor = yield ("get part", old.cell, "D")
            new = new._replace(alias=True)
            yield ("store", new.cell, "D", None)
            yield ("store", new.cell, "D", (key, new.generation, descriptor[2]))
            del descriptor
        else:
            yield from self.fill(new, key, value)
        while True:
            words = yield from self.bucket()
            slot, there = self.standing(words, old)
            del words
            moved = slot is not None
            if not moved:
                break
            new = new._replace(hard=there.hard and self.rules.carry)
            moved = yield ("publish", slot, there, new)
            if moved or self.rules.failed_cas == "gone":
                break
            del slot, there, moved
        if moved and counts(there) and not new.hard:
            yield ("uncount",)
        yield ("reclaim", old, None)
        if moved:
            return ("moved", value, new)
        yield ("reclaim", new, None)
        return ("gave up",)

    def sweep(self, me: int, _: str) -> Operation:
        """Reclaim the own cells that no word names any more, but not those whose publish is under way."""
        todo = yield ("live cells",)
        for word in todo:
            words = yield from self.bucket()
            if self.standing(words, word)[0] is None:
                yield ("reclaim", word, None)
            del words
        return ("swept",)


class Machine:
    """The local states of all processes, numbered; it runs each generator once per state and observation."""

    def __init__(self, row: Row, merge: bool) -> None:
        self.protocol, self.merge = Protocol(row), merge
        self.programs = [[self._parse(text) for text in program.split(",")] for program in row.programs.split("|")]
        self.alternatives: list[tuple[Action, ...]] = []  # of each local state: the actions it may do next
        self.op: list[tuple[str, str, str] | None] = []  # the operation it is in; None: the program is over
        self.fresh: list[bool] = []  # the operation has done nothing yet
        self._histories: list[tuple[int, int, tuple[Any, ...]]] = []
        self._numbers: dict[Any, int] = {}
        self._next: dict[tuple[int, Any], tuple[int, Any]] = {}
        self.first = tuple(self._start(process, 0) for process in range(len(self.programs)))

    @staticmethod
    def _parse(text: str) -> tuple[str, str, str]:
        name, *argument = text.split()
        value = argument[0] if argument else ""
        return name, value[:1], value if name in PUTS else ""

    def advance(self, local: int, observed: Any) -> tuple[int, Any]:
        """The local state after an observation, and the outcome if the operation has ended, else None."""
        if (local, observed) not in self._next:
            process, index, history = self._histories[local]
            self._next[local, observed] = self._run(process, index, (*history, observed))
        return self._next[local, observed]

    def _start(self, process: int, index: int) -> int:
        if index == len(self.programs[process]):
            return self._number((process, "over"), None, (), (process, index, ()))
        return self._run(process, index, ())[0]

    def _run(self, process: int, index: int, history: tuple[Any, ...]) -> tuple[int, Any]:
        """Replay an operation from its start: generators cannot be copied, but they are deterministic."""
        op = self.programs[process][index]
        arguments = op[1:] if op[0] in PUTS else op[1:2]
        generator = getattr(self.protocol, op[0])(process, *arguments)
        try:
            request = next(generator)
            for observed in history:
                request = generator.send(observed)
        except StopIteration as end:
            return self._start(process, index + 1), end.value
        frame = self._frames(generator) if self.merge else history
        actions = tuple(request) if isinstance(request, list) else (request,)
        return self._number((process, index, frame, actions), op, actions, (process, index, history)), None

    @staticmethod
    def _frames(generator: Any) -> tuple[Any, ...]:
        """What the rest of a suspended operation depends on.

        The value stack is not seen: operations therefore loop only over tuples without repeats, with the
        loop variables kept, and hold nothing across a yield that is not in a variable.
        """
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
            self.alternatives.append(actions)
            self.fresh.append(not history[2])
        return self._numbers[state]


FIELDS = (
    "slots", "payloads", "descriptors", "table", "free", "pins", "pending", "local", "begun",
    "acknowledged", "known", "dead", "disturbed", "counted", "shielded", "loose", "wronged", "copy", "hollow",
    "behind", "inside",
)  # fmt: skip


class World:
    """One state, thawed: an action or a step of the bookkeeping changes it, `freeze` gives the new state.

    slots, payloads, descriptors, pins and `counted` (hard words) are shared memory; `table` (status, generation,
    key of each cell) and `free` (in order of their release) belong to the managers; `pending` are unflushed CASes;
    `copy` is the word of the node's copy table, whose cell has its key in capitals in `table`. The others are the
    ghosts of the properties: what each process knew when its operation began; keys acknowledged; values known to
    readers or putters; values superseded; keys ever evicted or deleted; cells and generations of which the
    protection is acknowledged; keys that anybody ever began to unprotect; whether one of the shielded was evicted;
    `hollow` are names whose content was taken away while they stood; `behind` are the protected names with the cells
    and generations of their contents. `inside` are those who hold the lock of collect, -1 stands for collect itself.
    """

    __slots__ = ("row", *FIELDS)

    def __init__(self, row: Row, state: tuple[Any, ...]) -> None:
        self.row = row
        (slots, payloads, descriptors, table, free, pins, self.pending, local, begun,
         self.acknowledged, self.known, self.dead, self.disturbed,
         self.counted, self.shielded, self.loose, self.wronged, self.copy, self.hollow,
         self.behind, self.inside) = state  # fmt: skip
        self.slots, self.payloads, self.descriptors = list(slots), list(payloads), list(descriptors)
        self.table, self.free, self.pins = list(table), free, list(pins)
        self.local, self.begun = list(local), list(begun)

    @classmethod
    def initial(cls, row: Row, local: tuple[int, ...]) -> tuple[Any, ...]:
        """The state before the first step."""
        cells, processes = len(row.cells), len(local)
        nothing = (None,) * len(row.halves)
        world = cls(
            row,
            ((0,) * row.slots, (nothing,) * cells, (None,) * cells, ((FREE, 0, ""),) * cells, (), (0,) * processes,
             (), local, ((),) * processes, frozenset(), frozenset(), frozenset(), frozenset(),
             0, frozenset(), frozenset(), False, 0, frozenset(), frozenset(), frozenset()),
        )  # fmt: skip
        for place, value in enumerate(row.init.split()):
            if value == "-":
                continue
            key = value[0]
            alias = value[1].isalpha()
            world.table[place], world.descriptors[place] = (LIVE, 0, key), (key, 0, *value[1] * alias)
            world.payloads[place] = nothing if alias else (value,) * len(row.halves)
            world.slots[place] = world.word(place)._replace(alias=alias)
            world.known |= {value}
            world.acknowledged |= {key}
        world.free = tuple((cell, frozenset()) for cell in range(cells) if world.table[cell][0] == FREE)
        return world.freeze()

    def freeze(self) -> tuple[Any, ...]:
        return (
            tuple(self.slots), tuple(self.payloads), tuple(self.descriptors), tuple(self.table), self.free,
            tuple(self.pins), self.pending, tuple(self.local), tuple(self.begun),
            self.acknowledged, self.known, self.dead, self.disturbed,
            self.counted, self.shielded, self.loose, self.wronged, self.copy, self.hollow,
            self.behind, self.inside,
        )  # fmt: skip

    def word(self, cell: int) -> Word:
        _, generation, key = self.table[cell]
        return Word("*" if self.row.one_fingerprint else key, cell, generation)

    def values(self, values: frozenset[str], key: str) -> frozenset[str]:
        return frozenset(value for value in values if value[0] == key)

    # Actions.

    def do(self, me: int, action: Action) -> Any:
        """Apply one action of process `me`; what it observes."""
        name, *rest = action
        return getattr(self, "_" + name.replace(" ", "_"))(me, *rest)

    def _get_bucket(self, me: int) -> Any:
        self._end_attempt(me)
        return tuple(self.slots)

    def _get_slot(self, me: int, slot: int) -> Any:
        return slot, self.slots[slot]

    def _get_slot_R(self, me: int, slot: int) -> Any:
        return "R", self.slots[slot]

    def _get_word(self, me: int, slot: int) -> Any:
        return self.slots[slot]

    def _get_part(self, me: int, cell: int, part: str) -> Any:
        return part, self.descriptors[cell] if part == "D" else self.payloads[cell]["AB".index(part)]

    def _store(self, me: int, cell: int, part: str, content: Any) -> Any:
        if part == "D":
            self.descriptors[cell] = content
        else:
            halves = list(self.payloads[cell])
            halves["AB".index(part)] = content
            self.payloads[cell] = tuple(halves)
        return part

    def _fill(self, me: int, word: Word, key: str, value: str) -> Any:
        self.payloads[word.cell] = (value,) * len(self.row.halves)
        self.descriptors[word.cell] = (key, word.generation)

    def _cas(self, me: int, slot: int, old: Any, new: Any) -> Any:
        if self.slots[slot] != old:
            return False
        self.slots[slot] = new
        self._note_names(old, new)
        if me >= 0 and old:
            names = {name for name, *cell in self.behind if tuple(cell) == old[1:3]}
            if self.begun[me][0] == "evict" and (names or old[1:3] in self.shielded):
                self.wronged = True
            if self.begun[me][0] == "move":  # a replace makes another block
                self.behind |= {(name, *new[1:3]) for name in names}
                self.shielded |= {new[1:3]} if old[1:3] in self.shielded else set()
        return True

    def _shields(self, me: int, content: str) -> bool:
        return any(w and w.alias and w.hard and self.descriptors[w.cell][-1] == content for w in self.slots)

    def _enter_shared(self, me: int) -> Any:
        if -1 in self.inside:
            return UNDER_WAY
        self.inside |= {me}
        return None

    def _enter_alone(self, me: int) -> Any:
        if self.inside:
            return UNDER_WAY
        self.inside |= {-1}
        return None

    def _leave(self, me: int) -> None:
        self.inside -= {me, -1}

    def _note_names(self, old: Any, new: Any) -> None:
        """Which names stand for a content that is not there: a miss of one is an eviction, and it may come back."""
        of = self.table[old.cell][2] if old else ""
        aliases = [word for word in self.slots if word and word.alias]
        if not new:
            self.hollow |= {self.table[word.cell][2] for word in aliases if self.descriptors[word.cell][-1] == of}
        elif new.alias:
            name, content = self.table[new.cell][2], self.descriptors[new.cell][2]
            there = any(word and self.table[word.cell][2] == content for word in self.slots)
            self.hollow = self.hollow - {name} if there else self.hollow | {name}
        else:
            self.hollow -= {self.table[new.cell][2]}

    def _settle(self, me: int, key: str) -> None:
        """From this look on a name counts as one whose content is there."""
        self.hollow -= {key}

    def _enter(self, me: int, word: Word) -> None:
        status, generation, key = self.table[word.cell]
        if generation == word.generation and status in (WRITING, PUBLISHING):
            self.table[word.cell] = (LIVE, generation, key)

    def _put(self, me: int, slot: int, old: Any, new: Any) -> Any:
        """A word written without a look at what is there."""
        self.slots[slot] = new
        return True

    def _count(self, me: int) -> bool:
        if self.row.rules.count == "first" and self.counted >= self.row.quota:
            return False
        self.counted += 1
        if self.counted > self.row.quota:
            self.counted -= 1
            return False
        return True

    def _uncount(self, me: int) -> None:
        self.counted -= 1

    def _publish(self, me: int, slot: int, old: Any, new: Word) -> Any:
        """The CAS of a new word; from here on, and until the acknowledgement, its cell is being published."""
        _, generation, key = self.table[new.cell]
        self.table[new.cell] = (PUBLISHING, generation, key)
        return self._cas(me, slot, old, new)

    def _cas_unflushed(self, me: int, slot: int, old: Any, new: Any) -> Any:
        """A removal that is under way while its cell is already given back."""
        self.pending += ((slot, old, new),)
        self._reclaim(me, old, True)

    def _get_copy(self, me: int) -> Any:
        return self.copy

    def _cas_copy(self, me: int, old: Any, new: Any) -> Any:
        found = self.copy == old
        self.copy = new if found else self.copy
        return found

    def _publish_copy(self, me: int, old: Any, new: Word) -> Any:
        _, generation, key = self.table[new.cell]
        self.table[new.cell] = (PUBLISHING, generation, key)
        return self._cas_copy(me, old, new)

    def _pin(self, me: int, word: Word) -> Any:
        self.pins[me] = word

    def _unpin(self, me: int) -> Any:
        self.pins[me] = 0

    def _look_at_pins(self, me: int, cell: int) -> bool:
        return not self.row.rules.heed_pins or not any(pin and pin[1] == cell for pin in self.pins)

    def _owned(self, me: int, key: str) -> Any:
        """The word and value of this rank's live cell of a key."""
        for cell, (status, _, of) in enumerate(self.table):
            if self.row.cells[cell] == self.row.ranks[me] and status == LIVE and of == key:
                alias = len(self.descriptors[cell]) == 3 and key.islower()
                return self.word(cell)._replace(alias=alias), self.payloads[cell][0]
        return None, None

    def _live_cells(self, me: int) -> Any:
        wanted = (WRITING, PUBLISHING, LIVE) if self.row.rules.sweep == "under way" else (LIVE,)
        return tuple(
            self.word(cell)
            for cell, (status, _, key) in enumerate(self.table)
            if status in wanted and self.row.cells[cell] == self.row.ranks[me] and not key.isupper()
        )

    def _take(self, me: int, key: str) -> Any:
        """The oldest free cell of this rank; else one in limbo whose pins have gone; None if there is neither."""
        rules, rank, old = self.row.rules, self.row.ranks[me], self._owned(me, key)[0]
        if old and (rules.in_place == "always" or (rules.in_place == "gone" and old not in self.slots)):
            self.table[old.cell] = (WRITING, *self.table[old.cell][1:])
            return old
        entries = self.free if self.row.reuse == "fifo" else self.free[::-1]
        free = [cell for cell, waiting in entries if self.row.cells[cell] == rank and not waiting]
        limbo = [c for c, (status, _, _) in enumerate(self.table) if status == LIMBO and self.row.cells[c] == rank]
        free += [cell for cell in limbo if self._look_at_pins(me, cell)]
        if not free:
            resting = any(self.row.cells[cell] == rank for cell, _ in self.free)
            return UNDER_WAY if limbo or resting else None
        self.free = tuple(entry for entry in self.free if entry[0] != free[0])
        self.table[free[0]] = (WRITING, (self.table[free[0]][1] + 1) % self.row.generations, key)
        return self.word(free[0])

    def _reclaim(self, me: int, word: Word, unpinned: bool | None) -> Any:
        """The cell of a word that has left goes to limbo and, if no pin names it, on to the free list."""
        status, generation, key = self.table[word.cell]
        if self.row.rules.guard and (status in (FREE, LIMBO) or generation != word.generation):
            return
        self.table[word.cell] = (LIMBO, generation, key)
        if unpinned if unpinned is not None else self._look_at_pins(me, word.cell):
            busy = (p for p, begun in enumerate(self.begun) if begun and self.row.ranks[p] != self.row.ranks[me])
            self.table[word.cell] = (FREE, generation, "")
            entry = (word.cell, frozenset(busy) if self.row.rest else frozenset())
            self.free = (*(e for e in self.free if e[0] != word.cell), entry)

    def _end_attempt(self, me: int) -> None:
        """This process holds no word any more that it read earlier."""
        if self.row.rest:
            self.free = tuple((cell, waiting - {me}) for cell, waiting in self.free)

    # Bookkeeping of the properties.

    def begin(self, me: int, op: tuple[str, str, str]) -> None:
        """The first action of an operation is about to happen."""
        name, key, value = op
        if name in ("evict", "delete", "drop"):
            self.disturbed |= {key}
        if name in (*PUTS, "delete"):
            self.behind = frozenset(each for each in self.behind if each[0] != key)  # it may name something else
        if name == "unprotect":
            self.loose |= {key}
            self.behind = frozenset(each for each in self.behind if each[0] != key)
            self.shielded = frozenset(each for each in self.shielded if self.table[each[0]][2] != key)
        if name in ("get", "view", "near", "protect", "unprotect"):
            must = key in self.acknowledged and key not in self.disturbed | self.hollow
            self.begun[me] = (name, key, self.values(self.known, key), self.values(self.dead, key), must)
        else:
            before = self.values(self.known, key) if name in (*PUTS, "delete") else frozenset()
            self.begun[me] = (name, key, before, *((value[1],) if name == "name" else ()))

    def finish(self, me: int, outcome: tuple[Any, ...]) -> set[str]:
        """The last action of an operation has happened; the properties that its outcome breaks."""
        (name, key, before, *reader), kind, broken = self.begun[me], outcome[0], set()
        self.begun[me] = ()
        self._end_attempt(me)
        if kind in ("stored", "superseded", "moved", "copied"):
            status, generation, of = self.table[outcome[2].cell]
            if generation == outcome[2].generation and status in (WRITING, PUBLISHING):
                self.table[outcome[2].cell] = (LIVE, generation, of)
        if (kind == "protected" or (name == "keep" and kind == "stored")) and key not in self.loose:
            self.shielded |= {outcome[-1][1:3]}
            self.behind |= {(key, *word[1:3]) for word in self.named_by(key, outcome[-1])}
        if name in PUTS and kind in ("stored", "superseded"):
            self.acknowledged |= {key}
            if name == "name" and not (self.row.rules.second_look and self.row.rules.look_order == "alias first"):
                self.hollow -= {key}  # acknowledged as if it were there
            self.known |= {outcome[1]}
            self.dead |= before - {outcome[1]}
        if kind == "deleted":
            self.dead |= before
        if kind == "value":
            value = outcome[1]
            if set(outcome[1:]) != {value} or not value or value[0] != key:
                return {"bytes"}
            broken = {"stale"} if value in reader[0] else set()
            # Known before this read began and not what it returned: somebody has written since.
            self.known |= {value}
            self.dead |= before - {value}
        excused = self.disturbed | (self.hollow if name != "protect" else {key} if self.disturbed else set())
        if kind in ("miss", "hollow", "bound", "absent") and reader[1] and key not in excused:
            broken = {"bound" if kind == "bound" else "lost"}
        if kind == "miss":
            self.dead |= before
        return broken

    def check(self) -> set[str]:
        """The properties that this state breaks."""
        broken, keys = set(), []
        for word in filter(None, self.slots):
            status, generation, key = self.table[word.cell]
            if status not in (PUBLISHING, LIVE) or generation != word.generation:
                broken.add("dangling")
            else:
                keys.append(key)
        if self.copy:
            status, generation, _ = self.table[self.copy.cell]
            if status not in (PUBLISHING, LIVE) or generation != self.copy.generation:
                broken.add("dangling")
        if len(set(keys)) < len(keys):
            writing = {begun[1] for begun in self.begun if begun and begun[0] in PUTS}
            writing |= {begun[3] for begun in self.begun if begun and begun[0] == "name"}  # its content
            if any(keys.count(key) > 1 for key in set(keys) - writing):
                broken.add("double")
        if self.wronged:
            broken.add("evicted")
        if self.hard_words() > self.row.quota:
            broken.add("quota")
        return broken

    def hard_words(self) -> int:
        return sum(1 for word in self.slots if word and word.hard and not word.alias)

    def named_by(self, key: str, name: Word) -> list[Word]:
        """The word of the content of a name, if both stand and nobody is about to change the name."""
        changing = {begun[1] for begun in self.begun if begun and begun[0] in (*PUTS, "delete")}
        if not name.alias or key in changing or not any(same(name, word) for word in self.slots):
            return []
        content = self.descriptors[name.cell][2]
        return [word for word in self.slots if word and self.table[word.cell][2] == content]

    def check_quiet(self) -> set[str]:
        """The properties broken when nobody can go on: each manager sweeps once and looks at the pins again."""
        broken = {"count"} if self.counted != self.hard_words() else set()
        for cell, (status, _, _) in enumerate(self.table):
            named = any(same(self.word(cell), word) for word in (*self.slots, self.copy))
            swept = status == LIMBO or (status == LIVE and self.row.rules.final_sweep)
            if status != FREE and not named and not (swept and self._look_at_pins(0, cell)):
                broken.add("leak")
        return broken | ({"leak"} if any(self.pins) else set())


class Result(NamedTuple):
    """What a search found: sizes, per broken property a shortest trace, and the outcomes that occurred."""

    states: int
    seconds: float
    traces: dict[str, list[str]]
    outcomes: frozenset[tuple[str, str]]


class Explorer:
    """Breadth-first search of one configuration."""

    def __init__(self, row: Row, merge: bool = True) -> None:
        self.row, self.machine = row, Machine(row, merge)
        self.outcomes: set[tuple[str, str]] = set()

    def steps(self, state: tuple[Any, ...]) -> Iterator[tuple[Any, set[str], tuple[Any, ...]]]:
        """Every step that some process, or the network, can take: its label, what it breaks, the new state."""
        machine, row = self.machine, self.row
        for process, start in enumerate(state[7]):
            for first in machine.alternatives[start]:
                world, local, action, broken = World(row, state), start, first, set()
                op = machine.op[start]
                assert op is not None
                if machine.fresh[start]:
                    world.begin(process, op)
                elif first[0] in READS and not row.rest:
                    observed = world.do(process, first)
                    local, outcome = machine.advance(start, observed)
                    if outcome is None:  # nothing is another but where this process stands
                        world.local[process] = local
                        new = (*state[:7], tuple(world.local), *state[8:])
                        yield (process, op, first, observed, None), set(), new
                        continue
                    local = start
                while (observed := world.do(process, action)) is not UNDER_WAY:
                    local, outcome = machine.advance(local, observed)
                    if outcome is not None:
                        self.outcomes.add((op[0], outcome[0]))
                        broken = world.finish(process, outcome)
                    if outcome is not None or action[0] not in SILENT:
                        world.local[process] = local
                        yield (process, op, action, observed, outcome), broken | world.check(), world.freeze()
                        break
                    action = machine.alternatives[local][0]
        for number, (slot, old, new) in enumerate(state[6]):
            world = World(row, state)
            world.pending = state[6][:number] + state[6][number + 1 :]
            landed = world._cas(-1, slot, old, new)
            yield ("network", ("", "", ""), ("cas lands", slot, old, new), landed, None), world.check(), world.freeze()

    def run(self) -> Result:
        """Visit every reachable state. States are known by their 64-bit hash; 10^6 collide with odds of 1 in 10^7."""
        began = time.perf_counter()
        state = World.initial(self.row, self.machine.first)
        origin: dict[int, tuple[int, Any] | None] = {hash(state): None}
        level, traces = [state], {}
        while level:
            following = []
            for state in level:
                number, quiet = hash(state), True
                for label, broken, new in self.steps(state):
                    quiet = False
                    for name in broken - traces.keys():
                        traces[name] = [*self._trace(origin, number), self._line(label)]
                    if (reached := hash(new)) not in origin:
                        origin[reached] = (number, label)
                        following.append(new)
                if quiet:
                    broken = World(self.row, state).check_quiet()
                    if any(self.machine.op[local] for local in state[7]):
                        broken.add("stuck")
                    for name in broken - traces.keys():
                        traces[name] = [*self._trace(origin, number), "all is quiet"]
            level = following
        return Result(len(origin), time.perf_counter() - began, traces, frozenset(self.outcomes))

    def _trace(self, origin: dict[int, tuple[int, Any] | None], number: int) -> list[str]:
        lines = []
        while (at := origin[number]) is not None:
            number, label = at
            lines.append(self._line(label))
        return lines[::-1]

    @staticmethod
    def _line(label: Any) -> str:
        process, (name, key, value), action, observed, outcome = label
        text = " ".join(map(_shown, action))
        seen = [_shown(o) for o in _flat(observed)]
        end = "" if outcome is None else " => " + " ".join(str(o) for o in outcome if not isinstance(o, Word))
        return f"{process} {name} {value or key}: {text} -> {' '.join(seen)}{end}"


def _shown(value: Any) -> str:
    return f"{value.cell}.{value.generation}{'!' * value.hard}" if isinstance(value, Word) else str(value)


def _flat(observed: Any) -> list[Any]:
    return list(observed) if isinstance(observed, tuple) and not isinstance(observed, Word) else [observed]


def explore(row: Row, merge: bool = True) -> Result:
    """Search all interleavings of a configuration."""
    return Explorer(row, merge).run()


if __name__ == "__main__":
    import test_protocol_model  # the list of configurations is kept with the tests

    sys.exit(test_protocol_model.main(sys.argv[1:]))
