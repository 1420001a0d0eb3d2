"""What a workload run does beside replaying: routes, arrivals, signals, recordings and metrics, on all ranks."""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from cascade_mpi.errors import ConfigError, ProtocolError, TraceError
from cascade_mpi.traces import ROUTES, deal, open_trace
from cascade_mpi.traces.recording import Header, RecordingReader
from cascade_mpi.traces.source import Faults, Source
from cascade_mpi.workload import Result, WorkloadOptions, run_workload
from cascade_mpi.workload import recording as recording_module
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.metrics import JsonLines, PrometheusFile
from cascade_mpi.workload.recording import Recorder
from cascade_mpi.workload.replay import Replay
from cascade_mpi.workload.sampling import Meeting, Verdict
from cascade_mpi.workload.server import Server

pytestmark = [pytest.mark.mpi, pytest.mark.alone]

SMALL = WorkloadOptions(block_bytes=4 << 10, requests=100, live=False, store={"copy_threads": 1})


@pytest.fixture
def folder(comm: MPI.Intracomm) -> Iterator[Path]:
    """One folder for all ranks."""
    made = tempfile.TemporaryDirectory() if comm.rank == 0 else None
    yield Path(comm.bcast(made and made.name))
    comm.Barrier()
    if made is not None:
        made.cleanup()


def is_exact(result: Result) -> bool:
    return result.hits + result.unique + result.double_computes == result.accesses and result.double_computes >= 0


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_exact_and_bounded(comm: MPI.Intracomm, assert_all: Callable[..., None], route: str) -> None:
    result = run_workload(comm, replace(SMALL, route=route))
    assert_all(comm, is_exact(result) and result.replayed == 100 and result.corrupt == 0, str(result))
    assert_all(comm, result.setting.route == route, str(result.setting))
    if comm.size == 1:
        dealt = deal(SMALL.open_trace(), 0, 1, route=route)
        assert (result.hits, result.double_computes) == (dealt.prefix_hits, 0)


