"""Checks of the MPI library from what it says about itself: product, netmod, origin, variables, mpiexec, GPUs.

Covers everything that can be told from texts, paths and variables. Does not cover what is tried out with MPI running
(see `probe`). Needs no MPI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cascade_mpi.doctor.finding import Finding, ok, problem, warning
from cascade_mpi.doctor.host import Host
from cascade_mpi.launcher import launch

Family = Literal["MPICH", "Open MPI", "unknown"]
_NEEDED_MPICH = (4, 2)  # before, Shared_query answers only for Allocate_shared


class Library(NamedTuple):
    """An MPI library as it describes itself."""

    family: Family  # whose ABI and mpiexec it has
    product: str
    version: str
    netmods: tuple[str, ...]  # of MPICH's ch4 device, the default first; () where it does not say


def identify(text: str) -> Library:
    """Local. The library behind a text of `MPI.Get_library_version()`."""
    text = text.strip("\0 \n")
    device = re.search(r"MPICH Device:\s*ch4:(.*)", text)
    netmods = tuple(device[1].replace(",", " ").split()) if device else ()
    for family, product, pattern in _PRODUCTS:
        if found := re.search(pattern, text, re.IGNORECASE):
            if product == "Cray MPICH":
                netmods = ("ucx",) if "ucx" in text.lower() else ("ofi",)
            return Library(family, product, found[1], netmods)
    return Library("unknown", (text.splitlines() or ["unnamed"])[0][:80], "", netmods)


_PRODUCTS: tuple[tuple[Family, str, str], ...] = (
    ("MPICH", "Cray MPICH", r"CRAY MPICH version\s+([\d.]+)"),
    ("MPICH", "Intel MPI", r"Intel\(R\) MPI Library\s+([\d.]+)"),
    ("MPICH", "MVAPICH", r"MVAPICH\w* Version\s*:\s*([\w.]+)"),
    ("MPICH", "MPICH", r"MPICH Version:\s*([\w.]+)"),
    ("Open MPI", "Open MPI", r"Open MPI v([\w.]+)"),
)


def netmod(library: Library, environ: Mapping[str, str]) -> str:
    """Local. The network module that is used, and what chose it; "" where that cannot be told."""
    if library.family == "Open MPI":
        asked = [f"{name}={environ[name]}" for name in ("OMPI_MCA_pml", "OMPI_MCA_btl") if environ.get(name)]
        return f"network chosen by {', '.join(asked)}" if asked else "network chosen at start"
    if not library.netmods:
        return ""
    asked_for = environ.get("MPIR_CVAR_CH4_NETMOD", "")
    name = asked_for if asked_for in library.netmods else library.netmods[0]
    others = [other for other in library.netmods if other != name]
    why = "MPIR_CVAR_CH4_NETMOD" if asked_for == name else f"default; also {', '.join(others)}" if others else ""
    details = {"ucx": ("UCX_TLS", "UCX_NET_DEVICES"), "ofi": ("FI_PROVIDER",)}.get(name, ())
    set_ = [f"{variable}={environ[variable]}" for variable in details if environ.get(variable)]
    return f"netmod {name}" + (f" ({'; '.join(filter(None, [why, *set_]))})" if why or set_ else "")


def origin(path: str, prefix: str) -> str:
    """Local. Where a libmpi comes from: the Python environment at `prefix`, Cray's tree, the system, or the site."""
    if path.startswith((f"{prefix}/", *(f"{Path(prefix).resolve()}/",))) or "/site-packages/" in path:
        return "PyPI wheel"
    if path.startswith(("/opt/cray/", "/usr/lib64/cray")):
        return "Cray"
    if path.startswith(("/usr/lib", "/lib")):
        return "system"
    return "site"


def abi(extension: str) -> str:
    """Local. The ABI in the name of mpi4py's extension, as in `MPI.mpich.abi3.so`; "" in one built from source."""
    parts = Path(extension).name.split(".")
    return parts[1] if len(parts) > 3 else ""


def mpi_library(
    text: str, standard: tuple[int, int], paths: Sequence[str], abi: str, prefix: str,
    environ: Mapping[str, str], networks: Sequence[str],
) -> Iterator[Finding]:  # fmt: skip
    """Local. Product, version, ABI, netmod and origin; `paths` are the libmpi files that this process has loaded."""
    library = identify(text)
    where = ", ".join(f"{path} ({origin(path, prefix)})" for path in paths) or "an unknown file"
    built = f"ABI {abi}" if abi else "mpi4py built for it"
    line = f"{library.product} {library.version}, MPI {standard[0]}.{standard[1]}, {built}, from {where}"
    if len({Path(path).resolve() for path in paths}) > 1:
        yield problem(
            "MPI library", f"{line}: two MPI libraries in one process",
            "let mpi4py, h5py and others use the same one: unload a module, or build them against it",
        )  # fmt: skip
    elif library.family == "unknown":
        yield warning("MPI library", line, "use MPICH 4.2 or newer, or an MPI of its ABI")
    elif library.product == "MPICH" and _numbers(library.version) < _NEEDED_MPICH:
        yield warning(
            "MPI library", f"{line}: peers' memory is mapped only with the second window layout",
            "it works; MPICH 4.2 or newer is faster between nodes",
        )  # fmt: skip
    else:
        yield ok("MPI library", line)
    used = netmod(library, environ)
    if networks and any(origin(path, prefix) == "PyPI wheel" for path in paths):
        yield warning(
            "MPI network", f"{used}; the node has {', '.join(networks)}, for which the PyPI wheel has no driver",
            "use the site's MPI: load its module, and uninstall the package mpich from the environment",
        )  # fmt: skip
    elif any(name.startswith("cxi") for name in networks) and used.startswith("netmod ucx"):
        yield warning(
            "MPI network", f"{used}, but the network is Slingshot ({', '.join(networks)})",
            "MPIR_CVAR_CH4_NETMOD=ofi, or the module cray-mpich (not cray-mpich-ucx)",
        )  # fmt: skip
    else:
        devices = f"; RDMA devices: {', '.join(networks)}" if networks else "; no RDMA device on this node"
        yield ok("MPI network", (used or "unknown") + devices)
    yield from _start(library, used, any(origin(path, prefix) == "PyPI wheel" for path in paths), environ)


