"""One examination: checks that fail or hang, an MPI that crashes or hangs, many ranks in one table."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_host
import pytest
from rich.console import Console

from cascade_mpi.commands import doctor
from cascade_mpi.doctor import examine, merge, probe, show
from cascade_mpi.doctor.finding import Finding, Report, ok, problem, warning, worst
from cascade_mpi.doctor.host import Host, Ran, run_program

HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
STAGE = '{"stage": "opening a small store"}'
FINDING = '{"finding": {"name": "MPI library", "status": "ok", "found": "MPICH", "remedy": ""}}'


def good(host: Host) -> Iterator[Finding]:
    yield ok("good", host.name)


def broken_check(host: Host) -> Iterator[Finding]:
    yield ok("half", "said before")
    raise KeyError("planted")


def test_a_check_that_fails_is_a_finding(tmp_path: Path) -> None:
    found = examine.run_checks([broken_check, good], fake_host.host(tmp_path))
    assert [finding.name for finding in found] == ["half", "broken check", "good"]
    assert found[1].status == "problem"
    assert "KeyError: 'planted'" in found[1].found


def test_a_check_that_hangs_is_a_finding(tmp_path: Path) -> None:
    release = threading.Event()

    def dead_server(host: Host) -> Iterator[Finding]:
        release.wait(60)
        yield ok("dead", "")

    found = examine.run_checks([dead_server, good], fake_host.host(tmp_path), limit=0.05)
    release.set()
    assert [(finding.name, finding.status) for finding in found] == [("dead server", "problem"), ("good", "ok")]
    assert "no answer within" in found[0].found


def test_programs() -> None:
    assert run_program(["/nonexistent/program"]) is None
    assert run_program(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Ran(3, "out\n", "err\n")


def test_only_one_process_of_a_node_looks_at_the_node(tmp_path: Path) -> None:
    for local, looks in ((None, True), ("0", True), ("1", False)):
        environ = {} if local is None else {"MPI_LOCALRANKID": local}
        report = examine.look(fake_host.host(tmp_path, environ=environ))
        assert bool(report.node_findings) is looks
        assert report.findings
        assert report.local_rank == (None if local is None else int(local))


# ------------------------------------------------------------------------------------------ MPI in its own process


def asked(tmp_path: Path, script: str, *, seconds: float = 30, **more: Any) -> tuple[list[Report], int]:
    """What comes back when the process that asks MPI is this shell script: $3 is the report, $4 the diary."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    host = fake_host.host(tmp_path, python=str(python), **more)
    return examine.ask_mpi(host, Report(host="n1"), seconds)


def test_mpi_that_works(tmp_path: Path) -> None:
    line = json.dumps({"reports": [Report(1, "n2", findings=[ok("a", "b")]).data()], "world": 2})
    assert asked(tmp_path, f"echo '{STAGE}' > $4; echo noise; echo '{line}' >> $4") == (
        [Report(1, "n2", findings=[ok("a", "b")])],
        2,
    )


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("echo abort: no fabric >&2; exit 7", "exit status 7 while opening a small store; it said: abort: no fabric"),
        ("kill -SEGV $$", "signal SIGSEGV while opening"),
        ("exit 0", "exit status 0 while opening"),
        ("printf '{\"rep' >> $4; exit 1", "exit status 1 while opening"),
    ],
)
def test_mpi_that_crashes(tmp_path: Path, ending: str, text: str) -> None:
    (report,), world = asked(tmp_path, f"echo '{FINDING}' > $4; echo '{STAGE}' >> $4; {ending}", environ=HYDRA)
    assert world == 0
    assert [(finding.name, finding.status) for finding in report.findings] == [
        ("MPI library", "ok"),
        ("MPI", "problem"),
    ]
    assert text in report.findings[1].found


def test_mpi_that_hangs(tmp_path: Path) -> None:
    (report,), world = asked(tmp_path, f"echo '{STAGE}' > $4; exec sleep 60", seconds=0.5)
    assert (world, report.findings[0].status) == (0, "problem")
    assert "did not come back within 0.5 s" in report.findings[0].found


def test_a_python_that_is_missing_says_so(tmp_path: Path) -> None:
    (report,), _ = asked(tmp_path, "exit 1")
    assert "exit status 1 while starting" in report.findings[0].found


