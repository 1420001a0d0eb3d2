"""An HDF5 file into a store's directory: without a job, without MPI.

Covers the lock, the identity, the sequences and the records that are appended. Does not cover the command (see
`commands.import_file`) nor the file (see `reading`). The next job that opens the directory finds the blocks as it finds
its own.

The sequences of imported blocks are above all that the directory holds, tombstones too: they take the place of older
blocks with the same key, and of deletions.
"""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections.abc import Mapping
from itertools import count
from typing import NamedTuple

import numpy as np

from cascade_mpi.errors import CascadeError, ConfigError, DiskError, Hdf5FileError
from cascade_mpi.hdf5.origin import STORED, Origin, mixed_in, stored_keys
from cascade_mpi.hdf5.reading import Block, ExportFile
from cascade_mpi.hdf5.rows import path_of
from cascade_mpi.hdf5.wanted import Wanted, find
from cascade_mpi.layout import FLAG_CHECKSUM, FLAG_FIXED, FLAG_PREFIX
from cascade_mpi.public_namespace import PublicNamespace
from cascade_mpi.segments import epochs, identity, names
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import BLOCK, MAX_LENGTH, PROTECTED
from cascade_mpi.segments.lock import DirectoryLock, Locks, Owner
from cascade_mpi.segments.log import SegmentLog
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import Recovery, latest, recover
from cascade_mpi.values import encode_dims

RANK_BITS = 12  # the low bits of a sequence are a rank: ours is 0
_MASK64 = (1 << 64) - 1


class DirectoryImport(NamedTuple):
    """What has become of the blocks of a file: imported, there already (with `keep`), expired, or damaged."""

    origin: Origin
    wanted: Wanted
    epoch: int
    blocks: int
    bytes: int
    kept: int
    expired: int
    damages: list[str]
    problems: list[str]  # of the directory, for people
    failed: str  # "", or why the disk did not take all; the blocks that were counted may be there


def import_directory(
    root: str | os.PathLike[str], source: str | os.PathLike[str], *, namespace: str | None = None, salt: bytes = b"",
    rekey: bool = False, keep: bool = False, locks: Locks = "required", environ: Mapping[str, str] = os.environ,
) -> DirectoryImport:  # fmt: skip
    """Local. Append the blocks of an exported file to a store's directory, which is made if it is not there.

    namespace
        Into which, as `wanted.find` reads it; None: that of the file. At the epoch that it has in the directory: where
        there is no block of it, and it is at no later one, at that of the file.
    rekey
        Import into another namespace, or epoch, under the same integers.
    keep
        Leave blocks alone that are there, instead of replacing them.

    When it has returned, and not `failed`, the blocks are durable, in sealed segments. An exception has changed
    nothing.

    Raises
    ------
    Hdf5FileError, DiskError, NotConfiguredError
        The file cannot be read, or is none of ours.
    ConfigError
        The namespace is not that of the file, or at another epoch, or its salt is needed.
    StoreInUseError
        A job writes to the directory.
    DiskError
        The directory cannot be made or read.
    CascadeError
        It has damage, for which a job would refuse to write to it, too.
    """
    with ExportFile(source) as file:
        keys = list(file.keys())  # a damaged list is seen before anything is made
        with PosixFiles(root, make=True) as files, DirectoryLock.take(
            root, Owner.here(int(time.time()), environ), locks=locks
        ):  # fmt: skip
            told = names.read(files)
            before = identity.read(files)
            found = Recovery([], [], 0) if before is None else recover(files, before.uuid)
            if found.problems:
                raise CascadeError(
                    f"{root} has damage ({found.problems[0]}), and no job writes to such a directory: nothing was "
                    f"imported. `cascade fsck {root}` says what to do"
                )
            wanted = _target(file.origin, namespace, salt, told.namespaces)
            there = epochs.present(files, (each.entries for each in found.indexes)).get(wanted.id, 0)
            epoch = _epoch(file.origin, wanted.id, there, found)
            mixed = _mixed(file.origin, wanted, epoch, rekey)
            # Nothing was changed so far.
            store = identity.ensure(files, uuid.uuid4().bytes, time.time_ns()).uuid
            if wanted.known is not None and wanted.id:
                names.add(files, {wanted.id: wanted.known})
            if epoch > there:  # its first block may leave, and must not take the epoch along
                epochs.note(files, wanted.id, epoch)
            log = SegmentLog(
                files, store, count(found.next_segment), secrets.randbits(64), now=time.time_ns
            )  # fmt: skip
            done = _Import(file, log, found, wanted, epoch, mixed, keep)
            failed = _take_all(done, keys, log)
    return DirectoryImport(
        file.origin, wanted, epoch, done.blocks, done.bytes, done.kept, done.expired, done.damages,
        [*told.problems, *found.torn], failed,
    )  # fmt: skip


