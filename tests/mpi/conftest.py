"""What every test of the store on several ranks shares: communicators, stores, and failing together.

A test runs on any number of ranks, the same on each. Covers the fixtures, the exchange of outcomes after
each test, and the watchdog. Does not cover how the job is started (see `tests/launch.py`).

A rank that fails alone would leave the others in a collective, or pair its next one with theirs. So after
each test the ranks meet on a communicator of their own: a failure of one becomes a failure of all, and
when one has failed and the others do not come, the job ends.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import LAYOUTS
from mpi4py import MPI

from cascade_mpi import selftest
from cascade_mpi.fabric import Fabric
from cascade_mpi.store import Store

WATCHDOG_S = 240.0  # far beyond any test, the first one compiles
MEET_S = 20.0  # how long a rank that failed waits for the others
RESULTS = "TEST_RESULTS_DIR"  # a folder for one file of counts per rank
SMALL: dict[str, Any] = {"dram_bytes": "8MiB", "copy_threads": 1}
_PAIRS = [("allocate", "compiled"), ("shared", "python"), ("allocate", "python"), ("shared", "compiled")]
VARIANTS: dict[str, dict[str, Any]] = {
    f"{layout}-{caller}": {"windows": layout, "mpi_calls": caller} for layout, caller in _PAIRS if layout in LAYOUTS
}
if MPI.COMM_WORLD.size > 2 or "MPIR_CVAR_NUM_CLIQUES" in os.environ:
    # On two nodes each layout and each caller once, on four ranks what "auto" takes: all pairs are met on fewer ranks.
    VARIANTS = dict(list(VARIANTS.items())[: 1 if MPI.COMM_WORLD.size > 2 else 2])

_reports = pytest.StashKey[dict[str, pytest.TestReport]]()
_counts = {"passed": 0, "failed": 0, "skipped": 0}
_errors: list[int] = []  # a copy of the real stderr, which pytest does not capture
_folders: list[Path] = []  # of all ranks, for tests of the disk tier
_shared: list[MPI.Intracomm] = []  # the communicator of the `comm` fixture
_kept: dict[tuple[Any, ...], Store] = {}  # open stores that tests share one after the other
_self_test = selftest.run
_self_tested: dict[tuple[Any, ...], dict[str, Any]] = {}


# ------------------------------------------------------------------------------------------ failing together


def pytest_configure(config: pytest.Config) -> None:
    _errors.append(os.dup(2))
    selftest.run = _self_test_once


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    item.stash.setdefault(_reports, {})[report.when] = report
    if report.when == "call" or report.outcome != "passed":
        _counts[report.outcome] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    close_kept_stores()
    for each in _folders:
        shutil.rmtree(each, ignore_errors=True)
    if folder := os.environ.get(RESULTS):
        world = MPI.COMM_WORLD
        result = {"rank": world.rank, "size": world.size, "testsfailed": session.testsfailed, **_counts}
        Path(folder, f"{world.rank}.json").write_text(json.dumps(result))


def _failed(item: pytest.Item) -> pytest.TestReport | None:
    return next((report for report in item.stash.get(_reports, {}).values() if report.failed), None)


def _meet(world: MPI.Intracomm, item: pytest.Item) -> bool:
    """Wait for all ranks: has one failed? End the job when this one has and the others are stuck without it."""
    failed = _failed(item)
    one, anybody = np.array([failed is not None]), np.zeros(1, bool)
    request = world.Iallreduce(one, anybody, MPI.LOR)
    deadline = time.monotonic() + MEET_S
    while not request.Test():
        time.sleep(1e-4)  # ranks that wait leave the cores to those that are not there yet
        if failed is not None and time.monotonic() > deadline:
            text = f"rank {world.rank} failed in {item.nodeid}, the others wait for it:\n{failed.longreprtext}\n"
            os.write(_errors[0], text.encode())
            MPI.COMM_WORLD.Abort(1)
    return bool(anybody[0])


@pytest.fixture(scope="session")
def _world() -> Iterator[MPI.Intracomm]:
    """For the meetings alone: whatever a broken test left behind is on another communicator."""
    world = MPI.COMM_WORLD.Dup()
    yield world
    world.Free()


@pytest.fixture(autouse=True)
def together(request: pytest.FixtureRequest, _world: MPI.Intracomm) -> Iterator[None]:
    """Every test ends on all ranks before the next begins, fails on all if on one, and does not hang."""
    guarded = float(request.config.getini("faulthandler_timeout") or 0) > 0  # pytest keeps the watch then
    if not guarded:
        faulthandler.dump_traceback_later(WATCHDOG_S, exit=True, file=_errors[0])
    yield
    anybody = _meet(_world, request.node)
    if not guarded:
        faulthandler.cancel_dump_traceback_later()
    if not anybody:
        return
    _kept.clear()  # on all ranks, whichever of them failed: what is closed behind the module is closed by all
    _replace_shared_comm()
    outcomes = _world.allgather(None if (report := _failed(request.node)) is None else report.longreprtext)
    failed = [rank for rank, text in enumerate(outcomes) if text is not None]
    if _world.rank not in failed:
        pytest.fail(f"failed on ranks {failed}; on rank {failed[0]}:\n{outcomes[failed[0]]}", pytrace=False)


@pytest.fixture
def assert_all() -> Callable[..., None]:
    """`assert_all(comm, ok, message)`: Collective. Fail on all ranks if `ok` is false on one; say where."""

    def check(comm: MPI.Intracomm, ok: Any, message: str = "") -> None:
        everyone = comm.allgather((bool(ok), message))
        failed = [(rank, text) for rank, (good, text) in enumerate(everyone) if not good]
        if failed:
            details = "; ".join(f"rank {rank}: {text}" for rank, text in failed)
            pytest.fail(f"false on {len(failed)} of {comm.size} ranks: {details}", pytrace=True)

    return check


@pytest.fixture
def raises_all(assert_all: Callable[..., None]) -> Callable[..., str]:
    """`raises_all(comm, error, call)`: Collective. `call` raises `error` on every rank; this rank's text."""

    def check(comm: MPI.Intracomm, error: type[Exception], call: Callable[[], Any]) -> str:
        text, got = "", "nothing was raised"
        try:
            call()
        except error as raised:
            text, got = str(raised), ""
        except Exception as raised:
            got = f"{type(raised).__name__}: {raised}"
        assert_all(comm, not got, got)
        return text

    return check


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of this rank. In the place of pytest's own, whose numbers and cleaning race between ranks."""
    with tempfile.TemporaryDirectory(prefix="cascade-test-") as folder:
        yield Path(folder)


