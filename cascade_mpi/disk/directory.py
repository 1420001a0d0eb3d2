"""The directory of a disk tier as the ranks of one job have it open.

Covers who may write there, the identity of the store, which segments there are, and the numbers of new ones. Does not
cover what is in the segments (`restart`), nor files (`segments.files`).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import TypeVar, cast

from mpi4py import MPI

from cascade_mpi.config import Config
from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.mpiio.agreement import agreed
from cascade_mpi.segments import identity
from cascade_mpi.segments.files import PosixFiles
from cascade_mpi.segments.format import open_name, sealed_name
from cascade_mpi.segments.lock import DirectoryLock, Owner
from cascade_mpi.segments.recovery import numbers_in

T = TypeVar("T")


class Directory:
    """One rank's hold of the directory. Every rank has a part of its lock until `close`."""

    def __init__(self, comm: MPI.Intracomm, config: Config) -> None:
        """Collective. Open the directory; DiskError, StoreInUseError, StoreIdentityError on all ranks."""
        assert config.disk is not None
        self.comm, self.path = comm, os.path.abspath(config.disk)
        self.writable = config.disk_mode == "write"
        self.lock: DirectoryLock | None = None
        self._files: PosixFiles | None = None
        self.gone: set[int] = set()  # segments that this job has removed: a node may list them a while longer
        direct = config.disk_direct != "off"
        try:
            # Rank 0 first: the others find a directory that is made, and not another job's.
            first = together(comm, lambda: self._take(config, direct) if comm.rank == 0 else None)
            self.store, self.run = next(each for each in first if each is not None)
            if comm.rank:
                together(comm, lambda: self._join(config, direct))
            else:
                together(comm, lambda: None)
            if config.disk_direct == "on":
                together(comm, self._demand_direct)
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> PosixFiles:
        """Local. The files of the directory."""
        assert self._files is not None
        return self._files

    def numbers(self, base: int) -> Iterator[int]:
        """Local. Numbers for this rank's new segments, from `base` on, which is the same on all ranks."""
        return count(base + self.comm.rank, self.comm.size)

    def segments(self) -> dict[int, list[str]]:
        """Collective. The paths of all segments by number, the same on all ranks. 1 list of names on each, 1 bcast.

        Those that rank 0 lists, and those that another rank lists and can open: a node may know of a new file later
        than the one that made it. One list for all: of lists that differ each rank would take its share of another
        whole, and a segment that is read by nobody has tombstones whose absence nobody would notice.

        DiskError on all ranks: the folder cannot be listed.
        """
        mine = agreed(self.comm, lambda: numbers_in(self.files))
        listed: dict[int, list[str]] = self.comm.bcast(mine if self.comm.rank == 0 else None)
        others = {number: paths for number, paths in mine.items() if number not in listed | dict.fromkeys(self.gone)}
        more = agreed(self.comm, lambda: {number: paths for number, paths in others.items() if self._has(number)})
        for some in self.comm.allgather(more):
            listed.update(some)
        return {number: listed[number] for number in sorted(listed) if number not in self.gone}

    def files_there(self) -> int:
        """Collective. How many segments rank 0 lists now. 1 list of names, 1 bcast. DiskError on all ranks."""
        count = agreed(self.comm, lambda: len(numbers_in(self.files)) if self.comm.rank == 0 else 0)
        return int(self.comm.bcast(count))

    def _has(self, number: int) -> bool:
        for path in (open_name(number), sealed_name(number)):  # it may get its other name between the two
            with suppress(FileNotFoundError):
                self.files.open(path, direct=False).close()
                return True
        return False

    def close(self) -> None:
        """Local. Let go of the directory, when it writes no more: others are kept out until all ranks have."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None
        if self._files is not None:
            self._files.close()
            self._files = None

    def _take(self, config: Config, direct: bool) -> tuple[bytes, int]:
        self._open(direct, make=True)
        if not self.writable:
            found = identity.read(self.files)
            if found is None:
                raise ConfigError(f'disk {self.path}: there is no store in it, and disk_mode is "read"')
            return found.uuid, secrets.randbits(64)
        owner = Owner.here(int(time.time()), os.environ)
        self.lock = DirectoryLock.take(self.path, owner, locks=config.disk_locks)
        made = identity.ensure(self.files, secrets.token_bytes(identity.UUID_BYTES), time.time_ns())
        return made.uuid, secrets.randbits(64)

    def _join(self, config: Config, direct: bool) -> None:
        self._open(direct)
        if self.writable:  # rank 0 may end, and this one go on writing
            self.lock = DirectoryLock.join(self.path, locks=config.disk_locks)

    def _open(self, direct: bool, *, make: bool = False) -> None:
        self._files = PosixFiles(
            self.path, make=make and self.writable, read_only=not self.writable, direct_writes=direct
        )

    def _demand_direct(self) -> None:
        if not self.files.direct.possible:
            raise ConfigError(
                f'disk_direct is "on", {self.path} cannot be written past the page cache: {self.files.direct.reason}; '
                'use "auto"'
            )


def together(comm: MPI.Intracomm, call: Callable[[], T]) -> list[T]:
    """Collective. What `call` returns on each rank, by rank; the first rank's error on all of them if there is one."""
    problem: Exception | None = None
    result: T | None = None
    try:
        result = call()
    except Exception as error:  # whatever it is, the others are told
        problem = error
    sent = problem if problem is None or isinstance(problem, CascadeError) else CascadeError(f"{problem!r}")
    everyone: list[tuple[T | None, CascadeError | None]] = comm.allgather((result, sent))
    for rank, (_, other) in enumerate(everyone):
        if other is not None:
            if problem is not None:
                raise problem
            other.add_note(f"on rank {rank}")
            raise other
    return cast(list[T], [each for each, _ in everyone])
