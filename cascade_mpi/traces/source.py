"""Where a trace's bytes come from, and what becomes of those that are wrong.

Covers opening plain and gzip files, lines of bounded length, and `Faults`: raise at the first fault, or
skip and count. Does not cover what a line means (see `tables`, `json_records`, `mooncake`, `recording`).
"""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from cascade_mpi.errors import TraceError

MAX_LINE_BYTES = 4 << 20  # half a million block ids; a line without end must not become a read without end
BLOCK_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


class FieldError(Exception):
    """What is wrong with one field of a line; whoever knows the line adds where it stands."""


class Faults:
    """What is wrong with a file: raised at once (strict), or counted and skipped."""

    def __init__(self, name: str, strict: bool) -> None:
        self.name = name
        self.strict = strict
        self.skipped = 0
        self.moved = 0
        self._first = ""
        self._remarks: list[str] = []

    def at(self, where: str, what: str) -> None:
        """Local. A line that cannot be used; TraceError if strict."""
        if self.strict:
            self.fatal(where, what)
        self.skipped += 1
        self._first = self._first or f"{where}: {what}"

    def fatal(self, where: str, what: str) -> NoReturn:
        """Local. TraceError: nothing behind this can be made sense of, strict or not."""
        raise TraceError(f"{self.name}, {where}: {what}") from None

    def backwards(self, where: str, field: str, seconds: float, latest: float) -> float:
        """Local. The arrival of a request that came before the one above it: that of the latter, unless strict."""
        if self.strict:
            what = f"backwards by {latest - seconds:.9g} s, behind a request {latest} s after the first"
            self.fatal(where, f"field {field!r}: the time runs {what}")
        self.moved += 1
        return latest

    def remark(self, note: str) -> None:
        """Local. Something that the user should know, or "" for nothing."""
        if note:
            self._remarks.append(note)

    def empty(self) -> NoReturn:
        """Local. TraceError: there was no request."""
        skipped = f"; {self.skipped} unusable lines were skipped, the first: {self._first}" if self.skipped else ""
        raise TraceError(f"{self.name}: holds no request{skipped}")

    def notes(self) -> tuple[str, ...]:
        """Local. What was assumed, skipped and moved so far, in sentences."""
        notes = list(self._remarks)
        if self.skipped:
            notes.append(f"{self.skipped} unusable lines were skipped, the first: {self._first}")
        if self.moved:
            notes.append(f"{self.moved} requests ran back in time and were given the time of the request before them")
        return tuple(notes)


class Source:
    """A file to read, as often as needed."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(fspath(path))
        self.name = str(self.path)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Local. The bytes of the file, unpacked if it is a gzip file, without a byte-order mark.

        TraceError when it cannot be read, is not a regular file (a pipe could be read only once, and might
        never answer), or stops being a gzip file on the way.
        """
        try:
            self._check()
            with io.BufferedReader(io.FileIO(self.path), BLOCK_BYTES) as file:
                if file.peek(2)[:2] != _GZIP:
                    yield _behind_mark(file)
                    return
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield _behind_mark(io.BufferedReader(cast(io.RawIOBase, unpacked), BLOCK_BYTES))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(f"{self.name}: damaged or cut off gzip file: {error}") from None
        except OSError as error:
            raise TraceError(f"{self.name}: {error.strerror or error}") from None

    def _check(self) -> None:
        try:
            mode = self.path.stat().st_mode
        except ValueError as error:  # a NUL in the path
            raise TraceError(f"{self.name!r}: {error}") from None
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise TraceError(f"{self.name}: it is {kind} and cannot be read as a trace")


def _behind_mark(file: io.BufferedReader[Any]) -> BinaryIO:
    if file.peek(3)[:3] == _BOM:
        file.read(3)
    return file


class Lines:
    """The lines of a file one by one, with the number of the latest."""

    def __init__(self, file: BinaryIO, faults: Faults) -> None:
        self.number = 0
        self.faults = faults
        self._file = file

    @property
    def where(self) -> str:
        """Local. The latest line, for people."""
        return f"line {self.number}"

    def raw(self) -> Iterator[bytes]:
        """Local. Each line as it is, with its end; those beyond `MAX_LINE_BYTES` are faults."""
        longest = MAX_LINE_BYTES
        for line in iter(partial(self._file.readline, longest + 1), b""):
            self.number += 1
            if len(line) > longest:
                self.faults.at(self.where, f"longer than {longest} bytes")
                self._skip_rest(line)
            else:
                yield line

    def text(self) -> Iterator[str]:
        """Local. Each line as text, with its end; NUL bytes, what is not UTF-8, and endless lines are faults.

        Checked and decoded by the block, which is twice as fast; `number` stands still meanwhile.
        """
        while block := self._file.read(BLOCK_BYTES):
            rest = self._file.readline(MAX_LINE_BYTES + 1)
            block += rest
            if len(rest) <= MAX_LINE_BYTES and b"\0" not in block:
                try:
                    lines = io.StringIO(block.decode(), newline="\n")
                except UnicodeDecodeError:
                    pass  # it is found again in its line
                else:
                    yield from lines
                    self.number += block.count(b"\n")
                    continue
            for line in io.BytesIO(block):
                self.number += 1
                fault = self._fault(line)
                if fault is None:
                    yield line.decode()
                else:
                    self.faults.at(self.where, fault)
            self._skip_rest(block)

    def _fault(self, line: bytes) -> str | None:
        if len(line) > MAX_LINE_BYTES:
            return f"longer than {MAX_LINE_BYTES} bytes"
        try:
            line.decode()
        except UnicodeDecodeError as error:
            return f"not UTF-8 at byte {error.start}"
        return f"holds a NUL byte, at byte {line.index(0)}" if b"\0" in line else None

    def _skip_rest(self, line: bytes) -> None:
        while line and not line.endswith(b"\n"):
            line = self._file.readline(BLOCK_BYTES)
