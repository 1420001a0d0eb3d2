"""All rules of the protocol that are broken on purpose, in the order in which `mutations` tries them."""

from __future__ import annotations

from bench import (
    mutation_list_capacity,
    mutation_list_cells,
    mutation_list_compaction,
    mutation_list_copies,
    mutation_list_crash,
    mutation_list_dedup,
    mutation_list_disk,
    mutation_list_fences,
    mutation_list_flush,
    mutation_list_namespaces,
    mutation_list_pool,
    mutation_list_protection,
    mutation_list_reading,
)
from bench.mutation import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *mutation_list_reading.MUTATIONS, *mutation_list_cells.MUTATIONS, *mutation_list_fences.MUTATIONS,
    *mutation_list_copies.MUTATIONS, *mutation_list_namespaces.MUTATIONS, *mutation_list_protection.MUTATIONS,
    *mutation_list_pool.MUTATIONS, *mutation_list_dedup.MUTATIONS, *mutation_list_capacity.MUTATIONS,
    *mutation_list_disk.MUTATIONS, *mutation_list_compaction.MUTATIONS, *mutation_list_crash.MUTATIONS,
    *mutation_list_flush.MUTATIONS,
)  # fmt: skip
