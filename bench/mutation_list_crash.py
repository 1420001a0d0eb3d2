"""The rules by which a restart finds what was acknowledged, each broken on purpose: tests must notice.

Covers who may write, tombstones, sequences, what a sync and a flush write, and what a restart takes. Does not cover
that a sync syncs: a SIGKILL loses nothing that the system was handed, so no kill can notice; tests of power losses do.
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
    Mutation(
        "restart-left-out-stays",
        "what a restart had no slot for is deleted with the others (rule 10)",
        "cascade_mpi/disk/left_out.py",
        (("            for record in self.records[chosen]:\n", "            for record in self.records[:0]:\n"),),
        ("tests/mpi/test_disk_restart.py::test_what_finds_no_slot_goes_with_the_others",),
    ),
    Mutation(
        "restart-left-out-kills",
        "and what was put since under its key stays",
        "cascade_mpi/disk/opening.py",
        (("LeftOut(tier, unindexed, above)", "LeftOut(tier, unindexed, 2 * above)"),),
        ("tests/mpi/test_disk_restart.py::test_what_finds_no_slot_goes_with_the_others",),
    ),
    Mutation(
        "restart-too-many",
        "all ranks refuse a directory that is too large for one",
        "cascade_mpi/disk/opening.py",
        (("    if found.most > MAX_DISK_CELLS:\n", "    if found.most > 2 * MAX_DISK_CELLS:\n"),),
        ("tests/mpi/test_disk_restart.py::test_more_blocks_of_one_home_than_a_rank_can_have",),
    ),
    Mutation(
        "lock-of-the-first-alone",
        "a job has the directory until its last process has ended",
        "cascade_mpi/segments/lock.py",
        (("            _wait_for_the_others(descriptor)\n", ""),),
        ("tests/unit/test_segment_identity.py::test_a_job_has_it_until_its_last_process_has_ended",),
    ),
    Mutation(
        "lock-not-joined",
        "every rank has a part of the lock",
        "cascade_mpi/disk/directory.py",
        (("            self.lock = DirectoryLock.join(self.path, locks=config.disk_locks)\n", "            pass\n"),),
        ("tests/mpi/test_disk_faults.py::test_the_directory_is_the_job_s_until_its_last_rank_has_ended",),
        ranks=2,
    ),
)  # fmt: skip
