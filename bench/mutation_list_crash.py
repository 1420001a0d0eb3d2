"""The rules by which a restart finds what was acknowledged, each broken on purpose: kills of jobs must notice.

Covers tombstones, sequences, what a sync and a flush write, and what a restart takes. Does not cover that a sync syncs:
a SIGKILL loses nothing that the system was handed, so no kill can notice; the tests of power losses do.
"""

from __future__ import annotations

from bench.mutation import Mutation

SYNC = ("tests/test_crash.py::test_one_kill_at_a_step[sync]",)
FLUSH = ("tests/test_crash.py::test_one_kill_at_a_step[flush]",)
TIER, SEQUENCES = "cascade_mpi/disk/tier.py", "cascade_mpi/disk/sequences.py"
RECOVERY = "cascade_mpi/segments/recovery.py"

MUTATIONS = (
    Mutation(
        "crash-no-tombstone",
        "every delete leaves a tombstone (rule 9)",
        TIER,
        (("            self._owed.owe(hi, lo, sequence)\n            if time.monotonic()",
          "            if time.monotonic()"),),
        SYNC,
    ),
    Mutation(
        "crash-tombstone-below",
        "a tombstone is above what was found (rule 7)",
        SEQUENCES,
        (("(max(found, self.floor(home)) >> RANK_BITS)", "(self.floor(home) >> RANK_BITS)"),),
        SYNC,
    ),
    Mutation(
        "crash-older-record",
        "a restart keeps the highest sequence of each key",
        RECOVERY,
        (("(order[some], sequence[some], lo[some]", "(order[some], ~sequence[some], lo[some]"),),
        SYNC,
    ),
    Mutation(
        "crash-unsealed-left-out",
        "a restart takes what is in a segment that was never sealed",
        RECOVERY,
        (("        indexes = [_scanned(reader, sync, problems, torn) for reader in readers]\n",
          "        indexes: list[SegmentIndex | None] = []\n"),),
        SYNC,
    ),
    Mutation(
        "crash-sync-without-memory",
        "a sync writes what is in memory and not on disk (rule 16)",
        TIER,
        (("self._write_out(self.dirty() if chosen is None else chosen)", "self._write_out(chosen or ())"),),
        SYNC,
    ),
    Mutation(
        "crash-demotion-drops",
        "a block that leaves memory is written before",
        TIER,
        (('        if self._level == "none" or (time.monotonic() < self._broken_until and key not in self._puts):\n',
          "        if time.monotonic() > 0:\n"),),
        SYNC,
    ),
    Mutation(
        "crash-footer-without-last",
        "a footer has every record of its segment",
        "cascade_mpi/segments/log.py",
        (("np.array(segment.rows, ENTRY), segment.end)", "np.array(segment.rows[:-1], ENTRY), segment.end)"),),
        SYNC,
    ),
    Mutation(
        "crash-flush-of-rank-0",
        "a flush writes the blocks of all ranks",
        "cascade_mpi/disk/opening.py",
        (("            gathered = agreed(comm, tier.gather)\n",
          "            gathered = agreed(comm, lambda: [] if comm.rank else tier.gather())\n"),),
        FLUSH,
    ),
)  # fmt: skip
