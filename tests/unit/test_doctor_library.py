"""What the doctor makes of an MPI library's own words, of mpiexec, and of a store's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_host
import pytest
from fake_host import only, statuses

from cascade_mpi.doctor import library, onesided
from cascade_mpi.doctor.host import Ran

MPICH = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\nMPICH configure:    --with-device=ch4:ucx,ofi\n\0"
OLD = "MPICH Version:\t3.4.3\nMPICH Device:\tch4:ofi\n"
CRAY = "MPI VERSION    : CRAY MPICH version 8.1.28.29 (ANL base 3.4a2)\nMPI BUILD INFO : Wed Nov 15\n"
INTEL = "Intel(R) MPI Library 2021.10 for Linux* OS\n"
MVAPICH = "MVAPICH2 Version      :\t2.3.7\nMVAPICH2 Device : ch3:mrail\n"
OPEN_MPI = "Open MPI v5.0.6, package: Open MPI me@here Distribution, ident: 5.0.6, repo rev: v5.0.6\0"
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


def report(get: bool = True, cas: bool = True, thread: bool = False, **more: Any) -> dict[str, Any]:
    one = {"get_one_sided": True, "cas_one_sided": True, "get_s": 3e-6, "cas_s": 3e-6}
    tested = one | {"get_one_sided": get, "cas_one_sided": cas, "get_s": 12e-6}
    return {
        "windows": {"layout": "allocate", "reason": "maps all peers of the node"},
        "thread_level": "multiple",
        "self_test": {"node": one, "remote": tested},
        "progress": {"thread": thread, "reason": "auto: refused"},
        "mpi_calls": {"by": "compiled", "reason": ""},
        "kernel_cache": True,
    } | more


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
