"""Findings of all ranks as one table: equal ones once, different ones with the ranks or nodes that have them.

Covers which report speaks for a node, and what must be equal on all ranks. Does not cover the printing (see `show`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade_mpi.doctor import cpus, gpu
from cascade_mpi.doctor.finding import STATUSES, Finding, Report, problem

_NODE_CHECKS = (cpus.sharing, cpus.threads, gpu.devices)
_EQUAL = ("versions", "MPI library")


@dataclass(frozen=True, slots=True)
class Row:
    """A finding, and which ranks and hosts have it."""

    finding: Finding
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]


def merge(reports: Sequence[Report]) -> list[Row]:
    """Local. The rows of the table, in the order in which the checks were made, bad ones of a check first."""
    hosts: dict[str, list[Report]] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        hosts.setdefault(report.host, []).append(report)
    found: list[tuple[Finding, tuple[int, ...], str]] = []
    for host, members in hosts.items():
        ranks = tuple(report.rank for report in members)
        speaker = next((report for report in members if report.node_findings), members[0])
        found += [(finding, ranks, host) for finding in speaker.node_findings]
    for report in reports:
        found += [(finding, (report.rank,), report.host) for finding in report.findings]
    for host, members in hosts.items():
        if members[0].cpus:
            ranks = tuple(report.rank for report in members)
            found += [(finding, ranks, host) for check in _NODE_CHECKS for finding in check(members)]
    together: dict[Finding, list[tuple[tuple[int, ...], str]]] = {}
    for finding, ranks, host in found:
        together.setdefault(finding, []).append((ranks, host))
    rows = [
        Row(finding, tuple(sorted({rank for ranks, _ in places for rank in ranks})),
            tuple(dict.fromkeys(host for _, host in places)))
        for finding, places in together.items()
    ]  # fmt: skip
    names = list(dict.fromkeys(row.finding.name for row in rows))
    rows += [_differs(name, rows) for name in names if name in _EQUAL and _count(name, rows) > 1]
    return sorted(rows, key=lambda row: (names.index(row.finding.name), -STATUSES.index(row.finding.status)))


def _count(name: str, rows: Sequence[Row]) -> int:
    return len({row.finding.found for row in rows if row.finding.name == name})


def _differs(name: str, rows: Sequence[Row]) -> Row:
    mine = [row for row in rows if row.finding.name == name]
    finding = problem(
        name, f"{len(mine)} different ones in one job (see the lines below)", "give all ranks the same environment"
    )
    ranks = tuple(sorted(rank for row in mine for rank in row.ranks))
    return Row(finding, ranks, tuple(dict.fromkeys(host for row in mine for host in row.hosts)))
