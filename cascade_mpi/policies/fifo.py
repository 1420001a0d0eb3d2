"""FIFO: the block that came first goes first; being used changes nothing."""

from __future__ import annotations

from cascade_mpi.policies.compiled import device
from cascade_mpi.policies.links import back, push_front, put_again, take_out
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Policy
from cascade_mpi.policies.state import BLOCKS, CODE, ROW, State, nothing, nothing_to_trim

QUEUE = 1  # the one list: newest block in front


@device
def insert(state: State, i: int) -> None:
    """Local. Into the front of the queue."""
    nodes, numbers = state[0], state[1]
    nodes[ROW * i + CODE] = QUEUE
    push_front(nodes, numbers[BLOCKS] + QUEUE, i)


@device
def take(state: State) -> int:
    """Local. The block at the back."""
    nodes, numbers = state[0], state[1]
    i = back(nodes, numbers[BLOCKS] + QUEUE)
    take_out(nodes, i)
    return i


@device
def unlink(state: State, i: int) -> None:
    """Local. Out of the queue."""
    take_out(state[0], i)


@device
def relink(state: State, i: int) -> None:
    """Local. Back to where it was."""
    put_again(state[0], i)


class Fifo(Policy):
    """First in, first out."""

    name = "fifo"
    operations = Operations(nothing, nothing, insert, take, unlink, relink, forget, nothing, nothing_to_trim)
    lists = ((QUEUE, QUEUE),)
