"""Settings and logging from the environment, as a store on several ranks takes them: agreed, or refused on all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpi4py import MPI

from cascade_mpi import log
from cascade_mpi.config import Config
from cascade_mpi.errors import ConfigError
from cascade_mpi.store import Store


@pytest.fixture(autouse=True)
def _silent_again() -> Iterator[None]:
    yield
    log.setup(0, {})


def test_a_store_takes_variables_and_a_file(
    open_store: Callable[..., Store], comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cascade.toml"
    file.write_text('[store]\nrest_ms = 3\nwhen_full = "refuse"\n')
    monkeypatch.setenv("CASCADE_REST_MS", "2")
    store = open_store(comm, config=file)
    assert (store.config.rest_ms, store.config.when_full) == (2.0, "refuse")
    store.put(f"key {comm.rank}", b"value")
    comm.Barrier()
    assert all(store.get(f"key {rank}").tobytes() == b"value" for rank in range(comm.size))


def test_variables_that_differ_are_refused_on_all_ranks(
    comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, raises_all: Callable[..., str]
) -> None:
    monkeypatch.setenv("CASCADE_REST_MS", str(1 + comm.rank))
    if comm.size > 1:
        assert "rank 1 was given Config(" in raises_all(comm, ConfigError, lambda: Store(comm, dram_bytes="8MiB"))
    assert Config.make().rest_ms == 1 + comm.rank


@pytest.mark.parametrize(
    ("variable", "text"),
    [("CASCADE_REST_MS", "0"), ("CASCADE_CONFIG", "/no/such.toml"), ("CASCADE_LOG_FILE", "/no/such/{rank}.log"),
     ("CASCADE_LOG_LEVEL", "loud"), ("CASCADE_NONSENSE", "1")],
)  # fmt: skip
def test_a_wrong_variable_of_one_rank_is_an_error_on_all(
    comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, raises_all: Callable[..., str], variable: str, text: str
) -> None:
    last = comm.size - 1
    monkeypatch.setattr("logging.root.handlers", [])  # else the program is taken to log by itself: pytest does
    if comm.rank == last:
        monkeypatch.setenv(variable, text)
    said = raises_all(comm, ConfigError, lambda: Store(comm, dram_bytes="8MiB"))
    assert variable in said
    assert said.startswith(f"rank {last}: ") == (comm.rank != last)
