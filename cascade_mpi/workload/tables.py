"""The result of a replay as tables for people.

Covers what is shown at the end. Does not cover what is shown meanwhile (see `live`) nor what the numbers mean (see
`result`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from cascade_mpi.config import format_size
from cascade_mpi.workload.result import QUANTILES, Result
from cascade_mpi.workload.tally import ARENA


def show(result: Result, console: Console | None = None) -> None:
    """Local. Print the result as tables, and how far it went if it was ended by a signal."""
    console = console or Console(width=None if sys.stdout.isatty() else 100)  # a launcher's pipe has no width
    console.print(_counts_table(result))
    console.print(_tiers_table(result))
    console.print(_latency_table(result))
    if result.parts is not None:
        console.print(_parts_table(result.parts, result.setting.requests))
    if result.corrupt:
        console.print(f"[bold red]{result.corrupt:,} corrupt blocks were read[/]")
    if result.signal:
        console.print(f"interrupted after {result.replayed:,} of {result.setting.requests:,} requests")


def _counts_table(result: Result) -> Table:
    caption = f"hits + unique {'- on disk before ' if result.warm else ''}+ double computes = accesses"
    caption += ", of what was replayed" if result.replayed < result.setting.requests else ""
    table = _table("workload", ["what", "value"], caption=caption)
    table.show_header = False
    for row in _rows(result):
        table.add_row(*row)
    return table


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    setting, retries, stall, uneven = result.setting, result.retries, result.stall_s, result.imbalance
    of_all = f" of {setting.requests:,}" if result.replayed < setting.requests else ""
    behind = f" behind the first {setting.first:,}" if setting.first else ""
    yield "requests, route", f"{result.replayed:,}{of_all}{behind}, {setting.route}"
    yield "block accesses", f"{result.accesses:,}"
    yield "hits", f"{result.hits:,} ({result.hit_rate:.2%})"
    yield "unique blocks", f"{result.unique:,}"
    if result.warm:
        yield "of these on disk before", f"{result.warm:,}"
    yield "double computes", f"{result.double_computes:,}"
    yield "corrupt", f"{result.corrupt:,}" if setting.verify != "off" else "not checked"
    yield "kept, refused, evicted", f"{result.kept:,}, {result.refused:,}, {result.evicted:,}"
    yield (
        "retries",
        f"{retries['recheck']:,} re-checks, {retries['exhausted']:,} exhausted, {retries['lost_cas']:,} lost CAS",
    )
    yield "got", f"{format_size(result.bytes_got)} at {result.get_gbps:.2f} GB/s"
    yield "put", f"{format_size(result.bytes_put)} at {result.put_gbps:.2f} GB/s"
    yield "seconds", f"{result.seconds:.2f}"
    yield "stalled of these, a rank", f"{stall['min']:.2f} to {stall['max']:.2f}, mean {stall['mean']:.2f}"
    yield "most / mean of a rank", f"busy time {uneven['busy']:.2f}, bytes {uneven['bytes']:.2f}"
    yield (
        "slowest rank",
        f"{uneven['slowest_rank']:.0f}, busy {uneven['slowest_busy_s']:.2f} s (mean {uneven['mean_busy_s']:.2f} s)",
    )
    if result.lateness is not None:
        late = result.lateness
        yield "late requests", f"{late['share']:.2%}, mean {late['mean_ms']:,.1f} ms, max {late['max_ms']:,.1f} ms"
    arena = result.arena
    sizes = ", ".join(f"{state} {format_size(int(arena[state]))}" for state in ARENA if state != "bytes")
    yield "arenas at the end", sizes
    yield "their fill", f"{arena['fill']:.1%}, a rank {arena['fill_min']:.1%} to {arena['fill_max']:.1%}"
    if result.disk is not None:
        yield from _disk_rows(result.disk)
    if result.drained is not None:
        done = result.drained
        yield (
            "made durable at the end",
            f"{done['blocks']:,} blocks, {format_size(int(done['bytes']))} in {done['seconds']:.2f} s;"
            f" {done['left']:,} left, {format_size(int(done['left_bytes']))}",
        )


def _parts_table(parts: dict[str, float], requests: int) -> Table:
    table = _table(f"all {parts['runs']:.0f} runs of this trace", ["what", "value"])
    table.show_header = False
    accesses, hits = parts["accesses"], parts["hits"]
    table.add_row("requests", f"{parts['requests']:,.0f} of {requests:,}")
    table.add_row("block accesses", f"{accesses:,.0f}")
    table.add_row("hits", f"{hits:,.0f} ({hits / accesses if accesses else 0:.2%})")
    table.add_row("of these from disk", f"{parts['disk_gets']:,.0f}")
    table.add_row("computed", f"{parts['computes']:,.0f}")
    table.add_row("corrupt", f"{parts['corrupt']:,.0f}")
    table.add_row("seconds", f"{parts['seconds']:.2f}")
    return table


def _disk_rows(disk: dict[str, int]) -> Iterator[tuple[str, str]]:
    def of(name: str) -> str:
        return f"{disk[name]:,} blocks, {format_size(disk[f'{name}_bytes'])}"

    yield "on disk at the end", of("held")
    yield "written to disk", f"{of('written')}; {disk['tombstones']:,} tombstones"
    yield "left memory for disk, came back", f"{of('demoted')}; {of('promoted')}"
    if disk["damaged"] or disk["errors"] or disk["lost"]:
        yield "disk damage", f"{disk['damaged']:,} damaged, {disk['lost']:,} lost, {disk['errors']:,} errors"


def _tiers_table(result: Result) -> Table:
    table = _table("gets by tier", ["tier", "blocks", "bytes", "GB/s"])
    for name, tier in result.tiers.items():
        if name == "disk" and result.disk is None:
            continue
        table.add_row(name, f"{tier['gets']:,}", format_size(int(tier["bytes"])), f"{tier['gbps']:.2f}")
    return table


def _latency_table(result: Result) -> Table:
    labels = ["mean", *QUANTILES]
    table = _table("latency of a call, µs", ["call", "calls", "blocks each", *labels])
    for name, row in result.latency_us.items():
        values = [f"{row[label]:,.1f}" for label in labels]
        table.add_row(name, f"{row['calls']:,}", f"{row['blocks_per_call']:.1f}", *values)
    return table


def _table(title: str, names: Sequence[str], caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    return table
