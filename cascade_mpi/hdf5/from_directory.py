"""A namespace of a store's directory as an HDF5 file: without a job, without MPI.

Covers which records are exported, and what is said of the others. Does not cover the command (see `commands.export`)
nor the file (see `new_file`). Nothing in the directory is changed, and no lock is needed; what a job writes there
meanwhile may be missed.

The keys of a namespace whose name and salt are known are written as the integers that name its blocks there, of any
other as they are stored: such a file can be imported only where the namespace has the same number and epoch.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import BufferSizeError, ConfigError, DamagedError, DiskError, DiskGoneError
from cascade_mpi.hdf5.new_file import NewFile
from cascade_mpi.hdf5.origin import INTEGER, STORED, Origin
from cascade_mpi.hdf5.rows import Row
from cascade_mpi.hdf5.wanted import Wanted, find
from cascade_mpi.keys import shown
from cascade_mpi.layout import FLAG_ALIAS, FLAG_CONTENT
from cascade_mpi.public_namespace import PublicNamespace
from cascade_mpi.segments import epochs, names
from cascade_mpi.segments.format import PROTECTED
from cascade_mpi.segments.reader import SegmentReader, open_segment
from cascade_mpi.segments.records import Record
from cascade_mpi.segments.recovery import Recovery, latest, recover
from cascade_mpi.values import decode_dims, dtype_name

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

_MASK64 = (1 << 64) - 1


class DirectoryExport(NamedTuple):
    """What was written, and what was not: `expired` blocks, and `damages`, a text for each block that is not whole."""

    origin: Origin
    wanted: Wanted
    blocks: int
    bytes: int
    expired: int
    damages: list[str]
    problems: list[str]  # of the directory, for people


def export_directory(
    files: Files, store: bytes, out: str | os.PathLike[str], *, namespace: str = "", epoch: int | None = None,
    salt: bytes = b"", overwrite: bool = False,
) -> DirectoryExport:  # fmt: skip
    """Local. Write the newest blocks of a namespace into a new file. Reads each of them once, and all footers.

    namespace
        As `wanted.find` reads it.
    epoch
        None: that at which a job opens it. An earlier one has passed: no job finds its blocks, unless they are
        imported anew.
    overwrite
        Whether a file of that name may be replaced.

    Raises
    ------
    ConfigError
        There is no block of this namespace, or of this epoch; the text says of which there are.
    NotConfiguredError
        h5py is not installed.
    DiskError
        The directory cannot be read, or the file not be written.
    """
    told = names.read(files)
    found = recover(files, store, sync=False)
    newest = latest(found.indexes).blocks
    wanted = find(namespace, salt, told.namespaces, set(np.unique(newest["namespace"]).tolist()))
    mine = newest[newest["namespace"] == np.uint64(wanted.id)]
    begun = epochs.present(files, (each.entries for each in found.indexes))
    if epoch is None:
        epoch = begun.get(wanted.id, 0)
    mine = mine[mine["epoch"] == epoch]
    if not len(mine):
        raise ConfigError(
            f"there is no block of namespace {wanted} at epoch {epoch} in this directory; "
            + _what_there_is(newest, told.namespaces, begun)
        )
    origin = Origin(
        wanted.id, epoch, STORED if wanted.namespace is None else INTEGER, time.time_ns(), uuid.uuid4().hex,
        wanted.known,
    )  # fmt: skip
    mixed = 0 if wanted.namespace is None else int.from_bytes(wanted.namespace.digest(epoch), "big")
    reads = _Records(files, store, found, newest)
    now, expired, damages = int(time.time()), 0, list[str]()
    with NewFile(out, origin, overwrite=overwrite, remedy="--overwrite") as made:
        for entry in mine:
            if entry["flags"] & FLAG_CONTENT:  # it is exported under its names
                continue
            if 0 < entry["expiry"] <= now:
                expired += 1
                continue
            try:
                row, payload = reads.block(entry, mixed)
            except DiskGoneError:
                raise
            except (DamagedError, BufferSizeError, DiskError) as error:
                damages.append(f"block {shown(int(entry['key_hi']), int(entry['key_lo']))}: {error}")
                continue
            made.begin(row)
            if payload.nbytes:
                made.write(payload)
        reads.close()
        made.commit()
    problems = [*told.problems, *found.problems, *found.torn]
    return DirectoryExport(origin, wanted, made.blocks, made.bytes, expired, damages, problems)


def _what_there_is(
    newest: npt.NDArray[np.void], known: dict[int, PublicNamespace], begun: dict[int, int]
) -> str:  # fmt: skip
    there = sorted({(int(row["namespace"]), int(row["epoch"])) for row in newest[["namespace", "epoch"]]})
    if not there:
        return "it holds none at all"
    texts = [
        f"{'default' if number == 0 else f'id:{number:016x}'} at epoch {epoch}"
        + (f" ({known[number]})" if number in known else "")
        + (f", which has passed: it is at {begun[number]}" if epoch < begun.get(number, 0) else "")
        for number, epoch in there[:8]
    ]
    return f"there are blocks of {', '.join(texts)}{' and others' if len(there) > 8 else ''} (--namespace, --epoch)"


class _Records:
    """The blocks that entries name. One segment is open at a time, and one more for contents."""

    def __init__(self, files: Files, store: bytes, found: Recovery, newest: npt.NDArray[np.void]) -> None:
        self._files, self._store = files, store
        self._places = {index.segment: index.place for index in found.indexes}
        contents = newest[(newest["flags"] & FLAG_CONTENT) != 0]
        self._contents = {(int(row["key_hi"]), int(row["key_lo"])): row for row in contents}
        self._open: dict[bool, SegmentReader] = {}

    def block(self, entry: npt.NDArray[np.void], mixed: int) -> tuple[Row, memoryview]:
        """Local. A block of an entry, verified; DamagedError if it is not whole."""
        record, payload = self._read(entry, content=False)
        data, where = record, (self._open[False].path, int(entry["unit"]) << 10)
        if record.flags & FLAG_ALIAS:
            content = self._contents.get((record.content_hi, record.content_lo))
            if content is None:
                raise DamagedError(*where, "its content is not there")
            data, payload = self._read(content, content=True)
        try:
            dtype_name(data.dtype)
            shape = decode_dims(data.ndim, data.dim0, data.dims)
        except ValueError as error:
            raise DamagedError(*where, str(error)) from None
        row = Row(
            (record.key_hi << 64 | record.key_lo) ^ mixed, data.dtype, shape, data.checksum, record.expiry,
            record.depth - 1 if record.depth else None, bool(record.marks & PROTECTED), record.sequence,
        )  # fmt: skip
        if row.nbytes != payload.nbytes:
            raise DamagedError(*where, f"{payload.nbytes} bytes for a block of shape {shape}, {dtype_name(data.dtype)}")
        return row, payload

    def _read(self, entry: npt.NDArray[np.void], *, content: bool) -> tuple[Record, memoryview]:
        segment, unit = int(entry["segment"]), int(entry["unit"])
        reader = self._open.get(content)
        if reader is None or reader.segment != segment:
            if reader is not None:
                reader.close()
                del self._open[content]
            try:
                reader = self._open[content] = open_segment(self._files, self._store, segment)
            except FileNotFoundError:
                raise DamagedError(f"segment {segment:x}", unit << 10, "it is gone: does a job write here?") from None
        payload = memoryview(bytearray(int(entry["length"])))
        key = int(entry["key_hi"]), int(entry["key_lo"])
        record = reader.read(unit, self._places[segment], payload, key=key, sequence=int(entry["sequence"]))
        return record, payload

    def close(self) -> None:
        """Local. Close what is open."""
        for reader in self._open.values():
            reader.close()
