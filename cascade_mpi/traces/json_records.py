"""Traces of JSON objects whose fields go under any of the usual names: JSON lines, or one JSON array.

Covers finding the fields in the first object and reading the others by them. Does not cover the names
and values (see `fields`) nor the format of the Mooncake project (see `mooncake`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from cascade_mpi.traces.fields import (
    REQUIRED,
    Clock,
    block_ids,
    columns_of,
    optional_field,
    refuse,
    session,
    tokens,
)
from cascade_mpi.traces.json_values import Document, Record, of_lines
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.source import Faults, FieldError, Source


def _of_document(file: BinaryIO, faults: Faults) -> Iterator[tuple[str, Record]]:
    return Document(file, faults).records()


LAYOUTS = {"jsonl": of_lines, "json": _of_document}


class RecordReader:
    """One file of JSON objects and how to read it; each pass opens it anew."""

    def __init__(
        self,
        source: Source,
        layout: str,
        *,
        block_tokens: int,
        time_unit: str = "auto",
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """Local. Look at the first object; TraceError when it lacks a field. `layout`: "jsonl" or "json"."""
        self._source = source
        self._records = LAYOUTS[layout]
        self._block_tokens = block_tokens
        self._time_unit = time_unit
        self._usual: frozenset[str] = frozenset()  # the names in the first object
        self._names = self._look(fields or {})
        self.has_blocks = "hash_ids" in self._names
        self.has_sessions = "session" in self._names

    def _look(self, fields: Mapping[str, str]) -> dict[str, str]:
        faults = Faults(self._source.name, strict=True)
        with self._source.open() as file:
            for where, record in self._records(file, faults):
                try:
                    self._usual = frozenset(record)
                    return columns_of(record, fields)
                except FieldError as error:
                    faults.fatal(where, str(error))
        faults.empty()

    def _refuse_unknown(self, record: Record) -> None:
        """FieldError for a field that the first object lacked: not to be read as if it were not there."""
        for name in record:
            field = None if name in self._usual else optional_field(name)
            if field is not None and field not in self._names:
                refuse(name, f"the first object has none that is known as {field}: all must have it, or none")

    def requests(self, faults: Faults) -> Iterator[Request]:
        """Local. One pass over the objects."""
        when, inputs, outputs = (self._names[field] for field in REQUIRED)
        ids_name, session_name = self._names.get("hash_ids"), self._names.get("session")
        seconds: Callable[[Any], float] | None = None
        index = next_id = 0
        latest = 0.0
        ids: tuple[int, ...] | range
        with self._source.open() as file:
            for where, record in self._records(file, faults):
                try:
                    for name in (when, inputs, outputs):
                        _need(record, name)
                    if not record.keys() <= self._usual:
                        self._refuse_unknown(record)
                    if seconds is None:
                        clock = Clock(when, self._time_unit, record[when])
                        faults.remark(clock.note)
                        seconds = clock.seconds
                    arrival = seconds(record[when])
                    input_tokens, output_tokens = tokens(record[inputs], inputs), tokens(record[outputs], outputs)
                    if ids_name is None:
                        ids = range(next_id, next_id + -(-input_tokens // self._block_tokens))
                    else:
                        _need(record, ids_name)
                        ids = block_ids(record[ids_name], input_tokens, self._block_tokens, ids_name)
                    owner = session(record.get(session_name), session_name) if session_name else None
                except FieldError as error:
                    faults.at(where, str(error))
                    continue
                if arrival < latest:
                    arrival = faults.backwards(where, when, arrival, latest)
                yield Request(index, arrival, input_tokens, output_tokens, ids, owner)
                index += 1
                latest = arrival
                next_id += len(ids)
        if not index:
            faults.empty()


def _need(record: Record, name: str) -> None:
    if name not in record:
        refuse(name, "is missing")
