"""The calls of a store that export a namespace to an HDF5 file and import one.

Covers what all ranks must agree on before, each rank's share, and what is counted. Does not cover the file (see
`hdf5`). Both calls are collective, and what goes wrong on one rank is raised on all.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from mpi4py import MPI

from cascade_mpi.errors import CascadeError, ConfigError, Hdf5FileError
from cascade_mpi.hdf5 import library, parallel
from cascade_mpi.hdf5.gathering import gather
from cascade_mpi.hdf5.new_file import NewFile
from cascade_mpi.hdf5.origin import Origin, mixed_in, origin_of
from cascade_mpi.hdf5.reading import Block, ExportFile
from cascade_mpi.hdf5.rows import Row, path_of
from cascade_mpi.hdf5.together import raise_together
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.kernels.checksum import checksum_bytes
from cascade_mpi.keys import shown
from cascade_mpi.layout import DESCRIPTOR, FLAG_CHECKSUM, FLAG_CONTENT, MAX_EXPIRY
from cascade_mpi.listing import BlockInfo
from cascade_mpi.namespaces import AnyNamespace, as_namespace
from cascade_mpi.spaces import Space
from cascade_mpi.store_namespaces import Namespaces
from cascade_mpi.values import dtype_code, file_dtype, source

_log = logging.getLogger("cascade")
_MASK64 = (1 << 64) - 1
_NAMED = 8  # damaged blocks that an error names

How = Literal["gathered", "parallel"]
Existing = Literal["replace", "keep"]


class Exported(NamedTuple):
    """What an export has written, of all ranks together.

    `how`: "parallel" when all ranks wrote the file, "gathered" when rank 0 did. `gone`: blocks that were listed, but
    deleted, evicted or expired before they were read. `damaged`: blocks whose bytes in memory were not what was put;
    they are left out.
    """

    path: str
    blocks: int
    bytes: int
    how: How
    gone: int = 0
    damaged: int = 0


class Imported(NamedTuple):
    """What has become of the blocks of a file, of all ranks together.

    `blocks` were stored, with `bytes` in all; `kept` were there already; `refused` found no room, and `reason` says
    why the first was; `expired` had no time left. `evicted`: blocks that had to go meanwhile, for these or other puts.
    """

    blocks: int = 0
    bytes: int = 0
    kept: int = 0
    refused: int = 0
    expired: int = 0
    evicted: int = 0
    reason: str = ""


class Exports(Namespaces):
    """`export_hdf5` and `import_hdf5`."""

    # ----------------------------------------------------------------------------------------------------------- export

    @uninterrupted
    def export_hdf5(
        self, path: str | os.PathLike[str], namespace: AnyNamespace | None = None, *, overwrite: bool = False
    ) -> Exported:
        """Collective. Write the blocks of a namespace, at its present epoch, into a new HDF5 file: what was written.

        Any program that reads HDF5 can read it; the page "HDF5 files" says what is in it. What was put before the call
        on any rank is there, what is put, deleted or replaced meanwhile may be. The file has its name when it is whole
        and on the disk. All ranks write it where h5py has MPI (the path must be on a file system that all share), else
        rank 0 does: the others send it their blocks, at most 16 MiB at a time. Reads each block once, which counts as
        a use. No key of a block's text and no salt is written. Puts that `publish()` has still to publish are not.

        Raises
        ------
        ConfigError
            The ranks were given different paths or namespaces.
        NotConfiguredError
            h5py is not installed (on rank 0).
        FileThereError
            There is a file of that name, and `overwrite` is False.
        DiskError
            The file cannot be made or written; no file of that name was made or changed.
        CascadeError
            A new epoch of the namespace has begun meanwhile; no file was made.
        """
        self._check_open()
        wanted = self._namespace if namespace is None else namespace
        self._agree_on(path, wanted, bool(overwrite))
        comm, h5 = self._comm, None
        error: Exception | None = None
        space = self._space(wanted)
        try:
            h5 = library.load()
        except CascadeError as missing:
            error = missing if comm.rank == 0 else None
        if comm.bcast(space.epoch) != space.epoch:
            error = error or _epoch_error(space, "export")
        raise_together(comm, error)
        all_parallel = comm.allreduce(h5 is not None and library.is_parallel(h5), MPI.LAND)
        how: How = "parallel" if all_parallel and comm.size > 1 else "gathered"
        origin = comm.bcast(origin_of(space.namespace, space.epoch, created=time.time_ns(), file=uuid.uuid4().hex))
        reads = _Reads(self, space)
        if how == "parallel":
            blocks, nbytes = parallel.write(
                h5, comm, path, origin, list(reads.rows()), reads.again, overwrite=overwrite,
                passed=lambda: self._new_epoch(space, "export"),
            )  # fmt: skip
        else:
            blocks, nbytes = self._gather(path, origin, reads, space, overwrite)
        gone, damaged = (int(each) for each in comm.allreduce(np.array([reads.gone, reads.damaged])))
        if comm.rank == 0:
            _log.info("exported %d blocks, %d bytes to %s (%s, %s)", blocks, nbytes, path, how, origin)
        return Exported(os.fsdecode(path), blocks, nbytes, how, gone, damaged)

    def _gather(
        self, path: str | os.PathLike[str], origin: Origin, reads: _Reads, space: Space, overwrite: bool
    ) -> tuple[int, int]:  # fmt: skip
        comm = self._comm
        made: NewFile | None = None
        error: Exception | None = None
        try:
            if comm.rank == 0:
                made = NewFile(path, origin, overwrite=overwrite)
        except Exception as raised:  # the others wait
            error = raised
        raise_together(comm, error)
        try:
            gather(comm, reads.blocks(), made)
            raise_together(comm, self._new_epoch(space, "export"))
            try:
                if made is not None:
                    made.commit()
            except Exception as raised:
                error = raised
            raise_together(comm, error)
        finally:
            if made is not None:
                made.discard()  # nothing, if it has its name
        found: tuple[int, int] = comm.bcast((made.blocks, made.bytes) if made is not None else (0, 0))
        return found

    def _new_epoch(self, space: Space, call: str) -> Exception | None:
        """Local. The error that the namespace is at another epoch by now, None: it is not."""
        return None if self._space(space.namespace).epoch == space.epoch else _epoch_error(space, call)

    def _agree_on(self, path: str | os.PathLike[str], namespace: AnyNamespace, *others: Any) -> None:
        """Collective. ConfigError on all ranks if one was given something else, or nothing that can be."""
        problem, given = "", None
        try:
            given = (os.fsdecode(path), as_namespace(namespace).id, *others)
        except (TypeError, ValueError) as error:
            problem = str(error)
        everyone = self._comm.allgather((problem, given))
        for rank, (text, theirs) in enumerate(everyone):
            if text:
                raise ConfigError(f"rank {rank}: {text}")
            if theirs != everyone[0][1]:
                raise ConfigError(f"rank {rank} was given another path, namespace or option than rank 0: {theirs}")

    # ----------------------------------------------------------------------------------------------------------- import

    @uninterrupted
    def import_hdf5(
        self, path: str | os.PathLike[str], namespace: AnyNamespace | None = None, *, exists: Existing = "replace",
        rekey: bool = False,
    ) -> Imported:  # fmt: skip
        """Collective. Put the blocks of a file of `export_hdf5` or `cascade export`: what has become of them.

        Each rank puts an equal share of them, under the same keys, with the same type and shape, protection, depth and
        what is left of their time. `exists="keep"` leaves blocks alone that are there. The file must be readable by all
        ranks. When the call has returned all of them are published. The namespace must be that of the file (the same
        name, model, ..., and salt) and at the same epoch, for else a block that was put under a str or bytes would not
        be found under it; `rekey=True` imports them all the same, under their integers.

        Raises
        ------
        ConfigError
            The ranks were given different arguments, see different files, or the namespace is not that of the file.
        NotConfiguredError
            A rank has no h5py.
        DiskError
            A rank cannot read the file.
        Hdf5FileError
            The file is none of Cascade's, or is damaged: nothing was imported. Or blocks in it are; these were left
            out, the others were imported, and the text names some and has the numbers.
        """
        self._check_open()
        wanted = self._namespace if namespace is None else namespace
        self._agree_on(path, wanted, exists, bool(rekey))
        if exists not in get_args(Existing):
            raise ConfigError(f'exists is {exists!r}: it must be "replace" or "keep"')
        comm, error = self._comm, None
        file: ExportFile | None = None
        try:
            file = ExportFile(path)
        except Exception as raised:
            error = raised
        raise_together(comm, error)
        assert file is not None
        with file:
            files = comm.allgather(file.origin.file)
            if len(set(files)) > 1:
                raise ConfigError(f"{path} is not the same file on all ranks: put it on a file system that they share")
            space, mixed = self._space(wanted), 0
            shares: list[list[int]] | None = None
            try:
                space = self._writable(wanted)
                mixed = mixed_in(file.origin, space.namespace, space.epoch, rekey=rekey, remedy="rekey=True")
                if comm.rank == 0:
                    keys = list(file.keys())
                    shares = [keys[rank :: comm.size] for rank in range(comm.size)]
            except Exception as raised:
                error = raised
            raise_together(comm, error)
            share: list[int] = comm.scatter(shares)
            counted, damages = _Counts(), list[str]()
            evicted = self._pool.total("evicted")
            try:
                for key in share:
                    self._import_one(file, key, key ^ mixed, space, exists, counted, damages)
            except Exception as raised:
                error = raised
            counted.evicted = self._pool.total("evicted") - evicted
        raise_together(comm, error)
        raise_together(comm, self._new_epoch(space, "import"))
        everyone = comm.allgather((counted.numbers(), counted.reason, damages))
        reason = next((reason for _, reason, _ in everyone if reason), "")
        total = Imported(*np.sum([numbers for numbers, _, _ in everyone], axis=0).tolist())._replace(reason=reason)
        bad = [text for _, _, texts in everyone for text in texts]
        if bad:
            more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            raise Hdf5FileError(
                f"{len(bad)} blocks of {path} are damaged and were left out, {total.blocks} were imported: "
                + "; ".join(bad[:_NAMED]) + more
            )  # fmt: skip
        if comm.rank == 0:
            _log.info("imported %s from %s (%s)", total, path, file.origin)
        return total

    def _import_one(
        self, file: ExportFile, key: int, words: int, space: Space, exists: Existing, counted: _Counts,
        damages: list[str],
    ) -> None:  # fmt: skip
        try:
            row, data = file.read(key, path_of(key), self._fabric.pages * self._fabric.page_bytes)
        except Hdf5FileError as error:
            damages.append(str(error))
            return
        expiry = 0
        if row.expiry:
            expiry = min(row.expiry - int(self._fabric.context[c.EPOCH]), MAX_EXPIRY)
            if expiry <= max(self._fabric.now(), 0):
                counted.expired += 1
                return
        hi, lo = words >> 64, words & _MASK64
        self._let_pass()
        if self._drafts:
            self._deferred.publish_one(hi, lo)  # a put that waits was before the import
        put = self._dedup.put if space.by_content else self._writer.put
        value = source(data)._replace(dtype=row.dtype)
        depth = 0 if row.depth is None else row.depth + 1
        result = put(hi, lo, space, value, prefix=row.protected, exists=exists, expiry=expiry, depth=depth)
        self._poll()
        if result.refused:
            counted.refused += 1
            counted.reason = counted.reason or result.reason
        elif result.kept:
            counted.kept += 1
        else:
            counted.blocks += 1
            counted.bytes += row.nbytes


def _epoch_error(space: Space, call: str) -> CascadeError:
    return CascadeError(f"a new epoch of namespace {space.namespace} has begun during the {call}: make it again")


class _Counts:
    def __init__(self) -> None:
        self.blocks = self.bytes = self.kept = self.refused = self.expired = self.evicted = 0
        self.reason = ""

    def numbers(self) -> list[int]:
        """In the order of `Imported`."""
        return [self.blocks, self.bytes, self.kept, self.refused, self.expired, self.evicted]


class _Reads:
    """This rank's blocks of a namespace at one epoch, as they are exported."""

    def __init__(self, store: Exports, space: Space) -> None:
        self._store, self._space = store, space
        self._mixed = int.from_bytes(space.digest, "big")
        self._opened = int(store._fabric.context[c.EPOCH])
        self.gone = self.damaged = 0

    def blocks(self) -> Iterator[Block]:
        """Local. Each block, read."""
        for row in self.rows():
            block = self._read(row)
            if block is not None:
                yield block

    def rows(self) -> Iterator[Row]:
        """Local. Each block as it is listed, without a checksum."""
        for info in self._store.scan(self._space.namespace):
            yield self._listed(info)

    def again(self, row: Row) -> Block | None:
        """Local. A block that was listed before; None if it has gone, or has another type or shape by now."""
        block = self._read(row)
        if block is not None and (block.row.dtype, block.row.shape) != (row.dtype, row.shape):
            self.gone += 1
            return None
        return block

    def _listed(self, info: BlockInfo) -> Row:
        code = dtype_code(info.dtype)
        assert code is not None
        expiry = 0 if info.ttl is None else self._opened + self._store._fabric.now() + round(info.ttl)
        sequence = time.time_ns() - round(info.age * 1e9)  # within microseconds
        return Row(info.key, code, info.shape, 0, expiry, info.depth, info.protected, max(sequence, 0))

    def _read(self, listed: Row) -> Block | None:
        """A block with what its descriptor says, which belongs to the bytes; of a name by content what was listed."""
        words = listed.key ^ self._mixed
        hi, lo = words >> 64, words & _MASK64
        for _ in range(2):  # a checksum that is entered later may have been read half: a second read settles it
            data = self._store._reader.new(hi, lo)
            if data is None:
                self.gone += 1
                return None
            record = self._store._fabric.scratch.descriptor.view(DESCRIPTOR)[0]
            code, flags = int(record["dtype"]), int(record["flags"])
            checksum = int(checksum_bytes(data.ctypes.data if data.nbytes else 0, data.nbytes))
            if not flags & FLAG_CHECKSUM or checksum == int(record["checksum"]):
                break
        else:
            self.damaged += 1
            _log.error("block %s is not exported: its bytes do not have its checksum", shown(hi, lo))
            return None
        row = listed._replace(dtype=code, shape=data.shape, checksum=checksum)
        if not flags & FLAG_CONTENT:
            expiry = int(record["expiry"])
            row = row._replace(
                expiry=self._opened + expiry if expiry else 0, sequence=int(record["sequence"])
            )  # fmt: skip
        return Block(row, data.view(file_dtype(code)))
