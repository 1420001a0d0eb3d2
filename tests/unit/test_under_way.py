"""What a disk tier remembers in memory alone: puts that are under way, by thread, and tombstones that are owed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cascade_mpi.disk.tombstones import COST, Tombstones
from cascade_mpi.disk.under_way import UnderWay

A, B, C = (1, 2), (1, 3), (2, 2)


@pytest.fixture
def puts() -> UnderWay:
    return UnderWay()


def test_a_call_is_told_of_what_it_has_lost_once(puts: UnderWay) -> None:
    for key in (A, B, C):
        puts.put(key)
    puts.dropped(C)
    puts.dropped(A)
    assert puts.here and A not in puts and B in puts
    assert puts.ended() == [C, A]
    assert not puts.here and B not in puts and puts.ended() == []


def test_what_another_call_has_put_is_nothing_to_this_one(puts: UnderWay) -> None:
    puts.put(A)
    puts.ended()
    puts.dropped(A)  # its call has returned: with an error, or it was durable
    assert not puts.here and puts.ended() == []


def test_a_block_that_is_put_again_or_has_expired_is_not_lost(puts: UnderWay) -> None:
    for key in (A, B):
        puts.put(key)
    puts.dropped(A)
    puts.put(A)
    puts.void(B)
    puts.dropped(B)
    assert puts.ended() == []


def test_each_thread_is_told_of_its_own(puts: UnderWay) -> None:
    """Whoever drops a block: it may be another thread's put that needs the room."""
    with ThreadPoolExecutor(1) as other:
        other.submit(puts.put, A).result()
        other.submit(puts.put, B).result()
        puts.put(B)
        puts.put(C)
        puts.dropped(A)
        puts.dropped(B)
        assert puts.ended() == [B]
        assert other.submit(lambda: puts.here).result()
        assert other.submit(puts.ended).result() == [A, B]


def test_tombstones_that_cannot_be_written_are_owed_still() -> None:
    owed, written = Tombstones(), list[tuple[int, int, int]]()
    owed.most = 2
    owed.owe(*A, 7)
    owed.owe(*A, 5)  # the higher sequence counts
    assert (len(owed), owed.nbytes, owed.full) == (1, COST, False)
    owed.owe(*B, 6)
    assert owed.full and not owed.overfull
    owed.owe(*C, 1)
    owed.owe(4, 4, 1)
    assert owed.overfull

    def append(hi: int, lo: int, sequence: int) -> None:
        if len(written) == 1:
            raise OSError
        written.append((hi, lo, sequence))

    with pytest.raises(OSError):
        owed.pay(append)
    assert len(owed) == 3
    written.append((0, 0, 0))  # the disk works again
    owed.pay(append)
    assert written == [(*A, 7), (0, 0, 0), (*B, 6), (*C, 1), (4, 4, 1)] and not owed
