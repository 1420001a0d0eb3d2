"""A namespace as one rank saw it last, and as it is listed.

Covers the two records. Does not cover what a namespace is (`namespaces`) nor who keeps the table (`registry`).
"""

from __future__ import annotations

from typing import NamedTuple

from cascade_mpi.namespaces import Namespace


class NamespaceInfo(NamedTuple):
    """A namespace as `Store.namespaces()` lists it; blocks and their payload bytes over all ranks, each block once.

    `blocks` and `bytes` are in memory, as a quota counts them, whether on disk too or not; `disk_blocks` and
    `disk_bytes` are on disk alone.
    """

    text: str  # for people
    name: str
    model: str
    dtype: str
    layout: str
    salted: bool
    epoch: int
    quota: int | None
    blocks: int
    bytes: int
    passed_bytes: int  # of earlier epochs, not yet taken out of memory
    disk_blocks: int = 0
    disk_bytes: int = 0


class Space:
    """A namespace as this rank saw it last.

    `word` is that of the table of epochs: twice the epoch, or one less while that epoch is about to begin.
    """

    __slots__ = ("by_content", "digest", "epoch", "id", "namespace", "slot", "word")

    def __init__(self, namespace: Namespace, slot: int, word: int) -> None:
        self.namespace, self.slot, self.word = namespace, slot, word
        self.epoch = (word + 1) // 2
        self.id = namespace.id
        self.digest = namespace.digest(self.epoch)
        self.by_content = namespace.by_content
