"""The store under Open MPI: its tests, the workload, and how jobs end, on 2 ranks with PyPI's wheel.

Covers what another MPI may do differently: layouts of windows, handles that are pointers, atomics, threads, errors,
killed ranks. Does not cover what stands above the store, but for the workload (see `test_launch`).

The wheel stands in a folder of its own inside the virtual environment, since each MPI brings a `bin/mpiexec` and a
`lib/libmpi.so`. mpi4py has a module for every ABI and takes the one of the library that a variable names. So the
Python, its packages and the compiled kernels are those of the other tests.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import launch
import pytest

pytestmark = pytest.mark.launch

LIMIT_S, SUITE_LIMIT_S = 90, 300
# Of the tests on several ranks, those of programs that use the store like any other.
ABOVE_THE_STORE = (
    "test_bench_micro", "test_workload", "test_workload_options", "test_hdf5", "test_mpiio", "test_disk_drain",
    "test_disk_lists",
)  # fmt: skip
NOT_TO_BE_HAD = ("No matching distribution found", "Could not find a version")


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Open MPI is installed: kept in the virtual environment, from one run to the next."""
    requirement = next(
        each.partition(";")[0].strip()
        for each in importlib.metadata.requires("cascade-mpi") or []
        if each.replace("'", '"').endswith('extra == "openmpi"')
    )
    in_environment = sys.prefix != sys.base_prefix
    folder = Path(sys.prefix, "openmpi") if in_environment else tmp_path_factory.mktemp("openmpi")
    installed = folder / "requirement"  # written last: an installation that was cut short is made again
    if not installed.exists() or installed.read_text() != requirement:
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        pip += ["--only-binary", ":all:", "--ignore-installed", "--prefix", str(folder), requirement]
        made = subprocess.run(pip, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if any(text in made.stderr for text in NOT_TO_BE_HAD):
            pytest.skip(f"pip finds no {requirement} for this platform, or does not reach its registry")
        assert made.returncode == 0, made.stderr
        installed.write_text(requirement)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """Fill the kernel cache with nobody waiting: ranks that wait for the one that compiles take its cores."""
    program = "from cascade_mpi.kernels.jit import warm; import cascade_mpi.onesided, cascade_mpi.kernels.fill; warm()"
    subprocess.run([sys.executable, "-c", program], cwd=launch.ROOT, check=True, timeout=300)


def run(prefix: Path, *command: str, seconds: int = LIMIT_S, **variables: str) -> launch.Ended:
    """Run a Python command line on 2 ranks of that Open MPI."""
    variables |= {
        "MPI4PY_LIBMPI": str(prefix / "lib" / "libmpi.so.40"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",  # containers
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # machines with one core
        "OMPI_MCA_mpi_yield_when_idle": "1",  # a rank that waits leaves its core to the other one's progress thread
        "OMPI_MCA_osc": "^ucx",  # which says at every window that it finds no network
    }  # fmt: skip
    return launch.ended(
        [str(prefix / "bin" / "mpiexec"), "-n", "2", sys.executable, *command], seconds=seconds, **variables
    )


def test_the_mpi_tests(prefix: Path, tmp_path: Path) -> None:
    command = [
        "-m", "pytest", "--with-mpi", "-q", "--color=no", "-p", "no:cacheprovider",
        "-o", "faulthandler_timeout=120", "-o", "faulthandler_exit_on_timeout=true", "tests/mpi",
        *(f"--ignore=tests/mpi/{name}.py" for name in ABOVE_THE_STORE),
    ]  # fmt: skip
    ended = run(prefix, *command, seconds=SUITE_LIMIT_S, TEST_RESULTS_DIR=str(tmp_path))
    assert ended.status == 0, str(ended)
    assert "MPI vendor: Open MPI" in ended.output, str(ended)
    counted = launch.counts(tmp_path, 2)
    assert len(counted) == 2, str(ended)
    for each in counted:
        assert each["size"] == 2
        assert each["failed"] == each["testsfailed"] == 0
        assert each["passed"] == counted[0]["passed"]
        assert each["passed"] > 120, ended  # they really ran


def test_the_workload(prefix: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    ended = run(prefix, "-m", "cascade_mpi", "workload", "--requests", "300", "--dram", "64MiB", "--json", str(file))
    assert ended.status == 0, str(ended)
    assert ended.output.count("2 ranks on 1 node") == 1, str(ended)
    result = json.loads(file.read_text())
    assert (result["ranks"], result["requests"], result["corrupt"]) == (2, 300, 0)
    assert result["hits"] + result["unique"] + result["double_computes"] == result["accesses"]
    assert result["tiers"]["node"]["gets"] > 0


@pytest.mark.parametrize("level", ["funneled", "serialized"])
def test_thread_levels_below_multiple(prefix: Path, level: str) -> None:
    ended = run(prefix, str(launch.PROGRAMS / "thread_level.py"), level)
    assert ended.status == 0, str(ended)
    assert ended.output.count("works") == 2, str(ended)


@pytest.mark.parametrize("name", ["error_inside", "killed_rank"])
def test_a_rank_that_fails_ends_the_job(prefix: Path, name: str) -> None:
    ended = run(prefix, str(launch.PROGRAMS / f"{name}.py"), "thread")
    assert ended.status not in (0, 124), str(ended)
    assert "reached the end" not in ended.output, str(ended)
    if name == "error_inside":
        assert "ValueError: planted" in ended.errors, str(ended)
        assert "an error inside 'with Store' ends the job" in ended.errors, str(ended)


def test_a_store_that_is_not_closed_does_not_hang(prefix: Path) -> None:
    ended = run(prefix, str(launch.PROGRAMS / "never_closed.py"))
    assert ended.status == 0, str(ended)
    assert ended.output.count("reached the end") == 2, str(ended)
    assert "Traceback" not in ended.errors, str(ended)
