"""Which tests run where: those of several ranks under an MPI launcher, those that start one outside."""

from __future__ import annotations

from pathlib import Path

import launch
import pytest

HERE = Path(__file__).resolve().parent
LAUNCHED = launch.launched()


def _wanted(config: pytest.Config) -> bool:
    """Tests of several ranks: asked for by option, by launcher, or by name."""
    if LAUNCHED or config.getoption("--with-mpi", default=False):
        return True
    named = [(Path.cwd() / arg.split("::")[0]).resolve() for arg in config.args]
    return any(path.is_relative_to(HERE / "mpi") for path in named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A plain `pytest` leaves `mpi` to `test_launch`, which starts it on several numbers of ranks."""
    return True if collection_path == HERE / "mpi" and not _wanted(config) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LAUNCHED and item.get_closest_marker("launch"):
            item.add_marker(pytest.mark.skip(reason="it starts its own MPI jobs, and this is one already"))
