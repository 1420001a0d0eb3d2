"""What tests of the disk tier share: small stores on a folder of all ranks, blocks that leave memory, refusals, kills.

A kill is a copy of the folder: what a job that is killed at this moment leaves behind, as long as the machine lives.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from cascade_mpi.keys import Key, key_words
from cascade_mpi.namespaces import AnyNamespace
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.fsck import fsck
from cascade_mpi.store import Store

SMALL: dict[str, Any] = {
    "dram_bytes": "512KiB", "disk_blocks": 512, "segment_bytes": "1MiB", "disk_direct": "off", "copy_threads": 1,
}  # fmt: skip


class Refusing:
    """A file system that refuses some calls of this process, from the `after`-th on, `times` times."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, number: int, *calls: str, after: int = 0, times: int = 1 << 30
    ) -> None:
        self.number, self.after, self.times, self.refused = number, after, times, 0
        self.patch = monkeypatch
        for call in calls:
            monkeypatch.setattr(os, call, self._instead(getattr(os, call)))

    def _instead(self, call: Callable[..., object]) -> Callable[..., object]:
        def refuse(*args: object, **options: object) -> object:
            self.after -= 1
            if self.after >= 0 or self.refused >= self.times:
                return call(*args, **options)
            self.refused += 1
            raise OSError(self.number, os.strerror(self.number))

        return refuse

    def over(self) -> None:
        self.patch.undo()


@contextmanager
def opened(comm: MPI.Intracomm, folder: Path, **settings: Any) -> Iterator[Store]:
    """Collective. A small store on that folder, checked and closed; not after an error, when others may not come."""
    store = Store(comm, **(SMALL | {"disk": str(folder)} | settings))
    yield store
    store.check()
    store.close()


def leave_memory(store: Store, keys: Iterable[Key], namespace: AnyNamespace | None = None) -> int:
    """Local. Evict those of these blocks that this rank manages: how many went."""
    pool, went = store._pool, 0
    wanted = {key_words(key, store._space(namespace).digest) for key in keys}
    with pool.lock:
        for tier in pool.tiers.values():
            for first in np.flatnonzero(tier.words * ~tier.copies).tolist():
                record = tier.records[first]
                if (int(record["key_hi"]), int(record["key_lo"])) in wanted:
                    went += tier.drop(first)
    return went


def tier_of(store: Store, key: Key, namespace: AnyNamespace | None = None) -> str:
    """Local. "dram", "disk", or "" for a block that is not there."""
    found = store.locate(key, namespace=namespace)
    return "" if found is None else found.tier


def killed(comm: MPI.Intracomm, folder: Path, to: Path) -> Path:
    """Collective. What is left of a folder if the job is killed now, as a copy."""
    comm.Barrier()
    if comm.rank == 0:
        shutil.copytree(folder, to, dirs_exist_ok=True)
    comm.Barrier()
    return to


def damages(folder: Path) -> list[str]:
    """Local. What `cascade fsck` calls damage."""
    files = PosixFiles(folder, read_only=True)
    try:
        return [f"{each.path}: {each.what}" for each in fsck(files).findings if each.severity == "damage"]
    finally:
        files.close()


def found(store: Store, keys: Iterable[Key], namespace: AnyNamespace | None = None) -> dict[Key, bytes | None]:
    """Local. What there is of these keys."""
    keys = list(keys)
    got = store.get_many(keys, namespace=namespace)
    return {key: None if each is None else each.tobytes() for key, each in zip(keys, got, strict=True)}
