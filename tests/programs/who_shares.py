"""A program in which every rank says who shares its node, as MPI sees it and as the store does."""

from mpi4py import MPI

from cascade_mpi.store import Store

comm = MPI.COMM_WORLD
node = comm.Split_type(MPI.COMM_TYPE_SHARED)
there, sharing = node.size, sorted(node.allgather(comm.rank))
node.Free()
with Store(comm, dram_bytes="1MiB") as store:
    report = store.report()
    store.put(f"{comm.rank}", b"v" * 100)
    comm.Barrier()
    paths = [store.locate(f"{rank}").path for rank in range(comm.size)]
    assert all(bytes(store.get(f"{rank}")) == b"v" * 100 for rank in range(comm.size))
    assert [rank for rank, path in enumerate(paths) if path != "remote"] == sharing, (paths, sharing)
    remote = store.stats()["tiers"]["remote"]["gets"]
    comm.Barrier()
text = f"nodes {report['nodes']}, MPI sees {there} here, the store {report['ranks_on_node']}, {remote} remote gets"
print(f"rank {comm.rank} of {comm.size}: {text}\n", end="", flush=True)
