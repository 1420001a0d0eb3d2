"""The store inside another program: several stores, parts of the ranks, threads, deferred publishing.

What needs a job of its own (thread levels, forks, errors that end it) is in `tests/test_launch.py`.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from layouts import LAYOUTS
from mpi4py import MPI
from patterns import block, keys_at

from cascade_mpi.errors import StoreFullError
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone


def test_two_stores_at_once_do_not_mix(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    one = open_store(comm, windows=LAYOUTS[0])
    two = open_store(comm, windows="shared", dram_bytes="4MiB", progress="thread")
    for number in range(10):
        one.put(f"{comm.rank} {number}", block(number, 5000))
        two.put(f"{comm.rank} {number}", block(100 + number, 7000))
    one.put(f"only {comm.rank}", b"one")
    comm.Barrier()
    for rank in range(comm.size):
        for number in range(10):
            np.testing.assert_array_equal(one.get(f"{rank} {number}"), block(number, 5000))
            np.testing.assert_array_equal(two.get(f"{rank} {number}"), block(100 + number, 7000))
        assert one.contains(f"only {rank}")
        assert not two.contains(f"only {rank}")
    comm.Barrier()
    one.close()
    np.testing.assert_array_equal(two.get(f"{comm.rank} 3"), block(103, 7000))
    two.check()


def test_parts_of_the_ranks_have_stores_of_their_own(comm: MPI.Intracomm) -> None:
    part = comm.Split(comm.rank % 2, -comm.rank)  # other ranks, in the other order
    with Store(part, dram_bytes="1MiB" if comm.rank % 2 else "2MiB") as store:
        store.put(f"{part.rank}", np.array([comm.rank, part.rank]))
        part.Barrier()
        everyone = part.allgather(comm.rank)
        for rank, world_rank in enumerate(everyone):
            assert store.get(f"{rank}").tolist() == [world_rank, rank]
        assert store.get(f"{part.size}") is None
        assert store.report()["ranks"] == part.size
        store.check()
    part.Free()


def test_a_store_of_one_rank_beside_one_of_all(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    everyones, own = open_store(comm), open_store(MPI.COMM_SELF)
    everyones.put(f"{comm.rank}", b"shared")
    own.put("k", np.array([comm.rank]))
    comm.Barrier()
    assert own.get("k").tolist() == [comm.rank]
    assert all(everyones.contains(f"{rank}") for rank in range(comm.size))
    assert not own.contains(f"{comm.rank}")


def test_no_communicator_is_a_store_of_one_rank() -> None:
    with Store(dram_bytes="1MiB") as store:
        assert store.report()["ranks"] == 1
        store.put("k", b"v")
        assert store.get("k").tobytes() == b"v"


def test_the_communicator_remains_the_programs(comm: MPI.Intracomm) -> None:
    mine = comm.Dup()
    with Store(mine, dram_bytes="1MiB") as store:
        requests = [mine.irecv(source=rank, tag=5) for rank in range(mine.size)]
        for rank in range(mine.size):
            mine.send((mine.rank, "message"), rank, 5)
        store.put(f"{mine.rank}", b"v")
        received = [request.wait() for request in requests]
    assert received == [(rank, "message") for rank in range(mine.size)]
    assert mine.allreduce(1) == mine.size  # still usable after the store has gone
    mine.Free()


def test_threads_share_one_store(any_store: Store, comm: MPI.Intracomm) -> None:
    threads, rounds = 4, 25
    start = threading.Barrier(threads)

    def work(thread: int) -> int:
        start.wait()
        checked = 0
        for number in range(rounds):
            nbytes = 100 + 997 * ((thread + number) % 7)
            assert any_store.put(f"{comm.rank} {thread} {number}", block(thread * 1000 + number, nbytes))
            any_store.put(f"{comm.rank} all", np.full(3000 + thread, thread, np.uint8))
            shared = any_store.get(f"{comm.rank} all")
            assert (shared == len(shared) - 3000).all()
            back = number - 3
            if back >= 0:
                found = any_store.get(f"{comm.rank} {thread} {back}")
                np.testing.assert_array_equal(found, block(thread * 1000 + back, 100 + 997 * ((thread + back) % 7)))
                if back % 5 == 0:
                    assert any_store.delete(f"{comm.rank} {thread} {back}")
                    assert any_store.get(f"{comm.rank} {thread} {back}") is None
                checked += 1
            many = any_store.get_many([f"{comm.rank} {thread} {number}", "absent"])
            np.testing.assert_array_equal(many[0], block(thread * 1000 + number, nbytes))
            assert many[1] is None
        return checked

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(work, range(threads))) == [rounds - 3] * threads
    comm.Barrier()
    for rank in range(comm.size):
        for thread in range(threads):
            number = rounds - 1
            found = any_store.get(f"{rank} {thread} {number}")
            np.testing.assert_array_equal(found, block(thread * 1000 + number, 100 + 997 * ((thread + number) % 7)))


def test_threads_in_a_small_arena(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    """Puts of several threads evict and reuse cells while others read: whole values or misses, nothing else."""
    store = open_store(comm, dram_bytes="1MiB", rest_ms=0.1)
    wrong: list[object] = []

    def work(thread: int) -> None:
        rng = np.random.default_rng(100 * comm.rank + thread)
        for number in range(120):
            key = int(rng.integers(12))
            if rng.random() < 0.5:
                value = np.full(int(rng.integers(1, 100_000)), number % 251, np.uint8)
                value[0] = key
                store.put(f"small {key}", value)
            else:
                found = store.get(f"small {key}")
                if found is not None and (found[0] != key or (found[1:] != found[-1]).any()):
                    wrong.append((key, found))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert not wrong
    store.check()


def test_deferred_puts_are_seen_after_publish(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, publish="deferred")
    for turn in range(3):
        for number in range(5):
            result = store.put(f"{comm.rank} {number}", block(10 * turn + number, 400))
            assert result.stored
        comm.Barrier()
        for rank in range(comm.size):
            if rank != comm.rank:
                for number in range(5):
                    found = store.get(f"{rank} {number}")
                    assert found is None if turn == 0 else (found == block(10 * (turn - 1) + number, 400)).all()
        comm.Barrier()
        assert store.stats()["pending"] == 5
        store.check()
        assert store.publish() == 5
        assert store.stats()["pending"] == 0
        for rank in range(comm.size):
            for number in range(5):
                np.testing.assert_array_equal(store.get(f"{rank} {number}"), block(10 * turn + number, 400))
        comm.Barrier()
    assert store.publish() == 0


def test_a_rank_sees_its_own_deferred_puts(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, publish="deferred", when_full="refuse")
    name = f"mine {comm.rank}"
    store.put(name, b"one")
    assert store.get(name).tobytes() == b"one"
    store.put(name, b"two")
    store.put(name, b"three")  # takes the place of one that was never published
    assert store.contains(name)
    assert store.get_range(name, 1, 4).tobytes() == b"hree"
    store.put(name, b"four")
    assert store.locate(name).nbytes == 4
    store.put(name, b"five!")
    assert store.delete(name)
    assert store.get(name) is None
    store.put(name, b"six")
    assert store.put(name, b"seven", exists="keep").kept
    with pytest.raises(KeyError):
        store.put(name, b"eight", exists="error")
    comm.Barrier()
    store.publish()
    for rank in range(comm.size):
        assert store.get(f"mine {rank}").tobytes() == b"six"
    comm.Barrier()
    for number in range(300):  # never published, always replaced: their cells come back
        assert store.put("again", block(number, 100_000))
        assert store.put(f"{comm.rank} whole", np.zeros(1 << 20, np.uint8))
    store.clear()
    assert store.get("again") is None
    assert store.check()["words"] == 0


def test_deferred_puts_by_several_ranks_under_one_key(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, publish="deferred")
    for number in range(10):
        store.put(f"contested {number}", np.array([comm.rank]))
    store.publish()
    found = [int(store.get(f"contested {number}")[0]) for number in range(10)]
    assert comm.allgather(found) == [found] * comm.size
    assert store.check()["words"] == 10


def test_closing_with_deferred_puts_and_views(comm: MPI.Intracomm) -> None:
    store = Store(comm, dram_bytes="1MiB", publish="deferred")
    store.put(f"{comm.rank}", b"v")
    store.put(f"{comm.rank} more", b"v")
    view = store.view(f"{comm.rank}")
    view.release()
    store.close()
    view.release()
    with Store(comm, dram_bytes="1MiB") as again:
        assert not again.contains(f"{comm.rank}")


def test_a_view_that_outlives_the_store_does_no_harm(comm: MPI.Intracomm) -> None:
    """Its array must not be read any more; to let it go is allowed."""
    store = Store(comm, dram_bytes="1MiB")
    store.put(f"{comm.rank}", b"value")
    view = store.view(f"{comm.rank}")
    pin = store.pin(f"{comm.rank}")
    store.close()
    view.release()
    pin.release()
    assert view.nbytes == 5


def test_a_store_cannot_be_pickled(store: Store) -> None:
    with pytest.raises(TypeError, match="open one in each process"):
        pickle.dumps(store)


def test_progress_may_be_called_at_any_time(any_store: Store, comm: MPI.Intracomm) -> None:
    for number in range(50):
        any_store.progress()
        key = next(keys_at(any_store, (comm.rank + number) % comm.size)) + 0
        any_store.put(key, b"v")
    comm.Barrier()
    assert any_store.contains(next(keys_at(any_store, comm.rank)))


def test_deferred_puts_of_several_threads(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    """What a thread puts while another one publishes is published now or next time, never lost."""
    store = open_store(comm, publish="deferred", dram_bytes="16MiB")
    threads, each = 3, 60

    def work(thread: int) -> None:
        for number in range(each):
            assert store.put(f"{comm.rank} {thread} {number}", block(number, 300)).stored
            if number % 3 == 0:
                assert store.delete(f"{comm.rank} {thread} {number}")

    published = 0
    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(work, thread) for thread in range(threads)]
        for _ in range(30):  # as often on every rank: it is collective
            published += store.publish()
        for future in running:
            future.result()
    published += store.publish()
    assert store.publish() == 0
    for rank in range(comm.size):
        for thread in range(threads):
            for number in range(each):
                found = store.get(f"{rank} {thread} {number}")
                assert found is None if number % 3 == 0 else (found == block(number, 300)).all()
    assert published >= threads * each * 2 // 3
    comm.Barrier()
    store.check()


def test_a_deferred_put_that_finds_no_word_says_so(open_store: Callable[..., Store]) -> None:
    store = open_store(MPI.COMM_SELF, publish="deferred", dram_bytes="1MiB", index_blocks=1)
    for number in range(16):  # the only bucket, full of protected words
        assert store.put(number, b"v", is_prefix=True).stored
    assert store.publish() == 16
    assert store.put(16, b"v").stored  # not yet known
    with pytest.raises(StoreFullError, match=r"1 of 1 blocks were not published.*index_blocks"):
        store.publish()
    assert store.put(17, b"v").stored
    with pytest.raises(StoreFullError, match="1 bytes was not published"):
        store.get(17)
    assert store.get(17) is None
    assert store.check()["words"] == 16
