"""The rules of reading, each broken on purpose: what to change, and the tests that must notice.

Covers the second look, the comparisons of a descriptor, words and lengths out of bounds, shapes of arrays. Does not
cover copies and aliases (`mutation_list_copies`, `mutation_list_dedup`) nor how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import CALLS, ONESIDED, PROBE, TARGETS, TWIN, Mutation

READER = "cascade_mpi/reader.py"
BATCH = "cascade_mpi/batch.py"

MUTATIONS = (
    Mutation(
        "no-recheck",
        "a get looks at the word again after the copy",
        f"{ONESIDED}read.py",
        (
            (
                "if again != word or ticks(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):",
                "if ticks(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):",
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
        f"{ONESIDED}read_many.py",
        (("                and load64(w + W_AGAIN * 8) == word\n", ""),),
        (f"{CALLS}test_word_left_between_copy_and_recheck", f"{CALLS}test_one_key_of_a_batch_changes"),
    ),
    Mutation(
        "no-recheck-python",
        "so does the same read made of mpi4py's calls",
        f"{TWIN}read.py",
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
        f"{ONESIDED}read_many.py",
        (
            ("    rc = flush_flagged(ctx, flags, DATA)\n    if rc != 0:\n        return mpi.failed(s, rc)\n"
             "    # Phase 3", "    # Phase 3"),
            ("    in_time = ticks(ctx, s) - began", "    for rank in range(field(ctx, c.RANKS)):\n"
             "        rc = mpi.flush(ctx, rank, DATA)\n    in_time = ticks(ctx, s) - began"),
        ),
        (f"{CALLS}test_payload_that_arrives_late_is_checked_after_its_flush",),
    ),
    Mutation(
        "payload-without-flush",
        "a remote payload is complete before it is looked at",
        f"{ONESIDED}read.py",
        (
            ("        if rc == 0:\n            rc = mpi.flush(ctx, rank, DATA)\n        if rc != 0:\n"
             "            return mpi.failed(s, rc), _ZERO\n",
             "        if rc != 0:\n            return mpi.failed(s, rc), _ZERO\n"),
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
        f"{ONESIDED}read.py",
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
        f"{ONESIDED}lookup.py",
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
        (("    if tier <= _DRAM:\n        return page < pages\n    return tier == _DISK and",
          "    if tier <= _U(2):\n        return page < pages\n    return tier == _DISK and"),),
        (f"{CALLS}test_a_stray_word_is_never_followed",),
    ),
    Mutation(
        "out-of-bounds-page",
        "nor one that names no page of the arena",
        PROBE,
        (("    if tier <= _DRAM:\n        return page < pages\n", "    if tier <= _DRAM:\n        return True\n"),),
        (f"{CALLS}test_a_stray_word_is_never_followed[remote-compiled]",),  # in mapped memory it crashes
    ),
    Mutation(
        "out-of-bounds-length",
        "a length that leaves the arena is not believed",
        PROBE,
        (("    return length >= 0 and (length <= room or is_disk(word))\n", "    return length >= 0\n"),),
        (f"{CALLS}test_a_length_that_leaves_the_arena_is_not_believed[remote-compiled-8193]",),
    ),
    Mutation(
        "attempt-without-end",
        "an attempt that took too long may have slept through all generations, and is made again",
        f"{ONESIDED}read.py",
        (("if again != word or ticks(ctx, s) - began > np.uint64(field(ctx, c.ATTEMPT)):", "if again != word:"),),
        (f"{CALLS}test_an_attempt_that_takes_too_long_is_repeated",),
    ),
    Mutation(
        "touch-into-a-cell",
        "a touch goes into the touch array: the cell may have a new owner",
        f"{ONESIDED}hints.py",
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
)  # fmt: skip
