"""The rules of words that name disk cells, each broken on purpose: what to change, and the tests that must notice.

Covers bounds, the looks at descriptor and word, and what readers, writers and copies make of such a block. Does not
cover files, nor how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import ONESIDED, PROBE, TWIN, Mutation

DISK = "tests/unit/test_onesided_disk.py::"
STORE = "tests/mpi/test_disk_words.py::"

MUTATIONS = (
    Mutation(
        "disk-taken-for-dram",
        "a block on disk has no bytes in an arena: a read ends with ON_DISK",
        f"{ONESIDED}read.py",
        (("    if is_disk(word):\n        return np.int64(c.ON_DISK), _ZERO\n", ""),),
        # In mapped memory it reads what lies behind the arena.
        (f"{DISK}test_a_read_says_where_the_block_is_and_touches_nothing_else[remote-compiled-get-3000]",),
    ),
    Mutation(
        "disk-taken-for-dram-batch",
        "nor are the bytes of a batch there",
        f"{ONESIDED}read_many.py",
        (("outcome = np.int64(c.ON_DISK) if is_disk(word) else room", "outcome = room"),),
        (f"{DISK}test_a_read_says_where_the_block_is_and_touches_nothing_else", f"{DISK}test_a_batch_of_everything"),
    ),
    Mutation(
        "disk-taken-for-dram-python",
        "so it is in the twin",
        f"{TWIN}read.py",
        (("        if is_disk(word):\n            return ON_DISK, None\n", ""),),
        (f"{DISK}test_a_read_says_where_the_block_is_and_touches_nothing_else[remote-python-get-3000]",),
    ),
    Mutation(
        "disk-bounds-unchecked",
        "a disk word that names no cell of its rank is never followed",
        PROBE,
        (("tier == _DISK and page >= pages and page < field(ctx, c.CELLS)\n", "tier == _DISK\n"),),
        (f"{DISK}test_a_stray_word_is_never_followed[remote-compiled]",),
    ),
    Mutation(
        "disk-bounds-below",
        "nor one that names a page of the arena",
        PROBE,
        (("tier == _DISK and page >= pages and page <", "tier == _DISK and page <"),),
        (
            f"{DISK}test_a_stray_word_is_never_followed",
            f"{DISK}test_a_store_without_disk_cells_follows_no_disk_word",
        ),
    ),
    Mutation(
        "disk-bounds-python",
        "so it is in the twin",
        f"{TWIN}words.py",
        (("        return named.tier == TIER_DISK and pages <= named.page < self._field(c.CELLS)\n",
          "        return named.tier == TIER_DISK\n"),),
        (f"{DISK}test_a_stray_word_is_never_followed[remote-python]",),
    ),
    Mutation(
        "disk-without-key-check",
        "a block is on disk only if the descriptor of the disk cell has its full key",
        f"{ONESIDED}read.py",
        (("    if not is_cell_of(descriptor, word, hi, lo):\n        return np.int64(c.MISS), _ZERO\n",
          "    if not is_disk(word) and not is_cell_of(descriptor, word, hi, lo):\n"
          "        return np.int64(c.MISS), _ZERO\n"),),
        (
            f"{DISK}test_every_field_of_identity_is_compared",
            f"{DISK}test_keys_that_share_bucket_and_fingerprint",
        ),
    ),
    Mutation(
        "disk-without-key-check-batch",
        "so it is in a batch",
        f"{ONESIDED}read_many.py",
        (("                and is_cell_of(descriptor, word, hi, lo)\n",
          "                and (is_disk(word) or is_cell_of(descriptor, word, hi, lo))\n"),),
        (f"{DISK}test_every_field_of_identity_is_compared", f"{DISK}test_keys_that_share_bucket_and_fingerprint"),
    ),
    Mutation(
        "disk-without-recheck",
        "ON_DISK is said only if the word is still there behind the look at the descriptor",
        f"{ONESIDED}read.py",
        (("                if again == _ZERO:\n                    hook(ctx, c.H_READER)\n",
          "                if outcome == c.ON_DISK:\n                    hook(ctx, c.H_READER)\n"
          "                    again = word\n"
          "                if again == _ZERO:\n                    hook(ctx, c.H_READER)\n"),),
        (
            f"{DISK}test_a_word_that_has_left_is_a_miss",
            f"{DISK}test_a_block_that_is_promoted_meanwhile_is_read",
        ),
    ),
    Mutation(
        "disk-copied",
        "no copy is made of a block that is on disk: there are no bytes to copy",
        f"{ONESIDED}read_many.py",
        (("due = copies and not is_disk(word) and is_due(", "due = copies and is_due("),),
        (f"{DISK}test_no_copy_is_made_of_a_block_on_disk",),
    ),
    Mutation(
        "disk-claimed",
        "nor is one claimed: other ranks of the node would wait for a copy that nobody makes",
        f"{ONESIDED}read.py",
        (("if heed and not is_disk(word) and not claim(", "if heed and not claim("),),
        (f"{DISK}test_no_copy_is_made_of_a_block_on_disk[compiled-get-2-0]",),
    ),
    Mutation(
        "disk-pinned",
        "a disk cell cannot be pinned",
        f"{ONESIDED}pins.py",
        (("    if is_disk(word):\n        return np.int64(c.ON_DISK)\n", ""),),
        (f"{DISK}test_a_pin_is_refused_and_leaves_nothing",),
    ),
    Mutation(
        "copy-still-backed",
        "a copy is not backed: what would say by which disk cell says what it was made from",
        PROBE,
        (("(flags | _FLAG_COPY) & _NOT_OF_A_COPY)", "(flags | _FLAG_COPY) & ~_FLAG_PREFIX)"),),
        (f"{DISK}test_a_copy_is_neither_backed_nor_on_disk",),
    ),
    Mutation(
        "disk-length-in-the-arena",
        "a block on disk may be longer than an arena",
        PROBE,
        (("    return length >= 0 and (length <= room or is_disk(word))\n",
          "    return length >= 0 and length <= room\n"),),
        (f"{DISK}test_a_read_says_where_the_block_is_and_touches_nothing_else",),
    ),
    Mutation(
        "size-for-on-disk",
        "a wrong size and a block on disk are told apart in the results of a batch",
        "kernels/context.py",
        (("WRONG_FROM = -16\n", "WRONG_FROM = -10\n"),),
        (f"{DISK}test_a_wrong_size_of_nothing_is_not_taken_for_a_block_on_disk",),
    ),
    Mutation(
        "disk-read-of-another-key",
        "what of a batch is on disk is looked at again before it is read",
        "cascade_mpi/batch.py",
        (("                got[i] = self._reader.into(hi, lo, int(targets[i]), int(rooms[i]))\n",
          "                got[i] = self._reader.settle(c.ON_DISK, hi, lo, int(targets[i]), int(rooms[i]))\n"),),
        (f"{STORE}test_every_read_finds_what_is_on_disk",),
    ),
    Mutation(
        "disk-cell-retired-in-the-arena",
        "a disk word that was taken away is no cell of the arena: its manager is told",
        "cascade_mpi/pool.py",
        (("        if is_disk(word):\n            return None\n",
          "        if is_disk(word):\n            return self.own\n"),),
        (f"{STORE}test_disk_words_are_no_cells_of_an_arena",),
    ),
    Mutation(
        "disk-hints-of-the-arena",
        "the hints of disk cells are not the arena's to clear",
        "cascade_mpi/area.py",
        (("fabric.comm.rank, fabric.gone[:pages],", "fabric.comm.rank, fabric.gone,"),),
        (f"{STORE}test_the_areas_of_arenas_leave_disk_cells_out",),
    ),
)  # fmt: skip
