"""`cascade fsck` and `cascade ls`: what they print, their exit status, and that they change nothing and need no MPI."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from segment_making import RUN, record_of

from cascade_mpi.cli import main
from cascade_mpi.keys import shown
from cascade_mpi.segments import checkpoints, identity
from cascade_mpi.segments.checkpoints import Checkpoint
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.recovery import recover

UUID = bytes(range(100, 116))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three blocks, one of them replaced, one deleted, in two sealed segments and an open one."""
    root = tmp_path / "store"
    with PosixFiles(root, make=True) as files:
        identity.ensure(files, UUID, 1)
        log = SegmentLog(files, UUID, count(), RUN)
        for number in (1, 2, 3):
            log.append(record_of(number, 1000 * number, namespace=number == 3, marks=number == 1), bytes(1000 * number))
        log.seal()
        log.append(record_of(2, 10, sequence=50), bytes(10))
        log.tombstone(3, 100, 60)
        log.seal()
        log.append(record_of(4, 5), b"hello")
        log.sync()
    return root


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_clean_directory(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(directory)
    assert main(["fsck", str(directory)]) == 0
    text = capsys.readouterr().out
    assert "3 segments (2 sealed, 1 open)" in text
    assert "3 blocks, 1 deleted, 2 records superseded; no damage, 0 notes" in text
    assert main(["fsck", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["damaged"], found["store"], found["blocks"]) == (False, UUID.hex(), 3)
    assert contents(directory) == before


def test_damage_is_explained(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(directory / "segments/0000000000000000.seg", 4096 + 300)  # of block 1
    damage(directory / "segments/0000000000000000.seg", 6144 + 300)  # of block 2, which was replaced
    damage(directory / "segments/0000000000000001.seg", 10)
    assert main(["fsck", str(directory)]) == 1
    text = capsys.readouterr().out
    assert "segments/0000000000000000.seg at byte 4096: the payload of 1000 bytes has the checksum" in text
    assert "then: 1 block is a miss, never wrong bytes" in text
    assert f"keys: {shown(1, 38)}\n" in text
    assert "then: 1 record concerns no block" in text
    assert "segments/0000000000000001.seg at byte 0: the header page has the checksum" in text
    assert "3 damages, 0 notes" in text
    assert main(["fsck", str(directory), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [each["offset"] for each in findings] == [4096, 6144, 0]
    assert findings[0]["keys"] == [shown(1, 38)]
    assert all(each["what"] and each["consequence"] and each["remedy"] for each in findings)


def test_an_interrupted_write_is_a_note(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "segments/0000000000000002.seg.open"
    path.write_bytes(path.read_bytes()[:-2])
    assert main(["fsck", str(directory)]) == 0
    text = capsys.readouterr().out
    assert "an interrupted write: the file ends 2 bytes before this record does" in text
    assert "no damage, 1 note\n" in text


def test_a_lost_or_damaged_identity_is_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(directory / "STORE", 60)
    assert main(["fsck", str(directory)]) == 1
    assert "STORE is damaged" in capsys.readouterr().out
    (directory / "STORE").unlink()
    assert main(["fsck", str(directory)]) == 1
    text = capsys.readouterr().out
    assert "STORE is not there" in text
    assert "3 blocks, 1 deleted" in text, "the segments say whose they are"


def test_ls(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(directory), "--blocks"]) == 0
    text = capsys.readouterr().out
    assert "3 blocks, 1015 B; 1 deleted, 2 records superseded" in text
    assert [text.count(shown(*key)) for key in ((1, 38), (2, 69), (3, 100), (4, 131))] == [1, 1, 0, 1]
    assert main(["ls", str(directory), "--json", "--blocks"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["sealed"], each["records"], each["live"]) for each in found["segments"]] == [
        (True, 3, 1), (True, 2, 1), (False, 1, 1),
    ]  # fmt: skip
    assert [(each["namespace"], each["blocks"], each["protected"]) for each in found["namespaces"]] == [
        ("0" * 16, 3, 1)
    ]
    assert [each["nbytes"] for each in found["each"]] == [1000, 10, 5]


def test_ls_tells_of_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(directory / "segments/0000000000000001.seg", -10)
    assert main(["ls", str(directory)]) == 0
    captured = capsys.readouterr()
    assert "3 blocks" in captured.out
    assert "1 problem, the first: segments/0000000000000001.seg" in captured.err


@pytest.mark.parametrize("command", ["fsck", "ls"])
def test_what_is_no_store_is_wrong_use(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "no store's directory" in capsys.readouterr().err
    assert main([command, str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main([command, str(tmp_path / "file")]) == 2
    assert main([command]) == 2


def test_an_empty_store_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PosixFiles(tmp_path) as files:
        identity.ensure(files, UUID, 1)
    assert main(["fsck", str(tmp_path)]) == 0
    assert "0 segments (none)" in capsys.readouterr().out
    assert main(["ls", str(tmp_path)]) == 0


def test_no_mpi_is_started(directory: Path) -> None:
    program = (
        "import sys; from cascade_mpi.cli import main; "
        f"status = main(['fsck', {str(directory)!r}]) or main(['ls', {str(directory)!r}]); "
        "assert 'mpi4py.MPI' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_ls_lists_checkpoints(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PosixFiles(directory) as files:
        checkpoints.write(files, Checkpoint("step-7", 1_700_000_000 * 10**9, 3, 2048, 4))
    assert main(["ls", str(directory)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"step-7 +2023-11-1\d \S+ +3 +2.0 KiB +4 ", text)
    assert main(["ls", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["checkpoints"]
    assert found == [{"tag": "step-7", "time": 1_700_000_000 * 10**9, "blocks": 3, "bytes": 2048, "ranks": 4}]


def test_a_sealed_segment_without_its_footer_is_not_open(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    path = directory / "segments/0000000000000000.seg"
    os.truncate(path, path.stat().st_size - 4096)
    assert main(["ls", str(directory), "--json"]) == 0
    assert [each["state"] for each in json.loads(capsys.readouterr().out)["segments"]] == ["damaged", "sealed", "open"]
    assert main(["fsck", str(directory)]) == 1
    assert "(1 sealed, 1 open, 1 damaged)" in capsys.readouterr().out


def test_a_lost_folder_is_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "segments").rename(directory / "elsewhere")
    assert main(["fsck", str(directory)]) == 1
    text = capsys.readouterr().out
    assert "damage  segments: segments/ is not there, although STORE is" in text
    assert "do: put it back" in text
    assert "1 damage, 0 notes" in text
    assert main(["ls", str(directory)]) == 0
    assert "segments/ is not there" in capsys.readouterr().err
    for command in (["compact"], ["compact", "--dry-run"]):
        assert main([*command, str(directory)]) == 1
        assert "damage  segments/ is not there" in capsys.readouterr().out
    (directory / "elsewhere").rename(directory / "segments")
    assert main(["fsck", str(directory)]) == 0


def test_fewer_blocks_than_at_the_newest_checkpoint_are_told_of(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with PosixFiles(directory) as files:
        checkpoints.write(files, Checkpoint("old", 10**9, 99, 1, 4))
        checkpoints.write(files, Checkpoint("new", 2 * 10**9, 4, 1, 4))
    assert main(["fsck", str(directory)]) == 0
    assert "no damage, 0 notes" in capsys.readouterr().out, "one of four was deleted since"
    (directory / "segments/0000000000000000.seg").unlink()
    assert main(["fsck", str(directory)]) == 0
    text = capsys.readouterr().out
    assert "note    checkpoints/new: the newest checkpoint had 4 blocks, 2 blocks are found" in text
    assert "none if 2 or more were deleted or have expired since" in text


def test_what_to_do_about_a_segment_that_no_job_writes_beside(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (directory / f"segments/{number:016x}.seg" for number in (0, 1))
    damage(second, -10)  # its trailer: the newest of 2 and the deletion of 3 are in it
    assert main(["fsck", str(directory)]) == 1
    text = capsys.readouterr().out
    assert "then: none but for what else is said of this file" in text, "all records are there"
    assert "no job writes here as long as segments/0000000000000001.seg is there" in text
    assert "out of the folder (1 block goes back to an older version; 1 deleted block is found again)" in text
    os.truncate(first, 7000)  # within the second of three blocks
    assert main(["fsck", str(directory)]) == 1
    text = capsys.readouterr().out
    assert "then: nobody knows what else it held: records behind byte 5352" in text
    assert "move segments/0000000000000000.seg out of the folder (1 block that is whole is lost by that)" in text
    assert main(["compact", str(directory)]) == 1
    assert f"cascade fsck {directory} says" in capsys.readouterr().out
    for path in (first, second):
        path.unlink()
    assert main(["fsck", str(directory)]) == 0, "the remedy is one"
    with PosixFiles(directory) as files:
        assert not recover(files, UUID).problems
