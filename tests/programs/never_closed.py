"""A program that ends without closing its store: a destructor must not wait for other ranks."""

from mpi4py import MPI

from cascade_mpi.store import Store

comm = MPI.COMM_WORLD
store = Store(comm, dram_bytes="1MiB", progress="thread")
store.put(f"{comm.rank}", b"v")
view = store.view(f"{comm.rank}")
comm.Barrier()
print("reached the end\n", end="", flush=True)
