"""What MPI libraries say about themselves, and reports of stores on them."""

from __future__ import annotations

from typing import Any

MPICH = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\nMPICH configure:    --with-device=ch4:ucx,ofi\n\0"
OLD = "MPICH Version:\t3.4.3\nMPICH Device:\tch4:ofi\n"
CRAY = "MPI VERSION    : CRAY MPICH version 8.1.28.29 (ANL base 3.4a2)\nMPI BUILD INFO : Wed Nov 15\n"
INTEL = "Intel(R) MPI Library 2021.10 for Linux* OS\n"
MVAPICH = "MVAPICH2 Version      :\t2.3.7\nMVAPICH2 Device : ch3:mrail\n"
OPEN_MPI = "Open MPI v5.0.6, package: Open MPI me@here Distribution, ident: 5.0.6, repo rev: v5.0.6\0"


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
