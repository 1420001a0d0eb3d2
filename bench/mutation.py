"""One rule of the protocol, broken on purpose: what to change, and the tests that must notice.

Covers the record, and the files and tests that several lists name. Does not cover which rules there are (the modules
`mutation_list_*`) nor how an edit is applied (`mutations`). An edit's old text must stand exactly once in its file;
`tests/unit/test_mutation_list.py` says which no longer does.
"""

from __future__ import annotations

from typing import NamedTuple

ONESIDED = "cascade_mpi/onesided/"
TWIN = "cascade_mpi/onesided_python/"
PROBE = "kernels/probe.py"
CELLS, TABLE = "cascade_mpi/cells.py", "cascade_mpi/cell_table.py"
EVICTIONS, PASSING = "cascade_mpi/evictions.py", "cascade_mpi/passing.py"
WRITER = "cascade_mpi/writer.py"
REGISTRY = "cascade_mpi/registry.py"
ALLOCATOR = "cascade_mpi/allocator.py"
CALLS = "tests/unit/test_onesided.py::"
TARGETS = "tests/mpi/test_mutation_targets.py::"


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
        return self.file.startswith(("kernels/", ONESIDED))
