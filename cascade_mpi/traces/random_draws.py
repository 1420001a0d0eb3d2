"""Random draws of the made-up traces, from uniform doubles alone.

Covers the few distributions that the traces need. Does not cover what is drawn. Nothing but uniform
doubles is asked of NumPy, so that a trace does not hang on how one of its versions samples others.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np


class Draws:
    """The random numbers of one trace."""

    def __init__(self, seed: int) -> None:
        self.uniform = np.random.Generator(np.random.PCG64(seed)).random

    def exponential(self, mean: float) -> float:
        """Local. Exponential, of this mean."""
        return -mean * math.log1p(-self.uniform())

    def tokens(self, mean: int) -> int:
        """Local. 1 or more: exponential, cut to an integer."""
        return 1 + int(self.exponential(mean))

    def around(self, mean: int) -> int:
        """Local. Uniform from half of it to one and a half, at least 1."""
        return max(1, int(mean * (0.5 + self.uniform())))

    def rounds(self, mean: float) -> int:
        """Local. 1 or more: geometric, of this mean."""
        return 1 + int(math.log1p(-self.uniform()) / math.log1p(-1 / max(mean, 1.001)))

    def index(self, cumulated: Sequence[float]) -> int:
        """Local. A place in the table of `zipf`."""
        return min(bisect_right(cumulated, self.uniform() * cumulated[-1]), len(cumulated) - 1)


def zipf(count: int, exponent: float) -> Sequence[float]:
    """Local. Cumulated weights of `count` things, the k-th of them k ** -exponent as likely as the first."""
    return tuple(accumulate((k + 1) ** -exponent for k in range(count)))
