"""Exported files: every type and shape comes back, any h5py reads them, nothing that is damaged or foreign passes."""

from __future__ import annotations

import errno
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade_mpi.errors import (
    ConfigError,
    DiskError,
    DiskFullError,
    FileThereError,
    Hdf5FileError,
    NoSuchFileError,
    NotConfiguredError,
)
from cascade_mpi.hdf5 import library, reading
from cascade_mpi.hdf5.new_file import NewFile
from cascade_mpi.hdf5.origin import INTEGER, STORED, Origin, mixed_in, origin_of
from cascade_mpi.hdf5.part_file import PartFile
from cascade_mpi.hdf5.reading import Block, ExportFile
from cascade_mpi.hdf5.rows import Row, key_of, path_of
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.layout import MAX_DEPTH
from cascade_mpi.namespaces import Namespace
from cascade_mpi.public_namespace import public
from cascade_mpi.values import dtype_code, dtype_name, file_dtype, source

ORIGIN = origin_of(Namespace("n", "llama"), 3, created=1_700_000_000_123_456_789, file="ab" * 16)
MOST = 1 << 30
CODES = list(range(1, 18))


def row_of(key: int, data: np.ndarray, code: int = 0, **fields: Any) -> Row:
    value = source(data)
    checksum = int(checksum_bytes(value.address, value.nbytes))
    return Row(key, code or value.dtype, data.shape, checksum)._replace(**fields)


def raw(data: np.ndarray) -> memoryview:
    return data.reshape(-1).view(np.uint8).data


def write(path: Path, blocks: list[tuple[Row, np.ndarray]], origin: Origin = ORIGIN, **options: Any) -> Path:
    with NewFile(path, origin, **options) as made:
        for row, data in blocks:
            made.begin(row)
            made.write(raw(data))
        made.commit()
    return path


def read(path: Path, key: int) -> Block:
    with ExportFile(path) as file:
        return file.read(key, path_of(key), MOST)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A file with one block, of key 5."""
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    return write(tmp_path / "one.h5", [(row_of(5, data), data)])


def patterns(code: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bits: of floats NaNs and infinities too. Of bool those of True and False."""
    dtype = file_dtype(code)
    bits = np.random.default_rng(seed).integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    return (bits & 1 if dtype == np.bool_ else bits).view(dtype).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_type_and_shape_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=4)
    blocks: dict[int, tuple[Row, np.ndarray]] = {}
    for key in data.draw(st.lists(st.integers(0, 2**128 - 1), unique=True, max_size=6)):
        code = data.draw(st.sampled_from(CODES))
        values = patterns(code, data.draw(shapes), key % 997)
        row = row_of(
            key, values.view(file_dtype(code)), code, expiry=data.draw(st.integers(0, reading.MAX_EXPIRY)),
            depth=data.draw(st.none() | st.integers(0, MAX_DEPTH - 1)), protected=data.draw(st.booleans()),
            sequence=data.draw(st.integers(0, 2**64 - 1)),
        )  # fmt: skip
        blocks[key] = row, values
    path = tmp_path_factory.mktemp("any") / "a.h5"
    write(path, list(blocks.values()))
    with ExportFile(path) as file:
        assert file.origin == ORIGIN
        assert sorted(file.keys()) == sorted(blocks)
        for key, (row, values) in blocks.items():
            found = file.read(key, path_of(key), MOST)
            assert found.row == row
            assert (found.data.shape, found.data.dtype) == (values.shape, file_dtype(row.dtype))
            assert found.data.tobytes() == values.tobytes()


