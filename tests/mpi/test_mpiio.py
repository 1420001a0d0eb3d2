"""Segments that all ranks write together.

The oracle of a shared segment is the log of one writer, to which the records of all ranks are given. Limits of the
file size stand in for a full disk: the system refuses the write with an error, here on one rank only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from cascade_mpi.errors import DiskError, DiskFullError, FileThereError
from cascade_mpi.mpiio.hints import compared, shared_hints
from cascade_mpi.mpiio.patterns import choose, window_bytes
from cascade_mpi.mpiio.plan import Part
from cascade_mpi.mpiio.shared import STEPS, SharedSegments
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import LARGE, MIN_SEGMENT_BYTES, Location
from cascade_mpi.segments.fsck import fsck
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import latest, recover

pytestmark = pytest.mark.alone

STORE, RUN = bytes(range(16)), 0x1122334455667788
SIZES = (0, 1, 300, 768, 5000, 16_000, LARGE - 1, LARGE, 70_000, 300_000)
Brought = list[tuple[Record, bytes]]


@pytest.fixture
def folder(comm: MPI.Intracomm, tmp_path: Path) -> Iterator[Path]:
    """One folder for all ranks."""
    yield Path(comm.bcast(str(tmp_path)))
    comm.Barrier()


@pytest.fixture(params=["own-direct", "own-cached", "together"])
def way(request: pytest.FixtureRequest) -> str:
    """How the ranks' bytes get to the disk."""
    return str(request.param)


@pytest.fixture
def files(comm: MPI.Intracomm, folder: Path, way: str) -> Iterator[PosixFiles]:
    with PosixFiles(folder / "store", make=True, direct_writes=way == "own-direct") as files:
        comm.Barrier()
        yield files


@pytest.fixture
def collective(way: str) -> str:
    return "on" if way == "together" else "off"


@pytest.fixture
def shared(comm: MPI.Intracomm, files: PosixFiles, collective: str) -> Iterator[Callable[..., SharedSegments]]:
    made: list[SharedSegments] = []

    def make(
        segment_bytes: int = 1 << 20, *, numbers: Iterable[int] | None = None, **options: Any
    ) -> SharedSegments:  # fmt: skip
        options = {"collective": collective} | options
        drawn = count() if numbers is None else iter(numbers)
        made.append(SharedSegments(comm, files, STORE, drawn, RUN, segment_bytes, **options))
        return made[-1]

    yield make
    for each in made:
        each.free()


def record_of(number: int, payload: bytes) -> tuple[Record, bytes]:
    return Record(key_hi=number, key_lo=number * 31 + 7, sequence=number + 1, length=len(payload)), payload


def brought(comm: MPI.Intracomm, sizes: list[list[int]], first: int = 0) -> list[Brought]:
    """What each rank brings, for sizes by rank; the same on all ranks."""
    found: list[Brought] = []
    number = first
    for mine in sizes:
        found.append([])
        for size in mine:
            found[-1].append(record_of(number, random.Random(number).randbytes(size)))
            number += 1
    assert len(found) == comm.size
    return found


def random_sizes(comm: MPI.Intracomm, seed: int, sizes: tuple[int, ...] = SIZES) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.choice(sizes) for _ in range(chance.choice((0, 1, 3, 12)))] for _ in range(comm.size)]


def as_one_log_writes(folder: Path, records: list[Brought], segment_bytes: int) -> dict[str, bytes]:
    """The files of a log that was given all these records, by name."""
    with PosixFiles(folder, make=True) as files:
        log = SegmentLog(files, STORE, count(), RUN, segment_bytes)
        for record, payload in (each for mine in records for each in mine):
            log.append(record, payload)
        log.close()
        return contents_of(files)


def names_of(files: PosixFiles) -> list[str]:
    try:
        return files.names("segments")
    except FileNotFoundError:
        return []  # nobody has written yet


def contents_of(files: PosixFiles) -> dict[str, bytes]:
    return {name: (files.root / "segments" / name).read_bytes() for name in names_of(files)}


