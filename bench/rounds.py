"""Rounds of two ranks that put different values under one key at the same moment.

Covers agreement: afterwards every rank reads the same one of the two, and after a delete no rank reads
any. The other ranks put and delete neighbours in the same bucket meanwhile, so that the two putters find
different free slots. Does not cover histories over time (`racers`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.stamped import LINE, stamp, stamp_of, value
from cascade_mpi.store import Store

if TYPE_CHECKING:
    from mpi4py import MPI

_KEYS, _NEIGHBOURS, _LARGEST = 5, 6, 16 << 10


def play(comm: MPI.Intracomm, store: Store, rounds: int, seed: int) -> dict[str, Any]:
    """Collective. Play the rounds on a store of one bucket for each rank; counts and what went wrong.

    Two puts race in every round, two deletes in every second one that deletes.
    """
    from mpi4py import MPI

    chance = random.Random(seed)  # the same on all ranks: who does what
    own = random.Random(seed * 1000 + comm.rank)
    keys = [chance.getrandbits(128) for _ in range(_KEYS)]
    neighbours = [chance.getrandbits(128) for _ in range(_NEIGHBOURS)]
    room = np.empty(_LARGEST // 8, np.uint64)
    wins, problems = [0, 0], []
    for number in range(1, rounds + 1):
        at = number % _KEYS
        putters = chance.sample(range(comm.size), 2)
        delete, deleters = chance.random() < 0.7, putters[: chance.randint(1, 2)]
        sizes = [chance.randint(1, _LARGEST // LINE) * LINE for _ in putters]
        comm.Barrier()
        if comm.rank in putters:
            mine = putters.index(comm.rank)
            store.put(keys[at], value(room, at, stamp(mine + 1, number), sizes[mine]))
        else:
            _toggle(store, own.choice(neighbours))
        comm.Barrier()
        seen = _read(store, keys[at], at)
        extremes = np.array([seen, -seen], np.int64)
        comm.Allreduce(MPI.IN_PLACE, extremes, MPI.MIN)
        lowest, highest = int(extremes[0]), -int(extremes[1])
        if lowest != highest or lowest not in (stamp(1, number), stamp(2, number)):
            problems.append(f"round {number}: ranks read from {lowest:x} to {highest:x}")
        else:
            wins[(lowest == stamp(2, number))] += 1
        if delete:
            if comm.rank in deleters:
                store.delete(keys[at])
            elif comm.rank not in putters:
                _toggle(store, own.choice(neighbours))
            comm.Barrier()
            left = comm.allreduce(int(_read(store, keys[at], at) != 0))
            if left:
                problems.append(f"round {number}: {left} ranks read a block after its delete")
    comm.Barrier()
    return {"rounds": rounds, "won_by": wins, "problems": problems}


def _read(store: Store, key: int, number: int) -> int:
    """The stamp that this rank reads, 0 for a miss, -1 for a mixture."""
    got = store.get(key)
    return 0 if got is None else stamp_of(got, number)


def _toggle(store: Store, key: int) -> None:
    if not store.delete(key):
        store.put(key, np.zeros(LINE, np.uint8))
