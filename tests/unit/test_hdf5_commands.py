"""`cascade export` and `cascade import`: from one directory to another by a file, without MPI, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from segment_making import RUN

from cascade_mpi.cli import main
from cascade_mpi.errors import ConfigError
from cascade_mpi.hdf5.new_file import NewFile
from cascade_mpi.hdf5.origin import origin_of
from cascade_mpi.hdf5.rows import Row, path_of
from cascade_mpi.hdf5.wanted import find
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.keys import key_words
from cascade_mpi.layout import FLAG_ALIAS, FLAG_CONTENT, FLAG_FIXED
from cascade_mpi.namespaces import Namespace
from cascade_mpi.public_namespace import public
from cascade_mpi.segments import epochs, identity, names
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import PROTECTED
from cascade_mpi.segments.lock import DirectoryLock, Owner
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import latest, recover
from cascade_mpi.values import encode_dims, source

UUID = bytes(range(100, 116))
NAMED, ALICE, KEYED = Namespace("n", "llama"), Namespace("t", salt=b"alice's secret"), Namespace("k", content_keys=True)
PLAIN = Namespace("plain")
SOON = int(time.time()) + 100_000
Facts = dict[tuple[int, int], tuple[Any, ...]]


class Made:
    """A directory that is written block by block."""

    def __init__(self, root: Path) -> None:
        self.files = PosixFiles(root, make=True)
        identity.ensure(self.files, UUID, 1)
        self.log = SegmentLog(self.files, UUID, count(recover(self.files, UUID).next_segment), RUN)
        self.sequence = 1000

    def put(self, key: Any, data: np.ndarray, namespace: Namespace = PLAIN, epoch: int = 0, **fields: Any) -> Record:
        value = source(data)
        dim0, dims = encode_dims(value.shape)
        hi, lo = key_words(key, namespace.digest(epoch)) if not isinstance(key, tuple) else key
        self.sequence += 5
        record = Record(
            1, hi, lo, self.sequence, value.nbytes, dtype=value.dtype, ndim=len(value.shape), dim0=dim0, dims=dims,
            namespace=namespace.id, epoch=epoch, flags=FLAG_FIXED * namespace.content_keys,
        )._replace(**fields)  # fmt: skip
        self.log.append(record, data.reshape(-1).view(np.uint8).data if record.length else b"")
        return record

    def close(self) -> None:
        self.log.close()
        self.files.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Blocks of several namespaces and epochs, one replaced, one deleted, one expired, one large, one of no bytes."""
    root = tmp_path / "store"
    made = Made(root)
    default = Namespace()
    made.put(1, np.zeros(10, np.uint8), default)
    made.put(1, np.arange(12, dtype=np.float32).reshape(3, 4), default, marks=PROTECTED, depth=8, expiry=SOON)
    made.put(2, np.zeros(10, np.uint8), default, expiry=5)
    deleted = made.put(3, np.zeros(10, np.uint8), default)
    made.log.tombstone(deleted.key_hi, deleted.key_lo, 5000)
    made.put("text", np.arange(300_000, dtype=np.uint8), default)
    made.put(4, np.zeros((0, 3), np.int64), default)
    for namespace in (NAMED, ALICE, KEYED, PLAIN):
        made.put(7, np.array(2.5), namespace)
        made.put("text", np.array([True, False]), namespace, epoch=2)
        made.put(7, np.array(3.5), namespace, epoch=2)
    names.add(made.files, {each.id: public(each) for each in (NAMED, ALICE, KEYED)})
    made.close()
    return root


def facts(root: Path) -> Facts:
    """Everything that a restart would know of the newest blocks, bytes too, but for sequences."""
    found: Facts = {}
    with PosixFiles(root, read_only=True) as files:
        one = identity.read(files)
        assert one is not None
        indexes = recover(files, one.uuid, sync=False).indexes
        places = {index.segment: index.place for index in indexes}
        for row in latest(indexes).blocks:
            reader = open_segment(files, one.uuid, int(row["segment"]))
            out = bytearray(int(row["length"]))
            record = reader.read(int(row["unit"]), places[int(row["segment"])], memoryview(out))
            reader.close()
            found[record.key_hi, record.key_lo] = (*record._replace(sequence=0, flags=record.flags & 32), bytes(out))
    return found


