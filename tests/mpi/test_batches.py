"""Many keys in one call: the same answers as one by one, in order, for keys of every form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import BufferSizeError, KeyExistsError
from cascade_mpi.store import Store


def names(form: str, numbers: list[int]) -> object:
    if form == "str":
        return [f"name {number}" for number in numbers]
    if form == "int":
        return [number << 70 | number for number in numbers]
    if form == "generator":
        return (f"name {number}" for number in numbers)
    if form == "small":
        return np.array(numbers, np.int64)
    return np.array([[number * 77, ~number & 0xFFFF] for number in numbers], np.uint64).reshape(-1, 2)


FORMS = ["str", "int", "generator", "small", "pairs"]


@pytest.mark.core
@pytest.mark.parametrize("form", FORMS)
def test_many_are_put_and_read_by_all(any_store: Store, comm: MPI.Intracomm, form: str) -> None:
    mine = [100 * comm.rank + number for number in range(30)]
    results = any_store.put_many(names(form, mine), [block(number, 50 + number) for number in mine])
    assert [result.bytes for result in results] == [50 + number for number in mine]
    assert all(result.stored for result in results)
    comm.Barrier()
    # all ranks' keys mixed, every third absent
    numbers = [100 * (number % comm.size) + number for number in range(30)]
    asked = [number for pair in zip(numbers, numbers, [10**6 + n for n in numbers], strict=True) for number in pair[1:]]
    found = any_store.get_many(names(form, asked))
    for number, each in zip(asked, found, strict=True):
        if number >= 10**6:
            assert each is None
        else:
            np.testing.assert_array_equal(each, block(number, 50 + number))
    expected = [number < 10**6 for number in asked]
    there = any_store.contains_many(names(form, asked))
    assert there.dtype == np.bool_
    assert there.tolist() == expected
    rough = any_store.contains_many(names(form, asked), exact=False)
    assert (rough | ~np.array(expected)).all()  # what is there is never denied


@pytest.mark.parametrize("form", FORMS)
def test_many_into_buffers(any_store: Store, comm: MPI.Intracomm, form: str) -> None:
    mine = [100 * comm.rank + number for number in range(20)]
    any_store.put_many(names(form, mine), [block(number, 1000 + number) for number in mine])
    comm.Barrier()
    asked = [100 * rank + number for number in range(20) for rank in range(comm.size)]
    asked[3] = 10**6
    outs = [np.full(1000 + number % 10**6, 0x5A, np.uint8) for number in asked]
    found = any_store.get_many(names(form, asked), outs)
    for number, got, out in zip(asked, found, outs, strict=True):
        if number == 10**6:
            assert got is None
        else:
            assert got == len(out)
            np.testing.assert_array_equal(out, block(number, 1000 + number))


def test_nothing_is_a_batch(any_store: Store) -> None:
    assert any_store.put_many([], []) == []
    assert any_store.get_many([]) == []
    assert any_store.get_many([], []) == []
    assert any_store.contains_many([]).shape == (0,)
    assert any_store.contains_many([], exact=False).shape == (0,)
    assert any_store.get_many(np.empty((0, 2), np.uint64)) == []
    assert any_store.contains_many(np.empty((0, 2), np.uint64)).shape == (0,)


def test_duplicates_in_one_batch(any_store: Store, comm: MPI.Intracomm) -> None:
    results = any_store.put_many([f"k {comm.rank}"] * 3, [b"1", b"22", b"333"])
    assert all(result.stored for result in results)
    comm.Barrier()
    for rank in range(comm.size):
        found = any_store.get_many([f"k {rank}", "absent", f"k {rank}", f"k {rank}", "absent"])
        assert [None if each is None else each.tobytes() for each in found] == [b"333", None, b"333", b"333", None]
        outs = [bytearray(3) for _ in range(3)]
        assert any_store.get_many([f"k {rank}"] * 3, outs) == [3, 3, 3]
        assert outs == [b"333"] * 3
        assert any_store.contains_many([f"k {rank}", "absent", f"k {rank}"]).tolist() == [True, False, True]


def test_more_keys_than_one_flush_takes(any_store: Store, comm: MPI.Intracomm) -> None:
    count = 300
    keys = np.arange(count, dtype=np.uint64) + np.uint64(10_000 * comm.rank)
    assert all(any_store.put_many(keys, [np.array([key, 1], np.uint64) for key in keys]))
    comm.Barrier()
    for rank in range(comm.size):
        asked = np.arange(count + 50, dtype=np.uint64) + np.uint64(10_000 * rank)
        found = any_store.get_many(asked)
        assert [each is not None for each in found] == [True] * count + [False] * 50
        assert all((each == (key, 1)).all() for key, each in zip(asked, found[:count], strict=False))
        outs = np.zeros((count, 2), np.uint64)
        assert any_store.get_many(asked[:count], list(outs)) == [16] * count
        np.testing.assert_array_equal(outs[:, 0], asked[:count])
        assert any_store.contains_many(asked).tolist() == [True] * count + [False] * 50


def test_sizes_from_nothing_to_a_mebibyte(any_store: Store, comm: MPI.Intracomm) -> None:
    sizes = [0, 1, 100, 4096, 4097, 65_536, 300_001, 1 << 20]
    assert all(any_store.put_many([f"{comm.rank} {n}" for n in sizes], [block(n + comm.rank, n) for n in sizes]))
    comm.Barrier()
    pairs = [(rank, n) for n in sizes for rank in range(comm.size)]
    for (rank, n), each in zip(pairs, any_store.get_many([f"{rank} {n}" for rank, n in pairs]), strict=True):
        np.testing.assert_array_equal(each, block(n + rank, n))


def test_a_wrong_buffer_does_not_spoil_the_others(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put_many([f"{comm.rank} {n}" for n in range(5)], [block(n, 100 + n) for n in range(5)])
    comm.Barrier()
    rank = (comm.rank + 1) % comm.size
    outs = [np.zeros(100 + n if n != 2 else 7, np.uint8) for n in range(5)]
    with pytest.raises(BufferSizeError) as caught:
        any_store.get_many([f"{rank} {n}" for n in range(5)], outs)
    assert "7 bytes" in str(caught.value)
    assert "102 bytes" in str(caught.value)
    assert "key number 2" in "".join(caught.value.__notes__)
    for n in (0, 1, 3, 4):
        np.testing.assert_array_equal(outs[n], block(n, 100 + n))


def test_lengths_must_agree(any_store: Store) -> None:
    with pytest.raises(ValueError, match="2 keys and 1 blocks"):
        any_store.put_many(["a", "b"], [b""])
    with pytest.raises(ValueError, match="1 keys and 2 buffers"):
        any_store.get_many(["a"], [bytearray(), bytearray()])
    with pytest.raises(TypeError, match="one key"):
        any_store.get_many("abc")
    assert not any_store.contains_many(["a", "b"]).any()


def test_options_of_a_batch(any_store: Store, comm: MPI.Intracomm) -> None:
    keys = [f"{comm.rank} {n}" for n in range(4)]
    any_store.put_many(keys, [b"one"] * 4, namespace="space", is_prefix=True)
    kept = any_store.put_many([*keys, f"{comm.rank} new"], [b"two"] * 5, namespace="space", exists="keep")
    assert [(each.kept, each.stored) for each in kept] == [(True, False)] * 4 + [(False, True)]
    with pytest.raises(KeyExistsError):
        any_store.put_many(keys, [b"three"] * 4, namespace="space", exists="error")
    comm.Barrier()
    rank = (comm.rank + 1) % comm.size
    asked = [f"{rank} {n}" for n in range(4)]
    assert [each.tobytes() for each in any_store.get_many(asked, namespace="space")] == [b"one"] * 4
    assert any_store.get_many(asked) == [None] * 4
    assert any_store.contains_many(asked, namespace="space").all()
    assert not any_store.contains_many(asked).any()
    assert all(any_store.locate(key, namespace="space").is_prefix for key in asked)


def test_a_batch_beside_its_own_deferred_puts(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, publish="deferred")
    keys = [f"{comm.rank} {n}" for n in range(6)]
    store.put_many(keys, [block(n, 10 + n) for n in range(6)])
    for n, each in enumerate(store.get_many(keys)):
        np.testing.assert_array_equal(each, block(n, 10 + n))
    store.put_many(keys, [block(n, 20 + n) for n in range(6)])
    assert store.contains_many(keys).all()
    assert [store.get(key).nbytes for key in keys] == [20 + n for n in range(6)]


def test_a_batch_knows_what_exists_may_be(store: Store, comm: MPI.Intracomm) -> None:
    assert store.put(comm.rank, b"first")
    for wrong in ("overwrite", None, True):
        with pytest.raises(ValueError, match=r'exists is .*: it must be "replace", "keep" or "error"'):
            store.put_many([comm.rank, 100 + comm.rank], [b"next"] * 2, exists=wrong)  # type: ignore[arg-type]
    assert not store.contains(100 + comm.rank)
    comm.Barrier()