def test_nobody_begins_a_round_before_all_have_ended_the_one_before(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a meeting after every request; what a rank may do at a meeting is told by the ones before."""
    seen: list[tuple[int, int]] = []
    serve = Replay._serve_until

    def noted(self: Replay, limit: int) -> bool:
        behind = serve(self, limit)
        at, indices = self._at.served, self._dealt.indices
        seen.append((limit, int(indices[at]) if at < len(indices) else self._dealt.requests))
        return behind

    monkeypatch.setattr(Replay, "_serve_until", noted)
    monkeypatch.setattr("cascade_mpi.workload.replay.ROUND_S", 0.0)
    result = run_workload(comm, replace(SMALL, window=4, route="session"))
    assert_all(comm, is_exact(result) and result.replayed == 100, str(result))
    ranks = comm.allgather(seen)
    limits = [[limit for limit, _ in meetings] for meetings in ranks]
    assert_all(comm, limits.count(limits[0]) == comm.size, "the ranks are in different rounds")
    assert_all(comm, len(seen) >= 4 * len(set(limits[0])) > 4, f"rounds are not cut: {limits[0]}")
    for meeting, (before, after) in enumerate(itertools.pairwise(limits[0])):
        least = min(meetings[meeting][1] for meetings in ranks)
        assert_all(comm, (after > before) == (least >= before), f"meeting {meeting}: {before}, {after}, {least}")


def test_a_timed_replay_waits_for_arrivals(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    last = max(request.timestamp_s for request in SMALL.open_trace())
    result = run_workload(comm, replace(SMALL, timed=last / 0.3))
    assert_all(comm, is_exact(result) and result.replayed == 100, str(result))
    assert_all(comm, result.seconds >= 0.3, f"{result.seconds} s")
    assert_all(comm, result.lateness is not None and 0 <= result.lateness["share"] <= 1, str(result.lateness))


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_signal_ends_all_ranks_in_one_round_with_an_exact_result(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch, everywhere: bool
) -> None:
    """All ranks get it (as from a launcher), or the last one alone; it comes at the third meeting."""
    meetings: list[Verdict] = []
    meet = Meeting.meet

    def interrupted(self: Meeting, *mine: Any) -> Verdict:
        meetings.append(meet(self, *mine))
        if len(meetings) == 3 and (everywhere or comm.rank == comm.size - 1):
            os.kill(os.getpid(), signal.SIGINT)
            while not interruption.stopped():
                pass
        return meetings[-1]

    monkeypatch.setattr(Meeting, "meet", interrupted)
    with Interruption(speaks=comm.rank == 0) as interruption:
        result = run_workload(comm, replace(SMALL, window=2, requests=400), interruption=interruption)
    assert_all(comm, result.signal == signal.SIGINT, str(result.signal))
    assert_all(comm, len(meetings) == 4, f"{len(meetings)} meetings")
    assert_all(comm, 6 * comm.size <= result.replayed < 400, str(result.replayed))
    assert_all(comm, is_exact(result) and result.hits > 0, str(result))
    assert_all(comm, comm.allgather(result.record()).count(result.record()) == comm.size, "different results")
    if everywhere:  # every rank has replayed its part of three rounds, so the trace tells what they were
        ids = [request.block_ids for request in replace(SMALL, requests=6 * comm.size).open_trace()]
        unique = len({block for each in ids for block in each})
        assert_all(comm, (result.accesses, result.unique) == (sum(map(len, ids)), unique), str(result))


def test_a_signal_behind_the_last_request_changes_nothing(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    meet = Meeting.meet
    interruption = Interruption(speaks=False)

    def interrupted(self: Meeting, came: int, due: int, behind: bool, *more: Any) -> Verdict:
        if not comm.allreduce(behind, MPI.LOR):  # all ranks are done with the only round
            interruption.signal = came = signal.SIGINT
        return meet(self, came, due, behind, *more)

    monkeypatch.setattr(Meeting, "meet", interrupted)
    result = run_workload(comm, replace(SMALL, window=SMALL.requests), interruption=interruption)
    assert_all(comm, (result.signal, result.replayed) == (0, 100) and is_exact(result), str(result))


def test_counts_that_contradict_the_trace_end_the_run(
    comm: MPI.Intracomm,
    raises_all: Callable[..., str],
    assert_all: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve = Server.serve

    def counted_twice(self: Server, ids: Any) -> int:
        done = serve(self, ids)
        self.tally.accesses += comm.rank == 0
        self.tally.hits += comm.rank == 0
        return done

    monkeypatch.setattr(Server, "serve", counted_twice)
    text = raises_all(comm, ProtocolError, lambda: run_workload(comm, SMALL))
    assert_all(comm, "accesses were counted" in text, text)


def test_rank_0_says_what_is_read_before_anything_is_wrong_with_it(
    comm: MPI.Intracomm, raises_all: Callable[..., str], assert_all: Callable[..., None], folder: Path
) -> None:
    said: list[str] = []
    (folder / "t.jsonl").write_text("{")
    raises_all(comm, TraceError, lambda: run_workload(comm, replace(SMALL, trace=folder / "t.jsonl"), say=said.append))
    assert_all(comm, len(said) == (comm.rank == 0), str(said))
    assert_all(comm, all(line.endswith(f" {folder / 't.jsonl'}") for line in said), str(said))


class Countdown(Interruption):
    """A signal that comes when the replay has asked for it so many times."""

    def __init__(self, questions: int) -> None:
        super().__init__(speaks=False)
        self.left = questions

    def stopped(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.signal = signal.SIGTERM
        return super().stopped()


@pytest.mark.parametrize("questions", [38, 41])
def test_a_request_that_is_cut_short_is_counted_as_far_as_it_went(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch, questions: int
) -> None:
    monkeypatch.setattr("cascade_mpi.workload.server.BATCH_BLOCKS", 1)  # asked before every block
    result = run_workload(MPI.COMM_SELF, SMALL, interruption=Countdown(questions))
    ids = [block for request in SMALL.open_trace() for block in request.block_ids][: result.accesses]
    requests = itertools.accumulate(len(request.block_ids) for request in SMALL.open_trace())
    assert_all(comm, result.accesses not in requests, "it was not cut within a request")
    # Alone, a rank computes no block twice.
    assert_all(comm, (result.unique, result.double_computes) == (len(set(ids)), 0), str(result))
    assert_all(comm, is_exact(result), str(result))


def test_a_recording_replays_to_the_same_accesses(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_module, "PIECE_BYTES", 1000)  # in many pieces
    monkeypatch.setattr(recording_module, "_READ_BYTES", 300)
    path = folder / "recorded.jsonl"
    first = run_workload(comm, replace(SMALL, record=path))
    assert_all(comm, first.unwritten == () and is_exact(first), str(first))
    trace = open_trace(path)
    assert_all(comm, trace.format == "cascade", trace.format)
    again = run_workload(comm, replace(SMALL, trace=path, requests=None))
    assert_all(comm, is_exact(again), str(again))
    found = (again.replayed, again.accesses, again.unique)
    assert_all(comm, found == (first.replayed, first.accesses, first.unique), f"{found}, {first}")
    reader = RecordingReader(Source(path))
    calls = [call for _, call in reader.accesses(Faults(path.name, strict=True))]
    assert_all(comm, reader.header == Header(4 << 10, 512, comm.size, trace=first.setting.trace), str(reader.header))
    assert_all(comm, {call.rank for call in calls} == set(range(comm.size)), "not every rank")
    got = sum(size is not None for call in calls if call.op == "get" for size in call.result)
    kept = sum(became == "kept" for call in calls if call.op == "put" for became in call.result)
    assert_all(comm, (got, kept) == (first.hits, first.kept), f"{got} got, {kept} kept, {first}")


def test_a_recording_that_one_rank_cannot_write_is_not_written(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(self: Recorder, *call: Any) -> None:
        if comm.rank == comm.size - 1:
            self._fail(OSError(28, "No space left on device"))

    monkeypatch.setattr(Recorder, "_write", full)
    result = run_workload(comm, replace(SMALL, record=folder / "recorded.jsonl"))
    said = f"--record {folder / 'recorded.jsonl'}: rank {comm.size - 1}: No space left on device (its record is in "
    assert_all(comm, len(result.unwritten) == 1 and result.unwritten[0].startswith(said), str(result.unwritten))
    assert_all(comm, not (folder / "recorded.jsonl").exists(), "a file was written")
    assert_all(comm, (said in capsys.readouterr().err) is (comm.rank == 0), "who says it")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_costs_its_file_and_nothing_else(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real file that fails at each write, and again when it is closed with what it could not write."""
    full = Path("/dev/full")
    monkeypatch.setattr("cascade_mpi.workload.outputs.tempfile.TemporaryFile", lambda **_: full.open("wb"))
    result = run_workload(comm, replace(SMALL, record=folder / "recorded.jsonl", metrics=full))
    assert_all(comm, result.replayed == 100 and is_exact(result), str(result))
    assert_all(comm, ["No space left" in said for said in result.unwritten] == [True, True], str(result.unwritten))
    assert_all(comm, [said.split()[0] for said in result.unwritten] == ["--metrics", "--record"], str(result.unwritten))


def test_a_rank_without_a_temporary_folder_stops_all_before_the_replay(
    comm: MPI.Intracomm,
    assert_all: Callable[..., None],
    raises_all: Callable[..., str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    if comm.rank == comm.size - 1:
        monkeypatch.setattr("cascade_mpi.workload.outputs.tempfile.TemporaryFile", refused)
    text = raises_all(comm, ConfigError, lambda: run_workload(comm, replace(SMALL, record=folder / "recorded.jsonl")))
    assert_all(comm, f"rank {comm.size - 1} can make no temporary file (No space left on device)" in text, text)
    assert_all(comm, "set TMPDIR" in text, text)


@pytest.mark.parametrize("per", ["rank", "node"])
def test_metrics_are_those_of_the_result(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, per: Any
) -> None:
    options = replace(
        SMALL, prom_file=str(folder / f"cascade-{{{per}}}.prom"), prom_per=per, metrics=folder / "metrics.jsonl"
    )
    result = run_workload(comm, options)
    comm.Barrier()
    files = sorted(folder.glob("*.prom"))
    assert_all(comm, len(files) == (comm.size if per == "rank" else result.setting.nodes), str(files))
    for name, total in (("cascade_hits_total", result.hits), ("cascade_block_accesses_total", result.accesses)):
        values = [_metric(file, name) for file in files]
        assert_all(comm, sum(values) == total, f"{name}: {values}, not {total}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert_all(comm, [line["final"] for line in lines[-2:]] == [False, True], "the last line is the final one")
    last = {name: lines[-1][name] for name in ("requests", "accesses", "hits", "put_bytes")}
    expected = {"requests": 100, "accesses": result.accesses, "hits": result.hits, "put_bytes": result.bytes_put}
    assert_all(comm, last == expected, f"{last}, not {expected}")


def _metric(file: Path, name: str) -> float:
    return float(next(line for line in file.read_text().splitlines() if line.startswith(name)).split()[-1])


def test_metrics_that_cannot_be_written_any_more_do_not_end_the_replay(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*call: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(JsonLines, "see", full)
    monkeypatch.setattr(PrometheusFile, "write", full)
    options = replace(SMALL, metrics=folder / "metrics.jsonl", prom_file=str(folder / "{rank}"))
    result = run_workload(comm, options)
    assert_all(comm, is_exact(result) and result.replayed == 100, str(result))
    lines = [f"--metrics {folder / 'metrics.jsonl'}: No space left on device: nothing more is written there"]
    lines.append("--prom-file somewhere: No space left on device")
    assert_all(comm, sorted(result.unwritten) == sorted(lines), str(result.unwritten))
    said = capsys.readouterr().err.splitlines()
    mine = lines if comm.rank == 0 else lines[1:]  # each rank writes a textfile of its own
    assert_all(comm, sorted(said) == sorted(f"cascade: {line}" for line in mine), str(said))


@pytest.mark.parametrize("option", ["json", "metrics", "record", "prom_file"])
def test_files_that_cannot_be_written_are_refused_before_the_replay(
    comm: MPI.Intracomm, raises_all: Callable[..., str], assert_all: Callable[..., None], folder: Path, option: str
) -> None:
    path: Any = folder / "absent" / "file-{rank}"
    options = replace(SMALL, **{option: str(path) if option == "prom_file" else path})
    text = raises_all(comm, ConfigError, lambda: run_workload(comm, options))
    assert_all(comm, f"--{option.replace('_', '-')} {folder}/absent/file-" in text, text)


def test_a_variable_gives_the_arena_unless_an_option_does(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCADE_DRAM_BYTES", "3MiB")
    cases = (SMALL, replace(SMALL, dram=5 << 20), replace(SMALL, store={**SMALL.store, "dram_bytes": "4MiB"}))
    sizes = [run_workload(comm, options).setting.dram_per_rank for options in cases]
    assert_all(comm, sizes == [3 << 20, 5 << 20, 4 << 20], str(sizes))
