"""Puts whose calls have not returned yet, and which of their blocks were dropped from memory meanwhile.

Covers what a call with durability "writethrough" must not acknowledge. Does not cover why a block was dropped (`tier`).

A call that puts more than memory holds evicts what it has put itself. If the disk refuses such a block it is nowhere
when the call's sync succeeds; so each call is told of its own, by thread: another one may have dropped them.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import get_ident

Key = tuple[int, int]


class UnderWay:
    """By thread, the keys that its call has put and that are not durable yet. The caller holds the pool's lock."""

    def __init__(self) -> None:
        self._put: dict[int, set[Key]] = {}
        self._dropped: dict[int, dict[Key, None]] = {}

    def __contains__(self, key: Key) -> bool:
        """Local. Whether a call that is under way has put this key."""
        return any(key in keys for keys in self._put.values())

    def put(self, key: Key) -> None:
        """Local. This thread's call has stored a block: what it has lost of that key before does not count."""
        self._put.setdefault(get_ident(), set()).add(key)
        for keys in self._dropped.values():
            keys.pop(key, None)

    def dropped(self, key: Key) -> None:
        """Local. A block that was not written has left memory for good: every call that has put it is to say so."""
        for thread in self._threads(key):
            self._put[thread].discard(key)
            self._dropped.setdefault(thread, {})[key] = None

    def void(self, key: Key) -> None:
        """Local. The block of a key has expired, or its epoch has passed: nothing is owed for it."""
        for thread in list(self._threads(key)):
            self._put[thread].discard(key)

    def ended(self) -> list[Key]:
        """Local. This thread's call returns: the keys that it must not acknowledge, in the order of their loss."""
        thread = get_ident()
        self._put.pop(thread, None)
        return [*self._dropped.pop(thread, {})]

    @property
    def here(self) -> bool:
        """Whether this thread's call has put something, though another thread may have made that durable by now."""
        thread = get_ident()
        return thread in self._put or thread in self._dropped

    def _threads(self, key: Key) -> Iterator[int]:
        return (thread for thread, keys in self._put.items() if key in keys)
