"""The calls of a store that write: put, delete, protect, for one block or many, and copies made on purpose.

Covers the options of a put, their checks, and namespaces around a write. Does not cover the steps of a put (`writer`,
`dedup`, `deferred`) nor which copies reads make (`copies`).
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, SupportsIndex, cast, get_args

import numpy as np
import numpy.typing as npt

from cascade_mpi.contents import hasher_of
from cascade_mpi.copies import Replicated
from cascade_mpi.errors import (
    CascadeError,
    DroppedError,
    NotConfiguredError,
    StoreFullError,
)
from cascade_mpi.interrupts import uninterrupted
from cascade_mpi.kernels import context as c
from cascade_mpi.keys import Key, check_keys, key_array, key_words
from cascade_mpi.layout import MAX_DEPTH, MAX_EXPIRY
from cascade_mpi.namespaces import AnyNamespace
from cascade_mpi.sessions import Session, bit_of
from cascade_mpi.spaces import Space
from cascade_mpi.store_life import OpenStore
from cascade_mpi.values import source
from cascade_mpi.writer import Exists, PutResult


class Writes(OpenStore):
    """`put` and its like."""

    @uninterrupted
    def put(
        self,
        key: Key,
        data: Any,
        *,
        namespace: AnyNamespace | None = None,
        is_prefix: bool = False,
        exists: Exists = "replace",
        ttl: float | None = None,
        depth: int | None = None,
    ) -> PutResult:
        """Local. Store a block, in this rank's arena if it has room, and publish it. 2 Gets + 1 CAS at the key's home.

        `data`: a NumPy array, a buffer, a torch CPU tensor. `is_prefix` protects the block from eviction, and so does
        a `depth` (its place in its prefix, from 0) below `protect_depth`, as long as `protected_bytes` allows (else it
        is stored unprotected). A block that finds no room is not stored, and the result is `refused`. `ttl`: after so
        many seconds, at most one more, the block is a miss. `exists` says what happens to a key that is there:
        "replace", "keep" it as it is, or an "error". When the call has returned, every get that starts later on any
        rank sees this block, something newer, or a miss. With `publish="deferred"` other ranks see it after the next
        `publish()`. In a namespace with identity "content" what is stored already, under whichever key, is not stored
        again: 4 Gets + 1 CAS, and `deduplicated` is true.

        Raises
        ------
        KeyExistsError
            With `exists="error"`.
        StoreFullError
            With `is_prefix`: there is no room, or its bytes would exceed `protected_bytes`; nothing was changed.
        DiskError
            With `durability="writethrough"`: what was stored is in memory, and may not be durable.
        NotConfiguredError
            The namespace's identity is "content", and the package of its hash is not installed; or all that is put is
            to be durable, which such a namespace's blocks are not.
        """
        _check_exists(exists)
        expiry = 0 if ttl is None else self._expiry(ttl)
        place = 0 if depth is None else _place(depth)
        self._let_pass()
        space = self._writable(namespace)
        if ttl is None and space.namespace.ttl is not None:
            expiry = self._expiry(space.namespace.ttl)
        hi, lo = key_words(key, space.digest)
        if space.by_content:
            self._check_by_content(space)
        if self.config.publish == "deferred":
            result = self._deferred.put(
                hi, lo, space, data, prefix=is_prefix, exists=exists, expiry=expiry, depth=place
            )  # fmt: skip
        else:
            put = self._dedup.put if space.by_content else self._writer.put
            result = put(
                hi, lo, space, source(data), prefix=is_prefix, exists=exists, expiry=expiry, depth=place
            )  # fmt: skip
            self._poll_after(((hi, lo),), [result])
        if is_prefix and result.refused:
            raise StoreFullError(f"a block with is_prefix was not stored: {result.reason}", results=[result])
        return result

    @uninterrupted
    def put_many(
        self,
        keys: Iterable[Key] | npt.NDArray[Any],
        data: Sequence[Any],
        *,
        namespace: AnyNamespace | None = None,
        is_prefix: bool = False,
        exists: Exists = "replace",
        ttl: float | None = None,
        depth: int | None = None,
        session: Session | None = None,
    ) -> list[PutResult]:
        """Local. Store many blocks, in order, each as `put` does; `depth` is that of the first, the others follow.

        `session` (a str, bytes or an integer) says for whom; with `protect_shared` it counts, see `get_many`.

        Raises
        ------
        KeyExistsError
            With `exists="error"`: the blocks before it are stored (and durable, where puts are), those behind it are
            not.
        StoreFullError
            With `is_prefix`: some could not be stored or protected. All were tried; `results` of the error has what
            became of each, and the refused ones have changed nothing.
        DiskError
            With `durability="writethrough"`: what was stored is in memory, and may not be durable.
        DroppedError
            The same, and some of it had to leave memory meanwhile and is lost: `keys` and `results` say which.
        NotConfiguredError
            The namespace's identity is "content", and the package of its hash is not installed; or all that is put is
            to be durable, which such a namespace's blocks are not.
        """
        _check_exists(exists)
        if session is not None:
            bit_of(session)
        expiry = 0 if ttl is None else self._expiry(ttl)
        places: Sequence[int] = [0] * len(data)
        if depth is not None:
            places = range(_place(depth), _place(depth) + len(data))
            _place(depth + max(len(data) - 1, 0))
        self._let_pass()
        space = self._writable(namespace)
        if ttl is None and space.namespace.ttl is not None:
            expiry = self._expiry(space.namespace.ttl)
        array = key_array(keys, space.digest)
        if len(array) != len(data):
            raise ValueError(f"{len(array)} keys and {len(data)} blocks: give one block for each key")
        if space.by_content:
            self._check_by_content(space)
        deferred, put = self.config.publish == "deferred", self._dedup.put if space.by_content else self._writer.put
        pairs = [(hi, lo) for hi, lo in array.tolist()]
        results: list[PutResult] = []
        try:
            for (hi, lo), each, place in zip(pairs, data, places, strict=True):
                results.append(
                    self._deferred.put(hi, lo, space, each, prefix=is_prefix, exists=exists, expiry=expiry, depth=place)
                    if deferred
                    else put(hi, lo, space, source(each), prefix=is_prefix, exists=exists, expiry=expiry, depth=place)
                )  # fmt: skip
            if session is not None:
                self._shared.stored([pair for pair, each in zip(pairs, results, strict=True) if each.stored], session)
                self._shared.used([pair for pair, each in zip(pairs, results, strict=True) if each.kept], session)
        finally:  # what was put before an error is stored, and as durable as anything
            self._poll_after(pairs, results)
        refused = [each for each in results if each.refused] if is_prefix else []
        if refused:
            text = f"{len(refused)} of {len(results)} blocks with is_prefix were not stored: {refused[0].reason}"
            raise StoreFullError(text, results=results)
        return results

    @uninterrupted
    def replicate(self, keys: Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None) -> Replicated:
        """Collective. Let every node have a copy of these blocks; all ranks give the same keys. Counts over all nodes.

        Each block leaves its owner once for every other node: one rank of a node fetches it, in batches, and the
        node's ranks read the copy. A copy counts for as long as the block is not replaced or deleted; it goes when its
        rank needs the memory. No block goes for a copy: what did not fit is counted as `refused`. With blocks of this
        node alone nothing is done.

        Raises
        ------
        ConfigError
            The ranks were given different keys, or keys that are none (on all ranks).
        NotConfiguredError
            There are several nodes and `promote_after` is 0.
        """
        self._check_open()
        problem, array = "", np.empty((0, 2), np.uint64)
        try:
            array = key_array(keys, self._space(namespace).digest)
            self._publish_waiting(array)
        except (TypeError, ValueError, CascadeError) as error:  # whatever it is, the others are told
            problem = str(error)
        return self._copies.replicate(array, problem)

    @uninterrupted
    def publish(self) -> int:
        """Collective. Publish the deferred puts of all ranks; how many this rank had.

        Every rank is inside MPI meanwhile, so no compare-and-swap waits for a rank that computes. With
        `durability="writethrough"` they are durable, this rank's when it returns here.

        Raises
        ------
        DiskError
            With "writethrough", on this rank: they are published, and may not be durable.
        StoreFullError
            On this rank, after the others have published theirs: its buckets are full of protected words.
        """
        self._check_open()
        results = self._deferred.publish()
        self._comm.Barrier()
        self._poll()
        refused = [result for result in results if result.refused]
        if refused:
            raise StoreFullError(f"{len(refused)} of {len(results)} blocks were not published: {refused[0].reason}")
        return len(results)

    @uninterrupted
    def delete(self, key: Key, *, namespace: AnyNamespace | None = None) -> bool:
        """Local. Delete a block; True if this call did. After it has returned no get finds the block on any rank.

        In a namespace with `content_keys` a node's copy of it may still be read until that is dropped.
        """
        hi, lo = key_words(key, self._writable(namespace).digest)
        waiting = self._deferred.give_up(hi, lo)
        deleted = self._writer.delete(hi, lo)
        self._poll()
        return deleted or waiting

    @uninterrupted
    def delete_many(
        self, keys: Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Delete many blocks, each as `delete` does: bool[n], which of them this call deleted."""
        array = key_array(keys, self._writable(namespace).digest)
        done = [self._deferred.give_up(hi, lo) | self._writer.delete(hi, lo) for hi, lo in array.tolist()]
        self._poll()
        return np.array(done, np.bool_)

    # ------------------------------------------------------------------------------------------------------- protection

    @uninterrupted
    def protect(
        self, keys: Key | Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Protect stored blocks from eviction, whichever rank holds them: for each key whether it is there.

        When the call has returned, none of them is evicted before it is unprotected; it can still be replaced (by a
        block that its put protects or not), deleted, expire, or go with its epoch. Waits for no other rank beyond
        what a compare-and-swap does. 2 Gets + 1 CAS + 1 Put a key; with `protected_bytes` 4 Gets + 2 CASes + 1 Put.

        Raises
        ------
        StoreFullError
            Their bytes would exceed `protected_bytes` of a rank; none of them was protected.
        """
        with self._dedup.lock:  # not while contents are collected
            done = self._protection.protect(self._pairs(keys, namespace))
        self._poll()
        return np.array(done, np.bool_)

    @uninterrupted
    def unprotect(
        self, keys: Key | Iterable[Key] | npt.NDArray[Any], *, namespace: AnyNamespace | None = None
    ) -> npt.NDArray[np.bool_]:
        """Local. Let blocks be evicted again, those put with `is_prefix` too: for each key whether it is there.

        2 Gets + 1 CAS + 1 Put a key, with `protected_bytes` 1 Get + 1 CAS more.
        """
        there = [self._protection.unprotect(pair) for pair in self._pairs(keys, namespace)]
        self._poll()
        return np.array(there, np.bool_)

    def _pairs(
        self, keys: Key | Iterable[Key] | npt.NDArray[Any], namespace: AnyNamespace | None
    ) -> list[tuple[int, int]]:
        if isinstance(keys, (str, bytes)) or (hasattr(keys, "__index__") and not isinstance(keys, np.ndarray)):
            keys = [cast(Key, keys)]
        check_keys(keys, "one key, ")
        array = key_array(keys, self._writable(namespace).digest)
        self._publish_waiting(array)
        return [(hi, lo) for hi, lo in array.tolist()]

    def _poll_after(self, pairs: Sequence[tuple[int, int]], results: list[PutResult]) -> None:
        """What follows puts. An error that some of these blocks are lost gets the results, without them."""
        try:
            self._poll()
        except DroppedError as error:
            lost = set(error.keys)
            reason = "it had to leave memory for other blocks of the call, and the disk refused it"
            error.results = [
                PutResult(refused=True, bytes=each.bytes, reason=reason) if pair in lost and each.stored else each
                for pair, each in zip(pairs, results, strict=False)  # an error has ended the puts, perhaps
            ]
            raise

    def _check_by_content(self, space: Space) -> None:
        hasher_of(space.namespace.hash)  # a missing one is said by this put, not by whoever looks at it later
        if self._disk is not None and self._disk.tier.writes_all:
            raise NotConfiguredError(
                f'namespace {space.namespace} has identity "content": its blocks stay in memory, and durability is '
                f'"{self.config.durability}"; put them into a namespace with identity "key", or use durability "demote"'
            )

    def _expiry(self, ttl: float) -> int:
        """The second from which on the block is a miss: the first whole one at which all of `ttl` has passed."""
        if not isinstance(ttl, Real) or isinstance(ttl, bool) or not 0 < ttl < math.inf:
            raise ValueError(f"ttl is {ttl!r}: it must be a number of seconds above 0, or None")
        expiry = math.ceil(time.time() - int(self._fabric.context[c.EPOCH]) + float(min(ttl, MAX_EXPIRY)))
        if ttl > MAX_EXPIRY or expiry > MAX_EXPIRY:
            raise ValueError(f"ttl is {ttl!r}: at most {MAX_EXPIRY} seconds after the store's opening can be said")
        return max(expiry, 1)


def _check_exists(exists: object) -> None:
    if exists not in get_args(Exists):
        raise ValueError(f'exists is {exists!r}: it must be "replace", "keep" or "error"')


def _place(depth: int) -> int:
    """A depth as a descriptor has it: counted from 1."""
    if not isinstance(depth, SupportsIndex) or isinstance(depth, bool) or not 0 <= operator.index(depth) < MAX_DEPTH:
        raise ValueError(f"depth is {depth!r}: it must be an integer in 0..{MAX_DEPTH - 1}, or None")
    return operator.index(depth) + 1
