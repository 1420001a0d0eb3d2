"""What the cases of `micro` share: the options, the ranks and their paths, the list of rows.

Covers which rank reads whose blocks, which cases this run can measure, and how samples become rows. Does
not cover the cases themselves (see `large`, `small`, `writing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from bench import rows
from bench.machine import machine
from bench.rows import Goal, Row
from bench.timing import Samples

LARGE = ("get_self", "get_node", "get_remote", "get_many_remote")
SMALL = ("get_4k_self", "get_4k_node", "get_4k_remote", "get_many_4k_remote", "contains_remote", "lookup_local")
CASES = (*LARGE, *SMALL, "put_self", "copy")
SMALL_BYTES = 4096
SAMPLE_BYTES = 32 << 20  # large blocks: about as many bytes in a timed sample
_SLACK = 1.25  # arena over working set: a put finds a cell that has rested


@dataclass(frozen=True)
class Options:
    """What to measure. Sizes in bytes; `operations` small ones make one timed sample."""

    pairs: int = 15
    working_set: int = 1 << 30
    sizes: tuple[int, ...] = (1 << 20, 16 << 20, 64 << 20)
    remote_sizes: tuple[int, ...] = (1 << 20, 4 << 20, 16 << 20)
    copy_sizes: tuple[int, ...] = (4 << 20, 16 << 20, 64 << 20, 256 << 20)
    operations: int = 256
    cases: tuple[str, ...] = CASES
    seed: int = 1

    def count(self, block_bytes: int) -> int:
        """Local. Blocks of a size that make the working set, at least two."""
        return max(2, -(-self.working_set // block_bytes))

    def arena(self, sizes: Sequence[int]) -> int:
        """Local. An arena for a working set of any of these sizes, with room for puts."""
        return int(max(self.count(size) * size for size in sizes) * _SLACK) + 2 * max(sizes)

    def inner(self, block_bytes: int, batch: int = 1) -> int:
        """Local. Large operations, or batches of them, in one timed sample."""
        return max(1, min(SAMPLE_BYTES, self.working_set) // (block_bytes * batch))


class Outcome(NamedTuple):
    """Samples of what one rank did, whether all contents were right, and hits over gets of the store."""

    samples: Samples
    right: bool
    hit_rate: float | None = None


class Job:
    """One run: its options, its ranks, its rows (the same on all ranks)."""

    def __init__(self, options: Options, comm: MPI.Intracomm) -> None:
        """Collective."""
        self.options, self.comm = options, comm
        self.rows: list[Row] = []
        self.about: dict[str, Any] = comm.bcast(machine())
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
        self.nodes: int = comm.allreduce(int(node.rank == 0))
        mates: list[int] = node.allgather(comm.rank)
        node.Free()
        others = [rank for rank in range(comm.size) if rank not in mates]
        # Whose blocks this rank reads on each path; None: nobody's.
        self.owners: dict[str, int | None] = {
            "self": comm.rank,
            "node": mates[(mates.index(comm.rank) + 1) % len(mates)] if len(mates) > 1 else None,
            "remote": others[0] if others else None,
        }
        missing = {}
        if len(mates) == 1:
            missing["node"] = "rank 0 is alone on its node"
        if not others:
            missing["remote"] = "all ranks are on one node (MPIR_CVAR_NUM_CLIQUES=2 makes two)"
        self._missing: dict[str, str] = comm.bcast(missing)

    def wants(self, *cases: str) -> bool:
        """Local. Was one of these cases asked for?"""
        return any(case in self.options.cases for case in cases)

    def possible(self, cases: Sequence[str]) -> set[str]:
        """Local. Those of `cases` that are wanted and possible; the impossible ones become rows that say so."""
        found = set()
        for case in filter(self.wants, cases):
            reason = next((why for path, why in self._missing.items() if path in case), None)
            if reason is None:
                found.add(case)
            else:
                self.rows.append(rows.absent(case, reason))
        return found

    def owner(self, path: str) -> int:
        """Local. The rank whose blocks this rank reads on a path that is possible."""
        owner = self.owners[path]
        assert owner is not None
        return owner

    # ---------------------------------------------------------------------------------------------- rows

    def add_rate(
        self, case: str, nbytes: int, amount: float, unit: str, outcome: Outcome, limit: tuple[int, str],
        goal: Goal | None, **extra: Any,
    ) -> None:  # fmt: skip
        """Local. A row of rates: `amount` (of `unit` without its "/s") in a sample; `limit`: operation, what it is."""
        rates = amount / outcome.samples.medians()
        self._add(case, nbytes, rates, unit, outcome, limit, goal, outcome.samples.ratio(limit[0], 0), extra)

    def add_time(
        self, case: str, count: int, outcome: Outcome, limit: tuple[int, str], goal: Goal | None, **extra: Any
    ) -> None:
        """Local. A row of times in microseconds: `count` operations on small blocks in a sample."""
        times = outcome.samples.medians() / count * 1e6
        self._add(case, SMALL_BYTES, times, "us", outcome, limit, goal, outcome.samples.ratio(0, limit[0]), extra)

    def add_shared(
        self, case: str, nbytes: int, rates: Any, unit: str, outcomes: Sequence[Outcome], limit: tuple[int, str],
        goal: Goal | None, **extra: Any,
    ) -> None:  # fmt: skip
        """Local. A row of several ranks that measured at once; `rates` are theirs, put together."""
        whole = Outcome(
            Samples(outcomes[0].samples.seconds, max(each.samples.disturbed for each in outcomes)),
            all(each.right for each in outcomes),
            min((each.hit_rate for each in outcomes if each.hit_rate is not None), default=None),
        )
        extra["concurrent"] = len(outcomes)
        self._add(case, nbytes, rates, unit, whole, limit, goal, None, extra)

    def _add(
        self, case: str, nbytes: int, values: Any, unit: str, outcome: Outcome, limit: tuple[int, str],
        goal: Goal | None, paired: float | None, extra: dict[str, Any],
    ) -> None:  # fmt: skip
        at, what = limit
        value, bound = float(values[0]), float(values[at])
        self.rows.append(
            rows.make(
                case, nbytes, value, bound, unit, goal, limit_what=what, contents_ok=outcome.right,
                hit_rate=outcome.hit_rate, ratio_paired=paired, disturbed=outcome.samples.disturbed, **extra,
            )
        )  # fmt: skip


def rate_of_bytes(block_bytes: int, blocks: int) -> float:
    """Local. Gigabytes (10^9) in a sample of so many blocks."""
    return blocks * block_bytes / 1e9


def random_of(options: Options, rank: int, purpose: int) -> np.random.Generator:
    """Local. A generator of its own for each purpose: the stock's seed would repeat the keys of the stock."""
    return np.random.default_rng((options.seed, rank, purpose))
