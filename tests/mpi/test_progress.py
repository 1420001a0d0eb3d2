"""A rank that computes for a second, outside MPI, while its peers read from it and publish at it.

Rank 0 computes: in pure Python, in compiled code that holds the GIL, and in compiled code that does not.
It computes until a second has passed and the peers have said that what need not wait is done, so the
tests compare no durations: an operation that waits for rank 0 lets it run into its limit.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numba
import numpy as np
import pytest
from mpi4py import MPI
from patterns import block, keys_at

from cascade_mpi import selftest
from cascade_mpi.fabric import Fabric
from cascade_mpi.store import Store

pytestmark = [pytest.mark.usefixtures("no_other_stores"), pytest.mark.alone]

SECOND = 1_000_000_000
LIMIT = 20 * SECOND  # how long rank 0 waits for what must not wait for it
LEAST = SECOND // 4  # and computes in any case
BLOCKS = 6

MODES, COMPUTATIONS = ("auto", "thread", "none"), ("python", "numba-gil", "numba-nogil")
PAIRS = [(mode, computation) for mode in MODES for computation in COMPUTATIONS]
if MPI.COMM_WORLD.size > 2:  # each mode and each computation, not each pair: those are met on two ranks
    PAIRS = [pair for pair in PAIRS if "auto" in pair or "python" in pair]

_clock = ctypes.CDLL(None).clock_gettime
_clock.argtypes = [ctypes.c_int, ctypes.c_void_p]
_clock.restype = ctypes.c_int
_MONOTONIC = 1


def compute_in_python(done: np.ndarray, clock: np.ndarray) -> int:
    """Compute for LEAST and until every entry of `done` is set, at most LIMIT: nanoseconds."""
    began = time.monotonic_ns()
    while True:
        sum(range(1000))
        took = time.monotonic_ns() - began
        if (took > LEAST and done.all()) or took > LIMIT:
            return took


def _compute(done, clock):  # type: ignore[no-untyped-def]
    _clock(_MONOTONIC, clock.ctypes)
    began = clock[0] * 1_000_000_000 + clock[1]
    while True:
        _clock(_MONOTONIC, clock.ctypes)  # a call into C: the entries of `done` are loaded again after it
        took = clock[0] * 1_000_000_000 + clock[1] - began
        missing = 0
        for each in done:
            if each == 0:
                missing += 1
        if (took > 250_000_000 and missing == 0) or took > 20_000_000_000:
            return took


@pytest.fixture(scope="module")
def computations() -> dict[str, Callable[[np.ndarray, np.ndarray], int]]:
    signature = "int64(int64[::1], int64[::1])"
    return {
        "python": compute_in_python,
        "numba-gil": numba.njit(signature, nogil=False)(_compute),
        "numba-nogil": numba.njit(signature, nogil=True)(_compute),
    }


@pytest.fixture
def flags(comm: MPI.Intracomm, tmp_path: Path) -> Iterator[np.ndarray]:
    """int64[2, ranks] in a file that all ranks have mapped: rank 0 computes, and a peer has done its part."""
    path = comm.bcast(str(tmp_path / "flags"))
    if comm.rank == 0:
        np.zeros(2 * comm.size, np.int64).tofile(path)
    comm.Barrier()
    made = np.memmap(path, np.int64, "r+", shape=(2, comm.size))
    yield np.asarray(made)
    del made


def proceeds(store: Store, what: str, computation: str, comm: MPI.Intracomm) -> bool:
    """Must an operation of this rank at rank 0 be done while rank 0 computes?"""
    report = store.report()
    path = "node" if 0 in report["ranks_on_node"] else "remote"
    if report["self_test"][path][f"{what}_one_sided"]:
        return True
    thread_runs = report["progress"]["thread"] and computation != "numba-gil"
    return bool(thread_runs)


@pytest.mark.parametrize(("progress", "computation"), PAIRS)
def test_peers_of_a_rank_that_computes(
    open_store: Callable[..., Store],
    comm: MPI.Intracomm,
    flags: np.ndarray,
    computations: dict[str, Callable[[np.ndarray, np.ndarray], int]],
    progress: str,
    computation: str,
    assert_all: Callable[..., None],
) -> None:
    if comm.size == 1:
        with Store(comm, dram_bytes="1MiB", progress=progress) as alone:
            assert alone.report()["self_test"] == {}
        pytest.skip("a rank without peers")
    store = open_store(comm, progress=progress)
    thread = store.report()["progress"]["thread"]
    assert thread == (progress == "thread" or (progress == "auto" and thread))
    at_target = keys_at(store, 0)  # words on rank 0
    held = list(islice(at_target, BLOCKS))
    mine = list(islice(at_target, BLOCKS * comm.size))[comm.rank :: comm.size]
    if comm.rank == 0:
        for key in held:
            store.put(key, block(key, 20_000))
    # Asked now: the report reads at rank 0, and may wait for it then.
    gets, puts = (comm.rank != 0 and proceeds(store, what, computation, comm) for what in ("get", "cas"))
    comm.Barrier()
    began, done = flags
    ended, late = 0, 0
    if comm.rank == 0:
        done[0] = 1
        clock = np.zeros(2, np.int64)
        began[0] = 1
        took = computations[computation](done, clock)
        ended = time.monotonic_ns()
        assert took > LEAST
        late = 4 * int(took > LIMIT)
    else:
        while not began[0]:
            time.sleep(0)
        if not gets:
            done[comm.rank] = 1
        for key in held:
            np.testing.assert_array_equal(store.get(key), block(key, 20_000))
        got = time.monotonic_ns()
        if not puts:
            done[comm.rank] = 1
        for key in mine:
            assert store.put(key, block(key, 3000))
        put = time.monotonic_ns()
        done[comm.rank] = 1
    ended = comm.bcast(ended)
    if comm.rank != 0:
        late = int(gets and got > ended) + 2 * int(puts and put > ended)
    assert_all(comm, late == 0, ("", "gets", "puts", "gets and puts", "a peer")[late] + " waited for rank 0")
    comm.Barrier()
    everything = list(islice(keys_at(store, 0), BLOCKS + BLOCKS * comm.size))
    for key in everything[BLOCKS:]:
        owner = everything[BLOCKS:].index(key) % comm.size
        found = store.get(key)
        if owner == 0:
            assert found is None
        else:
            np.testing.assert_array_equal(found, block(key, 3000))
    store.check()


@pytest.mark.parametrize("progress", ["auto", "thread", "none"])
def test_a_rank_that_computes_serves_with_progress(
    open_store: Callable[..., Store], comm: MPI.Intracomm, flags: np.ndarray, progress: str
) -> None:
    """In every mode a program that calls `progress()` between its steps lets all puts proceed."""
    store = open_store(comm, progress=progress)
    key = next(islice(keys_at(store, 0), comm.rank, None))
    _, done = flags
    comm.Barrier()
    if comm.rank == 0:
        done[0] = 1
        deadline = time.monotonic_ns() + LIMIT
        while not done.all() and time.monotonic_ns() < deadline:
            sum(range(10_000))
            store.progress()
        assert done.all()
    else:
        assert store.put(key, np.array([comm.rank]))
        assert store.delete(key)
        assert store.put(key, np.array([comm.rank, comm.rank]))
        done[comm.rank] = 1
    comm.Barrier()
    for rank in range(1, comm.size):
        assert store.get(next(islice(keys_at(store, 0), rank, None))).tolist() == [rank, rank]


def test_public_calls_of_the_target_are_enough(
    open_store: Callable[..., Store], comm: MPI.Intracomm, flags: np.ndarray
) -> None:
    """Without a thread a target that only reads its own blocks still lets its peers' puts proceed."""
    store = open_store(comm, progress="none")
    keys = list(islice(keys_at(store, 0), comm.size))
    if comm.rank == 0:
        store.put("own", b"v")
    comm.Barrier()
    _, done = flags
    if comm.rank == 0:
        done[0] = 1
        deadline = time.monotonic_ns() + LIMIT
        out = bytearray(1)
        while not done.all() and time.monotonic_ns() < deadline:
            assert store.get("own", out) == 1
        assert done.all()
    else:
        assert store.put(keys[comm.rank], b"v")
        done[comm.rank] = 1
    comm.Barrier()
    assert store.contains_many(keys).tolist() == [False] + [True] * (comm.size - 1)


