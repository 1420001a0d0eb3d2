"""JSON objects of a trace, checked as strictly as the format allows.

Covers decoding one line, and the objects of a file as a stream, with the place of what is wrong. Does
not cover which fields an object has (see `mooncake`, `json_records`, `recording`).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from cascade_mpi.traces.fields import refuse, shown
from cascade_mpi.traces.source import MAX_LINE_BYTES, Faults, FieldError, Lines

Record = dict[str, Any]
_CHUNK_BYTES = 1 << 16


def _distinct(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                refuse(name, "occurs twice")
            seen.add(name)
    return record


def _no_constant(name: str) -> NoReturn:
    raise FieldError(f"{name} is not a number that JSON knows")


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)
_ANY = json.JSONDecoder()  # only finds where a value ends
_SPACE = re.compile(r"[ \t\r\n]*").match


def decode(text: str | bytes) -> Record:
    """Local. The object that the text is; FieldError says why it is none."""
    try:
        record = _DECODER.decode(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError as error:
        raise FieldError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise FieldError(f"not JSON, or cut off: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        raise FieldError(f"not usable JSON: {error}") from None
    if type(record) is not dict:
        raise FieldError(f"an object is needed, not {shown(record)}")
    return record


def of_lines(file: BinaryIO, faults: Faults) -> Iterator[tuple[str, Record]]:
    """Local. Where each object of a file of JSON lines stands, and the object. Blank lines are allowed."""
    lines = Lines(file, faults)
    for line in lines.raw():
        if line.isspace():
            continue
        try:
            record = decode(line)
        except FieldError as error:
            faults.at(lines.where, str(error))
            continue
        yield lines.where, record


class Document:
    """A file that is one JSON array of objects, or objects one after another, over any number of lines."""

    def __init__(self, file: BinaryIO, faults: Faults) -> None:
        self._file = file
        self._faults = faults
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0  # what is before it has been used
        self._line, self._column = 1, 1  # of `_at`
        self._ended = False

    @property
    def where(self) -> str:
        """Local. The place that is looked at, for people."""
        return f"line {self._line}, column {self._column}"

    def records(self) -> Iterator[tuple[str, Record]]:
        """Local. Where each object begins, and the object; the memory needed is that of one object.

        What is not JSON ends the file with a TraceError, strict or not: where the next object begins is unknown.
        """
        array = self._next() == "["
        if array:
            self._move(1)
        closed, expected = not array, False
        while (character := self._next()) != "":
            if array and character == "]":
                if expected:
                    self._faults.fatal(self.where, "not JSON: an object is missing behind the comma")
                self._move(1)
                closed = True
                break
            where, record = self.where, self._object()
            if record is not None:
                yield where, record
            if array:
                separator = self._next()
                expected = separator == ","
                if expected:
                    self._move(1)
                elif separator not in ("]", ""):
                    self._faults.fatal(self.where, "not JSON: a comma or ] is missing")
        if not closed:
            self._faults.fatal(self.where, "cut off: the list is not closed")
        if self._next():
            self._faults.fatal(self.where, "not JSON: something stands behind the list")

    def _object(self) -> Record | None:
        """The object that begins here; None for one that is a fault, or another value: it is skipped."""
        wanted = _CHUNK_BYTES
        while True:
            try:
                _, end = _ANY.raw_decode(self._text, self._at)
                break
            except json.JSONDecodeError as error:
                if self._ended:
                    self._move(error.pos - self._at)
                    self._faults.fatal(self.where, f"not JSON, or cut off: {error.msg}")
                if len(self._text) - self._at > MAX_LINE_BYTES:
                    self._faults.fatal(self.where, f"not JSON, or an object of more than {MAX_LINE_BYTES} bytes")
                self._fill(wanted)  # perhaps the rest is still to come
                wanted *= 2  # lest the work be quadratic
            except (ValueError, RecursionError) as error:
                self._faults.fatal(self.where, f"not usable JSON: {error}")
        where, text = self.where, self._text[self._at : end]
        self._move(end - self._at)
        try:
            return decode(text)
        except FieldError as error:
            self._faults.at(where, str(error))
            return None

    def _next(self) -> str:
        """The next character that is no white space, at which it stops; "" at the end."""
        while True:
            self._move(_SPACE(self._text, self._at).end() - self._at)  # type: ignore[union-attr]  # it always fits
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill(_CHUNK_BYTES)

    def _move(self, count: int) -> None:
        passed = self._text[self._at : self._at + count]
        newlines = passed.count("\n")
        self._line += newlines
        self._column = len(passed) - passed.rfind("\n") if newlines else self._column + len(passed)
        self._at += count

    def _fill(self, count: int) -> None:
        chunk = self._file.read(count)
        self._ended = not chunk
        try:
            self._text = self._text[self._at :] + self._decode(chunk, self._ended)
        except UnicodeDecodeError as error:
            self._faults.fatal(f"behind {self.where}", f"not UTF-8: {error.reason}")
        self._at = 0
