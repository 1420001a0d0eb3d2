"""Compacting a whole directory that no job has open: afterwards only the newest record of each key is left.

Covers what goes (records that have a newer one, expired blocks, blocks of epochs that have passed, tombstones with
nothing below them), small files that are merged, damage, and the order in which a deleted block cannot come back. Does
not cover the lock (see `lock`) nor what is printed (see `commands.compact`). The rewriting is that of `compaction`.

Rule 14 of docs/disk.md with everything known: a tombstone may go when no file has a record of its key below it. But
files go one after the other, and a crash between two of them must not bring back what the first one kept dead. So for
each key whose newest record goes (a tombstone, or an expired block) and that has others, a tombstone with its sequence
is made durable first, in *passing* segments; they are removed when everything else has gone, durably. If anything
stays, because it is damaged or could not be removed, they stay too: the next run takes them for what they are.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import NotDurableError
from cascade_mpi.segments import epochs
from cascade_mpi.segments.compaction import Compactor
from cascade_mpi.segments.format import (
    BLOCK,
    ENTRY_BYTES,
    FOLDER,
    MAX_SEGMENT_BYTES,
    PAGE,
    Location,
    open_name,
    sealed_name,
)
from cascade_mpi.segments.fsck import Finding, examine
from cascade_mpi.segments.log import ALONE_SHARE, SegmentLog
from cascade_mpi.segments.recovery import Recovery, SegmentIndex, latest, lost_folder, numbers_in, recover
from cascade_mpi.segments.source import Item
from cascade_mpi.segments.space import TOMBSTONE_BYTES, footprints

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

STEP_BYTES = 8 << 20
_AGAIN = "nothing: it was left out", "run this again, and look at the kernel's log if that does not help"
Key = tuple[int, int]


class Totals(NamedTuple):
    """The files of a directory's segments."""

    files: int
    nbytes: int


class Compacted(NamedTuple):
    """What was found, and what a compaction has done or would do about it."""

    before: Totals
    after: Totals
    blocks: int  # the newest of their keys, of the present epoch, not expired: they are what is left
    superseded: int  # records that have a newer one of their key
    expired: int  # blocks
    passed: int  # blocks of epochs that have passed
    deleted: int  # keys whose newest record is a tombstone
    kept: int  # tombstones that stay all the same, because of damage
    rewritten: int  # segments
    copied: int  # bytes of records
    damages: list[Finding]  # their segments stay as they are
    problems: list[str]  # for people: what else kept a segment in place


def compact_directory(
    files: Files,
    store: bytes,
    *,
    now: int,
    run: int,
    dry_run: bool = False,
    segment_bytes: int = MAX_SEGMENT_BYTES,
    created: Callable[[], int] = int,
) -> Compacted:
    """Local. Compact a store's directory. Call it with the directory's lock held; a dry run needs none.

    now
        Seconds of Unix time, for what has expired.
    run, created
        64 random bits, and what gives ns of Unix time, for the headers of new segments.
    dry_run
        Changes nothing; `after` is a good guess then.

    Reads every byte of each segment that it rewrites twice, once for damage, and what is live once more for its new
    place; the others' footers only. Needs room for 32 MiB more than it frees, and for 1 KiB for each deleted key.

    Raises
    ------
    DiskError
        The directory cannot be listed, what a killed job left cannot be made durable, or there is no room for a copy.
        Nothing is lost: run it again.
    """
    found = recover(files, store, sync=not dry_run)
    if doubtful := [each.path for each in found.indexes if not each.durable]:
        text = f"{len(doubtful)} segments that a job left cannot be made durable ({doubtful[0]}): nothing was changed"
        raise NotDurableError(errno.EIO, text)
    work = _Work(files, store, found, now, segment_bytes)
    if dry_run:
        return work.guess()
    log = SegmentLog(files, store, count(found.next_segment), run, segment_bytes, now=created)
    try:
        work.run(log)
    except BaseException:
        with contextlib.suppress(OSError):
            log.close()  # seals what was copied: the next run need not scan it
        raise
    log.close()
    return work.result()