def test_any_h5py_reads_it(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    brain = np.arange(6, dtype=np.uint16)
    blocks = [
        (row_of(0x1234, data, expiry=2_000_000_000, depth=7, protected=True, sequence=99), data),
        (row_of(2**128 - 1, brain, dtype_code("bfloat16") or 0), brain),
    ]
    with h5py.File(write(tmp_path / "a.h5", blocks)) as file:
        root = dict(file.attrs)
        assert (root["format"], root["version"], root["created"]) == (b"cascade-hdf5", 1, b"2023-11-14T22:13:20Z")
        assert (root["namespace"], root["namespace_id"], root["epoch"]) == (
            b"n/llama", f"{Namespace('n', 'llama').id:016x}".encode(), 3,
        )  # fmt: skip
        assert (root["blocks"], root["bytes"], root["keys"]) == (2, 60, b"integer")
        first = file["blocks/34/00000000000000000000000000001234"]
        assert np.array_equal(first[...], data)
        assert first.dtype == np.float16
        found = dict(first.attrs)
        assert found.pop("shape").tolist() == [2, 3, 4]
        assert found == {
            "key": b"00000000000000000000000000001234", "dtype": b"float16", "nbytes": 48,
            "checksum": blocks[0][0].checksum, "expiry": 2_000_000_000, "depth": 7, "protected": True, "sequence": 99,
        }  # fmt: skip
        second = file["blocks/ff/" + "f" * 32]
        assert (second.dtype, second.attrs["dtype"]) == (np.uint16, b"bfloat16")
        assert np.array_equal(second[1:3], brain[1:3])
        assert {"expiry", "depth"}.isdisjoint(second.attrs)
        for dataset in (first, second):
            assert dataset.chunks is None
            assert not dataset.attrs["protected"] or dataset is first
        assert file.libver[0] == "earliest"
    # Complex numbers as all versions of h5py know them, not as HDF5 2 could write them.
    value = np.zeros(2, np.complex64)
    with h5py.File(write(tmp_path / "b.h5", [(row_of(1, value), value)])) as file:
        assert file[path_of(1)].id.get_type().get_class() == h5py.h5t.COMPOUND


def test_a_block_comes_in_pieces_and_must_be_whole(tmp_path: Path) -> None:
    data = np.arange(1000, dtype=np.uint8)
    with NewFile(tmp_path / "a.h5", ORIGIN) as made:
        made.begin(row_of(1, data))
        made.write(raw(data[:300]))
        with pytest.raises(ValueError, match="700 bytes of the block before"):
            made.begin(row_of(2, data))
        with pytest.raises(ValueError, match="700 bytes of the last block"):
            made.commit()
        with pytest.raises(ValueError, match="of which 700 are missing"):
            made.write(raw(data))
        made.write(raw(data[300:]))
        made.commit()
    assert np.array_equal(read(tmp_path / "a.h5", 1).data, data)


@pytest.mark.parametrize("newer_first", [True, False])
def test_of_two_blocks_with_one_key_the_newer_one_stays(tmp_path: Path, newer_first: bool) -> None:
    old, new = np.zeros(10, np.uint8), np.ones((2, 3), np.int64)
    blocks = [(row_of(1, old, sequence=5), old), (row_of(1, new, sequence=6), new)]
    path = write(tmp_path / "a.h5", blocks[::-1] if newer_first else blocks)
    assert np.array_equal(read(path, 1).data, new)
    with h5py.File(path) as file:
        assert (file.attrs["blocks"], file.attrs["bytes"]) == (1, 48)


def test_many_small_blocks(tmp_path: Path) -> None:
    data = np.arange(3000, dtype=np.uint16)
    path = write(tmp_path / "a.h5", [(row_of(number, data[number : number + 1]), data[number : number + 1])
                                     for number in range(3000)])  # fmt: skip
    with ExportFile(path) as file:
        assert sorted(file.keys()) == list(range(3000))
        for number in range(0, 3000, 97):
            assert file.read(number, path_of(number), MOST).data.tolist() == [number]
    with h5py.File(path) as file:
        assert max(len(group) for group in file["blocks"].values()) == 12, "small integers are spread over the groups"


def test_a_block_beyond_4_gib_has_its_place(tmp_path: Path) -> None:
    """Without its bytes: the file is a hole. What is written at its end is where HDF5 looks for it."""
    size = (4 << 30) + 1000
    row = Row(1, 6, (size,), 0)
    tail = np.arange(1000, dtype=np.uint8)
    with NewFile(tmp_path / "a.h5", ORIGIN) as made:
        made.begin(row)
        made._at, made._left = made._at + (4 << 30), 1000
        made.write(raw(tail))
        made.commit()
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file[path_of(1)]
        assert dataset.shape == (size,)
        assert np.array_equal(dataset[-1000:], tail)
        assert not dataset[:1000].any()


# ------------------------------------------------------------------------------------------------------------- names


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    data = np.zeros(10, np.uint8)
    path = tmp_path / "a.h5"
    with NewFile(path, ORIGIN) as made:
        made.begin(row_of(1, data))
        made.write(raw(data))
        assert not path.exists()
        [part] = tmp_path.iterdir()
        assert part.name.endswith(f"-{os.getpid()}.part")
        assert part.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [], "it was not committed"
    write(path, [(row_of(1, data), data)])
    assert [each.name for each in tmp_path.iterdir()] == ["a.h5"]


def test_a_file_that_is_there_is_only_replaced_when_it_is_said(tmp_path: Path) -> None:
    data = np.zeros(10, np.uint8)
    path = write(tmp_path / "a.h5", [(row_of(1, data), data)])
    with pytest.raises(FileThereError, match="overwrite=True"):
        write(path, [])
    assert read(path, 1).row.key == 1
    write(path, [(row_of(2, data), data)], overwrite=True)
    assert read(path, 2).row.key == 2
    link = tmp_path / "link.h5"
    link.symlink_to(path)
    write(link, [(row_of(3, data), data)], overwrite=True)
    assert link.is_symlink()
    assert read(path, 3).row.key == 3


def test_a_file_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    for refused in (False, True):
        part = PartFile(path, overwrite=False)
        path.write_text("another program's")
        if refused:  # a file system without hard links

            def link(*_: Any) -> None:
                raise OSError(errno.EPERM, "no links")

            monkeypatch.setattr(os, "link", link)
        with pytest.raises(FileThereError):
            part.commit()
        part.discard()
        assert path.read_text() == "another program's"
        path.unlink()
        part = PartFile(path, overwrite=False)
        part.commit()
        assert [each.name for each in tmp_path.iterdir()] == ["a.h5"]
        path.unlink()


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for name in ("fsync", "link", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, call=call, name=name: (steps.append(name), call(*a))[1])
    data = np.zeros(10, np.uint8)
    for overwrite in (False, True):
        write(tmp_path / "a.h5", [(row_of(1, data), data)], overwrite=overwrite)
    assert steps == ["fsync", "link", "fsync", "fsync", "replace", "fsync"]
    assert read(tmp_path / "a.h5", 1).row.key == 1


def test_where_no_file_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFileError, match="mkdir -p"):
        NewFile(tmp_path / "absent" / "a.h5", ORIGIN)
    with pytest.raises(DiskError, match="is a directory"):
        NewFile(tmp_path, ORIGIN)


