"""The exact judge of Education Dialogue: a general preference over what really happened to the scripted student.

Three criteria, each in [0, 1] (`polyturn.envs.education.student` defines them): understanding, enjoyment,
participation. With weights w that add to 1 and steepness k,

    P(a beats b) = sum over criteria c of w_c sigmoid(k (a_c - b_c)),

a smoothed vote of the criteria. P(a, b) + P(b, a) = 1 as sigmoid(x) + sigmoid(-x) = 1. It is not a Bradley-Terry model,
and no reward explains it: take equal weights and the outcomes (in the order above, h > 0)

    a = (m + h, m, m - h)    b = (m, m - h, m + h)    c = (m - h, m + h, m)

In a against b two criteria differ by h in favour of a and one by 2h in favour of b; likewise b against c, and c
against a. So each of the three wins with the same probability

    q = (2 sigmoid(k h) + sigmoid(-2 k h)) / 3 = 1/2 + (2 tanh(k h / 2) - tanh(k h)) / 6,

and tanh is strictly concave on [0, inf) with tanh(0) = 0, hence 2 tanh(x / 2) > tanh(x) and q > 1/2 for every h > 0.
The cycle a > b > c > a contradicts any ranking of outcomes, every reward's among them, in one of its three places.
At k h = 4, q = 0.6548. Such triples come up in play, though seldom, as a student in a good mood does better on every
criterion: of 2,240 triples of conversations with one student by `polyturn.agents.scripted.teachers.ScriptedTeacher`, 6
were cyclic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyturn.envs.preference import Judged, Pair, Preference
from polyturn.envs.trajectory import Group, Trajectory

CRITERIA = ("understanding", "enjoyment", "participation")


@dataclass(frozen=True)
class EducationOracle:
    """The exact preference, as an `Annotator`; the module's page has the formula and the proof.

    Attributes:
        weights: Of `CRITERIA`; only their ratios count.
        steepness: k; 20 makes a difference of 0.1 on a criterion worth a vote of 0.88.

    Raises:
        ValueError: Weights that are negative or all zero, a steepness that is not positive; when called, a trajectory
            whose student was not the scripted one.
    """

    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    steepness: float = 20.0

    def __post_init__(self) -> None:
        if len(self.weights) != 3 or min(self.weights) < 0 or not sum(self.weights) > 0 or not self.steepness > 0:
            raise ValueError(
                "EducationOracle: expected three weights >= 0, not all zero, and steepness > 0, got "
                f"weights={self.weights}, steepness={self.steepness}"
            )

    def probability(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(a beats b) for outcomes `[..., 3]` in the order of `CRITERIA`; broadcasts."""
        weights = np.asarray(self.weights) / sum(self.weights)
        votes: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * self.steepness * (np.asarray(a) - np.asarray(b))))
        return votes @ weights

    def compare(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """`[P]`, as a pair judge."""
        first = np.array([outcome(pair[0]) for pair in pairs]).reshape(-1, 3)
        second = np.array([outcome(pair[1]) for pair in pairs]).reshape(-1, 3)
        return self.probability(first, second)

    def __call__(self, group: Group) -> Preference:
        """`[K, K]`, nan for invalid members."""
        return Judged(self.compare, source="oracle", both_orders=False)(group)


def outcome(trajectory: Trajectory) -> NDArray[np.float64]:
    """`[3]` the state after the conversation, in the order of `CRITERIA`.

    Raises:
        ValueError: Another student than the scripted one, whose state is unknown, or no turn at all.
    """
    return _numbers(trajectory.info)


def turn_scores(trajectory: Trajectory, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """`[H]` weighted mean of the criteria after each turn: feedback for methods that judge single turns.

    Raises:
        ValueError: As `outcome`.
    """
    share = np.asarray(weights, np.float64) / float(sum(weights))
    return np.array([_numbers(turn.info) @ share for turn in trajectory.turns], np.float64)


def _numbers(info: Mapping[str, object]) -> NDArray[np.float64]:
    found = info.get("outcome")
    if not isinstance(found, Mapping):
        raise ValueError(
            "EducationOracle: expected the outcome that the scripted student records in info, got none; the state of "
            "any other student is unknown: ask a prompted judge, a preference model or a person"
        )
    return np.array([float(found[name]) for name in CRITERIA], np.float64)