class _Work:
    """One compaction of a directory: first what there is, then what is done about it."""

    def __init__(self, files: Files, store: bytes, found: Recovery, now: int, segment_bytes: int) -> None:
        self._files, self._store, self._segment_bytes = files, store, segment_bytes
        self._indexes = {each.segment: each for each in found.indexes}
        self._numbers = numbers_in(files)
        self._newest = newest = latest(found.indexes)
        self._noted = epochs.noted(files)
        self._epochs = epochs.present(files, (each.entries for each in found.indexes))
        # Every record of a key is of one epoch, so nothing can come up from below these: they need no tombstone.
        passed = epochs.passed(newest.blocks, self._epochs)
        expired = (newest.blocks["expiry"] != 0) & (newest.blocks["expiry"] <= now) & ~passed
        self._live, self._expired = newest.blocks[~expired & ~passed], newest.blocks[expired]
        self._passed = int(np.count_nonzero(passed))
        self._before = self._totals()
        self._lost = [lost] if (lost := lost_folder(files)) else []
        self._choose()
        self._ledger = _Ledger(self._live)
        self._find_deleted()
        self._compactor: Compactor | None = None

    # -- what there is

    def _totals(self) -> Totals:
        sizes = []
        for path in (path for paths in numbers_in(self._files).values() for path in paths):
            file = self._files.open(path)
            sizes.append(file.size())
            file.close()
        return Totals(len(sizes), sum(sizes))

    def _choose(self) -> None:
        """The segments that are rewritten, and those that would be but for damage."""
        lives = dict(
            zip(*(each.tolist() for each in np.unique(self._live["segment"], return_counts=True)), strict=True)
        )
        wanted = {
            number
            for number in self._numbers
            if (index := self._indexes.get(number)) is None
            or not index.sealed
            or len(index.entries) > lives.get(number, 0)
        }
        half, alone = self._segment_bytes // 2, self._segment_bytes // ALONE_SHARE
        small = {
            number
            for number, each in self._indexes.items()
            if each.size < half and (len(each.entries) > 1 or each.size < alone)  # a large block has a file of its own
        } - wanted
        if len(small) + bool(wanted) > 1:
            wanted |= small
        self._damages: dict[int, list[Finding]] = {}
        for number in sorted(wanted):
            paths = self._numbers[number]
            findings = examine(self._files, self._store, number, paths)
            if paths == [open_name(number)] and self._is_stub(paths[0]):
                continue
            if not findings and number not in self._indexes:  # nobody knows what is in it, so nothing of it may go
                findings = [Finding("damage", paths[0], None, "it could not be read at first", *_AGAIN)]
            if findings:
                self._damages[number] = findings
        # What has nothing that is needed goes first: it makes room for copies of the others.
        self._chosen = sorted(wanted - self._damages.keys(), key=lambda number: (lives.get(number, 0) > 0, number))
        # Of these it cannot be known what is in them: there may be a record below any tombstone.
        self._unknown = [
            number
            for number in self._damages
            if (index := self._indexes.get(number)) is None or not index.sealed or len(self._numbers[number]) > 1
        ]

    def _is_stub(self, path: str) -> bool:
        """Whether a job ended while it created the file: there is no record in it, whatever became of its header."""
        file = self._files.open(path)
        try:
            return file.size() <= PAGE
        finally:
            file.close()

    def _find_deleted(self) -> None:
        """Keys of which nothing is to be left: which tombstones that needs on the way, and which for good."""
        self._passing: list[np.void] = []
        self._made: list[np.void] = []  # of expired blocks: a tombstone in their place that stays
        deleted = {_key(row): row for row in self._newest.tombstones}
        expired = {_key(row): row for row in self._expired}
        others = _others(self._indexes.values(), deleted | expired)
        for key, row in (deleted | expired).items():
            segment = int(row["segment"])
            if segment in self._damages:
                continue  # it stays, and so does what it says
            below = others.get(key, set())
            if self._unknown or below & self._damages.keys():
                if key in deleted:
                    self._ledger.needed.add(Location(segment, int(row["unit"])))
                else:
                    self._made.append(row)
            elif below - {segment}:  # a single file goes as a whole
                self._passing.append(row)

    # -- what is done

    def run(self, log: SegmentLog) -> None:
        """Rewrite the chosen segments."""
        for namespace, epoch in self._epochs.items():
            if epoch > self._noted.get(namespace, 0):  # else it would go with its last record, and the older ones live
                epochs.note(self._files, namespace, epoch)
        passing = {_tombstone(log, row).segment for row in self._passing}
        log.seal()  # segments of their own: they are removed as a whole
        for row in self._made:
            _tombstone(log, row)
        log.sync()  # before anything goes
        self._compactor = compactor = Compactor(self._files, self._store, log, self._ledger)
        compactor.add(self._chosen)
        while compactor.step(STEP_BYTES):
            pass
        if passing and self._ledger.gone.issuperset(self._chosen):
            for number in sorted(passing):
                for path in (open_name(number), sealed_name(number)):
                    with contextlib.suppress(FileNotFoundError):
                        self._files.remove(path)
            self._files.sync_folder(FOLDER)

    # -- what is told

    def result(self) -> Compacted:
        """Local. After the run."""
        assert self._compactor is not None
        done, damaged = self._compactor.done, self._compactor.damaged
        problems = [f"segment {number:x} stays, it could not be read: {text}" for number, text in damaged.items()]
        return self._told(self._totals(), done.segments, done.nbytes, problems)

    def guess(self) -> Compacted:
        """Local. Instead of a run."""
        chosen = set(self._chosen)
        rows = self._live[np.isin(self._live["segment"], np.array(self._chosen, np.uint64))]
        tombstones = len(self._made) + len(self._ledger.needed)
        copied = int(footprints(rows["length"]).sum()) + TOMBSTONE_BYTES * tombstones
        table = ENTRY_BYTES * (len(rows) + tombstones)
        new = -(-(copied + table) // self._segment_bytes)
        stay = [path for number, paths in self._numbers.items() if number not in chosen for path in paths]
        kept = sum(each.size for number, each in self._indexes.items() if number not in chosen)
        after = Totals(len(stay) + new, kept + copied + table + 3 * PAGE * new)
        return self._told(after, len(chosen), copied, [])

    def _told(self, after: Totals, rewritten: int, copied: int, problems: list[str]) -> Compacted:
        newest = self._newest
        return Compacted(
            self._before, after, len(self._live), newest.superseded, len(self._expired), self._passed,
            len(newest.tombstones),
            len(self._made) + len(self._ledger.needed), rewritten, copied,
            [each for findings in self._damages.values() for each in findings],
            [*self._lost, *problems],
        )  # fmt: skip


class _Ledger:
    """What is needed when everything is known."""

    def __init__(self, live: npt.NDArray[np.void]) -> None:
        self._live = live  # in the order of segments
        self._units: tuple[int, set[int]] = -1, set()  # of the live records of one segment
        self.needed: set[Location] = set()  # tombstones
        self.gone: set[int] = set()

    def live(self, item: Item) -> bool:
        """Local. Is it a block that stays?"""
        segment, unit = item.location
        if self._units[0] != segment:
            first, last = np.searchsorted(self._live["segment"], np.array((segment, segment + 1), np.uint64))
            self._units = segment, set(self._live["unit"][first:last].tolist())
        return unit in self._units[1]

    def may_go(self, item: Item) -> bool:
        """Local. May it vanish, as it is not live? All but some tombstones."""
        return item.location not in self.needed

    def moved(self, item: Item, new: Location) -> bool:
        """Local. True for a block: it is copied because it is live."""
        return not item.tombstone

    def removed(self, segment: int) -> None:
        """Local. Note that a segment has gone, durably."""
        self.gone.add(segment)


def _tombstone(log: SegmentLog, row: np.void) -> Location:
    """In the place of a record, with its sequence: of the two the tombstone counts."""
    return log.tombstone(
        int(row["key_hi"]), int(row["key_lo"]), int(row["sequence"]),
        namespace=int(row["namespace"]), epoch=int(row["epoch"]),
    )  # fmt: skip


def _key(row: np.void) -> Key:
    return int(row["key_hi"]), int(row["key_lo"])


def _others(indexes: Iterable[SegmentIndex], newest: Mapping[Key, np.void]) -> dict[Key, set[int]]:
    """The segments in which there are blocks of these keys besides the newest records."""
    found: dict[Key, set[int]] = {}
    low = np.array(sorted({key[1] for key in newest}), np.uint64)  # few others have one of these
    for index in indexes:
        rows = index.entries[np.isin(index.entries["key_lo"], low) & (index.entries["kind"] == BLOCK)]
        for row in rows:
            top = newest.get(_key(row))
            if top is not None and (int(top["segment"]), int(top["unit"])) != (index.segment, int(row["unit"])):
                found.setdefault(_key(row), set()).add(index.segment)
    return found
