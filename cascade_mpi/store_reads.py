"""The calls of a store that read: one block, a part of it, many, and what is known of them.

Covers namespaces and epochs around a read. Does not cover the steps of a read (`reader`, `batch`, `onesided`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_mpi.errors import (
    BufferSizeError,
    NotOnNodeError,
)
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.keys import Key, check_keys, key_array, key_words
from cascade_mpi.namespaces import AnyNamespace
from cascade_mpi.onesided import WHOLE
from cascade_mpi.pins import Pin
from cascade_mpi.reader import Location, range_error, wrong_size
from cascade_mpi.sessions import Session, bit_of
from cascade_mpi.store_life import SPLIT_BYTES, OpenStore
from cascade_mpi.values import target
from cascade_mpi.view import View

_MASK64 = (1 << 64) - 1


class Reads(OpenStore):
    """`get` and its like."""

    def get(self, key: Key, out: Any = None, *, namespace: AnyNamespace | None = None) -> Any:
        """Local. Read a block: a new array of its dtype and shape, or with `out` its number of bytes; None for a miss.

        `out` is a writable C-contiguous buffer of exactly the block's size. After an error, or a miss on
        another node, its contents are undefined. On the same node no MPI call; else 4 Gets + 3 Flushes,
        where the node has a copy 1 Get + 1 Flush, or none (see `replicate` and `Namespace.content_keys`).

        Raises
        ------
        BufferSizeError
            `out` has another size than the block; the text has both.
        """
        if out is None:
            return self._read(key, namespace, self._reader.new)
        address, room = target(out)
        if room >= SPLIT_BYTES and self._threaded:
            return self._read(key, namespace, lambda hi, lo: self._reader.into(hi, lo, address, room))
        # The steps of `_read`, without its calls: half of the time of a small block would be theirs.
        space = None
        if namespace is not None or self._mixed[0]:
            space = self._space(namespace)
            hi, lo = key_words(key, space.digest)
        elif type(key) is int:
            hi, lo = key >> 64, key & _MASK64
        else:
            hi, lo = key_words(key)
        if self._drafts:
            self._deferred.publish_one(hi, lo)
        try:
            outcome: int = self._get(self._ctx, self._scratch.address, hi, lo, address, room, 0, WHOLE)
        except OverflowError:
            key_words(key)  # says what a key may be
            raise
        if outcome == c.MISS:
            return None
        if outcome >= 0 and not (self._mixed[0] if space is None else self._registry.has_passed(space)):
            return outcome
        if outcome == c.DUE:
            self._copies.keep_read(hi, lo, address)
            if not (self._mixed[0] if space is None else self._registry.has_passed(space)):
                return room
        return self._read(key, namespace, lambda hi, lo: self._whole(hi, lo, address, room))

    def _whole(self, hi: int, lo: int, address: int, room: int) -> int | None:
        outcome: int = self._get(self._ctx, self._scratch.address, hi, lo, address, room, 0, WHOLE)
        return outcome if outcome >= 0 else self._reader.settle(outcome, hi, lo, address, room)

    def _read(self, key: Key, namespace: AnyNamespace | None, read: Callable[[int, int], Any]) -> Any:
        """What `read` finds of a key in its namespace's present epoch; nothing of one that passed meanwhile."""
        while True:
            space = self._space(namespace)
            hi, lo = key_words(key, space.digest)
            if self._drafts:
                self._deferred.publish_one(hi, lo)
            try:
                found = read(hi, lo)
            except BufferSizeError:
                if self._registry.has_passed(space):
                    continue  # it was the size of a block that is not to be seen any more
                raise
            if found is None or not self._registry.has_passed(space):
                return found

    def get_range(
        self, key: Key, offset: int, nbytes: int, out: Any = None, *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.uint8] | int | None:
        """Local. Read `nbytes` bytes of a block from `offset`: a uint8 array, or with `out` their number; None: a miss.

        Raises
        ------
        BufferSizeError
            The block ends before, or `out` does not have `nbytes` bytes.
        """
        if offset < 0 or nbytes < 0:
            raise ValueError(f"offset {offset} and nbytes {nbytes} must not be negative")
        if offset + nbytes > self._fabric.pages * self._fabric.page_bytes:  # no block in memory, nor may a buffer be
            found = self.locate(key, namespace=namespace)
            if found is None:
                return None
            if offset + nbytes > found.nbytes:
                raise range_error(offset, nbytes, found.nbytes)
        made = np.empty(nbytes, np.uint8) if out is None else out
        address, room = target(made)
        if room != nbytes:
            raise wrong_size(room, nbytes)
        got: int | None = self._read(key, namespace, lambda hi, lo: self._reader.part(hi, lo, address, nbytes, offset))
        return made if out is None and got is not None else got

    def contains(self, key: Key, exact: bool = True, *, namespace: AnyNamespace | None = None) -> bool:
        """Local. Is the key stored? With `exact=False` by fingerprint only: wrong once in about 1,000 absent keys."""
        return bool(self.contains_many([key], exact, namespace=namespace)[0])

    def locate(self, key: Key, *, namespace: AnyNamespace | None = None) -> Location | None:
        """Local. Where a block is and what it is, or None. 3 Gets + 3 Flushes on another node."""
        found: Location | None = self._read(key, namespace, self._reader.locate)
        return found

    @uninterrupted
    def view(self, key: Key, *, namespace: AnyNamespace | None = None) -> View | None:
        """Local. A block of this node as a pinned read-only array without a copy, or None for a miss.

        Raises
        ------
        NotOnNodeError
            The block is in another node's memory: use `get`.
        NoPinSlotError
            This rank holds 8 pins at the block's rank already.
        """
        found: View | None = self._read(key, namespace, self._view)
        return found

    def _view(self, hi: int, lo: int) -> View | None:
        while True:
            held = self._reader.pin(hi, lo)
            if held is None:
                return None
            found, pin = held
            base = int(self._fabric.data.table[found.rank, 0])
            if not base:
                pin.release()
                raise NotOnNodeError(f"the block is in the memory of rank {found.rank} on another node: use get()")
            # Verified once more under the pin: the descriptor that is there now is the one that stays.
            s = self._scratch
            if self._fabric.get_pinned(self._ctx, s.address, found.word, found.hi, found.lo, 0, 0, 0) >= 0:
                address = base + self._fabric.arena_at + found.page * self._fabric.page_bytes
                return View(pin, address, found.nbytes, found.dtype, found.shape)
            pin.release()

    def pin(self, key: Key, *, namespace: AnyNamespace | None = None) -> Pin | None:
        """Local. Keep the memory of a block from being reused until `unpin`; None for a miss.

        A pinned block can still be replaced, deleted or evicted; its bytes stay where they are.
        """
        taken = list[Pin]()
        try:
            self._pin(key, namespace, taken)
        except BaseException:  # a Ctrl-C that waited for the call: nobody has the pin
            for pin in taken:
                pin.release()
            raise
        return taken[0] if taken else None

    @uninterrupted
    def _pin(self, key: Key, namespace: AnyNamespace | None, taken: list[Pin]) -> None:
        held = self._read(key, namespace, self._reader.pin)
        if held is not None:
            taken.append(held[1])

    def unpin(self, pin: Pin) -> None:
        """Local. Give a pin back; nothing the second time."""
        self._check_open()
        pin.release()

    # ---------------------------------------------------------------------------------------------------------- batches

    def get_many(
        self,
        keys: Iterable[Key] | npt.NDArray[Any],
        outs: Sequence[Any] | None = None,
        *,
        namespace: AnyNamespace | None = None,
        session: Session | None = None,
    ) -> list[Any]:
        """Local. Read many blocks, each as `get` does. `keys` may be uint64[n, 2] (high and low halves).

        4 Gets a key on another node, and one Flush per rank and phase for each 256 keys. `session` (a str, bytes or an
        integer) says for whom: a block that `protect_shared` different sessions of this rank have read or put is
        protected, as by `protect`, as long as `protected_bytes` allows.

        Raises
        ------
        BufferSizeError
            A buffer has the wrong size (all others have been read); the text says which.
        """
        if session is not None:
            bit_of(session)  # a wrong one is said before anything is done
        keys = list(keys) if isinstance(keys, Iterator) else keys  # looked at twice, should an epoch pass meanwhile
        while True:
            space = self._space(namespace)
            array = key_array(keys, space.digest)
            if outs is not None and len(outs) != len(array):
                raise ValueError(f"{len(array)} keys and {len(outs)} buffers: give one buffer for each key")
            self._publish_waiting(array)
            try:
                got = self._batch.get(array, outs)
            except BufferSizeError:
                if self._registry.has_passed(space):
                    continue
                raise
            if not self._registry.has_passed(space) or all(each is None for each in got):
                if session is not None:
                    there = zip(array.tolist(), got, strict=True)
                    self._shared.used([(hi, lo) for (hi, lo), each in there if each is not None], session)
                return got

    def contains_many(
        self, keys: Iterable[Key] | npt.NDArray[Any], exact: bool = True, *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Which keys are stored, bool[n]. Another node: 1 Get a key, with `exact` 2 for one that is there.

        `exact=False` compares fingerprints only: of 1,000 absent keys about one is said to be there (4 of a
        bucket's words are used on average, each of 12 bits).
        """
        keys = list(keys) if isinstance(keys, Iterator) else keys
        while True:
            space = self._space(namespace)
            array = key_array(keys, space.digest)
            self._publish_waiting(array)
            found = self._batch.contains(array, exact)
            if not self._registry.has_passed(space) or not found.any():
                return found

    @uninterrupted
    def request(
        self, keys: Iterable[Key] | npt.NDArray[Any], partial: bool = True, *, namespace: AnyNamespace | None = None
    ) -> None:
        """Local. Say that a request arrives for these blocks, the whole of its prefix in order, stored or not.

        Called before they are read and put. With `eviction="prefix"` the rank's policy learns which blocks are asked
        for together; with `partial` that the last one is not full, so that no other request will share it. It hears of
        the blocks that this rank manages alone. Nothing at all for other policies. No MPI call.
        """
        self._check_open()
        check_keys(keys)
        if self._pool.own.wants_requests:
            self._pool.request(key_array(keys, self._space(namespace).digest), partial)
