"""LRU: the block whose last use is longest ago goes first."""

from __future__ import annotations

from cascade_mpi.policies.compiled import device
from cascade_mpi.policies.fifo import QUEUE, insert, relink, take, unlink
from cascade_mpi.policies.links import to_front
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Policy
from cascade_mpi.policies.state import BLOCKS, State, nothing, nothing_to_trim


@device
def touch(state: State, i: int) -> None:
    """Local. To the front: used last."""
    to_front(state[0], state[1][BLOCKS] + QUEUE, i)


class Lru(Policy):
    """Least recently used: a queue whose blocks move to the front when they are used."""

    name = "lru"
    operations = Operations(touch, nothing, insert, take, unlink, relink, forget, nothing, nothing_to_trim)
    lists = ((QUEUE, QUEUE),)
    by_last_use = True
