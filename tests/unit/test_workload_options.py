"""The options of a workload: what is refused, what the command line turns into them, and who talks about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cascade_mpi import cli, launcher
from cascade_mpi.commands import workload as workload_command
from cascade_mpi.errors import ConfigError
from cascade_mpi.workload import WorkloadOptions


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_bytes": 0}, "block size 0"),
        ({"requests": 0}, "requests 0"),
        ({"window": -1}, "window -1"),
        ({"seed": -1}, "seed -1"),
        ({"verify": "some"}, "full, sample, off"),
        ({"route": "random"}, "route 'random': it must be one of round-robin, session, prefix"),
        ({"kind": "video"}, "trace 'video': it must be one of chat"),
        ({"timed": 0.0}, "timed 0.0"),
        ({"timed": float("nan")}, "timed nan"),
        ({"timed": float("inf")}, "timed inf"),
        ({"trace": Path("t"), "trace_format": "xml"}, "format 'xml'"),
        ({"trace": Path("t"), "time_unit": "weeks"}, "time-unit 'weeks'"),
        ({"trace_format": "csv"}, "format is about a trace file"),
        ({"fields": {"a": "b"}}, "field is about a trace file"),
        ({"lenient": True}, "lenient is about a trace file"),
        ({"prom_per": "job"}, "prom-per 'job'"),
        ({"prom_file": "a-{rank}", "prom_per": "node"}, "use {node}"),
        ({"dram": 1 << 20, "dram_total": 1 << 20}, "both given"),
        ({"dram": 1 << 20, "block_bytes": 2 << 20}, "does not hold one block"),
        ({"store": {"windows": "both"}}, "windows"),
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
    for name in launcher.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return found


def test_options_reach_the_workload(accepted: list[WorkloadOptions], tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text("{}")
    words = f"""workload --trace {trace} --model llama-3-70b --scale 1/64 --requests 7 --dram 2GiB --verify sample
        --seed 5 --window 3 --json out.json --format csv --time-unit ms --field input_tokens=a=b --field x=y
        --trace-block-tokens 256 --lenient --route prefix --timed 2.5 --metrics m.jsonl --record r.jsonl
        --prom-file p-{{node}} --prom-per node --no-live
        --windows shared --progress none --checksum off --copy-threads 2 --when-full refuse"""
    assert cli.main(words.split()) == 0
    assert accepted == [
        WorkloadOptions(
            trace=trace, block_bytes=160 << 14, requests=7, dram=2 << 30, verify="sample", seed=5, window=3,
            json=Path("out.json"), trace_format="csv", time_unit="ms", fields={"input_tokens": "a=b", "x": "y"},
            trace_block_tokens=256, lenient=True, route="prefix", timed=2.5, metrics=Path("m.jsonl"),
            record=Path("r.jsonl"), prom_file="p-{node}", prom_per="node", live=False,
            store={
                "windows": "shared", "progress": "none", "checksum": "off", "copy_threads": 2, "when_full": "refuse",
            },
        )
    ]  # fmt: skip


def test_the_defaults_are_those_of_the_options(accepted: list[WorkloadOptions]) -> None:
    assert cli.main(["workload"]) == 0
    assert accepted == [WorkloadOptions()]


def test_a_file_that_is_called_like_a_generator_goes_first(
    accepted: list[WorkloadOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["workload", "--trace", "chat"]) == 0
    Path("chat").write_text("{}")
    assert cli.main(["workload", "--trace", "chat"]) == 0
    assert [options.trace for options in accepted] == [None, Path("chat")]


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
        ("workload --prom-per job", "prom-per 'job'"),
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
