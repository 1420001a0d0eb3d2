"""A program whose ranks end by sys.exit(0) inside `with Store`: that is no error."""

import sys

from mpi4py import MPI

from cascade_mpi.store import Store

with Store(MPI.COMM_WORLD, dram_bytes="1MiB") as store:
    store.put(f"{MPI.COMM_WORLD.rank}", b"v")
    print("reached the end", flush=True)
    sys.exit(0)
