"""The stamp of the kernel cache covers every file that compiled code comes from.

Does not cover what Numba does with its cache, nor that jobs fill it once (`tests/test_launch.py`).
"""

from __future__ import annotations

from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import cascade_mpi.kernels.checksum
import cascade_mpi.kernels.fill
import cascade_mpi.onesided
from cascade_mpi import layout
from cascade_mpi.kernels import jit


def files_of(function: FunctionType, seen: set[FunctionType]) -> set[Path]:
    """The files of a function and of all that it calls by a global name, or by one of a module."""
    if function in seen:
        return set()
    seen.add(function)
    found = {Path(function.__code__.co_filename).resolve()}
    values = [function.__globals__.get(name) for name in function.__code__.co_names]
    modules = [value for value in values if isinstance(value, ModuleType)]
    values += [getattr(module, name, None) for module in modules for name in function.__code__.co_names]
    for value in values:
        called: Any = getattr(value, "py_func", None) or getattr(value, "python", None)
        if called is not None:
            found |= files_of(called, seen)
    return found


def test_every_file_of_a_kernel_is_in_the_stamp() -> None:
    seen: set[FunctionType] = set()
    files = set().union(*(files_of(kernel.python, seen) for kernel in jit.KERNELS))
    sources = {path.resolve() for path in jit.sources()}
    assert files <= sources
    # The walk has found what is known to be there, or it would prove nothing.
    package = Path(cascade_mpi.onesided.__file__).resolve().parent
    assert {path for path in sources if path.parent == package} - files == {package / "__init__.py"}
    assert Path(layout.__file__).resolve() in sources  # whose constants kernels have in them