def test_a_full_disk(tmp_path: Path) -> None:
    data = np.zeros(50_000, np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, hard))
    try:
        for count, values in ((3, data), (4000, data[:0])):  # the bytes, or the file's own structure, do not fit
            with pytest.raises(DiskFullError) as caught:
                write(tmp_path / "a.h5", [(row_of(key, values), values) for key in range(count)])
            assert str(tmp_path / "a.h5") in str(caught.value)
            assert list(tmp_path.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_h5py(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: NewFile(one, ORIGIN), lambda: ExportFile(one), library.load):
        with pytest.raises(NotConfiguredError, match=r'pip install "cascade-mpi\[hdf5\]"'):
            call()


# ------------------------------------------------------------------------------------------------------------ damage


def changed(path: Path, change: Callable[[Any], None]) -> str:
    """What is said of the block of key 5 after a change to its file."""
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(Hdf5FileError) as caught:
        read(path, 5)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def replace(file: Any, data: Any, **options: Any) -> None:
    """Another dataset in the place of block 5, with the same attributes."""
    attributes = dict(file[path_of(5)].attrs)
    del file[path_of(5)]
    dataset = file.create_dataset(path_of(5), data=data, **options)
    for name, value in attributes.items():
        dataset.attrs[name] = value


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: f[path_of(5)].write_direct(np.zeros((3, 4), np.float32)), "its bytes have the checksum"),
        (lambda f: f[path_of(5)].attrs.modify("checksum", np.uint64(1)), "not 0000000000000001"),
        (lambda f: f[path_of(5)].attrs.__delitem__("checksum"), "it has no attribute checksum"),
        (lambda f: f[path_of(5)].attrs.__setitem__("key", np.bytes_(b"0" * 32)), "its attribute key is '0000"),
        (lambda f: f[path_of(5)].attrs.__setitem__("key", np.float64(5)), "it must be a text"),
        (lambda f: f[path_of(5)].attrs.__setitem__("key", f"{5:032x}"), "its attribute key has the shape () of object"),
        (lambda f: f[path_of(5)].attrs.__setitem__("dtype", np.bytes_(b"float33")), "which no block has"),
        (lambda f: f[path_of(5)].attrs.__setitem__("dtype", np.bytes_(b"int32")), "its elements are float32"),
        (lambda f: f[path_of(5)].attrs.__setitem__("shape", [4, 3]), "its shape is (3, 4)"),
        (lambda f: f[path_of(5)].attrs.__setitem__("shape", [1] * 9), "its attribute shape has the shape (9,)"),
        (lambda f: f[path_of(5)].attrs.__setitem__("shape", h5py.Empty("u8")), "has the shape None"),
        (lambda f: f[path_of(5)].attrs.__setitem__("expiry", -1), "it must be an integer in 0.."),
        (lambda f: f[path_of(5)].attrs.__setitem__("depth", 2.5), "it must be an integer in 0.."),
        (lambda f: f[path_of(5)].attrs.__setitem__("sequence", [1, 2]), "it must be an integer in 0.."),
        (lambda f: f[path_of(5)].attrs.__setitem__("protected", 2), "it must be an integer in 0..1"),
        (lambda f: f.__delitem__(path_of(5)), "it cannot be read"),
        (lambda f: replace(f, np.zeros((3, 4), np.float64)), "its elements are float64"),
        (lambda f: replace(f, ["text"]), "its elements are object"),
        (lambda f: replace(f, np.zeros(12, np.float32)), "its shape is (12,)"),
        (lambda f: (f.__delitem__(path_of(5)), f.create_group(path_of(5))), "it is no dataset"),
        (lambda f: f.attrs.__delitem__("format"), "none that Cascade has exported"),
        (lambda f: f.attrs.__setitem__("format", np.bytes_(b"other")), "none that Cascade has exported"),
        (lambda f: f.attrs.__setitem__("version", 2), "use a newer Cascade"),
        (lambda f: f.attrs.__setitem__("keys", np.bytes_(b"some")), "its attribute keys is 'some'"),
        (lambda f: f.attrs.__setitem__("namespace_parts", np.bytes_(b"{")), "its root"),
        (lambda f: f.attrs.__setitem__("namespace_parts", np.bytes_(b"{}")), "namespace_parts or namespace_id"),
        (lambda f: f.attrs.__setitem__("namespace_id", np.bytes_(b"-5")), "namespace_parts or namespace_id"),
        (lambda f: f.attrs.__setitem__("epoch", 1 << 32), "it must be an integer in 0.."),
    ],
)  # fmt: skip
def test_what_was_changed_is_refused(one: Path, change: Callable[[Any], None], text: str) -> None:
    if "none that" in text or "newer" in text:
        with h5py.File(one, "r+") as file:
            change(file)
        with pytest.raises(Hdf5FileError, match=text):
            ExportFile(one)
    else:
        assert text in changed(one, change)


