"""Which blocks of one namespace leave first when its quota is reached: those that were not used for longest.

Covers the order, and that it is found for many puts at once. Does not cover taking the blocks out (`evictions`), nor
which blocks leave when the arena is full (`victims`): to ask a policy for blocks of one namespace alone it would have
to walk over all others, at each put, and would spend on them what it knows (second chances).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cascade_mpi.layout import HARD, MAX_PAGES

Pages = npt.NDArray[np.int64]
_PAGE_MASK = MAX_PAGES - 1
_SHARE = 8  # an order is made for 1/8 of what the namespace has here: each looks at all blocks of the arena


class Coldest:
    """The order of one rank's arena. The caller holds the arena's lock."""

    def __init__(self, words: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64], touched: npt.NDArray[np.uint32],
                 cells_of: Callable[[int, int], Pages]) -> None:  # fmt: skip
        """The arena's tables by first page, and what finds the blocks of a namespace at an epoch."""
        self._words, self._lengths, self._touched, self._cells_of = words, lengths, touched, cells_of
        self._waiting: dict[int, tuple[int, deque[tuple[int, int]]]] = {}  # by namespace: epoch, (word, touch)

    def of(self, namespace_id: int, epoch: int, nbytes: int) -> list[int]:
        """Local. First pages of unprotected blocks of at least `nbytes` in all; none if there are not so many.

        One that was used since the order was made is passed over, and has a place in the next one.
        """
        at, waiting = self._waiting.pop(namespace_id, (epoch, deque()))
        if at != epoch:
            waiting = deque()
        found, size = self._take(waiting, nbytes, used=False)
        if size < nbytes:
            waiting = self._order(namespace_id, epoch, nbytes)
            found, size = self._take(waiting, nbytes, used=True)  # readers may use all of it meanwhile: insist
        self._waiting[namespace_id] = epoch, waiting
        return found if size >= nbytes else []

    def _take(self, waiting: deque[tuple[int, int]], nbytes: int, *, used: bool) -> tuple[list[int], int]:
        found, size = list[int](), 0
        while waiting and size < nbytes:
            word, touch = waiting.popleft()
            first = word & _PAGE_MASK
            if int(self._words[first]) == word and (used or int(self._touched[first]) == touch):
                found.append(first)
                size += int(self._lengths[first])
        return found, size

    def _order(self, namespace_id: int, epoch: int, nbytes: int) -> deque[tuple[int, int]]:
        cells = self._cells_of(namespace_id, epoch)
        cells = cells[self._words[cells] & np.uint64(HARD) == 0]
        touched = self._touched[cells]
        order = np.argsort(touched, kind="stable")
        cells, touched = cells[order], touched[order]
        total = np.cumsum(self._lengths[cells])
        if not total.size or total[-1] < nbytes:
            return deque()
        end = int(np.searchsorted(total, max(nbytes, int(total[-1]) // _SHARE))) + 1
        return deque(zip(self._words[cells[:end]].tolist(), touched[:end].tolist(), strict=True))
