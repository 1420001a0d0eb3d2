"""Leftover shared memory: which files are given up, which are kept and why, and what `cascade cleanup` does."""

from __future__ import annotations

import json
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cascade_mpi import shm_files
from cascade_mpi.commands import cleanup
from cascade_mpi.shm_files import SharedFile, remove, survey

FIRST_NAMESPACE = "pid:[4026531836]"
ME = 100
KIB4 = b"x" * 4096


class FakeNode:
    """A root with /dev/shm and /proc, in which this process is number 100."""

    def __init__(self, root: Path) -> None:
        self.root, self.shm = root, root / "dev/shm"
        self.shm.mkdir(parents=True)
        self.process(ME)
        (root / "proc/self").symlink_to(str(ME))
        (root / "proc/sys").mkdir()  # not a process
        self.namespace(FIRST_NAMESPACE)

    def namespace(self, name: str) -> None:
        link = self.root / f"proc/{ME}/ns/pid"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(name)

    def file(self, name: str, age: float = 3600) -> Path:
        path = self.shm / name
        path.write_bytes(KIB4)
        then = time.time() - age
        os.utime(path, (then, then))
        return path

    def process(self, pid: int, *, name: str = "python", uid: int | None = None, state: str = "S") -> Path:
        folder = self.root / "proc" / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "maps").write_text("7f0000-7f1000 rw-p 00000000 00:00 0 \n")
        (folder / "comm").write_text(f"{name}\n")
        (folder / "stat").write_text(f"{pid} (a) b) {state} 1 2 3\n")
        owner = os.geteuid() if uid is None else uid
        (folder / "status").write_text(f"Name:\t{name}\nUid:\t{owner}\t{owner}\t{owner}\t{owner}\n")
        return folder

    @staticmethod
    def map(process: Path, file: Path, shown: str | None = None, inode: int | None = None) -> None:
        status = file.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        line = f"7f0000-7f1000 rw-s 00000000 {device} {inode or status.st_ino}       {shown or file}\n"
        process.mkdir(exist_ok=True, parents=True)
        with (process / "maps").open("a") as maps:
            maps.write(line)

    def states(self, **options: Any) -> dict[str, str]:
        return {file.path.name: file.state for file in survey(self.root, **options)}

    def only(self, **options: Any) -> SharedFile:
        (file,) = survey(self.root, **options)
        return file


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


def test_a_file_that_nobody_uses_is_a_leftover(node: FakeNode) -> None:
    path = node.file("mpich_shm_1a2b_0")
    found = node.only()
    assert (found.path, found.library, found.state) == (path, "MPICH", "leftover")
    assert found.bytes == path.stat().st_blocks * 512
    assert 3590 < found.age_s < 3700
    assert found.owner == shm_files.user_name(os.geteuid())


def test_only_known_names_and_plain_files(node: FakeNode) -> None:
    known = [
        "mpich_shm_a", "mpich_shar_tmpXYZ", "vader_segment.n1.0.1.0", "sm_segment.n1.0.1.0", "osc_rdma.n1.fd69.4",
        "osc_sm.n1.1.2.3", "ucx_shm_posix_57f7", "psm2_shm.1", "psm3_shm.1", "ib_shmem-kvs-n1-0.tmp",
        "ib_shmem_coll-kvs-n1-0.tmp", "ib_pool-kvs-n1-0.tmp",
    ]  # fmt: skip
    for name in [*known, "psm_x", "mpich", "my_data", "nccl-abc", "sem.mpich_shm_x", "MPICH_SHM_a"]:
        node.file(name)
    (node.shm / "mpich_shm_folder").mkdir()
    (node.shm / "mpich_shm_link").symlink_to(node.file("precious"))
    os.mkfifo(node.shm / "mpich_shm_fifo")
    assert node.states() == dict.fromkeys(known, "leftover")


def test_a_mapped_file_is_used(node: FakeNode) -> None:
    used, other = node.file("mpich_shm_1_0"), node.file("mpich_shm_2_0")
    node.map(node.process(200), used)
    assert node.states() == {used.name: "used", other.name: "leftover"}
    assert survey(node.root)[0].reason == "process 200 uses it"


def test_mapped_in_another_mount_namespace(node: FakeNode) -> None:
    path = node.file("mpich_shm_1_0")
    node.map(node.process(200), path, shown="/elsewhere/name (deleted)")
    assert node.only().state == "used"


