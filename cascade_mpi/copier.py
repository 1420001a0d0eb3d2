"""Copies by one or several threads.

Covers how many threads a rank uses, the shares they get, and the pool they wait in. Does not cover how
bytes are moved (`kernels.copy`) nor what their checksum is (`kernels.checksum`): the result is the same
for any number of threads. Source and target must not overlap.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Literal

import numpy as np

from cascade_mpi.errors import ConfigError
from cascade_mpi.kernels.checksum import CHUNK, copy_checksum_bytes, copy_chunks_bytes, fold_chunks_bytes
from cascade_mpi.kernels.copy import LINE, copy_bytes

SHARED_BYTES = 4 << 20  # below, waking a thread (tens of microseconds) costs more than its share saves
MIN_SHARE_BYTES = 1 << 20


class Copier:
    """The copying threads of one rank: the calling thread and a pool for the others.

    Any thread may call it. With one thread there is no pool. In a forked child and after `close` the
    calling thread copies alone.

    threads
        How many, 1 or more; "auto": the cores this process may run on, divided by the ranks that share them.
    ranks_on_cpuset
        Ranks of this node whose cores are the same as this rank's, 1 or more.

    Attributes: `threads`, and `reason`, a text that says why there are so many. ConfigError: not a number
    of threads or ranks.
    """

    def __init__(self, threads: int | Literal["auto"] = "auto", ranks_on_cpuset: int = 1) -> None:
        if ranks_on_cpuset < 1:
            raise ConfigError(f"{ranks_on_cpuset} ranks share the cores of this rank: it must be 1 or more")
        cores = len(os.sched_getaffinity(0))
        self.threads, self.reason = _choose(threads, cores, ranks_on_cpuset)
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        if self.threads > 1:  # its threads start with the first copies that need them
            self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="cascade-copy")

    def splits(self, nbytes: int) -> bool:
        """Local. True if a copy of this size is shared with other threads."""
        return nbytes >= SHARED_BYTES and self._pool is not None

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Local. Copy `nbytes` from address to address; afterwards every core sees the copy."""
        if not self.splits(nbytes):
            copy_bytes(target, source, nbytes)
            return
        share = _round_up(max(-(-(nbytes + LINE) // self.threads), MIN_SHARE_BYTES), LINE)
        first = share - target % LINE  # so that the other shares begin with a whole line of the target

        def task(begin: int, end: int) -> None:
            copy_bytes(target + begin, source + begin, end - begin)

        self._run(task, [0, *range(first, nbytes, share), nbytes])

    def copy_checksum(self, target: int, source: int, nbytes: int) -> int:
        """Local. As `copy`; returns the checksum of the bytes (64 bits)."""
        if nbytes <= CHUNK or self._pool is None:
            return int(copy_checksum_bytes(target, source, nbytes))
        words = np.empty(-(-nbytes // CHUNK), np.uint64)
        share = _round_up(-(-nbytes // self.threads), CHUNK)

        def task(begin: int, end: int) -> None:
            copy_chunks_bytes(target + begin, source + begin, end - begin, words[begin // CHUNK :].ctypes.data)

        self._run(task, [*range(0, nbytes, share), nbytes])
        return int(fold_chunks_bytes(words, nbytes))

    def close(self) -> None:
        """Local. End the pool's threads, after the copies that run; idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None and os.getpid() == self._process:
            pool.shutdown(wait=True)

    def _run(self, task: Callable[[int, int], None], bounds: list[int]) -> None:
        shares = list(itertools.pairwise(bounds))
        pool = self._pool
        others: list[Future[None]] = []
        if pool is not None and os.getpid() == self._process:  # a fork copies no threads: tasks would wait for ever
            with contextlib.suppress(RuntimeError):  # closed meanwhile, or the interpreter ends: this thread copies all
                for share in shares[1:]:
                    others.append(pool.submit(task, *share))
        try:
            for share in (shares[0], *shares[1 + len(others) :]):
                task(*share)
        finally:
            wait(others)  # also after an error here: they write to the caller's buffer
        for each in others:
            each.result()


def _choose(threads: object, cores: int, ranks: int) -> tuple[int, str]:
    if threads != "auto":
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ConfigError(f'copy_threads is {threads!r}: it must be an integer, 1 or more, or "auto"')
        return threads, f"copy_threads={threads} was set"
    where = f"{cores} {'core' if cores == 1 else 'cores'} for {ranks} {'rank' if ranks == 1 else 'ranks'}"
    if ranks > cores:
        return 1, f"auto: {where}, oversubscribed"
    return cores // ranks, f"auto: {where}"


def _round_up(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit
