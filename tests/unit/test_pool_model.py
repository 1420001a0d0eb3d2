"""What leased extents promise in all interleavings of a small pool, and what each of their rules is there for."""

from __future__ import annotations

import pytest
from pool_model import ROWS, Row, explore


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_a_row_breaks_exactly_what_it_should(row: Row) -> None:
    found = explore(row)
    assert found.broken == row.breaks, "\n".join(found.trace)
    assert found.states > 20  # it did look
