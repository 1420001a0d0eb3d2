"""How the operations of a policy become compiled loops, and how those are cached.

Covers the decorator of the operations and the disk cache of the loops that are made of them. Does not
cover what the loops do (`loops`).

A loop is compiled once for each policy, around the policy's own operations, so that they are inlined.
Numba's cache would know such a loop by the identity of these operations, which is new in every process;
here the key is the name of the policy, and the stamp a hash of all sources of this package: a changed
constant of one module recompiles the loops of all.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching, sigutils

F = TypeVar("F", bound=Callable[..., Any])

# Numba's types leave out options that it has, and differ between its versions.
_njit: Any = numba.njit
_caching: Any = caching
_sigutils: Any = sigutils


def _source_stamp() -> str:
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


STAMP = _source_stamp()


class _StampMixin:
    """A cache location whose entries are valid for one state of the package's sources."""

    def get_source_stamp(self) -> str:
        return STAMP


def _locator(name: str) -> type:
    base = getattr(_caching, name, None) or getattr(_caching, "_" + name)  # the underscore went in Numba 0.68
    return type(name, (_StampMixin, base), {})


class _CacheImpl(_caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = tuple(map(_locator, ("UserProvidedCacheLocator", "InTreeCacheLocator", "UserWideCacheLocator")))


class _Cache(_caching.FunctionCache):  # type: ignore[misc]
    """A disk cache that knows a loop by the name of its policy."""

    _impl_class = _CacheImpl

    def __init__(self, function: Callable[..., Any], policy: str) -> None:
        self._policy = policy
        super().__init__(function)

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return signature, codegen.magic_tuple(), self._policy


def device(function: F) -> F:
    """Local. A function that only compiled code calls.

    Always inlined, since a call that hands on a whole state costs more than most of them do; and without
    entries from Python and C, which would take a third of the time to compile.
    """
    compiled: F = _njit(
        nogil=True, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)
    return compiled


def shared(function: F) -> F:
    """Local. As `device`, for what is large and used in several places: it may stay a call of its own."""
    compiled: F = _njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


def loop(function: Callable[..., Any], policy: str, signature: str) -> Callable[..., Any]:
    """Local. Compile `function` (or load it), made for `policy`; its entry point takes exactly `signature`."""
    wanted = _sigutils.normalize_signature(signature)[0]
    dispatcher = _njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    with contextlib.suppress(RuntimeError):  # no directory that can be written: compile in every process
        dispatcher._cache = _Cache(function, policy)
    dispatcher.compile(wanted)
    entry: Callable[..., Any] = dispatcher.overloads[wanted].entry_point
    return entry
