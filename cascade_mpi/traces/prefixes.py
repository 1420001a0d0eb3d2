"""Block ids of made-up prompts: which ids stand for which prefix.

Covers chains of blocks that grow at their end and branch. Does not cover who says what (see
`retrieval`, `agents`).

Ids are counted up, so an id is never given twice. A whole block belongs to the part of the prompt in
which it ends: two prompts share it exactly when they share everything up to and including that part.
The rest of a prompt that fills no block belongs to the one request that ends there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

BLOCK_TOKENS = 512
TOKENS_PER_S = 50  # an answer is made at this speed, before anybody can go on

Part = tuple[Hashable, int]
"""Part of a prompt: what it is, and its tokens. Parts that are not the same differ in their first token already."""


class Chain:
    """Whole blocks of a prompt from its beginning on."""

    __slots__ = ("_block_tokens", "_ids", "_source")

    def __init__(self, source: Iterator[int], block_tokens: int, ids: tuple[int, ...] = ()) -> None:
        self._source = source
        self._block_tokens = block_tokens
        self._ids = list(ids)

    def branch(self, tokens: int) -> Chain:
        """Local. Another prompt that begins with the first `tokens` of this one and then goes its own way."""
        return Chain(self._source, self._block_tokens, self.whole(tokens))

    def whole(self, tokens: int) -> tuple[int, ...]:
        """Local. The ids of the whole blocks in the first `tokens`; new ones where the chain ended before."""
        blocks = tokens // self._block_tokens
        self._ids.extend(next(self._source) for _ in range(blocks - len(self._ids)))
        return tuple(self._ids[:blocks])

    def request(self, tokens: int) -> tuple[int, ...]:
        """Local. The ids of a request of so many tokens: the whole blocks, and one of its own for the rest."""
        ids = self.whole(tokens)
        return (*ids, next(self._source)) if tokens % self._block_tokens else ids
