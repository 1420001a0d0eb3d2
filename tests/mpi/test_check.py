"""`check()` finds damage of every kind, on all ranks, and says on which rank it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from mpi4py import MPI
from patterns import block, keys_at

from cascade_mpi.errors import ProtocolError
from cascade_mpi.layout import BUCKET_WORDS, pack_word, unpack_word
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone


class Planted:
    """One store with a block that this rank put and whose word is on this rank too; the damage goes there."""

    def __init__(self, store: Store) -> None:
        self.store, self.fabric, self.dram = store, store._fabric, store._dram
        self.index = self.fabric.index_words
        keys = keys_at(store, self.fabric.comm.rank)
        self.key, self.other = next(keys), next(keys)
        self.plant()

    def plant(self) -> None:
        """Local. Put both blocks into a shard without words; cells that no word names any more are swept."""
        self.index[:] = 0
        self.dram.sweep(everything=True)
        for key in (self.key, self.other):
            assert self.store.put(key, block(key, 9000))
        found = self.store._reader.find(0, self.key)
        self.word, self.page, self.at = found.word, found.page, found.bucket * BUCKET_WORDS + found.slot
        self.bucket = found.bucket
        self.record = self.dram.records[self.page : self.page + 1]

    def free_slot(self, bucket: int) -> int:
        return bucket * BUCKET_WORDS + int(np.flatnonzero(self.index[bucket * BUCKET_WORDS :][:BUCKET_WORDS] == 0)[0])


@contextmanager
def changed(array: np.ndarray, at: object, value: object) -> Iterator[None]:
    before = array[at].copy()
    array[at] = value
    yield
    array[at] = before


def word_of_an_impossible_rank(p: Planted) -> object:
    fields = unpack_word(p.word)
    return changed(p.index, p.free_slot(p.bucket), pack_word(fields.fp, 5, 1, p.fabric.comm.size, fields.page))


def word_of_an_impossible_page(p: Planted) -> object:
    fields = unpack_word(p.word)
    return changed(p.index, p.free_slot(p.bucket), pack_word(fields.fp, 5, 1, fields.rank, p.fabric.pages))


def word_of_a_tier_that_is_off(p: Planted) -> object:
    fields = unpack_word(p.word)
    return changed(p.index, p.free_slot(p.bucket), pack_word(fields.fp, 5, 2, fields.rank, fields.page))


def double(p: Planted) -> object:
    return changed(p.index, p.free_slot(p.bucket), p.word)


def word_in_a_wrong_bucket(p: Planted) -> object:
    return changed(p.index, p.free_slot((p.bucket + 1) % p.fabric.buckets), p.word)


def word_of_a_wrong_fingerprint(p: Planted) -> object:
    return changed(p.index, p.free_slot(p.bucket), p.word ^ 1 << 60)


def word_of_another_generation(p: Planted) -> object:
    fields = unpack_word(p.word)
    word = pack_word(fields.fp, fields.generation + 1, fields.tier, fields.rank, fields.page)
    return changed(p.index, p.free_slot(p.bucket), word)


def word_of_a_free_cell(p: Planted) -> object:
    fields = unpack_word(p.word)
    word = pack_word(fields.fp, 5, fields.tier, fields.rank, p.fabric.pages - 1)
    return changed(p.index, p.free_slot(p.bucket), word)


def descriptor_without_magic(p: Planted) -> object:
    return changed(p.record["magic"], 0, 0)


def descriptor_of_another_generation(p: Planted) -> object:
    return changed(p.record["generation"], 0, p.record["generation"][0] + 1)


def descriptor_of_another_key(p: Planted) -> object:
    return changed(p.record["key_lo"], 0, p.other + 1)


def descriptor_of_another_length(p: Planted) -> object:
    return changed(p.record["length"], 0, 100_000)


def descriptor_where_no_cell_begins(p: Planted) -> object:
    return changed(p.dram.records, p.page + 1, p.dram.records[p.page])


def damaged_payload(p: Planted) -> object:
    arena = p.fabric.data.memory[p.fabric.arena_at :]
    at = p.page * p.fabric.page_bytes + 5000
    return changed(arena, at, arena[at] ^ 1)


def damaged_checksum(p: Planted) -> object:
    return changed(p.record["checksum"], 0, p.record["checksum"][0] ^ np.uint64(1))


def pin_slot_of_nobody(p: Planted) -> object:
    return changed(p.fabric.pin_words, len(p.fabric.pin_words) - 1, p.word)


def noted_word_of_another_cell(p: Planted) -> object:
    return changed(p.dram.words, p.page, p.word + 1)


@contextmanager
def wrong_live_bytes(p: Planted) -> Iterator[None]:
    p.dram.live_bytes += 1
    yield
    p.dram.live_bytes -= 1


@contextmanager
def allocator_of_another_generation(p: Planted) -> Iterator[None]:
    generations = p.dram.allocator._generations
    generations[p.page] += 1
    yield
    generations[p.page] -= 1


@contextmanager
def lost_pages(p: Planted) -> Iterator[None]:
    allocator = p.dram.allocator
    lost = allocator.allocate(3, 0.0)
    assert lost is not None
    yield  # a cell that nobody put, no word names and no descriptor describes
    allocator.retire(lost[0], 0.0)


DAMAGE: dict[Callable[[Planted], object], str] = {
    word_of_an_impossible_rank: "out of bounds",
    word_of_an_impossible_page: "out of bounds",
    word_of_a_tier_that_is_off: "out of bounds",
    double: "double|2 times",
    word_in_a_wrong_bucket: "belongs to",
    word_of_a_wrong_fingerprint: "belongs to",
    word_of_another_generation: "names a descriptor",
    word_of_a_free_cell: "names a descriptor",
    descriptor_without_magic: "names a descriptor of magic 0",
    descriptor_of_another_generation: "names a descriptor",
    descriptor_of_another_key: "belongs to",
    descriptor_of_another_length: "100000 bytes",
    descriptor_where_no_cell_begins: "no cell begins there",
    damaged_payload: "does not have its checksum",
    damaged_checksum: "does not have its checksum",
    pin_slot_of_nobody: "pin slots are set",
    noted_word_of_another_cell: "its cell has word",
    wrong_live_bytes: "live bytes are",
    allocator_of_another_generation: "generation",
    lost_pages: "no word was published for it",
}


@pytest.fixture
def planted(store: Store, comm: MPI.Intracomm) -> Planted:
    made = Planted(store)
    comm.Barrier()
    return made


@pytest.mark.core
def test_what_check_counts(planted: Planted, comm: MPI.Intracomm) -> None:
    pin = planted.store.pin(planted.key)
    counts = planted.store.check()
    assert (counts["words"], counts["checksums"], counts["pins"]) == (2 * comm.size, 2 * comm.size, comm.size)
    planted.store.unpin(pin)
    assert planted.store.check()["pins"] == 0


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_found_on_all_ranks(
    planted: Planted, comm: MPI.Intracomm, raises_all: Callable[..., str], damage: Callable[[Planted], object]
) -> None:
    culprit = comm.size - 1
    if comm.rank == culprit:
        with damage(planted):
            text = raises_all(comm, ProtocolError, planted.store.check)
        planted.plant()
    else:
        text = raises_all(comm, ProtocolError, planted.store.check)
    assert f"rank {culprit}:" in text
    assert any(part in text for part in DAMAGE[damage].split("|")), text
    comm.Barrier()
    assert planted.store.check()["words"] == 2 * comm.size


def test_a_word_that_was_lost_gives_its_cell_back(planted: Planted, comm: MPI.Intracomm) -> None:
    """Anybody may take a word away, so this is no damage: the manager's sweep finds the cell."""
    planted.index[planted.at] = 0
    comm.Barrier()
    counts = planted.store.check()
    assert counts["words"] == comm.size
    assert planted.store.get(planted.key) is None
    assert planted.store.stats()["blocks"] == 1


