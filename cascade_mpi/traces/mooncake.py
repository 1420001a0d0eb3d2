"""The trace format of the Mooncake project: JSON lines of token counts and prefix-block ids.

Covers reading such a file as a stream, and saying exactly what is wrong with one. Does not cover
what holds between requests, except that time does not run backwards (see `deal` for prefixes).

A line: ``{"timestamp": 3000, "input_length": 1100, "output_length": 12, "hash_ids": [0, 7, 9]}``;
the timestamp is in milliseconds, an id stands for 512 tokens, the last block may be partly filled.
Other fields are allowed and ignored, and so are blank lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Annotated

import msgspec

from cascade_mpi.traces.fields import MAX_TIME, MAX_TOKENS, block_ids, refuse, time, tokens
from cascade_mpi.traces.json_values import decode
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.source import Faults, FieldError, Lines, Source

BLOCK_TOKENS = 512
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
_NAMES = tuple(f'"{field}"'.encode() for field in FIELDS)
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Line(msgspec.Struct, gc=False):
    """What a line must hold; named as the format names it."""

    timestamp: int | float
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: tuple[int, ...]


_fast = msgspec.json.Decoder(_Line).decode


class MooncakeReader:
    """One file in Mooncake's format; each pass opens it anew."""

    has_blocks = True
    has_sessions = False

    def __init__(self, source: Source, *, block_tokens: int = BLOCK_TOKENS) -> None:
        self._source = source
        self._block_tokens = block_tokens

    def requests(self, faults: Faults) -> Iterator[Request]:
        """Local. One pass over the lines."""
        block_tokens = self._block_tokens
        index = 0
        latest = 0.0
        first: int | float | None = None
        with self._source.open() as file:
            lines = Lines(file, faults)
            for raw in lines.raw():
                line = _quick(raw, block_tokens)
                if line is None:
                    if raw.isspace():
                        continue
                    try:
                        line = _thorough(raw, block_tokens)
                    except FieldError as error:
                        faults.at(lines.where, str(error))
                        continue
                if first is None:
                    first = line.timestamp
                arrival = (line.timestamp - first) / 1000
                if arrival < latest:
                    arrival = faults.backwards(lines.where, "timestamp", arrival, latest)
                yield Request(index, arrival, line.input_length, line.output_length, line.hash_ids)
                index += 1
                latest = arrival
        if not index:
            faults.empty()


def read_mooncake(path: str | PathLike[str], block_tokens: int = BLOCK_TOKENS) -> Iterator[Request]:
    """Local. The requests of a file, one by one; the memory needed is that of one line.

    Raises
    ------
    TraceError
        The file cannot be read, holds no request, or a line is not what it must be; the text names file,
        line and field. Requests of earlier lines have been yielded by then.
    """
    source = Source(path)
    return MooncakeReader(source, block_tokens=block_tokens).requests(Faults(source.name, strict=True))


def _quick(raw: bytes, block_tokens: int) -> _Line | None:
    """The line if it is beyond doubt, in a third of the time of `_thorough`, whose word decides otherwise.

    The fast decoder takes the last of two fields of one name and looks at no text that it skips. Where it
    finds all fields and there are no more quotes than theirs, there is neither.
    """
    if raw.count(b'"') != 2 * len(FIELDS) and not _plain(raw):
        return None
    try:
        line = _fast(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
    ids = line.hash_ids
    if len(ids) != -(-line.input_length // block_tokens) or not 0 <= line.timestamp < MAX_TIME:
        return None
    if ids and (min(ids) < 0 or max(ids) >= 1 << 64 or len(set(ids)) != len(ids)):
        return None
    return line


def _plain(raw: bytes) -> bool:
    return raw.isascii() and b"\\" not in raw and all(raw.count(name) == 1 for name in _NAMES)


def _thorough(raw: bytes, block_tokens: int) -> _Line:
    """The line, or FieldError with the exact reason."""
    record = decode(raw)
    for field in FIELDS:
        if field not in record:
            hint = " (a trace without block ids: --format jsonl)" if field == "hash_ids" else ""
            refuse(field, f"is missing{hint}")
    input_tokens = tokens(record["input_length"], "input_length")
    return _Line(
        timestamp=time(record["timestamp"], "timestamp"),
        input_length=input_tokens,
        output_length=tokens(record["output_length"], "output_length"),
        hash_ids=block_ids(record["hash_ids"], input_tokens, block_tokens, "hash_ids"),
    )
