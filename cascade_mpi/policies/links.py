"""Doubly linked rings of blocks inside the rows of `state`.

Covers putting in, taking out and putting back. Does not cover what a ring's order means: that is the
policy's. A ring has a head row of its own, so that no operation has to ask for an end. The *front* is where
blocks come in and the *back* where they go.
"""

from __future__ import annotations

from cascade_mpi.policies.compiled import device
from cascade_mpi.policies.state import NEXT, PREVIOUS, ROW, Rows


@device
def push_front(nodes: Rows, head: int, i: int) -> None:
    """Local. Put row i, which is in no ring, at the front."""
    first = nodes[ROW * head + NEXT]
    nodes[ROW * i + PREVIOUS] = head
    nodes[ROW * i + NEXT] = first
    nodes[ROW * first + PREVIOUS] = i
    nodes[ROW * head + NEXT] = i


@device
def push_back(nodes: Rows, head: int, i: int) -> None:
    """Local. Put row i, which is in no ring, at the back."""
    last = nodes[ROW * head + PREVIOUS]
    nodes[ROW * i + NEXT] = head
    nodes[ROW * i + PREVIOUS] = last
    nodes[ROW * last + NEXT] = i
    nodes[ROW * head + PREVIOUS] = i


@device
def take_out(nodes: Rows, i: int) -> None:
    """Local. Take row i out of its ring; the row keeps its old neighbours (see `put_again`)."""
    before = nodes[ROW * i + PREVIOUS]
    after = nodes[ROW * i + NEXT]
    nodes[ROW * before + NEXT] = after
    nodes[ROW * after + PREVIOUS] = before


@device
def put_again(nodes: Rows, i: int) -> None:
    """Local. Undo `take_out`, exactly, if everything after it has been undone (Knuth's dancing links)."""
    nodes[ROW * nodes[ROW * i + PREVIOUS] + NEXT] = i
    nodes[ROW * nodes[ROW * i + NEXT] + PREVIOUS] = i


@device
def to_front(nodes: Rows, head: int, i: int) -> None:
    """Local. Move row i from wherever it is to the front of this ring."""
    take_out(nodes, i)
    push_front(nodes, head, i)


@device
def back(nodes: Rows, head: int) -> int:
    """Local. The row at the back; the head itself if the ring is empty."""
    return int(nodes[ROW * head + PREVIOUS])


@device
def empty(nodes: Rows, head: int) -> bool:
    """Local. Is nothing in this ring?"""
    return bool(nodes[ROW * head + NEXT] == head)
