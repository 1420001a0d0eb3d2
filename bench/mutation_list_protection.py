"""The rules of protection and expiry, each broken on purpose: what to change, and the tests that must notice.

Covers the hard bit that anybody may toggle, the count of protected bytes, and blocks that expire. Does not cover
the rest of the protocol (`mutation_list`) nor how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import CALLS, CELLS, ONESIDED, PASSING, TABLE, TWIN, WRITER, Mutation

PROTECTION, PROTECTED_BYTES = "cascade_mpi/protection.py", "cascade_mpi/protected_bytes.py"
PROTECT, STEPS = "tests/mpi/test_protection.py::", "tests/mpi/test_protection_steps.py::"

MUTATIONS = (
    # ------------------------------------------------------------------------- the hard bit that anybody toggles
    Mutation(
        "failed-cas-means-gone",
        "a manager whose compare-and-swap failed looks at its word again: it may have become hard",
        CELLS,
        (("                # It has left, or its hard bit was toggled and the block lives: only the index can tell.\n",
          "                break\n"),),
        (f"{STEPS}test_an_eviction_spares_a_block_that_was_protected_meanwhile",
         f"{STEPS}test_what_must_go_goes_although_it_is_protected_meanwhile[clear]",
         f"{STEPS}test_what_must_go_goes_although_it_is_protected_meanwhile[expire]"),
    ),
    Mutation(
        "eviction-takes-hard-words",
        "an eviction goes by the hard bit in the index, not by the manager's table",
        CELLS,
        (("                if evicting and there & HARD:\n", "                if evicting and False:\n"),),
        (f"{STEPS}test_an_eviction_spares_a_block_of_whose_protection_it_has_not_heard",),
    ),
    Mutation(
        "own-word-exact",
        "a manager finds its word in the index whatever its hard bit says",
        f"{ONESIDED}lookup.py",
        (("        if same_cell(there, word):\n", "        if there == word:\n"),),
        (f"{CALLS}test_slot_of_finds_a_word_whose_hard_bit_was_toggled",
         f"{STEPS}test_a_sweep_keeps_a_block_whose_hard_bit_was_toggled"),
    ),
    Mutation(
        "own-word-exact-python",
        "so does the same look made of mpi4py's calls",
        f"{TWIN}lookup.py",
        (("            if same_cell(there, word):\n", "            if there == word:\n"),),
        (f"{CALLS}test_slot_of_finds_a_word_whose_hard_bit_was_toggled",),
    ),
    Mutation(
        "table-word-exact",
        "a word that has left gives its cell back whatever hard bit the manager's table has",
        TABLE,
        (("        return same_cell(self._word[word & PAGE_MASK], word)\n",
          "        return self._word[word & PAGE_MASK] == word\n"),),
        (f"{STEPS}test_a_toggled_word_that_left_gives_its_cell_back_at_once[replace]",
         f"{STEPS}test_a_toggled_word_that_left_gives_its_cell_back_at_once[delete]",
         f"{STEPS}test_a_checksum_that_is_made_later_is_made_of_a_toggled_block"),
    ),
    Mutation(
        "sweep-does-not-look-at-the-bit",
        "a sweep notes what has become of the hard bits",
        CELLS,
        (("                else:\n                    self._note(first)\n",
          "                else:\n                    pass\n"),),
        (f"{STEPS}test_a_sweep_keeps_a_block_whose_hard_bit_was_toggled",
         f"{STEPS}test_a_block_that_is_unprotected_can_be_evicted"),
    ),
    Mutation(
        "toggle-without-a-hint",
        "who toggles a hard bit tells the manager",
        PROTECTION,
        (("        if done and fabric.hint_gone(", "        if not done and fabric.hint_gone("),),
        (f"{STEPS}test_a_sweep_keeps_a_block_whose_hard_bit_was_toggled",
         f"{STEPS}test_a_block_that_is_unprotected_can_be_evicted"),
    ),
    Mutation(
        "toggle-by-an-old-look-up",
        "a look-up of long ago is made again before the hard bit is toggled by it",
        PROTECTION,
        (
            (
                "        if time.monotonic() - looked > self._attempt:\n            return False\n        fabric, s",
                "        if self._attempt < 0:\n            return False\n        fabric, s",
            ),
        ),
        (f"{STEPS}test_a_look_up_that_slept_is_made_again_before_the_swap",),
    ),
    Mutation(
        "lost-toggle-taken-for-done",
        "a hard bit is toggled only if the swap found the word",
        PROTECTION,
        (("        return bool(done)\n", "        return True\n"),),
        (f"{STEPS}test_protect_looks_again_when_its_swap_finds_another_word[False]",
         f"{STEPS}test_protect_of_what_is_deleted_meanwhile_says_so"),
    ),
    Mutation(
        "overflow-takes-hard-words",
        "a put into a full bucket writes over no hard word",
        WRITER,
        (("            if not word & HARD:\n", "            if word:\n"),),
        (f"{STEPS}test_a_full_bucket_never_gives_a_protected_word_away",),
    ),
    Mutation(
        "protect-counts-afterwards",
        "a block counts before its word becomes a hard one",
        PROTECTION,
        (
            ("                self._count_all(wanted, shares)\n", "                pass\n"),
            ("self._counted.limit is not None and shares.get(key) != found.share:", "False:"),
            ("            if self._toggle(found, looked):\n                shares.pop(key, None)\n",
             "            if self._toggle(found, looked):\n                self._count(key, found.share, shares)\n"
             "                shares.pop(key, None)\n"),
        ),
        (f"{STEPS}test_protect_counts_before_it_sets_the_bit_and_unprotect_after",
         f"{PROTECT}test_protect_beyond_the_quota_changes_nothing[allocate-compiled]"),
    ),
    Mutation(
        "removed-hard-word-counts-on",
        "who takes a hard word away gives its count back",
        WRITER,
        (("        if word & HARD:\n            self._protected.release(rank",
          "        if False:\n            self._protected.release(rank"),),
        (f"{PROTECT}test_what_leaves_gives_its_count_back[delete]",
         f"{PROTECT}test_what_leaves_gives_its_count_back[replace]",
         f"{STEPS}test_a_loser_of_two_puts_gives_its_count_back"),
    ),
    Mutation(
        "dropped-hard-word-counts-on",
        "so does a manager that takes its own away",
        CELLS,
        (("if there & HARD and self.unprotected is not None:\n", "if False:\n"),),
        (f"{PROTECT}test_what_leaves_gives_its_count_back[clear]",
         f"{PROTECT}test_what_leaves_gives_its_count_back[bump]",
         f"{PROTECT}test_what_leaves_gives_its_count_back[ttl]"),
    ),
    Mutation(
        "protected-bytes-not-limited",
        "protected bytes stay within their quota",
        PROTECTED_BYTES,
        (("return used if used + nbytes > limit else used + nbytes\n", "return used + nbytes\n"),
         ("if held + nbytes <= limit:\n", "if held >= 0:\n")),
        (f"{PROTECT}test_a_put_beyond_the_quota_changes_nothing[allocate-compiled]",
         f"{PROTECT}test_protect_beyond_the_quota_changes_nothing[allocate-compiled]"),
    ),
    # ------------------------------------------------------------------------------------------------- expiry
    Mutation(
        "expiry-not-looked-at",
        "an expired block is a miss",
        f"{ONESIDED}words.py",
        (("    return expiry != 0 and np.int64(ticks(ctx, s)) >= expiry * TICKS\n", "    return expiry < 0\n"),),
        (f"{CALLS}test_an_expired_block_is_a_miss_on_every_path",),
    ),
    Mutation(
        "expiry-not-looked-at-python",
        "so is it for the same read made of mpi4py's calls",
        f"{TWIN}words.py",
        (("        return cell.expiry != 0 and self._ticks(s) >= cell.expiry * TICKS\n",
          "        return cell.expiry < 0\n"),),
        (f"{CALLS}test_an_expired_block_is_a_miss_on_every_path",),
    ),
    Mutation(
        "expiry-by-an-unsigned-clock",
        "a clock that is behind the opening is before every expiry, not behind it",
        f"{ONESIDED}words.py",
        (("    return expiry != 0 and np.int64(ticks(ctx, s)) >= expiry * TICKS\n",
          "    return expiry != 0 and ticks(ctx, s) >= _U(expiry)\n"),),
        (f"{CALLS}test_an_expired_block_is_a_miss_on_every_path",),
    ),
    Mutation(
        "expiry-not-looked-at-in-a-batch",
        "an expired block is a miss of get_many too",
        f"{ONESIDED}read_many.py",
        (("                and not expired(ctx, s, descriptor)\n", ""),),
        (f"{CALLS}test_an_expired_block_is_a_miss_on_every_path",),
    ),
    Mutation(
        "older-double-behind-an-expired-one",
        "behind an expired block there is nothing but what it replaced",
        f"{ONESIDED}read.py",
        (("                    return np.int64(c.MISS)  # the word that counts: what stands behind it is older\n",
          "                    outcome = np.int64(c.MISS)\n"),),
        (f"{CALLS}test_a_block_behind_an_expired_one_is_older",),
    ),
    Mutation(
        "expired-block-keeps-puts-out",
        "to a put that would keep what is there an expired block is not there",
        WRITER,
        (
            ("        while s.signed[c.FOUND_LIVE]:\n", "        while s.signed[c.FOUND]:\n"),
        ),
        (f"{STEPS}test_an_expired_block_does_not_keep_a_put_out[keep]",),
    ),
    Mutation(
        "expired-blocks-stay",
        "expired blocks make room, protected ones too",
        PASSING,
        (("self._expiring[0][0] <= now", "self._expiring[0][0] < 0"),),
        (f"{STEPS}test_expired_blocks_make_room",
         f"{STEPS}test_the_manager_takes_expired_blocks_out_a_few_at_a_time"),
    ),
)  # fmt: skip
