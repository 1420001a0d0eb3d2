"""What the doctor makes of an MPI library's own words, of mpiexec, and of a store's report."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import fake_host
import pytest
from fake_host import only, statuses
from fake_library import CRAY, INTEL, MPICH, MVAPICH, OLD, OPEN_MPI, report

from cascade_mpi.doctor import library, onesided
from cascade_mpi.doctor.host import Ran

LIBRARIES = {"MPICH": MPICH, "Cray MPICH": CRAY, "Intel MPI": INTEL, "MVAPICH": MVAPICH, "Open MPI": OPEN_MPI}
VERSIONS = {
    "MPICH": "5.0.2",
    "Cray MPICH": "8.1.28.29",
    "Intel MPI": "2021.10",
    "MVAPICH": "2.3.7",
    "Open MPI": "5.0.6",
}


@pytest.mark.parametrize("product", LIBRARIES)
def test_identify(product: str) -> None:
    found = library.identify(LIBRARIES[product])
    assert (found.product, found.version) == (product, VERSIONS[product])
    assert found.family == ("Open MPI" if product == "Open MPI" else "MPICH")


def test_an_unknown_library() -> None:
    assert library.identify("Fancy MPI 1.0\nmore").product == "Fancy MPI 1.0"
    assert library.identify("").family == "unknown"


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        (MPICH, {}, "netmod ucx (default; also ofi)"),
        (MPICH, {"MPIR_CVAR_CH4_NETMOD": "ofi"}, "netmod ofi (MPIR_CVAR_CH4_NETMOD)"),
        (OLD, {"FI_PROVIDER": "tcp"}, "netmod ofi (FI_PROVIDER=tcp)"),
        (MPICH, {"UCX_TLS": "tcp,self"}, "netmod ucx (default; also ofi; UCX_TLS=tcp,self)"),
        (OLD, {}, "netmod ofi"),
        (CRAY, {}, "netmod ofi"),
        (INTEL, {}, ""),
        (OPEN_MPI, {}, "network chosen at start"),
        (OPEN_MPI, {"OMPI_MCA_pml": "ucx"}, "network chosen by OMPI_MCA_pml=ucx"),
    ],
)  # fmt: skip
def test_netmod(text: str, environ: dict[str, str], expected: str) -> None:
    assert library.netmod(library.identify(text), environ) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/env/lib/libmpi.so.12", "PyPI wheel"),
        ("/usr/lib/python3/site-packages/x/libmpi.so", "PyPI wheel"),
        ("/opt/cray/pe/mpich/8.1/lib/libmpi_cray.so.12", "Cray"),
        ("/usr/lib/x86_64-linux-gnu/libmpich.so.12", "system"),
        ("/apps/mpich/4.2/lib/libmpi.so.12", "site"),
    ],
)
def test_origin(path: str, expected: str) -> None:
    assert library.origin(path, "/env") == expected


def described(text: str, *paths: str, networks: tuple[str, ...] = (), **environ: str) -> dict[str, Any]:
    found = list(library.mpi_library(text, (4, 1), paths, "mpich", "/env", environ, networks))
    statuses(found)
    return {finding.name: finding for finding in found}


def test_a_good_library() -> None:
    found = described(MPICH, "/env/lib/libmpi.so.12")
    assert found["MPI library"].status == found["MPI network"].status == "ok"
    text = "MPICH 5.0.2, MPI 4.1, ABI mpich, from /env/lib/libmpi.so.12 (PyPI wheel)"
    assert found["MPI library"].found == text
    found = described(CRAY, "/opt/cray/lib/libmpi_cray.so.12", networks=("cxi0",))
    assert found["MPI library"].status == found["MPI network"].status == "ok"
    assert found["MPI network"].found == "netmod ofi; RDMA devices: cxi0"


def test_libraries_with_troubles() -> None:
    assert described(OLD, "/apps/libmpi.so.12")["MPI library"].status == "warning"
    assert described("Fancy", "/apps/libmpi.so.12")["MPI library"].status == "warning"
    found = described(MPICH, "/apps/libmpi.so.12", "/usr/lib/libmpi.so.40")["MPI library"]
    assert found.status == "problem"
    assert "two MPI libraries" in found.found
    assert described(MPICH, "/env/lib/libmpi.so.12", networks=("mlx5_0",))["MPI network"].status == "warning"
    assert described(MPICH, "/apps/libmpi.so.12", networks=("mlx5_0",))["MPI network"].status == "ok"
    assert described(MPICH, "/apps/libmpi.so.12", networks=("cxi0",))["MPI network"].status == "warning"
    ofi = {"MPIR_CVAR_CH4_NETMOD": "ofi"}
    assert described(MPICH, "/apps/libmpi.so.12", networks=("cxi0",), **ofi)["MPI network"].status == "ok"


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_MPI_TYPE": "pmi2"}


@pytest.mark.parametrize(
    ("text", "path", "environ", "told"),
    [
        (MPICH, "/env/lib/libmpi.so.12", STEP, True),
        (MPICH, "/env/lib/libmpi.so.12", STEP | {"PMI_SIZE": "4", "PMI_FD": "11"}, True),
        (MPICH, "/env/lib/libmpi.so.12", STEP | {"MPIR_CVAR_CH4_NETMOD": "ofi"}, False),
        (MPICH, "/env/lib/libmpi.so.12", STEP | {"SLURM_MPI_TYPE": "pmix"}, False),
        (MPICH, "/env/lib/libmpi.so.12", {"PMI_SIZE": "4", "MPI_LOCALNRANKS": "4", "SLURM_MPI_TYPE": "pmi2"}, False),
        (MPICH, "/env/lib/libmpi.so.12", {}, False),
        (MPICH, "/apps/mpich/lib/libmpi.so.12", STEP, False),
        (OLD, "/env/lib/libmpi.so.12", STEP, False),
    ],
)
def test_the_wheel_with_ucx_under_pmi2(text: str, path: str, environ: dict[str, str], told: bool) -> None:
    found = described(text, path, **environ)
    assert ("MPI start" in found) is told
    if told:
        assert found["MPI start"].status == "warning"
        assert "export MPIR_CVAR_CH4_NETMOD=ofi" in found["MPI start"].remedy


@pytest.mark.parametrize(("given", "used"), [({}, "ofi"), ({"MPIR_CVAR_CH4_NETMOD": "ucx"}, "ucx")])
def test_the_image_takes_the_netmod_that_starts_always(given: dict[str, str], used: str) -> None:
    definition = (Path(__file__).resolve().parents[2] / "jobs/cascade.def").read_text()
    exports = definition.partition("%environment\n")[2].partition("%post")[0]
    command = ["sh", "-c", f'{exports}\nprintf %s "$MPIR_CVAR_CH4_NETMOD"']
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]} | given, capture_output=True, text=True, check=True)
    assert done.stdout == used
    found = described(MPICH, "/env/lib/libmpi.so.12", MPIR_CVAR_CH4_NETMOD=done.stdout, **STEP)
    assert ("MPI start" in found) is (used == "ucx")


@pytest.mark.parametrize(
    ("file", "expected"),
    [("MPI.mpich.cpython-311-x86_64-linux-gnu.so", "mpich"), ("MPI.openmpi.abi3.so", "openmpi"),
     ("MPI.cpython-311-x86_64-linux-gnu.so", ""), ("MPI.abi3.so", "")],
)  # fmt: skip
def test_abi(file: str, expected: str) -> None:
    assert library.abi(f"/env/lib.python/mpi4py/{file}") == expected
    (line, _) = library.mpi_library(MPICH, (4, 1), ["/env/libmpi.so"], expected, "/env", {}, [])
    assert (f"ABI {expected}," if expected else "mpi4py built for it,") in line.found


def test_loaded_libraries() -> None:
    maps = (
        "7f00-7f01 r-xp 00000000 08:01 12   /a b/libmpi.so.12\n7f02-7f03 rw-p 00000000 00:00 0\n"
        "7f04-7f05 r-xp 00000000 08:01 12   /a b/libmpi.so.12\n7f06-7f07 r-xp 00000000 08:01 13   /x/libc.so.6\n"
    )
    assert library.loaded_libraries(maps, r"^libmpi") == ["/a b/libmpi.so.12"]


# ------------------------------------------------------------------------------------------ mpiexec

HYDRA, PRTE = Ran(0, "HYDRA build details:\n    Version: 5.0.2\n", ""), Ran(0, "mpiexec (Open MPI) 5.0.6\n", "")
PALS = Ran(0, "mpiexec (PALS) 1.2\n", "")


def mpiexec(tmp_path: Path, in_path: Ran | None, beside: Ran | None, text: str = MPICH, *, srun: bool = False) -> Any:
    python = tmp_path / "bin/python"
    python.parent.mkdir(exist_ok=True)
    programs = {}
    if in_path:
        programs["mpiexec"] = in_path
    if beside:
        python.with_name("mpiexec").touch()
        programs[f"{python.with_name('mpiexec')} --version"] = beside
    if srun:
        programs["srun"] = Ran(0, "", "")
    return only(
        library.mpiexec(fake_host.host(tmp_path, programs=programs, python=str(python)), library.identify(text))
    )


@pytest.mark.parametrize(
    ("in_path", "beside", "text", "status"),
    [
        (HYDRA, None, MPICH, "ok"),
        (None, HYDRA, MPICH, "ok"),
        (HYDRA, HYDRA, INTEL, "ok"),
        (PALS, None, CRAY, "ok"),
        (PRTE, None, OPEN_MPI, "ok"),
        (PRTE, HYDRA, MPICH, "warning"),
        (PRTE, None, MPICH, "problem"),
        (HYDRA, None, OPEN_MPI, "problem"),
        (None, None, MPICH, "warning"),
    ],
)
def test_mpiexec(tmp_path: Path, in_path: Ran | None, beside: Ran | None, text: str, status: str) -> None:
    assert mpiexec(tmp_path, in_path, beside, text).status == status


def test_srun_in_the_place_of_mpiexec(tmp_path: Path) -> None:
    assert mpiexec(tmp_path, None, None, srun=True).found == "none; srun starts the ranks"


def test_the_better_mpiexec_is_named(tmp_path: Path) -> None:
    assert f"use {tmp_path}/bin/mpiexec" in mpiexec(tmp_path, PRTE, HYDRA).remedy


# ------------------------------------------------------------------------------------------ GPU-aware MPI

GTL = ["/opt/cray/pe/lib64/libmpi_gtl_cuda.so.0"]
ENABLED = {"MPICH_GPU_SUPPORT_ENABLED": "1"}


@pytest.mark.parametrize(
    ("text", "environ", "loaded", "says", "has_gpu", "status", "begins"),
    [
        (MPICH, {}, [], False, False, "ok", "no, and no GPU here"),
        (MPICH, {}, [], None, True, "ok", "no: GPU memory goes through host memory"),
        (OPEN_MPI, {}, [], True, True, "ok", "yes, as the library says"),
        (CRAY, ENABLED, GTL, True, True, "ok", "yes, GTL library loaded"),
        (CRAY, ENABLED, [], False, True, "problem", "MPICH_GPU_SUPPORT_ENABLED=1, but"),
        (CRAY, {}, GTL, False, True, "warning", "Cray MPICH without"),
        (CRAY, {}, [], False, False, "ok", "no, and"),
    ],
)
def test_gpu_support(
    text: str, environ: dict[str, str], loaded: list[str], says: bool | None, has_gpu: bool, status: str, begins: str
) -> None:
    found = only(library.gpu_support(library.identify(text), environ, loaded, says, has_gpu))
    assert found.status == status
    assert found.found.startswith(begins)


# ------------------------------------------------------------------------------------------ a store's report


def test_a_good_report() -> None:
    found = list(onesided.explain(report()))
    assert set(statuses(found).values()) == {"ok"}
    assert [finding.found for finding in found if finding.name == "one-sided Get"] == [
        "the target's CPU is not involved (on the node 3 us, between nodes 12 us, target busy)"
    ]


def test_a_get_on_the_node_may_wait_where_loads_do_the_reading() -> None:
    node = {"get_one_sided": False, "cas_one_sided": True, "get_s": 20e-3, "cas_s": 3e-6}
    found = {finding.name: finding for finding in onesided.explain(report(self_test={"node": node}))}
    assert found["one-sided Get"].status == "ok"
    assert "plain loads" in found["one-sided Get"].found


@pytest.mark.parametrize(
    ("bad", "name", "status"),
    [
        (report(get=False), "one-sided Get", "warning"),
        (report(cas=False), "one-sided CAS", "warning"),
        (report(cas=False, thread=True), "one-sided CAS", "ok"),
        (report(thread_level="funneled"), "thread level", "warning"),
        (report(mpi_calls={"by": "python", "reason": "no symbols"}), "MPI calls", "warning"),
        (report(kernel_cache=False), "compiled kernels", "warning"),
    ],
)
def test_reports_with_troubles(bad: dict[str, Any], name: str, status: str) -> None:
    found = statuses(onesided.explain(bad))
    assert found.pop(name) == status
    assert set(found.values()) == {"ok"}
