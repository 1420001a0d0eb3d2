"""Keys: fixed digests, namespaces, integers, arrays, and what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi import keys
from cascade_mpi.keys import CACHED_LENGTH, key_array, key_words
from cascade_mpi.namespaces import DEFAULT_DIGEST

NONE, MODEL = DEFAULT_DIGEST, bytes.fromhex("498EA940430A03C5E0CD5A79C394C8B6")  # digests of namespaces
LONG = "x" * 10_000

# Blocks on disk are found by these: a change here makes every stored block unreachable.
VECTORS = [
    ("sys_prompt", NONE, 0x20E07E424D4395EA_CD8FC0C916170CF8),
    ("sys_prompt", MODEL, 0x64D6FFF21062B2BA_3A7EC4F03FF92C81),
    ("", NONE, 0x6173D602ABD40D95_86923828F693638E),
    ("你好", NONE, 0x82406E8988F82608_8C5523F521138C70),
    ("你好", MODEL, 0xFA3D1803C7DA4283_ACCE349EFA7AB29C),
    (b"sys_prompt", NONE, 0x9CEF3FA46D487CE5_6A3D54B02B7DBAA9),
    (b"sys_prompt", MODEL, 0x92267C5896BDA9DD_F5050BB7B4BC3106),
    (b"", NONE, 0x272CCABECFC9F990_170BCB2ABA60B4D4),
    (5, NONE, 5),
    (1 << 100 | 7, NONE, 1 << 100 | 7),
    (5, MODEL, 0x498EA940430A03C5_E0CD5A79C394C8B6 ^ 5),
]

keys128 = st.integers(0, (1 << 128) - 1)
any_key = st.text(max_size=400) | st.binary(max_size=400) | keys128
quiet = settings(deadline=None, max_examples=50)


def joined(words: tuple[int, int]) -> int:
    assert all(type(word) is int and 0 <= word < 1 << 64 for word in words)
    return words[0] << 64 | words[1]


@pytest.mark.parametrize(("key", "space", "digest"), VECTORS, ids=range(len(VECTORS)))
def test_vectors(key: keys.Key, space: bytes, digest: int) -> None:
    assert joined(key_words(key, space)) == digest
    assert joined(key_words(key, space)) == digest  # the second one from the cache


def test_the_digest_is_keyed_blake2b() -> None:
    digest = hashlib.blake2b(LONG.encode(), digest_size=16, key=MODEL, person=b"cascade str 1").digest()
    assert joined(key_words(LONG, MODEL)) == int.from_bytes(digest, "big")


@pytest.mark.parametrize("seed", ["1", "2"])
def test_digests_are_those_of_any_process(seed: str) -> None:
    script = (
        "from cascade_mpi.keys import key_words as k\n"
        f"for key, space in {[vector[:2] for vector in VECTORS]!a}:\n"
        "    print('%d %d' % k(key, space))\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, timeout=60, check=True
    )
    found = [joined(tuple(map(int, line.split()))) for line in result.stdout.splitlines()]
    assert found == [digest for _, _, digest in VECTORS]


def test_names_that_must_differ() -> None:
    names = ["a", b"a", "A", "", b"", "a\0", "caf\u00e9", "cafe\u0301", LONG, LONG.encode(), "\ud800", "?", 97]
    spaces = [NONE, MODEL, bytes(15) + b"a", b"a" * 16]
    digests = {key_words(name, space) for name in names for space in spaces}
    assert len(digests) == len(names) * len(spaces)


@quiet
@given(st.text(max_size=2 * CACHED_LENGTH), st.binary(min_size=16, max_size=16))
def test_the_cache_changes_nothing(key: str, space: bytes) -> None:
    assert key_words(key, space) == keys._text_words(key, space)


def test_the_cache_is_bounded_and_holds_no_long_keys() -> None:
    assert keys._cached_words.cache_info().maxsize == keys.CACHED_KEYS
    key_words("warm")
    before = keys._cached_words.cache_info()
    key_words("warm")
    key_words("y" * (CACHED_LENGTH + 1))
    key_words(b"warm")
    key_words(12)
    after = keys._cached_words.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)


@quiet
@given(keys128, st.sampled_from([NONE, MODEL]))
def test_integers_keep_their_differences(number: int, space: bytes) -> None:
    assert joined(key_words(number, space)) == number ^ int.from_bytes(space, "big")


@pytest.mark.parametrize("key", [np.int8(7), np.uint64(7), np.int64(7)])
def test_numpy_integers_are_integers(key: np.integer) -> None:
    assert key_words(key) == (0, 7)
    assert key_words(key, MODEL) == key_words(7, MODEL)


def test_numpy_text_is_text() -> None:
    assert key_words(np.str_("abc")) == key_words("abc")
    assert key_words(np.bytes_(b"abc")) == key_words(b"abc")


@pytest.mark.parametrize("key", [True, np.True_, 1.0, None, ("a", 1), ["a"], bytearray(b"a"), object])
@pytest.mark.parametrize("space", [NONE, MODEL], ids=["default", "model"])
def test_other_types_are_refused(key: object, space: bytes) -> None:
    with pytest.raises(TypeError) as caught:
        key_words(key, space)  # type: ignore[arg-type]
    assert str(caught.value).startswith("a key is a str, bytes, or an integer in 0..2**128-1, not ")
    assert type(key).__name__ in str(caught.value)


@pytest.mark.parametrize("key", [-1, 1 << 128, np.int64(-3)])
def test_integers_out_of_range_are_refused(key: int) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.2\*\*128-1, not {int(key)}"):
        key_words(key)


@quiet
@given(st.lists(any_key, max_size=20), st.sampled_from([NONE, MODEL]))
def test_arrays_hold_the_words_of_each_key(many: list[keys.Key], space: bytes) -> None:
    found = key_array(many, space)
    assert found.dtype == np.uint64
    assert found.shape == (len(many), 2)
    assert found.flags.c_contiguous
    assert found.tolist() == [list(key_words(key, space)) for key in many]


def test_any_iterable_of_keys_will_do() -> None:
    expected = key_array(["a", b"b", 3]).tolist()
    assert key_array(iter(("a", b"b", 3))).tolist() == expected
    assert key_array(np.array(["a", "b"])).tolist() == key_array(["a", "b"]).tolist()


def test_an_array_of_keys_is_not_copied() -> None:
    array = np.arange(10, dtype=np.uint64).reshape(5, 2)
    assert key_array(array) is array
    array.flags.writeable = False
    assert key_array(array) is array


@pytest.mark.parametrize("space", [NONE, MODEL], ids=["default", "model"])
def test_arrays_of_any_layout(space: bytes) -> None:
    numbers = [5, 1 << 127 | 3, (1 << 128) - 1]
    array = np.array([(number >> 64, number & (1 << 64) - 1) for number in numbers], np.uint64)
    wide = np.zeros((6, 4), np.uint64)
    wide[::2, 1:3] = array
    expected = key_array(numbers, space).tolist()
    for given_array in (array, np.asfortranarray(array), wide[::2, 1:3], array.astype(">u8")):
        before = given_array.tolist()
        found = key_array(given_array, space)
        assert found.tolist() == expected
        assert found.flags.c_contiguous
        assert found.dtype == np.dtype("=u8")
        assert given_array.tolist() == before


@pytest.mark.parametrize("dtype", ["i1", "u2", "i8", "u8", ">i4"])
@pytest.mark.parametrize("space", [NONE, MODEL], ids=["default", "model"])
def test_small_integers_as_an_array(dtype: str, space: bytes) -> None:
    array = np.array([0, 3, 127], dtype)
    assert key_array(array, space).tolist() == key_array([0, 3, 127], space).tolist()


def test_negative_integers_in_an_array_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2\*\*128-1, not -4"):
        key_array(np.array([3, -4]))


def test_no_keys() -> None:
    for none in ([], (), np.empty((0, 2), np.uint64), np.empty(0, np.int64)):
        assert key_array(none).shape == (0, 2)


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 2), np.int64), np.zeros((3, 2), np.uint32), np.zeros((3, 3), np.uint64), np.zeros((), np.uint64),
     np.zeros((2, 2, 2), np.uint64)],
)  # fmt: skip
def test_arrays_of_another_form_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"an array of keys is uint64\[n, 2\] or one-dimensional, not u?int"):
        key_array(array)


@pytest.mark.parametrize("key", ["abc", b"abc"])
def test_one_key_is_no_sequence_of_keys(key: keys.Key) -> None:
    with pytest.raises(TypeError, match="keys is one key"):
        key_array(key)  # type: ignore[arg-type]


def test_a_bad_key_among_good_ones_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a key is a str, .*, not float"):
        key_array(["a", 1.5])  # type: ignore[list-item]
