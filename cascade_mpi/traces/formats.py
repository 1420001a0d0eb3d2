"""The formats of trace files: which ones there are, which one a file has, and opening it.

Covers `open_trace`. Does not cover what the lines of a format hold: see `mooncake`, `tables` (azure,
burstgpt, splitwise, csv), `json_records` (json, jsonl) and `recording` (cascade).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Protocol

from cascade_mpi.errors import ConfigError, TraceError
from cascade_mpi.traces import fields as names
from cascade_mpi.traces.json_records import LAYOUTS, RecordReader
from cascade_mpi.traces.mooncake import BLOCK_TOKENS, FIELDS, MooncakeReader
from cascade_mpi.traces.recording import RecordingReader
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.source import Faults, Lines, Source
from cascade_mpi.traces.tables import TABLES, TableReader, header_of
from cascade_mpi.traces.trace import Trace

ANY_NAMES = ("csv", *LAYOUTS)  # formats whose fields may have other names and whose times other units
FORMATS = ("mooncake", *TABLES, *ANY_NAMES, "cascade")
TIME_UNITS = ("auto", *names.TIME_UNITS, "iso")


class Reader(Protocol):
    """One file and how to read it."""

    has_blocks: bool
    has_sessions: bool

    def requests(self, faults: Faults) -> Iterator[Request]:
        """Local. One pass."""


def open_trace(
    path: str | PathLike[str],
    format: str = "auto",
    *,
    block_tokens: int | None = None,
    time_unit: str = "auto",
    fields: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Trace:
    """Local. A trace file, plain or gzip; its header is read now, the rest is checked while it is gone through.

    Arrivals count from the first request, which arrives at 0.

    Parameters
    ----------
    format
        One of `FORMATS`, or "auto": found by the header or the first line, and said in the notes.
    block_tokens
        Tokens that a block stands for; None: 512, or what a recording says.
    time_unit
        Of the formats csv, json and jsonl, one of `TIME_UNITS`; "auto": ISO dates, else by the end of the
        field's name (`arrival_ms`), else by the size of a date's number, else seconds.
    fields
        For the same formats, names of fields in the file, such as ``{"input_tokens": "my_column"}``, where
        they are not among the usual ones (`fields.ALIASES`).
    strict
        False: what cannot be used is skipped and a time that runs backwards is moved; the notes say how often.

    Raises
    ------
    TraceError
        Now or while requests are read: the file cannot be read, is of no known format or of several, or a
        line is not what it must be; the text names file, line and field.
    ConfigError
        An argument is not what it must be.
    """
    fields = dict(fields or {})
    _check(format, block_tokens, time_unit, fields)
    source = Source(path)
    found: tuple[str, ...] = ()
    if format == "auto":
        format = _detect(source, only_any=bool(fields) or time_unit != "auto")
        found = (f"the format was found to be {format}",)
    reader = _reader(source, format, block_tokens, time_unit, fields)
    if isinstance(reader, RecordingReader):
        block_tokens = reader.header.block_tokens
    faults = [Faults(source.name, strict)]  # of the latest pass

    def requests() -> Iterator[Request]:
        faults[0] = Faults(source.name, strict)
        return reader.requests(faults[0])

    return Trace(
        source.path.name,
        format,
        block_tokens or BLOCK_TOKENS,
        requests,
        has_blocks=reader.has_blocks,
        has_sessions=reader.has_sessions,
        notes=lambda: found + faults[0].notes(),
    )


def _check(format: str, block_tokens: int | None, time_unit: str, fields: Mapping[str, str]) -> None:
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"trace format {format!r}: it must be auto or one of {', '.join(FORMATS)}")
    if time_unit not in TIME_UNITS:
        raise ConfigError(f"time unit {time_unit!r}: it must be one of {', '.join(TIME_UNITS)}")
    if block_tokens is not None and not 1 <= block_tokens <= names.MAX_TOKENS:
        raise ConfigError(f"block tokens {block_tokens}: it must be in 1..{names.MAX_TOKENS}")
    known = (*names.REQUIRED, *names.OPTIONAL)
    for field in fields:
        if field not in known:
            raise ConfigError(f"field {field!r}: it must be one of {', '.join(known)}")
    if format not in ("auto", *ANY_NAMES) and (fields or time_unit != "auto"):
        what = "fields" if fields else "a time unit"
        raise ConfigError(f"the format {format} has its own: {what} can be given for {', '.join(ANY_NAMES)} only")


def _reader(source: Source, format: str, block_tokens: int | None, time_unit: str, fields: Mapping[str, str]) -> Reader:
    tokens = block_tokens or BLOCK_TOKENS
    if format == "mooncake":
        return MooncakeReader(source, block_tokens=tokens)
    if format == "cascade":
        return RecordingReader(source, block_tokens=block_tokens)
    if format in LAYOUTS:
        return RecordReader(source, format, block_tokens=tokens, time_unit=time_unit, fields=fields)
    return TableReader(source, TABLES.get(format), block_tokens=tokens, time_unit=time_unit, fields=fields)


def _detect(source: Source, only_any: bool) -> str:
    """The format by the first line that is not blank; with `only_any` one of `ANY_NAMES`."""
    with source.open() as file:
        faults = Faults(source.name, strict=False)  # a list in one long line is no fault
        line = next((line for line in Lines(file, faults).raw() if not line.isspace()), b"")
    if not line and not faults.skipped:
        faults.empty()
    start = line.lstrip()[:1]
    if start == b"[" or not line:
        return "json"
    if start == b"{":
        return _of_object(line, only_any)
    return _of_header(source, line, only_any)


def _of_object(line: bytes, only_any: bool) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "json"  # over several lines, perhaps; else its reader says what is wrong
    if only_any:
        return "jsonl"
    if "cascade_trace" in record:
        return "cascade"
    # Its reader says that the ids are missing: taken for another format, later lines would lose theirs.
    elsewhere = any(key not in FIELDS and names.optional_field(key) == "hash_ids" for key in record)
    return "mooncake" if set(FIELDS) - {"hash_ids"} <= set(record) and not elsewhere else "jsonl"


def _of_header(source: Source, line: bytes, only_any: bool) -> str:
    try:
        header = header_of(line.decode(errors="replace"))
    except csv.Error:
        return "csv"  # its reader says what is wrong
    if only_any or any(names.optional_field(name) == "hash_ids" for name in header):
        return "csv"  # the named formats know no ids and would not read them
    fitting = [name for name, table in TABLES.items() if set(table.header) <= set(header)]
    if len(fitting) > 1:
        which = ", ".join(fitting)
        raise TraceError(f"{source.name}: its header fits the formats {which}: say which one it is with --format")
    return fitting[0] if fitting else "csv"
