"""The launcher of this process: what its environment says before MPI is up.

Covers the rank that mpiexec, srun or another launcher gave this process. Does not cover MPI's own answer.
"""

from __future__ import annotations

import os

RANK_VARIABLES = ("PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def launcher_rank() -> int:
    """Local. The rank of this process as its launcher set it; 0 without a launcher."""
    for name in RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return 0
