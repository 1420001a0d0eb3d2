"""The trace format of the Mooncake project: JSON lines of token counts and prefix-block ids.

Covers reading such a file as a stream, and saying exactly what is wrong with one. Does not cover
what holds between requests, except that time does not run backwards (see `deal` for positions).

A line: ``{"timestamp": 3000, "input_length": 1100, "output_length": 12, "hash_ids": [0, 7, 9]}``;
the timestamp is in milliseconds, an id stands for 512 tokens, the last block may be partly filled.
Other fields are allowed and ignored, and so are blank lines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from os import PathLike, fspath
from typing import Any, BinaryIO, NoReturn

from cascade_mpi.errors import TraceError
from cascade_mpi.traces.request import Request

BLOCK_TOKENS = 512
MAX_LINE_BYTES = 64 << 20  # an endless line must not become an endless read
MAX_TOKENS = 1 << 40
MAX_TIMESTAMP_MS = 1 << 53  # every integer up to it is exact as a float
_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


def read_mooncake(path: str | PathLike[str], block_tokens: int = BLOCK_TOKENS) -> Iterator[Request]:
    """Local. The requests of a file, one by one; the memory needed is that of one line.

    Raises
    ------
    TraceError
        The file cannot be read, holds no request, or a line is not what it must be; the text names file,
        line and field. Requests of earlier lines have been yielded by then.
    """
    name = fspath(path)
    try:
        with open(path, "rb") as file:
            yield from _requests(file, name, block_tokens)
    except OSError as error:
        raise TraceError(f"{name}: {error.strerror or error}") from None


def _requests(file: BinaryIO, name: str, block_tokens: int) -> Iterator[Request]:
    index, latest = 0, 0.0
    decode = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant).decode
    for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise TraceError(f"{name}, line {number}: longer than {MAX_LINE_BYTES} bytes")
        try:
            if line.isspace():
                continue
            request = _request(decode(line.decode("utf-8")), index, block_tokens)
            if request.timestamp_s < latest:
                _refuse("timestamp", f"{request.timestamp_s} s is before {latest} s, that of the request above")
        except _FieldError as error:
            raise TraceError(f"{name}, line {number}: {error}") from None
        except UnicodeDecodeError as error:
            raise TraceError(f"{name}, line {number}: not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            what = f"{error.msg} at column {error.colno}"
            raise TraceError(f"{name}, line {number}: not JSON, or cut off: {what}") from None
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
            raise TraceError(f"{name}, line {number}: not usable JSON: {error}") from None
        yield request
        index, latest = index + 1, request.timestamp_s
    if not index:
        raise TraceError(f"{name}: holds no request")


class _FieldError(Exception):
    """What is wrong with one field."""


def _refuse(field: str, what: str) -> NoReturn:
    raise _FieldError(f"field {field!r}: {what}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        _refuse(next(name for name in names if names.count(name) > 1), "occurs twice")
    return record


def _no_constant(name: str) -> NoReturn:
    raise _FieldError(f"{name} is not a number that JSON knows")


def _request(record: object, index: int, block_tokens: int) -> Request:
    if type(record) is not dict:
        raise _FieldError(f"an object with the fields {', '.join(_FIELDS)} is needed, not {_shown(record)}")
    for field in _FIELDS:
        if field not in record:
            _refuse(field, "is missing")
    input_tokens = _tokens(record, "input_length")
    output_tokens = _tokens(record, "output_length")
    block_ids = _ids(record["hash_ids"], input_tokens, block_tokens)
    return Request(index, _timestamp(record["timestamp"]), input_tokens, output_tokens, block_ids)


def _tokens(record: dict[str, Any], field: str) -> int:
    value = record[field]
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:  # a bool is an int for isinstance
        _refuse(field, f"must be an integer in 0..{MAX_TOKENS}, not {_shown(value)}")
    return value


def _timestamp(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_TIMESTAMP_MS or not math.isfinite(value):
        _refuse("timestamp", f"must be milliseconds in 0..{MAX_TIMESTAMP_MS}, not {_shown(value)}")
    return float(value) / 1000


def _ids(values: Any, input_tokens: int, block_tokens: int) -> tuple[int, ...]:
    if type(values) is not list:
        _refuse("hash_ids", f"must be a list of integers, not {_shown(values)}")
    needed = -(-input_tokens // block_tokens)
    if len(values) != needed:
        _refuse("hash_ids", f"{len(values)} ids, but {input_tokens} input tokens are {needed} blocks of {block_tokens}")
    if values:
        if set(map(type, values)) != {int}:
            _refuse("hash_ids", f"must hold integers only, not {_shown(next(v for v in values if type(v) is not int))}")
        if min(values) < 0 or max(values) >= 1 << 64:
            _refuse("hash_ids", f"must be in 0..2^64-1, not {_shown(next(v for v in values if not 0 <= v < 1 << 64))}")
        if len(set(values)) != len(values):
            _refuse("hash_ids", f"{next(v for v in values if values.count(v) > 1)} occurs twice in one prefix")
    return tuple(values)
