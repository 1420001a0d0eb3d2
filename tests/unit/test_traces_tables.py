"""Tables: the CSV formats, any other table by its names and units, and what is said about broken ones."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.errors import ConfigError, TraceError
from cascade_mpi.traces import Request, open_trace

AZURE = Path(__file__).resolve().parents[2] / ".." / "shared" / "traces" / "azure_code_2023.csv"
AZURE_2023 = b"""TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
"""
AZURE_2024 = b"""TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,0,8
"""
BURSTGPT = b"""Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,0,1087,API log
"""
BURSTGPT_SESSIONS = b"""Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,a7,1.5,ChatGPT,472,18,490,Conversation log
6,,1.5,ChatGPT,1,2,3,API log
7,a7,1.5,ChatGPT,600,18,618,Conversation log
"""
SPLITWISE = b"""request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,2,0,0,1,4808,10
1,2,0,0.052,1,513,8
"""
ALL = {"azure": AZURE_2023, "burstgpt": BURSTGPT_SESSIONS, "splitwise": SPLITWISE}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "trace.csv"
        path.write_bytes(data)
        return path

    return write


def requests(path: Path, **options: Any) -> list[Request]:
    return list(open_trace(path, **options))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(TraceError) as caught:
        requests(path, **options)
    assert "trace.csv" in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


# ---------------------------------------------------------------------------------------- the named formats


def test_azure_2023_has_counts_and_no_block_identity(write: Any) -> None:
    trace = open_trace(write(AZURE_2023))
    assert (trace.format, trace.has_blocks, trace.has_sessions) == ("azure", False, False)
    first, second = trace
    assert first == Request(0, 0.0, 4808, 10, range(10))
    assert second == Request(1, pytest.approx(0.052, abs=1e-9), 3180, 8, range(10, 17))
    assert any("no block identity" in note and "no hit is possible" in note for note in trace.notes)
    assert any("found to be azure" in note for note in trace.notes)


def test_azure_2024_has_time_zones(write: Any) -> None:
    assert requests(write(AZURE_2024)) == [Request(0, 0.0, 2162, 5, range(5)), Request(1, 0.99007, 0, 8, range(5, 5))]


def test_burstgpt_of_both_ages(write: Any) -> None:
    trace = open_trace(write(BURSTGPT))
    assert (trace.format, trace.has_sessions) == ("burstgpt", False)
    assert list(trace) == [Request(0, 0.0, 472, 18, range(1)), Request(1, 40.5, 1087, 0, range(1, 4))]
    trace = open_trace(write(BURSTGPT_SESSIONS))
    assert (trace.format, trace.has_sessions, trace.has_blocks) == ("burstgpt", True, False)
    assert [each.session for each in trace] == ["a7", None, "a7"]


def test_splitwise(write: Any) -> None:
    trace = open_trace(write(SPLITWISE))
    assert (trace.format, trace.has_blocks) == ("splitwise", False)
    assert list(trace) == [Request(0, 0.0, 4808, 10, range(10)), Request(1, 0.052, 513, 8, range(10, 12))]


@pytest.mark.parametrize("block_tokens", [1, 16, 512])
@pytest.mark.parametrize("data", ALL.values(), ids=ALL)
def test_without_identity_no_id_comes_twice(write: Any, data: bytes, block_tokens: int) -> None:
    trace = open_trace(write(data), block_tokens=block_tokens)
    assert trace.block_tokens == block_tokens
    ids = [block for each in trace for block in each.block_ids]
    assert len(ids) == sum(-(-each.input_tokens // block_tokens) for each in trace) > 0
    assert ids == list(range(len(ids)))


@pytest.mark.skipif(not AZURE.exists(), reason="the shared Azure trace is not beside this checkout")
def test_the_azure_code_trace_has_its_known_totals() -> None:
    found = requests(AZURE)
    assert len(found) == 8819
    with AZURE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(each.input_tokens, each.output_tokens) for each in found] == [
        (int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows
    ]
    assert 3400 < found[-1].timestamp_s < 3600
    assert all(a.timestamp_s <= b.timestamp_s for a, b in pairwise(found))


# ----------------------------------------------------------------------------------------- any other table


@pytest.mark.parametrize(
    "header",
    [
        "timestamp,input_tokens,output_tokens",
        "Arrival Time,Prompt Tokens,Completion Tokens",
        "arrived_at,num_prefill_tokens,num_decode_tokens",
        "ts,isl,osl",
        "start_time,prompt-len,output len",
    ],
)
def test_usual_names_are_known(write: Any, header: str) -> None:
    trace = open_trace(write(f"{header}\n10,100,20\n11,200,30\n".encode()))
    assert trace.format == "csv"
    assert list(trace) == [Request(0, 0.0, 100, 20, range(1)), Request(1, 1.0, 200, 30, range(1, 2))]
    assert any("taken as seconds (--time-unit" in note for note in trace.notes)


def test_other_names_are_given(write: Any) -> None:
    path = write(b"when,in,out,in2,timestamp\n1,100,20,7,0\n")
    fields = {"timestamp": "when", "input_tokens": "in", "output_tokens": "out"}
    assert requests(path, fields=fields) == [Request(0, 0.0, 100, 20, range(1))]
    assert "'in' is missing" not in refusal(path)
    assert "no column is known as input_tokens" in refusal(path)
    assert "field 'nowhere': is missing, but was named as input_tokens" in refusal(
        path, fields=fields | {"input_tokens": "nowhere"}
    )
    # A named format's header is no named format any more when the user says which columns count.
    assert open_trace(write(AZURE_2023), fields={"input_tokens": "GeneratedTokens", "output_tokens": "ContextTokens"})


@pytest.mark.parametrize(
    ("column", "unit", "first", "second", "seconds"),
    [
        ("time", "s", "1.5", "3", 1.5),
        ("time", "ms", "1500", "3000", 1.5),
        ("time", "us", "0", "250000", 0.25),
        ("time", "ns", "1700000000000000000", "1700000000000000001", 1e-9),  # beyond what a float tells apart
        ("time", "iso", "2024-02-28T23:59:59Z", "2024-02-29T00:00:00.5Z", 1.5),
        ("arrival_ms", "auto", "7", "1007", 1.0),
        ("Time (us)", "auto", "0", "250000", 0.25),
        ("time_sec", "auto", "0", "2", 2.0),
        ("time", "auto", "1700000000", "1700000001.5", 1.5),
        ("time", "auto", "1700000000000", "1700000001500", 1.5),
        ("time", "auto", "1700000000000000", "1700000001500000", 1.5),
        ("time", "auto", "1700000000000000000", "1700000001500000000", 1.5),
        ("time", "auto", "2024-05-10 00:00:00+02:00", "2024-05-09 22:00:01.5+00:00", 1.5),
        ("time", "auto", "5", "6.5", 1.5),
    ],
)
def test_units_of_time(write: Any, column: str, unit: str, first: str, second: str, seconds: float) -> None:
    path = write(f"{column},input_tokens,output_tokens\n{first},1,1\n{second},1,1\n".encode())
    assert [each.timestamp_s for each in requests(path, time_unit=unit)] == [0.0, seconds]


@pytest.mark.parametrize(
    "cell", ['"[7, 8, 18446744073709551615]"', "7 8 18446744073709551615", "7;8;18446744073709551615"]
)
def test_block_ids_of_a_table(write: Any, cell: str) -> None:
    trace = open_trace(write(f"ts,isl,osl,hash_ids\n0,1100,2,{cell}\n".encode()))
    assert (trace.has_blocks, [each.block_ids for each in trace]) == (True, [(7, 8, 2**64 - 1)])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("7 8", "2 ids, but 1100 input tokens are 3 blocks of 512"),
        ("7 8 8", "8 occurs twice"),
        ("7 8 x", "integers"),
        ("7 8 -9", "integers"),
        ('"[7, 8, 9.0]"', "list of integers"),
        ('"[7, 8"', "list of integers"),
        ('"[7, 8, 18446744073709551616]"', "18446744073709551616"),
        ('"[7, 8, -1]"', "-1"),
        ("7 8 99999999999999999999", "99999999999999999999"),
        ("7 8 " + "9" * 5000, "integers"),
        ("", "0 ids"),
    ],
)
def test_wrong_block_ids_of_a_table(write: Any, cell: str, said: str) -> None:
    text = refusal(write(f"ts,isl,osl,hash_ids\n0,1100,2,{cell}\n".encode()))
    assert "line 2: field 'hash_ids'" in text
    assert said in text


@pytest.mark.parametrize("separator", ",;\t")
def test_separators_quotes_marks_and_line_ends(write: Any, separator: str) -> None:
    lines = ["ts,isl,osl,remark", '0,1,2,"a, ""b""\nc"', "", "1,3,4,"]
    data = "\r\n".join(lines).replace(",", separator).encode()
    assert requests(write(b"\xef\xbb\xbf" + data)) == [
        Request(0, 0.0, 1, 2, range(1)),
        Request(1, 1.0, 3, 4, range(1, 2)),
    ]


cells = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"), max_size=10)
records = st.lists(
    st.tuples(st.integers(0, 10**9), st.integers(0, 1 << 24), st.integers(0, 1 << 24), cells), min_size=1, max_size=20
)


@settings(deadline=None, max_examples=60)
@given(records, st.booleans(), st.sampled_from(["", "hash_ids"]))
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list, packed: bool, ids: str
) -> None:
    rows.sort()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["Time (ns)", "isl", "osl", "session", *([ids] if ids else [])])
    expected = []
    taken = 0
    for index, (time, inputs, outputs, session) in enumerate(rows):
        blocks = range(taken, taken + -(-inputs // (1 << 20)))
        taken += len(blocks)
        writer.writerow([time, inputs, outputs, session, *([" ".join(map(str, blocks))] if ids else [])])
        seconds = (time - rows[0][0]) / 10**9
        expected.append(Request(index, seconds, inputs, outputs, tuple(blocks) if ids else blocks, session or None))
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(gzip.compress(text.getvalue().encode()) if packed else text.getvalue().encode())
    assert requests(path, block_tokens=1 << 20) == expected


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"2023-11-16 18:17:05,-1,2", "field 'ContextTokens': must be an integer in 0..16777216, not '-1'"),
        (b"2023-11-16 18:17:05,1.0,2", "'1.0'"),
        (b"2023-11-16 18:17:05,1,1e3", "field 'GeneratedTokens'"),
        (b"2023-11-16 18:17:05,1,", "not ''"),
        (b"2023-11-16 18:17:05,16777217,2", "16777217"),
        (b"2023-11-16 18:17:05," + b"9" * 5000 + b",2", "ContextTokens"),
        (b"2023-11-16 18:17:05,1_0,2", "'1_0'"),
        (b"2023-11-16 18:17:05,nan,2", "'nan'"),
        ("2023-11-16 18:17:05,\u0663,2".encode(), "ContextTokens"),  # an Arabic 3: int() would take it
        (b"2023-11-16 18:17:05,1", "2 cells, but the header has 3"),
        (b"2023-11-16 18:17:05,1,2,3", "4 cells, but the header has 3"),
        (b"2023-11-16 18:17:05,1,\0", "holds a NUL byte, at byte 22"),
        (b"2023-11-16 18:17:05,\xff,2", "not UTF-8 at byte 20"),
        (b"2023-11-16 18:17:05,1,2\r2023-11-16 18:17:05,1,2", "not CSV"),
        (b'2023-11-16 18:17:05,"1"2,2', "not CSV"),
        (b'2023-11-16 18:17:05,"1,2', "not CSV: unexpected end of data"),
        (b"yesterday,1,2", "must be a date like"),
        (b"2023-02-30 00:00:00,1,2", "must be a date like"),
        (b"2023-11-16 18:17:05+00:00,1,2", "with or without a time zone"),
        (b"2023-11-16 18:17:04,1,2", "backwards by 0.03196 s, behind a request 0.052 s after the first"),
        (b"2023-11-16 18:17:02,1,2", "the time runs backwards"),
    ],
)
def test_a_wrong_row_is_named_with_file_line_and_column(write: Any, row: bytes, said: str) -> None:
    text = refusal(write(AZURE_2023 + row + b"\n"))
    assert "trace.csv, line 4: " in text
    assert said in text


@pytest.mark.parametrize("time", ["nan", "inf", "-1", "-0.5", "1_0", "", "x", "0x10", "1e400", "9" * 200, "1e19"])
def test_a_wrong_time_is_refused(write: Any, time: str) -> None:
    rows = b"\n".join(SPLITWISE.split(b"\n")[:2])
    assert "line 3: field 'arrival_timestamp'" in refusal(write(rows + f"\n1,2,0,{time},1,1,1\n".encode()))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no request"),
        (b"\n \n\n", "holds no request"),
        (b"\xef\xbb\xbf", "holds no request"),
        (AZURE_2023.split(b"\n")[0], "holds no request"),
        (gzip.compress(b"", mtime=0), "holds no request"),
        (gzip.compress(AZURE_2023, mtime=0)[:-12], "damaged or cut off gzip file"),
        (gzip.compress(AZURE_2023, mtime=0)[:20] + b"\xff" * 20, "damaged or cut off gzip file"),
        (b"\x1f\x8bnot gzip at all", "damaged or cut off gzip file"),
        (AZURE_2023.decode().encode("utf-16"), "not UTF-8 at byte 0"),
        (b"ts,isl,isl,osl\n", "line 1 (the header): field 'isl': occurs twice"),
        (b"ts,isl\n", "no column is known as output_tokens"),
        (b"ts,isl,prompt_tokens,osl\n", "ambiguous: 'isl', 'prompt_tokens' may all be input_tokens"),
        (b'ts,"isl,osl\n', "line 1 (the header)"),
        (b"a" * 3_000_000, "line 1 (the header)"),
        (b"a,\0\n", "NUL"),
        (b"ts,isl,prompt_tokens,osl\n", "say which one is with --field input_tokens=COLUMN"),
        (b"ts,isl\n", "say which one is with --field output_tokens=COLUMN"),
        (b"ts,isl,osl\nnan,1,1\n", "line 2: field 'ts': must be a time, a number of 0 or more, not 'nan'"),
        (b"ts,isl,osl\n-Infinity,1,1\n", "line 2: field 'ts': must be a time, a number of 0 or more"),
        (b"ts,isl,osl\nyesterday,1,1\n", "line 2: field 'ts': must be a date like"),
    ],
)
def test_files_that_are_no_tables_are_refused(write: Any, data: bytes, said: str) -> None:
    assert said in refusal(write(data))


@pytest.mark.parametrize("format", [*ALL, "csv"])
@pytest.mark.parametrize("data", [b'\n{"timestamp": 0, "x": 1}', b'[{"timestamp": 0}]', b' ["a"]'])
def test_json_that_is_said_to_be_a_table_is_none(write: Any, format: str, data: bytes) -> None:
    text = refusal(write(data), format=format)
    assert "(the header): this is no table, it looks like JSON" in text
    assert "missing" not in text


def test_a_header_of_two_formats_is_ambiguous(write: Any) -> None:
    both = SPLITWISE.split(b"\n")[0] + b"," + AZURE_2023.split(b"\n")[0]
    text = refusal(write(both + b"\n1,2,0,0.5,1,1,1,2023-11-16,1,1\n"))
    assert "fits the formats azure, splitwise: say which one it is with --format" in text
    assert len(requests(write(both + b"\n1,2,0,0.5,1,1,1,2023-11-16,1,1\n"), format="azure")) == 1


@pytest.mark.parametrize("format", ALL)
def test_a_named_format_with_a_column_of_ids_is_any_table(write: Any, format: str) -> None:
    header, row, *_ = ALL[format].split(b"\n")
    inputs = {"azure": 10, "burstgpt": 1, "splitwise": 10}[format]
    ids = " ".join(map(str, range(50, 50 + inputs))).encode()
    trace = open_trace(write(header + b",Hash-IDs\n" + row + b"," + ids))
    assert (trace.format, trace.has_blocks) == ("csv", True)
    assert [each.block_ids for each in trace] == [tuple(range(50, 50 + inputs))]


@pytest.mark.parametrize("format", ALL)
def test_a_missing_column_of_a_named_format_is_named(write: Any, format: str) -> None:
    header, *rows = ALL[format].split(b"\n")
    names = header.split(b",")
    needed = [name for name in names if name not in (b"Session ID", b"Elapsed time")]
    for name in needed:
        data = b",".join(b"x" if each == name else each for each in names)
        assert f"field '{name.decode()}': is missing" in refusal(write(b"\n".join([data, *rows])), format=format)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        open_trace(tmp_path / "absent.csv")
    with pytest.raises(TraceError, match="is a directory"):
        open_trace(tmp_path)
    with pytest.raises(TraceError, match="null byte"):
        open_trace("a\0b")
    with pytest.raises(TraceError, match="not a regular file"):  # reading it would never end
        open_trace("/dev/zero")


def test_a_line_without_end_is_not_read_whole(write: Any) -> None:
    bomb = gzip.compress(AZURE_2023 + b"0" * (12 << 20) + b"\n" + AZURE_2023.split(b"\n")[2])
    assert len(bomb) < 50_000
    assert "line 4: longer than 4194304 bytes" in refusal(write(bomb))
    trace = open_trace(write(bomb), strict=False)
    assert len(list(trace)) == 3
    assert trace.notes[-1].startswith("1 unusable lines were skipped")


def test_a_wrong_line_far_behind_the_header_is_named(write: Any) -> None:
    rows = b"1,2,3\n" * 200_000  # several blocks of the reader
    assert "line 200002: holds a NUL byte, at byte 2" in refusal(write(b"ts,isl,osl\n" + rows + b"2,\0,3\n"))
    assert "line 200002: field 'isl'" in refusal(write(b"ts,isl,osl\n" + rows + b"2,x,3\n"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "xml"}, "trace format 'xml'"),
        ({"time_unit": "h"}, "time unit 'h'"),
        ({"block_tokens": 0}, "block tokens 0"),
        ({"fields": {"tokens": "isl"}}, "field 'tokens'"),
        ({"format": "azure", "time_unit": "ms"}, "a time unit can be given for csv"),
        ({"format": "azure", "fields": {"session": "x"}}, "fields can be given for csv"),
    ],
)
def test_wrong_arguments_are_refused(write: Any, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_trace(write(AZURE_2023), **options)


# ------------------------------------------------------------------------------------------------- lenient


def test_lenient_reading_skips_counts_and_tells(write: Any) -> None:
    rows = [b"ts,isl,osl", b"5,1,1", b"6,x,1", b"7,1", b"4,2,2", b"\xff,1,1", b"8,1,\0", b'9,"1"1,1', b"10,3,3"]
    trace = open_trace(write(b"\n".join(rows)), strict=False)
    assert [(each.index, each.timestamp_s, each.input_tokens) for each in trace] == [(0, 0, 1), (1, 0, 2), (2, 5, 3)]
    skipped, moved = trace.notes[-2:]
    assert skipped.startswith("5 unusable lines were skipped, the first: line 3: field 'isl'")
    assert moved.startswith("1 requests ran back in time")
    list(trace)
    assert trace.notes[-2:] == (skipped, moved), "each pass counts anew"


def test_lenient_reading_knows_its_line_behind_skipped_ones(write: Any) -> None:
    rows = [b"", b"ts,isl,osl", b"5,\0,1", b"5,\xff,1", b"6,1,x"]
    trace = open_trace(write(b"\n".join(rows)), strict=False)
    with pytest.raises(TraceError, match="holds no request; 3 unusable lines were skipped, the first: line 3: holds a"):
        list(trace)
    with pytest.raises(TraceError, match="line 5: field 'osl'"):
        list(open_trace(write(b"\n".join([b"", b"ts,isl,osl", b"4,1,1", b"", b"6,1,x"]))))


# ---------------------------------------------------------------------------------------------------- fuzz

cell = st.one_of(
    st.sampled_from(["0", "1", "512", "-1", "1.5", "nan", "1e999", "", '"', '"a', "2023-11-16 18:17:03.98", "[1, 2]"]),
    st.text(max_size=8),
    st.integers().map(str),
)
header = st.sampled_from(
    [data.split(b"\n")[0] for data in (*ALL.values(), BURSTGPT)] + [b"ts,isl,osl,hash_ids,session"]
)
row = st.lists(cell, min_size=1, max_size=8).map(lambda found: ",".join(found).encode("utf-8", "surrogatepass"))
good = st.sampled_from([line for data in ALL.values() for line in data.split(b"\n")[1:]])
tables = st.builds(lambda top, rows: b"\n".join([top, *rows]), header, st.lists(row | good | st.binary(max_size=30)))
formats = st.sampled_from(["auto", "azure", "burstgpt", "splitwise", "csv"])


@settings(deadline=None, max_examples=150)
@given(tables | st.binary(max_size=200), formats, st.booleans(), st.sampled_from([None, "packed", "cut"]))
def test_any_bytes_give_valid_requests_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, format: str, strict: bool, how: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    packed = data if how is None else gzip.compress(data)
    path.write_bytes(packed[:-5] if how == "cut" else packed)
    latest, seen = 0.0, 0
    try:
        trace = open_trace(path, format, strict=strict)
        for request in trace:
            assert request.index == seen
            assert latest <= request.timestamp_s < float("inf")
            assert len(request.block_ids) == -(-request.input_tokens // 512)
            assert request.output_tokens >= 0
            assert trace.has_sessions or request.session is None
            latest, seen = request.timestamp_s, seen + 1
        assert seen
    except TraceError as error:
        assert "fuzz.csv" in str(error)