def _take_all(done: _Import, keys: list[int], log: SegmentLog) -> str:
    """For people: why not all blocks were taken, "" if they were. What was appended is made durable all the same."""
    failed = ""
    try:
        for key in keys:
            done.take(key)
    except DiskError as error:
        failed = str(error)
    try:
        log.close()
    except DiskError as error:
        failed = f"{failed}; {error}" if failed else str(error)
    return failed


def _target(origin: Origin, text: str | None, salt: bytes, known: Mapping[int, PublicNamespace]) -> Wanted:
    if text is not None:
        return find(text, salt, known)
    made = origin.namespace(salt)
    if made is None and salt:
        raise ConfigError(f"the salt is not that of the file's {origin}")
    return Wanted(origin.namespace_id, made, origin.known)


def _epoch(origin: Origin, namespace_id: int, there: int, found: Recovery) -> int:
    """The epoch to import at. Blocks of an earlier one than the directory's are found by no job, and those of a later
    one would take away all that it has: such a file is refused, or imported at the directory's."""
    if namespace_id != origin.namespace_id or origin.epoch <= there:
        return there
    rows = latest(found.indexes).blocks
    return there if (rows["namespace"] == np.uint64(namespace_id)).any() else origin.epoch


def _mixed(origin: Origin, wanted: Wanted, epoch: int, rekey: bool) -> int:
    if origin.keys == STORED:
        if (origin.namespace_id, origin.epoch) == (wanted.id, epoch):
            return 0
        raise stored_keys(origin, wanted, epoch)
    if wanted.namespace is None:
        raise ConfigError(
            f"the blocks of namespace {wanted} are stored under keys that need its "
            + ("salt: give it (--salt-file), " if wanted.known is not None else "name: give it (--namespace), ")
            + "or import the file in a job, with Store.import_hdf5()"
        )
    return mixed_in(origin, wanted.namespace, epoch, rekey=rekey, remedy="--rekey")


class _Import:
    """The blocks that were taken so far."""

    def __init__(
        self, file: ExportFile, log: SegmentLog, found: Recovery, wanted: Wanted, epoch: int, mixed: int, keep: bool
    ) -> None:  # fmt: skip
        self._file, self._log, self._wanted, self._epoch, self._mixed = file, log, wanted, epoch, mixed
        highest = max((int(each.entries["sequence"].max()) for each in found.indexes if each.entries.size), default=0)
        self._ticks = count(max(highest, time.time_ns()) >> RANK_BITS)
        next(self._ticks)
        self._now = int(time.time())
        self._there = set[tuple[int, int]]()
        if keep:
            live = latest(found.indexes).blocks
            live = live[(live["expiry"] == 0) | (live["expiry"] > self._now)]
            self._there = set(zip(live["key_hi"].tolist(), live["key_lo"].tolist(), strict=True))
        self.blocks = self.bytes = self.kept = self.expired = 0
        self.damages: list[str] = []

    def take(self, key: int) -> None:
        """Local. Append the block of a key."""
        words = key ^ self._mixed
        hi, lo = words >> 64, words & _MASK64
        if (hi, lo) in self._there:
            self.kept += 1
            return
        try:
            block = self._file.read(key, path_of(key), MAX_LENGTH)
        except Hdf5FileError as error:
            self.damages.append(str(error))
            return
        if 0 < block.row.expiry <= self._now:
            self.expired += 1
            return
        self._log.append(self._record(hi, lo, block), block.data.reshape(-1).view(np.uint8).data)
        self.blocks += 1
        self.bytes += block.row.nbytes

    def _record(self, hi: int, lo: int, block: Block) -> Record:
        row = block.row
        dim0, dims = encode_dims(row.shape)
        fixed = self._wanted.known is not None and self._wanted.known.content_keys
        return Record(
            BLOCK, hi, lo, next(self._ticks) << RANK_BITS, row.nbytes,
            FLAG_CHECKSUM | FLAG_PREFIX * row.protected | FLAG_FIXED * fixed, PROTECTED * row.protected, row.dtype,
            len(row.shape), dim0, dims, 0, 0, row.checksum, self._wanted.id, self._epoch, row.expiry,
            0 if row.depth is None else row.depth + 1,
        )  # fmt: skip
