"""The rules of the protocol, each broken on purpose: what to change, and the tests that must notice.

Covers the edits and the names of the tests. Does not cover how they are applied (`mutations`). An edit's
old text must stand exactly once in its file; `tests/unit/test_mutation_list.py` says which no longer does.
"""

from __future__ import annotations

from typing import NamedTuple

ONESIDED, TWIN, PROBE = "cascade_mpi/onesided.py", "cascade_mpi/onesided_python.py", "kernels/probe.py"
DRAM, WRITER, READER = "cascade_mpi/dram.py", "cascade_mpi/writer.py", "cascade_mpi/reader.py"
BATCH, ALLOCATOR = "cascade_mpi/batch.py", "cascade_mpi/allocator.py"
CALLS, ASSEMBLY = "tests/unit/test_onesided.py::", "tests/unit/test_protocol_assembly.py::"
TARGETS = "tests/mpi/test_mutation_targets.py::"
COPIES = "tests/unit/test_onesided_copies.py::"
REGISTRY, SPACES = "cascade_mpi/registry.py", "tests/mpi/test_namespaces.py::"


_DELETE_ONCE = (
    "        while True:\n            looked = time.monotonic()\n",
    "        for _ in range(1):\n            looked = time.monotonic()\n",
)


class Mutation(NamedTuple):
    """One broken rule.

    `edits` are (old text, new text) in `file`; every one of `tests` (functions or single cases) must fail.
    """

    name: str
    rule: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]
    ranks: int = 1  # that the tests need

    @property
    def in_kernels(self) -> bool:
        """Must the compiled code be made again?"""
        return self.file.startswith(("kernels/", "cascade_mpi/onesided"))


def _fence(name: str, rule: str, file: str, before: str, fence: str, test: str) -> Mutation:
    """A fence removed, which stands behind the text `before`."""
    return Mutation(f"fence-{name}", rule, file, ((f"{before}{fence}()\n", before.rstrip(" ")),), (ASSEMBLY + test,))


