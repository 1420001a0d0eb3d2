"""Tiny runs of the benchmarks of the disk tier: what their rows say, not how fast anything was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared_folder
from mpi4py import MPI

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "total": 256 << 10,
    "sizes": (64 << 10,),
    "pairs": 1,
    "start_blocks": 4,
    "start_bytes": 64 << 10,
}


@pytest.fixture(autouse=True)
def _checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are run from the checkout, they are not installed."""
    monkeypatch.syspath_prepend(str(ROOT))


def test_disk_has_a_row_for_each_way(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    from bench import disk

    measured, about = disk.measure(disk.Options(**TINY), shared_folder(), comm)
    there = [row for row in measured if "not_in_this_run" not in row]
    for row in there:
        from_device = str(row["key"]).endswith("read from the device")  # there may be none under the test's folder
        assert_all(comm, row["contents_ok"] and row["machine"] == about, f"{row}")
        assert_all(comm, row["value"] > 0 or from_device, f"{row}")
        assert_all(comm, row["hit_rate"] in (None, 1.0), f"{row}")
    names = {(row["case"], row["key"].split(",")[0]) for row in there}
    for case in ("disk_flush", "disk_cold", "disk_hot"):
        assert_all(comm, (case, "one file per block") in names, f"{names}")
    assert_all(comm, {("disk_flush", "flush()"), ("disk_cold", "get"), ("disk_hot", "get")} <= names, f"{names}")
    goals = [row["goal"] for row in there if row["case"] in ("disk_flush", "disk_cold", "disk_hot") and row["goal"]]
    assert_all(comm, goals == ["ratio >= 0.85", *["ratio >= 0.9"] * 2, *["ratio >= 0.8"] * 2], f"{goals}")
    once = [row for row in there if row["case"] == "disk_start_bytes" and row["key"] == "read by the tier"]
    if comm.size > 1:
        assert_all(comm, [row["ratio"] for row in once] == [1.0], f"{once}")
    else:
        assert_all(comm, measured[-1]["case"] == "disk_start" and not once, f"{measured[-1]}")


def test_disk_sees_wrong_contents(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import disk

    def older(self: Any) -> None:  # the version counts on, the contents do not
        self.version += 1
        self.blocks.fill(1)

    monkeypatch.setattr(disk._Size, "_fill", older)
    measured, _ = disk.measure(disk.Options(**TINY | {"cases": ("flush",)}), shared_folder(), comm)
    wrong = [not row["contents_ok"] for row in measured if "not_in_this_run" not in row]
    assert_all(comm, bool(wrong) and all(wrong), f"{measured}")


def test_restarts_find_all_blocks(comm: MPI.Intracomm, assert_all: Callable[..., None]) -> None:
    from bench import disk_restart

    measured, about = disk_restart.measure([10, 600], 1, shared_folder(), comm)
    assert_all(comm, [row["blocks"] for row in measured] == [10, 600], f"{measured}")
    assert_all(comm, [row["segments"] for row in measured] == [1, 3], f"{measured}")
    for row in measured:
        assert_all(comm, row["contents_ok"] and row["machine"] == about, f"{row}")
        parts = [row[f"{name}_s"] for name in ("footers", "exchange", "newest", "index")]
        assert_all(comm, min(parts) >= 0 and 0 < sum(parts) < row["value"], f"{row}")


def test_restarts_see_a_wrong_block(
    comm: MPI.Intracomm, assert_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import disk_restart

    real = disk_restart._payloads
    if comm.rank == 0:  # which makes the directory
        made = disk_restart.make

        def other(root: Path, count: int) -> None:
            monkeypatch.setattr(disk_restart, "_payloads", lambda numbers: real(numbers + np.uint64(1)))
            made(root, count)
            monkeypatch.setattr(disk_restart, "_payloads", real)

        monkeypatch.setattr(disk_restart, "make", other)
    measured, _ = disk_restart.measure([20], 1, shared_folder(), comm)
    assert_all(comm, not measured[0]["contents_ok"], f"{measured}")
