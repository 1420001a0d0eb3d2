"""The rules of room and of protection by rule, each broken on purpose: what to change, and the tests that must notice.

Covers what leaves first under a quota and ahead of puts, what MPI fails to remove, what a policy is told of requests,
rules of namespaces, and blocks that sessions share. Does not cover the hard bit (`mutation_list_protection`) nor the
rest of the protocol (`mutation_list`).
"""

from __future__ import annotations

from bench.mutation import EVICTIONS, PASSING, REGISTRY, WRITER, Mutation

COLDEST, SESSIONS = "cascade_mpi/coldest.py", "cascade_mpi/sessions.py"
VICTIMS, CHOICE = "cascade_mpi/victims.py", "tests/unit/test_victims.py::"
ARENA, RULES = "tests/mpi/test_arena.py::", "tests/mpi/test_protection_rules.py::"

MUTATIONS = (
    Mutation(
        "quota-takes-any-block",
        "a namespace at its quota gives up what was not used for longest",
        COLDEST,
        (('        order = np.argsort(touched, kind="stable")\n', "        order = np.arange(touched.size)\n"),),
        (f"{ARENA}test_a_quota_takes_the_coldest_of_its_namespace_and_asks_no_policy",),
    ),
    Mutation(
        "large-block-stops-eviction-ahead",
        "a block that is larger than what is missing is passed over, what follows it goes",
        EVICTIONS,
        (("                    large.append(first)\n",
          "                    large.append(first)\n                    return\n"),),
        (f"{ARENA}test_large_old_blocks_do_not_keep_puts_from_evicting_ahead",
         f"{ARENA}test_a_block_that_is_larger_than_what_is_kept_free_stays"),
    ),
    Mutation(
        "expired-block-lost-when-mpi-fails",
        "an expired block waits until it has been removed",
        PASSING,
        (
            ("                word = self._expiring[0][1]\n",
             "                _, word = heapq.heappop(self._expiring)\n"),
            ("                heapq.heappop(self._expiring)  # last: what MPI fails to remove is tried again\n", ""),
        ),
        (f"{ARENA}test_what_mpi_fails_to_remove_is_removed_later[expired]",),
    ),
    Mutation(
        "passed-block-lost-when-mpi-fails",
        "so does one of an epoch that has passed",
        PASSING,
        (
            ("                word = self._passed[0]\n", "                word = self._passed.popleft()\n"),
            ("                self._passed.popleft()  # last: what MPI fails to remove is tried again\n", ""),
        ),
        (f"{ARENA}test_what_mpi_fails_to_remove_is_removed_later[passed]",),
    ),
    Mutation(
        "watched-ids-go-round",
        "which blocks a policy watches is said by their keys, not by ids that go round",
        VICTIMS,
        (("        kind = int(self._rate > 0 and _mixed(*key) % self._rate == 0)\n",
          "        kind = 0\n"),),
        (f"{CHOICE}test_one_block_in_so_many_is_watched_however_often_ids_go_round",),
    ),
    Mutation(
        "asked-for-on-another-blocks-id",
        "an id that a request named and that never came in says nothing of that request any more",
        VICTIMS,
        (("                self._policy.unasked(list(self._awaited.values()))\n", ""),),
        (f"{CHOICE}test_what_is_asked_for_and_never_put_takes_no_room",),
    ),
    Mutation(
        "request-told-before-what-came-before",
        "blocks that came in before a request are told of before it",
        VICTIMS,
        (("            self._insert([first for first in self._page[arrived].tolist() if first in self._new])\n", ""),),
        (f"{CHOICE}test_told_of_requests_and_looked_at_after_every_step_it_is_the_exact_policy",),
    ),
    Mutation(
        "one-session-counts-twice",
        "a session counts once for a block, however often it uses it",
        SESSIONS,
        (("            self._seen[key] = has = had | bit\n",
          "            self._seen[key] = has = had | 1 << had.bit_count() if had >= 0 else had\n"),),
        (f"{RULES}test_a_block_is_protected_when_enough_sessions_have_used_it",),
    ),
    Mutation(
        "shared-block-is-only-noted",
        "a block that enough sessions share is protected where all ranks see it",
        SESSIONS,
        (("            [there] = self._protection.protect([key])\n", "            there = True\n"),),
        (f"{RULES}test_a_block_is_protected_when_enough_sessions_have_used_it",
         f"{RULES}test_shared_blocks_stay_while_four_times_the_memory_is_written[allocate-compiled]"),
    ),
    Mutation(
        "a-session-forgotten-by-a-replace",
        "what replaces a block is counted anew",
        SESSIONS,
        (("                    self._seen.pop(key, None)\n", "                    self._seen.get(key, None)\n"),),
        (f"{RULES}test_a_block_is_protected_when_enough_sessions_have_used_it",),
    ),
    Mutation(
        "rule-of-a-namespace-ignored",
        "a namespace's rule goes before the setting",
        WRITER,
        (("(self._protect_depth if below is None else below)\n", "self._protect_depth\n"),),
        (f"{RULES}test_a_namespace_protects_the_heads_of_its_prefixes",),
    ),
    Mutation(
        "rules-lost-with-an-epoch",
        "a namespace object keeps its rules when the epoch is renewed",
        REGISTRY,
        (("                    self._spaces[name] = Space(old.namespace, old.slot, word)\n",
          "                    self._spaces[name] = new\n"),),
        (f"{RULES}test_rules_outlive_an_epoch",),
    ),
)  # fmt: skip
