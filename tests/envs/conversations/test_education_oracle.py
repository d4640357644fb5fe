"""The exact judge, and the one interface of all judges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st

from polyturn.agents.collecting.collect import collect
from polyturn.agents.scripted.teachers import ScriptedTeacher
from polyturn.envs.education.oracle import EducationOracle, outcome, turn_scores
from polyturn.envs.preference import Judged, Pair
from polyturn.envs.trajectory import Group, Trajectory, Turn

unit = st.floats(0, 1)
outcomes = st.tuples(unit, unit, unit).map(np.array)


def conversation(*values: float, **fields: object) -> Trajectory:
    info = {"outcome": dict(zip(("understanding", "enjoyment", "participation"), values, strict=True))}
    return Trajectory("e", 0, (Turn("o", "a", info=info),), terminated=True, info=info, **fields)  # type: ignore[arg-type]


def test_probability_by_hand() -> None:
    """k = 20, a - b = (0.1, 0, -0.2): sigmoid(2) = 0.880797, 1/2, sigmoid(-4) = 0.0179862; mean 0.466261.
    With weights (2, 1, 1): (2 x 0.880797 + 0.5 + 0.0179862) / 4 = 0.569895."""
    a, b = np.array([0.5, 0.5, 0.3]), np.array([0.4, 0.5, 0.5])
    assert EducationOracle().probability(a, b) == pytest.approx(0.466261, abs=1e-6)
    assert EducationOracle(weights=(2, 1, 1)).probability(a, b) == pytest.approx(0.569895, abs=1e-6)


@given(outcomes, outcomes, st.tuples(st.floats(0.1, 5), unit, unit), st.floats(0.1, 1e4))
def test_antisymmetric_and_in_range(a: np.ndarray, b: np.ndarray, weights: tuple, steepness: float) -> None:  # type: ignore[type-arg]
    oracle = EducationOracle(weights, steepness)
    p = float(oracle.probability(a, b))
    assert -1e-12 <= p <= 1 + 1e-12
    assert p + oracle.probability(b, a) == pytest.approx(1.0, abs=1e-12)
    assert oracle.probability(a, a) == pytest.approx(0.5)


@given(st.floats(0.02, 0.4), st.floats(1, 100))
def test_the_cycle_of_the_docstring(h: float, steepness: float) -> None:
    """a > b > c > a, each with q = (2 sigmoid(kh) + sigmoid(-2kh)) / 3 > 1/2."""
    m = 0.5
    a, b, c = np.array([m + h, m, m - h]), np.array([m, m - h, m + h]), np.array([m - h, m + h, m])
    x = steepness * h
    q = (2 / (1 + math.exp(-x)) + 1 / (1 + math.exp(2 * x))) / 3
    oracle = EducationOracle(steepness=steepness)
    for first, second in ((a, b), (b, c), (c, a)):
        assert oracle.probability(first, second) == pytest.approx(q, abs=1e-9)
        assert oracle.probability(first, second) > 0.5
    assert q == pytest.approx(0.5 + (2 * math.tanh(x / 2) - math.tanh(x)) / 6, abs=1e-12)


def test_no_bradley_terry_reward_explains_real_play() -> None:
    """Among conversations from identical starts, played and not made up, there are triples that beat each other."""
    groups = collect(
        ScriptedTeacher(), "polyturn/EducationDialogue-v0", groups=40, group_size=8, seed=0, progress=False
    )
    oracle, cycles = EducationOracle(), []
    for number, group in enumerate(groups):
        wins = oracle(group).matrix > 0.5
        for i, j, k in itertools.permutations(range(8), 3):
            if i == min(i, j, k) and wins[i, j] and wins[j, k] and wins[k, i]:
                cycles.append((number, i, j, k))
    assert len(cycles) >= 3


def test_a_group_becomes_a_matrix_and_invalid_members_are_never_asked_about() -> None:
    good, bad = conversation(0.9, 0.9, 0.9), conversation(0.1, 0.1, 0.1)
    broken = Trajectory("e", 0, (), error="server down")
    preference = EducationOracle()(Group((good, broken, bad)))
    assert preference.source == "oracle"
    assert preference.matrix[0, 2] > 0.99
    assert np.isnan(preference.matrix[1]).all()
    assert preference.pairs().tolist() == [[0, 2]]


def test_an_unknown_student_is_refused_and_so_are_bad_weights() -> None:
    with pytest.raises(ValueError, match="scripted student records"):
        outcome(Trajectory("e", 0, (Turn("o", "a"),), terminated=True))
    for options in ({"weights": (0.0, 0.0, 0.0)}, {"weights": (1.0, -1.0, 1.0)}, {"steepness": 0.0}):
        with pytest.raises(ValueError, match="EducationOracle: expected"):
            EducationOracle(**options)  # type: ignore[arg-type]


def test_turn_scores_are_the_criteria_after_each_turn() -> None:
    one, two = ({"outcome": {"understanding": u, "enjoyment": 0.2, "participation": 0.0}} for u in (0.1, 0.4))
    played = Trajectory("e", 0, (Turn("o", "a", info=one), Turn("o", "b", info=two)), terminated=True, info=two)
    assert turn_scores(played) == pytest.approx([0.1, 0.2])
    assert turn_scores(played, (1, 0, 0)) == pytest.approx([0.1, 0.4])


def test_both_orders_remove_the_preference_for_a_place() -> None:
    """The judge likes the first place: P = 0.9 for the better one there, 0.6 for the worse one there, so the mean is
    (0.9 + 1 - 0.6) / 2 = 0.65. Half an answer is none."""
    better, worse, odd = conversation(1, 1, 1), conversation(0, 0, 0), conversation(0.5, 0.5, 0.5)

    def judge(pairs: Sequence[Pair]) -> list[float]:
        values = [(outcome(a)[0], outcome(b)[0]) for a, b in pairs]
        return [math.nan if (a, b) == (0.5, 0.0) else 0.9 if a > b else 0.6 for a, b in values]

    matrix = Judged(judge)(Group((better, worse, odd))).matrix
    assert matrix[0, 1] == pytest.approx(0.65)
    assert matrix[1, 0] == pytest.approx(0.35)
    assert matrix[0, 2] == pytest.approx(0.65)
    assert np.isnan(matrix[1, 2])
    assert np.isnan(matrix[2, 1])


@pytest.mark.parametrize("answers", [[0.5], [1.5, 0.5], [[0.5, 0.5]]])
def test_a_judge_that_answers_nonsense_is_reported(answers: list) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="Judged: expected"):
        Judged(lambda pairs: answers)(Group((conversation(1, 1, 1), conversation(0, 0, 0))))
