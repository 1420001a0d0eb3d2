"""`cascade compact`: what is left of a directory, what is printed, the exit status, the lock, and damage."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from segment_making import RUN, Key, random_bytes, record_of

from cascade_mpi.cli import main
from cascade_mpi.errors import DamagedError
from cascade_mpi.keys import shown
from cascade_mpi.segments import epochs, identity
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.fsck import fsck
from cascade_mpi.segments.lock import DirectoryLock, Owner
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.offline import compact_directory
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.recovery import latest, recover

UUID = bytes(range(100, 116))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two ranks' segments: blocks 0 to 19, of which 2 were replaced, 3 deleted, 4 has expired; one file is open."""
    root = tmp_path / "store"
    with PosixFiles(root, make=True) as files:
        identity.ensure(files, UUID, 1)
        first, second = (SegmentLog(files, UUID, count(rank, 2), RUN, writer=rank) for rank in (0, 1))
        for number in range(20):
            log = first if number % 2 else second
            log.append(record_of(number, 1000 * number), random_bytes(number, 1000 * number))
        first.seal()
        second.seal()
        second.append(record_of(2, 10, sequence=50), random_bytes(50, 10))
        second.tombstone(3, 100, 60)
        first.tombstone(77, 1, 61)
        second.seal()
        first.append(record_of(4, 20, sequence=62, expiry=1000), bytes(20))
        first.append(record_of(20, 70_000, expiry=1 << 40), random_bytes(20, 70_000))
        first.sync()
    return root


