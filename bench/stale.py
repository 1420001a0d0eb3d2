"""`python -m bench stale-copies`: replace or delete a block while other ranks make and read copies of it, in rounds.

Covers what a get may return: while the call lasts the old value or the new one, whole; when the call has returned,
and the reader knows that, the new one or a miss. Does not cover histories of many writers (`racers`).
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from bench.machine import machine, store_block
from bench.stamped import LINE, stamp, stamp_of, value, warm
from cascade_mpi.store import Store

_KEYS, _LARGEST, _SHOWN = 4, 32 << 10, 20
_TOLD = 7  # the tag of the message that a call has returned


def run(rounds: int, seed: int, json_file: Path | None = None, comm: MPI.Intracomm = MPI.COMM_WORLD) -> int:
    """Collective. Play and print; 1 if anything was wrong."""
    warm()
    began = time.monotonic()
    # Arenas that are reused all the time, and copies that have to make room for blocks.
    with Store(comm, dram_bytes="512KiB", promote_after=1, copy_share=0.5) as store:
        about = machine() | store_block(store)
        result = play(comm, store, rounds, seed)
        result |= store.check()
        nodes = store.report()["nodes"]
        copies = [each["copies"] for each in store.stats_all()]
    result |= {name: sum(each[name] for each in copies) for name in ("promotions", "hits", "stale", "demotions")}
    result |= {"ranks": comm.size, "nodes": nodes, "seconds": round(time.monotonic() - began, 1), "machine": about}
    if comm.rank == 0:
        for name, what in result.items():
            print(f"{name}: {what}", flush=True)
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["wrong"] > 0)


def play(comm: MPI.Intracomm, store: Store, rounds: int, seed: int) -> dict[str, Any]:
    """Collective. Play the rounds; on every rank the counts of all ranks, and what went wrong anywhere.

    In each round one rank writes, in turn, and all others read: until they are told that the write has returned, and
    once more. A third of the writes are deletes. Every eighth round begins with a `replicate` of the keys. In every
    third a reader protects the block while it is written, or lets it go.
    """
    chance = random.Random(seed)  # the same on all ranks: who does what
    keys = [chance.getrandbits(128) for _ in range(_KEYS)]
    room, told = np.empty(_LARGEST // 8, np.uint64), np.empty(1, np.int64)
    values = [0] * _KEYS  # by key: the stamp of the present value, 0 for none
    reads, after, problems = 0, 0, []
    comm.Barrier()
    for number in range(1, rounds + 1):
        writer, at = number % comm.size, chance.randrange(_KEYS)
        old, nbytes = values[at], chance.randint(1, _LARGEST // LINE) * LINE
        new = 0 if chance.random() < 1 / 3 else stamp(1 + writer, number)
        if number % 8 == 0:
            store.replicate(keys)
        values[at] = new
        toggle = chance.choice((store.protect, store.unprotect, None, None, None, None))
        if toggle is not None and comm.rank == (writer + 1) % comm.size:
            toggle(keys[at])
        if comm.rank == writer:
            if new:
                store.put(keys[at], value(room, at, new, nbytes), exists="replace")
            else:
                store.delete(keys[at])
            for reader in range(comm.size):
                if reader != writer:
                    comm.Send(np.array([number], np.int64), reader, _TOLD)
        else:
            message, over = comm.Irecv(told, writer, _TOLD), False
            while True:
                found = _read(store, keys[at], at)
                reads += 1
                after += over
                if found not in ((new,) if over else (old, new, 0)):
                    when = "after" if over else "during"
                    problems.append(f"round {number}: rank {comm.rank} read {found:x} {when} {old:x} -> {new:x}")
                if over:
                    break
                over = bool(message.Test())
            if told[0] != number:
                problems.append(f"round {number}: rank {comm.rank} was told of round {told[0]}")
        comm.Barrier()  # the next write must not be seen in this round
    comm.Barrier()
    everything = [text for each in comm.allgather(problems) for text in each]
    counts = comm.allreduce(np.array([reads, after]))
    return {
        "rounds": rounds, "reads": int(counts[0]), "reads_after": int(counts[1]), "wrong": len(everything),
        "problems": everything[:_SHOWN],
    }  # fmt: skip


def _read(store: Store, key: int, number: int) -> int:
    """The stamp that this rank reads, 0 for a miss, -1 for a mixture."""
    got = store.get(key)
    return 0 if got is None else stamp_of(got, number)
