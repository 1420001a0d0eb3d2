"""The options of a workload: what is refused, what the command line turns into them, and who talks about it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cascade_mpi import cli, launcher
from cascade_mpi.commands import workload as workload_command
from cascade_mpi.config import Config
from cascade_mpi.errors import ConfigError
from cascade_mpi.workload import WorkloadOptions
from cascade_mpi.workload.options import DEFAULT_MADE_UP_REQUESTS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_bytes": 0}, "--block-bytes 0"),
        ({"requests": 0}, "--requests 0"),
        ({"window": -1}, "--window -1"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 1, "trace": Path("t")}, "--seed 1 is about a generator"),
        ({"trace_block_tokens": 0}, "--trace-block-tokens 0"),
        ({"verify": "some"}, "full, sample, off"),
        ({"route": "random"}, "--route 'random': it must be one of round-robin, session, prefix"),
        ({"kind": "video"}, "--trace 'video': it must be one of chat"),
        ({"timed": 0.0}, "--timed 0.0"),
        ({"timed": float("nan")}, "timed nan"),
        ({"timed": float("inf")}, "timed inf"),
        ({"trace": Path("t"), "trace_format": "xml"}, "format 'xml'"),
        ({"trace": Path("t"), "time_unit": "weeks"}, "time-unit 'weeks'"),
        ({"trace_format": "csv"}, "--format is about a trace file"),
        ({"fields": {"a": "b"}}, "--field is about a trace file"),
        ({"lenient": True}, "--lenient is about a trace file"),
        ({"prom_per": "job"}, "--prom-per 'job'"),
        ({"prom_per": "node"}, "--prom-per node is about a textfile"),
        ({"prom_file": "a-{rank}-{host}"}, "{host} is unknown, there are {rank} and {node}"),
        ({"prom_file": "a-{}"}, "{} is unknown"),
        ({"prom_file": "a-{rank}", "prom_per": "node"}, "use {node}"),
        ({"dram": 1 << 20, "dram_total": 1 << 20}, "--dram .* and --dram-total .* both given"),
        ({"dram": 1 << 20, "store": {"dram_bytes": 1 << 20}}, "--dram and the setting dram_bytes are both given"),
        ({"dram_total": 1 << 20, "store": {"dram_bytes": 1 << 20}}, "--dram-total and the setting dram_bytes"),
        ({"dram": 1 << 20, "block_bytes": 2 << 20}, "does not hold one block"),
        ({"store": {"windows": "both"}}, "windows"),
        ({"warm": "all"}, "--warm is about blocks on disk: give a directory with --disk"),
        ({"flush_every": 1.0}, "--flush-every is about blocks on disk"),
        ({"grace": 1.0}, "--grace is about blocks on disk"),
        ({"grace": -1.0, "store": {"disk": "d"}}, "--grace -1.0"),
        ({"flush_every": float("inf"), "store": {"disk": "d"}}, "--flush-every inf"),
        ({"warm": "much", "store": {"disk": "d"}}, "'much' is not a size"),
        (
            {"grace": 1.0, "store": {"disk": "d", "disk_mode": "read"}},
            '--grace writes to disk, and disk_mode is "read"',
        ),
        ({"store": {"window": "auto"}}, "did you mean"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WorkloadOptions(**options)


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[WorkloadOptions]:
    """The options of command lines that were run, without running them."""
    found: list[WorkloadOptions] = []
    monkeypatch.setattr(workload_command, "run", lambda options: found.append(options) or 0)
    monkeypatch.setattr("cascade_mpi.job.SILENT_SECONDS", 0)  # other ranks need not wait for rank 0's words here
    for name in launcher.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return found


def test_options_reach_the_workload(accepted: list[WorkloadOptions], tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text("{}")
    words = f"""workload --trace {trace} --model llama-3-70b --scale 1/64 --requests 7 --dram 2GiB --verify sample
        --set rest_ms=2 --set publish=deferred --window 3 --json out.json --format csv --time-unit ms
        --field input_tokens=a=b --field x=y
        --trace-block-tokens 256 --lenient --route prefix --timed 2.5 --metrics m.jsonl --record r.jsonl
        --prom-file p-{{node}} --prom-per node --no-live
        --windows shared --progress none --checksum off --copy-threads 2 --when-full refuse
        --disk kv --durability writeback --warm 1GiB --flush-every 60 --grace 90 --state s.json"""
    assert cli.main(words.split()) == 0
    assert accepted == [
        WorkloadOptions(
            trace=trace, block_bytes=160 << 14, requests=7, dram=2 << 30, verify="sample", window=3,
            json=Path("out.json"), trace_format="csv", time_unit="ms", fields={"input_tokens": "a=b", "x": "y"},
            trace_block_tokens=256, lenient=True, route="prefix", timed=2.5, metrics=Path("m.jsonl"),
            record=Path("r.jsonl"), prom_file="p-{node}", prom_per="node", live=False,
            store={
                "windows": "shared", "progress": "none", "checksum": "off", "copy_threads": 2, "when_full": "refuse",
                "rest_ms": 2.0, "publish": "deferred", "disk": "kv", "durability": "writeback",
            },
            warm="1GiB", flush_every=60.0, grace=90.0, state=Path("s.json"),
        )
    ]  # fmt: skip


def test_the_defaults_are_those_of_the_options(accepted: list[WorkloadOptions]) -> None:
    assert cli.main(["workload"]) == 0
    assert accepted == [WorkloadOptions()]
    assert cli.main(["workload", "--trace", "rag", "--seed", "5"]) == 0
    assert accepted[1:] == [WorkloadOptions(kind="rag", seed=5)]


def test_a_file_that_is_called_like_a_generator_goes_first(
    accepted: list[WorkloadOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["workload", "--trace", "chat"]) == 0
    Path("chat").write_text("{}")
    assert cli.main(["workload", "--trace", "chat"]) == 0
    assert cli.main(["workload"]) == 0  # nobody has named it
    assert [options.trace for options in accepted] == [None, Path("chat"), None]


def test_the_help_tells_every_default(
    accepted: list[WorkloadOptions], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["workload", "--help"]) == 0
    lines = {words[1]: line for line in capsys.readouterr().out.splitlines() if len(words := line.split()) > 1}
    shown = {
        "--trace": "chat", "--requests": f"{DEFAULT_MADE_UP_REQUESTS:,} of a generator", "--block-bytes": "64KiB",
        **{f"--{name.replace('_', '-')}": getattr(Config(), name)
           for name in ("windows", "progress", "checksum", "copy_threads", "when_full")},
    }  # fmt: skip
    for option, default in shown.items():
        assert re.search(rf"\[default: .*{default}", lines[option]), lines[option]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("workload --bogus", "No such option"),
        ("workload --dram 4XB", "is not a size"),
        ("workload --dram 2GiB --dram-total 4GiB", "both given"),
        ("workload --trace absent.jsonl", "no such file, and none of the generators chat"),
        ("workload --route random", "round-robin, session, prefix"),
        ("workload --timed 0", "timed 0"),
        ("workload --timed fast", "--timed"),
        ("workload --format csv", "give one with --trace FILE"),
        ("workload --field tokens", "write NAME=COLUMN"),
        ("workload --field a=b --field a=c", "given twice"),
        ("workload --prom-per job", "--prom-per 'job'"),
        ("workload --set rest_ms", "--set rest_ms: write NAME=VALUE"),
        ("workload --set rest_ms=1 --set rest_ms=2", "--set rest_ms is given twice"),
        ("workload --set rest=1", "did you mean 'rest_ms'"),
        ("workload --set rest_ms=long", "rest_ms"),
        ("workload --set checksum=off --checksum off", "--checksum and --set checksum are both given"),
        ("workload --set copy_threads=2 --copy-threads 2", "--copy-threads and --set copy_threads are both given"),
        ("workload --set dram_bytes=4GiB --dram 4GiB", "--dram and the setting dram_bytes are both given"),
        ("workload --trace .", "not a file"),
        ("workload --model gpt", "unknown model"),
        ("workload --model llama-3-70b --block-bytes 4KiB", "both given"),
        ("workload --scale 1/2", "--scale needs --model"),
        ("workload --block-tokens 5", "--block-tokens needs --model"),
        ("workload --model llama-3-70b --scale 3", "scale '3'"),
        ("workload --block-bytes 0", "1 byte or more"),
        ("workload --requests 0", "--requests"),
        ("workload --verify some", "full, sample, off"),
        ("workload --copy-threads many", "copy_threads"),
        ("frobnicate", "No such command"),
    ],
)
def test_a_wrong_command_line_is_said_once_by_rank_0(
    accepted: list[WorkloadOptions], monkeypatch: pytest.MonkeyPatch, capsys: Any, words: str, said: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(words.split()) == 2
    assert said in capsys.readouterr().err
    monkeypatch.setenv("PMI_RANK", "3")
    assert cli.main(words.split()) == 2
    assert capsys.readouterr() == ("", "")
    assert accepted == []


@pytest.mark.parametrize(
    ("words", "said"), [("--version", "cascade "), ("workload --help", "--trace"), ("--help", "workload")]
)
def test_help_and_version_end_well(accepted: list[WorkloadOptions], capsys: Any, words: str, said: str) -> None:
    assert cli.main(words.split()) == 0
    assert said in capsys.readouterr().out
    assert accepted == []


@pytest.mark.parametrize("name", launcher.RANK_VARIABLES)
def test_the_rank_is_read_from_each_launcher(accepted: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert launcher.launcher_rank() == 0
    monkeypatch.setenv(name, "5")
    assert launcher.launcher_rank() == 5
    monkeypatch.setenv(name, "none")
    assert launcher.launcher_rank() == 0


def test_options_are_parsed_without_mpi() -> None:
    program = (
        "import sys; from cascade_mpi import cli\n"
        "status = cli.main(['workload', '--dram', 'x'])\n"
        "sys.exit(status + 10 * ('mpi4py.MPI' in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "is not a size" in ended.stderr) == (2, True), ended.stderr
