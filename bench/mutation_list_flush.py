"""The rules by which what all ranks write together, and what is noted beside the segments, survives a power loss.

Covers syncs of files and folders, each broken on purpose. Does not cover a footer before the data (its test does that
to a trace), one rank's log (`tests/unit/test_segment_power_loss.py` leaves its syncs out), nor what is written
(`mutation_list_crash`).
"""

from __future__ import annotations

from bench.mutation import Mutation

TESTS = "tests/unit/test_flush_power_loss.py::"
FLUSH, NOTES = f"{TESTS}test_nothing_that_a_flush_acknowledged_is_lost", f"{TESTS}test_what_is_noted_beside"
SHARED, PATTERNS = "cascade_mpi/mpiio/shared.py", "cascade_mpi/mpiio/patterns.py"
EPOCHS, CHECKPOINTS = "cascade_mpi/segments/epochs.py", "cascade_mpi/segments/checkpoints.py"
NAMES = "cascade_mpi/segments/names.py"
EPOCHS_TEST = (f"{NOTES}_the_segments_is_not_lost[note_epochs]",)
CHECKPOINTS_TEST = (f"{NOTES}_the_segments_is_not_lost[write_checkpoints]",)
NAMES_TEST = (f"{NOTES}_the_segments_is_not_lost[add_names]",)
_FOLDER = '    files.make_folder(FOLDER)\n    files.sync_folder("")\n'

MUTATIONS = (
    Mutation(
        "flush-data-unsynced",
        "each rank syncs the pages that it has written",
        PATTERNS,
        (("    written[0].sync()\n", ""),),
        (f"{FLUSH}[0-own]",),
    ),
    Mutation(
        "flush-data-unsynced-together",
        "MPI's sync is not trusted: each rank syncs by the system's call after a collective write",
        PATTERNS,
        (("            error = _then(error, own.sync)\n", "            pass\n"),),
        (f"{FLUSH}[0-together]",),
    ),
    Mutation(
        "flush-footer-unsynced",
        "a footer is synced before its file has a sealed segment's name",
        SHARED,
        (("                file.sync()  # or a segment with this name could have no footer\n", ""),),
        (f"{FLUSH}[0-own]", f"{FLUSH}[0-together]"),
    ),
    Mutation(
        "flush-names-unsynced",
        "the names of the segments are synced before the records count",
        SHARED,
        (("        if tables:\n            self._files.sync_folder(FOLDER)\n", ""),),
        (f"{FLUSH}[0-own]", f"{FLUSH}[0-together]"),
    ),
    Mutation(
        "flush-folder-unsynced",
        "and so is the name of their folder",
        SHARED,
        (('            self._files.sync_folder("")\n', ""),),
        (f"{FLUSH}[0-own]", f"{FLUSH}[0-together]"),
    ),
    Mutation(
        "flush-answers-early",
        "no rank counts its records as durable before the keepers of all segments have sealed them",
        SHARED,
        (("            agreed(comm, lambda: self._seal(segments, numbers, tables))\n",
          "            self._seal(segments, numbers, tables)\n"),),
        (FLUSH,),
    ),
    Mutation(
        "epoch-folder-unsynced",
        "an epoch survives: the name of its folder is synced",
        EPOCHS,
        ((_FOLDER, "    files.make_folder(FOLDER)\n"),),
        EPOCHS_TEST,
    ),
    Mutation(
        "epoch-name-unsynced",
        "and its own name, before older ones go and before it is acknowledged",
        EPOCHS,
        (("epoch)).close()\n    files.sync_folder(FOLDER)\n", "epoch)).close()\n"),),
        EPOCHS_TEST,
    ),
    Mutation(
        "checkpoint-folder-unsynced",
        "a checkpoint survives: the name of its folder is synced",
        CHECKPOINTS,
        ((_FOLDER, "    files.make_folder(FOLDER)\n"),),
        CHECKPOINTS_TEST,
    ),
    Mutation(
        "checkpoint-unsynced",
        "and its bytes, before it takes the place of one with its tag",
        CHECKPOINTS,
        (("        file.sync()\n", ""),),
        CHECKPOINTS_TEST,
    ),
    Mutation(
        "checkpoint-name-unsynced",
        "and its own name",
        CHECKPOINTS,
        (("    files.sync_folder(FOLDER)\n", ""),),
        CHECKPOINTS_TEST,
    ),
    Mutation(
        "names-unsynced",
        "the names of namespaces survive: their bytes are synced before they take the place of those before",
        NAMES,
        (("        file.sync()\n", ""),),
        NAMES_TEST,
    ),
    Mutation(
        "names-name-unsynced",
        "and the file's own name",
        NAMES,
        (('    files.sync_folder("")\n', ""),),
        NAMES_TEST,
    ),
    Mutation(
        "header-never-written",
        "what a restart lists of a segment without its header is read",
        "cascade_mpi/disk/open_segments.py",
        (("self.place: Place = place_of(reader)", "self.place: Place = reader.header().place"),),
        ("tests/unit/test_open_segments.py::test_what_a_restart_lists_without_a_header_is_read",),
    ),
)  # fmt: skip
