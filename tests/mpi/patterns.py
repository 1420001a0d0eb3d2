"""Blocks and keys that tests can compute again on any rank, keys with a given home, and a lock that can be watched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

from cascade_mpi.layout import place
from cascade_mpi.store import Store


def block(seed: int, nbytes: int) -> np.ndarray:
    """The same bytes for the same seed on every rank; others for another seed."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def keys_at(store: Store, home: int) -> Iterator[int]:
    """Integer keys of the default namespace whose index words are on rank `home`, without end."""
    fabric = store._fabric
    for key in count(1):
        if place(0, key, fabric.comm.size, fabric.buckets).home == home:
            yield key


def next_on_node(store: Store) -> int:
    """The rank after this one on its node, which may be itself."""
    ranks = store._fabric.node_ranks
    return ranks[(ranks.index(store._fabric.comm.rank) + 1) % len(ranks)]


def other_node(store: Store) -> int | None:
    """A rank of another node, or None."""
    return next((rank for rank, mapped in enumerate(store._fabric.mapped) if not mapped), None)


class Watched:
    """A lock that says which threads have come to it."""

    def __init__(self, lock: Any) -> None:
        self._lock, self.came = lock, list[int]()

    def __enter__(self) -> None:
        self.came.append(threading.get_ident())
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def let(self, thread: threading.Thread) -> None:
        """Start a thread, and go on when it has come to this lock, or to its end."""
        thread.start()
        while thread.is_alive() and thread.ident not in self.came:
            pass
