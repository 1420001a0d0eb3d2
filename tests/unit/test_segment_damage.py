"""Damaged segments: whatever happens to the bytes of a store, what is read is what was written, or it is a miss.

Flipped bits, files cut short at every byte, records and files that are duplicated, exchanged, or of another store; and
that `fsck` sees each of them.
"""

from __future__ import annotations

import random
import tracemalloc
from itertools import count

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from memory_files import MemoryFiles
from segment_making import FIRST, RUN, STORE, a_log, a_store, random_bytes, read_back, record_of, with_file

from cascade_mpi.errors import CascadeError
from cascade_mpi.segments import format as f
from cascade_mpi.segments.fsck import fsck
from cascade_mpi.segments.pages import encode_footer
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.recovery import recover
from cascade_mpi.segments.scan import Walk, scan

SIZES = [0, 10, 300, 768]  # a unit each, and the zeros between: one page, the fourth record fills its unit
DATA_END = 2 * f.PAGE
OPEN = FIRST + ".open"


def damage_of(files: MemoryFiles) -> list[str]:
    return [
        f"{each.path} {each.offset} {each.what}" for each in fsck(files, STORE).findings if each.severity == "damage"
    ]


def must_be_right(files: MemoryFiles, contents: dict[tuple[int, int], bytes]) -> dict[tuple[int, int], bytes]:
    found = read_back(files)
    wrong = [key for key, payload in found.items() if contents.get(key) != payload]
    assert not wrong, f"wrong bytes, or a block that was never written: {wrong}"
    return found


def test_an_undamaged_store_is_read_and_clean() -> None:
    for seal in (True, False):
        files, contents = a_store([0, 1, 700, 5000, f.LARGE - 1, f.LARGE, 200_000, 3_000_000], seal=seal)
        assert read_back(files) == contents
        report = fsck(files, STORE)
        assert report.findings == []
        assert report.keys == 8
        assert {each.state for each in report.segments} == {"sealed" if seal else "open"}


