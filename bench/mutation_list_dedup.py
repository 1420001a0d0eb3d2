"""The rules of contents that are stored once, each broken on purpose: what to change, and the tests that must notice.

Covers reads through aliases, puts by alias, and the collection of contents. Does not cover the rest of the protocol
(`mutation_list`) nor how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import CELLS, ONESIDED, TWIN, WRITER, Mutation

DEDUP, PROTECTION = "cascade_mpi/dedup.py", "cascade_mpi/protection.py"
ALIASES, STEPS = "tests/unit/test_onesided_aliases.py::", "tests/mpi/test_dedup_steps.py::"

MUTATIONS = (
    Mutation(
        "alias-word-not-rechecked",
        "the word of an alias is looked at again behind the content",
        f"{ONESIDED}read.py",
        (("        if again == alias and ticks(ctx, s) - began <= np.uint64(field(ctx, c.ATTEMPT)):\n",
          "        if ticks(ctx, s) - began <= np.uint64(field(ctx, c.ATTEMPT)):\n"),),
        (f"{ALIASES}test_a_name_replaced_while_its_content_goes_is_read_again",
         f"{ALIASES}test_a_name_that_gets_another_content_while_the_first_goes"),
    ),
    Mutation(
        "alias-word-not-rechecked-python",
        "so does the same read made of mpi4py's calls",
        f"{TWIN}read.py",
        (("            if self._reload(s, home, bucket, slot) == alias and not self._too_late(s, began):\n",
          "            if not self._too_late(s, began):\n"),),
        (f"{ALIASES}test_a_name_replaced_while_its_content_goes_is_read_again",
         f"{ALIASES}test_a_name_that_gets_another_content_while_the_first_goes"),
    ),
    Mutation(
        "alias-of-an-alias",
        "an alias names a content, never another alias",
        f"{ONESIDED}read.py",
        (("            if outcome in (c.MISS, c.ALIAS):  # evicted; an alias of an alias is none\n",
          "            if outcome == c.MISS:\n"),),
        (f"{ALIASES}test_an_alias_of_an_alias_names_nothing",),
    ),
    Mutation(
        "alias-never-touched",
        "who reads through an alias keeps it from being taken for cold",
        f"{ONESIDED}read.py",
        (("                note_touch(ctx, s, alias)  # or it", "                pass  # or it"),),
        (f"{ALIASES}test_name_and_content_are_touched",),
    ),
    Mutation(
        "alias-without-second-look",
        "who has published an alias looks whether the content is still there",
        DEDUP,
        (("        if not writer.find(*content) or (hard", "        if hard and not writer.find(*content) or (hard"),
         ("        if hit or not same_cell(writer.found()[0][1], own):", "        if hit:")),
        (f"{STEPS}test_a_content_evicted_before_its_name_is_published_is_stored_again",
         f"{STEPS}test_a_content_evicted_behind_the_alias_is_stored_again"),
    ),
    Mutation(
        "look-before-the-alias",
        "that look comes after the alias is published",
        DEDUP,
        (("        result = writer.publish(alias, exists, over=over)\n",
          "        there = writer.find(*content)\n        result = writer.publish(alias, exists, over=over)\n"),
         ("        if not writer.find(*content) or (hard", "        if not there or (hard"),
         ("        if hit or not same_cell(writer.found()[0][1], own):", "        if hit:")),
        (f"{STEPS}test_a_content_evicted_before_its_name_is_published_is_stored_again",
         f"{STEPS}test_a_content_evicted_behind_the_alias_is_stored_again"),
    ),
    Mutation(
        "stored-again-over-anything",
        "the full block takes the place of the own alias, of nothing that came after it",
        DEDUP,
        (('            result = writer.publish(draft, "replace", over=word)\n',
          '            result = writer.publish(draft, "replace")\n'),),
        (f"{STEPS}test_what_came_after_the_alias_is_not_undone[delete]",
         f"{STEPS}test_what_came_after_the_alias_is_not_undone[replace]"),
    ),
    Mutation(
        "named-behind-over-anything",
        "a block that is named by content behind its put is replaced only while it is its name's",
        WRITER,
        (("            if over and old != over:\n", "            if over and False:\n"),),
        (f"{STEPS}test_behind_a_put_nothing_newer_is_lost[delete]",
         f"{STEPS}test_behind_a_put_nothing_newer_is_lost[replace]",
         f"{STEPS}test_what_came_after_the_alias_is_not_undone[delete]"),
    ),
    Mutation(
        "moved-name-counts-as-replaced",
        "the full block takes the place of the own alias in whichever cell that is by now",
        DEDUP,
        (("            word = self._stands_at(alias, sequence)\n            if not word:\n",
          "            word = 0\n            if not word:\n"),),
        (f"{STEPS}test_an_alias_that_moved_is_replaced_where_it_is",),
    ),
    Mutation(
        "refused-name-stays",
        "a put by content that is refused leaves no alias",
        DEDUP,
        (("                        tier.remove(word & MAX_PAGES - 1)\n", "                        pass\n"),),
        (f"{STEPS}test_a_put_that_finds_no_room_for_the_full_block_leaves_no_name",),
    ),
    Mutation(
        "hollow-name-keeps-a-put-out",
        "to a put that would keep what is there a name whose content is gone is not there",
        WRITER,
        (("            if not is_alias(word):\n                return True\n", "            return True\n"),),
        (f"{STEPS}test_a_put_that_would_keep_stores_what_is_absent",),
    ),
    Mutation(
        "hint-removes-a-name",
        "a hint that the content is gone is not the permission to take the name out",
        CELLS,
        (("and not everything and self._names_nothing(first):", "and not everything:"),),
        (f"{STEPS}test_a_hint_is_no_permission",),
    ),
    Mutation(
        "protected-name-of-a-soft-content",
        "who protects a name protects its content first",
        PROTECTION,
        (("                gone = content is None or not self._set(content, shares)\n",
          "                gone = content is None\n"),),
        (f"{STEPS}test_protect_reaches_the_content_and_unprotect_waits_for_the_last_name",),
    ),
    Mutation(
        "protected-as-it-was",
        "what is protected is the content that the name has by then",
        PROTECTION,
        (("                if again is None or again.word != found.word:\n                    continue  # it names",
          "                if again is None:\n                    continue  # it names"),
         ("                if gone:\n                    return False\n",
          "                if gone:\n                    return False\n                found = again\n")),
        (f"{STEPS}test_a_name_that_changes_while_it_is_protected_is_protected_as_it_is_then",),
    ),
    Mutation(
        "protected-put-of-a-soft-content",
        "a protected name that finds its content stored protects it",
        DEDUP,
        (("                if hard and not word & HARD:\n", "                if hard and word == 0:\n"),
         (" or (hard and not self._shield(content)):", ":")),
        (f"{STEPS}test_a_protected_name_protects_its_content[hit]",),
    ),
    Mutation(
        "content-softened-meanwhile",
        "who has published a protected alias looks whether the content is still protected",
        DEDUP,
        ((" or (hard and not self._shield(content)):", ":"),),
        (f"{STEPS}test_a_content_that_is_soft_behind_a_protected_alias_is_protected_again",),
    ),
    Mutation(
        "collect-beside-a-put",
        "contents are collected when no put by alias is under way",
        DEDUP,
        (("        with self.lock:\n            comm.Barrier()",
          "        with dram.lock:\n            comm.Barrier()"),),
        (f"{STEPS}test_nobody_puts_by_alias_while_contents_are_collected",),
    ),
    Mutation(
        "collect-what-is-protected",
        "a content that a protected name has stays protected",
        DEDUP,
        (("            shielded = self._ask(held, [key for key, hard in zip(aliases, shields, strict=True) if hard])\n",
          "            shielded = self._ask(held, [])\n"),),
        (f"{STEPS}test_protect_reaches_the_content_and_unprotect_waits_for_the_last_name",),
    ),
    Mutation(
        "content-of-any-shape",
        "the type and the shape are part of a content",
        "cascade_mpi/contents.py",
        (('value.dtype, value.nbytes,\n                       *value.shape)',
          'value.dtype, value.nbytes,\n                       *([0] * len(value.shape)))'),),
        ("tests/unit/test_contents.py::test_what_makes_another_content",),
    ),
    Mutation(
        "sessions-protect-beside-collect",
        "no block of a content becomes protected while the names are counted",
        "cascade_mpi/sessions.py",
        (("            with self._protecting:\n", "            if True:\n"),),
        (f"{STEPS}test_no_session_protects_a_name_while_contents_are_collected",),
    ),
)  # fmt: skip
