"""What is acknowledged although something went wrong meanwhile: nothing that the disk does not have, nothing silently.

Covers blocks that a call loses before it returns, syncs that fail half-way, calls that end with an error, and what a
disk that refuses makes memory keep. Does not cover file systems that refuse on one rank (`test_disk_faults`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from disk_stores import SMALL, Refusing, found, killed, leave_memory, opened
from mpi4py import MPI
from patterns import block

from cascade_mpi.errors import DiskError, DroppedError, KeyExistsError, NotDurableError
from cascade_mpi.keys import key_words
from cascade_mpi.store import Store

AssertAll = Callable[..., None]
RaisesAll = Callable[..., str]
E = TypeVar("E", bound=Exception)

pytestmark = pytest.mark.alone


def keys_of(rank: int, n: int) -> list[str]:
    return [f"{rank} {number}" for number in range(n)]


def caught(error: type[E], call: Callable[[], object]) -> E:
    """Local. The error that a call raises."""
    with pytest.raises(error) as told:
        call()
    return told.value


# ------------------------------------------------------------------------------------------- blocks that a call loses


def test_a_call_that_loses_its_own_blocks_says_so(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll
):
    """The quota has no room for the first block, which leaves memory for the others: they are durable, it is not."""
    share = 640 << 10
    settings = SMALL | {"disk": str(folder / "store"), "durability": "writethrough", "lease_extents": 0}
    store = open_store(comm, **(settings | {"disk_quota": share * comm.size}))
    store.put(f"before {comm.rank}", block(9, 250 << 10))
    mine = keys_of(comm.rank, 13)
    blocks = [block(0, 420 << 10), *(block(at, 24 << 10) for at in range(1, 13))]
    error = caught(DroppedError, lambda: store.put_many(mine, blocks))
    words = key_words(mine[0], store._space(None).digest)
    assert_all(comm, error.keys == [words], str(error.keys))
    assert_all(comm, "1 blocks of this call" in str(error) and "disk_quota" in str(error), str(error))
    refused = [(each.refused, each.stored, bool(each.reason)) for each in error.results]
    assert_all(comm, refused == [(True, False, True)] + [(False, True, False)] * 12, str(error.results))
    assert_all(comm, store.get(mine[0]) is None and np.array_equal(store.get(mine[5]), blocks[5]))
    store.put("another", block(1, 100))  # it was told of once
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        got = list(found(after, mine).values())
        assert_all(comm, got == [None, *(each.tobytes() for each in blocks[1:])])


def test_one_refusal_costs_one_block_of_a_call(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """A call that puts four times what memory holds: after an error the blocks that it is to acknowledge are tried."""
    settings = SMALL | {"disk": str(folder / "store"), "durability": "writethrough", "lease_extents": 0}
    store = open_store(comm, **settings)
    mine = keys_of(comm.rank, 64)
    blocks = [block(at, 32 << 10) for at in range(64)]
    store.put("begin", block(0, 10))
    comm.Barrier()
    refusing = Refusing(monkeypatch, errno.ENOSPC, "pwritev", "pwrite", after=3, times=1)
    error = caught(DroppedError, lambda: store.put_many(mine, blocks))
    refusing.over()
    assert_all(comm, len(error.keys) == 1 and refusing.refused == 1, str(error))
    comm.Barrier()
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        got = found(after, mine)
        missing = [key for key in mine if got[key] is None]
        lost = [key for key in mine if key_words(key, store._space(None).digest) in error.keys]
        assert_all(comm, missing == lost, f"{missing}, told of {lost}")
        told = [key for key, each in zip(mine, error.results, strict=True) if each.refused]
        assert_all(comm, told == lost, str(told))


def test_a_block_that_is_put_again_is_not_lost(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """The same key comes twice in a call: the first block is dropped, the second one counts."""
    settings = SMALL | {"disk": str(folder / "store"), "durability": "writethrough", "lease_extents": 0}
    store = open_store(comm, **settings)
    mine = keys_of(comm.rank, 40)
    store.put("begin", block(0, 10))
    refusing = Refusing(monkeypatch, errno.ENOSPC, "pwritev", "pwrite", after=2, times=1)
    many = [*mine[:30], mine[0], mine[1]]
    try:
        store.put_many(many, [block(at, 32 << 10) for at in range(32)])
    except DroppedError as error:
        lost = set(error.keys)
    else:
        lost = set()
    refusing.over()
    again = {key_words(key, store._space(None).digest) for key in mine[:2]}
    assert_all(comm, not lost & again and refusing.refused == 1, str(lost))
    assert_all(comm, np.array_equal(store.get(mine[0]), block(30, 32 << 10)))


# ------------------------------------------------------------------------------------------ calls that end with errors


def test_blocks_before_an_error_are_durable(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll
):
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "durability": "writethrough"}))
    mine = keys_of(comm.rank, 4)
    store.put(mine[2], block(2, 5000))
    caught(KeyExistsError, lambda: store.put_many(mine, [block(at, 5000) for at in range(4)], exists="error"))
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        got = list(found(after, mine).values())
        assert_all(comm, got == [*(block(at, 5000).tobytes() for at in range(3)), None])


# --------------------------------------------------------------------------------------------- syncs that fail half-way


class _Unsynced:
    """Local. `fsync` of segments fails, and afterwards no byte can be written, as long as it lasts."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, *, writes: bool) -> None:
        self.on, self.patch = True, patch

        def refuses(name: str, real: Callable[..., object]) -> Callable[..., object]:
            def call(fd: int, *args: object) -> object:
                if self.on and (name.startswith("pwrite") or ".seg" in os.readlink(f"/proc/self/fd/{fd}")):
                    raise OSError(number, os.strerror(number))
                return real(fd, *args)

            return call

        for name in ("fsync", "fdatasync", *(("pwritev", "pwrite") if writes else ())):
            patch.setattr(os, name, refuses(name, getattr(os, name)))


