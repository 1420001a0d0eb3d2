"""The one-sided calls of `onesided` once more, issued through mpi4py: for an MPI that kernels cannot call.

Covers the same calls with the same arguments, steps, results, scratch fields and counters, module by module, so that
the two are exchanged freely. Does not cover what cannot be said in Python: memory of the own node is read and written
by small kernels of `probe`, which hold the fences. A call costs some tens of microseconds.
"""

from cascade_mpi.onesided_python.lookup import LookUps
from cascade_mpi.onesided_python.lookup_many import ManyLookUps
from cascade_mpi.onesided_python.pins import Pins
from cascade_mpi.onesided_python.read_many import ManyReads
from cascade_mpi.onesided_python.swaps import Swaps


class PythonCalls(ManyReads, ManyLookUps, LookUps, Swaps, Pins):
    """The calls of one store; each takes the addresses of the context and of the thread's scratch first.

    Costs in MPI calls are those of the kernels of the same names.
    """