def read_back(files: PosixFiles, *, whole: bool = True) -> dict[int, bytes]:
    """What a restart finds: the payload of each key's newest record."""
    found = recover(files, STORE, sync=False)
    assert not (whole and found.problems + found.torn)
    places = {index.segment: index.place for index in found.indexes}
    blocks = {}
    for row in latest(found.indexes).blocks:
        reader = open_segment(files, STORE, int(row["segment"]))
        out = bytearray(int(row["length"]))
        reader.read(int(row["unit"]), places[int(row["segment"])], memoryview(out), sequence=int(row["sequence"]))
        reader.close()
        blocks[int(row["key_hi"])] = bytes(out)
    return blocks


def check_locations(files: PosixFiles, mine: Brought, where: list[Location]) -> bool:
    for (record, payload), each in zip(mine, where, strict=True):
        reader = open_segment(files, STORE, each.segment)
        place = reader.footer().trailer.place
        out = bytearray(len(payload))
        found = reader.read(each.unit, place, memoryview(out), key=(record.key_hi, record.key_lo))
        reader.close()
        if out != payload or found.sequence != record.sequence:
            return False
    return len(mine) == len(where)


def test_the_files_are_those_of_one_log(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, tmp_path: Path, assert_all: Any
) -> None:
    for seed in range(4):
        records = brought(comm, random_sizes(comm, seed), 1000 * seed)
        together = shared()
        before = contents_of(files)
        comm.Barrier()
        where = together.write(records[comm.rank])
        expected = as_one_log_writes(tmp_path / f"oracle{seed}", records, 1 << 20)
        written = contents_of(files)
        if not any(records):
            assert written == before
        assert_all(comm, written == expected, f"seed {seed}: {sorted(written)}, {sorted(expected)}")
        assert_all(comm, check_locations(files, records[comm.rank], where), f"seed {seed}")
        comm.Barrier()
        if comm.rank == 0:
            for name in expected:
                (files.root / "segments" / name).unlink()
        comm.Barrier()


def test_several_writes_are_found_by_a_restart_on_every_rank(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, assert_all: Any
) -> None:
    together = shared(MIN_SEGMENT_BYTES)
    expected: dict[int, bytes] = {}
    small = (0, 300, 5000, 16_000, 70_000)
    for seed in range(3):
        records = brought(comm, random_sizes(comm, seed + 10, small), 1000 * seed)
        together.write(records[comm.rank])
        expected |= {record.key_hi: payload for mine in records for record, payload in mine}
        assert_all(comm, read_back(files) == expected, f"after write {seed}")
        assert_all(comm, all(name.endswith(".seg") for name in names_of(files)))
    if comm.rank == 0:
        assert not fsck(files, STORE).findings, "nothing is damaged"
    report = together.report()
    assert report["segments"] == len(names_of(files))


def test_one_rank_brings_all_and_then_nobody_anything(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, assert_all: Any
) -> None:
    together = shared()
    for writer in range(comm.size):
        sizes = [[10, 100_000, 400_000] if rank == writer else [] for rank in range(comm.size)]
        records = brought(comm, sizes, 100 * writer)
        where = together.write(records[comm.rank])
        assert_all(comm, check_locations(files, records[comm.rank], where))
    before = names_of(files)
    comm.Barrier()
    assert together.write([]) == []
    assert_all(comm, names_of(files) == before, "a write of nothing makes no file")


def test_small_records_of_all_ranks_on_one_page(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, tmp_path: Path, assert_all: Any
) -> None:
    records = brought(comm, [[20, 3] for _ in range(comm.size)])
    shared().write(records[comm.rank])
    expected = as_one_log_writes(tmp_path / "oracle", records, 1 << 20)
    assert_all(comm, contents_of(files) == expected)
    assert_all(comm, len(expected) == 1, "one page of records is one segment")


