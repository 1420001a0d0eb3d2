"""The rules of cells, each broken on purpose: what to change, and the tests that must notice.

Covers reuse, pins, removal, puts, doubles, deletes and eviction. Does not cover room and quotas
(`mutation_list_capacity`) nor how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import ALLOCATOR, CALLS, CELLS, EVICTIONS, ONESIDED, TABLE, TARGETS, WRITER, Mutation

_DELETE_ONCE = (
    "        while True:\n            looked = time.monotonic()\n",
    "        for _ in range(1):\n            looked = time.monotonic()\n",
)

MUTATIONS = (
    # --------------------------------------------------------------------------------------------- reuse, pins, removal
    Mutation(
        "removal-without-flush",
        "the CAS that takes a word away has been flushed before anything is decided on it",
        f"{ONESIDED}swaps.py",
        (
            ("    if rc == 0:\n        rc = mpi.flush(ctx, home, INDEX)\n    return rc, load64(s + c.RESULT * 8)\n",
             "    return rc, load64(s + c.RESULT * 8)\n"),
        ),
        (f"{CALLS}test_remove", f"{CALLS}test_publish_over_an_old_word"),
    ),
    Mutation(
        "reuse-before-removal",
        "a cell is retired only after its word has left",
        CELLS,
        (("                done = fabric.remove(fabric.ctx, s.address, home, bucket, slot, there)\n",
          "                self.retire(word)\n"
          "                done = fabric.remove(fabric.ctx, s.address, home, bucket, slot, there)\n"),),
        (
            f"{TARGETS}test_a_cell_is_live_until_its_word_has_left[evict]",
            f"{TARGETS}test_a_cell_is_live_until_its_word_has_left[clear]",
        ),
    ),
    Mutation(
        "reuse-before-replace",
        "the same when a put takes its own old word away",
        WRITER,
        (('                self.pause("putter")\n',
          '                self.pause("putter")\n            if old:\n'
          '                self._has_left(old, old_bytes)\n'),),
        (f"{TARGETS}test_a_cell_is_live_until_its_word_has_left[replace]",),
    ),
    Mutation(
        "reuse-before-delete",
        "and when a delete does",
        WRITER,
        (("        done = fabric.remove(", "        self._has_left(word, nbytes)\n        done = fabric.remove("),),
        (f"{TARGETS}test_a_cell_is_live_until_its_word_has_left[delete]",),
    ),
    Mutation(
        "reuse-on-a-hint",
        "a stranger's hint is not the permission to reuse: the manager looks at the index itself",
        CELLS,
        (("                if self._slot_of(first, word) < 0:\n", "                if True:\n"),),
        (f"{TARGETS}test_a_hint_is_not_the_permission_to_reuse",),
    ),
    Mutation(
        "reuse-ignores-pins",
        "a pinned cell is not reused",
        CELLS,
        (("unpinned = [first for first in ripe if first not in pinned] if pinned else ripe\n", "unpinned = ripe\n"),),
        (
            f"{TARGETS}test_a_pinned_cell_is_never_reused",
            f"{TARGETS}test_a_pin_that_comes_after_the_removal_is_seen_before_the_reuse",
        ),
    ),
    Mutation(
        "pins-looked-at-early",
        "the manager looks at the pins after the removal, at the last moment before the reuse",
        CELLS,
        (
            ("        if self.pause:\n            self.pause(",
             "        pinned = self.pinned_pages()\n        if self.pause:\n            self.pause("),
            ("        pinned = self.pinned_pages()\n        # Those", "        # Those"),
        ),
        (f"{TARGETS}test_a_pin_that_comes_after_the_removal_is_seen_before_the_reuse",),
    ),
    Mutation(
        "pin-without-recheck",
        "a pin holds only if the word was still there after it was written",
        f"{ONESIDED}pins.py",
        (("    if again == word:\n        return np.int64(1)\n    rc = _write_pin",
          "    if again == word or again != word:\n        return np.int64(1)\n    rc = _write_pin"),),
        (f"{CALLS}test_pin_then_recheck", f"{CALLS}test_pin_of_a_word_that_has_left_is_cleared"),
    ),
    Mutation(
        "descriptor-not-wiped",
        "a cell that left limbo says nothing before it is given out again",
        CELLS,
        (("            magic[first] = 0\n", "            pass\n"),),
        (f"{TARGETS}test_a_freed_descriptor_says_nothing",),
    ),
    Mutation(
        "generation-not-raised",
        "every put takes a new generation of its cell",
        ALLOCATOR,
        (("self._generations[first] = next_generation(before)\n", "self._generations[first] = before or 1\n"),),
        (f"{TARGETS}test_every_put_takes_a_new_cell_and_generation",),
    ),
    # ------------------------------------------------------------------------------------------- puts, doubles, deletes
    Mutation(
        "delete-first-match",
        "a delete takes every word of its key away",
        WRITER,
        (
            _DELETE_ONCE,
            ("in reversed(self.found_blocks()):\n", "in self.found_blocks()[:1]:\n"),
        ),
        (f"{TARGETS}test_a_delete_takes_every_word",),
    ),
    Mutation(
        "delete-looks-once",
        "and looks again until it finds none",
        WRITER,
        (_DELETE_ONCE,),
        (f"{TARGETS}test_a_delete_looks_again_until_nothing_is_found",),
    ),
    Mutation(
        "delete-lowest-first",
        "the word that counts goes last: before it, an older double would be seen again",
        WRITER,
        (("in reversed(self.found_blocks()):\n", "in self.found_blocks():\n"),),
        (f"{TARGETS}test_an_older_double_is_never_seen_during_a_delete",),
    ),
    Mutation(
        "doubles-stay",
        "a put takes the other words of its key away before it returns",
        WRITER,
        (("                if others > 0:\n", "                if others > 99:\n"),),
        (
            f"{TARGETS}test_two_puts_in_two_slots_leave_one_word",
            f"{TARGETS}test_a_put_takes_an_acknowledged_double_away",
        ),
    ),
    Mutation(
        "look-up-disturbed",
        "what a put saw is not overwritten by the looks of the arena that makes room for it",
        TABLE,
        (("(threading.RLock(), fabric.new_scratch()) if", "(threading.RLock(), fabric.scratch) if"),),
        (f"{TARGETS}test_making_room_does_not_disturb_the_look_up",),
    ),
    Mutation(
        "old-look-up",
        "a look-up of long ago is made again before the CAS that goes by it",
        WRITER,
        (("            if not looked or time.monotonic() - looked > self._attempt:\n",
          "            if not looked:\n"),),
        (f"{TARGETS}test_a_look_up_that_slept_is_made_again",),
    ),
    # --------------------------------------------------------------------------------------------------------- eviction
    Mutation(
        "chosen-though-used",
        "a block that was used after it had been chosen stays",
        EVICTIONS,
        (("(insist or self.victims.untouched(first))", "True"),),
        ("tests/mpi/test_arena.py::test_a_block_that_is_used_after_it_was_chosen_stays",),
    ),
    Mutation(
        "protected-is-chosen",
        "a protected block is never a victim",
        "cascade_mpi/victims.py",
        (("        excluded[self._id[staying]] = True\n", ""),),
        ("tests/mpi/test_arena.py::test_eviction_takes_the_old_and_never_the_protected",),
    ),
    Mutation(
        "larger-than-what-is-missing",
        "a block that is larger than what is to be kept free stays",
        EVICTIONS,
        (("if (size := self.allocator.pages_of(first)) > missing:",
          "if (size := self.allocator.pages_of(first)) > self.fabric.pages:"),),
        ("tests/mpi/test_arena.py::test_a_block_that_is_larger_than_what_is_kept_free_stays",),
    ),
)  # fmt: skip
