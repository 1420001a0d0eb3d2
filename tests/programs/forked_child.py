"""A program that forks while a store is open: the child must not touch MPI, the parent goes on."""

import os
import sys
import warnings

import numpy as np
from mpi4py import MPI

from cascade_mpi.errors import StoreClosedError
from cascade_mpi.store import Store

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads: that is the test
comm = MPI.COMM_WORLD


def child(store: Store) -> int:
    refused = 0
    calls = [
        lambda: store.get("k"), lambda: store.get("k", bytearray(1)), lambda: store.get(5, bytearray(1)),
        lambda: store.put("k", b"v"), lambda: store.delete("k"), lambda: store.contains("k"),
        lambda: store.locate("k"), lambda: store.view("k"), lambda: store.get_many(["k"]),
        lambda: store.contains_many(["k"]), lambda: store.put_async("k", b"v"), store.stats, store.progress,
        store.check,
    ]  # fmt: skip
    for call in calls:
        try:
            call()
        except StoreClosedError as error:
            refused += "fork" in str(error)
    store.close()  # nothing: the store is the parent's
    return refused


with Store(comm, dram_bytes="1MiB", progress="thread") as store:
    store.put(f"{comm.rank}", np.array([comm.rank]))
    store.put_async(f"more {comm.rank}", b"v").result()
    view = store.view(f"{comm.rank}")
    comm.Barrier()
    sys.stdout.flush()
    forked = os.fork()
    if forked == 0:
        refused = child(store)
        del view  # its pin is the parent's
        print(f"the child was refused {refused} times\n", end="", flush=True)
        os._exit(0)
    _, status = os.waitpid(forked, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert view.array[0] == comm.rank
    assert store.stats()["pins"] == 1
    view.release()
    comm.Barrier()
    assert all(store.get(f"{rank}")[0] == rank for rank in range(comm.size))
    store.check()
    print("the parent goes on\n", end="", flush=True)
