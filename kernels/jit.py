"""How kernels are compiled and cached.

Covers the two decorators (`kernel` for what Python calls, `device` for what only kernels call), the
disk cache and its warm-up. Does not cover what a kernel does.

Numba's cache looks at the age of a kernel's own file only: a constant that comes from another module
would go stale silently. Here the stamp of every cached kernel is a hash of all sources that kernels
are made of, so a changed bit layout recompiles all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

_SOURCES = Path(__file__).parent


def sources() -> list[Path]:
    """Local. The files that kernels are made of."""
    library = Path(__import__("cascade_mpi").__file__).parent
    # In an order of the names: what a symbolic link calls the folders is no other state of the sources.
    return [*sorted(_SOURCES.glob("*.py")), library / "layout.py", *sorted((library / "onesided").glob("*.py"))]


def _source_stamp() -> str:
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=16)
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


STAMP = _source_stamp()


class _StampMixin:
    """A cache location whose entries are valid for one state of all kernel sources."""

    def get_source_stamp(self) -> str:
        return STAMP


def _locator(name: str) -> type:
    base = getattr(caching, name, None) or getattr(caching, "_" + name)  # the underscore went in Numba 0.68
    return type(name, (_StampMixin, base), {})


class _CacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = tuple(map(_locator, ("UserProvidedCacheLocator", "InTreeCacheLocator", "UserWideCacheLocator")))


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _CacheImpl


class Kernel:
    """One compiled function with one signature."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.signature = numba.core.sigutils.normalize_signature(signature)[0]
        self.dispatcher = numba.njit(nogil=True)(function)
        self.python = function
        self.cached = True
        try:
            self.dispatcher._cache = _Cache(function)
        except RuntimeError:  # no directory that can be written: compile in every process
            self.cached = False
        self._entry: Callable[..., Any] | None = None
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__

    def compile(self) -> Callable[..., Any]:
        """Local. The function that Python calls: arguments are unboxed by the signature, without dispatch."""
        if self._entry is None:
            self.dispatcher.compile(self.signature)
            self._entry = self.dispatcher.overloads[self.signature].entry_point
        return self._entry

    def __call__(self, *args: Any) -> Any:
        """Local. Compile on first use, then call."""
        return (self._entry or self.compile())(*args)


KERNELS: list[Kernel] = []


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Local. Declare a kernel that Python calls; `signature` as Numba writes it."""

    def declare(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function, signature)
        KERNELS.append(made)
        return made

    return declare


device = numba.njit(nogil=True)
"""A function that only kernels call: compiled into them."""


def warm() -> None:
    """Local. Compile every declared kernel or load it from the cache."""
    for each in KERNELS:
        each.compile()