def _start(library: Library, used: str, wheel: bool, environ: Mapping[str, str]) -> Iterator[Finding]:
    """MPICH 5.0 of PyPI hands pmi2 what lies in memory behind its UCX address: often more than Slurm reads."""
    started = launch(environ)
    by_pmi2 = started is not None and started.launcher == "srun" and environ.get("SLURM_MPI_TYPE") == "pmi2"
    if wheel and by_pmi2 and library.product == "MPICH" and used.startswith("netmod ucx"):
        yield warning(
            "MPI start", "PyPI's MPICH with netmod ucx under srun --mpi=pmi2: about one start in ten dies",
            "export MPIR_CVAR_CH4_NETMOD=ofi, or use the site's MPI",
        )  # fmt: skip


def mpi_variables(host: Host) -> Iterator[Finding]:
    """Local. Variables of MPI that are known to do harm."""
    if host.environ.get("MPIR_CVAR_ASYNC_PROGRESS", "0") not in ("", "0"):
        yield warning(
            "MPI progress",
            "MPIR_CVAR_ASYNC_PROGRESS is set: MPICH's own progress thread slows most operations down 5 to 1000 times",
            "unset MPIR_CVAR_ASYNC_PROGRESS: Cascade has a thread of its own that rests between two looks",
        )


def mpiexec(host: Host, library: Library) -> Iterator[Finding]:
    """Local. The mpiexec that people would type, and whether it belongs to the library that mpi4py has loaded."""
    beside = Path(host.python).with_name("mpiexec")
    in_path = host.which("mpiexec")
    places = [place for place in (in_path, str(beside) if beside.exists() else None) if place]
    families = {place: mpiexec_family(host, place) for place in places}
    fitting = [place for place in places if families[place] in (library.family, "unknown")]
    if not places:
        if host.which("srun"):
            yield ok("mpiexec", "none; srun starts the ranks")
        else:
            yield warning("mpiexec", "none in PATH nor beside python", "pip install mpich, or load the MPI's module")
    elif not fitting:
        shown = "; ".join(f"{place} is {families[place]}'s" for place in places)
        yield problem(
            "mpiexec", f"{shown}, but mpi4py has loaded {library.product}: every rank would be a world of its own",
            f"put the mpiexec of {library.product} first in PATH, or start with srun",
        )  # fmt: skip
    elif fitting[0] != places[0]:
        yield warning(
            "mpiexec", f"the one in PATH, {places[0]}, is {families[places[0]]}'s, mpi4py has loaded {library.product}",
            f"use {fitting[0]}, or put its folder first in PATH",
        )  # fmt: skip
    else:
        yield ok("mpiexec", f"{fitting[0]}, {families[fitting[0]]}'s")


def mpiexec_family(host: Host, path: str) -> Family:
    """Local. Whose mpiexec this is, by what it says about its version."""
    ran = host.run([path, "--version"])
    says = "" if ran is None else ran.output + ran.errors
    if "HYDRA" in says or "Intel(R) MPI" in says or "MPICH" in says:
        return "MPICH"
    if any(name in says for name in ("Open MPI", "OpenRTE", "PRRTE", "prte")):
        return "Open MPI"
    return "unknown"


def gpu_support(
    library: Library, environ: Mapping[str, str], loaded: Sequence[str], says: bool | None, has_gpu: bool
) -> Iterator[Finding]:
    """Local. Does MPI take GPU memory. `says` is the library's own answer, `loaded` are this process's libraries."""
    gtl = any("libmpi_gtl" in path for path in loaded)
    asked = environ.get("MPICH_GPU_SUPPORT_ENABLED", "0") == "1"
    if asked and library.product == "Cray MPICH" and not gtl:
        yield problem(
            "GPU-aware MPI", "MPICH_GPU_SUPPORT_ENABLED=1, but the GTL library is not loaded: MPI ends the job",
            "load craype-accel-nvidia80 (or -90) and build mpi4py with MPICC='cc -target-accel=nvidia80 -shared', "
            "or unset MPICH_GPU_SUPPORT_ENABLED",
        )  # fmt: skip
    elif library.product == "Cray MPICH" and has_gpu and not asked:
        yield warning(
            "GPU-aware MPI", "Cray MPICH without MPICH_GPU_SUPPORT_ENABLED=1: GPU memory goes through host memory",
            "export MPICH_GPU_SUPPORT_ENABLED=1, with the GTL library linked into mpi4py",
        )  # fmt: skip
    elif says or (asked and gtl):
        yield ok("GPU-aware MPI", "yes" + (", GTL library loaded" if gtl else ", as the library says"))
    else:
        yield ok("GPU-aware MPI", "no: GPU memory goes through host memory" if has_gpu else "no, and no GPU here")


def loaded_libraries(maps: str, pattern: str) -> list[str]:
    """Local. The files of /proc/self/maps whose names match."""
    paths = {words[5] for line in maps.splitlines() if len(words := line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if re.search(pattern, Path(path).name))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
