"""The help of the benchmark programs that have goals says what their exit status means."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from bench import __main__ as bench
from bench import pressure

WITH_GOALS = (
    "micro", "copy", "hot-prefix", "neighbour-read", "dedup-share", "shared-prefix", "oversubscription", "disk",
)  # fmt: skip


@pytest.mark.parametrize("arguments", [["pressure"], *([name] for name in WITH_GOALS)], ids=" ".join)
def test_a_missed_goal_does_not_change_the_status(arguments: list[str]) -> None:
    of_its_own = arguments == ["pressure"]
    shown = CliRunner().invoke(pressure.app if of_its_own else bench.app, [*arguments[of_its_own:], "--help"])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    assert "Exit status: 1 if contents were wrong" in text
    assert "that is missed does not change it" in text
