"""Recording a replay: every rank writes its calls of the store down, rank 0 puts them together as one trace file.

Covers the wrapper of the store, and the way of the ranks' files to rank 0, which needs no shared
file system. Does not cover the format (see `traces.recording`) nor opening the files (see `outputs`).
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec
import numpy as np

from cascade_mpi.traces.recording import Access, Header, access_line, header_line
from cascade_mpi.workload.outputs import replacing
from cascade_mpi.workload.server import BlockStore, Buffer, Ids

if TYPE_CHECKING:
    import numpy.typing as npt
    from mpi4py import MPI

    from cascade_mpi.reader import Location
    from cascade_mpi.writer import PutResult

PIECE_BYTES = 4 << 20  # of a message to rank 0: bounds its memory, whatever the ranks have recorded
_READ_BYTES = 64 << 10  # of one rank's stream at a time, while the streams are merged


class Recorder:
    """A store whose calls are written down; the same calls otherwise.

    An error of the file ends the recording, never the replay: `failed` is its text then.
    """

    def __init__(self, store: BlockStore, rank: int, file: BinaryIO) -> None:
        self.failed = ""
        self._store, self._rank, self._file, self._start = store, rank, file, 0.0

    def begin(self, start: float) -> None:
        """Local. The common start of all ranks, by `perf_counter`."""
        self._start = start

    def request(self, keys: Ids) -> None:
        """Local. A request for these blocks arrives; not recorded, the look-up that follows is."""
        self._store.request(keys)

    def contains_many(self, keys: Ids, exact: bool = True) -> npt.NDArray[np.bool_]:
        """Local. Which keys are there."""
        t = perf_counter()
        there = self._store.contains_many(keys, exact)
        missing = np.flatnonzero(~there)
        self._write(t, "lookup", keys, int(missing[0]) if missing.size else len(keys))
        return there

    def get_many(self, keys: Ids, outs: Sequence[Buffer]) -> list[Any]:
        """Local. Bytes read into each buffer, None for a miss."""
        t = perf_counter()
        sizes = self._store.get_many(keys, outs)
        self._write(t, "get", keys, tuple(sizes))
        return sizes

    def put_many(self, keys: Ids, data: Sequence[Buffer], *, exists: Literal["keep"]) -> list[PutResult]:
        """Local. What became of each block."""
        t = perf_counter()
        results = self._store.put_many(keys, data, exists=exists)
        became = tuple("stored" if each.stored else "kept" if each.kept else "refused" for each in results)
        self._write(t, "put", keys, became)
        return results

    def locate(self, key: int) -> Location | None:
        """Local. Where a block is; not recorded, it moves nothing."""
        return self._store.locate(key)

    def progress(self) -> None:
        """Local. Enter MPI once."""
        self._store.progress()

    def stats(self) -> dict[str, Any]:
        """Local. The counters of this rank."""
        return self._store.stats()

    def _write(self, t: float, op: str, keys: Ids, result: Any) -> None:
        if self.failed:
            return
        try:
            self._file.write(access_line(Access(t - self._start, self._rank, op, tuple(keys[:, 1].tolist()), result)))
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failed = f"rank {self._rank}: {error.strerror} (its record is in {tempfile.gettempdir()}: set TMPDIR)"

    def collect(self, comm: MPI.Intracomm, path: Path, header: Header) -> str:
        """Collective. Write the recording of all ranks on rank 0; what went wrong on all ranks, "" for nothing.

        1 allgather, then 1 Send of at most 4 MiB after the other from each rank to rank 0. Where something went
        wrong no file is written, and an older one stays: one with holes would not tell.
        """
        size = 0
        try:
            self._file.flush()
            size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            self._fail(error)
        reports = comm.allgather((self.failed, size))
        failed = next((text for text, _ in reports if text), "")
        if not failed:
            sizes = [each for _, each in reports]
            if comm.rank == 0:
                failed = self._receive(comm, sizes) or self._merge(path, header, sizes)
            else:
                self._send(comm, size)
        return str(comm.bcast(failed))

    def _send(self, comm: MPI.Intracomm, size: int) -> None:
        for first in range(0, size, PIECE_BYTES):
            comm.Send(np.frombuffer(os.pread(self._file.fileno(), min(PIECE_BYTES, size - first), first), np.uint8), 0)

    def _receive(self, comm: MPI.Intracomm, sizes: Sequence[int]) -> str:
        """Append what the others have to the file of rank 0, in the order of the ranks."""
        failed, buffer = "", np.empty(PIECE_BYTES, dtype=np.uint8)
        for rank in range(1, comm.size):
            for first in range(0, sizes[rank], PIECE_BYTES):
                piece = buffer[: min(PIECE_BYTES, sizes[rank] - first)]
                comm.Recv(piece, rank)
                try:
                    self._file.write(piece.data)
                except OSError as error:  # go on receiving: the others cannot know
                    self._fail(error)
                    failed = self.failed
        return failed

    def _merge(self, path: Path, header: Header, sizes: Sequence[int]) -> str:
        ends = np.cumsum(sizes).tolist()
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)
            return self.failed
        try:
            streams = [_lines(self._file.fileno(), end - size, end) for size, end in zip(sizes, ends, strict=True)]
            with replacing(path) as out:
                out.write(header_line(header))
                merged: Iterator[bytes] = heapq.merge(*streams, key=_time)
                out.writelines(merged)
        except OSError as error:
            return str(error.strerror)
        return ""


class _Timed(msgspec.Struct):
    """The part of a line that orders it."""

    t: float


_decode = msgspec.json.Decoder(_Timed).decode


def _time(line: bytes) -> float:
    return _decode(line).t


def _lines(file: int, first: int, end: int) -> Iterator[bytes]:
    """The lines of a part of a file, at most a piece of it in memory."""
    rest = b""
    while first < end:
        piece = os.pread(file, min(_READ_BYTES, end - first), first)
        first += len(piece)
        *lines, rest = (rest + piece).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            lines.append(rest)
            rest = b""
        yield from lines
