"""Opening and closing: both window layouts, whose memory is mapped where, limits, and that memory is given back.

Does not cover what is done with the memory.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import LAYOUTS, OPEN_MPI
from mpi4py import MPI

from cascade_mpi import window
from cascade_mpi.errors import ConfigError, MemoryLimitError, ProtocolError
from cascade_mpi.store import Store

pytestmark = pytest.mark.alone


def shared_bytes() -> int:
    """How much memory this process has mapped that it shares with others."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions = line.split(maxsplit=2)[:2]
        if permissions.endswith("s"):
            begin, end = (int(part, 16) for part in span.split("-"))
            total += end - begin
    return total


@pytest.fixture
def node(comm: MPI.Intracomm) -> Any:
    made = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
    yield made
    made.Free()


@pytest.mark.parametrize("layout", window.LAYOUTS)
def test_memory_is_zeroed_and_begins_at_a_page(comm: MPI.Intracomm, node: MPI.Intracomm, layout: str) -> None:
    # Memory of this process that was used before: a window of one rank may be given it again.
    used = [np.full(nbytes, 0xEE, np.uint8) for nbytes in (5_000, 30_000, 70_000, 200_000) for _ in range(20)]
    del used
    for nbytes in (1, 4096, 50_000, 150_000):
        made = window.allocate("test", nbytes, comm, node, layout, atomics=False)
        assert made.memory.nbytes >= nbytes
        assert made.memory.ctypes.data % 4096 == 0
        assert not made.memory.any()
        made.memory[:] = 0xDD  # what the next one of this process might find
        made.free()
        assert made.memory.nbytes == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mapped_memory_is_the_peers(comm: MPI.Intracomm, node: MPI.Intracomm, layout: str) -> None:
    made = window.allocate("test", 8192, comm, node, layout, atomics=False)
    made.memory[:] = comm.rank + 1
    comm.Barrier()
    on_node = node.allgather(comm.rank)
    for rank in range(comm.size):
        address = int(made.table[rank, 0])
        assert bool(address) == (rank in on_node), (rank, on_node)
        if address:
            peers = np.ctypeslib.as_array((ctypes.c_uint8 * 8192).from_address(address))
            assert (peers == rank + 1).all()
        got = np.zeros(8192, np.uint8)  # and the displacement is right for MPI too
        made.world.Get([got, 8192, MPI.BYTE], rank, [int(made.table[rank, 1]), 8192, MPI.BYTE])
        made.world.Flush(rank)
        assert (got == rank + 1).all()
    comm.Barrier()
    made.free()


def test_hints_for_atomics_are_on_the_index_alone(store: Store) -> None:
    hints = store.report()["windows"]["hints"]
    asked = {"accumulate_ops", "which_accumulate_ops", "accumulate_ordering"}
    assert not asked & set(hints["data"])
    assert not asked & set(hints["pins"])
    if "MPICH" in MPI.Get_library_version():
        assert hints["index"]["accumulate_ops"] == "same_op_no_op"
    if OPEN_MPI and MPI.COMM_WORLD.size > 1:  # else the CASes of two nodes on a word are not atomic with each other
        assert {hints[name]["acc_single_intrinsic"] for name in ("index", "spaces")} == {"true"}


def test_auto_takes_a_layout_that_maps_the_node(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, windows="auto")
    windows = store.report()["windows"]
    assert windows["layout"] in window.LAYOUTS
    assert windows["reason"]
    ranks = store.report()["ranks_on_node"]
    assert [rank for rank, mapped in enumerate(store._fabric.mapped) if mapped] == ranks
    assert comm.rank in ranks