def test_every_flipped_bit_is_seen() -> None:
    """Of the records and the zeros between them; those of the pages have tests of their own (`test_segment_format`)."""
    files, _ = a_store([300, 768])  # two units: the zeros behind the first belong to it
    data = files.contents[FIRST]
    reader = open_segment(files, STORE, 0)
    trailer, entries = reader.footer()
    assert trailer.data_end == f.PAGE + 2 * f.UNIT
    for bit in range(8 * f.PAGE, 8 * trailer.data_end):
        data[bit // 8] ^= 1 << bit % 8
        pieces = list(Walk(reader, trailer.place, trailer.data_end).pieces())
        assert any(piece.kind != "record" for piece in pieces), f"bit {bit} of byte {bit // 8} is not seen"
        assert len(pieces) >= len(entries)
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("seal", [True, False])
def test_a_flipped_bit_costs_one_block_at_most_and_fsck_sees_it(seal: bool) -> None:
    """One bit of every byte of the records, and of a few of the pages."""
    files, contents = a_store(SIZES, seal=seal)
    path = FIRST if seal else OPEN
    data = bytes(files.contents[path])
    chance = random.Random(1)
    lost = set()
    for byte in [*range(0, f.PAGE, 61), *range(f.PAGE, DATA_END), *range(DATA_END, len(data), 61)]:
        changed = bytearray(data)
        changed[byte] ^= 1 << chance.randrange(8)
        damaged = with_file(files, path, changed)
        assert damage_of(damaged), f"byte {byte} is not seen"
        if byte % 4 == 0:
            lost.add(len(contents) - len(must_be_right(damaged, contents)))
    assert lost == {0, 1}


@pytest.mark.parametrize("seal", [True, False])
def test_a_file_cut_short_at_every_byte_has_what_is_whole_in_it(seal: bool) -> None:
    files, contents = a_store([0, 40], seal=seal)
    path = FIRST if seal else OPEN
    data = bytes(files.contents[path])
    ends = [f.end_of(4, 0), f.end_of(5, 40)]
    cut = with_file(files, path, b"")
    keep = cut.contents[path]
    for size in range(len(data)):
        found = recover(cut, STORE)
        whole = sum(end <= size for end in ends)
        assert sum(len(index.entries) for index in found.indexes) == whole, f"cut at {size}"
        if size % 64 == 0 or size in ends:
            assert len(must_be_right(cut, contents)) == whole, f"cut at {size}"
            if seal:
                assert damage_of(cut), f"cut at {size}"
            else:  # an interrupted write is none, not even of the header page
                assert not damage_of(cut), f"cut at {size}"
                assert recover(cut, STORE).problems == [], f"cut at {size}"
        keep.append(data[size])


@pytest.mark.parametrize("junk", [b"\0", b"x", bytes(5000), b"y" * 5000])
def test_a_sealed_file_with_something_behind_it_is_seen(junk: bytes) -> None:
    files, contents = a_store(SIZES)
    damaged = with_file(files, FIRST, files.contents[FIRST] + junk)
    assert must_be_right(damaged, contents) == contents
    assert damage_of(damaged)


@pytest.mark.parametrize("tail", [0, 100, f.ENTRY_BYTES, f.PAGE, 2 * f.PAGE - 1])
def test_an_unfinished_footer_is_no_damage(tail: int) -> None:
    files, contents = a_store(SIZES)
    data = bytes(files.contents[FIRST])[: DATA_END + tail]
    interrupted = with_file(with_file(files, FIRST, None), OPEN, data)
    assert read_back(interrupted) == contents
    assert not damage_of(interrupted)
    assert recover(interrupted, STORE).problems == []
    assert bool(fsck(interrupted, STORE).findings) == bool(tail)


def test_a_header_page_of_zeros_and_nothing_else_is_no_damage() -> None:
    """After a power loss a file may have the size that it had, and none of its bytes."""
    files, contents = a_store(SIZES)
    begun = with_file(files, "segments/0000000000000001.seg.open", bytes(f.PAGE))
    assert recover(begun, STORE).problems == []
    assert not damage_of(begun)
    assert read_back(begun) == contents
    sealed = with_file(files, "segments/0000000000000001.seg", bytes(f.PAGE))
    assert recover(sealed, STORE).problems
    assert damage_of(sealed)


def units_of(data: bytes) -> list[tuple[int, int]]:
    """Start and end of the records of a sealed segment, as the footer has them, ends at the next unit."""
    files = MemoryFiles()
    files.contents[FIRST] = bytearray(data)
    entries = open_segment(files, STORE, 0).footer().entries
    return [
        (int(row["unit"]) * f.UNIT, f.align(f.end_of(int(row["unit"]), int(row["length"])), f.UNIT)) for row in entries
    ]


@pytest.mark.parametrize("seal", [True, False])
def test_records_that_were_duplicated_or_exchanged_are_not_taken_for_others(seal: bool) -> None:
    files, contents = a_store([600] * 4, seal=True)
    data = bytes(files.contents[FIRST])
    places = units_of(data)
    path = FIRST if seal else OPEN
    for first in range(4):
        for second in range(4):
            if first == second:
                continue
            (a, b), (c, d) = places[first], places[second]
            duplicated, exchanged = bytearray(data), bytearray(data)
            duplicated[c:d] = data[a:b]
            exchanged[c:d], exchanged[a:b] = data[a:b], data[c:d]
            for changed, left in ((duplicated, 3), (exchanged, 2)):
                kept = changed if seal else changed[: places[-1][1]]
                damaged = with_file(with_file(files, FIRST, None), path, kept)
                assert len(must_be_right(damaged, contents)) == left
                assert damage_of(damaged)


def test_a_record_of_another_segment_of_the_same_store_is_not_taken() -> None:
    files, contents = a_store([600] * 150)
    assert len(files.contents) > 2
    one, two = (f"segments/{number:016x}.seg" for number in (0, 1))
    (start, end), (start_2, end_2) = units_of(bytes(files.contents[one]))[0], (f.PAGE, f.PAGE + f.UNIT)
    assert (start, end) == (start_2, end_2)
    changed = bytearray(files.contents[two])
    changed[start:end] = files.contents[one][start:end]
    damaged = with_file(files, two, changed)
    assert len(must_be_right(damaged, contents)) == len(contents) - 1
    assert any("segment 0, run" in line or "of segment" in line for line in damage_of(damaged))


@pytest.mark.parametrize("seal", [True, False])
def test_a_segment_under_another_number_is_foreign(seal: bool) -> None:
    files, contents = a_store(SIZES, seal=seal)
    path = FIRST if seal else OPEN
    copy = path.replace("0000.seg", "0009.seg")
    damaged = with_file(files, copy, files.contents[path])
    assert read_back(damaged) == contents
    assert all(line.startswith(copy) for line in damage_of(damaged))
    assert "a copy, or renamed" in str(damage_of(damaged))
    renamed = with_file(damaged, path, None)
    assert read_back(renamed) == {}
    assert damage_of(renamed)
    assert recover(renamed, STORE).next_segment == 10


@pytest.mark.parametrize("seal", [True, False])
def test_a_segment_of_another_store_is_foreign(seal: bool) -> None:
    files, contents = a_store(SIZES, seal=seal)
    other = MemoryFiles()
    log = a_log(other, numbers=count(7))
    log._store = bytes(16)  # what a directory has that was copied together
    log.append(record_of(1, 10, sequence=1 << 60), b"otherbytes")
    log.seal() if seal else log.sync()
    (path, data), *_ = other.contents.items()
    mixed = with_file(files, path, data)
    assert read_back(mixed) == contents
    assert "of the store 00000000000000000000000000000000" in str(damage_of(mixed))


def test_a_segment_of_an_earlier_run_with_the_same_number_is_told_apart() -> None:
    """An open file of which the disk has pieces of an older one of the same number: its records are of another run."""
    files, contents = a_store([600] * 4, seal=False)
    older = MemoryFiles()
    log = a_log(older)
    log._run = RUN + 1
    for number in range(4):
        log.append(record_of(number, 600, sequence=99), random_bytes(77, 600))
    data = files.contents[OPEN][: f.PAGE + 2 * f.UNIT] + older.contents[OPEN][f.PAGE + 2 * f.UNIT :]
    assert len(must_be_right(with_file(files, OPEN, data), contents)) == 2


@pytest.mark.parametrize("field", ["namespace", "sequence", "key_lo", "header_check", "flags"])
def test_a_footer_that_says_other_things_than_the_records_is_seen(field: str) -> None:
    """Its checksums are right: it was written so, by a program that was wrong."""
    files, _ = a_store(SIZES)
    trailer, entries = open_segment(files, STORE, 0).footer()
    changed = entries.copy()
    changed[field][1] += 1
    table_at, footer = encode_footer(trailer.place, 0, changed, trailer.data_end)
    damaged = with_file(files, FIRST, bytes(files.contents[FIRST][:table_at]) + footer)
    assert damage_of(damaged) == [f"{FIRST} {5 * f.UNIT} the footer says other things of this record"]
    assert len(read_back(damaged)) == (3 if field in ("sequence", "key_lo") else 4)


def test_what_goes_back_to_an_older_version_is_said() -> None:
    """Only without a footer: nothing knows of the damaged record then."""
    files = MemoryFiles()
    log = a_log(files)
    for sequence in (1, 2):
        log.append(record_of(1, 300, sequence=sequence), random_bytes(sequence, 300))
    log.sync()
    files.contents[OPEN][5 * f.UNIT + 300] ^= 1
    (finding,) = fsck(files, STORE).findings
    assert finding.consequence == "1 block goes back to an older version, if it had been acknowledged"
    assert read_back(files) == {(1, 38): random_bytes(1, 300)}


def test_both_names_of_one_segment_are_one_segment() -> None:
    files, contents = a_store(SIZES)
    twice = with_file(files, OPEN, files.contents[FIRST])
    assert read_back(twice) == contents
    assert len(recover(twice, STORE).indexes) == 1
    report = fsck(twice, STORE)
    assert not report.damaged
    assert "the same segment" in report.findings[0].what
    assert damage_of(with_file(files, OPEN, files.contents[FIRST][:5000]))


def test_damage_in_the_middle_does_not_hide_what_follows() -> None:
    """Also without a footer: each record proves itself."""
    sizes = [500, 70_000, 500, 2_000, 100_000, 500]
    files, contents = a_store(sizes, segment_bytes=1 << 20, seal=False)
    data = files.contents[OPEN]
    for start, length, left in (
        (f.PAGE + 3, 1, 5),
        (f.PAGE + 600 + f.UNIT, 20_000, 5),
        (f.PAGE, 70_000, 4),
        (f.PAGE, 80_000, 2),
    ):
        changed = bytearray(data)
        changed[start : start + length] = b"?" * length
        damaged = with_file(files, OPEN, changed)
        assert len(must_be_right(damaged, contents)) == left
        found = recover(damaged, STORE)
        assert found.problems == []  # a killed job may leave it
        assert any("that are no record" in each or "not what was written" in each for each in found.torn)


@pytest.mark.parametrize("seal", [True, False])
def test_the_zeros_around_a_large_payload_are_looked_at(seal: bool) -> None:
    files, contents = a_store([500, 70_001, 500], segment_bytes=1 << 20, seal=seal)
    path = FIRST if seal else OPEN
    before, within, behind = f.PAGE + 256 + 500, 7 * f.UNIT + f.RECORD_BYTES, 2 * f.PAGE + 70_001
    for byte in (before, 5 * f.UNIT - 1, 5 * f.UNIT, 7 * f.UNIT - 1, within, 2 * f.PAGE - 1, behind, behind + 500):
        changed = bytearray(files.contents[path])
        assert changed[byte] == 0
        changed[byte] = 16
        damaged = with_file(files, path, changed)
        assert read_back(damaged) == contents
        assert damage_of(damaged), f"byte {byte} is not seen"


def test_a_header_page_that_is_lost_costs_nothing() -> None:
    for seal in (True, False):
        files, contents = a_store(SIZES, seal=seal)
        path = FIRST if seal else OPEN
        changed = bytearray(files.contents[path])
        changed[: f.PAGE] = bytes(f.PAGE)
        damaged = with_file(files, path, changed)
        assert read_back(damaged) == contents
        assert damage_of(damaged)


def test_an_embedded_segment_is_no_segment() -> None:
    """A payload that is itself a segment file, of the same store: its records stand where they do not belong."""
    inner, _ = a_store(SIZES)
    data = bytes(inner.contents[FIRST])
    files = MemoryFiles()
    log = a_log(files, 1 << 20)
    log.append(record_of(50, len(data)), data)
    log.append(record_of(51, 3), b"abc")
    log.sync()
    changed = bytearray(files.contents[OPEN])
    changed[f.PAGE + 9] ^= 1  # the header of the outer record: now its payload is searched for records
    found = read_back(with_file(files, OPEN, changed))
    assert found == {(51, 51 * 31 + 7): b"abc"}


# ------------------------------------------------------------------------------------------------------- at random


def damaged_bytes(chance: random.Random, data: bytes) -> bytearray:
    """A few of the things that happen to files."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 40))):
        if not changed:
            return changed
        at, length = chance.randrange(len(changed)), chance.choice((1, 8, 64, 512, 1024, 4096, 9000))
        what = chance.randrange(8)
        if what == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            changed[at : at + length] = chance.randbytes(length)
        elif what == 2:
            changed[at : at + length] = bytes(length)
        elif what == 3:
            del changed[at:]
        elif what == 4:
            del changed[at : at + length]
        elif what == 5:
            other = chance.randrange(len(changed))
            changed[at : at + length] = changed[other : other + length]
        elif what == 6:
            at, other = at // 1024 * 1024, chance.randrange(len(changed)) // 1024 * 1024
            changed[at : at + 1024], changed[other : other + 1024] = (
                changed[other : other + 1024],
                changed[at : at + 1024],
            )
        else:
            changed[at:at] = chance.randbytes(length)
    return changed


@pytest.fixture(scope="module")
def sealed() -> tuple[MemoryFiles, dict[tuple[int, int], bytes]]:
    return a_store([0, 5, 900, 3_000, 300, 66_000, 20, 700, 700], segment_bytes=1 << 20)


@pytest.fixture(scope="module")
def unsealed() -> tuple[MemoryFiles, dict[tuple[int, int], bytes]]:
    return a_store([0, 5, 900, 3_000, 300, 66_000, 20, 700, 700], segment_bytes=1 << 20, seal=False)


@pytest.mark.parametrize("which", ["sealed", "unsealed"])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 62))
def test_no_damage_ever_gives_wrong_bytes(request: pytest.FixtureRequest, which: str, seed: int) -> None:
    files, contents = request.getfixturevalue(which)
    path = FIRST if which == "sealed" else OPEN
    data = bytes(files.contents[path])
    changed = damaged_bytes(random.Random(seed), data)
    damaged = with_file(files, path, changed)
    found = must_be_right(damaged, contents)
    report = fsck(damaged, STORE)
    if which == "sealed":  # an open one that ends earlier, at a record's end, is as good as any
        assert report.damaged == (changed != data)
        assert report.damaged or found == contents


MAGICS = [f.SEGMENT_MAGIC, f.RECORD_MAGIC, f.TRAILER_MAGIC]
pieces = st.lists(
    st.one_of(
        st.binary(max_size=600), st.sampled_from(MAGICS), st.integers(0, 9000).map(bytes),
        st.sampled_from(MAGICS).map(lambda magic: magic + b"\1\0" + bytes(1014)),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(pieces, st.booleans())
@example([], True)
@example([f.RECORD_MAGIC], False)
def test_any_bytes_are_examined_without_an_error_and_hold_nothing(parts: list[bytes], sealed: bool) -> None:
    files = MemoryFiles()
    files.folders.add("segments")
    files.contents[FIRST if sealed else OPEN] = bytearray(b"".join(parts))
    assert read_back(files) == {}
    report = fsck(files, STORE)
    assert report.damaged or not sealed
    reader = open_segment(files, STORE, 0)
    for act in (reader.header, reader.footer):
        with pytest.raises(CascadeError, match="at byte"):
            act()


def forged_table(count: int, size: int) -> bytearray:
    """A file whose trailer is valid in itself and says of itself what the file cannot hold."""
    entries = np.zeros(0, f.ENTRY)
    _, footer = encode_footer(f.Place(STORE, 0, RUN), 0, entries, f.PAGE)
    page = bytearray(footer[-f.PAGE :])
    page[56:64] = count.to_bytes(8, "little")
    page[72:80] = (count * f.ENTRY_BYTES & (1 << 64) - 1).to_bytes(8, "little")
    page[-8:] = xxhash.xxh3_64_intdigest(bytes(page[:-8])).to_bytes(8, "little")
    return bytearray(size - f.PAGE) + page


@pytest.mark.parametrize("count", [1, 64, 1 << 20, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("size", [2 * f.PAGE, 3 * f.PAGE, 1 << 20])
def test_a_trailer_that_lies_takes_no_memory(count: int, size: int) -> None:
    files = with_file(MemoryFiles(), FIRST, forged_table(count, size))
    files.folders.add("segments")
    assert peak_of(lambda: recover(files, STORE)) < 3 * size + (4 << 20)
    assert read_back(files) == {}


def peak_of(act: object) -> int:
    """The most memory that a call held at once, bytes."""
    tracemalloc.start()
    try:
        act()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(4))
def test_memory_is_within_a_small_multiple_of_the_file(seed: int) -> None:
    files, _ = a_store([700] * 200 + [200_000, 5_000_000], segment_bytes=64 << 20, seal=seed % 2 == 0)
    path = FIRST if seed % 2 == 0 else OPEN
    damaged = with_file(files, path, damaged_bytes(random.Random(seed), bytes(files.contents[path])))
    size = len(damaged.contents[path])
    assert peak_of(lambda: recover(damaged, STORE)) < 2 * size + (6 << 20)
    assert peak_of(lambda: fsck(damaged, STORE)) < 2 * size + (6 << 20)


def test_a_scan_looks_at_each_byte_a_few_times_only() -> None:
    """The worst file: the beginning of a record at every unit."""
    files = MemoryFiles()
    files.folders.add("segments")
    unit = f.RECORD_MAGIC + b"\1\0" + bytes(1014)
    files.contents[OPEN] = bytearray(f.PAGE) + unit * 3000
    reader = open_segment(files, STORE, 0)
    files.reads = 0
    assert len(scan(reader, None).entries) == 0
    assert files.reads < 20