def test_a_file_that_was_repacked_is_read(one: Path) -> None:
    """Compressed, chunked, in the other byte order: the values are the same, and so is their checksum."""
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    for other in (data, data.astype(">f4")):
        with h5py.File(one, "r+") as file:
            replace(file, other, chunks=(2, 2), compression="gzip")
        assert np.array_equal(read(one, 5).data, data)


def test_no_bytes_of_other_files_are_read(one: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(12, dtype=np.float32).tobytes())  # even the right ones
    assert "in another file" in changed(
        one, lambda f: replace(f, None, shape=(3, 4), dtype="f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    )

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((3, 4), "f4")
        layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3, 4))
        attributes = dict(file[path_of(5)].attrs)
        del file[path_of(5)]
        dataset = file.create_virtual_dataset(path_of(5), layout)
        dataset.attrs.update(attributes)

    assert "in another file" in changed(one, virtual)
    for link in (h5py.SoftLink("/other"), h5py.ExternalLink("other.h5", "/x")):
        with h5py.File(one, "r+") as file:
            del file[path_of(5)]
            file[path_of(5)] = link
        with ExportFile(one) as file, pytest.raises(Hdf5FileError, match="not followed"):
            list(file.keys())
        with ExportFile(one) as file, pytest.raises(Hdf5FileError):
            file.read(5, path_of(5), MOST)


def test_no_memory_is_taken_for_what_is_not_there(one: Path) -> None:
    def huge(file: Any) -> None:
        attributes = dict(file[path_of(5)].attrs)
        del file[path_of(5)]
        dataset = file.create_dataset(path_of(5), (1 << 45,), "f4", chunks=(1 << 10,))
        dataset.attrs.update(attributes | {"shape": [1 << 45]})

    assert "a block of 140737488355328 bytes, at most 1073741824 can be taken" in changed(one, huge)
    with ExportFile(one) as file, pytest.raises(Hdf5FileError, match="0 bytes are stored for a block of"):
        file.read(5, path_of(5), 1 << 60)


def test_names_that_no_block_has(one: Path) -> None:
    for name in ("blocks/05/x", f"blocks/06/{5:032x}", f"blocks/05/{5:032X}A", "blocks/x"):
        with h5py.File(one, "r+") as file:
            file[name] = np.zeros(3)
        with ExportFile(one) as opened, pytest.raises(Hdf5FileError, match=r"not the name of a block|it is no group"):
            list(opened.keys())
        with h5py.File(one, "r+") as file:
            del file[name]
            if "blocks/06" in file:
                del file["blocks/06"]
    assert [key_of("05", f"{5:032x}"), key_of("06", f"{5:032x}"), key_of("05", "5")] == [5, None, None]
    with h5py.File(one, "r+") as file:
        del file["blocks"]
    with ExportFile(one) as opened, pytest.raises(Hdf5FileError, match="has no group blocks"):
        list(opened.keys())


