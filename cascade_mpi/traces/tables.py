"""Traces that are tables: the CSV files of Azure, BurstGPT and SplitwiseSim, and any other one.

Covers which columns a format has, what their values may be, and reading rows as a stream. Does not
cover values (see `fields`) nor telling formats apart (see `formats`).

None of the three named formats says which blocks an input is made of, so their requests get fresh ids.
Columns that a format does not know are ignored. A cell may be quoted; a table other than the three may
also be separated by semicolons or tabs.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cascade_mpi.traces.fields import (
    REQUIRED,
    Clock,
    block_ids,
    columns_of,
    ids_of_text,
    listed,
    refuse,
    session,
    tokens_of_text,
)
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.source import Faults, FieldError, Lines, Source

PLAIN_DIGITS = 7  # a cell of so many digits is in the range of a token count for certain


@dataclass(frozen=True, slots=True)
class Table:
    """A format with a header: what tells it from others, and the columns of each field."""

    columns: Mapping[str, str]
    """The column of each field that it has."""
    time_unit: str
    others: tuple[str, ...] = ()
    """Columns that are not read, but tell the format."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Columns of fields that only newer files have."""

    @property
    def header(self) -> tuple[str, ...]:
        """The columns that every file of the format has."""
        return (*self.columns.values(), *self.others)


TABLES = {
    # Azure LLM inference traces of 2023 and 2024; the dates of the latter have a time zone.
    "azure": Table(
        {"timestamp": "TIMESTAMP", "input_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"}, "iso"
    ),
    "burstgpt": Table(
        {"timestamp": "Timestamp", "input_tokens": "Request tokens", "output_tokens": "Response tokens"},
        "s",
        ("Model", "Total tokens", "Log Type"),
        {"session": "Session ID"},
    ),
    "splitwise": Table(
        {"timestamp": "arrival_timestamp", "input_tokens": "prompt_size", "output_tokens": "token_size"},
        "s",
        ("request_id", "request_type", "application_id", "batch_size"),
    ),
}


class TableReader:
    """One table and how to read it; each pass opens it anew."""

    def __init__(
        self,
        source: Source,
        table: Table | None,
        *,
        block_tokens: int,
        time_unit: str = "auto",
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """Local. Look at the header; TraceError when it lacks a column. `table` None: any table, found by names."""
        self._source = source
        self._table = table
        self._block_tokens = block_tokens
        self._time_unit = time_unit if table is None else table.time_unit
        self._fields = fields or {}
        with source.open() as file:
            _, _, columns, _ = self._open(Lines(file, Faults(source.name, strict=True)))
        self.has_blocks = "hash_ids" in columns
        self.has_sessions = "session" in columns

    def requests(self, faults: Faults) -> Iterator[Request]:
        """Local. One pass over the rows.

        The loop is one function with short cuts for plain cells, because its speed is that of the reader.
        """
        with self._source.open() as file:
            lines = Lines(file, faults)
            rows, behind, columns, width = self._open(lines)

            def where() -> str:
                return f"line {behind + rows.line_num}"  # only the first fault is shown, so none was dropped before

            (at, when), (input_at, inputs), (output_at, outputs) = (columns[field] for field in REQUIRED)
            ids_at, ids_name = columns.get("hash_ids", (-1, ""))
            session_at, session_name = columns.get("session", (-1, ""))
            block_tokens = self._block_tokens
            seconds: Callable[[str], float] | None = None
            index = next_id = 0
            latest = 0.0
            owner: str | int | None = None
            ids: tuple[int, ...] | range
            while True:  # broken quotes end the loop over the rows, but the reader goes on behind them
                try:
                    for row in rows:
                        if len(row) != width:
                            if row:
                                faults.at(where(), f"{len(row)} cells, but the header has {width}")
                            continue
                        try:
                            if seconds is None:
                                seconds = self._clock(when, row[at], faults).seconds
                            arrival = seconds(row[at])
                            cell = row[input_at]
                            plain = len(cell) <= PLAIN_DIGITS and cell.isdecimal() and cell.isascii()
                            input_tokens = int(cell) if plain else tokens_of_text(cell, inputs)
                            cell = row[output_at]
                            plain = len(cell) <= PLAIN_DIGITS and cell.isdecimal() and cell.isascii()
                            output_tokens = int(cell) if plain else tokens_of_text(cell, outputs)
                            if ids_at < 0:
                                ids = range(next_id, next_id + -(-input_tokens // block_tokens))
                            else:
                                ids = block_ids(
                                    ids_of_text(row[ids_at], ids_name), input_tokens, block_tokens, ids_name
                                )
                            if session_at >= 0:
                                owner = session(row[session_at], session_name)
                        except FieldError as error:
                            faults.at(where(), str(error))
                            continue
                        if arrival < latest:
                            arrival = faults.backwards(where(), when, arrival, latest)
                        yield Request(index, arrival, input_tokens, output_tokens, ids, owner)
                        index += 1
                        latest = arrival
                        next_id += len(ids)
                    break
                except csv.Error as error:
                    faults.at(where(), f"not CSV: {error}")
            if not index:
                faults.empty()

    def _open(self, lines: Lines) -> tuple[Any, int, dict[str, tuple[int, str]], int]:
        """The rows behind the header, its line, place and name of each field's column, the number of columns."""
        text = lines.text()
        behind, first = next(((number, line) for number, line in enumerate(text, 1) if not line.isspace()), (0, ""))
        if not first:
            lines.faults.empty()
        if first.lstrip()[:1] in ("{", "["):
            lines.faults.fatal(f"line {behind} (the header)", "this is no table, it looks like JSON: see --format")
        delimiter = _delimiter(first)
        try:
            header = header_of(first)
            columns = self._columns(header)
        except (FieldError, csv.Error) as error:
            lines.faults.fatal(f"line {behind} (the header)", str(error))
        places = {field: (header.index(name), name) for field, name in columns.items()}
        return csv.reader(text, delimiter=delimiter, strict=True), behind, places, len(header)

    def _columns(self, header: list[str]) -> dict[str, str]:
        for name in header:
            if name and header.count(name) > 1:
                refuse(name, "occurs twice")
        if self._table is None:
            return columns_of(header, self._fields)
        for name in self._table.header:
            if name not in header:
                refuse(name, f"is missing; there are {listed(header)}")
        newer = {field: name for field, name in self._table.optional.items() if name in header}
        return {**self._table.columns, **newer}

    def _clock(self, field: str, first: str, faults: Faults) -> Clock:
        clock = Clock(field, self._time_unit, first)
        faults.remark(clock.note)
        return clock


def header_of(line: str) -> list[str]:
    """Local. The names of the columns; csv.Error if the line is no CSV."""
    return [name.strip() for name in next(csv.reader([line], delimiter=_delimiter(line), strict=True))]


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)  # the comma if there is none: a table may have one column