def blocks(root: Path) -> dict[Key, bytes]:
    """What a restart finds, payloads verified."""
    with PosixFiles(root, read_only=True) as files:
        found = recover(files, UUID, sync=False)
        places = {index.segment: index.place for index in found.indexes}
        read = {}
        for row in latest(found.indexes).blocks:
            out = bytearray(int(row["length"]))
            reader = open_segment(files, UUID, int(row["segment"]))
            reader.read(int(row["unit"]), places[int(row["segment"])], memoryview(out))
            reader.close()
            read[int(row["key_hi"]), int(row["key_lo"])] = bytes(out)
        return read


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def in_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["compact", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_only_the_newest_records_are_left(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {key: value for key, value in blocks(directory).items() if key[0] != 4}
    status, found = in_json(capsys, str(directory))
    assert status == 0
    assert blocks(directory) == expected
    assert len(expected) == 19
    assert (found["blocks"], found["superseded"], found["deleted"], found["expired"]) == (19, 3, 2, 1)
    assert (found["before"]["files"], found["after"]["files"], found["segments_rewritten"]) == (4, 1, 4)
    with PosixFiles(directory, read_only=True) as files:
        report = fsck(files, UUID)
    assert (report.keys, report.deleted, report.superseded, report.damaged) == (19, 0, 0, False)
    sizes = sum(path.stat().st_size for path in (directory / "segments").iterdir())
    assert sizes == found["after"]["nbytes"] < found["before"]["nbytes"]
    before = contents(directory)
    assert main(["compact", str(directory)]) == 0
    text = capsys.readouterr().out
    assert "19 blocks; 0 records superseded, 0 keys deleted, 0 blocks expired" in text
    assert "0 segments rewritten, 0 B copied" in text
    assert contents(directory) == before, "there was nothing to do"


def test_a_dry_run_changes_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(directory)
    status, guess = in_json(capsys, str(directory), "--dry-run")
    assert status == 0
    assert contents(directory) == before
    assert main(["compact", str(directory), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "dry run, nothing was changed: 4 files" in text
    assert "-> about 1 file," in text
    _, done = in_json(capsys, str(directory))
    assert guess["bytes_copied"] == done["bytes_copied"]
    assert guess["after"]["files"] == done["after"]["files"]
    assert abs(guess["after"]["nbytes"] - done["after"]["nbytes"]) < 64 << 10
    assert (guess["dry_run"], done["dry_run"]) == (True, False)


def test_what_is_printed(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", str(directory)]) == 0
    text = capsys.readouterr().out
    assert "19 blocks; 3 records superseded, 2 keys deleted, 1 block expired" in text
    assert "compacted in " in text
    assert "-> 1 file," in text
    assert "4 segments rewritten" in text


def test_a_directory_that_is_in_use_is_refused(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(directory)
    with DirectoryLock.take(directory, Owner("elsewhere", 1, "", 0)):
        assert main(["compact", str(directory)]) == 1
        assert "nothing is lost" in capsys.readouterr().err
        assert main(["compact", str(directory), "--dry-run"]) == 0
    assert contents(directory).items() >= {name: data for name, data in before.items() if name != "LOCK"}.items()


@pytest.mark.parametrize("at", [10, 4096 + 300, 4096 + 30, -5000, -10])
def test_damage_keeps_its_segment(directory: Path, capsys: pytest.CaptureFixture[str], at: int) -> None:
    """Wherever it is in the file; all others are compacted, and nothing comes back."""
    path = directory / "segments" / f"{0:016x}.seg"  # has block 3, which was deleted by a record elsewhere
    damage(path, at)
    kept, before = path.read_bytes(), blocks_that_can_be_read(directory)
    status, found = in_json(capsys, str(directory))
    assert status == 1
    assert path.read_bytes() == kept
    assert {each["path"] for each in found["damages"]} == {f"segments/{0:016x}.seg"}
    after = blocks_that_can_be_read(directory)
    assert after == {key: value for key, value in before.items() if key[0] != 4}
    assert (3, 100) not in after
    assert found["tombstones_kept"] > 0, "the deletion of 3 is needed as long as that file is there"
    assert main(["compact", str(directory)]) == 1
    text = capsys.readouterr().out
    assert f"damage  segments/{0:016x}.seg at byte" in text
    assert re.search(r"\d+ deletions? kept:", text)


def blocks_that_can_be_read(root: Path) -> dict[Key, bytes]:
    found: dict[Key, bytes] = {}
    with PosixFiles(root, read_only=True) as files:
        recovery = recover(files, UUID, sync=False)
        places = {index.segment: index.place for index in recovery.indexes}
        for row in latest(recovery.indexes).blocks:
            out = bytearray(int(row["length"]))
            reader = open_segment(files, UUID, int(row["segment"]))
            try:
                reader.read(int(row["unit"]), places[int(row["segment"])], memoryview(out))
                found[int(row["key_hi"]), int(row["key_lo"])] = bytes(out)
            except DamagedError:
                continue
            finally:
                reader.close()
    return found


def test_an_unsealed_segment_with_damage_keeps_all_deletions(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may hold a record of any key: what was deleted stays so."""
    path = next((directory / "segments").glob("*.open"))
    damage(path, 4096 + 20)  # a tombstone, which nobody knows of now
    before = blocks_that_can_be_read(directory)
    status, found = in_json(capsys, str(directory))
    assert status == 1
    assert path.exists()
    assert (found["tombstones_kept"], found["deleted"]) == (1, 1)
    assert blocks_that_can_be_read(directory) == before
    path.unlink()  # given up
    status, found = in_json(capsys, str(directory))
    assert (status, found["tombstones_kept"], found["deleted"]) == (0, 0, 1)


def test_a_lost_identity_changes_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "STORE").unlink()
    before = contents(directory)
    assert main(["compact", str(directory)]) == 1
    assert "STORE is not there" in capsys.readouterr().err
    assert contents(directory) == before


def test_what_is_no_store_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", str(tmp_path)]) == 2
    assert "no store's directory" in capsys.readouterr().err
    assert main(["compact", str(tmp_path / "absent")]) == 2
    assert main(["compact"]) == 2


def test_an_empty_store_and_one_of_deletions_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PosixFiles(tmp_path) as files:
        identity.ensure(files, UUID, 1)
        assert main(["compact", str(tmp_path)]) == 0
        log = SegmentLog(files, UUID, count(), RUN)
        log.append(record_of(1, 100), bytes(100))
        log.seal()
        log.tombstone(1, 38, 99)
        log.close()
    status, found = in_json(capsys, str(tmp_path)) if not capsys.readouterr().err else (-1, {})
    assert status == 0
    assert found["after"] == {"files": 0, "nbytes": 0}
    assert not list((tmp_path / "segments").iterdir())


def test_small_segments_are_merged(tmp_path: Path) -> None:
    with PosixFiles(tmp_path / "store", make=True) as files:
        log = SegmentLog(files, UUID, count(), RUN)
        for number in range(40):
            log.append(record_of(number, 100), bytes(100))
            log.seal()
        done = compact_directory(files, UUID, now=0, run=3)
        assert (done.before.files, done.after.files, done.blocks) == (40, 1, 40)
        again = compact_directory(files, UUID, now=0, run=4)
        assert (again.rewritten, again.after) == (0, done.after)


def test_no_mpi_is_started(directory: Path) -> None:
    program = (
        "import sys; from cascade_mpi.cli import main; "
        f"status = main(['compact', {str(directory)!r}]); "
        "assert 'mpi4py.MPI' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_blocks_of_epochs_that_have_passed_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PosixFiles(tmp_path) as files:
        identity.ensure(files, UUID, 1)
        log = SegmentLog(files, UUID, count(), RUN)
        for number in range(20):  # 5: noted; 6: its epoch is that of its newest blocks; 7: it has but one
            namespace = 5 + number % 3
            log.append(
                record_of(number, 5000, namespace=namespace, epoch=namespace == 6 and number > 9),
                bytes([number] * 5000),
            )
        log.close()
        epochs.note(files, 5, 1)
    assert main(["ls", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["blocks"], found["passed"], sum(each["live"] for each in found["segments"])) == (10, 10, 10)
    assert [each["passed"] for each in found["namespaces"]] == [True, True, False, False]
    assert main(["ls", str(tmp_path), "--blocks"]) == 0
    text = capsys.readouterr().out
    assert "0 (passed)" in text
    assert shown(0, 7) not in text, "no job finds it"
    assert shown(2, 69) in text
    assert main(["fsck", str(tmp_path)]) == 0
    assert "10 blocks, 0 deleted, 0 records superseded, 10 blocks of epochs that have passed" in capsys.readouterr().out
    assert main(["compact", str(tmp_path), "--dry-run"]) == 0
    assert "10 blocks of epochs that have passed" in capsys.readouterr().out
    status, done = in_json(capsys, str(tmp_path))
    assert (status, done["blocks"], done["passed"]) == (0, 10, 10)
    assert done["after"]["nbytes"] < 0.6 * done["before"]["nbytes"]
    assert sorted(key[0] for key in blocks(tmp_path)) == [
        number for number in range(20) if number % 3 == 2 or (number % 3 == 1 and number > 9)
    ]
    with PosixFiles(tmp_path) as files:
        assert epochs.noted(files) == {5: 1, 6: 1}, "it is known without its records"
