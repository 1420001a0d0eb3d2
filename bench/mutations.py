"""`python -m bench mutations [NAME ...]`: break the protocol, one rule at a time, and see the tests notice.

Covers the copy of the tree in which a rule is broken, the run of the tests that must fail, and the verdict.
Does not cover which rules there are (`mutation_list`). A test counts only if an
assertion of it fails: a change that does not compile, or hangs, proves nothing.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import typer

from bench.mutation import Mutation
from bench.mutation_list import MUTATIONS
from cascade_mpi.launcher import launcher_rank

ROOT = Path(__file__).resolve().parent.parent
# pytest's text of a failed assertion, of `pytest.fail`, and of `pytest.raises` without the error.
_ASSERTED = re.compile(r"(AssertionError|assert |Failed: |Failed)")
_CASE_S = 100  # a single test that takes longer hangs


class Outcome(enum.Enum):
    """What became of a mutation."""

    FOUND = "found"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    TIMED_OUT = "TIMED OUT"


def mutated(source: str, mutation: Mutation) -> str:
    """Local. The text of a file with a rule broken. ValueError: an old text does not stand there exactly once."""
    for old, new in mutation.edits:
        if source.count(old) != 1:
            raise ValueError(f"{mutation.name}: {old!r} stands {source.count(old)} times in {mutation.file}")
        source = source.replace(old, new)
    return source


def judge(report: str, tests: Sequence[str]) -> tuple[Outcome, str]:
    """Local. From pytest's JUnit report: did an assertion of every named test fail? And if not, why."""
    cases: dict[str, list[ElementTree.Element]] = {test: [] for test in tests}
    for case in ElementTree.fromstring(report).iter("testcase"):
        path = case.get("classname", "").replace(".", "/") + ".py"
        name = f"{path}::{case.get('name', '')}"
        for test in tests:
            if test in (name, name.split("[", maxsplit=1)[0]):
                cases[test].append(case)
    worst, texts = Outcome.FOUND, []
    for test, found in cases.items():
        failures = [each.get("message", "") for case in found for each in case.findall("failure")]
        passed = [case for case in found if not list(case)]
        if any(_ASSERTED.match(message) for message in failures):
            continue
        if found and len(passed) == len(found):
            worst = Outcome.SURVIVED if worst is Outcome.FOUND else worst
            texts.append(f"passed: {test}")
        else:
            worst = Outcome.BROKEN
            errors = [each.get("message", "") for case in found for each in case.iter("error")]
            texts.append(f"no assertion of {test}: {' / '.join((failures + errors)[:2])[:300] or 'it did not run'}")
    return worst, "; ".join(texts)


