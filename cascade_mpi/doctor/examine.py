"""One examination: the checks of this rank, then MPI in a process of its own, with a time limit on everything.

Covers the order, the time limits, and what a crash or a hang of MPI means. Does not cover single checks, nor how the
findings are shown.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from cascade_mpi.doctor import configured, cpus, disk, gpu, library, limits, node, slurm, software
from cascade_mpi.doctor.finding import Finding, Report, problem, warning
from cascade_mpi.doctor.host import Host
from cascade_mpi.doctor.probe import INITIALISING
from cascade_mpi.launcher import launch, launcher_rank, library_name, local_rank, of_another_mpi

Check = Callable[[Host], Iterable[Finding]]

NODE_CHECKS: tuple[Check, ...] = (
    slurm.slurm, node.host_name, node.clock, limits.shared_memory, limits.memory_limits, limits.leftovers,
    software.kernel_cache, software.hdf5, gpu.gpu, disk.disk,
)  # fmt: skip
RANK_CHECKS: tuple[Check, ...] = (
    software.versions, configured.settings, library.mpi_variables, cpus.cpus, limits.locked_memory,
    limits.files_and_processes,
)  # fmt: skip
CHECK_LIMIT_S = 45.0  # more than a program that a check runs may take
MPI_LIMIT_S = 120.0  # the first store compiles its kernels


class Examined(NamedTuple):
    """The reports that this process has, and whether it is the one to print them."""

    reports: list[Report]
    speaks: bool


def examine(host: Host, *, mpi: bool = True, seconds: float = MPI_LIMIT_S) -> Examined:
    """Local without `mpi`, else Collective over the launcher's processes. Returns within its time limits."""
    report = look(host)
    if not mpi:
        return Examined([report], launcher_rank(host.environ) == 0)
    reports, world = ask_mpi(host, report, seconds)
    # In a world of several ranks its rank 0 has all reports; otherwise the launcher's first process speaks.
    return Examined(reports or [report], bool(reports) if world > 1 else launcher_rank(host.environ) == 0)


def look(host: Host, limit: float = CHECK_LIMIT_S) -> Report:
    """Local. The report of all checks that need no MPI."""
    report = Report(launcher_rank(host.environ), host.name, local_rank(host.environ), sorted(host.affinity()))
    report.threads, report.device = cpus.threads_per_rank(host), gpu.device(host)
    if not report.local_rank:  # one process a node is enough
        report.node_findings = run_checks(NODE_CHECKS, host, limit)
    report.findings = run_checks(RANK_CHECKS, host, limit)
    return report


def run_checks(checks: Sequence[Check], host: Host, limit: float = CHECK_LIMIT_S) -> list[Finding]:
    """Local. What the checks found; one that fails or does not end (a dead file server) is a finding itself."""
    found: list[Finding] = []
    for check in checks:
        name, result = check.__name__.replace("_", " "), _Result()
        # A system call that hangs cannot be interrupted, but another thread can go on.
        thread = threading.Thread(target=result.run, args=(check, host), name=name, daemon=True)
        thread.start()
        thread.join(limit)
        found += result.findings
        if thread.is_alive():
            remedy = "something that it looks at hangs (a file server, a driver): ask the administrators"
            found.append(problem(name, f"no answer within {limit:.0f} s", remedy))
        elif result.error is not None:
            error = f"{type(result.error).__name__}: {result.error}"
            found.append(problem(name, f"the check itself failed: {error}", "please report this"))
    return found


class _Result:
    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.error: Exception | None = None

    def run(self, check: Check, host: Host) -> None:
        try:
            for finding in check(host):
                self.findings.append(finding)
        except Exception as error:
            self.error = error


def ask_mpi(host: Host, report: Report, seconds: float) -> tuple[list[Report], int]:
    """Collective. The reports of all ranks (none on other ranks than 0) and the size of the world (0: none).

    When MPI crashes or hangs, only this rank's report with a finding that says so.
    """
    with tempfile.TemporaryDirectory(prefix="cascade-doctor-") as folder:
        asked, diary, output = (Path(folder, name) for name in ("report.json", "diary.jsonl", "output"))
        asked.write_text(json.dumps(report.data()))
        command = [host.python, "-m", "cascade_mpi.doctor.probe", str(asked), str(diary)]
        command += [str(host.disk)] if host.disk is not None else []
        with output.open("w") as stream, _told_to_end() as end:
            # With the launcher's descriptors: the process takes this one's place in the job.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, close_fds=False
            )  # fmt: skip
            end.process = process
            happened = end.wait(process, seconds)
        lines = [json.loads(line) for line in _lines(diary) if line.endswith("}")]
        said = [line for line in _lines(output) if line.strip()]
    if lines and "reports" in lines[-1]:
        return [Report.of(each) for each in lines[-1]["reports"]], lines[-1]["world"]
    if not happened:
        happened = f"MPI ended the process with {_ending(process.returncode)}"
    report.findings += [Finding(**line["finding"]) for line in lines if "finding" in line]
    report.findings.append(failed(host, happened, _last(lines, "stage", "starting"), said, _last(lines, "library", "")))
    return [report], 0


def failed(host: Host, happened: str, stage: str, said: Sequence[str], library: str = "") -> Finding:
    """Local. The finding for an MPI that crashed or hangs while `stage`, having printed the lines `said`."""
    line = f"{happened} while {stage}" + (f"; it said: {' / '.join(said[-3:])[:500]}" if said else "")
    if remedy := of_another_mpi(host.environ, library):
        return problem("MPI", f"{line}; the launcher is not that of {library_name(library)}", remedy)
    outside = launch(host.environ) is None and "SLURM_JOB_ID" not in host.environ and host.which("srun")
    if outside and stage == INITIALISING:
        # Many MPIs refuse to start on a login node: nothing is wrong with that.
        return warning(
            "MPI", line, "inside a job: srun -n 2 python -m cascade_mpi doctor; without MPI: doctor --no-mpi"
        )
    return problem(
        "MPI", line,
        "try python -m mpi4py.bench helloworld under the same launcher; if it was only slow, --timeout 300",
    )  # fmt: skip


class _End:
    """The end of the process that asks MPI: by itself, by the time limit, or because the launcher ends the job."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._told = False

    def tell(self, number: int, frame: FrameType | None) -> None:
        """A signal handler. It raises nothing: whatever is going on goes on, and the wait is over."""
        self._told = True
        if self.process is not None:
            self.process.kill()

    def wait(self, process: subprocess.Popen[bytes], seconds: float) -> str:
        """Local. Wait for the process; "" or why it did not end by itself."""
        if self._told:  # before it was known
            process.kill()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"MPI did not come back within {seconds:g} s"
        return "the launcher ended the job" if self._told else ""


@contextmanager
def _told_to_end() -> Iterator[_End]:
    """A launcher that ends the job interrupts the wait, so that what was found until then is still shown."""
    end = _End()
    if threading.current_thread() is not threading.main_thread():
        yield end
        return
    before = signal.signal(signal.SIGTERM, end.tell)
    try:
        yield end
    finally:
        signal.signal(signal.SIGTERM, before)


def _ending(status: int) -> str:
    try:
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    except ValueError:
        return f"signal {-status}"


def _last(lines: Sequence[dict[str, Any]], name: str, otherwise: str) -> str:
    return next((str(line[name]) for line in reversed(lines) if name in line), otherwise)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