@pytest.mark.parametrize("writes", [True, False], ids=["no write", "no sync"])
@pytest.mark.parametrize("call", ["sync", "flush", "drain"])
def test_what_a_failed_sync_loses_is_told_whatever_follows(
    call: str, writes: bool, comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store],
    assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """One block is on disk alone, one in memory too: the second is written again, and that fails, or its sync does.

    The last rank alone has such a disk; where all ranks take part all hear of its block.
    """
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "disk_collective": "off"}))
    gone, kept, last = f"gone {comm.rank}", f"kept {comm.rank}", comm.size - 1
    store.put(gone, block(1, 5000))
    leave_memory(store, [gone])
    store.put(kept, block(2, 5000))
    tier = store._disk.tier
    with tier.lock:
        assert tier._write_out(tier.dirty()) == 1
    comm.Barrier()
    broken = _Unsynced(monkeypatch, errno.EDQUOT, writes=writes) if comm.rank == last else None
    calls = {"sync": store.sync, "flush": store.flush, "drain": lambda: store.drain(5)}
    lost = []
    if comm.rank == last or call != "sync":
        error = caught(NotDurableError, calls[call])
        lost = [(each.key_hi, each.key_lo) for each in error.lost]
        assert "put them again" in str(error) or "to be put again" in str(error), str(error)
        assert comm.rank != last or error.errno == errno.EDQUOT
    words = key_words(f"gone {last}", store._space(None).digest)
    assert_all(comm, lost == ([words] if comm.rank == last or call != "sync" else []), str(lost))
    if broken is not None:
        broken.on = False
    comm.Barrier()
    if comm.rank == last:
        store.put(gone, block(3, 5000))
    comm.Barrier()
    calls[call]()  # nothing is told twice
    store.sync()
    comm.Barrier()
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        want = block(3 if comm.rank == last else 1, 5000)
        assert_all(comm, np.array_equal(after.get(gone), want) and np.array_equal(after.get(kept), block(2, 5000)))


# ------------------------------------------------------------------------------------------------ clear, and epochs


