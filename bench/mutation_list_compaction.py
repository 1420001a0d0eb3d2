"""The rules of compaction, each broken on purpose: what to change, and the tests that must notice.

Covers the order of copies, syncs, locations and removals, what may go, and damage. Does not cover the segments
themselves, nor how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import Mutation

COMPACTION, OFFLINE = "cascade_mpi/segments/compaction.py", "cascade_mpi/segments/offline.py"
UNITS = "tests/unit/test_compaction.py::"
LOSS = "tests/unit/test_compaction_power_loss.py::"
COMMAND = "tests/unit/test_segment_compact_command.py::"
SPACE = "tests/unit/test_space.py::"

MUTATIONS = (
    Mutation(
        "compact-moved-before-sync",
        "a location changes when the copy is durable",
        COMPACTION,
        (("        self._pressed = False\n        if self._copies:\n            try:\n",
          "        self._pressed = False\n        self._relocate()\n        if True:\n            try:\n"),),
        (f"{LOSS}test_a_location_changes_when_the_copy_is_durable",
         f"{UNITS}test_a_failed_sync_keeps_the_segments_of_lost_copies"),
    ),
    Mutation(
        "compact-remove-before-sync",
        "the old file goes when the copies are durable",
        COMPACTION,
        (("            try:\n                self._log.sync(seal_share=1)",
          "            try:\n                self._unneeded += [each for each in self._read if not each.problem]\n"
          "                self._read = []\n                self._remove()\n"
          "                self._log.sync(seal_share=1)"),),
        (f"{LOSS}test_a_directory",),
    ),
    Mutation(
        "compact-no-sync",
        "copies are synced at all",
        COMPACTION,
        (("                self._log.sync(seal_share=1)", "                pass"),),
        (f"{LOSS}test_a_running_store", f"{LOSS}test_a_location_changes_when_the_copy_is_durable"),
    ),
    Mutation(
        "compact-told-before-folder",
        "a removal is told when the folder is synced",
        COMPACTION,
        (("            self._unlinked.append(source.number)\n",
          "            self._unlinked.append(source.number)\n            self._ledger.removed(source.number)\n"),),
        (f"{UNITS}test_a_removal_is_told_when_it_is_durable",),
    ),
    Mutation(
        "compact-no-folder-sync",
        "a tombstone outlives the removal of what it deletes",
        COMPACTION,
        (("            self._files.sync_folder(FOLDER)\n", "            pass\n"),),
        (f"{LOSS}test_a_tombstone_outlives_the_removal_of_what_it_deletes",),
    ),
    Mutation(
        "compact-dead-is-garbage",
        "a record that nothing names is copied while nothing above it is durable",
        COMPACTION,
        (("            elif self._ledger.live(item) or not self._ledger.may_go(item):\n",
          "            elif self._ledger.live(item) or (item.tombstone and not self._ledger.may_go(item)):\n"),),
        (f"{UNITS}test_what_is_needed_is_copied_as_it_was", f"{LOSS}test_a_running_store"),
    ),
    Mutation(
        "compact-lost-copy",
        "the segment of a lost copy stays, whoever synced the log",
        COMPACTION,
        (("            if new.unit >= self._log.lost_from.get(new.segment, MAX_RECORDS):\n",
          "            if new.unit >= MAX_RECORDS:\n"),),
        (f"{UNITS}test_a_sync_of_the_log_s_owner_that_fails",
         f"{UNITS}test_a_failed_sync_keeps_the_segments_of_lost_copies"),
    ),
    Mutation(
        "compact-removes-damage",
        "a segment with a damaged record is never removed",
        COMPACTION,
        (("            problem = str(error)\n        source.problem = problem\n",
          "            problem = str(error)\n        source.problem = \"\"\n"),),
        (f"{UNITS}test_damage_behind_good_records",),
    ),
    Mutation(
        "compact-unsure-forgotten",
        "a record that was refused, but is whole, may come back: no tombstone goes while its segment is there",
        "cascade_mpi/segments/log.py",
        (("            self.unsure.add(segment.place.segment)\n            self._retire(segment)",
          "            self._retire(segment)"),),
        (f"{LOSS}test_a_refused_record_that_is_whole_does_not_come_back",),
    ),
    Mutation(
        "compact-dir-no-passing",
        "tombstones are durable on their own until the records below them have gone",
        OFFLINE,
        (("        passing = {_tombstone(log, row).segment for row in self._passing}\n",
          "        passing = set[int]()\n"),),
        (f"{LOSS}test_a_directory",),
    ),
    Mutation(
        "compact-dir-passing-with-copies",
        "they have files of their own, that can be removed",
        OFFLINE,
        (("        log.seal()  # segments of their own: they are removed as a whole\n", ""),),
        (f"{LOSS}test_a_directory",),
    ),
    Mutation(
        "compact-dir-expired-uncovers",
        "an expired block goes like a deleted one",
        OFFLINE,
        (("        for key, row in (deleted | expired).items():\n", "        for key, row in deleted.items():\n"),),
        (f"{LOSS}test_an_expired_block_uncovers_nothing",),
    ),
    Mutation(
        "compact-dir-unread-is-empty",
        "nothing goes of a segment that could not be read",
        OFFLINE,
        (("            if not findings and number not in self._indexes:", "            if False:"),),
        (f"{LOSS}test_every_call_of_a_directory_s_compaction_may_fail",),
    ),
    Mutation(
        "compact-dir-damage-unknown",
        "a damaged file may hold a record below any tombstone",
        OFFLINE,
        (("            if self._unknown or below & self._damages.keys():\n", "            if False:\n"),),
        (f"{COMMAND}test_damage_keeps_its_segment",
         f"{COMMAND}test_an_unsealed_segment_with_damage_keeps_all_deletions"),
    ),
    Mutation(
        "plan-too-little",
        "garbage is at most its share of what is live",
        "cascade_mpi/segments/planning.py",
        (("    limit = share * space.live\n", "    limit = 2 * share * space.live\n"),),
        (f"{SPACE}test_what_a_plan_promises", f"{UNITS}test_dead_bytes_stay_below_half_of_the_live_ones"),
    ),
    Mutation(
        "plan-never-merges",
        "small files are merged",
        "cascade_mpi/segments/planning.py",
        (("    if len(small) > small_files:\n", "    if False:\n"),),
        (f"{SPACE}test_small_segments_are_merged_when_there_are_many",),
    ),
)  # fmt: skip
