"""The rules of namespaces, each broken on purpose: what to change, and the tests that must notice.

Covers epochs, salts and quotas. Does not cover rules of protection by namespace (`mutation_list_capacity`) nor how the
edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import PASSING, REGISTRY, WRITER, Mutation

SPACES = "tests/mpi/test_namespaces.py::"

MUTATIONS = (
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
        "cascade_mpi/store_reads.py",
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
        "cascade_mpi/spaces.py",
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
        PASSING,
        (("& (at < begun[place])", "& (at > begun[place])"),),
        (f"{SPACES}test_blocks_of_a_passed_epoch_leave_memory",),
    ),
    Mutation(
        "quota-counts-only-up",
        "what leaves a namespace leaves its quota",
        "cascade_mpi/quotas.py",
        (("self._released[at] = self._released.get(at, 0) + nbytes", "self._released[at] = 0"),),
        (f"{SPACES}test_one_rank_may_use_the_whole_quota_and_not_a_byte_more",),
    ),
    Mutation(
        "quota-not-looked-at",
        "a put beyond a quota is refused",
        "cascade_mpi/quotas.py",
        (("over = max(used + nbytes - quota, 0)", "over = 0"),),
        (f"{SPACES}test_a_quota_holds_over_all_ranks[allocate-compiled]",),
    ),
)  # fmt: skip
