"""Single blocks on any number of ranks: put, get, ranges, look-ups, delete, replace, and their refusals.

Each test runs in both window layouts, with MPI called from the kernels and from Python.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block, keys_at

from cascade_mpi.batch import _empty_as
from cascade_mpi.errors import BufferSizeError, ConfigError, KeyExistsError, NotConfiguredError, StoreClosedError
from cascade_mpi.layout import DESCRIPTOR, DESCRIPTOR_BYTES
from cascade_mpi.store import Store
from cascade_mpi.values import source

SIZES = (1, 63, 64, 65, 4095, 4096, 4097, 100_003, 1 << 20)


@pytest.mark.core
def test_every_rank_reads_what_every_rank_put(any_store: Store, comm: MPI.Intracomm) -> None:
    for number, nbytes in enumerate(SIZES):
        result = any_store.put(f"{comm.rank}/{number}", block(100 * comm.rank + number, nbytes))
        assert (result.stored, result.bytes, result.tier) == (True, nbytes, "dram")
    comm.Barrier()
    for rank in range(comm.size):
        for number, nbytes in enumerate(SIZES):
            expected = block(100 * rank + number, nbytes)
            np.testing.assert_array_equal(any_store.get(f"{rank}/{number}"), expected)
            out = np.full(nbytes, 0xA5, np.uint8)
            assert any_store.get(f"{rank}/{number}", out) == nbytes
            np.testing.assert_array_equal(out, expected)


@pytest.mark.core
def test_a_rank_sees_its_own_writes_at_once(any_store: Store, comm: MPI.Intracomm) -> None:
    for version in range(30):
        any_store.put(f"mine {comm.rank}", np.full(5000 + version, version))
        found = any_store.get(f"mine {comm.rank}")
        assert found.shape == (5000 + version,)
        assert (found == version).all()


def test_the_lines_of_the_documentation(any_store: Store, comm: MPI.Intracomm) -> None:
    array = np.arange(3 * 4 * 5, dtype=np.float16).reshape(3, 4, 5)
    if comm.rank == 0:
        assert any_store.put("sys_prompt", array, is_prefix=True)
    comm.Barrier()
    out = np.zeros_like(array)
    assert any_store.get("sys_prompt", out) == array.nbytes
    np.testing.assert_array_equal(out, array)


@pytest.mark.core
def test_a_miss_is_none_or_false(any_store: Store) -> None:
    out = bytearray(10)
    assert any_store.get("absent") is None
    assert any_store.get("absent", out) is None
    assert any_store.get_range("absent", 0, 10) is None
    assert any_store.get_range("absent", 0, 10, out) is None
    assert any_store.contains("absent") is False
    assert any_store.locate("absent") is None
    assert any_store.view("absent") is None
    assert any_store.pin("absent") is None
    assert any_store.delete("absent") is False


def test_empty_bytes_are_a_value(any_store: Store, comm: MPI.Intracomm) -> None:
    assert any_store.put(f"empty {comm.rank}", b"").stored
    comm.Barrier()
    for rank in range(comm.size):
        found = any_store.get(f"empty {rank}")
        assert found is not None
        assert found.shape == (0,)
        got = any_store.get(f"empty {rank}", bytearray())
        assert got == 0
        assert got is not None
        assert any_store.contains(f"empty {rank}")
        assert any_store.get_range(f"empty {rank}", 0, 0).nbytes == 0


@pytest.mark.parametrize("wrong", [0, 1, 999, 1001, 100_000])
def test_a_buffer_of_another_size(any_store: Store, comm: MPI.Intracomm, wrong: int) -> None:
    any_store.put(f"thousand {comm.rank}", block(comm.rank, 1000))
    comm.Barrier()
    for rank in range(comm.size):
        with pytest.raises(BufferSizeError) as caught:
            any_store.get(f"thousand {rank}", np.empty(wrong, np.uint8))
        assert f"{wrong} bytes" in str(caught.value)
        assert "1000 bytes" in str(caught.value)
        np.testing.assert_array_equal(any_store.get(f"thousand {rank}"), block(rank, 1000))


def test_out_may_be_any_writable_buffer(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"block {comm.rank}", block(7 + comm.rank, 4096))
    comm.Barrier()
    rank = (comm.rank + 1) % comm.size
    expected = block(7 + rank, 4096)
    memory = bytearray(4096 + 3)
    assert any_store.get(f"block {rank}", memoryview(memory)[3:]) == 4096  # an unaligned one
    assert bytes(memory[3:]) == expected.tobytes()
    wide = np.zeros((64, 16), np.int32)
    assert any_store.get(f"block {rank}", wide) == 4096
    assert wide.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        any_store.get(f"block {rank}", bytes(4096))
    with pytest.raises(ValueError, match="contiguous"):
        any_store.get(f"block {rank}", np.zeros((4096, 2), np.uint8)[:, 0])


@pytest.mark.core
def test_ranges(any_store: Store, comm: MPI.Intracomm) -> None:
    nbytes = 50_000
    any_store.put(f"long {comm.rank}", block(comm.rank, nbytes))
    comm.Barrier()
    for rank in range(comm.size):
        expected = block(rank, nbytes)
        for offset, length in ((0, 1), (0, nbytes), (4095, 2), (12_345, 20_000), (nbytes - 1, 1), (nbytes, 0)):
            found = any_store.get_range(f"long {rank}", offset, length)
            np.testing.assert_array_equal(found, expected[offset : offset + length])
        out = np.zeros(777, np.uint8)
        assert any_store.get_range(f"long {rank}", 41, 777, out) == 777
        np.testing.assert_array_equal(out, expected[41 : 41 + 777])
        for offset, length in ((nbytes, 1), (nbytes - 1, 2), (0, nbytes + 1), (1 << 40, 1)):
            with pytest.raises(BufferSizeError, match=str(nbytes)):
                any_store.get_range(f"long {rank}", offset, length)
        with pytest.raises(BufferSizeError, match=r"776.*777"):
            any_store.get_range(f"long {rank}", 0, 777, np.zeros(776, np.uint8))
        for offset, length in ((-1, 1), (0, -1)):
            with pytest.raises(ValueError, match="negative"):
                any_store.get_range(f"long {rank}", offset, length)


@pytest.mark.core
def test_contains_exactly_or_by_fingerprint(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(8):
        any_store.put(comm.rank * 1000 + number, b"x")
    comm.Barrier()
    for rank in range(comm.size):
        for number in range(8):
            assert any_store.contains(rank * 1000 + number)
            assert any_store.contains(rank * 1000 + number, exact=False)
    absent = [any_store.contains(10**9 + number) for number in range(200)]
    assert not any(absent)
    claimed = [any_store.contains(10**9 + number, exact=False) for number in range(200)]
    assert sum(claimed) <= 10  # about one in 1,000 is expected in a loaded bucket


@pytest.mark.core
def test_locate_says_where_and_what(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"at {comm.rank}", np.zeros((2, 0, 3), np.float32), is_prefix=comm.rank == 0)
    comm.Barrier()
    for rank in range(comm.size):
        where = any_store.locate(f"at {rank}")
        assert (where.tier, where.rank, where.nbytes, where.dtype) == ("dram", rank, 0, "float32")
        assert where.shape == (2, 0, 3)
        assert where.is_prefix == (rank == 0)
        on_node = rank in any_store.report()["ranks_on_node"]
        assert where.path == ("self" if rank == comm.rank else "node" if on_node else "remote")


@pytest.mark.core
def test_delete_by_anybody(any_store: Store, comm: MPI.Intracomm) -> None:
    any_store.put(f"own {comm.rank}", block(1, 3000))
    any_store.put(f"strange {comm.rank}", block(2, 3000))
    comm.Barrier()
    assert any_store.delete(f"own {comm.rank}") is True
    assert any_store.delete(f"strange {(comm.rank + 1) % comm.size}") is True
    comm.Barrier()
    for rank in range(comm.size):
        for name in ("own", "strange"):
            assert any_store.get(f"{name} {rank}") is None
            assert not any_store.contains(f"{name} {rank}")
            assert any_store.delete(f"{name} {rank}") is False
    comm.Barrier()
    any_store.put(f"own {comm.rank}", block(3, 10))
    np.testing.assert_array_equal(any_store.get(f"own {comm.rank}"), block(3, 10))


def test_one_delete_of_many_takes_the_block(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(10):
        if comm.rank == number % comm.size:
            any_store.put(f"victim {number}", block(number, 100))
        comm.Barrier()
        taken = any_store.delete(f"victim {number}")
        assert comm.allreduce(int(taken)) == 1
        assert not any_store.contains(f"victim {number}")


@pytest.mark.core
def test_replace_by_anybody_in_any_size(any_store: Store, comm: MPI.Intracomm) -> None:
    for version, nbytes in enumerate((100, 0, 70_000, 4096, 1)):
        if comm.rank == version % comm.size:
            assert any_store.put("shared", block(version, nbytes)).stored
        comm.Barrier()
        np.testing.assert_array_equal(any_store.get("shared"), block(version, nbytes))
        assert any_store.locate("shared").rank == version % comm.size
        comm.Barrier()


@pytest.mark.core
def test_two_ranks_put_one_key_and_all_read_the_same(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(25):
        comm.Barrier()
        any_store.put(f"contested {number}", np.full(200 + comm.rank, comm.rank, np.uint8))
        comm.Barrier()
        found = any_store.get(f"contested {number}")
        assert found is not None
        assert (found == found[0]).all()
        assert len(found) == 200 + found[0]
        everyone = comm.allgather(int(found[0]))
        assert len(set(everyone)) == 1, everyone
        comm.Barrier()
        if comm.rank == number % comm.size:
            assert any_store.delete(f"contested {number}")
        comm.Barrier()
        assert any_store.get(f"contested {number}") is None  # no second word came to light


def test_keep_and_error(any_store: Store, comm: MPI.Intracomm) -> None:
    first = any_store.put(f"key {comm.rank}", b"first", exists="keep")
    assert (first.stored, first.kept, bool(first)) == (True, False, True)
    comm.Barrier()
    rank = (comm.rank + 1) % comm.size
    kept = any_store.put(f"key {rank}", b"second", exists="keep")
    assert (kept.stored, kept.kept, kept.refused, bool(kept)) == (False, True, False, True)
    with pytest.raises(KeyExistsError, match="delete it first"):
        any_store.put(f"key {rank}", b"third", exists="error")
    with pytest.raises(ValueError, match="exists is 'perhaps'"):
        any_store.put(f"key {rank}", b"fourth", exists="perhaps")  # type: ignore[arg-type]
    comm.Barrier()
    assert any_store.get(f"key {comm.rank}").tobytes() == b"first"
    assert any_store.put(f"new {comm.rank}", b"fifth", exists="error").stored


def test_only_one_of_many_puts_with_error_succeeds(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(10):
        comm.Barrier()
        try:
            won = any_store.put(number, np.array([comm.rank]), exists="error").stored
        except KeyExistsError:
            won = False
        winners = [rank for rank, each in enumerate(comm.allgather(won)) if each]
        assert any_store.get(number)[0] in winners  # two that put at once may both, but one is read


def test_keys_of_every_kind(any_store: Store, comm: MPI.Intracomm) -> None:
    keys = ["text", b"text", "ünï", "", b"", 0, 5, (1 << 128) - 1, np.int64(6), np.uint64(1 << 63)]
    if comm.rank == comm.size - 1:
        for number, key in enumerate(keys):
            any_store.put(key, np.array([number]))
    comm.Barrier()
    assert [int(any_store.get(key)[0]) for key in keys] == list(range(len(keys)))
    out = np.zeros(1, np.int64)
    assert any_store.get(5, out) == 8
    assert out[0] == 6
    for bad in (1.5, None, True):
        with pytest.raises(TypeError, match="a key is"):
            any_store.get(bad, out)  # type: ignore[arg-type]
    for bad in (-1, 1 << 128):
        with pytest.raises(ValueError, match="2\\*\\*128"):
            any_store.get(bad, out)


def test_namespaces_separate_equal_keys(any_store: Store, comm: MPI.Intracomm) -> None:
    spaces = ["", "model-a", "model-b"]
    if comm.rank == 0:
        for number, space in enumerate(spaces):
            for key in ("k", 17):
                any_store.put(key, np.array([number]), namespace=space)
    comm.Barrier()
    for key in ("k", 17):
        assert [int(any_store.get(key, namespace=space)[0]) for space in spaces] == [0, 1, 2]
        assert any_store.get(key)[0] == 0
        assert any_store.get(key, namespace="model-c") is None
        assert not any_store.contains(key, namespace="model-c")
    comm.Barrier()
    if comm.rank == comm.size - 1:
        assert any_store.delete("k", namespace="model-a")
    comm.Barrier()
    assert any_store.get("k", namespace="model-a") is None
    assert any_store.get("k", namespace="model-b")[0] == 2


def test_the_namespace_of_the_store(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    one = open_store(comm, namespace="tenant")
    one.put(f"k {comm.rank}", b"tenant's")
    one.put(9 + comm.rank, b"number")
    comm.Barrier()
    for rank in range(comm.size):
        assert one.get(f"k {rank}").tobytes() == b"tenant's"
        assert one.get(f"k {rank}", namespace="tenant").tobytes() == b"tenant's"
        assert one.get(f"k {rank}", namespace="") is None
        assert one.get(9 + rank).tobytes() == b"number"
        assert one.get(9 + rank, namespace="") is None


def test_words_of_every_home(any_store: Store, comm: MPI.Intracomm) -> None:
    for home in range(comm.size):
        key = next(keys_at(any_store, home)) + 0
        if comm.rank == 0:
            any_store.put(key, np.array([home, 1234]))
        comm.Barrier()
        assert any_store.get(key).tolist() == [home, 1234]


@pytest.mark.core
def test_clear_takes_every_block(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(20):
        any_store.put(f"{comm.rank} {number}", block(number, 10_000), is_prefix=number == 0)
    comm.Barrier()
    any_store.clear()
    for rank in range(comm.size):
        assert not any(any_store.contains(f"{rank} {number}") for number in range(20))
    assert any_store.stats()["arena"]["live_bytes"] == 0
    assert any_store.stats()["blocks"] == 0
    comm.Barrier()
    any_store.put(f"{comm.rank} again", b"new")
    comm.Barrier()
    assert any_store.get(f"{(comm.rank + 1) % comm.size} again").tobytes() == b"new"


def test_clear_ends_before_what_is_put_afterwards(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(10):
        any_store.put(f"{comm.rank}", np.array([number]))
        any_store.clear()
        any_store.put(f"{comm.rank}", np.array([-number]))
        comm.Barrier()
        assert [int(any_store.get(f"{rank}")[0]) for rank in range(comm.size)] == [-number] * comm.size
        comm.Barrier()


def test_futures(any_store: Store, comm: MPI.Intracomm) -> None:
    puts = [any_store.put_async(f"{comm.rank} {number}", block(number, 3000 + number)) for number in range(20)]
    assert all(future.result().stored for future in puts)
    comm.Barrier()
    rank = (comm.rank + 1) % comm.size
    gets = [any_store.get_async(f"{rank} {number}") for number in range(20)]
    for number, future in enumerate(gets):
        np.testing.assert_array_equal(future.result(), block(number, 3000 + number))
    out = np.zeros(3005, np.uint8)
    assert any_store.get_async(f"{rank} 5", out).result() == 3005
    np.testing.assert_array_equal(out, block(5, 3005))
    assert any_store.get_async("absent").result() is None
    failed = any_store.get_async(f"{rank} 5", bytearray(1))
    assert isinstance(failed.exception(), BufferSizeError)
    kept = any_store.put_async(f"{rank} 5", b"", exists="keep")
    assert kept.result().kept


@pytest.mark.core
def test_statistics_count_exactly(any_store: Store, comm: MPI.Intracomm) -> None:
    before = any_store.stats()
    for number in range(7):
        any_store.put(f"{comm.rank} {number}", block(number, 1000))
    any_store.put(f"{comm.rank} 0", block(9, 500))
    any_store.put(f"{comm.rank} 0", block(9, 500), exists="keep")
    comm.Barrier()
    for rank in range(comm.size):
        for number in range(1, 7):
            any_store.get(f"{rank} {number}", bytearray(1000))
        any_store.get(f"{rank} absent")
        any_store.get(f"{rank} absent", bytearray(5))
    comm.Barrier()
    any_store.delete(f"{comm.rank} 6")
    comm.Barrier()
    after = any_store.stats()
    added = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
    gets = 6 * comm.size
    assert (added["puts"], added["bytes_put"], added["kept"], added["deletes"]) == (8, 7500, 1, 1)
    assert (added["hits"], added["misses"], added["bytes_got"]) == (gets, 2 * comm.size, 1000 * gets)
    assert added["gets"] == added["hits"] + added["misses"]
    assert added["blocks"] == 6
    node = len(any_store.report()["ranks_on_node"])
    paths = {path: after["tiers"][path]["gets"] - before["tiers"][path]["gets"] for path in after["tiers"]}
    # A key that earlier tests have read as well may be promoted by these reads: its copy is on this node.
    copied = after["copies"]["hits"] - before["copies"]["hits"]
    assert paths["remote"] == 6 * (comm.size - node) - copied
    assert paths["self"] + paths["node"] == 6 * node + copied
    if not copied:
        assert paths["self"] == 6
    everyone = any_store.stats_all()
    assert len(everyone) == comm.size
    assert everyone[comm.rank]["puts"] == after["puts"]


def test_the_arena_adds_up(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(9):
        any_store.put(f"{comm.rank} {number}", block(number, 9000 * number))
    arena = any_store.stats()["arena"]
    assert arena["live"] + arena["limbo"] + arena["free"] + arena["lent"] == arena["bytes"] == 8 << 20
    assert arena["live_bytes"] == 9000 * 36
    assert arena["live_bytes"] <= arena["live"]


def test_the_report_names_every_choice(any_store: Store, comm: MPI.Intracomm) -> None:
    report = any_store.report()
    assert report["ranks"] == comm.size
    assert report["windows"]["layout"] == any_store.config.windows
    assert report["mpi_calls"]["by"] == any_store.config.mpi_calls
    for choice in ("windows", "mpi_calls", "progress", "copy_threads"):
        assert report[choice]["reason"], choice
    assert set(report["windows"]["hints"]) == {"index", "data", "pins", "spaces"}
    paths = {"node"} if len(report["ranks_on_node"]) > 1 else set()
    assert set(report["self_test"]) >= paths
    assert all({"get_one_sided", "cas_one_sided"} <= set(each) for each in report["self_test"].values())
    assert report["thread_level"] in ("single", "funneled", "serialized", "multiple")
    assert report["arena"]["pages"] * report["arena"]["page_bytes"] == report["arena"]["bytes"]
    assert report["index"]["words"] == 16 * report["index"]["buckets"]
    for choice in (
        "checksum",
        "verify_reads",
        "when_full",
        "publish",
        "async",
        "mpi",
        "nodes",
        "kernel_cache",
        "namespaces",
    ):
        assert choice in report


def test_the_index_load_in_the_report(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(11):
        any_store.put(f"{comm.rank} {number}", b"")
    comm.Barrier()
    index = any_store.report()["index"]
    assert comm.allreduce(index["used"]) == 11 * comm.size
    assert index["load"] == index["used"] / index["words"]


def test_tiers_that_are_off_are_named(store: Store) -> None:
    with pytest.raises(NotConfiguredError, match="disk tier"):
        store.flush()
    with pytest.raises(NotConfiguredError, match="disk tier"):
        store.prefetch(["k"])


def test_a_closed_store_refuses_every_call(any_comm: MPI.Intracomm, open_store: Callable[..., Store]) -> None:
    closed = open_store(any_comm, progress="thread")
    closed.put("k", b"v")
    closed.close()
    closed.close()  # nothing the second time
    out = bytearray(1)
    calls: list[Callable[[], object]] = [
        lambda: closed.get("k"), lambda: closed.get("k", out), lambda: closed.get(1, out),
        lambda: closed.get_range("k", 0, 1), lambda: closed.contains("k"), lambda: closed.locate("k"),
        lambda: closed.view("k"), lambda: closed.pin("k"), lambda: closed.put("k", b"v"), lambda: closed.delete("k"),
        lambda: closed.get_many(["k"]), lambda: closed.put_many(["k"], [b"v"]), lambda: closed.contains_many(["k"]),
        lambda: closed.get_async("k"), lambda: closed.put_async("k", b"v"), closed.stats, closed.stats_all,
        closed.report, closed.check, closed.clear, closed.publish, closed.progress, closed.flush,
        lambda: closed.prefetch(["k"]), lambda: closed.protect("k"), lambda: closed.unprotect("k"),
        closed.scan, closed.scan_all, closed.delete_all, lambda: closed.delete_many(["k"]), closed.__enter__,
    ]  # fmt: skip
    for number, call in enumerate(calls):
        with pytest.raises(StoreClosedError, match="was closed"):
            call()
            pytest.fail(f"call number {number} was not refused")


def test_the_store_is_a_context_manager(any_comm: MPI.Intracomm) -> None:
    with Store(any_comm, dram_bytes="1MiB") as opened:
        opened.put("k", b"v")
        assert opened.get("k").tobytes() == b"v"
    with pytest.raises(StoreClosedError):
        opened.get("k")


def test_close_waits_for_futures(any_comm: MPI.Intracomm, open_store: Callable[..., Store]) -> None:
    busy = open_store(any_comm)
    futures = [busy.put_async(f"{any_comm.rank} {number}", block(number, 50_000)) for number in range(20)]
    busy.close()
    assert all(future.done() and future.exception() is None for future in futures)


@pytest.mark.parametrize("offset", [7, 8 << 20, 2**62, 2**63 - 1, 2**64, 2**70])
@pytest.mark.parametrize("nbytes", [10, 2**62])
def test_ranges_far_outside(any_store: Store, comm: MPI.Intracomm, offset: int, nbytes: int) -> None:
    """Their sum may not fit the kernel's integers; nothing is allocated for what cannot be there."""
    any_store.put(f"{comm.rank}", b"0123456789")
    comm.Barrier()
    for rank in range(comm.size):
        with pytest.raises(BufferSizeError, match=rf"{offset}\.\.{offset + nbytes} .* 10 bytes"):
            any_store.get_range(f"{rank}", offset, nbytes)
        if nbytes == 10:
            assert any_store.get_range(f"absent {rank}", offset, nbytes) is None
    comm.Barrier()


