"""What a file says of one block: its key, type, shape, and what a put would have to be told.

Covers the record and the paths of datasets. Does not cover attributes (see `writing`, `reading`).
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from cascade_mpi.values import dtype_name, file_dtype

FORMAT, VERSION = "cascade-hdf5", 1
BLOCKS = "blocks"  # the group of all
GROUP_DIGITS = 2
_NAME = re.compile(r"[0-9a-f]{32}")


class Row(NamedTuple):
    """One block. `key` as the file's origin says; `expiry` in seconds of Unix time, 0: never; `depth` from 0, or None.

    `checksum` is that of the payload (`kernels.checksum`); `sequence` the time of its put, about ns of Unix time: of
    two blocks with one key the higher one is newer.
    """

    key: int
    dtype: int  # a code of `values`
    shape: tuple[int, ...]
    checksum: int = 0
    expiry: int = 0
    depth: int | None = None
    protected: bool = False
    sequence: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return math.prod(self.shape) * file_dtype(self.dtype).itemsize

    def __str__(self) -> str:
        """For people: what it is, without its bytes."""
        return f"{name_of(self.key)} ({dtype_name(self.dtype)}{list(self.shape)})"


def name_of(key: int) -> str:
    """Local. The name of a block's dataset in its group: the key in 32 hexadecimal digits."""
    return f"{key:032x}"


def group_of(name: str) -> str:
    """Local. The group of a dataset: the last digits of its name, as small integers have no others."""
    return name[-GROUP_DIGITS:]


def path_of(key: int) -> str:
    """Local. The path of a block's dataset in the file."""
    name = name_of(key)
    return f"{BLOCKS}/{group_of(name)}/{name}"


def key_of(group: str, name: str) -> int | None:
    """Local. The key that a dataset's name stands for; None: no block of ours has that name in that group."""
    return int(name, 16) if _NAME.fullmatch(name) and group_of(name) == group else None


def is_type_of(dtype: np.dtype[np.generic], code: int) -> bool:
    """Local. Whether a dataset's elements are what values of this code are stored as, in whichever byte order."""
    return dtype.newbyteorder("=") == file_dtype(code)
