"""The rules of copies, each broken on purpose: what to change, and the tests that must notice.

Covers when a copy counts and who makes it. Does not cover how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import ONESIDED, PROBE, TWIN, Mutation

COPIES = "tests/unit/test_onesided_copies.py::"

MUTATIONS = (
    Mutation(
        "copy-without-origin",
        "a copy counts only while the index has the word that it was made from",
        f"{ONESIDED}copies.py",
        (("        stays = same_cell(made_from, origin)  #", "        stays = True  #"),),
        (f"{COPIES}test_a_copy_of_what_was_replaced_is_stale",
         f"{COPIES}test_a_lower_word_of_the_key_hides_the_origin_of_a_copy"),
    ),
    Mutation(
        "copy-without-origin-python",
        "so in the same read made of mpi4py's calls",
        f"{TWIN}copies.py",
        (("                stays = same_cell(cell.origin, origin)  #", "                stays = True  #"),),
        (f"{COPIES}test_a_copy_of_what_was_replaced_is_stale",),
    ),
    Mutation(
        "copy-not-looked-at-again",
        "the word of a copy is read again behind its payload",
        f"{ONESIDED}copies.py",
        (("    if again != word:\n        count(s, c.C_RETRIES, 1)\n        return np.int64(c.MISS)\n", ""),),
        (f"{COPIES}test_the_word_of_a_copy_leaves_while_its_payload_is_read",
         f"{COPIES}test_a_fixed_copy_too_is_looked_at_again"),
    ),
    Mutation(
        "copy-not-looked-at-again-python",
        "so in the same read made of mpi4py's calls",
        f"{TWIN}copies.py",
        (("if int(probe.copy_and_reload(target, source, nbytes, word_at, self._ctx)) != word:",
          "if probe.copy_and_reload(target, source, nbytes, word_at, self._ctx) < 0:"),),
        (f"{COPIES}test_the_word_of_a_copy_leaves_while_its_payload_is_read",),
    ),
    Mutation(
        "copy-of-a-name-unasked",
        "without a look at the index only copies of content keys count",
        f"{ONESIDED}copies.py",
        (("        if origin == _ZERO:\n            return np.int64(c.MISS)\n        stays",
          "        if origin == _ZERO:\n            origin = made_from\n        stays"),),
        (f"{COPIES}test_a_copy_of_what_was_deleted_is_not_read",),
    ),
    Mutation(
        "copy-origin-comes-back",
        "an origin that was not seen for long is known by its sequence number",
        f"{ONESIDED}copies.py",
        ((" or load64(asked + O_SEQUENCE) != load64(descriptor + O_SEQUENCE):", ":"),),
        (f"{COPIES}test_a_word_that_came_back_is_not_the_origin",),
    ),
    Mutation(
        "copy-expired",
        "a copy expires with its block",
        f"{ONESIDED}copies.py",
        (("    if expired(ctx, s, descriptor):\n        return np.int64(c.MISS)  # so is the block",
          "    if False:\n        return np.int64(c.MISS)  # so is the block"),),
        (f"{COPIES}test_an_expired_copy_is_not_read",),
    ),
    Mutation(
        "copy-expired-python",
        "so in the same read made of mpi4py's calls",
        f"{TWIN}copies.py",
        (("            if self._expired(s, cell):\n                continue  # so is the block",
          "            if False:\n                continue  # so is the block"),),
        (f"{COPIES}test_an_expired_copy_is_not_read",),
    ),
    Mutation(
        "copy-of-another-generation",
        "a copy is of one generation of its origin's cell",
        f"{ONESIDED}copies.py",
        (("stays = same_cell(made_from, origin)  #", "stays = page_of(made_from) == page_of(origin)  #"),),
        (f"{COPIES}test_a_copy_of_an_older_generation_of_the_cell_is_stale",),
    ),
    Mutation(
        "copy-of-what-was-not-protected",
        "a toggle of the hard bit ends no copy",
        f"{ONESIDED}copies.py",
        (("stays = same_cell(made_from, origin)  #", "stays = made_from == origin  #"),),
        (f"{COPIES}test_a_block_that_was_protected_or_not_any_more_has_the_same_copy",),
    ),
    Mutation(
        "copy-any-descriptor",
        "the cell of a copy says that it is one",
        f"{ONESIDED}copies.py",
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
        f"{ONESIDED}claims.py",
        (("if others and ((tick - seen) & _U(0xFFFFF)) <= _U(CLAIM_TICKS):", "if others and seen == tick:"),),
        (f"{COPIES}test_a_block_that_another_rank_is_about_to_copy_is_left_to_it",),
    ),
)  # fmt: skip
