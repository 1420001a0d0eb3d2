"""What a check found: its name, how good it is, what there is in numbers, and what to do.

Covers one finding, one rank's report of them, and the same as plain data. Does not cover how findings of several
ranks become one table (see `merge`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Status = Literal["ok", "warning", "problem"]
STATUSES: tuple[Status, ...] = get_args(Status)  # from good to bad


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    name: str
    status: Status
    found: str
    remedy: str = ""  # "" only when the status is ok


@dataclass(slots=True)
class Report:
    """What one rank found, and what the checks of a whole node need to know about it."""

    rank: int = 0
    host: str = ""
    local_rank: int | None = None
    cpus: list[int] = field(default_factory=list)  # that this rank may run on
    threads: int = 0  # that variables ask for in this rank, 0: they do not
    device: str = ""  # the GPU that it would use, "" if there is none
    node_findings: list[Finding] = field(default_factory=list)  # the same on every rank of the node
    findings: list[Finding] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """Local. As JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Report:
        """Local. The report that `data()` was called on."""
        made = cls(**data)
        made.node_findings = [Finding(**each) for each in data["node_findings"]]
        made.findings = [Finding(**each) for each in data["findings"]]
        return made


def ok(name: str, found: str) -> Finding:
    """Local. A finding that asks for nothing."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """Local. It works, but slower or less safely than it could."""
    return Finding(name, "warning", found, remedy)


def problem(name: str, found: str, remedy: str) -> Finding:
    """Local. The store, or what was asked for, does not work like that."""
    return Finding(name, "problem", found, remedy)


def count(number: int, noun: str) -> str:
    """Local. "1 rank", "2 ranks"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def worst(findings: Iterable[Finding]) -> Status:
    """Local. The worst status among the findings, "ok" without any."""
    return max((finding.status for finding in findings), key=STATUSES.index, default="ok")
