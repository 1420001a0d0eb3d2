"""SIEVE: a hand goes from old to new; it takes the first block that was not used since it last came by.

Zhang, Yang, Yue, Vigfusson, Rashmi: "SIEVE is Simpler than LRU", NSDI 2024. Unlike CLOCK, a block that is
spared keeps its place, so that new blocks are sifted out quickly.
"""

from __future__ import annotations

from cascade_mpi.policies.compiled import device
from cascade_mpi.policies.fifo import QUEUE, relink
from cascade_mpi.policies.links import push_front, take_out
from cascade_mpi.policies.loops import Operations, forget
from cascade_mpi.policies.policy import Policy, expect
from cascade_mpi.policies.state import BLOCKS, CODE, MARK, OWN, PREVIOUS, ROW, State, nothing, nothing_to_trim

HAND = OWN  # the row that is looked at next; the head stands for "begin at the back"


@device
def touch(state: State, i: int) -> None:
    """Local. Mark it: the hand will spare it once."""
    state[0][ROW * i + MARK] = 1


@device
def insert(state: State, i: int) -> None:
    """Local. Into the front of the queue, unmarked."""
    nodes, numbers = state[0], state[1]
    nodes[ROW * i + CODE] = QUEUE
    nodes[ROW * i + MARK] = 0
    push_front(nodes, numbers[BLOCKS] + QUEUE, i)


@device
def take(state: State) -> int:
    """Local. Move the hand towards the front, spend marks, take the first block that has none."""
    nodes, numbers = state[0], state[1]
    head = numbers[BLOCKS] + QUEUE
    i = int(numbers[HAND])
    while i == head or nodes[ROW * i + MARK]:
        if i != head:
            nodes[ROW * i + MARK] = 0
        i = nodes[ROW * i + PREVIOUS]  # from the head this is the back
    unlink(state, i)
    numbers[HAND] = nodes[ROW * i + PREVIOUS]
    return i


@device
def unlink(state: State, i: int) -> None:
    """Local. Out of the queue; a hand that points to it moves on."""
    nodes, numbers = state[0], state[1]
    if numbers[HAND] == i:
        numbers[HAND] = nodes[ROW * i + PREVIOUS]
    take_out(nodes, i)


class Sieve(Policy):
    """A queue with a mark for each block and one hand."""

    name = "sieve"
    operations = Operations(touch, nothing, insert, take, unlink, relink, forget, nothing, nothing_to_trim)
    lists = ((QUEUE, QUEUE),)

    def _number_count(self, capacity: int, blocks: int) -> int:
        return 1

    def _start(self, capacity: int, blocks: int) -> None:
        self._numbers[HAND] = blocks + QUEUE

    def check(self) -> None:
        """Local. The queue, and that the hand points into it."""
        super().check()
        hand = int(self._numbers[HAND])
        expect("the hand's place is in the queue", hand in {self.blocks + QUEUE, *self.ring(QUEUE)}, True)
