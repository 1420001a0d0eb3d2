"""What a directory notes beside its segments: weight epochs and checkpoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cascade_mpi.errors import ConfigError
from cascade_mpi.segments import checkpoints, epochs
from cascade_mpi.segments.checkpoints import Checkpoint
from cascade_mpi.segments.files import PosixFiles


@pytest.fixture
def files(tmp_path: Path) -> PosixFiles:
    return PosixFiles(tmp_path)


def test_the_highest_epoch_counts_and_the_others_go(files: PosixFiles, tmp_path: Path) -> None:
    assert epochs.noted(files) == {}
    for namespace, epoch in ((5, 1), (5, 3), (5, 2), (1 << 63, 1), (5, 3)):
        epochs.note(files, namespace, epoch)
    assert epochs.noted(files) == {5: 3, 1 << 63: 1}
    assert len(list((tmp_path / "epochs").iterdir())) == 2
    epochs.note(files, 5, 1)  # two ranks may note two epochs at once: the lower one, noted last, takes nothing away
    assert epochs.noted(files) == {5: 3, 1 << 63: 1}


def test_foreign_names_are_no_epochs(files: PosixFiles, tmp_path: Path) -> None:
    epochs.note(files, 5, 1)
    for name in ("x", "0000000000000005.0000000g", "5.1", "0000000000000005.00000009.bak"):
        (tmp_path / "epochs" / name).write_bytes(b"")
    assert epochs.noted(files) == {5: 1}


def test_checkpoints_are_listed_by_their_times(files: PosixFiles, tmp_path: Path) -> None:
    assert checkpoints.checkpoints(files) == []
    late, early = Checkpoint("step-2", 20, 3, 300, 4), Checkpoint("step-10", 10, 2, 200, 4)
    for each in (late, early):
        checkpoints.write(files, each)
    assert checkpoints.checkpoints(files) == [early, late]
    again = Checkpoint("step-2", 30, 1, 100, 2)
    checkpoints.write(files, again)
    assert checkpoints.checkpoints(files) == [early, again]
    (tmp_path / "checkpoints" / "half").write_text('{"time": 1, "blo')
    (tmp_path / "checkpoints" / "list").write_text("[1, 2]")
    assert checkpoints.checkpoints(files) == [early, again]


def test_a_killed_job_leaves_no_half_checkpoint(files: PosixFiles, tmp_path: Path) -> None:
    checkpoints.write(files, Checkpoint("a", 1, 1, 1, 1))
    (tmp_path / "checkpoints" / ".new").write_text("half")
    assert [each.tag for each in checkpoints.checkpoints(files)] == ["a"]
    checkpoints.write(files, Checkpoint("b", 2, 1, 1, 1))
    assert [each.tag for each in checkpoints.checkpoints(files)] == ["a", "b"]


@pytest.mark.parametrize("tag", ["", ".new", "a/b", "..", "a b", "x" * 101, None, 5, "a\n"])
def test_a_tag_is_the_name_of_a_file(files: PosixFiles, tag: object) -> None:
    with pytest.raises(ConfigError, match="tag is"):
        checkpoints.checked_tag(tag)


def test_a_note_that_was_taken_back_is_not_found(files: PosixFiles, tmp_path: Path) -> None:
    epochs.note(files, 5, 1)
    epochs.note(files, 5, 2)
    assert epochs.undo(files, 5, 2)
    assert epochs.noted(files) == {}
    assert epochs.undo(files, 5, 2)  # nor is one that was never made


def test_a_note_before_the_first_is_taken_back(files: PosixFiles) -> None:
    assert epochs.undo(files, 5, 1)
    assert epochs.noted(files) == {}


@pytest.mark.parametrize(("refused", "made", "undone"), [("fsync", True, False), ("unlink", True, False),
                                                         ("unlink", False, True)])  # fmt: skip
def test_a_note_that_may_be_found_is_told_of(
    refused: str, made: bool, undone: bool, files: PosixFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a removal that failed the names say whether it is there; one that was not synced may come back."""

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    epochs.note(files, 5, 2 if made else 1)
    monkeypatch.setattr(os, refused, refuse)
    assert epochs.undo(files, 5, 2) == undone
