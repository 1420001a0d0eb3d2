"""JSON traces under any names: lines or one document; which format a file is taken for; what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.errors import TraceError
from cascade_mpi.traces import Request, open_trace

MOONCAKE = Path(__file__).resolve().parents[2] / ".." / "shared" / "traces" / "mooncake_conversation.jsonl"
ONE = {"arrival_s": 5, "prompt_tokens": 600, "completion_tokens": 20, "session": "a", "extra": [{}, None]}
TWO = {"arrival_s": 6.5, "prompt_tokens": 1, "completion_tokens": 0, "session": 7}
BOTH = [Request(0, 0.0, 600, 20, range(2), "a"), Request(1, 1.5, 1, 0, range(2, 3), 7)]
MOONCAKE_LINE = {"timestamp": 3000, "input_length": 1100, "output_length": 12, "hash_ids": [0, 7, 9]}
HEADER = {"cascade_trace": 1, "block_bytes": 4096, "block_tokens": 16, "ranks": 2, "trace": "chat"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write(data: Any) -> Path:
        path = tmp_path / "trace.json"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def lines(*records: Any) -> str:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in records)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(TraceError) as caught:
        list(open_trace(path, **options))
    assert "trace.json" in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (lines(ONE, "", TWO), "jsonl"),
        (json.dumps([ONE, TWO]), "json"),
        (json.dumps([ONE, TWO], indent=3), "json"),
        ("\n\n " + json.dumps([ONE, TWO]) + " \n", "json"),
        (json.dumps(ONE, indent=1) + json.dumps(TWO, indent=1), "json"),
        ("\ufeff" + lines(ONE, TWO), "jsonl"),
        ("\ufeff" + json.dumps([ONE, TWO]), "json"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_and_documents(write: Any, text: str, format: str, pack: Any) -> None:
    trace = open_trace(write(pack(text.encode())))
    assert (trace.format, trace.has_blocks, trace.has_sessions) == (format, False, True)
    assert list(trace) == BOTH
    assert list(trace) == BOTH, "it can be gone through again"
    assert list(trace.first(1)) == BOTH[:1]


def test_block_ids_under_another_name(write: Any) -> None:
    record = {"ts": "2024-05-10T00:00:00Z", "isl": 33, "osl": 1, "block_hashes": [2**64 - 1, 0, 5]}
    trace = open_trace(write(lines(record)), block_tokens=16)
    assert (trace.has_blocks, [each.block_ids for each in trace]) == (True, [(2**64 - 1, 0, 5)])
    assert "3 ids, but 33 input tokens are 1 blocks of 512" in refusal(write(lines(record)))


def test_names_are_given(write: Any) -> None:
    record = {"when_ms": 0, "n": 7, "output": 1, "who": "x"}
    fields = {"timestamp": "when_ms", "input_tokens": "n", "output_tokens": "output", "session": "who"}
    trace = open_trace(write(lines(record, record | {"when_ms": 1500})), fields=fields)
    assert [(each.timestamp_s, each.input_tokens, each.session) for each in trace] == [(0.0, 7, "x"), (1.5, 7, "x")]


@pytest.mark.parametrize(
    ("first", "format"),
    [
        (MOONCAKE_LINE, "mooncake"),
        (MOONCAKE_LINE | {"more": 1}, "mooncake"),
        ({k: v for k, v in MOONCAKE_LINE.items() if k != "timestamp"} | {"arrival_s": 1}, "jsonl"),
        ({"block_hashes" if k == "hash_ids" else k: v for k, v in MOONCAKE_LINE.items()}, "jsonl"),
    ],
)
def test_the_first_line_tells_the_format(write: Any, first: Any, format: str) -> None:
    trace = open_trace(write(lines(first)))
    assert trace.format == format
    assert len(list(trace)) == 1
    assert f"the format was found to be {format}" in trace.notes


def test_a_mooncake_file_whose_first_line_lacks_the_ids_stays_one(write: Any) -> None:
    path = write(lines({k: v for k, v in MOONCAKE_LINE.items() if k != "hash_ids"}, MOONCAKE_LINE))
    text = refusal(path)
    assert "line 1: field 'hash_ids': is missing" in text
    assert "--format jsonl" in text, "the way out for those that have none"
    assert [each.block_ids for each in open_trace(path, strict=False)] == [(0, 7, 9)]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"hash_ids": [1]}, "hash_ids"),
        ({"Block IDs": [1]}, "hash_ids"),
        ({"conversation_id": 3}, "session"),
    ],
)
def test_a_field_that_the_first_object_lacks_is_not_ignored_later(write: Any, more: Any, field: str) -> None:
    first = {k: v for k, v in ONE.items() if k != "session"}
    second = {k: v for k, v in TWO.items() if k != "session"} | more
    for text in (lines(first, second, first), json.dumps([first, second])):
        refused = refusal(write(text))
        assert f"field '{next(iter(more))}': the first object has none that is known as {field}" in refused
    assert [each.index for each in open_trace(write(lines(first, second, first)), strict=False)] == [0, 1]
    # What is known as nothing, and what the user has named as something else, is no fault.
    assert len(list(open_trace(write(lines(first, first | {"remark": 1}))))) == 2
    named = {k if k != "arrival_s" else "session": v for k, v in first.items()}
    assert len(list(open_trace(write(lines(named, named)), fields={"timestamp": "session"}))) == 2


def test_a_recording_is_told_by_its_first_line(write: Any) -> None:
    access = {"t": 2, "rank": 1, "op": "lookup", "ids": [4, 5], "result": 0}
    trace = open_trace(write(lines(HEADER, access)))
    assert (trace.format, trace.block_tokens, list(trace)) == ("cascade", 16, [Request(0, 0.0, 32, 0, (4, 5))])


@pytest.mark.skipif(not MOONCAKE.exists(), reason="the shared Mooncake trace is not beside this checkout")
def test_the_conversation_trace_is_the_same_by_any_reader() -> None:
    mooncake = list(open_trace(MOONCAKE).first(2000))
    assert mooncake == list(open_trace(MOONCAKE, "jsonl", time_unit="ms").first(2000))
    assert mooncake == list(open_trace(MOONCAKE, "json", time_unit="ms").first(2000))


json_times = st.integers(0, 10**15)
json_records = st.lists(
    st.tuples(json_times, st.integers(0, 2000), st.integers(0, 1 << 24), st.text(max_size=40) | st.integers()),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(json_records, st.sampled_from([None, 0, 3]), st.booleans(), st.sampled_from(["lines", "list", "mooncake"]))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list, indent: int | None, ascii: bool, how: str
) -> None:
    rows.sort(key=lambda row: row[0])
    written, expected = [], []
    for index, (time, inputs, outputs, session) in enumerate(rows):
        ids = tuple(range(index * 5, index * 5 + -(-inputs // 512)))
        owner = None if how == "mooncake" or session == "" else session
        expected.append(Request(index, (time - rows[0][0]) / 1000, inputs, outputs, ids, owner))
        written.append({"input_length": inputs, "output_length": outputs, "hash_ids": ids, "timestamp": time})
        if how != "mooncake":
            written[-1]["session"] = session
    if how == "list":
        text = json.dumps(written, indent=indent, ensure_ascii=ascii)
    else:
        text = "\n".join(json.dumps(each, ensure_ascii=ascii) for each in written)
    path = tmp_path_factory.getbasetemp() / "written.json"
    path.write_bytes(text.encode("utf-8"))
    formats = {"lines": ("jsonl", "ms"), "list": ("json", "ms"), "mooncake": ("auto", "auto")}
    assert list(open_trace(path, formats[how][0], time_unit=formats[how][1])) == expected


def test_objects_may_end_anywhere_in_a_chunk(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[" + ", ".join(json.dumps(each, indent=1) for each in [ONE, TWO | {"remark": '\u00e9}{][\\"'}]) + "]"
    path = write(text)
    for size in range(1, 80):
        monkeypatch.setattr("cascade_mpi.traces.json_values._CHUNK_BYTES", size)
        assert list(open_trace(path)) == BOTH


# ------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (TWO | {"prompt_tokens": -1}, "field 'prompt_tokens': must be an integer"),
        (TWO | {"prompt_tokens": 1.0}, "field 'prompt_tokens': must be an integer"),
        (TWO | {"prompt_tokens": "1"}, "field 'prompt_tokens': must be an integer"),
        (TWO | {"completion_tokens": True}, "field 'completion_tokens': must be an integer"),
        (TWO | {"completion_tokens": 10**30}, "field 'completion_tokens': must be an integer"),
        (TWO | {"arrival_s": None}, "field 'arrival_s': must be a time"),
        (TWO | {"arrival_s": -1}, "field 'arrival_s': must be a time"),
        (TWO | {"arrival_s": 1}, "field 'arrival_s': the time runs backwards"),
        (TWO | {"session": 1.5}, "field 'session': must be text or an integer"),
        ({"arrival_s": 7}, "field 'prompt_tokens': is missing"),
        ("[1]", "an object is needed"),
        ("7", "an object is needed"),
        ('{"arrival_s": NaN}', "NaN is not a number"),
        ('{"x": 1, "x": 2}', "field 'x': occurs twice"),
        ('{"x": ' + "9" * 5000 + "}", "not usable JSON"),
    ],
)
def test_a_wrong_object_is_named_with_its_place(write: Any, record: Any, said: str) -> None:
    for text, where in (
        (lines(ONE, record), "line 2: "),
        ("[" + lines(ONE) + ",\n " + lines(record) + "]", "line 2, column 2: "),
    ):
        refused = refusal(write(text))
        assert where in refused
        assert said in refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" + lines(ONE), "cut off: the list is not closed"),
        ("[" + lines(ONE)[:-4], "line 1, column 96: not JSON, or cut off"),
        ("[" + lines(ONE) + ",]", "an object is missing behind the comma"),
        ("[" + lines(ONE) + " " + lines(TWO) + "]", "a comma or ] is missing"),
        ("[" + lines(ONE) + "]\n\n x", "line 3, column 2: not JSON: something stands behind the list"),
        ("[" + lines(ONE) + ", x]", "not JSON"),
        ("[,", "not JSON"),
        ("[]", "holds no request"),
        ("[", "cut off"),
        ("[" * 100_000, "not usable JSON"),
        ("[" + lines(ONE) + ',{"a": "\0"}]', "not JSON"),
        (b"[" + lines(ONE).encode() + b',{"a": "\xff"}]', "not UTF-8"),
        (b"[" + lines(ONE).encode() + b',{"a": "\xc3', "not UTF-8"),
        ("{}", "no column is known as timestamp"),
        ("{", "not JSON"),
        ('{"a": [', "not JSON"),
    ],
)
def test_a_broken_document_is_refused(write: Any, text: Any, said: str) -> None:
    assert said in refusal(write(text))


@pytest.mark.parametrize("lead", ["[", ""])
def test_an_object_without_end_is_not_read_whole(write: Any, lead: str) -> None:
    bomb = gzip.compress((lead + '{"arrival_s": 1, "x": "').encode() + b"0" * (12 << 20))
    assert len(bomb) < 50_000
    path = write(bomb)
    assert "more than 4194304 bytes" in refusal(path, format="json")
    assert "longer than 4194304 bytes" in refusal(path, format="jsonl")
    assert "bytes" in refusal(path)


def test_lenient_reading_skips_and_counts(write: Any) -> None:
    bad = [{"arrival_s": 6}, TWO | {"prompt_tokens": -1}, "7", '{"x": 1, "x": 2}']
    back = TWO | {"arrival_s": 1}
    for text in (lines(ONE, *bad, back, TWO), "[" + ",".join(map(lines, (ONE, *bad, back, TWO))) + "]"):
        trace = open_trace(write(text), strict=False)
        assert [each.timestamp_s for each in trace] == [0.0, 0.0, 1.5]
        assert trace.notes[-2].startswith("4 unusable lines were skipped, the first: line ")
        assert trace.notes[-1].startswith("1 requests ran back")


# ---------------------------------------------------------------------------------------------------- fuzz

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([10**400, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
sources = [ONE, TWO, MOONCAKE_LINE, HEADER, {"t": 2, "rank": 1, "op": "lookup", "ids": [4, 5], "result": 0}]
objects = st.one_of(
    st.sampled_from(sources),
    st.sampled_from(sources).flatmap(
        lambda record: st.fixed_dictionaries(
            {}, optional={name: st.just(value) | values for name, value in record.items()}
        )
    ),
    values,
).map(json.dumps)
documents = st.one_of(
    st.binary(max_size=80),
    st.lists(objects, max_size=4).map(lambda found: "\n".join(found).encode()),
    st.lists(objects, max_size=4).map(lambda found: ("[" + ",".join(found) + "]").encode()),
    st.tuples(st.lists(objects, max_size=4), st.integers(0, 200)).map(
        lambda found: ("[" + ",".join(found[0]) + "]").encode()[: found[1]]
    ),
)


@settings(deadline=None, max_examples=150)
@given(documents, st.sampled_from(["auto", "json", "jsonl", "mooncake", "cascade"]), st.booleans(), st.booleans())
def test_any_bytes_give_valid_requests_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, format: str, strict: bool, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(gzip.compress(data) if packed else data)
    latest, seen = 0.0, 0
    try:
        trace = open_trace(path, format, strict=strict)
        for request in trace:
            assert request.index == seen
            assert latest <= request.timestamp_s < float("inf")
            assert len(request.block_ids) == -(-request.input_tokens // trace.block_tokens)
            assert all(type(block) is int and 0 <= block < 1 << 64 for block in request.block_ids)
            assert len(set(request.block_ids)) == len(request.block_ids)
            latest, seen = request.timestamp_s, seen + 1
        assert seen
    except TraceError as error:
        assert "fuzz.json" in str(error)
