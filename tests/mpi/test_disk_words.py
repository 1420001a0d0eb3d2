"""Blocks whose words name disk cells, in a store of several ranks: what readers, writers and `check()` make of them.

Every rank demotes blocks of its own by hand, and a dictionary is the disk. Covers the callers of the one-sided calls.
Does not cover the calls themselves (`tests/unit/test_onesided_disk.py`), nor files.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from cascade_mpi import check as checking
from cascade_mpi.errors import BufferSizeError, ConfigError, ProtocolError, StoreFullError
from cascade_mpi.fabric import data_layout
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.probe import full_fence
from cascade_mpi.layout import (
    DESCRIPTOR,
    FLAG_BACKED,
    FLAG_DISK,
    HARD,
    MAX_DISK_CELLS,
    MAX_PAGES,
    TIER_DISK,
    is_disk,
    pack_location,
    pack_word,
    unpack_word,
)
from cascade_mpi.opening import geometry
from cascade_mpi.reader import Found
from cascade_mpi.store import Store

DISK_BLOCKS, NBYTES = 6, 9000


def block(number: int, nbytes: int = NBYTES) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, nbytes, np.uint8)


class Backwards:
    """A plan by which the last of the blocks on disk is read first."""

    def __init__(self, described: np.ndarray) -> None:
        assert described.view(DESCRIPTOR)["flags"].all()
        self.order = list(range(len(described)))[::-1]
        self.told = 0

    def before(self, number: int) -> None:
        assert number == self.told
        self.told += 1


class Demoted:
    """A store with disk cells, and the bytes of what was demoted; the disk tier of its reader, where that is set."""

    def __init__(self, store: Store, comm: MPI.Intracomm) -> None:
        self.store, self.fabric, self.comm = store, store._fabric, comm
        self.bytes: dict[tuple[int, int], bytes] = {}
        self.reads = 0
        self.before: list[Callable[[], Any]] = []  # what happens while a record is read
        self.damaged = self.full = False
        self.mine = [10 * comm.rank + i for i in range(3)]
        for cell, key in enumerate(self.mine):
            assert store.put(key, block(key))
            self.demote(key, cell)
        for theirs in comm.allgather(self.bytes):
            self.bytes |= theirs
        self.keys = [10 * rank + i for rank in range(comm.size) for i in range(3)]

    def record(self, cell: int) -> np.ndarray:
        return self.fabric.descriptors[self.fabric.pages + cell :][:1].view(DESCRIPTOR)[:, 0]

    def demote(self, key: int, cell: int) -> int:
        """Local. Let a block of this rank's arena be on disk: its word."""
        fabric, dram, s = self.fabric, self.store._dram, self.fabric.scratch
        found = self.store._reader.find(0, key)
        assert found is not None
        self.bytes[fabric.comm.rank, fabric.pages + cell] = dram.payload(found.page).tobytes()
        record = self.record(cell)
        record[:] = dram.records[found.page]
        record["flags"] |= FLAG_DISK
        record["generation"], record["content_hi"] = 7, pack_location(1, 4 + cell)
        full_fence()
        fp, hard = unpack_word(found.word).fp, unpack_word(found.word).hard
        word = pack_word(fp, 7, TIER_DISK, fabric.comm.rank, fabric.pages + cell, hard)
        assert fabric.swap(fabric.ctx, s.address, found.home, found.bucket, found.slot, found.word, word) == 1
        assert dram.retire(found.word)
        return word

    def read(self, address: int, room: int, offset: int) -> int:
        """The disk tier's: the bytes, then the second look at the word."""
        s, fabric = self.fabric.scratch, self.fabric
        self.reads += 1
        word, record = s.words[c.WORD], s.descriptor.view(DESCRIPTOR)[0]
        named = unpack_word(word)
        assert is_disk(word), "the scratch is of another block"
        found = self.bytes[named.rank, named.page][offset : offset + room]
        assert (len(found), int(record["flags"]) & FLAG_DISK) == (room, FLAG_DISK)
        if room:
            ctypes.memmove(address, found, room)
        if self.before:
            self.before.pop(0)()
        if self.damaged:
            return int(c.MISS)
        key = int(record["key_hi"]), int(record["key_lo"])
        there = fabric.slot_of(fabric.ctx, s.address, *key, word)
        return room if there >= 0 else int(c.CHANGED)

    def plan(self, described: np.ndarray) -> Backwards:
        return Backwards(described)

    def promote(self, found: Found) -> bool:
        if self.full:
            raise StoreFullError("no room")
        data = np.frombuffer(self.bytes[found.rank, found.page], np.uint8)
        return self.store.put(found.lo, data).stored