def test_a_layout_that_does_not_map_the_node_is_refused(
    comm: MPI.Intracomm, node: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, raises_all: Callable[..., str]
) -> None:
    if comm.allreduce(node.size, MPI.MAX) == 1:
        assert window.choose_layout("allocate", comm, node) == ("allocate", "requested")
        pytest.skip("no two ranks share a node")
    if not OPEN_MPI:  # which maps nobody by itself
        map_peers = window._map_peers

        def map_nobody(table: np.ndarray, *arguments: Any, in_node: bool) -> None:
            map_peers(table, *arguments, in_node=in_node)
            if not in_node:
                table[:, 0] *= np.arange(comm.size) == comm.rank

        monkeypatch.setattr(window, "_map_peers", map_nobody)
    text = raises_all(comm, ProtocolError, lambda: Store(comm, dram_bytes="1MiB", windows="allocate"))
    assert "(allocate: a peer of the node is not mapped)" in text
    assert text.endswith('use windows="auto"')
    layout, reason = window.choose_layout("auto", comm, node)
    assert layout == "shared"
    assert reason.startswith("allocate: a peer of the node is not mapped;")


@pytest.mark.alone
def test_memory_is_given_back_when_stores_are_closed(comm: MPI.Intracomm) -> None:
    arena, sizes = 3 << 20, []
    for number in range(30 if comm.size <= 2 else 10):
        store = Store(comm, dram_bytes=arena, windows=LAYOUTS[number % len(LAYOUTS)], progress="none")
        store.put(f"{comm.rank}", np.ones(arena // 2, np.uint8))
        store.close()
        sizes.append(shared_bytes())
    # MPI keeps some memory of its own; a leak would be 3 MiB or more with every store.
    assert sizes[-1] - sizes[5] < arena, sizes


@pytest.mark.core
def test_arenas_that_do_not_fit_are_refused_with_numbers(comm: MPI.Intracomm, raises_all: Callable[..., str]) -> None:
    before = shared_bytes()
    text = raises_all(comm, MemoryLimitError, lambda: Store(comm, dram_bytes="100TiB"))
    assert re.search(r"\d ranks? on this node needs? \d+\.\d TiB of shared memory", text)
    assert re.search(r"has \d+\.\d [KMGT]iB free", text)
    assert "lower dram_bytes to at most" in text
    assert shared_bytes() - before < 1 << 30
    with Store(comm, dram_bytes="1MiB") as store:  # and the job can go on
        assert store.put("k", b"v")


def test_different_settings_are_refused_on_all_ranks(comm: MPI.Intracomm, raises_all: Callable[..., str]) -> None:
    if comm.size == 1:
        assert Store(comm, dram_bytes="1MiB").close() is None
        pytest.skip("one rank agrees with itself")
    odd = comm.size - 1
    size = "2MiB" if comm.rank == odd else "1MiB"
    text = raises_all(comm, ConfigError, lambda: Store(comm, dram_bytes=size))
    assert f"rank {odd} was given" in text
    assert str(2 << 20) in text


@pytest.mark.parametrize("wrong", [{"dram_byts": 5}, {"windows": "sideways"}, {"dram_bytes": "many"}])
def test_a_setting_that_is_wrong_on_one_rank_is_refused_on_all(
    comm: MPI.Intracomm, raises_all: Callable[..., str], wrong: dict[str, Any]
) -> None:
    settings = wrong if comm.rank == comm.size - 1 else {"dram_bytes": "1MiB"}
    text = raises_all(comm, ConfigError, lambda: Store(comm, **settings))
    assert next(iter(wrong)) in text


def test_pages_grow_with_the_arena() -> None:
    from cascade_mpi.layout import MAX_PAGES, page_bytes_for

    for arena in (4096, 1 << 30, 16 << 30, (16 << 30) + 1, 1 << 40):
        page = page_bytes_for(arena)
        assert page & page - 1 == 0
        assert -(-arena // page) <= MAX_PAGES
        assert page == 4096 or -(-arena // (page // 2)) > MAX_PAGES


def test_a_smallest_arena(open_store: Callable[..., Store], comm: MPI.Intracomm) -> None:
    store = open_store(comm, dram_bytes=4096, when_full="refuse")
    assert store.put(f"{comm.rank}", np.full(4096, comm.rank, np.uint8))
    assert not store.put(f"{comm.rank} more", b"")
    comm.Barrier()
    for rank in range(comm.size):
        assert (store.get(f"{rank}") == rank).all()
    store.check()
