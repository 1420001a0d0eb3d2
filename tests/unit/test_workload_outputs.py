"""The files of a run: which ones are refused, and that the place of one is taken by a whole file only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cascade_mpi.errors import ConfigError
from cascade_mpi.workload.options import WorkloadOptions
from cascade_mpi.workload.outputs import Opened, check, replacing


@pytest.mark.parametrize(
    ("first", "second"),
    [("trace", "record"), ("trace", "metrics"), ("json", "metrics"), ("metrics", "record"), ("json", "record")],
)
@pytest.mark.parametrize("there", [True, False])
def test_two_options_do_not_name_one_file(tmp_path: Path, first: str, second: str, there: bool) -> None:
    path = tmp_path / "b.jsonl"
    if there:
        path.write_text("old")
    other = tmp_path / "link"
    other.symlink_to(path)
    options: Any = {first: path, second: other}
    with pytest.raises(ConfigError, match=f"--{first} and --{second} are the same file"):
        check(WorkloadOptions(**options), None, writes=True)
    assert path.exists() is there
    options = {first: path, second: tmp_path / "c.jsonl"}
    check(WorkloadOptions(**options), None, writes=True)


def test_a_hard_link_and_a_textfile_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match="--trace and --json are the same file"):
        check(WorkloadOptions(trace=tmp_path / "a", json=tmp_path / "b"), None, writes=False)
    with pytest.raises(ConfigError, match="--json and --prom-file are the same file"):
        check(WorkloadOptions(json=tmp_path / "p-0"), tmp_path / "p-0", writes=True)


def test_devices_may_be_named_twice() -> None:
    null = Path(os.devnull)
    assert check(WorkloadOptions(json=null, metrics=null), None, writes=True) is None


@pytest.mark.parametrize(
    ("path", "said"),
    [("absent/a", "there is no directory"), (".", "it is a directory"), ("kept", "may not be written")],
)
@pytest.mark.parametrize("option", ["json", "metrics", "record"])
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, path: str, said: str
) -> None:
    (tmp_path / "kept").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything
    options: Any = {option: tmp_path / path}
    with pytest.raises(ConfigError, match=f"--{option} .*{said}"):
        check(WorkloadOptions(**options), None, writes=True)
    assert check(WorkloadOptions(**options), None, writes=False) is None


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as out:
        out.write(b"new")
        assert path.read_text() == "old"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    path, link = tmp_path / "a.json", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)
    with pytest.raises(OSError, match="No space"), replacing(link) as out:
        out.write(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "link"]
    with replacing(link) as out:
        out.write(b"new")
    assert (path.read_text(), link.is_symlink()) == ("new", True)


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(fifo) as out:
        out.write(b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert fifo.is_fifo()


def test_a_file_that_cannot_be_opened_is_an_error_before_the_run(tmp_path: Path) -> None:
    options = WorkloadOptions(metrics=tmp_path / "absent" / "m.jsonl", record=tmp_path / "r")
    with pytest.raises(ConfigError, match=r"--metrics .*: No such file or directory"):
        Opened(options, rank=0)
    other = Opened(options, rank=1)
    assert (other.metrics, other.record is None) == (None, False)
    other.close()
    assert other.record is not None
    assert other.record.closed
