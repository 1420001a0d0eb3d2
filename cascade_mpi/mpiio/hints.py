"""The hints that a shared file is opened with, and which of them the MPI took.

Covers names, values, and the comparison for `report()`. Does not cover who opens what (see `shared`, `new_file`).

An MPI ignores hints that it does not know and says nothing, so what was asked for is worth nothing until it is read
back. A hint is taken when the open file has it with the same value; ROMIO's generic driver also repeats the striping
that it cannot make, so there `romio_filesystem_type` has to be read beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mpi4py import MPI

STRIPE_BYTES = 4 << 20
MAX_STRIPES = 8  # more servers than that for one file of 256 MiB: each gets too little


def shared_hints(ranks: int) -> dict[str, str]:
    """Local. The hints for a file that so many ranks write together."""
    writers = str(max(1, min(ranks, MAX_STRIPES)))
    return {
        "striping_unit": str(STRIPE_BYTES),
        "striping_factor": writers,
        "cb_nodes": writers,
        # ROMIO's default is one aggregator a node, whatever cb_nodes says.
        "cb_config_list": "*:*",
        # As much as a stripe: a round of this size for each aggregator is one exchange, see `together`.
        "cb_buffer_size": str(STRIPE_BYTES),
        "romio_cb_write": "enable",
        "romio_ds_write": "disable",
        "romio_lustre_ds_in_coll": "disable",  # its default reads and modifies
        "romio_no_indep_rw": "true",
    }


@contextmanager
def info_of(hints: Mapping[str, str]) -> Iterator[MPI.Info]:
    """Local. An MPI info with these hints, freed afterwards."""
    info = MPI.Info.Create()
    try:
        for name, value in hints.items():
            info.Set(name, value)
        yield info
    finally:
        info.Free()


def taken_of(file: MPI.File) -> dict[str, str]:
    """Local. All hints that an open file has."""
    info = file.Get_info()
    try:
        names = [info.Get_nthkey(number) for number in range(info.Get_nkeys())]
        return {name: info.Get(name) or "" for name in names}
    finally:
        info.Free()


def compared(asked: Mapping[str, str], taken: Mapping[str, str]) -> dict[str, dict[str, str | bool | None]]:
    """Local. Each hint that was asked for: the value asked for, the one that the file has (None: unknown to this MPI).

    What else the MPI says of its file system and its aggregators is there too, as not asked for.
    """
    told = {
        name: {"asked": value, "has": taken.get(name), "taken": taken.get(name) == value}
        for name, value in asked.items()
    }
    for name in ("romio_filesystem_type", "romio_aggregator_list"):
        if name in taken:
            told[name] = {"asked": None, "has": taken[name].strip(), "taken": True}
    return told
