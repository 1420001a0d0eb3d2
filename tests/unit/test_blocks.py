"""Blocks with known contents: the kernels against their NumPy twin, and every damage that must be seen."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi import models
from cascade_mpi.blocks import BlockPool
from cascade_mpi.errors import ConfigError
from cascade_mpi.kernels.fill import block_words

SIZES = [1, 7, 8, 9, 63, 64, 100, 4096, 4097, 70_000]


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def content(block: int, position: int, nbytes: int) -> bytes:
    return block_words(block, position, -(-nbytes // 8)).tobytes()[:nbytes]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5000),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    st.integers(0, 2**40),
)
def test_filled_blocks_equal_the_numpy_twin(nbytes: int, blocks: list[int], first: int) -> None:
    pool = BlockPool(nbytes, 4)
    buffers = pool.fill(ids(*blocks), first)
    assert [b.tobytes() for b in buffers] == [content(block, first + k, nbytes) for k, block in enumerate(blocks)]
    assert not pool.wrong(ids(*blocks), first).any()


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("verify", ["full", "sample"])
def test_another_block_or_position_is_seen(nbytes: int, verify: str) -> None:
    pool = BlockPool(nbytes, 3)
    pool.fill(ids(10, 11, 12), 5)
    if nbytes > 1:  # one byte may be equal by chance
        assert pool.wrong(ids(11, 10, 12), 5, verify).tolist() == [True, True, False]
        assert pool.wrong(ids(10, 11, 12), 6, verify).all()
    assert not pool.wrong(ids(10, 11, 12), 5, verify).any()


@pytest.mark.parametrize("nbytes", SIZES)
def test_full_sees_every_single_byte(nbytes: int) -> None:
    pool = BlockPool(nbytes, 2)
    for at in {0, nbytes // 2, nbytes // 3, nbytes - 1}:
        pool.fill(ids(1, 2), 0)[1][at] ^= 0x40
        assert pool.wrong(ids(1, 2), 0).tolist() == [False, True], at


def test_bytes_behind_the_block_do_not_count() -> None:
    pool = BlockPool(9, 1)
    pool.fill(ids(3), 0)
    pool.words[0, 1] ^= np.uint64(0xFFFFFFFFFFFFFF00)
    assert not pool.wrong(ids(3), 0).any()


@pytest.mark.parametrize("shift", [1, 8, 64, 4096])
@pytest.mark.parametrize("verify", ["full", "sample"])
def test_a_shifted_block_is_seen(shift: int, verify: str) -> None:
    pool = BlockPool(70_000, 1)
    (buffer,) = pool.fill(ids(3), 0)
    buffer[:] = np.roll(buffer, shift)
    assert pool.wrong(ids(3), 0, verify).all()


@pytest.mark.parametrize("nbytes", [n for n in SIZES if n > 8])
@pytest.mark.parametrize("verify", ["full", "sample"])
def test_a_read_that_wrote_too_little_is_seen(nbytes: int, verify: str) -> None:
    pool = BlockPool(nbytes, 1)
    for kept in {0, nbytes // 2, nbytes - 8}:
        (buffer,) = pool.fill(ids(3), 0)
        right = buffer.copy()
        pool.poison(1)
        buffer[:kept] = right[:kept]
        assert pool.wrong(ids(3), 0, verify).all(), kept


def test_off_finds_nothing_and_old_verdicts_are_forgotten() -> None:
    pool = BlockPool(64, 2)
    pool.fill(ids(1, 2), 0)
    assert pool.wrong(ids(5, 6), 0).all()
    assert not pool.wrong(ids(5, 6), 0, "off").any()


@pytest.mark.parametrize(("nbytes", "count"), [(0, 1), (1, 0)])
def test_a_pool_of_nothing_is_refused(nbytes: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(nbytes, count)


# --------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("name", "mebibytes"),
    [("llama-3-70b", 160), ("Qwen-2.5-72B", 320), ("qwen-2.5-32b", 256), ("qwen-2.5-7b", 56)],
)
def test_models_have_their_block_sizes(name: str, mebibytes: int) -> None:
    assert models.block_bytes(name) == mebibytes << 20
    assert models.block_bytes(name, scale=Fraction(1, 64)) == (mebibytes << 20) // 64


def test_tokens_and_scale_multiply() -> None:
    assert models.block_bytes("llama-3-70b", tokens=1) == 2 * 80 * 8 * 128 * 2
    assert models.parse_scale("1/64") == Fraction(1, 64)
    assert models.parse_scale("0.25") == Fraction(1, 4)


@pytest.mark.parametrize("text", ["", "0", "-1/2", "2", "1/0", "nan", "inf", "1e-3", "x", "1/3/4", "9" * 5000])
def test_a_wrong_scale_is_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="scale"):
        models.parse_scale(text)


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean llama-3-70b"):
        models.block_bytes("llama3-70b")
    with pytest.raises(ConfigError, match="known are"):
        models.block_bytes("zzz")
    with pytest.raises(ConfigError, match="less than one byte"):
        models.block_bytes("llama-3-70b", 1, Fraction(1, 10**9))
