"""Rewriting segments: what is needed of them is copied behind a log's other records, and they are removed.

Covers the order of copies, syncs, new locations and removals, in pieces that a running store can afford between its
other work; what fails on the way; and damage. Does not cover which segments (see `planning`), nor which records are
needed: that is the store's to say, by a `Ledger`.

The order is rule 15 of docs/disk.md: copy, sync the copies and the folder, tell the new locations, remove the old
files, sync the folder, tell that. A copy has the sequence of its record. What holds at every moment, and after a crash:

- A record that is needed is durable in its old place, its new one, or both. Both are the same bytes and the same
  sequence, so a restart may take either.
- Nothing that was deleted comes back: the ledger keeps a tombstone until it was told that the files of all records
  below it are gone, and a copy lies in a file of its own right from when it is made until it is told of.
- A block that is replaced or deleted while its copy is under way is dead in both places: `Ledger.moved` then answers
  no, and the copy is a dead record like any other, which goes by the same rules.

A damaged record stays where it is, and its segment with it: it is never removed, and not looked at again. Nothing more
is copied of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cascade_mpi.errors import (
    BufferSizeError,
    DamagedError,
    DiskFullError,
    DiskGoneError,
    DiskQuotaError,
    NotDurableError,
)
from cascade_mpi.segments.direct import aligned_buffer
from cascade_mpi.segments.format import (
    ENTRY_BYTES,
    FOLDER,
    MAX_RECORDS,
    PAGE,
    TOMBSTONE,
    Location,
)
from cascade_mpi.segments.reader import SegmentReader, open_segment
from cascade_mpi.segments.recovery import numbers_in
from cascade_mpi.segments.source import Item, Source, open_source
from cascade_mpi.segments.space import footprint

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files
    from cascade_mpi.segments.log import Lost, SegmentLog
    from cascade_mpi.segments.records import Record
    from cascade_mpi.segments.space import Space

SETTLE_BYTES = 32 << 20  # of copies, and their number, that are made durable at once
SETTLE_RECORDS = 8192
_KEEP_BYTES = 64 << 20  # a larger block's memory is given back
_log = logging.getLogger("cascade.segments")


class Ledger(Protocol):
    """What the store knows of its records. Called within `Compactor.step` only, in its thread.

    No record may be between its append and the moment that the ledger knows of it while a step runs: else it looks
    dead, is moved, and a word is made that names its old place.
    """

    def live(self, item: Item) -> bool:
        """Local. Does anything name the record at this location? It is copied then."""
        ...

    def may_go(self, item: Item) -> bool:
        """Local. May this record, which nothing names, vanish? Once yes, always yes.

        A block: if something of its key with a higher sequence is durable, or a disk cell names the same record at
        another location. A tombstone: that too, or if no file has a record of its key below it, none can still come,
        and `SegmentLog.unsure` is empty at all writers. A file has its records until `removed` was called for it.
        """
        ...

    def moved(self, item: Item, new: Location) -> bool:
        """Local. The record is durable at another location too, which is to count from now on; False: nothing names it.

        Called for each record that was copied, blocks and tombstones, live or not: whatever was noted of a record at
        its old location is to be noted of the new one, before the old file goes.
        """
        ...

    def removed(self, segment: int) -> None:
        """Local. The file is gone for good, with every record in it."""
        ...


class Done(NamedTuple):
    """What a compactor has done so far."""

    records: int = 0  # that were copied
    nbytes: int = 0
    dropped: int = 0  # records that went with their files
    dead: int = 0  # of the copied ones, those that nothing named when they were durable
    segments: int = 0  # removed
    freed: int = 0  # their bytes


class Compactor:
    """Rewrites segments, a bounded piece at a time. For one thread at a time, the one that appends to the log.

    files, store
        The store's directory, and its identity.
    log
        Where copies go: the log that the store appends to, or better another one of the same writer, with numbers from
        the same iterator: then cold records are not mixed with new ones, and a sync that fails concerns nobody else.
    ledger
        What the store knows of its records.
    space
        The account of these segments, which is kept up to date here for what is copied and removed.
    settle_bytes
        Of copies that are made durable at once: how much more room a compaction needs than it frees.
    """

    def __init__(
        self, files: Files, store: bytes, log: SegmentLog, ledger: Ledger, space: Space | None = None,
        *, settle_bytes: int = SETTLE_BYTES,
    ) -> None:  # fmt: skip
        self._files, self._store, self._log, self._ledger, self._space = files, store, log, ledger, space
        self._settle_bytes = settle_bytes
        self._queue: deque[int] = deque()
        self._source: Source | None = None
        self._copies: dict[Location, tuple[Item, Source]] = {}  # where they are; not known to be durable
        self._copied = 0  # bytes of them
        self._read: list[Source] = []  # to the end; their copies may be among those
        self._unneeded: list[Source] = []  # everything that is needed of them is durable elsewhere
        self._unlinked: list[int] = []  # their names are gone, which is not durable
        self._doubtful: set[int] = set()  # the same, and a sync of the folder has failed since
        self._pressed = False  # there is no room for a copy: what can be removed goes first
        self._memory = memoryview(b"")
        self.may_remove = True  # False: copies are made, and old files stay until it is True again
        self.damaged: dict[int, str] = {}  # segments that stay as they are, and why
        self.done = Done()

    @property
    def busy(self) -> frozenset[int]:
        """Local. The segments that are being rewritten, or wait for it; empty when there is nothing more to do."""
        sources = [*self._read, *self._unneeded, *([self._source] if self._source is not None else [])]
        return frozenset([*self._queue, *(each.number for each in sources), *self._unlinked])

    @property
    def waits(self) -> bool:
        """Local. Whether all copies are made, durable, and told of: there is nothing to do but to remove old files."""
        return not (self._queue or self._source or self._copies or self._read)

    @property
    def doubtful(self) -> frozenset[int]:
        """Local. Segments whose names are gone, and may be back after a power loss. Complete after `give_up`."""
        return frozenset(self._doubtful)

    def add(self, segments: Iterable[int]) -> None:
        """Local. Rewrite these segments too, after the others. Those that are known to be damaged are left out.

        ValueError for one that the log still writes to.
        """
        segments, written = list(segments), self._log.open_segments
        if mine := [number for number in segments if number in written]:
            raise ValueError(f"segment {mine[0]:x} is still written to: it cannot be rewritten")
        busy = self.busy
        self._queue += [number for number in dict.fromkeys(segments) if number not in busy | self.damaged.keys()]

    def step(self, max_bytes: int) -> bool:
        """Local. Copy about `max_bytes`, or make durable what was copied and remove what is not needed; more to do?

        At least one record, and so more for a block that is larger. Reads, verifies and appends each record; a settling
        step has 1 sync of the log's file, 1 of the folder, the ledger's calls, 1 removal for each segment and 1 sync of
        the folder. A segment without a footer is scanned in one step.

        Raises
        ------
        DiskError
            No room for a copy, also after everything that could go has gone, or a name cannot be removed: nothing is
            lost, and the next step tries that again.
        NotDurableError
            A sync failed: segments whose copies were lost stay, and are no longer `busy`. `lost` has the records that
            others appended to the same log.
        """
        if self._must_settle():
            self._settle()
        else:
            self._copy(max_bytes)
        return bool(self.busy)

    def settle(self) -> None:
        """Local. Make durable what was copied so far, and tell it; nothing is removed while `may_remove` is False.

        1 sync of the log's file, 1 of the folder. NotDurableError as for `step`.
        """
        if self._copies or self._read:
            self._settle()

    def remove(self) -> None:
        """Local. Remove the segments of which all that is needed is durable elsewhere, and told; `may_remove` or not.

        For ranks that tell each other the new locations first. 1 removal each, 1 sync of the folder. DiskError: a name
        could not be removed, and the next call tries it again; or the folder could not be synced.
        """
        if self._unneeded or self._unlinked:
            self._remove()

    def foreign(self, lost: Sequence[Lost]) -> list[Lost]:
        """Local. Of the records that a `NotDurableError` of this log names, those that are no copies of this compactor.

        For who syncs the log himself while a compaction is under way. Copies need no care: their segments stay.
        """
        return [each for each in lost if each.location not in self._copies]

    def give_up(self) -> None:
        """Local. Stop where it is. All files stay that were not removed; copies that nobody was told of are garbage."""
        for new, (item, _) in self._copies.items():
            self._log.unsure.add(new.segment)  # nobody knows of it
            self._forget(item, new)
        for source in (*self._read, *self._unneeded, *([self._source] if self._source is not None else [])):
            _close(source.reader)
        self._queue.clear()
        self._source = None
        self._copies, self._copied, self._read, self._unneeded = {}, 0, [], []
        self._doubtful.update(self._unlinked)
        self._unlinked = []

    def _must_settle(self) -> bool:
        if (
            (self.may_remove and (self._unneeded or self._unlinked))
            or self._pressed
            or self._copied >= self._settle_bytes
        ):
            return True
        ended = self._source is None and not self._queue
        return len(self._copies) >= SETTLE_RECORDS or (ended and bool(self._read))

    # -- copying

    def _copy(self, max_bytes: int) -> None:
        while max_bytes > 0 and not self._must_settle():
            if self._source is None:
                if not self._queue:
                    return
                self._source = self._open(self._queue.popleft())
                max_bytes -= PAGE
                continue
            item = self._source.item
            if item is None or self._source.problem:
                self._end_source()
            elif self._ledger.live(item) or not self._ledger.may_go(item):
                found = self._payload(self._source, item)
                if found is None:
                    self._end_source()
                    continue
                try:
                    new = self._log.append(*found)
                except (DiskFullError, DiskQuotaError):
                    self._pressed = bool(self._copies or self._read)
                    if not self._pressed:
                        raise  # as any other error: the next step begins with this item again
                    return
                self._note_copy(item, new)
                max_bytes -= footprint(item.length)
                self._source.advance()
            else:
                self.done = self.done._replace(dropped=self.done.dropped + 1)
                max_bytes -= ENTRY_BYTES
                self._source.advance()

    def _note_copy(self, item: Item, new: Location) -> None:
        assert self._source is not None
        self._copies[new] = item, self._source
        self._copied += footprint(item.length)
        if self._space is not None:
            if item.tombstone:
                self._space.tombstone(new.segment)
            else:
                self._space.appended(new.segment, item.length)

    def _forget(self, item: Item, new: Location) -> None:
        """A copy that nobody will be told of is garbage: the record is where it was."""
        if self._space is not None:
            self._space.released(new.segment, item.length, tombstone=item.tombstone)

    def _end_source(self) -> None:
        assert self._source is not None
        self._read.append(self._source)
        self._source = None

    def _open(self, number: int) -> Source | None:
        """A segment's records; None, and it is damaged, if it cannot be known what they are."""
        reader: SegmentReader | None = None
        try:
            reader = open_segment(self._files, self._store, number)
            return open_source(self._files, reader)
        except DiskGoneError:
            raise
        except (DamagedError, OSError) as error:
            self._damaged(number, str(error))
            if reader is not None:
                _close(reader)
            return None

    def _payload(self, source: Source, item: Item) -> tuple[Record, memoryview] | None:
        """A record, whole and verified; None, and the segment is damaged, if it is not."""
        out = self._buffer(item.length)
        try:
            record = source.reader.read(
                item.location.unit, source.place, out, key=(item.key_hi, item.key_lo), sequence=item.sequence
            )
            if (record.length, record.kind == TOMBSTONE) == (item.length, item.tombstone):
                return record, out
            problem = f"the record at unit {item.location.unit} is not what the footer says of it"
        except DiskGoneError:
            raise
        except (DamagedError, BufferSizeError, OSError) as error:
            problem = str(error)
        source.problem = problem
        self._damaged(source.number, problem)
        return None

    def _damaged(self, number: int, problem: str) -> None:
        self.damaged[number] = problem
        _log.error("segment %x is damaged, it stays as it is: %s", number, problem)
        if self._space is not None and number in self._space.segments:
            self._space.keep(number, problem)

    def _buffer(self, nbytes: int) -> memoryview:
        if self._memory.nbytes >= nbytes:
            return self._memory[:nbytes]
        memory = aligned_buffer(max(nbytes, PAGE))
        if nbytes <= _KEEP_BYTES:
            self._memory = memory
        return memory[:nbytes]

    # -- settling

    def _settle(self) -> None:
        failed: NotDurableError | None = None
        self._pressed = False
        if self._copies:
            try:
                self._log.sync(seal_share=1)  # copies fill their segments: they are to be few files
            except NotDurableError as error:
                failed = NotDurableError(error.errno, str(error), self.foreign(error.lost))
                failed.__cause__ = error
        self._relocate()
        if failed is not None:
            raise failed  # what can be removed all the same is for the next step
        if self.may_remove:
            self._remove()

    def _relocate(self) -> None:
        """Tell the new locations of copies that are durable, and sort out the segments that they are of."""
        space, done = self._space, self.done
        for new, (item, source) in self._copies.items():
            # Whoever synced the log: what was not durable then never will be.
            if new.unit >= self._log.lost_from.get(new.segment, MAX_RECORDS):
                source.problem = source.problem or f"a copy of the record at unit {item.location.unit} is not durable"
                self._forget(item, new)
                continue
            named = self._ledger.moved(item, new)
            done = done._replace(
                records=done.records + 1,
                nbytes=done.nbytes + footprint(item.length),
                dead=done.dead + (not named and not item.tombstone),
            )
            if space is not None and named and not item.tombstone:
                space.named(new.segment, item.length)
                space.unnamed(source.number, item.length)
                space.released(source.number, item.length)
        self._copies, self._copied, self.done = {}, 0, done
        for source in self._read:
            if source.problem:
                _close(source.reader)
                _log.warning("segment %x is not removed: %s", source.number, source.problem)
            else:
                self._unneeded.append(source)
        self._read = []

    def _remove(self) -> None:
        while self._unneeded:
            source = self._unneeded[0]
            _close(source.reader)
            for path in source.paths:
                with contextlib.suppress(FileNotFoundError):  # removed by a step that failed behind it
                    self._files.remove(path)
            self._unlinked.append(source.number)
            self.done = self.done._replace(segments=self.done.segments + 1, freed=self.done.freed + source.reader.size)
            if self._space is not None and source.number in self._space.segments:
                self._space.removed(source.number)
            self._unneeded.pop(0)
        removed, self._unlinked = self._unlinked, []
        try:
            self._files.sync_folder(FOLDER)
        except OSError:
            # Whether they are gone after a power loss will never be known: no later sync speaks of these names.
            self._doubtful.update(removed)
            raise
        for number in removed:
            self._ledger.removed(number)
        if self._log.unsure:  # also those of which nothing was left
            self._log.unsure &= numbers_in(self._files).keys() | self._doubtful


def _close(reader: SegmentReader) -> None:
    with contextlib.suppress(OSError):  # it was only read
        reader.close()
