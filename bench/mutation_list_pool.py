"""The rules of leased extents, each broken on purpose: what to change, and the tests that must notice.

Covers who holds an extent, when it may be given back, and the move of blocks out of it. Does not cover the cells
themselves (`mutation_list_cells`) nor how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import ALLOCATOR, CELLS, EVICTIONS, WRITER, Mutation

AREA, LEASES, POOL, MOVER, EXTENTS = (
    f"cascade_mpi/{name}.py" for name in ("area", "leases", "pool", "mover", "extents")
)
TESTS = "tests/mpi/test_pool.py::"
VIEW, GENERATIONS = f"{TESTS}test_a_view_keeps_its_extent_from_being_given_back", f"{TESTS}test_generations_go_on"
BACK = f"{TESTS}test_a_lessor_gets_its_memory_back"

_RULES = (
    Mutation(
        "extent-reused-too-early",
        "an extent is given back when all its cells have rested and nobody has them pinned",
        ALLOCATOR,
        (("            return sum(self._closing[start].values()) == pages\n", "            return True\n"),),
        (VIEW,),
    ),
    Mutation(
        "lessee-looks-at-own-pins",
        "the pins of a leased cell stand at the arena's rank, and are looked at there",
        AREA,
        (("_bytes(pins, fabric.pin_words.nbytes).view(np.uint64)", "fabric.pin_words"),),
        (VIEW,),
    ),
    Mutation(
        "generations-begin-again",
        "the next holder of an extent goes on from the generations that stand in its descriptors",
        EXTENTS,
        ((" if described else None\n", " if False else None\n"),),
        (f"{GENERATIONS}_from_holder_to_holder",),
    ),
    Mutation(
        "extent-without-number",
        "the word of an extent is another one each time it is free",
        LEASES,
        (("(seen // _NUMBER % _LAST_NUMBER + 1) * _NUMBER |", "seen // _NUMBER * _NUMBER |"),),
        (f"{GENERATIONS}_from_holder_to_holder",),
    ),
    Mutation(
        "lessor-clears-the-lessees-hints",
        "a sweep clears the hints of the pages that its rank holds, and no others",
        CELLS,
        (("                hints[~self.owned] = 0\n", "                pass\n"),),
        (f"{TESTS}test_the_lessor_of_a_block_deletes_it",),
    ),
    Mutation(
        "own-arena-means-own-cell",
        "who takes away the word of a cell in its arena that it has lent leaves a hint for the lessee",
        WRITER,
        (("        if not self._pool.retire(word) and fabric",
          "        if not self._pool.retire(word) and rank != fabric.comm.rank and fabric"),),
        (f"{TESTS}test_the_lessor_of_a_block_deletes_it",),
    ),
    Mutation(
        "move-does-not-heed-the-swap",
        "a block has moved when the swap of its word has succeeded",
        MOVER,
        (("        return bool(done)\n", "        return True\n"),),
        (f"{TESTS}test_a_word_that_changes_while_its_block_moves[True]",
         f"{TESTS}test_a_word_that_changes_while_its_block_moves[False]"),
    ),
    Mutation(
        "interrupted-move-gives-its-cell-up",
        "a move that is interrupted looks whether the index names the new cell",
        MOVER,
        ((" and (done or cell.tier.enter_if_it_stands(new, nbytes)):", " and False:"),),
        ("tests/mpi/test_interrupted.py::test_a_move_that_is_interrupted_behind_its_swap_has_moved",),
    ),
    Mutation(
        "draft-published-twice",
        "a draft that was published when Ctrl-C came is not published again",
        "cascade_mpi/deferred.py",
        (("        if not self._writer.is_draft(draft):\n", "        if False:\n"),),
        ("tests/mpi/test_interrupted.py::test_a_deferred_put_that_was_published_is_not_published_again",),
    ),
    Mutation(
        "moved-into-what-is-recalled",
        "nothing new comes into an extent that is to be given back",
        EXTENTS,
        (("                        tier.allocator.close(start)\n", "                        pass\n"),),
        (VIEW,),
    ),
    Mutation(
        "no-lease-before-eviction",
        "a rank whose arena is full uses free memory of other ranks before anything goes",
        POOL,
        (("self._regain(pages) or self._lease(pages, now)\n", "self._regain(pages)\n"),
         ("self._grow_own(1) or any(self._take_run(self._tier(rank), 1) for rank in self._lenders())",
          "self._grow_own(1)")),
        (f"{TESTS}test_one_writer_fills_the_memory_of_all",),
    ),
    Mutation(
        "rest-in-each-extent",
        "cells in arenas of others are placed downward: what is left joins the extent that is taken next",
        "cascade_mpi/cell_table.py",
        (("whole=whole, downward=leased)", "whole=whole, downward=False)"),),
        (f"{TESTS}test_one_writer_leaves_no_rest_in_each_extent[300000]",),
    ),
    Mutation(
        "list-does-not-follow-moves",
        "a block that moves while a list is made is listed once",
        POOL,
        (("            each.moved(tier, first, to, new)\n", "            pass\n"),),
        ("tests/mpi/test_moves_beside.py::test_a_list_has_each_block_once_while_they_move",),
    ),
    Mutation(
        "blocks-move-past-a-deletion",
        "no block moves from what delete_all has not looked at to what it has",
        "cascade_mpi/store_namespaces.py",
        (("        with self._pool.lock:  # no block moves past the look\n", "        if True:\n"),),
        ("tests/mpi/test_moves_beside.py::test_no_block_moves_past_a_deletion[all]",),
    ),
    Mutation(
        "quota-leaves-what-moves",
        "a block that moves to another arena counts against its quota there",
        MOVER,
        (("        to.counted[cell.first] = tier.counted[first]\n", "        to.counted[cell.first] = False\n"),),
        ("tests/mpi/test_moves_beside.py::test_a_quota_counts_the_blocks_of_all_arenas",),
    ),
    Mutation(
        "protected-blocks-go-on-recall",
        "a protected block stays in an extent that is recalled until there is room for it",
        EVICTIONS,
        (('False if it is protected."""\n        return self._evict_one(first) is not None\n',
          'False if it is protected."""\n        return self.remove(first) is not None\n'),),
        (f"{BACK}[True]",),
    ),
)  # fmt: skip

MUTATIONS = tuple(rule._replace(ranks=2) for rule in _RULES)  # one rank has nobody to lease from
