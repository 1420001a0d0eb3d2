"""The launcher's variables, and the processes that are worlds of their own."""

from __future__ import annotations

import pytest

from cascade_mpi.errors import CascadeError, ConfigError, SeparateWorldsError
from cascade_mpi.launcher import (
    check_world,
    launch,
    launcher_rank,
    library_name,
    local_rank,
    local_size,
    of_another_mpi,
    separate_worlds,
)

# What a task sees, as the launchers set it (Slurm 22.05, MPICH 5, Open MPI 5); only the names that matter.
BATCH = {"SLURM_JOB_ID": "14", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
PMI2 = STEP | {"SLURM_MPI_TYPE": "pmi2", "PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "11"}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4", "PMI_FD": "9", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_RANK": "1",
}  # fmt: skip
PROXY = BATCH | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"}  # srun started mpiexec's helpers, one a node

MPICH_TEXT = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\n\0"
OPEN_MPI_TEXT = "Open MPI v5.0.6, package: Open MPI root@host Distribution, ident: 5.0.6\0"
CRAY_TEXT = "MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)\nMPI BUILD INFO : Sun\0"
INTEL_TEXT = "Intel(R) MPI Library 2021.10 for Linux* OS\n\0"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (BATCH, None),
        (STEP, ("srun", 4)),
        (PMI2, ("srun", 4)),
        (HYDRA, ("mpiexec", 4)),
        (OPEN_MPI, ("mpirun", 4)),
        (PROXY | HYDRA, ("mpiexec", 4)),
        (PROXY | HYDRA | {"PMI_SIZE": "2"}, ("mpiexec", 2)),  # as many as helpers
        ({"PMI_SIZE": "", "SLURM_STEP_NUM_TASKS": "two"}, None),
    ],
)
def test_launch(environ: dict[str, str], expected: tuple[str, int] | None) -> None:
    assert launch(environ) == expected


def test_ranks() -> None:
    assert [launcher_rank(each) for each in ({}, BATCH, STEP, PMI2, HYDRA, OPEN_MPI)] == [0, 0, 3, 3, 2, 1]
    assert [local_rank(each) for each in ({}, BATCH, STEP, HYDRA, OPEN_MPI, PROXY | HYDRA)] == [None, 0, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (BATCH, None),
        (HYDRA, 4),
        (PROXY | HYDRA | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "1"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "2"}, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "3"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "what"}, None),
    ],
)
def test_processes_of_this_node(environ: dict[str, str], expected: int | None) -> None:
    assert local_size(environ) == expected


@pytest.mark.parametrize("environ", [STEP, PMI2, HYDRA, OPEN_MPI, PROXY | HYDRA])
@pytest.mark.parametrize("library", [MPICH_TEXT, OPEN_MPI_TEXT, CRAY_TEXT, INTEL_TEXT, ""])
def test_processes_that_are_worlds_of_their_own(environ: dict[str, str], library: str) -> None:
    text = separate_worlds(environ, 1, library)
    assert text is not None
    assert "started 4 processes" in text
    assert library_name(library) in text
    with pytest.raises(SeparateWorldsError, match="world of 1 rank"):
        check_world(1, library, environ)


def test_the_remedy_fits_launcher_and_library() -> None:
    def remedy(environ: dict[str, str], library: str) -> str:
        return str(separate_worlds(environ, 1, library)).partition("). ")[2]

    assert "srun --mpi=pmi2" in remedy(STEP, MPICH_TEXT)
    assert "srun --mpi=list" in remedy(STEP, MPICH_TEXT)
    assert "srun --mpi=pmix" in remedy(STEP, OPEN_MPI_TEXT)
    assert "cray_shasta" in remedy(STEP, CRAY_TEXT)
    assert "mpiexec of the MPI that mpi4py has loaded" in remedy(OPEN_MPI, MPICH_TEXT)
    assert "Open MPI's mpirun" in remedy(HYDRA, OPEN_MPI_TEXT)
    assert "beside python" in remedy(HYDRA, MPICH_TEXT)


@pytest.mark.parametrize(
    ("environ", "size"),
    [
        ({}, 1),
        (BATCH, 1),  # a plain python in a batch script
        (BATCH | {"SLURM_STEP_NUM_TASKS": "1"}, 1),  # an interactive step
        (STEP, 4),
        (PMI2, 4),
        (OPEN_MPI, 4),
        (HYDRA | {"PMI_SIZE": "1"}, 1),
        (PROXY | HYDRA | {"PMI_SIZE": "1"}, 1),  # mpiexec -n 1 in an allocation of two nodes
        (HYDRA, 2),  # not one, so the processes found each other
    ],
)
def test_what_is_no_such_case(environ: dict[str, str], size: int) -> None:
    assert separate_worlds(environ, size, MPICH_TEXT) is None
    check_world(size, MPICH_TEXT, environ)


@pytest.mark.parametrize(
    ("environ", "library", "other"),
    [
        (OPEN_MPI, MPICH_TEXT, True),
        (OPEN_MPI, OPEN_MPI_TEXT, False),
        (HYDRA, OPEN_MPI_TEXT, True),
        (HYDRA, MPICH_TEXT, False),
        (HYDRA, INTEL_TEXT, False),
        (STEP, OPEN_MPI_TEXT, False),
        (HYDRA, "", False),
        ({}, MPICH_TEXT, False),
    ],
)
def test_a_launcher_of_another_mpi(environ: dict[str, str], library: str, other: bool) -> None:
    assert bool(of_another_mpi(environ, library)) is other


def test_library_names() -> None:
    names = [library_name(text) for text in (MPICH_TEXT, OPEN_MPI_TEXT, CRAY_TEXT, INTEL_TEXT, "", "\0")]
    assert names[:2] == ["MPICH 5.0.2", "Open MPI v5.0.6"]
    assert "CRAY MPICH version 8.1.25.17" in names[2]
    assert names[3:] == ["Intel(R) MPI Library 2021.10", "", ""]


def test_the_error_is_one_of_configuration() -> None:
    assert issubclass(SeparateWorldsError, ConfigError)
    assert issubclass(SeparateWorldsError, CascadeError)
