"""What an MPI's error of a file call means: the number that the system would have given.

Covers error classes and the texts behind them. Does not cover the error for people (`segments.faults` makes it).
"""

from __future__ import annotations

import errno
import os

from mpi4py import MPI

_CLASSES = {
    MPI.ERR_NO_SPACE: errno.ENOSPC,
    MPI.ERR_QUOTA: errno.EDQUOT,
    MPI.ERR_READ_ONLY: errno.EROFS,
    MPI.ERR_ACCESS: errno.EACCES,
    MPI.ERR_NO_SUCH_FILE: errno.ENOENT,
    MPI.ERR_FILE_EXISTS: errno.EEXIST,
    MPI.ERR_BAD_FILE: errno.EINVAL,
    MPI.ERR_NO_MEM: errno.ENOMEM,
}
# Most errors of a write are of the class "other I/O error", with the system's words at the end of the text.
_SAID = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST,
    errno.ESTALE, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.EINTR, errno.ENODEV, errno.ENOTCONN,
    errno.EIO,
)  # fmt: skip


def as_os_error(error: MPI.Exception) -> OSError:
    """Local. The error of the system behind an MPI's, EIO if the MPI does not say; its text is the MPI's last line."""
    text = error.Get_error_string()
    last = text.strip().splitlines()[-1].strip() if text.strip() else f"MPI error {error.Get_error_code()}"
    number = _CLASSES.get(error.Get_error_class())
    if number is None:
        number = next((each for each in _SAID if os.strerror(each) in text), errno.EIO)
    return OSError(number, os.strerror(number) if os.strerror(number) in last else f"MPI: {last}")
