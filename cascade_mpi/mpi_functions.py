"""The addresses of MPI's C functions, for kernels that call MPI themselves.

Covers finding them and telling whether compiled calls are possible with this MPI. Does not cover the
calls (see `kernels.intrinsics.call_int`).
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import NamedTuple

from mpi4py import MPI


class Functions(NamedTuple):
    """Addresses of the functions that kernels call; all 0 where `problem` says why they cannot."""

    get: int
    put: int
    flush: int
    cas: int
    iprobe: int
    problem: str


_NAMES = ("MPI_Get", "MPI_Put", "MPI_Win_flush", "MPI_Compare_and_swap", "MPI_Iprobe")
_MACHINES = ("x86_64", "aarch64")  # where an int argument is the low half of a 64-bit register or stack slot


def find_functions() -> Functions:
    """Local. Look the functions up in the MPI library that mpi4py has loaded."""
    problem = ""
    if platform.machine() not in _MACHINES or sys.byteorder != "little":
        problem = f"the calling convention of {platform.machine()} is not one of {', '.join(_MACHINES)}"
    elif MPI._sizeof(MPI.Win) not in (4, 8):
        problem = f"MPI handles have {MPI._sizeof(MPI.Win)} bytes, not 4 or 8"
    else:
        # A symbol is searched in mpi4py's extension module and in what it is linked with: the MPI in use.
        library = ctypes.CDLL(MPI.__file__)
        try:
            get, put, flush, cas, iprobe = (
                ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _NAMES
            )
        except AttributeError as error:
            problem = f"the MPI library does not show its functions: {error}"
        else:
            return Functions(get, put, flush, cas, iprobe, "")
    return Functions(0, 0, 0, 0, 0, problem)
