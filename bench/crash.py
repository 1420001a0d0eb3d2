"""`python -m bench crash`: kill jobs with SIGKILL, restart them on other ranks, and see what is there.

Covers the directories and their rounds, what is counted, the verdict and its report. Does not cover the choice of
rounds (`crash_plan`), what a job does (`crash_job`), who is killed how (`crash_launch`, `crash_steps`), nor what may be
found afterwards (`crash_judge`).

A round is a job on a directory: it reads all that the one before it has left, checks the store, and works until one of
its ranks, or all, are killed: from outside at any time, or by themselves at a named step of the write path. The next
round has another number of ranks, and goes on from there. The launcher is started from here: not to be run under one.

A SIGKILL loses nothing that the system was handed: what a sync is for, only a power loss shows, and
`tests/unit/power_loss.py` plays those.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.crash_judge import Judge
from bench.crash_launch import Ended, compile_kernels, launcher, play
from bench.crash_plan import KINDS, STEPS, Kind, Planner, Round
from cascade_mpi.launcher import launcher_rank
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.fsck import fsck

_KEYS = 96
_JOB_S = 60.0  # a job that lasts longer hangs
_KEPT = 20  # problems that are shown


@dataclass
class Verdict:
    """What all rounds together have shown."""

    violations: Counter[str] = field(default_factory=lambda: Counter({"lost": 0, "wrong": 0, "resurrected": 0}))
    problems: list[str] = field(default_factory=list)
    failed: int = 0  # jobs that ended by themselves, or hung
    kills: Counter[str] = field(default_factory=Counter)
    at: Counter[str] = field(default_factory=Counter)  # kills by place
    alone: int = 0  # kills of jobs on one rank, which do not count
    restarts: Counter[str] = field(default_factory=Counter)  # by ranks before and after
    counts: Counter[str] = field(default_factory=Counter)
    rounds: int = 0

    @property
    def ok(self) -> bool:
        """Nothing lost, wrong or resurrected, and every job did what it was to."""
        return not self.failed and not sum(self.violations.values())


class Torture:
    """One run: directories one after the other, each with its rounds."""

    def __init__(
        self, seed: int, kills: int, seconds: float, rounds: int, kinds: Sequence[int], steps: Sequence[str],
        folder: Path,
    ) -> None:  # fmt: skip
        self._wanted, self._until, self._rounds = kills, time.monotonic() + seconds, rounds
        self._kinds, self._folder = kinds, folder
        self._planner = Planner(seed, _KEYS, steps)
        self.verdict = Verdict()

    def run(self) -> None:
        """Local. Until there were enough kills, or the time is over, or a directory has shown what must not be."""
        number = 0
        while self._on():
            self._directory(KINDS[self._kinds[number % len(self._kinds)]], self._folder / f"{number:03d}")
            number += 1

    def _on(self) -> bool:
        return sum(self.verdict.kills.values()) < self._wanted and time.monotonic() < self._until and self.verdict.ok

    def _directory(self, kind: Kind, folder: Path) -> None:
        judge = Judge(_KEYS, writethrough=kind.durability == "writethrough")
        folder.mkdir()
        number = before = 0
        while number < self._rounds and self._on():
            number += 1
            before = self._play(self._planner.round(number, folder, kind, before), judge, before)
        if self.verdict.ok:
            last = self._planner.last(number + 1, folder, kind, before)
            self._play(last, judge, before)
            self._examine(last.store)
        self.verdict.counts.update(judge.counts)
        print(f"{folder.name} ({kind}): {number} rounds, {dict(judge.counts)}", flush=True)
        if self.verdict.ok:
            shutil.rmtree(folder)
        else:
            print(f"left as it is: {folder}", flush=True)

    def _play(self, round: Round, judge: Judge, before: int) -> int:
        verdict = self.verdict
        ended = play(round, _JOB_S)
        verdict.rounds += 1
        if before:
            verdict.restarts[f"{before} to {round.ranks}"] += 1
        if ended.killed:
            assert round.kill is not None
            verdict.at[round.kill.name] += 1
            self._planner.reached[round.kill.name] += 1
            if round.ranks == 1:
                verdict.alone += 1
            else:
                verdict.kills[round.kill.who] += 1
        where = f"round {round.number} of {round.folder}, {round.ranks} ranks"
        if ended.hung or (not ended.killed and (ended.status or ended.notes.ended < round.ranks)):
            verdict.failed += 1
            how = "did not end in time" if ended.hung else f"ended with status {ended.status}"
            verdict.problems.append(f"{where}: the job {how}:\n{ended.errors[-3000:]}")
        for text in ended.notes.wrong:
            verdict.violations["wrong"] += 1
            verdict.problems.append(f"{where}: {text}")
        for each in judge.round(ended.notes):
            verdict.violations[each.kind] += 1
            verdict.problems.append(f"{where}: {each.kind}: key {each.key}: {each.text}")
        self._count(ended)
        return round.ranks

    def _examine(self, store: Path) -> None:
        """Whether `cascade fsck` finds damage in what kills and a last clean close have left.

        In segments that were never sealed ranks that wrote them together may have left it.
        """
        with PosixFiles(store, read_only=True) as files:
            report = fsck(files)
        damage = [each for each in report.findings if each.severity == "damage" and not each.path.endswith(".open")]
        self.verdict.failed += bool(damage)
        self.verdict.problems += [f"{store}: fsck: {each.path} at byte {each.offset}: {each.what}" for each in damage]

    def _count(self, ended: Ended) -> None:
        counts = self.verdict.counts
        counts["syncs"] += len(ended.notes.syncs)
        counts["clean ends"] += ended.notes.ended > 0
        if ended.notes.counts.get("damaged") or ended.notes.counts.get("errors"):
            self.verdict.failed += 1
            self.verdict.problems.append(f"a job counted {ended.notes.counts}")
        if ended.killed and "Traceback" in ended.errors:
            counts["last words of survivors"] += 1


def result(verdict: Verdict, seed: int, kills: int, seconds: float, steps: bool) -> dict[str, Any]:
    """Local. The report of a run; `failures` are the demands that it does not meet."""
    found = [f"{number} {name}" for name, number in verdict.violations.items() if number]
    if verdict.failed:
        found.append(f"{verdict.failed} jobs that did not do what they were to")
    done = sum(verdict.kills.values())
    if done < kills and not found:
        found.append(f"only {done} kills, {kills} are asked for (more --seconds?)")
    if steps and (missed := [step for step in STEPS if not verdict.at[step]]):
        found.append(f"nobody was killed at {', '.join(missed)}")
    return {
        "bench": "crash", "ok": not found, "seed": seed, "seconds": round(seconds, 1), "kills": done,
        "kills_of": dict(verdict.kills), "kills_alone": verdict.alone, "rounds": verdict.rounds,
        **verdict.violations, "jobs_failed": verdict.failed,
        "at": dict(sorted(verdict.at.items())), "restarts": dict(sorted(verdict.restarts.items())),
        "counts": dict(verdict.counts), "failures": found, "problems": verdict.problems[:_KEPT],
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Local. The report for people."""
    table = Table(title="Killed with SIGKILL")
    table.add_column("where")
    table.add_column("kills", justify="right")
    for where, number in found["at"].items():
        table.add_row(where, str(number))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    for name in ("kills", "kills_of", "kills_alone", "rounds", "restarts", "counts", "lost", "wrong", "resurrected"):
        print(f"{name:>14}  {found[name]}")
    for text in found["problems"]:
        print(text)
    print("crash: passed" if found["ok"] else "crash: FAILED: " + "; ".join(found["failures"]), flush=True)


