"""The process that asks MPI: started by `examine` on each rank, so that a crash or a hang of MPI is only a finding.

Covers what needs MPI running, and the gathering of all ranks' reports. Does not cover the checks that need no
MPI: their report comes in a file. Findings go to the other file as they are made, one JSON line each, so that those
before a crash are not lost; the last line says how it ended.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cascade_mpi.doctor import library as checks
from cascade_mpi.doctor.finding import Finding, Report, count, ok, problem, warning
from cascade_mpi.doctor.host import Host
from cascade_mpi.doctor.limits import network_devices
from cascade_mpi.errors import CascadeError
from cascade_mpi.launcher import separate_worlds

if TYPE_CHECKING:
    from mpi4py import MPI

INITIALISING = "initialising MPI"
_CLOCKS_APART_S = 1.0


class Diary:
    """What the process is about to do, what it found, and how it ended; read by its parent."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.findings: list[Finding] = []

    def stage(self, text: str) -> None:
        """Local. Note what is about to be tried."""
        self._write({"stage": text})

    def library(self, text: str) -> None:
        """Local. Note which MPI library this is, in its own words."""
        self._write({"library": text})

    def add(self, findings: Iterator[Finding]) -> None:
        """Local. Note findings while they are made."""
        for finding in findings:
            self.findings.append(finding)
            self._write({"finding": asdict(finding)})

    def end(self, reports: list[Report], world: int) -> None:
        """Local. Note the reports of all ranks (none but on rank 0), and how many ranks the world has."""
        self._write({"reports": [report.data() for report in reports], "world": world})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def main(report_file: str, diary_file: str, disk: str = "") -> None:
    """Collective, if MPI works. Ask MPI, and look at the directory `disk`; gather the reports of all ranks."""
    report = Report.of(json.loads(Path(report_file).read_text()))
    with Path(diary_file).open("w") as file:
        diary = Diary(file)
        diary.stage("loading the MPI library")
        try:
            import mpi4py

            mpi4py.rc.initialize = False  # what the library says about itself is known before it may crash
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # what mpi4py raises
            diary.add(_not_loaded(error))
            report.findings += diary.findings
            diary.end([report], 0)
            return
        host = Host(disk=Path(disk) if disk else None)
        try:
            library = _library(host, diary)
            diary.stage(INITIALISING)
            MPI.Init_thread(getattr(MPI, f"THREAD_{str(mpi4py.rc.thread_level).upper()}"))
            _ask(MPI.COMM_WORLD, host, library, diary, report)
        except Exception:
            traceback.print_exc()  # the parent shows the last lines
            sys.stderr.flush()
            if MPI.Is_initialized():
                MPI.COMM_WORLD.Abort(1)
            sys.exit(1)
        MPI.Finalize()


def _library(host: Host, diary: Diary) -> str:
    """What the MPI library says about itself, before it is initialised."""
    from mpi4py import MPI

    diary.stage("asking the MPI library about itself")
    text, maps = MPI.Get_library_version(), host.text("proc/self/maps")
    diary.library(text)
    paths = checks.loaded_libraries(maps, r"^libmpi(ch|_cray|_gnu.*|_abi)?\.so|^libmpi_(cray|gnu|intel)")
    abi = checks.abi(MPI.__file__)
    networks = network_devices(host)
    diary.add(checks.mpi_library(text, MPI.Get_version(), paths, abi, sys.prefix, host.environ, networks))
    diary.add(checks.mpiexec(host, checks.identify(text)))
    return text


def _ask(world: MPI.Intracomm, host: Host, text: str, diary: Diary, report: Report) -> None:
    loaded = checks.loaded_libraries(host.text("proc/self/maps"), r"\.so")
    takes = _takes_gpu_memory()  # only an initialised MPI answers
    diary.add(checks.gpu_support(checks.identify(text), host.environ, loaded, takes, bool(report.device)))
    diary.stage("meeting the other ranks")
    diary.add(_world(world, host, text))
    if not separate_worlds(host.environ, world.size, text):
        diary.add(_clocks(world))
        if world.size > 1:
            diary.stage("opening a small store on all ranks")
            from cascade_mpi.doctor.onesided import one_sided

            diary.add(one_sided(world))
        else:
            diary.stage("trying the window layouts")
            diary.add(_alone(world))
        if host.disk is not None and world.size > 1:
            diary.stage("writing and reading a file on all ranks")
            from cascade_mpi.doctor.coherence import coherence

            diary.add(coherence(world, host.disk))
    diary.stage("gathering the findings of all ranks")
    report.rank = world.rank
    report.findings += diary.findings
    reports = world.gather(report.data())
    diary.end([Report.of(each) for each in reports] if reports is not None else [], world.size)


def _world(world: MPI.Intracomm, host: Host, text: str) -> Iterator[Finding]:
    from mpi4py import MPI

    if happened := separate_worlds(host.environ, world.size, text):
        what, _, remedy = happened.partition("). ")
        yield problem("world", f"{what})", remedy)
        return
    node = world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)
    nodes = world.allreduce(int(node.rank == 0))
    node.Free()
    yield met(world.size, nodes)


def met(ranks: int, nodes: int) -> Finding:
    """Local. All processes of the launcher are in one world."""
    return ok("world", f"{count(ranks, 'rank')} on {count(nodes, 'node')}")


def _clocks(world: MPI.Intracomm) -> Iterator[Finding]:
    """The clocks of the nodes, read as simultaneously as a barrier makes it."""
    world.Barrier()
    times = world.allgather(time.time())
    spread = max(times) - min(times)
    if spread > _CLOCKS_APART_S:
        yield warning("clocks of the ranks", f"{spread:.1f} s apart", "start chrony or ntpd on the nodes")
    elif world.size > 1:
        yield ok("clocks of the ranks", f"within {_CLOCKS_APART_S:.0f} s")


def _alone(world: MPI.Intracomm) -> Iterator[Finding]:
    from mpi4py import MPI

    from cascade_mpi.doctor.onesided import thread_level
    from cascade_mpi.fabric import LEVELS
    from cascade_mpi.window import choose_layout

    yield from thread_level(LEVELS.get(MPI.Query_thread(), "unknown"))
    try:
        layout, reason = choose_layout("auto", world, world)
    except CascadeError as error:
        yield problem("window layout", str(error), "use MPICH 4.2 or newer")
        return
    yield ok("window layout", f"{layout} ({reason})")
    yield ok("one-sided Get, CAS", "not tried: needs two ranks (mpiexec -n 2 python -m cascade_mpi doctor)")


def _takes_gpu_memory() -> bool | None:
    """What MPIX_Query_cuda_support says, None if the library has no such function."""
    from mpi4py import MPI

    query = getattr(ctypes.CDLL(MPI.__file__), "MPIX_Query_cuda_support", None)
    return None if query is None else bool(query())


def _not_loaded(error: Exception) -> Iterator[Finding]:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ModuleNotFoundError):
        yield problem("MPI library", f"mpi4py is not installed ({error})", f"{sys.executable} -m pip install mpi4py")
        return
    shown = "; ".join(lines[:3])[:400]
    yield problem(
        "MPI library", f"mpi4py cannot load it: {shown}",
        "on a machine without an MPI: pip install mpich; on a cluster: load the MPI's module, or set MPI4PY_LIBMPI to "
        "its libmpi.so and see that the libraries that it needs are in LD_LIBRARY_PATH",
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
