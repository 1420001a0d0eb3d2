"""Short time slices for jobs with more ranks than cores.

Covers asking Linux for them. Does not cover which jobs want them: the tests and benchmarks that start several ranks.

A rank that waits looks at its memory again and again. With more ranks than cores the one that it waits for may be off
its core for a whole slice, some milliseconds, and for another one with each message that it has to answer. Since 6.12
Linux lets a thread ask for slices of its own (the runtime in `sched_setattr(2)`, 0.1 ms at the least); its children and
threads inherit them.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

SLICE_NS = 100_000
_SET_AND_GET = {"x86_64": (314, 315), "aarch64": (274, 275)}  # the numbers of the system calls
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")  # struct sched_attr: size, policy, flags, nice, priority, runtime, ...
_RUNTIME = 5
_OTHER = 0  # the policy of everything that is not a real-time or batch process


def shorten() -> bool:
    """Local. Give this thread, and all that it starts from now on, slices of `SLICE_NS`; False: they stay as they are.

    So it is on an older kernel, another system or architecture, and under another policy. Nothing else is changed.
    """
    numbers = _SET_AND_GET.get(platform.machine())
    if not sys.platform.startswith("linux") or numbers is None:
        return False
    setattr_, getattr_ = numbers
    libc = ctypes.CDLL(None, use_errno=True)
    found = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if libc.syscall(getattr_, 0, found, _ATTRIBUTES.size, 0) != 0:
        return False
    values = list(_ATTRIBUTES.unpack(found.raw))
    if values[1] != _OTHER:
        return False
    values[_RUNTIME] = SLICE_NS
    if libc.syscall(setattr_, 0, _ATTRIBUTES.pack(*values), 0) != 0:
        return False
    if libc.syscall(getattr_, 0, found, _ATTRIBUTES.size, 0) != 0:
        return False
    return bool(_ATTRIBUTES.unpack(found.raw)[_RUNTIME] == SLICE_NS)
