"""The checksum: its value, which never changes, and what it sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.kernels.checksum import (
    CHUNK,
    STREAM_BYTES,
    checksum_bytes,
    checksum_twin,
    copy_checksum_bytes,
    copy_chunks_bytes,
    fold_chunks_bytes,
)

GUARD = 128
MOST = 2 * CHUNK + 70_001
SIZES = [
    4095, 4096, 4097, STREAM_BYTES - 1, STREAM_BYTES, STREAM_BYTES + 1, STREAM_BYTES + 63, 2 * STREAM_BYTES + 127,
    (1 << 20) + 13, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 64, CHUNK + STREAM_BYTES + 5, 2 * CHUNK, MOST,
]  # fmt: skip
# Files hold these values: when one of these differs, the code is wrong, not the test.
VECTORS = [
    ("empty", 0xD32D30C5743FB0BD),
    ("a", 0xBECB56281FCB57DD),
    ("cascade", 0x4BECD8443BDEF6F3),
    ("64 zeros", 0x322209C6089B1A1A),
    (64, 0x469F41D0F1536FB8),
    (1000, 0xE4E410AA21399B5F),
    (4096, 0xC3E7606EDBB0C787),
    (65 << 16, 0x7386F4D8D3DB7307),
    (CHUNK + 1, 0x814A8E2EFB9A320C),
    (9 * (1 << 20) - 5, 0xEF3198E5B633C344),
]


def pattern(nbytes: int) -> np.ndarray:
    return (np.arange(nbytes, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(56)).astype(np.uint8)


def vector(name: str | int) -> np.ndarray:
    if isinstance(name, int):
        return pattern(name)
    return np.frombuffer({"empty": b"", "64 zeros": bytes(64)}.get(name, name.encode()), np.uint8)


def value(data: np.ndarray) -> int:
    data = np.ascontiguousarray(data)
    return checksum_bytes(data.ctypes.data, data.size)


def copied(data: np.ndarray, shift: int) -> int:
    """The checksum of a copy to a target at this distance from a multiple of 64; the copy is checked too."""
    memory = np.full(data.size + 64 + shift + 2 * GUARD, 0xA5, np.uint8)
    begin = -memory.ctypes.data % 64 + GUARD + shift
    found = copy_checksum_bytes(memory.ctypes.data + begin, data.ctypes.data, data.size)
    end = begin + data.size
    np.testing.assert_array_equal(memory[begin:end], data)
    assert np.all(memory[:begin] == 0xA5) and np.all(memory[end:] == 0xA5), "bytes beside the target were written"
    return found


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, MOST + 64, np.uint8)


@pytest.mark.parametrize(("name", "expected"), VECTORS)
def test_the_value_never_changes(name, expected):
    data = vector(name)
    assert (hex(value(data)), hex(checksum_twin(data))) == (hex(expected), hex(expected))


@pytest.mark.parametrize("shift", [0, 3])
def test_small_sizes_equal_the_twin(source, shift):
    for nbytes in range(1001):
        data = source[shift : shift + nbytes]
        assert value(data) == checksum_twin(data), nbytes


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("shift", [0, 1, 7])
def test_large_sizes_equal_the_twin(source, nbytes, shift):
    data = source[shift : shift + nbytes]
    assert value(data) == checksum_twin(data)


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1000, *SIZES])
@pytest.mark.parametrize("shift", [0, 1, 16, 63])
def test_the_copy_has_the_same_checksum_wherever_it_goes(source, nbytes, shift):
    data = source[5 : 5 + nbytes]
    assert copied(data, shift) == checksum_twin(data)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 3 * STREAM_BYTES), st.integers(0, 63), st.integers(0, 63))
def test_any_size_at_any_alignment(source, nbytes, source_shift, target_shift):
    data = source[source_shift : source_shift + nbytes]
    assert copied(data, target_shift) == checksum_twin(data)


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK, CHUNK + 1, MOST])
def test_chunks_fold_to_the_same_value_in_any_split(source, nbytes):
    data = source[1 : 1 + nbytes]
    chunks = -(-nbytes // CHUNK)
    for split in range(chunks + 1):
        words = np.zeros(chunks, np.uint64)
        target = np.empty(nbytes, np.uint8)
        for begin, end in ((0, min(split * CHUNK, nbytes)), (split * CHUNK, nbytes)):
            if begin < end:
                to, words_to = target[begin:].ctypes.data, words[begin // CHUNK :].ctypes.data
                copy_chunks_bytes(to, data[begin:].ctypes.data, end - begin, words_to)
        np.testing.assert_array_equal(target, data)
        assert fold_chunks_bytes(words, nbytes) == checksum_twin(data)


@pytest.mark.parametrize("nbytes", [1, 8, 64, 100, 4096])
@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_a_flipped_bit_is_seen_and_changes_about_half_of_the_value(source, nbytes, kind):
    data = source[:nbytes].copy() if kind == "random" else np.zeros(nbytes, np.uint8)
    before = value(data)
    every = range(nbytes * 8) if nbytes <= 100 else np.random.default_rng(5).integers(0, nbytes * 8, 800)
    seen = {before}
    changed = 0
    for bit in every:
        data[bit // 8] ^= 1 << bit % 8
        after = value(data)
        data[bit // 8] ^= 1 << bit % 8
        seen.add(after)
        changed += (before ^ after).bit_count()
    assert len(seen) == 1 + len(set(every)), "each flip has a value of its own"
    assert 28 < changed / len(every) < 36


@pytest.mark.parametrize("nbytes", [1 << 20, MOST])
def test_flipped_bits_of_large_blocks_are_seen(source, nbytes):
    data = source[:nbytes].copy()
    before = value(data)
    for bit in np.random.default_rng(6).integers(0, nbytes * 8, 50):
        data[bit // 8] ^= 1 << bit % 8
        assert value(data) != before
        data[bit // 8] ^= 1 << bit % 8


def exchange(data: np.ndarray, first: int, second: int, length: int) -> np.ndarray:
    changed = data.copy()
    changed[first : first + length] = data[second : second + length]
    changed[second : second + length] = data[first : first + length]
    return changed


@pytest.mark.parametrize("length", [64, 8, 4, 2, 1])
def test_exchanged_lines_words_and_bytes_are_seen(source, length):
    data = source[:40_000]
    before = value(data)
    places = np.random.default_rng(8).permutation(data.size // length)[:400] * length
    for first, second in places.reshape(-1, 2):
        if not np.array_equal(data[first : first + length], data[second : second + length]):
            assert value(exchange(data, first, second, length)) != before, (first, second)


def test_words_exchanged_within_a_line_are_seen(source):
    data = source[:256]
    before = value(data)
    for first in range(8):
        for second in range(first):
            assert value(exchange(data, 64 + 8 * first, 64 + 8 * second, 8)) != before


def test_exchanged_chunks_are_seen(source):
    assert value(exchange(source[:MOST], 0, CHUNK, CHUNK)) != value(source[:MOST])


def test_one_bit_moved_between_two_lines_is_seen():
    data = np.zeros(1 << 16, np.uint8)
    seen = set()
    for line in range(1024):
        data[line * 64 + 20] = 4
        seen.add(value(data))
        data[line * 64 + 20] = 0
    assert len(seen) == 1024


def test_shifts_and_lengths_are_seen(source):
    data = source[:5000]
    others = [data[1:], data[:-1], np.append(data, np.uint8(0)), np.append(np.uint8(0), data), np.roll(data, 1)]
    others += [np.roll(data, 64), data[:-64], data[:4992], np.append(data, np.zeros(64, np.uint8)), source[1:5001]]
    assert len({value(each) for each in (data, *others)}) == 1 + len(others)


def test_zeros_of_different_lengths_differ():
    zeros = np.zeros(CHUNK + 4096, np.uint8)
    lengths = [*range(2000), 4096, 1 << 20, CHUNK - 64, CHUNK, CHUNK + 1, CHUNK + 4096]
    assert len({value(zeros[:length]) for length in lengths}) == len(lengths)


def test_a_line_of_another_version_is_seen(source):
    """What a torn read leaves: one line of an older block under a newer one."""
    old, new = source[: 1 << 16], source[1 << 16 : 2 << 16]
    before = value(new)
    for line in range(0, 1 << 16, 64):
        torn = new.copy()
        torn[line : line + 64] = old[line : line + 64]
        assert value(torn) != before