def test_futures_hide_the_wait(open_store: Callable[..., Store], comm: MPI.Intracomm, flags: np.ndarray) -> None:
    """A put_async at a rank that computes returns at once; the program goes on and the future ends later."""
    store = open_store(comm, progress="none")
    keys = list(islice(keys_at(store, 0), comm.size))
    comm.Barrier()
    began, done = flags
    if comm.rank == 0:
        done[0] = 1
        began[0] = 1
        assert compute_in_python(done, done) < LIMIT  # the peers said so: their calls had returned
    else:
        while not began[0]:
            time.sleep(0)
        future = store.put_async(keys[comm.rank], np.array([comm.rank]))
        done[comm.rank] = 1
    comm.Barrier()  # enters MPI on rank 0
    if comm.rank != 0:
        assert future.result(timeout=60).stored
    comm.Barrier()
    for rank in range(1, comm.size):
        assert store.get(keys[rank]).tolist() == [rank]


def test_publish_needs_no_thread(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, progress="none", publish="deferred")
    keys = list(islice(keys_at(store, 0), comm.size))
    for turn in range(3):
        store.put(keys[comm.rank], np.array([comm.rank, turn]))
        compute_in_python(np.ones(1, np.int64), np.zeros(2, np.int64)) if turn == 0 and comm.rank == 0 else None
        assert store.publish() == 1
        for rank in range(comm.size):
            assert store.get(keys[rank]).tolist() == [rank, turn]
        comm.Barrier()


