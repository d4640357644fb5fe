"""Preferences: probabilities that row beats column, in both orders, with ties and with pairs nobody asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from polyturn.envs.preference import Preference, by_return, by_score
from polyturn.envs.trajectory import Group, Trajectory, Turn

NAN = float("nan")


def preference(matrix: Any, **fields: Any) -> Preference:
    return Preference(np.array(matrix, float), **{"source": "oracle"} | fields)


def test_pairs_are_winner_then_loser() -> None:
    """0 beats 1 with .9; 1 and 2 tie; 2 beats 0 with .6."""
    made = preference([[0.5, 0.9, 0.4], [0.1, 0.5, 0.5], [0.6, 0.5, 0.5]])
    assert made.pairs().tolist() == [[0, 1], [2, 0]]
    assert len(made) == 3


def test_a_comparison_asked_in_one_order_counts_in_both() -> None:
    made = preference([[NAN, 0.2], [NAN, NAN]])
    assert made.pairs().tolist() == [[1, 0]]
    assert made.win_rate().tolist() == [0.2, 0.8]


def test_nobody_asked() -> None:
    made = preference([[NAN, NAN], [NAN, NAN]])
    assert made.pairs().shape == (0, 2)
    assert np.isnan(made.win_rate()).all()


def test_win_rate_leaves_out_the_diagonal_and_the_unknown() -> None:
    """Row 0 was compared with 1 only (.9); row 1 with 0 and 2 (.1, .5); row 2 with 1 only (.5)."""
    made = preference([[0.5, 0.9, NAN], [0.1, 0.5, 0.5], [NAN, 0.5, 0.5]])
    assert made.win_rate() == pytest.approx([0.9, 0.3, 0.5])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([0.5], r"\[K, K\], got shape \(1,\)"),
        ([[0.5, 0.5]], r"got shape \(1, 2\)"),
        ([[0.5, 1.1], [-0.1, 0.5]], r"\[0, 1\] or nan"),
        ([[0.5, float("inf")], [NAN, 0.5]], r"\[0, 1\] or nan"),
        ([[0.5, 0.7], [0.7, 0.5]], r"P\(0 beats 1\) = 0.7 and P\(1 beats 0\) = 0.7 must add to 1"),
        ([[1.0]], r"P\(0 beats 0\)"),
    ],
)
def test_impossible_matrices_are_refused(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference(matrix)


def test_scores_must_fit_and_the_source_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"scores: expected \[1\], got shape \(2,\)"):
        preference([[0.5]], scores=[1.0, 2.0])
    with pytest.raises(ValueError, match="oracle, reward, judge, model, human, got 'oracel'"):
        preference([[0.5]], source="oracel")


def test_arrays_are_copied_and_frozen() -> None:
    matrix, scores = np.array([[0.5]]), np.array([1.0])
    made = Preference(matrix, "human", scores)
    matrix[0, 0], scores[0] = 0.0, 0.0
    assert made.matrix[0, 0] == 0.5
    assert made.scores is not None
    assert made.scores[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        made.matrix[0, 0] = 0.1


def test_rounding_cannot_make_two_members_beat_each_other() -> None:
    """Both orders slightly above 1/2, within what is accepted as adding to 1: a tie."""
    made = preference([[0.5, 0.5 + 4e-10], [0.5 + 4e-10, 0.5]])
    assert made.pairs().shape == (0, 2)


def test_by_score() -> None:
    """Scores 1, 3, nan, 3: members 1 and 3 beat 0 and tie with each other; 2 is never compared."""
    made = by_score(np.array([1.0, 3.0, NAN, 3.0]))
    assert made.pairs().tolist() == [[1, 0], [3, 0]]
    assert made.matrix[1, 3] == 0.5
    assert np.isnan(made.matrix[2]).all()
    assert np.isnan(made.matrix[:, 2]).all()
    assert made.source == "reward"
    assert made.scores is not None
    assert made.scores[1] == 3.0


def test_by_score_margin_is_inclusive() -> None:
    made = by_score(np.array([0.0, 0.5, 0.75]), margin=0.5)
    assert made.matrix[0, 1] == 0.5
    assert made.pairs().tolist() == [[2, 0]]


def test_infinite_scores_compare_as_numbers_do() -> None:
    made = by_score(np.array([np.inf, np.inf, -np.inf, 0.0]))
    assert made.matrix[0].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert made.matrix[2].tolist() == [0.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize(("scores", "margin"), [([1.0], -0.1), ([1.0], NAN), ([[1.0]], 0.0), (1.0, 0.0)])
def test_by_score_refuses_nonsense(scores: Any, margin: float) -> None:
    with pytest.raises(ValueError, match="by_score: expected"):
        by_score(np.array(scores), margin=margin)


def test_by_return_never_compares_an_invalid_member() -> None:
    """Returns 1 (failed), 0, 1: a failure is not a zero and not a win."""
    members = [
        Trajectory("e", 0, (Turn("o", "a", reward),), terminated=True, error=error)
        for reward, error in ((1.0, "SandboxLost"), (0.0, None), (1.0, None))
    ]
    made = by_return(Group(tuple(members)))
    assert made.pairs().tolist() == [[2, 1]]
    assert np.isnan(made.win_rate()[0])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_swapping_two_members_swaps_their_preference(values: list[int]) -> None:
    scores = np.array(values, float)
    forward, backward = by_score(scores).matrix, by_score(scores[::-1]).matrix
    assert np.array_equal(forward[::-1, ::-1], backward)
    assert np.array_equal(forward, 1.0 - forward.T)
