"""The barriers of the protocol, each removed on purpose: where it stands, and the test that must notice.

Covers the fences of the kernels. Does not cover how the edits are applied (`mutations`).
"""

from __future__ import annotations

from bench.mutation import ONESIDED, PROBE, Mutation

ASSEMBLY = "tests/unit/test_protocol_assembly.py::"


def _fence(name: str, rule: str, file: str, before: str, fence: str, test: str) -> Mutation:
    """A fence removed, which stands behind the text `before`."""
    return Mutation(f"fence-{name}", rule, file, ((f"{before}{fence}()\n", before.rstrip(" ")),), (ASSEMBLY + test,))


MUTATIONS = (
    _fence(
        "copy",
        "the copy's loads are done before the second look",
        PROBE,
        "a reused cell would pass for the old one).\n    ",
        "fence_acquire",
        "test_copy_is_complete_before_the_second_look_on_aarch64",
    ),
    _fence(
        "copy-then-mpi",
        "also where the second look is a Get",
        f"{ONESIDED}read.py",
        "            copy(target, source, room)\n            ",
        "fence_acquire",
        "test_copy_is_complete_before_a_second_look_by_mpi",
    ),
    _fence(
        "threads",
        "also where other threads made the copy",
        PROBE,
        '"""Read a mapped word again after a copy that other threads made."""\n    ',
        "fence_acquire",
        "test_second_look_waits_for_earlier_loads",
    ),
    _fence(
        "payload",
        "a payload is seen before what is published next",
        PROBE,
        "a full barrier drains them.\n    ",
        "fence_seq_cst",
        "test_payload_before_whatever_follows",
    ),
    _fence(
        "cell",
        "payload and descriptor are seen before the word",
        PROBE,
        "# Payload and descriptor before the word; drains the streaming stores too.\n    ",
        "fence_seq_cst",
        "test_cell_before_its_word",
    ),
    _fence(
        "void",
        "the old descriptor is void before the cell is written",
        PROBE,
        "must not find a mixture that looks whole\n    ",
        "fence_seq_cst",
        "test_old_descriptor_is_void_before_the_cell_is_written",
    ),
    _fence(
        "publish",
        "everything is seen before the word is published",
        f"{ONESIDED}swaps.py",
        "a payload copied by other threads has too).\n    ",
        "fence_seq_cst",
        "test_publish_after_everything_before",
    ),
    _fence(
        "doubles",
        "the own word is seen before the look at the others",
        f"{ONESIDED}swaps.py",
        "at least one must see both.\n    ",
        "fence_seq_cst",
        "test_publish_before_the_look_at_the_bucket",
    ),
    _fence(
        "removal",
        "the removal is seen before the look at the pins",
        f"{ONESIDED}swaps.py",
        "so a full barrier on every machine.\n    ",
        "fence_seq_cst",
        "test_removal_before_the_look_at_the_pins",
    ),
    _fence(
        "pin",
        "the pin is seen before the second look at the word",
        f"{ONESIDED}pins.py",
        "the manager removes the word, then looks at the pins.\n    ",
        "fence_seq_cst",
        "test_pin_before_the_second_look",
    ),
    _fence(
        "unpin",
        "a pin is cleared after everything that was read under it",
        f"{ONESIDED}pins.py",
        '"""Clear a hazard slot, after everything that was read under it. 1 Put + 1 Flush."""\n    ',
        "fence_seq_cst",
        "test_unpin_after_everything_that_was_read",
    ),
)  # fmt: skip