def test_what_was_cleared_does_not_come_back(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    raises_all: RaisesAll, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """With "writethrough" after a power loss: all was synced when it returns, or it raises on all ranks."""
    settings = SMALL | {"disk": str(folder / "store"), "durability": "writethrough"}
    store = open_store(comm, **settings)
    mine = keys_of(comm.rank, 6)
    for at, key in enumerate(mine):
        store.put(key, block(at, 5000))
    leave_memory(store, mine[:3])
    store.clear()
    log = store._disk.tier.log
    assert_all(comm, log.pending == 0 and store.stats()["disk"]["tombstones"] == 6, str(log.pending))
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        assert_all(comm, not any(found(after, mine).values()))
    store.put(mine[0], block(7, 5000))
    comm.Barrier()
    broken = Refusing(monkeypatch, errno.EIO, "fsync", "fdatasync") if comm.rank == comm.size - 1 else None
    raises_all(comm, DiskError, store.clear)
    if broken is not None:
        broken.over()
    comm.Barrier()
    assert_all(comm, store.get(mine[0]) is None)


@pytest.mark.parametrize("calls", [("open",), ("fsync", "fdatasync"), ("fsync", "fdatasync", "unlink")])
def test_an_epoch_begins_when_a_restart_knows_it(
    calls: tuple[str, ...], comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store],
    assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Not made: no rank is in it. Made and not synced, and so not taken back for sure: all are, and are told so."""
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store")}))
    store.put(f"of {comm.rank}", block(1, 5000))
    store.flush()
    seen: list[list[int]] = []
    begins = "fsync" in calls
    if comm.rank == 0:
        refusing = Refusing(monkeypatch, errno.EIO, *calls, after=int(begins))  # the first sync is before it is made
        spread = store._registry._spread
        monkeypatch.setattr(store._registry, "_spread", lambda *args: (seen.append([refusing.refused]), spread(*args)))
        text = str(caught(DiskError, store.bump_epoch))
        monkeypatch.undo()
        assert ("has begun" in text) == begins, text
        assert bool(seen) == begins
        assert all(count > 0 for (count,) in seen), "the ranks were in the epoch before it was noted"
    comm.Barrier()
    now = comm.allgather(store.epoch())
    assert_all(comm, now == [int(begins)] * comm.size, str(now))
    assert_all(comm, (store.get(f"of {comm.rank}") is None) == begins)
    comm.Barrier()
    if comm.rank == 0:
        store.bump_epoch()
    comm.Barrier()
    assert_all(comm, store.epoch() > int(begins) and store.get(f"of {comm.rank}") is None)
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        assert_all(comm, after.epoch() == store.epoch() and after.get(f"of {comm.rank}") is None)


# -------------------------------------------------------------------------------------------------- owed tombstones


def test_tombstones_of_drops_keep_to_the_quota(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll
):
    """Then nothing is dropped: a put that needs room is refused, and says why. Deletes and compact() make room."""
    share = 1 << 20
    store = open_store(
        comm, **(SMALL | {"disk": str(folder), "disk_quota": share * comm.size, "lease_extents": 0})
    )  # fmt: skip
    tier = store._disk.tier
    results = [store.put(key, block(at % 200, 4096)) for at, key in enumerate(keys_of(comm.rank, 1200))]
    refused = [each for each in results if each.refused]
    used = tier.file_bytes + tier._owed.nbytes
    assert_all(comm, bool(refused) and used <= share, f"{len(refused)} refused, {used} bytes of {share}")
    assert_all(comm, "disk_quota has no room for the tombstone" in refused[-1].reason, refused[-1].reason)
    stored = [key for key, each in zip(keys_of(comm.rank, 1200), results, strict=True) if each.stored]
    there = [key for key in stored if store.get(key) is not None]
    reserve = 64 << 10
    dropped = len(stored) - len(there)
    assert_all(comm, 0 < dropped <= reserve // 1024, f"{dropped} dropped")
    store.check()
    comm.Barrier()
    assert_all(comm, store.delete_many(there).all())
    comm.Barrier()
    store.compact()
    again = [store.put(key, block(3, 4096)).stored for key in keys_of(comm.rank, 200)]
    assert_all(comm, all(again), f"{again.count(False)} were refused")


def test_owed_tombstones_have_a_limit(
    comm: MPI.Intracomm, folder: Path, open_store: Callable[..., Store], assert_all: AssertAll,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """While the disk refuses: puts that need room are refused beyond it, deletes a little later; no block is lost."""
    store = open_store(comm, **(SMALL | {"disk": str(folder / "store"), "lease_extents": 0}))
    tier = store._disk.tier
    tier._owed.most = 20
    store.put("begin", block(0, 10))
    store.sync()
    comm.Barrier()
    refusing = Refusing(monkeypatch, errno.ENOSPC, "pwritev", "pwrite")
    mine = keys_of(comm.rank, 600)
    results = [store.put(key, block(at % 200, 4096)) for at, key in enumerate(mine)]
    refused = [each.reason for each in results if each.refused]
    assert_all(
        comm, len(tier._owed) == 20 and "20 deletes and drops wait for the disk" in refused[-1], str(refused[-1:])
    )
    there = [key for key, each in zip(mine, results, strict=True) if each.stored and store.get(key) is not None]
    assert_all(
        comm, len(there) == len(mine) - len(refused) - 20, f"{len(there)} are there, {len(refused)} were refused"
    )
    for key in there[:20]:
        assert store.delete(key)
    caught(DiskError, lambda: store.delete(there[20]))
    assert_all(comm, len(tier._owed) == 40 and store.get(there[20]) is not None)
    refusing.over()
    assert store.delete(there[20])  # it writes what is owed
    tier._broken_until = 0.0  # not to wait
    store.put("more", block(1, 4096))
    store.sync()
    store.check()
    assert_all(comm, not tier._owed)
    comm.Barrier()
    with opened(comm, killed(comm, folder / "store", folder / "copy")) as after:
        got = found(after, mine)
        left = [key for key in mine if got[key] is not None]
        assert_all(comm, left == there[21:], f"{len(left)} are found, {len(there) - 21} were there")
