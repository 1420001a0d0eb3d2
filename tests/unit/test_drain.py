"""Draining one rank's memory to disk against a clock: the order, the pieces and the end, with a tier that is played."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cascade_mpi.disk.drain import FIRST_BYTES, Pieces, by_value, drain
from cascade_mpi.errors import DiskFullError
from cascade_mpi.layout import HARD
from cascade_mpi.onesided import TICKS

RECORD = np.dtype([("length", np.uint64), ("sequence", np.uint64)])
MIB = 1 << 20


class Disk:
    """Blocks of given sizes in one arena, and a disk of which each write and each sync takes its time."""

    def __init__(self, sizes: list[int], *, rate: float = 100 * MIB, sync_s: float = 0.0) -> None:
        n = len(sizes)
        self.now, self.rate, self.sync_s = 0.0, rate, sync_s
        self.records = np.zeros(n, RECORD)
        self.records["length"], self.records["sequence"] = sizes, np.arange(n)
        self.words = np.ones(n, np.uint64)
        self.area = SimpleNamespace(touched=np.zeros(n, np.uint32))
        self.lock = contextlib.nullcontext()
        self.written: list[int] = []
        self.durable: list[int] = []
        self.durable_at: list[float] = []  # when the last of each piece was
        self.sealed_at = -1.0
        self.full_after = n

    def dirty(self) -> list[Any]:
        written = set(self.written)
        return [(self, k) for k in range(len(self.words)) if k not in written]

    def write(self, cell: tuple[Any, int]) -> bool:
        if len(self.written) == self.full_after:
            raise DiskFullError(28, "no space left")
        self.now += int(self.records["length"][cell[1]]) / self.rate
        self.written.append(cell[1])
        return True

    def sync(self, chosen: Any, *, seal: bool = False) -> int:
        assert tuple(chosen) == ()
        self.now += self.sync_s
        self.durable = list(self.written)
        self.durable_at.append(self.now)
        if seal:
            self.sealed_at = self.now
        return 0

    def drain(self, seconds: float) -> Any:
        return drain(self, seconds, 0, lambda: None, lambda: self.now)  # type: ignore[arg-type]


def test_with_time_enough_everything_is_written_and_sealed() -> None:
    disk = Disk([MIB] * 500)
    done = disk.drain(60.0)
    assert done == (500, 500 * MIB, 0, 0, None)
    assert disk.durable == list(range(500))
    assert disk.sealed_at == disk.now < 60.0


@pytest.mark.parametrize("sync_s", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("rate", [20 * MIB, 400 * MIB])
@pytest.mark.parametrize("seconds", [1.0, 4.0, 30.0])
def test_it_ends_in_time_and_uses_most_of_it(seconds: float, rate: float, sync_s: float) -> None:
    disk = Disk([4 * MIB] * 5_000, rate=rate, sync_s=sync_s)
    done = disk.drain(seconds)
    assert disk.now <= seconds + sync_s
    assert disk.durable == list(range(done.blocks))  # nothing counts that is not durable
    assert done.left == 5_000 - done.blocks
    assert done.left_bytes == done.left * 4 * MIB
    if seconds >= 4.0:
        assert done.bytes > 0.5 * rate * (seconds - 3 * sync_s)


def test_a_disk_that_becomes_slow_costs_one_piece() -> None:
    disk = Disk([MIB] * 5_000, rate=400 * MIB)
    write = disk.write

    def slower(cell: tuple[Any, int]) -> bool:
        if len(disk.written) > 1000:
            disk.rate = 2 * MIB
        return write(cell)

    disk.write = slower  # type: ignore[method-assign]
    disk.drain(10.0)
    assert disk.now <= 10.0 + 0.5  # a block may be under way
    assert len(disk.durable) > 1000


def test_blocks_larger_than_a_piece_go_one_by_one_or_not_at_all() -> None:
    disk = Disk([320 * MIB] * 10, rate=100 * MIB)
    done = disk.drain(8.0)
    assert done.blocks == 2  # 6.4 s; the next would end after 9.6 s
    assert disk.now <= 8.0


def test_without_any_time_what_was_written_before_is_made_durable() -> None:
    disk = Disk([MIB] * 3, sync_s=0.1)
    disk.written = [0]
    done = disk.drain(0.0)
    assert disk.durable == [0]
    assert (done.blocks, done.left) == (0, 2)


def test_a_disk_that_is_full_ends_it_and_is_told() -> None:
    disk = Disk([MIB] * 100)
    disk.full_after = 50
    done = disk.drain(60.0)
    assert isinstance(done.problem, DiskFullError)
    assert done.blocks == len(disk.durable) < 50
    assert done.left == 50


def test_protected_blocks_go_first_then_those_of_the_last_second_from_the_front() -> None:
    disk = Disk([1] * 6)
    now = 100 * TICKS
    disk.area.touched[:] = np.array([90, 99.9, 99.95, 50, 99.2, 100.4]) * TICKS
    disk.words[3] |= np.uint64(HARD)
    order = [k for _, k in by_value(disk.dirty(), now)]
    assert order == [3, 5, 1, 2, 4, 0]  # 1, 2 and 4 within one second: as they were put


def test_touches_that_come_round_are_not_old() -> None:
    disk = Disk([1] * 3)
    disk.area.touched[:] = np.array([2**32 - 3 * TICKS, 2**32 - 90 * TICKS, 5 * TICKS], np.uint64).astype(np.uint32)
    order = [k for _, k in by_value(disk.dirty(), 2**32 + 6 * TICKS)]
    assert order == [2, 0, 1]


def test_cells_of_several_arenas_are_in_one_order() -> None:
    one, other = Disk([1] * 2), Disk([1] * 2)
    one.area.touched[:], other.area.touched[:] = [10 * TICKS, 30 * TICKS], [20 * TICKS, 40 * TICKS]
    found = by_value([*one.dirty(), *other.dirty()], 50 * TICKS)
    assert [(tier is other, k) for tier, k in found] == [(True, 1), (False, 1), (True, 0), (False, 0)]
    assert by_value([], 0) == []


def test_a_piece_follows_from_the_one_before() -> None:
    pieces = Pieces(10.0)
    assert pieces.room(0.0, 1) == FIRST_BYTES
    assert pieces.room(0.0, 2 * FIRST_BYTES) == 2 * FIRST_BYTES  # one block at least
    pieces.made(1000, 0.5, 0.5)
    assert pieces.left(1.0) == 8.5  # a last sync is still to come
    assert pieces.room(1.0, 1) == 4000  # of 2,000 bytes a second: for as long as four syncs
    assert pieces.room(8.0, 1) == 1000  # a third of 1.5 s
    assert pieces.room(8.0, 2900) == 2900
    assert pieces.room(8.0, 3100) == 0
    assert pieces.room(9.6, 1) == 0
