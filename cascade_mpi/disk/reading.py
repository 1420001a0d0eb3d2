"""Reading what an index word says is on disk: the record, then the bucket again.

Covers one block or a part of it, and what a read that failed means. Does not cover the kernels' part of a get
(`onesided`), nor what is brought into memory (`promotion`).

A record that is gone, or not whole, is damage only if the index still has the same word with the same location
(rule 5 of `docs/disk.md`): else the block was replaced, or its record moved, and the read begins again. Nor is it
damage if a rank of this job still writes the segment and this node does not see that much of it: a miss, for now.
"""

from __future__ import annotations

import ctypes
import logging
import struct

import numpy as np
import numpy.typing as npt

from cascade_mpi.disk.ahead import Plan
from cascade_mpi.disk.cells import ATTEMPT_S, DiskCells
from cascade_mpi.disk.look import descriptor_of
from cascade_mpi.disk.open_segments import NotVisibleError, OpenSegments
from cascade_mpi.disk.promotion import Promotion
from cascade_mpi.errors import DamagedError, DiskError
from cascade_mpi.fabric import Fabric
from cascade_mpi.kernels import context as c
from cascade_mpi.keys import shown
from cascade_mpi.layout import DESCRIPTOR, GENERATION_SHIFT, MAGIC, MAX_GENERATION, is_disk, unpack_location
from cascade_mpi.onesided import TICKS
from cascade_mpi.reader import Found, Reader

_log = logging.getLogger("cascade.disk")
# Of a `DESCRIPTOR`: length, key, location and sequence. Each field of the array takes as long as all of them so, and
# with every block that passes through the cache the interpreter's own memory has to come back into it.
_FIELDS = struct.Struct("<8xQQQQ32xQ")


class DiskReads:
    """What `Reader` asks of the disk tier (`reader.OnDisk`)."""

    def __init__(self, fabric: Fabric, reader: Reader, segments: OpenSegments, promotion: Promotion) -> None:
        self._fabric, self._reader, self._segments, self._promotion = fabric, reader, segments, promotion
        self.reads = self.bytes_read = self.damaged = self.not_visible = self.again = 0

    def read(self, address: int, room: int, offset: int) -> int:
        """Local. See `OnDisk.read`. 1 or 2 reads of the file; 1 Get and 1 Flush at the home afterwards."""
        fabric, s = self._fabric, self._fabric.scratch
        word, began = s.words[c.WORD], s.words[c.BEGAN]
        described = s.descriptor.copy()
        length = int(_FIELDS.unpack_from(described.data)[0])
        if offset or room != length:
            whole = np.empty(length, np.uint8)  # the checksum is that of all of it
            outcome = self._whole(word, described, whole.ctypes.data)
            if outcome >= 0 and room:
                ctypes.memmove(address, whole.ctypes.data + offset, room)
        else:
            outcome = self._whole(word, described, address)
        if outcome >= 0 and fabric.ticks() - began & 0xFFFFFFFF > ATTEMPT_S * TICKS:
            outcome = int(c.CHANGED)  # the cell may have passed through all its generations
        if outcome < 0:
            self.again += outcome == c.CHANGED
            return outcome
        self.reads += 1
        self.bytes_read += room
        if room == length:
            self._promotion.offer(word, length, described, address)
        return room

    def plan(self, described: npt.NDArray[np.uint8]) -> Plan:
        """Local. See `OnDisk.plan`."""
        return Plan(self._segments, described.view(DESCRIPTOR)[:, 0])

    def promote(self, found: Found) -> bool:
        """Local. See `OnDisk.promote`."""
        s = self._fabric.scratch
        described = s.descriptor.copy()
        whole = np.empty(found.nbytes, np.uint8)
        outcome = self._whole(found.word, described, whole.ctypes.data)
        if outcome >= 0:
            self._promotion.bring(found.word, described.view(DESCRIPTOR)[0], whole.ctypes.data, insist=True)
        return bool(outcome != c.MISS)

    def fetch(self, found: Found) -> bool:
        """Local. As `promote`: whether it came. The word and the descriptor are those of this thread's last look."""
        before = self._promotion.promoted
        self.promote(found)
        return self._promotion.promoted > before

    def promote_key(self, key: tuple[int, int]) -> bool:
        """Local. Bring a key's block into memory; False: none, or its bytes cannot be read. StoreFullError: no room."""
        while True:
            found = self._reader.find(*key)
            if found is None or not is_disk(found.word):
                return found is not None
            if not self.promote(found):
                return False

    def warm(self, cells: DiskCells, cell: int, room: npt.NDArray[np.uint8]) -> bool:
        """Local. Bring the block of an own disk cell into free memory by way of `room`: whether it came."""
        word, described = int(cells.words[cell]), cells.records[cell].copy()
        raw = np.frombuffer(described.tobytes(), np.uint8)
        if not word or int(described["length"]) > room.nbytes or self._whole(word, raw, room.ctypes.data) < 0:
            return False
        return self._promotion.bring(word, described, room.ctypes.data, insist=False, evict=False)

    def _whole(self, word: int, described: npt.NDArray[np.uint8], address: int) -> int:
        """The payload to an address, and the second look: its length, MISS or CHANGED."""
        fabric, s = self._fabric, self._fabric.scratch
        length, hi, lo, location, sequence = _FIELDS.unpack_from(described.data)
        key = hi, lo
        problem: Exception | None = None
        try:
            self._segments.read(unpack_location(location), address, length, key, sequence)
        except (DamagedError, DiskError, ValueError) as error:
            problem = error
        slot = fabric.slot_of(fabric.ctx, s.address, *key, word)
        if slot == c.MPI_FAILED:
            fabric.raise_mpi_error(s)
        if slot < 0:
            return int(c.CHANGED)
        if problem is None:
            return int(length)
        now = descriptor_of(fabric, word)
        generation = word >> GENERATION_SHIFT & MAX_GENERATION
        if now["magic"] != MAGIC or int(now["generation"]) != generation or int(now["content_hi"]) != location:
            return int(c.CHANGED)
        s.words[c.COUNTERS + c.C_MISSES] += 1
        if isinstance(problem, NotVisibleError):
            if not self.not_visible:  # one is enough: there may be as many as reads
                _log.warning(
                    "block %s is a miss until its segment is sealed, and so are others that a rank of another node has "
                    "just written: %s. `cascade doctor` under the launcher says whether this file system is coherent",
                    shown(*key), problem,
                )  # fmt: skip
            self.not_visible += 1
        else:
            self.damaged += 1
            _log.error("block %s is lost: %s", shown(*key), problem)
        return int(c.MISS)
