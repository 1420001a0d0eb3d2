"""Cascade: an MPI-native SPMD runtime for a tiered, distributed KV-cache store.

Importing this package does not initialise MPI; `Store` takes the communicator as an argument.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cascade_mpi.config import Config
from cascade_mpi.errors import CascadeError
from cascade_mpi.namespaces import Namespace

if TYPE_CHECKING:
    from cascade_mpi.store import PutResult, Store

logging.getLogger("cascade").addHandler(logging.NullHandler())  # silent unless the program listens
__version__ = "0.1.0"
__all__ = ["CascadeError", "Config", "Namespace", "PutResult", "Store", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Store` on first use: it needs MPI, the rest of the package does not."""
    if name in ("PutResult", "Store"):
        from cascade_mpi import store

        return getattr(store, name)
    raise AttributeError(f"module 'cascade_mpi' has no attribute {name!r}")
