"""Blocks that several sessions share: counted by the rank that uses them, and protected when they are enough.

Covers the count of distinct sessions a block and when to protect. Does not cover the protection itself (`protection`),
which any rank may do. Each rank counts what its own program says: sessions of other ranks are not added, so a block of
k sessions is protected at the latest when one rank has seen k of them. No MPI call, no memory of other ranks.

What is kept of a session is one of 64 bits, so that two sessions may count as one: never one as two.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any

from cascade_mpi.errors import StoreFullError
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.protection import Key, Protection

Session = str | bytes | int
MOST_KEYS = 1 << 16  # counted at a time; twice as many are remembered, about 200 bytes each
_BITS = 64


class SharedBlocks:
    """The count of one rank."""

    def __init__(
        self, protection: Protection, least: int, protecting: AbstractContextManager[Any] | None = None
    ) -> None:
        """`least` distinct sessions make a block a protected one, 0: nothing is counted; `protecting` is held then."""
        self._protection, self.least = protection, least
        self._protecting = nullcontext() if protecting is None else protecting
        self._seen: dict[Key, int] = {}  # by key: a bit for each session; -1: it has been protected, or cannot be
        self._before: dict[Key, int] = {}
        self._lock = threading.Lock()
        self.protected = self.over_quota = 0

    def used(self, keys: Iterable[Key], session: Session) -> None:
        """Local. A session has read or put these blocks. For each that now has enough what `protect` costs.

        One that does not fit the quota of protected bytes stays as it is, and is counted in `over_quota`.
        """
        if not self.least:
            return
        bit = 1 << bit_of(session)
        for key in keys:
            if self._count(key, bit):
                self._protect(key)

    def stored(self, keys: Iterable[Key], session: Session) -> None:
        """Local. The same of blocks that it has just put: whatever was said of those that they replace is over."""
        if self.least:
            keys = list(keys)
            with self._lock:
                for key in keys:
                    self._seen.pop(key, None)
                    self._before.pop(key, None)
            self.used(keys, session)

    def _count(self, key: Key, bit: int) -> bool:
        """Note a session of a block: whether it has enough now."""
        with self._lock:
            had = self._seen.get(key)
            if had is None:
                if len(self._seen) >= MOST_KEYS:  # those that were not used for longest go, all at once
                    self._before, self._seen = self._seen, {}
                had = self._before.pop(key, 0)
            self._seen[key] = has = had | bit
            return had >= 0 and has.bit_count() >= self.least

    @uninterrupted
    def _protect(self, key: Key) -> None:
        try:
            with self._protecting:
                [there] = self._protection.protect([key])
        except StoreFullError:
            self.over_quota += 1
        else:
            if not there:
                return  # it has left meanwhile: who puts it again comes here again
            self.protected += 1
        with self._lock:
            self._seen[key] = -1


def bit_of(session: Session) -> int:
    """Local. The bit, 0 to 63, of a session; TypeError if it is no str, bytes or integer."""
    if isinstance(session, bool) or not isinstance(session, (str, bytes, int)):
        raise TypeError(f"session is {session!r}: it must be a str, bytes or an integer, or None")
    if isinstance(session, int):
        session = session.to_bytes(max(1, (session.bit_length() + 8) // 8), "little", signed=True)
    data = session.encode() if isinstance(session, str) else session
    return blake2b(data, digest_size=1).digest()[0] % _BITS