@pytest.fixture(params=["compiled", "python"])
def demoted(open_store, comm, monkeypatch, request):
    monkeypatch.setattr(
        "cascade_mpi.store_life.geometry", lambda config, ranks, _: geometry(config, ranks, DISK_BLOCKS)
    )
    made = Demoted(open_store(comm, mpi_calls=request.param, promote_after=2), comm)
    made.store._reader.on_disk = made
    comm.Barrier()
    yield made
    comm.Barrier()


def test_every_read_finds_what_is_on_disk(demoted, assert_all, comm):
    store, wrong = demoted.store, []
    out = np.zeros(NBYTES, np.uint8)
    assert store.put(500 + comm.rank, block(500 + comm.rank))
    comm.Barrier()
    reads = 0
    for key in demoted.keys:
        wanted = block(key)
        got = store.get(key)
        same = np.array_equal(got, wanted) and store.get(key, out=out) == NBYTES and np.array_equal(out, wanted)
        same &= np.array_equal(store.get_range(key, 100, 8000), wanted[100:8100])
        place = store.locate(key)
        same &= (place.tier, place.rank, place.path, place.nbytes) == ("disk", key // 10, "disk", NBYTES)
        same &= store.contains(key) and store.contains(key, exact=False)
        reads += 3
        if not same:
            wrong.append(key)
    mixed = [*demoted.keys, *range(500, 500 + comm.size), 77_777]
    for got, key in zip(store.get_many(mixed), mixed, strict=True):
        if not (got is None if key == 77_777 else np.array_equal(got, block(key))):
            wrong.append(key)
    outs = [np.zeros(NBYTES, np.uint8) for _ in mixed]
    found = store.get_many(mixed, outs)
    reads += 2 * len(demoted.keys)
    if found != [NBYTES] * (len(mixed) - 1) + [None]:
        wrong.append(found)
    wrong += [key for key, each in zip(mixed[:-1], outs[:-1], strict=True) if not np.array_equal(each, block(key))]
    assert_all(comm, not wrong and demoted.reads == reads, f"{wrong}, {demoted.reads} of {reads} reads")


def test_a_wrong_size_is_an_error_and_no_read(demoted, raises_all, comm):
    store, key = demoted.store, demoted.keys[-1]
    text = raises_all(comm, BufferSizeError, lambda: store.get(key, out=np.zeros(NBYTES - 1, np.uint8)))
    assert "9000" in text
    text = raises_all(comm, BufferSizeError, lambda: store.get_many([key], [np.zeros(NBYTES + 1, np.uint8)]))
    assert "9000" in text and "9001" in text
    raises_all(comm, BufferSizeError, lambda: store.get_range(key, 8999, 2))
    raises_all(comm, BufferSizeError, lambda: store.get_range(key, 0, 1 << 40))
    assert demoted.reads == 0


def test_without_a_disk_tier_it_is_said_what_was_met(demoted, raises_all, comm):
    store, key = demoted.store, demoted.keys[0]
    store._reader.on_disk = None
    out = np.zeros(NBYTES, np.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: store.get(key), lambda: store.get(key, out=out), lambda: store.get_many([key]),
        lambda: store.get_many([key], [out]), lambda: store.get_range(key, 5, 5), lambda: store.view(key),
    ]  # fmt: skip
    for call in calls:
        assert f"disk cell {demoted.fabric.pages} of rank 0" in raises_all(comm, ProtocolError, call)


@pytest.mark.parametrize("how", ["get", "new", "many", "part"])
def test_a_block_that_is_replaced_while_it_is_read_is_read_again(demoted, assert_all, comm, how):
    """Once by one in memory, once by one that is demoted at once."""
    store, wrong = demoted.store, []
    for key, back in zip(demoted.mine, (False, True), strict=False):
        new = block(key + 1000)

        def replace(key: int = key, new: np.ndarray = new, back: bool = back) -> None:
            assert store.put(key, new)
            if back:
                demoted.demote(key, 5)

        demoted.before.append(replace)
        out = np.zeros(NBYTES, np.uint8)
        if how == "get":
            assert store.get(key, out=out) == NBYTES
        elif how == "new":
            out = store.get(key)
        elif how == "many":
            assert store.get_many([key], [out]) == [NBYTES]
        else:
            out = store.get_range(key, 0, NBYTES)
        if not np.array_equal(out, new):
            wrong.append(key)
        if not demoted.fabric.gone[unpack_word(word_before(demoted, key)).page]:
            wrong.append(f"no hint of {key}")
    assert_all(comm, not wrong and demoted.reads == 3, f"{wrong}, {demoted.reads} reads")


def word_before(demoted: Demoted, key: int) -> int:
    """The word that a block of this rank had on disk at first."""
    return demoted.fabric.pages + demoted.mine.index(key)


def test_a_damaged_record_is_a_miss(demoted, assert_all, comm):
    demoted.damaged, key, out = True, demoted.keys[-1], np.zeros(NBYTES, np.uint8)
    got = [demoted.store.get(key), demoted.store.get(key, out=out), demoted.store.get_range(key, 5, 5)]
    got += demoted.store.get_many([key]) + demoted.store.get_many([key], [out])
    assert_all(comm, got == [None] * 5, str(got))


def test_writers_take_it_away_and_tell_the_manager(demoted, assert_all, comm):
    """Each rank replaces a block of the next one, deletes another, and keeps the third."""
    store, fabric = demoted.store, demoted.fabric
    theirs = [10 * ((comm.rank + 1) % comm.size) + i for i in range(3)]
    assert store.put(theirs[0], block(1)).stored
    assert store.delete(theirs[1])
    kept = store.put(theirs[2], block(1), exists="keep")
    assert_all(comm, kept.kept and kept.tier == "disk", str(kept))
    hints = fabric.gone[fabric.pages :].tolist()
    assert_all(comm, hints == [1, 1, 0, 0, 0, 0], str(hints))
    store._pool.sweep()
    assert fabric.gone[fabric.pages :].tolist() == hints  # not the arena's to clear
    got = [store.get(key) for key in theirs]
    same = np.array_equal(got[0], block(1)) and got[1] is None and np.array_equal(got[2], block(theirs[2]))
    assert_all(comm, same, str(got))


def test_disk_words_are_no_cells_of_an_arena(demoted, comm):
    """Not even with a number that the arena has too: no tier of it may be asked about them."""
    pool, key = demoted.store._pool, demoted.mine[0]
    found = demoted.store._reader.find(0, key)
    assert found is not None
    assert pool.tier_of(found.word) is None
    assert not pool.retire(found.word)
    assert demoted.store.put(key, block(1)).stored


def test_a_view_brings_it_into_memory(demoted, assert_all, raises_all, comm):
    store, key = demoted.store, demoted.mine[0]
    demoted.full = True
    raises_all(comm, StoreFullError, lambda: store.view(key))
    demoted.full = False
    with store.view(key) as array:
        same = np.array_equal(array, block(key))
    pin = store.pin(demoted.mine[1])
    tiers = [store.locate(each).tier for each in demoted.mine]
    store.unpin(pin)
    assert_all(comm, same and tiers == ["dram", "dram", "disk"], str(tiers))


def test_copies_are_not_made_of_it(demoted, assert_all, comm):
    for _ in range(4):
        for key in demoted.keys:
            assert demoted.store.get(key) is not None
    comm.Barrier()
    done = demoted.store.replicate(demoted.keys)
    assert_all(comm, (done.copied, done.present, done.missing) == (0, 0, 0) and done.refused > 0, str(done))
    assert_all(comm, demoted.store._copies.made == 0)


def test_check_hears_of_disk_cells(demoted, raises_all, comm):
    store, fabric = demoted.store, demoted.fabric
    text = raises_all(comm, ProtocolError, store.check)
    assert "which has no disk tier" in text
    named: list[int] = []

    def checked() -> dict[str, int]:
        named.clear()
        return checking.check(
            fabric, store._pool, store._pins, store._protected,
            on_disk=lambda words: named.extend(words) or [],  # type: ignore[func-returns-value]
        )  # fmt: skip

    assert checked()["words"] == len(demoted.keys)
    assert sorted(unpack_word(word).page - fabric.pages for word in named) == [0, 1, 2]
    for field, value, said in (
        ("content_hi", 5 << 24, "place is wrong"), ("flags", 1, "flags 1"), ("manager", comm.size - 1, "manager"),
        ("generation", 8, "generation 8"), ("flags", FLAG_DISK | FLAG_BACKED, "flags 768"),
    ):  # fmt: skip
        if field == "manager" and comm.size == 1:
            continue
        record = demoted.record(0)
        before = int(record[field][0])
        if comm.rank == 0:
            record[field] = value
        assert said in raises_all(comm, ProtocolError, checked)
        record[field] = before
    key = 900 + comm.rank
    assert store.put(key, block(key))
    found = store._reader.find(0, key)
    assert found is not None
    cell = store._dram.records[found.page : found.page + 1]
    cell["flags"] |= FLAG_BACKED
    word = pack_word(unpack_word(found.word).fp, 3, TIER_DISK, comm.rank, fabric.pages + 5)
    cell["content_hi"] = word
    checked()
    for wrong in (word | HARD, word ^ 1 << 62, word + 1, 0):
        cell["content_hi"] = wrong
        assert "is backed by" in raises_all(comm, ProtocolError, checked)
    cell["content_hi"] = word


def test_the_areas_of_arenas_leave_disk_cells_out(demoted):
    fabric, area = demoted.fabric, demoted.store._dram.area
    assert (fabric.cells, fabric.disk_blocks) == (fabric.pages + DISK_BLOCKS, DISK_BLOCKS)
    for part in (area.gone, area.touched, area.records):
        assert part.shape == (fabric.pages,)
    assert fabric.gone.shape == fabric.touched.shape == (fabric.cells,)
    assert fabric.context[c.CELLS] == fabric.cells


# ----------------------------------------------------------------------------------------------- sizes


def test_the_data_window_has_entries_for_disk_cells():
    for pages, cells in itertools.product((1, 64, 5000), (0, 1, 100_000)):
        gone, touched, described, arena, end = data_layout(pages, 8192, pages + cells)
        assert touched - gone >= pages + cells
        assert described - touched >= 4 * (pages + cells)
        assert arena - described >= 128 * (pages + cells)
        assert end - arena == 8192 * pages


def test_cells_of_a_rank_fit_a_word():
    from cascade_mpi.config import Config

    small = Config.make(None, dram_bytes="1GiB")
    assert geometry(small, 4)[:2] == (1 << 18, 4096)
    assert geometry(small, 4, 1 << 20)[:2] == (1 << 18, 4096)
    assert geometry(small, 4, 1 << 20).disk_blocks == 1 << 20
    assert geometry(small, 4, 1 << 20).buckets == 4 * geometry(small, 4).buckets * 2  # for the blocks of all tiers
    large = Config.make(None, dram_bytes="16GiB")
    assert geometry(large, 4)[:2] == (MAX_PAGES, 4096)
    assert geometry(large, 4, 1)[:2] == (MAX_PAGES // 2, 8192)
    assert geometry(large, 4, MAX_DISK_CELLS)[:2] == (1 << 20, 16384)
    for number in (-1, MAX_DISK_CELLS + 1):
        with pytest.raises(ConfigError, match=r"disk_blocks .*3,145,728.*lower it"):
            geometry(large, 4, number)


def test_memory_of_disk_cells_is_checked(comm, monkeypatch):
    from cascade_mpi import memory, opening
    from cascade_mpi.config import Config

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        memory, "check", lambda needed, ranks, limits, dram_bytes, fixed_bytes: asked.append((needed, fixed_bytes))
    )
    config = Config.make(None, dram_bytes="8MiB")
    sizes = geometry(config, comm.size)
    for blocks in (0, 10_000):
        opening.check_memory(comm, config, sizes._replace(disk_blocks=blocks))
    ranks = MPI.COMM_WORLD.size  # all on this host
    for before, after in zip(*asked, strict=True):
        assert 0 <= after - before - ranks * 10_000 * 133 <= ranks * 3 * 4096