def shared_folder() -> Path:
    """Collective. A new folder that all ranks see, gone with the job: in memory, unless TMPDIR is set."""
    world, where = MPI.COMM_WORLD, None
    if world.rank == 0:
        in_memory = "TMPDIR" not in os.environ and os.access("/dev/shm", os.W_OK)
        where = tempfile.mkdtemp(prefix="cascade-test-", dir="/dev/shm" if in_memory else None)
        _folders.append(Path(where))
    made = Path(world.bcast(where))
    if not world.allreduce(made.is_dir(), MPI.LAND):
        pytest.skip("TMPDIR is no folder that all ranks see")
    return made


@pytest.fixture
def folder() -> Path:
    """An empty folder of all ranks. It stays until the job ends: a store of another rank may still be closing in it."""
    return shared_folder()


# ------------------------------------------------------------------------------------ communicators and stores


class PatientComm(MPI.Intracomm):
    """A communicator whose barrier leaves the core to others: there are more ranks than cores."""

    def Barrier(self) -> None:
        request = self.Ibarrier()
        while not request.Test():
            time.sleep(1e-4)


def _replace_shared_comm() -> None:
    """Local. After a failure no test uses the communicator that the failed one may have left messages on."""
    _shared.clear()


@pytest.fixture
def comm() -> MPI.Intracomm:
    """All ranks."""
    if not _shared:
        _shared.append(PatientComm(MPI.COMM_WORLD.Dup()))
    return _shared[0]