def test_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFileError):
        ExportFile(tmp_path / "absent")
    with pytest.raises(DiskError):
        ExportFile(tmp_path)
    path = tmp_path / "text"
    path.write_text("no HDF5")
    with pytest.raises(Hdf5FileError, match="is no HDF5 file, or is damaged"):
        ExportFile(path)
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(Hdf5FileError, match="none that Cascade has exported"):
        ExportFile(path)


def test_a_file_cut_short_is_refused(one: Path) -> None:
    whole = one.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        one.write_bytes(whole[:size])
        with pytest.raises(Hdf5FileError):
            read(one, 5)


def test_a_flipped_bit_is_seen_or_harms_nothing(tmp_path: Path) -> None:
    """Whatever bit of the file flips: what is read is what was written, or it is an error."""
    values = {key: np.random.default_rng(key).integers(0, 256, 40, np.uint8) for key in (5, 6, 0x105)}
    path = write(tmp_path / "a.h5", [(row_of(key, data, depth=3), data) for key, data in values.items()])
    whole = path.read_bytes()
    seen = 0
    for at in np.random.default_rng(1).permutation(len(whole))[:200].tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            with ExportFile(path) as file:
                for key in file.keys():  # noqa: SIM118
                    block = file.read(key, path_of(key), MOST)
                    assert np.array_equal(block.data, values[key])
        except Hdf5FileError:
            seen += 1
    assert seen > 10


# ------------------------------------------------------------------------------------------------------------ origin


def test_keys_go_into_their_own_namespace_only() -> None:
    alice = Namespace("t", salt=b"alice's secret")
    origin = origin_of(alice, 2, created=1, file="")
    options: dict[str, Any] = {"rekey": False, "remedy": "--rekey"}
    assert mixed_in(origin, alice, 2, **options) == int.from_bytes(alice.digest(2), "big")
    for namespace, epoch in ((alice, 1), (Namespace("t"), 2), (Namespace("t", salt=b"a guess"), 2), (Namespace(), 2)):
        with pytest.raises(ConfigError, match=r"the file is of namespace t \(salted\) .* at epoch 2.*--rekey imports"):
            mixed_in(origin, namespace, epoch, **options)
        mixed = mixed_in(origin, namespace, epoch, rekey=True, remedy="")
        assert mixed == int.from_bytes(namespace.digest(epoch), "big")
    stored = origin._replace(keys=STORED)
    assert mixed_in(stored, alice, 2, **options) == 0
    with pytest.raises(ConfigError, match="export it anew"):
        mixed_in(stored, alice, 1, rekey=True, remedy="")


def test_the_origin_comes_back(tmp_path: Path) -> None:
    kinds = [
        Namespace(), Namespace("a\0b", "ü", "bf16", "tp4"), Namespace(content_keys=True),
        Namespace("c", identity="content", hash="sha256", share_content=True),
    ]  # fmt: skip
    for number, namespace in enumerate(kinds):
        origin = origin_of(namespace, number, created=5, file="x")
        with ExportFile(write(tmp_path / f"{number}.h5", [], origin)) as file:
            assert file.origin == origin
            assert file.origin.namespace() == namespace
    salted = Namespace("t", salt=b"secret")
    origin = origin_of(salted, 0, created=5, file="x")
    path = write(tmp_path / "salted.h5", [], origin)
    with ExportFile(path) as file:
        assert file.origin.namespace() is None
        assert file.origin.namespace(b"another") is None
        assert file.origin.namespace(b"secret") == salted
    assert b"secret" not in path.read_bytes()
    unknown = Origin(0x1234, 1, STORED, 5, "x", None)
    with ExportFile(write(tmp_path / "unknown.h5", [], unknown)) as file:
        assert file.origin == unknown
        assert str(file.origin) == "namespace known by its number alone (0000000000001234) at epoch 1"
    assert public(salted).with_salt(b"secret") == salted
    assert INTEGER != STORED


def test_the_list_of_types_is_whole() -> None:
    assert [dtype_code(dtype_name(code)) for code in CODES] == CODES
    with pytest.raises(ValueError, match="outside"):
        dtype_name(CODES[-1] + 1)
    assert dtype_code("") is None
