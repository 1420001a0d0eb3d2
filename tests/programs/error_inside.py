"""A program in which one rank raises inside `with Store`, while the others wait for it for ever."""

import sys
import threading

from mpi4py import MPI

from cascade_mpi.store import Store

comm = MPI.COMM_WORLD


def fail_here() -> None:
    raise ValueError("planted")


with Store(comm, dram_bytes="1MiB", progress="thread" if sys.argv[1] == "thread" else "auto") as store:
    store.put(f"{comm.rank}", b"v")
    if sys.argv[1] == "thread":  # beside other threads of the program
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        store.put_async(f"more {comm.rank}", b"v")
    if comm.rank == comm.size - 1:
        fail_here()
    comm.Barrier()
    comm.recv(source=comm.size - 1)
print("reached the end", flush=True)
