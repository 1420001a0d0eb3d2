"""What the pages say that doctor should print is what its checks yield there: status, name, text and remedy.

In a line of a page "..." stands for anything.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fake_host
import pages
import pytest
from fake_host import GIB
from fake_library import CRAY, MPICH, OPEN_MPI, report

from cascade_mpi.doctor import library, limits, onesided, probe
from cascade_mpi.doctor.finding import Finding
from cascade_mpi.doctor.host import Ran

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_MPI_TYPE": "pmi2"}
SRUN = {"srun": Ran(0, "", "")}
HYDRA = {"/apps/mpi/bin/mpiexec": Ran(0, "HYDRA build details:", "")}
PRTE = {"/apps/mpi/bin/mpiexec": Ran(0, "mpiexec (Open MPI) 5.0.11", "")}
ON_THE_NODE = {"get_one_sided": False, "cas_one_sided": False, "get_s": 43e-6, "cas_s": 1e-3}
SECOND_LAYOUT = report(
    windows={
        "layout": "shared",
        "reason": "allocate: a peer of the node is not mapped; maps all peers of the node",
    },
    self_test={"node": ON_THE_NODE},
    progress={"thread": True, "reason": "auto"},
)
FIRST_LAYOUT = report(self_test={"node": ON_THE_NODE | {"get_one_sided": True, "cas_one_sided": True}})
# By section of the page: the library's text, its file, mpi4py's ABI, network cards, variables, programs, the store
PLACES: dict[str, tuple[str, str, str, list[str], dict[str, str], dict[str, Ran], dict[str, Any]]] = {
    "Cray MPICH": (
        CRAY, "/opt/cray/pe/mpich/8.1.28/ofi/gnu/12.3/lib/libmpi_gnu_123.so.12", "", ["cxi0", "cxi1"],
        STEP | {"SLURM_MPI_TYPE": "cray_shasta"}, SRUN, SECOND_LAYOUT,
    ),
    "A site's MPICH": (MPICH, "/apps/mpi/lib/libmpi.so.12", "mpich", ["mlx5_0"], STEP, HYDRA, FIRST_LAYOUT),
    "Open MPI": (OPEN_MPI, "/apps/mpi/lib/libmpi.so.40", "openmpi", ["mlx5_0"], {}, PRTE, SECOND_LAYOUT),
    "Apptainer": (
        MPICH, "/opt/venv/lib/libmpi.so.12", "mpich", ["mlx5_0"], STEP | {"MPIR_CVAR_CH4_NETMOD": "ofi"}, SRUN,
        FIRST_LAYOUT,
    ),
}  # fmt: skip


def printed(section: str, tmp_path: Path) -> list[Finding]:
    text, file, abi, networks, environ, programs, store = PLACES[section]
    host = fake_host.host(
        tmp_path, environ=environ, programs=programs, ranks=2, statvfs=fake_host.space(GIB),
        which=lambda name: next((path for path in programs if Path(path).name == name), None),
    )  # fmt: skip
    return [
        *limits.shared_memory(host),
        *library.mpi_library(text, (5, 0), [file], abi, "/opt/venv", environ, networks),
        *library.mpiexec(host, library.identify(text)),
        probe.met(2, 1),
        *onesided.explain(store),
        onesided.read_back(2, 2),
    ]


OUTPUTS = [
    block for page in pages.PAGES for block in pages.blocks(page) if (block.kind, block.mark) == ("output", "doctor")
]


@pytest.mark.parametrize("block", OUTPUTS, ids=lambda block: block.name)
def test_doctor_prints_the_lines_of_the_page(tmp_path: Path, block: pages.Block) -> None:
    lines = []
    for finding in printed(block.section, tmp_path):
        lines.append(f"{finding.status:<8}{finding.name:<16}{finding.found}")
        lines += [f"{'':<24}-> {finding.remedy}"] if finding.remedy else []
    for expected in block.text.splitlines():
        pattern = ".*".join(map(re.escape, expected.split("...")))
        assert any(re.fullmatch(pattern, line) for line in lines), "\n".join([f"{block.name}: {expected}", *lines])


@pytest.mark.parametrize("block", OUTPUTS, ids=lambda block: block.name)
def test_the_page_keeps_no_warning_back(tmp_path: Path, block: pages.Block) -> None:
    bad = {(finding.status, finding.name) for finding in printed(block.section, tmp_path) if finding.status != "ok"}
    shown = {(line[:8].strip(), line[8:24].strip()) for line in block.text.splitlines()}
    assert bad <= shown
