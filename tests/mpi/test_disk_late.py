"""A file system on which other nodes see an open segment's tail late: misses, and no word of damage.

The stand-in (`late_files`) hides from each rank what the others append, until the segment is sealed. Does not cover a
file system that is not coherent; `cascade doctor` finds out about those.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_stores import leave_memory, opened, tier_of
from mpi4py import MPI
from patterns import block

from cascade_mpi.disk import directory
from cascade_mpi.segments.files import PosixFiles

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from late_files import LateFiles

AssertAll = Callable[..., None]
SIZES = [3000, 70_000]


@pytest.mark.parametrize("zeros", [False, True])
def test_what_is_not_visible_yet_is_a_miss_and_comes_with_the_seal(
    comm: MPI.Intracomm, folder: Path, assert_all: AssertAll, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, zeros: bool,
):  # fmt: skip
    late: list[LateFiles] = []

    def files(*given: Any, **options: Any) -> LateFiles:
        late.append(LateFiles(PosixFiles(*given, **options), 0, zeros=zeros))
        return late[-1]

    monkeypatch.setattr(directory, "PosixFiles", files)
    with opened(comm, folder) as store, caplog.at_level(logging.WARNING, logger="cascade"):
        mine, theirs = ([f"{at} of {rank % comm.size}" for at in range(2)] for rank in (comm.rank, comm.rank + 1))
        for at, key in enumerate(mine):
            store.put(key, block(comm.rank + at, SIZES[at]))
        leave_memory(store, mine)
        comm.Barrier()
        wanted = [block((comm.rank + 1) % comm.size + at, SIZES[at]) for at in range(2)]

        def look() -> list[Any]:
            """Every way to read the blocks of the next rank."""
            found: list[Any] = store.get_many(theirs)
            for at, key in enumerate(theirs):
                out = np.zeros(SIZES[at], np.uint8)
                found += [store.get(key), store.get(key, out) and out, store.get_range(key, 0, SIZES[at])]
            return found

        seen = look()
        told = store.stats()["disk"]
        others = comm.size > 1
        assert_all(comm, all((each is None) == others for each in seen), str(seen))
        assert_all(comm, (told["not_visible"], told["damaged"], told["errors"]) == (8 * others, 0, 0), str(told))
        held = store.pin(theirs[0])
        assert_all(comm, (held is None) == others, str(held))
        if held is not None:
            store.unpin(held)
        assert_all(comm, bool(store.protect(theirs[1]).any()) != others)
        assert_all(comm, store.prefetch(theirs).result() == 0)
        assert_all(comm, all(tier_of(store, key) == "disk" for key in theirs) or not others, "the words stay")
        assert_all(comm, all(store.get(key) is not None for key in mine), "its own are there")
        texts = [each.getMessage() for each in caplog.records]
        assert_all(comm, not any(each.levelno > logging.WARNING for each in caplog.records), str(texts))
        assert_all(comm, sum("until its segment is sealed" in text for text in texts) == others, str(texts))
        comm.Barrier()
        assert store._disk is not None
        store._disk.tier.sync(seal=True)
        comm.Barrier()
        found = look()
        right = all(np.array_equal(found[at], wanted[at % 2]) for at in range(2))
        right = right and all(np.array_equal(each, wanted[at // 3]) for at, each in enumerate(found[2:]))
        assert_all(comm, right, "found again")
        assert_all(comm, store.stats()["disk"]["damaged"] == 0)
    assert late
