"""h5py: imported when the first file is written or read, and asked whether it is parallel.

Covers its absence, and the one place that knows its name. Does not cover whether it was built against the MPI that
mpi4py loads: `cascade doctor` finds that out in a process of its own.
"""

from __future__ import annotations

import importlib
from typing import Any

from cascade_mpi.errors import NotConfiguredError


def load() -> Any:
    """Local. The module h5py; NotConfiguredError, which names the remedy, if it is missing or cannot be loaded."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise NotConfiguredError(
            f'HDF5 files need the package h5py, which {why}: pip install "cascade-mpi[hdf5]", or load the module of it '
            "that your site has"
        ) from error


def is_parallel(h5: Any) -> bool:
    """Local. Was h5py built with MPI, so that all ranks can write one file?"""
    return bool(h5.get_config().mpi)
