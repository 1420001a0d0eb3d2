"""The file layer: one contract over POSIX and over the recorded disk, and what POSIX alone has to get right."""

from __future__ import annotations

import errno
import logging
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_disk import Disk, RecordingFiles

from cascade_mpi import errors
from cascade_mpi.segments import direct, faults
from cascade_mpi.segments.direct import ALIGNMENT, LEAST_BYTES, DirectPath, aligned_buffer
from cascade_mpi.segments.files import PosixFiles

KIB = 1 << 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def posix(folder: Path) -> Iterator[PosixFiles]:
    with PosixFiles(folder, make=True) as files:
        yield files


@pytest.fixture(params=["posix", "posix direct", "recorded"])
def files(request: pytest.FixtureRequest, posix: PosixFiles) -> Any:
    if request.param == "recorded":
        return RecordingFiles(Disk())
    posix.direct_writes = posix.direct_reads = request.param == "posix direct"
    return posix


def read(file: Any, offset: int, nbytes: int) -> bytes:
    out = bytearray(nbytes)
    return bytes(out[: file.read_at(offset, out)])


class TestContract:
    def test_parts_are_written_one_after_the_other(self, files: Any) -> None:
        file = files.create("a")
        file.write_at(3, b"xy", bytearray(), np.array([7, 8], "<u2"), memoryview(b"z"))
        assert read(file, 0, 100) == b"\0\0\0xy\7\0\x08\0z"
        assert file.size() == 10

    def test_random_writes_and_reads(self, files: Any) -> None:
        chance, file, expected = random.Random(1), files.create("a"), bytearray()
        for _ in range(60):
            offset, nbytes = chance.choice((0, 1, 4096, 65536, 70000)), chance.choice((1, 300, 4096, 65536, 200_001))
            memory = aligned_buffer(nbytes + 64)
            data = memory[(skip := chance.choice((0, 0, 16))) : skip + nbytes]
            data[:] = chance.randbytes(nbytes)
            if len(expected) < offset:
                expected.extend(bytes(offset - len(expected)))
            expected[offset : offset + nbytes] = data
            file.write_at(offset, data)
            at, wanted = chance.randrange(300_000), chance.choice((1, 5000, 65536, 300_000))
            assert read(file, at, wanted) == expected[at : at + wanted]
            start = at // 4096 * 4096
            out = aligned_buffer(wanted)
            assert out[: file.read_at(start, out)] == expected[start : start + wanted]
        assert file.size() == len(expected)
        file.sync()
        file.close()
        again = files.open("a")
        assert read(again, 0, len(expected) + 1) == expected

    def test_many_parts(self, files: Any) -> None:
        file = files.create("a")
        parts = [bytes([number % 256]) * (number % 5) for number in range(3000)]
        file.write_at(1, *parts)
        assert read(file, 1, 10_000) == b"".join(parts)

    def test_a_read_ends_with_the_file(self, files: Any) -> None:
        file = files.create("a")
        assert read(file, 0, 10) == b""
        file.write_at(0, b"x" * 5000)
        assert read(file, 4990, 100_000) == b"x" * 10
        assert read(file, 5000, 10) == read(file, 1 << 30, 100_000) == b""
        assert file.read_at(0, bytearray()) == 0

    def test_names(self, files: Any) -> None:
        files.make_folder("d")
        files.make_folder("d")
        for name in ("c", "a", "b"):
            files.create(f"d/{name}").close()
        files.rename("d/a", "d/e")
        files.rename("d/c", "d/b")  # in place of it
        files.sync_folder("d")
        files.sync_folder("")
        assert files.names("d") == ["b", "e"]
        assert files.names("") == ["d"]
        files.remove("d/b")
        assert files.names("d") == ["e"]

    def test_a_file_keeps_its_bytes_under_another_name(self, files: Any) -> None:
        file = files.create("a.open")
        file.write_at(0, b"one")
        files.rename("a.open", "a")
        file.write_at(3, b"two")
        assert read(files.open("a"), 0, 9) == b"onetwo"

    @pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "./a", "a//b", "a/"])
    def test_a_path_stays_inside(self, files: Any, path: str) -> None:
        files.make_folder("a")
        for act in (files.create, files.open, files.remove, files.make_folder):
            with pytest.raises(ValueError, match="inside the store"):
                act(path)

    @pytest.mark.parametrize(
        ("act", "kind"),
        [
            (lambda files: files.create("here"), errors.FileThereError),
            (lambda files: files.open("none"), errors.NoSuchFileError),
            (lambda files: files.rename("none", "b"), errors.NoSuchFileError),
            (lambda files: files.remove("none"), errors.NoSuchFileError),
            (lambda files: files.names("none"), errors.NoSuchFileError),
            (lambda files: files.sync_folder("none"), errors.NoSuchFileError),
            (lambda files: files.create("none/a"), errors.NoSuchFileError),
            (lambda files: files.names("here"), errors.DiskError),
            (lambda files: files.make_folder("here"), errors.DiskError),
            (lambda files: files.open("here").write_at(0, b"x"), errors.DiskError),
        ],
    )
    def test_refusals(self, files: Any, act: Callable[[Any], Any], kind: type[Exception]) -> None:
        files.create("here").close()
        with pytest.raises(kind) as caught:
            act(files)
        assert isinstance(caught.value, errors.DiskError)
        assert not isinstance(caught.value, errors.DiskGoneError) or kind is errors.DiskError

    def test_a_closed_file(self, files: Any) -> None:
        file = files.create("a")
        file.close()
        file.close()
        for act in (lambda: file.write_at(0, b"x"), lambda: file.read_at(0, bytearray(1)), file.sync, file.size):
            with pytest.raises(ValueError, match="closed"):
                act()

    def test_a_file_opened_for_reading_can_be_synced(self, files: Any) -> None:
        files.create("a").close()
        file = files.open("a")
        file.sync()
        assert file.size() == 0