def test_what_goes_wrong_in_a_future_is_raised_by_its_result(
    any_store: Store, monkeypatch: pytest.MonkeyPatch, comm: MPI.Intracomm
) -> None:
    for level in (any_store._fabric.thread_level, MPI.THREAD_SERIALIZED):  # in another thread, and inline
        monkeypatch.setattr(any_store._fabric, "thread_level", level)
        future = any_store.put_async(f"{comm.rank}", object())
        assert isinstance(future.exception(), TypeError)


def test_a_torn_description_is_no_array() -> None:
    """A descriptor that is copied while it is written may have the size of one block and the shape of another."""
    descriptor = np.zeros(DESCRIPTOR_BYTES, np.uint8)
    record = descriptor.view(DESCRIPTOR)[0]
    record["dtype"], record["ndim"], record["dim0"] = source(np.zeros(1, np.float32)).dtype, 1, 5
    assert _empty_as(descriptor, 20).shape == (5,)
    assert _empty_as(descriptor, 24) is None
    record["dim0"] = 2**62
    assert _empty_as(descriptor, 20) is None
    record["ndim"] = 9
    assert _empty_as(descriptor, 20) is None
    record["ndim"], record["dtype"] = 1, 200
    assert _empty_as(descriptor, 20) is None


def test_a_refused_progress_thread_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, comm: MPI.Intracomm) -> None:
    opened: list[object] = []
    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_FUNNELED)
    monkeypatch.setattr("cascade_mpi.store_life.Fabric", lambda *_: opened.append(1))
    with pytest.raises(ConfigError, match="funneled"):
        Store(comm, dram_bytes="1MiB", progress="thread")
    assert not opened
