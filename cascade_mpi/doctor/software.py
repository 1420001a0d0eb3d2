"""Checks of the software around MPI: versions, the cache of compiled kernels, parallel HDF5.

Does not cover MPI (see `library`, `probe`) nor the GPU's software (see `gpu`).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from cascade_mpi import __version__
from cascade_mpi.config import format_size
from cascade_mpi.doctor.finding import Finding, ok, problem, warning
from cascade_mpi.doctor.host import Host

_NEEDED = ("numpy", "numba", "mpi4py")
CUPY_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy-rocm-7-0", "cupy-rocm-5-0", "cupy")
_CACHE_BYTES = 64 << 20  # the kernels take some 3 MB, and there is a set for each kind of CPU
# h5py imports mpi4py when it is parallel: without initialize=False that would be an MPI job of its own.
_HDF5_PROGRAM = """
import json
try:
    import mpi4py
    mpi4py.rc.initialize = False
except ImportError:
    pass
import h5py
libraries = sorted({line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line})
print(json.dumps([h5py.version.hdf5_version, bool(h5py.get_config().mpi), libraries]))
"""


def versions(host: Host) -> Iterator[Finding]:
    """Local. Python and the packages that the store needs or can use."""
    found = {name: host.version(name) for name in (*_NEEDED, "h5py")}
    found["cupy"] = next((version for name in CUPY_PACKAGES if (version := host.version(name))), None)
    listed = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    line = f"cascade {__version__}, Python {platform.python_version()}, {listed}"
    missing = [name for name in _NEEDED if not found[name]]
    if missing:
        names = " ".join(missing)
        yield problem("versions", f"{line}; missing: {names}", f"{host.python} -m pip install {names}")
    else:
        yield ok("versions", line)


def kernel_cache(host: Host) -> Iterator[Finding]:
    """Local. Where Numba keeps compiled kernels: without a place, every process compiles for half a minute."""
    remedy = "set NUMBA_CACHE_DIR to a directory that you can write, on a file system that all nodes see"
    asked = host.environ.get("NUMBA_CACHE_DIR", "")
    package = Path(__file__).resolve().parents[1]
    sources = [package.parent / "kernels", package / "kernels"]  # in a checkout, and installed
    home = Path(host.environ.get("XDG_CACHE_HOME") or Path(host.environ.get("HOME", "/nonexistent"), ".cache"))
    # In the order in which the kernels look (see kernels/jit.py).
    places = [Path(asked)] if asked else []
    places += [folder / "__pycache__" for folder in sources if folder.is_dir()]
    places.append(home / "numba")
    chosen = next((place for place in places if _writable(place)), None)
    if chosen is None:
        yield warning("kernel cache", f"none of {', '.join(map(str, places))} can be written", remedy)
        return
    try:
        status = host.statvfs(_existing(chosen))
        free = status.f_bavail * status.f_frsize
    except OSError:
        free = _CACHE_BYTES
    if free < _CACHE_BYTES:
        yield warning("kernel cache", f"{chosen}: {format_size(free)} free", f"make room there, or {remedy}")
    elif asked and chosen != Path(asked):
        yield warning("kernel cache", f"NUMBA_CACHE_DIR {asked} cannot be written, {chosen} is used", remedy)
    else:
        yield ok("kernel cache", f"{chosen} can be written")


def hdf5(host: Host) -> Iterator[Finding]:
    """Local. Is h5py there, is it parallel, and with which MPI."""
    version = host.version("h5py")
    if version is None:
        yield ok("parallel HDF5", "h5py is not installed (only exports to HDF5 need it)")
        return
    ran = host.run([host.python, "-c", _HDF5_PROGRAM])
    if ran is None or ran.status != 0:
        last = "" if ran is None else (ran.errors.strip().splitlines() or [f"exit status {ran.status}"])[-1]
        yield problem("parallel HDF5", f"h5py {version} cannot be imported: {last}", "reinstall h5py for this MPI")
        return
    hdf5_version, parallel, libraries = json.loads(ran.output.strip().splitlines()[-1])
    line = f"h5py {version}, HDF5 {hdf5_version}"
    if not parallel:
        yield warning(
            "parallel HDF5",
            f"{line}, serial: one rank writes an HDF5 file",
            "for parallel files: HDF5_MPI=ON CC=mpicc pip install --no-binary=h5py h5py, against the MPI of mpi4py",
        )
    elif len({Path(library).resolve() for library in libraries}) > 1:
        yield problem(
            "parallel HDF5",
            f"{line}, parallel, but h5py and mpi4py load different MPI libraries: {', '.join(libraries)}",
            "build h5py with the mpicc of the MPI that mpi4py loads",
        )
    else:
        yield ok("parallel HDF5", f"{line}, parallel, with {', '.join(libraries) or 'an unknown MPI'}")


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _writable(path: Path) -> bool:
    place = _existing(path)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