class Copy:
    """A copy of the checkout in which tests run; rules are broken in it, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._tree, self._caches = folder / "tree", folder / "caches"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        for name in listed.stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                target = self._tree / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)
        (self._tree / "cascade_mpi" / "kernels").symlink_to(Path("..") / "kernels")  # as the installation maps it
        self._report = folder / "report.xml"
        where = "import cascade_mpi, cascade_mpi.kernels.probe as probe; print(cascade_mpi.__file__, probe.__file__)"
        seen = subprocess.run(
            [sys.executable, "-c", where], cwd=self._tree, env=self._environment("base"), check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        if any(not each.startswith(str(self._tree)) for each in seen.stdout.split()):
            raise RuntimeError(f"tests would import {seen.stdout.strip()}, not the copy in {self._tree}")

    def _environment(self, cache: str) -> dict[str, str]:
        # Compiled code that depends on a broken rule stays apart from what other mutations use again.
        return os.environ | {"PYTHONPATH": str(self._tree), "NUMBA_CACHE_DIR": str(self._caches / cache)}

    def run(self, tests: Sequence[str], seconds: float, cache: str = "base", ranks: int = 1) -> str | None:
        """Local. Run tests on so many ranks; rank 0's report, "" if there is none, None if they did not end in time."""
        self._report.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "pytest", "-q", "--with-mpi", "-p", "no:cacheprovider", "--tb=line",
            f"--timeout={_CASE_S}", *tests,
        ]  # fmt: skip
        first = [*command, f"--junitxml={self._report}"]
        if ranks > 1:  # the launcher of the MPI that is in this environment, if there is one
            beside = Path(sys.executable).parent / "mpiexec"
            launcher = str(beside) if beside.exists() else "mpiexec"
            command = [launcher, "-n", "1", *first, ":", "-n", str(ranks - 1), *command]
        else:
            command = first
        try:
            done = subprocess.run(
                command, cwd=self._tree, env=self._environment(cache), timeout=seconds, check=False,
                capture_output=True, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        if self._report.exists():
            return self._report.read_text()
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        return ""

    def break_rule(self, mutation: Mutation, seconds: float) -> tuple[Outcome, str]:
        """Local. Apply a mutation, run its tests, undo it."""
        path = self._tree / mutation.file
        source = path.read_text()
        cache = "mutated" if mutation.in_kernels else "base"
        try:
            path.write_text(mutated(source, mutation))
            report = self.run(mutation.tests, seconds, cache, mutation.ranks)
        finally:
            path.write_text(source)
            shutil.rmtree(self._caches / "mutated", ignore_errors=True)
        if report is None:
            return Outcome.TIMED_OUT, f"after {seconds:.0f} s"
        return judge(report, mutation.tests) if report else (Outcome.BROKEN, "pytest wrote no report")


def run(chosen: Sequence[Mutation], seconds: float) -> int:
    """Local. All chosen mutations, with a table; 0 if every one was found."""
    with tempfile.TemporaryDirectory(prefix="cascade-mutations-") as folder:
        copy = Copy(Path(folder))
        for ranks in sorted({mutation.ranks for mutation in chosen}):
            tests = sorted({test for mutation in chosen if mutation.ranks == ranks for test in mutation.tests})
            began = time.monotonic()
            report = copy.run(tests, seconds * 3, ranks=ranks)
            healthy = report and judge(report, tests)[0] is Outcome.SURVIVED and "<failure" not in report
            passed = "pass" if healthy else "DO NOT PASS"
            print(f"unchanged: {len(tests)} tests {passed} on {ranks} ranks, {_since(began)}", flush=True)
            if not healthy:
                return 1
        outcomes = []
        for mutation in chosen:
            began = time.monotonic()
            outcome, text = copy.break_rule(mutation, seconds)
            outcomes.append(outcome)
            print(f"{outcome.value:>9}  {mutation.name:<24} {_since(began):>8}  {mutation.rule}", flush=True)
            if text:
                print(f"{'':>11}{text}", flush=True)
    lost = len(outcomes) - outcomes.count(Outcome.FOUND)
    print(f"mutations: {len(outcomes) - lost} of {len(outcomes)} found" + (", FAILED" if lost else ""), flush=True)
    return int(lost > 0)


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"


# -------------------------------------------------------------------------------------------- command line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def mutations(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; without: all.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time of the tests of one mutation.")] = 600.0,
    listed: Annotated[bool, typer.Option("--list", help="Print the names and rules, and end.")] = False,
) -> None:
    """Break the protocol on purpose, one rule at a time, and see a test find it."""
    known = {each.name: each for each in MUTATIONS}
    if unknown := [name for name in names or () if name not in known]:
        raise typer.BadParameter(f"{unknown[0]} is no mutation: --list names them")
    if listed:
        for each in MUTATIONS:
            print(f"{each.name:<24} {each.file:<32} {each.rule}")
        raise typer.Exit
    raise typer.Exit(run([known[name] for name in names] if names else MUTATIONS, seconds))


def main(arguments: Sequence[str]) -> int:
    """Local. Parse, then run; the exit status. Not under an MPI launcher: the tests start MPI themselves."""
    if launcher_rank() != 0:
        return 0
    try:
        app(args=list(arguments), prog_name="python -m bench mutations")
    except SystemExit as end:  # how typer always ends
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
