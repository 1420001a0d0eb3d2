"""The replay on all ranks: the sums agree everywhere, every block is right, and failures are everybody's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import LAYOUTS
from mpi4py import MPI

from cascade_mpi import workload
from cascade_mpi.commands import workload as workload_command
from cascade_mpi.errors import CascadeError, ConfigError, MemoryLimitError, TraceError
from cascade_mpi.traces import Deal, deal
from cascade_mpi.workload import Result, WorkloadOptions, run_workload

pytestmark = pytest.mark.mpi

SMALL = WorkloadOptions(block_bytes=8 << 10, requests=120, store={"copy_threads": 1})


def identical(comm: MPI.Intracomm, result: Result) -> bool:
    return all(record == result.record() for record in comm.allgather(result.record()))


def is_exact(result: Result) -> bool:
    return result.hits + result.unique + result.double_computes == result.accesses and result.double_computes >= 0


@pytest.mark.core
@pytest.mark.parametrize("block_bytes", [4096, 9000, 200_000])
@pytest.mark.parametrize("windows", LAYOUTS)
def test_every_rank_gets_the_same_exact_result(
    any_comm: MPI.Intracomm, assert_all: Callable[..., None], block_bytes: int, windows: str
) -> None:
    options = replace(SMALL, block_bytes=block_bytes, store={"windows": windows, "copy_threads": 1})
    result = run_workload(any_comm, options)
    assert_all(any_comm, is_exact(result), str(result))
    assert_all(any_comm, result.corrupt == 0 and result.evicted == 0 and result.refused == 0, str(result))
    assert_all(any_comm, identical(any_comm, result), "the ranks have different results")
    replayed = (result.setting.requests, result.setting.ranks)
    assert_all(any_comm, replayed == (120, any_comm.size), str(result.setting))
    gets = {tier: row["gets"] for tier, row in result.tiers.items()}
    assert_all(any_comm, sum(gets.values()) == result.hits, f"{gets}, {result.hits} hits")
    assert_all(any_comm, result.bytes_got == result.hits * block_bytes, str(result.bytes_got))
    if any_comm.size == 1:
        # what an endless cache would hit, known from the trace alone
        prefix_hits = deal(options.open_trace(), 0, 1).prefix_hits
        assert (result.hits, result.double_computes) == (prefix_hits, 0)


def test_the_drift_between_ranks_is_bounded(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    dealt = deal(SMALL.open_trace(), comm.rank, comm.size)
    result = run_workload(comm, replace(SMALL, window=1))
    worst = _hits_when_rounds_are_blind(comm.size)
    assert_all(comm, worst <= result.hits <= dealt.prefix_hits, f"{worst} <= {result.hits} <= {dealt.prefix_hits}")


def _hits_when_rounds_are_blind(ranks: int) -> int:
    """Hits when a rank sees nothing that another one puts between two barriers, one request a round."""
    stored: set[int] = set()
    hits, requests = 0, list(SMALL.open_trace())
    for first in range(0, len(requests), ranks):
        in_round = [request.block_ids for request in requests[first : first + ranks]]
        hits += sum(next((k for k, b in enumerate(ids) if b not in stored), len(ids)) for ids in in_round)
        stored.update(block for ids in in_round for block in ids)
    return hits


@pytest.mark.parametrize("when_full", ["evict", "refuse"])
def test_an_arena_that_is_too_small_costs_hits_only(
    comm: MPI.Intracomm, assert_all: Callable[..., None], when_full: str
) -> None:
    options = replace(SMALL, dram=64 << 10, store={"when_full": when_full, "copy_threads": 1})
    result = run_workload(comm, options)
    assert_all(comm, is_exact(result) and result.corrupt == 0, str(result))
    lost = result.evicted if when_full == "evict" else result.refused
    assert_all(comm, lost > 0 and result.double_computes > 0, str(result))


def test_a_request_without_blocks_and_ranks_without_requests(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path
) -> None:
    trace = _trace(comm, folder, [(0, []), (512, [4])])
    result = run_workload(comm, replace(SMALL, trace=trace, requests=None))
    assert_all(comm, (result.accesses, result.unique, result.hits) == (1, 1, 0), str(result))


def _trace(comm: MPI.Intracomm, folder: Path, requests: list[tuple[int, Any]]) -> Path:
    """A trace file of rank 0 that every rank may read."""
    path = folder / "trace.jsonl"
    if comm.rank == 0:
        lines = [
            json.dumps({"timestamp": 0, "input_length": tokens, "output_length": 0, "hash_ids": ids})
            for tokens, ids in requests
        ]
        path.write_text("\n".join(lines))
    comm.Barrier()
    return path


def test_what_is_wrong_with_a_trace_is_raised_everywhere(
    comm: MPI.Intracomm, raises_all: Callable[..., str], folder: Path
) -> None:
    trace = _trace(comm, folder, [(512, [4]), (512, "x")])
    text = raises_all(comm, TraceError, lambda: run_workload(comm, replace(SMALL, trace=trace)))
    assert "trace.jsonl, line 2: field 'hash_ids'" in text


def test_a_trace_that_one_rank_cannot_read_is_raised_everywhere(
    comm: MPI.Intracomm, raises_all: Callable[..., str], folder: Path
) -> None:
    trace = _trace(comm, folder, [(512, [4])])
    mine = trace if comm.rank < comm.size - 1 else folder / "absent"
    text = raises_all(comm, TraceError, lambda: run_workload(comm, replace(SMALL, trace=mine)))
    assert "absent: No such file" in text


def test_ranks_with_different_traces_are_refused(
    comm: MPI.Intracomm, raises_all: Callable[..., str], assert_all: Callable[..., None]
) -> None:
    options = replace(SMALL, requests=SMALL.requests - (comm.rank == 1))
    if comm.size == 1:
        assert is_exact(run_workload(comm, options))
        return
    text = raises_all(comm, TraceError, lambda: run_workload(comm, options))
    assert_all(comm, "rank 1 reads another trace" in text, text)


def test_arenas_beyond_the_machine_are_refused_everywhere(comm: MPI.Intracomm, raises_all: Callable[..., str]) -> None:
    raises_all(comm, MemoryLimitError, lambda: run_workload(comm, replace(SMALL, dram=1 << 44)))
    text = raises_all(comm, ConfigError, lambda: run_workload(comm, replace(SMALL, dram_total=4096)))
    assert "does not hold one block" in text


def test_the_start_line_is_said_once(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    said: list[str] = []
    run_workload(comm, replace(SMALL, dram_total=comm.size << 20), said.append)
    assert_all(comm, len(said) == (2 if comm.rank == 0 else 0), str(said))
    if comm.rank == 0:
        assert "1.0 MiB per rank" in said[0]
        assert "expect evictions" in said[1]


@pytest.mark.alone
def test_the_exit_status_tells_corrupt_blocks_missing_files_and_signals(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Any, folder: Path
) -> None:
    good = run_workload(comm, SMALL)
    for corrupt, signal, unwritten, status in ((0, 0, (), 0), (1, 0, (), 1), (0, 0, ("a",), 1), (1, 15, (), 143)):
        made = replace(good, corrupt=corrupt, signal=signal, unwritten=unwritten)
        monkeypatch.setattr(workload, "run_workload", lambda comm, options, made=made, **more: made)
        out = folder / f"{comm.rank}.json"
        assert_all(comm, workload_command.run(replace(SMALL, json=out)) == status, "exit status")
        assert_all(comm, out.exists() == (comm.rank == 0), "only rank 0 writes")
        assert_all(comm, bool(capsys.readouterr().out) == (comm.rank == 0), "only rank 0 prints")
        if comm.rank == 0:
            assert json.loads(out.read_text())["corrupt"] == corrupt


def test_the_command_says_an_error_once(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(comm: Any, options: Any, **more: Any) -> None:
        raise CascadeError("it cannot be done")

    monkeypatch.setattr(workload, "run_workload", fail)
    assert_all(comm, workload_command.run(SMALL) == 2, "exit status")
    expected = "cascade: it cannot be done\n" if comm.rank == 0 else ""
    assert_all(comm, capsys.readouterr() == ("", expected), "what was printed")


def test_a_block_that_the_store_gets_wrong_is_counted(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascade_mpi.store import Store

    read = Store.get_many

    def swap(self: Store, keys: np.ndarray, outs: list[np.ndarray], **options: Any) -> list[Any]:
        sizes = read(self, keys, outs, **options)
        if len(outs) > 1:
            first = outs[0].copy()
            outs[0][:], outs[1][:] = outs[1], first
        return sizes

    monkeypatch.setattr(Store, "get_many", swap)
    result = run_workload(comm, SMALL)
    assert_all(comm, result.corrupt > 0 and is_exact(result), str(result))


def test_deal_is_the_same_everywhere(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    dealt: Deal = deal(SMALL.open_trace(), comm.rank, comm.size)
    assert_all(comm, comm.allreduce(sum(map(len, dealt.mine))) == dealt.accesses, "each access is dealt once")
