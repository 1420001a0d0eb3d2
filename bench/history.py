"""Is the history of one key that of a register? The rules that `torture` holds a store to.

Covers one key: puts whose values are all different, deletes, and what reads saw, each with the time it
began and ended on one clock. Does not cover where a history comes from. Knows neither MPI nor a clock.

An operation takes effect at one moment between its begin and its end; only operations of which one ended
before the other began have an order. A value's *zone* runs from the first end to the last begin among its
put and the reads that returned it. If the first end comes before the last begin the zone is *forward*:
the register holds the value all that time. Otherwise all of them overlap and the zone is *backward*:
from the last begin to the first end. (The test of values that are all different by zones is that of
P. B. Gibbons and E. Korach, "Testing shared memories", SIAM J. Comput. 26, 1997.)

Rules, and what a history that breaks one is called:

``unknown`` (wrong)
    A read returned what no put had stored under this key.
``future`` (wrong)
    A read ended before the put of what it returned began.
``overwritten`` (stale)
    A put's zone lies inside the forward zone of another value: that value was seen before and after, so
    it came back. In the plainest case: its put ended, then a put began and ended, then a read returned it.
``reordered`` (stale)
    The forward zones of two values overlap: two reads saw the two writes in an order that cannot be.
``deleted`` (resurrected)
    A delete lies inside the forward zone of a value; where values are evicted, a look that found nothing too.
``presence`` (resurrected)
    A look that only said "it is there" began after a delete, or a look that found nothing, which
    had begun after the last put before it ended.
``lost`` (lost)
    A look found nothing, and neither the beginning of the history nor any delete can explain it: between
    that delete and the look a value is held, or a put lies. Only where nothing is evicted.

No history of a register breaks a rule. Every history of puts and reads alone that keeps the rules is one
of a register; with deletes, which all write the same "nothing", this is so but for the finest overlaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PUT, DELETE, READ, MISS, PRESENT = range(5)
Times = npt.NDArray[np.int64]

CLASSES = {
    "unknown": "wrong", "future": "wrong", "overwritten": "stale", "reordered": "stale",
    "deleted": "resurrected", "presence": "resurrected", "lost": "lost",
}  # fmt: skip
_FIRST, _LAST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class Violation(NamedTuple):
    """One broken rule. `value` is whose zone it is about (0: none), `begin` and `end` are the operation's."""

    rule: str
    value: int
    begin: int
    end: int

    @property
    def kind(self) -> str:
        """What a history that breaks this rule is called."""
        return CLASSES[self.rule]


class Zones(NamedTuple):
    """Zones of values in order of `begin`, and the latest end of all up to each."""

    begin: Times
    end: Times
    value: Times
    latest: Times
    holder: npt.NDArray[np.intp]  # the zone of which `latest` is the end


def check(
    begin: Times, end: Times, kind: Times, value: Times, *, evicts: bool, comes_back: bool = False
) -> list[Violation]:
    """Every broken rule in the history of one key.

    begin, end
        int64, any one clock; `begin` is not after `end`.
    kind, value
        PUT and READ with a value that is not 0; DELETE, MISS and PRESENT with 0. A put that was refused
        is not part of the history.
    evicts
        A value may leave by itself, but then it stays away.
    comes_back
        With `evicts`: or it may come back, as that of a name does whose content was evicted, when the content is
        stored again under another name. Only deletes and puts end it.

    ValueError: two puts of one value, or an operation that ends before it begins.
    """
    if (end < begin).any():
        raise ValueError("an operation ends before it begins")
    puts = np.flatnonzero(kind == PUT)
    puts = puts[np.argsort(value[puts], kind="stable")]
    values = value[puts]
    if (values[1:] == values[:-1]).any():
        raise ValueError("two puts have the same value")
    found: list[Violation] = []
    held_from, held_to = _clusters(begin, end, kind, value, puts, values, found)
    forward = held_from < held_to
    zones = _zones(held_from[forward], held_to[forward], values[forward])
    _reordered(zones, found)
    backward = ~forward
    _inside(zones, held_to[backward], held_from[backward], "overwritten", found)
    # Where nothing is evicted, a look that found nothing while a value was held is the look's fault: `lost`.
    removals = (kind == DELETE) | ((kind == MISS) & (evicts and not comes_back))
    _inside(zones, begin[removals], end[removals], "deleted", found)
    _presence(begin, end, kind, puts, (kind == DELETE) | ((kind == MISS) & (not comes_back)), found)
    if not evicts:
        _lost(begin, end, kind, zones, (held_to[backward], held_from[backward]), found)
    return found


