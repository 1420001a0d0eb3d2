"""Recordings: the accesses of a store while a workload ran, written down so that they can be run again.

Covers the format, writing and reading it line by line, and reading a recording as a trace. Does not cover
who records, nor how the lines of the ranks come together (see `workload.recording`).

JSON lines. The first one is a header, each other one a call of the store by one rank, in the order of
time over all ranks::

    {"cascade_trace": 1, "block_bytes": 65536, "block_tokens": 512, "ranks": 4, "trace": "chat (seed 0)"}
    {"t": 0.0012, "rank": 3, "op": "lookup", "ids": [0, 7, 9], "result": 2}
    {"t": 0.0015, "rank": 3, "op": "get", "ids": [0, 7], "result": [65536, null]}
    {"t": 0.0021, "rank": 3, "op": "put", "ids": [7, 9], "result": ["stored", "kept"]}

A lookup's result is how many of its ids were found from the first on; a get's the bytes of each block,
null for a miss; a put's what became of each block. As a trace, each lookup is a request. The header says
``"blocks": false`` where the trace that was replayed knew no blocks: then the ids of the recording tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from cascade_mpi.errors import ConfigError
from cascade_mpi.traces.fields import MAX_TIME, MAX_TOKENS, prefix_ids, refuse, shown
from cascade_mpi.traces.json_values import Record, of_lines
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.source import Faults, FieldError, Source

VERSION = 1
OPERATIONS = ("lookup", "get", "put")
PUT_RESULTS = ("stored", "kept", "refused")
MAX_BLOCK_BYTES = 1 << 62


class Header(msgspec.Struct, frozen=True):
    """What holds for all accesses of a recording."""

    block_bytes: int
    block_tokens: int
    ranks: int
    trace: str
    """Name of the trace that was replayed."""
    blocks: bool = True
    """False: that trace had no block identity, and so the ids tell nothing."""


class Access(msgspec.Struct, frozen=True):
    """One call of the store."""

    t: float
    """Seconds since the common start of all ranks."""
    rank: int
    op: str
    """"lookup", "get" or "put"."""
    ids: tuple[int, ...]
    """The blocks, in the order of the call."""
    result: int | tuple[int | None, ...] | tuple[str, ...]
    """Lookup: the number found. Get: bytes or None for each block. Put: "stored", "kept" or "refused"."""


_encode = msgspec.json.Encoder().encode


def header_line(header: Header) -> bytes:
    """Local. The first line of a recording, with its end."""
    fields = msgspec.structs.asdict(header)
    if header.blocks:
        del fields["blocks"]  # the usual case, and the only one that older versions can read
    return _encode({"cascade_trace": VERSION, **fields}) + b"\n"


def access_line(access: Access) -> bytes:
    """Local. The line of an access, with its end."""
    return _encode(access) + b"\n"


class RecordingReader:
    """One recording; each pass opens it anew."""

    has_sessions = False

    def __init__(self, source: Source, *, block_tokens: int | None = None) -> None:
        """Local. Read the header; ConfigError if blocks are to be of another number of tokens than it says."""
        self.source = source
        faults = Faults(source.name, strict=True)
        with source.open() as file:
            self.header = _header(of_lines(file, faults), faults)
        self.has_blocks = self.header.blocks
        recorded = self.header.block_tokens
        if block_tokens not in (None, recorded):
            raise ConfigError(f"{source.name} was recorded with {recorded} tokens in a block, not {block_tokens}")

    def accesses(self, faults: Faults) -> Iterator[tuple[str, Access]]:
        """Local. One pass: where each access stands, and the access."""
        latest = 0.0
        with self.source.open() as file:
            records = of_lines(file, faults)
            _header(records, faults)
            for where, record in records:
                try:
                    access = _access(record, self.header.ranks)
                except FieldError as error:
                    faults.at(where, str(error))
                    continue
                if access.t < latest:
                    access = msgspec.structs.replace(access, t=faults.backwards(where, "t", access.t, latest))
                latest = access.t
                yield where, access

    def requests(self, faults: Faults) -> Iterator[Request]:
        """Local. One pass: each lookup as a request without output."""
        index, next_id, first = 0, 0, 0.0
        for where, access in self.accesses(faults):
            if access.op != "lookup":
                continue
            try:
                ids = prefix_ids(access.ids, "ids")
            except FieldError as error:
                faults.at(where, str(error))
                continue
            first = first if index else access.t
            blocks = ids if self.has_blocks else range(next_id, next_id + len(ids))
            yield Request(index, access.t - first, len(ids) * self.header.block_tokens, 0, blocks)
            index += 1
            next_id += len(ids)
        if not index:
            faults.empty()


def _header(records: Iterator[tuple[str, Record]], faults: Faults) -> Header:
    where, record = next(records, ("", None))
    if record is None:
        faults.empty()
    try:
        return _header_of(record)
    except FieldError as error:
        faults.fatal(where, str(error))


def _header_of(record: Record) -> Header:
    version = _field(record, "cascade_trace")
    if type(version) is not int or version != VERSION:
        refuse("cascade_trace", f"this version reads recordings of version {VERSION}, not {shown(version)}")
    trace = _field(record, "trace")
    if type(trace) is not str:
        refuse("trace", f"must be text, not {shown(trace)}")
    blocks = record.get("blocks", True)
    if type(blocks) is not bool:
        refuse("blocks", f"must be true or false, not {shown(blocks)}")
    return Header(
        block_bytes=_integer(record, "block_bytes", 1, MAX_BLOCK_BYTES),
        block_tokens=_integer(record, "block_tokens", 1, MAX_TOKENS),
        ranks=_integer(record, "ranks", 1, 1 << 20),
        trace=trace,
        blocks=blocks,
    )


def _access(record: Record, ranks: int) -> Access:
    t = _field(record, "t")
    if type(t) not in (int, float) or not 0 <= t < MAX_TIME:
        refuse("t", f"must be seconds of 0 or more, not {shown(t)}")
    rank = _integer(record, "rank", 0, ranks - 1)
    op = _field(record, "op")
    if type(op) is not str or op not in OPERATIONS:
        refuse("op", f"must be one of {', '.join(OPERATIONS)}, not {shown(op)}")
    ids = _field(record, "ids")
    if type(ids) is not list or not all(type(block) is int and 0 <= block < 1 << 64 for block in ids):
        refuse("ids", f"must be a list of integers in 0..2^64-1, not {shown(ids)}")
    return Access(float(t), rank, op, tuple(ids), _result(_field(record, "result"), op, len(ids)))


def _result(result: Any, op: str, count: int) -> Any:
    if op == "lookup":
        if type(result) is not int or not 0 <= result <= count:
            _refuse_result(f"of a lookup of {count} ids must be an integer in 0..{count}", result)
        return result
    if type(result) is not list or len(result) != count:
        _refuse_result(f"of a {op} of {count} ids must be a list of {count}", result)
    if op == "get":
        for size in result:
            if size is not None and (type(size) is not int or not 0 <= size <= MAX_BLOCK_BYTES):
                _refuse_result("of a get must hold bytes or null", size)
    else:
        for became in result:
            if type(became) is not str or became not in PUT_RESULTS:
                _refuse_result(f"of a put must hold {', '.join(PUT_RESULTS)}", became)
    return tuple(result)


def _refuse_result(needed: str, value: object) -> NoReturn:
    refuse("result", f"{needed}, not {shown(value)}")


def _field(record: Record, name: str) -> Any:
    if name not in record:
        refuse(name, "is missing")
    return record[name]


def _integer(record: Record, name: str, low: int, high: int) -> int:
    value = _field(record, name)
    if type(value) is not int or not low <= value <= high:
        refuse(name, f"must be an integer in {low}..{high}, not {shown(value)}")
    return value