def test_a_block_above_a_fourth_of_a_segment_has_one_alone(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, tmp_path: Path, assert_all: Any
) -> None:
    size = (1 << 18) + 1
    records = brought(comm, [[100, size, 200] for _ in range(comm.size)])
    where = shared().write(records[comm.rank])
    assert_all(comm, where[0].segment == where[2].segment == 0)
    assert_all(comm, where[1] == Location(1 + comm.rank, 7), str(where))
    assert_all(comm, contents_of(files) == as_one_log_writes(tmp_path / "oracle", records, 1 << 20))


def test_blocks_above_the_size_of_a_segment(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, assert_all: Any
) -> None:
    records = brought(comm, [[3_000_001 + rank, 9_000_000] for rank in range(comm.size)])
    where = shared().write(records[comm.rank])
    assert_all(comm, check_locations(files, records[comm.rank], where))
    assert_all(comm, len(names_of(files)) == 2 * comm.size)


def test_tombstones_and_foreign_checksums_are_kept(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, assert_all: Any
) -> None:
    dead = Record(kind=2, key_hi=comm.rank, sequence=9)
    shared().write([(dead, b""), record_of(100 + comm.rank, b"lives")])
    found = latest(recover(files, STORE, sync=False).indexes)
    assert_all(comm, sorted(found.tombstones["key_hi"].tolist()) == list(range(comm.size)))
    assert_all(comm, len(found.blocks) == comm.size)


@pytest.mark.parametrize(("step", "kind"), [*((step, DiskFullError) for step in STEPS), ("data", MemoryError)])
def test_an_error_on_one_rank_in_any_step_is_one_on_all_and_leaves_nothing(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, assert_all: Any, step: str, kind: type[Exception]
) -> None:
    bad = comm.size - 1
    armed = [True]

    def fail(name: str) -> None:
        if name == step and comm.rank == bad and armed[0]:
            raise DiskFullError(errno.ENOSPC, "full on purpose", "here") if kind is DiskFullError else kind("planted")

    together = shared(step=fail)
    records = brought(comm, [[100, 300_000, 70_000] for _ in range(comm.size)])  # every rank keeps a segment
    error: BaseException | None = None
    try:
        together.write(records[comm.rank])
    except (DiskError, MemoryError) as met:
        error = met
    if comm.rank == bad or kind is DiskFullError:
        assert_all(comm, type(error) is kind, repr(error))
    else:
        assert_all(comm, type(error) is DiskError, repr(error))
    assert_all(comm, comm.rank == bad or str(error).startswith(f"on rank {bad}: "), str(error))
    assert_all(comm, names_of(files) == [], str(names_of(files)))
    armed[0] = False
    where = together.write(records[comm.rank])
    assert_all(comm, check_locations(files, records[comm.rank], where))


