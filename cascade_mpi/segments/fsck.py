"""Examining a store's directory: what is damaged, what follows from that, and what to do.

Covers every byte of every segment: pages, records, payloads, the zeros between them, and whether footer and records
agree. Does not cover how findings are printed (see `commands.fsck`). Changes nothing.

What counts as damage: bytes that are not what was written there, wherever they are, and files that do not belong here.
What an interrupted write leaves at the end of a segment that was never sealed is no damage: nothing of it was promised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.counted import counted
from cascade_mpi.errors import DamagedError
from cascade_mpi.segments import epochs
from cascade_mpi.segments.checkpoints import FOLDER as CHECKPOINTS
from cascade_mpi.segments.checkpoints import checkpoints
from cascade_mpi.segments.consequences import Newest, of_removal
from cascade_mpi.segments.format import BLOCK, ENTRY, FOLDER, PAGE, UNIT, parse_name
from cascade_mpi.segments.pages import SegmentHeader, entry_of
from cascade_mpi.segments.reader import Footer, SegmentReader
from cascade_mpi.segments.recovery import SegmentIndex, is_only_begun, latest, lost_folder, numbers_in
from cascade_mpi.segments.scan import Found, Walk, scan

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

_PIECE = 1 << 20
_AGAIN = "nothing to do: a block that is a miss is computed and stored again"
_HEADER_GONE = "none but for what else is said of this file: its footer and records prove themselves"
_FOOTER_GONE = "none but for what else is said of this file: a restart reads all of it instead"
_UNKNOWN = (
    "records that were there are lost: their blocks are misses or go back to older versions, blocks that were deleted "
    "there are found again; after a power loss it may have been a write that was never acknowledged"
)
_CUT = (
    "nobody knows what else it held: records behind byte {} that are not told of here are lost; their blocks are "
    "misses or go back to older versions, blocks that were deleted there are found again"
)
_REFUSED = (
    "no job writes here as long as {path} is there. Put the file back from a copy; or give it up: save what is whole "
    '(cascade export, or a job with disk_mode="read"), and move {path} out of the folder ({moved})'
)
_DISK = "look at the disk's health (kernel log, SMART, the file system's own check) before writing more to it"
_ASIDE = "move the file out of the folder; it is not used as long as it is there either"


State = Literal["sealed", "open", "damaged", "unreadable"]  # damaged: it was sealed, and has lost its footer


class Finding(NamedTuple):
    """One thing that was found: for people, but for its first fields."""

    severity: Literal["damage", "note"]
    path: str
    offset: int | None  # bytes; None: it is about the whole file
    what: str
    consequence: str
    remedy: str
    keys: tuple[str, ...] = ()  # as `keys.shown`, of the blocks concerned


class SegmentSummary(NamedTuple):
    """What a segment holds."""

    segment: int
    path: str
    state: State
    size: int
    records: int
    blocks: int
    tombstones: int
    payload_bytes: int


class Report(NamedTuple):
    """What an examination has found."""

    store: bytes
    segments: list[SegmentSummary]
    findings: list[Finding]
    keys: int  # blocks that a restart would find: the newest record of each key, of the present epochs
    deleted: int
    superseded: int
    passed: int  # blocks of epochs that have passed

    @property
    def damaged(self) -> bool:
        """Whether anything is damaged; notes are not."""
        return any(each.severity == "damage" for each in self.findings)


def fsck(files: Files, store: bytes | None = None, *, seen: Callable[[str], None] | None = None) -> Report:
    """Local. Examine a store's directory. Reads every byte of it once, one segment at a time.

    store
        Its identity; None (it cannot be read): the one that most segments name.
    seen
        Called with the path of each segment before it is examined.
    """
    numbers = numbers_in(files)
    if store is None:
        store = most_common_store(files, numbers)
    examination = _Examination(files, store)
    examination.folder()
    examination.strangers()
    for number, paths in sorted(numbers.items()):
        for path in paths:
            if seen is not None:
                seen(path)
            examination.segment(number, path)
        if len(paths) > 1:
            examination.twice(paths)
    report = examination.report()
    return report._replace(findings=[*report.findings, *_since_checkpoint(files, report)])


def _since_checkpoint(files: Files, report: Report) -> list[Finding]:
    """A note if fewer blocks are found than the newest checkpoint had: a file that was taken away leaves no trace else.

    Deletions of which the tombstones are left explain as many; no more can be said, as a compaction takes both away.
    """
    made = checkpoints(files)[-1:]
    found = report.keys + report.passed
    if not made or made[0].blocks <= found + report.deleted:
        return []
    lacking = made[0].blocks - found
    return [
        Finding(
            "note", f"{CHECKPOINTS}/{made[0].tag}", None,
            f"the newest checkpoint had {counted(made[0].blocks, 'block')}, {counted(found, 'block')} "
            f"{'is' if found == 1 else 'are'} found",
            f"none if {lacking} or more were deleted or have expired since; else they are lost: by damage, or with a "
            "file that is not there any more, and then what it had replaced or deleted is found again",
            f"if neither was so, put back the file of {FOLDER}/ that was taken away",
        )
    ]  # fmt: skip


def examine(files: Files, store: bytes, number: int, paths: list[str]) -> list[Finding]:
    """Local. What is damaged in one segment, by the paths it has. Reads every byte of it once.

    The consequences are told as if there were no other segment.
    """
    examination = _Examination(files, store)
    for path in paths:
        examination.segment(number, path)
    if len(paths) > 1:
        examination.twice(paths)
    return [each for each in examination.report().findings if each.severity == "damage"]


def most_common_store(files: Files, numbers: dict[int, list[str]]) -> bytes:
    """Local. The store that most headers of segments name; 16 zero bytes if there is none. 1 open and read each."""
    votes: Counter[bytes] = Counter()
    for paths in numbers.values():
        for path in paths:
            try:
                file = files.open(path)
            except OSError:
                continue
            page = bytearray(PAGE)
            if file.read_at(0, page) == PAGE:
                votes[bytes(page[16:32])] += 1
            file.close()
    return votes.most_common(1)[0][0] if votes else bytes(16)


class _Concerned(NamedTuple):
    """A finding about records, before it is known which of them are the newest of their keys."""

    finding: Finding
    rows: npt.NDArray[np.void]  # `format.ENTRY`
    segment: int
    indexed: bool  # a restart finds these records in a footer, so it would take them for good


class _Examination:
    """One walk over a directory."""

    def __init__(self, files: Files, store: bytes) -> None:
        self._files, self._store = files, store
        self._findings: list[Finding] = []
        self._concerned: list[_Concerned] = []
        self._indexes: list[SegmentIndex] = []
        self._segments: list[SegmentSummary] = []
        self._refused: dict[str, int] = {}  # paths of segments for which no job would write here, and their numbers

    def folder(self) -> None:
        """A store whose folder of segments is gone."""
        if lost := lost_folder(self._files):
            self._damage(
                FOLDER, None, lost, "every block is a miss",
                "put it back: no job writes here without it. If the blocks are given up, make an empty folder of that "
                "name, or use another directory",
            )  # fmt: skip

    def strangers(self) -> None:
        """Files of the folder that are no segments."""
        try:
            names = self._files.names(FOLDER)
        except FileNotFoundError:
            return
        for name in names:
            if parse_name(name) is None:
                self._note(f"{FOLDER}/{name}", None, "not the name of a segment", "it is never read", _ASIDE)

    def twice(self, paths: list[str]) -> None:
        """A segment with both of its names: a rename that a power loss has done by half, or a copy."""
        footers = []
        for path in paths:
            try:
                reader = self._open(path)
                footers.append(reader.bytes_at(reader.size - PAGE, PAGE).tobytes())
                reader.close()
            except OSError as error:
                self._unreadable(path, error)
        if len(set(footers)) == 1:
            self._note(
                paths[1], None, f"the same segment as {paths[0]}",
                "none: one of them is read; a power loss during a rename leaves this", f"remove {paths[1]}",
            )  # fmt: skip
        else:
            self._damage(
                paths[1], None, f"another segment has its number: {paths[0]}",
                "the one with a valid footer is read, the other is not", "keep the newer, move the other away",
            )  # fmt: skip

    def segment(self, number: int, path: str) -> None:
        """One file."""
        try:
            reader = self._open(path)
        except OSError as error:
            self._unreadable(path, error)
            return
        try:
            header = self._header(reader)
            try:
                footer = reader.footer()
            except DamagedError as error:
                self._scanned(reader, header, error)
            else:
                self._sealed(reader, header, footer)
        except OSError as error:
            self._unreadable(path, error)
        finally:
            reader.close()

    def report(self) -> Report:
        """What was found, with the consequences for the newest records."""
        found = latest(self._indexes)
        newest = Newest(found, [each.rows for each in self._concerned])
        for each in self._concerned:
            text, keys = newest.consequence(each.rows, each.segment, each.indexed)
            self._findings.append(each.finding._replace(consequence=text, keys=keys))
        for number, finding in enumerate(self._findings):
            if finding.remedy is _REFUSED:
                moved = of_removal(self._indexes, self._refused[finding.path])
                self._findings[number] = finding._replace(remedy=_REFUSED.format(path=finding.path, moved=moved))
        findings = sorted(self._findings, key=lambda each: (each.severity, each.path, each.offset or 0))
        passed = int(np.count_nonzero(epochs.passed(found.blocks, self._epochs())))
        counts = len(found.blocks) - passed, len(found.tombstones), found.superseded, passed
        return Report(self._store, self._segments, findings, *counts)

    def _epochs(self) -> dict[int, int]:
        return epochs.present(self._files, (each.entries for each in self._indexes))

    # -- files

    def _open(self, path: str) -> SegmentReader:
        parsed = parse_name(path.rpartition("/")[2])
        assert parsed is not None
        return SegmentReader(self._files.open(path), path, self._store, parsed[0])

    def _header(self, reader: SegmentReader) -> SegmentHeader | None:
        try:
            return reader.header()
        except DamagedError as error:
            if is_only_begun(reader):
                self._note(
                    reader.path, 0, f"{reader.size} bytes and no header", "none: a job ended while it created the file",
                    f"remove {reader.path}",
                )  # fmt: skip
            else:
                self._damage(reader.path, 0, error.what, _HEADER_GONE, _DISK)
            return None

    def _sealed(self, reader: SegmentReader, header: SegmentHeader | None, footer: Footer) -> None:
        trailer, entries = footer
        place = trailer.place
        if header is not None and header.place != place:
            self._damage(
                reader.path, 0, f"the header is of run {header.place.run:x}, the footer of run {place.run:x}",
                "the footer counts", _DISK,
            )  # fmt: skip
        there = {int(unit): number for number, unit in enumerate(entries["unit"])}
        missing = np.ones(len(entries), np.bool_)
        for piece in Walk(reader, place, trailer.data_end).pieces():
            number = there.get(piece.unit) if piece.record is not None else None
            if piece.kind in ("lost", "padding"):
                inside = (entries["unit"] >= piece.start // UNIT) & (entries["unit"] < -(-piece.end // UNIT))
                rows = entries[inside & missing] if piece.kind == "lost" else entries[:0]
                missing[inside] &= piece.kind == "padding"
                self._piece(reader, piece, rows, indexed=True)
                continue
            assert piece.record is not None
            if number is None:
                self._damage(
                    reader.path, piece.start, "a record that the footer does not name", "it is not found", _DISK
                )
                continue
            missing[number] = False
            row = entries[number : number + 1]
            if np.array([entry_of(piece.record, piece.unit, piece.check)], row.dtype).tobytes() != row.tobytes():
                differs = Found(
                    "damaged", piece.start, piece.end, problem="the footer says other things of this record"
                )
                self._piece(reader, differs, row, indexed=True)
            elif piece.kind != "record":
                self._piece(reader, piece, row, indexed=True)
        if missing.any():
            gone = Found(
                "damaged", PAGE, trailer.data_end, problem=f"{missing.sum()} records of the footer are not there"
            )
            self._piece(reader, gone, entries[missing], indexed=True)
        table_end = trailer.table_at + trailer.table_bytes
        for start, end in ((trailer.data_end, trailer.table_at), (table_end, reader.size - PAGE)):
            if _any(reader, start, end):
                self._piece(reader, Found("padding", start, end, problem="bytes around the footer are not zero"))
        self._indexes.append(SegmentIndex(reader.segment, reader.path, place, reader.size, True, True, entries))
        self._summarise(reader, "sealed" if not reader.path.endswith(".open") else "open", entries)

    def _scanned(self, reader: SegmentReader, header: SegmentHeader | None, footer: DamagedError) -> None:
        found = scan(reader, header)
        if not reader.path.endswith(".open"):
            complete = found.tail is None and not found.damages and found.place is not None
            told = _FOOTER_GONE if complete else _CUT.format(found.end)
            self._refuse(reader.path, footer.offset, footer.what, told)
        for piece in found.damages:
            self._piece(reader, piece, _row_of(piece))
        if found.tail is not None:
            self._tail(reader, found.tail)
        if found.place is None:
            self._summarise(reader, "unreadable", found.entries)
            return
        self._indexes.append(
            SegmentIndex(reader.segment, reader.path, found.place, reader.size, False, True, found.entries)
        )
        self._summarise(reader, "open" if reader.path.endswith(".open") else "damaged", found.entries)

    def _tail(self, reader: SegmentReader, tail: Found) -> None:
        if not reader.path.endswith(".open") and tail.kind == "short":
            self._piece(reader, tail, _row_of(tail))
            return
        self._note(
            reader.path, tail.start, f"an interrupted write: {tail.problem}",
            "none: it was never acknowledged as durable", "nothing to do",
        )  # fmt: skip

    def _piece(
        self, reader: SegmentReader, piece: Found, rows: npt.NDArray[np.void] | None = None, indexed: bool = False
    ) -> None:
        if piece.kind == "padding":
            self._damage(reader.path, piece.start, piece.problem, "none: no record is affected", _DISK)
        elif rows is not None and len(rows):
            finding = Finding("damage", reader.path, piece.start, piece.problem, "", _AGAIN)
            self._concern(reader, finding, rows, indexed)
        elif indexed:
            self._damage(reader.path, piece.start, piece.problem, "none: the footer names no record there", _DISK)
        else:
            self._damage(reader.path, piece.start, piece.problem, _UNKNOWN, _AGAIN)

    # -- findings

    def _concern(self, reader: SegmentReader, finding: Finding, rows: npt.NDArray[np.void], indexed: bool) -> None:
        self._concerned.append(_Concerned(finding, rows.copy(), reader.segment, indexed))

    def _damage(self, path: str, offset: int | None, what: str, consequence: str, remedy: str) -> None:
        self._findings.append(Finding("damage", path, offset, what, consequence, remedy))

    def _note(self, path: str, offset: int | None, what: str, consequence: str, remedy: str) -> None:
        self._findings.append(Finding("note", path, offset, what, consequence, remedy))

    def _unreadable(self, path: str, error: OSError) -> None:
        self._refuse(path, None, f"it cannot be read: {error}", "nothing in it is found")

    def _refuse(self, path: str, offset: int | None, what: str, consequence: str) -> None:
        parsed = parse_name(path.rpartition("/")[2])
        assert parsed is not None
        self._refused[path] = parsed[0]
        self._damage(path, offset, what, consequence, _REFUSED)

    def _summarise(self, reader: SegmentReader, state: State, entries: npt.NDArray[np.void]) -> None:
        blocks = int(np.count_nonzero(entries["kind"] == BLOCK))
        self._segments.append(
            SegmentSummary(
                reader.segment, reader.path, state, reader.size, len(entries), blocks, len(entries) - blocks,
                int(entries["length"].sum()),
            )
        )  # fmt: skip


def _row_of(piece: Found) -> npt.NDArray[np.void]:
    rows = [] if piece.record is None else [entry_of(piece.record, piece.unit, piece.check)]
    return np.array(rows, ENTRY)


def _any(reader: SegmentReader, start: int, end: int) -> bool:
    """Whether any byte of a stretch is not zero."""
    return any(
        np.frombuffer(reader.bytes_at(at, min(end - at, _PIECE)), np.uint8).any() for at in range(start, end, _PIECE)
    )