@pytest.fixture(params=["self", "world"])
def any_comm(request: pytest.FixtureRequest) -> Iterator[MPI.Intracomm]:
    """This rank alone, then all ranks."""
    made = (MPI.COMM_SELF if request.param == "self" else MPI.COMM_WORLD).Dup()
    yield made
    made.Free()


def _self_test_once(fabric: Fabric) -> dict[str, Any]:
    """Collective. What the self-test found in the first store of these ranks, this layout and caller in this job.

    It takes 0.1 s, most of what it takes to open a small store.
    """
    world = MPI.COMM_WORLD.Get_group()
    ranks = MPI.Group.Translate_ranks(fabric.comm.Get_group(), list(range(fabric.comm.size)), world)
    at = (fabric.layout, fabric.mpi_calls, *ranks)
    if at not in _self_tested:
        _self_tested[at] = _self_test(fabric)
    return copy.deepcopy(_self_tested[at])


@pytest.fixture
def every_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store that the test opens makes its self-test."""
    monkeypatch.setattr(selftest, "run", _self_test)


@pytest.fixture
def open_store(request: pytest.FixtureRequest) -> Iterator[Callable[..., Store]]:
    """`open_store(comm, **settings)`: Collective. A small store of its own, closed when the test has passed."""
    opened: list[Store] = []

    def make(comm: MPI.Intracomm, **settings: Any) -> Store:
        store = Store(comm, **(SMALL | settings))
        opened.append(store)
        return store

    yield make
    report = request.node.stash.get(_reports, {}).get("call")
    if report is not None and report.passed:  # else the others may not come
        for store in reversed(opened):
            store.close()


def kept_store(**settings: Any) -> Store:
    """Collective. An empty store on all ranks with these settings, opened once and shared by the tests."""
    at = tuple(sorted(settings.items()))
    if at not in _kept:
        _kept[at] = Store(MPI.COMM_WORLD, **(SMALL | settings))
    return _kept[at]


def close_kept_stores() -> None:
    """Collective. Close the stores that tests share; the next test opens its own again."""
    for at in list(_kept):
        _kept.pop(at).close()


@pytest.fixture(scope="module", autouse=True)
def _closed_behind() -> Iterator[None]:
    """No store of one module is open in the next: each has a thread that enters MPI, and on more ranks than cores those
    threads keep the ranks of other tests waiting (4 ranks of 2 nodes on 2 cores: 9 s of a module became 60 s).
    """  # fmt: skip
    yield
    close_kept_stores()


@pytest.fixture
def no_other_stores() -> None:
    """No other store is open, so none has a thread that enters MPI."""
    close_kept_stores()


def _lend(request: pytest.FixtureRequest, **settings: Any) -> Iterator[Store]:
    store = kept_store(**settings)
    yield store
    report = request.node.stash.get(_reports, {}).get("call")
    if report is None or not report.passed:
        _kept.pop(tuple(sorted(settings.items())), None)  # in an unknown state: never used nor closed
        return
    if store._open:
        try:
            store.check()
            store.clear()
        except Exception:
            _kept.pop(tuple(sorted(settings.items())), None)
            raise


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store on all ranks in the default layout; `check()` is called after the test."""
    yield from _lend(request)


@pytest.fixture(params=list(VARIANTS))
def any_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store on all ranks, in each window layout, with MPI called from the kernels and from Python."""
    yield from _lend(request, **VARIANTS[request.param])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if MPI.COMM_WORLD.rank == 0:
        terminalreporter.write_line(f"on {MPI.COMM_WORLD.size} ranks, {sys.version.split()[0]}")