class TestPosix:
    def test_modes(self, posix: PosixFiles, folder: Path) -> None:
        posix.make_folder("d")
        posix.create("d/a").close()
        modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (folder, folder / "d", folder / "d/a")]
        assert modes == [0o700, 0o700, 0o600]

    def test_a_directory_is_made_with_its_parents_sync_but_not_its_parents(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
        PosixFiles(tmp_path / "new", make=True).close()
        assert synced == [tmp_path.stat().st_ino]
        PosixFiles(tmp_path / "new", make=True).close()
        with pytest.raises(errors.DiskGoneError, match=r"none is not there.*mkdir -p"):
            PosixFiles(tmp_path / "none/new", make=True)
        with pytest.raises(errors.NoSuchFileError, match="other is not there"):
            PosixFiles(tmp_path / "other")
        (tmp_path / "file").touch()
        with pytest.raises(errors.DiskError, match="file"):
            PosixFiles(tmp_path / "file", make=True)

    def test_short_and_idle_writes_go_on(self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        write, calls = os.pwritev, []

        def short(descriptor: int, views: list[memoryview], offset: int) -> int:
            calls.append(offset)
            return write(descriptor, [views[0][:3]], offset) if len(calls) % 3 else 0

        monkeypatch.setattr(os, "pwritev", short)
        file = posix.create("a")
        file.write_at(2, b"abcdefg", b"", b"hi", b"jklmnop")
        assert read(file, 0, 50) == b"\0\0abcdefghijklmnop"
        assert len(calls) > 6
        monkeypatch.setattr(os, "pwritev", lambda *_: 0)
        with pytest.raises(errors.DiskError, match="took nothing"):
            file.write_at(0, b"x")

    def test_short_reads_go_on(self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        file, real = posix.create("a"), os.preadv
        file.write_at(0, b"abcdefghij")
        monkeypatch.setattr(os, "preadv", lambda descriptor, views, offset: real(descriptor, [views[0][:3]], offset))
        assert read(file, 1, 20) == b"bcdefghij"

    def test_a_sync_writes_the_size_when_it_changed(self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []
        monkeypatch.setattr(os, "fsync", lambda _: done.append("fsync"))
        monkeypatch.setattr(os, "fdatasync", lambda _: done.append("fdatasync"))
        file = posix.create("a")
        file.sync()
        file.sync()
        file.write_at(0, b"xy")
        file.sync()
        file.write_at(0, b"z")
        file.sync()
        assert done == ["fsync", "fdatasync", "fsync", "fdatasync"]

    @pytest.mark.parametrize("call", ["fsync", "fdatasync"])
    def test_after_a_failed_sync_none_succeeds(
        self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        file, number = posix.create("a"), errno.EIO
        if call == "fdatasync":
            file.sync()

        def fail(_: int) -> None:
            raise OSError(number, os.strerror(number))

        dropped: list[tuple[int, ...]] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            patch.setattr(os, "posix_fadvise", lambda _, *arguments: dropped.append(arguments))
            with pytest.raises(errors.DiskError, match="Input/output error"):
                file.sync()
        assert dropped == [(0, 0, os.POSIX_FADV_DONTNEED)]  # what is read from now on is what the disk has
        for _ in range(2):
            with pytest.raises(errors.DiskError, match=r"earlier sync failed.*Input/output"):
                file.sync()
        posix.create("b").sync()  # others are not concerned

    def test_the_bytes_of_a_removed_file_are_not_durable(self, posix: PosixFiles, folder: Path) -> None:
        file = posix.create("a")
        file.write_at(0, bytes(4096))
        (folder / "a").unlink()
        with pytest.raises(errors.DiskGoneError, match=r"removed while .* 4.0 KiB are lost"):
            file.sync()

    def test_a_vanished_directory(self, posix: PosixFiles, folder: Path) -> None:
        posix.make_folder("segments")
        file = posix.create("segments/a")
        (folder / "segments/a").unlink()
        (folder / "segments").rmdir()
        folder.rmdir()
        acts: list[Callable[[], Any]] = [
            file.sync,
            lambda: posix.create("b"),
            lambda: posix.open("segments/a"),
            lambda: posix.sync_folder(""),
            lambda: posix.make_folder("segments"),
        ]
        for act in acts:
            with pytest.raises(errors.DiskGoneError, match="store"):
                act()

    def test_a_directory_that_was_moved(self, posix: PosixFiles, folder: Path) -> None:
        posix.sync_folder("")
        folder.rename(folder.with_name("elsewhere"))
        with pytest.raises(errors.DiskGoneError, match="the directory is gone"):
            posix.sync_folder("")
        folder.mkdir()  # another of that name is not the one
        with pytest.raises(errors.DiskGoneError, match="the directory is gone"):
            posix.sync_folder("")

    def test_no_link_is_followed(self, posix: PosixFiles, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "outside").write_bytes(b"secret")
        (folder / "a").symlink_to(tmp_path / "outside")
        (folder / "d").symlink_to(tmp_path)
        with pytest.raises(errors.DiskPermissionError, match="symbolic link"):
            posix.open("a")
        with pytest.raises(errors.DiskError):
            posix.names("d")

    def test_read_only_refuses_every_change(self, posix: PosixFiles, folder: Path) -> None:
        posix.create("a").close()
        with PosixFiles(folder, read_only=True) as files:
            acts: list[Callable[[], Any]] = [
                lambda: files.create("b"),
                lambda: files.rename("a", "b"),
                lambda: files.remove("a"),
                lambda: files.make_folder("d"),
            ]
            for act in acts:
                with pytest.raises(errors.ReadOnlyDiskError, match="opened read-only"):
                    act()
            assert files.names("") == ["a"]
            assert not files.direct.possible
            assert "read-only" in files.direct.reason
        with pytest.raises(ValueError, match="closed"):
            files.names("")

    @pytest.mark.parametrize(
        ("number", "kind", "words"),
        [
            (errno.ENOSPC, errors.DiskFullError, r"full \(.* free, .* inodes free\); make room"),
            (errno.EDQUOT, errors.DiskQuotaError, r"quota is exceeded \(.* free.*\); free some"),
            (errno.EACCES, errors.DiskPermissionError, "not permitted; check the owner"),
            (errno.EPERM, errors.DiskPermissionError, "lsattr"),
            (errno.EROFS, errors.ReadOnlyDiskError, "file system is read-only; .*dmesg"),
            (errno.EIO, errors.DiskError, r"Input/output error \(EIO\); look at"),
            (errno.ESTALE, errors.DiskGoneError, "[Ss]tale file handle; was it moved"),
            (errno.EFBIG, errors.DiskFullError, "ulimit -f"),
            (errno.EMFILE, errors.DiskError, "ulimit -n"),
        ],
    )
    def test_errors_are_for_people(
        self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[OSError], words: str
    ) -> None:
        def fail(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        file = posix.create("a")
        monkeypatch.setattr(os, "pwritev", fail)
        with pytest.raises(kind, match=words) as caught:
            file.write_at(4096, bytes(1 << 20))
        text = str(caught.value)
        assert f"{posix.root / 'a'}: writing 1.0 MiB at offset 4,096 failed: " in text
        assert isinstance(caught.value, (errors.DiskError, errors.CascadeError))
        assert (caught.value.errno, caught.value.filename) == (number, str(posix.root / "a"))
        assert isinstance(caught.value.__cause__, OSError)

    def test_a_full_file_system(self, posix: PosixFiles, folder: Path) -> None:
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        file = posix.create("a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            with pytest.raises(errors.DiskFullError, match="too large"):
                file.write_at(0, bytes(10_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert file.size() == 8192  # the part that was taken
        assert "free" in str(posix.room())

    def test_what_is_free_may_be_unknown(self) -> None:
        def unknown() -> faults.Room:
            raise OSError(errno.EIO, "no")

        text = str(faults.explain(OSError(errno.ENOSPC, "no"), "writing", "a", free=unknown))
        assert "cannot be asked" in text
        assert "cannot be asked" not in str(faults.explain(OSError(errno.ENOSPC, "no"), "writing", "a"))
        assert str(faults.Room(1 << 30, None)) == "1.0 GiB free"

    def test_dropping_a_file_from_the_cache(self, posix: PosixFiles) -> None:
        file = posix.create("a")
        assert posix.drop_cache("a") == 0
        file.write_at(0, bytes(1 << 20))
        left = posix.drop_cache("a")
        assert left in (0, 1 << 20)  # a file system in memory keeps everything, and says so
        read(file, 0, 1 << 20)
        assert posix.drop_cache("a") == left

    def test_threads_read_one_file(self, posix: PosixFiles) -> None:
        data = random.Random(3).randbytes(3 << 20)
        file = posix.create("a", direct=True)
        file.write_at(0, data)
        wrong: list[int] = []

        def look(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(30):
                at, nbytes = chance.randrange(1 << 20), chance.randrange(1 << 20)
                if read(file, at, nbytes) != data[at : at + nbytes]:
                    wrong.append(at)

        threads = [threading.Thread(target=look, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def pages(posix: PosixFiles) -> None:
    if not posix.direct.possible:
        pytest.skip(f"no O_DIRECT here: {posix.direct.reason}")


class TestDirect:
    def test_the_reason_is_said_and_nothing_stays(self, posix: PosixFiles) -> None:
        assert posix.direct.reason
        assert posix.names("") == []

    def test_whole_pages_go_past_the_cache(self, posix: PosixFiles) -> None:
        pages(posix)
        data = random.Random(2).randbytes(300_000)
        with posix.create("a", direct=True) as file:
            file.write_at(1000, data)
            file.sync()
            way = file.direct
            assert way is not None
            assert way.bytes_written == (301_000 // ALIGNMENT - 1) * ALIGNMENT
            assert read(file, 1000, 300_000) == data
            assert way.bytes_read == 300_000
            assert not way.refusal
            file.write_at(0, data[: LEAST_BYTES - 1])
            assert way.bytes_written == (301_000 // ALIGNMENT - 1) * ALIGNMENT
        with posix.open("a") as plain:
            assert plain.direct is None
            assert read(plain, LEAST_BYTES - 1, 400_000) == data[LEAST_BYTES - 1 - 1000 :]

    @pytest.mark.parametrize("skip", [0, 16])
    def test_a_refusal_is_said_and_the_cache_used(
        self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, skip: int
    ) -> None:
        pages(posix)
        memory = aligned_buffer(3 << 20)
        data = memory[skip : skip + (2 << 20) + 5000]
        data[:] = random.Random(4).randbytes(data.nbytes)
        real, calls = os.pwrite, []

        def refuse(descriptor: int, view: memoryview, offset: int) -> int:
            calls.append(view.nbytes)
            if len(calls) > 1:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(descriptor, view[: view.nbytes // 2], offset)  # a short one, then a refusal

        file = posix.create("a", direct=True)
        monkeypatch.setattr(os, "pwrite", refuse)
        with caplog.at_level(logging.WARNING, "cascade.segments.direct"):
            file.write_at(0, data)
        assert len(calls) == 2
        assert read(file, 0, 3 << 20) == data
        assert file.direct is not None
        assert "Invalid argument" in file.direct.refusal
        assert "O_DIRECT was refused" in caplog.text
        assert 0 < file.direct.bytes_written < 2 << 20

    def test_a_refused_read_goes_on_through_the_cache(self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        pages(posix)
        data = random.Random(4).randbytes(200_000)
        file, real = posix.create("a", direct=True), os.preadv
        file.write_at(0, data)
        direct_calls: list[int] = []

        def refuse(descriptor: int, views: list[memoryview], offset: int) -> int:
            if os.get_blocking(descriptor) and _is_direct(descriptor):
                direct_calls.append(offset)
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(descriptor, views, offset)

        monkeypatch.setattr(os, "preadv", refuse)
        assert read(file, 100, 200_000) == data[100:]
        assert len(direct_calls) == 1
        assert file.direct is not None
        assert "reading at 100" in file.direct.refusal

    @pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
    def test_a_real_error_is_no_refusal(self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        pages(posix)

        def fail(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        file = posix.create("a", direct=True)
        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(errors.DiskError, match=r"writing 256.0 KiB"):
            file.write_at(0, bytes(256 * KIB))
        assert file.direct is not None
        assert not file.direct.refusal

    @pytest.mark.parametrize("call", ["open", "pwrite", "preadv", "short", "wrong"])
    def test_where_it_is_not_possible(self, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        with PosixFiles(folder, make=True) as files:
            real = os.open
            if call == "open":

                def no_direct(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
                    if flags & os.O_DIRECT:
                        os.close(real(path, flags & ~os.O_DIRECT, mode, dir_fd=dir_fd))  # as some do: then refuse
                        raise OSError(errno.EINVAL, "Invalid argument")
                    return real(path, flags, mode, dir_fd=dir_fd)

                monkeypatch.setattr(os, "open", no_direct)
            elif call == "short":
                monkeypatch.setattr(os, "pwrite", lambda *_: 512)
            elif call == "wrong":
                monkeypatch.setattr(os, "preadv", lambda *_: ALIGNMENT)  # reads nothing
            else:

                def refuse(*_: object) -> int:
                    raise OSError(errno.EINVAL, "Invalid argument")

                monkeypatch.setattr(os, call, refuse)
            found = files.direct
            monkeypatch.undo()
            if call in ("pwrite", "preadv", "open") or found.reason != "":
                assert not found.possible
            expected = {"short": "cut short", "wrong": "read back as others"}.get(call, "Invalid argument")
            assert expected in found.reason or "opening" in found.reason
            assert files.names("") == []
            file = files.create("a", direct=True)
            assert file.direct is None
            file.write_at(0, bytes(1 << 20))
            assert file.size() == 1 << 20

    def test_one_file_may_refuse_it(self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        pages(posix)
        real = os.open

        def refuse(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", refuse)
        with posix.create("a", direct=True) as file:
            assert file.direct is not None
            assert "opening a" in file.direct.refusal
            file.write_at(0, b"x" * 100_000)
            assert read(file, 0, 200_000) == b"x" * 100_000

    @pytest.mark.parametrize("seed", range(8))
    def test_parts_of_every_size_and_place_are_gathered(self, posix: PosixFiles, seed: int) -> None:
        pages(posix)
        chance = random.Random(seed)
        sizes = [0, 1, 100, 256, 768, 3072, ALIGNMENT, 5000, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 512, 300_000]
        parts, expected = [], b""
        for _ in range(chance.randrange(2, 60)):
            memory = aligned_buffer(300_000 + 512)
            begin = chance.choice([0, 0, 0, 16, 512])
            part = memory[begin : begin + chance.choice(sizes)]
            part[:] = chance.randbytes(part.nbytes)
            parts.append(part)
            expected += bytes(part)
        at = chance.choice([0, ALIGNMENT, 3072, 7])
        file = posix.create("a", direct=True)
        file.write_at(at, *parts)
        assert read(file, 0, at + len(expected) + 1) == bytes(at) + expected
        assert file.direct is not None
        first = -at % ALIGNMENT
        whole = (len(expected) - first) // ALIGNMENT * ALIGNMENT
        assert file.direct.bytes_written == (whole if whole >= LEAST_BYTES else 0)

    def test_one_write_for_records_of_whole_pages(self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        """As a segment has them: a page with the header, then the payload, which is not copied."""
        pages(posix)
        real, calls = os.pwritev, list[list[int]]()

        def watched(descriptor: int, views: list[memoryview], offset: int) -> int:
            calls.append([view.nbytes for view in views])
            return real(descriptor, views, offset)

        payloads = [aligned_buffer(256 * KIB) for _ in range(4)]
        for number, payload in enumerate(payloads):
            payload[:] = random.Random(number).randbytes(payload.nbytes)
        file = posix.create("a", direct=True)
        monkeypatch.setattr(os, "pwritev", watched)
        parts = [part for payload in payloads for part in (bytes(3072), b"h" * 256, bytes(768), payload)]
        file.write_at(ALIGNMENT, *parts)
        assert calls == [[ALIGNMENT, 256 * KIB] * 4]
        assert read(file, ALIGNMENT, 2 << 20) == b"".join(bytes(part) for part in parts)

    def test_a_gathered_write_that_is_cut_short_goes_on(
        self, posix: PosixFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pages(posix)
        real = os.pwritev
        chance = random.Random(1)

        def short(descriptor: int, views: list[memoryview], offset: int) -> int:
            left, some = chance.randrange(1, 200_000), list[memoryview]()
            for view in views:
                some.append(view[:left])
                left -= some[-1].nbytes
                if left <= 0:
                    break
            nbytes = sum(view.nbytes for view in some)
            if _is_direct(descriptor):  # of a transfer past the cache only whole pages are ever taken
                nbytes = nbytes // ALIGNMENT * ALIGNMENT
            if not nbytes:
                return real(descriptor, views, offset)
            return real(descriptor, direct.clip(some, 0, nbytes), offset)

        parts: list[memoryview] = []
        for number in range(6):
            parts.append(memoryview(bytes([number]) * 4096))
            parts.append(aligned_buffer(200 * KIB))
            parts[-1][:] = random.Random(number).randbytes(200 * KIB)
        file = posix.create("a", direct=True)
        monkeypatch.setattr(os, "pwritev", short)
        file.write_at(0, *parts)
        assert read(file, 0, 2 << 20) == b"".join(parts)

    def test_clip(self) -> None:
        views = [memoryview(each) for each in (b"abc", b"", b"defg", b"h")]
        assert b"".join(direct.clip(views, 0)) == b"abcdefgh"
        for start in range(9):
            for stop in range(start, 10):
                found = direct.clip(views, start, stop)
                assert b"".join(found) == b"abcdefgh"[start:stop]
                assert all(view.nbytes for view in found)

    def test_aligned_memory(self) -> None:
        view = aligned_buffer(10_000)
        assert direct.is_aligned(view)
        assert not direct.is_aligned(view[16:])
        assert view.nbytes == 10_000
        assert bytes(view) == bytes(10_000)

    def test_closing_twice(self, posix: PosixFiles, folder: Path) -> None:
        (folder / "a").touch()
        way = DirectPath(os.open(folder / "a", os.O_RDONLY))
        way.close()
        way.close()
        assert way.write(0, aligned_buffer(1 << 20)) == (0, 0)
        assert way.read(0, aligned_buffer(1 << 20)) == 0


def _is_direct(descriptor: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def test_whole_pages_of_several_buffers_go_past_the_cache_together(
    posix: PosixFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not posix.direct.possible:
        pytest.skip(posix.direct.reason)
    calls: list[tuple[int, int]] = []
    pwritev = os.pwritev

    def spy(descriptor: int, views: list[Any], offset: int) -> int:
        calls.append((offset, len(views)))
        if len(calls) == 1:  # the system takes a part only, not even whole pages
            return pwritev(descriptor, [views[0], views[1][:LEAST_BYTES]], offset) - 100
        return pwritev(descriptor, views, offset)

    monkeypatch.setattr(os, "pwritev", spy)
    chance, file = random.Random(3), posix.create("a", direct=True)
    views = [aligned_buffer(nbytes) for nbytes in (ALIGNMENT, 2 * LEAST_BYTES, ALIGNMENT, LEAST_BYTES)]
    for view in views:
        view[:] = chance.randbytes(view.nbytes)
    file.write_at(ALIGNMENT, *views)
    assert calls[0] == (ALIGNMENT, 4)
    data = b"".join(bytes(view) for view in views)
    assert read(file, ALIGNMENT, len(data) + 1) == data
    moved = file.direct.bytes_written if file.direct else 0
    file.write_at(ALIGNMENT + len(data), *views)
    assert calls[-1] == (ALIGNMENT + len(data), 4)
    assert file.direct is not None
    assert file.direct.bytes_written == moved + len(data)
    file.write_at(100, views[1], views[0])  # at no page: each for itself
    assert read(file, 100, views[1].nbytes + views[0].nbytes) == bytes(views[1]) + bytes(views[0])
