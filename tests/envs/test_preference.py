"""Preferences: probabilities that row beats column, in both orders, with ties and with unasked pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from polyturn.envs.preference import Judged, Preference, by_return, by_score
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


def test_a_preference_without_any_comparison() -> None:
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
        ([[NAN, 1.5], [NAN, NAN]], r"\[0, 1\] or nan"),
        ([[NAN, -0.5], [NAN, NAN]], r"\[0, 1\] or nan"),
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
    for array in (made.matrix, made.scores):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.1


def test_whole_numbers_become_float64() -> None:
    made = Preference(np.array([[None, 1], [0, None]], float).round(), "human", [3, 4])  # type: ignore[arg-type]
    assert made.scores is not None
    assert (made.matrix.dtype, made.scores.dtype) == (np.float64, np.float64)
    scored = by_score(np.array([1, 2]))
    assert scored.scores is not None
    assert (scored.matrix.dtype, scored.scores.dtype) == (np.float64, np.float64)


def test_both_orders_must_add_to_one_within_1e_9_and_the_pair_that_does_not_is_named() -> None:
    close, far = 5e-10, 2e-9
    assert len(preference([[0.5, 0.7], [0.3 + close, 0.5]])) == 2
    matrix = [[0.5, 0.7, 0.6], [0.3 + close, 0.5, 0.2], [0.4, 0.8 + far, 0.5]]
    with pytest.raises(ValueError, match=r"P\(1 beats 2\) = 0.2 and P\(2 beats 1\) = 0.8"):
        preference(matrix)


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


# Judged


def group_of(*rewards: float, invalid: tuple[int, ...] = ()) -> Group:
    """Members with these rewards; those at `invalid` have failed."""
    members = [Trajectory("e", 0, (Turn("o", "a", reward),), terminated=True) for reward in rewards]
    for index in invalid:
        members[index] = replace(members[index], error="lost")
    return Group(tuple(members))


def test_a_judge_is_asked_in_both_orders_and_its_bias_for_a_place_cancels() -> None:
    """P = 1/2 + (r_first - r_second) / 10 + 0.1 for the first place: the mean of both orders is without the 0.1."""
    asked: list[tuple[float, float]] = []

    def judge(pairs: Any) -> list[float]:
        rewards = [(first.total_reward, second.total_reward) for first, second in pairs]
        asked.extend(rewards)
        return [0.6 + (first - second) / 10 for first, second in rewards]

    made = Judged(judge)(group_of(0.0, 9.0, 3.0, 1.0, invalid=(1,)))
    assert asked == [(0, 3), (0, 1), (3, 1), (3, 0), (1, 0), (1, 3)]
    nan = pytest.approx(NAN, nan_ok=True)
    assert made.matrix[0].tolist() == [nan, nan, pytest.approx(0.2), pytest.approx(0.4)]
    assert made.matrix[2].tolist() == [pytest.approx(0.8), nan, nan, pytest.approx(0.7)]
    assert np.isnan(made.matrix[1]).all()
    assert made.source == "judge"
    assert Judged(judge, source="human")(group_of(0.0, 1.0)).source == "human"


def test_an_antisymmetric_judge_is_asked_once_a_pair() -> None:
    asked: list[int] = []

    def judge(pairs: Any) -> np.ndarray:
        asked.append(len(pairs))
        return np.array([0, 1, 1])  # whole numbers are probabilities as well

    made = Judged(judge, both_orders=False)(group_of(1.0, 2.0, 3.0))
    assert asked == [3]
    assert made.matrix.dtype == np.float64
    assert made.pairs().tolist() == [[0, 2], [1, 0], [1, 2]]


def test_half_an_answer_is_none() -> None:
    made = Judged(lambda pairs: [0.9, NAN])(group_of(1.0, 2.0))
    assert np.isnan(made.matrix).all()


@pytest.mark.parametrize("answers", [[0.5], [0.5, 0.5, 0.5], [[0.5, 0.5]]])
def test_a_judge_must_answer_each_question_once(answers: Any) -> None:
    with pytest.raises(ValueError, match="expected 2 answers, one a pair, got shape"):
        Judged(lambda pairs: answers)(group_of(1.0, 2.0))


@pytest.mark.parametrize("answer", [-0.1, 1.1, 2.0])
def test_a_judge_must_answer_with_probabilities(answer: float) -> None:
    for answers in ([answer, 0.5], [0.5, answer]):
        with pytest.raises(ValueError, match=r"Judged: expected probabilities in \[0, 1\] or nan"):
            Judged(lambda pairs, answers=answers: answers)(group_of(1.0, 2.0))
    assert Judged(lambda pairs: [1.0, 0.0])(group_of(1.0, 2.0)).matrix[0, 1] == 1.0


def test_a_judge_is_not_asked_about_a_single_member() -> None:
    def judge(pairs: Any) -> list[float]:
        raise AssertionError("nothing to compare")

    assert np.isnan(Judged(judge)(group_of(1.0)).matrix).all()
    assert np.isnan(Judged(judge)(group_of(1.0, 2.0, invalid=(1,))).matrix).all()