def test_mapped_with_another_device_number(node: FakeNode) -> None:
    path = node.file("mpich_shm_1_0")
    node.map(node.process(200), path, shown="/dev/shm/mpich_shm_1_0 (deleted)", inode=path.stat().st_ino + 1)
    assert node.only().state == "used"


def test_an_open_file_is_used(node: FakeNode) -> None:
    path = node.file("sm_segment.n1.0.1.0")
    (node.process(200) / "fd/7").symlink_to(path)
    assert node.only().state == "used"


def test_a_process_of_anybody_is_a_user(node: FakeNode) -> None:
    path = node.file("mpich_shm_1_0")
    node.map(node.process(200, uid=os.geteuid() + 1), path)
    assert node.only().state == "used"


def test_a_dead_process_is_none_but_its_threads_are(node: FakeNode) -> None:
    path = node.file("mpich_shm_1_0")
    zombie = node.process(200, state="Z")
    (zombie / "fd").rmdir()  # nobody may look into it: that is no doubt
    (zombie / "task/200").mkdir(parents=True)
    assert node.only().state == "leftover"
    (zombie / "task/201/fd").mkdir(parents=True)
    node.map(zombie / "task/201", path)
    assert node.only().state == "used"


def test_another_users_file(node: FakeNode) -> None:
    node.file("mpich_shm_1_0")
    found = node.only(uid=os.geteuid() + 1)
    assert found.state == "other user"
    assert remove(found, node.root, uid=os.geteuid() + 1)
    assert found.path.exists()


def test_a_young_file(node: FakeNode) -> None:
    node.file("mpich_shm_1_0", age=30)
    assert node.only().state == "young"
    assert node.only(min_age=20).state == "leftover"
    assert node.only(now=time.time() + 40).state == "leftover"
    node.file("mpich_shm_1_0", age=-1000)  # a clock that was set back
    assert node.only().state == "young"


