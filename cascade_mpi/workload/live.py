"""What rank 0 shows while a replay goes on: a live view on a terminal, or a plain line from time to time.

Covers both, and what is computed from two samples: rates, and the rank that the others wait for. Does not cover
when samples are taken (see `sampling`) nor the tables at the end (see `tables`).

Rates shown here are bytes per second of the wall clock, over all ranks, since the sample before: what the job moves.
The tables' rates are those inside the calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cascade_mpi.config import format_size
from cascade_mpi.workload.result import Setting, arena, empty_tallies
from cascade_mpi.workload.sampling import Sample
from cascade_mpi.workload.tally import TIERS, columns, totals

LIVE_PERIOD_S, LINE_PERIOD_S = 0.5, 10.0
WIDTH = 80  # of a forced live view whose terminal is at the other end of a launcher's pipe


@dataclass(frozen=True, slots=True)
class Moment:
    """What a sample says beside the one before it."""

    sample: Sample
    total: dict[str, int]
    hit_rate: float
    gbps: dict[str, float]
    """Bytes got per second since the sample before, by tier, and "put"."""
    left_s: float | None
    """How long the rest will take at the mean pace so far; None before anything is done."""
    slowest: int
    """The rank that waited least in barriers since the sample before: the others waited for it."""
    behind_s: float
    """How much longer the others waited, on average."""


def moment(sample: Sample, before: Sample | None = None) -> Moment:
    """Local. Rates and the slowest rank of a sample, since `before` (None: the start)."""
    total = totals(sample.tallies)
    earlier = empty_tallies(len(sample.tallies)) if before is None else before.tallies
    old, spent = totals(earlier), sample.seconds - (before.seconds if before else 0.0)
    gbps = {
        name: (total[f"{name}_bytes"] - old[f"{name}_bytes"]) / spent / 1e9 if spent > 0 else 0.0
        for name in (*TIERS, "put")
    }
    waited = (columns(sample.tallies)["stall_ns"] - columns(earlier)["stall_ns"]) / 1e9
    slowest = int(np.argmin(waited))
    others = np.delete(waited, slowest)
    done = total["requests"]
    return Moment(
        sample=sample,
        total=total,
        hit_rate=total["hits"] / total["accesses"] if total["accesses"] else 0.0,
        gbps=gbps,
        left_s=sample.seconds * (sample.setting.requests - sample.setting.first - done) / done if done else None,
        slowest=slowest,
        behind_s=float(others.mean() - waited[slowest]) if others.size else 0.0,
    )


class PlainLine:
    """An observer that says one line from time to time, without control codes."""

    name = "stdout"

    def __init__(self, say: Callable[[str], None], period_s: float = LINE_PERIOD_S) -> None:
        self.period_s = period_s
        self._say = say
        self._last: Sample | None = None

    def see(self, sample: Sample) -> None:
        """Local. Print where the replay is; nothing at its start and its end."""
        if self._last is not None and not sample.final:
            self._say(line(moment(sample, self._last)))
        self._last = sample


def line(now: Moment) -> str:
    """Local. A moment in one line."""
    setting, done = now.sample.setting, now.sample.setting.first + now.total["requests"]
    left = "" if now.left_s is None else f", about {_time(now.left_s)} left"
    return (
        f"cascade: {done:,} of {setting.requests:,} requests ({_share(done, setting.requests):.0%}) in"
        f" {_time(now.sample.seconds)}, hit rate {now.hit_rate:.1%}, got {sum(now.gbps[t] for t in TIERS):.2f} GB/s,"
        f" put {now.gbps['put']:.2f} GB/s{left}"
    )


class LiveView:
    """An observer that keeps a view on the terminal up to date; a context manager."""

    name = "stdout"
    period_s = LIVE_PERIOD_S

    def __init__(self, setting: Setting, out: TextIO | None = None) -> None:
        out = sys.stdout if out is None else out
        forced = not out.isatty()
        console = Console(file=out, force_terminal=True if forced else None, width=WIDTH if forced else None)
        self._moment = moment(Sample(setting, empty_tallies(setting.ranks), np.zeros((3, 0), np.int64), 0.0))
        self._live = Live(
            get_renderable=lambda: render(self._moment), console=console, refresh_per_second=2, transient=True,
            redirect_stdout=not forced, redirect_stderr=not forced,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def see(self, sample: Sample) -> None:
        """Local. Show this sample from now on; drawn by a thread of its own."""
        self._moment = moment(sample, self._moment.sample)


def render(now: Moment) -> RenderableType:
    """Local. A moment as a view of at most 80 columns."""
    setting, total = now.sample.setting, now.total
    done = setting.first + total["requests"]
    head = Table.grid(padding=(0, 1))
    left = "" if now.left_s is None else f", {_time(now.left_s)} left"
    head.add_row(
        ProgressBar(total=max(setting.requests, 1), completed=done, width=18),
        Text(f"{done:,} / {setting.requests:,} requests", no_wrap=True),
        Text(_time(now.sample.seconds) + left, no_wrap=True),
    )
    return Group(head, _tiers(now), _ranks(now))


def _tiers(now: Moment) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("tier", "blocks", "bytes", "GB/s now"):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for tier in TIERS:
        if tier == "disk" and now.sample.setting.disk is None:
            continue
        gets, nbytes = now.total[f"{tier}_gets"], now.total[f"{tier}_bytes"]
        table.add_row(f"got {tier}", f"{gets:,}", format_size(nbytes), f"{now.gbps[tier]:.2f}")
    stored = now.total["put_blocks"] - now.total["kept"] - now.total["refused"]
    table.add_row("put", f"{stored:,}", format_size(now.total["put_bytes"]), f"{now.gbps['put']:.2f}")
    return table


def _ranks(now: Moment) -> RenderableType:
    held, total = arena(now.sample.tallies), now.total
    sizes = ", ".join(f"{state} {format_size(int(held[state]))}" for state in ("live", "limbo", "free"))
    stalled = columns(now.sample.tallies)["stall_ns"] / 1e9
    share = stalled.mean() / now.sample.seconds if now.sample.seconds else 0.0
    rows = [
        Text(f"hit rate {now.hit_rate:.1%}   corrupt {total['corrupt']:,}   evicted {total['evicted']:,}"),
        Text(f"arenas {held['fill']:.0%} full: {sizes}"),
        Text(f"stalls {share:.0%} of the time   retries {total['recheck_retries']:,}, {total['lost_cas']:,} lost CAS"),
    ]
    if len(stalled) > 1:
        rows.append(Text(f"slowest rank {now.slowest}: the others waited {now.behind_s:.2f} s for it"))
    if now.sample.setting.timed is not None:
        late = total["late_requests"]
        rows.append(Text(f"late {late:,} requests, at most {total['late_max_ns'] / 1e6:,.0f} ms"))
    return Group(*rows)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
