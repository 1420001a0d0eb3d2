"""What rank 0 shows meanwhile: rates since the last sample, the rank that the others wait for, 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from workload_fakes import setting

from cascade_mpi.traces import deal, synthetic
from cascade_mpi.workload.live import LiveView, PlainLine, line, moment, render
from cascade_mpi.workload.sampling import Sample
from cascade_mpi.workload.tally import Latencies, Tally

SECOND = 1_000_000_000


def sample(tallies: list[Tally], seconds: float, **settled: Any) -> Sample:
    made = setting(deal(islice(synthetic(1), 10), 0, 1))
    made = replace(made, ranks=len(tallies), **({"requests": 1000} | settled))
    bins = np.zeros((3, Latencies.BINS), np.int64)
    return Sample(made, np.stack([tally.vector() for tally in tallies]), bins, seconds)


def test_rates_are_those_since_the_sample_before() -> None:
    before = sample([Tally(local_bytes=10**9, put_bytes=10**9)], 10.0)
    now = moment(sample([Tally(local_bytes=5 * 10**9, node_bytes=10**9, put_bytes=10**9)], 12.0), before)
    assert now.gbps == {"local": 2.0, "node": 0.5, "remote": 0.0, "disk": 0.0, "put": 0.0}
    assert moment(before).gbps["local"] == 0.1


def test_the_rest_is_expected_at_the_pace_so_far() -> None:
    assert moment(sample([Tally(requests=150), Tally(requests=100)], 5.0)).left_s == 15.0
    assert moment(sample([Tally()], 5.0)).left_s is None


def test_the_slowest_rank_is_the_one_that_waited_least_lately() -> None:
    before = sample([Tally(stall_ns=9 * SECOND), Tally(), Tally()], 10.0)
    now = moment(sample([Tally(stall_ns=9 * SECOND), Tally(stall_ns=SECOND), Tally(stall_ns=2 * SECOND)], 12.0), before)
    assert (now.slowest, now.behind_s) == (0, 1.5)
    assert moment(before).slowest == 1
    assert moment(sample([Tally(stall_ns=5)], 1.0)).behind_s == 0.0


@pytest.mark.parametrize("timed", [None, 2.0])
@pytest.mark.parametrize("ranks", [1, 4096])
def test_the_view_fits_80_columns(ranks: int, timed: float | None) -> None:
    large = Tally(
        requests=300, accesses=10**9, hits=7 * 10**8, stall_ns=10**15, arena_bytes=10**13, arena_live=10**13,
        arena_limbo=10**12, arena_free=10**12, local_gets=10**10, local_bytes=10**15, put_bytes=10**14,
        put_blocks=10**9, lost_cas=10**6, recheck_retries=10**7, evicted=10**9, late_requests=200, late_max_ns=10**13,
    )  # fmt: skip
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(render(moment(sample([large] * ranks, 90_000.0, requests=1_500_000, timed=timed))))
    lines = out.getvalue().splitlines()
    assert max(len(text.rstrip()) for text in lines) <= 80
    assert f"{300 * ranks:,} / 1,500,000 requests" in lines[0]
    assert ("slowest rank" in out.getvalue()) is (ranks > 1)
    assert ("late" in out.getvalue()) is (timed is not None)


def test_plain_lines_come_between_the_first_and_the_last_sample_without_control_codes() -> None:
    said: list[str] = []
    observer = PlainLine(said.append)
    for requests in (0, 250, 500):
        observer.see(sample([Tally(requests=requests, accesses=4, hits=1)], requests / 100))
    observer.see(replace(sample([Tally(requests=1000)], 10.0), final=True))
    assert said == [
        "cascade: 250 of 1,000 requests (25%) in 2 s, hit rate 25.0%, got 0.00 GB/s, put 0.00 GB/s, about 8 s left",
        "cascade: 500 of 1,000 requests (50%) in 5 s, hit rate 25.0%, got 0.00 GB/s, put 0.00 GB/s, about 5 s left",
    ]


def test_long_times_are_told_in_hours() -> None:
    assert "in 2 h 46 min" in line(moment(sample([Tally(requests=1)], 10_000.0)))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [Terminal(), io.StringIO()], ids=["terminal", "forced"])
def test_the_live_view_draws_samples_and_goes_away(out: io.StringIO) -> None:
    before = sample([Tally(requests=777)], 1.0)
    with LiveView(before.setting, out) as view:
        view.see(before)
        view._live.refresh()
    text = out.getvalue()
    assert "777 / 1,000 requests" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again
