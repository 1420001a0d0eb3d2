"""Logging by variables: who writes where, at which level, and what is refused."""

from __future__ import annotations

import io
import logging
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade_mpi import log
from cascade_mpi.errors import ConfigError

HOST = socket.gethostname()
LINE = re.compile(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}} rank (\d+) on {re.escape(HOST)} ([A-Z]+) (.*)")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    log.setup(0, {})


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The terminal of a program that has not set up logging. Not a fixture: pytest adds its handlers after those."""
    caught = io.StringIO()
    monkeypatch.setattr(sys, "stderr", caught)
    for name, handlers in (("", []), ("cascade", [logging.NullHandler()])):
        monkeypatch.setattr(logging.getLogger(name), "handlers", handlers)
    return caught


def lines(text: str) -> list[tuple[str, str, str]]:
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [match.groups() for match in found if match]


def speak() -> None:
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger("cascade"), level)(f"a {level}")


def test_silent_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    log.setup(0, {})
    speak()
    logging.getLogger("cascade.store").error("an error")
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("INFO", 2), ("warning", 1), ("error", 0)])
def test_a_level_writes_to_the_terminal(monkeypatch: pytest.MonkeyPatch, level: str, count: int) -> None:
    stderr = terminal(monkeypatch)
    log.setup(0, {"CASCADE_LOG_LEVEL": level})
    speak()
    written = [("0", name.upper(), f"a {name}") for name in ("debug", "info", "warning")]
    assert lines(stderr.getvalue()) == written[3 - count :]


def test_setting_up_twice_writes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    for _ in range(3):
        log.setup(0, {"CASCADE_LOG_LEVEL": "info"})
    speak()
    assert len(lines(stderr.getvalue())) == 2
    log.setup(0, {})
    speak()
    assert len(lines(stderr.getvalue())) == 2
    assert logging.getLogger("cascade").level == logging.NOTSET


@pytest.mark.parametrize(
    ("ranks", "who"), [(None, [0]), ("all", [0, 1, 2, 3, 4, 5]), ("0,3-5", [0, 3, 4, 5]), ("2", [2]), ("1, 2", [1, 2])]
)
def test_which_ranks_write_to_the_terminal(monkeypatch: pytest.MonkeyPatch, ranks: str | None, who: list[int]) -> None:
    stderr = terminal(monkeypatch)
    for rank in range(6):
        log.setup(rank, {"CASCADE_LOG_LEVEL": "warning"} | ({} if ranks is None else {"CASCADE_LOG_RANKS": ranks}))
        speak()
    assert [int(rank) for rank, _, _ in lines(stderr.getvalue())] == who


def test_a_file_for_each_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stderr = terminal(monkeypatch)
    for rank in (0, 3):
        log.setup(rank, {"CASCADE_LOG_FILE": str(tmp_path / "{host}-{rank}.log")})
        speak()
    log.setup(0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{HOST}-0.log", f"{HOST}-3.log"]
    assert [line[:2] for line in lines((tmp_path / f"{HOST}-3.log").read_text())] == [("3", "INFO"), ("3", "WARNING")]
    assert stderr.getvalue() == ""


def test_one_file_is_written_by_one_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal(monkeypatch)
    file = str(tmp_path / "job.log")
    for rank in range(3):
        log.setup(rank, {"CASCADE_LOG_FILE": file})
        speak()
    log.setup(0, {})
    assert {rank for rank, _, _ in lines(Path(file).read_text())} == {"0"}
    assert log.read({"CASCADE_LOG_FILE": file, "CASCADE_LOG_RANKS": "2"}).wanted(2)
    for ranks in ("all", "0-1", "0,7"):
        with pytest.raises(ConfigError, match=r"several ranks cannot write one file, put \{rank\} into its name"):
            log.read({"CASCADE_LOG_FILE": file, "CASCADE_LOG_RANKS": ranks})


@pytest.mark.parametrize("name", ["", "cascade"])
def test_a_program_that_logs_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stderr = terminal(monkeypatch)
    own = io.StringIO()
    handler = logging.StreamHandler(own)
    logging.getLogger(name).addHandler(handler)
    try:
        log.setup(0, {"CASCADE_LOG_LEVEL": "debug"})
        speak()
    finally:
        logging.getLogger(name).removeHandler(handler)
    assert stderr.getvalue() == ""
    assert own.getvalue() == "a warning\n"  # at the program's own level


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("CASCADE_LOG_LEVEL", "verbose", "it must be one of debug, info, warning, error, critical"),
        ("CASCADE_LOG_LEVEL", "", "it must be one of debug, info, warning, error, critical"),
        ("CASCADE_LOG_LEVEL", "10", "it must be one of"),
        ("CASCADE_LOG_RANKS", "first", 'it must be "all" or ranks such as "0,3-5"'),
        ("CASCADE_LOG_RANKS", "", "it must be"),
        ("CASCADE_LOG_RANKS", "5-3", "it must be"),
        ("CASCADE_LOG_RANKS", "1,,2", "it must be"),
        ("CASCADE_LOG_FILE", "a-{pid}.log", "{pid} is unknown, there are {rank} and {host}"),
        ("CASCADE_LOG_FILE", "a-{rank.__class__}.log", "{rank.__class__} is unknown"),
        ("CASCADE_LOG_FILE", "/no/such/folder/{rank}.log", "cannot write /no/such/folder/0.log: No such file"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, problem: str) -> None:
    terminal(monkeypatch)
    with pytest.raises(ConfigError) as caught:
        log.setup(0, {variable: text})
    assert str(caught.value).startswith(f"{variable} is {text!r}: ")
    assert problem in str(caught.value)


def test_an_empty_file_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    with pytest.raises(ConfigError, match="CASCADE_LOG_FILE is empty"):
        log.setup(0, {"CASCADE_LOG_FILE": ""})
