"""Recordings: written and read back, as a trace, and what is said about broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import read_recording, write_recording

from cascade_mpi.errors import ConfigError, TraceError
from cascade_mpi.traces import Request, deal, open_trace
from cascade_mpi.traces.recording import (
    Access,
    Header,
    access_line,
    header_line,
)
from cascade_mpi.traces.trace import NO_BLOCKS

HEADER = Header(block_bytes=4096, block_tokens=16, ranks=2, trace="chat (seed 0)")
ACCESSES = [
    Access(0.5, 1, "lookup", (0, 7, 2**64 - 1), 1),
    Access(0.5, 0, "lookup", (), 0),
    Access(0.75, 1, "get", (0, 7), (4096, None)),
    Access(1.0, 1, "put", (7, 8, 9), ("stored", "kept", "refused")),
    Access(2.5, 0, "lookup", (0, 7), 2),
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*records: Any) -> Path:
        path = tmp_path / "recording.jsonl"
        raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in records]
        path.write_bytes(b"\n".join(raw))
        return path

    return write


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "r", HEADER, ACCESSES)
    assert read_recording(path) == (HEADER, ACCESSES)
    assert path.read_text().splitlines()[3] == '{"t":0.75,"rank":1,"op":"get","ids":[0,7],"result":[4096,null]}'


def test_as_a_trace_each_lookup_is_a_request(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "r", HEADER, ACCESSES)
    trace = open_trace(path)
    assert (trace.format, trace.block_tokens, trace.has_blocks, trace.has_sessions) == ("cascade", 16, True, False)
    assert list(trace) == [
        Request(0, 0.0, 48, 0, (0, 7, 2**64 - 1)),
        Request(1, 0.0, 0, 0, ()),
        Request(2, 2.0, 32, 0, (0, 7)),
    ]
    assert open_trace(path, "cascade", block_tokens=16).block_tokens == 16
    with pytest.raises(ConfigError, match="recorded with 16 tokens in a block, not 512"):
        open_trace(path, block_tokens=512)
    with pytest.raises(TraceError, match="holds no request"):
        list(open_trace(write_recording(path, HEADER, ACCESSES[2:4])))


def test_a_recording_of_a_trace_without_blocks_has_none_either(write: Any) -> None:
    lookups = [LOOKUP | {"ids": ids, "t": t} for t, ids in enumerate([[3, 4], [0, 1, 2], [5]])]
    trace = open_trace(write(GOOD_HEADER | {"blocks": False}, *lookups))
    assert not trace.has_blocks
    assert NO_BLOCKS in trace.notes
    assert [each.block_ids for each in trace] == [range(2), range(2, 5), range(5, 6)], "fresh, and a range"
    with pytest.raises(TraceError, match="the route prefix needs to know"):
        deal(trace, 0, 2, "prefix")
    assert b"blocks" not in header_line(HEADER), "said only where there are none"
    assert json.loads(header_line(msgspec.structs.replace(HEADER, blocks=False)))["blocks"] is False


ids = st.lists(st.integers(0, 2**64 - 1), max_size=4, unique=True).map(tuple)
times = st.floats(0, 1e6)
accesses = st.one_of(
    st.builds(lambda t, rank, ids: Access(t, rank, "lookup", ids, len(ids)), times, st.integers(0, 1), ids),
    st.builds(lambda t, rank, ids: Access(t, rank, "get", ids, (None,) * len(ids)), times, st.integers(0, 1), ids),
    st.builds(lambda t, rank, ids: Access(t, rank, "put", ids, ("kept",) * len(ids)), times, st.integers(0, 1), ids),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(accesses, max_size=12), st.text(max_size=10), st.booleans())
def test_any_accesses_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, found: list[Access], name: str, blocks: bool
) -> None:
    found.sort(key=lambda each: each.t)
    header = Header(block_bytes=1, block_tokens=1, ranks=2, trace=name, blocks=blocks)
    path = write_recording(tmp_path_factory.getbasetemp() / "recorded", header, found)
    assert read_recording(path) == (header, found)


GOOD_HEADER = json.loads(header_line(HEADER))
LOOKUP, _, GET, PUT, _ = (json.loads(access_line(each)) for each in ACCESSES)


@pytest.mark.parametrize(
    ("record", "change", "said"),
    [
        (LOOKUP, {"t": -1}, "field 't'"),
        (LOOKUP, {"t": "0"}, "field 't'"),
        (LOOKUP, {"t": 0.25}, "field 't': the time runs backwards"),
        (LOOKUP, {"rank": 2}, "field 'rank': must be an integer in 0..1"),
        (LOOKUP, {"rank": True}, "field 'rank'"),
        (LOOKUP, {"op": "delete"}, "field 'op': must be one of lookup, get, put"),
        (LOOKUP, {"op": []}, "field 'op'"),
        (LOOKUP, {"ids": 7}, "field 'ids'"),
        (LOOKUP, {"ids": [2**64]}, "field 'ids'"),
        (LOOKUP, {"ids": [True]}, "field 'ids'"),
        (LOOKUP, {"result": 4}, "a lookup of 3 ids must be an integer in 0..3"),
        (LOOKUP, {"result": [1]}, "field 'result'"),
        (GET, {"result": 2}, "a get of 2 ids must be a list of 2"),
        (GET, {"result": [1]}, "field 'result'"),
        (GET, {"result": [1, -1]}, "must hold bytes or null"),
        (PUT, {"result": ["stored"] * 2}, "a put of 3 ids must be a list of 3"),
        (PUT, {"result": ["stored", "kept", "lost"]}, "must hold stored, kept, refused"),
        (PUT, {"result": [[], [], []]}, "must hold stored, kept, refused"),
    ],
)
def test_a_wrong_access_is_named_with_its_line(write: Any, record: Any, change: Any, said: str) -> None:
    path = write(GOOD_HEADER, LOOKUP, record | change)
    with pytest.raises(TraceError, match=r"recording\.jsonl, line 3: ") as caught:
        list(open_trace(path))
    assert said in str(caught.value)
    trace = open_trace(path, strict=False)
    assert len(list(trace)) == (2 if "backwards" in said else 1)
    assert ("ran back" in trace.notes[-1]) == ("backwards" in said)


@pytest.mark.parametrize("field", [*LOOKUP, *GOOD_HEADER])
def test_a_missing_field_is_named(write: Any, field: str) -> None:
    records = [{k: v for k, v in each.items() if k != field} for each in (GOOD_HEADER, LOOKUP)]
    with pytest.raises(TraceError, match=f"line {1 if field in GOOD_HEADER else 2}: field '{field}': is missing"):
        list(open_trace(write(*records), "cascade"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cascade_trace": 2}, "reads recordings of version 1, not 2"),
        ({"cascade_trace": True}, "not True"),
        ({"block_bytes": 0}, "field 'block_bytes'"),
        ({"block_tokens": 1.5}, "field 'block_tokens'"),
        ({"ranks": 0}, "field 'ranks'"),
        ({"trace": None}, "field 'trace'"),
        ({"blocks": 1}, "field 'blocks': must be true or false, not 1"),
    ],
)
def test_a_wrong_header_is_refused_at_open(write: Any, change: Any, said: str) -> None:
    with pytest.raises(TraceError, match="line 1: ") as caught:
        open_trace(write(GOOD_HEADER | change, LOOKUP))
    assert said in str(caught.value)


def test_a_recording_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "r", HEADER, ACCESSES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TraceError, match="line 6: not JSON, or cut off"):
        list(open_trace(path))
    path.write_bytes(b"")
    with pytest.raises(TraceError, match="holds no request"):
        open_trace(path, "cascade")


def test_ids_twice_in_a_lookup_are_no_prefix(write: Any) -> None:
    path = write(GOOD_HEADER, GET | {"ids": [7, 7]}, LOOKUP | {"ids": [7, 7], "t": 3})
    with pytest.raises(TraceError, match="line 3: field 'ids': 7 occurs twice in one prefix"):
        list(open_trace(path))