def of(root: Path, namespace: Namespace, epoch: int) -> Facts:
    found = facts(root).items()
    return {key: each for key, each in found if each[-5:-3] == (namespace.id, epoch) and each[-3] != 5}


def test_the_default_namespace_goes_there_and_back(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    out = tmp_path / "a.h5"
    assert main(["export", str(directory), str(out)]) == 0
    text = capsys.readouterr().out
    assert "3 blocks, 293.0 KiB, of namespace default (0000000000000000) at epoch 0; 1 expired" in text
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before, "nothing is changed"
    with h5py.File(out) as file:
        first = file[path_of(1)]
        assert first[...].tolist() == np.arange(12).reshape(3, 4).tolist()
        assert (first.attrs["depth"], first.attrs["expiry"], first.attrs["protected"]) == (7, SOON, True)
        assert file[path_of(4)].shape == (0, 3)
        hi, lo = key_words("text")
        assert file[path_of(hi << 64 | lo)].shape == (300_000,)
        assert sum(len(group) for group in file["blocks"].values()) == 3
    new = tmp_path / "new"
    assert main(["import", str(new), str(out), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["blocks"], done["bytes"], done["kept"], done["damages"], done["failed"]) == (3, 300_048, 0, [], "")
    assert facts(new) == of(directory, Namespace(), 0)
    assert main(["fsck", str(new)]) == 0
    assert main(["ls", str(new)]) == 0


@pytest.mark.parametrize("namespace", [NAMED, KEYED, PLAIN], ids=str)
def test_a_namespace_with_a_name(
    directory: Path, tmp_path: Path, namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    out, new = tmp_path / "a.h5", tmp_path / "new"
    assert main(["export", str(directory), str(out), "--namespace", str(namespace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["epoch"], found["blocks"], found["keys"]) == (2, 2, "integer")
    with h5py.File(out) as file:
        assert file[path_of(7)][()] == 3.5, "the integer that it was put under"
    assert main(["import", str(new), str(out)]) == 0
    assert facts(new) == of(directory, namespace, 2)
    assert any(each[5] == FLAG_FIXED for each in facts(new).values()) == namespace.content_keys
    capsys.readouterr()
    assert main(["ls", str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["namespaces"][0]["name"] == str(namespace)
    assert main(["export", str(directory), str(out), "--namespace", namespace.name, "--epoch", "0", "--overwrite"]) == 0
    with h5py.File(out) as file:
        assert file[path_of(7)][()] == 2.5
        assert file.attrs["blocks"] == 1


def test_a_namespace_with_a_salt(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    salt, wrong = tmp_path / "salt", tmp_path / "wrong"
    salt.write_bytes(ALICE.salt + b"\n")
    wrong.write_bytes(b"a guess")
    stored, integer, new = tmp_path / "stored.h5", tmp_path / "integer.h5", tmp_path / "new"
    assert main(["export", str(directory), str(stored), "--namespace", f"id:{ALICE.id:x}"]) == 0
    assert "Keys are as they are stored" in capsys.readouterr().out
    assert main(["import", str(new), str(stored)]) == 0
    assert facts(new) == of(directory, ALICE, 2), "into the same namespace without its salt"
    assert main(["export", str(directory), str(integer), "--namespace", "t", "--salt-file", str(salt)]) == 0
    with h5py.File(integer) as file:
        assert file[path_of(7)][()] == 3.5
    for path in (stored, integer):
        assert ALICE.salt not in path.read_bytes()
    capsys.readouterr()
    assert main(["export", str(directory), str(tmp_path / "b.h5"), "--namespace", "t", "--salt-file", str(wrong)]) == 2
    assert "the salt is not that of namespace t (salted)" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "x"), str(integer)]) == 2
    assert "--salt-file" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "x"), str(integer), "--salt-file", str(wrong)]) == 2
    assert main(["import", str(tmp_path / "x"), str(integer), "--salt-file", str(tmp_path / "absent")]) == 2
    assert main(["import", str(tmp_path / "x"), str(integer), "--salt-file", str(salt)]) == 0
    assert facts(tmp_path / "x") == facts(new)
    assert main(["import", str(tmp_path / "y"), str(stored), "--namespace", "other", "--rekey"]) == 2
    assert "keys as they were stored" in capsys.readouterr().err


def test_another_namespace_only_when_it_is_said(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.h5"
    assert main(["export", str(directory), str(out), "--namespace", "plain"]) == 0
    assert main(["import", str(directory), str(out), "--namespace", "n/llama"]) == 2
    assert "--rekey imports it all the same" in capsys.readouterr().err
    assert main(["import", str(directory), str(out), "--namespace", "n/llama", "--rekey"]) == 0
    assert "at epoch 2" in capsys.readouterr().out
    found = facts(directory)
    assert np.frombuffer(found[key_words(7, NAMED.digest(2))][-1]) == 3.5


def test_imported_blocks_are_the_newest(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.h5"
    assert main(["export", str(directory), str(out)]) == 0
    future = time.time_ns() + 10**15
    made = Made(directory)
    made.sequence = future
    last = made.put(1, np.ones(5, np.uint8), Namespace())
    gone = made.put("text", np.zeros(5, np.uint8), Namespace())
    made.log.tombstone(gone.key_hi, gone.key_lo, future + 999)
    made.close()
    assert main(["import", str(directory), str(out), "--keep", "--json"]) == 0
    done = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (done["blocks"], done["kept"]) == (1, 2), "what was deleted is not there"
    assert facts(directory)[last.key_hi, last.key_lo][-1] == b"\1" * 5
    assert main(["import", str(directory), str(out)]) == 0
    assert len(facts(directory)[last.key_hi, last.key_lo][-1]) == 48
    with PosixFiles(directory, read_only=True) as files:
        rows = latest(recover(files, UUID, sync=False).indexes).blocks
        new = rows[rows["sequence"] > future + 999]
        assert len(new) == 3
        assert not (new["sequence"] & 0xFFF).any(), "of rank 0"
        assert len(set(new["sequence"].tolist())) == 3


def test_what_is_stored_by_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = Namespace("c", identity="content")
    made = Made(tmp_path / "store")
    data = np.arange(6, dtype=np.int16).reshape(2, 3)
    content = made.put((11, 12), data, space, flags=FLAG_CONTENT)
    none = np.zeros(0, np.uint8)
    for key in ("a", 5):
        made.put(
            key, none, space, flags=FLAG_ALIAS, content_hi=11, content_lo=12, dtype=content.dtype, ndim=2, dim0=2,
            dims=content.dims, depth=3,
        )  # fmt: skip
    made.put(6, none, space, flags=FLAG_ALIAS, content_hi=11, content_lo=99, dtype=5, ndim=1, dim0=2)
    made.close()
    out = tmp_path / "a.h5"
    assert main(["export", str(tmp_path / "store"), str(out), "--namespace", f"id:{space.id:x}"]) == 1
    captured = capsys.readouterr()
    assert "2 blocks" in captured.out
    assert "its content is not there" in captured.err
    assert main(["import", str(tmp_path / "new"), str(out)]) == 0
    found = facts(tmp_path / "new")
    assert [each[-1] for each in found.values()] == [data.tobytes()] * 2
    assert {each[-2] for each in found.values()} == {3}


def test_damage_is_left_out_and_told_of(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.h5"
    assert main(["export", str(directory), str(out)]) == 0
    [segment] = directory.glob("segments/*.seg")
    data = bytearray(segment.read_bytes())
    at = data.find(np.arange(12, dtype=np.float32).tobytes())
    data[at + 20] ^= 1
    segment.write_bytes(data)
    capsys.readouterr()
    assert main(["export", str(directory), str(tmp_path / "b.h5")]) == 1
    captured = capsys.readouterr()
    assert "2 blocks" in captured.out
    assert "left out: block" in captured.err
    assert "has the checksum" in captured.err
    with h5py.File(out, "r+") as file:
        file[path_of(1)][0, 0] = 99
    assert main(["import", str(tmp_path / "new"), str(out)]) == 1
    captured = capsys.readouterr()
    assert "2 blocks" in captured.out
    assert f"left out: {out}: {path_of(1)}: its bytes have the checksum" in captured.err
    assert len(facts(tmp_path / "new")) == 2


def test_what_is_refused_changes_nothing(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.h5"
    assert main(["export", str(directory), str(out), "--namespace", "never"]) == 2
    error = capsys.readouterr().err
    assert "there is no block of namespace never" in error
    assert "default at epoch 0" in error
    assert f"id:{NAMED.id:016x} at epoch 2 (n/llama)" in error
    assert main(["export", str(directory), str(out), "--epoch", "9"]) == 2
    assert main(["export", str(tmp_path / "absent"), str(out)]) == 2
    assert main(["export", str(directory), str(tmp_path / "absent" / "a.h5")]) == 2
    assert main(["import", str(tmp_path / "new"), str(out)]) == 2
    out.write_text("no HDF5")
    assert main(["import", str(tmp_path / "new"), str(out)]) == 2
    assert main(["export", str(directory), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert out.read_text() == "no HDF5"
    assert main(["export", str(directory), str(out), "--overwrite"]) == 0
    before = facts(directory)
    with DirectoryLock.take(directory, Owner.here(1, os.environ)):
        assert main(["import", str(directory), str(out)]) == 2
        assert "has it open for writing already" in capsys.readouterr().err
    assert facts(directory) == before
    assert main(["import", str(tmp_path / "absent" / "deep"), str(out)]) == 2
    assert main(["import", str(directory)]) == 2


def test_a_disk_that_fills_up(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import resource

    out, new = tmp_path / "a.h5", tmp_path / "new"
    data = np.zeros(20_000, np.uint8)
    row = Row(0, 6, data.shape, int(checksum_bytes(data.ctypes.data, data.nbytes)))
    with NewFile(out, origin_of(Namespace(), 0, created=1, file="x")) as file:
        for key in range(30):
            file.begin(row._replace(key=key))
            file.write(data.data)
        file.commit()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert main(["import", str(new), str(out)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    captured = capsys.readouterr()
    assert "not all of" in captured.err
    counted = int(captured.out.partition(" blocks")[0].rpartition(" ")[2])
    assert 0 < counted < 30
    assert len(facts(new)) == counted
    assert main(["import", str(new), str(out)]) == 0
    assert len(facts(new)) == 30


def test_which_namespace_is_meant() -> None:
    known = {each.id: public(each) for each in (NAMED, ALICE, KEYED)}
    twice = known | {Namespace("n", "other").id: public(Namespace("n", "other"))}
    assert find("", b"", {}).id == find("default", b"", known).id == find("id:0", b"", {}).id == 0
    assert find("id:0", b"", {}).namespace == Namespace()
    assert find("n/llama", b"", twice).namespace == NAMED
    assert find("n", b"", known).namespace == NAMED
    assert find("n", b"", twice, {Namespace("n").id}).namespace == Namespace("n")
    assert find("new", b"", known).namespace == Namespace("new")
    assert find("t", b"", known) == (ALICE.id, None, public(ALICE))
    assert find("t", ALICE.salt, {}).id == ALICE.id
    assert find("id:123", b"", known) == (0x123, None, None)
    with pytest.raises(ConfigError, match=f"id:{NAMED.id:016x}"):
        find("n", b"", twice)
    with pytest.raises(ConfigError, match="salt"):
        find("id:123", b"x", known)
    with pytest.raises(ConfigError, match="64 bytes"):
        find("t", b"x" * 65, known)


def test_no_mpi_is_started(directory: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from cascade_mpi.cli import main; "
        f"status = main(['export', {str(directory)!r}, {str(tmp_path / 'a.h5')!r}]) "
        f"or main(['import', {str(tmp_path / 'new')!r}, {str(tmp_path / 'a.h5')!r}]); "
        "assert 'mpi4py.MPI' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def bumped(tmp_path: Path, keys: int = 20) -> tuple[Path, Path]:
    """A directory with blocks of a namespace at epoch 0, the file they were exported to, and then epoch 1 began."""
    root, out = tmp_path / "bumped", tmp_path / "bumped.h5"
    made = Made(root)
    for key in range(keys):
        made.put(key, np.full(5, key, np.uint8))
    made.close()
    assert main(["export", str(root), str(out), "--namespace", "plain"]) == 0
    with PosixFiles(root) as files:
        epochs.note(files, PLAIN.id, 1)
    return root, out


def test_no_block_is_imported_into_an_epoch_that_has_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    root, out = bumped(tmp_path)
    before = facts(root)
    assert main(["import", str(root), str(out)]) == 2
    error = capsys.readouterr().err
    assert "at epoch 0, it was to be imported" in error
    assert "at epoch 1" in error
    assert facts(root) == before
    assert main(["import", str(root), str(out), "--rekey"]) == 0
    assert "at epoch 1;" in capsys.readouterr().out
    found = facts(root)
    assert all(found[key_words(key, PLAIN.digest(1))][-1] == bytes([key]) * 5 for key in range(20))
    stored = tmp_path / "stored.h5"
    with NewFile(stored, origin_of(PLAIN, 0, created=1, file="x")._replace(keys="stored", known=None)) as file:
        file.commit()
    assert main(["import", str(root), str(stored)]) == 2
    assert "with the keys as they were stored" in capsys.readouterr().err


def test_blocks_of_an_epoch_that_has_passed_are_exported_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = bumped(tmp_path)
    again = str(tmp_path / "again.h5")
    capsys.readouterr()
    assert main(["export", str(root), again, "--namespace", "plain"]) == 2
    assert "at epoch 0, which has passed: it is at 1" in capsys.readouterr().err
    assert main(["export", str(root), again, "--namespace", "plain", "--epoch", "0"]) == 0
    assert "20 blocks" in capsys.readouterr().out


def test_a_file_of_a_later_epoch_takes_nothing_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "later.h5"
    with NewFile(out, origin_of(PLAIN, 3, created=1, file="x")) as file:
        file.commit()
    root, _ = bumped(tmp_path)
    assert main(["import", str(root), str(out)]) == 2
    assert "plain" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "new"), str(out)]) == 0
    with PosixFiles(tmp_path / "new", read_only=True) as files:
        assert epochs.noted(files) == {PLAIN.id: 3}, "the namespace has no block there"


def test_a_directory_that_was_cut_short(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.h5"
    assert main(["export", str(directory), str(out)]) == 0
    [segment] = directory.glob("segments/*.seg")
    os.truncate(segment, 300_000)  # within the large block: its table is gone, and nobody knows what was behind it
    capsys.readouterr()
    assert main(["export", str(directory), str(tmp_path / "b.h5")]) == 1, "blocks are missing"
    captured = capsys.readouterr()
    assert "1 block" in captured.out
    assert "no trailer page" in captured.err
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    before[directory / "LOCK"] = b""  # it was taken, and is let go
    assert main(["import", str(directory), str(out)]) == 2
    error = capsys.readouterr().err
    assert "no trailer page" in error
    assert "cascade fsck" in error
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_what_is_said_of_wrong_paths_and_numbers(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "a.h5"
    for command in (["fsck"], ["ls"], ["compact"]):
        assert main([*command, str(tmp_path / "file")]) == 2
        assert "this is a file, or something in it is" in capsys.readouterr().err
    assert main(["import", str(directory), str(tmp_path / "none.h5")]) == 2
    assert "none.h5 is not there: is the path right?" in capsys.readouterr().err
    assert main(["export", str(directory), str(out), "--namespace", "id:zz"]) == 2
    assert "'id:zz' is no number of a namespace" in capsys.readouterr().err
    assert main(["export", str(directory), str(out)]) == 0
    capsys.readouterr()
    assert main(["export", str(directory), str(out)]) == 2
    assert "(--overwrite)" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # of somebody else, with mode 0700
    opening = os.open

    def refused(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opening(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refused)
    for command in (["fsck"], ["ls"], ["compact"], ["export"], ["import"]):
        assert main([*command, str(directory), *[str(out)] * (command[0] in ("export", "import"))]) == 2
        error = capsys.readouterr().err
        assert "not permitted; it belongs to" in error
        assert "mode 0700" in error
