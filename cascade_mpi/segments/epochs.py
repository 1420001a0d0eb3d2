"""The weight epochs of a store's namespaces, as a directory keeps them: one empty file for each that began.

Covers noting that an epoch begins, taking that back, finding the last one, and which records are of an epoch that has
passed. Does not cover what becomes of these. A name says all (`epochs/NAMESPACE.EPOCH`, 16 and 8 hex digits): there are
no contents that could be half written, and two ranks that note two epochs of one namespace at once both count, the
higher one wins.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import DiskError

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

FOLDER = "epochs"
_NAME = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{8})")


def note(files: Files, namespace: int, epoch: int) -> None:
    """Local. Let a restart begin in this epoch, or a later one. Survives a power loss when it returns.

    1 create, 2 syncs of folders, and as many removals as there are earlier ones.
    """
    files.make_folder(FOLDER)
    files.sync_folder("")
    with contextlib.suppress(FileExistsError):
        files.create(_name(namespace, epoch)).close()
    files.sync_folder(FOLDER)
    for name in files.names(FOLDER):
        found = _NAME.fullmatch(name)
        if found is not None and int(found[1], 16) == namespace and int(found[2], 16) < epoch:
            with contextlib.suppress(DiskError, FileNotFoundError):  # it says nothing any more; another rank's, perhaps
                files.remove(f"{FOLDER}/{name}")


def undo(files: Files, namespace: int, epoch: int) -> bool:
    """Local. After a `note` that failed: see to it that no restart finds this epoch; False: one might.

    1 removal, 1 sync of the folder.
    """
    name = _name(namespace, epoch)
    try:
        try:
            files.remove(name)
        except FileNotFoundError:
            return True  # it was never made
        except DiskError:  # nor here, perhaps: a disk that is read-only says no to every removal
            return name.rpartition("/")[2] not in files.names(FOLDER)
        files.sync_folder(FOLDER)
    except DiskError:
        return False
    return True


def noted(files: Files, *, sync: bool = False) -> dict[int, int]:
    """Local. By namespace id the highest epoch that was noted. 1 list of names.

    `sync`: make that durable, for who is going to rely on it: a job that was killed while it noted one may have left
    the name in the cache alone. 1 sync of the folder.
    """
    found: dict[int, int] = {}
    try:
        names = files.names(FOLDER)
    except FileNotFoundError:
        return found
    if sync:
        files.sync_folder(FOLDER)
    for name in names:
        parsed = _NAME.fullmatch(name)
        if parsed is not None:
            namespace, epoch = int(parsed[1], 16), int(parsed[2], 16)
            found[namespace] = max(epoch, found.get(namespace, 0))
    return found


def present(files: Files, entries: Iterable[npt.NDArray[np.void]]) -> dict[int, int]:
    """Local. By namespace id the epoch at which a job begins: the highest that was noted, or that any record has.

    `entries`: of all segments, rows with the fields of `format.ENTRY`. 1 list of names.
    """
    found = noted(files)
    for rows in entries:
        for namespace in np.unique(rows["namespace"]).tolist():
            highest = int(rows["epoch"][rows["namespace"] == np.uint64(namespace)].max())
            found[namespace] = max(highest, found.get(namespace, 0))
    return found


def passed(rows: npt.NDArray[np.void], epochs: Mapping[int, int]) -> npt.NDArray[np.bool_]:
    """Local. Which rows are of an epoch before that of their namespace in `epochs`: no job finds them any more."""
    dead = np.zeros(len(rows), np.bool_)
    for namespace, epoch in epochs.items():
        if epoch:
            dead |= (rows["namespace"] == np.uint64(namespace)) & (rows["epoch"] < epoch)
    return dead


def _name(namespace: int, epoch: int) -> str:
    return f"{FOLDER}/{namespace:016x}.{epoch:08x}"