MUTATIONS = (
    # ------------------------------------------------------------------------------------------- reading
    Mutation(
        "no-recheck",
        "a get looks at the word again after the copy",
        ONESIDED,
        (
            (
                "if again != word or _now(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):",
                "if _now(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):",
            ),
        ),
        (
            f"{CALLS}test_word_left_between_copy_and_recheck",
            f"{CALLS}test_block_replaced_between_copy_and_recheck",
            f"{CALLS}test_cell_reused_for_the_same_key_between_copy_and_recheck",
        ),
    ),
    Mutation(
        "no-recheck-batch",
        "get_many looks at every word again",
        ONESIDED,
        (("                and load64(w + W_AGAIN * 8) == word\n", ""),),
        (f"{CALLS}test_word_left_between_copy_and_recheck", f"{CALLS}test_one_key_of_a_batch_changes"),
    ),
    Mutation(
        "no-recheck-python",
        "so does the same read made of mpi4py's calls",
        TWIN,
        (("if again != word or self._too_late(s, began):", "if self._too_late(s, began):"),),
        (f"{CALLS}test_word_left_between_copy_and_recheck", f"{CALLS}test_block_replaced_between_copy_and_recheck"),
    ),
    Mutation(
        "recheck-before-copy",
        "the second look comes after the copy, not before",
        PROBE,
        (
            ("    copy(target, source, nbytes)\n    hook(", "    again = load_acquire(word_at)\n"
             "    copy(target, source, nbytes)\n    hook("),
            ("old one).\n    fence_acquire()\n    return load_acquire(word_at)\n", "old one).\n    return again\n"),
        ),
        (f"{CALLS}test_block_replaced_between_copy_and_recheck", f"{CALLS}test_word_left_between_copy_and_recheck"),
    ),
    Mutation(
        "recheck-before-flush",
        "the second look of a batch is issued after the Flush that completes the payloads",
        ONESIDED,
        (
            ("    rc = _flush_flagged(ctx, flags, DATA)\n    if rc != 0:\n        return _failed(s, rc)\n"
             "    # Phase 3", "    # Phase 3"),
            ("    in_time = _now(ctx, s) - began", "    for rank in range(field(ctx, c.RANKS)):\n"
             "        rc = _flush(ctx, rank, DATA)\n    in_time = _now(ctx, s) - began"),
        ),
        (f"{CALLS}test_payload_that_arrives_late_is_checked_after_its_flush",),
    ),
    Mutation(
        "payload-without-flush",
        "a remote payload is complete before it is looked at",
        ONESIDED,
        (
            ("        if rc == 0:\n            rc = _flush(ctx, rank, DATA)\n        if rc != 0:\n"
             "            return _failed(s, rc), _ZERO\n",
             "        if rc != 0:\n            return _failed(s, rc), _ZERO\n"),
        ),
        (f"{CALLS}test_payload_that_is_overtaken_by_its_descriptor", f"{CALLS}test_calls_of_a_remote_get"),
    ),
    Mutation(
        "no-key-compare",
        "a cell is the key's only if its descriptor has the full key",
        PROBE,
        (
            ("        and load64(descriptor + O_HI) == hi\n", ""),
            ("        and load64(descriptor + O_LO) == lo\n", ""),
        ),
        (
            f"{CALLS}test_keys_that_share_bucket_and_fingerprint",
            f"{CALLS}test_every_field_of_identity_is_compared",
        ),
    ),
    Mutation(
        "no-generation-compare",
        "and the generation of the word",
        PROBE,
        (
            ("        and load16(descriptor + O_GENERATION) == ((word >> _GENERATION_SHIFT) & _GENERATION_MASK)\n",
             ""),
        ),
        (f"{CALLS}test_every_field_of_identity_is_compared",),
    ),
    Mutation(
        "mismatch-is-a-miss",
        "after any mismatch a reader looks at the word again",
        ONESIDED,
        (
            ("                # Any doubt is settled by the word, not by the descriptor: "
             "look at it again, match or not.\n",
             "                if outcome == c.MISS:\n"
             "                    slot = match_from(words, slot + 1, fp)\n"
             "                    continue\n"),
        ),
        (f"{CALLS}test_a_block_that_moves_is_never_a_miss",),
    ),
    Mutation(
        "mismatch-is-absent",
        "and so does a writer: else a delete is acknowledged while the moved block stays",
        ONESIDED,
        (
            ("                    if again != word:\n                        changed = True\n"
             "                        break\n                    continue\n", "                    continue\n"),
        ),
        (f"{CALLS}test_find_looks_again_when_a_mismatched_word_has_changed",),
    ),
    Mutation(
        "out-of-bounds-tier",
        "a word of a tier that is off is never followed",
        PROBE,
        (("        ((word >> _TIER_SHIFT) & _TIER_MASK) <= _DRAM\n        and rank_of", "        rank_of"),),
        (f"{CALLS}test_a_stray_word_is_never_followed",),
    ),
    Mutation(
        "out-of-bounds-page",
        "nor one that names no page of the arena",
        PROBE,
        (("        and page_of(word) < field(ctx, c.PAGES)\n", ""),),
        (f"{CALLS}test_a_stray_word_is_never_followed[remote-compiled]",),  # in mapped memory it crashes
    ),
    Mutation(
        "out-of-bounds-length",
        "a length that leaves the arena is not believed",
        PROBE,
        (("    return length >= 0 and length <= room\n", "    return length >= 0\n"),),
        (f"{CALLS}test_a_length_that_leaves_the_arena_is_not_believed[remote-compiled-8193]",),
    ),
    Mutation(
        "attempt-without-end",
        "an attempt that took too long may have slept through all generations, and is made again",
        ONESIDED,
        (("if again != word or _now(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):", "if again != word:"),),
        (f"{CALLS}test_an_attempt_that_takes_too_long_is_repeated",),
    ),
    Mutation(
        "touch-into-a-cell",
        "a touch goes into the touch array: the cell may have a new owner",
        ONESIDED,
        (
            ("        store32(base + field(ctx, c.TOUCH_AT) + page * 4, now)\n",
             "        store32(payload_address(ctx, base, page), now)\n"),
        ),
        (f"{CALLS}test_touches_go_into_the_touch_array_only",),
    ),
    Mutation(
        "shape-of-the-old",
        "a new array has the type and the shape of what was read into it",
        READER,
        (("            if decode(self._fabric.scratch.descriptor)[:2] == (found.dtype, found.shape):\n",
          "            if made is not None:\n"),),
        (f"{TARGETS}test_a_replace_of_the_same_size_shows_its_own_shape[False]",),
    ),
    Mutation(
        "shape-of-the-old-batch",
        "and so have the arrays of a batch",
        BATCH,
        (("(again != described).any(axis=1)] = c.CHANGED", "(again != described).all(axis=1)] = c.CHANGED"),),
        (f"{TARGETS}test_a_replace_of_the_same_size_shows_its_own_shape[True]",),
    ),
    # --------------------------------------------------------------------------------- reuse, pins, removal
    Mutation(
        "removal-without-flush",
        "the CAS that takes a word away has been flushed before anything is decided on it",
        ONESIDED,
        (
            ("    if rc == 0:\n        rc = _flush(ctx, home, INDEX)\n    return rc, load64(s + c.RESULT * 8)\n",
             "    return rc, load64(s + c.RESULT * 8)\n"),
        ),
        (f"{CALLS}test_remove", f"{CALLS}test_publish_over_an_old_word"),
    ),
    Mutation(
        "reuse-before-removal",
        "a cell is retired only after its word has left",
        DRAM,
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
        DRAM,
        (("                if self._slot_of(first, word) < 0:\n", "                if True:\n"),),
        (f"{TARGETS}test_a_hint_is_not_the_permission_to_reuse",),
    ),
    Mutation(
        "reuse-ignores-pins",
        "a pinned cell is not reused",
        DRAM,
        (("unpinned = [first for first in ripe if first not in pinned] if pinned else ripe\n", "unpinned = ripe\n"),),
        (
            f"{TARGETS}test_a_pinned_cell_is_never_reused",
            f"{TARGETS}test_a_pin_that_comes_after_the_removal_is_seen_before_the_reuse",
        ),
    ),
    Mutation(
        "pins-looked-at-early",
        "the manager looks at the pins after the removal, at the last moment before the reuse",
        DRAM,
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
        ONESIDED,
        (("    if again == word:\n        return np.int64(1)\n    rc = _write_pin",
          "    if again == word or again != word:\n        return np.int64(1)\n    rc = _write_pin"),),
        (f"{CALLS}test_pin_then_recheck", f"{CALLS}test_pin_of_a_word_that_has_left_is_cleared"),
    ),
    Mutation(
        "descriptor-not-wiped",
        "a cell that left limbo says nothing before it is given out again",
        DRAM,
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
    # ------------------------------------------------------------------------------- puts, doubles, deletes
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
        DRAM,
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
    # ------------------------------------------------------------------------------------------ fences removed
    _fence(
        "copy",
        "the copy's loads are done before the second look",
        PROBE,
        "a reused cell would pass for the old one).\n    ",
        "fence_acquire",
        "test_copy_is_complete_before_the_second_look_on_aarch64",
    ),
    _fence(
        "copy-then-mpi",
        "also where the second look is a Get",
        ONESIDED,
        "            copy(target, source, room)\n            ",
        "fence_acquire",
        "test_copy_is_complete_before_a_second_look_by_mpi",
    ),
    _fence(
        "threads",
        "also where other threads made the copy",
        PROBE,
        '"""Read a mapped word again after a copy that other threads made."""\n    ',
        "fence_acquire",
        "test_second_look_waits_for_earlier_loads",
    ),
    _fence(
        "payload",
        "a payload is seen before what is published next",
        PROBE,
        "a full barrier drains them.\n    ",
        "fence_seq_cst",
        "test_payload_before_whatever_follows",
    ),
    _fence(
        "cell",
        "payload and descriptor are seen before the word",
        PROBE,
        "# Payload and descriptor before the word; drains the streaming stores too.\n    ",
        "fence_seq_cst",
        "test_cell_before_its_word",
    ),
    _fence(
        "void",
        "the old descriptor is void before the cell is written",
        PROBE,
        "must not find a mixture that looks whole\n    ",
        "fence_seq_cst",
        "test_old_descriptor_is_void_before_the_cell_is_written",
    ),
    _fence(
        "publish",
        "everything is seen before the word is published",
        ONESIDED,
        "a payload copied by other threads has too).\n    ",
        "fence_seq_cst",
        "test_publish_after_everything_before",
    ),
    _fence(
        "doubles",
        "the own word is seen before the look at the others",
        ONESIDED,
        "at least one must see both.\n    ",
        "fence_seq_cst",
        "test_publish_before_the_look_at_the_bucket",
    ),
    _fence(
        "removal",
        "the removal is seen before the look at the pins",
        ONESIDED,
        "so a full barrier on every machine.\n    ",
        "fence_seq_cst",
        "test_removal_before_the_look_at_the_pins",
    ),
    _fence(
        "pin",
        "the pin is seen before the second look at the word",
        ONESIDED,
        "the manager removes the word, then looks at the pins.\n    ",
        "fence_seq_cst",
        "test_pin_before_the_second_look",
    ),
    _fence(
        "unpin",
        "a pin is cleared after everything that was read under it",
        ONESIDED,
        '"""Clear a hazard slot, after everything that was read under it. 1 Put + 1 Flush."""\n    ',
        "fence_seq_cst",
        "test_unpin_after_everything_that_was_read",
    ),
    # ---------------------------------------------------------------------------------------------- eviction
    Mutation(
        "chosen-though-used",
        "a block that was used after it had been chosen stays",
        DRAM,
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
        DRAM,
        (("if (size := self.allocator.pages_of(first)) > missing:",
          "if (size := self.allocator.pages_of(first)) > self.fabric.pages:"),),
        ("tests/mpi/test_arena.py::test_a_block_that_is_larger_than_what_is_kept_free_stays",),
    ),
    # ------------------------------------------------------------------------------------------------ copies
    Mutation(
        "copy-without-origin",
        "a copy counts only while the index has the word that it was made from",
        ONESIDED,
        (("        stays = same_cell(made_from, origin)  #", "        stays = True  #"),),
        (f"{COPIES}test_a_copy_of_what_was_replaced_is_stale",
         f"{COPIES}test_a_lower_word_of_the_key_hides_the_origin_of_a_copy"),
    ),
    Mutation(
        "copy-without-origin-python",
        "so in the same read made of mpi4py's calls",
        TWIN,
        (("                stays = same_cell(cell.origin, origin)  #", "                stays = True  #"),),
        (f"{COPIES}test_a_copy_of_what_was_replaced_is_stale",),
    ),
    Mutation(
        "copy-not-looked-at-again",
        "the word of a copy is read again behind its payload",
        ONESIDED,
        (("    if again != word:\n        count(s, c.C_RETRIES, 1)\n        return np.int64(c.MISS)\n", ""),),
        (f"{COPIES}test_the_word_of_a_copy_leaves_while_its_payload_is_read",
         f"{COPIES}test_a_fixed_copy_too_is_looked_at_again"),
    ),
    Mutation(
        "copy-not-looked-at-again-python",
        "so in the same read made of mpi4py's calls",
        TWIN,
        (("if int(probe.copy_and_reload(target, source, nbytes, word_at, self._ctx)) != word:",
          "if probe.copy_and_reload(target, source, nbytes, word_at, self._ctx) < 0:"),),
        (f"{COPIES}test_the_word_of_a_copy_leaves_while_its_payload_is_read",),
    ),
    Mutation(
        "copy-of-a-name-unasked",
        "without a look at the index only copies of content keys count",
        ONESIDED,
        (("        if origin == _ZERO:\n            return np.int64(c.MISS)\n        stays",
          "        if origin == _ZERO:\n            origin = made_from\n        stays"),),
        (f"{COPIES}test_a_copy_of_what_was_deleted_is_not_read",),
    ),
    Mutation(
        "copy-origin-comes-back",
        "an origin that was not seen for long is known by its sequence number",
        ONESIDED,
        ((" or load64(asked + O_SEQUENCE) != load64(descriptor + O_SEQUENCE):", ":"),),
        (f"{COPIES}test_a_word_that_came_back_is_not_the_origin",),
    ),
    Mutation(
        "copy-expired",
        "a copy expires with its block",
        ONESIDED,
        (("    if _expired(ctx, s, descriptor):\n        return np.int64(c.MISS)  # so is the block",
          "    if False:\n        return np.int64(c.MISS)  # so is the block"),),
        (f"{COPIES}test_an_expired_copy_is_not_read",),
    ),
    Mutation(
        "copy-expired-python",
        "so in the same read made of mpi4py's calls",
        TWIN,
        (("            if self._expired(s, cell):\n                continue  # so is the block",
          "            if False:\n                continue  # so is the block"),),
        (f"{COPIES}test_an_expired_copy_is_not_read",),
    ),
    Mutation(
        "copy-of-another-generation",
        "a copy is of one generation of its origin's cell",
        ONESIDED,
        (("stays = same_cell(made_from, origin)  #", "stays = page_of(made_from) == page_of(origin)  #"),),
        (f"{COPIES}test_a_copy_of_an_older_generation_of_the_cell_is_stale",),
    ),
    Mutation(
        "copy-of-what-was-not-protected",
        "a toggle of the hard bit ends no copy",
        ONESIDED,
        (("stays = same_cell(made_from, origin)  #", "stays = made_from == origin  #"),),
        (f"{COPIES}test_a_block_that_was_protected_or_not_any_more_has_the_same_copy",),
    ),
    Mutation(
        "copy-any-descriptor",
        "the cell of a copy says that it is one",
        ONESIDED,
        (("if is_cell_of(descriptor, word, hi, lo) and is_copy(descriptor):",
          "if is_cell_of(descriptor, word, hi, lo):"),),
        (f"{COPIES}test_every_field_that_makes_a_copy_is_compared",),
    ),
    Mutation(
        "copy-of-damage",
        "bytes that do not have their checksum are not copied on",
        PROBE,
        (("    if total != load64(described + O_CHECKSUM):\n", "    if False:\n"),),
        (f"{COPIES}test_damaged_bytes_are_not_copied_on",),
    ),
    Mutation(
        "claim-not-heeded",
        "one rank of a node fetches a block that is to be copied",
        ONESIDED,
        (("if others and ((tick - seen) & _U(0xFFFFF)) <= _U(CLAIM_TICKS):", "if others and seen == tick:"),),
        (f"{COPIES}test_a_block_that_another_rank_is_about_to_copy_is_left_to_it",),
    ),
    # -------------------------------------------------------------------------------------------- namespaces
    Mutation(
        "epoch-not-looked-at-again",
        "what was read is returned only if its epoch has not passed meanwhile",
        REGISTRY,
        (("        return (self.epochs[space.slot] + 1) // 2 != space.epoch\n", "        return False\n"),),
        (f"{SPACES}test_what_began_before_a_bump_returns_nothing_old[get-out-named]",
         f"{SPACES}test_what_began_before_a_bump_returns_nothing_old[locate-named]"),
    ),
    Mutation(
        "epoch-not-looked-at-again-in-get",
        "the shortest path of a get does so too",
        "cascade_mpi/store.py",
        (("        if outcome >= 0 and not (self._mixed[0] if space is None else self._registry.has_passed(space)):",
          "        if outcome >= 0:"),),
        (f"{SPACES}test_what_began_before_a_bump_returns_nothing_old[get-out-named]",
         f"{SPACES}test_what_began_before_a_bump_returns_nothing_old[get-out-default]"),
    ),
    Mutation(
        "epoch-begins-at-once",
        "all ranks leave an epoch before puts into the next one begin",
        REGISTRY,
        (("space.slot, 2 * epoch - 1, MPI.MAX)", "space.slot, 2 * epoch, MPI.MAX)"),),
        (f"{SPACES}test_nothing_older_is_read_after_a_put_while_an_epoch_begins[allocate-compiled]",),
    ),
    Mutation(
        "passed-while-put",
        "a block whose epoch has passed when it is published goes too",
        WRITER,
        (("if others >= 0 and self._registry.has_passed(space):", "if False:"),),
        (f"{SPACES}test_a_put_whose_epoch_passes_meanwhile_leaves_memory",),
    ),
    Mutation(
        "epoch-not-in-the-key",
        "a weight epoch is part of every key",
        REGISTRY,
        (("self.digest = namespace.digest(self.epoch)", "self.digest = namespace.digest(0)"),),
        (f"{SPACES}test_nothing_of_the_old_epoch_is_found_after_a_bump[allocate-compiled-name]",),
    ),
    Mutation(
        "salt-not-in-the-key",
        "a tenant's salt is part of every key",
        "cascade_mpi/namespaces.py",
        (("digest_size=16, key=self.salt,", "digest_size=16,"),),
        (f"{SPACES}test_tenants_do_not_see_or_probe_each_other[allocate-compiled]",),
    ),
    Mutation(
        "passed-blocks-stay",
        "blocks of a passed epoch make room, protected ones too",
        DRAM,
        (("& (at < begun[place])", "& (at > begun[place])"),),
        (f"{SPACES}test_blocks_of_a_passed_epoch_leave_memory",),
    ),
    Mutation(
        "quota-counts-only-up",
        "what leaves a namespace leaves its quota",
        REGISTRY,
        (("self._released[at] = self._released.get(at, 0) + nbytes", "self._released[at] = 0"),),
        (f"{SPACES}test_one_rank_may_use_the_whole_quota_and_not_a_byte_more",),
    ),
    Mutation(
        "quota-not-looked-at",
        "a put beyond a quota is refused",
        REGISTRY,
        (("over = max(used + nbytes - quota, 0)", "over = 0"),),
        (f"{SPACES}test_a_quota_holds_over_all_ranks[allocate-compiled]",),
    ),
)  # fmt: skip