def test_a_launcher_that_ends_the_job(tmp_path: Path) -> None:
    script = f"echo '{STAGE}' > $4; kill -TERM $PPID; exec sleep 60"
    (report,), _ = asked(tmp_path, script, environ=HYDRA)
    assert "the launcher ended the job while opening" in report.findings[0].found


def test_an_mpi_that_refuses_a_login_node(tmp_path: Path) -> None:
    srun = {"srun": Ran(0, "", "")}

    def status(**environ: str) -> str:
        host = fake_host.host(tmp_path, programs=srun, environ=environ)
        assert examine.failed(host, "crash", "anything else", []).status == "problem"
        return examine.failed(host, "crash", probe.INITIALISING, []).status

    assert status() == "warning"
    assert status(SLURM_JOB_ID="7") == "problem"
    assert status(**HYDRA) == "problem"
    assert examine.failed(fake_host.host(tmp_path), "crash", probe.INITIALISING, []).status == "problem"


def test_an_mpi_that_ends_under_the_launcher_of_another(tmp_path: Path) -> None:
    noted = json.dumps({"library": "MPICH Version:      5.0.2"})
    script = f"echo '{noted}' > $4; echo '{STAGE}' >> $4; exit 16"
    (report,), _ = asked(tmp_path, script, environ={"OMPI_COMM_WORLD_SIZE": "2"})
    assert "the launcher is not that of MPICH 5.0.2" in report.findings[0].found
    assert "mpiexec of the MPI that mpi4py has loaded" in report.findings[0].remedy
    (report,), _ = asked(tmp_path, script, environ=HYDRA)
    assert "the launcher is not" not in report.findings[0].found


def test_a_library_that_cannot_be_loaded() -> None:
    (found,) = probe._not_loaded(RuntimeError("cannot load MPI library\n/x: no such file"))
    assert (found.status, found.found) == (
        "problem",
        "mpi4py cannot load it: cannot load MPI library; /x: no such file",
    )
    (found,) = probe._not_loaded(ModuleNotFoundError("No module named 'mpi4py'"))
    assert found.remedy.endswith("-m pip install mpi4py")


@pytest.mark.parametrize(
    ("environ", "answer", "speaks"),
    [
        ({}, ([Report()], 1), True),
        ({}, ([Report()], 0), True),
        (HYDRA, ([Report(0), Report(1)], 2), True),
        (HYDRA | {"PMI_RANK": "1"}, ([], 2), False),
        (HYDRA | {"PMI_RANK": "1"}, ([Report(1)], 0), False),
        (HYDRA | {"PMI_RANK": "1"}, ([Report(0)], 1), False),  # a world of its own
        (HYDRA, ([Report(0)], 1), True),
    ],
)
def test_one_process_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], answer: Any, speaks: bool
) -> None:
    monkeypatch.setattr(examine, "look", lambda host: Report(9))
    monkeypatch.setattr(examine, "ask_mpi", lambda host, report, seconds: answer)
    examined = examine.examine(fake_host.host(tmp_path, environ=environ))
    assert examined.speaks is speaks
    assert examined.reports == (answer[0] or [Report(9)])


def test_without_mpi_the_launchers_first_speaks(tmp_path: Path) -> None:
    for rank, speaks in (("0", True), ("1", False)):
        host = fake_host.host(tmp_path, environ=HYDRA | {"PMI_RANK": rank})
        assert examine.examine(host, mpi=False).speaks is speaks


# ------------------------------------------------------------------------------------------ many ranks, one table


def job(ranks: int = 4, nodes: int = 2) -> list[Report]:
    """Ranks dealt round-robin to nodes, each with a CPU of its own; the first of a node speaks for it."""
    return [
        Report(
            rank, f"n{rank % nodes}", rank // nodes, [rank], 1,
            node_findings=[ok("/dev/shm", "8 GiB")] if rank < nodes else [], findings=[ok("versions", "1.0")],
        )
        for rank in range(ranks)
    ]  # fmt: skip


def rows(reports: list[Report]) -> dict[str, list[tuple[str, tuple[int, ...], tuple[str, ...]]]]:
    found: dict[str, list[Any]] = {}
    for row in merge.merge(reports):
        found.setdefault(row.finding.name, []).append((row.finding.status, row.ranks, row.hosts))
    return found


