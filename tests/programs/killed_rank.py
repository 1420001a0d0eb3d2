"""A program in which one rank is killed while the others use the store."""

import os
import signal

from mpi4py import MPI

from cascade_mpi.store import Store

comm = MPI.COMM_WORLD
with Store(comm, dram_bytes="1MiB") as store:
    store.put(f"{comm.rank}", b"v")
    comm.Barrier()
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:  # until the launcher ends this rank too
        store.put("k", b"v")
        store.get(f"{comm.size - 1}")
print("reached the end", flush=True)
