"""Which window layouts the MPI of this job has: tests that run in each layout take them from here.

Said here, not found out: a layout that stopped working would otherwise be left out without a word.
"""

from __future__ import annotations

from mpi4py import MPI

from cascade_mpi import window

OPEN_MPI = MPI.Get_library_version().startswith("Open MPI")
# Open MPI's Win.Allocate shows no rank the memory of another: test_windows tests that it is refused.
LAYOUTS = ("shared",) if OPEN_MPI else window.LAYOUTS