@pytest.mark.usefixtures("every_self_test")
def test_the_report_says_what_was_chosen(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    waits = {}
    for progress in ("none", "auto", "thread"):
        report = open_store(comm, progress=progress).report()
        waits[progress] = any(not each["cas_one_sided"] for each in report["self_test"].values())
        expected = {"none": False, "thread": True, "auto": waits[progress]}[progress]
        assert report["progress"]["thread"] == expected, report["progress"]
        assert progress in report["progress"]["reason"]


@pytest.mark.usefixtures("every_self_test")
def test_a_prober_that_comes_too_late_proves_nothing(
    open_store: Callable[..., Store], comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test must not take what rank 0 did after its busy spell for one-sided: then no thread would start."""
    read = selftest._read

    def read_late(fabric: Fabric, word: int) -> int:
        while (mark := read(fabric, selftest._MARK)) == 0 or mark % 2:
            pass  # rank 0 has not begun, or is busy
        return read(fabric, word)

    monkeypatch.setattr(selftest, "_read", read_late)
    report = open_store(comm, progress="auto").report()
    for path, found in report["self_test"].items():
        assert not found["get_one_sided"], path
        assert not found["cas_one_sided"], path
    assert report["progress"]["thread"] == (comm.size > 1)


@pytest.mark.usefixtures("every_self_test")
def test_the_thread_of_another_store_does_not_mislead(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    """That thread may end first: the self-test of the second store must not count on it."""
    first = open_store(comm, progress="none")
    expected = {path: found["cas_one_sided"] for path, found in first.report()["self_test"].items()}
    threaded = open_store(comm, progress="thread", progress_period_us=1)
    second = open_store(comm, progress="auto").report()
    assert threaded.report()["progress"]["thread"]
    assert {path: found["cas_one_sided"] for path, found in second["self_test"].items()} == expected
    assert second["progress"]["thread"] == (not all(expected.values()))
