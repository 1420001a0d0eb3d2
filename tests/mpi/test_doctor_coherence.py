"""Doctor's look at a directory that all ranks are to share: one that they do, and ones that they do not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from cascade_mpi.doctor import coherence
from cascade_mpi.doctor.finding import Finding

pytestmark = [pytest.mark.mpi, pytest.mark.alone]


@pytest.fixture
def folder(comm: MPI.Intracomm) -> Iterator[Path]:
    """One folder for all ranks."""
    made = tempfile.TemporaryDirectory() if comm.rank == 0 else None
    yield Path(comm.bcast(made and made.name))
    comm.Barrier()
    if made is not None:
        made.cleanup()


def found(comm: MPI.Intracomm, folder: Path) -> Finding | None:
    """Collective. What was found."""
    findings = list(coherence.coherence(comm, folder))
    return findings[0] if findings else None


def test_ranks_that_share_a_directory(comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path) -> None:
    finding = found(comm, folder)
    assert_all(comm, finding is not None and finding.status == "ok", str(finding))
    assert_all(comm, f"{comm.size} ranks read at once" in finding.found, str(finding))
    assert_all(comm, not list(folder.iterdir()), "something was left")


def test_a_rank_with_another_directory(comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path) -> None:
    last = comm.rank == comm.size - 1
    if comm.size == 1:
        assert found(comm, folder).status == "ok"
        return
    if last:
        (folder / "other").mkdir()
    finding = found(comm, folder / "other" if last else folder)
    assert_all(
        comm, finding.status == "problem" and f"the first is rank {comm.size - 1} on" in finding.found, str(finding)
    )
    assert_all(comm, "No such file" in finding.found, str(finding))


@pytest.mark.parametrize("late", ["new", "grown"])
def test_a_rank_that_sees_writes_only_after_a_sync(
    comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """As NFS does it: a size from its cache."""
    compare, looks = coherence._compare, []

    def cached(handle: int, pages: int) -> Any:
        looks.append(pages)
        return "0 bytes, not 8192" if len(looks) == (1 if late == "new" else 2) else compare(handle, pages)

    if comm.rank == comm.size - 1:
        monkeypatch.setattr(coherence, "_compare", cached)
    finding = found(comm, folder)
    assert_all(comm, finding.status == "warning" and "only after it was synced" in finding.found, str(finding))
    assert_all(comm, comm.rank < comm.size - 1 or looks == [1, 2, 2], str(looks))


def test_a_directory_that_cannot_be_written(comm: MPI.Intracomm, assert_all: Callable[..., None], folder: Path) -> None:
    assert_all(comm, found(comm, folder / "missing") is None, "another line says so")
