"""The identity of a store, and the lock of its directory."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from disk_faults import FailingFiles, MutantFiles, Plan
from power_loss import survey_all
from recorded_disk import Disk, RecordingFiles

from cascade_mpi.errors import DiskError, LocksUnsupportedError, StoreIdentityError, StoreInUseError
from cascade_mpi.segments import identity, lock
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.identity import Identity, ensure
from cascade_mpi.segments.lock import DirectoryLock, Owner
from cascade_mpi.segments.recovery import lost_folder

UUID = bytes(range(16))
OWNER = Owner("node7", 4711, "123", 1_700_000_000)


@pytest.fixture
def files() -> RecordingFiles:
    return RecordingFiles(Disk())


class TestIdentity:
    def test_made_once_and_read_again(self, tmp_path: Path) -> None:
        with PosixFiles(tmp_path) as files:
            assert identity.read(files) is None
            made = ensure(files, UUID, 5)
            assert made == Identity(UUID, 5)
            assert ensure(files, bytes(16), 6) == identity.read(files) == made
            assert files.names("") == ["STORE", "segments"]
        assert str(made) == UUID.hex()
        fields = json.loads((tmp_path / "STORE").read_text())
        assert fields["uuid"] == UUID.hex()
        assert fields["version"] == identity.VERSION

    @pytest.mark.parametrize("kill_first", [False, True])
    @pytest.mark.parametrize("cut", range(10))
    def test_a_power_loss_leaves_it_whole_or_not_there(self, kill_first: bool, cut: int) -> None:
        """A first job may have been killed after any of its calls; the next one acknowledges, and power is lost."""
        disk = Disk()
        if kill_first:
            with pytest.raises(DiskError):
                ensure(FailingFiles(RecordingFiles(disk), Plan(errno.EIO, cut, for_ever=True)), bytes(16), 1)
        made = ensure(RecordingFiles(disk), UUID, 5)
        disk.note("made")

        def judge(files: RecordingFiles, notes: tuple[Any, ...]) -> Iterable[str]:
            found = identity.read(files)
            if notes and found != made:
                yield f"lost: {found}"
            if found is not None and lost_folder(files):
                yield "a new store looks as if it had lost its segments"
            if ensure(files, b"x" * 16, 9) not in (found, Identity(b"x" * 16, 9)):
                yield "cannot be made again"

        outcome = survey_all(disk, judge)
        assert not outcome.bad, str(outcome)
        assert outcome.different > 3

    @pytest.mark.parametrize(("kind", "second"), [("sync", False), ("sync_folder", False), ("sync_folder", True)])
    def test_a_missing_sync_is_found(self, kind: str, second: bool) -> None:
        disk = Disk()
        if second:  # the first job was killed before it synced the folder
            with pytest.raises(DiskError):
                plan = Plan(errno.EIO, 0, kinds=frozenset({"sync_folder"}))
                ensure(FailingFiles(RecordingFiles(disk), plan), UUID, 5)
        made = ensure(MutantFiles(RecordingFiles(disk), lambda which, _: which != kind), UUID, 5)
        disk.note("made")

        def judge(files: RecordingFiles, notes: tuple[Any, ...]) -> Iterable[str]:
            try:
                if notes and identity.read(files) != made:
                    yield "lost"
            except StoreIdentityError:
                yield "damaged"

        assert survey_all(disk, judge).bad

    def test_the_folder_is_sure_before_the_file(self) -> None:
        disk, syncs = Disk(), count()

        def left_out(kind: str, _: str) -> bool:
            return kind != "sync_folder" or next(syncs) > 0

        ensure(MutantFiles(RecordingFiles(disk), left_out), UUID, 5)
        outcome = survey_all(disk, lambda files, _: ["lost"] if lost_folder(files) else [])
        assert outcome.bad, "a power loss keeps the later of two names"

    def test_every_call_may_fail(self) -> None:
        failed = 0
        for number in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES):
            for for_ever in (False, True):
                for at in range(100):
                    disk, plan = Disk(), Plan(number, at, for_ever=for_ever)
                    try:
                        ensure(FailingFiles(RecordingFiles(disk), plan), UUID, 5)
                    except DiskError:
                        failed += 1
                        assert plan.failed
                    assert ensure(RecordingFiles(disk), bytes(16), 9) in (Identity(UUID, 5), Identity(bytes(16), 9))
                    if not plan.failed:
                        break
                else:
                    pytest.fail("it never ends")
        assert failed > 50

    def test_every_damage_is_seen(self, files: RecordingFiles) -> None:
        ensure(files, UUID, 5)
        whole = files.disk.contents()["STORE"]
        damaged = [whole[:at] for at in range(len(whole))] + [
            whole + b"\n",
            whole * 40,
            b"",
            b"{}\n",
            bytes(len(whole)),
        ]
        for at in range(len(whole)):
            for bit in range(8):
                damaged.append(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        for data in damaged:
            with pytest.raises(StoreIdentityError, match="STORE"):
                identity.read(RecordingFiles(Disk({"STORE": data})))
            with pytest.raises(StoreIdentityError, match="STORE"):
                ensure(RecordingFiles(Disk({"STORE": data})), UUID, 5)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"what": "cascade store", "version": 99, "uuid": "00", "created": 1}, "version 99.*knows 1.*newer"),
            ({"what": "cascade store", "version": 0, "uuid": "00", "created": 1}, "version 0.*knows 1.*export"),
            ({"what": "another", "version": 1}, "no file of this program"),
            ({"what": "cascade store", "version": 1, "uuid": "00", "created": 1}, "cannot be"),
        ],
    )
    def test_what_another_program_wrote_is_refused(self, fields: dict[str, Any], words: str) -> None:
        text = json.dumps(fields)
        data = f'{text[:-1]}, "checksum": "{identity._checksum(text)}"}}\n'.encode()
        with pytest.raises(StoreIdentityError, match=words):
            identity.read(RecordingFiles(Disk({"STORE": data})))

    @pytest.mark.parametrize("name", ["0000000000000001.seg", "0000000000000002.seg.open"])
    def test_segments_without_their_store_are_not_adopted(self, name: str) -> None:
        disk = Disk({f"segments/{name}": b"x"})
        with pytest.raises(StoreIdentityError, match=f"1 segments are .segments/{name}"):
            ensure(RecordingFiles(disk), UUID, 5)
        assert list(disk.contents()) == [f"segments/{name}"]
        assert ensure(RecordingFiles(Disk({"segments/notes.txt": b"x"})), UUID, 5).uuid == UUID

    def test_a_uuid_has_16_bytes(self, files: RecordingFiles) -> None:
        with pytest.raises(ValueError, match="16 bytes"):
            ensure(files, b"short", 1)


HOLD = """
import os, sys, time
from cascade_mpi.segments.lock import DirectoryLock, Owner
lock = DirectoryLock.take(sys.argv[1], Owner("node7", os.getpid(), "123", 1_700_000_000))
print("held", flush=True)
sys.stdin.read()
if len(sys.argv) > 2:
    lock.release()
    print("released", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


JOIN = """
import sys
from cascade_mpi.segments.lock import DirectoryLock
lock = DirectoryLock.join(sys.argv[1])
print("joined", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def joiner(tmp_path: Path, holder: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Another process of the holder's job."""
    command = [sys.executable, "-c", JOIN, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_job_has_it_until_its_last_process_has_ended(
    tmp_path: Path, holder: subprocess.Popen[str], joiner: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    monkeypatch.setattr(lock, "_END_S", 0.0)
    for _ in range(2):
        with pytest.raises(StoreInUseError, match=f"in use by job 123, process {holder.pid} .*others of its job"):
            DirectoryLock.take(tmp_path, OWNER)
    monkeypatch.setattr(lock, "_END_S", 30.0)
    joiner.send_signal(signal.SIGKILL)  # it may end after the next line has looked: that waits for it
    DirectoryLock.take(tmp_path, OWNER).release()


class TestLock:
    def test_who_joins_too_late_is_refused(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        """The job's first process has ended, and another job is about to begin: it has all alone for a moment."""
        descriptor = os.open(tmp_path / "LOCK", os.O_RDWR)
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        program = (
            "import sys\n"
            "from cascade_mpi.errors import StoreInUseError\n"
            "from cascade_mpi.segments.lock import DirectoryLock\n"
            "try: DirectoryLock.join(sys.argv[1])\n"
            "except StoreInUseError: sys.exit(7)\n"
        )
        status = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False).returncode
        os.close(descriptor)
        assert status == 7

    def test_who_joins_leaves_the_name(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        joined = DirectoryLock.join(tmp_path)
        with pytest.raises(StoreInUseError, match="this process"):
            DirectoryLock.take(tmp_path, OWNER)
        joined.release()
        assert str(holder.pid) in (tmp_path / "LOCK").read_text()

    def test_the_second_job_is_told_the_first(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        words = (
            rf"in use by job 123, process {holder.pid} on node7, since 2023-11-14 22:13:20 UTC, or by others.*: wait"
        )
        for _ in range(2):  # being refused must not end the other's lock
            with pytest.raises(StoreInUseError, match=words):
                DirectoryLock.take(tmp_path, OWNER)

    def test_a_dead_job_blocks_nobody(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        assert b"node7" in (tmp_path / "LOCK").read_bytes()  # its name is there still
        with DirectoryLock.take(tmp_path, OWNER) as taken:
            assert taken.note == ""
            assert json.loads((tmp_path / "LOCK").read_bytes() or "{}") != {}

    def test_released(self, tmp_path: Path) -> None:
        first = DirectoryLock.take(tmp_path, OWNER)
        first.release()
        first.release()
        assert (tmp_path / "LOCK").read_bytes() == b""
        with DirectoryLock.take(tmp_path, OWNER):
            pass

    def test_one_process_does_not_take_it_twice(self, tmp_path: Path) -> None:
        with DirectoryLock.take(tmp_path, OWNER):
            for _ in range(2):
                with pytest.raises(StoreInUseError, match=rf"this process \({os.getpid()}\) has it open"):
                    DirectoryLock.take(tmp_path, OWNER)
            (tmp_path.parent / "other").symlink_to(tmp_path)
            with pytest.raises(StoreInUseError, match="this process"):
                DirectoryLock.take(tmp_path.parent / "other", OWNER)
            assert self._refused_elsewhere(tmp_path)
        assert not self._refused_elsewhere(tmp_path)

    @staticmethod
    def _refused_elsewhere(folder: Path) -> bool:
        program = (
            "import sys\n"
            "from cascade_mpi.errors import StoreInUseError\n"
            "from cascade_mpi.segments.lock import DirectoryLock, Owner\n"
            "try: DirectoryLock.take(sys.argv[1], Owner('n', 1, '', 1)).release()\n"
            "except StoreInUseError as error: sys.exit(7 if 'job 123, process 4711 on node7' in str(error) else 8)\n"
        )
        status = subprocess.run([sys.executable, "-c", program, str(folder)], timeout=60, check=False).returncode
        assert status in (0, 7)
        return status == 7

    def test_a_forked_child_lets_go_of_nothing(self, tmp_path: Path) -> None:
        with DirectoryLock.take(tmp_path, OWNER) as taken:
            child = multiprocessing.get_context("fork").Process(target=taken.release)
            child.start()
            child.join(60)
            assert child.exitcode == 0
            assert self._refused_elsewhere(tmp_path)

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_without_locks_somebody_must_say_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "lockf", refuse)
        with pytest.raises(LocksUnsupportedError, match=r"keeps no file locks .*flock.*disk_locks=.none"):
            DirectoryLock.take(tmp_path, OWNER)
        with DirectoryLock.take(tmp_path, OWNER, locks="none") as taken:
            assert "no lock" in taken.note
            assert os.strerror(number) in taken.note
            with pytest.raises(StoreInUseError, match="this process"):
                DirectoryLock.take(tmp_path, OWNER, locks="none")

    @pytest.mark.parametrize(
        ("kind", "options", "found"),
        [
            ("lustre", "rw,flock,lazystatfs", ""),
            ("lustre", "rw,localflock,lazystatfs", "localflock"),
            ("nfs4", "rw,vers=4.2,local_lock=none", ""),
            ("nfs", "rw,vers=3,nolock,local_lock=all", "nolock"),
            ("ext4", "rw,nolock", ""),
        ],
    )
    def test_locks_of_one_node(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, found: str
    ) -> None:
        device = tmp_path.stat().st_dev
        mounts = tmp_path / "mountinfo"
        number = f"{os.major(device)}:{os.minor(device)}"
        mounts.write_text(
            "20 1 0:999 / /proc rw - lustre a localflock\nodd line\n"
            f"30 1 {number} / /x rw,noatime - {kind} b {options}\n"
        )
        assert lock._one_node(device, mounts) == found
        assert lock._one_node(device, tmp_path / "none") == ""
        monkeypatch.setattr(lock, "_one_node", lambda _: found)
        if found:
            with pytest.raises(LocksUnsupportedError, match=f"mounted with {found}.*disk_locks=.none"):
                DirectoryLock.take(tmp_path, OWNER)
        with DirectoryLock.take(tmp_path, OWNER, locks="none") as taken:
            assert (f"mounted with {found}" in taken.note) if found else taken.note == ""

    def test_a_lock_that_works_is_kept_whatever_was_set(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        with pytest.raises(StoreInUseError, match=f"process {holder.pid}"):
            DirectoryLock.take(tmp_path, OWNER, locks="none")

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_does_not_keep_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse)
            taken = DirectoryLock.take(tmp_path, OWNER)
        assert os.strerror(number) in taken.note
        with pytest.raises(StoreInUseError, match="this process"):
            DirectoryLock.take(tmp_path, OWNER)
        taken.release()

    @pytest.mark.parametrize("call", ["lockf", "open", "pwrite", "fsync"])
    def test_other_errors_are_explained_and_leave_nothing_held(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(fcntl if call == "lockf" else os, call, refuse)
            with pytest.raises(DiskError, match=r"LOCK: .* failed: Input/output error"):
                DirectoryLock.take(tmp_path, OWNER)
        assert len(os.listdir("/proc/self/fd")) == before
        DirectoryLock.take(tmp_path, OWNER).release()

    @pytest.mark.parametrize(
        "text", [b"", b"{", b"[]", b"7", b'{"host": "a"}', b"\xff", b"[" * 4000, b'{"host":"\\u001b[2J","pid":1}']
    )
    def test_a_name_that_cannot_be_read(self, tmp_path: Path, holder: subprocess.Popen[str], text: bytes) -> None:
        (tmp_path / "LOCK").write_bytes(text)
        with pytest.raises(StoreInUseError, match="has not written its name"):
            DirectoryLock.take(tmp_path, OWNER)

    def test_owners(self) -> None:
        assert str(Owner("n", 5, "", 0)) == "process 5 on n, since 1970-01-01 00:00:00 UTC"
        assert str(Owner("n", 5, "", 1 << 60)) == "process 5 on n"
        here = Owner.here(7, {"SLURM_JOB_ID": "99"})
        assert here == Owner(os.uname().nodename, os.getpid(), "99", 7)

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DiskError, match="opening the lock failed"):
            DirectoryLock.take(tmp_path / "none", OWNER)

    def test_the_list_of_locks_is_empty_in_the_end(self) -> None:
        assert lock._held == set()
