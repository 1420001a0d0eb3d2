"""Copies by one and by several threads: every byte, none beside them, and who copies."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi import copier as copier_module
from cascade_mpi.copier import SHARED_BYTES, Copier
from cascade_mpi.errors import ConfigError
from cascade_mpi.kernels.checksum import CHUNK, checksum_twin
from cascade_mpi.kernels.copy import GROUP, STREAM_BYTES, copy_bytes, copy_twin

GUARD = 256  # bytes before and after the target, more than any store of a kernel
MOST = 3 * CHUNK + 70_000
SIZES = [
    0, 1, 7, 63, 64, 65, 4095, 4096, STREAM_BYTES - 1, STREAM_BYTES, STREAM_BYTES + 1, STREAM_BYTES + 63,
    STREAM_BYTES + GROUP - 1, STREAM_BYTES + GROUP + 65, (1 << 20) + 4097,
]  # fmt: skip
LARGE = [SHARED_BYTES - 1, SHARED_BYTES, SHARED_BYTES + 1, CHUNK + 100, 2 * CHUNK, 2 * CHUNK + 65, MOST]
SHIFTS = [(0, 0), (0, 1), (16, 0), (1, 63), (63, 1), (33, 17)]  # target, source


class Bench:
    """A source of random bytes and a target with guards, both at chosen alignments."""

    def __init__(self, most: int) -> None:
        self.source = aligned(most + 64)
        self.source[:] = np.random.default_rng(7).integers(0, 256, self.source.size, np.uint8)
        self.target = aligned(most + 64 + 2 * GUARD)

    def check(self, copy, nbytes: int, target_shift: int, source_shift: int) -> object:
        """Copy, then compare the whole target with what the twin makes of it."""
        begin = GUARD + target_shift
        used = self.target[: begin + nbytes + GUARD]
        source = self.source[source_shift : source_shift + nbytes]
        used[:] = 0xA5
        expected = used.copy()
        copy_twin(expected[begin:], source)
        result = copy(self.target.ctypes.data + begin, self.source.ctypes.data + source_shift, nbytes)
        np.testing.assert_array_equal(used, expected)
        return result


def aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + 4096, np.uint8)
    return memory[-memory.ctypes.data % 4096 :][:nbytes]


def copying_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cascade-copy")]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(MOST)


@pytest.mark.parametrize("shifts", SHIFTS)
@pytest.mark.parametrize("nbytes", SIZES)
def test_copy_moves_every_byte_and_no_other(bench, nbytes, shifts):
    bench.check(copy_bytes, nbytes, *shifts)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 3 * STREAM_BYTES), st.integers(0, 63), st.integers(0, 63))
def test_copy_of_any_size_at_any_alignment(nbytes, target_shift, source_shift):
    Bench(3 * STREAM_BYTES).check(copy_bytes, nbytes, target_shift, source_shift)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("nbytes", LARGE)
def test_threads_copy_the_same(bench, threads, nbytes):
    copier = Copier(threads)
    for target_shift, source_shift in SHIFTS[1:3]:
        bench.check(copier.copy, nbytes, target_shift, source_shift)
    copier.close()


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("nbytes", [0, 65, *LARGE])
def test_threads_copy_with_the_same_checksum(bench, threads, nbytes):
    copier = Copier(threads)
    found = bench.check(copier.copy_checksum, nbytes, 16, 1)
    copier.close()
    assert found == checksum_twin(bench.source[1 : 1 + nbytes])


@pytest.mark.parametrize(
    ("method", "nbytes", "expected"),
    [
        ("copy", MOST, 3),
        ("copy", 3 * (2 << 20), 3),  # no fourth share for the bytes that the alignment of the others leaves over
        ("copy", SHARED_BYTES, 3),
        ("copy_checksum", MOST, 2),  # four chunks
        ("copy_checksum", 3 * CHUNK, 3),
    ],
)
def test_shares_cover_the_block_once_and_no_more_than_there_are_threads(bench, monkeypatch, method, nbytes, expected):
    shares: list[tuple[int, int]] = []
    begin = bench.target.ctypes.data

    def note(target, source, nbytes, *words):
        shares.append((target - begin, target - begin + nbytes))

    monkeypatch.setattr(copier_module, "copy_bytes", note)
    monkeypatch.setattr(copier_module, "copy_chunks_bytes", note)
    copier = Copier(3)
    getattr(copier, method)(begin + 16, bench.source.ctypes.data, nbytes)
    copier.close()
    shares.sort()
    assert len(shares) == expected
    assert shares[0][0] == 16 and shares[-1][1] == 16 + nbytes
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(shares))
    if method == "copy":
        assert all(start % 64 == 0 for start, _ in shares[1:]), "the target of a share begins with a whole line"
    else:
        assert all((start - 16) % CHUNK == 0 for start, _ in shares)


def test_the_pool_works_on_large_copies_only_and_ends_with_close(bench):
    copier = Copier(3)
    bench.check(copier.copy, SHARED_BYTES - 1, 0, 0)
    assert not copying_threads()
    bench.check(copier.copy, 2 * SHARED_BYTES, 0, 0)
    assert 1 <= len(copying_threads()) <= 2
    copier.close()
    assert not copying_threads()
    copier.close()
    bench.check(copier.copy, 2 * SHARED_BYTES, 0, 0)
    assert not copying_threads(), "a closed copier copies in the calling thread"


def test_one_thread_has_no_pool(bench):
    copier = Copier(1)
    bench.check(copier.copy, 2 * SHARED_BYTES, 0, 0)
    assert not copying_threads()
    copier.close()


def test_several_threads_share_one_copier(bench):
    copier = Copier(2)
    targets = [aligned(2 * CHUNK + 9) for _ in range(3)]
    found: list[int] = []

    def work(target):
        found.append(copier.copy_checksum(target.ctypes.data, bench.source.ctypes.data, target.size))

    callers = [threading.Thread(target=work, args=(target,)) for target in targets]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    copier.close()
    expected = bench.source[: 2 * CHUNK + 9]
    assert found == [checksum_twin(expected)] * 3
    assert all(np.array_equal(target, expected) for target in targets)


@pytest.mark.parametrize(
    ("cores", "ranks", "threads", "reason"),
    [
        (8, 1, 8, "auto: 8 cores for 1 rank"),
        (8, 3, 2, "auto: 8 cores for 3 ranks"),
        (2, 2, 1, "auto: 2 cores for 2 ranks"),
        (1, 4, 1, "auto: 1 core for 4 ranks, oversubscribed"),
    ],
)
def test_auto_divides_the_cores_among_their_ranks(monkeypatch, cores, ranks, threads, reason):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    copier = Copier("auto", ranks)
    copier.close()
    assert (copier.threads, copier.reason) == (threads, reason)


def test_a_set_number_is_taken_and_said():
    copier = Copier(3, ranks_on_cpuset=64)
    copier.close()
    assert (copier.threads, copier.reason) == (3, "copy_threads=3 was set")


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "all"])
def test_what_is_no_number_of_threads_is_named(threads):
    with pytest.raises(ConfigError, match=f"copy_threads is {threads!r}"):
        Copier(threads)


def test_no_ranks_is_an_error():
    with pytest.raises(ConfigError, match="0 ranks share"):
        Copier("auto", 0)


def test_an_error_leaves_no_thread_behind_that_still_writes(bench, monkeypatch):
    done = []
    failing = threading.Event()

    def fail_first(target, source, nbytes):
        if target == bench.target.ctypes.data:
            failing.set()
            raise OSError("the first share fails")
        failing.wait()
        copy_bytes(target, source, nbytes)
        done.append(target)

    monkeypatch.setattr(copier_module, "copy_bytes", fail_first)
    copier = Copier(3)
    with pytest.raises(OSError, match="first share"):
        copier.copy(bench.target.ctypes.data, bench.source.ctypes.data, 3 * CHUNK)
    assert len(done) == 2
    copier.close()


def test_a_forked_child_copies_alone():
    code = """
        import os, sys, threading
        import numpy as np
        from cascade_mpi.copier import Copier
        source, target = np.arange(1 << 20, dtype=np.uint64), np.zeros(1 << 20, np.uint64)
        copier = Copier(2)
        copier.copy(target.ctypes.data, source.ctypes.data, target.nbytes)
        target[:] = 0
        child = os.fork()
        if child == 0:
            copier.copy(target.ctypes.data, source.ctypes.data, target.nbytes)
            copier.close()
            os._exit(10 if np.array_equal(source, target) and threading.active_count() == 1 else 11)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """  # the parent ends without close(): that must not hang either
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "10\n"), ended.stderr


def test_splits_says_whether_threads_share_a_copy():
    one, two = Copier(1), Copier(2)
    assert not one.splits(SHARED_BYTES)
    assert two.splits(SHARED_BYTES) and not two.splits(SHARED_BYTES - 1)
    two.close()
    assert not two.splits(SHARED_BYTES)
