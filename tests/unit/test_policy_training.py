"""The table of the learned policy: which half its goals are about."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from policy_driving import skewed

from bench import policy_training as training


def prefix_row(of, middle, goal, monkeypatch):
    monkeypatch.setattr(training, "GOALS", {20: goal})
    return next(row for row in training.own_trace(of, middle, 20, {}) if row["policy"] == "prefix")


def test_goal_is_met_on_the_half_that_the_prior_is_not_from(monkeypatch):
    # Nothing comes again in the second half but one block, at once: there is no gap to close, so no goal is met.
    ids = np.concatenate([skewed(1, 100, 2_000), np.repeat(np.arange(100, 400), 2)])
    of = SimpleNamespace(ids=ids, lengths=np.full(ids.size // 2, 2), partial=np.zeros(ids.size // 2, bool))
    row = prefix_row(of, 2_000, -10.0, monkeypatch)
    assert row["whole_gap"] is not None
    assert row["second_gap"] is None
    assert not row["goal_met"]
    row = prefix_row(of, 1_000, -10.0, monkeypatch)
    assert row["second_gap"] is not None
    assert row["goal_met"]
