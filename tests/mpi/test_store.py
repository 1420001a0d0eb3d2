import numpy as np

def test_basic(any_store, assert_all, comm):
    s = any_store
    a = np.arange(100, dtype=np.float32) + comm.rank
    s.put(f"k{comm.rank}", a)
    comm.Barrier()
    for r in range(comm.size):
        got = s.get(f"k{r}")
        assert_all(comm, got is not None and np.array_equal(got, np.arange(100, dtype=np.float32) + r), f"{r}")