@contextlib.contextmanager
def no_file_above(nbytes: int, here: bool = True) -> Iterator[None]:
    """The system refuses writes beyond a size, as of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes if here else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("bad", ["first", "last", "all"])
def test_a_refused_write_on_one_rank_is_an_error_on_all_and_nobody_waits(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, raises_all: Any, assert_all: Any, bad: str
) -> None:
    together = shared(16 << 20)
    records = brought(comm, [[3_000_000] * 4 for _ in range(comm.size)])
    here = {"first": comm.rank == 0, "last": comm.rank == comm.size - 1, "all": True}[bad]
    with no_file_above(1 << 20, here):
        if together.report()["disk_collective"] == "on" and bad != "all":
            # Which rank's system is asked is the MPI's choice: it may be that none is refused.
            error: BaseException | None = None
            try:
                together.write(records[comm.rank])
            except DiskError as met:
                error = met
            assert_all(comm, len(set(comm.allgather(type(error)))) == 1, repr(error))
            if error is None:
                return
        else:
            raises_all(comm, DiskError, lambda: together.write(records[comm.rank]))
    assert_all(comm, names_of(files) == [])
    where = together.write(records[comm.rank])
    assert_all(comm, check_locations(files, records[comm.rank], where))


def test_a_rank_that_cannot_open_the_files_takes_part_to_the_end(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, raises_all: Any, assert_all: Any
) -> None:
    together, bad = shared(16 << 20), comm.size - 1
    join = files.join

    def refuse(path: str, **_: Any) -> Any:
        raise DiskFullError(errno.ENOSPC, "full on purpose", path)

    if comm.rank == bad:
        files.join = refuse  # type: ignore[method-assign]
    records = brought(comm, [[3_000_000] * 4 for _ in range(comm.size)])  # more than one round
    text = raises_all(comm, DiskFullError, lambda: together.write(records[comm.rank]))
    assert_all(comm, text == f"on rank {bad}: full on purpose", text)
    assert_all(comm, names_of(files) == [])
    files.join = join  # type: ignore[method-assign]
    assert_all(comm, check_locations(files, records[comm.rank], together.write(records[comm.rank])))


def test_wrong_records_of_one_rank_are_an_error_on_all(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, assert_all: Any
) -> None:
    wrong = [(Record(length=5), b"four"), (Record(length=5, dtype=300), b"fives")]
    for each in wrong:
        together, error = shared(), None
        try:
            together.write([each] if comm.rank == 0 else [record_of(1, b"fine")])
        except (ValueError, DiskError) as met:
            error = met
        assert_all(comm, isinstance(error, ValueError if comm.rank == 0 else DiskError), repr(error))
    assert_all(comm, contents_of(files) == {})


def test_a_number_that_is_taken_and_numbers_that_end(
    comm: MPI.Intracomm, files: PosixFiles, shared: Any, assert_all: Any
) -> None:
    mine = [record_of(comm.rank, b"x")]
    shared(numbers=[7]).write(mine)
    before = contents_of(files)
    comm.Barrier()
    for numbers in ([7], []):
        error = None
        try:
            shared(numbers=numbers).write(mine)
        except (ValueError, DiskError) as met:
            error = met
        assert_all(comm, error is not None)
    if comm.rank == 0:
        files.create("segments/0000000000000009.seg.open").close()
    comm.Barrier()
    error = None
    try:
        shared(numbers=[9]).write(mine)
    except FileThereError as met:
        error = met
    assert_all(comm, error is not None, "another job's file is in the way")
    after = contents_of(files)
    assert_all(comm, after == before | {"0000000000000009.seg.open": b""}, "and it is not removed")


def test_files_are_private_and_hints_are_told(comm: MPI.Intracomm, files: PosixFiles, shared: Any) -> None:
    together = shared(hints=shared_hints(comm.size) | {"no_such_hint": "1"})
    together.write([record_of(comm.rank, b"x" * 100)])
    for name in names_of(files):
        assert stat.S_IMODE(os.stat(files.root / "segments" / name).st_mode) == 0o600
    report = together.report()
    assert report["pattern"] == {"on": "together", "off": "own"}[report["disk_collective"]]
    assert report["hints"]["no_such_hint"] == {"asked": "1", "has": None, "taken": False}
    assert report["hints"]["cb_nodes"]["asked"] == str(comm.size)
    assert (report["segments"], report["bytes"] > 100) == (1, True)


def test_what_a_hint_comes_to() -> None:
    told = compared({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "romio_filesystem_type": "UFS "})
    assert [told[name]["taken"] for name in "abc"] == [True, False, False]
    assert told["romio_filesystem_type"]["has"] == "UFS"
    asked = shared_hints(100)
    assert (asked["cb_nodes"], asked["striping_factor"]) == ("8", "8")
    assert window_bytes({}, asked) == 32 << 20
    assert window_bytes({"cb_nodes": "2", "striping_unit": "1048576"}, asked) == 2 << 20


def test_auto_writes_together_where_parts_are_small_and_nodes_several() -> None:
    small, large = [Part(0, 0, 4096, 1 << 20, 9)], [Part(0, 0, 4096, 64 << 20, 9)]
    assert [choose("auto", 2, small)[0], choose("auto", 2, large)[0], choose("auto", 1, small)[0]] == [
        True,
        False,
        False,
    ]
    assert [choose("on", 1, large)[0], choose("off", 2, small)[0]] == [True, False]
