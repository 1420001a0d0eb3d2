"""A program that initialises MPI with a thread level below MULTIPLE: the store works, on the main thread."""

import sys
import threading

import mpi4py

mpi4py.rc.thread_level = sys.argv[1]

import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402

from cascade_mpi.errors import CascadeError, ConfigError  # noqa: E402
from cascade_mpi.store import Store  # noqa: E402

LEVELS = {"single": MPI.THREAD_SINGLE, "funneled": MPI.THREAD_FUNNELED, "serialized": MPI.THREAD_SERIALIZED}
level = sys.argv[1]
comm = MPI.COMM_WORLD
assert MPI.Query_thread() == LEVELS[level], MPI.Query_thread()

try:
    Store(comm, dram_bytes="1MiB", progress="thread")
except ConfigError as error:
    assert 'mpi4py.rc.thread_level = "multiple"' in str(error), error
    assert level in str(error), error
else:
    raise AssertionError("the progress thread was not refused")

with Store(comm, dram_bytes="1MiB", progress="auto") as store:
    report = store.report()
    assert report["thread_level"] == level
    assert not report["progress"]["thread"]
    if any(not each["cas_one_sided"] for each in report["self_test"].values()):
        assert "refused" in report["progress"]["reason"], report["progress"]
    assert report["async"].startswith("inline"), report["async"]

    value = np.arange(1000) + comm.rank
    assert store.put(f"{comm.rank}", value)
    future = store.put_async(f"async {comm.rank}", value)
    assert future.done()
    assert future.result().stored
    comm.Barrier()
    peer = (comm.rank + 1) % comm.size
    assert (store.get(f"{peer}") == np.arange(1000) + peer).all()
    fetched = store.get_async(f"async {peer}")
    assert fetched.done()
    assert (fetched.result() == np.arange(1000) + peer).all()
    assert store.get_many([f"{peer}", "absent"])[1] is None

    outcomes: list[object] = []

    def touch() -> None:
        try:
            outcomes.append(store.get(f"{comm.rank}", np.zeros(1000, np.int64)))
        except CascadeError as error:
            outcomes.append(error)

    thread = threading.Thread(target=touch)
    thread.start()
    thread.join(30)
    if level == "serialized":
        assert outcomes == [8000], outcomes
    else:
        assert isinstance(outcomes[0], CascadeError), outcomes
        assert "only the main thread" in str(outcomes[0]), outcomes
    comm.Barrier()
    store.check()
    print(f"{level} works on rank {comm.rank}\n", end="", flush=True)