def _clusters(
    begin: Times, end: Times, kind: Times, value: Times, puts: Times, values: Times, found: list[Violation]
) -> tuple[Times, Times]:
    """(first end, last begin) of each put value's operations; reads that fit no put are broken rules."""
    first_end, last_begin = end[puts].copy(), begin[puts].copy()
    reads = np.flatnonzero(kind == READ)
    at = np.searchsorted(values, value[reads])
    known = at < len(values)
    known[known] = values[at[known]] == value[reads][known]
    for i in reads[~known].tolist():
        found.append(_violation("unknown", value[i], begin[i], end[i]))
    reads, at = reads[known], at[known]
    early = end[reads] < begin[puts][at]
    for i in reads[early].tolist():
        found.append(_violation("future", value[i], begin[i], end[i]))
    reads, at = reads[~early], at[~early]
    np.minimum.at(first_end, at, end[reads])
    np.maximum.at(last_begin, at, begin[reads])
    return first_end, last_begin


def _zones(begin: Times, end: Times, value: Times) -> Zones:
    order = np.argsort(begin, kind="stable")
    begin, end, value = begin[order], end[order], value[order]
    latest = np.maximum.accumulate(end) if len(end) else end
    holder = np.maximum.accumulate(np.where(end == latest, np.arange(len(end)), 0)) if len(end) else order
    return Zones(begin, end, value, latest, holder)


def _reordered(zones: Zones, found: list[Violation]) -> None:
    for i in (np.flatnonzero(zones.begin[1:] < zones.latest[:-1]) + 1).tolist():
        found.append(_violation("reordered", zones.value[i], zones.begin[i], zones.end[i]))


def _inside(zones: Zones, begin: Times, end: Times, rule: str, found: list[Violation]) -> None:
    """Intervals that lie inside a forward zone."""
    if not len(zones.begin):
        return
    before = np.searchsorted(zones.begin, begin, "left") - 1  # the last zone that begins before
    for i in np.flatnonzero((before >= 0) & (zones.latest[before] > end)).tolist():
        found.append(_violation(rule, zones.value[zones.holder[before[i]]], begin[i], end[i]))


def _presence(
    begin: Times, end: Times, kind: Times, puts: Times, removals: npt.NDArray[np.bool_], found: list[Violation]
) -> None:
    """Looks that said "it is there" when everything put so far had been removed."""
    looks = np.flatnonzero(kind == PRESENT)
    by_begin = puts[np.argsort(begin[puts], kind="stable")]
    latest_end = np.concatenate(([_FIRST], np.maximum.accumulate(end[by_begin]) if len(puts) else end[:0]))
    last_put = latest_end[np.searchsorted(begin[by_begin], end[looks], "right")]
    gone_begin, earliest_end = _earliest_ends(begin[removals], end[removals])
    gone_by = earliest_end[np.searchsorted(gone_begin, last_put, "right")]
    bad = (last_put == _FIRST) | (gone_by < begin[looks])
    for i in looks[bad].tolist():
        found.append(_violation("presence", 0, begin[i], end[i]))


def _earliest_ends(begin: Times, end: Times) -> tuple[Times, Times]:
    """Begins in order, and the earliest end of all from each on; one entry more for "none"."""
    order = np.argsort(begin, kind="stable")
    ends = np.append(end[order], _LAST)
    return begin[order], np.minimum.accumulate(ends[::-1])[::-1]


def _lost(
    begin: Times, end: Times, kind: Times, zones: Zones, backward: tuple[Times, Times], found: list[Violation]
) -> None:
    """Looks that found nothing without a delete, or the beginning, that explains them."""
    misses, deletes = np.flatnonzero(kind == MISS), np.flatnonzero(kind == DELETE)
    # The best delete among those that ended before: the last to end, for the time between is the shortest.
    ends = np.concatenate(([_FIRST], np.sort(end[deletes])))
    since = ends[np.searchsorted(ends, begin[misses], "left") - 1]
    before = np.searchsorted(zones.begin, begin[misses], "left") - 1
    held = np.zeros(len(misses), np.bool_)
    if len(zones.begin):
        held = (before >= 0) & (zones.latest[before] > since)
    put_begin, earliest_end = _earliest_ends(*backward)
    put_between = earliest_end[np.searchsorted(put_begin, since, "right")] < begin[misses]
    # Else a delete that overlaps the look, at a moment of both at which no value is held.
    deletes = deletes[np.argsort(begin[deletes], kind="stable")]
    delete_begin, delete_end = begin[deletes], end[deletes]
    latest_end = np.maximum.accumulate(delete_end) if len(deletes) else delete_end
    for i in misses[held | put_between].tolist():
        one = int(np.searchsorted(latest_end, begin[i], "left"))
        end_at = int(np.searchsorted(delete_begin, end[i], "right"))
        if not any(
            delete_end[j] >= begin[i]
            and not _held_throughout(zones, max(delete_begin[j], begin[i]), min(delete_end[j], end[i]))
            for j in range(one, end_at)
        ):
            found.append(_violation("lost", 0, begin[i], end[i]))


def _held_throughout(zones: Zones, begin: int, end: int) -> bool:
    before = int(np.searchsorted(zones.begin, begin, "left")) - 1
    return before >= 0 and bool(zones.latest[before] > end)


def _violation(rule: str, value: int, begin: int, end: int) -> Violation:
    return Violation(rule, int(value), int(begin), int(end))