def test_words_out_of_bounds_are_not_followed(planted: Planted, comm: MPI.Intracomm) -> None:
    """A reader compares rank and page with the bounds before it uses them, and finds the block behind such words."""
    planted.store.delete(planted.key)
    comm.Barrier()
    fields = unpack_word(planted.word)
    wild = [
        pack_word(fields.fp, 3, 1, comm.size, 0), pack_word(fields.fp, 3, 1, 4095, (1 << 22) - 1),
        pack_word(fields.fp, 3, 1, comm.rank, planted.fabric.pages),
    ]  # fmt: skip
    begin = planted.bucket * BUCKET_WORDS
    taken = planted.index[begin : begin + BUCKET_WORDS].copy()
    free = np.flatnonzero(taken == 0)[:3]
    planted.index[begin + free] = wild
    comm.Barrier()
    keys = [next(keys_at(planted.store, rank)) for rank in range(comm.size)]
    for key in keys:
        assert planted.store.get(key) is None
        assert planted.store.contains_many([key, key]).tolist() == [False, False]
    assert planted.store.stats()["bad_words"] > 0
    comm.Barrier()
    assert planted.store.put(planted.key, block(5, 100)).stored
    comm.Barrier()
    for key in keys:
        np.testing.assert_array_equal(planted.store.get(key), block(5, 100))
    comm.Barrier()
    planted.index[begin + free] = 0
    comm.Barrier()