def test_equal_findings_are_one_row() -> None:
    everywhere = [("ok", (0, 1, 2, 3), ("n0", "n1"))]
    found = rows(job())
    assert found == dict.fromkeys(["/dev/shm", "versions", "CPU sharing", "threads"], everywhere)
    assert list(found) == ["/dev/shm", "versions", "CPU sharing", "threads"]


def test_different_findings_say_where() -> None:
    reports = job()
    reports[1].node_findings = [problem("/dev/shm", "1 MiB", "more")]
    reports[3].findings.append(warning("CPUs", "few", "more"))
    found = rows(reports)
    assert found["/dev/shm"] == [("problem", (1, 3), ("n1",)), ("ok", (0, 2), ("n0",))]
    assert found["CPUs"] == [("warning", (3,), ("n1",))]


def test_versions_must_be_equal() -> None:
    reports = job()
    reports[2].findings = [ok("versions", "2.0")]
    assert rows(reports)["versions"] == [
        ("problem", (0, 1, 2, 3), ("n0", "n1")), ("ok", (0, 1, 3), ("n0", "n1")), ("ok", (2,), ("n0",)),
    ]  # fmt: skip


def test_ranks_of_a_node_are_compared() -> None:
    reports = job()
    reports[2].cpus = reports[0].cpus
    found = rows(reports)["CPU sharing"]
    assert found == [("warning", (0, 2), ("n0",)), ("ok", (1, 3), ("n1",))]


def test_reports_survive_json() -> None:
    reports = job()
    assert [Report.of(json.loads(json.dumps(report.data()))) for report in reports] == reports


def test_worst() -> None:
    assert worst([]) == "ok"
    assert worst([ok("a", "b"), warning("a", "b", "c")]) == "warning"
    assert worst([problem("a", "b", "c"), ok("a", "b")]) == "problem"


def shown(reports: list[Report], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    show.show(merge.merge(reports), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table() -> None:
    reports = job()
    reports[1].node_findings = [problem("/dev/shm", "1 MiB", "mount a larger one")]
    lines = [line.rstrip() for line in shown(reports).splitlines()]
    assert lines[0].split() == ["problem", "/dev/shm", "1", "MiB", "ranks", "1,3", "(n1)"]
    assert lines[1].split() == ["->", "mount", "a", "larger", "one"]
    assert lines[2].split() == ["ok", "/dev/shm", "8", "GiB", "ranks", "0,2", "(n0)"]
    assert "all ranks" in lines[3]
    assert lines[-1] == "1 problem, 0 warnings, 4 ok"


def test_one_rank_needs_no_column_of_ranks() -> None:
    assert "rank 0" not in shown(job(1, 1))
    assert "all ranks" not in shown(job(1, 1))


def test_many_different_good_findings_are_few_rows() -> None:
    reports = job(64, 64)
    for report in reports:
        report.node_findings = [ok("/dev/shm", f"{report.rank} GiB")]
    text = shown(reports)
    assert text.count("/dev/shm") == 3
    assert "61 that differ between ranks are only in --json" in text
    assert (
        sum(finding["name"] == "/dev/shm" for finding in show.record(merge.merge(reports), mpi=True)["findings"]) == 64
    )


def test_json() -> None:
    found = show.record(merge.merge(job()), mpi=False)
    assert set(found) == {"schema", "cascade", "status", "mpi", "ranks", "hosts", "findings"}
    assert (found["schema"], found["status"], found["mpi"], found["ranks"], found["hosts"]) == (
        1, "ok", False, 4, ["n0", "n1"],
    )  # fmt: skip
    where = {"ranks": [0, 1, 2, 3], "hosts": ["n0", "n1"]}
    assert found["findings"][0] == {"name": "/dev/shm", "status": "ok", "found": "8 GiB", "remedy": "", **where}
    json.dumps(found)


@pytest.mark.parametrize(("finding", "status"), [(warning("a", "b", "c"), 0), (problem("a", "b", "c"), 1)])
@pytest.mark.parametrize("speaks", [True, False])
def test_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finding: Finding, status: int, speaks: bool
) -> None:
    reports = [Report(findings=[finding])]
    monkeypatch.setattr(examine, "examine", lambda host, mpi, seconds: examine.Examined(reports, speaks))
    assert doctor.run() == status
    assert bool(capsys.readouterr().out) is speaks
