"""Findings from a small store that is opened on all ranks: window layout, one-sided operations, a block read back.

Covers what the store's own report means for people. Does not cover how the store finds it out (see
`cascade_mpi.selftest`, `cascade_mpi.window`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cascade_mpi.doctor.finding import Finding, ok, problem, warning
from cascade_mpi.errors import CascadeError

if TYPE_CHECKING:
    from mpi4py import MPI

_ARENA_BYTES = 1 << 20
_BLOCK_BYTES = 64 << 10
_PATHS = {"node": "on the node", "remote": "between nodes"}


def one_sided(comm: MPI.Intracomm) -> Iterator[Finding]:
    """Collective. Open a store on at least two ranks, read a block of the next rank, close it."""
    import numpy as np

    from cascade_mpi.store import Store

    try:
        with Store(comm, dram_bytes=_ARENA_BYTES, copy_threads=1) as store:
            report = store.report()
            mine = np.full(_BLOCK_BYTES, comm.rank % 251, np.uint8)
            stored = bool(store.put(f"doctor {comm.rank}", mine))
            comm.Barrier()
            peer = (comm.rank + 1) % comm.size
            got = store.get(f"doctor {peer}")
            right = stored and got is not None and bool((got == peer % 251).all())
            everywhere = comm.allreduce(int(right))
            comm.Barrier()
    except CascadeError as error:  # raised on all ranks alike
        yield problem("store", f"it cannot be opened: {error}", "see what the text says, and the lines above")
        return
    yield from explain(report)
    yield read_back(everywhere, comm.size)


def read_back(right: int, ranks: int) -> Finding:
    """Local. So many of the ranks read what their neighbour had put, byte by byte."""
    if right == ranks:
        return ok("store", f"opened on {ranks} ranks; each read a block of the next one, every byte right")
    return problem(
        "store", f"{ranks - right} of {ranks} ranks could not read a block of the next rank",
        'this MPI loses data: try windows="shared", mpi_calls="python", or another MPI',
    )  # fmt: skip


def explain(report: Mapping[str, Any]) -> Iterator[Finding]:
    """Local. What `Store.report()` means."""
    windows, progress, calls = report["windows"], report["progress"], report["mpi_calls"]
    yield ok("window layout", f"{windows['layout']} ({windows['reason']})")
    yield from thread_level(report["thread_level"])
    tests: Mapping[str, Mapping[str, Any]] = report["self_test"]
    waiting = [path for path in tests if not tests[path]["get_one_sided"]]
    times = ", ".join(f"{_PATHS[path]} {tests[path]['get_s'] * 1e6:.0f} us" for path in tests)
    if "remote" in waiting:
        yield warning(
            "one-sided Get", f"it waits for the target's CPU {_named(waiting)} ({times})",
            "use a netmod with RDMA (ucx, or ofi with the network's provider); TCP has none",
        )  # fmt: skip
    elif waiting:
        yield ok("one-sided Get", f"waits for its target on the node ({times}): there, blocks are read by plain loads")
    else:
        yield ok("one-sided Get", f"the target's CPU is not involved ({times}, target busy)")
    waiting = [path for path in tests if not tests[path]["cas_one_sided"]]
    where = _named(waiting)
    if not waiting:
        yield ok("one-sided CAS", "the target's CPU is not involved")
    elif progress["thread"]:
        yield ok("one-sided CAS", f"it waits for its target {where}; the progress thread answers")
    else:
        yield warning(
            "one-sided CAS", f"it waits for its target {where}, and there is no progress thread: {progress['reason']}",
            'mpi4py.rc.thread_level = "multiple", or call store.progress() in long computations',
        )  # fmt: skip
    if calls["by"] == "compiled":
        yield ok("MPI calls", "from compiled kernels")
    else:
        yield warning("MPI calls", f"from Python: {calls['reason']}", "use MPICH or Open MPI on x86-64 or AArch64")
    if not report["kernel_cache"]:
        yield warning("compiled kernels", "not cached: every job compiles them anew", "see the line 'kernel cache'")


def thread_level(level: str) -> Iterator[Finding]:
    """Local. What MPI allows to threads, "multiple" is best."""
    if level == "multiple":
        yield ok("thread level", level)
    else:
        yield warning(
            "thread level", f"{level}: no progress thread, calls of several threads take turns or are refused",
            'mpi4py.rc.thread_level = "multiple" before mpi4py.MPI is imported',
        )  # fmt: skip


def _named(paths: Sequence[str]) -> str:
    return " and ".join(_PATHS[path] for path in paths)
