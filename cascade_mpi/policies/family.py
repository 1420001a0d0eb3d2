"""The policies by their names.

Covers which there are and how one is made. Does not cover the contract (`policy`) nor any of them.
"""

from __future__ import annotations

from typing import Any

from cascade_mpi.policies.arc import Arc
from cascade_mpi.policies.belady import Belady
from cascade_mpi.policies.fifo import Fifo
from cascade_mpi.policies.gdsf import Gdsf
from cascade_mpi.policies.lfu import Lfu
from cascade_mpi.policies.lru import Lru
from cascade_mpi.policies.policy import Policy
from cascade_mpi.policies.prefix import Prefix
from cascade_mpi.policies.s3fifo import S3Fifo
from cascade_mpi.policies.sieve import Sieve
from cascade_mpi.policies.tinylfu import TinyLfu

POLICIES: dict[str, type[Policy]] = {
    each.name: each for each in (Fifo, Lru, Lfu, Sieve, S3Fifo, Arc, TinyLfu, Gdsf, Prefix, Belady)
}


STORE_POLICIES: dict[str, type[Policy]] = {name: POLICIES[name] for name in ("lru", "arc", "s3fifo", "prefix")}
"""Those that a store can be opened with."""


def make(name: str, capacity: int, blocks: int, **options: Any) -> Policy:
    """Local. The policy of this name, with the parameters of its class; ValueError for an unknown name."""
    if name not in POLICIES:
        raise ValueError(f"policy {name!r}: there are {', '.join(POLICIES)}")
    return POLICIES[name](capacity, blocks, **options)
