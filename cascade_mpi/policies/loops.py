"""The compiled loops around a policy's operations: exact replay, and what a manager of blocks tells and asks.

Covers sums, admission, batches, exclusion and the ids that are forgotten. Does not cover any policy: the nine
`Operations` are its whole behaviour, so replay and management cannot come to differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from cascade_mpi.policies.compiled import device, loop, shared
from cascade_mpi.policies.links import back, empty, push_front, take_out
from cascade_mpi.policies.state import (
    BLOCKS,
    CAPACITY,
    CODE,
    COUNT,
    FORGOTTEN,
    RECYCLE,
    ROW,
    SEEN,
    UNKNOWN,
    USED,
    Numbers,
    Reals,
    Rows,
    State,
    is_resident,
    size_of,
)

_STATE = "int32[::1], int64[::1], int64[::1], float64[::1]"
_REPLAY = f"int64({_STATE}, int64[::1], boolean[::1])"
_MANAGE = f"int64(int64, {_STATE}, int64[::1], boolean[::1], int64, int64[::1])"

MISSED, TOUCHED, INSERTED, EVICTED, REMOVED, VICTIMS, VICTIMS_SIZE, TOLD, TRIM = range(9)


class Operations(NamedTuple):
    """What a policy does, as compiled functions of (state, block); `take` and `trim` get the state only."""

    touch: Callable[..., Any]
    """Block i, which is resident, was used."""
    miss: Callable[..., Any]
    """Block i, which is not resident, was asked for; room for it has not been made."""
    insert: Callable[..., Any]
    """Block i becomes resident; there is room for it."""
    take: Callable[..., Any]
    """Choose the block that goes next, unlink it and give its id; something is resident."""
    unlink: Callable[..., Any]
    """Take block i, which is resident, out of all order; its CODE still says where it was."""
    relink: Callable[..., Any]
    """Put block i back to where `take` found it; calls come in the reverse order of the takes."""
    gone: Callable[..., Any]
    """Block i, which is unlinked, has left: make it a ghost, or `forget` it."""
    drop: Callable[..., Any]
    """Take ghost i out of all order."""
    trim: Callable[..., Any]
    """Let the oldest ghosts go until what is remembered is within its bounds."""


class Loops(NamedTuple):
    """The compiled loops of one policy."""

    replay: Callable[..., Any]
    manage: Callable[..., Any]


@shared
def forget(state: State, i: int) -> None:
    """Local. Block i is remembered no longer; the owner of the ids will be told if it recycles them."""
    nodes, numbers = state[0], state[1]
    if numbers[RECYCLE]:
        nodes[ROW * i + CODE] = FORGOTTEN
        push_front(nodes, numbers[BLOCKS], i)
    else:
        nodes[ROW * i + CODE] = UNKNOWN


@device
def _leave(state: State, i: int) -> None:
    numbers = state[1]
    numbers[USED] -= size_of(state, i)
    numbers[COUNT] -= 1


@device
def _return(state: State, i: int) -> None:
    numbers = state[1]
    numbers[USED] += size_of(state, i)
    numbers[COUNT] += 1


@shared
def _first_wrong(nodes: Rows, ids: Numbers, resident: bool) -> int:
    """The first place in `ids` that is not (or is) resident, or is there twice; -1 if all are right."""
    wrong = -1
    marked = ids.size
    for k in range(ids.size):
        code = nodes[ROW * ids[k] + CODE]
        if abs(code) >= SEEN or (code > 0) != resident:
            wrong = marked = k
            break
        nodes[ROW * ids[k] + CODE] = code ^ SEEN
    for k in range(marked):
        nodes[ROW * ids[k] + CODE] ^= SEEN
    return wrong


@shared
def _recall(nodes: Rows, i: int) -> None:
    """Take block i out of the forgotten that nobody has been told about."""
    if nodes[ROW * i + CODE] == FORGOTTEN:
        take_out(nodes, i)
        nodes[ROW * i + CODE] = UNKNOWN


@cache
def loops(name: str, operations: Operations) -> Loops:
    """Local. The loops of the policy `name`, compiled or from the disk cache."""
    touch, miss, insert, take, unlink, relink, gone, drop, trim = operations

    def replay(nodes: Rows, numbers: Numbers, sizes: Numbers, reals: Reals, ids: Numbers, hits: Any) -> int:
        state = (nodes, numbers, sizes, reals)
        count = 0
        for k in range(ids.size):
            i = ids[k]
            if is_resident(state, i):
                touch(state, i)
                hits[k] = True
                count += 1
                continue
            hits[k] = False
            miss(state, i)
            size = size_of(state, i)
            if size > numbers[CAPACITY]:
                continue
            while numbers[USED] + size > numbers[CAPACITY]:
                victim = take(state)
                _leave(state, victim)
                gone(state, victim)
            _recall(nodes, i)
            insert(state, i)
            _return(state, i)
        return count

    def manage(
        call: int,
        nodes: Rows,
        numbers: Numbers,
        sizes: Numbers,
        reals: Reals,
        ids: Numbers,
        mask: Any,
        limit: int,
        out: Numbers,
    ) -> int:
        state = (nodes, numbers, sizes, reals)
        if call in (INSERTED, EVICTED):
            wrong = _first_wrong(nodes, ids, call == EVICTED)
            if wrong >= 0:
                return wrong
        for i in ids:
            here = is_resident(state, i)
            if call == TOUCHED:
                if here:
                    touch(state, i)
            elif call == MISSED:
                if not here:
                    miss(state, i)
            elif call == INSERTED:
                _recall(nodes, i)
                insert(state, i)
                _return(state, i)
            elif here:
                unlink(state, i)
                _leave(state, i)
                if call == EVICTED:
                    gone(state, i)
                else:
                    nodes[ROW * i + CODE] = UNKNOWN
            else:
                _recall(nodes, i)
                if nodes[ROW * i + CODE] != UNKNOWN:
                    drop(state, i)
                nodes[ROW * i + CODE] = UNKNOWN
        if call in (VICTIMS, VICTIMS_SIZE):
            # All that is taken goes back to its place afterwards, excluded blocks and victims alike: only the
            # caller knows which victims leave in the end. The marks ~i are excluded blocks.
            taken, have = 0, 0
            while have < limit and numbers[COUNT] > 0:
                i = take(state)
                _leave(state, i)
                if mask.size and mask[i]:
                    out[taken] = ~i
                else:
                    out[taken] = i
                    have += size_of(state, i) if call == VICTIMS_SIZE else 1
                taken += 1
            chosen = 0
            for k in range(taken - 1, -1, -1):
                i = out[k] if out[k] >= 0 else ~out[k]
                relink(state, i)
                _return(state, i)
            for k in range(taken):
                if out[k] >= 0:
                    out[chosen] = out[k]
                    chosen += 1
            return chosen
        if call == TOLD:
            count = 0
            while not empty(nodes, numbers[BLOCKS]) and count < out.size:
                i = back(nodes, numbers[BLOCKS])
                _recall(nodes, i)
                out[count] = i
                count += 1
            return count
        if call == TRIM:
            trim(state)
        return -1

    return Loops(loop(replay, name, _REPLAY), loop(manage, name, _MANAGE))
