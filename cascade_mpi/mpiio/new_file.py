"""A new file that MPI has created, as file systems stripe by hints only those.

Covers its mode, the hints it is created with, and the reason where that is refused. Does not cover what is written
to it (see `patterns`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from mpi4py import MPI

from cascade_mpi.mpiio.hints import info_of
from cascade_mpi.mpiio.refusals import as_os_error
from cascade_mpi.segments.files import PosixFiles


def open_new(files: PosixFiles, path: str, hints: Mapping[str, str]) -> MPI.File:
    """Local. Create a file, mode 0600, with MPI: a file system stripes by hints only what MPI has created.

    `FileThereError` if the name is taken. 1 File.Open, 1 open and close.
    """
    where = str(files.root / path)
    old = os.umask(0o077)  # of the process: MPI takes no mode. For a moment, and never wider than it was meant
    try:
        with info_of(hints) as info:
            mode = MPI.MODE_CREATE | MPI.MODE_EXCL | MPI.MODE_WRONLY
            file = MPI.File.Open(MPI.COMM_SELF, where, mode, info)
    except MPI.Exception as error:
        reason = as_os_error(error)
        if reason.errno == errno.EIO:  # ask the system, which knows why
            files.create(path).close()
            files.remove(path)
        raise files.explain(reason, "creating it", path) from error
    finally:
        os.umask(old)
    try:
        files.open(path, direct=False).close()  # by the directory's descriptor: no other one has taken its place
    except BaseException:
        file.Close()
        raise
    return file
