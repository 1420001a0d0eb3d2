"""A program that imports the package and everything of it that needs no MPI."""

import sys

import cascade_mpi
import cascade_mpi.config
import cascade_mpi.errors
import cascade_mpi.keys
import cascade_mpi.layout

assert cascade_mpi.Config(dram_bytes="1MiB").dram_bytes == 1 << 20
assert issubclass(cascade_mpi.errors.StoreFullError, cascade_mpi.CascadeError)
assert "mpi4py.MPI" not in sys.modules
print("MPI is untouched")
