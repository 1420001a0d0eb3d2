"""Traces: what a Mooncake file may hold and what is said about others, the synthetic chat."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.errors import TraceError
from cascade_mpi.traces import Chat, Request, deal, read_mooncake, synthetic

MOONCAKE = Path(__file__).resolve().parents[2] / ".." / "shared" / "traces" / "mooncake_conversation.jsonl"
GOOD: dict[str, Any] = {"timestamp": 3000, "input_length": 1100, "output_length": 12, "hash_ids": [0, 7, 9]}
EDGES = [
    0,
    -1,
    1.5,
    True,
    None,
    "x",
    [],
    {},
    [[]],
    [0, 7, True],
    [0, 7, -1],
    [0, 7, 2**64],
    10**400,
    2**63,
    -0.0,
    1e308,
]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(*lines: Any) -> Path:
        path = tmp_path / "trace.jsonl"
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(raw))
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        list(read_mooncake(path))
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ Mooncake


def test_a_line_becomes_a_request(write: Any) -> None:
    later = {**GOOD, "timestamp": 3000.5, "input_length": 0, "hash_ids": [], "another field": 1}
    assert list(read_mooncake(write(GOOD, b"", later, b""))) == [
        Request(0, 0.0, 1100, 12, (0, 7, 9)),
        Request(1, 0.0005, 0, 12, ()),
    ]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("timestamp", -1, "a number of 0 or more"),
        ("timestamp", True, "a number of 0 or more"),
        ("timestamp", "0", "a number of 0 or more"),
        ("timestamp", 10**400, "a number of 0 or more"),
        ("timestamp", 10, "backwards by 2.99 s, behind a request 0.0 s after the first"),
        ("input_length", -5, "integer"),
        ("input_length", True, "integer"),
        ("input_length", 1100.0, "integer"),
        ("input_length", 10**30, "integer"),
        ("output_length", None, "integer"),
        ("hash_ids", "0 7 9", "list"),
        ("hash_ids", [0, 7], "2 ids, but 1100 input tokens are 3 blocks of 512"),
        ("hash_ids", [0, 7, 9, 11], "4 ids, but 1100 input tokens are 3 blocks of 512"),
        ("hash_ids", [0, 7, -1], "-1"),
        ("hash_ids", [0, 7, 2**64], str(2**64)),
        ("hash_ids", [0, 7, True], "True"),
        ("hash_ids", [0, 7, 9.0], "9.0"),
        ("hash_ids", [0, [7], 9], "[7]"),
        ("hash_ids", [0, 7, 7], "7 occurs twice"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(write: Any, field: str, value: Any, said: str) -> None:
    text = refusal(write(GOOD, {**GOOD, field: value}))
    assert "trace.jsonl, line 2:" in text
    assert f"field {field!r}" in text
    assert said in text
    assert len(text) < 400


@pytest.mark.parametrize("field", list(GOOD))
def test_a_missing_field_is_named(write: Any, field: str) -> None:
    assert f"line 1: field {field!r}: is missing" in refusal(write({k: v for k, v in GOOD.items() if k != field}))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (json.dumps(GOOD).encode()[:-10], "cut off"),
        (b"hello", "not JSON"),
        (b'{"timestamp": NaN}', "NaN"),
        (b'{"timestamp": -Infinity}', "Infinity"),
        (b'{"timestamp": 1, "timestamp": 2}', "field 'timestamp': occurs twice"),
        (json.dumps(GOOD).encode()[:-1] + b', "timestamp": 3001}', "field 'timestamp': occurs twice"),
        (json.dumps(GOOD).encode()[:-1] + b', "time\\u0073tamp": 3001}', "field 'timestamp': occurs twice"),
        (json.dumps(GOOD).encode()[:-1] + b', "remark": "\xff"}', "not UTF-8"),
        (b'{"timestamp": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b"[" * 100_000, "not usable JSON"),
        (b"[1, 2]", "an object"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (json.dumps(GOOD).encode() * 2, "Extra data"),
    ],
)
def test_a_line_that_is_no_object_is_refused(write: Any, line: bytes, said: str) -> None:
    text = refusal(write(GOOD, line))
    assert "trace.jsonl, line 2:" in text
    assert said in text


def test_a_line_without_end_is_not_read_whole(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade_mpi.traces.source.MAX_LINE_BYTES", 1000)
    assert "line 2: longer than 1000 bytes" in refusal(write(GOOD, b" " * 1001))


def test_files_that_cannot_be_read_are_named(tmp_path: Path, write: Any) -> None:
    assert "No such file" in refusal(tmp_path / "absent")
    assert "directory" in refusal(tmp_path)
    assert "holds no request" in refusal(write())


def test_requests_before_the_error_are_yielded(write: Any) -> None:
    stream = read_mooncake(write(GOOD, b"{"))
    assert next(stream).block_ids == (0, 7, 9)
    with pytest.raises(TraceError, match="line 2"):
        next(stream)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(EDGES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
near_misses = st.fixed_dictionaries({}, optional={name: st.one_of(st.just(GOOD[name]), json_values) for name in GOOD})
lines = st.one_of(
    st.binary(max_size=60),
    near_misses.map(lambda record: json.dumps(record).encode()),
    st.just(json.dumps(GOOD).encode()),
    st.integers(0, 80).map(lambda cut: json.dumps(GOOD).encode()[:cut]),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(lines, max_size=4))
def test_any_bytes_give_valid_requests_or_a_trace_error(tmp_path_factory: pytest.TempPathFactory, raw: list) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(b"\n".join(raw))
    latest, seen = 0.0, 0
    try:
        for request in read_mooncake(path):
            assert request.index == seen
            assert latest <= request.timestamp_s < float("inf")
            assert len(request.block_ids) == -(-request.input_tokens // 512)
            assert all(type(block) is int and 0 <= block < 1 << 64 for block in request.block_ids)
            latest, seen = request.timestamp_s, seen + 1
    except TraceError as error:
        assert "fuzz.jsonl" in str(error)


@pytest.mark.skipif(not MOONCAKE.exists(), reason="the shared Mooncake trace is not beside this checkout")
def test_the_conversation_trace_has_its_known_totals() -> None:
    dealt = deal(read_mooncake(MOONCAKE), rank=0, ranks=1)
    assert (dealt.requests, dealt.accesses, dealt.unique, dealt.prefix_hits) == (12_031, 288_500, 182_790, 105_710)


# ------------------------------------------------------------------------------------------------ synthetic


def test_a_seed_always_gives_the_same_trace() -> None:
    first = list(islice(synthetic(7), 300))
    assert first == list(islice(synthetic(7), 300))
    assert first != list(islice(synthetic(8), 300))


def test_the_default_trace_is_pinned() -> None:
    dealt = deal(islice(synthetic(0), 400), rank=0, ranks=4)
    assert dealt.totals == (400, 4768, 1571, 3197, 33, 360, 390, 432, 389, 100, 100, 100, 100)


@pytest.mark.parametrize(
    "chat", [Chat(), Chat(max_tokens=600), Chat(prompts=1, mean_turns=1), Chat(prompt_tokens=9000)]
)
def test_an_id_stands_for_one_prefix_and_fits_its_request(chat: Chat) -> None:
    parents: dict[int, int | None] = {}
    time = 0.0
    for index, request in enumerate(islice(synthetic(3, chat), 1500)):
        assert request.index == index
        assert request.timestamp_s >= time
        assert 0 < request.input_tokens <= chat.max_tokens
        assert len(request.block_ids) == -(-request.input_tokens // 512)
        before = None
        for block in request.block_ids:
            assert parents.setdefault(block, before) == before
            before = block
        time = request.timestamp_s
    assert sorted(parents) == list(range(len(parents)))  # ids are dense, in the order of first use


def test_sessions_interleave_and_prompts_are_shared() -> None:
    requests = list(islice(synthetic(0), 1000))
    uses = Counter(block for request in requests for block in request.block_ids)
    assert max(uses.values()) > 100  # a system prompt
    last_turn: dict[int, int] = {}
    gaps = []
    for request in requests:
        own = [block for block in request.block_ids if uses[block] < 20]  # too few uses for a system prompt
        before = [last_turn[block] for block in own if block in last_turn]
        if before:
            gaps.append(request.index - max(before))
        last_turn.update(dict.fromkeys(own, request.index))
    assert len(gaps) > 500
    assert median(gaps) > 10