@pytest.fixture
def close(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`close(process)`: nobody may look into it."""
    real = shm_files._mapped

    def start(process: Path) -> None:
        def mapped(maps: Path) -> Any:
            if maps == process / "maps":
                raise PermissionError(maps)
            return real(maps)

        monkeypatch.setattr(shm_files, "_mapped", mapped)

    return start


def test_a_process_of_this_user_that_cannot_be_looked_into(node: FakeNode, close: Callable[[Path], None]) -> None:
    node.file("mpich_shm_1_0")
    close(node.process(200, name="secret"))
    found = node.only()
    assert found.state == "unknown"
    assert "200 (secret)" in found.reason
    assert node.only(alone=True).state == "unknown"  # it is not about containers


def test_one_of_another_user_is_no_doubt(node: FakeNode, close: Callable[[Path], None]) -> None:
    node.file("mpich_shm_1_0")
    close(node.process(200, uid=os.geteuid() + 1))
    assert node.only().state == "leftover"


@pytest.mark.parametrize("name", ["(sd-pam)", "ssh-agent"])
def test_the_helpers_of_a_login_are_no_doubt(node: FakeNode, close: Callable[[Path], None], name: str) -> None:
    node.file("mpich_shm_1_0")
    close(node.process(200, name=name))
    assert node.only().state == "leftover"


def test_the_first_process_of_the_machine_is_no_doubt(node: FakeNode, close: Callable[[Path], None]) -> None:
    node.file("mpich_shm_1_0")
    close(node.process(1))
    assert node.only().state == "leftover"
    node.namespace("pid:[4026532000]")  # in a container it may be a rank
    assert node.only(alone=True).state == "unknown"


def test_a_container(node: FakeNode) -> None:
    node.file("mpich_shm_1_0")
    node.namespace("pid:[4026532000]")
    found = node.only()
    assert found.state == "unknown"
    assert "--alone" in found.reason
    assert node.only(alone=True).state == "leftover"
    (node.root / f"proc/{ME}/ns/pid").unlink()
    assert node.only().state == "unknown"


def test_a_proc_that_shows_nobody(node: FakeNode) -> None:
    node.file("mpich_shm_1_0")
    (node.root / f"proc/{ME}").rename(node.root / "proc/gone")
    assert node.only(alone=True).state == "unknown"
    assert "/proc does not show" in node.only().reason


def test_removal_looks_again(node: FakeNode) -> None:
    kept, replaced, gone, removed = (node.file(f"mpich_shm_{number}") for number in range(4))
    files = survey(node.root)
    assert {file.state for file in files} == {"leftover"}
    node.map(node.process(200), kept)  # meanwhile
    fresh = node.file("fresh")
    fresh.rename(replaced)
    gone.unlink()
    reasons = [remove(file, node.root) for file in files]
    assert reasons == ["process 200 uses it", "another file has taken its place", "it is gone already", ""]
    assert [path.exists() for path in (kept, replaced, gone, removed)] == [True, True, False, False]


# ------------------------------------------------------------------------------------------ the command


def test_without_a_terminal_it_only_shows(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    path, young = node.file("mpich_shm_1_0"), node.file("mpich_shm_2_0", age=1)
    assert cleanup.run(root=node.root) == 0
    shown = capsys.readouterr().out
    assert "Nothing was removed. To remove 1 file, 4.0 KiB: cascade cleanup --yes" in shown
    assert "mpich_shm_1_0" in shown
    assert "a job may be about to map it" in shown
    assert path.exists()
    assert young.exists()


@pytest.mark.parametrize("answer", [True, False])
def test_it_asks(node: FakeNode, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = node.file("mpich_shm_1_0"), []
    monkeypatch.setattr(cleanup.typer, "confirm", lambda text, default: asked.append((text, default)) or answer)
    assert cleanup.run(root=node.root, ask=True) == 0
    assert asked == [("Remove 1 file, 4.0 KiB?", False)]
    assert path.exists() is not answer


def test_yes_removes(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    path, mine = node.file("mpich_shm_1_0"), node.file("my_data")
    assert cleanup.run(root=node.root, yes=True) == 0
    assert "Removed 1 file, 4.0 KiB." in capsys.readouterr().out
    assert not path.exists()
    assert mine.exists()
    assert cleanup.run(root=node.root, yes=True) == 0
    assert "No shared memory of MPI jobs" in capsys.readouterr().out


def test_what_cannot_be_removed_is_said(
    node: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = node.file("mpich_shm_1_0")

    def unlink(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", unlink)
    assert cleanup.run(root=node.root, yes=True) == 1
    assert "was kept: it cannot be removed: Permission denied" in capsys.readouterr().err
    assert path.exists()


@pytest.mark.parametrize("yes", [True, False])
def test_json(node: FakeNode, yes: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = node.file("mpich_shm_1_0")
    node.file("mpich_shm_2_0", age=1)
    assert cleanup.run(root=node.root, yes=yes, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == 1
    assert [(each["state"], each["removed"]) for each in shown["files"]] == [("leftover", yes), ("young", False)]
    assert path.exists() is not yes


def test_one_process_a_node_is_enough(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    path = node.file("mpich_shm_1_0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert cleanup.run(root=node.root, yes=True) == 0
    assert path.exists()


# ------------------------------------------------------------------------------------------ the real /dev/shm


@pytest.fixture
def real_file() -> Iterator[Path]:
    path = Path("/dev/shm", f"mpich_shm_test_{secrets.token_hex(8)}_0")
    if not os.access(path.parent, os.W_OK):
        pytest.skip("there is no /dev/shm that can be written")
    path.write_bytes(KIB4)
    os.utime(path, (0, time.time() - 600))
    yield path
    path.unlink(missing_ok=True)


def mine(path: Path) -> SharedFile:
    return next(file for file in survey(alone=True) if file.path == path)


@pytest.mark.parametrize("how", ["mapped", "open"])
def test_a_real_file(real_file: Path, how: str) -> None:
    file = real_file.open("r+b")
    if how == "mapped":
        memory = mmap.mmap(file.fileno(), 4096)
        file.close()
    os.utime(real_file, (0, time.time() - 600))
    used = mine(real_file)
    assert (used.state, used.reason) == ("used", f"process {os.getpid()} uses it")
    assert remove(used, alone=True)
    assert real_file.exists()
    memory.close() if how == "mapped" else file.close()
    found = mine(real_file)
    if found.state == "unknown":
        pytest.skip(f"this machine hides processes: {found.reason}")
    assert found.state == "leftover"
    assert remove(found, alone=True) == ""
    assert not real_file.exists()