# -------------------------------------------------------------------------------------------- command line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def crash(
    kills: Annotated[int, typer.Option(min=1, help="Jobs of 2 to 4 ranks that are killed.")] = 300,
    seconds: Annotated[float, typer.Option(min=1, help="No more rounds after this time; fewer kills fail.")] = 2400.0,
    seed: Annotated[int, typer.Option(min=0, help="What is done depends on it; when, on the machine.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Jobs one after the other on one directory.")] = 20,
    kind: Annotated[
        list[int] | None, typer.Option(min=0, max=len(KINDS) - 1, help="Only this kind of directory; may be repeated.")
    ] = None,
    step: Annotated[list[str] | None, typer.Option(help="Kill only at this step; may be repeated.")] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Where the directories are made (default: a temporary one).")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result.")] = None,
) -> None:
    """Kill jobs with SIGKILL, restart them on other ranks, and compare what is there with what was acknowledged."""
    if launcher() is None:
        raise typer.BadParameter("there is no mpiexec beside python or in PATH")
    if unknown := sorted(set(step or ()) - set(STEPS)):
        raise typer.BadParameter(f"--step {unknown[0]}: it must be one of {', '.join(STEPS)}")
    compile_kernels()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="cascade-crash-", dir=directory))
    torture = Torture(seed, kills, seconds, rounds, kind or range(len(KINDS)), step or (), folder)
    try:
        torture.run()
    finally:
        if torture.verdict.ok:
            shutil.rmtree(folder)
    found = result(torture.verdict, seed, kills, time.monotonic() - began, steps=kills >= 300 and not kind and not step)
    show(found)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(0 if found["ok"] else 1)


def main(arguments: Sequence[str]) -> int:
    """Local. Parse, then run; the exit status. Not under an MPI launcher: jobs are started from here."""
    if launcher_rank() != 0:
        return 0
    try:
        app(args=list(arguments), prog_name="python -m bench crash")
    except SystemExit as end:  # how typer always ends
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
