"""The control study of PMPO: its task, its labels and its fit are exact where they can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyturn.algorithms.exact.closed_forms import pmpo_optimum
from polyturn.benchmarks import pmpo_control as study
from polyturn.benchmarks.running.suite import run_suite


def test_success_is_what_episodes_show() -> None:
    """The exact chance against 4,000 episodes played from the same transitions: within 3 standard deviations."""
    move, _ = study.lake()
    assert move.sum(-1) == pytest.approx(1.0)
    policy, rng = study.stored_policy(), np.random.default_rng(0)
    exact, episodes = study.success(policy), 4000
    accepted, rejected = study.labelled(policy, episodes=episodes, rng=rng)
    assert accepted[-1].sum() == rejected[-1].sum() == 0  # nothing is done after the end
    # State 14 is next to the goal: a step that reaches it has the largest return, and all others there a lower one.
    assert accepted[14].sum() > 0
    assert rejected[14].sum() > 0
    state, won = np.zeros(episodes, np.int64), np.zeros(episodes)
    goal_share = study.lake()[1] / np.maximum(move[..., -1], 1e-12)
    for _ in range(study.HORIZON):
        action = (rng.random((episodes, 1)) > policy[state].cumsum(1)[:, :-1]).sum(1)
        following = (rng.random((episodes, 1)) > move[state, action].cumsum(1)[:, :-1]).sum(1)
        ends = (following == len(move) - 1) & (state < len(move) - 1)
        won += ends & (rng.random(episodes) < goal_share[state, action])
        state = following
    assert won.mean() == pytest.approx(exact, abs=3 * (exact * (1 - exact) / episodes) ** 0.5)


@pytest.mark.parametrize("way", ["accepted", "accepted, KL", "both, KL", "rejected, KL"])
def test_the_fit_is_the_closed_form_where_there_is_one(way: str) -> None:
    """One state with frequencies .4 .4 .2 accepted, .25 .25 .5 rejected and a reference of .3 .3 .4."""
    accepted, rejected, reference = (np.array([each]) for each in ([0.4, 0.4, 0.2], [0.25, 0.25, 0.5], [0.3, 0.3, 0.4]))
    found = study.fit(10 * accepted, 10 * rejected, reference, way, steps=800, lr=0.1)
    alpha, beta = study.WAYS[way]
    best = pmpo_optimum(accepted[0], rejected[0], reference[0], alpha=alpha, beta=beta)
    assert found[0] == pytest.approx(best, abs=2e-3)


def test_rejected_actions_alone_take_everything_from_what_was_rejected() -> None:
    accepted, rejected, reference = np.zeros((1, 3)), np.array([[0.0, 5.0, 5.0]]), np.full((1, 3), 1 / 3)
    found = study.fit(accepted, rejected, reference, "rejected", steps=300, lr=0.1)
    assert found[0, 0] > 0.95


def test_the_quick_form_runs_and_reports(tmp_path: Path) -> None:
    record = run_suite(study.SUITE, tmp_path, quick=True, progress=False)
    (cell,) = record["cells"]
    assert set(cell["result"]) == set(study.WAYS)
    assert all(0 <= value <= 1 for curve in cell["result"].values() for value in curve)
    assert "both, KL 1/2" in (tmp_path / "report.md").read_text("utf-8")
